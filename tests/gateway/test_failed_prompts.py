"""The request of a failed prompt does not stay in memory, for any kind of failure."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest

from comfyui.engine import Engine
from comfyui.models import PromptRequest
from tests.support.running import RunningGateway, invert_workflow, sleep_workflow, until

_PICTURE = {"name": "a.png", "image": "data:image/png;base64,QUJDREVGRw=="}
_LOADING = invert_workflow() | {"1": {"class_type": "LoadImage", "inputs": {"image": "a.png"}}}
_UNKNOWN = {"1": {"class_type": "NoSuchNode", "inputs": {}}}


def _requests() -> int:
    return sum(type(found) is PromptRequest for found in gc.get_objects())


async def _alive() -> int:
    await asyncio.sleep(0)
    return _requests()


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize(
    ("code", "workflow", "fields", "faults"),
    [
        ("task_failed", _LOADING, {"images": [_PICTURE]}, {}),
        ("validation_failed", _UNKNOWN, {}, {}),
        ("input_failed", _LOADING, {"images": [_PICTURE | {"image": "http://127.0.0.1/a.png"}]}, {}),
        ("timeout", sleep_workflow(60), {"timeout": 0.05}, {}),
        ("server_error", invert_workflow(), {}, {"long_answer": {"route": "/history/*", "bytes": 2_000_000}}),
    ],
)
async def test_the_request_of_a_failed_prompt_is_freed_from_memory(
    small_answers: RunningGateway,
    engine: Engine,
    code: str,
    workflow: dict[str, Any],
    fields: dict[str, Any],
    faults: dict[str, Any],
) -> None:
    await engine.set_faults(faults)
    before = _requests()
    for _ in range(3):
        _, body = await small_answers.prompt_sync(workflow, **fields)
        assert body["type"] == code
    # The poller may still hold the last request until its next round.
    assert await until(_alive, lambda count: count <= before + 1) <= before + 1
