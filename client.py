"""A client of the gateway's HTTP API: a small async library, and the command line on top of it.

::

    async with GatewayClient("http://127.0.0.1:18188") as gateway:
        result = await gateway.run(workflow)
        for file in result.files:
            print(await gateway.save(file, Path("out")))

    python client.py run examples/txt2img.json --set 6.text="a red fox" --output out/

It shares no code with the server: what it knows of the gateway is the HTTP contract alone.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import binascii
import difflib
import io
import itertools
import json
import os
import re
import sys
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import IO, Any, NoReturn, Self
from urllib.parse import quote

import aiohttp
import rich.filesize
import rich.progress
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text
from yarl import URL

DEFAULT_SERVER = "http://127.0.0.1:18188"
API_KEY_VARIABLE = "COMFYUI_GATEWAY_API_KEY"

_EVENT_STREAM = "text/event-stream"
_JSON = "application/json"
_CONNECT_S = 10.0
_GRACE_S = 30.0  # beyond the prompt's own timeout: the gateway still cancels, collects and answers after it
_STATUS_TIMEOUT_S = 1.0
_CANCEL_TIMEOUT_S = 5.0
_HELD_S = 5.0  # a connection that lasted longer was a working one: its loss starts a new series of attempts
_RECONNECT_DELAYS_S = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
_DOWNLOAD_ATTEMPTS = 3
_CHUNK_BYTES = 1 << 16


# --- errors ---------------------------------------------------------------------------------------------------------


class GatewayError(Exception):
    """Base of all errors of this client; what the server's error body says, or what the client found out itself.

    ::

        GatewayError                     any other status
        ├── GatewayRefusedError          400 401 403 404 406 409 413 422: the same request will be refused again
        ├── GatewayTaskError             500 502: it was accepted and failed
        │   └── GatewayCancelledError    409 task_cancelled
        ├── GatewayTimeoutError          504, or no answer long after the timeout
        ├── GatewayConnectionError       503, no connection, or one that was lost
        ├── GatewayOverloadedError       429
        └── GatewayProtocolError         something answered that is not the gateway

    Attributes:
        detail: what went wrong, in a sentence.
        type: the stable code of the kind of error, such as ``validation_failed``.
        status: the HTTP status; None when there was no answer.
        node_errors: node id to messages.
        prompt_id: the prompt that it is about, where there is one; it may be attached to again.
        request_id: the gateway's id of the request, for its logs.
        retry_after_s: when the server asks to come back.
    """

    def __init__(
        self,
        detail: str,
        *,
        title: str = "Request failed",
        code: str = "unexpected",
        status: int | None = None,
        node_errors: Mapping[str, Sequence[str]] | None = None,
        prompt_id: str | None = None,
        request_id: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.title = title
        self.type = code
        self.status = status
        self.node_errors = node_errors or {}
        self.prompt_id = prompt_id
        self.request_id = request_id
        self.retry_after_s = retry_after_s

    def to_json(self) -> dict[str, Any]:
        """The shape of the server's error body, with ``http_status`` and ``retry_after_s``, which travel beside it."""
        return {
            "error": self.title,
            "type": self.type,
            "detail": self.detail,
            "prompt_id": self.prompt_id,
            "node_errors": {node: list(messages) for node, messages in self.node_errors.items()},
            "request_id": self.request_id,
            "http_status": self.status,
            "retry_after_s": self.retry_after_s,
        }


class GatewayRefusedError(GatewayError):
    """The request was refused and will be again; nothing runs because of it."""


class GatewayTaskError(GatewayError):
    """The prompt was accepted and failed."""


class GatewayCancelledError(GatewayTaskError):
    """The prompt was interrupted or taken out of the queue by someone."""


class GatewayTimeoutError(GatewayError):
    """Not finished within the timeout."""


class GatewayConnectionError(GatewayError):
    """Nothing that can do the work answers. ``sent`` is true when the request may have arrived all the same."""

    def __init__(self, detail: str, *, sent: bool = False, **fields: Any) -> None:
        super().__init__(detail, **fields)
        self.sent = sent


class GatewayOverloadedError(GatewayError):
    """The gateway is at its limit; see ``retry_after_s``."""


class GatewayProtocolError(GatewayError):
    """What answers at this address is not the gateway."""


# In an event stream the error body comes without an HTTP status: this is the server's own table of the two.
_STATUS_OF_TYPE = {
    "validation_failed": 400,
    "input_failed": 400,
    "not_found": 404,
    "conflict": 409,
    "task_cancelled": 409,
    "overloaded": 429,
    "internal_error": 500,
    "task_failed": 500,
    "prompt_lost": 502,
    "server_error": 502,
    "submission_unknown": 502,
    "connection_failed": 503,
    "shutting_down": 503,
    "disk_failed": 503,
    "timeout": 504,
}


def _is_error_body(body: object) -> bool:
    return isinstance(body, dict) and all(isinstance(body.get(key), str) for key in ("error", "type", "detail"))


def _error_from(body: Mapping[str, Any], status: int | None = None, retry_after_s: float | None = None) -> GatewayError:
    """The exception for one of the gateway's error bodies."""
    kind = body["type"]
    status = status or _STATUS_OF_TYPE.get(kind)
    fields = {
        "title": body["error"],
        "code": kind,
        "status": status,
        "node_errors": body.get("node_errors"),
        "prompt_id": body.get("prompt_id"),
        "request_id": body.get("request_id"),
        "retry_after_s": retry_after_s,
    }
    if status == 503:
        # A gateway that stops leaves its prompts to ComfyUI: they can be attached to when it is back.
        return GatewayConnectionError(body["detail"], sent=kind == "shutting_down", **fields)
    return _class_of(status, kind)(body["detail"], **fields)


def _class_of(status: int | None, kind: str) -> type[GatewayError]:
    match status:
        case 409 if kind == "task_cancelled":
            return GatewayCancelledError
        case 429:
            return GatewayOverloadedError
        case 504:
            return GatewayTimeoutError
        case 500 | 502:
            return GatewayTaskError
        case int() if 400 <= status < 500:
            return GatewayRefusedError
        case _:
            return GatewayError


# --- what goes in and what comes back -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class InputFile:
    """A file to be placed in ComfyUI's input folder before the prompt is queued.

    ``image`` is its bytes, or as text what the gateway takes: base64, a data URI or an http(s) URL.
    """

    name: str
    image: bytes | str
    subfolder: str = ""

    def to_json(self) -> dict[str, str]:
        image = self.image if isinstance(self.image, str) else base64.b64encode(self.image).decode("ascii")
        return {"name": self.name, "image": image, "subfolder": self.subfolder}


@dataclass(frozen=True, slots=True)
class OutputFile:
    """A file that an output node wrote.

    Attributes:
        type: ComfyUI's folder: ``output``, ``temp`` or ``input``.
        url: where the gateway serves it, relative to the gateway, or absolute where that has a PUBLIC_URL.
        base64: its bytes, when they were asked for.
        error: why it could not be read; then there is no ``base64``.
    """

    node_id: str
    filename: str
    subfolder: str
    type: str
    content_type: str
    url: str
    base64: str | None = None
    error: str | None = None

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> OutputFile:
        return cls(
            node_id=entry["node_id"],
            filename=entry["filename"],
            subfolder=entry["subfolder"],
            type=entry["type"],
            content_type=entry["content_type"],
            url=entry["url"],
            base64=entry.get("base64"),
            error=entry.get("error"),
        )


@dataclass(frozen=True, slots=True)
class Timings:
    """Where the time went in the gateway, in seconds."""

    staging_s: float = 0.0
    queued_s: float = 0.0
    executing_s: float = 0.0
    collecting_s: float = 0.0


@dataclass(frozen=True, slots=True)
class PromptResult:
    """A finished prompt.

    Attributes:
        outputs: ComfyUI's history outputs, verbatim.
        files: every file of every output node, in node order.
        node_errors: outputs that ComfyUI left out of the run: node id to messages.
        body: the reply as it came.
    """

    prompt_id: str
    status: str
    execution_time_s: float
    outputs: Mapping[str, Any]
    files: tuple[OutputFile, ...]
    node_errors: Mapping[str, Sequence[str]]
    timings: Timings
    body: Mapping[str, Any] = field(repr=False)

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> PromptResult:
        """Raises GatewayProtocolError when `body` is not what the gateway answers."""
        try:
            return cls(
                prompt_id=body["prompt_id"],
                status=body["status"],
                execution_time_s=float(body["execution_time"]),
                outputs=body["outputs"],
                files=tuple(OutputFile.from_json(entry) for entry in body["images"]),
                node_errors=body.get("node_errors") or {},
                timings=Timings(**{f"{name}_s": float(seconds) for name, seconds in body["timings"].items()}),
                body=body,
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise GatewayProtocolError(
                f"The answer is JSON but not a result of the gateway ({error!r}): is the address right?",
                title="Not the gateway",
                code="not_a_gateway",
            ) from error


@dataclass(frozen=True, slots=True)
class Health:
    """What ``GET /health`` says. ``error`` is why it is not healthy; ``body`` is the reply as it came."""

    healthy: bool
    comfyui_server: str
    queue_running: int | None
    queue_pending: int | None
    error: str | None
    body: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Queued:
    """``position`` in ComfyUI's queue; None when it is not known."""

    prompt_id: str
    position: int | None


@dataclass(frozen=True, slots=True)
class Executing:
    prompt_id: str
    node: str
    title: str
    class_type: str


@dataclass(frozen=True, slots=True)
class Progress:
    """``value`` of ``max`` steps of one node; ``overall`` of the whole prompt, 0 to 1."""

    prompt_id: str
    node: str
    value: float
    max: float
    overall: float


@dataclass(frozen=True, slots=True)
class Preview:
    prompt_id: str
    content_type: str
    image: bytes


@dataclass(frozen=True, slots=True)
class Reconnecting:
    """The connection was lost for ``reason``; the prompt goes on, and attempt number ``attempt`` to attach follows."""

    prompt_id: str
    attempt: int
    reason: str


@dataclass(frozen=True, slots=True)
class Finished:
    result: PromptResult


Event = Queued | Executing | Progress | Preview | Reconnecting | Finished


def _event_of(name: str, data: str) -> Event | None:
    """One server-sent event; None for those that are not known or not readable. Raises on ``error``."""
    try:
        body = json.loads(data)
    except ValueError:
        body = None
    if name == "error" and _is_error_body(body):
        raise _error_from(body)
    if name in {"result", "error"}:
        return Finished(PromptResult.from_json(body))
    try:
        return _progress_of(name, body)
    except (KeyError, TypeError, ValueError):
        return None  # progress that cannot be shown is no reason to lose the result


def _progress_of(name: str, body: Any) -> Event | None:
    match name:
        case "queued":
            return Queued(body["prompt_id"], body.get("position"))
        case "executing":
            title = body.get("title") or body["class_type"]
            return Executing(body["prompt_id"], body["node"], title, body["class_type"])
        case "progress":
            value, maximum, overall = float(body["value"]), float(body["max"]), float(body["overall"])
            return Progress(body["prompt_id"], body["node"], value, maximum, overall)
        case "preview":
            return Preview(body["prompt_id"], body["content_type"], base64.b64decode(body["image"]))
        case _:
            return None


async def _server_sent_events(chunks: AsyncIterator[bytes]) -> AsyncGenerator[tuple[str, str], None]:
    """Event name and data, by the rules of the HTML standard for lines that end in LF or CR LF.

    Not by aiohttp's ``readline``: it refuses lines over its buffer's size, and a result with base64 is one line.
    """
    name, data = "message", list[str]()
    async with aclosing(_lines(chunks)) as lines:
        async for line in lines:
            key, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if not line:
                if data:
                    yield name, "\n".join(data)
                name, data = "message", []
            elif key == "event":
                name = value
            elif key == "data":
                data.append(value)


async def _lines(chunks: AsyncIterator[bytes]) -> AsyncGenerator[str, None]:
    pending: list[bytes] = []
    async for chunk in chunks:
        head, *rest = chunk.split(b"\n")
        pending.append(head)
        for piece in rest:
            yield b"".join(pending).removesuffix(b"\r").decode("utf-8", "replace")
            pending = [piece]


# --- the client -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Call:
    """One HTTP request that is answered when the prompt is done."""

    method: str
    path: str
    prompt_id: str
    query: Mapping[str, str]
    body: Mapping[str, Any] | None = None


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
        return await _last(self._wait(_submission(workflow, images, prompt_id, return_base64), _JSON, timeout_s))

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
        call = _submission(workflow, images, prompt_id, return_base64, previews)
        return self._wait(call, _EVENT_STREAM, timeout_s)

    async def attach(
        self, prompt_id: str, *, timeout_s: float | None = None, return_base64: bool = False
    ) -> PromptResult:
        """Waits for a prompt that was posted before, by whomever. Raises GatewayRefusedError when nobody knows it."""
        return await _last(self._wait(_attachment(prompt_id, return_base64), _JSON, timeout_s))

    def follow(
        self, prompt_id: str, *, timeout_s: float | None = None, return_base64: bool = False, previews: bool = False
    ) -> AsyncGenerator[Event, None]:
        """As `attach`, with what happens on the way."""
        return self._wait(_attachment(prompt_id, return_base64, previews), _EVENT_STREAM, timeout_s)

    async def cancel(self, prompt_id: str) -> Mapping[str, Any]:
        """Takes the prompt out of the queue or interrupts it; the server's answer. Raises GatewayError."""
        async with self._request("DELETE", _path_of(prompt_id), quiet_s=_GRACE_S) as response:
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
        path, opened = await asyncio.to_thread(_create, folder, file)
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

    async def _wait(self, call: _Call, accept: str, timeout_s: float | None) -> AsyncGenerator[Event, None]:
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
            call, lost_before = _reattachment(call), True

    def _delay_s(self, attempt: int) -> float:
        delays = self._reconnect_delays_s
        return delays[min(attempt, len(delays)) - 1] if delays else 0.0

    async def _exchange(self, call: _Call, accept: str, timeout_s: float) -> AsyncGenerator[Event, None]:
        """One connection: events until `Finished`. Raises GatewayConnectionError when it ends before that."""
        query = {**call.query, "timeout": f"{timeout_s:.3f}"}
        async with self._request(
            call.method, call.path, accept=accept, query=query, body=call.body, quiet_s=timeout_s + _GRACE_S
        ) as response:
            if response.status != 200 or response.content_type != _EVENT_STREAM:
                yield Finished(PromptResult.from_json(await self._json_of(response)))
                return
            async with aclosing(_server_sent_events(response.content.iter_any())) as messages:
                async for name, data in messages:
                    event = _event_of(name, data)
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
        if isinstance(body, dict) and _is_error_body(body):
            raise _error_from(body, response.status, retry_after_s)
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
            return _class_of(status, "")(f"A proxy before the gateway answered {said}", code="proxy_refused", **fields)
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
            async with self._request("GET", "/system_stats", quiet_s=_CANCEL_TIMEOUT_S) as response:
                body = await _read_json(response)
        except GatewayError:
            return False
        return isinstance(body, dict) and {"system", "devices"} <= body.keys()


async def _last(
    events: AsyncGenerator[Event, None], show: Callable[[Event], None] = lambda _event: None
) -> PromptResult:
    async with aclosing(events):
        async for event in events:
            show(event)
            if isinstance(event, Finished):
                return event.result
    raise AssertionError("a wait ends with a result or an error")


def _submission(
    workflow: Mapping[str, Any],
    images: Sequence[InputFile],
    prompt_id: str | None,
    return_base64: bool,
    previews: bool = False,
) -> _Call:
    prompt_id = prompt_id or str(uuid.uuid4())
    body: dict[str, Any] = {"prompt": workflow, "prompt_id": prompt_id, "return_image_base64": return_base64}
    if images:
        body["images"] = [image.to_json() for image in images]
    return _Call("POST", "/prompt_sync", prompt_id, {"previews": "true"} if previews else {}, body)


def _attachment(prompt_id: str, return_base64: bool = False, previews: bool = False) -> _Call:
    query = {"return_image_base64": "true"} if return_base64 else {}
    if previews:
        query["previews"] = "true"
    return _Call("GET", _path_of(prompt_id), prompt_id, query)


def _reattachment(call: _Call) -> _Call:
    """The request that goes on waiting for what `call` started."""
    if call.body is None:
        return call
    return _attachment(call.prompt_id, call.body["return_image_base64"], "previews" in call.query)


def _path_of(prompt_id: str) -> str:
    return f"/prompt_sync/{quote(prompt_id, safe='')}"


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


# --- files ----------------------------------------------------------------------------------------------------------

_WINDOWS_DEVICES = frozenset(
    {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(10))}
)
_NAME_BYTES = 200  # of the 255 that file systems take: room for a number


def safe_name(name: str) -> str:
    """The base name of a name that came over the network: a plain, visible file name on every system."""
    base = re.split(r"[/\\]", name)[-1]
    base = "".join("_" if char in '<>:"|?*' or not char.isprintable() else char for char in base).strip(" .")
    stem, dot, suffix = base.rpartition(".")
    if not dot or len(suffix) > 20:
        stem, suffix = base, ""
    stem = stem.encode()[: _NAME_BYTES - len(suffix)].decode(errors="ignore")
    if not stem or stem.lower() in _WINDOWS_DEVICES:
        stem = f"{stem}_file"
    return f"{stem}.{suffix}" if suffix else stem


def safe_folder(subfolder: str) -> Path:
    """A subfolder that came over the network, as a path that cannot leave the folder it is joined to."""
    parts = [part for part in re.split(r"[/\\]", subfolder) if part.strip(" .")]
    return Path(*map(safe_name, parts))


def _create(folder: Path, file: OutputFile) -> tuple[Path, IO[bytes]]:
    """A new file for `file` below `folder`, open for writing: ``a.png``, or ``a (1).png`` when there is one."""
    target = folder / safe_folder(file.subfolder) / safe_name(file.filename)
    target.parent.mkdir(parents=True, exist_ok=True)
    for number in itertools.count():
        path = target.with_stem(f"{target.stem} ({number})") if number else target
        try:
            return path, path.open("xb")
        except FileExistsError:
            continue
    raise AssertionError("the numbers do not end")


# --- the command line -----------------------------------------------------------------------------------------------


class Exit(IntEnum):
    """The exit codes of the command line."""

    OK = 0
    UNEXPECTED = 1
    USAGE = 2
    REFUSED = 3
    FAILED = 4
    TIMED_OUT = 5
    UNREACHABLE = 6
    OVERLOADED = 7
    INTERRUPTED = 130


_EXIT_OF: Mapping[type[GatewayError], Exit] = {
    GatewayRefusedError: Exit.REFUSED,
    GatewayTaskError: Exit.FAILED,
    GatewayCancelledError: Exit.FAILED,
    GatewayTimeoutError: Exit.TIMED_OUT,
    GatewayConnectionError: Exit.UNREACHABLE,
    GatewayOverloadedError: Exit.OVERLOADED,
}

_EXIT_CODES = f"""\
exit codes:
  {Exit.OK:<4} done
  {Exit.UNEXPECTED:<4} something unexpected, such as an address where no gateway answers but something else
  {Exit.USAGE:<4} the command is wrong: an option, the workflow's file, an input, a --set
  {Exit.REFUSED:<4} refused (HTTP 400, 401, 403, 404, 409, 413, 422); nothing runs
  {Exit.FAILED:<4} failed or cancelled while running (500, 502, 409), or a file could not be saved (the others are)
  {Exit.TIMED_OUT:<4} not done within --timeout (504)
  {Exit.UNREACHABLE:<4} no gateway, or none with a ComfyUI behind it (no connection, 503)
  {Exit.OVERLOADED:<4} the gateway is at its limit: come back later (429)
  {Exit.INTERRUPTED:<4} Ctrl-C; `run` cancels its prompt

With --json, standard output is one JSON document, also for errors ("error", "type", "detail", …); progress and
messages are on standard error.
"""


_STDERR = Console(stderr=True, highlight=False, soft_wrap=True)


class UsageError(Exception):
    """The command cannot be meant: exit code 2."""


@dataclass(frozen=True, slots=True)
class _Answer:
    """What a command found out: for scripts, for people, and for `$?`."""

    exit: Exit
    document: Mapping[str, Any]
    report: Sequence[RenderableType]


class _Parser(argparse.ArgumentParser):
    """Leaves the reporting of a wrong command line to `main`, which knows of --json."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}\n{self.format_usage().strip()}")


class _Display:
    """What happens, on standard error: a live bar on a terminal, a line for each change elsewhere."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = rich.progress.Progress(
            rich.progress.SpinnerColumn(),
            rich.progress.TextColumn("{task.description}", markup=False),
            rich.progress.BarColumn(),
            rich.progress.TaskProgressColumn(),
            rich.progress.TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("waiting", total=None)
        self._doing = "waiting"

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def show(self, event: Event) -> None:
        match event:
            case Queued(position=position):
                self._change("queued" if position is None else f"queued, position {position}")
            case Executing(node=node, title=title):
                self._change(f"{title} (node {node})")
            case Progress(value=value, max=maximum, overall=overall):
                steps = f"{self._doing}  {value:g}/{maximum:g}"
                self._bar.update(self._task, description=_plain(steps), completed=overall, total=1.0)
            case Reconnecting(attempt=attempt, reason=reason):
                self._change(f"{reason}; attaching again, attempt {attempt}")
            case Preview() | Finished():
                pass

    def _change(self, doing: str) -> None:
        if doing == self._doing:
            return
        self._doing = doing
        self._bar.update(self._task, description=_plain(doing))
        if not self._console.is_terminal:
            self._console.print(Text(_plain(doing)))


def _plain(text: object) -> str:
    """Text that came over the network, without what would steer a terminal."""
    return "".join(char if char.isprintable() or char == "\n" else "�" for char in str(text))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code (see `Exit`)."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    # Wide, where nobody's window limits it: a path that is cut or wrapped is of no use to grep.
    stdout = Console(width=None if sys.stdout.isatty() else 240, highlight=False)
    try:
        options = _parser().parse_args(arguments)
        answer: _Answer = asyncio.run(_command(options))
    except UsageError as error:
        answer = _failure(Exit.USAGE, GatewayError(str(error), title="Usage", code="usage"))
    except GatewayError as error:
        answer = _failure(_EXIT_OF.get(type(error), Exit.UNEXPECTED), error)
    except KeyboardInterrupt:
        answer = _failure(Exit.INTERRUPTED, GatewayError("Ctrl-C", title="Interrupted", code="interrupted"))
    if "--json" in arguments:
        print(json.dumps(answer.document, indent=2))
    else:
        for part in answer.report:
            stdout.print(part)
    return answer.exit


def _failure(exit_code: Exit, error: GatewayError) -> _Answer:
    """Tells a person on standard error at once; the document is left for standard output."""
    _STDERR.print(Text(f"{_plain(error.title)}: {_plain(error.detail)}", style="red"))
    for node, messages in error.node_errors.items():
        for message in messages:
            _STDERR.print(Text(_plain(f"  node {node}: {message}")))
    if error.retry_after_s is not None:
        _STDERR.print(f"try again in {error.retry_after_s:g} s")
    ids = {"prompt_id": error.prompt_id, "request_id": error.request_id}
    known = "  ".join(f"{name} {_plain(value)}" for name, value in ids.items() if value)
    if known:
        _STDERR.print(Text(known, style="dim"))
    return _Answer(exit_code, error.to_json(), ())


def _parser() -> _Parser:
    shared = _Parser(add_help=False)
    shared.add_argument("--server", metavar="URL", default=DEFAULT_SERVER, help="the gateway (default: %(default)s)")
    shared.add_argument(
        "--api-key",
        metavar="KEY",
        default=os.environ.get(API_KEY_VARIABLE),
        help=f"better in the environment, as {API_KEY_VARIABLE}: other users see command lines",
    )
    shared.add_argument("--json", action="store_true", help="one JSON document on standard output, nothing else")

    layout: dict[str, Any] = {"formatter_class": argparse.RawDescriptionHelpFormatter, "epilog": _EXIT_CODES}
    parser = _Parser(prog="client.py", description="Run ComfyUI workflows through the gateway.", **layout)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, function: Callable[..., Awaitable[_Answer]], summary: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, parents=[shared], help=summary, description=summary, **layout)
        added.set_defaults(function=function)
        return added

    run = command("run", _run, "Run a workflow, wait for it, save its files.")
    run.add_argument(
        "workflow", metavar="WORKFLOW", help="a workflow in API format: a JSON file, or - for standard input"
    )
    run.add_argument(
        "--set",
        metavar="NODE.INPUT=VALUE",
        action="append",
        default=[],
        help='change an input: 3.seed=7, 6.text="a red fox"; JSON where it is JSON, else text; may be repeated',
    )
    run.add_argument(
        "--input",
        metavar="NAME=FILE",
        action="append",
        default=[],
        help="send a file, for nodes that load NAME, such as sub/photo.png; may be repeated",
    )
    run.add_argument("--output", metavar="DIR", type=Path, default=Path("out"), help="default: %(default)s/")
    run.add_argument("--timeout", metavar="SECONDS", type=_seconds, default=300.0, help="default: %(default)g")
    run.add_argument(
        "--prompt-id", metavar="UUID", type=_prompt_id, help="the same id again joins the prompt, or has its result"
    )

    status = command("status", _status, "Tell how far a prompt is; without an id, how the gateway is.")
    status.add_argument("prompt_id", metavar="PROMPT_ID", type=_prompt_id, nargs="?")
    status.add_argument("--output", metavar="DIR", type=Path, help="save the files, when it is done")
    status.add_argument(
        "--timeout", metavar="SECONDS", type=_seconds, default=_STATUS_TIMEOUT_S, help="wait so long for its end"
    )

    cancel = command("cancel", _cancel, "Take a prompt out of the queue, or interrupt it.")
    cancel.add_argument("prompt_id", metavar="PROMPT_ID", type=_prompt_id)

    command("health", _health, "Tell whether the gateway and a ComfyUI behind it answer.")
    return parser


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds above 0")
    return seconds


def _prompt_id(text: str) -> str:
    try:
        return str(uuid.UUID(text))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no UUID") from None


async def _command(options: argparse.Namespace) -> _Answer:
    try:
        gateway = GatewayClient(options.server, options.api_key)
    except ValueError as error:
        raise UsageError(f"--server: {error}") from error
    async with gateway:
        answer: _Answer = await options.function(gateway, options)
    return answer


async def _run(gateway: GatewayClient, options: argparse.Namespace) -> _Answer:
    workflow, images = await asyncio.to_thread(_prepared, options)
    prompt_id = options.prompt_id or str(uuid.uuid4())
    _STDERR.print(f"prompt {prompt_id}", style="dim")
    began = time.monotonic()
    try:
        with _Display(_STDERR) as display:
            events = gateway.stream(workflow, images=images, timeout_s=options.timeout, prompt_id=prompt_id)
            result = await _last(events, display.show)
    except asyncio.CancelledError:
        return await _interrupted(gateway, prompt_id)
    return await _saved(gateway, result, options.output, workflow=workflow, began=began)


def _prepared(options: argparse.Namespace) -> tuple[dict[str, Any], list[InputFile]]:
    """All that can be found wrong before anything is sent. Raises UsageError."""
    workflow = _with_changes(_read_workflow(options.workflow), options.set)
    images = [_input_file(text) for text in options.input]
    _check_writable(options.output)
    return workflow, images


async def _interrupted(gateway: GatewayClient, prompt_id: str) -> _Answer:
    """After Ctrl-C: takes the prompt back, for a short while; a second Ctrl-C ends that too."""
    detail = "Ctrl-C; the prompt was cancelled"
    try:
        async with asyncio.timeout(_CANCEL_TIMEOUT_S):
            await gateway.cancel(prompt_id)
    except GatewayRefusedError:
        detail = "Ctrl-C; the prompt does not run any more"
    except (GatewayError, TimeoutError) as failed:
        reason = str(failed) or "no answer"
        detail = f"Ctrl-C; the prompt could not be cancelled and may go on: {reason}"
    return _failure(
        Exit.INTERRUPTED, GatewayError(detail, title="Interrupted", code="interrupted", prompt_id=prompt_id)
    )


async def _saved(
    gateway: GatewayClient,
    result: PromptResult,
    folder: Path,
    *,
    workflow: Mapping[str, Any] | None = None,
    began: float | None = None,
) -> _Answer:
    """Saves every file that can be; one that cannot is reported and does not stop the others."""
    saved: list[dict[str, Any]] = []
    for file, entry in zip(result.files, result.body["images"], strict=True):
        shown = {key: value for key, value in entry.items() if key != "base64"}
        try:
            path = await gateway.save(file, folder)
        except (GatewayError, OSError) as error:
            shown["error"] = str(error)
        else:
            shown |= {"path": str(path), "size": (await asyncio.to_thread(path.stat)).st_size}
        saved.append(shown)
    for node, messages in result.node_errors.items():
        _STDERR.print(Text(_plain(f"left out by ComfyUI: node {node}: {'; '.join(messages)}"), style="yellow"))
    report: list[RenderableType] = [_table(saved, workflow or {})] if saved else ["The workflow saved no file."]
    timings = result.timings
    parts = f"staging {timings.staging_s:.2f}, queued {timings.queued_s:.2f}, executing {timings.executing_s:.2f}"
    total = "" if began is None else f"{time.monotonic() - began:.2f} s in all; in the gateway: "
    report.append(f"{total}{parts}, collecting {timings.collecting_s:.2f} s")
    failed = sum("error" in entry for entry in saved)
    if failed:
        _STDERR.print(f"{failed} of {len(saved)} files could not be saved", style="red")
    return _Answer(Exit.FAILED if failed else Exit.OK, {**result.body, "images": saved}, report)


def _table(saved: Sequence[Mapping[str, Any]], workflow: Mapping[str, Any]) -> Table:
    table = Table("file", "node", "size", "type")
    for entry in saved:
        node = f"{entry['node_id']} {_title(workflow.get(entry['node_id']))}".strip()
        if "error" in entry:
            name, size = Text(_plain(f"{entry['filename']}: {entry['error']}"), style="red", overflow="fold"), "-"
        else:
            name, size = Text(_plain(entry["path"]), overflow="fold"), rich.filesize.decimal(entry["size"])
        table.add_row(name, Text(_plain(node)), size, Text(_plain(entry["content_type"])))
    return table


async def _status(gateway: GatewayClient, options: argparse.Namespace) -> _Answer:
    if options.prompt_id is None:
        return await _health(gateway, options)
    state: dict[str, Any] = {"prompt_id": options.prompt_id, "status": "waiting"}
    try:
        async with aclosing(gateway.follow(options.prompt_id, timeout_s=options.timeout)) as events:
            async for event in events:
                match event:
                    case Queued(position=position):
                        state |= {"status": "queued", "position": position}
                    case Executing(node=node, title=title):
                        state |= {"status": "executing", "node": node, "title": title}
                    case Progress(overall=overall):
                        state["overall"] = overall
                    case Finished(result=result):
                        return await _done(gateway, result, options)
                    case Preview() | Reconnecting():
                        pass
    except GatewayTimeoutError:
        told = "queued or executing" if state["status"] == "waiting" else state["status"]
        more = [_plain(f"{name} {value}") for name, value in state.items() if name not in {"prompt_id", "status"}]
        return _Answer(Exit.OK, state, [Text("  ".join([told, *more]))])
    raise AssertionError("a wait ends with a result or an error")


async def _done(gateway: GatewayClient, result: PromptResult, options: argparse.Namespace) -> _Answer:
    if options.output is not None:
        return await _saved(gateway, result, options.output)
    report = [Text(f"{_plain(result.status)} after {result.execution_time_s:.2f} s, {len(result.files)} files")]
    report += [Text(_plain(f"  {file.url}")) for file in result.files]
    return _Answer(Exit.OK, result.body, report)


async def _cancel(gateway: GatewayClient, options: argparse.Namespace) -> _Answer:
    document = await gateway.cancel(options.prompt_id)
    return _Answer(Exit.OK, document, [Text(_plain(f"{document.get('status', 'cancelled')}: {options.prompt_id}"))])


async def _health(gateway: GatewayClient, _options: argparse.Namespace) -> _Answer:
    health = await gateway.health()
    report = [Text(_plain(f"{name}: {value}")) for name, value in health.body.items()]
    return _Answer(Exit.OK if health.healthy else Exit.UNREACHABLE, health.body, report)


def _read_workflow(name: str) -> dict[str, Any]:
    try:
        text = sys.stdin.read() if name == "-" else Path(name).read_text(encoding="utf-8")
        workflow = json.loads(text)
    except OSError as error:
        raise UsageError(f"{name}: {error.strerror or error}") from error
    except ValueError as error:
        raise UsageError(f"{name} is not JSON: {error}") from error
    if not isinstance(workflow, dict):
        raise UsageError(f"{name} holds no workflow: node id to class_type and inputs")
    if isinstance(workflow.get("nodes"), list):
        raise UsageError(f"{name} is a workflow in the editor's format: export it in ComfyUI with 'Export (API)'")
    return workflow


def _with_changes(workflow: dict[str, Any], changes: Sequence[str]) -> dict[str, Any]:
    """`workflow` with each ``node.input=value`` put in; raises UsageError with the closest names there are."""
    for change in changes:
        target, equals, text = change.partition("=")
        node_id, dot, name = target.partition(".")
        if not (equals and dot and node_id and name):
            raise UsageError(f"--set {change}: expected NODE.INPUT=VALUE, such as 6.text='a red fox'")
        node = workflow.get(node_id)
        if not isinstance(node, dict):
            named = {key: f"{key} ({_title(node)})" for key, node in workflow.items()}
            raise UsageError(f"--set {target}: there is no node {node_id!r}; {_closest(node_id, named)}")
        inputs = node.get("inputs", {})
        if name not in inputs:
            where = f"node {node_id} ({_title(node)})"
            raise UsageError(f"--set {target}: {where} has no input {name!r}; {_closest(name, dict.fromkeys(inputs))}")
        inputs[name] = _value(text)
    return workflow


def _closest(wanted: str, there: Mapping[str, str | None]) -> str:
    """The names that `wanted` may have been meant for, most likely first; all of them when none is near."""
    near = difflib.get_close_matches(wanted, there, n=3, cutoff=0.5)
    names = [there[name] or name for name in near or there]
    return f"{'did you mean' if near else 'there are'} {', '.join(names) or 'none'}{'?' if near else ''}"


def _value(text: str) -> Any:
    def refuse(constant: str) -> NoReturn:
        raise ValueError(constant)

    try:
        return json.loads(text, parse_constant=refuse)  # Python reads NaN and Infinity, which no JSON has
    except ValueError:
        return text


def _title(node: Any) -> str:
    """What a node is called in the editor; "" when it does not say."""
    if not isinstance(node, dict):
        return ""
    meta = node.get("_meta")
    return str((meta.get("title") if isinstance(meta, dict) else None) or node.get("class_type", ""))


def _input_file(text: str) -> InputFile:
    name, equals, path = text.partition("=")
    subfolder, _, base = name.rpartition("/")
    if not (equals and base and path):
        raise UsageError(f"--input {text}: expected NAME=FILE, such as photo.png=~/photo.png")
    try:
        return InputFile(base, Path(path).expanduser().read_bytes(), subfolder)
    except OSError as error:
        raise UsageError(f"--input {name}: {path}: {error.strerror or error}") from error


def _check_writable(folder: Path) -> None:
    """Before a long run, not after it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--output {folder}: {error.strerror or error}") from error
    if not os.access(folder, os.W_OK):
        raise UsageError(f"--output {folder}: not writable")


if __name__ == "__main__":
    sys.exit(main())
