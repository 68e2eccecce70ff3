"""`WARMUP_WORKFLOW`: the gateway is not ready until the workflow ran on every server that is up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from comfyui.engine import Engine, EngineOptions
from comfyui.exceptions import SettingsError
from comfyui.warmup import WarmUp
from config import Settings
from server import create_app
from tests.support.relaying import eventually
from tests.support.running import RunningGateway, executions, invert_workflow, running_gateway, sleep_workflow, until


def _saved(tmp_path: Path, workflow: Any) -> Path:
    path = tmp_path / "warmup.json"
    path.write_text(json.dumps(workflow))
    return path


async def _readiness(gateway: RunningGateway) -> tuple[int, str]:
    async with gateway.http.get("/health/ready") as response:
        return response.status, str((await response.json()).get("reason"))


async def test_the_gateway_is_not_ready_until_the_warm_up_workflow_ran(engine: Engine, tmp_path: Path) -> None:
    path = _saved(tmp_path, sleep_workflow(0.5))
    async with running_gateway(engine.url, warmup_workflow=path) as gateway:
        assert await _readiness(gateway) == (503, "warming up")
        await until(lambda: _readiness(gateway), lambda answer: answer[0] == 200)
        assert list(executions(engine).values()) == [1]


async def test_prompts_are_accepted_during_the_warm_up(engine: Engine, tmp_path: Path) -> None:
    path = _saved(tmp_path, sleep_workflow(0.3))
    async with running_gateway(engine.url, warmup_workflow=path) as gateway:
        status, _ = await gateway.prompt_sync(invert_workflow(5))
        assert status == 200


async def test_a_failed_warm_up_is_shown_as_the_reason_and_repeated(tmp_path: Path) -> None:
    path = _saved(tmp_path, invert_workflow())
    async with (
        Engine(EngineOptions(faults={"node_error": {"times": 1, "message": "no memory"}})) as engine,
        running_gateway(engine.url, warmup_workflow=path) as gateway,
    ):
        _, reason = await until(lambda: _readiness(gateway), lambda answer: "failed" in answer[1])
        assert "no memory" in reason
        await until(lambda: _readiness(gateway), lambda answer: answer[0] == 200)


async def test_every_server_that_is_up_is_warmed_up(engine: Engine) -> None:
    async with Engine(EngineOptions()) as second, running_gateway(engine.url, second.url) as gateway:
        await eventually(lambda: len(gateway.handler.pool.ready) == 2)
        warm_up = WarmUp(sleep_workflow(0.2), timeout_s=10)
        assert warm_up.why_not_ready(in_detail=True) == "warming up"
        async with warm_up.running(gateway.handler):
            await eventually(lambda: warm_up.why_not_ready(in_detail=True) is None)
        assert all(executions(server) for server in (engine, second))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "No such file"),
        ("{", "not JSON"),
        ('{"nodes": [], "links": []}', "API format"),
    ],
)
def test_an_invalid_warm_up_file_stops_the_start(tmp_path: Path, content: str | None, expected: str) -> None:
    path = tmp_path / "warmup.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(SettingsError, match=f"WARMUP_WORKFLOW: .*{expected}"):
        create_app(Settings(warmup_workflow=path))


def test_an_empty_warmup_workflow_means_no_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WARMUP_WORKFLOW", "")
    assert Settings().warmup_workflow is None
