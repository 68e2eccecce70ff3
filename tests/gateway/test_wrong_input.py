"""Wrong requests get a status of their own, never 500, and leave neither files nor error lines behind."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import resource
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import aiohttp
import pytest
from pydantic import SecretStr

from comfyui.engine import Engine
from comfyui.outputs.delivery import DeliveryOptions
from comfyui.outputs.stores.s3 import S3Settings, S3Store
from tests.support.processes import GatewayProcess, gateway_process
from tests.support.relaying import Exchange, eventually, raw_client, raw_request, relayed
from tests.support.running import RunningGateway, invert_workflow, running_gateway, until

BODY = json.dumps({"prompt": invert_workflow()}).encode()
ENDPOINTS = [
    b"POST /prompt_sync",
    b"POST /prompt_sync?timeout=9.0",
    b"GET /prompt_sync/7d0b5c39-0000-4000-8000-00000000000a",
    b"DELETE /prompt_sync/7d0b5c39-0000-4000-8000-00000000000a",
    b"POST /prompt",
    b"POST /validate",
    b"POST /convert",
    b"GET /health",
    b"GET /health/ready",
    b"GET /metrics",
    b"GET /openapi.json",
    b"GET /features",
]
VALUES = ["日本".encode(), b"\xe9", b"\xff\xfe", b"\x01\x02", b"a\tb", b'";\\', b"x" * 5000, b""]
NAMES = [b"X-Name", b"Content-Type", b"Accept", b"Idempotency-Key", b"X-Request-ID", b"User-Agent", b"Cookie"]


def request(line: bytes, *headers: tuple[bytes, bytes], body: bytes = b"") -> bytes:
    pairs = [(b"Host", b"h"), *headers, *([(b"Content-Length", b"%d" % len(body))] if body else [])]
    head = b"".join(b"%b: %b\r\n" % pair for pair in pairs)
    return line + b" HTTP/1.1\r\n" + head + b"\r\n" + body


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


@pytest.mark.parametrize("line", ENDPOINTS, ids=lambda line: line.decode())
async def test_no_header_value_makes_an_endpoint_fail(gateway: RunningGateway, line: bytes) -> None:
    for name in NAMES:
        for value in VALUES:
            body = BODY if line.startswith(b"POST") else b""
            answer = await raw_request(gateway.url, request(line, (name, value), body=body))
            assert status_of(answer) < 500, (name, value, answer)


@pytest.mark.parametrize("value", ["日本".encode(), b"caf\xe9", b"a\tb"])
async def test_the_header_values_of_a_submission_reach_comfyui_unchanged(value: bytes) -> None:
    async def answering(exchange: Exchange) -> None:
        await exchange.body()
        await exchange.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

    async with relayed(answering) as (comfyui, gateway):
        await gateway.handler.pool.choose(patience_s=10)
        answer = await raw_request(gateway.url, request(b"POST /prompt", (b"X-Name", value), body=BODY))
        assert status_of(answer) == 200
        head = next(exchange.head for exchange in comfyui.seen if exchange.line.startswith("POST /prompt"))
        assert b"\r\nx-name: " + value + b"\r\n" in head


# Forms


async def nothing_is_left(folder: Path) -> None:
    async def left() -> list[Path]:
        return await asyncio.to_thread(lambda: list(folder.iterdir()))

    await until(left, lambda paths: not paths)


def form(*, files: bool, boundary: bytes = b"XX", end: bool = True) -> bytes:
    parts = [(b'name="workflow"', json.dumps(invert_workflow()).encode())]
    if files:
        parts.append((b'name="images"; filename="a.png"', b"\x89PNG\r\n\x1a\n" + b"x" * 2_000_000))
    body = b"".join(
        b"--%b\r\nContent-Disposition: form-data; %b\r\n\r\n%b\r\n" % (boundary, about, content)
        for about, content in parts
    )
    return body + (b"--%b--\r\n" % boundary if end else b"")


def form_type(boundary: bytes = b"XX") -> tuple[bytes, bytes]:
    return b"Content-Type", b"multipart/form-data; boundary=" + boundary


@pytest.mark.parametrize("path", [b"/prompt_sync", b"/validate"])
@pytest.mark.parametrize(
    "boundary", [b"b" * 257, b"b" * 60_000, b'""', b"\xff\xfe"], ids=[257, 60_000, "empty", "8bit"]
)
async def test_an_unusable_boundary_gets_422_and_leaves_no_files(
    gateway: RunningGateway, form_folder: Path, boundary: bytes, path: bytes
) -> None:
    answer = await raw_request(gateway.url, request(b"POST " + path, form_type(boundary), body=b"x"))
    assert status_of(answer) == 422, answer
    assert b'"invalid_request"' in answer
    assert list(form_folder.iterdir()) == []


async def post_form(gateway: GatewayProcess, path: str, *, files: bool) -> tuple[int, Any]:
    data = aiohttp.FormData({"workflow": json.dumps(invert_workflow())}, default_to_multipart=True)
    if files:
        data.add_field("images", io.BytesIO(b"\x89PNG\r\n\x1a\n" + b"x" * 2_000_000), filename="a.png")
    async with gateway.http.post(path, data=data) as response:
        return response.status, await response.json()


async def test_an_unusable_folder_for_temporary_files_gets_503_by_name(engine: Engine, tmp_path: Path) -> None:
    folder = tmp_path / "spool"
    folder.mkdir()
    async with gateway_process(engine.url, TMPDIR=str(folder)) as gateway:
        assert (await post_form(gateway, "/validate", files=True))[0] == 200
        await nothing_is_left(folder)
        folder.rmdir()
        for path in ("/prompt_sync", "/validate"):
            status, body = await post_form(gateway, path, files=True)
            assert (status, body["type"]) == (503, "disk_failed")
            assert "TMPDIR" in body["detail"]
            assert str(tmp_path) not in body["detail"]
            status, body = await post_form(gateway, path, files=False)
            assert status == 200, "a form without files needs no folder"


async def test_a_file_that_is_too_large_for_the_disk_gets_503_and_leaves_no_files(
    engine: Engine, tmp_path: Path
) -> None:
    async with gateway_process(engine.url, TMPDIR=str(tmp_path)) as gateway:
        resource.prlimit(gateway.process.pid, resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
        for path in ("/prompt_sync", "/validate"):
            status, body = await post_form(gateway, path, files=True)
            assert (status, body["type"]) == (503, "disk_failed")
            assert "TMPDIR" in body["detail"]
        await nothing_is_left(tmp_path)


async def test_validate_refuses_an_invalid_file_name_with_400(gateway: RunningGateway, form_folder: Path) -> None:
    body = form(files=True).replace(b"a.png", b"../../b")
    answer = await raw_request(gateway.url, request(b"POST /validate", form_type(), body=body))
    assert status_of(answer) == 400, answer
    assert b"../../b" in answer
    await nothing_is_left(form_folder)


@pytest.mark.parametrize("number", ["nan", "inf", "-inf", "1e400"])
async def test_a_number_that_json_does_not_have_gets_422(gateway: RunningGateway, number: str) -> None:
    async with gateway.http.post("/prompt_sync", json={"prompt": invert_workflow(), "number": number}) as response:
        assert response.status == 422
        assert (await response.json())["detail"].startswith("number: ")


# Clients that leave

LEAVES = {
    "json": (b"POST /prompt_sync", (), BODY[:50]),
    "json with a query": (b"POST /prompt_sync?timeout=9.0", (), BODY[:50]),
    "form": (b"POST /prompt_sync", (form_type(),), form(files=True, end=False)[:1_500_000]),
    "form without files": (b"POST /prompt_sync", (form_type(),), form(files=False, end=False)),
    "validate": (b"POST /validate", (), BODY[:50]),
    "validate a form": (b"POST /validate", (form_type(),), form(files=True, end=False)[:1_500_000]),
    "convert": (b"POST /convert", (), BODY[:50]),
    "submission": (b"POST /prompt", (), BODY[:50]),
    "relayed": (b"POST /settings", (), BODY[:50]),
    "upload": (b"POST /upload/image", (form_type(),), form(files=True, end=False)[:1_500_000]),
    "events": (b"POST /prompt_sync", ((b"Accept", b"text/event-stream"),), BODY[:50]),
    "login": (b"POST /login", ((b"Content-Type", b"application/x-www-form-urlencoded"),), b"key=a"),
}


async def leave(url: str, line: bytes, headers: tuple[tuple[bytes, bytes], ...], body: bytes, how: str) -> None:
    """Sends the beginning of a body and goes away."""
    framing = (b"Transfer-Encoding", b"chunked") if how == "chunked" else (b"Content-Length", b"9000000")
    if how == "chunked":
        body = b"%x\r\n%b\r\n" % (len(body), body)
    async with raw_client(url) as (_, writer):
        writer.write(request(line, *headers, framing) + body)
        await writer.drain()
        await asyncio.sleep(0.05)  # by then the gateway reads the request
        if how == "half closed":
            writer.write_eof()
            await asyncio.sleep(0.05)


async def test_a_client_that_leaves_during_its_body_causes_no_error_and_leaves_no_files(
    own_engine: str, tmp_path: Path
) -> None:
    for keys in ("", "secret"):
        key = ((b"X-API-Key", keys.encode()),) if keys else ()
        async with gateway_process(own_engine, TMPDIR=str(tmp_path), API_KEYS=keys, LOG_LEVEL="DEBUG") as gateway:
            url = str(gateway.http._base_url)
            for line, headers, body in LEAVES.values():
                for how in ("aborted", "chunked", "half closed"):
                    await leave(url, line, (*headers, *key), body, how)
            await nothing_is_left(tmp_path)
            async with gateway.http.get("/health/live") as response:
                assert response.status == 200
            assert gateway.lines_of("warning", "error", "critical") == []


ANSWERS = {
    "json": (b"POST /prompt_sync", ()),
    "bytes": (b"POST /prompt_sync", ((b"Accept", b"video/*"),)),
    "archive": (b"POST /prompt_sync", ((b"Accept", b"application/zip"),)),
    "events": (b"POST /prompt_sync", ((b"Accept", b"text/event-stream"),)),
    "relayed": (b"GET /view?filename=big_00001_.mp4&type=output", ()),
    "relayed in part": (b"GET /api/view?filename=big_00001_.mp4&type=output", ((b"Range", b"bytes=0-50000000"),)),
}


async def test_a_client_that_does_not_read_its_answer_is_cut_off_without_an_error_line(own_engine: str) -> None:
    inputs = {"size": 60_000_000, "count": 1, "extension": "mp4", "output_key": "video", "filename_prefix": "big"}
    workflow = {"1": {"class_type": "SimulatedOutput", "inputs": inputs}}
    body = json.dumps({"prompt": workflow, "return_image_base64": True}).encode()
    async with gateway_process(own_engine, CLIENT_IDLE_SECONDS="0.5") as gateway:
        port = gateway.http._base_url.port if gateway.http._base_url else 0
        loop = asyncio.get_running_loop()
        for line, headers in ANSWERS.values():
            before = sum(entry["event"] == "client.slow" for entry in gateway.lines)
            with socket.socket() as client:
                client.setblocking(False)
                client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                await loop.sock_connect(client, ("127.0.0.1", port))
                await loop.sock_sendall(client, request(line, *headers, body=body if line.startswith(b"POST") else b""))
                await eventually(
                    lambda before=before: sum(entry["event"] == "client.slow" for entry in gateway.lines) > before,  # type: ignore[misc]
                    within_s=20,
                )
        assert gateway.lines_of("warning", "error", "critical") == []


async def test_a_gateway_that_stops_during_a_body_leaves_no_folder(engine: Engine, form_folder: Path) -> None:
    async with running_gateway(engine.url) as gateway:
        parts = urlsplit(gateway.url)
        _, writer = await asyncio.open_connection(parts.hostname, parts.port)
        writer.write(
            request(b"POST /prompt_sync", form_type(), (b"Content-Length", b"9000000"))
            + form(files=True, end=False)[:1_500_000]
        )
        await writer.drain()
        await eventually(lambda: any(form_folder.iterdir()))
    writer.close()
    await nothing_is_left(form_folder)


# An object store that does not answer

SILENCES = {"from the start": b"", "after the upload has begun": b"POST "}


@asynccontextmanager
async def silent_store(answers: bytes) -> AsyncIterator[str]:
    """Gives the address of an object store that answers only requests that begin with `answers`."""
    begun = (
        b"<InitiateMultipartUploadResult><Bucket>renders</Bucket><Key>k</Key><UploadId>u</UploadId>"
        b"</InitiateMultipartUploadResult>"
    )
    writers = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                if not answers or not head.startswith(answers):
                    return
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(begun), begun))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for writer in writers:
            writer.transport.abort()


@pytest.mark.parametrize("answers", SILENCES.values(), ids=SILENCES.keys())
@pytest.mark.parametrize("accept", ["application/json", "text/event-stream"])
async def test_a_silent_store_keeps_no_caller_waiting_beyond_the_timeout(
    engine: Engine, answers: bytes, accept: str
) -> None:
    pytest.importorskip("aiobotocore")
    large = {"size": 9_000_000, "count": 1, "extension": "mp4", "output_key": "video", "filename_prefix": "x"}
    workflow = {"1": {"class_type": "SimulatedOutput", "inputs": large}} if answers else invert_workflow()
    async with silent_store(answers) as url:
        place: dict[str, Any] = {"endpoint_url": url, "addressing_style": "path"}
        keys: dict[str, Any] = {"access_key": SecretStr("a"), "secret_key": SecretStr("b")}
        store = S3Store(S3Settings("renders", **place, **keys, last_aborts_s=0.1))
        delivery = DeliveryOptions(store_by_default=True, last_uploads_s=0.1)
        async with running_gateway(
            engine.url, changed=lambda made: replace(made, store=store, delivery=delivery)
        ) as gateway:
            loop = asyncio.get_running_loop()
            prompt_id = str(uuid4())
            for path, method, timeout_s in (("/prompt_sync", "POST", 2), (f"/prompt_sync/{prompt_id}", "GET", 1)):
                body = {"prompt": workflow, "prompt_id": prompt_id} if method == "POST" else None
                began = loop.time()
                async with gateway.http.request(
                    method, f"{path}?timeout={timeout_s}", json=body, headers={"Accept": accept}
                ) as response:
                    text = await response.text()
                assert response.status == 200, text
                assert loop.time() - began < 10, "the driver's own patience is minutes"
                data = text.split("event: result\ndata: ")[-1].strip()
                (file,) = json.loads(data)["images"]
                assert "did not take the file in time" in file["error"]
                assert file["url"].startswith("/view?")
            assert gateway.app.running.deliverer._files._slots._value > 0, "the next uploads have room"
