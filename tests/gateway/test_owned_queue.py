"""ComfyUI's queue, history and interrupt for users: a user sees and stops only its own prompts."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import uuid4

import pytest

from comfyui.engine import Engine
from comfyui.jobs.queue_options import QueueOptions
from tests.support.calls import Calls
from tests.support.keys import ALICE, BOB, ROOT, WATCHER, bearer
from tests.support.relaying import eventually, fetch
from tests.support.running import (
    executions,
    handler_options,
    invert_workflow,
    queue_of,
    running_gateway,
    sleep_workflow,
    until,
)


async def _post(calls: Calls, key: str, path: str, body: Any = None) -> int:
    return (await fetch(calls.gateway, path, "POST", json=body, headers=bearer(key))).status


async def _prompt(calls: Calls, key: str, workflow: Any, **fields: Any) -> str:
    status, told = await calls.call(key, "POST", "/prompt", {"prompt": workflow, **fields})
    assert status == 200, told
    assert told.keys() == {"prompt_id", "number", "node_errors"}
    prompt_id: str = told["prompt_id"]
    return prompt_id


async def _queue(calls: Calls, key: str) -> tuple[list[str], list[str]]:
    _, queue = await calls.call(key, "GET", "/queue")
    return [item[1] for item in queue["queue_running"]], [item[1] for item in queue["queue_pending"]]


async def _history(calls: Calls, key: str, query: str = "") -> Any:
    return (await calls.call(key, "GET", f"/history{query}"))[1]


async def _ended(calls: Calls, key: str, prompt_id: str) -> Any:
    found = await until(lambda: _history(calls, key, f"/{prompt_id}"), lambda entry: prompt_id in entry)
    return found[prompt_id]


@pytest.mark.parametrize("prefix", ["", "/api"])
async def test_a_prompt_sent_to_post_prompt_is_a_job_of_its_key(calls: Calls, prefix: str) -> None:
    workflow = invert_workflow(1)
    status, told = await calls.call(
        ALICE, "POST", f"{prefix}/prompt", {"prompt": workflow, "client_id": "tab", "extra_data": {"a": 1}}
    )
    assert status == 200
    entry = await _ended(calls, ALICE, told["prompt_id"])
    number, prompt_id, prompt, extra_data, outputs = entry["prompt"]
    assert (prompt_id, prompt, outputs) == (told["prompt_id"], workflow, ["3"])
    assert (extra_data["client_id"], extra_data["a"]) == ("tab", 1)
    assert number > 0
    assert entry["status"]["status_str"] == "success"
    assert entry["status"]["completed"] is True
    (image,) = entry["outputs"]["3"]["images"]
    query = f"filename={image['filename']}&subfolder={image['subfolder']}&type={image['type']}"
    assert (await fetch(calls.gateway, f"/view?{query}", headers=bearer(ALICE))).status == 200
    # Our own endpoint shows the same job.
    assert (await calls.call(ALICE, "GET", f"/prompt_sync/{prompt_id}"))[0] == 200
    assert (await calls.call(ALICE, "GET", "/usage"))[1]["usage"][0]["prompts"]["succeeded"] == 1


async def test_queue_and_history_show_a_user_only_its_own_prompts(calls: Calls, engine: Engine) -> None:
    theirs = await _prompt(calls, BOB, sleep_workflow(600))
    await until(lambda: queue_of(engine), lambda queue: theirs in queue[0])
    mine = [await _prompt(calls, ALICE, invert_workflow(number)) for number in range(2)]
    assert await _queue(calls, ALICE) == ([], mine)
    assert (await calls.call(ALICE, "GET", "/prompt"))[1] == {"exec_info": {"queue_remaining": 2}}
    assert await until(lambda: _queue(calls, BOB), lambda queue: queue[0] == [theirs]) == ([theirs], [])
    # An admin and a key of role read see ComfyUI's whole queue.
    for key in (ROOT, WATCHER):
        assert theirs in (await _queue(calls, key))[0]
    await _post(calls, BOB, "/interrupt")
    for prompt_id in mine:
        await _ended(calls, ALICE, prompt_id)
    assert list(await _history(calls, ALICE)) == mine
    assert list(await _history(calls, BOB)) == [theirs]
    assert await _history(calls, BOB, f"/{mine[0]}") == {}
    assert await _history(calls, ALICE, f"/{theirs}") == {}
    assert list(await _history(calls, ALICE, "?max_items=1")) == mine[1:]
    assert list(await _history(calls, ALICE, "?max_items=1&offset=0")) == mine[:1]
    entry = (await _history(calls, BOB))[theirs]
    assert entry["status"]["messages"][-1][0] == "execution_interrupted"


async def test_no_user_stops_prompts_of_another(calls: Calls, engine: Engine) -> None:
    # With a client id, the events of the prompt go to that browser tab and not to the gateway.
    running = await _prompt(calls, BOB, sleep_workflow(600), client_id="tab")
    await until(lambda: queue_of(engine), lambda queue: running in queue[0])
    assert await _queue(calls, BOB) == ([running], [])
    waiting = await _prompt(calls, BOB, invert_workflow(1))
    await until(lambda: queue_of(engine), lambda queue: waiting in queue[1])
    for path, body in (
        ("/interrupt", None),
        ("/interrupt", {"prompt_id": running}),
        ("/api/interrupt", {"prompt_id": running}),
        ("/queue", {"clear": True}),
        ("/queue", {"delete": [waiting, running]}),
        ("/api/queue", {"clear": True}),
    ):
        assert await _post(calls, ALICE, path, body) == 200
    assert await _post(calls, ALICE, "/free", {"unload_models": True}) == 403
    assert await queue_of(engine) == ([running], [waiting])
    assert await _post(calls, BOB, "/queue", {"delete": [waiting]}) == 200
    assert await queue_of(engine) == ([running], [])
    assert await _post(calls, BOB, "/interrupt", {"prompt_id": str(uuid4())}) == 200
    assert await queue_of(engine) == ([running], [])
    assert await _post(calls, BOB, "/interrupt", {"prompt_id": running}) == 200
    await until(lambda: queue_of(engine), lambda queue: queue == ([], []))


async def test_clear_removes_prompts_that_wait_in_the_gateway_too(engine: Engine, keys_path: Any) -> None:
    async with running_gateway(
        engine.url, keys_file=keys_path, changed=handler_options(queue=QueueOptions(ahead=0))
    ) as gateway:
        calls = Calls(gateway)
        mine = [await _prompt(calls, ALICE, invert_workflow(number)) for number in range(3)]
        theirs = await _prompt(calls, BOB, invert_workflow(9))
        assert await _queue(calls, ALICE) == ([], mine)
        assert await _post(calls, ALICE, "/queue", {"delete": [mine[1], theirs, "x", 7]}) == 200
        assert await _queue(calls, ALICE) == ([], [mine[0], mine[2]])
        assert await _post(calls, ALICE, "/queue", {"clear": True}) == 200
        assert (await _queue(calls, ALICE), await _queue(calls, BOB)) == (([], []), ([], [theirs]))
    assert executions(engine) == {}


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({}, "No prompt provided"),
        ({"prompt": {"1": {"class_type": "NoSuchNode", "inputs": {}}}}, "NoSuchNode"),
        ({"prompt": invert_workflow(), "prompt_id": "not-a-uuid"}, "prompt_id"),
        ({"prompt": {"1": {"class_type": "LoadImage", "inputs": {"image": "secret.png"}}}}, "file"),
    ],
)
async def test_refused_prompts_get_errors_in_comfyuis_form(calls: Calls, body: Any, told: str) -> None:
    status, answer = await calls.call(ALICE, "POST", "/prompt", body)
    assert status == 400
    assert answer.keys() == {"error", "node_errors"}
    assert {"type", "message", "details", "extra_info"} == answer["error"].keys()
    assert told in str(answer)


async def test_a_users_sync_call_is_in_its_queue_and_history_with_the_workflow(calls: Calls) -> None:
    workflow = invert_workflow(3)
    await calls.gateway.handler.queue.pause(True)
    waiting = asyncio.create_task(calls.submit(ALICE, workflow))

    async def pending() -> list[Any]:
        found: list[Any] = (await calls.call(ALICE, "GET", "/queue"))[1]["queue_pending"]
        return found

    (item,) = await until(pending, bool)
    assert item[2] == workflow
    await calls.gateway.handler.queue.pause(False)
    status, result = await waiting
    assert status == 200
    assert (await _ended(calls, ALICE, result["prompt_id"]))["prompt"][2] == workflow


async def test_number_and_front_of_post_prompt_pass_only_the_users_own_jobs(calls: Calls, engine: Engine) -> None:
    await calls.gateway.handler.queue.pause(True)
    theirs = await _prompt(calls, BOB, invert_workflow(0))
    first = await _prompt(calls, ALICE, invert_workflow(1))
    second = await _prompt(calls, ALICE, invert_workflow(2), number=-1000)
    third = await _prompt(calls, ALICE, invert_workflow(3), front=True)
    await calls.gateway.handler.queue.pause(False)
    for prompt_id in (first, second, third):
        assert (await calls.call(ALICE, "GET", f"/prompt_sync/{prompt_id}"))[0] == 200
    await eventually(lambda: len(executions(engine)) == 4)
    ran = list(executions(engine))
    assert [prompt_id for prompt_id in ran if prompt_id != theirs] == [second, third, first]
    assert ran[0] == theirs


async def test_invalid_json_for_queue_and_interrupt_is_handled_as_in_comfyui(calls: Calls) -> None:
    for path in ("/queue", "/interrupt"):
        answer = await fetch(calls.gateway, path, "POST", data=b"{", headers=bearer(ALICE))
        # As in ComfyUI, which takes an interrupt without valid JSON as an interrupt of all running prompts.
        assert (answer.status, answer.body) == (
            (500, b"500 Internal Server Error\n\nthe body is not JSON") if path == "/queue" else (200, b"")
        )
        answer = await fetch(calls.gateway, path, "POST", data=b"[" + b" " * 1_000_001, headers=bearer(ALICE))
        assert answer.status == 413
