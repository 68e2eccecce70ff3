"""Requests and answers that pass through unchanged: the relay's use of a server, with its own errors."""

from __future__ import annotations

import ssl

import aiohttp
from yarl import URL

from comfyui.exceptions import (
    AnswerTimeoutError,
    ComfyUIError,
    ComfyUIServerError,
    ComfyUITimeoutError,
    ConnectError,
    Http1Error,
    InvalidAnswerError,
)
from comfyui.headers import AUTOMATIC
from comfyui.transport.body import RequestBody
from comfyui.transport.drivers import AnswerBody, OpenReply, unreachable
from comfyui.transport.framing import RawHeaders
from comfyui.transport.http1 import CONNECT_S, Http1Client
from comfyui.transport.over_aiohttp import refusing_redirects

# The headers of a websocket's handshake.
_HEADER_BYTES = 64 * 1024


class RelayTransport:
    """Connections to one server that only a relay uses. `close` it.

    Args:
        name: the server's name in errors.
        tls: None for the certificates that the system trusts.

    Attributes:
        websockets: a session only for these.
    """

    def __init__(self, base_url: URL, name: str, tls: ssl.SSLContext | None = None) -> None:
        self._http = Http1Client(base_url, tls=tls)
        self._name = name
        self.websockets = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ssl=True if tls is None else tls),
            # A cookie from one client's answer must never reach another client's request.
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=AUTOMATIC,
            trace_configs=[refusing_redirects()],
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S),
            max_line_size=_HEADER_BYTES,
            max_field_size=_HEADER_BYTES,
        )

    async def close(self) -> None:
        await self._http.close()
        await self.websockets.close()

    async def request(
        self, method: str, target: str, headers: RawHeaders, body: RequestBody | None, *, timeout_s: float
    ) -> OpenReply:
        """The answer, whatever its status, as soon as its headers have arrived. The caller closes it.

        Args:
            target: path and query, below the base URL's path.
            headers: all but those of the framing; see `Http1Client.request`.
            timeout_s: the longest time without progress; 0 is no limit.

        Raises:
            InvalidRequestError: nothing was sent.
            ComfyUIConnectionError: no connection could be made; nothing was sent.
            ComfyUITimeoutError, ComfyUIServerError: no answer, or an unreadable one.
            Exception: whatever `body` raises.
        """
        try:
            answer = await self._http.request(method, target, headers, body, timeout_s=timeout_s)
        except ConnectError as error:
            raise unreachable(self._name, error.__cause__) from error
        except AnswerTimeoutError as error:
            raise ComfyUITimeoutError(f"ComfyUI did not answer within {timeout_s:g} s") from error
        except InvalidAnswerError as error:
            raise ComfyUIServerError(f"ComfyUI's answer is not valid HTTP: {error}") from error
        except Http1Error as error:
            raise ComfyUIServerError("ComfyUI closed the connection without an answer") from error
        return OpenReply(answer.status, answer.headers, AnswerBody(answer, 0.0, _cut))


def _cut(_error: Http1Error) -> ComfyUIError:
    return ComfyUIServerError("ComfyUI cut the connection within its answer")
