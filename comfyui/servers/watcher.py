"""`CompletionWatcher`: one websocket and one poller for all prompts that wait on ONE ComfyUI server.

The socket tells when a prompt is done, at no cost per waiting prompt. The poller is needed for correctness, not as a
fallback (docs/comfyui.md, traps 2, 3, 5 and 6): it finds prompts whose events go nowhere (submitted under another
client id), sockets that are open but silent, and prompts that ComfyUI forgot. Both share one state, so both are in this
module.

ComfyUI runs prompts one at a time in the order of their ``number``. Those that can be done unseen are therefore the
first ones of ours in that order: a poll asks for the history of the first few and goes on only if one of them is done.
Its cost depends on the prompts that finish, not on those that wait, nor on the length of ComfyUI's queue.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
import uuid
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping, Sequence
from copy import copy
from typing import Any, Protocol, Self

import aiohttp
import structlog

from comfyui.client import ComfyUIClient, ServerSocket
from comfyui.events import (
    Event,
    Executing,
    ExecutionStart,
    Preview,
    Status,
    Unknown,
    parse_binary,
    parse_text,
    prompt_id_of,
)
from comfyui.exceptions import (
    ComfyUIConnectionError,
    ComfyUIError,
    ComfyUIPromptLostError,
    ComfyUIServerError,
    ComfyUITaskCancelledError,
    ComfyUIUnreadableError,
)
from comfyui.feed import Feed
from comfyui.metrics import Metrics
from comfyui.offload import offloaded
from comfyui.replies import HistoryEntry, QueueItem
from comfyui.retrying import Backoff
from comfyui.servers.frame_listener import FrameListener
from comfyui.servers.node_times import NodeTimes
from comfyui.servers.options import DEFAULT_SERVERS, ServerOptions
from comfyui.servers.positions import Place, QueuePositions
from comfyui.servers.prompt_worker import PromptWorker
from comfyui.tasks import SideTasks, happens_within
from comfyui.transport.frames import Frames

_FRONT = 4
_FASTEST_POLL_S = 0.05
_POLL_GROWTH = 1.5
_CONFIRM_S = 0.5
_MISSES_UNTIL_LOST = 2
_REFUSALS_UNTIL_UNREADABLE = 8
"""After this many HTTP 500 in a row for one history entry, over some 10 s, ComfyUI has it and cannot write it."""
_FROM_PROXIES = frozenset({502, 503, 504})
# ComfyUI's exact form; a frame in another form is parsed like any other.
_TYPE = b'{"type": "'
_TYPE_AT = len(_TYPE)
_NO_NODE = b'"node": null'
_EXECUTED = b"executed"
_FOR_FOLLOWERS = {
    b"executing": True, b"execution_cached": True, b"progress_state": True,
    b"progress": False, _EXECUTED: False, b"execution_success": False,
}  # fmt: skip
"""Whether a later follower of a prompt gets the last frame of this kind; without a follower, such frames mean
nothing.
"""
_START = b"execution_start"


class Audience(Protocol):
    """Listens to a prompt's events."""

    @property
    def followed(self) -> bool:
        """Whether anyone wants to know them now: progress without a follower is not even parsed."""

    @property
    def collects(self) -> bool:
        """Whether the outputs of nodes are wanted, even without a follower."""

    def publish(self, event: Event) -> None: ...


class Watch:
    """One prompt that a request waits for. Register it before the submission, so that no event is missed."""

    def __init__(self, prompt_id: str, client_id: str, audience: Audience, ours: set[Watch]) -> None:
        self._ours = ours
        self.prompt_id = prompt_id
        self.client_id = client_id
        self.place = Place()
        self._audience = audience
        self.accepted = False
        self.heard = False
        """ComfyUI has sent an event for this prompt, which proves that it was accepted."""
        self.number = 0.0
        self.epoch = 0
        """The watcher's, before the submission: ComfyUI may lose its memory before its reply arrives."""
        self.done_number = 0.0
        self.witness: str | None = None
        """A prompt of ComfyUI's history before the submission: if it is still there, ComfyUI forgot nothing."""
        self.sent_at = 0.0
        self.accepted_at = 0.0
        """On the monotonic clock, as `sent_at`."""
        self.misses = 0
        self.sent = False
        """Whether its submission is on its way, or was accepted."""
        self.suspect = False
        """Whether it ran, or was the next to run, when ComfyUI's connection broke."""
        self.ended_comfyui = False
        """Whether it probably ran when ComfyUI's process ended."""
        self.collecting = False
        self.perhaps_recalled = False
        self.held = False
        """Whether it is being taken out of ComfyUI's queue, so that its absence there means nothing."""
        self.id_in_frames = prompt_id.encode("utf-8", "replace")
        self.times = NodeTimes()
        self.latest: dict[bytes, bytes] = {}
        """The last frame of each type since the present run began; the newest is last."""
        self._unread: set[bytes] = set()
        self._done: asyncio.Future[HistoryEntry | ComfyUIError | None] = asyncio.get_running_loop().create_future()
        self._sending: asyncio.Timeout | None = None

    @contextlib.asynccontextmanager
    async def sending(self) -> AsyncIterator[None]:
        """Around everything that is done on the server until it has the prompt: ends with the error of `fail`."""
        try:
            async with asyncio.timeout(None) as self._sending:
                yield
        except TimeoutError:
            if self._done.done() and isinstance(error := self._done.result(), ComfyUIError):
                raise copy(error) from None
            raise
        finally:
            self._sending = None

    async def finished(self) -> HistoryEntry | None:
        """ComfyUI's history entry, once it exists; None if the prompt was taken back before it began.

        Raises:
            ComfyUIPromptLostError: ComfyUI restarted and forgot it.
            ComfyUITaskCancelledError: someone removed it from the queue.
            ComfyUIUnreadableError: the prompt ended, and its history entry cannot be read.
        """
        outcome = await self._done  # it belongs to its one waiter: when that is cancelled, it may be cancelled too
        if isinstance(outcome, ComfyUIError):
            raise copy(outcome)  # the traceback of the raised error has this watch in it
        return outcome

    @property
    def open(self) -> bool:
        return not self._done.done()

    @property
    def followed(self) -> bool:
        """Whether anyone wants to know the prompt's place in the queue."""
        return self._audience.followed

    def wants(self, kind: bytes) -> bool:
        """Whether anyone wants a frame of this type."""
        return self.followed or (kind == _EXECUTED and self._audience.collects)

    def tell(self, event: Event) -> None:
        self._audience.publish(event)

    def submitted(self) -> None:
        """The prompt's submission is on its way to ComfyUI."""
        self.sent, self.sent_at = True, time.monotonic()
        self._ours.add(self)

    def catch_up(self) -> None:
        """Passes on the frames that were kept unread, because a follower came."""
        unread, self._unread = self._unread, set()
        for kind, frame in self.latest.items():
            if kind in unread:
                self.tell(parse_text(frame))

    def began(self, frame: bytes) -> None:
        """ComfyUI begins to run it."""
        self.latest = {_START: frame}
        self._unread.clear()
        self.times.started()

    def keep(self, kind: bytes, frame: bytes) -> None:
        """Keeps the newest frame of this type."""
        self.latest.pop(kind, None)
        self.latest[kind] = frame
        if not self.followed:
            self._unread.add(kind)

    @contextlib.contextmanager
    def holding(self) -> Iterator[None]:
        """The prompt is taken out of ComfyUI's queue within this block."""
        self.held = True
        try:
            yield
        finally:
            self.held = False

    def recalled(self) -> None:
        """ComfyUI may still take the prompt out of its queue, though its answer is lost."""
        self.perhaps_recalled = True

    @property
    def being_sent(self) -> bool:
        """Whether its submission was begun and has no answer yet."""
        return self.sent and not self.accepted

    @property
    def may_be_moved(self) -> bool:
        """Whether nothing is known about it except that ComfyUI accepted it."""
        return self.open and not self.heard

    def taken_back(self) -> None:
        """The prompt has left ComfyUI's queue without having begun."""
        if self.open:
            self._done.set_result(None)

    def finish(self, entry: HistoryEntry) -> None:
        if self.open:
            self._done.set_result(entry)

    def fail(self, error: ComfyUIError) -> None:
        if self.open:
            self._done.set_result(copy(error))
            if self._sending is not None:
                self._sending.reschedule(asyncio.get_running_loop().time())


class CompletionWatcher:
    """Open it with ``async with``; it owns its two tasks and its socket.

    Args:
        worker: is told about ComfyUI's prompt worker.
        news: set when `others` changes.
        listeners: get the frames of watched prompts.
    """

    def __init__(
        self,
        client: ComfyUIClient,
        options: ServerOptions = DEFAULT_SERVERS,
        *,
        worker: PromptWorker | None = None,
        metrics: Metrics | None = None,
        news: asyncio.Event | None = None,
        listeners: Feed[FrameListener] | None = None,
    ) -> None:
        self._client = client
        self._options = options
        self._news = news or asyncio.Event()
        self._listeners = listeners or Feed()
        self.worker = worker or PromptWorker()
        self._metrics = metrics or Metrics()
        self._log = structlog.get_logger(__name__).bind(server=client.name)
        self._watches: dict[str, Watch] = {}
        self._ours: set[Watch] = set()
        self._positions = QueuePositions(self._waiting)
        self._tasks = SideTasks(self._died)
        self._wake = asyncio.Event()
        self._socket: ServerSocket | None = None
        self._live_id: str | None = None
        self._last_id = uuid.uuid4().hex
        self._silent = False
        self._epoch = 0
        self._frames = 0
        self._running_id: str | None = None
        self._last_finished_id: str | None = None
        self._done_number = -math.inf
        self._idle = True
        self._deaf_waiting = False
        self._look_around = False
        self._suspicious = False
        self._asked_front = False
        self._frames_at_poll = 0
        self._poll_delay_s = _FASTEST_POLL_S
        self._poll_failures = 0
        self._poll_backoff = Backoff(start_s=2 * _FASTEST_POLL_S, max_s=2 * options.poll_interval_s)
        self._retry_delay_s = 0.0
        self.features: Mapping[str, Any] | None = None
        """ComfyUI's own feature flags, as last heard; None if it has sent none."""
        self.queue_remaining = 0
        """The number of prompts in ComfyUI's queue, as last heard."""
        self.others = 0
        """Prompts in ComfyUI's queue that are not watched here; kept up to date after `tell_of_others` was called."""
        self._tells_of_others = False
        self._told_silent: str | None = None
        self._told_dead = False
        self.changed = asyncio.Event()
        """Set when the server's state may have changed and a probe should look; the probe clears it."""
        self.crashed: BaseException | None = None

    async def __aenter__(self) -> Self:
        self._start(self._socket_loop(), "socket")
        self._start(self._poll_loop(), "poller")
        return self

    async def __aexit__(self, *_exc: object) -> None:
        self._positions.close()
        await self._tasks.close()
        for watch in self._watches.values():
            watch.fail(ComfyUIConnectionError("the gateway stopped watching ComfyUI", prompt_id=watch.prompt_id))
        self._watches.clear()

    @property
    def client_id(self) -> str:
        """Submit under this id, so that the prompt's events reach the shared socket."""
        return self._live_id or self._last_id

    @property
    def connected(self) -> bool:
        """Whether the socket is open and not known to be silent."""
        return self._live_id is not None

    @property
    def epoch(self) -> int:
        """Grows whenever ComfyUI may have lost its memory: with each connection that is made, breaks or is refused."""
        return self._epoch

    @property
    def silent(self) -> bool:
        """Whether the last socket was open but silent while prompts finished; true until the next one speaks."""
        return self._silent

    @property
    def signs(self) -> int:
        """Grows with every message of ComfyUI, which tells everyone about each change of its queue."""
        return self._frames

    @property
    def running(self) -> Watch | None:
        """The prompt of ours that runs, as ComfyUI has told; None if it has told of none."""
        watch = self._watches.get(self._running_id or "")
        return watch if watch is not None and watch.open and _START in watch.latest else None

    @property
    def waiting(self) -> int:
        """Prompts that are watched now."""
        return len(self._watches)

    def watch(self, prompt_id: str, audience: Audience, *, client_id: str | None = None) -> Watch:
        """Starts to watch; `client_id` if the prompt is submitted under a caller's own id. End it with `unwatch`.

        `audience` gets the prompt's events, and its place in the queue while it is followed.
        """
        watch = Watch(prompt_id, client_id or self.client_id, audience, self._ours)
        self._watches[prompt_id] = watch
        return watch

    def submitted(self, watch: Watch) -> None:
        """The prompt's submission begins."""
        watch.submitted()
        watch.epoch, watch.witness = self._epoch, self._last_finished_id

    def accepted(self, watch: Watch, number: float) -> None:
        """ComfyUI accepted the prompt and gave it this place in the order."""
        watch.accepted, watch.number, watch.accepted_at = True, number, time.monotonic()
        if watch not in self._ours:
            # It was found in ComfyUI's queue, where it had counted as another client's prompt.
            self._ours.add(watch)
            self._count_others()
        watch.done_number = self._done_number
        if not watch.sent:
            # It was found in ComfyUI's queue just now.
            watch.epoch, watch.witness, watch.sent_at = self._epoch, self._last_finished_id, watch.accepted_at
        if self._idle or watch.client_id != self._live_id:
            self._poll_soon()

    def probed(self, remaining: int) -> None:
        """A probe was answered with the length of ComfyUI's queue, which may have come without a websocket."""
        self.queue_remaining = remaining
        self._count_others()

    def tell_of_others(self) -> None:
        """Keeps `others` up to date: it changes with each prompt, and each change is news."""
        self._tells_of_others = True
        self._count_others()

    def give_up(self, reason: str) -> None:
        """Fails all submitted prompts with `ComfyUIPromptLostError`, including those that are being collected."""
        for watch in list(self._watches.values()):
            if watch.accepted:
                watch.fail(ComfyUIPromptLostError(reason, prompt_id=watch.prompt_id))

    def process_ended(self, reason: str) -> None:
        """ComfyUI's process is known to have ended and has forgotten everything. Blames the prompt that ran."""
        first = self._first_to_run()
        if first is not None:
            first.ended_comfyui = True
        self.give_up(reason)

    def _first_to_run(self) -> Watch | None:
        """The prompt of ours that runs; if ComfyUI did not name it, the first in its order, or the one being sent.

        None also if ComfyUI has prompts of other clients, any of which may be the one that runs.
        """
        running = self._watches.get(self._running_id or "")
        if running is not None and running.open:
            return running
        waiting = self._waiting()
        sent = [watch for watch in self._watches.values() if watch.sent and watch.open and not watch.collecting]
        if self.queue_remaining > len(sent):
            return None
        return waiting[0] if waiting else sent[0] if len(sent) == 1 else None

    def unwatch(self, watch: Watch) -> None:
        if self._watches.get(watch.prompt_id) is watch:
            del self._watches[watch.prompt_id]
        if watch in self._ours:
            self._ours.remove(watch)
            self._count_others()

    # The socket

    async def _socket_loop(self) -> None:
        failures = 0
        while True:
            # Each socket has a new id: under an old one it can go deaf (trap 3).
            client_id = uuid.uuid4().hex
            reason = "refused"
            try:
                self._socket = await self._client.connect_websocket(client_id, heartbeat_s=self._options.heartbeat_s)
                spoke = await self._read(self._socket, client_id)
                reason = "silent" if self._silent else "closed"
                failures = 0 if spoke else failures + 1
            except ComfyUIConnectionError as error:
                failures += 1
                if not error.sent or _is_from_a_proxy(error):
                    self._epoch += 1
                    self._nobody_listens()
                if failures == 1:
                    self._log.warning("websocket.refused", detail=error.detail, until_then="polling")
            except asyncio.CancelledError:
                reason = "stopped"
                raise
            finally:
                await self._drop_socket(is_lost=reason != "stopped")
            self._metrics.websocket_reconnects.labels(self._client.name, reason).inc()
            # A socket that spoke and was closed counts as a first failure.
            await asyncio.sleep(self._options.reconnect.delay_s(failures + 1))

    async def _read(self, socket: ServerSocket, client_id: str) -> bool:
        """Dispatches frames until the socket ends; returns whether it ever sent anything."""
        spoke = False
        async for message in Frames(socket):
            self._frames += 1
            if message.type is aiohttp.WSMsgType.TEXT:
                if self._is_for_nobody(message.data):
                    continue
                event = await offloaded(len(message.data), parse_text, message.data)
            else:
                event = await offloaded(len(message.data), parse_binary, message.data)
            if not spoke:
                spoke = True
                self._went_live(client_id)
            self._dispatch(event, message.data)
        if socket.close_code == aiohttp.WSCloseCode.MESSAGE_TOO_BIG:
            self._log.error("websocket.frame_too_long", detail=self._client.answers.frame_too_long)
        return spoke

    def _is_for_nobody(self, frame: bytes) -> bool:
        """Whether it is progress without a follower: most frames are, and need not be parsed."""
        kind = frame[_TYPE_AT : frame.find(b'"', _TYPE_AT)] if frame.startswith(_TYPE) else b""
        holds_on = _FOR_FOLLOWERS.get(kind)
        if holds_on is None:
            return False
        watch = self._watches.get(self._running_id or "")
        if watch is None or watch.id_in_frames not in frame:
            return False
        is_end = kind == b"executing" and _NO_NODE in frame
        if kind == b"progress_state":
            watch.times.states(frame, time.monotonic())
        elif is_end or kind == b"execution_success":
            watch.times.ended(time.monotonic())
        elif kind == b"executing":
            watch.times.executing(frame, time.monotonic())
        if holds_on and not is_end:
            watch.keep(kind, frame)
        if is_end or watch.wants(kind) or self._is_wanted(watch.prompt_id):
            return False
        self._heard(watch.prompt_id)
        return True

    def _is_wanted(self, prompt_id: str) -> bool:
        return any(listener.wants(prompt_id) for listener in self._listeners)

    def _went_live(self, client_id: str) -> None:
        self._live_id = self._last_id = client_id
        self._silent = False
        self._metrics.websocket_connected.labels(self._client.name).set(1)
        self._log.info("websocket.connected")
        self.changed.set()
        # Prompts submitted before this moment are deaf, and may have been forgotten: no socket was open to tell.
        self._epoch += 1
        self._look_around = True
        self._poll_soon()

    async def _drop_socket(self, *, is_lost: bool) -> None:
        """Closes the websocket. `is_lost`: whether to log it, because the watcher goes on without it."""
        socket, self._socket = self._socket, None
        if self._live_id is not None:
            if (suspect := self._first_to_run()) is not None:
                suspect.suspect = True
            self._live_id = None
            self._epoch += 1
            if is_lost:
                self._log.warning("websocket.closed", waiting=self.waiting, until_then="polling")
            self.changed.set()
        self._metrics.websocket_connected.labels(self._client.name).set(0)
        self._running_id = None
        self._poll_soon()
        if socket is not None:
            await socket.close()

    def _dispatch(self, event: Event, frame: bytes) -> None:
        match event:
            case Status():
                self._remaining_is(event.queue_remaining)
                if self._deaf_waiting:
                    self._poll_soon()
                return
            case Unknown():
                self._pass_on(event, frame)
                return
            case ExecutionStart():
                self._running_id = event.prompt_id
        # Previews without metadata belong to the one prompt that runs.
        prompt_id = prompt_id_of(event) or (self._running_id if isinstance(event, Preview) else None)
        if prompt_id is None:
            return
        self._heard(prompt_id)
        watch = self._watches.get(prompt_id)
        if watch is None:
            return
        watch.heard = True
        if isinstance(event, ExecutionStart):
            watch.began(frame)
        watch.tell(event)
        self._tell_listeners(prompt_id, event, frame)
        if isinstance(event, Executing) and event.node is None and not watch.collecting:
            self._start(self._collect(watch), f"collect {watch.prompt_id}")

    def _pass_on(self, event: Unknown, frame: bytes) -> None:
        """Events of custom nodes, which are not ComfyUI's own, and text of the node that runs."""
        if event.type == "feature_flags" and isinstance(event.data, dict):
            self.features = event.data
            return
        named = event.data.get("prompt_id") if isinstance(event.data, dict) else None
        watch = self._watches.get(named if isinstance(named, str) else self._running_id or "")
        if watch is None and named is not None:
            return
        self._tell_listeners(None if watch is None else watch.prompt_id, event, frame)

    def _tell_listeners(self, prompt_id: str | None, event: Event, frame: bytes) -> None:
        for listener in self._listeners:
            if prompt_id is not None and not isinstance(event, ExecutionStart) and not listener.wants(prompt_id):
                continue
            try:
                listener.heard(self._client.name, prompt_id, event, frame)
            except Exception:  # an error of a listener must not end the watcher that all prompts share
                self._log.exception("listener.failed", prompt_id=prompt_id)

    def _remaining_is(self, remaining: int) -> None:
        self.queue_remaining = remaining
        self._count_others()
        self._positions.heard(remaining)
        if not remaining:
            self.worker.emptied()
            self._tell_silence()

    def _count_others(self) -> None:
        if not self._tells_of_others:
            return
        others = max(0, self.queue_remaining - len(self._ours))
        if others != self.others:
            self.others = others
            self._news.set()
            for listener in self._listeners:
                listener.others_changed()

    async def _collect(self, watch: Watch) -> None:
        """Fetches the history of a prompt that is said to be done, as long as a request waits for it."""
        watch.collecting = True
        failures = refusals = 0
        try:
            while watch.open and self._watches.get(watch.prompt_id) is watch:
                try:
                    await self._history_of(watch)
                except ComfyUIError as error:
                    failures += 1
                    self._log.warning("history.failed", prompt_id=watch.prompt_id, detail=error.detail, tries=failures)
                    refused = isinstance(error, ComfyUIServerError) and error.upstream_status == 500
                    refusals = refusals + 1 if refused else 0
                    if refusals == _REFUSALS_UNTIL_UNREADABLE:
                        detail = f"the prompt is done, but ComfyUI cannot show its result: {error.detail}"
                        watch.fail(ComfyUIUnreadableError(detail, prompt_id=watch.prompt_id, upstream_status=500))
                        return
                    await asyncio.sleep(self._options.history_backoff.delay_s(failures))
                else:
                    return  # without an entry, the poller finds out why
        finally:
            watch.collecting = False
            if watch.open:
                self._wake.set()  # left to the poller again

    async def _history_of(self, watch: Watch) -> bool:
        try:
            entry = await self._client.get_history(watch.prompt_id)
        except ComfyUIUnreadableError as error:
            self._log.error("history.unreadable", prompt_id=watch.prompt_id, detail=error.detail)
            watch.fail(error)
            return True
        if entry is None:
            return False
        self._heard(watch.prompt_id)
        self._last_finished_id = watch.prompt_id
        self._done_number = max(self._done_number, watch.number)
        self._ours.discard(watch)
        if self._live_id is not None:
            # The socket has told that the queue is shorter before it told the end.
            self._count_others()
        watch.finish(entry)
        return True

    # The poller

    async def _poll_loop(self) -> None:
        last_poll = time.monotonic()
        while True:
            # No event wakes this when a prompt is no longer held.
            waiting = self._waiting(also_held=True)
            self._idle = not waiting
            self._deaf_waiting = bool(self._deaf(waiting))
            self._wake.clear()
            if self._idle:
                self._look_around = self._suspicious = False  # its prompt is gone
                if not await happens_within(self._wake, self.worker.look_again_s):
                    await self._look_unasked()
                last_poll = time.monotonic()
                self.worker.nothing_waits()
                continue
            due_in_s = last_poll + self._delay_s(waiting) - time.monotonic()
            if due_in_s > 0 and await happens_within(self._wake, due_in_s):
                continue  # the state changed: start again
            await self._poll_once()
            last_poll = time.monotonic()

    async def _look_unasked(self) -> None:
        """Nothing waits, but the known state of the prompt worker may be over, and nothing else would tell."""
        with contextlib.suppress(ComfyUIError):
            remaining = await self._client.get_queue_remaining()
            self._remaining_is(remaining)
            await self._check_worker(remaining)

    def _poll_soon(self) -> None:
        self._poll_delay_s = _FASTEST_POLL_S
        self._wake.set()

    def _delay_s(self, waiting: Sequence[Watch]) -> float:
        if self._poll_failures:
            return self._retry_delay_s
        if self._suspicious or any(watch.misses for watch in waiting):
            return _CONFIRM_S
        return self._poll_delay_s if self._deaf_waiting else self._options.tick_s

    async def _poll_once(self) -> None:
        try:
            await self._poll()
            if self._poll_failures:
                self._poll_failures = 0
                self.changed.set()  # it answers again: its health should be probed
        except ComfyUIError as error:
            self._poll_failures += 1
            self._retry_delay_s = self._poll_backoff.delay_s(self._poll_failures)
            if isinstance(error, ComfyUIConnectionError):
                # It may have restarted, and without a socket nothing else would tell.
                self._epoch += 1
                self._look_around = True
                if not error.sent:
                    self._nobody_listens()
            if self._poll_failures == 1:
                self._log.warning("poll.failed", detail=error.detail, waiting=self.waiting)

    def _nobody_listens(self) -> None:
        """ComfyUI's process is gone, not only its memory. It may be back before the next request."""
        waiting = self._waiting()
        if self._live_id is None and not any(watch.suspect for watch in waiting):
            # No socket was open to tell what ran, since the process had just started.
            suspect = self._first_to_run()
            if suspect is not None:
                suspect.suspect = True
        for watch in self._watches.values():
            watch.ended_comfyui = watch.ended_comfyui or (watch.open and watch.suspect)

    async def _poll(self) -> None:
        deaf = self._deaf(self._waiting())
        if await self._check_front(deaf):
            self._poll_delay_s = _FASTEST_POLL_S
            return
        # A working socket tells when to look (`status`); without one only the poll does.
        slowest_s = self._options.tick_s if self._live_id is not None else self._options.poll_interval_s
        self._poll_delay_s = min(self._poll_delay_s * _POLL_GROWTH, slowest_s)
        if deaf and self._poll_delay_s < slowest_s and not (self._look_around or self._suspicious):
            return  # soon enough for the next steps
        waiting = self._waiting()
        if not waiting:
            return
        quiet = self._live_id is not None and self._frames == self._frames_at_poll
        self._frames_at_poll = self._frames
        if quiet and not self._asked_front and not self._look_around and not self._suspicious:
            # Alternates with the request below, so that each tick costs one small request.
            self._asked_front = True
            if await self._check_front(waiting[:1]):
                await self._confirm_silence()
            return
        self._asked_front = False
        remaining = await self._client.get_queue_remaining()
        if remaining != self.queue_remaining:
            await self._confirm_silence()
        self._remaining_is(remaining)
        await self._check_worker(remaining)
        # Fewer prompts are left in ComfyUI than wait here, or a later one is done: some of ours ended unseen, unless
        # their events are still on the way.
        waiting = self._waiting()
        before, self._suspicious = self._suspicious, remaining < len(waiting)
        if self._look_around or (before and self._suspicious) or any(self._passed_over(watch) for watch in waiting):
            await self._look_for(waiting, remaining)
            self._look_around = False

    def _waiting(self, *, also_held: bool = False) -> list[Watch]:
        """Prompts that are submitted, not done and not being fetched, in the order in which ComfyUI runs them."""
        waiting = [
            watch
            for watch in self._watches.values()
            if watch.accepted and watch.open and not watch.collecting and (also_held or not watch.held)
        ]
        waiting.sort(key=lambda watch: watch.number)
        return waiting

    def _deaf(self, waiting: Sequence[Watch]) -> list[Watch]:
        """The prompts whose events do not reach our socket: submitted under another id, or there is no socket."""
        return [watch for watch in waiting if watch.client_id != self._live_id]

    def _passed_over(self, watch: Watch) -> bool:
        return watch.misses > 0 or watch.number < self._done_number > watch.done_number

    async def _check_front(self, waiting: Sequence[Watch]) -> bool:
        """Asks for the first ones in ComfyUI's order, and goes on while some are done."""
        any_found = False
        for start in range(0, len(waiting), _FRONT):
            found = await asyncio.gather(*(self._history_of(watch) for watch in waiting[start : start + _FRONT]))
            if not any(found):
                break
            any_found = True
        return any_found

    async def _confirm_silence(self) -> None:
        """An event was missed by the socket: waits a moment, then does without the socket (trap 5)."""
        socket, frames = self._socket, self._frames
        if self._live_id is None or socket is None:
            return
        await asyncio.sleep(_CONFIRM_S)
        if socket is self._socket and frames == self._frames:
            self._silent = True
            self._log.warning("websocket.silent", waiting=self.waiting, until_then="polling")
            await socket.close()

    def _heard(self, prompt_id: str) -> None:
        """A prompt ran, so the prompt worker works."""
        was_stalled = self.worker.stalled
        self.worker.heard(prompt_id)
        if was_stalled:
            self.changed.set()
        if self._told_silent is not None or self._told_dead:
            self._tell_silence()

    async def _check_worker(self, remaining: int) -> None:
        """No event came for long although prompts are queued: looks once what ComfyUI runs."""
        if remaining and self.worker.look_due():
            queue = await self._client.get_queue()
            was_stalled = self.worker.stalled
            self.worker.looked(queue)
            if self.worker.stalled and not was_stalled:
                self._log.error("comfyui.stalled", waiting=len(queue), detail="prompts are queued and none runs")
            if self.worker.stalled is not was_stalled:
                self.changed.set()
        self._tell_silence()

    def _tell_silence(self) -> None:
        """Logs once for each prompt, and notes when the worker begins or ceases to count as dead."""
        silence = self.worker.silence if self.worker.is_silent else None
        if silence is None:
            self._told_silent = None
        elif silence.prompt_id != self._told_silent:
            self._told_silent = silence.prompt_id
            seconds = round(silence.seconds)
            detail = "the prompt runs without any event: a long node, or ComfyUI's prompt worker is dead"
            self._log.error("comfyui.silent", prompt_id=silence.prompt_id, seconds=seconds, detail=detail)
        if self.worker.dead is not self._told_dead:
            self._told_dead = self.worker.dead
            self.changed.set()

    async def _look_for(self, waiting: Sequence[Watch], remaining: int) -> None:
        """Looks for each in the queue, then in the history; a prompt that is in neither twice in a row is gone (trap
        6).
        """
        queue = await self._client.get_queue() if remaining else {}
        for watch in waiting:
            if watch.prompt_id in queue:
                watch.misses, watch.done_number = 0, self._done_number
                watch.suspect = watch.ended_comfyui = False
            elif watch.open and not watch.collecting and not watch.held and not await self._history_of(watch):
                watch.misses += 1
        gone = [watch for watch in waiting if watch.misses >= _MISSES_UNTIL_LOST and watch.open and not watch.held]
        if not gone:
            return
        for watch in gone:
            # Without a socket, a restart between two polls is not seen.
            seen_all = watch.epoch == self._epoch and self._live_id is not None
            if not seen_all and await self._forgot_since(watch, queue):
                self._log.warning("prompt.lost", prompt_id=watch.prompt_id)
                watch.fail(ComfyUIPromptLostError("ComfyUI forgot the prompt", prompt_id=watch.prompt_id))
            elif watch.perhaps_recalled:
                watch.taken_back()
            else:
                self._log.info("prompt.removed", prompt_id=watch.prompt_id)
                detail = "the prompt was removed from ComfyUI's queue"
                watch.fail(ComfyUITaskCancelledError(detail, prompt_id=watch.prompt_id))

    async def _forgot_since(self, watch: Watch, queue: Mapping[str, QueueItem]) -> bool:
        """Whether ComfyUI lost its whole memory since it accepted this prompt, and not only this prompt."""
        # One that was accepted later may be in the new memory only.
        others = (other for other in self._watches.values() if other.accepted and other.accepted_at <= watch.sent_at)
        if any(other.prompt_id in queue for other in others):
            return False
        return watch.witness is None or await self._client.get_history(watch.witness) is None

    # Tasks

    def _start(self, work: Coroutine[Any, Any, None], name: str) -> None:
        self._tasks.start(work, f"{name} {self._client.name}")

    def _died(self, task: asyncio.Task[None]) -> None:
        """A bug of ours: no request must go on waiting for a dead watcher."""
        self.crashed = task.exception()
        self._log.critical("watcher.crashed", task=task.get_name(), exc_info=self.crashed)
        for watch in list(self._watches.values()):
            watch.fail(ComfyUIError("the gateway's watcher failed", prompt_id=watch.prompt_id))


def _is_from_a_proxy(error: ComfyUIConnectionError) -> bool:
    """Whether a proxy in front of ComfyUI accepted the connection, and found no process behind it."""
    cause = error.__cause__
    if isinstance(cause, aiohttp.WSServerHandshakeError):
        return cause.status in _FROM_PROXIES
    return isinstance(cause, aiohttp.ServerDisconnectedError | ConnectionResetError)
