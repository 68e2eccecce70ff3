"""Streams through the relay: back-pressure, early ends on either side, secrets, several servers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from comfyui.engine import OLD_VERSION, Engine, EngineOptions
from comfyui.web.comfyui.redaction import SecretFilter, without_secrets
from tests.support.relaying import Exchange, eventually, fetch, raw_client, relayed, settled
from tests.support.running import RunningGateway, invert_workflow, running_gateway, until

_MB = 1_000_000
# Limits the bytes in flight of one stream: the socket buffers of both hops, and the gateway's own buffer.
_MOST_IN_FLIGHT = 24 * _MB


async def test_comfyui_is_paused_while_a_client_does_not_read() -> None:
    sent = 0

    async def answering(exchange: Exchange) -> None:
        nonlocal sent
        await exchange.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
        for _ in range(1000):
            await exchange.send(b"x" * _MB)
            sent += _MB

    async with relayed(answering) as (_, gateway), raw_client(gateway.url) as (_reader, writer):
        writer.transport.pause_reading()  # type: ignore[attr-defined] # a socket's transport
        writer.write(b"GET /view HTTP/1.1\r\nHost: g\r\n\r\n")
        await eventually(lambda: sent > 0)

        assert await settled(lambda: sent) < _MOST_IN_FLIGHT


async def test_an_upload_is_paused_while_comfyui_does_not_read() -> None:
    sent = 0

    async def answering(exchange: Exchange) -> None:
        await asyncio.Event().wait()

    async with relayed(answering) as (_, gateway), raw_client(gateway.url) as (_reader, writer):
        writer.write(b"POST /upload/image HTTP/1.1\r\nHost: g\r\nContent-Length: 1000000000\r\n\r\n")

        async def upload() -> None:
            nonlocal sent
            while True:
                writer.write(b"x" * _MB)
                await writer.drain()
                sent += _MB

        uploading = asyncio.create_task(upload())
        await eventually(lambda: sent > 0)
        assert await settled(lambda: sent) < _MOST_IN_FLIGHT
        uploading.cancel()


@pytest.mark.parametrize("started", [False, True], ids=["before the answer", "during the answer"])
async def test_a_client_that_disconnects_ends_its_request_to_comfyui(started: bool) -> None:
    ended = asyncio.Event()

    async def answering(exchange: Exchange) -> None:
        if started:
            await exchange.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nsome")
        await exchange.until_gone()
        ended.set()

    async with relayed(answering) as (comfyui, gateway):
        async with raw_client(gateway.url) as (reader, writer):
            writer.write(b"GET /view HTTP/1.1\r\nHost: g\r\n\r\n")
            if started:
                await reader.readuntil(b"some")
            await eventually(lambda: bool(comfyui.seen))
        async with asyncio.timeout(30):
            await ended.wait()


async def test_a_client_that_disconnects_during_an_upload_ends_it_at_comfyui() -> None:
    got = bytearray()
    ended = asyncio.Event()

    async def answering(exchange: Exchange) -> None:
        while chunk := await exchange.reader.read(65536):
            got.extend(chunk)
        ended.set()

    async with relayed(answering) as (_, gateway):
        async with raw_client(gateway.url) as (_reader, writer):
            writer.write(b"POST /upload/image HTTP/1.1\r\nHost: g\r\nContent-Length: 1000000\r\n\r\n" + b"x" * 100_000)
            await eventually(lambda: len(got) >= 100_000)
        async with asyncio.timeout(30):
            await ended.wait()
        assert len(got) == 100_000


async def test_an_answer_that_comes_during_an_upload_reaches_the_client() -> None:
    """ComfyUI does this when an upload is too large: it answers and closes the connection."""

    async def answering(exchange: Exchange) -> None:
        await exchange.reader.readexactly(65536)
        await exchange.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nbig")

    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b"x" * 65536

    async with relayed(answering) as (_, gateway), gateway.http.post("/upload/image", data=endless()) as response:
        assert (response.status, await response.read()) == (413, b"big")


# Secrets

_SECRETS = {"api_key_comfy_org": 'comfyui-"quoted\\key', "auth_token_comfy_org": "ey.token"}


async def _with_secret_in_queue(gateway: RunningGateway) -> None:
    workflow = invert_workflow(7)
    workflow["4"] = {"class_type": "SimulatedSleep", "inputs": {"value": ["2", 0], "seconds": 30, "steps": 1}}
    workflow["3"]["inputs"]["images"] = ["4", 0]
    for _ in range(2):
        answer = await fetch(
            gateway, "/prompt", "POST", json={"prompt": workflow, "extra_data": {**_SECRETS, "client_note": "kept"}}
        )
        assert answer.status == 200


@pytest.mark.parametrize("prefix", ["", "/api"])
async def test_the_relayed_queue_hides_the_keys_of_callers(prefix: str) -> None:
    """ComfyUI 0.3.64 shows everyone the keys for its paid nodes, of all waiting prompts."""
    async with (
        Engine(EngineOptions(comfyui_version=OLD_VERSION)) as engine,
        running_gateway(engine.url) as gateway,
    ):
        await _with_secret_in_queue(gateway)
        direct = await fetch(gateway, f"{engine.url}/queue")
        through = await fetch(gateway, f"{prefix}/queue")
        await fetch(gateway, "/interrupt", "POST")
        await fetch(gateway, "/queue", "POST", json={"clear": True})

        assert b"ey.token" in direct.body
        assert b"ey.token" not in through.body
        assert b"comfy_org" not in through.body
        assert through.headers["Content-Length"] == str(len(through.body))
        queue = json.loads(through.body)
        items = queue["queue_running"] + queue["queue_pending"]
        assert len(items) == 2
        assert all(item[3]["client_note"] == "kept" for item in items)


async def test_the_relayed_history_hides_the_keys_of_callers(gateway: RunningGateway) -> None:
    extra_data = {**_SECRETS, "client_note": "kept"}
    status, body = await gateway.prompt_sync(invert_workflow(3), extra_data=extra_data)
    assert status == 200

    for path in ("/history", "/api/history?max_items=10", f"/history/{body['prompt_id']}"):
        through = await fetch(gateway, path)
        assert b"comfy_org" not in through.body
        [entry] = json.loads(through.body).values()
        assert entry["prompt"][3]["client_note"] == "kept"


async def test_a_large_history_is_filtered_as_it_streams() -> None:
    """The history has 20 MB and a secret in every entry, and is too large to be filtered in one piece."""
    history = {str(n): {"prompt": [n, str(n), {"1": {"text": "x" * 9000}}, {"a": 1, **_SECRETS}]} for n in range(2200)}
    body = json.dumps(history).encode()

    async def answering(exchange: Exchange) -> None:
        await exchange.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body))
        await exchange.send(body)

    async with relayed(answering) as (comfyui, gateway):
        answer = await fetch(gateway, "/history", headers={"Accept-Encoding": "gzip"})

        assert b"comfy_org" not in answer.body
        expected = {key: {"prompt": [*entry["prompt"][:3], {"a": 1}]} for key, entry in history.items()}
        assert json.loads(answer.body) == expected
        assert comfyui.seen[0].headers["accept-encoding"] == "identity"


async def test_a_compressed_history_is_refused_because_it_cannot_be_filtered() -> None:
    async def answering(exchange: Exchange) -> None:
        await exchange.send(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}")

    async with relayed(answering) as (_, gateway):
        assert (await fetch(gateway, "/history")).status == 502


@pytest.mark.parametrize("separators", [(", ", ": "), (",", ":")])
@pytest.mark.parametrize("size", [1, 7, 64, 100_000])
def test_the_secret_filter_gives_the_same_json_for_chunks_of_any_size(separators: tuple[str, str], size: int) -> None:
    def entry(**fields: Any) -> dict[str, Any]:
        return {"text": 'not a key: \\"api_key_comfy_org\\": "x"', **fields}

    data = [
        entry(api_key_comfy_org="s1"),
        {"api_key_comfy_org": "s2"},
        {"api_key_comfy_org": "s3", "auth_token_comfy_org": None, "kept": 1},
        {"kept": 1, "api_key_comfy_org": "s4}", "auth_token_comfy_org": 'a"b\\'},
        {"api_key_comfy_org": {"nested": "s5"}, "kept": [1, 2]},
        {"kept": {}, "auth_token_comfy_org": ["s6"]},
    ]
    body = json.dumps(data, separators=separators).encode()
    kept = json.loads(json.dumps(data))
    for item in kept:
        item.pop("api_key_comfy_org", None)
        item.pop("auth_token_comfy_org", None)

    secrets = SecretFilter()
    filtered = b"".join(secrets.feed(body[at : at + size]) for at in range(0, len(body), size)) + secrets.end()

    assert json.loads(filtered) == kept
    assert json.loads(without_secrets(body)) == kept


def test_a_body_without_secrets_is_not_changed() -> None:
    body = b'{"a":  [1,2 , {"x_comfy_org":"y"}]}\n'
    assert without_secrets(body) == body


# Several servers


async def _run_on(engine: Engine, gateway: RunningGateway, color: int) -> dict[str, Any]:
    """Runs a prompt that only this server knows, and returns its history entry."""
    async with gateway.http.post(f"{engine.url}/prompt", json={"prompt": invert_workflow(color)}) as response:
        prompt_id = (await response.json())["prompt_id"]

    async def history() -> dict[str, Any]:
        return dict(json.loads((await fetch(gateway, f"{engine.url}/history/{prompt_id}")).body))

    return await until(history, bool)


async def test_files_and_history_are_found_on_the_server_that_has_them(
    gpu_pair: tuple[Engine, Engine, RunningGateway],
) -> None:
    _first, second, gateway = gpu_pair
    history = await _run_on(second, gateway, 5)
    [(prompt_id, entry)] = history.items()
    [file] = entry["outputs"]["3"]["images"]

    assert json.loads((await fetch(gateway, f"/history/{prompt_id}")).body) == history
    picture = await fetch(gateway, "/view", params=file)
    assert (picture.status, picture.body[:4]) == (200, b"\x89PNG")
    assert (await fetch(gateway, "/view", params={**file, "filename": "none.png"})).status == 404
    assert (await fetch(gateway, "/history/none")).body == b"{}"


async def test_user_data_is_stored_on_the_first_server(
    gpu_pair: tuple[Engine, Engine, RunningGateway],
) -> None:
    first, second, gateway = gpu_pair
    stored = await fetch(gateway, "/userdata/a%2Fb.json", "POST", data=b"{}")
    assert stored.status == 200
    assert (await fetch(gateway, f"{first.url}/userdata/a%2Fb.json")).status == 200
    assert (await fetch(gateway, f"{second.url}/userdata/a%2Fb.json")).status == 404


async def test_a_prompt_goes_to_the_server_that_holds_its_clients_websocket(
    gpu_pair: tuple[Engine, Engine, RunningGateway],
) -> None:
    first, second, gateway = gpu_pair
    async with gateway.http.ws_connect("/ws?clientId=me") as websocket:
        await websocket.receive()
        for color in range(4):
            answer = await fetch(gateway, "/prompt", "POST", json={"prompt": invert_workflow(color), "client_id": "me"})
            assert answer.status == 200
            async with asyncio.timeout(30):
                while "execution_success" not in (await websocket.receive_str()):
                    pass
    assert first.stats.show()["requests"]["POST /prompt"] == 4
    assert "POST /prompt" not in second.stats.show()["requests"]


async def test_a_server_that_is_down_is_skipped(gpu_pair: tuple[Engine, Engine, RunningGateway]) -> None:
    first, _second, gateway = gpu_pair
    await first.__aexit__(None, None, None)

    for method in ("GET", "POST"):
        answer = await fetch(gateway, "/queue", method, json={"delete": []} if method == "POST" else None)
        assert answer.status == 200
