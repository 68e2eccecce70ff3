"""Three attacks that once worked, each tried many times: none may have an effect."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import aiohttp

from comfyui.engine import Engine
from tests.support.relaying import Exchange, raw_client, relayed
from tests.support.running import RunningGateway, running_gateway

_DENIED = b'"entries"'
"""A part of ComfyUI's log, which PROXY_DENY keeps from clients."""


@dataclass
class Effects:
    """The effects of an attack; every list has to be empty."""

    tries: int = 0
    answers: int = 0
    """Answers that other clients got meanwhile."""
    denied_read: list[bytes] = field(default_factory=list)
    foreign: list[bytes] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    @property
    def none(self) -> bool:
        return self.tries > 0 and self.answers > 0 and not (self.denied_read or self.foreign or self.failed)

    def __str__(self) -> str:
        return (
            f"{self.tries} tries, {self.answers} answers to other clients: {len(self.denied_read)} denied pages read, "
            f"{len(self.foreign)} foreign answers, {len(self.failed)} failed requests"
        )


@asynccontextmanager
async def _victims(gateway: RunningGateway, effects: Effects, key: str | None) -> AsyncIterator[None]:
    """Other clients that make the same small request all the time."""
    headers = {} if key is None else {"X-API-Key": key}

    async def ask(http: aiohttp.ClientSession) -> None:
        while True:
            try:
                async with http.get("/features", headers=headers) as response:
                    body = await response.read()
            except (aiohttp.ClientError, TimeoutError) as error:
                effects.failed.append(repr(error))
                continue
            effects.answers += 1
            if response.status != 200 or b"supports_preview_metadata" not in body:
                effects.foreign.append(body[:200])

    timeout = aiohttp.ClientTimeout(total=5)
    async with aiohttp.ClientSession(base_url=gateway.url, timeout=timeout) as http:
        tasks = [asyncio.create_task(ask(http)) for _ in range(4)]
        try:
            yield
            # The next requests would meet what an attack leaves behind.
            before = effects.answers
            async with asyncio.timeout(20):
                while effects.answers < before + 20 and not effects.failed:
                    await asyncio.sleep(0.01)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def _sent(gateway: RunningGateway, data: bytes, effects: Effects, patience_s: float = 0.05) -> bytes:
    """Sends the data on a new connection; returns what comes back until it is closed or silent for a moment."""
    effects.tries += 1
    answer = b""
    async with raw_client(gateway.url) as (reader, writer):
        writer.write(data)
        with contextlib.suppress(TimeoutError, ConnectionError):
            while piece := await asyncio.wait_for(reader.read(65536), patience_s):
                answer += piece
    if _DENIED in answer:
        effects.denied_read.append(answer)
    return answer


async def connection_names_the_length(tries: int) -> Effects:
    """``Connection: content-length`` in front of a body that is a request for a denied path."""
    effects = Effects()
    head = b"GET /features HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer attacker\r\n"
    async with (
        Engine() as engine,
        running_gateway(engine.url, api_keys=("attacker", "victim"), proxy_mode="api") as gateway,
        _victims(gateway, effects, "victim"),
    ):
        smuggled = b"GET /internal/logs/raw HTTP/1.1\r\nHost: x\r\n\r\n"
        for number in range(tries):
            named = (b"content-length", b"Content-Length , host", b"close, content-length", b"transfer-encoding")[
                number % 4
            ]
            length = b"Connection: %b\r\nContent-Length: %d\r\n\r\n" % (named, len(smuggled))
            await _sent(gateway, head + length + smuggled + (head + b"\r\n") * 3, effects)
    return effects


async def upgrade_with_a_body(tries: int) -> Effects:
    """``Upgrade``, or CONNECT, in front of a body that is a request for a denied path."""
    effects = Effects()
    smuggled = b"GET /internal/logs/raw HTTP/1.1\r\nHost: x\r\n\r\n"
    length = b"Content-Length: %d\r\n\r\n" % len(smuggled) + smuggled
    chunked = b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(smuggled), smuggled)
    longer = b"Content-Length: 5000\r\n\r\n" + smuggled
    starts = (
        b"POST /nonexistent HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: foo\r\n",
        b"CONNECT /queue HTTP/1.1\r\nHost: h\r\n",
        b"GET /features HTTP/1.1\r\nHost: h\r\nConnection: keep-alive, upgrade\r\nUpgrade: websocket\r\n",
        b"PUT /userdata/x HTTP/1.1\r\nHost: h\r\nConnection: upgrade\r\nUpgrade: h2c\r\n",
    )
    async with Engine() as engine, running_gateway(engine.url) as gateway, _victims(gateway, effects, None):
        for number in range(tries):
            body = (length, chunked, longer)[number % 3]
            await _sent(gateway, starts[number % 4] + body, effects)
    return effects


async def two_answers_at_once(tries: int, callers: int = 10) -> Effects:
    """A server that sends two answers in one segment, while others share its connections."""
    effects = Effects()
    poison = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nPOISON"

    async def answering(exchange: Exchange) -> None:
        name = exchange.line.split(" ")[1].encode()
        answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(name), name)
        await exchange.send(answer + poison * (2 if b"evil" in name else 0))

    async with relayed(answering) as (_, gateway):

        async def ask(path: str) -> None:
            async with asyncio.timeout(30), gateway.http.get(path) as response:
                body = await response.read()
            effects.answers += 1
            if body != path.encode():
                effects.foreign.append(body)

        for number in range(tries):
            effects.tries += 1
            paths = [f"/t/{'evil' if caller % 4 == 0 else 'x'}/{number}/{caller}" for caller in range(callers)]
            results = await asyncio.gather(*map(ask, paths), return_exceptions=True)
            effects.failed += [repr(result) for result in results if isinstance(result, Exception)]
    return effects


ATTACKS: dict[str, Callable[[int], Coroutine[None, None, Effects]]] = {
    "Connection: content-length": connection_names_the_length,
    "Upgrade or CONNECT with a body": upgrade_with_a_body,
    "two answers in one segment": two_answers_at_once,
}
