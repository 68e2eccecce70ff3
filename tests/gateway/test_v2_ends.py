"""Comfy API v2: how jobs end: cancelled while they wait or run, failed, lost, and after a restart."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import comfy_sdk
import pytest

from comfyui.engine import Engine
from comfyui.jobs.journal.records import JobRecord
from tests.support.engine_workflows import writing
from tests.support.processes import gateway_process
from tests.support.running import (
    RunningGateway,
    engines,
    executions,
    invert_workflow,
    queue_of,
    running_gateway,
    sleep_workflow,
    until,
)
from tests.support.v2 import JOBS, ask, comfy, submit


async def reaches(gateway: RunningGateway, job: str, *statuses: str) -> Any:
    """Returns the job once it has one of these statuses."""
    asked = await until(
        lambda: ask(gateway, f"{JOBS}/{job}"), lambda found: bool(found[1]["status"] in statuses), timeout_s=30
    )
    return asked[1]


async def test_a_running_job_is_cancelled_on_old_and_new_versions_of_comfyui(
    either_gateway: RunningGateway, either_engine: Engine
) -> None:
    async with comfy(either_gateway.url) as client:
        job = await client.submit(client.workflows.from_json(sleep_workflow(600)))
        await reaches(either_gateway, job.id, "running")
        async with asyncio.timeout(30):
            await job.cancel()
            assert job.status in {"canceling", "canceled"}
            await job.wait()
        assert job.status == "canceled"
        await until(lambda: queue_of(either_engine), lambda queue: queue == ([], []))
        assert (await job.cancel()).status == "canceled"
        after = await client.submit(client.workflows.from_json(invert_workflow()))
        assert (await after.result()).status == "succeeded"


async def test_waiting_jobs_are_cancelled_at_once_and_never_run(
    either_gateway: RunningGateway, either_engine: Engine
) -> None:
    """Jobs wait on the server or in the gateway."""
    blocker = await submit(either_gateway, sleep_workflow(600))
    await reaches(either_gateway, blocker["id"], "running")
    waiting = [(await submit(either_gateway, invert_workflow(tag)))["id"] for tag in range(6)]
    for job in (waiting[0], waiting[-1]):
        _, answered = await ask(either_gateway, f"{JOBS}/{job}/cancel", "POST")
        assert answered["status"] == "canceled"
    assert (await ask(either_gateway, f"{JOBS}/{blocker['id']}"))[1]["status"] == "running"
    either_engine.wake(blocker["id"])
    for job in waiting[1:-1]:
        await reaches(either_gateway, job, "succeeded")
    for job in (waiting[0], waiting[-1]):
        assert (await ask(either_gateway, f"{JOBS}/{job}"))[1]["status"] == "canceled"
        assert job not in executions(either_engine)


async def test_a_job_is_not_shown_as_ended_while_its_cancel_is_in_progress(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record is read before the cancel, and the server still has the prompt."""
    async with running_gateway(engine.url) as gateway:
        job = (await submit(gateway, sleep_workflow(600)))["id"]
        await reaches(gateway, job, "running")
        journal, live = gateway.handler.journal, gateway.handler.admission.runs.live
        get, cancelling = journal.get, list[asyncio.Task[Any]]()

        async def get_and_cancel(asked: str) -> JobRecord | None:
            record = await get(asked)
            monkeypatch.setattr(journal, "get", get)
            cancelling.append(asyncio.create_task(ask(gateway, f"{JOBS}/{job}/cancel", "POST")))
            assert await live[asked].wait(30)
            assert asked in live, "its task has not ended yet"
            return record

        monkeypatch.setattr(journal, "get", get_and_cancel)
        _, seen = await ask(gateway, f"{JOBS}/{job}")
        await asyncio.gather(*cancelling)
        assert cancelling
        assert (seen["status"], seen["completed_at"] is None) in {("canceling", True), ("canceled", False)}
        ended = await reaches(gateway, job, "canceled")
        assert ended["completed_at"] is not None


async def test_a_failure_names_its_node_and_shows_the_traceback(gateway: RunningGateway) -> None:
    workflow = invert_workflow()
    failing = {"value": ["2", 0], "exception_type": "ValueError", "message": "boom"}
    workflow["6"] = {"class_type": "SimulatedError", "inputs": failing}
    workflow["3"]["inputs"]["images"] = ["6", 0]
    async with comfy(gateway.url) as client:
        job = await client.submit(client.workflows.from_json(workflow))
        with pytest.raises(comfy_sdk.JobFailed):
            await job.result()
    error = job.error
    assert (error.code, error.node_id, error.class_type) == ("node_execution_error", "6", "SimulatedError")
    assert "boom" in error.message
    assert "ValueError: boom" in error.message
    assert "raise make_exception(exception_type, message)" in error.traceback
    assert str(Path.cwd()) not in error.traceback


async def test_a_job_that_comfyui_forgot_becomes_expired(engine: Engine) -> None:
    async with running_gateway(engine.url, lost_prompt_retries=0) as gateway:
        job = (await submit(gateway, sleep_workflow(600)))["id"]
        await reaches(gateway, job, "running")
        await engine.set_faults({"forget": {}})
        ended = await reaches(gateway, job, "expired")
        assert ended["error"]["code"] == "prompt_lost"


async def test_a_job_that_runs_again_does_not_return_to_queued(gateway: RunningGateway, engine: Engine) -> None:
    job = (await submit(gateway, sleep_workflow(1.0)))["id"]
    await reaches(gateway, job, "running")
    await engine.set_faults({"forget": {}})
    seen: list[str] = []
    async with asyncio.timeout(30):
        while not seen or seen[-1] not in {"succeeded", "failed", "expired"}:
            seen.append((await ask(gateway, f"{JOBS}/{job}"))[1]["status"])
            await asyncio.sleep(0.02)
    assert list(dict.fromkeys(seen)) == ["running", "succeeded"]


async def test_the_sdk_finds_all_jobs_after_a_kill_of_the_gateway(tmp_path: Path, engine: Engine) -> None:
    settings = {"STATE_DIR": str(tmp_path / "state")}
    async with gateway_process(engine.url, **settings) as gateway:
        async with comfy(gateway.url) as client:
            done = await client.submit(client.workflows.from_json(invert_workflow(1)), metadata={"at": "done"})
            await done.result()
            running = await client.submit(client.workflows.from_json(sleep_workflow(2)), metadata={"at": "running"})
            await until(running.refresh, lambda seen: seen.status == "running")
            waiting = [await client.submit(client.workflows.from_json(invert_workflow(tag))) for tag in range(2, 9)]
            canceled = waiting.pop()
            await canceled.cancel()
        await gateway.kill()
    async with gateway_process(engine.url, **settings) as gateway, comfy(gateway.url) as client:
        for before in (done, running, *waiting):
            job = await client.jobs.get(before.id)
            assert (await job.result()).status == "succeeded"
            assert job._model.created_at == before._model.created_at
            assert [output.node_id for output in job.outputs] == ["3"]
        assert (await client.jobs.get(canceled.id)).status == "canceled"
        kept = await client.jobs.get(done.id)
        assert [output.id for output in kept.outputs] == [output.id for output in done.outputs]
        assert kept._model.expires_at == done._model.expires_at
        assert (await kept.get_workflow()).graph == invert_workflow(1)
        labelled = [summary.id async for summary in client.list_jobs(metadata={"at": "running"})]
        assert labelled == [running.id]
    assert set(executions(engine).values()) == {1}


@pytest.mark.timeout(300)
async def test_500_quick_jobs_all_succeed_and_run_once(no_log: None) -> None:
    """32 callers use the SDK with three servers."""
    left = iter(range(500))
    ended: Counter[str] = Counter()
    ids: list[str] = []

    async with (
        engines(3) as started,
        running_gateway(*(one.url for one in started)) as gateway,
        comfy(gateway.url) as client,
    ):

        async def caller() -> None:
            for tag in left:
                job = await client.submit(client.workflows.from_json(invert_workflow(tag, width=8, height=8)))
                await job.wait()
                ids.append(job.id)
                ended[job.status] += 1
                assert len(job.outputs) == 1

        async with asyncio.TaskGroup() as callers:
            for _ in range(32):
                callers.create_task(caller())
        assert ended == {"succeeded": 500}
        ran: Counter[str] = Counter()
        for one in started:
            ran.update(executions(one))
        assert ran == Counter(ids)
        listed = [summary.id async for summary in client.list_jobs()]
        assert sorted(listed) == sorted(ids)


async def test_outputs_appear_while_the_job_runs(gateway: RunningGateway, engine: Engine) -> None:
    workflow = sleep_workflow(600)
    workflow |= {"10": {**writing()["1"]}}
    job = (await submit(gateway, workflow))["id"]
    _, shown = await until(
        lambda: ask(gateway, f"{JOBS}/{job}"),
        lambda found: bool(found[1]["outputs"] and found[1]["status"] == "running"),
        timeout_s=30,
    )
    assert [output["node_id"] for output in shown["outputs"]] == ["10"]
    assert shown["progress"]["nodes_total"] == len(workflow)
    engine.wake(job)
    ended = await reaches(gateway, job, "succeeded")
    assert {output["node_id"] for output in ended["outputs"]} == {"3", "10"}
    assert ended["metrics"]["execution_ms"] >= 0
