"""A gateway that answers as a test tells it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

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
    """Gives the answers of ``answers["POST /prompt_sync"]`` one after the other, the last one again and again."""

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
