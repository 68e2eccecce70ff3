"""ComfyUI's own `POST /prompt` if prompts wait in the gateway: its answers, the journal, and the order."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiohttp
import pytest

from comfyui.engine import NEW_VERSION, OLD_VERSION, Engine, EngineOptions
from comfyui.jobs.journal.records import JobFilter, JobRecord, State
from tests.support.calls import Calls
from tests.support.jobs import fetch as result_of
from tests.support.keys import ALICE, BOB, bearer, table, write_keys
from tests.support.running import (
    RunningGateway,
    engines,
    executions,
    invert_workflow,
    prompts_are_queued,
    queue_of,
    requests,
    running_gateway,
    sleep_workflow,
    until,
)

_IMAGE = {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 0}}
_SAVE = {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "x"}}
_NO_SUCH_NODE = {"1": _IMAGE, "3": _SAVE, "7": {"class_type": "NoSuchNode", "inputs": {}}}


def _image(**changes: Any) -> dict[str, Any]:
    inputs = {**_IMAGE["inputs"], **changes}  # type: ignore[dict-item]
    return {"1": {"class_type": "EmptyImage", "inputs": {k: v for k, v in inputs.items() if v is not None}}, "3": _SAVE}


_SCALE = {"image": ["1", 0], "upscale_method": "area", "width": 8, "height": 8, "crop": "left"}
_PARTLY = {"1": _IMAGE, "3": _SAVE, "4": {"class_type": "SaveImage", "inputs": {"images": ["1", 0]}}}
_BODIES = {
    "no body": b"",
    "no JSON": b"no json",
    "an empty object": {},
    "no prompt": {"workflow": {}},
    "a list": [],
    "a prompt that is null": {"prompt": None},
    "a prompt that is a text": {"prompt": "text"},
    "a prompt that is a number": {"prompt": 7},
    "a node that is a number": {"prompt": {"1": 5}},
    "a node that is a list": {"prompt": {"1": []}},
    "an empty prompt": {"prompt": {}},
    "an empty list": {"prompt": []},
    "no output": {"prompt": {"1": _IMAGE}},
    "no such class": {"prompt": _NO_SUCH_NODE},
    "no class": {"prompt": {"1": _IMAGE, "7": {"inputs": {}}}},
    "a class that is a list": {"prompt": {"1": {"class_type": ["x"], "inputs": {}}}},
    "an id that is no UUID": {"prompt": {"1": _IMAGE, "3": _SAVE}, "prompt_id": "not-a-uuid"},
    "an id in capitals": {"prompt": {"1": _IMAGE, "3": _SAVE}, "prompt_id": "AABF3D78-90F5-4DE0-A226-DF025FA8AE28"},
    "an input is missing": {"prompt": _image(width=None)},
    "too small": {"prompt": _image(width=0)},
    "no number": {"prompt": _image(width="wide")},
    "a bad link": {"prompt": _image(width=["1", 0, 0])},
    "not in the list": {"prompt": {"1": _IMAGE, "3": {"class_type": "ImageScale", "inputs": _SCALE}}},
    "not in the list, with an output": {
        "prompt": {
            "1": _IMAGE,
            "2": {"class_type": "ImageScale", "inputs": _SCALE},
            "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "x"}},
        }
    },
    "one of two outputs": {"prompt": _PARTLY},
    "a target that is no output": {"prompt": _PARTLY, "partial_execution_targets": ["1"]},
    "good": {"prompt": {"1": _IMAGE, "3": _SAVE}},
    "good, with a float as its number": {"prompt": {"1": _IMAGE, "3": _SAVE}, "number": 12.5},
    "good, with nulls": {"prompt": {"1": _IMAGE, "3": _SAVE}, "prompt_id": None, "extra_data": {}, "client_id": "c"},
}


@asynccontextmanager
async def three(version: str = NEW_VERSION, **settings: Any) -> AsyncIterator[tuple[RunningGateway, list[Engine]]]:
    async with (
        engines(3, comfyui_version=version) as servers,
        running_gateway(*(server.url for server in servers), **settings) as gateway,
    ):
        yield gateway, servers


async def _posted(http: aiohttp.ClientSession, body: Any, headers: dict[str, str] | None = None) -> tuple[int, Any]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Content-Type": "application/json", **(headers or {})}
    async with http.post("/prompt", data=data, headers=headers) as response:
        text = await response.text()
        return response.status, json.loads(text) if response.content_type == "application/json" else text


async def _post(http: aiohttp.ClientSession, workflow: Any, **fields: Any) -> Any:
    status, told = await _posted(http, {"prompt": workflow, **fields})
    assert status == 200, told
    return told


def _normal(answer: Any) -> Any:
    """The answer without ids, numbers, tracebacks, and the list of what each server lacks."""
    if isinstance(answer, dict):
        hidden = ("traceback", "prompt_id", "servers") + (("number",) if "prompt_id" in answer else ())
        return {name: _normal(value) for name, value in answer.items() if name not in hidden}
    return [_normal(one) for one in answer] if isinstance(answer, list | tuple) else answer


async def _jobs(gateway: RunningGateway) -> list[JobRecord]:
    return list((await gateway.handler.journal.page(JobFilter(), 100)).records)


async def _record(gateway: RunningGateway, prompt_id: str, state: State) -> JobRecord:
    async def record() -> JobRecord | None:
        return await gateway.handler.journal.get(prompt_id)

    found = await until(record, lambda found: found is not None and found.state is state)
    assert found is not None
    return found


async def _fill_all(gateway: RunningGateway, servers: list[Engine]) -> list[str]:
    """Takes both places of each server with long prompts, and returns their ids."""
    ids = [
        (await _post(gateway.http, sleep_workflow(600, tag=900 + tag)))["prompt_id"] for tag in range(2 * len(servers))
    ]

    async def queues() -> list[tuple[list[str], list[str]]]:
        return [await queue_of(server) for server in servers]

    await until(queues, lambda queues: all(len(running) == len(pending) == 1 for running, pending in queues))
    return ids


@pytest.mark.parametrize("version", [OLD_VERSION, NEW_VERSION])
async def test_answers_match_comfyuis_with_keys_and_with_three_servers(version: str, keys_path: Path) -> None:
    async with (
        Engine(EngineOptions(comfyui_version=version)) as alone,
        aiohttp.ClientSession(alone.url) as direct,
        three(version) as (gateway, _),
        running_gateway(alone.url, keys_file=keys_path) as with_keys,
    ):
        calls = Calls(with_keys)
        for name, body in _BODIES.items():
            if version == OLD_VERSION and "an id" in name:
                continue  # it accepts any id
            expected = _normal(await _posted(direct, body))
            assert _normal(await _posted(gateway.http, body)) == expected, name
            assert _normal(await _posted(calls.gateway.http, body, bearer(ALICE))) == expected, name
        for running in (gateway, calls.gateway):
            assert {record.face for record in await _jobs(running)} == {"prompt"}
            # Refused prompts are no jobs.
            assert len(await _jobs(running)) == 4


@pytest.mark.parametrize(
    "prompt",
    [{"1": 5, "nodes": []}, {"1": {"class_type": "EmptyImage", "inputs": []}}],
    ids=["a node that is a number", "inputs that are a list"],
)
async def test_a_prompt_that_would_kill_comfyuis_worker_is_refused_in_its_error_form(prompt: Any) -> None:
    async with three() as (gateway, servers):
        status, told = await _posted(gateway.http, {"prompt": prompt})
        assert (status, told.keys()) == (400, {"error", "node_errors"})
        assert told["error"].keys() == {"type", "message", "details", "extra_info"}
        assert all(server.stats.show()["requests"].get("POST /prompt", 0) == 0 for server in servers)


async def test_a_prompt_is_in_the_journal_when_it_is_answered(tmp_path: Path) -> None:
    async with three(state_dir=tmp_path) as (gateway, servers):
        told = await _post(gateway.http, invert_workflow(), client_id="tab", extra_data={"a": 1})
        record = await gateway.handler.journal.get(told["prompt_id"])
        assert record is not None
        assert (record.number, record.kind, record.client_id) == (told["number"], "async", "tab")
        assert record.server is not None
        body = json.loads(await gateway.handler.journal.body_of(told["prompt_id"]) or b"{}")
        assert body["extra_data"] == {"a": 1}
        assert (await _post(gateway.http, invert_workflow(1)))["number"] > told["number"]
        await _record(gateway, told["prompt_id"], State.SUCCEEDED)
        assert sum(executions(server).get(told["prompt_id"], 0) for server in servers) == 1


async def test_prompts_are_spread_over_all_servers() -> None:
    async with three() as (gateway, servers):
        ids = [(await _post(gateway.http, sleep_workflow(600, tag=tag)))["prompt_id"] for tag in range(6)]
        for server in servers:
            await prompts_are_queued(server, 2)
        for server in servers:
            server.wake(*ids)
        for prompt_id in ids:
            assert (await result_of(gateway.http, prompt_id))[0] == 200
        # A waiting prompt may have moved to a server that was idle sooner.
        assert sum((Counter(executions(server)) for server in servers), Counter()) == Counter(ids)


async def test_the_id_of_a_refused_prompt_can_be_used_again() -> None:
    async with three() as (gateway, _):
        prompt_id = str(uuid4())
        status, told = await _posted(gateway.http, {"prompt": _NO_SUCH_NODE, "prompt_id": prompt_id})
        assert (status, told["error"]["type"]) == (400, "missing_node_type")
        assert await gateway.handler.journal.get(prompt_id) is None
        assert (await _post(gateway.http, invert_workflow(), prompt_id=prompt_id))["prompt_id"] == prompt_id
        assert (await result_of(gateway.http, prompt_id))[0] == 200


# No server has a free place


async def test_while_all_servers_are_busy_only_certainly_invalid_prompts_are_refused() -> None:
    async with three() as (gateway, servers):
        busy = await _fill_all(gateway, servers)
        for body, kind in (
            (_NO_SUCH_NODE, "missing_node_type"),
            ({"1": _IMAGE}, "prompt_no_outputs"),
            (_image(width=0), "prompt_outputs_failed_validation"),
        ):
            status, told = await _posted(gateway.http, {"prompt": body})
            assert (status, told["error"]["type"]) == (400, kind)
        assert told["node_errors"]["1"]["errors"][0]["type"] == "value_smaller_than_min"
        assert (told["node_errors"]["1"]["dependent_outputs"], told["node_errors"]["1"]["class_type"]) == (
            ["3"],
            "EmptyImage",
        )
        waiting = await _post(gateway.http, invert_workflow(5))
        assert waiting["node_errors"] == {}
        assert {record.prompt_id for record in await _jobs(gateway)} == {*busy, waiting["prompt_id"]}
        record = await _record(gateway, waiting["prompt_id"], State.QUEUED)
        assert (record.server, record.shown_number) == (None, waiting["number"])
        for prompt_id in busy:
            async with gateway.http.delete(f"/prompt_sync/{prompt_id}") as response:
                assert response.status == 200
        assert (await result_of(gateway.http, waiting["prompt_id"]))[0] == 200


async def test_the_error_of_a_prompt_that_no_server_can_run_names_what_each_lacks() -> None:
    async with three() as (gateway, servers):
        for attempt in range(2):
            status, told = await _posted(gateway.http, {"prompt": _NO_SUCH_NODE})
            assert status == 400
            lacks = told["error"]["extra_info"]["servers"]
            assert lacks == {server.url.removeprefix("http://"): ["the node class NoSuchNode"] for server in servers}, (
                attempt
            )
            await _fill_all(gateway, servers) if attempt == 0 else None


async def test_a_prompt_that_a_server_refuses_later_fails_with_its_node_errors() -> None:
    """Only ComfyUI can check the name of this file."""
    workflow = {"1": {"class_type": "LoadImage", "inputs": {"image": "sub/none.png"}}, "3": _SAVE}
    async with three() as (gateway, servers):
        busy = await _fill_all(gateway, servers)
        told = await _post(gateway.http, workflow)
        async with gateway.http.delete(f"/prompt_sync/{busy[0]}") as response:
            assert response.status == 200
        record = await _record(gateway, told["prompt_id"], State.FAILED)
        assert record.error is not None
        assert "sub/none.png" in str(record.error["node_errors"]["1"])


async def test_prompts_are_accepted_and_wait_while_no_server_is_up(tmp_path: Path) -> None:
    options = EngineOptions()
    async with Engine(options) as first:
        port = int(first.url.rpartition(":")[2])
    async with running_gateway(f"http://127.0.0.1:{port}", queue="gateway", ready=False, state_dir=tmp_path) as gateway:
        told = await _post(gateway.http, invert_workflow())
        status, answer = await _posted(gateway.http, {})
        assert (status, answer.keys()) == (400, {"error", "node_errors"})
        async with gateway.http.get("/health/ready") as response:
            assert response.status == 503
        async with Engine(EngineOptions(port=port)) as engine:
            assert (await result_of(gateway.http, told["prompt_id"]))[0] == 200
            assert executions(engine) == {told["prompt_id"]: 1}


# The same id


async def test_a_repeated_prompt_gets_the_same_answer_and_runs_once() -> None:
    async with three() as (gateway, servers):
        prompt_id = str(uuid4())
        first = await _post(gateway.http, _PARTLY, prompt_id=prompt_id)
        assert list(first["node_errors"]) == ["4"]
        # The repeated prompt may have another client id and another token.
        again = await _post(
            gateway.http, _PARTLY, prompt_id=prompt_id, client_id="other", extra_data={"api_key_comfy_org": "x"}
        )
        assert (await result_of(gateway.http, prompt_id))[0] == 200
        later = await _post(gateway.http, _PARTLY, prompt_id=prompt_id)
        assert (again["number"], later["number"]) == (first["number"], first["number"])
        assert list(later["node_errors"]) == ["4"]
        assert sum(executions(server).get(prompt_id, 0) for server in servers) == 1
        status, told = await _posted(gateway.http, {"prompt": invert_workflow(), "prompt_id": prompt_id})
        assert (status, told["error"]["type"], told["node_errors"]) == (409, "conflict", {})


async def test_the_same_prompt_sent_many_times_at_once_runs_once() -> None:
    async with three() as (gateway, servers):
        prompt_id, workflow = str(uuid4()), invert_workflow()
        told = await asyncio.gather(*(_post(gateway.http, workflow, prompt_id=prompt_id) for _ in range(8)))
        assert len({answer["number"] for answer in told}) == 1
        assert (await result_of(gateway.http, prompt_id))[0] == 200
        assert sum(executions(server).get(prompt_id, 0) for server in servers) == 1


async def test_post_prompt_refuses_an_id_of_another_key_without_naming_its_owner(calls: Calls) -> None:
    prompt_id = str(uuid4())
    body = {"prompt": invert_workflow(), "prompt_id": prompt_id}
    assert (await calls.call(ALICE, "POST", "/prompt", body))[0] == 200
    status, told = await calls.call(BOB, "POST", "/prompt", body)
    assert (status, told["error"]["type"]) == (409, "conflict")
    assert "alice" not in str(told).lower()


async def test_a_cancelled_prompt_runs_again_when_it_is_sent_again() -> None:
    async with three() as (gateway, servers):
        prompt_id = str(uuid4())
        await gateway.handler.queue.pause(True)
        await _post(gateway.http, invert_workflow(), prompt_id=prompt_id)
        async with gateway.http.delete(f"/prompt_sync/{prompt_id}") as response:
            assert response.status == 200
        await gateway.handler.queue.pause(False)
        await _post(gateway.http, invert_workflow(), prompt_id=prompt_id)
        assert (await result_of(gateway.http, prompt_id))[0] == 200
        assert sum(executions(server).get(prompt_id, 0) for server in servers) == 1


# Order


async def test_front_and_number_order_prompts_as_in_comfyui_even_after_a_restart(
    engine: Engine, tmp_path: Path
) -> None:
    async with running_gateway(engine.url, queue="gateway", state_dir=tmp_path) as gateway:
        await gateway.handler.queue.pause(True)
        orders: tuple[dict[str, Any], ...] = ({}, {"front": True}, {"front": True}, {"number": 0.5})
        plain, front, last_front, given = [
            await _post(gateway.http, invert_workflow(tag), **fields) for tag, fields in enumerate(orders)
        ]
        assert plain["number"] > 0
        assert front["number"] == -(plain["number"] + 1)
        assert given["number"] == 0.5
    async with running_gateway(engine.url, queue="gateway", state_dir=tmp_path) as gateway:
        await gateway.handler.queue.pause(False)
        expected = [last_front["prompt_id"], front["prompt_id"], given["prompt_id"], plain["prompt_id"]]
        for prompt_id in expected:
            assert (await result_of(gateway.http, prompt_id))[0] == 200
        assert list(executions(engine)) == expected


async def test_front_and_number_are_not_passed_on_to_comfyui(engine: Engine) -> None:
    async with running_gateway(engine.url, queue="gateway") as gateway:
        first = await _post(gateway.http, sleep_workflow(600))
        await until(lambda: queue_of(engine), lambda queue: queue[0] == [first["prompt_id"]])
        second = await _post(gateway.http, invert_workflow(1), front=True)
        assert second["number"] < 0
        async with aiohttp.ClientSession(engine.url) as http, http.get("/queue") as response:
            (item,) = (await response.json())["queue_pending"]
        assert (item[1], item[0] > 0) == (second["prompt_id"], True)


# Websockets


@asynccontextmanager
async def _client_session(kind: str, folder: Path) -> AsyncIterator[aiohttp.ClientSession]:
    """A client's session with a gateway: with the key of a user and one server, or with three servers."""
    keys = write_keys(folder / "keys.toml", table("alice", ALICE))
    settings: dict[str, Any] = {"keys_file": keys} if kind == "a user" else {}
    async with (
        engines(1 if kind == "a user" else 3) as servers,
        running_gateway(*(server.url for server in servers), **settings) as gateway,
        aiohttp.ClientSession(gateway.url, headers=bearer(ALICE) if settings else None) as http,
    ):
        yield http


async def _json(http: aiohttp.ClientSession, path: str) -> Any:
    async with http.get(path) as response:
        return await response.json()


@pytest.mark.parametrize("kind", ["a user", "three servers"])
async def test_a_prompt_has_left_the_queue_for_the_history_when_its_end_is_sent(kind: str, tmp_path: Path) -> None:
    """ComfyUI's clients wait for this frame, and then read the history once."""
    async with (
        _client_session(kind, tmp_path) as http,
        http.ws_connect("/ws?clientId=tab") as tab,
        http.ws_connect("/ws") as other,
    ):
        for tag in range(8):
            prompt_id = (await _post(http, invert_workflow(tag), client_id="tab"))["prompt_id"]
            async with asyncio.timeout(30):
                while True:
                    told = json.loads((await tab.receive()).data)
                    if told["type"] == "executing" and told["data"]["node"] is None:
                        break
                    if told["type"] == "execution_start":
                        running = [item[1] for item in (await _json(http, "/queue"))["queue_running"]]
                        assert running in ([prompt_id], [])
            assert told["data"]["prompt_id"] == prompt_id
            entry = (await _json(http, f"/history/{prompt_id}"))[prompt_id]
            assert entry["status"]["completed"]
            assert list(await _json(http, "/history?max_items=1")) == [prompt_id]
            assert (await _json(http, "/queue")) == {"queue_running": [], "queue_pending": []}
            # Another tab gets the new length of the queue, which is 0.
            async with asyncio.timeout(30):
                while True:
                    told = json.loads((await other.receive()).data)
                    if told["type"] == "status" and told["data"]["status"]["exec_info"]["queue_remaining"] == 0:
                        break


async def test_two_users_on_three_servers_get_only_the_frames_of_their_own_prompts(tmp_path: Path) -> None:
    keys = write_keys(tmp_path / "keys.toml", table("alice", ALICE) + table("bob", BOB))
    async with three(keys_file=keys) as (gateway, servers):
        calls, connect = Calls(gateway), gateway.http.ws_connect
        async with (
            connect("/ws?clientId=tab", headers=bearer(ALICE)) as a,
            connect("/ws?clientId=tab", headers=bearer(BOB)) as b,
        ):
            ids: dict[str, list[str]] = {ALICE: [], BOB: []}
            for tag in range(3):
                for number, key in enumerate((ALICE, BOB)):
                    body = {"prompt": invert_workflow(10 * number + tag), "client_id": "tab"}
                    status, told = await calls.call(key, "POST", "/prompt", body)
                    assert status == 200, told
                    ids[key].append(told["prompt_id"])
            for key, tab in ((ALICE, a), (BOB, b)):
                ended: list[str] = []
                seen: set[str] = set()
                async with asyncio.timeout(30):
                    while len(ended) < 3:
                        told = json.loads((await tab.receive()).data)
                        seen |= {told["data"]["prompt_id"]} if "prompt_id" in told["data"] else set()
                        if told["type"] == "executing" and told["data"]["node"] is None:
                            ended.append(told["data"]["prompt_id"])
                assert (sorted(ended), seen) == (sorted(ids[key]), set(ids[key]))
                for prompt_id in ended:
                    assert prompt_id in (await calls.call(key, "GET", f"/history/{prompt_id}"))[1]
        assert sum(len(executions(server)) for server in servers) == 6


# Limits


async def test_limits_are_reported_by_name_in_comfyuis_error_form(engine: Engine, tmp_path: Path) -> None:
    keys = write_keys(
        tmp_path / "keys.toml",
        table("alice", ALICE, max_queued=1) + table("bob", BOB, per_minute=1),
    )
    async with running_gateway(engine.url, keys_file=keys, max_queued_jobs=2) as gateway:
        calls = Calls(gateway)
        await gateway.handler.queue.pause(True)

        async def refused(key: str, limit: str) -> None:
            async with gateway.http.post(
                "/api/prompt", json={"prompt": invert_workflow()}, headers=bearer(key)
            ) as response:
                told = await response.json()
                assert (response.status, told["error"]["type"], told["node_errors"]) == (429, "overloaded", {})
                assert limit in told["error"]["message"]
                assert int(response.headers["Retry-After"]) > 0

        assert (await calls.call(ALICE, "POST", "/prompt", {"prompt": invert_workflow()}))[0] == 200
        await refused(ALICE, "max_queued")
        assert (await calls.call(BOB, "POST", "/prompt", {"prompt": invert_workflow()}))[0] == 200
        await refused(BOB, "per_minute")
    async with running_gateway(engine.url, queue="gateway", max_queued_jobs=1) as gateway:
        await gateway.handler.queue.pause(True)
        await _post(gateway.http, invert_workflow())
        status, told = await _posted(gateway.http, {"prompt": invert_workflow(1)})
        assert (status, told["error"]["type"]) == (429, "overloaded")
        assert "MAX_QUEUED_JOBS" in told["error"]["message"]


# Secrets and faults


async def test_secrets_reach_comfyui_but_no_disk(tmp_path: Path) -> None:
    state = tmp_path / "state"
    async with three(state_dir=state) as (gateway, servers):
        told = await _post(
            gateway.http, sleep_workflow(600), extra_data={"api_key_comfy_org": "token-of-alice", "a": 1}
        )

        async def queued() -> list[Any]:
            found: list[Any] = []
            for server in servers:
                async with aiohttp.ClientSession(server.url) as http, http.get("/queue") as response:
                    found += (await response.json())["queue_running"]
            return found

        (item,) = await until(queued, bool)
        assert item[3].get("a") == 1
        assert (await _record(gateway, told["prompt_id"], State.RUNNING)).needs_secrets
        for path in state.rglob("*"):
            assert not path.is_file() or b"token-of-alice" not in path.read_bytes(), path


def fill_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """The journal takes no more writes."""

    def full(*_args: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("comfyui.jobs.journal.statements.Statements.apply", full)


async def test_a_prompt_that_cannot_be_stored_is_not_submitted(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_gateway(engine.url, queue="gateway", state_dir=tmp_path) as gateway:
        fill_the_disk(monkeypatch)
        body = {"prompt": invert_workflow(), "prompt_id": str(uuid4())}
        status, told = await _posted(gateway.http, body)
        assert (status, told["error"]["type"], told["node_errors"]) == (503, "disk_failed", {})
        assert "STATE_DIR" in told["error"]["message"]
        assert requests(engine, "POST /prompt") == 0


async def test_a_prompt_with_a_generated_id_that_cannot_be_stored_leaves_comfyui(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a generated id, the journal is written while the prompt is submitted."""
    async with running_gateway(engine.url, queue="gateway", state_dir=tmp_path) as gateway:
        fill_the_disk(monkeypatch)
        status, told = await _posted(gateway.http, {"prompt": sleep_workflow(600)})
        assert (status, told["error"]["type"]) == (503, "disk_failed")
        await until(lambda: queue_of(engine), lambda queue: queue == ([], []))
        # Now the gateway knows that the disk is full.
        assert (await _posted(gateway.http, {"prompt": sleep_workflow(600)}))[0] == 503
        assert requests(engine, "POST /prompt") == 1


async def test_a_prompt_is_accepted_although_the_reply_to_its_submission_is_lost() -> None:
    async with three() as (gateway, servers):
        for server in servers:
            await server.set_faults({"prompt_reply_lost_after_queue": {"times": 1}})
        told = await _post(gateway.http, invert_workflow())
        assert (await result_of(gateway.http, told["prompt_id"]))[0] == 200
        assert sum(executions(server).get(told["prompt_id"], 0) for server in servers) == 1


async def test_a_gateway_that_shuts_down_refuses_in_comfyuis_error_form(engine: Engine) -> None:
    async with running_gateway(engine.url, queue="gateway") as gateway:
        await gateway.handler.drain(0)
        status, told = await _posted(gateway.http, {"prompt": invert_workflow()})
        assert (status, told.keys()) == (503, {"error", "node_errors"})
