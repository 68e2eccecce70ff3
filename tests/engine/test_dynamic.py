"""The engine's nodes with dynamic inputs: the prompt decides which inputs they have."""

from __future__ import annotations

from typing import Any

import aiohttp
import pytest

from comfyui.engine import NEW_VERSION, OLD_VERSION, Engine, EngineOptions
from comfyui.engine.dynamic import expanded, nested

PICTURE = {"class_type": "EmptyImage", "inputs": {"width": 32, "height": 16, "batch_size": 1, "color": 7}}
SCALED = {
    "class_type": "ResizeImageMaskNode",
    "inputs": {
        "input": ["1", 0],
        "resize_type": "scale by multiplier",
        "resize_type.multiplier": 2.0,
        "scale_method": "area",
    },
}
BATCH = {"class_type": "BatchImagesNode", "inputs": {"images.image0": ["2", 0], "images.image1": ["1", 0]}}
SAVE = {"class_type": "SaveImage", "inputs": {"images": ["3", 0], "filename_prefix": "shaped"}}


async def _submit(engine: Engine, prompt: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    async with aiohttp.ClientSession(engine.url) as session, session.post("/prompt", json={"prompt": prompt}) as answer:
        found: dict[str, Any] = await answer.json()
        return answer.status, found


async def test_a_workflow_with_dynamic_inputs_runs() -> None:
    async with Engine(EngineOptions(comfyui_version=NEW_VERSION)) as engine:
        status, answer = await _submit(engine, {"1": PICTURE, "2": SCALED, "3": BATCH, "4": SAVE})
        assert status == 200, answer
        async with aiohttp.ClientSession(engine.url) as session:
            entry: dict[str, Any] = {}
            while not entry:
                async with session.get(f"/history/{answer['prompt_id']}") as history:
                    entry = await history.json()
        outputs = entry[answer["prompt_id"]]["outputs"]
        assert len(outputs["4"]["images"]) == 2


async def test_the_old_version_has_no_nodes_with_dynamic_inputs() -> None:
    async with Engine(EngineOptions(comfyui_version=OLD_VERSION)) as engine:
        status, answer = await _submit(engine, {"1": PICTURE, "2": SCALED, "3": BATCH, "4": SAVE})
        assert status == 400
        assert "ResizeImageMaskNode does not exist" in answer["error"]["message"]


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ({}, set()),
        ({"mode": "nope"}, set()),
        ({"mode": "a"}, {"mode", "mode.x"}),
        ({"mode": "b"}, {"mode", "mode.y"}),
    ],
)
def test_a_dynamic_combo_has_the_inputs_of_its_chosen_option(given: dict[str, Any], names: set[str]) -> None:
    options = [{"key": key, "inputs": {"required": {name: ["INT", {}]}}} for key, name in (("a", "x"), ("b", "y"))]
    found = expanded({"required": {"mode": ["COMFY_DYNAMICCOMBO_V3", {"options": options}]}}, given)
    assert set(found["required"]) == names


def test_a_node_gets_one_dict_for_each_dynamic_combo() -> None:
    declared = {"required": {"mode": ["COMFY_DYNAMICCOMBO_V3", {"options": []}], "n": ["INT", {}]}}
    assert nested({"mode": "a", "mode.x": 1, "n": 2}, declared) == {"mode": {"mode": "a", "x": 1}, "n": 2}
