"""Bodies with a Content-Encoding: own endpoints unpack them within their limits, the relay passes them on unchanged."""

from __future__ import annotations

import gzip
import json
import tracemalloc
import zlib
from typing import Any

import pytest

from comfyui.engine import Engine
from tests.support.relaying import Exchange, answer_ok, fetch, relayed
from tests.support.running import RunningGateway, invert_workflow, requests, running_gateway


async def post(gateway: RunningGateway, path: str, data: bytes, coding: str, **headers: str) -> tuple[int, Any]:
    sent = {"Content-Encoding": coding, "Content-Type": "application/json", **headers}
    async with gateway.http.post(path, data=data, headers=sent) as response:
        return response.status, await response.json(content_type=None)


def body(**fields: Any) -> bytes:
    return json.dumps({"prompt": invert_workflow(), **fields}).encode()


@pytest.mark.parametrize(
    ("coding", "pack"), [("gzip", gzip.compress), ("x-gzip", gzip.compress), ("deflate", zlib.compress)]
)
@pytest.mark.parametrize("path", ["/prompt_sync", "/prompt_sync?previews=false", "/validate", "/prompt", "/api/prompt"])
async def test_a_compressed_body_is_read(gateway: RunningGateway, path: str, coding: str, pack: Any) -> None:
    status, answer = await post(gateway, path, pack(body()), coding)
    assert status == 200, answer


async def test_a_compressed_form_is_read(gateway: RunningGateway) -> None:
    text = f'--b\r\nContent-Disposition: form-data; name="workflow"\r\n\r\n{json.dumps(invert_workflow())}\r\n--b--\r\n'
    kind = "multipart/form-data; boundary=b"
    status, answer = await post(gateway, "/prompt_sync", gzip.compress(text.encode()), "gzip", **{"Content-Type": kind})
    assert status == 200, answer


@pytest.mark.parametrize("coding", ["br", "zstd", "gzip, gzip"])
async def test_an_unknown_content_encoding_gets_415_with_the_supported_ones(
    gateway: RunningGateway, engine: Engine, coding: str
) -> None:
    headers = {"Content-Encoding": coding}
    async with gateway.http.post("/prompt_sync", data=b"x", headers=headers) as response:
        answer = await response.json()
        assert (response.status, answer["type"]) == (415, "unsupported_encoding")
        assert response.headers["Accept-Encoding"] == "gzip, x-gzip, deflate"
    assert answer["detail"].startswith(f"Content-Encoding: {coding!r} is not supported; use gzip,")
    assert requests(engine, "POST /prompt") == 0


@pytest.mark.parametrize(
    "data",
    [b"{}", gzip.compress(body(), mtime=0)[:-9], gzip.compress(body(), mtime=0) + b"x"],
    ids=["json", "cut", "more"],
)
async def test_a_body_that_does_not_match_its_content_encoding_gets_400(gateway: RunningGateway, data: bytes) -> None:
    status, answer = await post(gateway, "/prompt_sync", data, "gzip")
    assert (status, answer["type"]) == (400, "bad_request")
    assert answer["detail"].startswith("the body is not valid gzip, which its Content-Encoding names: ")


@pytest.mark.parametrize("path", ["/prompt_sync", "/prompt", "/convert"])
async def test_a_gzip_bomb_gets_413_before_it_is_fully_unpacked(engine: Engine, path: str) -> None:
    bomb = gzip.compress(b'{"prompt": "' + b" " * (100 << 20), 9)
    async with running_gateway(engine.url, max_request_body_mb=1) as gateway:
        tracemalloc.start()
        try:
            status, answer = await post(gateway, path, bomb, "gzip")
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert (status, answer["type"]) == (413, "body_too_large")
    assert "MAX_REQUEST_BODY_MB" in answer["detail"]
    assert peak < 8 << 20


async def test_unpacked_bytes_count_towards_the_limit_for_all_bodies(engine: Engine) -> None:
    async with running_gateway(engine.url, max_request_body_mb=5, max_buffered_mb=1) as gateway:
        status, answer = await post(gateway, "/prompt_sync", gzip.compress(body(client_id="x" * 1_500_000)), "gzip")
    assert (status, answer["type"]) == (429, "overloaded")


@pytest.mark.parametrize("coding", ["gzip", "br"])
async def test_a_relayed_body_stays_compressed(coding: str) -> None:
    """ComfyUI unpacks the body; the gateway neither reads nor refuses it."""
    packed = gzip.compress(b"{}", mtime=0)
    bodies: list[bytes] = []

    async def keep_body(exchange: Exchange) -> None:
        bodies.append(await exchange.body())
        await answer_ok(exchange)

    async with relayed(keep_body) as (comfyui, gateway):
        headers = {"Content-Encoding": coding}
        answer = await fetch(gateway, "/userdata/packed.json", "POST", data=packed, headers=headers)
    assert answer.status == 200
    assert [exchange.headers["content-encoding"] for exchange in comfyui.seen] == [coding]
    assert bodies == [packed]
