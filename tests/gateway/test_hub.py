"""The merged websocket of many servers: each client gets frames as if there were one ComfyUI."""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

from comfyui.engine import Engine, EngineOptions
from comfyui.engine.websocket import FEATURES
from comfyui.events import Preview, parse_text
from tests.support.engine_workflows import txt2img
from tests.support.keys import ALICE, BOB, bearer, table, write_keys
from tests.support.relaying import eventually
from tests.support.running import RunningGateway, engines, invert_workflow, running_gateway, sleep_workflow, until
from tests.support.tabs import ENDED, Tab, in_short

_WAITS_FOREVER = 600.0


@asynccontextmanager
async def _three(**settings: Any) -> AsyncIterator[tuple[RunningGateway, list[Engine]]]:
    async with (
        engines(3, step_seconds=0.002) as servers,
        running_gateway(*(server.url for server in servers), **settings) as gateway,
    ):
        yield gateway, servers


@asynccontextmanager
async def _tab(http: aiohttp.ClientSession, path: str = "/ws?clientId=tab", **options: Any) -> AsyncIterator[Tab]:
    async with http.ws_connect(path, max_msg_size=0, **options) as websocket:
        tab = Tab(websocket)
        await tab.read_until("status")
        yield tab


async def _post(http: aiohttp.ClientSession, workflow: Any, client_id: str | None = "tab", **fields: Any) -> str:
    body = {"prompt": workflow, **fields} | ({} if client_id is None else {"client_id": client_id})
    async with http.post("/prompt", json=body) as response:
        told = await response.json()
        assert response.status == 200, told
        return str(told["prompt_id"])


async def _entry(http: aiohttp.ClientSession, prompt_id: str) -> Any:
    async with http.get(f"/history/{prompt_id}") as response:
        return (await response.json()).get(prompt_id)


async def _cancel(http: aiohttp.ClientSession, prompt_id: str) -> None:
    async with http.post(f"/api/jobs/{prompt_id}/cancel") as response:
        assert response.status == 200


def _sent_pictures(color: int) -> Any:
    workflow = invert_workflow(color, width=64, height=48)
    workflow["5"] = {"class_type": "SaveImageWebsocket", "inputs": {"images": ["2", 0]}}
    return workflow


# Comparison with one ComfyUI


async def _frames_of_comfyui(workflows: list[Any], *, declares: bool) -> list[str]:
    async with Engine(EngineOptions(step_seconds=0.002)) as engine, aiohttp.ClientSession(engine.url) as http:
        return await _frames(http, workflows, declares=declares)


async def _frames(http: aiohttp.ClientSession, workflows: list[Any], *, declares: bool) -> list[str]:
    """Queues prompts one after the other, each after the end of the previous one; returns the received frames."""
    async with _tab(http) as tab:
        if declares:
            await tab.declare()
        for workflow in workflows:
            await tab.ended([await _post(http, workflow)])
        return tab.told_of(*"abcdefgh")


def _failing() -> Any:
    workflow = invert_workflow(4)
    error = {"exception_type": "ValueError", "message": "no such luck", "value": ["2", 0]}
    workflow["6"] = {"class_type": "SimulatedError", "inputs": error}
    workflow["3"]["inputs"]["images"] = ["6", 0]
    return workflow


@pytest.mark.parametrize("declares", [True, False], ids=["client with metadata", "older client"])
@pytest.mark.parametrize("kind", ["one with keys", "three"])
async def test_clients_get_the_same_frames_as_from_one_comfyui(kind: str, declares: bool, tmp_path: Any) -> None:
    workflows = [invert_workflow(1), txt2img(), _sent_pictures(2), _failing(), sleep_workflow(0.01, tag=3)]
    expected = await _frames_of_comfyui(workflows, declares=declares)
    keys: dict[str, Any] = {"keys_file": write_keys(tmp_path / "keys.toml", table("alice", ALICE))}
    async with (
        engines(1 if kind == "one with keys" else 3, step_seconds=0.002) as servers,
        running_gateway(*(server.url for server in servers), **(keys if kind == "one with keys" else {})) as gateway,
        aiohttp.ClientSession(gateway.url, headers=bearer(ALICE)) as http,
    ):
        told = await _frames(http, workflows, declares=declares)
    assert told == expected


async def test_frames_of_consecutive_prompts_equal_those_of_comfyui(tmp_path: Any) -> None:
    """A prompt begins before the journal has stored the end of the previous one."""
    workflows = [sleep_workflow(0.02, tag=tag) for tag in range(5)]

    async def told(http: aiohttp.ClientSession) -> list[str]:
        async with _tab(http) as tab:
            await tab.ended([await _post(http, workflow) for workflow in workflows])
            return tab.told_of(*"abcde")

    async with Engine(EngineOptions()) as engine, aiohttp.ClientSession(engine.url) as http:
        expected = await told(http)
    keys = write_keys(tmp_path / "keys.toml", table("alice", ALICE))
    async with (
        Engine(EngineOptions()) as engine,
        running_gateway(engine.url, keys_file=keys, state_dir=tmp_path / "state") as gateway,
        aiohttp.ClientSession(gateway.url, headers=bearer(ALICE)) as http,
    ):
        assert await told(http) == expected


# The focus


async def test_the_first_prompt_keeps_the_focus_and_the_second_is_sent_as_one_block() -> None:
    async with _three() as (gateway, _), _tab(gateway.http) as tab:
        await tab.declare()
        steps = sleep_workflow(_WAITS_FOREVER, tag=1)
        first = await _post(gateway.http, steps)
        await tab.read_until("executing", first)
        while tab.texts[-1]["data"].get("node") != "4":
            await tab.read_until("executing", first)
        second = await _post(gateway.http, _sent_pictures(2))
        await tab.read_until(ENDED, second)
        assert (await _entry(gateway.http, second))["status"]["completed"]
        await _cancel(gateway.http, first)
        await tab.read_until(ENDED, first)
        short = in_short(tab.frames, [first, second])
        piece = [one for one in short[short.index("execution_start 1") :] if "progress" not in one]
        made = piece[: piece.index("execution_success 1")]
        # ComfyUI chooses which of the two output nodes runs first.
        assert sorted(made) == sorted(
            ["execution_start 1", "execution_cached 1", "executed 1 3", "executing 1 5", "picture"]
        )
        assert made[made.index("executing 1 5") + 1] == "picture"
        assert piece[len(made) :] == [
            *("execution_success 1", f"{ENDED} 1"),
            *("execution_start 0", "executing 0 4"),
            *("execution_interrupted 0", f"{ENDED} 0"),
        ]
        assert not any(one.startswith("progress") and one.endswith("1") for one in short)


async def test_frames_all_gives_every_frame_as_it_arrives() -> None:
    async with _three() as (gateway, _), _tab(gateway.http, "/ws?clientId=tab&frames=all") as tab:
        first = await _post(gateway.http, sleep_workflow(_WAITS_FOREVER, tag=1))
        await tab.read_until("progress_state", first)
        second = await _post(gateway.http, sleep_workflow(0.01, tag=2))
        await tab.read_until("progress", second)
        await tab.read_until(ENDED, second)
        await _cancel(gateway.http, first)
        await tab.read_until(ENDED, first)
        short = in_short(tab.frames, [first, second])
        assert short.count("execution_start 0") == 1
        assert {"executing 1 1", "executing 1 4", "progress 1", "executed 1 3"} <= set(short)


# Ends


async def test_every_end_is_sent_after_the_history_has_it() -> None:
    """This includes a prompt that was cancelled while it waited, and one that a server refused later."""
    async with _three() as (gateway, servers), _tab(gateway.http) as tab:
        busy = [await _post(gateway.http, sleep_workflow(_WAITS_FOREVER, tag=tag), None) for tag in range(6)]
        waiting = await _post(gateway.http, invert_workflow(1))
        workflow = {**invert_workflow(2), "1": {"class_type": "LoadImage", "inputs": {"image": "sub/none.png"}}}
        refused = await _post(gateway.http, workflow)
        async with gateway.http.post("/queue", json={"delete": [waiting]}) as response:
            assert response.status == 200
        await tab.read_until(ENDED, waiting)
        assert (await _entry(gateway.http, waiting))["status"]["messages"][-1][0] == "execution_interrupted"
        assert in_short(tab.frames, [waiting]) == [f"{ENDED} 0"]
        for prompt_id in busy:
            await _cancel(gateway.http, prompt_id)
        await tab.ended([refused])
        entry = await _entry(gateway.http, refused)
        assert entry["status"]["status_str"] == "error"
        told = [one for one in tab.texts if one["data"].get("prompt_id") == refused]
        assert [one["type"] for one in told][-2:] == ["execution_error", "executing"]
        assert "sub/none.png" in json.dumps(told[-2])
        assert len(servers) == 3


async def test_a_failure_is_sent_once_and_shows_a_user_no_paths(tmp_path: Any) -> None:
    keys = write_keys(tmp_path / "keys.toml", table("alice", ALICE))
    faults = {"node_error": {"message": "no such luck", "node_id": "2"}}
    async with (
        Engine(EngineOptions(faults=faults)) as engine,
        running_gateway(engine.url, keys_file=keys) as gateway,
        aiohttp.ClientSession(gateway.url, headers=bearer(ALICE)) as http,
        _tab(http) as tab,
    ):
        prompt_id = await _post(http, invert_workflow(1))
        await tab.read_until(ENDED, prompt_id)
        (error,) = [one["data"] for one in tab.texts if one["type"] == "execution_error"]
        assert error["exception_message"].strip() == "no such luck"
        assert error["traceback"]
        assert "/" not in json.dumps(error["traceback"])


async def test_a_retried_prompt_has_one_end() -> None:
    """The first try ran out of memory."""
    faults = {"out_of_memory": {"times": 1}}
    async with (
        Engine(EngineOptions(faults=faults)) as engine,
        running_gateway(engine.url, queue="gateway", oom_retries=1) as gateway,
        _tab(gateway.http) as tab,
    ):
        prompt_id = await _post(gateway.http, invert_workflow(1))
        await tab.read_until(ENDED, prompt_id)
        short = in_short(tab.frames, [prompt_id])
        assert short.count("execution_start 0") == 2
        assert [one for one in short if one in {"execution_error 0", "execution_success 0"}] == ["execution_success 0"]


# Recipients


async def test_a_socket_without_a_client_id_gets_the_prompts_with_its_sid() -> None:
    async with _three() as (gateway, _), _tab(gateway.http, "/ws") as tab, _tab(gateway.http, "/api/ws") as other:
        sid = tab.texts[0]["data"]["sid"]
        assert sid
        assert sid != other.texts[0]["data"]["sid"]
        prompt_id = await _post(gateway.http, invert_workflow(1), sid)
        foreign = await _post(gateway.http, invert_workflow(2), None)
        await tab.read_until(ENDED, prompt_id)
        await until(lambda: _entry(gateway.http, foreign), bool)
        assert tab.prompts == {prompt_id}
        # No socket gets frames of a prompt without a client id; the others only get the new queue length.
        await other.read_until("status")
        assert other.prompts == set()


async def test_two_sockets_with_one_client_id_both_get_the_frames() -> None:
    async with _three() as (gateway, _), _tab(gateway.http) as one, _tab(gateway.http) as two:
        ids = [await _post(gateway.http, invert_workflow(color)) for color in range(4)]
        await one.ended(ids)
        await two.ended(ids)
        assert one.told_of(*"abcd") == two.told_of(*"abcd")


async def test_persons_behind_one_key_are_separate_clients(tmp_path: Any) -> None:
    keys = write_keys(tmp_path / "keys.toml", table("app", ALICE, user_header="X-Person") + table("bob", BOB))
    async with (
        Engine(EngineOptions()) as engine,
        running_gateway(engine.url, keys_file=keys) as gateway,
        aiohttp.ClientSession(gateway.url, headers={**bearer(ALICE), "X-Person": "ann"}) as ann,
        aiohttp.ClientSession(gateway.url, headers={**bearer(ALICE), "X-Person": "ben"}) as ben,
        aiohttp.ClientSession(gateway.url, headers=bearer(ALICE)) as app,
        aiohttp.ClientSession(gateway.url, headers=bearer(BOB)) as bob,
        _tab(ann) as of_ann,
        _tab(ben) as of_ben,
        _tab(app) as of_app,
        _tab(bob) as of_bob,
    ):
        first, second = await _post(ann, invert_workflow(1)), await _post(ben, invert_workflow(2))
        await of_ann.ended([first])
        await of_ben.ended([second])
        await of_app.ended([first, second])
        third = await _post(bob, invert_workflow(3))
        await of_bob.ended([third])
        assert (of_ann.prompts, of_ben.prompts, of_bob.prompts) == ({first}, {second}, {third})
        assert of_app.prompts == {first, second}


# Late sockets


async def test_a_late_socket_gets_the_current_state_of_a_running_prompt() -> None:
    async with _three() as (gateway, _):
        async with _tab(gateway.http) as tab:
            prompt_id = await _post(gateway.http, sleep_workflow(_WAITS_FOREVER, tag=1))
            while tab.texts[-1]["data"].get("node") != "4":
                await tab.read_until("executing", prompt_id)
        async with _tab(gateway.http) as again:
            await again.read_until("progress_state", prompt_id)
            assert in_short(again.frames, [prompt_id]) == ["execution_start 0", "executing 0 4", "progress_state 0"]
            await _cancel(gateway.http, prompt_id)
            await again.read_until(ENDED, prompt_id)


async def test_a_late_socket_gets_the_missed_outputs_at_the_end() -> None:
    workflow = sleep_workflow(_WAITS_FOREVER, tag=1)
    workflow["7"] = {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "early"}}
    workflow["4"]["inputs"]["seconds"] = 0.5
    async with _three() as (gateway, _):
        async with _tab(gateway.http) as tab:
            prompt_id = await _post(gateway.http, workflow)
            while tab.texts[-1]["data"].get("node") != "4":
                await tab.read_until("executing", prompt_id)
        async with _tab(gateway.http) as again:
            await again.read_until(ENDED, prompt_id)
            executed = [one["data"]["node"] for one in again.texts if one["type"] == "executed"]
            assert sorted(executed) == ["3", "7"]
            assert in_short(again.frames, [prompt_id])[-2:] == ["execution_success 0", f"{ENDED} 0"]


# Servers that die


async def test_the_socket_stays_open_when_a_server_dies_and_its_prompt_moves() -> None:
    async with _three() as (gateway, servers), _tab(gateway.http) as tab:
        prompt_id = await _post(gateway.http, sleep_workflow(1.0, tag=1))
        await tab.read_until("execution_start", prompt_id)
        (running,) = [one for one in gateway.handler.pool.backends if one.watcher.running is not None]
        (server,) = [one for one in servers if one.url.endswith(running.name)]
        await server.__aexit__(None, None, None)
        await tab.read_until(ENDED, prompt_id)
        assert (await _entry(gateway.http, prompt_id))["status"]["completed"]
        short = in_short(tab.frames, [prompt_id])
        assert short[-2:] == ["execution_success 0", f"{ENDED} 0"]
        assert short.count(f"{ENDED} 0") == 1


async def test_the_end_of_a_prompt_is_sent_although_the_server_socket_broke() -> None:
    async with _three() as (gateway, servers), _tab(gateway.http) as tab:
        prompt_id = await _post(gateway.http, sleep_workflow(0.5, tag=1))
        await tab.read_until("execution_start", prompt_id)
        for server in servers:
            async with aiohttp.ClientSession(server.url) as http:
                await http.post("/engine/faults", json={"ws_drop": {"abrupt": True}})
        await tab.read_until(ENDED, prompt_id)
        assert [one["data"]["node"] for one in tab.texts if one["type"] == "executed"] == ["3"]


# Status and features


async def test_status_counts_the_whole_queue_at_most_five_times_a_second() -> None:
    async with _three() as (gateway, _), _tab(gateway.http) as tab:
        loop = asyncio.get_running_loop()
        began = loop.time()
        ids = [await _post(gateway.http, invert_workflow(color), None) for color in range(20)]
        for prompt_id in ids:
            await until(lambda one=prompt_id: _entry(gateway.http, one), bool)  # type: ignore[misc]
        counts: list[int] = []
        async with asyncio.timeout(30):
            while not counts or counts[-1] > 0:
                data = await tab.read_until("status")
                counts.append(data["status"]["exec_info"]["queue_remaining"])
        assert len(counts) <= 5 * (loop.time() - began) + 2
        assert max(counts) > 0


async def test_features_are_those_that_all_servers_have() -> None:
    async with _three() as (gateway, servers):
        async with aiohttp.ClientSession(servers[1].url) as http:
            wrong = {"type": "feature_flags", "path": ["data", "supports_preview_metadata"], "value": False}
            await http.post("/engine/faults", json={"ws_wrong_value": wrong})
            await http.post("/engine/faults", json={"ws_drop": {}})
        watcher = gateway.handler.pool.backends[1].watcher
        await eventually(lambda: watcher.features not in (None, FEATURES), within_s=30)
        async with _tab(gateway.http) as tab:
            features = await tab.declare()
            assert features["supports_preview_metadata"] is False
            assert features["max_upload_size"] == FEATURES["max_upload_size"]


# Slow readers


async def test_a_client_that_reads_nothing_is_disconnected_and_slows_no_other() -> None:
    async with (
        _three(client_idle_seconds=1.0) as (gateway, _),
        _tab(gateway.http) as slow,
        _tab(gateway.http) as quick,
    ):
        connection = slow.websocket._response.connection
        assert connection is not None
        assert isinstance(connection.transport, asyncio.Transport)
        connection.transport.pause_reading()
        prompt_id = await _post(gateway.http, sleep_workflow(_WAITS_FOREVER, tag=1))
        await quick.read_until("execution_start", prompt_id)
        (server,) = [one for one in gateway.handler.pool.backends if one.watcher.running is not None]
        reading = asyncio.create_task(quick.read_until(ENDED, prompt_id))
        picture = struct.pack(">II", 1, 1) + bytes(500_000)
        for _ in range(40):
            for listener in gateway.handler.pool.frames:
                # This preview comes from an output node, so it is a result and must not be skipped.
                listener.heard(server.name, prompt_id, Preview("image/jpeg", b"", prompt_id, "3"), picture)
        rejected = gateway.app.running.metrics.rejected.labels("slow_client")
        await eventually(lambda: rejected._value.get() == 1, within_s=30)
        await _cancel(gateway.http, prompt_id)
        await reading
        assert len(quick.pictures) == 40
        connection.transport.resume_reading()
        async with asyncio.timeout(30):
            while (message := await slow.websocket.receive()).type is not aiohttp.WSMsgType.CLOSE:
                pass
        assert message.data == 1013


async def test_a_stopping_gateway_closes_its_sockets() -> None:
    async with engines(3) as servers, aiohttp.ClientSession() as http:
        async with running_gateway(*(server.url for server in servers)) as gateway:
            websocket = await http.ws_connect(f"{gateway.url}/ws?clientId=tab")
            await Tab(websocket).read_until("status")
            last = asyncio.create_task(websocket.receive())
            gauge = gateway.app.running.metrics.relayed_websockets._value
            assert gauge.get() == 1
        async with asyncio.timeout(30):
            message = await last
        assert (message.type, message.data) == (aiohttp.WSMsgType.CLOSE, 1012)
        assert gauge.get() == 0


@pytest.mark.parametrize(("mode", "deny", "status"), [("off", (), 404), ("full", ("/ws",), 403)])
async def test_the_websocket_is_refused_when_the_relay_is_off_or_denies_it(
    mode: str, deny: tuple[str, ...], status: int
) -> None:
    async with _three(proxy_mode=mode, proxy_deny=deny) as (gateway, _):
        for path in ("/ws", "/api/ws?clientId=tab"):
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await gateway.http.ws_connect(path)
            assert refused.value.status == status


async def test_a_lost_prompt_and_an_expired_one_end_with_an_error() -> None:
    async with (
        engines(2) as servers,
        running_gateway(*(server.url for server in servers), lost_prompt_retries=0, max_queued_seconds=2.0) as gateway,
        _tab(gateway.http) as tab,
    ):
        busy = [await _post(gateway.http, sleep_workflow(_WAITS_FOREVER, tag=tag)) for tag in range(4)]
        late = await _post(gateway.http, sleep_workflow(_WAITS_FOREVER, tag=9))
        await tab.read_until(ENDED, late)
        assert "MAX_QUEUED_SECONDS" in json.dumps(await _entry(gateway.http, late))
        (running,) = [one for one in gateway.handler.pool.backends if one.watcher.running is not None][:1]
        lost = running.watcher.running
        assert lost is not None
        (server,) = [one for one in servers if one.url.endswith(running.name)]
        await server.__aexit__(None, None, None)
        await tab.read_until(ENDED, lost.prompt_id)
        assert (await _entry(gateway.http, lost.prompt_id))["status"]["status_str"] == "error"
        told = [one["type"] for one in tab.texts if one["data"].get("prompt_id") in {late, lost.prompt_id}]
        assert told.count("execution_error") == 2
        assert lost.prompt_id in busy


async def test_the_socket_of_a_client_gets_frames_of_its_sync_call() -> None:
    async with _three() as (gateway, _), _tab(gateway.http) as tab:
        status, answer = await gateway.prompt_sync(invert_workflow(1), client_id="tab")
        assert status == 200
        await tab.read_until(ENDED, answer["prompt_id"])
        assert await _entry(gateway.http, answer["prompt_id"])
        executed = [one["data"]["output"] for one in tab.texts if one["type"] == "executed"]
        assert executed[0]["images"][0]["subfolder"].startswith(answer["prompt_id"])


async def test_custom_node_frames_go_to_the_client_of_the_prompt_or_to_all() -> None:
    async with _three() as (gateway, _), _tab(gateway.http) as tab, _tab(gateway.http, "/ws?clientId=other") as other:
        prompt_id = await _post(gateway.http, sleep_workflow(_WAITS_FOREVER, tag=1))
        await tab.read_until("progress_state", prompt_id)
        (home, *_) = gateway.handler.pool.backends
        (running,) = [one for one in gateway.handler.pool.backends if one.watcher.running is not None]
        frame = b'{"type": "my-node", "data": {"ask": 1}}'
        for server, of in ((running.name, prompt_id), (home.name, None)):
            for listener in gateway.handler.pool.frames:
                listener.heard(server, of, parse_text(frame), frame)
        assert await tab.read_until("my-node") == {"ask": 1}
        assert await tab.read_until("my-node") == {"ask": 1}
        assert await other.read_until("my-node") == {"ask": 1}
        await _cancel(gateway.http, prompt_id)
        await tab.read_until(ENDED, prompt_id)
        assert [one["type"] for one in other.texts].count("my-node") == 1
