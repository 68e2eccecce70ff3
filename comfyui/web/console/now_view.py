"""Collects what the Now page shows: the servers with their running jobs, and the beginning of the queue."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from comfyui.handler import ComfyUIHandler
from comfyui.jobs.etas import EtasNow
from comfyui.jobs.journal.records import JobRecord
from comfyui.jobs.lines import Standing
from comfyui.replies import QueueItem
from comfyui.servers.backend import Backend
from comfyui.servers.server import Health, Server
from comfyui.web.comfyui.externals import OWNER
from comfyui.web.console.pages import render
from comfyui.web.console.queue_rows import QueuePart, QueueRow, priorities_of, queue_part, records_of, workflow_name_of
from comfyui.web.console.running_jobs import RunningJob, RunningJobs
from comfyui.web.console.server_facts import Device, ServerFacts
from comfyui.web.console.viewer import Visitor

FIRST_ROWS = 50
"""So many jobs that wait are on the page; the page of the queue has them all."""
# Jobs that a card shows; a server that stands for many may run more.
_MOST_ON_A_CARD = 12
_ROOT = "./"
_SAME_END_S = 3
# Jobs of which something is kept; those that have ended are among them.
_MOST_KNOWN = 1000


@dataclass(frozen=True, slots=True)
class ShownJob:
    """A job that runs.

    Attributes:
        owner: None where no keys are asked for; `OWNER` of `externals` for a prompt of others.
        name: of its workflow; "" where a graph was sent.
        started_at: in Unix time; 0 if unknown.
        ends_at: the expected end in Unix time; 0 if unknown.
        is_ours: it is a job of the gateway, of which servers tell how far it is.
    """

    prompt_id: str
    owner: str | None
    name: str = ""
    server: str | None = None
    started_at: float = 0.0
    ends_at: int = 0
    is_ours: bool = True


@dataclass(frozen=True, slots=True)
class ServerCard:
    """A server and what runs there.

    Attributes:
        state: a word of `Health`, or ``drained``.
        reason: why it gets no prompts; "" where it gets some.
        is_heard: its websocket tells how far prompts are.
        behind: how many prompts wait there behind what runs.
        more: how many run there beside those in `running`.
        can_drain, can_free: whether it can be told to have no more prompts, and to drop what is in its memory.
    """

    name: str
    state: str
    reason: str
    drained: bool
    simulated: bool
    is_heard: bool
    devices: tuple[Device, ...]
    running: tuple[ShownJob, ...]
    more: int
    behind: int
    can_drain: bool
    can_free: bool


@dataclass(frozen=True, slots=True)
class NowParts:
    """The parts of the page for one visitor; equal if only the progress of jobs has changed.

    Attributes:
        cards: None for a visitor who does not see the servers.
        running: the jobs that run, for such a visitor.
        queue: the first of those that wait.
    """

    cards: tuple[ServerCard, ...] | None
    running: tuple[ShownJob, ...]
    queue: QueuePart
    paused: bool

    @property
    def tops(self) -> object:
        """What `servers_html` shows, without the progress."""
        return self.cards, self.running

    @property
    def rows(self) -> object:
        """What `queue_html` shows."""
        return self.queue, self.paused


class NowView:
    """Finds out what is shown, and writes it as HTML. `running` knows how far jobs are."""

    def __init__(self, handler: ComfyUIHandler, facts: ServerFacts, running: RunningJobs) -> None:
        self._handler = handler
        self._facts = facts
        self._running = running
        self._records: dict[str, JobRecord] = {}
        self._ends: dict[str, int] = {}

    def forget(self) -> None:
        """Nothing is kept any more of jobs that were looked at."""
        self._records.clear()
        self._ends.clear()

    async def look(self, visitor: Visitor) -> NowParts:
        """The parts that the visitor sees now."""
        on_servers = self._handler.standing.on_servers()
        seen = [one for one in on_servers.running if visitor.sees(one.owner)]
        records = await self._records_of([one.prompt_id for one in seen])
        etas = self._handler.etas.now()
        running = [self._shown(one, records.get(one.prompt_id), etas) for one in seen]
        queue = await queue_part(self._handler, visitor, 0, FIRST_ROWS, None)
        if visitor.sees_all and not self._handler.queue.are_all_here:
            others = [_row(item, server.name) for server, item in self._others() if not item.running]
            queue = QueuePart((*queue.rows, *others)[:FIRST_ROWS], queue.total + len(others))
        return NowParts(
            cards=self._cards(running, on_servers.pending) if visitor.sees_all else None,
            running=() if visitor.sees_all else tuple(running),
            queue=queue,
            paused=self._handler.queue.paused,
        )

    def progress(self, prompt_id: str) -> RunningJob | None:
        """How far a prompt that runs is, as far as is known."""
        return self._running.of(prompt_id)

    def servers_html(self, parts: NowParts, visitor: Visitor) -> str:
        """The cards, with the progress of now."""
        return render("_servers.html", root=_ROOT, visitor=visitor, parts=parts, progress=self.progress)

    def queue_html(self, parts: NowParts, visitor: Visitor) -> str:
        """The first jobs that wait."""
        lowest, highest = priorities_of(visitor)
        return render("_waiting.html", root=_ROOT, visitor=visitor, parts=parts, lowest=lowest, highest=highest)

    async def _records_of(self, prompt_ids: Sequence[str]) -> Mapping[str, JobRecord]:
        """The records that the journal has. The shown fields of a running job do not change, so they are read once."""
        if len(self._records) > _MOST_KNOWN:
            self.forget()
        if missing := [one for one in prompt_ids if one not in self._records]:
            self._records |= await records_of(self._handler, missing)
        return self._records

    def _shown(self, one: Standing, record: JobRecord | None, etas: EtasNow) -> ShownJob:
        job = self._handler.standing.job(one.prompt_id)
        entry = None if job is None else job.entry
        return ShownJob(
            prompt_id=one.prompt_id,
            owner=one.owner,
            name=workflow_name_of(record, job),
            server=one.server,
            started_at=(entry.started_at if entry is not None else None) or 0.0,
            ends_at=self._ends_at(one.prompt_id, etas.of(one.prompt_id).ends_s),
        )

    def _ends_at(self, prompt_id: str, ends_s: float | None) -> int:
        """The expected end in Unix time. A small change of the guess is ignored, so that the page need not change."""
        if ends_s is None:
            return 0
        ends_at, before = round(time.time() + ends_s), self._ends.get(prompt_id, 0)
        if abs(ends_at - before) < _SAME_END_S:
            return before
        self._ends[prompt_id] = ends_at
        return ends_at

    # Servers

    def _others(self) -> Iterator[tuple[Server, QueueItem]]:
        """Prompts that came to the servers past the gateway."""
        for server in self._handler.pool.servers:
            yield from ((server, item) for item in self._facts.others_of(server.name))

    def _cards(self, running: Sequence[ShownJob], pending: Sequence[Standing]) -> tuple[ServerCard, ...]:
        behind = Counter(one.server for one in pending if one.server is not None)
        cards = []
        for server in self._handler.pool.servers:
            others = self._facts.others_of(server.name)
            here = [one for one in running if one.server == server.name]
            here += [_other(item, server.name) for item in others if item.running]
            cards.append(self._card(server, here, behind[server.name] + sum(not item.running for item in others)))
        return tuple(cards)

    def _card(self, server: Server, here: Sequence[ShownJob], behind: int) -> ServerCard:
        backend = server if isinstance(server, Backend) else None
        return ServerCard(
            name=server.name,
            state="drained" if server.drained and server.health is Health.READY else server.health.value,
            reason=server.why_not,
            drained=server.drained,
            simulated=backend is not None and backend.simulated,
            is_heard=backend is None or backend.watcher.connected or server.health is not Health.READY,
            devices=self._facts.devices_of(server.name),
            running=tuple(here[:_MOST_ON_A_CARD]),
            more=max(0, len(here) - _MOST_ON_A_CARD),
            behind=behind,
            can_drain=self._handler.queue.are_all_here,
            can_free=backend is not None and backend.ready,
        )


def _other(item: QueueItem, server: str) -> ShownJob:
    return ShownJob(item.prompt_id, owner=OWNER, server=server, is_ours=False)


def _row(item: QueueItem, server: str) -> QueueRow:
    created = item.extra_data.get("create_time")
    return QueueRow(
        prompt_id=item.prompt_id,
        owner=OWNER,
        name="",
        labels=(),
        priority=0,
        place=None,
        server=server,
        queued_at=created / 1000 if isinstance(created, int | float) and 0 < created < 1e15 else 0.0,
        eta="",
        is_late=False,
        may_move=False,
    )
