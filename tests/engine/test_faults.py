"""Each fault does what its description says, as often as it is set to, and can be switched off."""

from __future__ import annotations

import asyncio
import json
import uuid
from typing import Any

import aiohttp
import pytest

from comfyui.engine import Engine, EngineOptions
from comfyui.engine.faults import NAMES
from tests.support.engine_workflows import sleeping, txt2img, writing
from tests.support.target import Target, any_color, inverted

CONNECTION_LOST = (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError)


async def fault(target: Target, **faults: Any) -> None:
    async with target.session.post("/engine/faults", json=faults) as response:
        assert response.status == 200, await response.text()


async def test_faults_are_merged_by_name_shown_and_switched_off(target: Target) -> None:
    await fault(target, ws_refuse=True, status={"route": "/queue", "status": 502})
    await fault(target, ws_refuse={"status": 404, "times": 3})
    assert await target.get_json("/engine/faults") == {
        "ws_refuse": [{"status": 404, "times": 3}],
        "status": [{"route": "/queue", "status": 502}],
    }
    async with target.session.delete("/engine/faults") as response:
        assert response.status == 200
    assert await target.get_json("/engine/faults") == {}
    assert "queue_running" in await target.get_json("/queue")


@pytest.mark.parametrize("body", ['{"nonsense": {}}', '{"hang": 5}', '{"hang": {"times": 0}}', "[]", "no json"])
async def test_an_unknown_or_malformed_fault_is_refused(target: Target, body: str) -> None:
    async with target.session.post("/engine/faults", data=body) as response:
        assert response.status == 400
        assert (await response.json())["error"]
    assert await target.get_json("/engine/faults") == {}


async def test_every_fault_is_described() -> None:
    from comfyui.engine import faults

    assert faults.__doc__ is not None
    described = {line.split()[0] for line in faults.__doc__.splitlines() if line.startswith("    ") and line.split()}
    assert described >= NAMES


async def test_the_status_fault_applies_to_its_route_and_method_for_its_count(target: Target) -> None:
    await fault(target, status={"route": "/history/*", "method": "GET", "status": 503, "body": "busy", "times": 2})
    for path in ("/history/a", "/api/history/b"):
        async with target.session.get(path) as response:
            assert (response.status, await response.text()) == (503, "busy")
    assert await target.history("c") == {}


async def test_one_fault_can_be_set_for_several_routes(target: Target) -> None:
    await fault(target, status=[{"route": "/queue", "status": 500}, {"route": "/features", "status": 404}])
    for path, status in (("/queue", 500), ("/features", 404), ("/prompt", 200)):
        async with target.session.get(path) as response:
            assert response.status == status


async def test_a_hanging_route_gives_no_answer(target: Target) -> None:
    await fault(target, hang={"route": "/queue", "times": 1, "seconds": 0.05})
    # Not a GET: aiohttp's client repeats that by itself when a kept connection ends.
    with pytest.raises(CONNECTION_LOST):
        await target.session.post("/queue", json={})


async def test_a_cut_request_is_closed_without_an_answer(target: Target) -> None:
    await fault(target, cut={"route": "/queue", "method": "POST", "times": 1})
    with pytest.raises(CONNECTION_LOST):
        await target.session.post("/queue", json={"clear": True})


async def test_half_json_ends_the_body_in_the_middle(target: Target) -> None:
    await fault(target, half_json={"route": "/object_info", "times": 1})
    with pytest.raises(aiohttp.ClientPayloadError):
        await target.get_json("/object_info")
    assert "SaveImage" in await target.get_json("/object_info")


async def test_a_delayed_route_answers_after_its_delay(target: Target) -> None:
    await fault(target, delay={"route": "/prompt", "seconds": 0.1, "times": 1})
    before = asyncio.get_running_loop().time()
    assert "exec_info" in await target.get_json("/prompt")
    assert asyncio.get_running_loop().time() - before >= 0.1


@pytest.mark.parametrize(("when", "queued"), [("before", 0), ("after", 1)])
async def test_a_submission_reply_can_be_lost_before_or_after_queueing(target: Target, when: str, queued: int) -> None:
    await fault(target, prompt_thread_dead=True, **{f"prompt_reply_lost_{when}_queue": {"times": 1}})
    with pytest.raises(CONNECTION_LOST):
        await target.submit(inverted("lost"))
    assert (await target.get_json("/prompt"))["exec_info"]["queue_remaining"] == queued
    assert (await target.submit(inverted("kept")))[0] == 200


async def test_a_websocket_can_be_refused(target: Target) -> None:
    await fault(target, ws_refuse={"status": 500, "times": 1})
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await target.session.ws_connect("/ws")
    assert refused.value.status == 500
    async with target.socket() as socket:
        await socket.next()


@pytest.mark.parametrize("abrupt", [False, True])
async def test_ws_drop_closes_open_websockets_at_once(target: Target, abrupt: bool) -> None:
    async with target.socket() as socket:
        await socket.next()
        await fault(target, ws_drop={"abrupt": abrupt})
        frame = await socket.websocket.receive()
        assert frame.type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED)
    async with target.socket() as socket:
        await socket.next()
    assert await target.get_json("/engine/faults") == {}


async def test_ws_flood_sends_its_messages_at_once(target: Target) -> None:
    async with target.session.ws_connect("/ws", autoping=False) as websocket:
        await websocket.receive()
        await fault(target, ws_flood={"count": 300, "text": "1"})
        assert [await websocket.receive_str() for _ in range(300)] == ["1"] * 300
        await fault(target, ws_flood={"count": 2, "ping": True})
        assert [(await websocket.receive()).type for _ in range(2)] == [aiohttp.WSMsgType.PING] * 2
    assert await target.get_json("/engine/faults") == {}
    async with target.session.post("/engine/faults", json={"ws_flood": {"text": "x" * 200}}) as response:
        assert response.status == 400


async def test_ws_silent_keeps_the_websocket_open_without_messages(target: Target) -> None:
    async with target.socket() as socket:
        await socket.next()
        await fault(target, ws_silent=True)
        _, answer = await target.submit(inverted("silent"), client_id=socket.client_id)
        while not await target.history(answer["prompt_id"]):
            await asyncio.sleep(0)
        async with target.session.delete("/engine/faults"):
            pass
        run = await target.run_on(socket, inverted("heard", color=any_color()))
        assert answer["prompt_id"] not in json.dumps(run.messages)


async def test_a_reconnect_with_the_same_client_id_gets_no_more_messages(target: Target) -> None:
    await fault(target, ws_deaf_reconnect=True)
    client_id = uuid.uuid4().hex
    async with target.socket(client_id) as socket:
        await target.run_on(socket, inverted("heard"))
    async with target.socket(client_id) as deaf, target.socket() as other:
        assert (await deaf.next())["type"] == "status"
        _, answer = await target.submit(inverted("unheard", color=any_color()), client_id=client_id)
        await target.run_on(other, inverted("next", color=any_color()))
        assert list(await target.history(answer["prompt_id"])) == [answer["prompt_id"]]
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(deaf.next(), 0.05)


async def test_closing_the_old_socket_after_a_reconnect_silences_the_new_one(target: Target) -> None:
    """This is a bug of ComfyUI itself; the test sets no fault."""
    client_id = uuid.uuid4().hex
    async with target.socket(client_id) as old:
        await old.next()
        async with target.socket(client_id) as new, target.socket() as other:
            await new.next()
            await old.websocket.close()
            await target.run_on(other, inverted("unheard", color=any_color()))
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(new.next(), 0.05)


async def test_the_forget_fault_loses_queue_history_and_running_prompt(target: Target) -> None:
    run = await target.run(inverted("forgotten"))
    async with target.socket() as socket:
        _, running = await target.submit(sleeping(), client_id=socket.client_id)
        await socket.until("executing", node="1")
        _, pending = await target.submit(inverted("pending"))
        await fault(target, forget=True)
        with pytest.raises(AssertionError, match="closed"):
            await socket.until_done(running["prompt_id"])
    assert await target.get_json("/queue") == {"queue_running": [], "queue_pending": []}
    for prompt_id in (run.prompt_id, running["prompt_id"], pending["prompt_id"]):
        assert await target.history(prompt_id) == {}
    again = await target.run(inverted("forgotten"))
    assert again.of_type("execution_cached")[0]["nodes"] == []
    assert list(await target.get_json("/history")) == [again.prompt_id]
    assert again.entry["outputs"]["3"]["images"][0]["filename"] == "forgotten_00002_.png"


async def test_an_output_can_be_deleted_before_it_is_viewed(target: Target, engine: Engine) -> None:
    run = await target.run(inverted("gone"))
    (file,) = run.entry["outputs"]["3"]["images"]
    await fault(target, output_deleted={"match": "gone_*", "times": 1})
    async with target.session.get("/view", params=file) as response:
        assert response.status == 404
    assert not (engine.folders.output / file["filename"]).exists()
    again = await target.run(inverted("gone"))
    assert again.entry["outputs"] == run.entry["outputs"]


async def test_a_view_can_be_cut_in_the_middle(target: Target) -> None:
    run = await target.run(writing(size=2_000_000))
    (file,) = run.entry["outputs"]["1"]["images"]
    await fault(target, view_cut={"after_bytes": 1_000_000, "times": 1})
    async with target.session.get("/view", params=file) as response:
        assert (response.status, response.content_length) == (200, 2_000_000)
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.read()
    assert len(await target.view(file)) == 2_000_000


async def test_a_fully_cached_prompt_can_have_empty_outputs(target: Target) -> None:
    await target.run(inverted("empty"))
    await fault(target, cached_empty={"times": 1})
    empty = await target.run(inverted("empty"))
    assert (empty.entry["outputs"], empty.entry["meta"]) == ({}, {})
    assert empty.entry["status"]["status_str"] == "success"
    assert empty.of_type("executed")[0]["output"] is None
    assert (await target.run(inverted("empty"))).entry["outputs"] != {}


@pytest.mark.parametrize(
    ("config", "node_id"),
    [({"class_type": "VAEDecode"}, "8"), ({"node_id": "3"}, "3"), ({"class_type": "VAEDecode", "node_id": "3"}, None)],
)
async def test_a_node_error_strikes_the_node_of_its_class_and_id(
    target: Target, config: dict[str, str], node_id: str | None
) -> None:
    await fault(target, node_error={**config, "exception_type": "ValueError", "message": "told to", "times": 1})
    run = await target.run(txt2img())
    errors = run.of_type("execution_error")
    assert [error["node_id"] for error in errors] == ([node_id] if node_id else [])
    assert all((error["exception_type"], error["exception_message"]) == ("ValueError", "told to\n") for error in errors)


async def test_nodes_run_out_of_memory_until_models_are_unloaded(target: Target) -> None:
    await fault(target, out_of_memory={"class_type": "KSampler"})
    for _ in range(2):
        (error,) = (await target.run(txt2img())).of_type("execution_error")
        assert (error["node_id"], error["exception_type"]) == ("3", "torch.OutOfMemoryError")
        assert "CUDA out of memory" in error["exception_message"]
    async with target.session.post("/free", json={"unload_models": True}):
        pass
    while await target.get_json("/engine/faults"):
        await asyncio.sleep(0)
    assert (await target.run(txt2img())).entry["status"]["status_str"] == "success"


async def test_a_cuda_fault_fails_every_prompt_even_after_memory_is_freed(target: Target) -> None:
    await fault(target, cuda_fault=True)
    for color in (1, 2):
        run = await target.run(inverted("cuda", color=color))
        (error,) = run.of_type("execution_error")
        assert error["exception_message"].startswith("CUDA error: an illegal memory access was encountered")
        await target.session.post("/free", json={"unload_models": True, "free_memory": True})


async def test_a_dead_prompt_thread_accepts_prompts_but_runs_none(target: Target) -> None:
    await fault(target, prompt_thread_dead=True)
    status, answer = await target.submit(inverted("waiting"))
    assert status == 200
    queue = await target.get_json("/queue")
    assert (queue["queue_running"], len(queue["queue_pending"])) == ([], 1)
    async with target.session.delete("/engine/faults"):
        pass
    while not await target.history(answer["prompt_id"]):
        await asyncio.sleep(0)


async def test_faults_can_be_set_before_the_start() -> None:
    async with (
        Engine(EngineOptions(faults={"status": {"status": 418}})) as engine,
        aiohttp.ClientSession(engine.url) as session,
        session.get("/queue") as response,
    ):
        assert response.status == 418


async def test_a_wrong_value_is_put_only_where_its_path_leads(target: Target) -> None:
    await fault(target, wrong_value={"route": "/queue", "path": ["queue_running"], "text": '[NaN, "\\ud800"]'})
    async with target.session.get("/queue") as response:
        assert await response.text() == '{"queue_running": [NaN, "\\ud800"], "queue_pending": []}'
    await fault(target, wrong_value={"route": "/queue", "path": ["nothing", "here"], "value": 1})
    assert await target.get_json("/queue") == {"queue_running": [], "queue_pending": []}
    await fault(target, wrong_value={"route": "/queue", "raw": "<html>"})
    async with target.session.get("/queue") as response:
        assert await response.text() == "<html>"


async def test_a_wrong_websocket_value_changes_only_messages_of_its_type(target: Target) -> None:
    await fault(target, ws_wrong_value={"type": "execution_success", "path": ["data", "odd"], "text": "NaN"})
    run = await target.run(inverted("odd"))
    assert [repr(data["odd"]) for data in run.of_type("execution_success")] == ["nan"]
    assert all("odd" not in data for data in run.of_type("executing"))


async def test_a_prompt_thread_that_dies_leaves_its_prompt_running_for_ever(target: Target) -> None:
    await fault(target, prompt_thread_dies={"class_type": "ImageInvert"})
    _, first = await target.submit(inverted("dies"))
    _, second = await target.submit(inverted("waits", color=1))
    while not (queue := await target.get_json("/queue"))["queue_running"]:
        await asyncio.sleep(0)
    await target.session.post("/interrupt", json={"prompt_id": first["prompt_id"]})
    queue = await target.get_json("/queue")
    assert [item[1] for item in queue["queue_running"]] == [first["prompt_id"]]
    assert [item[1] for item in queue["queue_pending"]] == [second["prompt_id"]]
