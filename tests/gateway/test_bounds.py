"""No request delays another: its size is limited, and long work runs outside the event loop."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import aiohttp
import pytest

from benchmarks.bombs import BOMBS, Bomb, probed
from benchmarks.processes import Server
from comfyui.engine import Engine
from tests.support.held_up import assert_not_held_up
from tests.support.processes import GatewayProcess, gateway_process
from tests.support.running import RunningGateway, invert_workflow


def nodes(count: int, **inputs: Any) -> dict[str, Any]:
    return {str(number): {"class_type": "KSampler", "inputs": inputs} for number in range(count)}


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def images(count: int) -> list[dict[str, str]]:
    return [{"name": f"{number}.png", "image": "aGk="} for number in range(count)]


# Each entry has a workflow, further fields of the body, and the expected error text.
OVER: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "values": (nodes(1), {"extra_data": {"x": ["a" * 40] * 3_000}}, "more than 2000 values (MAX_JSON_VALUES)"),
    "depth": (nodes(1, a=nested(30)), {}, "more than 16 levels deep"),
    "nodes": (nodes(21), {}, "more than 20 nodes"),
    "inputs": (nodes(1, **dict.fromkeys("abcdef", 1)), {}, "Node 0 has more than 5 inputs"),
    "node id": ({"9" * 31: {"class_type": "A", "inputs": {}}}, {}, "more than 30 characters"),
    "class": ({"1": {"class_type": "A" * 31, "inputs": {}}}, {}, "The class_type of node 1"),
    "input name": (nodes(1, **{"a" * 31: 1}), {}, "An input of node 0"),
    "images": (invert_workflow(), {"images": images(5)}, "images must have at most 4 entries"),
    "targets": (
        nodes(1),
        {"partial_execution_targets": ["1"] * 21},
        "partial_execution_targets must have at most 20 entries",
    ),
}


@pytest.mark.parametrize("form", ["json", "multipart", "events"])
@pytest.mark.parametrize("path", ["/prompt_sync", "/validate"])
async def test_the_refusal_of_an_oversized_request_names_the_limit(
    small_limits: RunningGateway, path: str, form: str
) -> None:
    headers = {"Accept": "text/event-stream"} if form == "events" else {}
    for kind, (workflow, fields, says) in OVER.items():
        data: Any = json.dumps({"prompt": workflow, **fields})
        if form == "multipart":
            texts = {name: json.dumps(value) for name, value in {"workflow": workflow, **fields}.items()}
            data = aiohttp.FormData(texts, default_to_multipart=True)
        async with small_limits.http.post(path, data=data, headers=headers) as response:
            body = await response.json()
            status = 400 if kind == "depth" else 413
            assert (response.status, body["type"]) == (status, "limit_exceeded"), (kind, body)
            assert says in body["detail"], kind


@pytest.mark.parametrize("path", ["/prompt_sync", "/validate"])
async def test_inputs_in_images_and_in_the_workflow_count_together(small_limits: RunningGateway, path: str) -> None:
    loaders = {
        str(number): {"class_type": "LoadImage", "inputs": {"image": f"data:image/png;base64,aGVsbG8{number}"}}
        for number in range(3)
    }
    async with small_limits.http.post(path, json={"prompt": loaders, "images": images(2)}) as response:
        body = await response.json()
        assert (response.status, body["type"]) == (413, "limit_exceeded"), body
        assert body["detail"] == "the request has more than 4 inputs"


async def test_a_form_with_more_files_than_allowed_inputs_is_refused(small_limits: RunningGateway) -> None:
    form = aiohttp.FormData({"workflow": json.dumps(invert_workflow())})
    for number in range(25):
        form.add_field("images", b"x", filename=f"{number}.png")
    async with small_limits.http.post("/prompt_sync", data=form) as response:
        assert response.status == 413
        assert "the form has more than " in (await response.json())["detail"]


@pytest.mark.parametrize("where", ["root", "subgraph"])
async def test_an_editor_file_with_too_many_nodes_is_refused(small_limits: RunningGateway, where: str) -> None:
    many = {"nodes": [{"id": number, "type": "Note"} for number in range(21)], "links": []}
    file = many if where == "root" else {"nodes": [], "links": [], "definitions": {"subgraphs": [many]}}
    async with small_limits.http.post("/convert", json=file) as response:
        assert response.status == 413
        assert "more than 20 nodes" in (await response.json())["detail"]


async def test_an_error_about_many_unknown_fields_stays_short(small_limits: RunningGateway) -> None:
    fields = {f"{'f' * 500}{number}": 1 for number in range(1_000)}
    status, body = await small_limits.prompt_sync(invert_workflow(), **fields)
    assert (status, body["type"]) == (422, "invalid_request")
    assert body["detail"].endswith("and 980 more: there are no such fields")
    assert len(body["detail"]) < 2_000


async def test_a_field_with_a_long_text_or_many_members_is_refused(gateway: RunningGateway) -> None:
    padding: dict[str, Any] = {"extra_data": {"x": "x" * 100_000}}
    refused: tuple[tuple[dict[str, Any], str], ...] = (
        ({"client_id": "x" * 5_000}, "client_id must have at most 4096 characters"),
        ({"images": [{"name": "x" * 5_000, "image": "aGk="}]}, "images[0].name must have at most 4096 characters"),
        ({"convert": dict.fromkeys(map(str, range(30)), 1)}, "convert must have at most 20 fields"),
    )
    for fields, says in refused:
        status, body = await gateway.prompt_sync(invert_workflow(), **fields, **padding)
        assert (status, body["type"], body["detail"]) == (422, "invalid_request", says)
    image = {"name": "a.png", "image": "AAAA" * 2_000}
    assert (await gateway.prompt_sync(invert_workflow(), images=[image], **padding))[0] == 200


async def test_an_answer_lists_a_limited_number_of_problems_and_counts_the_others(small_limits: RunningGateway) -> None:
    workflow = {str(number): {"class_type": "Nope", "inputs": {}} for number in range(5)}
    async with small_limits.http.post("/validate", json=workflow) as response:
        body = await response.json()
    *listed, last = body["problems"]
    assert not body["valid"]
    assert [problem["severity"] for problem in listed] == ["error"] * 3
    assert (last["code"], last["message"]) == (
        "more_problems",
        "There are 2 more errors and 0 more warnings",
    )
    malformed = {str(number): {"class_type": "A"} for number in range(10)}
    status, refused = await small_limits.prompt_sync(malformed)
    assert status == 400
    assert len(refused["node_errors"]) == 3


async def test_a_request_within_the_limits_runs(small_limits: RunningGateway) -> None:
    assert (await small_limits.prompt_sync(invert_workflow()))[0] == 200


async def test_only_large_bodies_are_parsed_in_a_thread(
    gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_threads: list[str] = []
    submit = ThreadPoolExecutor.submit

    def counted(threads: ThreadPoolExecutor, call: Any, *args: Any, **options: Any) -> Any:
        if threads._thread_name_prefix == "offload":  # not asyncio's own pool, which the engine uses
            in_threads.append(str(call))
        return submit(threads, call, *args, **options)

    monkeypatch.setattr(ThreadPoolExecutor, "submit", counted)
    status, _ = await gateway.prompt_sync(invert_workflow())
    assert (status, in_threads) == (200, [])
    status, _ = await gateway.prompt_sync(invert_workflow(), extra_data={"note": "x" * 100_000})
    assert status == 200
    assert any("_of_json" in call for call in in_threads)
    assert any("check_api_format" in call for call in in_threads)


# The largest request for each kind of work; `python -m benchmarks --only bombs` runs all. A group shares a gateway.
BOMB_GROUPS = {
    "strings": ("one long string", "a long number", "a submission for the relay"),
    "values": ("undeclared inputs", "many nodes to convert", "events of a million nodes"),
    "inputs": ("a hundred thousand images", "a large image with an id", "unknown fields of an image"),
    "forms": ("a form of one long text", "a form of a long plain text", "a form of boundaries"),
    "chunks": ("many empty gzip members", "a body of tiny chunks", "tiny chunks for the relay"),
}


async def assert_bomb_does_not_hold_up(gateway: GatewayProcess, name: str, bomb: Bomb) -> None:
    body = await asyncio.to_thread(bomb.body)
    server = Server(gateway.process.pid, gateway.port)

    async def cpu_s() -> float:
        return (await asyncio.to_thread(probed, server, bomb, body)).cpu_s

    await assert_not_held_up(name, cpu_s)


@pytest.mark.alone
@pytest.mark.timeout(180)
@pytest.mark.parametrize("group", BOMB_GROUPS)
async def test_the_health_probe_answers_while_an_oversized_request_is_processed(engine: Engine, group: str) -> None:
    async with gateway_process(engine.url) as gateway:
        for name in BOMB_GROUPS[group]:
            await assert_bomb_does_not_hold_up(gateway, name, BOMBS[name])


@pytest.mark.alone
async def test_the_health_probe_answers_while_the_gateway_reads_a_huge_submission(engine: Engine) -> None:
    """With several servers the gateway itself reads a submission, within its own limits."""
    bomb = Bomb("/prompt", lambda: json.dumps({"client_id": "a", "prompt": nodes(200_000)}).encode(), (413,))
    async with (
        gateway_process(f"{engine.url},{engine.url.replace('127.0.0.1', 'localhost')}") as gateway,
        gateway.http.ws_connect("/ws?clientId=a"),
    ):
        await assert_bomb_does_not_hold_up(gateway, "a submission", bomb)
