"""`ComfyUIWorker` with its own ComfyUI, which crashes or hangs in every way that the engine can simulate."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from comfyui.exceptions import (
    ComfyUIConnectionError,
    ComfyUIPromptLostError,
    ComfyUIPromptQuarantinedError,
    ComfyUITimeoutError,
)
from comfyui.executors.quarantine import Quarantine, workflow_hash
from comfyui.jobs.journal.memory import MemoryJournal
from comfyui.models import PromptRequest
from comfyui.servers.process import ProcessState
from comfyui.workers.base import ComfyUIWorker
from comfyui.workers.options import WorkerOptions
from tests.chaos import workers as chaos
from tests.support.ports import free_port
from tests.support.running import Workflow, crash_workflow, invert_workflow, sleep_workflow


@asynccontextmanager
async def crashing_worker(
    tmp_path: Path, faults: dict[str, Any] | None = None, **options: Any
) -> AsyncIterator[ComfyUIWorker]:
    """A worker whose engine has these faults; the engine counts them across its crashes."""
    port = free_port()
    (tmp_path / "faults.json").write_text(json.dumps(faults or {}))
    command = (
        *(sys.executable, "-m", "comfyui.engine", "--port", str(port), "--step-seconds", "0.002", "--verbose"),
        *("--faults-file", str(tmp_path / "faults.json"), "--base-directory", str(tmp_path / "engine")),
    )
    chosen: dict[str, Any] = {"http_retries": 0, "restart_delay_s": 0.05, **options}
    async with ComfyUIWorker(WorkerOptions(f"127.0.0.1:{port}", command, **chosen)) as worker:
        yield worker


def job(workflow: Workflow, prompt_id: UUID | None = None) -> PromptRequest:
    return PromptRequest(prompt=workflow, prompt_id=prompt_id or uuid4())


async def test_a_workflow_that_crashes_comfyui_is_quarantined_after_its_render_budget(
    tmp_path: Path,
) -> None:
    """Regression: with LOST_PROMPT_RETRIES=1 it was rendered four times, then hung until JOB_TIMEOUT."""
    async with crashing_worker(tmp_path) as worker, asyncio.timeout(40):
        with pytest.raises(ComfyUIPromptQuarantinedError) as failed:
            await worker.run(job(crash_workflow()))
        assert worker.process is not None
        assert worker.process.crashes == 2
        assert "ended by SIGSEGV" in failed.value.detail
        assert any("Segmentation fault" in line for line in failed.value.log_tail)
        assert not any(f"{tmp_path.parent}/" in line or "/comfyui/" in line for line in failed.value.log_tail)
        # The same workflow under another id does not reach ComfyUI; another workflow succeeds.
        with pytest.raises(ComfyUIPromptQuarantinedError):
            await worker.run(job(crash_workflow()))
        assert worker.process.crashes == 2
        assert (await worker.run(job(invert_workflow(9)))).files


@pytest.mark.parametrize("retries", [0, 1, 2])
async def test_all_layers_and_deliveries_of_a_job_share_one_render_budget(tmp_path: Path, retries: int) -> None:
    request = job(crash_workflow("exit"))
    running = crashing_worker(tmp_path, quarantine_after=0, lost_prompt_retries=retries)
    async with running as worker, asyncio.timeout(60):
        for _ in range(2):  # the platform delivers it again
            with pytest.raises(ComfyUIPromptLostError):
                await worker.run(request)
        assert worker.process is not None
        assert worker.process.crashes == retries + 1


@pytest.mark.parametrize(
    ("stage", "fault"),
    [
        ("starting", {"at": "start"}),
        ("staging", {"route": "/upload/image"}),
        ("queued", {"route": "/prompt", "method": "POST"}),
        ("running", {"class_type": "ImageInvert"}),
        ("collecting", {"route": "/history/*", "method": "GET"}),
    ],
)
async def test_a_job_survives_one_crash_at_any_stage(tmp_path: Path, stage: str, fault: dict[str, Any]) -> None:
    workflow = invert_workflow(3)
    picture = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
    request = PromptRequest.model_validate(
        {"prompt": workflow, "prompt_id": str(uuid4()), "images": [{"name": "a.png", "image": picture}]}
    )
    async with crashing_worker(tmp_path, {"segfault": {**fault, "times": 1}}) as worker, asyncio.timeout(40):
        assert (await worker.run(request)).files
        assert worker.process is not None
        assert worker.process.crashes == 1


async def test_a_job_fails_at_once_when_its_comfyui_is_given_up(tmp_path: Path) -> None:
    faults = {"segfault": [{"class_type": "ImageInvert", "times": 1}, {"at": "start"}]}
    began = time.monotonic()
    async with crashing_worker(tmp_path, faults) as worker, asyncio.timeout(40):
        with pytest.raises(ComfyUIConnectionError, match="does not run: it was ended by SIGSEGV, 4 times in a row"):
            await worker.run(job(invert_workflow(3)))
        assert worker.given_up
        # The next job fails at once, too.
        with pytest.raises(ComfyUIConnectionError, match="does not run"):
            await worker.run(job(invert_workflow(4)))
    assert time.monotonic() - began < 40


async def test_a_successful_job_between_crashes_resets_the_series_of_crashes(tmp_path: Path) -> None:
    async with crashing_worker(tmp_path, quarantine_after=1, lost_prompt_retries=0) as worker, asyncio.timeout(60):
        for number in range(6):
            with pytest.raises(ComfyUIPromptQuarantinedError):
                await worker.run(job(crash_workflow("exit", tag=number)))
            await worker.run(job(invert_workflow(number)))
        assert worker.process is not None
        assert worker.process.crashes == 6
        assert worker.process.state is ProcessState.READY


async def test_a_prompt_that_ignores_interrupts_costs_a_restart_and_not_the_next_job(tmp_path: Path) -> None:
    async with crashing_worker(tmp_path, hung_after_s=0.3) as worker, asyncio.timeout(60):
        await worker.wait_until_ready()
        with pytest.raises(ComfyUITimeoutError):
            await worker.run(job(crash_workflow("hang")), timeout_s=1.0)
        assert (await worker.run(job(invert_workflow(4)), timeout_s=30)).files
        assert worker.process is not None
        assert worker.process.crashes == 0


async def test_a_cancelled_prompt_that_stops_costs_no_restart(tmp_path: Path) -> None:
    async with crashing_worker(tmp_path, hung_after_s=5) as worker, asyncio.timeout(60):
        await worker.wait_until_ready()
        assert worker.process is not None
        pid = worker.process.pid
        with pytest.raises(ComfyUITimeoutError):
            await worker.run(job(sleep_workflow(30)), timeout_s=1.0)
        await worker.run(job(invert_workflow(4)))
        assert worker.process.pid == pid


async def test_quarantine_counts_crashes_only_within_its_time() -> None:
    now = 0.0
    quarantine = Quarantine(after=2, seconds=10, clock=lambda: now)
    poison, other = invert_workflow(1), invert_workflow(2)
    await quarantine.ended_comfyui(poison, "it was ended by SIGSEGV", ["in /opt/comfyui/nodes.py", "end"])
    quarantine.check(poison)
    now = 11.0  # the first is too old to count
    await quarantine.ended_comfyui(poison)
    quarantine.check(poison)
    now = 12.0
    await quarantine.ended_comfyui(poison, "it was ended by SIGKILL", ["in /opt/comfyui/nodes.py"])
    with pytest.raises(
        ComfyUIPromptQuarantinedError, match=r"2 times \(the last time it was ended by SIGKILL\)"
    ) as error:
        quarantine.check(poison, "an-id")
    assert (error.value.prompt_id, error.value.log_tail) == ("an-id", ("in nodes.py",))
    assert (error.value.status, error.value.retryable) == (500, False)
    quarantine.check(other)
    now = 22.5
    quarantine.check(poison)


async def test_quarantine_continues_after_a_restart_of_the_process() -> None:
    poison, other = crash_workflow(), invert_workflow(1)
    journal = MemoryJournal()
    wall, now = 1000.0, 5.0

    async def next_process() -> Quarantine:
        quarantine = Quarantine(2, 10, journal, clock=lambda: now, wall_clock=lambda: wall)
        await quarantine.open()
        return quarantine

    first = await next_process()
    await first.ended_comfyui(poison)
    await first.ended_comfyui(other)
    first.succeeded(other)
    wall, now = 1004.0, 77.0  # another boot
    second = await next_process()
    second.check(poison)
    await second.ended_comfyui(other)
    second.check(other)
    await second.ended_comfyui(poison)
    with pytest.raises(ComfyUIPromptQuarantinedError, match="refused for another 10 s"):
        second.check(poison)
    wall, now = 1010.0, 3.0
    third = await next_process()
    with pytest.raises(ComfyUIPromptQuarantinedError, match="2 times; it is refused for another 4 s"):
        third.check(poison)
    wall = 900.0  # the clock was set back; the refusal still lasts at most its set time
    with pytest.raises(ComfyUIPromptQuarantinedError, match="refused for another 10 s"):
        (await next_process()).check(poison)
    wall, now = 1014.5, 9.0
    (await next_process()).check(poison)


async def test_an_expired_quarantine_hashes_no_workflow(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    quarantine = Quarantine(after=1, seconds=10, clock=lambda: now)
    await quarantine.ended_comfyui(crash_workflow())
    now = 10.0
    monkeypatch.setattr("comfyui.executors.quarantine.workflow_hash", None)
    quarantine.check(invert_workflow(1))
    quarantine.succeeded(invert_workflow(1))


async def test_quarantine_can_be_switched_off_and_lifted_by_success() -> None:
    off = Quarantine(after=0)
    once = Quarantine(after=1)
    for quarantine in (off, once):
        await quarantine.ended_comfyui(invert_workflow(1))
    off.check(invert_workflow(1))
    once.succeeded(invert_workflow(1))
    once.check(invert_workflow(1))


def test_titles_and_node_order_do_not_change_the_workflow_hash() -> None:
    titled = invert_workflow(1)
    titled["1"]["_meta"] = {"title": "another"}
    assert workflow_hash(titled) == workflow_hash(dict(reversed(invert_workflow(1).items())))
    assert workflow_hash(invert_workflow(1)) != workflow_hash(invert_workflow(2))


@pytest.mark.parametrize("platform", ["own child", "supervised"])
@pytest.mark.parametrize(("stage", "crashes"), [("starting", 3), ("staging", 2), ("queued", 3), ("running", 6)])
async def test_repeated_crashes_neither_hang_nor_lose_a_job_nor_exceed_its_budget(
    platform: str, stage: str, crashes: int
) -> None:
    """The short form of ``python -m tests.chaos.workers``; the other platforms' tests are in their own modules."""
    ended = await chaos.one(platform, stage, crashes)
    assert ended.is_right, ended
