"""What happens to a queued prompt: messages, history, cache, interruption, deletion."""

from __future__ import annotations

import json
import uuid
from typing import Any

import aiohttp
import pytest

from tests.support.target import Target, any_color, empty, inverted, node, slow

_META = {"node_id": "3", "display_node": "3", "parent_node": None, "real_node_id": "3"}


def kinds(messages: list[dict[str, Any]]) -> list[str]:
    """The message types, `executing` with its node; without `status`, which every client gets."""
    told = []
    for message in messages:
        if message["type"] == "executing":
            told.append(f"executing {message['data']['node']}")
        elif message["type"] != "status":
            told.append(message["type"])
    return told


async def test_the_first_message_is_the_status_with_the_session_id(target: Target) -> None:
    async with target.socket() as socket:
        first = await socket.next()
        assert first["type"] == "status"
        assert first["data"]["sid"] == socket.client_id
        assert first["data"]["status"]["exec_info"]["queue_remaining"] >= 0


async def test_a_socket_without_client_id_gets_one(target: Target) -> None:
    async with target.session.ws_connect("/ws") as websocket:
        first = json.loads(await websocket.receive_str())
        assert len(first["data"]["sid"]) == 32


async def test_feature_flags_are_answered_when_they_are_the_first_message(target: Target) -> None:
    async with target.socket() as socket:
        await socket.next()
        await socket.websocket.send_json({"type": "feature_flags", "data": {"supports_preview_metadata": True}})
        answer = await socket.next()
        assert answer["type"] == "feature_flags"
        assert answer["data"]["supports_preview_metadata"] is True
        assert answer["data"]["max_upload_size"] > 0


async def test_later_feature_flags_are_not_answered(target: Target) -> None:
    async with target.socket() as socket:
        await socket.next()
        await socket.websocket.send_str('{"type": "hello"}')
        await socket.websocket.send_json({"type": "feature_flags", "data": {}})
        run = await target.run_on(socket, inverted(target.prefix))
        assert not run.of_type("feature_flags")


async def test_the_submitter_sees_each_step_in_order(target: Target) -> None:
    run = await target.run(inverted(target.prefix, color=any_color()))
    assert kinds(run.messages) == [
        "execution_start",
        "execution_cached",
        "progress_state",
        "executing 1",
        "progress_state",
        "progress_state",
        "executing 2",
        "progress_state",
        "progress_state",
        "executing 3",
        "executed",
        "progress_state",
        "execution_success",
        "executing None",
    ]
    (executed,) = run.of_type("executed")
    assert executed == {
        "node": "3",
        "display_node": "3",
        "output": run.entry["outputs"]["3"],
        "prompt_id": run.prompt_id,
    }
    last = run.of_type("progress_state")[-1]["nodes"]
    assert {node_id: state["state"] for node_id, state in last.items()} == dict.fromkeys("123", "finished")
    assert last["3"] == {
        "value": 1.0,
        "max": 1.0,
        "state": "finished",
        "node_id": "3",
        "prompt_id": run.prompt_id,
        "display_node_id": "3",
        "parent_node_id": None,
        "real_node_id": "3",
    }


async def test_history_has_prompt_outputs_status_and_meta(target: Target) -> None:
    prompt = inverted(target.prefix)
    run = await target.run(prompt, extra_data={"extra_pnginfo": {"workflow": {"id": "w"}}})
    entry = run.entry
    assert set(entry) == {"prompt", "outputs", "status", "meta"}
    number, prompt_id, stored, extra_data, outputs = entry["prompt"]
    assert isinstance(number, int)
    assert (prompt_id, stored, outputs) == (run.prompt_id, prompt, ["3"])
    assert extra_data["extra_pnginfo"] == {"workflow": {"id": "w"}}
    assert ("create_time" in extra_data) == target.is_modern
    assert entry["meta"] == {"3": _META}
    status = entry["status"]
    assert (status["status_str"], status["completed"]) == ("success", True)
    assert [name for name, _ in status["messages"]] == ["execution_start", "execution_cached", "execution_success"]
    for _, data in status["messages"]:
        assert data["prompt_id"] == run.prompt_id
        assert isinstance(data["timestamp"], int)


async def test_the_history_entry_exists_when_executing_turns_null(target: Target) -> None:
    async with target.socket() as socket:
        for _ in range(10):
            run = await target.run_on(socket, inverted(target.prefix))
            assert run.entry["status"]["completed"]


async def test_history_of_an_unknown_prompt_is_empty(target: Target) -> None:
    assert await target.history(str(uuid.uuid4())) == {}


async def test_a_repeated_prompt_is_served_from_the_cache_with_the_earlier_file(target: Target) -> None:
    first = await target.run(inverted(target.prefix))
    again = await target.run(inverted(target.prefix))
    assert again.entry["outputs"] == first.entry["outputs"]
    assert again.entry["meta"] == first.entry["meta"]
    assert again.of_type("execution_cached")[0]["nodes"] == ["1", "2", "3"]
    assert kinds(again.messages) == [
        "execution_start",
        "execution_cached",
        "executed",
        "progress_state",
        "execution_success",
        "executing None",
    ]


async def test_only_changed_nodes_are_executed_again(target: Target) -> None:
    await target.run(inverted(target.prefix))
    changed = await target.run(inverted(target.prefix + "b"))
    assert changed.of_type("execution_cached")[0]["nodes"] == ["1", "2"]
    assert [data["node"] for data in changed.of_type("executing")] == ["3", None]


async def test_the_cache_compares_nodes_by_content_and_not_by_id(target: Target) -> None:
    await target.run(inverted(target.prefix))
    renamed = {
        "a": empty(),
        "b": node("ImageInvert", image=["a", 0]),
        "c": node("SaveImage", images=["b", 0], filename_prefix=target.prefix),
    }
    run = await target.run(renamed)
    assert run.of_type("execution_cached")[0]["nodes"] == ["a", "b", "c"]
    assert list(run.entry["outputs"]) == ["c"]


async def test_the_cache_keeps_only_the_latest_prompt(target: Target) -> None:
    await target.run(inverted(target.prefix))
    await target.run(inverted(target.prefix, color=1))
    again = await target.run(inverted(target.prefix))
    assert again.of_type("execution_cached")[0]["nodes"] == []


async def test_free_memory_empties_the_cache(target: Target) -> None:
    await target.run(inverted(target.prefix))
    async with target.session.post("/free", json={"free_memory": True, "unload_models": True}) as response:
        assert response.status == 200
    # The prompt thread obeys the flag after its next prompt at the latest.
    await target.run(inverted(target.prefix + "x", color=7))
    again = await target.run(inverted(target.prefix))
    assert again.of_type("execution_cached")[0]["nodes"] == []


async def test_another_clients_socket_gets_only_status(target: Target) -> None:
    async with target.socket() as watcher:
        await watcher.next()
        await target.run(inverted(target.prefix))
        await watcher.websocket.send_str("not json")
        seen = await watcher.until("status", status={"exec_info": {"queue_remaining": 0}})
        assert {message["type"] for message in seen} == {"status"}


async def test_a_prompt_without_client_id_ends_without_an_event(target: Target) -> None:
    async with target.socket() as watcher:
        await watcher.next()
        status, answer = await target.submit(inverted(target.prefix))
        assert status == 200
        run = await target.run_on(watcher, inverted(target.prefix, color=5))
        silent = [message for message in run.messages if message["data"].get("prompt_id") == answer["prompt_id"]]
        # Without a client id, progress goes to every client, but no message about the end does.
        assert {message["type"] for message in silent} <= {"progress_state", "progress"}
        assert (await target.history(answer["prompt_id"]))[answer["prompt_id"]]["status"]["completed"]


async def test_a_node_that_raises_ends_the_prompt_with_its_error(target: Target) -> None:
    prompt = inverted(f"../../{target.prefix}", color=any_color())
    run = await target.run(prompt)
    assert run.entry["outputs"] == {}
    status = run.entry["status"]
    assert (status["status_str"], status["completed"]) == ("error", False)
    assert [name for name, _ in status["messages"]] == ["execution_start", "execution_cached", "execution_error"]
    error = status["messages"][-1][1]
    assert set(error) == {
        "prompt_id",
        "node_id",
        "node_type",
        "executed",
        "exception_message",
        "exception_type",
        "traceback",
        "current_inputs",
        "current_outputs",
        "timestamp",
    }
    assert (error["node_id"], error["node_type"]) == ("3", "SaveImage")
    assert sorted(error["executed"]) == ["1", "2"]
    assert sorted(error["current_outputs"]) == ["1", "2", "3"]
    assert error["current_inputs"]["filename_prefix"] == [prompt["3"]["inputs"]["filename_prefix"]]
    assert error["exception_message"].startswith("**** ERROR: Saving image outside the output folder is not allowed.")
    assert run.of_type("execution_error") == [error]
    assert run.messages[-1]["data"]["node"] is None


async def test_the_running_prompt_can_be_interrupted_by_id(target: Target) -> None:
    async with target.socket() as socket:
        _, answer = await target.submit(slow(target.prefix), client_id=socket.client_id)
        prompt_id = answer["prompt_id"]
        await socket.until("executing", node="2")
        assert await target.history(prompt_id) == {}
        queue = await target.get_json("/queue")
        assert [item[1] for item in queue["queue_running"]] == [prompt_id]
        async with target.session.post("/interrupt", json={"prompt_id": prompt_id}) as response:
            assert (response.status, await response.read()) == (200, b"")
        messages = await socket.until_done(prompt_id)
    (interrupted,) = [message["data"] for message in messages if message["type"] == "execution_interrupted"]
    assert interrupted["node_id"] in ("2", "3")
    assert set(interrupted) == {"prompt_id", "node_id", "node_type", "executed", "timestamp"}
    entry = (await target.history(prompt_id))[prompt_id]
    assert (entry["status"]["status_str"], entry["status"]["completed"]) == ("error", False)
    assert entry["status"]["messages"][-1] == ["execution_interrupted", interrupted]
    assert entry["outputs"] == {}


async def test_interrupting_another_id_does_not_touch_the_running_prompt(target: Target) -> None:
    async with target.socket() as socket:
        _, answer = await target.submit(slow(target.prefix), client_id=socket.client_id)
        await socket.until("executing", node="2")
        async with target.session.post("/interrupt", json={"prompt_id": str(uuid.uuid4())}) as response:
            assert response.status == 200
        await socket.until_done(answer["prompt_id"])
    entry = (await target.history(answer["prompt_id"]))[answer["prompt_id"]]
    assert entry["status"]["status_str"] == "success"


async def test_pending_prompts_are_listed_and_leave_no_trace_after_deletion(target: Target) -> None:
    async with target.socket() as socket:
        _, running = await target.submit(slow(target.prefix), client_id=socket.client_id)
        await socket.until("executing", node="2")
        secrets = {"api_key_comfy_org": "secret", "mine": 1}
        _, first = await target.submit(inverted(target.prefix), extra_data=secrets)
        _, second = await target.submit(inverted(target.prefix), front=True)
        queue = await target.get_json("/api/queue")
        pending = {item[1]: item for item in queue["queue_pending"]}
        assert list(pending) == [second["prompt_id"], first["prompt_id"]], "the prompt that runs next comes first"
        number, _, prompt, extra_data, outputs = pending[first["prompt_id"]]
        assert (number, prompt, outputs) == (first["number"], inverted(target.prefix), ["3"])
        assert ("api_key_comfy_org" in extra_data) == (not target.is_modern)
        assert (await target.get_json("/prompt")) == {"exec_info": {"queue_remaining": 3}}
        async with target.session.post("/queue", json={"delete": [first["prompt_id"], "unknown"]}) as response:
            assert (response.status, await response.read()) == (200, b"")
        assert (await target.get_json("/prompt")) == {"exec_info": {"queue_remaining": 2}}
        async with target.session.post("/queue", json={"clear": True}) as response:
            assert response.status == 200
        async with target.session.post("/interrupt") as response:
            assert response.status == 200
        await socket.until_done(running["prompt_id"])
    assert await target.history(first["prompt_id"]) == {}
    assert await target.history(second["prompt_id"]) == {}
    assert (await target.get_json("/queue")) == {"queue_running": [], "queue_pending": []}


async def test_history_can_be_paged_and_deleted(target: Target) -> None:
    runs = [await target.run(inverted(target.prefix, color=color)) for color in range(3)]
    ids = [run.prompt_id for run in runs]
    latest = await target.get_json("/history?max_items=2")
    assert list(latest) == ids[1:]
    everything = await target.get_json("/history")
    assert list(everything)[-3:] == ids
    offset = list(everything).index(ids[0])
    assert list(await target.get_json(f"/history?max_items=1&offset={offset}")) == [ids[0]]
    async with target.session.post("/history", json={"delete": [ids[0]]}) as response:
        assert (response.status, await response.read()) == (200, b"")
    assert await target.history(ids[0]) == {}
    assert list(await target.history(ids[1])) == [ids[1]]


async def test_the_same_prompt_id_submitted_twice_runs_twice(target: Target) -> None:
    prompt_id = str(uuid.uuid4())
    async with target.socket() as socket:
        await target.run_on(socket, inverted(target.prefix), prompt_id=prompt_id)
        second = await target.run_on(socket, inverted(target.prefix, color=3), prompt_id=prompt_id)
    assert second.of_type("execution_start")[0]["prompt_id"] == prompt_id


async def test_text_outputs_have_their_own_key(target: Target) -> None:
    prompt = {
        "1": node("PrimitiveString", value=target.prefix),
        "2": node("PreviewAny", source=["1", 0]),
    }
    run = await target.run(prompt)
    assert run.entry["outputs"] == {"2": {"text": [target.prefix]}}


@pytest.mark.parametrize("origin", ["http://elsewhere.example", "http://127.0.0.1:1"])
async def test_a_foreign_origin_is_refused_on_a_loopback_host(target: Target, origin: str) -> None:
    async with target.session.get("/queue", headers={"Origin": origin}) as response:
        assert (response.status, await response.read()) == (403, b"")
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await target.session.ws_connect("/ws", headers={"Origin": origin})
    assert refused.value.status == 403
    async with target.session.get("/queue", headers={"Origin": target.url}) as response:
        assert response.status == 200
