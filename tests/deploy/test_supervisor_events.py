"""The event listener's decisions and its side of supervisord's protocol; test_supervisord.py runs it for real."""

from __future__ import annotations

import asyncio
import io
import sys
from pathlib import Path

import pytest

from comfyui.engine import Engine
from deploy.healthcheck import url
from deploy.supervisor_events import BrokenWatch, CrashCount, Listener
from tests.support.containers import ROOT
from tests.support.running import running_gateway

BROKEN = {"servers": [{"state": "broken"}]}
CONNECTED = {"servers": [{"state": "connected"}]}


class _Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_crashes_are_counted_for_each_program_within_the_window() -> None:
    clock = _Clock()
    crashes = CrashCount(2, 100, clock)
    seen = []
    for clock.now in (0, 10, 101, 105):
        seen.append(crashes.crashed("comfyui"))
    assert seen == [False, False, False, True], "the first is forgotten at 101"
    assert not crashes.crashed("worker")


def test_the_broken_state_must_last_without_interruption() -> None:
    clock = _Clock()
    watch = BrokenWatch(30, clock)
    seen = []
    for clock.now, health in ((0, BROKEN), (20, BROKEN), (25, CONNECTED), (31, BROKEN), (60, BROKEN), (61, BROKEN)):
        seen.append(watch.seen(health))
    assert seen == [False, False, False, False, False, True]
    assert not watch.seen(BROKEN), "after a restart the time begins again"
    assert not watch.seen(None)


def test_the_listener_answers_every_event_and_ends_with_its_input(tmp_path: Path) -> None:
    payload = "processname:comfyui groupname:comfyui from_state:RUNNING expected:0 pid:7"
    events = io.StringIO(f"ver:3.0 server:s serial:1 eventname:PROCESS_STATE_EXITED len:{len(payload)}\n{payload}")
    replies, log = io.StringIO(), io.StringIO()
    Listener({"RUN_DIR": str(tmp_path)}, events, replies, log).run()
    assert replies.getvalue() == "READY\nRESULT 2\nOKREADY\n"
    assert log.getvalue() == "events | comfyui ended unexpectedly and is started again\n"
    assert not (tmp_path / "failed").exists()


@pytest.mark.parametrize(
    ("worker", "asked"),
    [
        ("gateway", "http://127.0.0.1:1/health"),
        ("runpod", "http://127.0.0.1:2/system_stats"),
        ("comfyui", "http://127.0.0.1:2/system_stats"),
    ],
)
def test_the_health_check_asks_the_url_that_its_role_serves(worker: str, asked: str) -> None:
    assert url(worker, "1", "2") == asked


async def test_the_health_check_prints_the_reason_only_when_it_fails(engine: Engine) -> None:
    async def check(port: str) -> tuple[int | None, str]:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            ROOT / "deploy" / "healthcheck.py",
            env={"SERVER_PORT": port},
            stderr=asyncio.subprocess.PIPE,
        )
        _, said = await process.communicate()
        return process.returncode, said.decode()

    async with running_gateway(engine.url) as gateway:
        assert await check(gateway.url.rpartition(":")[2]) == (0, "")
    async with running_gateway("127.0.0.1:1", ready=False) as gateway:
        status, said = await check(gateway.url.rpartition(":")[2])
        assert status == 1
        assert "503" in said
        assert "127.0.0.1:1" in said
