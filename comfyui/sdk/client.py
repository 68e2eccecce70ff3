"""`GatewayClient`: one gateway, one session, any number of prompts."""

from __future__ import annotations

import asyncio
import base64
import binascii
import io
import json
import os
import re
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import IO, Any, Self

import aiohttp
from yarl import URL

from comfyui.sdk.calls import Call, attachment, path_of, reattachment, submission
from comfyui.sdk.errors import (
    GatewayConnectionError,
    GatewayError,
    GatewayProtocolError,
    GatewayTimeoutError,
    error_class,
    error_from,
    is_error_body,
)
from comfyui.sdk.events import Event, Finished, Reconnecting, event_of, server_sent_events
from comfyui.sdk.files import create_file
from comfyui.sdk.models import Health, InputFile, OutputFile, PromptResult

_CHUNK_BYTES = 1 << 16


_DOWNLOAD_ATTEMPTS = 3


_RECONNECT_DELAYS_S = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)


_HELD_S = 5.0  # a connection that lasted longer was a working one: its loss starts a new series of attempts


CANCEL_TIMEOUT_S = 5.0


_GRACE_S = 30.0  # beyond the prompt's own timeout: the gateway still cancels, collects and answers after it


_CONNECT_S = 10.0


_JSON = "application/json"


_EVENT_STREAM = "text/event-stream"


DEFAULT_SERVER = "http://127.0.0.1:18188"


class GatewayClient:
    """One gateway, one pooled session. Use it as an async context manager; many prompts may wait at the same time.

    Args:
        server: the gateway's address; a path in it is kept, ``http://`` may be left out.
        api_key: sent as ``Authorization: Bearer``.
        timeout_s: how long a prompt may take where the call does not say.
        reconnect_delays_s: the pauses before each attempt to attach again after a lost connection.

    Raises:
        ValueError: `server` is no http(s) address.
    """

    def __init__(
        self,
        server: str = DEFAULT_SERVER,
        api_key: str | None = None,
        *,
        timeout_s: float = 300.0,
        reconnect_delays_s: Sequence[float] = _RECONNECT_DELAYS_S,
    ) -> None:
        url = URL(server if "://" in server else f"http://{server}")
        if url.scheme not in {"http", "https"} or not url.host:
            raise ValueError(f"{server!r} is no http(s) address, such as {DEFAULT_SERVER}")
        self._server = str(url.with_query(None).with_fragment(None)).rstrip("/")
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._timeout_s = timeout_s
        self._reconnect_delays_s = tuple(reconnect_delays_s)
        self._open_session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._open_session = aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar(), headers=self._headers)
        return self

    async def __aexit__(self, *_exc: object) -> None:
        if self._open_session is not None:
            await self._open_session.close()
            self._open_session = None

    async def run(
        self,
        workflow: Mapping[str, Any],
        *,
        images: Sequence[InputFile] = (),
        timeout_s: float | None = None,
        prompt_id: str | None = None,
        return_base64: bool = False,
    ) -> PromptResult:
        """Runs `workflow` (ComfyUI's API format) until it is done; attaches again when the connection breaks.

        With `prompt_id` (a UUID) the call is idempotent: the same one joins the prompt that runs, or has its result.

        Raises:
            GatewayError: one of its classes; with ``prompt_id``, even where the server did not say it.
        """
        return await result_of(self._wait(submission(workflow, images, prompt_id, return_base64), _JSON, timeout_s))

    def stream(
        self,
        workflow: Mapping[str, Any],
        *,
        images: Sequence[InputFile] = (),
        timeout_s: float | None = None,
        prompt_id: str | None = None,
        return_base64: bool = False,
        previews: bool = False,
    ) -> AsyncGenerator[Event, None]:
        """As `run`, with what happens on the way; the last event is `Finished`, some servers send no other."""
        call = submission(workflow, images, prompt_id, return_base64, previews)
        return self._wait(call, _EVENT_STREAM, timeout_s)

    async def attach(
        self, prompt_id: str, *, timeout_s: float | None = None, return_base64: bool = False
    ) -> PromptResult:
        """Waits for a prompt that was posted before, by whomever. Raises GatewayRefusedError when nobody knows it."""
        return await result_of(self._wait(attachment(prompt_id, return_base64), _JSON, timeout_s))

    def follow(
        self, prompt_id: str, *, timeout_s: float | None = None, return_base64: bool = False, previews: bool = False
    ) -> AsyncGenerator[Event, None]:
        """As `attach`, with what happens on the way."""
        return self._wait(attachment(prompt_id, return_base64, previews), _EVENT_STREAM, timeout_s)

    async def cancel(self, prompt_id: str) -> Mapping[str, Any]:
        """Takes the prompt out of the queue or interrupts it; the server's answer. Raises GatewayError."""
        async with self._request("DELETE", path_of(prompt_id), quiet_s=_GRACE_S) as response:
            return await self._json_of(response)

    async def health(self) -> Health:
        """Raises GatewayError when no gateway answers; a gateway without ComfyUI is an answer."""
        async with self._request("GET", "/health", quiet_s=_GRACE_S) as response:
            body = await _read_json(response)
            if not isinstance(body, dict) or body.get("status") not in {"healthy", "unhealthy"}:
                body = await self._json_of(response)
        return Health(
            healthy=body["status"] == "healthy",
            comfyui_server=str(body.get("comfyui_server", "unknown")),
            queue_running=body.get("queue_running"),
            queue_pending=body.get("queue_pending"),
            error=body.get("error"),
            body=body,
        )

    async def download(self, file: OutputFile) -> AsyncGenerator[bytes, None]:
        """The bytes of `file` in chunks, from the reply where it has them, else from the gateway.

        Raises:
            GatewayError: the file has an ``error``, is gone, or the connection broke.
        """
        if file.error is not None:
            raise GatewayError(file.error, title="File could not be read", code="file_failed")
        if file.base64 is not None:
            try:
                yield base64.b64decode(file.base64, validate=True)
            except binascii.Error as error:
                raise GatewayError(f"base64 of {file.filename} is broken: {error}", code="file_failed") from error
            return
        async with self._request("GET", _within(file.url), accept="*/*", quiet_s=_GRACE_S) as response:
            if response.status != 200:
                await self._json_of(response)
                raise GatewayProtocolError(f"{file.url} answered {response.status}", status=response.status)
            async for chunk in response.content.iter_chunked(_CHUNK_BYTES):
                yield chunk

    async def save(self, file: OutputFile, folder: Path) -> Path:
        """Writes `file` below `folder` under its own name, or a numbered one: no existing file is overwritten.

        A connection that breaks on the way is tried again.

        Raises:
            GatewayError: as `download`. OSError: it cannot be written. In both cases no file is left behind.
        """
        path, opened = await asyncio.to_thread(create_file, folder, file)
        try:
            with opened:
                for attempt in range(1, _DOWNLOAD_ATTEMPTS + 1):
                    try:
                        await self._copy(file, opened)
                        break
                    except GatewayConnectionError:
                        if attempt == _DOWNLOAD_ATTEMPTS:
                            raise
                        await asyncio.sleep(self._delay_s(attempt))
        except BaseException:
            await asyncio.to_thread(path.unlink, missing_ok=True)
            raise
        return path

    async def _copy(self, file: OutputFile, opened: IO[bytes]) -> None:
        await asyncio.to_thread(opened.truncate, 0)
        opened.seek(0)
        async with aclosing(self.download(file)) as chunks:
            async for chunk in chunks:
                await asyncio.to_thread(opened.write, chunk)

    async def _wait(self, call: Call, accept: str, timeout_s: float | None) -> AsyncGenerator[Event, None]:
        """What happens to one prompt until it is finished, over as many connections as that takes."""
        again = call if call.method == "POST" else None
        remaining_s = self._timeout_s if timeout_s is None else timeout_s
        deadline = time.monotonic() + remaining_s
        failures, lost_before = 0, False
        while True:
            began = time.monotonic()
            try:
                async with aclosing(self._exchange(call, accept, remaining_s)) as events:
                    async for event in events:
                        failures = 0
                        yield event
                return
            except GatewayConnectionError as error:
                error.prompt_id = call.prompt_id
                if not (error.sent or lost_before):
                    raise
                lost = error
            except GatewayError as error:
                error.prompt_id = error.prompt_id or call.prompt_id
                if not (lost_before and again and error.type in {"not_found", "task_cancelled"}):
                    raise
                # It never arrived, or was forgotten, or the gateway noticed the loss and cancelled it, as its setting
                # CANCEL_ON_DISCONNECT wants. Under its id it cannot run twice at a time.
                call, again = again, None
                continue
            failures = 1 if time.monotonic() - began > _HELD_S else failures + 1
            pause_s = self._delay_s(failures)
            remaining_s = deadline - time.monotonic() - pause_s
            if failures > len(self._reconnect_delays_s) or remaining_s <= 0:
                raise lost
            yield Reconnecting(call.prompt_id, failures, lost.detail)
            await asyncio.sleep(pause_s)
            call, lost_before = reattachment(call), True

    def _delay_s(self, attempt: int) -> float:
        delays = self._reconnect_delays_s
        return delays[min(attempt, len(delays)) - 1] if delays else 0.0

    async def _exchange(self, call: Call, accept: str, timeout_s: float) -> AsyncGenerator[Event, None]:
        """One connection: events until `Finished`. Raises GatewayConnectionError when it ends before that."""
        query = {**call.query, "timeout": f"{timeout_s:.3f}"}
        async with self._request(
            call.method, call.path, accept=accept, query=query, body=call.body, quiet_s=timeout_s + _GRACE_S
        ) as response:
            if response.status != 200 or response.content_type != _EVENT_STREAM:
                yield Finished(PromptResult.from_json(await self._json_of(response)))
                return
            async with aclosing(server_sent_events(response.content.iter_any())) as messages:
                async for name, data in messages:
                    event = event_of(name, data)
                    if event is not None:
                        yield event
                    if isinstance(event, Finished):
                        return
        raise GatewayConnectionError(
            "The gateway ended the event stream before the result came",
            title="Connection lost",
            code="connection_lost",
            sent=True,
        )

    @asynccontextmanager
    async def _request(
        self,
        method: str,
        path: str,
        *,
        quiet_s: float,
        accept: str = _JSON,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
    ) -> AsyncGenerator[aiohttp.ClientResponse, None]:
        """The only place that sees aiohttp's errors. `quiet_s` is the longest silence that is waited through."""
        if self._open_session is None:
            raise RuntimeError("GatewayClient is used as 'async with GatewayClient(…) as gateway'")
        if not path.startswith("/"):
            # A server may not send our key, or us, to another host.
            raise GatewayProtocolError(f"{path!r} is not an address within the gateway", code="not_a_gateway")
        headers, data = {"Accept": accept}, None
        if body is not None:
            headers["Content-Type"] = _JSON
            data = io.BytesIO(json.dumps(body).encode())  # in pieces: as bytes, a large one would block the event loop
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S, sock_read=quiet_s)
        url = URL(self._server + path).update_query(query or {})
        try:
            async with self._open_session.request(
                method, url, data=data, headers=headers, timeout=timeout, allow_redirects=False
            ) as response:
                yield response
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise GatewayConnectionError(
                f"Nothing answers at {self._server}: {_reason(error)}", title="Unreachable", code="unreachable"
            ) from error
        except aiohttp.ServerTimeoutError as error:
            raise GatewayTimeoutError(
                f"{self._server} was silent for {quiet_s:.0f} s", title="Timed out", code="client_timeout"
            ) from error
        except aiohttp.ClientResponseError as error:
            raise GatewayProtocolError(
                f"What answers at {self._server} does not speak HTTP as it should: {error.message}",
                title="Not the gateway",
                code="not_a_gateway",
            ) from error
        except aiohttp.ClientError as error:
            raise GatewayConnectionError(
                f"The connection to {self._server} was lost: {_reason(error)}",
                title="Connection lost",
                code="connection_lost",
                sent=True,
            ) from error

    async def _json_of(self, response: aiohttp.ClientResponse) -> dict[str, Any]:
        """The body of an answer of the gateway. Raises the error that it is, or that it is none of the gateway's."""
        body = await _read_json(response)
        if isinstance(body, dict) and 200 <= response.status < 300:
            return body
        retry_after = response.headers.get("Retry-After", "")
        retry_after_s = float(retry_after) if retry_after.isdecimal() else None
        if isinstance(body, dict) and is_error_body(body):
            raise error_from(body, response.status, retry_after_s)
        raise await self._foreign(response, retry_after_s)

    async def _foreign(self, response: aiohttp.ClientResponse, retry_after_s: float | None) -> GatewayError:
        """What to tell about an answer that is not the gateway's own: a proxy's page, another service."""
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
                f"{self._server} redirects to {where}: give the gateway's own address", code="redirected", **fields
            )
        if await self._is_comfyui():
            detail = (
                f"{self._server} is ComfyUI itself, not the gateway: it has no {response.url.path}. "
                "The gateway listens on another port, 18188 unless set otherwise"
            )
        else:
            text = " ".join(re.sub(r"<[^>]*>", " ", await response.text(errors="replace")).split())
            detail = f"What answers at {self._server} is not the gateway. It said {said}: {text[:160] or '(nothing)'}"
        return GatewayProtocolError(detail, code="not_a_gateway", **fields)

    async def _is_comfyui(self) -> bool:
        try:
            async with self._request("GET", "/system_stats", quiet_s=CANCEL_TIMEOUT_S) as response:
                body = await _read_json(response)
        except GatewayError:
            return False
        return isinstance(body, dict) and {"system", "devices"} <= body.keys()


async def result_of(events: AsyncGenerator[Event, None], show: Callable[[Event], None] | None = None) -> PromptResult:
    async with aclosing(events):
        async for event in events:
            if show is not None:
                show(event)
            if isinstance(event, Finished):
                return event.result
    raise AssertionError("a wait ends with a result or an error")


async def _read_json(response: aiohttp.ClientResponse) -> Any:
    """The body when it is JSON, else None. It stays readable."""
    try:
        return json.loads(await response.read())
    except ValueError:
        return None


def _within(url: str) -> str:
    """A file's address within the gateway: where that has a PUBLIC_URL, links begin with it, whatever we call it by."""
    address = URL(url) if "://" in url else None
    return f"/view?{address.raw_query_string}" if address is not None and address.path.endswith("/view") else url


def _reason(error: BaseException) -> str:
    """The one part of aiohttp's messages that tells something: host and port are around it."""
    cause = getattr(error, "os_error", None) or error.__cause__
    if isinstance(cause, OSError) and cause.errno and cause.errno > 0:
        return os.strerror(cause.errno)  # asyncio puts "Connect call failed" in its place
    return (getattr(cause, "strerror", None) or str(error) or type(error).__name__).strip()
