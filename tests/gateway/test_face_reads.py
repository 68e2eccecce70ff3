"""ComfyUI's queue, history and jobs, answered from the gateway's journal: one server with keys, and three without."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import re
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from comfyui.engine import NEW_VERSION, Engine, EngineOptions
from comfyui.jobs.queue_options import QueueOptions
from comfyui.merged_files import merged_outputs
from tests.support.faces import Face
from tests.support.jobs import fetch as finished
from tests.support.jobs import submit
from tests.support.keys import ALICE, BOB, ROOT, WATCHER, bearer
from tests.support.merged_names import plain_names
from tests.support.running import (
    handler_options,
    invert_workflow,
    queue_of,
    requests,
    running_gateway,
    sleep_workflow,
    until,
)
from tests.support.url_server import PNG

# The queue


async def test_the_queue_lists_running_jobs_and_then_waiting_jobs_in_order(face: Face) -> None:
    running = [await face.submit(sleep_workflow(600, tag=tag)) for tag in range(len(face.engines))]
    await face.runs(*running)
    waiting = [await face.submit(sleep_workflow(600, tag=10 + number)) for number in range(5)]
    first = await face.submit(invert_workflow(99), priority=5)
    last = await face.submit(invert_workflow(98), priority=-5)
    shown_running, pending = await face.queue()
    assert sorted(shown_running) == sorted(running)
    # On each server one job waits behind the running one; these left the gateway's queue.
    placed, turns = pending[: len(face.engines)], pending[len(face.engines) :]
    assert set(placed) <= set(waiting)
    assert turns == [first, *[one for one in waiting if one not in placed], last]
    assert await face.get("/prompt") == (200, {"exec_info": {"queue_remaining": len(running) + 7}})


async def test_a_queue_item_shows_the_submitted_prompt_without_secrets(face: Face) -> None:
    workflow = sleep_workflow(600)
    extra = {"extra_pnginfo": {"workflow": {"id": "w"}}, "api_key_comfy_org": "secret-1", "a": [1]}
    prompt_id = await face.submit(workflow, extra_data=extra, client_id="tab")
    await face.runs(prompt_id)
    _, queue = await face.get("/api/queue")
    number, shown_id, prompt, extra_data, outputs = queue["queue_running"][0]
    assert (shown_id, prompt, outputs) == (prompt_id, workflow, ["3"])
    assert number > 0
    assert (extra_data["client_id"], extra_data["a"]) == ("tab", [1])
    assert extra_data["extra_pnginfo"] == {"workflow": {"id": "w"}}
    assert extra_data["create_time"] > 1e12
    assert "secret-1" not in json.dumps(queue)


async def test_prompts_from_post_prompt_are_listed_with_the_numbers_in_their_answers(face: Face) -> None:
    async def prompt(tag: int, **fields: Any) -> tuple[str, float]:
        body = {"prompt": sleep_workflow(600, tag=tag), "client_id": "tab", **fields}
        async with face.gateway.http.post("/prompt", json=body, headers=face.headers) as response:
            told = await response.json()
            assert response.status == 200, told
            return told["prompt_id"], told["number"]

    running = [await prompt(tag) for tag in range(len(face.engines))]
    await face.runs(*(prompt_id for prompt_id, _ in running))
    waiting = [await prompt(10 + tag) for tag in range(len(face.engines) + 2)]
    first = await prompt(90, front=True)
    _, queue = await face.get("/queue")
    shown = [(item[1], item[0]) for item in (*queue["queue_running"], *queue["queue_pending"])]
    assert dict(shown) == dict([*running, *waiting, first])
    assert first[1] < 0
    placed = len(face.engines)
    assert shown[2 * placed :] == [first, *[one for one in waiting if one not in shown[placed : 2 * placed]]]
    assert {item[3]["client_id"] for item in queue["queue_pending"]} == {"tab"}
    _, jobs = await face.get(f"/api/jobs/{first[0]}")
    assert (jobs["priority"], jobs["status"]) == (first[1], "pending")


async def test_a_sync_call_is_in_the_queue_with_its_workflow(face: Face) -> None:
    workflows = [sleep_workflow(600, tag=tag) for tag in range(2 * len(face.engines) + 2)]

    async def call(workflow: Any) -> None:
        async with face.gateway.http.post("/prompt_sync", json={"prompt": workflow}, headers=face.headers):
            pass

    calls = [asyncio.create_task(call(workflow)) for workflow in workflows]
    try:
        _, found = await until(
            lambda: face.get("/queue"),
            lambda answer: (
                len(answer[1]["queue_running"]) == len(face.engines)
                and len(answer[1]["queue_pending"]) == len(face.engines) + 2
            ),
        )
        shown = [item[2] for item in (*found["queue_running"], *found["queue_pending"])]
        assert sorted(map(json.dumps, shown)) == sorted(map(json.dumps, workflows))
        assert (await face.get("/prompt"))[1] == {"exec_info": {"queue_remaining": len(workflows)}}
    finally:
        for one in calls:
            one.cancel()
        await asyncio.gather(*calls, return_exceptions=True)


async def test_a_resubmitted_job_is_the_first_pending_one() -> None:
    async with AsyncExitStack() as stack:
        stays = await stack.enter_async_context(Engine(EngineOptions()))
        mortal = Engine(EngineOptions())
        async with AsyncExitStack() as life:
            await life.enter_async_context(mortal)
            gateway = await stack.enter_async_context(running_gateway(mortal.url, stays.url))
            face = Face(gateway, [mortal, stays], {})
            running = [await face.submit(sleep_workflow(600, tag=tag)) for tag in range(2)]
            await face.runs(*running)
            waiting = [await face.submit(sleep_workflow(600, tag=10 + tag)) for tag in range(4)]
            lost = (await queue_of(mortal))[0][0]
        (left,) = set(running) - {lost}
        _, pending = await until(face.queue, lambda queue: queue[0] == [left] and len(queue[1]) == 5, timeout_s=30)
        assert pending[0] == lost
        assert set(pending[1:]) == set(waiting)
        _, job = await face.get(f"/api/jobs/{lost}")
        assert job["status"] == "pending"


async def test_a_cancelled_job_stays_in_the_queue_until_it_is_in_the_history(face: Face) -> None:
    running = [await face.submit(sleep_workflow(600, tag=tag)) for tag in range(len(face.engines))]
    await face.runs(*running)
    for engine in face.engines:
        await engine.set_faults({"delay": {"method": "POST", "seconds": 0.3}})

    async def cancel() -> int:
        async with face.gateway.http.delete(f"/prompt_sync/{running[0]}", headers=face.headers) as response:
            return response.status

    cancelling = asyncio.create_task(cancel())
    seen: list[tuple[bool, bool]] = []
    while not seen or not seen[-1][1]:
        queued = running[0] in (await face.queue())[0]
        seen.append((queued, running[0] in (await face.get(f"/history/{running[0]}"))[1]))
    assert await cancelling == 200
    # The history was read after the queue, so a job may be in both but never in neither.
    assert all(queued or ended for queued, ended in seen)
    assert seen[0][0]
    assert (await face.get("/prompt"))[1]["exec_info"]["queue_remaining"] >= len(running) - 1


async def test_the_queue_and_the_history_hide_contents_and_secrets_of_inputs(face: Face) -> None:
    running = [await face.submit(sleep_workflow(600, tag=tag)) for tag in range(2 * len(face.engines))]
    await until(face.queue, lambda queue: sum(map(len, queue)) == len(running))
    workflow = invert_workflow()
    workflow["8"] = {"class_type": "LoadImage", "inputs": {"image": f"data:image/png;base64,{'QUJD' * 100_000}"}}
    workflow["9"] = {
        "class_type": "LoadImage",
        "inputs": {"image": "http://me:secret-5@127.0.0.1:9/a.png?token=secret-3#secret-4"},
    }

    async def call() -> None:
        async with face.gateway.http.post(
            "/prompt_sync", data=io.BytesIO(json.dumps({"prompt": workflow}).encode()), headers=face.headers
        ):
            pass

    waits = asyncio.create_task(call())
    try:
        _, queue = await until(lambda: face.get("/queue"), lambda answer: "a.png" in json.dumps(answer[1]))
    finally:
        waits.cancel()
        await asyncio.gather(waits, return_exceptions=True)
    prompt = queue["queue_pending"][-1][2]
    assert prompt["8"]["inputs"]["image"] == "data:image/png;base64,…"
    assert prompt["9"]["inputs"]["image"] == "http://127.0.0.1:9/a.png"
    # The history hides them too: this async job fails because its input cannot be fetched.
    workflow["8"]["inputs"]["image"] = "data:image/png;base64," + base64.b64encode(PNG).decode()
    ended = await face.ended(await face.submit(workflow))
    assert ended["status"]["status_str"] == "error"
    assert "secret-" not in json.dumps(ended)
    assert ended["prompt"][2]["8"]["inputs"]["image"].startswith("data:image/png;base64,")


async def test_prompts_of_other_clients_are_shown_as_external(face: Face) -> None:
    async with aiohttp.ClientSession(face.engines[0].url) as http:
        body = {"prompt": sleep_workflow(600), "extra_data": {"auth_token_comfy_org": "secret-2"}}
        async with http.post("/prompt", json=body) as response:
            theirs = (await response.json())["prompt_id"]
    await until(face.queue, lambda queue: queue == ([theirs], []))
    _, queue = await face.get("/queue")
    assert queue["queue_running"][0][3]["owner"] == "external"
    assert "secret-2" not in json.dumps(queue)
    assert (await face.get("/prompt"))[1] == {"exec_info": {"queue_remaining": 1}}
    _, jobs = await face.get("/api/jobs?status=in_progress")
    assert [job["id"] for job in jobs["jobs"]] == [theirs]
    if face.headers:
        assert await face.queue(ALICE) == ([], [])
        assert (await face.get("/prompt", ALICE))[1] == {"exec_info": {"queue_remaining": 0}}
        assert await face.queue(WATCHER) == ([theirs], [])


async def test_reads_that_the_gateway_can_answer_reach_no_server(face: Face) -> None:
    ended = await face.submit(invert_workflow())
    await face.ended(ended)
    running = [await face.submit(sleep_workflow(600, tag=tag)) for tag in range(len(face.engines))]
    await face.runs(*running)
    for engine in face.engines:
        engine.stats.reset()
    for path in (
        "/queue",
        "/history",
        f"/history/{ended}",
        "/api/jobs",
        f"/api/jobs/{ended}",
        f"/api/jobs/{running[0]}",
    ):
        assert (await face.get(path))[0] == 200
    routes = ("GET /queue", "GET /history", "GET /history/{prompt_id}", "GET /api/jobs", "GET /api/jobs/{job_id}")
    assert [requests(engine, route) for engine in face.engines for route in routes] == [0] * 5 * len(face.engines)


# The history


async def test_the_history_is_ordered_by_end_and_paged_as_comfyui_does(face: Face) -> None:
    prompt_ids = []
    for number in range(4):
        prompt_ids.append(await face.submit(invert_workflow(number)))
        await face.ended(prompt_ids[-1])
    _, history = await face.get("/history")
    assert list(history) == prompt_ids
    numbers = [entry["prompt"][0] for entry in history.values()]
    assert numbers == sorted(numbers)
    for query, expected in {
        "max_items=2": prompt_ids[2:],
        "max_items=9": prompt_ids,
        "max_items=0": [],
        "max_items=-3": [],
        "max_items=2&offset=1": prompt_ids[1:3],
        "max_items=0&offset=1": prompt_ids[1:2],
        "offset=3": prompt_ids[3:],
        "offset=-1": prompt_ids,
        "offset=99": [],
    }.items():
        assert list((await face.get(f"/history?{query}"))[1]) == expected, query
        async with aiohttp.ClientSession(face.engines[0].url) as http, http.get(f"/history?{query}") as response:
            count = len(await response.json())
        assert len(face.engines) > 1 or count == len(expected), query
    assert (await face.get("/history?max_items=x"))[0] == 422


async def test_a_history_entry_says_how_the_prompt_ended(face: Face) -> None:
    succeeded = await face.ended(await face.submit(invert_workflow()))
    assert succeeded["status"]["status_str"] == "success"
    assert succeeded["status"]["completed"] is True
    assert [name for name, _ in succeeded["status"]["messages"]][-1] == "execution_success"
    (image,) = succeeded["outputs"]["3"]["images"]
    assert image["type"] == "output"
    assert succeeded["meta"]["3"]["node_id"] == "3"

    failing = invert_workflow()
    inputs = {"value": ["1", 0], "exception_type": "ValueError", "message": "it broke"}
    failing["4"] = {"class_type": "SimulatedError", "inputs": inputs}
    failing["5"] = {"class_type": "SaveImage", "inputs": {"images": ["4", 0], "filename_prefix": "never"}}
    failed = await face.ended(await face.submit(failing))
    assert failed["status"]["status_str"] == "error"
    assert failed["status"]["completed"] is False
    name, told = failed["status"]["messages"][-1]
    assert name == "execution_error"
    assert "it broke" in told["exception_message"]
    assert (told["node_id"], told["node_type"], told["exception_type"]) == ("4", "SimulatedError", "ValueError")
    assert told["traceback"]

    prompt_id = await face.submit(sleep_workflow(600))
    await face.runs(prompt_id)
    async with face.gateway.http.delete(f"/prompt_sync/{prompt_id}", headers=face.headers) as response:
        assert response.status == 200
    canceled = await face.ended(prompt_id)
    assert canceled["status"]["status_str"] == "error"
    assert canceled["status"]["messages"][-1][0] == "execution_interrupted"


async def _history_of(server: Engine, prompt_id: str) -> Any:
    async with aiohttp.ClientSession(server.url) as http, http.get(f"/history/{prompt_id}") as response:
        return await response.json()


async def _interrupt(face: Face, prompt_id: str) -> None:
    async with face.gateway.http.post("/interrupt", json={"prompt_id": prompt_id}, headers=face.headers) as response:
        assert response.status == 200


async def _delete(face: Face, prompt_id: str) -> None:
    async with face.gateway.http.delete(f"/prompt_sync/{prompt_id}", headers=face.headers) as response:
        assert response.status == 200


@pytest.mark.parametrize("stop", [_interrupt, _delete])
async def test_the_history_entry_of_an_interrupted_prompt_equals_the_one_of_comfyui(
    face: Face, stop: Callable[[Face, str], Awaitable[None]]
) -> None:
    workflow = sleep_workflow(600)
    workflow["5"] = {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "before"}}
    prompt_id = await face.submit(workflow)
    await face.runs(prompt_id)
    await stop(face, prompt_id)
    entry = await face.ended(prompt_id)
    (theirs,) = [found[prompt_id] for one in face.engines if (found := await _history_of(one, prompt_id))]
    name, told = theirs["status"]["messages"][-1]
    assert (name, told["node_id"], told["node_type"]) == ("execution_interrupted", "4", "SimulatedSleep")
    assert entry["status"] == theirs["status"]
    assert entry["outputs"] == merged_outputs(prompt_id, theirs["outputs"])


async def test_a_prompt_that_only_a_server_knows_is_found_there(face: Face) -> None:
    body = {"prompt": invert_workflow()}
    async with aiohttp.ClientSession(face.engines[-1].url) as http, http.post("/prompt", json=body) as response:
        theirs = (await response.json())["prompt_id"]
    assert (await face.ended(theirs))["status"]["status_str"] == "success"
    if face.headers:
        assert await face.get(f"/history/{theirs}", ALICE) == (200, {})


async def test_errors_show_a_user_no_paths_of_the_server(keys_path: Path) -> None:
    workflow = invert_workflow()
    workflow["2"] = {
        "class_type": "SimulatedError",
        "inputs": {"value": ["1", 0], "exception_type": "ValueError", "message": "no /srv/comfy/x.py"},
    }
    async with Engine(EngineOptions()) as engine, running_gateway(engine.url, keys_file=keys_path) as gateway:
        face = Face(gateway, [engine], bearer(ROOT))
        prompt_id = await face.submit(workflow, ALICE)
        (_, told) = (await face.ended(prompt_id))["status"]["messages"][-1]
        assert "/srv/comfy/x.py" in told["exception_message"]
        (_, told) = (await face.get(f"/history/{prompt_id}", ALICE))[1][prompt_id]["status"]["messages"][-1]
        assert told["exception_message"].strip() == "no x.py"
        assert "/" not in "".join(re.findall(r'File "([^"]+)"', "".join(told["traceback"])))


# /api/jobs


async def test_jobs_are_filtered_by_status_and_sorted_by_time_or_duration(face: Face) -> None:
    short, long = invert_workflow(1), sleep_workflow(0.3, tag=2)
    ended = []
    for workflow in (long, short):
        ended.append(await face.submit(workflow, extra_data={"extra_pnginfo": {"workflow": {"id": "mine"}}}))
        await face.ended(ended[-1])
    running = [await face.submit(sleep_workflow(600, tag=10 + tag)) for tag in range(len(face.engines))]
    await face.runs(*running)
    waiting = [await face.submit(sleep_workflow(600, tag=30 + tag)) for tag in range(2)]

    async def listed(query: str) -> list[str]:
        status, answer = await face.get(f"/api/jobs?{query}")
        assert status == 200, answer
        assert answer["pagination"]["total"] >= len(answer["jobs"])
        return [job["id"] for job in answer["jobs"]]

    everything = [*ended, *running, *waiting]
    assert await listed("sort_order=asc") == everything
    assert await listed("") == everything[::-1]
    assert await listed("status=completed&sort_by=execution_duration") == ended
    assert await listed("status=completed&sort_by=execution_duration&sort_order=asc") == ended[::-1]
    assert await listed("status=IN_PROGRESS&sort_order=asc") == running
    assert await listed("status=pending, in_progress&sort_order=asc") == [*running, *waiting]
    assert await listed("status=failed,cancelled") == []
    assert await listed("workflow_id=mine") == ended[::-1]
    assert await listed("workflow_id=others") == []
    _, page = await face.get("/api/jobs?limit=2&offset=1&sort_order=asc")
    assert [job["id"] for job in page["jobs"]] == everything[1:3]
    total = len(everything)
    assert page["pagination"] == {"offset": 1, "limit": 2, "total": total, "has_more": True}
    _, page = await face.get(f"/api/jobs?offset={total - 1}")
    assert page["pagination"] == {"offset": total - 1, "limit": None, "total": total, "has_more": False}


@pytest.mark.parametrize("fails", [False, True])
async def test_answers_about_a_job_equal_those_of_a_new_comfyui(face: Face, fails: bool) -> None:
    """Names and values equal those of one ComfyUI, except for times and queue numbers."""
    workflow = invert_workflow(7)
    if fails:
        workflow["2"] = {
            "class_type": "SimulatedError",
            "inputs": {"value": ["1", 0], "exception_type": "ValueError", "message": "it broke"},
        }
        workflow["4"] = {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "before"}}
    extra = {"extra_pnginfo": {"workflow": {"id": "mine"}}}
    prompt_id = await face.submit(workflow, extra_data=extra)
    await face.ended(prompt_id)
    async with Engine(EngineOptions(comfyui_version=NEW_VERSION)) as alone, aiohttp.ClientSession(alone.url) as http:
        body = {"prompt": workflow, "prompt_id": prompt_id, "extra_data": extra}
        async with http.post("/prompt", json=body) as response:
            assert response.status == 200
        paths = (f"/api/jobs/{prompt_id}", "/api/jobs", f"/history/{prompt_id}", "/history", "/queue", "/prompt")

        async def theirs(path: str) -> tuple[int, Any]:
            async with http.get(path) as response:
                return response.status, await response.json()

        await until(lambda: theirs(f"/history/{prompt_id}"), lambda answer: bool(answer[1]))
        for path in paths:
            ours, wanted = await face.get(path), await theirs(path)
            assert _normalised(plain_names(ours[1])) == _normalised(wanted[1]), path
            assert ours[0] == wanted[0]
        for query in (
            "limit=0",
            "limit=x",
            "offset=x",
            "status=done,completed",
            "sort_by=name",
            "sort_order=up",
            "offset=-5&limit=1",
            "status=,",
        ):
            ours, wanted = await face.get(f"/api/jobs?{query}"), await theirs(f"/api/jobs?{query}")
            assert (ours[0], _normalised(plain_names(ours[1]))) == (wanted[0], _normalised(wanted[1])), query
        unknown = "/api/jobs/5f0c0000-0000-4000-8000-000000000000"
        if face.headers:
            assert await face.get(unknown, ALICE) == await theirs(unknown)


def _normalised(value: Any) -> Any:
    """Removes what differs between two runs and what only the gateway adds."""
    if isinstance(value, dict):
        gone = {"timestamp", "create_time", "execution_start_time", "execution_end_time", "priority", "owner"}
        gone |= {"current_inputs", "current_outputs", "client_id"}
        return {name: _normalised(one) for name, one in value.items() if name not in gone}
    if isinstance(value, list):
        # This drops the queue number of an item.
        kept = value[1:] if len(value) == 5 and isinstance(value[0], int | float) else value
        return [_normalised(one) for one in kept]
    return value


async def test_each_key_sees_its_own_jobs_and_a_read_key_sees_all(keys_path: Path) -> None:
    async with Engine(EngineOptions()) as engine, running_gateway(engine.url, keys_file=keys_path) as gateway:
        face = Face(gateway, [engine], bearer(ROOT))
        mine = await face.submit(invert_workflow(1), ALICE)
        await face.ended(mine)
        theirs = await face.submit(sleep_workflow(600), BOB)
        await face.runs(theirs)
        pending = await face.submit(invert_workflow(2), ALICE)
        for key, jobs in (
            (ALICE, [mine, pending]),
            (BOB, [theirs]),
            (ROOT, [mine, theirs, pending]),
            (WATCHER, [mine, theirs, pending]),
        ):
            _, answer = await face.get("/api/jobs?sort_order=asc", key)
            assert [job["id"] for job in answer["jobs"]] == jobs
            assert answer["pagination"]["total"] == len(jobs)
            for prompt_id in (mine, theirs, pending):
                status, _ = await face.get(f"/api/jobs/{prompt_id}", key)
                assert status == (200 if prompt_id in jobs else 404)
            assert list((await face.get("/history", key))[1]) == [mine] * (mine in jobs)
        assert (await face.queue(ALICE), await face.queue(BOB)) == (([], [pending]), ([theirs], []))
        assert await face.queue(ROOT) == await face.queue(WATCHER) == ([theirs], [pending])
        owners = [item[3]["owner"] for item in (await face.get("/queue"))[1]["queue_pending"]]
        assert owners == ["alice"]
        assert "owner" not in (await face.get("/queue", ALICE))[1]["queue_pending"][0][3]
        async with gateway.http.get("/jobs", headers=bearer(ALICE)) as response:
            assert response.status == 404


async def test_queue_and_history_of_one_server_are_relayed_unchanged(engine: Engine) -> None:
    async with running_gateway(engine.url) as gateway:
        prompt_id = await submit(gateway.http, invert_workflow())
        await finished(gateway.http, prompt_id)
        engine.stats.reset()
        for path, route in (("/queue", "GET /queue"), ("/history", "GET /history")):
            async with (
                aiohttp.ClientSession() as http,
                gateway.http.get(path) as ours,
                http.get(engine.url + path) as theirs,
            ):
                assert await ours.read() == await theirs.read()
            assert requests(engine, route) == 2


async def test_a_long_paused_queue_is_shown_completely(keys_path: Path) -> None:
    """The jobs fill several pages of the journal, and one body fills a page on its own."""
    async with (
        Engine(EngineOptions()) as engine,
        running_gateway(
            engine.url, keys_file=keys_path, changed=handler_options(queue=QueueOptions("gateway"))
        ) as gateway,
    ):
        face = Face(gateway, [engine], bearer(ROOT))
        await gateway.handler.queue.pause(True)
        large: dict[str, Any] = {"extra_data": {"extra_pnginfo": {"workflow": {"id": "x" * 1_000_000}}}}
        submitted = [await face.submit(invert_workflow(tag), **(large if tag == 50 else {})) for tag in range(230)]
        assert await face.queue() == ([], submitted)
        _, jobs = await face.get("/api/jobs?sort_order=asc&limit=220")
        assert [job["id"] for job in jobs["jobs"]] == submitted[:220]
        async with gateway.http.head("/queue", headers=face.headers) as response:
            assert (response.status, await response.read()) == (200, b"")
