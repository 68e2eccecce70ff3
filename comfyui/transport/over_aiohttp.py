"""Sends the requests of a `ComfyUIClient` over aiohttp, and translates aiohttp's errors to ours."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import aiohttp
from yarl import URL

from comfyui.exceptions import ComfyUIConnectionError
from comfyui.limits import DEFAULT_ANSWERS, AnswerLimits
from comfyui.tasks import end_tasks
from comfyui.transport.body import OpenBody
from comfyui.transport.drivers import (
    CUT_OFF,
    NO_HEADERS,
    REFUSING,
    Headers,
    OpenReply,
    RawReply,
    request_line,
    too_late,
    unreachable,
)
from comfyui.transport.http1 import CONNECT_S


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


class AiohttpTransport:
    """Requests over a session of aiohttp's, which belongs to its opener.

    Redirects are answers like any other: following them could take the server's credentials to another server.
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
        # Files have any size: only silence ends them.
        self._file_timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=timeout_s)

    async def fetch(
        self,
        method: str,
        target: str,
        *,
        body: bytes | None = None,
        headers: Headers = NO_HEADERS,
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
        what = request_line(method, target)
        with aiohttp_errors(self._name, what):
            async with self._session.request(
                method, self._url(target), data=body, headers=headers, timeout=self._timeout, allow_redirects=False
            ) as response:
                return await self._whole(response, what)

    async def open(self, target: str, headers: Headers = NO_HEADERS) -> OpenReply:
        # A compressed file would have another length than the announced one.
        headers = {"Accept-Encoding": "identity", **headers}
        what = request_line("GET", target)
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
        """The session belongs to its opener."""

    def _url(self, target: str) -> URL:
        return URL(f"{self._base}{target}", encoded=True)


async def whole_body(response: aiohttp.ClientResponse, answers: AnswerLimits, what: str) -> bytes:
    """Raises `ComfyUIUnreadableError` if it is too long."""
    if (response.content_length or 0) > answers.max_bytes:
        response.close()  # otherwise the rest would be waited for
        raise answers.too_long(what)
    pieces: list[bytes] = []
    size = 0
    async for piece in response.content.iter_any():
        pieces.append(piece)
        size += len(piece)
        if size > answers.max_bytes:
            pieces.clear()  # the holder of the error keeps this frame
            raise answers.too_long(what)
    return b"".join(pieces)


@contextmanager
def aiohttp_errors(name: str, what: str) -> Iterator[None]:
    """Turns aiohttp's errors in the block into `ComfyUIConnectionError`.

    Args:
        name: the server's name.
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
    """For a session whose websockets carry credentials: aiohttp has no other way not to follow redirects for these."""

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


def _reason(error: BaseException) -> str:
    """aiohttp's reason without the addresses and objects that some of its messages have."""
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return "the connection was closed without an answer"
    if isinstance(error, aiohttp.ClientPayloadError):
        return CUT_OFF
    if isinstance(error, aiohttp.WSServerHandshakeError):
        said = " the gateway's credentials" if error.status in REFUSING else ""
        return f"refused{said} with HTTP {error.status}"
    return type(error).__name__
