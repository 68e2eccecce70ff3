"""`Consoles`: all open consoles, and what is heard for them. Without one nothing is heard or computed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Self

from fastapi import FastAPI, Request

from comfyui import jsonio
from comfyui.events import Event, Executing, ExecutionStart, Preview
from comfyui.exceptions import JournalError
from comfyui.handler import ComfyUIHandler
from comfyui.jobs.journal.writes import Finish, Write
from comfyui.owners import OwnerRules
from comfyui.tasks import SideTasks, happens_within
from comfyui.web.console.audience import Audience, Changes, Console, Wants
from comfyui.web.console.now_view import NowView
from comfyui.web.console.running_jobs import RunningJobs
from comfyui.web.console.server_facts import ServerFacts
from comfyui.web.console.static_files import static_files
from comfyui.web.console.viewer import Visitor

PROGRESS_EVERY_S = 0.08
"""Between two messages of progress."""
_LOOK_EVERY_S = 0.5
# Some changes, such as a server that goes down, send no event.
_LOOK_UNASKED_S = 1.0
_REST = 9
# Ends that wait to be told while the journal cannot be read.
_ENDS_KEPT = 1000


class Consoles:
    """Open it with ``async with``, once the handler is open.

    Args:
        owners: the keys; when they change, every feed ends and is asked for again with a key of now.
        alive_s: between two signs of life.
    """

    def __init__(self, handler: ComfyUIHandler, owners: OwnerRules, alive_s: float) -> None:
        self._handler = handler
        self._owners = owners
        self._rules_version = owners.version
        self.alive_s = alive_s
        self._audiences: dict[Any, Audience] = {}
        self._running = RunningJobs(handler.pool, handler.standing, self._is_followed)
        self.facts = ServerFacts(handler)
        self.view = NowView(handler, self.facts, self._running)
        self._changes = Changes()
        self._ended: list[str] = []
        self._news = asyncio.Event()
        self._has_changed = False
        self._timer: asyncio.TimerHandle | None = None
        self._flushed_at = 0.0
        self._tasks = SideTasks()
        self._hearing = ExitStack()
        self._always = SideTasks()

    async def __aenter__(self) -> Self:
        self._always.start(self._end_with_gateway(), "consoles end")
        return self

    async def __aexit__(self, *_exc: object) -> None:
        self._end_all()
        self._stop()
        await self._always.close()
        await self._tasks.close()
        await self.facts.close()

    @property
    def audiences(self) -> Sequence[Audience]:
        """The audiences that have an open console."""
        return list(self._audiences.values())

    # Who looks

    def sees_running(self, visitor: Visitor, prompt_id: str) -> bool:
        """Whether a job is in hand, and the visitor's to see. A sync job may be in no journal yet."""
        job = self._handler.standing.job(prompt_id)
        return job is not None and visitor.sees(job.owner)

    @contextmanager
    def opened(self, visitor: Visitor, wants: Wants, job: str | None = None) -> Iterator[Console]:
        """One console more, until the block ends."""
        if not self._audiences:
            self._start()
        key = visitor.sight, job
        audience = self._audiences.get(key)
        if audience is None:
            audience = self._audiences[key] = Audience(visitor, job, self._running, self._changes)
            self._running.follow_all(self._changes.next())
        console = Console(audience, wants, self._changes)
        audience.consoles.add(console)
        self._news.set()
        try:
            yield console
        finally:
            audience.consoles.discard(console)
            if not audience.consoles:
                del self._audiences[key]
            if not self._audiences:
                self._stop()

    async def messages(self, console: Console, first: bytes = b"") -> AsyncGenerator[bytes, None]:
        """The messages of a console, until it or the gateway ends. `first`: sent before all others."""
        await self._look_for(console.audience)
        hello = {"alive_s": self.alive_s, "digest": static_files().digest}
        first = b"retry: 1000\nevent: hello\ndata: " + jsonio.dumps(hello) + b"\n\n" + first
        async for message in console.messages(first):
            yield message

    def _start(self) -> None:
        self._hearing.enter_context(self._handler.pool.frames.heard_by(self))
        self._hearing.enter_context(self._handler.journal.writes.heard_by(self))
        self._tasks = SideTasks()
        self._tasks.start(self._look(), "consoles look")
        self._tasks.start(self._show_life(), "consoles alive")

    def _stop(self) -> None:
        """Stops the work: no console is open any more."""
        self._hearing.close()
        self._always.start(self._tasks.close(), "consoles stop")
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._running.clear()
        self.view.forget()
        self._ended.clear()

    async def _end_with_gateway(self) -> None:
        await self._handler.draining.wait()
        self._end_all()

    def _end_all(self) -> None:
        for audience in self._audiences.values():
            for console in audience.consoles:
                console.end()

    async def _show_life(self) -> None:
        while True:
            await asyncio.sleep(self.alive_s)
            for audience in self._audiences.values():
                for console in audience.consoles:
                    console.show_life()

    # What the servers tell

    def _is_followed(self, prompt_id: str, owner: str | None) -> bool:
        return any(one.follows(prompt_id, owner) for one in self._audiences.values())

    def wants(self, prompt_id: str) -> bool:
        return prompt_id in self._running

    def heard(self, server: str, prompt_id: str | None, event: Event, frame: bytes) -> None:  # noqa: ARG002 - as every listener is called
        if prompt_id is None:
            return
        if isinstance(event, ExecutionStart):
            self._running.begin(prompt_id, self._changes.next())
            self._change()
        elif (running := self._running.hear(prompt_id, event)) is not None:
            running.mark(self._changes.next())
        elif isinstance(event, Executing):
            self._news.set()  # it is about to end
            return
        elif not isinstance(event, Preview):
            return
        self._flush_soon()

    def others_changed(self) -> None:
        self._change()

    def _change(self) -> None:
        """The queue or the running jobs have changed."""
        self._has_changed = True
        self._news.set()

    # What the journal says

    def wrote(self, write: Write) -> None:
        if isinstance(write, Finish):
            self._ended.append(write.fence.prompt_id)
        self._change()

    # Progress

    def _flush_soon(self) -> None:
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_at(max(loop.time(), self._flushed_at + PROGRESS_EVERY_S), self._flush)

    def _flush(self) -> None:
        """Tell how far jobs are, and the previews that may be told now."""
        loop = asyncio.get_running_loop()
        self._timer, self._flushed_at = None, loop.time()
        wait_s: float | None = None
        for running in self._running:
            due_s = running.preview_due(self._flushed_at)
            if due_s == 0:
                running.take_preview(self._changes.next(), self._flushed_at)
            elif due_s is not None:
                wait_s = due_s if wait_s is None else min(wait_s, due_s)
        self._wake()
        if wait_s is not None:
            self._timer = loop.call_later(max(wait_s, PROGRESS_EVERY_S), self._flush)

    # Servers, the queue, and ends

    async def _look(self) -> None:
        try:
            await self._look_on()
        except Exception:
            self._end_all()  # the pages connect again and get the present state
            raise

    async def _look_on(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await happens_within(self._news, _LOOK_UNASKED_S)
            began = loop.time()
            self._news.clear()
            has_changed, self._has_changed = self._has_changed, False
            if self._owners.version != self._rules_version:
                self._rules_version = self._owners.version
                self._end_all()
            if any("servers" in one.wants and one.visitor.sees_all for one in self._audiences.values()):
                self.facts.look()
            self._running.drop_ended()
            await self._tell_ends()
            for audience in list(self._audiences.values()):
                if has_changed and "changes" in audience.wants:
                    audience.tell("changes", b"event: changes\ndata: 1\n\n")
                await self._look_for(audience)
            self._wake()
            # With very many jobs, or many who see different things, a look takes long: it gets a part of the time.
            await asyncio.sleep(max(_LOOK_EVERY_S, _REST * (loop.time() - began)))

    def _wake(self) -> None:
        for audience in self._audiences.values():
            audience.wake()

    async def _look_for(self, audience: Audience) -> None:
        """Writes the parts that have changed for this audience."""
        if audience.wants & {"servers", "queue"}:
            audience.show(await self.view.look(audience.visitor), self.view)

    async def _tell_ends(self) -> None:
        ended, self._ended = self._ended, []
        if not ended:
            return
        if not any("ended" in one.wants for one in self._audiences.values()):
            return
        try:
            records = await self._handler.journal.get_all(ended)
        except JournalError:
            self._ended = [*ended, *self._ended][-_ENDS_KEPT:]  # readiness and log say why
            return
        for record in records:
            if record.state.is_end:
                message = ended_message(record.prompt_id, record.state.value)
                for audience in self._audiences.values():
                    if audience.follows(record.prompt_id, record.owner):
                        audience.ended(message)


def ended_message(prompt_id: str, state: str) -> bytes:
    """The message that a job has ended."""
    return b"event: ended\ndata: " + jsonio.dumps({"id": prompt_id, "state": state}) + b"\n\n"


def keep_consoles(app: FastAPI, consoles: Consoles) -> None:
    """Lets `consoles_of` find them."""
    app.state.open_consoles = consoles


def consoles_of(request: Request) -> Consoles:
    """The consoles of the gateway that serves a request."""
    consoles: Consoles = request.app.state.open_consoles
    return consoles
