"""Callers, a server whose answers hypothesis chooses byte by byte, and between them our client or a whole gateway.

Each call has an identity, and its answer carries it. h11r reads each byte that reaches the server, and each byte that a
gateway sends to its client; h11 reads them again at the end.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
import uuid
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import h11r
from yarl import URL

from comfyui.exceptions import Http1Error, NoAnswerError
from comfyui.transport.body import IteratedBody, RequestBody
from comfyui.transport.http1 import Http1Client
from tests.framing.judges import Reading, RefusedError, Request, RequestsJudge, answer_by_h11, answer_by_h11r
from tests.framing.making import Pairs
from tests.framing.reading import Tally, normal, rule_of

_IDEMPOTENT = {"GET", "HEAD", "PUT", "DELETE", "OPTIONS"}
PATIENCE_S = 20.0
# How long a client may wait for the rest of an incomplete answer before the server closes the connection.
_LINGER_S = 0.02


@dataclass
class Call:
    """One request and what the server does with it."""

    number: int
    method: str
    path: str
    headers: Pairs
    body: list[bytes] | None
    chunked: bool
    answer: list[bytes]
    """The answer's segments; other tasks may run between them."""
    valid: bool
    early: bool = False
    """Whether the server answers when it has the request's head."""
    then: str = "keep"
    cancelled_after: int | None = None
    """Number of turns of the event loop after which the caller leaves."""
    raw: bool = False
    """Whether the caller requests a prompt's file, which the gateway then requests from the server."""
    seen: int = 0

    @property
    def identity(self) -> bytes:
        return b"id-%08d;" % self.number

    @property
    def target(self) -> str:
        return f"/prompt_sync/{self.prompt_id}" if self.raw else f"/t/{self.number:08}{self.path}"

    @property
    def prompt_id(self) -> str:
        return str(uuid.UUID(int=self.number))

    @property
    def sent(self) -> bytes:
        return b"".join(self.body or [])

    def judged(self) -> Reading | None:
        """What the stricter judge reads, or None if it refuses the answer or never sees its end."""
        try:
            # The server closes the connection after each answer whose end is in doubt.
            reading = normal(answer_by_h11r(self.method, b"".join(self.answer), ended=self.then != "reset"))
        except RefusedError:
            return None
        return reading if reading.complete else None

    @property
    def keeps(self) -> bool:
        """Whether another request may follow on the connection."""
        try:
            reading = answer_by_h11r(self.method, b"".join(self.answer), ended=False)
        except RefusedError:
            return False
        closes = any(name == b"connection" and b"close" in value.lower() for name, value in reading.headers)
        return reading.complete and not reading.excess and not closes

    @property
    def disturbs(self) -> bool:
        return self.then != "keep" or self.early or not self.valid or self.cancelled_after is not None


class Server:
    """Answers each call as the call says, and a gateway's other requests as an idle ComfyUI does."""

    def __init__(self, tally: Tally) -> None:
        self.tally = tally
        self.calls: dict[int, Call] = {}
        self.connections: list[_Served] = []
        self.tasks: set[asyncio.Task[None]] = set()
        self.url = ""

    def differs(self, what: str) -> None:
        self.tally.differences.append(what)

    def call_of(self, request: Request) -> Call | None:
        path = request.target.decode("latin-1").partition("?")[0]
        if path.startswith("/t/"):
            return self.calls.get(int(path.split("/")[2]))
        if path == "/view":
            return self.calls.get(int(request.target.decode().partition("filename=")[2].partition(".")[0]))
        return None

    def check(self) -> None:
        """Lets h11 read, at the end of an example, what h11r has read."""
        for served in self.connections:
            self.tally.bytes_sent += len(served.judge.transcript)
            try:
                served.judge.check_with_h11()
            except RefusedError as error:
                self.differs(str(error))
        self.connections = [served for served in self.connections if served.open]
        for served in self.connections:
            served.judge.forget()


class _Served(asyncio.Protocol):
    def __init__(self, server: Server) -> None:
        self._server = server
        self.judge = RequestsJudge(self._on_request)
        self.open = True
        self._answering: Call | None = None
        self._spent = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: asyncio.Transport = transport  # type: ignore[assignment]
        self._server.connections.append(self)

    def connection_lost(self, _error: Exception | None) -> None:
        self.open = False

    def data_received(self, data: bytes) -> None:
        if self._spent and self.judge.between_requests:
            self._server.differs(f"a connection is used again after {self._answering!r}: {data!r}")
        try:
            self.judge.feed(data)
        except RefusedError as error:
            self._server.differs(str(error))
            self._transport.abort()

    def _on_request(self, request: Request, whole: bool) -> None:
        call = self._server.call_of(request)
        if call is None:
            if whole:
                self._transport.write(_as_idle_comfyui(request))
            return
        if whole:
            self._check(request, call)
        if whole != call.early:
            call.seen += 1
            self._answering, self._spent = call, True
            task = asyncio.get_running_loop().create_task(self._answer(call))
            self._server.tasks.add(task)
            task.add_done_callback(self._server.tasks.discard)

    def _check(self, request: Request, call: Call) -> None:
        """Reports a difference unless the request arrived as the call made it."""
        if call.raw:
            return
        wanted = (call.method.encode(), call.target.encode(), call.sent)
        if (request.method, request.target, request.body) != wanted:
            self._server.differs(f"sent {wanted!r}, arrived {request!r}")
        if any((name.lower(), value) not in request.headers for name, value in call.headers):
            self._server.differs(f"sent {call.headers!r}, arrived {request!r}")

    async def _answer(self, call: Call) -> None:
        *before, last = call.answer or [b""]
        for segment in before:
            if self._transport.is_closing():
                return  # the client has left
            self._transport.write(segment)
            for _ in range(3):
                await asyncio.sleep(0)
        if self._transport.is_closing():
            return
        # After the last byte of the answer, the client may use the connection again.
        self._spent = not (call.then == "keep" and call.keeps)
        self._transport.write(last)
        if call.then == "close":
            self._transport.close()
        elif call.then == "reset":
            linger = struct.pack("ii", 1, 0)
            self._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self._transport.abort()
        elif self._spent:
            await asyncio.sleep(_LINGER_S)
            if not self._transport.is_closing():
                self._transport.close()


def _as_idle_comfyui(request: Request) -> bytes:
    path = request.target.decode("latin-1").partition("?")[0].removeprefix("/api")
    if path.startswith("/history/"):
        prompt_id = path.removeprefix("/history/")
        file = {"filename": f"{uuid.UUID(prompt_id).int}.bin", "subfolder": "", "type": "output"}
        entry = {
            "prompt": [1, prompt_id, {}, {}, ["9"]],
            "outputs": {"9": {"images": [file]}},
            "status": {"status_str": "success", "completed": True, "messages": []},
        }
        body = json.dumps({prompt_id: entry}).encode()
    elif path == "/ws":
        return b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
    elif path == "/queue":
        body = b'{"queue_running": [], "queue_pending": []}'
    elif path == "/prompt":
        body = b'{"exec_info": {"queue_remaining": 0}}'
    else:
        body = b"{}"
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


@asynccontextmanager
async def serving(tally: Tally) -> AsyncIterator[Server]:
    server = Server(tally)
    listening = await asyncio.get_running_loop().create_server(lambda: _Served(server), "127.0.0.1", 0)
    server.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    try:
        yield server
    finally:
        listening.close()
        for task in list(server.tasks):
            task.cancel()


# Our client alone


async def through_client(server: Server, calls: list[Call], limit: int) -> None:
    """Makes all calls at once, through one client with at most `limit` connections."""
    server.calls = {call.number: call for call in calls}
    client = Http1Client(URL(server.url), limit=limit)
    try:
        await _all(_call(server, client, call, quiet=not any(one.disturbs for one in calls)) for call in calls)
    finally:
        await client.close()
        await _settled(server)
    server.check()


async def _all(coroutines: Any) -> None:
    async with asyncio.timeout(PATIENCE_S):
        await asyncio.gather(*coroutines)


async def _settled(server: Server) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while server.tasks or any(served.open for served in server.connections):
            await asyncio.sleep(0)


async def _call(server: Server, client: Http1Client, call: Call, *, quiet: bool) -> None:
    server.tally.examples += 1
    server.tally.readings += 1
    asking = asyncio.ensure_future(_asked(client, call))
    if call.cancelled_after is not None:
        for _ in range(call.cancelled_after):
            await asyncio.sleep(0)
        asking.cancel()
    try:
        ours = await asking
    except asyncio.CancelledError:
        return
    except Http1Error as error:
        _judge_failure(server, call, error, quiet=quiet)
        return
    server.tally.complete += 1
    server.tally.bytes_read += sum(map(len, call.answer))
    if ours != call.judged():
        server.differs(f"{call!r}: we read {ours!r}, h11r {call.judged()!r}")


def _judge_failure(server: Server, call: Call, error: Exception, *, quiet: bool) -> None:
    server.tally.refused += 1
    if quiet:
        server.differs(f"nothing was wrong, and {call!r} failed: {error!r}")
    elif call.valid and call.then == "keep" and call.cancelled_after is None:
        # The connection from the pool may have been closed after the previous call.
        once = call.method not in _IDEMPOTENT or (call.body is not None and len(call.body) > 1)
        if not (once and type(error) is NoAnswerError):
            server.differs(f"{call!r} failed: {error!r}")
    elif call.judged() is not None and call.then != "reset" and not (call.early or call.valid):
        ours_to_refuse = rule_of(b"".join(call.answer)) is not None or type(error) is NoAnswerError
        if not ours_to_refuse:
            server.differs(f"{call!r} failed, which h11r reads as {call.judged()!r}: {error!r}")


async def _asked(client: Http1Client, call: Call) -> Reading:
    answer = await client.request(call.method, call.target, call.headers, _body(call), timeout_s=PATIENCE_S / 4)
    content = []
    try:
        while part := await answer.read(PATIENCE_S / 4):
            content.append(part)
    finally:
        answer.close()
    return normal(Reading(answer.status, tuple(answer.headers), b"".join(content), True, _has_excess(call)))


def _has_excess(call: Call) -> bool:
    """Whether bytes follow the answer. Our client does not report that: it closes the connection."""
    reading = call.judged()
    return reading is not None and reading.excess


def _body(call: Call) -> RequestBody | None:
    if call.body is None:
        return None
    if len(call.body) == 1:
        return call.body[0]

    async def parts() -> AsyncIterator[bytes]:
        for part in call.body or []:
            yield part
            await asyncio.sleep(0)

    return IteratedBody(parts(), None if call.chunked else len(call.sent))


# A whole gateway


async def through_gateway(server: Server, gateway: str, callers: list[list[Call]]) -> None:
    """Runs concurrent callers, each with its own connection and one call after the other."""
    calls = [call for caller in callers for call in caller]
    server.calls = {call.number: call for call in calls}
    quiet = not any(call.disturbs for call in calls)
    await _all(_Caller(server, gateway, quiet=quiet).run(caller) for caller in callers)
    async with asyncio.timeout(PATIENCE_S):
        while server.tasks:
            await asyncio.sleep(0)
    server.check()


class _Caller:
    def __init__(self, server: Server, gateway: str, *, quiet: bool) -> None:
        parts = urlsplit(gateway)
        self._address = (parts.hostname, parts.port)
        self._server = server
        self._quiet = quiet
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def run(self, calls: list[Call]) -> None:
        try:
            for call in calls:
                self._server.tally.examples += 1
                self._server.tally.readings += 1
                if self._streams is None:
                    self._streams = await asyncio.open_connection(*self._address, limit=1 << 20)
                await self._call(call)
        finally:
            self._leave()

    def _leave(self) -> None:
        if self._streams is not None:
            self._streams[1].transport.abort()
            self._streams = None

    async def _call(self, call: Call) -> None:
        assert self._streams is not None
        reader, writer = self._streams
        judge = h11r.Connection(h11r.Role.CLIENT, max_head_bytes=1 << 17, max_header_count=10_000)
        sending = asyncio.create_task(_send(writer, _request_of(judge, call)))
        reading, came = Reading(), bytearray()
        try:
            await self._read(reader, judge, reading, came)
        except h11r.ProtocolError as error:
            self._server.differs(f"the gateway answers {call!r} with {bytes(came)!r}: {error}")
        finally:
            sending.cancel()
            with contextlib.suppress(asyncio.CancelledError, ConnectionError):
                await sending
        self._server.tally.bytes_read += len(came)
        self._check(call, reading, bytes(came))
        closes = any(name == b"connection" and value.lower() == b"close" for name, value in reading.headers)
        if not reading.complete or closes or call.early:
            self._leave()

    async def _read(
        self, reader: asyncio.StreamReader, judge: h11r.Connection, reading: Reading, came: bytearray
    ) -> None:
        parts: list[bytes] = []
        while not reading.complete:
            match judge.next_event():
                case h11r.Response() as head:
                    reading.status = head.status_code
                    reading.headers = tuple((name.lower(), value) for name, value in head.headers)
                case h11r.Data() as part:
                    parts.append(part.data)
                case h11r.EndOfMessage():
                    reading.complete = True
                case h11r.ReceiveStatus():
                    data = b""
                    with contextlib.suppress(ConnectionError):
                        data = await reader.read(1 << 18)
                    came += data
                    if not data:
                        break  # cut
                    judge.receive_data(data)
                case _:
                    break
        reading.body = b"".join(parts)
        reading.excess = bool(judge.trailing_data[0])

    def _check(self, call: Call, ours: Reading, came: bytes) -> None:
        differs, theirs = self._server.differs, call.judged()
        if ours.complete:
            again = answer_by_h11(call.method, came, ended=False)
            if (again.status, again.body, again.complete) != (ours.status, ours.body, True) or ours.excess:
                differs(f"h11 reads {again!r} where h11r reads {ours!r}")
        own = [value for name, value in ours.headers if name == b"x-id"]
        if any(value not in b"".join(call.answer) for value in own):
            differs(f"{call!r} got the answer of {own!r}")
        if theirs is not None and call.raw and theirs.status != 200:
            theirs = None  # the gateway reports that in an answer of its own
        if ours.complete and theirs is not None and ours.status == theirs.status and ours.body == theirs.body:
            self._server.tally.complete += 1
            if not call.raw and own != [call.identity] and call.valid:
                differs(f"{call!r} has lost its identity: {ours!r}")
            return
        self._server.tally.refused += 1
        if ours.complete and not (ours.status >= 400 and b'"request_id"' in ours.body) and call.method != "HEAD":
            differs(f"{call!r} got {ours!r}, h11r reads {theirs!r}")
        elif self._quiet and theirs is not None:
            differs(f"nothing was wrong, and {call!r} got {ours!r} instead of {theirs!r}")
        elif theirs is not None and not call.disturbs and call.method in _IDEMPOTENT and not call.body:
            differs(f"{call!r} got {ours!r}, h11r reads {theirs!r}")


def _request_of(judge: h11r.Connection, call: Call) -> list[bytes]:
    """The request as h11r writes it, in the pieces of the call's body."""
    headers = [(b"Host", b"x"), *call.headers]
    if call.raw:
        headers.append((b"Accept", b"application/octet-stream"))
    if call.body is not None:
        headers.append(
            (b"Transfer-Encoding", b"chunked") if call.chunked else (b"Content-Length", str(len(call.sent)).encode())
        )
    pieces = [judge.send_request(call.method, call.target, headers)]
    pieces += [judge.send_data(part) for part in call.body or [] if part]
    return [*pieces, judge.end_of_message()]


async def _send(writer: asyncio.StreamWriter, pieces: list[bytes]) -> None:
    for piece in pieces:
        writer.write(piece)
        await writer.drain()
        await asyncio.sleep(0)


@dataclass
class Arena:
    """An event loop that runs one example after the other, because hypothesis is synchronous."""

    loop: asyncio.AbstractEventLoop
    _stack: contextlib.AsyncExitStack = field(default_factory=contextlib.AsyncExitStack)

    def open(self, context: contextlib.AbstractAsyncContextManager[Any]) -> Any:
        return self.run(self._stack.enter_async_context(context))

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(coroutine)

    def close(self) -> None:
        self.run(self._stack.aclose())
        self.run(self.loop.shutdown_asyncgens())
        self.loop.close()
