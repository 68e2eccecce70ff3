"""A job ends once, gives late listeners the events that still hold, and leaves no object alive."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import weakref
from collections.abc import Callable, Coroutine
from copy import copy
from pathlib import Path
from typing import Any

import pytest

from comfyui.events import Event, Executing, ExecutionCached, ExecutionStart, ExecutionSuccess, QueuePosition
from comfyui.exceptions import (
    ComfyUICredentialsError,
    ComfyUIError,
    ComfyUIPromptLostError,
    ComfyUITaskCancelledError,
    ComfyUITaskError,
    ComfyUITimeoutError,
)
from comfyui.inputs.content import SpooledFiles
from comfyui.jobs.entries import Entries
from comfyui.jobs.job import Job
from comfyui.jobs.journal.records import State
from comfyui.jobs.journal.sqlite import SqliteJournal
from comfyui.jobs.origin import Origin
from comfyui.models import PromptRequest, PromptResult, Timings

_ID = "0b9b1f9e-5d4c-4b8a-9f4e-3f1f0a2c5d6e"
_REQUEST = PromptRequest(prompt={"1": {"class_type": "A", "inputs": {}}})


def result() -> PromptResult:
    return PromptResult(_ID, "a server", {}, (), Timings(0, 0, 0), {})


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (ComfyUITaskError("a node failed"), State.FAILED),
        (ComfyUITimeoutError("MAX_TIMEOUT"), State.FAILED),
        (ComfyUITaskCancelledError("removed from the queue"), State.CANCELED),
        (ComfyUIPromptLostError("forgotten"), State.LOST),
    ],
)
async def test_the_error_decides_the_final_state_of_a_job(error: ComfyUIError, state: State) -> None:
    job = Job(_ID, _REQUEST)
    job.fail(error)
    assert job.state is state
    assert job.failure is not None
    assert job.failure.code == error.code
    with pytest.raises(type(error)) as raised:
        job.result()
    assert raised.value.prompt_id == _ID


async def test_a_job_that_is_cancelled_for_a_timeout_is_canceled_with_the_code_timeout() -> None:
    job = Job(_ID, _REQUEST)
    job.cancel(ComfyUITimeoutError("cancelled on timeout"))
    assert job.state is State.CANCELED
    assert job.failure is not None
    assert job.failure.code == "timeout"


async def test_the_first_end_of_a_job_stays() -> None:
    job = Job(_ID, _REQUEST)
    job.finish(result())
    job.fail(ComfyUITaskError("too late"))
    job.cancel(ComfyUITaskCancelledError("too late"))
    job.publish(ExecutionStart(_ID))
    assert job.state is State.SUCCEEDED
    assert job.result() == result()


async def test_a_job_runs_from_execution_start_and_stays_running_when_comfyui_loses_it() -> None:
    job = Job(_ID, _REQUEST)
    job.publish(QueuePosition(_ID, 1))
    assert job.state is State.QUEUED
    job.publish(ExecutionStart(_ID))
    job.lost(1)
    job.lost(1)
    assert (job.state, job.losses) == (State.RUNNING, 1)


async def test_all_waiters_are_woken_and_a_waiter_that_left_is_not_counted() -> None:
    job = Job(_ID, _REQUEST)
    for _ in range(3):
        job.join()
    waiting = [asyncio.create_task(job.wait(5)) for _ in range(2)]
    assert not await job.wait(0.01)
    job.leave(cancel="timeout")
    assert (job.waiters, job.cancel_wanted) == (2, "timeout")
    job.finish(result())
    assert await asyncio.gather(*waiting) == [True, True]


async def test_a_reason_to_cancel_is_kept_until_the_last_request_leaves() -> None:
    job = Job(_ID, _REQUEST)
    job.join()
    job.join()
    job.leave(cancel="disconnect")
    job.leave()
    assert (job.waiters, job.cancel_wanted) == (0, "disconnect")


async def test_a_late_listener_gets_only_the_events_that_still_hold() -> None:
    job = Job(_ID, _REQUEST)
    first: list[Event] = []
    job.join(first.append)
    told: list[Event] = [
        QueuePosition(_ID, 1),
        ExecutionStart(_ID),
        ExecutionCached(_ID, ("1",)),
        Executing(_ID, "2"),
        Executing(_ID, "3"),
    ]
    for event in told:
        job.publish(event)
    later: list[Event] = []
    job.join(later.append)
    assert first == told
    assert later == [told[2], told[4]]
    job.leave(later.append)
    job.leave(first.append)
    assert not job.followed


async def test_a_failing_listener_is_dropped_and_the_others_get_further_events() -> None:
    job = Job(_ID, _REQUEST)
    heard: list[Event] = []

    def broken(_event: Event) -> None:
        raise ValueError("a bug in a reader")

    job.join(broken)
    job.join(heard.append)
    job.publish(ExecutionStart(_ID))
    job.publish(ExecutionSuccess(_ID))
    assert len(heard) == 2


async def test_an_adopted_prompt_holds_the_files_of_its_request_until_its_task_ends(tmp_path: Path) -> None:
    folder = tmp_path / "spool"
    folder.mkdir()
    files = SpooledFiles(folder, {"a.png": folder / "0"}, {"a.png": "0" * 64})
    end = asyncio.Event()

    async def work() -> None:
        await end.wait()

    job = Job(_ID)
    job.begin(work())
    files.hold()
    job.adopt(_REQUEST, files, "its fingerprint")
    files.release()
    assert (job.request, job.fingerprint, list(job.file_names)) == (_REQUEST, "its fingerprint", ["a.png"])
    job.adopt(PromptRequest(prompt={}), None, "another")
    assert (job.request, job.workflow) == (_REQUEST, _REQUEST.prompt)
    await asyncio.sleep(0)
    assert folder.exists()
    await job.stopped()
    async with asyncio.timeout(30):
        while folder.exists():
            await asyncio.sleep(0.01)


async def _finishing(job: Job) -> None:
    job.finish(result())
    job.let_go()


async def _failing(job: Job) -> None:
    try:
        raise ComfyUITaskError("a node failed")
    except ComfyUITaskError as error:
        job.fail(error)
    job.let_go()


async def _wait_and_read_result(job: Job) -> None:
    await job.wait(5)
    with contextlib.suppress(ComfyUIError):
        job.result()


@pytest.mark.parametrize("work", [_finishing, _failing])
async def test_a_job_that_has_ended_is_freed_without_the_garbage_collector(
    work: Callable[[Job], Coroutine[Any, Any, None]],
) -> None:
    gc.disable()
    try:
        job = Job(_ID, _REQUEST)
        job.begin(work(job))
        await _wait_and_read_result(job)
        gone = weakref.ref(job)
        del job
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert gone() is None
    finally:
        gc.enable()


def test_a_copy_of_an_error_has_neither_a_traceback_nor_a_cause() -> None:
    with pytest.raises(ComfyUICredentialsError) as raised:
        raise ComfyUICredentialsError("GET /queue", upstream_status=401) from KeyError("a")
    error = raised.value
    same = copy(error)
    assert (type(same), same.args, vars(same)) == (type(error), error.args, vars(error))
    assert (same.__traceback__, same.__cause__, same.__context__) == (None, None, None)


async def test_the_mark_of_a_prompt_names_the_journal_and_says_if_the_caller_chose_the_id(tmp_path: Path) -> None:
    """A gateway that ends while it commits and submits a prompt may leave no row of it. The next gateway removes such a
    prompt from ComfyUI's queue, unless a caller chose its id and may ask for it again.
    """
    async with SqliteJournal(tmp_path) as journal:
        entries = Entries(journal)
        for callers_id in (False, True):
            entry = entries.new(_ID, Origin("prompt"), kind="async", callers_id=callers_id)
            marks = dict(Job(_ID, _REQUEST, None, "f", entry=entry).mark)
            told = {"fingerprint": "f", "journal": journal.identity, "attempt": "1.0"}
            assert marks == told | ({"id": "chosen"} if callers_id else {})
