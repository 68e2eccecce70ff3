"""`Session`: one client's websocket, from its handshake to its end.

A client that reads, however slowly, gets everything except old progress. Its waiting frames are in memory up to a
limit, and then in a file up to another one. A client that takes nothing for long, or too little, is dropped.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import structlog
from starlette.types import Receive, Scope, Send

from comfyui import jsonio
from comfyui.exceptions import JSONError
from comfyui.metrics import Metrics
from comfyui.offload import Turns, offloaded
from comfyui.tasks import end_tasks
from comfyui.web.comfyui.hub.budget import Budget
from comfyui.web.comfyui.hub.focus import Narration
from comfyui.web.comfyui.hub.frames import (
    Frame,
    Kind,
    for_users,
    has_metadata,
    is_progress_of,
    with_merged_files,
    without_metadata,
)
from comfyui.web.comfyui.hub.outbox import Outbox, Shelf
from comfyui.web.comfyui.viewer import Viewer
from comfyui.web.comfyui.websocket_ends import TRY_AGAIN_LATER, SlowReader, end_client

_log = structlog.get_logger("relay")

# A smaller frame costs more on the disk than in memory.
_WORTH_A_FILE = 512
# The waiting frames are weighed again after this number of bytes.
_WEIGHED_EVERY = 256_000
_LONGEST_DECLARATION = 64 * 1024


@dataclass(frozen=True, slots=True)
class SessionLimits:
    """Limits of the frames that wait for one client.

    Attributes:
        memory_bytes: how much may wait in memory; the rest is in a file.
        file_bytes: may wait for it in that file. A client for which more waits is dropped.
        idle_s: a client for which something waits and that takes nothing for so long is dropped.
        close_patience_s: for a client to take its close frame.
    """

    memory_bytes: int = 64_000_000
    file_bytes: int = 1_000_000_000
    idle_s: float = 60.0
    close_patience_s: float = 2.0


class Session:
    """One client's websocket.

    Args:
        narration: the rules for its prompts' frames.
        features: the answer when it declares its own.

    Attributes:
        viewer: who opened it.
        client_id: the id of its prompts; one of ours if it named none.
    """

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        viewer: Viewer,
        client_id: str,
        narration: Narration,
        features: Callable[[], Frame | None],
        metrics: Metrics,
        limits: SessionLimits,
        budget: Budget,
    ) -> None:
        self.viewer = viewer
        self.client_id = client_id
        self.narration = narration
        self._scope = scope
        self._receive = receive
        self._send = send
        self._features = features
        self._knows_metadata = False
        self._picture: Frame | None = None
        self._outbox = Outbox()
        self._shelf = Shelf(limits.file_bytes)
        self._limits = limits
        self._budget = budget
        self._to_client = metrics.relayed_bytes.labels("to_client")
        self._rejected = metrics.rejected.labels("slow_client")
        self._written = self._unweighed = self._held = 0
        self._is_full = asyncio.Event()

    def owns(self, owner: str | None) -> bool:
        """Whether a prompt of this owner, with the session's client id, is its own."""
        mine = self.viewer.origin.owner
        return mine == owner or (mine is not None and owner is not None and owner.startswith(f"{mine}/"))

    def hear(self, frame: Frame) -> None:
        """A server tells it of a prompt of the client's."""
        self.tell(self.narration.heard(frame), heard=frame.size)

    def tell(self, frames: Iterable[Frame], *, heard: int = 0) -> None:
        """Sends these in order, after all earlier frames. `heard`: bytes that arrived, and may be kept."""
        for frame in frames:
            for one in self._in_turn(frame):
                self._outbox.put(one)
            heard = max(heard, frame.size)
        self._unweighed += heard
        if self._unweighed > _WEIGHED_EVERY:
            self._weigh()

    def _in_turn(self, frame: Frame) -> list[Frame]:
        """The frames to send now. A picture with metadata comes before the progress of its node; clients that know no
        metadata get it after that, as from ComfyUI.
        """
        picture, self._picture = self._picture, None
        if picture is not None:
            return [frame, picture] if is_progress_of(picture, frame) else [picture, *self._in_turn(frame)]
        if not self._knows_metadata and has_metadata(frame):
            self._picture = frame
            return []
        return [frame]

    def _weigh(self) -> None:
        self._unweighed = 0
        self._held = self._outbox.bytes + sum(frame.held for frame in self.narration.kept())
        self._budget.holds(self, self._held)
        if self._held > self._limits.memory_bytes or self._budget.is_exceeded:
            self._is_full.set()

    async def run(self) -> None:
        """Runs until the client leaves, or is dropped."""
        reading = asyncio.create_task(self._read(), name="websocket from the client")
        writing = asyncio.create_task(self._write(), name="websocket to the client")
        watching = asyncio.create_task(self._watch(), name="progress of the client")
        shelving = asyncio.create_task(self._put_away(), name="frames put away")
        tasks = (reading, writing, watching, shelving)
        async with self._shelf:
            try:
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
                if not reading.done() and (watching.done() or shelving.done()):
                    self._rejected.inc()
                    waiting = sum(frame.size for frame in self._waiting())
                    _log.warning("relay.slow_client", path=self._scope["path"], buffered_bytes=waiting)
                    reason = "the client does not read its messages"
                    await end_client(self._scope, self._send, TRY_AGAIN_LATER, reason, self._limits.close_patience_s)
            finally:
                self._budget.holds(self, 0)
                await end_tasks(*tasks)

    # The client's side

    async def _read(self) -> None:
        """Reads until the client has left. Only its first message has a meaning, as in ComfyUI."""
        turns, is_first = Turns(), True
        while True:
            message = await self._receive()
            if message["type"] == "websocket.disconnect":
                return
            text, data = message.get("text"), message.get("bytes") or b""
            if is_first and text is not None and len(text) <= _LONGEST_DECLARATION:
                is_first = not self._is_declared(text)
            await turns.handled(len(data if text is None else text))

    def _is_declared(self, text: str) -> bool:
        """Whether ComfyUI would accept it as the first message."""
        try:
            told = jsonio.loads(text)
        except JSONError:
            return False
        if isinstance(told, dict) and told.get("type") == "feature_flags":
            flags = told.get("data")
            self._knows_metadata = isinstance(flags, dict) and flags.get("supports_preview_metadata") is True
            if (features := self._features()) is not None:
                self.tell([features])
        return True

    async def _write(self) -> None:
        """Writes until the client is gone, and ends `_read` then."""
        turns = Turns()
        while True:
            frame = await self._outbox.first()
            data = await self._shown(frame)
            try:
                # It waits until the earlier bytes are on their way, and only then writes these.
                if frame.is_text:
                    text = await offloaded(len(data), data.decode, "utf-8", "replace")
                    await self._send({"type": "websocket.send", "text": text})
                else:
                    await self._send({"type": "websocket.send", "bytes": data})
            except OSError:  # uvicorn's, for a client that is gone
                return
            self._outbox.taken(frame)
            self._written += len(data)
            self._to_client.inc(len(data))
            if self._held > _WEIGHED_EVERY and not self._outbox:
                self._weigh()
            await turns.handled(len(data))

    async def _shown(self, frame: Frame) -> bytes:
        """The frame as this client gets it."""
        data = await self._shelf.read(frame)
        if not frame.is_text and not self._knows_metadata:
            return without_metadata(data)
        if frame.kind is Kind.EXECUTED and not frame.is_merged and frame.prompt_id is not None:
            return await offloaded(frame.size, with_merged_files, data, frame.prompt_id)
        if frame.kind is Kind.FAILURE and self.viewer.key is not None:
            return await offloaded(frame.size, for_users, data)
        return data

    # Waiting frames

    async def _watch(self) -> None:
        """Returns when something waits for the client, and it has taken nothing for long."""
        reader = SlowReader(self._scope, self._limits.idle_s)
        await reader.takes_nothing(lambda: self._written, lambda: len(self._outbox) > 0)

    def _waiting(self) -> list[Frame]:
        """The waiting frames in the order of sending."""
        return [*self._outbox, *self.narration.kept()]

    async def _put_away(self) -> None:
        """Moves waiting frames out of memory if they are too many. Returns when that is impossible."""
        while True:
            await self._is_full.wait()
            self._is_full.clear()
            waiting = self._waiting()
            lying = [frame for frame in waiting if frame.data is None]
            if sum(frame.held for frame in waiting if frame.held < _WORTH_A_FILE) > self._limits.memory_bytes:
                return
            some = self._too_much(waiting)
            if not some:
                continue
            try:
                if not await self._shelf.put(some, lying):
                    return
            except OSError as error:
                _log.error("relay.frames_not_kept", path=self._scope["path"], reason=error.strerror or str(error))
                return
            self._outbox.count()
            self._weigh()

    def _too_much(self, waiting: Sequence[Frame]) -> list[Frame]:
        """The frames that go to the file: those that are sent last go first."""
        left, some = 0 if self._budget.is_exceeded else self._limits.memory_bytes // 2, list[Frame]()
        for frame in waiting:
            left -= frame.held
            if left < 0 and frame.held >= _WORTH_A_FILE and frame is not waiting[0]:
                some.append(frame)
        return some
