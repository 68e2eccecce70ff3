"""The same calls to ComfyUI and to the gateway in front of it: status, headers and bytes must be the same."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from tests.support.pairs import Pair

# The gateway's server sets Date, each hop has its own Connection, and the gateway adds the request id.
_OF_THE_HOP = {"date", "connection", "keep-alive", "x-request-id"}


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, list[str]]
    body: bytes


@dataclass(frozen=True)
class Call:
    """A request as it goes over the wire; ``{view}`` in its target is the query of an existing picture."""

    method: str
    target: str
    headers: tuple[str, ...] = ()
    body: bytes = b""

    def __str__(self) -> str:
        return " ".join((self.method, self.target, *self.headers))


def _multipart(name: str, **fields: str) -> tuple[tuple[str, ...], bytes]:
    parts = [f'--b\r\nContent-Disposition: form-data; name="{key}"\r\n\r\n{fields[key]}\r\n' for key in fields]
    file = f'--b\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n\r\n'
    body = "".join(parts).encode() + file.encode() + bytes(range(256)) * 1000 + b"\r\n--b--\r\n"
    return (f"Content-Type: multipart/form-data; boundary=b", f"Content-Length: {len(body)}"), body  # noqa: F541


def _json(text: str) -> tuple[tuple[str, ...], bytes]:
    return ("Content-Type: application/json", f"Content-Length: {len(text)}"), text.encode()


_CALLS = [
    Call("GET", "/"),
    Call("GET", "/", ("Accept-Encoding: gzip, deflate, br",)),
    Call("HEAD", "/"),
    Call("GET", "/prompt"),
    Call("GET", "/api/prompt"),
    Call("HEAD", "/queue"),
    Call("OPTIONS", "/queue"),
    Call("OPTIONS", "/prompt"),
    Call("GET", "/features"),
    Call("GET", "/object_info/KSampler"),
    Call("GET", "/api/object_info/No%20Such"),
    Call("GET", "/object_info", ("Accept-Encoding: gzip",)),
    Call("GET", "/embeddings"),
    Call("GET", "/models"),
    Call("GET", "/models/loras"),
    Call("GET", "/models/nothing"),
    Call("GET", "/extensions"),
    Call("GET", "/users"),
    Call("GET", "/settings"),
    Call("GET", "/i18n"),
    Call("GET", "/history/nobody-knows-this"),
    Call("GET", "/view?{view}"),
    Call("HEAD", "/view?{view}"),
    Call("GET", "/view?{view}", ("Range: bytes=10-29",)),
    Call("GET", "/view?{view}", ("Range: bytes=-5",)),
    Call("GET", "/view?{view}", ("Range: bytes=999999-",)),
    Call("GET", "/view?{view}", ("If-Modified-Since: Fri, 01 Jan 2100 00:00:00 GMT",)),
    Call("GET", "/view?{view}", ("If-None-Match: *",)),
    Call("GET", "/view?{view}&preview=webp;50"),
    Call("GET", "/view?{view}&channel=a"),
    Call("GET", "/view?filename=none.png"),
    Call("GET", "/view?filename=..%2F..%2Fmain.py"),
    Call("GET", "/view"),
    Call("GET", "/userdata?dir=none"),
    Call("GET", "/userdata/none%2Fnone.json"),
    Call("POST", "/userdata/relay%2Fa%20b.json?overwrite=true", *_json('{"a": 1}')),
    Call("GET", "/userdata/relay%2Fa%20b.json"),
    Call("POST", "/userdata/relay%2Fa%20b.json?overwrite=false", *_json("{}")),
    Call("DELETE", "/userdata/relay%2Fnone.json"),
    Call("POST", "/upload/image", *_multipart("relay.png", overwrite="true")),
    Call("POST", "/upload/image", *_multipart("relay.png", overwrite="true", subfolder="a/b", type="temp")),
    Call("POST", "/upload/image", *_multipart("x.png", subfolder="../../..")),
    Call("POST", "/prompt", *_json("{}")),
    Call("POST", "/prompt", *_json("not json")),
    Call("POST", "/api/prompt", *_json('{"prompt": {"1": {"class_type": "NoSuchNode", "inputs": {}}}}')),
    Call("POST", "/queue", *_json('{"delete": ["nobody"]}')),
    Call("POST", "/history", *_json('{"delete": ["nobody"]}')),
    Call("POST", "/interrupt", *_json('{"prompt_id": "nobody"}')),
    Call("PUT", "/prompt", ("Content-Length: 0",)),
    Call("PATCH", "/nothing-here", ("Content-Length: 0",)),
    Call("GET", "/nothing-here/%2e%2e/%25"),
    Call("GET", "/docs/none/en.md"),
    Call("GET", "/ws"),
]


async def _send(base: str, call: Call, view: str) -> Answer:
    parts = urlsplit(base)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    lines = [f"{call.method} {call.target.format(view=view)} HTTP/1.1", f"Host: {parts.netloc}", *call.headers]
    writer.write("\r\n".join([*lines, "Connection: close", "", ""]).encode() + call.body)
    try:
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
    status, *fields = head.decode("latin-1").split("\r\n")
    headers: dict[str, list[str]] = {}
    for line in fields:
        name, _, value = line.partition(": ")
        if name.lower() not in _OF_THE_HOP:
            headers.setdefault(name.lower(), []).append(value)
    return Answer(int(status.split()[1]), headers, body)


async def test_every_answer_through_the_gateway_equals_comfyuis(pair: Pair) -> None:
    different: dict[str, Any] = {}
    for call in _CALLS:
        direct = await _send(pair.comfyui, call, pair.view)
        through = await _send(pair.gateway, call, pair.view)
        # The gateway has its own endpoint here: it copies status, body and content type, but not ComfyUI's Server.
        if call.method == "POST" and call.target.endswith("/prompt"):
            direct.headers.pop("server", None)
        if direct != through:
            different[str(call)] = (direct, through)
    assert different == {}
