"""`Hub`: the websockets of all clients, and the frames that they get.

It hears the frames of all servers and the writes of the journal. A frame goes to the sockets of its prompt's client:
those with the owner and the client id of the prompt's job. An end is sent when the journal has it, so that a reader of
the history finds it there, whether or not a server ran the prompt.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Self

import structlog
from starlette.types import Receive, Scope, Send

from comfyui import jsonio
from comfyui.events import Event, Executing, ExecutionStart, Preview, Unknown, parse_text
from comfyui.exceptions import JournalError
from comfyui.handler import ComfyUIHandler
from comfyui.jobs.journal.records import State
from comfyui.jobs.journal.writes import Add, Again, Finish, Write
from comfyui.metrics import Metrics
from comfyui.owners import key_of
from comfyui.retrying import Backoff
from comfyui.tasks import SideTasks
from comfyui.web.comfyui.asked import query_of
from comfyui.web.comfyui.hub.budget import Budget
from comfyui.web.comfyui.hub.entries import Entries
from comfyui.web.comfyui.hub.focus import AsItComes, Focus
from comfyui.web.comfyui.hub.frames import Frame, Kind, done, frame_of, message
from comfyui.web.comfyui.hub.session import Session, SessionLimits
from comfyui.web.comfyui.job_reads import JobReads
from comfyui.web.comfyui.merging import merged_features
from comfyui.web.comfyui.viewer import viewer_of

_log = structlog.get_logger("relay")

_STATUS_EVERY_S = 0.2
# While the journal cannot be read, no client is told of an end: the history does not have it.
_JOURNAL_BACKOFF = Backoff(start_s=0.2, max_s=5.0)
_SHOWN_STATES = frozenset({State.SUCCEEDED, State.FAILED, State.LOST, State.CANCELED})


@dataclass(frozen=True, slots=True)
class HubOptions:
    """Limits of the hub.

    Attributes:
        buffer_bytes: what may wait in memory for all clients together; the rest is in files.
        sessions: what may wait for each client, and how long.
    """

    buffer_bytes: int = 512_000_000
    sessions: SessionLimits = field(default_factory=SessionLimits)


@dataclass(slots=True)
class _Running:
    """A running prompt of a client with a socket. `node`: the node that runs, as far as is known."""

    owner: str | None
    client_id: str
    outputs: frozenset[str]
    node: str | None = None


class Hub:
    """Open it with ``async with``, once the handler is open."""

    def __init__(self, handler: ComfyUIHandler, metrics: Metrics, options: HubOptions) -> None:
        self._handler = handler
        self._journal = handler.journal
        self._standing = handler.standing
        self._pool = handler.pool
        self._counts = JobReads(handler)
        self._entries = Entries(handler)
        self._metrics = metrics
        self._options = options
        self._budget = Budget(options.buffer_bytes)
        self._clients: defaultdict[str, list[Session]] = defaultdict(list)
        self._running: dict[str, _Running] = {}
        self._ends: asyncio.Queue[str] = asyncio.Queue()
        self._news = asyncio.Event()
        self._changed: set[str] = set()
        self._tasks = SideTasks()
        self._stack = ExitStack()

    async def __aenter__(self) -> Self:
        self._stack.enter_context(self._pool.frames.heard_by(self))
        self._stack.enter_context(self._journal.writes.heard_by(self))
        self._tasks.start(self._tell_ends(), "ends for websockets")
        self._tasks.start(self._tell_status(), "status for websockets")
        return self

    async def __aexit__(self, *_exc: object) -> None:
        self._stack.close()
        await self._tasks.close()

    async def serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One client's websocket, from its handshake to its end."""
        await receive()  # websocket.connect
        query = query_of(scope)
        viewer = viewer_of(scope)
        client_id = jsonio.without_surrogates(query.get("clientId", "")) or uuid.uuid4().hex
        narration = AsItComes() if query.get("frames") == "all" else Focus()
        session = Session(
            scope,
            receive,
            send,
            viewer,
            client_id,
            narration,
            self._features,
            self._metrics,
            self._options.sessions,
            self._budget,
        )
        self._metrics.relayed_websockets.inc()
        try:
            await send({"type": "websocket.accept"})
            session.tell([self._status(self._counts.count(viewer), client_id)])
            with self._open(session):
                await session.run()
        finally:
            self._metrics.relayed_websockets.dec()

    @contextlib.contextmanager
    def _open(self, session: Session) -> Iterator[None]:
        """The session gets the frames of its prompts, including those that already run."""
        client_id = session.client_id
        for prompt_id, latest in self._running_for(session):
            frames = (frame_of(prompt_id, parse_text(one), one) for one in latest)
            session.tell(session.narration.joined(_named([frame for frame in frames if frame is not None])))
        self._clients[client_id].append(session)
        try:
            yield
        finally:
            sessions = self._clients[client_id]
            sessions.remove(session)
            if not sessions:
                del self._clients[client_id]
            nobodys = [one for one, running in self._running.items() if not any(self._sessions_of(running))]
            for prompt_id in nobodys:
                del self._running[prompt_id]

    def _running_for(self, session: Session) -> list[tuple[str, Sequence[bytes]]]:
        """The session's running prompts, in the order of their starts, with their latest frames."""
        found: list[tuple[float, str, Sequence[bytes]]] = []
        for prompt_id, latest in chain.from_iterable(server.running_frames() for server in self._pool.servers):
            job = self._standing.job(prompt_id)
            if job is None or job.began_at is None:
                continue
            running = self._running_of(prompt_id)
            if running is not None and running.client_id == session.client_id and session.owns(running.owner):
                self._running[prompt_id] = running
                found.append((job.began_at, prompt_id, latest))
        return [(prompt_id, latest) for _, prompt_id, latest in sorted(found, key=lambda one: one[0])]

    def _sessions_of(self, running: _Running) -> Iterable[Session]:
        return (one for one in self._clients.get(running.client_id, ()) if one.owns(running.owner))

    # Frames of the servers

    def wants(self, prompt_id: str) -> bool:
        return prompt_id in self._running

    def heard(self, server: str, prompt_id: str | None, event: Event, frame: bytes) -> None:
        if prompt_id is None:
            self._heard_of_no_prompt(server, event, frame)
            return
        if isinstance(event, ExecutionStart):
            self._begins(prompt_id)
        running = self._running.get(prompt_id)
        if running is None:
            return
        if isinstance(event, Executing):
            running.node = event.node
        node = event.node if isinstance(event, Preview) and event.node is not None else running.node
        for session in self._sessions_of(running):
            told = frame_of(prompt_id, event, frame, is_output=node in running.outputs)
            if told is not None and (session.viewer.key is None or _is_of_the_prompt(event)):
                session.hear(told)

    def _begins(self, prompt_id: str) -> None:
        job = self._standing.job(prompt_id) if self._clients else None
        if job is None:
            return
        self._change(job.owner)
        running = self._running_of(prompt_id)
        if running is not None and any(self._sessions_of(running)):
            self._running[prompt_id] = running

    def _running_of(self, prompt_id: str) -> _Running | None:
        """The running prompt, if its client has a client id."""
        known, job = self._running.get(prompt_id), self._standing.job(prompt_id)
        if known is not None or job is None or job.request is None or job.request.client_id is None:
            return known
        definitions = None if job.backend is None else job.backend.last_definitions
        outputs = frozenset(
            node_id for node_id, node in job.request.prompt.items() if _is_output(definitions, node.get("class_type"))
        )
        return _Running(job.owner, jsonio.without_surrogates(job.request.client_id), outputs)

    def _heard_of_no_prompt(self, server: str, event: Event, frame: bytes) -> None:
        """A custom node's frame for all clients. Only the first server's are passed on, and only to callers that see
        everything.
        """
        told = frame_of(None, event, frame)
        if told is None or not told.is_text or server != self._pool.backends[0].name:
            return
        for session in self._all():
            if session.viewer.key is None:
                session.tell([Frame(told.kind, frame)])

    def others_changed(self) -> None:
        self._change(None)

    def _all(self) -> list[Session]:
        return [session for sessions in self._clients.values() for session in sessions]

    # Writes of the journal

    def wrote(self, write: Write) -> None:
        if not self._clients:
            return
        match write:
            case Add():
                self._change(write.job.owner)
            case Again():
                self._ends.put_nowait(write.prompt_id)  # whose it is has to be read
            case Finish():
                self._finished(write.fence.prompt_id)

    def _finished(self, prompt_id: str) -> None:
        job = self._standing.job(prompt_id)
        if job is not None and job.request is not None and job.request.client_id is None:
            self._change(job.owner)
        else:
            self._ends.put_nowait(prompt_id)

    async def _tell_ends(self) -> None:
        """One after the other, in the order in which they are written down."""
        while True:
            prompt_id = await self._ends.get()
            failures = 0
            while self._clients:
                try:
                    await self._tell_end(prompt_id)
                    break
                except JournalError as error:
                    failures += 1
                    _log.warning("relay.end_not_told", prompt_id=prompt_id, detail=error.detail)
                    await asyncio.sleep(_JOURNAL_BACKOFF.delay_s(failures))

    async def _tell_end(self, prompt_id: str) -> None:
        record = await self._journal.get(prompt_id)
        running = self._running.get(prompt_id)
        if record is not None:
            self._change(record.owner)
            if record.state not in _SHOWN_STATES or record.client_id is None:
                return  # it was to end, and did not; or it is run again
            running = running or _Running(record.owner, record.client_id, frozenset())
        if running is None:
            return
        succeeded = record is not None and record.state is State.SUCCEEDED
        entry: list[Frame] = []
        if any(one.narration.lacks(prompt_id, succeeded=succeeded) for one in self._sessions_of(running)):
            entry = await self._entry(prompt_id)
        self._running.pop(prompt_id, None)
        for session in self._sessions_of(running):
            own = entry if session.narration.lacks(prompt_id, succeeded=succeeded) else []
            session.tell(session.narration.ended(prompt_id, done(prompt_id), _copies(own)))

    async def _entry(self, prompt_id: str) -> list[Frame]:
        try:
            return await self._entries.frames(prompt_id)
        except JournalError:
            raise
        except Exception:  # an end is told, whatever its entry looks like
            _log.exception("listener.failed", prompt_id=prompt_id)
            return []

    # Status and features

    def _change(self, owner: str | None) -> None:
        """The queue has changed, by a job of this owner."""
        if owner is not None:
            self._changed.add(key_of(owner))
        self._news.set()

    async def _tell_status(self) -> None:
        while True:
            await self._news.wait()
            self._news.clear()
            changed, self._changed = self._changed, set()
            counted: dict[str | None, int] = {}
            for session in self._all():
                key = session.viewer.key
                if key is None or key in changed:
                    if key not in counted:
                        counted[key] = self._counts.count(session.viewer)
                    session.tell([self._status(counted[key])])
            await asyncio.sleep(_STATUS_EVERY_S)

    def _status(self, remaining: int, sid: str | None = None) -> Frame:
        data: dict[str, Any] = {"status": {"exec_info": {"queue_remaining": remaining}}}
        return message(Kind.STATUS, "status", data if sid is None else {**data, "sid": sid})

    def _features(self) -> Frame | None:
        """The features of all servers that have told theirs; none if no server has any, as an old ComfyUI."""
        known = [one.watcher.features for one in self._pool.backends if one.watcher.features is not None]
        return message(Kind.OTHER, "feature_flags", merged_features(known)) if known else None


def _is_of_the_prompt(event: Event) -> bool:
    """Whether a frame that arrived while a prompt ran is about it: custom nodes send other frames to all clients."""
    if not isinstance(event, Unknown) or isinstance(event.data, bytes):
        return True
    return isinstance(event.data, dict) and "prompt_id" in event.data


def _is_output(definitions: Any, name: Any) -> bool:
    known = definitions.get(name) if definitions is not None and isinstance(name, str) else None
    return isinstance(known, dict) and bool(known.get("output_node"))


def _named(frames: Iterable[Frame]) -> list[Frame]:
    """A prompt in the order of a run: its start comes first, whatever was told last."""
    order = (Kind.START, Kind.EXECUTING, Kind.STATE)
    return [frame for kind in order for frame in frames if frame.kind is kind]


def _copies(frames: Iterable[Frame]) -> list[Frame]:
    """Each socket puts its own frames away."""
    return [Frame(one.kind, one.data or b"", one.prompt_id, one.node, is_merged=one.is_merged) for one in frames]
