"""OpenAI's image API with OpenAI's own package for Node, as its users call it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from comfyui.engine import Engine
from tests.support.keys import ALICE, KEYS, write_keys
from tests.support.node import needs_package, told_by
from tests.support.openai_models import write_models
from tests.support.running import running_gateway

pytestmark = [pytest.mark.timeout(180), needs_package("openai")]

PNG = [0x89, *b"PNG"]
EXPECTED: dict[str, Any] = {
    "generate": [1, PNG, "72x40", "png"],
    "url": [200, "image/png", None],
    "edit": [PNG, PNG, PNG],
    "stream": "image_generation.completed",
    "models": ["broken", "portrait", "retouch", "sheet"],
    "refused": [[404, "model_not_found", "model"], [400, "invalid_value", "size"], [401, "invalid_api_key", None]],
}


async def test_openais_node_package_generates_and_edits_pictures(engine: Engine, tmp_path: Path) -> None:
    async with running_gateway(
        engine.url,
        workflows_dir=write_models(tmp_path / "workflows"),
        keys_file=write_keys(tmp_path / "keys.toml", KEYS),
    ) as gateway:
        assert await told_by("openai.mjs", gateway.url, ALICE) == EXPECTED
