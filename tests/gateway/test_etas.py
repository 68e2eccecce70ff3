"""The expected start and end of jobs, computed from how long earlier jobs ran."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest

from comfyui.engine import Engine
from comfyui.handler import ComfyUIHandler
from comfyui.jobs.forecast import UNKNOWN, Eta
from comfyui.jobs.run_times import shape_of
from comfyui.workflows.needs import needs_of
from tests.support.jobs import fetch, look, status_is, submit
from tests.support.running import engines, running_gateway, sleep_workflow, until


async def test_the_expected_start_of_a_job_counts_the_jobs_before_it_on_all_servers() -> None:
    async with engines(2) as servers, running_gateway(*(server.url for server in servers)) as gateway:
        etas = gateway.handler.etas
        jobs = [await submit(gateway.http, sleep_workflow(600, tag=tag)) for tag in range(10)]
        running = await until(lambda: _running(gateway.http, jobs), lambda found: len(found) == 2)
        assert [etas.now().of(prompt_id) for prompt_id in running] == [Eta(0.0, None)] * 2, "nothing ran before"
        assert etas.now().of(jobs[-1]) == UNKNOWN
        etas.times.ended("before", needs_of(sleep_workflow(600)), 200.0)
        assert 100 < (etas.now().of(running[0]).ends_s or 0) <= 200
        found = [etas.now().of(prompt_id) for prompt_id in jobs[4:]]
        begins = [eta.begins_s for eta in found if eta.begins_s is not None]
        assert begins == sorted(begins)
        assert 300 < begins[0] <= 400, "one runs on each server, and one is behind it"
        assert begins[-1] - begins[0] == pytest.approx(500, abs=50), "five others, on two servers"
        assert [eta.ends_s for eta in found] == [one + 200.0 for one in begins]
        await gateway.handler.queue.pause(True)
        assert etas.now().of(jobs[-1]) == UNKNOWN, "the queue is paused"


async def test_successful_runs_teach_the_expected_duration(engine: Engine) -> None:
    async with running_gateway(engine.url, queue="gateway") as gateway:
        await fetch(gateway.http, await submit(gateway.http, sleep_workflow(0.1)))
        assert (await gateway.prompt_sync(sleep_workflow(0.1, tag=1)))[0] == 200
        expected_s = gateway.handler.etas.times.expected_s(shape_of(needs_of(sleep_workflow(600))))
        assert expected_s is not None
        assert expected_s >= 0.1


async def _running(http: aiohttp.ClientSession, jobs: list[str]) -> list[str]:
    return [one for one in jobs if (await look(http, one))[1].get("status") == "running"]


@pytest.mark.parametrize("looks", [True, False])
async def test_a_run_in_comfyuis_queue_teaches_a_duration_only_if_its_eta_was_requested(
    engine: Engine, looks: bool
) -> None:
    async with running_gateway(engine.url, queue="comfyui") as gateway:
        etas = gateway.handler.etas
        call = asyncio.create_task(gateway.prompt_sync(sleep_workflow(600)))
        (prompt_id,) = await until(lambda: _begun(gateway.handler), lambda found: len(found) == 1)
        if looks:
            assert etas.now().of(prompt_id) == Eta(0.0, None)
        engine.wake(prompt_id)
        assert (await call)[0] == 200
        expected_s = etas.times.expected_s(shape_of(needs_of(sleep_workflow(600))))
        assert (expected_s is not None) is looks


async def _begun(handler: ComfyUIHandler) -> list[str]:
    now = handler.standing.now(lambda _owner: True)
    standing = [one.prompt_id for one in (*now.running, *now.pending)]
    return [one for one in standing if (job := handler.standing.job(one)) is not None and job.began_at is not None]


async def test_a_cancelled_run_teaches_no_duration(engine: Engine) -> None:
    async with running_gateway(engine.url, queue="gateway") as gateway:
        prompt_id = await submit(gateway.http, sleep_workflow(600))
        await status_is(gateway.http, prompt_id, "running")
        async with gateway.http.delete(f"/prompt_sync/{prompt_id}") as response:
            assert response.status == 200
        another = await submit(gateway.http, sleep_workflow(600, tag=2))
        await status_is(gateway.http, another, "running")
        assert gateway.handler.etas.now().of(another).ends_s is None
