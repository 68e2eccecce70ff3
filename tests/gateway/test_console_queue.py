"""The queue of the console over plain HTTP: its pages, its forms, and what each key may see and change."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiohttp
import pytest

from comfyui.engine import Engine
from tests.support.jobs import fetch, listed, look, status_is, submit
from tests.support.keys import ALICE, BOB, KEYS, ROOT, WATCHER, bearer, table, write_keys
from tests.support.running import (
    RunningGateway,
    engines,
    executions,
    invert_workflow,
    queue_of,
    requests,
    running_gateway,
    sleep_workflow,
    until,
)

_IDS = re.compile(r'id="job-([0-9a-f-]{36})"')


async def page(http: aiohttp.ClientSession, path: str = "/console/queue", **headers: str) -> str:
    async with http.get(path, headers=headers) as answer:
        text = await answer.text()
        assert answer.status == 200, text
        return text


async def post(
    gateway: RunningGateway,
    path: str,
    fields: Any = (),
    *,
    key: str | None = None,
    script: bool = True,
    headers: Mapping[str, str] = {},
) -> tuple[int, Any]:
    """Sends a form; returns the status with the JSON for a script, or with the redirect for a browser."""
    given = {"Origin": gateway.url, **({"Accept": "application/json"} if script else {}), **headers}
    given |= bearer(key) if key else {}
    async with gateway.http.post(path, data=fields, headers=given, allow_redirects=False) as answer:
        if answer.content_type == "application/json":
            return answer.status, await answer.json()
        return answer.status, answer.headers.get("Location")


@asynccontextmanager
async def paused(engine: Engine, jobs: int, **settings: Any) -> AsyncIterator[tuple[RunningGateway, list[str]]]:
    """Runs a gateway with a paused queue that has this number of jobs."""
    async with running_gateway(engine.url, queue="gateway", **settings) as gateway:
        await gateway.handler.queue.pause(True)
        yield gateway, [await submit(gateway.http, invert_workflow(tag)) for tag in range(jobs)]


async def test_waiting_jobs_are_shown_in_queue_order(engine: Engine) -> None:
    async with paused(engine, 3) as (gateway, jobs):
        labelled = await submit(gateway.http, invert_workflow(9), priority=4, labels={"order": "<b>12</b>"})
        text = await page(gateway.http)
    assert _IDS.findall(text) == [labelled, *jobs]
    assert "order: &lt;b&gt;12&lt;/b&gt;" in text
    assert "Priority 4" in text
    assert "4 jobs wait" in text
    assert "The queue is paused" in text


async def test_a_job_can_be_moved_to_the_front_prioritized_and_cancelled(engine: Engine) -> None:
    async with paused(engine, 4) as (gateway, (one, two, three, four)):
        status, told = await post(gateway, f"/console/jobs/{four}/first")
        assert (status, told["message"]) == (200, "The job is the first one of its owner.")
        assert (await post(gateway, f"/console/jobs/{three}/priority", {"priority": " 7"}))[0] == 200
        status, to = await post(gateway, f"/console/jobs/{two}/cancel", {"back": "console/queue?page=2"}, script=False)
        assert (status, to) == (303, "../../../console/queue?page=2")
        assert _IDS.findall(await page(gateway.http)) == [three, four, one]
        await post(gateway, "/console/queue/resume")
        for prompt_id in (one, three, four):
            assert (await fetch(gateway.http, prompt_id))[0] == 200
        states = {job["prompt_id"]: job["status"] for job in (await listed(gateway.http))["jobs"]}
        assert states[two] == "canceled"
    assert list(executions(engine)) == [three, four, one]


async def test_an_impossible_change_is_refused_with_its_reason(engine: Engine) -> None:
    async with running_gateway(engine.url, queue="gateway") as gateway:
        runs = await submit(gateway.http, sleep_workflow(600))
        await status_is(gateway.http, runs, "running")
        assert (await post(gateway, f"/console/jobs/{runs}/first"))[0] == 409
        status, told = await post(gateway, f"/console/jobs/{runs}/priority", {"priority": "much"})
        assert (status, told["message"]) == (422, "priority must be a whole number")
        status, told = await post(gateway, f"/console/jobs/{runs}/priority", {"priority": "1000001"})
        assert status == 422
        assert "1000000" in told["message"]
        assert (await post(gateway, f"/console/jobs/{uuid4()}/first"))[0] == 404
        assert (await post(gateway, f"/console/jobs/{uuid4()}/cancel"))[0] == 404
        assert (await post(gateway, f"/console/jobs/{runs}/cancel"))[0] == 200
        await until(lambda: listed(gateway.http, "?status=canceled"), lambda found: len(found["jobs"]) == 1)
        assert (await post(gateway, f"/console/jobs/{runs}/cancel"))[0] == 409
        status, told = await post(gateway, "/console/queue/cancel")
        assert (status, told["message"]) == (422, "No job is selected.")


async def test_several_jobs_are_cancelled_at_once(engine: Engine) -> None:
    async with paused(engine, 5) as (gateway, jobs):
        status, told = await post(gateway, "/console/queue/cancel", [("job", one) for one in jobs[1:4]])
        assert (status, told["message"]) == (200, "3 jobs are cancelled.")
        assert _IDS.findall(await page(gateway.http)) == [jobs[0], jobs[4]]
        assert (await post(gateway, "/console/queue/cancel", [("job", jobs[1])]))[0] == 409
        status, told = await post(gateway, "/console/queue/cancel", [("job", str(one)) for one in range(1001)])
        assert status == 422


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Origin": "https://elsewhere.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},  # a page of a sibling host
        {"Sec-Fetch-Site": "none"},  # not sent by a page
    ],
)
async def test_forms_sent_from_a_foreign_page_change_nothing(engine: Engine, headers: dict[str, str]) -> None:
    async with paused(engine, 1) as (gateway, (job,)):
        for path in (f"/console/jobs/{job}/cancel", "/console/queue/cancel", "/console/queue/resume"):
            async with gateway.http.post(path, data={"job": job}, headers=headers) as answer:
                assert answer.status == 403
        assert gateway.handler.queue.paused
        assert (await look(gateway.http, job))[1]["status"] == "queued"


async def test_a_form_returns_only_to_pages_of_the_console(engine: Engine) -> None:
    async with paused(engine, 1) as (gateway, _):
        for back in (
            "https://elsewhere.example",
            "//elsewhere.example",
            "console/queue/../../x",
            "console/queue?a=//x/",
        ):
            status, to = await post(gateway, "/console/queue/pause", {"back": back}, script=False)
            assert (status, to) == (303, "../../console/queue")
        status, to = await post(gateway, "/console/queue/pause", {"back": "console"}, script=False)
        assert (status, to) == (303, "../../console")


async def test_a_long_queue_is_shown_page_by_page(engine: Engine) -> None:
    async with paused(engine, 120) as (gateway, jobs):
        seen = []
        for number in (1, 2, 3):
            text = await page(gateway.http, f"/console/queue?page={number}")
            seen += _IDS.findall(text)
            assert f"Page {number} of 3" in text
            assert ('rel="next"' in text) is (number < 3)
            assert ('rel="prev"' in text) is (number > 1)
        assert seen == jobs
        assert "No job waits" in await page(gateway.http, "/console/queue?page=4")
        async with gateway.http.get("/console/queue?page=0") as answer:
            assert answer.status == 422


async def keyed(http: aiohttp.ClientSession, key: str, tag: int, **fields: Any) -> str:
    headers = {**bearer(key), "Prefer": "respond-async"}
    async with http.post("/prompt_sync", json={"prompt": invert_workflow(tag), **fields}, headers=headers) as answer:
        assert answer.status == 202, await answer.text()
        return str((await answer.json())["prompt_id"])


async def test_each_key_sees_and_changes_only_the_jobs_it_may(engine: Engine, tmp_path: Path) -> None:
    keys = write_keys(tmp_path / "keys.toml", KEYS)
    async with running_gateway(engine.url, keys_file=keys) as gateway:
        await gateway.handler.queue.pause(True)
        alices = [await keyed(gateway.http, ALICE, tag) for tag in range(2)]
        bobs = await keyed(gateway.http, BOB, 5)
        assert _IDS.findall(await page(gateway.http, **bearer(ALICE))) == alices
        assert _IDS.findall(await page(gateway.http, "/console/queue?owner=bob", **bearer(ALICE))) == []
        for key in (ROOT, WATCHER):
            text = await page(gateway.http, **bearer(key))
            assert sorted(_IDS.findall(text)) == sorted([*alices, bobs])
            assert ('<form method="post"' in text) is (key == ROOT)
            text = await page(gateway.http, "/console/queue?owner=bob", **bearer(key))
            assert _IDS.findall(text) == [bobs]
            assert "1 job waits" in text
        for name in ("cancel", "first", "priority"):
            path = f"/console/jobs/{bobs}/{name}"
            assert (await post(gateway, path, {"priority": "1"}, key=ALICE))[0] == 404
            assert (await post(gateway, path, {"priority": "1"}, key=WATCHER))[0] == 403
        assert (await post(gateway, "/console/queue/cancel", [("job", bobs)], key=ALICE))[0] == 409
        name = gateway.handler.pool.backends[0].name
        for path in ("/console/queue/pause", "/console/queue/resume", f"/console/servers/{name}/drain"):
            assert (await post(gateway, path, key=ALICE))[0] == 403
            assert (await post(gateway, path, key=WATCHER))[0] == 403
        assert (await post(gateway, f"/console/jobs/{alices[1]}/first", key=ALICE))[0] == 200
        assert _IDS.findall(await page(gateway.http, **bearer(ALICE))) == alices[::-1]
        assert (await post(gateway, f"/console/jobs/{bobs}/cancel", key=ROOT))[0] == 200


async def test_a_key_cannot_set_a_priority_above_its_own_maximum(engine: Engine, tmp_path: Path) -> None:
    keys = write_keys(tmp_path / "keys.toml", table("alice", ALICE, max_priority=3))
    async with running_gateway(engine.url, keys_file=keys) as gateway:
        await gateway.handler.queue.pause(True)
        job = await keyed(gateway.http, ALICE, 1)
        assert 'max="3"' in await page(gateway.http, **bearer(ALICE))
        status, told = await post(gateway, f"/console/jobs/{job}/priority", {"priority": "4"}, key=ALICE)
        assert status == 422
        assert "max_priority" in told["message"]
        assert (await post(gateway, f"/console/jobs/{job}/priority", {"priority": "3"}, key=ALICE))[0] == 200


def drained(gateway: RunningGateway) -> dict[str, bool]:
    return {server.name: server.drained for server in gateway.handler.pool.servers}


async def test_a_server_can_be_drained_resumed_and_freed() -> None:
    async with engines(2) as servers, running_gateway(*(one.url for one in servers)) as gateway:
        backend = gateway.handler.pool.backends[1]
        status, told = await post(gateway, f"/console/servers/{backend.name}/drain")
        assert (status, told["message"]) == (200, f"{backend.name} gets no more prompts.")
        assert drained(gateway)[backend.name] is True
        status, to = await post(gateway, f"/console/servers/{backend.name}/resume", script=False)
        assert (status, to) == (303, "../../../console")
        assert drained(gateway)[backend.name] is False
        assert (await post(gateway, f"/console/servers/{backend.name}/free"))[0] == 200
        assert [requests(server, "POST /free") for server in servers] == [0, 1]
        assert (await post(gateway, "/console/servers/gpu-9/free"))[0] == 404


async def test_a_job_that_is_next_on_a_server_is_shown_with_that_server(engine: Engine) -> None:
    async with running_gateway(engine.url, queue="gateway") as gateway:
        runs, behind, waits = [await submit(gateway.http, sleep_workflow(600, tag=tag)) for tag in range(3)]
        await until(lambda: queue_of(engine), lambda found: found == ([runs], [behind]))
        await status_is(gateway.http, runs, "running")
        text = await page(gateway.http)
        assert _IDS.findall(text) == [behind, waits]
        assert f"next on {gateway.handler.pool.backends[0].name}" in text
        assert text.count("/first") == 1, "a job that has a server cannot be moved"
        assert "2 jobs wait" in text
