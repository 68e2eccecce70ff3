"""`ComfyUIClient`: pooled connections to ONE ComfyUI server, and its verbs.

Verbs mirror ComfyUI's routes. Reads and other idempotent calls are retried on connection errors and 502/503/504 with
exponential back-off and jitter. A submission is never retried, because ComfyUI does not check ids for duplicates (trap
10).
"""

from __future__ import annotations

import functools
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any, Literal, Self, TypeVar
from urllib.parse import quote

import aiohttp
import structlog
from aiohttp.hdrs import CONTENT_DISPOSITION

from comfyui import big_json, jsonio, replies
from comfyui.address import ServerAccess, parse_server_address
from comfyui.exceptions import (
    ComfyUIConnectionError,
    ComfyUICredentialsError,
    ComfyUIDiskError,
    ComfyUIError,
    ComfyUILimitError,
    ComfyUINotFoundError,
    ComfyUIServerError,
    ComfyUIUnreadableError,
    ComfyUIValidationError,
    JSONError,
)
from comfyui.file_names import view_query
from comfyui.limits import DEFAULT_ANSWERS, JSON_OF_COMFYUI, AnswerLimits
from comfyui.metrics import Metrics
from comfyui.models import OutputFile
from comfyui.offload import offloaded
from comfyui.replies import JSON, HistoryEntry, Queued, QueueItem
from comfyui.retrying import Backoff, retry
from comfyui.transport.body import OpenBody, ResumedBody
from comfyui.transport.drivers import REFUSING, Http1Transport, OpenReply, RawReply, Transport
from comfyui.transport.form_names import file_disposition
from comfyui.transport.over_aiohttp import AiohttpTransport, aiohttp_errors, refusing_redirects

# ComfyUI itself answers 403 for a file outside its folders.
_NO_KEY = frozenset({401})
_log = structlog.get_logger(__name__)
_LOGGED_BODY = 2000
_SAID_BODY = 200
# A path of the server, of which a client sees only the last part.
_SERVER_PATH = re.compile(r"(?<![\w:/.])/(?:[\w.@+-]+/)+([\w.@+-]+)")
_RETRIED_STATUSES = frozenset({502, 503, 504})
_BACKOFF = Backoff(start_s=0.1, max_s=5.0)
_CONNECTIONS = 100
# Time for a submission that is cancelled on its way to arrive, so that the cancel after it finds the prompt in ComfyUI.
_LAST_WORD_S = 5.0
_JSON = {"Content-Type": "application/json"}
# ComfyUI reads this only as the first message.
_OUR_FEATURES = '{"type": "feature_flags", "data": {"supports_preview_metadata": true}}'

_NO_HEADERS: Mapping[str, str] = {}

_T = TypeVar("_T")


ServerSocket = aiohttp.ClientWebSocketResponse[Literal[False]]
"""A websocket to ComfyUI. Its text is not decoded, because most of it is never read."""


class ComfyUIClient:
    """One ComfyUI server. Open it with ``async with``; it owns its session and closes it.

    Args:
        address: ``host:port`` or URL; a user and password in the URL are sent as basic auth.
        timeout_s: for one request that returns JSON; for a file's body, the longest silence.
        retries: further tries of an idempotent request after the first, and of the rest of a file.
        backoff: the delays between these tries.
        lean: send requests by `Http1Transport`; aiohttp then serves only the websocket and uploads.
        access: the headers and the certificates.
        answers: how much the server may send at once.
    """

    def __init__(
        self,
        address: str,
        *,
        timeout_s: float = 30.0,
        retries: int = 3,
        backoff: Backoff = _BACKOFF,
        metrics: Metrics | None = None,
        lean: bool = False,
        access: ServerAccess | None = None,
        answers: AnswerLimits = DEFAULT_ANSWERS,
    ) -> None:
        server = parse_server_address(address)
        access = access or ServerAccess()
        self.credentials = {name.title(): value for name, value in access.headers.items()}
        """Headers that the server asks for: those of `access`, and the address's user and password."""
        if server.authorization:
            self.credentials.setdefault("Authorization", server.authorization)
        self.tls = access.tls
        self.base_url = server.url
        self.name = server.name
        self._timeout_s = timeout_s
        self._retries = retries
        self._backoff = backoff
        self.answers = answers
        self._lean = lean
        self._tells_jobs = True
        self._counter = functools.lru_cache(maxsize=256)((metrics or Metrics()).upstream_requests.labels)
        self._stack = AsyncExitStack()
        self._session: aiohttp.ClientSession | None = None
        self._transport: Transport | None = None

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            self._session = await stack.enter_async_context(
                aiohttp.ClientSession(
                    connector=aiohttp.TCPConnector(
                        limit=_CONNECTIONS, keepalive_timeout=30.0, ssl=True if self.tls is None else self.tls
                    ),
                    # A cookie from one caller's answer must never reach another caller's request.
                    cookie_jar=aiohttp.DummyCookieJar(),
                    headers=self.credentials,
                    trace_configs=[refusing_redirects()],
                )
            )
            self._aiohttp = AiohttpTransport(self._session, self.base_url, self.name, self._timeout_s, self.answers)
            self._transport = self._aiohttp
            if self._lean:
                self._transport = Http1Transport(
                    self.base_url, self.name, self.credentials, self._timeout_s, self.answers, self.tls
                )
                stack.push_async_callback(self._transport.close)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_exc: object) -> None:
        self._session = self._transport = None
        await self._stack.aclose()

    # Prompts

    async def queue_prompt(self, body: Mapping[str, Any], *, size: int = 0) -> Queued:
        """``POST /prompt``, once. If it is cancelled on its way, it still gets a moment to arrive.

        Args:
            size: about how many bytes it has as JSON, if that may be many.

        Raises:
            ComfyUIValidationError: refused; ``upstream`` is ComfyUI's body, None if ComfyUI could not read ours.
            ComfyUIConnectionError: ``sent`` says whether ComfyUI may have accepted it nevertheless.
            ComfyUIDiskError: the gateway's own server in front of RunPod did not take it.
            ComfyUIServerError: an unexpected answer; ComfyUI may have accepted it.
        """
        try:
            text = await offloaded(size, jsonio.dumps_for_comfyui, body)
        except JSONError as error:
            raise ComfyUIValidationError(f"ComfyUI cannot read the request: {error}") from error
        reply = await self._fetch("POST", "/prompt", body=text, headers=_JSON, last_word_s=_LAST_WORD_S)
        answer = await offloaded(len(reply.body), _json, reply, "POST /prompt", allowed=(200, 400))
        if reply.status == 400:
            raise replies.refusal(answer)
        return replies.queued(answer)

    async def forward_prompt(self, body: bytes, headers: Mapping[str, str]) -> RawReply:
        """``POST /prompt`` with a caller's body that we do not read; any status is an answer."""
        headers = {name: value for name, value in headers.items() if name.title() not in self.credentials}
        reply = await self._fetch("POST", "/prompt", body=body, headers=headers)
        if reply.status == 401 and self.credentials:
            # The client's key was not wrong.
            raise ComfyUICredentialsError("POST /prompt", upstream_status=reply.status)
        return reply

    async def forward_get(self, target: str, route: str) -> RawReply:
        """``GET`` of a path whose answer we do not read; any status is an answer.

        Args:
            target: path and query, percent-encoded.
            route: the path in the metrics.
        """
        reply = await self._fetch("GET", target, route=route)
        if reply.status == 401 and self.credentials:
            raise ComfyUICredentialsError(f"GET {route}", upstream_status=reply.status)
        return reply

    async def get_history(self, prompt_id: str) -> HistoryEntry | None:
        """The history entry; None while ComfyUI has none (queued, running, unknown or forgotten: trap 6).

        Raises:
            ComfyUIUnreadableError: the answer, or the entry, is not what it should be.
        """
        path = f"/history/{quote(prompt_id, safe='')}"
        return await self._get(path, "/history/{id}", functools.partial(replies.history_entry, prompt_id=prompt_id))

    async def get_queue(self) -> dict[str, QueueItem]:
        """Every running or pending prompt, by id. The answer has every workflow whole: too much for a regular poll."""
        return await self._get("/queue", "/queue", replies.queue_items)

    async def get_job(self, prompt_id: str) -> QueueItem | bool | None:
        """The prompt's place in the queue, without other callers' workflows; None if ComfyUI has no such route.

        For a prompt that is not in the queue: whether ComfyUI knows it. True means that it has ended; its history says
        how.
        """
        if not self._tells_jobs:
            return None
        path = f"/api/jobs/{quote(prompt_id, safe='')}"

        async def ask() -> QueueItem | bool | None:
            reply = await self._fetch("GET", path, route="/api/jobs/{id}")
            if reply.status in {404, 405} and not reply.body.startswith(b"{"):
                self._tells_jobs = False  # the route is what ComfyUI does not know
                return None
            if reply.status == 404:
                return False
            job = await offloaded(len(reply.body), _json, reply, f"GET {path}")
            return replies.queue_item_of_job(job, prompt_id) or True

        return await self._retrying(ask, self._retries)

    async def get_queue_remaining(self) -> int:
        """How many prompts are pending or running: the cheap load figure (``GET /prompt``). Not retried."""
        return await self._get("/prompt", "/prompt", replies.queue_remaining, retries=0)

    async def delete_from_queue(self, *prompt_ids: str) -> None:
        """Removes pending prompts; nothing happens to those that are not pending."""
        await self._post("/queue", {"delete": prompt_ids})

    async def clear_queue(self) -> None:
        """Removes all pending prompts, of all submitters."""
        await self._post("/queue", {"clear": True})

    async def delete_from_history(self, *prompt_ids: str) -> None:
        """Forgets how these prompts ended, before an id is submitted again; unknown ids are ignored."""
        await self._post("/history", {"delete": prompt_ids})

    async def interrupt(self, prompt_id: str) -> None:
        """Interrupts the prompt if it runs. Never without an id: that would stop another caller's."""
        await self._post("/interrupt", {"prompt_id": prompt_id})

    async def cancel_job(self, prompt_id: str) -> bool | None:
        """Dequeues or interrupts atomically, if ComfyUI has that route; None if not."""
        path = f"/api/jobs/{quote(prompt_id, safe='')}/cancel"

        async def send() -> bool | None:
            reply = await self._fetch("POST", path, route="/api/jobs/{id}/cancel")
            return None if reply.status in {404, 405} else bool(_json(reply, f"POST {path}").get("cancelled"))

        return await self._retrying(send, self._retries)

    async def free(self, *, unload_models: bool = True, free_memory: bool = True) -> None:
        """Tells ComfyUI to drop its models and caches before the next prompt."""
        await self._post("/free", {"unload_models": unload_models, "free_memory": free_memory})

    # Files

    async def upload_image(
        self,
        filename: str,
        content: bytes | AsyncIterator[bytes],
        *,
        subfolder: str = "",
        overwrite: bool = True,
    ) -> JSON:
        """``POST /upload/image``: any medium. Returns ``{name, subfolder, type}`` as ComfyUI stored it.

        Overwriting makes it idempotent. Only bytes are sent again, because an iterator can be read only once.
        """
        retries = self._retries if isinstance(content, bytes) else 0

        async def send() -> JSON:
            fields = {"subfolder": subfolder, "type": "input", "overwrite": "true" if overwrite else "false"}
            form = upload_form(filename, content, fields)
            status = 0
            try:
                reply = await self._aiohttp.upload("/upload/image", form)
                status = reply.status
            finally:
                self._count("POST", "/upload/image", status)
            return _json(reply, "POST /upload/image")

        return await self._retrying(send, retries)

    async def upload_mask(
        self, filename: str, mask: AsyncIterator[bytes], original: Mapping[str, str], *, subfolder: str
    ) -> JSON:
        """``POST /upload/mask``: the original with the mask's transparency replaces the file of that name.

        ComfyUI gives the same answer if it does not have the original; then there is no such file afterwards.
        """
        ref = jsonio.dumps(original).decode()
        form = upload_form(filename, mask, {"subfolder": subfolder, "overwrite": "true", "original_ref": ref})
        status = 0
        try:
            reply = await self._aiohttp.upload("/upload/mask", form)
            status = reply.status
        finally:
            self._count("POST", "/upload/mask", status)
        return _json(reply, "POST /upload/mask")

    async def files_in(self, folder_type: str) -> list[str]:
        """Names of the files directly below one of ComfyUI's folders, newest first; [] if it does not list them."""
        reply = await self._fetch("GET", f"/internal/files/{folder_type}", route="/internal/files/*")
        names = jsonio.loads(reply.body) if reply.status == 200 else []
        return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []

    @asynccontextmanager
    async def view(self, filename: str, subfolder: str = "", folder_type: str = "output") -> AsyncIterator[OpenBody]:
        """One file; if the connection breaks, the rest is requested.

        Raises:
            ComfyUINotFoundError: ComfyUI does not have it (any more).
        """
        target = f"/view?{view_query(filename, subfolder, folder_type)}"
        reply = await self._open_view(target)
        body = ResumedBody(
            reply.body,
            functools.partial(self._rest, target, reply),
            self._backoff,
            retries=self._retries,
            what="GET /view",
        )
        try:
            if reply.status == 404:
                raise ComfyUINotFoundError(f"ComfyUI has no file {filename!r} in {folder_type}/{subfolder}")
            if reply.status != 200:
                raise _unexpected("GET /view", reply.status, refusing=_NO_KEY)
            yield body
        finally:
            body.close()

    async def size_of(self, file: OutputFile) -> int | None:
        """Bytes of the file that ``/view`` would send, without requesting any. None if ComfyUI does not have it."""

        async def ask() -> int | None:
            reply = await self._fetch("HEAD", file.url, route="/view")
            if reply.status not in {200, 404}:
                raise _unexpected("HEAD /view", reply.status, refusing=_NO_KEY)
            return (reply.length or 0) if reply.status == 200 else None

        return await self._retrying(ask, self._retries)

    async def open_view(self, file: OutputFile, headers: Mapping[str, str] = _NO_HEADERS) -> OpenReply:
        """ComfyUI's answer to ``/view`` with these headers, whatever its status. The caller closes it."""
        return await self._open_view(file.url, headers)

    async def _rest(self, target: str, first: OpenReply, start: int) -> OpenBody:
        """The file of `first` from byte `start` on; any other content would corrupt the file that was begun."""
        version, size = first.header(b"etag"), first.body.length
        reply = await self._open_view(target, {"Range": f"bytes={start}-"} | ({"If-Range": version} if version else {}))
        expected = f"bytes {start}-{size - 1}/{size}" if size else ""
        if reply.status != 206 or reply.header(b"content-range") != expected:
            reply.close()
            raise ComfyUIServerError("GET /view: the file's body was cut off, and its rest cannot be had")
        return reply.body

    async def _open_view(self, target: str, headers: Mapping[str, str] = _NO_HEADERS) -> OpenReply:
        status = 0
        try:
            reply = await self._open.open(target, headers)
            status = reply.status
            return reply
        finally:
            self._count("GET", "/view", status)

    # Facts about the server

    async def object_info(self) -> JSON:
        """All node definitions; some MB on a server with many models and custom nodes."""
        return await self._get("/object_info", "/object_info", replies.object_info)

    async def system_stats(self) -> JSON:
        return await self._get("/system_stats", "/system_stats", dict, retries=0)

    # Websocket

    async def connect_websocket(self, client_id: str, *, heartbeat_s: float) -> ServerSocket:
        """Opens ``/ws`` under `client_id`, to be read by `Frames`; text comes as bytes.

        The first message tells ComfyUI that we know previews with metadata; it answers with its own features. A server
        that is silent for `heartbeat_s` is pinged, and the socket ends after another half of that.

        Raises:
            ComfyUIConnectionError: also when ComfyUI refuses the upgrade.
        """
        if self._session is None:
            raise _not_open()
        with aiohttp_errors(self.name, f"websocket to {self.name}"):
            socket = await self._session.ws_connect(
                (self.base_url / "ws").with_query(clientId=client_id),
                max_msg_size=self.answers.max_bytes,
                heartbeat=heartbeat_s,
                autoping=False,
                decode_text=False,
                timeout=aiohttp.ClientWSTimeout(ws_close=5.0),
            )
            try:
                await socket.send_str(_OUR_FEATURES)
            except BaseException:
                await socket.close()
                raise
        return socket

    # Requests

    async def _get(self, path: str, route: str, shaped: Callable[[JSON], _T], *, retries: int | None = None) -> _T:
        """The result of `shaped` for the answer; a long one is read and shaped beside the event loop."""

        async def fetch() -> _T:
            reply = await self._fetch("GET", path, route=route)
            return await offloaded(len(reply.body), lambda: shaped(_json(reply, f"GET {path}")))

        return await self._retrying(fetch, self._retries if retries is None else retries)

    async def _post(self, path: str, body: JSON) -> None:
        """An idempotent POST whose answer has no body that matters."""

        async def send() -> None:
            reply = await self._fetch("POST", path, body=jsonio.dumps_for_comfyui(body), headers=_JSON)
            if reply.status != 200:
                raise _failure(f"POST {path}", reply)

        await self._retrying(send, self._retries)

    def _retrying(self, call: Callable[[], Awaitable[_T]], retries: int) -> Awaitable[_T]:
        return retry(call, ComfyUIError, self._backoff, retries=retries, worth=may_pass)

    @property
    def _open(self) -> Transport:
        if self._transport is None:
            raise _not_open()
        return self._transport

    async def _fetch(
        self,
        method: str,
        path: str,
        *,
        route: str | None = None,
        body: bytes | None = None,
        headers: Mapping[str, str] = _NO_HEADERS,
        last_word_s: float = 0.0,
    ) -> RawReply:
        """One request; `route` is its path in the metrics."""
        status = 0
        try:
            reply = await self._open.fetch(method, path, body=body, headers=headers, last_word_s=last_word_s)
            status = reply.status
            return reply
        finally:
            self._count(method, route or path, status)

    def _count(self, method: str, route: str, status: int) -> None:
        self._counter(self.name, method, route, status).inc()


def upload_form(filename: str, content: Any, fields: Mapping[str, str]) -> aiohttp.MultipartWriter:
    """The body of ``/upload/image`` and ``/upload/mask``, with the exact name that ComfyUI shall store.

    aiohttp's own form percent-encodes the name, and ComfyUI does not decode it: ``my photo.png`` became
    ``my%20photo.png``.
    """
    form = aiohttp.MultipartWriter("form-data")
    file = aiohttp.get_payload(content, content_type="application/octet-stream")
    file.headers[CONTENT_DISPOSITION] = file_disposition("image", filename)
    form.append_payload(file)
    for name, value in fields.items():
        form.append(value).set_content_disposition("form-data", quote_fields=False, name=name)
    return form


def _json(reply: RawReply, what: str, allowed: Sequence[int] = (200,)) -> JSON:
    if reply.status not in allowed:
        raise _failure(what, reply)
    try:
        answer = big_json.load(reply.body, JSON_OF_COMFYUI)
    except ComfyUILimitError as error:
        detail = f"{what}: the answer has too many values, or is nested too deeply, to be read"
        raise ComfyUIUnreadableError(detail, upstream_status=reply.status) from error
    except JSONError as error:
        detail = f"{what}: the answer is not JSON: {error}"
        raise ComfyUIUnreadableError(detail, upstream_status=reply.status) from error
    if not isinstance(answer, dict):
        raise ComfyUIUnreadableError(f"{what}: the answer is not a JSON object", upstream_status=reply.status)
    return answer


def may_pass(error: ComfyUIError) -> bool:
    """Whether the same request may succeed at the next try."""
    if isinstance(error, ComfyUIServerError):
        return error.upstream_status in _RETRIED_STATUSES
    return isinstance(error, ComfyUIConnectionError)


def _failure(what: str, reply: RawReply) -> ComfyUIError:
    """The error for an unexpected answer, except the one that our own server in front of RunPod gives for its disk."""
    if reply.status == ComfyUIDiskError.status:
        with suppress(JSONError, KeyError, TypeError):
            said = jsonio.loads(reply.body)
            if said["type"] == ComfyUIDiskError.code:
                return ComfyUIDiskError(str(said["detail"]))
    return _unexpected(what, reply.status, body=reply.body)


def _unexpected(
    what: str, status: int, *, refusing: Collection[int] = REFUSING, body: bytes = b""
) -> ComfyUIServerError:
    """The log has the start of ComfyUI's answer; the error has its first line, without the server's paths."""
    text = body[:_LOGGED_BODY].decode(errors="replace").strip()
    if text:
        _log.warning("comfyui.unexpected_answer", request=what, status=status, body=text)
    if status in refusing:
        return ComfyUICredentialsError(what, upstream_status=status)
    first = "" if text.startswith("<") else _SERVER_PATH.sub(r"\1", text.partition("\n")[0])[:_SAID_BODY]
    said = f": {first}" if first else ""
    return ComfyUIServerError(f"{what}: ComfyUI answered HTTP {status}{said}", upstream_status=status)


def _not_open() -> RuntimeError:
    return RuntimeError("use the client inside 'async with'")
