"""Fixtures of the tests in this folder."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from comfyui.sdk import (
    GatewayClient,
)
from tests.support.fake_gateway import WORKFLOW, FakeGateway, fake_gateway


@pytest.fixture
async def fake() -> AsyncIterator[FakeGateway]:
    async with fake_gateway() as running:
        yield running


@pytest.fixture
async def sdk_client(fake: FakeGateway) -> AsyncIterator[GatewayClient]:
    async with GatewayClient(fake.url, timeout_s=30, reconnect_delays_s=(0, 0, 0)) as client:
        yield client


@pytest.fixture
def workflow_file(tmp_path: Path) -> str:
    path = tmp_path / "workflow.json"
    path.write_text(json.dumps(WORKFLOW))
    return str(path)
