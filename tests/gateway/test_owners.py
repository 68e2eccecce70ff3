"""Owners of jobs: a key sees only its own jobs, and its limits apply."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from comfyui.engine import Engine
from comfyui.jobs.queue_options import QueueOptions
from tests.support.calls import Calls
from tests.support.keys import ALICE, BOB, KEY, KEYS, ROOT, WATCHER, bearer, table, write_keys
from tests.support.running import (
    executions,
    handler_options,
    invert_workflow,
    queue_of,
    running_gateway,
    sleep_workflow,
    until,
)

_ASYNC = {"Prefer": "respond-async"}


@pytest.mark.parametrize("prefer", [{}, _ASYNC], ids=["sync", "async"])
async def test_a_user_lists_its_own_jobs_while_read_keys_and_admins_list_all(
    calls: Calls, prefer: dict[str, str]
) -> None:
    ids = {
        key: (await calls.submit(key, invert_workflow(n), prefer))[1]["prompt_id"] for n, key in enumerate((ALICE, BOB))
    }
    both = list(reversed(list(ids.values())))
    assert await calls.listed(ALICE) == [ids[ALICE]]
    assert await calls.listed(BOB) == [ids[BOB]]
    assert await calls.listed(WATCHER) == await calls.listed(ROOT) == both


@pytest.mark.parametrize("state", ["waits", "runs", "ended"])
async def test_a_job_of_another_user_looks_unknown_in_every_state(engine: Engine, keys_path: Path, state: str) -> None:
    ahead = handler_options(queue=QueueOptions(ahead=0 if state == "waits" else 4))
    async with running_gateway(engine.url, keys_file=keys_path, changed=ahead) as gateway:
        calls = Calls(gateway)
        workflow = sleep_workflow(600) if state == "runs" else invert_workflow()
        _, job = await calls.submit(ALICE, workflow, _ASYNC)
        path = f"/prompt_sync/{job['prompt_id']}"
        wanted = {"waits": "queued", "runs": "running", "ended": None}[state]

        async def status() -> Any:
            return (await calls.call(ALICE, "GET", f"{path}?timeout=0"))[1].get("status")

        await until(status, lambda found: found == wanted if wanted else found == "success")
        unknown = f"/prompt_sync/{uuid4()}"
        for method, query in (("GET", ""), ("GET", "?timeout=0"), ("GET", "?timeout=5"), ("DELETE", "")):
            told = [await calls.call(BOB, method, one + query) for one in (path, unknown)]
            for _, body in told:
                assert body.pop("prompt_id")
                del body["timestamp"], body["request_id"]
            assert told[0] == told[1]
            assert told[0][0] == 404
        assert (await calls.call(BOB, "GET", f"{path}", headers=_ASYNC))[0] == 404
        assert (await calls.call(WATCHER, "GET", f"{path}?timeout=0"))[0] == (200 if state == "ended" else 202)
        assert (await calls.call(WATCHER, "DELETE", path))[0] == 403
        await until(status, lambda found: found == wanted if wanted else found == "success")
        assert (await calls.call(ALICE, "DELETE", path))[0] == (404 if state == "ended" else 200)


@pytest.mark.parametrize("prefer", [{}, _ASYNC], ids=["sync", "async"])
@pytest.mark.parametrize("theirs", [{}, _ASYNC], ids=["another's sync call", "another's async job"])
@pytest.mark.parametrize("running", [False, True], ids=["ended", "running"])
async def test_a_prompt_id_of_another_key_is_refused_without_naming_its_owner(
    calls: Calls, engine: Engine, prefer: dict[str, str], theirs: dict[str, str], running: bool
) -> None:
    prompt_id = str(uuid4())
    workflow = sleep_workflow(600) if running else invert_workflow()
    first = asyncio.create_task(calls.submit(ALICE, workflow, theirs, prompt_id=prompt_id))
    await until(lambda: queue_of(engine), lambda queue: prompt_id in queue[0] or bool(executions(engine)))
    if not running:
        await first
        await calls.call(ALICE, "GET", f"/prompt_sync/{prompt_id}")
    for body in (workflow, invert_workflow(7)):
        status, told = await calls.submit(BOB, body, prefer, prompt_id=prompt_id)
        assert (status, told["type"]) == (409, "conflict")
        assert "alice" not in str(told)
        assert told["detail"] == "this prompt_id is already in use; choose another one, or leave it out"
    if running:
        await calls.call(ALICE, "DELETE", f"/prompt_sync/{prompt_id}")
        await first
    assert executions(engine) == {prompt_id: 1}


async def test_users_neither_see_nor_join_a_prompt_of_an_admin(calls: Calls, engine: Engine) -> None:
    prompt_id, workflow = str(uuid4()), invert_workflow()
    status, _ = await calls.call(ROOT, "POST", "/prompt", {"prompt": workflow, "prompt_id": prompt_id})
    assert status == 200
    await until(lambda: calls.call(ROOT, "GET", f"/prompt_sync/{prompt_id}"), lambda answer: answer[0] == 200)
    assert (await calls.call(ALICE, "GET", f"/prompt_sync/{prompt_id}"))[0] == 404
    assert (await calls.submit(ALICE, workflow, prompt_id=prompt_id))[0] == 409
    assert (await calls.submit(ROOT, workflow, prompt_id=prompt_id))[0] == 200
    assert executions(engine) == {prompt_id: 1}


async def test_admins_join_and_attach_to_jobs_of_all_keys(engine: Engine, keys_path: Path) -> None:
    async with running_gateway(engine.url, keys_file=keys_path, api_keys=KEY) as gateway:
        calls, prompt_id = Calls(gateway), str(uuid4())
        first = await calls.submit(ALICE, invert_workflow(), prompt_id=prompt_id)
        for key in (KEY, ROOT):
            assert (await calls.submit(key, invert_workflow(), prompt_id=prompt_id))[0] == first[0] == 200
            assert (await calls.call(key, "GET", f"/prompt_sync/{prompt_id}"))[0] == 200
        assert executions(engine) == {prompt_id: 1}


async def test_idempotency_keys_of_two_api_keys_are_independent(calls: Calls, engine: Engine) -> None:
    order = {"Idempotency-Key": "order-1"}
    ids = [(await calls.submit(key, invert_workflow(), order))[1]["prompt_id"] for key in (ALICE, BOB, ALICE, ROOT)]
    assert ids[0] == ids[2]
    assert len(set(ids)) == 3
    assert sum(executions(engine).values()) == 3


async def test_owners_of_jobs_survive_a_restart(engine: Engine, keys_path: Path, tmp_path: Path) -> None:
    order, state_dir = {"Idempotency-Key": "order-1"}, tmp_path / "state"
    async with running_gateway(engine.url, keys_file=keys_path, state_dir=state_dir) as gateway:
        job = (await Calls(gateway).submit(ALICE, invert_workflow(), order))[1]["prompt_id"]
    async with running_gateway(engine.url, keys_file=keys_path, state_dir=state_dir) as gateway:
        calls = Calls(gateway)
        assert (await calls.submit(ALICE, invert_workflow(), order))[1]["prompt_id"] == job
        assert (await calls.call(BOB, "GET", f"/prompt_sync/{job}"))[0] == 404
        assert (await calls.submit(BOB, invert_workflow(), prompt_id=job))[0] == 409
        assert (await calls.listed(ALICE), await calls.listed(BOB)) == ([job], [])
    assert executions(engine) == {job: 1}


async def test_jobs_of_a_removed_key_return_when_the_key_returns(engine: Engine, keys_path: Path) -> None:
    async with running_gateway(engine.url, keys_file=keys_path) as gateway:
        calls = Calls(gateway)
        job = (await calls.submit(ALICE, invert_workflow()))[1]["prompt_id"]
        write_keys(keys_path, table("root", ROOT, "admin"))
        await until(lambda: calls.call(ALICE, "GET", "/prompt_sync"), lambda answer: answer[0] == 401)
        assert await calls.listed(ROOT) == [job]
        write_keys(keys_path, KEYS)
        await until(lambda: calls.call(ALICE, "GET", "/prompt_sync"), lambda answer: answer[0] == 200)
        assert await calls.listed(ALICE) == [job]


async def test_jobs_from_before_there_were_keys_belong_to_admins(
    engine: Engine, keys_path: Path, tmp_path: Path
) -> None:
    async with running_gateway(engine.url, state_dir=tmp_path / "state") as gateway:
        status, body = await gateway.prompt_sync(invert_workflow())
        assert status == 200
    async with running_gateway(engine.url, keys_file=keys_path, state_dir=tmp_path / "state") as gateway:
        calls = Calls(gateway)
        assert await calls.listed(ALICE) == []
        assert await calls.listed(ROOT) == [body["prompt_id"]]
        assert (await calls.call(ALICE, "GET", f"/prompt_sync/{body['prompt_id']}"))[0] == 404


# Persons behind a shared key


async def test_a_person_behind_a_shared_key_lists_only_its_own_jobs(engine: Engine, tmp_path: Path) -> None:
    path = write_keys(tmp_path / "keys.toml", table("app", ALICE, user_header="X-User") + table("app-2", BOB))
    async with running_gateway(engine.url, keys_file=path) as gateway:
        calls = Calls(gateway)
        eve, dan = {"X-User": "eve"}, {"X-User": "dän".encode().decode("latin-1")}
        jobs = []
        for number, (key, headers) in enumerate(((ALICE, eve), (ALICE, dan), (ALICE, {}), (BOB, {}))):
            jobs.append((await calls.submit(key, invert_workflow(number), headers))[1]["prompt_id"])
        assert await calls.listed(ALICE, eve) == [jobs[0]]
        assert await calls.listed(ALICE, dan) == [jobs[1]]
        assert await calls.listed(ALICE) == [jobs[2], jobs[1], jobs[0]]
        # The rights are those of the key; the name of the person only narrows lists.
        assert (await calls.call(ALICE, "GET", f"/prompt_sync/{jobs[1]}", headers=eve))[0] == 200
        assert (await calls.call(BOB, "GET", f"/prompt_sync/{jobs[1]}", headers=eve))[0] == 404
        status, told = await calls.call(ALICE, "GET", "/prompt_sync", headers={"X-User": "x" * 200})
        assert (status, told["type"]) == (422, "invalid_request")
        assert "x-user" in told["detail"]


# Limits


async def test_per_minute_limits_the_submissions_of_one_key(engine: Engine, tmp_path: Path) -> None:
    path = write_keys(tmp_path / "keys.toml", table("alice", ALICE, per_minute=2) + table("bob", BOB))
    async with running_gateway(engine.url, keys_file=path) as gateway:
        calls = Calls(gateway)
        assert [(await calls.submit(ALICE, invert_workflow()))[0] for _ in range(2)] == [200, 200]
        async with gateway.http.post("/prompt_sync", json={"prompt": {}}, headers=bearer(ALICE)) as response:
            told = await response.json()
            assert (response.status, told["type"]) == (429, "overloaded")
            assert 1 <= int(response.headers["Retry-After"]) <= 60
            assert "2 times a minute (per_minute)" in told["detail"]
        # Reading jobs does not count, and other keys are not limited.
        assert len(await calls.listed(ALICE)) == 2
        assert (await calls.submit(BOB, invert_workflow()))[0] == 200


@pytest.mark.parametrize("prefer", [{}, _ASYNC], ids=["sync", "async"])
async def test_max_queued_limits_the_waiting_jobs_of_one_key(
    engine: Engine, tmp_path: Path, prefer: dict[str, str]
) -> None:
    path = write_keys(tmp_path / "keys.toml", table("alice", ALICE, max_queued=3) + table("bob", BOB))
    async with running_gateway(engine.url, keys_file=path) as gateway:
        calls = Calls(gateway)
        blocker = asyncio.create_task(calls.submit(BOB, sleep_workflow(600)))
        await until(lambda: queue_of(engine), lambda queue: bool(queue[0]))
        waiting = [asyncio.create_task(calls.submit(ALICE, invert_workflow(number), prefer)) for number in range(8)]

        async def refused() -> list[tuple[int, Any]]:
            return [task.result() for task in waiting if task.done() and task.result()[0] == 429]

        told = await until(refused, lambda answers: len(answers) == 5)
        assert "3 jobs of the key 'alice' are already waiting (max_queued)" in told[0][1]["detail"]
        assert len(await calls.listed(ALICE)) == 3
        await calls.call(BOB, "DELETE", f"/prompt_sync/{(await calls.listed(BOB))[0]}")
        await asyncio.gather(blocker, *waiting)
        # After these jobs have run, the key may submit again.
        jobs = await calls.listed(ALICE)
        await asyncio.gather(*(calls.call(ALICE, "GET", f"/prompt_sync/{job}") for job in jobs))
        assert (await calls.submit(ALICE, invert_workflow(9)))[0] == 200


async def test_a_priority_above_max_priority_is_refused_by_name(engine: Engine, tmp_path: Path) -> None:
    path = write_keys(tmp_path / "keys.toml", table("alice", ALICE) + table("bob", BOB, max_priority=10))
    async with running_gateway(engine.url, keys_file=path) as gateway:
        calls = Calls(gateway)
        status, told = await calls.submit(ALICE, invert_workflow(), priority=1)
        assert (status, told["detail"]) == (422, "priority: the key 'alice' may set at most 0 (max_priority)")
        assert (await calls.submit(BOB, invert_workflow(), priority=10))[0] == 200
        assert (await calls.submit(BOB, invert_workflow(), _ASYNC, priority=11))[0] == 422
