"""ComfyUI's clear, delete, cancel and interrupt while prompts wait in the gateway: with one server and with three."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiohttp
import pytest

from comfyui.engine import Engine
from comfyui.exceptions import ComfyUINotFoundError, ComfyUIServerError
from comfyui.jobs.journal.records import State
from comfyui.jobs.journal.sqlite import SqliteJournal
from comfyui.jobs.queue_options import QueueOptions
from tests.support.calls import Calls
from tests.support.jobs import ASYNC, begins, fetch, listed, look, submit
from tests.support.keys import ALICE, BOB, ROOT, WATCHER, bearer
from tests.support.receivers import SECRET, Receiver
from tests.support.relaying import eventually
from tests.support.running import (
    RunningGateway,
    engines,
    executions,
    handler_options,
    invert_workflow,
    queue_of,
    requests,
    running_gateway,
    sleep_workflow,
    until,
)

Body = Any
LONG = sleep_workflow(600)


async def post(gateway: RunningGateway, path: str, body: Body = None, key: str = "") -> tuple[int, str]:
    """Sends bytes unchanged and other bodies as JSON; returns the status and the text."""
    headers = bearer(key) if key else {}
    sent = {"data": body} if isinstance(body, bytes | None) else {"json": body}
    async with gateway.http.post(path, headers=headers, **sent) as response:
        return response.status, await response.text()


async def external(engine: Engine, workflow: Any, **fields: Any) -> str:
    """Submits a prompt to a server directly, without the gateway; returns its id."""
    async with (
        aiohttp.ClientSession(engine.url) as http,
        http.post("/prompt", json={"prompt": workflow, **fields}) as response,
    ):
        return str((await response.json())["prompt_id"])


async def running(servers: list[Engine]) -> list[str]:
    return [one for server in servers for one in (await queue_of(server))[0]]


async def pending(servers: list[Engine]) -> list[str]:
    return [one for server in servers for one in (await queue_of(server))[1]]


async def all_run(servers: list[Engine], count: int) -> list[str]:
    return await until(lambda: running(servers), lambda found: len(found) == count)


async def state_of(gateway: RunningGateway, prompt_id: str) -> State | None:
    record = await gateway.handler.journal.get(prompt_id)
    return None if record is None else record.state


async def told_of(gateway: RunningGateway, prompt_id: str) -> tuple[int, Any]:
    status, told = await look(gateway.http, prompt_id)
    return status, told.get("type")


CANCELLED = (409, "task_cancelled")


async def filled(gateway: RunningGateway, servers: list[Engine]) -> tuple[list[str], list[str], list[str]]:
    """Returns three prompts that run, three that wait on the servers, and three that wait in the gateway."""
    jobs = [await submit(gateway.http, sleep_workflow(600, tag=tag)) for tag in range(9)]
    runs = await all_run(servers, 3)
    waits = await until(lambda: pending(servers), lambda found: len(found) == 3)
    return runs, waits, [job for job in jobs if job not in {*runs, *waits}]


async def test_a_second_cancel_says_that_the_job_has_already_ended(
    three_servers: tuple[RunningGateway, list[Engine]],
) -> None:
    gateway, servers = three_servers
    runs, _, with_us = await filled(gateway, servers)
    for prompt_id in (runs[0], with_us[0]):
        async with gateway.http.delete(f"/prompt_sync/{prompt_id}") as response:
            assert response.status == 200
        async with gateway.http.delete(f"/prompt_sync/{prompt_id}") as response:
            assert response.status == 404
            told = await response.json()
        assert (told["type"], told["detail"].partition(",")[0]) == ("not_found", "the prompt has already finished")


# Waiting prompts


async def test_clear_removes_all_waiting_prompts_and_no_running_one(
    three_servers: tuple[RunningGateway, list[Engine]],
) -> None:
    gateway, servers = three_servers
    runs, waits, with_us = await filled(gateway, servers)
    theirs = await external(servers[1], invert_workflow(7))
    assert await post(gateway, "/queue", {"clear": True}) == (200, "")
    assert (sorted(await running(servers)), await pending(servers)) == (sorted(runs), [])
    for prompt_id in (*waits, *with_us):
        assert await told_of(gateway, prompt_id) == CANCELLED
    for prompt_id in runs:
        assert await state_of(gateway, prompt_id) is State.RUNNING
    await post(gateway, "/interrupt")
    await all_run(servers, 0)
    ran = {one for server in servers for one in executions(server)}
    assert ran == set(runs), "no waiting prompt has begun, of the gateway or of another client"
    assert theirs not in ran


async def test_delete_removes_waiting_prompts_in_the_gateway_and_on_servers(
    three_servers: tuple[RunningGateway, list[Engine]],
) -> None:
    gateway, servers = three_servers
    runs, waits, with_us = await filled(gateway, servers)
    theirs = await external(servers[2], invert_workflow(7))
    watched = asyncio.create_task(_waited(gateway, theirs))
    await eventually(lambda: gateway.handler.waiting == 1)
    body = {"delete": [with_us[0], waits[1], theirs, runs[0], str(uuid4()), 7, None]}
    assert await post(gateway, "/api/queue", body) == (200, "")
    assert sorted(await running(servers)) == sorted(runs)
    assert theirs not in await pending(servers)
    watched.cancel()
    for prompt_id in (with_us[0], waits[1]):
        assert await told_of(gateway, prompt_id) == CANCELLED
    for prompt_id in (waits[0], waits[2], with_us[1], with_us[2]):
        assert await state_of(gateway, prompt_id) is State.QUEUED
    # Another job takes the free place.
    assert len(await until(lambda: pending(servers), lambda found: len(found) == 3)) == 3


async def test_cleared_prompts_do_not_start_when_a_place_becomes_free() -> None:
    async with engines(1) as servers, running_gateway(servers[0].url, queue="gateway") as gateway:
        first = await submit(gateway.http, sleep_workflow(600))
        await begins(gateway.http, first)
        rest = [await submit(gateway.http, invert_workflow(tag)) for tag in range(600)]
        # This needs several transactions, and the place is free from the start.
        await asyncio.gather(post(gateway, "/queue", {"clear": True}), post(gateway, "/interrupt"))
        assert set(executions(servers[0])) <= {first, rest[0]}
        assert await gateway.handler.journal.waiting(0, 10) == []


@pytest.mark.parametrize("chosen", [True, False], ids=["with an id", "without"])
async def test_waiting_callers_get_the_cancellation(
    three_servers: tuple[RunningGateway, list[Engine]], chosen: bool
) -> None:
    gateway, servers = three_servers
    ids: list[dict[str, Any]] = [{"prompt_id": str(uuid4())} if chosen else {} for _ in range(9)]
    calls = [asyncio.create_task(gateway.prompt_sync(sleep_workflow(600, tag=tag), **ids[tag])) for tag in range(9)]
    await all_run(servers, 3)
    await until(lambda: pending(servers), lambda found: len(found) == 3)
    asked = [requests(server, "GET /history/{prompt_id}") for server in servers]
    await post(gateway, "/queue", {"clear": True})
    await until(lambda: _done(calls), lambda count: count == 6)
    assert {(call.result()[0], call.result()[1]["type"]) for call in calls if call.done()} == {CANCELLED}
    # Servers are not asked for prompts that they never had; each removed prompt costs one request.
    more = [
        requests(server, "GET /history/{prompt_id}") - before for server, before in zip(servers, asked, strict=True)
    ]
    assert max(more) <= 1
    await post(gateway, "/interrupt")
    assert {(await call)[1]["type"] for call in calls} == {"task_cancelled"}
    await all_run(servers, 0)


async def _done(calls: list[asyncio.Task[Any]]) -> int:
    return sum(call.done() for call in calls)


async def test_waiting_prompts_of_one_server_are_removed_together(engine: Engine) -> None:
    places = handler_options(queue=QueueOptions(queue="gateway", places=None))
    async with running_gateway(engine.url, queue="gateway", changed=places) as gateway:
        jobs = [await submit(gateway.http, sleep_workflow(600, tag=tag)) for tag in range(40)]
        await until(lambda: queue_of(engine), lambda queue: (len(queue[0]), len(queue[1])) == (1, 39))
        asked = requests(engine, "GET /queue")
        assert await post(gateway, "/queue", {"clear": True}) == (200, "")
        # There is not one request for each of the 39. The gateway may also check the queue meanwhile.
        assert 1 <= requests(engine, "GET /queue") - asked <= 3
        assert await queue_of(engine) == (jobs[:1], [])
        assert {await told_of(gateway, one) for one in jobs[1:]} == {CANCELLED}
        await post(gateway, "/interrupt")


async def test_prompts_of_a_server_that_is_down_are_cancelled_now_and_removed_later() -> None:
    async with AsyncExitStack() as stack:
        (engine,) = await stack.enter_async_context(engines(1))
        async with running_gateway(engine.url, queue="gateway") as gateway:
            first, second = [await submit(gateway.http, sleep_workflow(600, tag=tag)) for tag in range(2)]
            await until(lambda: queue_of(engine), lambda queue: queue == ([first], [second]))
            await engine.set_faults({"status": {"status": 503}, "ws_refuse": {}})
            await engine.set_faults({"ws_drop": {}})
            await until(lambda: _ready(gateway), lambda ready: not ready)
            await post(gateway, "/queue", {"clear": True})
            await post(gateway, "/interrupt", {"prompt_id": first})
            assert await told_of(gateway, second) == CANCELLED
            assert await told_of(gateway, first) == CANCELLED
            engine.faults.clear()
            await until(lambda: queue_of(engine), lambda queue: queue == ([], []), timeout_s=20)


async def _ready(gateway: RunningGateway) -> int:
    return len(gateway.handler.pool.ready)


# Running prompts


async def test_interrupt_stops_one_or_all_running_prompts_and_no_waiting_one(
    three_servers: tuple[RunningGateway, list[Engine]],
) -> None:
    gateway, servers = three_servers
    runs, waits, with_us = await filled(gateway, servers)
    assert await post(gateway, "/interrupt", {"prompt_id": waits[0]}) == (200, "")
    assert await post(gateway, "/interrupt", {"prompt_id": with_us[0]}) == (200, "")
    assert await post(gateway, "/interrupt", {"prompt_id": str(uuid4())}) == (200, "")
    assert sorted(await running(servers)) == sorted(runs)
    assert await post(gateway, "/interrupt", {"prompt_id": runs[1]}) == (200, "")
    assert await told_of(gateway, runs[1]) == CANCELLED
    await until(lambda: running(servers), lambda now: runs[1] not in now and len(now) == 3)
    assert await post(gateway, "/queue", {"clear": True}) == (200, "")
    left = await running(servers)
    assert await post(gateway, "/interrupt") == (200, "")
    await all_run(servers, 0)
    for prompt_id in left:
        assert await told_of(gateway, prompt_id) == CANCELLED


async def test_interrupt_reaches_prompts_that_bypassed_the_gateway(
    three_servers: tuple[RunningGateway, list[Engine]],
) -> None:
    gateway, servers = three_servers
    theirs = [await external(server, LONG, prompt_id=str(uuid4())) for server in servers]
    await all_run(servers, 3)
    others = [backend.watcher for backend in gateway.handler.pool.backends]
    await until(lambda: _sum(others), lambda count: count == 3)
    await post(gateway, "/interrupt", {"prompt_id": theirs[2]})
    assert sorted(await all_run(servers, 2)) == sorted(theirs[:2])
    await post(gateway, "/interrupt", {})
    await all_run(servers, 0)


async def _sum(watchers: list[Any]) -> int:
    return sum(watcher.others for watcher in watchers)


async def test_a_job_is_reported_as_cancelled_once(three_servers: tuple[RunningGateway, list[Engine]]) -> None:
    gateway, servers = three_servers
    runs, waits, with_us = await filled(gateway, servers)
    theirs = await external(servers[0], LONG)
    for prompt_id in (theirs, with_us[0], waits[0], runs[0]):
        path = f"/api/jobs/{prompt_id}/cancel"
        assert await post(gateway, path) == (200, '{"cancelled":true}')
        assert await post(gateway, path) == (200, '{"cancelled":false}')
    for prompt_id in (runs[0], waits[0], with_us[0]):
        assert await told_of(gateway, prompt_id) == CANCELLED
    for unknown in (str(uuid4()), "x"):
        assert await post(gateway, f"/api/jobs/{unknown}/cancel") == (200, '{"cancelled":false}')
    many = {"job_ids": [runs[1], with_us[1], str(uuid4()), runs[0]]}
    assert await post(gateway, "/api/jobs/cancel", many) == (200, '{"cancelled":true}')
    assert await post(gateway, "/api/jobs/cancel", many) == (200, '{"cancelled":false}')
    assert [await told_of(gateway, one) for one in (runs[1], with_us[1])] == [CANCELLED] * 2
    assert theirs not in [*await pending(servers), *await running(servers)]
    await post(gateway, "/queue", {"clear": True})
    await post(gateway, "/interrupt")


@asynccontextmanager
async def listening(gateway: RunningGateway, client_id: str) -> AsyncIterator[list[str]]:
    """Collects the ids in the `execution_interrupted` events of a client's websocket."""
    heard: list[str] = []
    async with gateway.http.ws_connect(f"/ws?clientId={client_id}") as socket:

        async def listen() -> None:
            async for message in socket:
                told = json.loads(message.data) if message.type is aiohttp.WSMsgType.TEXT else {}
                if told.get("type") == "execution_interrupted":
                    heard.append(told["data"]["prompt_id"])

        task = asyncio.create_task(listen())
        try:
            yield heard
        finally:
            task.cancel()


@pytest.mark.alone
@pytest.mark.usefixtures("no_log")
async def test_a_cancel_reaches_a_running_prompt_at_once_while_a_thousand_wait(webhook_receiver: Receiver) -> None:
    settings: dict[str, Any] = {"webhook_secret": SECRET, "webhook_url": webhook_receiver.url()}
    settings |= {"webhook_url_allow": "127.0.0.1", "public_url": "https://comfy.example"}
    async with engines(3) as servers, running_gateway(*(one.url for one in servers), **settings) as gateway:
        called = asyncio.create_task(gateway.prompt_sync(LONG, prompt_id=str(uuid4())))
        (called_id,) = await all_run(servers, 1)
        watched_id = await submit(gateway.http, sleep_workflow(600, tag=2), client_id="tab")
        await all_run(servers, 2)
        for tag in range(1000):
            await submit(gateway.http, sleep_workflow(600, tag=10 + tag))
        (queued_id,) = set(await all_run(servers, 3)) - {called_id, watched_id}
        took: list[float] = []
        async with listening(gateway, "tab") as heard:
            for prompt_id, path in (
                (called_id, "/interrupt"),
                (watched_id, "/interrupt"),
                (queued_id, f"/api/jobs/{queued_id}/cancel"),
            ):
                began = time.monotonic()
                assert (await post(gateway, path, {"prompt_id": prompt_id}))[0] == 200
                await until(lambda: running(servers), partial(_lacks, prompt_id))
                took.append(time.monotonic() - began)
            # The best of three counts, because the machine may be busy.
            assert min(took) < 0.5, took
            await eventually(lambda: heard == [watched_id], within_s=30)
        assert (await called)[0] == 409
        assert (await called)[1]["type"] == "task_cancelled"
        for prompt_id in (watched_id, queued_id):
            await until(partial(told_of, gateway, prompt_id), lambda told: told == CANCELLED)
        ended = [(one.json["type"], one.json["data"]["prompt_id"]) for one in await webhook_receiver.got(3)]
        assert set(ended) == {("prompt.canceled", one) for one in (called_id, watched_id, queued_id)}
        assert (await post(gateway, "/queue", {"clear": True}))[0] == 200
        await post(gateway, "/interrupt")
        await webhook_receiver.got(2 + 1000)


def _lacks(prompt_id: str, found: list[str]) -> bool:
    return prompt_id not in found


async def test_prompts_from_post_prompt_can_be_deleted_cancelled_and_interrupted(
    three_servers: tuple[RunningGateway, list[Engine]],
) -> None:
    gateway, servers = three_servers
    jobs = []
    for tag in range(9):
        body = {"prompt": sleep_workflow(600, tag=tag), "client_id": "tab", "prompt_id": str(uuid4())}
        status, told = await post(gateway, "/prompt", body)
        assert status == 200, told
        jobs.append(json.loads(told)["prompt_id"])
    runs = await all_run(servers, 3)
    waits = await until(lambda: pending(servers), lambda found: len(found) == 3)
    with_us = [job for job in jobs if job not in {*runs, *waits}]
    assert await post(gateway, "/queue", {"delete": [waits[0], with_us[0]]}) == (200, "")
    assert await post(gateway, f"/api/jobs/{with_us[1]}/cancel") == (200, '{"cancelled":true}')
    assert await post(gateway, "/interrupt", {"prompt_id": runs[2]}) == (200, "")
    assert await post(gateway, "/queue", {"clear": True}) == (200, "")
    assert await post(gateway, "/interrupt") == (200, "")
    await all_run(servers, 0)
    await until(lambda: history(gateway), lambda found: len(found) == 9)
    assert sorted(await history(gateway)) == sorted(jobs)
    async with gateway.http.get("/api/jobs?status=cancelled") as response:
        assert sorted(job["id"] for job in (await response.json())["jobs"]) == sorted(jobs)
    assert {one for server in servers for one in executions(server)} <= {*runs, *waits, *with_us[2:]}


# Ownership


async def test_no_user_can_stop_or_detect_the_work_of_another(calls: Calls, engine: Engine) -> None:
    gateway = calls.gateway
    theirs = [(await calls.submit(BOB, sleep_workflow(600, tag=tag), ASYNC))[1]["prompt_id"] for tag in range(3)]
    await until(lambda: queue_of(engine), lambda queue: queue == (theirs[:1], theirs[1:2]))
    past = await external(engine, invert_workflow(8))
    for path, body, told in (
        ("/queue", {"clear": True}, ""),
        ("/queue", {"delete": [*theirs, past]}, ""),
        ("/interrupt", None, ""),
        ("/interrupt", {"prompt_id": theirs[0]}, ""),
        *((f"/api/jobs/{one}/cancel", None, '{"cancelled":false}') for one in (*theirs, past)),
        ("/api/jobs/cancel", {"job_ids": theirs}, '{"cancelled":false}'),
    ):
        assert await post(gateway, path, body, ALICE) == (200, told), path
    assert await queue_of(engine) == (theirs[:1], [theirs[1], past])
    for path, body in (
        ("/queue", {"clear": True}),
        ("/history", {"clear": True}),
        ("/interrupt", None),
        (f"/api/jobs/{theirs[0]}/cancel", None),
        ("/api/jobs/cancel", {"job_ids": theirs}),
        ("/free", {}),
    ):
        assert (await post(gateway, path, body, WATCHER))[0] == 403, path
    assert (await post(gateway, "/free", {"free_memory": True}, ALICE))[0] == 403
    # The owner and an admin may do this.
    assert await post(gateway, f"/api/jobs/{theirs[2]}/cancel", None, BOB) == (200, '{"cancelled":true}')
    assert await post(gateway, "/queue", {"clear": True}, BOB) == (200, "")
    assert await queue_of(engine) == (theirs[:1], [past])
    assert await post(gateway, "/queue", {"clear": True}, ROOT) == (200, "")
    assert await queue_of(engine) == (theirs[:1], [])
    assert await post(gateway, "/interrupt", None, ROOT) == (200, "")
    assert (await calls.call(BOB, "GET", f"/prompt_sync/{theirs[0]}"))[0] == 409
    assert await queue_of(engine) == ([], [])


# The history


async def history(gateway: RunningGateway, key: str = "", query: str = "") -> list[str]:
    headers = bearer(key) if key else {}
    async with gateway.http.get(f"/history{query}", headers=headers) as response:
        return list(await response.json())


async def jobs_of(gateway: RunningGateway, key: str = "") -> list[str]:
    """Returns the ids in `/api/jobs`."""
    async with gateway.http.get("/api/jobs", headers=bearer(key) if key else {}) as response:
        return [job["id"] for job in (await response.json())["jobs"]]


async def test_a_job_removed_from_the_history_stays_in_the_job_list(
    three_servers: tuple[RunningGateway, list[Engine]],
) -> None:
    gateway, servers = three_servers
    chosen = [str(uuid4()) for _ in range(3)]
    for tag, prompt_id in enumerate(chosen):
        assert (await gateway.prompt_sync(invert_workflow(tag), prompt_id=prompt_id))[0] == 200
    stopped_id = await submit(gateway.http, LONG, prompt_id=str(uuid4()))
    await begins(gateway.http, stopped_id)
    waits_id = await submit(gateway.http, sleep_workflow(600, tag=1))
    await all_run(servers, 2)
    assert await post(gateway, f"/api/jobs/{stopped_id}/cancel") == (200, '{"cancelled":true}')
    assert await history(gateway) == [*chosen, stopped_id]
    await all_run(servers, 1)

    delete = {"delete": [chosen[1], stopped_id, waits_id, str(uuid4()), 7]}
    assert await post(gateway, "/history", delete) == (200, "")
    assert await history(gateway) == [chosen[0], chosen[2]]
    assert await history(gateway, query=f"/{chosen[1]}") == []
    assert chosen[1] not in await jobs_of(gateway)
    on_servers = [await _entry(server, one) for server in servers for one in (chosen[1], stopped_id)]
    assert not any(on_servers), "no server has it any more"
    everything = {job["prompt_id"] for job in (await listed(gateway.http))["jobs"]}
    assert everything == {*chosen, stopped_id, waits_id}
    assert (await gateway.prompt_sync(invert_workflow(1), prompt_id=chosen[1]))[0] == 200, (
        "the stored result is returned"
    )
    assert sum(counts.get(chosen[1], 0) for counts in map(executions, servers)) == 1

    # The same id, sent again, starts a new run instead of returning the interrupted one.
    again = asyncio.create_task(gateway.prompt_sync(LONG, prompt_id=stopped_id))
    assert stopped_id in await all_run(servers, 2)
    assert await post(gateway, "/api/history", {"clear": True}) == (200, "")
    assert await history(gateway) == []
    await post(gateway, "/interrupt")
    assert (await again)[1]["type"] == "task_cancelled"
    assert sorted(await history(gateway)) == sorted([stopped_id, waits_id])


async def _entry(engine: Engine, prompt_id: str) -> Any:
    async with aiohttp.ClientSession(engine.url) as http, http.get(f"/history/{prompt_id}") as response:
        return await response.json()


async def test_a_user_clears_its_own_history_and_an_admin_clears_all(calls: Calls) -> None:
    gateway = calls.gateway
    mine = [(await calls.submit(ALICE, invert_workflow(tag)))[1]["prompt_id"] for tag in range(2)]
    theirs = [(await calls.submit(BOB, invert_workflow(tag)))[1]["prompt_id"] for tag in range(2)]
    assert await post(gateway, "/history", {"delete": [theirs[0], mine[0]]}, ALICE) == (200, "")
    assert (await history(gateway, ALICE), await history(gateway, BOB)) == (mine[1:], theirs)
    assert await history(gateway, ROOT) == [mine[1], *theirs]
    assert await post(gateway, "/history", {"clear": True}, ALICE) == (200, "")
    assert (await history(gateway, ALICE), await history(gateway, BOB)) == ([], theirs)
    assert await history(gateway, WATCHER) == theirs
    assert await calls.listed(ALICE) == mine[::-1]
    assert (await calls.call(ALICE, "GET", "/usage"))[1]["usage"][0]["prompts"]["succeeded"] == 2
    assert await post(gateway, "/history", {"clear": True}, ROOT) == (200, "")
    assert await history(gateway, BOB) == []
    assert (await calls.call(BOB, "GET", f"/prompt_sync/{theirs[0]}"))[0] == 200


async def test_a_prompt_that_bypassed_the_gateway_is_removed_from_its_server() -> None:
    async with engines(2) as servers, running_gateway(*(one.url for one in servers)) as gateway:
        theirs = await external(servers[1], invert_workflow(1))
        await until(lambda: _entry(servers[1], theirs), bool)
        assert await post(gateway, "/history", {"delete": [theirs]}) == (200, "")
        assert await _entry(servers[1], theirs) == {}


# Large numbers


@pytest.mark.timeout(180)
@pytest.mark.usefixtures("no_log")
@pytest.mark.parametrize("folder", ["", "state"], ids=["in memory", "in a file"])
async def test_a_thousand_cancelled_jobs_need_few_writes_and_send_all_webhooks(
    webhook_receiver: Receiver, folder: str, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"webhook_secret": SECRET, "webhook_url": webhook_receiver.url()}
    settings |= {"webhook_url_allow": "127.0.0.1", "public_url": "https://comfy.example"}
    settings["state_dir"] = str(tmp_path / folder) if folder else ""
    async with engines(1) as servers, running_gateway(servers[0].url, queue="gateway", **settings) as gateway:
        first = await submit(gateway.http, LONG)
        await begins(gateway.http, first)
        second = await submit(gateway.http, sleep_workflow(600, tag=1))
        await until(lambda: pending(servers), lambda found: found == [second])
        waiting = [await submit(gateway.http, sleep_workflow(600, tag=2 + tag)) for tag in range(1000)]
        waited = asyncio.create_task(_waited(gateway, waiting[500]))
        await eventually(lambda: gateway.handler.waiting == 1)
        before = commits(gateway)
        assert await post(gateway, "/queue", {"delete": [*waiting, first]}) == (200, "")
        assert commits(gateway) - before < 100, "there is not one commit for each job"
        assert (await waited)[1]["type"] == "task_cancelled"
        told = [one.json["data"]["prompt_id"] for one in await webhook_receiver.got(1000, timeout_s=120)]
        assert (sorted(told), await queue_of(servers[0])) == (sorted(waiting), ([first], [second]))
        assert set(executions(servers[0])) == {first}
        await post(gateway, "/queue", {"clear": True})
        await post(gateway, "/interrupt")


async def _waited(gateway: RunningGateway, prompt_id: str) -> tuple[int, Any]:
    async with gateway.http.get(f"/prompt_sync/{prompt_id}?timeout=120") as response:
        return response.status, await response.json()


def commits(gateway: RunningGateway) -> float:
    """Returns how many transactions the journal has committed; a journal in memory has none."""
    (metric,) = gateway.handler.metrics.journal_commit_seconds.collect()
    return next(sample.value for sample in metric.samples if sample.name.endswith("_count"))


async def test_jobs_keep_waiting_when_the_journal_cannot_store_their_cancel(tmp_path: Path) -> None:
    async with (
        engines(1) as servers,
        running_gateway(servers[0].url, queue="gateway", state_dir=str(tmp_path)) as gateway,
    ):
        first = await submit(gateway.http, LONG)
        await begins(gateway.http, first)
        waiting = [await submit(gateway.http, invert_workflow(tag)) for tag in range(5)]
        journal = gateway.handler.journal
        assert isinstance(journal, SqliteJournal)
        await journal._ask(lambda sql: sql.database.execute("PRAGMA query_only = 1"))
        status, told = await post(gateway, "/queue", {"delete": waiting[1:]})
        assert (status, json.loads(told)["type"]) == (503, "disk_failed")
        await journal._ask(lambda sql: sql.database.execute("PRAGMA query_only = 0"))
        await post(gateway, "/interrupt")
        for prompt_id in waiting:
            assert (await fetch(gateway.http, prompt_id))[0] == 200


# Memory


async def test_free_reaches_all_servers_and_fails_only_if_no_server_succeeds() -> None:
    async with engines(3) as servers, running_gateway(*(one.url for one in servers)) as gateway:
        assert await post(gateway, "/free", {"unload_models": True}) == (200, "")
        assert [requests(server, "POST /free") for server in servers] == [1, 1, 1]
        await servers[0].set_faults({"status": {"status": 500, "route": "/free"}})
        assert await post(gateway, "/api/free", {"free_memory": True}) == (200, "")
        for server in servers[1:]:
            await server.set_faults({"status": {"status": 500, "route": "/free"}})
        status, told = await post(gateway, "/free", {})
        assert (status, json.loads(told)["type"]) == (502, "server_error")


async def test_one_server_can_free_its_memory() -> None:
    async with engines(2) as servers, running_gateway(*(one.url for one in servers)) as gateway:
        fleet, names = gateway.handler.fleet, [one.name for one in gateway.handler.pool.backends]
        await fleet.free(names[1])
        assert [requests(server, "POST /free") for server in servers] == [0, 1]
        with pytest.raises(ComfyUINotFoundError, match=f"the servers are {names[0]}, {names[1]}"):
            await fleet.free("gpu-9")
        await servers[1].set_faults({"status": {"status": 500, "route": "/free"}})
        with pytest.raises(ComfyUIServerError):
            await fleet.free(names[1])


# Bodies that ComfyUI cannot use


BODIES: list[Body] = [b"", b"{", b"[]", b"5", b"null", b'"x"', b"{}", b'["clear"]', b'"clear"']
BODIES += [{"clear": False}, {"clear": 0}, {"clear": None}, {"clear": "x"}, {"delete": None}, {"delete": 5}]
BODIES += [{"delete": "abc"}, {"delete": {"a": 1}}, {"delete": [1, None, "x"]}, {"delete": [{}]}, {"delete": []}]
BODIES += [{"prompt_id": 5}, {"prompt_id": []}, {"prompt_id": ""}, {"unload_models": "yes"}, {"job_ids": 5}]
BODIES += [
    {"job_ids": []},
    {"job_ids": [5]},
    {"job_ids": ["x", {}]},
    {"job_ids": [str(uuid4())]},
    {"job_ids": [str(uuid4()).upper()]},
]
PATHS = ("/queue", "/history", "/interrupt", "/free", "/api/jobs/cancel", "/api/jobs/x/cancel", "/api/queue")


async def _answers(url: str, key: str = "") -> dict[tuple[str, str], tuple[int, Any]]:
    found: dict[tuple[str, str], tuple[int, Any]] = {}
    async with aiohttp.ClientSession(url, headers=bearer(key) if key else {}) as http:
        for path in PATHS:
            for body in BODIES:
                sent: Any = {"data": body} if isinstance(body, bytes) else {"json": body}
                async with http.post(path, **sent) as response:
                    text = await response.text()
                    is_json = response.content_type == "application/json"
                    told = json.loads(text) if is_json else text.partition("\n")[0]
                    found[path, repr(body)] = response.status, told
    return found


async def test_bodies_get_the_answers_of_a_single_comfyui(engine: Engine, calls: Calls) -> None:
    """Only the first line of the text of a 500 is compared."""
    alone = await _answers(engine.url)
    assert {status for status, _ in alone.values()} == {200, 400, 500}
    for key in (ROOT, ALICE):
        behind = await _answers(calls.gateway.url, key)
        wanted = {one: answer for one, answer in alone.items() if key == ROOT or one[0] != "/free"}
        assert {one: behind[one] for one in wanted} == wanted
    async with engines(3) as servers, running_gateway(*(one.url for one in servers)) as gateway:
        assert await _answers(gateway.url) == alone


async def test_a_change_with_a_body_that_is_too_long_is_refused(calls: Calls) -> None:
    assert (await post(calls.gateway, "/queue", b"[" + b" " * 1_000_001, ALICE))[0] == 413
