"""A server of pictures that may redirect, stall and lie."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiohttp import web
from PIL import Image

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def picture() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (1, 2, 3)).save(file, "PNG")
    return file.getvalue()


PNG = picture()


@dataclass
class Server:
    """A server on a loopback address, and the requests that it got."""

    host: str
    port: int
    requests: list[web.Request] = field(default_factory=list)

    def url(self, path: str = "/a.png", host: str | None = None) -> str:
        return f"http://{host or self.host}:{self.port}{path}"


@asynccontextmanager
async def serve(handler: Handler, host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[Server]:
    server = Server(host, port)

    async def answer(request: web.Request) -> web.StreamResponse:
        server.requests.append(request)
        return await handler(request)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
        server.port = runner.addresses[0][1]
        yield server
    finally:
        await runner.cleanup()


async def give_png(_request: web.Request) -> web.Response:
    return web.Response(body=PNG, content_type="image/png")
