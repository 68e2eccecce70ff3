"""A gateway whose answers a test chooses."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

PROMPT_ID = "0b7c2c5e-3f5b-4c0e-9d3e-6a1f0c7d2e11"
PICTURE = bytes(range(256)) * 1000
WORKFLOW = {"1": {"class_type": "SaveImage", "inputs": {"filename_prefix": "a"}, "_meta": {"title": "Save it"}}}


Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class Asked:
    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class FakeGateway:
    """Gives the answers of ``answers["POST /prompt_sync"]`` one after the other, and repeats the last one."""

    url: str = ""
    answers: dict[str, list[Answer]] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)

    def on(self, route: str, *answers: Answer) -> None:
        self.answers[route] = list(answers)

    def asked_for(self, method: str) -> list[Asked]:
        return [asked for asked in self.asked if asked.method == method]

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(
            Asked(request.method, request.path, dict(request.query), dict(request.headers), await request.read())
        )
        self.arrived.set()
        section = request.path.split("/")[1]
        answers = self.answers.get(f"{request.method} /{section}")
        if not answers:
            return web.Response(status=404, text="404: Not Found")
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        return await answer(request)


@asynccontextmanager
async def fake_gateway() -> AsyncIterator[FakeGateway]:
    fake = FakeGateway()
    app = web.Application(client_max_size=1 << 30)
    app.router.add_route("*", "/{path:.*}", fake.handle)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    assert runner.addresses
    fake.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield fake
    finally:
        await runner.cleanup()


def answer(body: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Answer:
    async def answered(request: web.Request) -> web.StreamResponse:
        return web.json_response(body, status=status, headers=headers)

    return answered


def entry(filename: str = "a_00001_.png", **more: Any) -> dict[str, Any]:
    url = f"/view?filename={filename}&subfolder=&type=output"
    named = {"node_id": "1", "filename": filename, "subfolder": "", "type": "output", "content_type": "image/png"}
    return {**named, "url": url, **more}


def result_body(*entries: Mapping[str, Any], prompt_id: str = PROMPT_ID) -> dict[str, Any]:
    return {
        "prompt_id": prompt_id,
        "status": "success",
        "execution_time": 1.5,
        "outputs": {"1": {"images": []}},
        "images": list(entries),
        "node_errors": {},
        "timings": {"staging": 0.1, "queued": 0.2, "executing": 0.9, "collecting": 0.3},
    }


def error_body(kind: str, **more: Any) -> dict[str, Any]:
    body: dict[str, Any] = {
        "error": f"A {kind}",
        "type": kind,
        "detail": f"it is {kind}",
        "prompt_id": None,
        "node_errors": {},
    }
    return {**body, "timestamp": "2026-11-21T00:00:00Z", "request_id": "r-1", **more}


def page(status: int, html: str, headers: Mapping[str, str] | None = None) -> Answer:
    async def answered(request: web.Request) -> web.StreamResponse:
        return web.Response(status=status, text=html, content_type="text/html", headers=headers)

    return answered


def file_answer(content: bytes, status: int = 200) -> Answer:
    async def answered(request: web.Request) -> web.StreamResponse:
        return web.Response(status=status, body=content, content_type="image/png")

    return answered


async def cut(request: web.Request) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


async def half_a_file(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Length": str(len(PICTURE))})
    await response.prepare(request)
    await response.write(PICTURE[:1000])
    return await cut(request)


async def hang(request: web.Request) -> web.StreamResponse:
    await asyncio.Event().wait()
    raise AssertionError("nothing sets it")


def event_stream(*pieces: bytes) -> Answer:
    async def answered(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)
        for piece in pieces:
            await response.write(piece)
        return response

    return answered


def sse(name: str, **data: Any) -> bytes:
    return f"event: {name}\ndata: {json.dumps({'prompt_id': PROMPT_ID, **data})}\n\n".encode()
