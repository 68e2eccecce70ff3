"""Around every request: counting, faults, the origin check."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import math
import socket
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlparse, urlsplit

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from comfyui.engine.crashing import CRASHES, crash
from comfyui.engine.faults import Config, Faults, with_wrong_value
from comfyui.engine.stats import Stats

_BLANKS_AT_ONCE = 64 * 1024
OWN_PREFIX = "/engine/"


def asking(headers: Mapping[str, str]) -> Middleware:
    """Acts as a proxy in front of ComfyUI that wants credentials."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        if any(request.headers.get(name) != value for name, value in headers.items()):
            return web.Response(status=401, text="credentials are required", headers={"WWW-Authenticate": "Bearer"})
        return await handler(request)

    return middleware


def counting(stats: Stats) -> Middleware:
    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        if not request.path.startswith(OWN_PREFIX):
            resource = request.match_info.route.resource
            stats.count_request(request.method, _without_api(resource.canonical if resource else request.path))
        return await handler(request)

    return middleware


def _without_api(path: str) -> str:
    # The job routes live below /api alone; all others are twins of one without it.
    return path.removeprefix("/api") if not path.startswith("/api/jobs") else path


def failing(faults: Faults, stopping: asyncio.Event) -> Middleware:
    """The faults that concern a request as such. `stopping` ends what hangs."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path.startswith(OWN_PREFIX):
            return await handler(request)
        facts = {"route": _without_api(request.path), "method": request.method}
        delay = faults.take("delay", **facts)
        if delay is not None:
            await _wait(float(delay.get("seconds", 1)), stopping)
        status = faults.take("status", **facts)
        if status is not None:
            return web.Response(status=int(status.get("status", 500)), text=str(status.get("body", "")))
        for how in CRASHES:
            if (config := faults.take(how, **facts)) is not None:
                crash(how, config)
        hang = faults.take("hang", **facts)
        if hang is not None:
            await _wait(hang.get("seconds"), stopping)
            return _cut(request)
        if faults.take("cut", **facts) is not None or _loses(faults, facts, "before"):
            return _cut(request)
        half = faults.take("half_json", **facts)
        response = await handler(request)
        wrong = faults.take("wrong_value", **facts)
        if wrong is not None and isinstance(response, web.Response) and isinstance(response.body, bytes):
            response = web.Response(
                text=with_wrong_value(wrong, response.body.decode() or "null"),
                status=response.status,
                content_type="application/json",
            )
        long = faults.take("long_answer", **facts)
        if long is not None and isinstance(response, web.Response):
            return await _send_long(request, response, long)
        if half is not None and isinstance(response, web.Response):
            return await _send_half(request, response)
        if _loses(faults, facts, "after"):
            return _cut(request)
        return response

    return middleware


def _loses(faults: Faults, facts: Config, when: str) -> bool:
    is_submission = facts["method"] == "POST" and facts["route"] == "/prompt"
    return is_submission and faults.take(f"prompt_reply_lost_{when}_queue") is not None


async def _wait(seconds: Any, stopping: asyncio.Event) -> None:
    try:
        await asyncio.wait_for(stopping.wait(), None if seconds is None else float(seconds))
    except TimeoutError:
        return


def _cut(request: web.Request) -> web.StreamResponse:
    """Ends the connection; the response that aiohttp wants goes nowhere."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response()


async def _send_half(request: web.Request, whole: web.Response) -> web.StreamResponse:
    body = whole.body if isinstance(whole.body, bytes | bytearray) else b"{}"
    response = web.StreamResponse(status=whole.status, headers={"Content-Type": whole.content_type})
    response.content_length = len(body)
    await response.prepare(request)
    await response.write(bytes(body[: len(body) // 2]))
    if request.transport is not None:
        request.transport.close()
    return response


async def _send_long(request: web.Request, whole: web.Response, config: Config) -> web.StreamResponse:
    response = web.StreamResponse(status=whole.status, headers={"Content-Type": whole.content_type})
    left = float(config.get("bytes", math.inf))
    with contextlib.suppress(ConnectionError):
        await response.prepare(request)
        while left > 0:
            await response.write(b" " * int(min(left, _BLANKS_AT_ONCE)))
            left -= _BLANKS_AT_ONCE
        await response.write(bytes(whole.body) if isinstance(whole.body, bytes | bytearray) else b"")
    return response


@web.middleware
async def same_origin(request: web.Request, handler: Handler) -> web.StreamResponse:
    """ComfyUI's guard against web pages that post to a local server: on a loopback host, Origin must be Host."""
    host, origin = request.headers.get("Host"), request.headers.get("Origin")
    if host is not None and origin is not None and await _differ(host.lower(), origin.lower()):
        return web.Response(status=403)
    if request.method == "OPTIONS":
        return web.Response()
    return await handler(request)


async def _differ(host: str, origin: str) -> bool:
    parsed_host, parsed_origin = urlsplit(f"//{host}"), urlparse(origin)
    if not await _is_loopback(parsed_host.hostname):
        return False
    host_name: str | None = host
    origin_name: str | None = parsed_origin.netloc
    # A port that only one of them names is not compared.
    if parsed_origin.port is None:
        host_name = parsed_host.hostname
    if parsed_host.port is None:
        origin_name = parsed_origin.hostname
    return bool(host_name) and bool(origin_name) and host_name != origin_name


async def _is_loopback(host: str | None) -> bool:
    if host is None:
        return False
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        pass
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return False
    return bool(found) and all(ipaddress.ip_address(address[4][0]).is_loopback for address in found)
