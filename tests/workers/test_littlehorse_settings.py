"""LittleHorse's settings and the promises of the task gate; needs no SDK."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from comfyui.exceptions import SettingsError
from comfyui.models import OutputFile
from comfyui.outputs.keys import local_path
from comfyui.settings import load
from comfyui.workers.littlehorse.gate import TaskGate
from comfyui.workers.littlehorse.settings import LittleHorseSettings, server_of


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("horse", {"LHC_API_HOST": "horse"}),
        ("horse:2024", {"LHC_API_HOST": "horse", "LHC_API_PORT": "2024"}),
        ("10.0.0.5:8188", {"LHC_API_HOST": "10.0.0.5", "LHC_API_PORT": "8188"}),
        ("[::1]:2023", {"LHC_API_HOST": "::1", "LHC_API_PORT": "2023"}),
    ],
)
def test_a_host_may_include_its_port(host: str, expected: dict[str, str]) -> None:
    assert server_of(host) == expected


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("LHW_NUM_WORKER_THREADS", "0"),
        ("COMFYUI_HISTORY_TIMEOUT_SEC", "soon"),
        ("COMFYUI_BASE_URL", "ftp://x"),
        ("LH_HOST", "a:b"),
        ("LH_HOST", "http://"),
    ],
)
def test_an_invalid_value_is_refused_with_its_variable(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=f"^{name}: "):
        load(LittleHorseSettings)


def test_the_defaults_fit_one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMFYUI_BASE_URL", "http://gpu:8188")
    options = load(LittleHorseSettings).worker_options()
    assert (options.server_address, options.jobs_at_once, options.max_job_s) == ("http://gpu:8188", 1, 600.0)
    assert (options.poll_interval_s, options.http_timeout_s, options.http_retries) == (2.0, 30.0, 3)


@pytest.mark.parametrize(
    ("filename", "subfolder", "output_dir", "expected"),
    [
        ("a.png", "", "/data/output", "/data/output/a.png"),
        ("a.png", "x/y", "/data/output/", "/data/output/x/y/a.png"),
        ("/mnt/b.png", "x", "/data/output", "/mnt/b.png"),
        ("a.png", "/mnt/z", "/data/output", "/mnt/z/a.png"),
        ("a.png", "x", "", "x/a.png"),
    ],
)
def test_paths_are_below_the_output_folder_unless_they_are_absolute(
    filename: str, subfolder: str, output_dir: str, expected: str
) -> None:
    assert local_path(output_dir, OutputFile("9", "images", filename, subfolder, "output")) == expected


def reply(guid: str | None) -> Any:
    """A stand-in for the SDK's replies and reports; without a `guid`, a reply that brings no task."""
    task = SimpleNamespace(
        task_run_id=SimpleNamespace(wf_run_id=SimpleNamespace(id="wf"), task_guid=guid), attempt_number=0
    )
    return SimpleNamespace(HasField=lambda _name: guid is not None, result=task, **vars(task))


class Stream:
    """A call that answers each request with the next of `replies`, then waits."""

    def __init__(self, requests: AsyncIterator[Any], replies: list[Any], asked: list[Any]) -> None:
        self._requests, self._replies, self._asked = requests, replies, asked
        self._ended = asyncio.Event()

    def cancel(self) -> None:
        self._ended.set()

    async def __aiter__(self) -> AsyncIterator[Any]:
        async for request in self._requests:
            self._asked.append(request)
            if self._replies:
                yield self._replies.pop(0)
        await self._ended.wait()
        raise asyncio.CancelledError


async def no_wait() -> None:
    pass


async def sent(_result: Any) -> str:
    return "sent"


async def test_no_task_is_requested_before_the_running_one_is_reported() -> None:
    gate = TaskGate(1, no_wait, report_tries=2)
    asked: list[Any] = []
    replies = gate.poll(lambda requests: Stream(requests, [reply("a"), reply("b")], asked))(_numbers(2))
    first = await anext(replies)
    following = asyncio.ensure_future(anext(replies))
    for _ in range(10):
        await asyncio.sleep(0)
    assert asked == [0]
    assert await gate.report(sent)(first.result) == "sent"
    async with asyncio.timeout(30):
        assert (await following).result.task_run_id.task_guid == "b"
    assert gate.under_way == 1


async def test_draining_waits_for_the_report_and_returns_false_without_one() -> None:
    gate = TaskGate(1, no_wait, report_tries=2)
    replies = gate.poll(lambda requests: Stream(requests, [reply("a")], []))(_numbers(1))
    task = await anext(replies)
    ending = asyncio.ensure_future(anext(replies, None))
    stopped: list[bool] = []
    assert not await gate.drain(lambda: stopped.append(True), grace_s=0)
    assert await ending is None
    assert stopped == [True]
    draining = asyncio.ensure_future(gate.drain(lambda: None, grace_s=5))
    await asyncio.sleep(0)
    await gate.report(sent)(task.result)
    assert await draining


async def test_a_task_ends_when_the_sdk_gives_up_its_report() -> None:
    async def refused(_result: Any) -> None:
        raise OSError("unavailable")

    gate = TaskGate(1, no_wait, report_tries=2)
    replies = gate.poll(lambda requests: Stream(requests, [reply("a")], []))(_numbers(1))
    task = await anext(replies)
    for left in (1, 0):
        with pytest.raises(OSError, match="unavailable"):
            await gate.report(refused)(task.result)
        assert gate.under_way == left


async def _numbers(count: int) -> AsyncIterator[Any]:
    for number in range(count):
        yield number


def test_every_failure_name_is_documented() -> None:
    root = Path(__file__).parents[2]
    page = (root / "docs" / "littlehorse.md").read_text()
    code = (root / "comfyui" / "workers" / "littlehorse" / "worker.py").read_text()
    named = set(re.findall(r'": "([a-z]+-[a-z-]+|cancelled)"|LHTaskException\("([a-z-]+)"|name = "([a-z-]+)"', code))
    names = {name for groups in named for name in groups if name}
    assert len(names) == 7
    assert [name for name in names if f"| `{name}` |" not in page] == []
