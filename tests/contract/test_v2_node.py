"""Comfy API v2 with Comfy-Org's SDK for Node, `@comfyorg/sdk`, as its users call it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.keys import ALICE, KEYS, write_keys
from tests.support.node import needs_package, told_by
from tests.support.running import RunningGateway, engines, running_gateway

pytestmark = [pytest.mark.timeout(180), needs_package("@comfyorg/sdk")]


async def told_by_node(url: str, key: str = "") -> dict[str, Any]:
    """What a user of the SDK sees, by the name of each case."""
    return await told_by("comfy_v2.mjs", key, COMFY_BASE_URL=url)


EXPECTED: dict[str, Any] = {
    "run": {
        "status": "succeeded",
        "outputs": [["3", "image", "image/png"]],
        "size": True,
        "png": [0x89, *b"PNG"],
        "link": True,
        "workflow": "EmptyImage",
        "again": "succeeded",
    },
    "events": {"last": ["statusChange", "succeeded"], "outputs": ["3"], "progress": True, "seen": "succeeded"},
    "cancel": "canceled",
    "assets": {
        "created": [False, True, False],
        "loaded": "succeeded",
        "deleted": {"code": "not_found", "status": 404, "details": None},
    },
    "failed": ["node_execution_error", "1", "LoadImage"],
    "refused": {
        "workflow": 422,
        "ui": "workflow_format_ui",
        "twice": "idempotency_key_reuse",
        "asset": {"missing_ids": ["zzz"]},
        "job": "not_found",
        "key": 401,
    },
}


async def test_the_node_sdk_works_with_one_server_without_keys(gateway: RunningGateway) -> None:
    """Runs with an old engine, a new engine and a real ComfyUI."""
    assert await told_by_node(gateway.url) == EXPECTED


async def test_the_node_sdk_works_with_three_servers_and_a_users_key(tmp_path: Path) -> None:
    async with (
        engines(3) as servers,
        running_gateway(*(one.url for one in servers), keys_file=write_keys(tmp_path / "keys.toml", KEYS)) as gateway,
    ):
        assert await told_by_node(gateway.url, ALICE) == EXPECTED
