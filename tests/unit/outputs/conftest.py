"""Fixtures of the tests in this folder."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer


@pytest.fixture
async def accepting_store() -> AsyncIterator[tuple[str, list[str]]]:
    """The address of a store that accepts every request, and the raw paths of its writes in their order."""
    written: list[str] = []

    async def take(request: web.Request) -> web.Response:
        await request.read()
        if "/object/sign/" in request.path:
            return web.json_response({"signedURL": f"/object/sign/{request.path}?token=t"})
        written.append(request.raw_path.partition("?")[0])
        return web.Response(headers={"ETag": '"0"'}) if request.method == "PUT" else web.json_response({"Id": "x"})

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", take)
    async with TestServer(app) as running:
        yield str(running.make_url("")).rstrip("/"), written
