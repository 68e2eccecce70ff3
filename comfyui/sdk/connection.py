"""`Connection`: one gateway's address, and the requests to it. No other part of the SDK sees aiohttp's errors."""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
from yarl import URL

from comfyui.sdk.errors import (
    GatewayConnectionError,
    GatewayError,
    GatewayProtocolError,
    GatewayTimeoutError,
    error_class,
    error_from,
    is_error_body,
)

DEFAULT_SERVER = "http://127.0.0.1:18188"


# Seconds.
_CONNECT_S = 10.0


_LOOK_S = 5.0  # for the question what else it is that answers there


JSON = "application/json"


PROMPT_STATUS = "X-Prompt-Status"
"""The header that says how a job ended, even if the answer is its error."""


class Connection:
    """One gateway and one pooled session, between `open` and `close`.

    Raises:
        ValueError: `server` is no http(s) address.
    """

    def __init__(self, server: str, api_key: str | None) -> None:
        url = URL(server if "://" in server else f"http://{server}")
        if url.scheme not in {"http", "https"} or not url.host:
            raise ValueError(f"{server!r} is not an http(s) address such as {DEFAULT_SERVER}")
        self.server = str(url.with_query(None).with_fragment(None)).rstrip("/")
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._session: aiohttp.ClientSession | None = None

    async def open(self) -> None:
        self._session = aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar(), headers=self._headers)

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    @asynccontextmanager
    async def request(
        self,
        method: str,
        path: str,
        *,
        quiet_s: float,
        accept: str = JSON,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> AsyncGenerator[aiohttp.ClientResponse, None]:
        """One request. `quiet_s` is the longest silence that is waited through. Raises GatewayError."""
        if self._session is None:
            raise RuntimeError("GatewayClient is used as 'async with GatewayClient(…) as gateway'")
        if not path.startswith("/"):
            # A server may not send our key, or us, to another host.
            raise GatewayProtocolError(f"{path!r} is not an address of the gateway", code="not_a_gateway")
        sent, data = {"Accept": accept, **(headers or {})}, None
        if body is not None:
            sent["Content-Type"] = JSON
            data = io.BytesIO(json.dumps(body).encode())  # in pieces: as bytes, a large one would block the event loop
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S, sock_read=quiet_s)
        url = URL(self.server + path).update_query(query or {})
        try:
            async with self._session.request(
                method, url, data=data, headers=sent, timeout=timeout, allow_redirects=False
            ) as response:
                yield response
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise GatewayConnectionError(
                f"Nothing answers at {self.server}: {_reason(error)}", title="Unreachable", code="unreachable"
            ) from error
        except aiohttp.ServerTimeoutError as error:
            raise GatewayTimeoutError(
                f"{self.server} was silent for {quiet_s:.0f} s", title="Timed out", code="client_timeout"
            ) from error
        except aiohttp.ClientResponseError as error:
            raise GatewayProtocolError(
                f"The server at {self.server} does not answer in valid HTTP: {error.message}",
                title="Not the gateway",
                code="not_a_gateway",
            ) from error
        except aiohttp.ClientError as error:
            raise GatewayConnectionError(
                f"The connection to {self.server} was lost: {_reason(error)}",
                title="Connection lost",
                code="connection_lost",
                sent=True,
            ) from error

    async def json_of(self, response: aiohttp.ClientResponse) -> dict[str, Any]:
        """The body of the gateway's answer. Raises the error in it, or an error if the answer is not the gateway's."""
        body = await read_json(response)
        if isinstance(body, dict) and 200 <= response.status < 300:
            return body
        retry_after = response.headers.get("Retry-After", "")
        retry_after_s = float(retry_after) if retry_after.isdecimal() else None
        if isinstance(body, dict) and is_error_body(body):
            raise error_from(body, response.status, retry_after_s, response.headers.get(PROMPT_STATUS))
        raise await self._foreign(response, retry_after_s)

    async def _foreign(self, response: aiohttp.ClientResponse, retry_after_s: float | None) -> GatewayError:
        """The error for an answer that is not the gateway's own: a proxy's page, another service."""
        status = response.status
        said = f"{status} {response.reason or ''}".rstrip()
        fields: dict[str, Any] = {"status": status, "retry_after_s": retry_after_s, "title": "Not the gateway's answer"}
        if status in {502, 503, 504} or 520 <= status <= 530:
            return GatewayConnectionError(
                f"A proxy before the gateway answered {said}: it does not reach the gateway, or did not wait for it",
                sent=True,
                code="proxy_failed",
                **fields,
            )
        if status in {401, 403, 413, 429}:
            return error_class(status, "")(
                f"A proxy before the gateway answered {said}", code="proxy_refused", **fields
            )
        if 300 <= status < 400:
            where = response.headers.get("Location", "elsewhere")
            return GatewayProtocolError(
                f"{self.server} redirects to {where}; give the gateway's own address", code="redirected", **fields
            )
        if await self._is_comfyui():
            detail = (
                f"{self.server} is ComfyUI itself, not the gateway, because it has no {response.url.path}. "
                "The gateway listens on another port, 18188 unless set otherwise"
            )
        else:
            text = " ".join(re.sub(r"<[^>]*>", " ", await response.text(errors="replace")).split())
            detail = f"The server at {self.server} is not the gateway. It answered {said}: {text[:160] or '(nothing)'}"
        return GatewayProtocolError(detail, code="not_a_gateway", **fields)

    async def _is_comfyui(self) -> bool:
        try:
            async with self.request("GET", "/system_stats", quiet_s=_LOOK_S) as response:
                body = await read_json(response)
        except GatewayError:
            return False
        return isinstance(body, dict) and {"system", "devices"} <= body.keys()


async def read_json(response: aiohttp.ClientResponse) -> Any:
    """The body when it is JSON, else None. It stays readable."""
    try:
        return json.loads(await response.read())
    except ValueError:
        return None


def _reason(error: BaseException) -> str:
    """The one part of aiohttp's messages that tells something: host and port are around it."""
    cause = getattr(error, "os_error", None) or error.__cause__
    if isinstance(cause, OSError) and cause.errno and cause.errno > 0:
        return os.strerror(cause.errno)  # asyncio puts "Connect call failed" in its place
    return (getattr(cause, "strerror", None) or str(error) or type(error).__name__).strip()
