"""How `ComfyUIClient` sends its requests: the drivers' edge, where each one's errors become ours.

`AiohttpTransport` is what a `ComfyUIClient` uses by itself. `Http1Transport` does the same with a third of the work for
each request, and is what the gateway and the workers use: aiohttp's three requests were more than a third of what the
gateway added to a prompt (docs/performance.md).
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import ssl
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Protocol

import aiohttp
from yarl import URL

from comfyui.exceptions import (
    AnswerTimeoutError,
    AnswerTooLongError,
    ComfyUIConnectionError,
    ComfyUIDescriptorsError,
    ComfyUIError,
    ComfyUIServerError,
    ConnectError,
    CutShortError,
    Http1Error,
    InvalidAnswerError,
    InvalidRequestError,
)
from comfyui.limits import DEFAULT_ANSWERS, AnswerLimits
from comfyui.tasks import end_tasks
from comfyui.transport.body import OpenBody
from comfyui.transport.connection import Answer
from comfyui.transport.framing import RawHeaders, header_value
from comfyui.transport.http1 import CONNECT_S, Http1Client
from comfyui.transport.splice import Splice

Headers = Mapping[str, str]
_NONE: Mapping[str, str] = {}
_CONNECTIONS = 100
_FILES_AT_ONCE = 400
_CUT_OFF = "the answer was cut off"
REFUSING = frozenset({401, 403})
"""Statuses that say: not to this gateway."""


@dataclass(frozen=True, slots=True)
class RawReply:
    """An answer of ComfyUI as it came."""

    status: int
    content_type: str
    body: bytes


@dataclass(frozen=True, slots=True)
class OpenReply:
    """An answer whose body has still to be read."""

    status: int
    headers: RawHeaders
    body: OpenBody

    def header(self, name: bytes) -> str | None:
        """The first of that name, which is given in lower case."""
        value = header_value(self.headers, name)
        return None if value is None else value.decode("latin-1")

    def close(self) -> None:
        self.body.close()


class AnswerBody(OpenBody):
    """The body of an answer of `comfyui.transport.http1`.

    Args:
        silence_s: nothing may come for so long; 0 is any time.
        ours: what an error of the connection is to the caller.
    """

    def __init__(self, answer: Answer, silence_s: float, ours: Callable[[Http1Error], ComfyUIError]) -> None:
        length = header_value(answer.headers, b"content-length")
        super().__init__(int(length) if length else None)
        self._answer = answer
        self._silence_s = silence_s
        self._ours = ours

    async def read(self) -> bytes:
        try:
            return await self._answer.read(self._silence_s)
        except Http1Error as error:
            raise self._ours(error) from error

    async def read_or_splice(self) -> bytes | Splice:
        try:
            return await self._answer.read_or_splice(self._silence_s)
        except Http1Error as error:
            raise self._ours(error) from error

    def at_end(self) -> bool:
        return self._answer.at_end()

    def close(self) -> None:
        self._answer.close()


class _AiohttpBody(OpenBody):
    def __init__(self, response: aiohttp.ClientResponse, name: str, what: str) -> None:
        super().__init__(response.content_length)
        self._response = response
        self._name = name
        self._what = what

    async def read(self) -> bytes:
        with aiohttp_errors(self._name, self._what):
            return await self._response.content.readany()

    def close(self) -> None:
        self._response.close()


class Transport(Protocol):
    """Requests to one server over connections that are kept open; each is sent once. A target is path and query.

    Both verbs raise `ComfyUIConnectionError`, whose ``sent`` says whether the server may have got the request.
    """

    async def fetch(
        self,
        method: str,
        target: str,
        *,
        body: bytes | None = None,
        headers: Headers = _NONE,
        last_word_s: float = 0.0,
    ) -> RawReply:
        """The whole answer, whatever its status, within the timeout.

        Args:
            last_word_s: when the call is cancelled, how long what was sent may still take to be answered.
        """

    async def open(self, target: str, headers: Headers = _NONE) -> OpenReply:
        """The answer to a GET as it comes; only silence is timed. The caller closes it."""

    async def close(self) -> None: ...


class Http1Transport:
    """Over `comfyui.transport.http1`. Redirects are answers like any other.

    Args:
        name: the server, as errors call it.
        credentials: headers that the server asks for.
        answers: how much of an answer `fetch` takes.
        tls: None trusts what the system does.
    """

    def __init__(
        self,
        base_url: URL,
        name: str,
        credentials: Headers,
        timeout_s: float,
        answers: AnswerLimits = DEFAULT_ANSWERS,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._http = Http1Client(base_url, limit=_CONNECTIONS, tls=tls)
        # Apart from the others: clients that are slow to read their files must not hold up everybody's prompts.
        self._files = Http1Client(base_url, limit=_FILES_AT_ONCE, tls=tls)
        self._name = name
        self._timeout_s = timeout_s
        self._answers = answers
        self._headers = [(b"Accept", b"*/*"), (b"Accept-Encoding", b"identity")]
        self._headers += [(name.encode(), value.encode("latin-1")) for name, value in credentials.items()]

    async def fetch(
        self,
        method: str,
        target: str,
        *,
        body: bytes | None = None,
        headers: Headers = _NONE,
        last_word_s: float = 0.0,
    ) -> RawReply:
        what = _what(method, target)
        try:
            answer, content = await self._http.fetch(
                method,
                target,
                self._with(headers),
                body,
                timeout_s=self._timeout_s,
                max_bytes=self._answers.max_bytes,
                last_word_s=last_word_s,
            )
        except (Http1Error, InvalidRequestError) as error:
            raise self._ours(error, what) from error
        _refuse_compressed(_text(answer, b"content-encoding"), what)
        return RawReply(answer.status, _text(answer, b"content-type") or "application/json", content)

    async def open(self, target: str, headers: Headers = _NONE) -> OpenReply:
        what = _what("GET", target)
        try:
            answer = await self._files.request("GET", target, self._with(headers), timeout_s=self._timeout_s)
        except (Http1Error, InvalidRequestError) as error:
            raise self._ours(error, what) from error
        reply = OpenReply(
            answer.status, answer.headers, AnswerBody(answer, self._timeout_s, lambda error: self._ours(error, what))
        )
        try:
            _refuse_compressed(reply.header(b"content-encoding"), what)
        except ComfyUIServerError:
            reply.close()
            raise
        return reply

    async def close(self) -> None:
        await self._http.close()
        await self._files.close()

    def _with(self, headers: Headers) -> list[tuple[bytes, bytes]]:
        more = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
        return self._headers + more

    def _ours(self, error: Http1Error | InvalidRequestError, what: str) -> ComfyUIError:
        match error:
            case AnswerTooLongError():
                return self._answers.too_long(what)
            case InvalidRequestError():
                return ComfyUIError(str(error))
            case ConnectError():
                return unreachable(self._name, error.__cause__)
            case AnswerTimeoutError():
                return too_late(self._name, what)
            case InvalidAnswerError():
                return ComfyUIConnectionError(f"{what}: the answer is not valid HTTP: {error}", sent=True)
            case CutShortError():
                return ComfyUIConnectionError(f"{what}: {_CUT_OFF}", sent=True)
            case _:
                return ComfyUIConnectionError(f"{what}: the connection was closed without an answer", sent=True)


class AiohttpTransport:
    """Over a session of aiohttp's, which belongs to whoever opened it.

    Redirects are answers like any other: followed, they could take the server's credentials to another one.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        base_url: URL,
        name: str,
        timeout_s: float,
        answers: AnswerLimits = DEFAULT_ANSWERS,
    ) -> None:
        self._session = session
        self._answers = answers
        self._base = str(base_url).rstrip("/")
        self._name = name
        self._timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=min(CONNECT_S, timeout_s))
        # Files are of any size: only silence ends them.
        self._file_timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=timeout_s)

    async def fetch(
        self,
        method: str,
        target: str,
        *,
        body: bytes | None = None,
        headers: Headers = _NONE,
        last_word_s: float = 0.0,
    ) -> RawReply:
        request = self._fetch(method, target, body, headers)
        if not last_word_s:
            return await request
        sending = asyncio.create_task(request)
        try:
            return await asyncio.shield(sending)
        except asyncio.CancelledError:
            await asyncio.wait([sending], timeout=last_word_s)
            await end_tasks(sending)
            raise

    async def _fetch(self, method: str, target: str, body: bytes | None, headers: Headers) -> RawReply:
        what = _what(method, target)
        with aiohttp_errors(self._name, what):
            async with self._session.request(
                method, self._url(target), data=body, headers=headers, timeout=self._timeout, allow_redirects=False
            ) as response:
                return await self._whole(response, what)

    async def open(self, target: str, headers: Headers = _NONE) -> OpenReply:
        # Compressed, a file would have another length than the one that is announced.
        headers = {"Accept-Encoding": "identity", **headers}
        what = _what("GET", target)
        with aiohttp_errors(self._name, what):
            response = await self._session.get(
                self._url(target), headers=headers, timeout=self._file_timeout, allow_redirects=False
            )
        return OpenReply(response.status, response.raw_headers, _AiohttpBody(response, self._name, what))

    async def upload(self, path: str, form: aiohttp.MultipartWriter) -> RawReply:
        """A POST of any length; only silence is timed."""
        what = f"POST {path}"
        with aiohttp_errors(self._name, what):
            async with self._session.post(
                self._url(path), data=form, timeout=self._file_timeout, allow_redirects=False
            ) as response:
                return await self._whole(response, what)

    async def _whole(self, response: aiohttp.ClientResponse, what: str) -> RawReply:
        content_type = response.headers.get("Content-Type", "application/json")
        return RawReply(response.status, content_type, await whole_body(response, self._answers, what))

    async def close(self) -> None:
        """The session is somebody else's."""

    def _url(self, target: str) -> URL:
        return URL(f"{self._base}{target}", encoded=True)


async def whole_body(response: aiohttp.ClientResponse, answers: AnswerLimits, what: str) -> bytes:
    """Raises `ComfyUIUnreadableError` when it is too long."""
    pieces: list[bytes] = []
    size = 0
    async for piece in response.content.iter_any():
        pieces.append(piece)
        size += len(piece)
        if size > answers.max_bytes:
            raise answers.too_long(what)
    return b"".join(pieces)


@contextmanager
def aiohttp_errors(name: str, what: str) -> Iterator[None]:
    """Whatever aiohttp raises in the block, as `ComfyUIConnectionError`.

    Args:
        name: the server.
        what: the request.
    """
    try:
        yield
    except aiohttp.ClientConnectorError as error:
        raise unreachable(name, error.os_error) from error
    except aiohttp.ConnectionTimeoutError as error:
        raise unreachable(name, error) from error
    except TimeoutError as error:
        raise too_late(name, what) from error
    except (aiohttp.ClientError, OSError) as error:
        raise ComfyUIConnectionError(f"{what}: {_reason(error)}", sent=True) from error


def refusing_redirects() -> aiohttp.TraceConfig:
    """For a session whose websockets carry credentials: aiohttp has no other way to keep these from following."""

    async def refuse(
        _session: aiohttp.ClientSession, _context: SimpleNamespace, params: aiohttp.TraceRequestRedirectParams
    ) -> None:
        response = params.response
        raise aiohttp.WSServerHandshakeError(
            response.request_info, response.history, status=response.status, message="redirected"
        )

    config = aiohttp.TraceConfig()
    config.on_request_redirect.append(refuse)
    return config


def unreachable(name: str, cause: BaseException | None) -> ComfyUIConnectionError:
    """No connection could be made: nothing was sent."""
    if isinstance(cause, OSError) and cause.errno in {errno.EMFILE, errno.ENFILE}:
        return ComfyUIDescriptorsError("the gateway has no file descriptor left for a connection (ulimit -n)")
    if isinstance(cause, TimeoutError):
        return ComfyUIConnectionError(f"{name} did not accept a connection in time")
    if isinstance(cause, ssl.SSLCertVerificationError):
        said = cause.verify_message.rstrip(".")
        detail = (
            f"the TLS certificate of {name} is not trusted ({said}): COMFYUI_TLS_VERIFY takes a file with its authority"
        )
        return ComfyUIConnectionError(detail)
    if isinstance(cause, ssl.SSLError):
        said = (cause.reason or type(cause).__name__).replace("_", " ").lower()
        return ComfyUIConnectionError(f"no TLS connection to {name} ({said}): does it speak http and not https?")
    if isinstance(cause, socket.gaierror):
        return ComfyUIConnectionError(f"{name} cannot be reached: {cause.strerror}")
    number = getattr(cause, "errno", None)
    # uvloop's own errors have no message of the system's.
    reason = os.strerror(number) if isinstance(number, int) and number > 0 else type(cause).__name__
    return ComfyUIConnectionError(f"{name} cannot be reached: {reason}")


def too_late(name: str, what: str) -> ComfyUIConnectionError:
    return ComfyUIConnectionError(f"{what}: no answer in time from {name}", sent=True)


def _what(method: str, target: str) -> str:
    return f"{method} {target.partition('?')[0]}"


def _reason(error: BaseException) -> str:
    """What aiohttp says without the addresses and objects that some of its messages carry."""
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return "the connection was closed without an answer"
    if isinstance(error, aiohttp.ClientPayloadError):
        return _CUT_OFF
    if isinstance(error, aiohttp.WSServerHandshakeError):
        said = " the gateway's credentials" if error.status in REFUSING else ""
        return f"refused{said} with HTTP {error.status}"
    return type(error).__name__


def _text(answer: Answer, header: bytes) -> str | None:
    value = header_value(answer.headers, header)
    return None if value is None else value.decode("latin-1")


def _refuse_compressed(encoding: str | None, what: str) -> None:
    if encoding not in {None, "identity"}:
        raise ComfyUIServerError(f"{what}: ComfyUI compressed an answer though it was asked not to")
