"""How `ComfyUIClient` sends its requests: here each driver's errors become ours.

`ComfyUIClient` uses `comfyui.transport.over_aiohttp` by default. `Http1Transport` does the same with a third of the
work per request; the gateway and the workers use it, because aiohttp's three requests were more than a third of the
gateway's own time for a prompt (docs/performance.md).
"""

from __future__ import annotations

import errno
import os
import socket
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

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
from comfyui.transport.body import OpenBody
from comfyui.transport.connection import Answer
from comfyui.transport.framing import RawHeaders, header_value
from comfyui.transport.http1 import Http1Client
from comfyui.transport.splice import Splice

Headers = Mapping[str, str]
NO_HEADERS: Mapping[str, str] = {}
_CONNECTIONS = 100
_FILES_AT_ONCE = 400
CUT_OFF = "the answer was cut off"
REFUSING = frozenset({401, 403})
"""Statuses by which a server refuses the gateway itself."""


@dataclass(frozen=True, slots=True)
class RawReply:
    """An answer of ComfyUI, unchanged.

    Attributes:
        length: from its head; for an answer to HEAD, this is not the length of `body`. None if there is none.
    """

    status: int
    content_type: str
    body: bytes
    length: int | None = None


@dataclass(frozen=True, slots=True)
class OpenReply:
    """An answer whose body has not been read yet."""

    status: int
    headers: RawHeaders
    body: OpenBody

    def header(self, name: bytes) -> str | None:
        """The first value of a header, whose name is given in lower case."""
        value = header_value(self.headers, name)
        return None if value is None else value.decode("latin-1")

    def close(self) -> None:
        self.body.close()


class AnswerBody(OpenBody):
    """The body of an answer of `comfyui.transport.http1`.

    Args:
        silence_s: the longest time without bytes; 0 is no limit.
        ours: our error for an error of the connection.
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


class Transport(Protocol):
    """Requests to one server over kept connections; each is sent once. A target is path and query.

    Both verbs raise `ComfyUIConnectionError`, whose ``sent`` says whether the server may have got the request.
    """

    async def fetch(
        self,
        method: str,
        target: str,
        *,
        body: bytes | None = None,
        headers: Headers = NO_HEADERS,
        last_word_s: float = 0.0,
    ) -> RawReply:
        """The whole answer, whatever its status, within the timeout.

        Args:
            last_word_s: when the call is cancelled, how long to wait for an answer to what was already sent.
        """

    async def open(self, target: str, headers: Headers = NO_HEADERS) -> OpenReply:
        """The answer to a GET as it arrives; only silence is timed. The caller closes it."""

    async def close(self) -> None: ...


class Http1Transport:
    """Requests over `comfyui.transport.http1`. Redirects are answers like any other.

    Args:
        name: the server's name in errors.
        credentials: headers that the server needs.
        answers: limits of an answer that `fetch` reads.
        tls: None for the certificates that the system trusts.
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
        # A separate client: slow readers of files must not block the prompts of other callers.
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
        headers: Headers = NO_HEADERS,
        last_word_s: float = 0.0,
    ) -> RawReply:
        what = request_line(method, target)
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
        length = _text(answer, b"content-length")
        content_type = _text(answer, b"content-type") or "application/json"
        return RawReply(answer.status, content_type, content, None if length is None else int(length))

    async def open(self, target: str, headers: Headers = NO_HEADERS) -> OpenReply:
        what = request_line("GET", target)
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
                return ComfyUIConnectionError(f"{what}: {CUT_OFF}", sent=True)
            case _:
                return ComfyUIConnectionError(f"{what}: the connection was closed without an answer", sent=True)


def unreachable(name: str, cause: BaseException | None) -> ComfyUIConnectionError:
    """No connection could be made; nothing was sent."""
    if isinstance(cause, OSError) and cause.errno in {errno.EMFILE, errno.ENFILE}:
        return ComfyUIDescriptorsError("the gateway has no file descriptor left for a connection (ulimit -n)")
    if isinstance(cause, TimeoutError):
        return ComfyUIConnectionError(f"{name} did not accept a connection in time")
    if isinstance(cause, ssl.SSLCertVerificationError):
        said = cause.verify_message.rstrip(".")
        detail = (
            f"the TLS certificate of {name} is not trusted ({said}); set COMFYUI_TLS_VERIFY to a file of its authority"
        )
        return ComfyUIConnectionError(detail)
    if isinstance(cause, ssl.SSLError):
        said = (cause.reason or type(cause).__name__).replace("_", " ").lower()
        return ComfyUIConnectionError(
            f"no TLS connection to {name} could be made ({said}); it may speak http instead of https"
        )
    if isinstance(cause, socket.gaierror):
        return ComfyUIConnectionError(f"{name} cannot be reached: {cause.strerror}")
    number = getattr(cause, "errno", None)
    # uvloop's own errors have no message of the system.
    reason = os.strerror(number) if isinstance(number, int) and number > 0 else type(cause).__name__
    return ComfyUIConnectionError(f"{name} cannot be reached: {reason}")


def too_late(name: str, what: str) -> ComfyUIConnectionError:
    return ComfyUIConnectionError(f"{what}: no answer in time from {name}", sent=True)


def request_line(method: str, target: str) -> str:
    return f"{method} {target.partition('?')[0]}"


def _text(answer: Answer, header: bytes) -> str | None:
    value = header_value(answer.headers, header)
    return None if value is None else value.decode("latin-1")


def _refuse_compressed(encoding: str | None, what: str) -> None:
    if encoding not in {None, "identity"}:
        raise ComfyUIServerError(f"{what}: ComfyUI compressed an answer although the request forbade it")
