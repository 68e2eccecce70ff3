"""The real SDK compiles the example into a WfSpec that runs the worker's task."""

from __future__ import annotations

import importlib.util
import runpy
from pathlib import Path
from typing import Any

import pytest

if importlib.util.find_spec("littlehorse") is None:
    pytest.skip("LittleHorse's SDK is in .venv-littlehorse: make test runs these there", allow_module_level=True)

EXAMPLE = Path(__file__).parents[2] / "examples" / "littlehorse_wfspec.py"


def compiled() -> dict[str, Any]:
    from google.protobuf.json_format import MessageToDict
    from littlehorse.workflow import Workflow

    request: dict[str, Any] = MessageToDict(Workflow("render", runpy.run_path(str(EXAMPLE))["render"]).compile())
    return request


def test_the_example_retries_with_backoff_and_sets_a_timeout() -> None:
    from comfyui.workers.littlehorse.settings import LittleHorseSettings
    from comfyui.workers.littlehorse.worker import TASK_NAME

    threads = compiled()["threadSpecs"]
    nodes = threads[compiled()["entrypointThreadName"]]["nodes"]
    node = next(found for found in nodes.values() if "task" in found)
    task = node["task"]
    assert task["taskDefId"]["name"] == TASK_NAME
    assert task["retries"] == 3
    assert task["exponentialBackoff"] == {"baseIntervalMs": 2000, "maxDelayMs": "60000", "multiplier": 2.0}
    assert task["timeoutSeconds"] > LittleHorseSettings().comfyui_history_timeout_sec
    handled = {handler["specificFailure"] for handler in node["failureHandlers"]}
    assert handled == {"invalid-workflow", "missing-model"}
