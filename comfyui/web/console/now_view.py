"""What the Now page shows: the servers with what runs there, and the beginning of the queue. It changes nothing."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from comfyui.exceptions import JournalError
from comfyui.handler import ComfyUIHandler
from comfyui.jobs.journal.records import JobRecord
from comfyui.jobs.lines import Standing
from comfyui.replies import QueueItem
from comfyui.servers.backend import Backend
from comfyui.servers.server import Health, Server
from comfyui.web.comfyui.externals import OWNER
from comfyui.web.console.pages import render
from comfyui.web.console.running_jobs import RunningJob, RunningJobs
from comfyui.web.console.server_facts import Device, ServerFacts
from comfyui.web.console.viewer import Visitor

FIRST_ROWS = 50
"""So many jobs that wait are on the page; the page of the queue has them all."""
# Jobs that a card shows; a server that stands for many may run more.
_MOST_ON_A_CARD = 12
_ROOT = "./"


@dataclass(frozen=True, slots=True)
class ShownJob:
    """A job that runs or waits.

    Attributes:
        owner: None where no keys are asked for; `OWNER` of `externals` for a prompt of others.
        name: of its workflow; "" where a graph was sent.
        server: where it runs, or waits for what runs there.
        queued_at, started_at: in Unix time; 0 where nobody knows.
        place: how many are before it, and one; None where nobody knows.
        is_ours: it is a job of the gateway.
    """

    prompt_id: str
    owner: str | None = None
    name: str = ""
    priority: int = 0
    server: str | None = None
    queued_at: float = 0.0
    started_at: float = 0.0
    place: int | None = None
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


@dataclass(frozen=True, slots=True)
class NowParts:
    """What a visitor sees; equal where nothing but the progress of jobs has changed.

    Attributes:
        cards: None for a visitor who does not see the servers.
        running: the jobs that run, for such a visitor.
        waiting: the first of those that wait.
        total: how many wait.
    """

    cards: tuple[ServerCard, ...] | None
    running: tuple[ShownJob, ...]
    waiting: tuple[ShownJob, ...]
    total: int
    paused: bool

    @property
    def tops(self) -> object:
        """What `servers_html` shows, without the progress."""
        return self.cards, self.running

    @property
    def rows(self) -> object:
        """What `queue_html` shows."""
        return self.waiting, self.total, self.paused


class NowView:
    """Finds out what is shown, and writes it as HTML. `running` knows how far jobs are."""

    def __init__(self, handler: ComfyUIHandler, facts: ServerFacts, running: RunningJobs) -> None:
        self._handler = handler
        self._facts = facts
        self._running = running
        self._records: dict[str, JobRecord] = {}

    def forget(self, prompt_id: str | None = None) -> None:
        """What is known of a job from the journal may be over; None: of all jobs."""
        if prompt_id is None:
            self._records.clear()
        else:
            self._records.pop(prompt_id, None)

    async def look(self, visitor: Visitor) -> NowParts:
        """What the visitor sees now."""
        now = self._handler.standing.now(visitor.sees)
        ids = {one.prompt_id for one in now.running}
        running = [*now.running, *(one for one in now.pending if self._began(one) and one.prompt_id not in ids)]
        ids |= {one.prompt_id for one in running}
        pending = [one for one in now.pending if one.prompt_id not in ids]
        records = await self._records_of([one.prompt_id for one in (*running, *pending[:FIRST_ROWS])])
        shown = [self._shown(one, records.get(one.prompt_id)) for one in running]
        waiting = [
            self._shown(one, records.get(one.prompt_id), self._place(one, index, visitor))
            for index, one in enumerate(pending[:FIRST_ROWS])
        ]
        total = len(pending)
        if visitor.sees_all and not self._handler.queue.are_all_here:
            behind = [_other(item, server.name) for server, item in self._others() if not item.running]
            waiting, total = (waiting + behind)[:FIRST_ROWS], total + len(behind)
        return NowParts(
            cards=self._cards(shown, pending) if visitor.sees_all else None,
            running=() if visitor.sees_all else tuple(shown),
            waiting=tuple(waiting),
            total=total,
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
        return render("_waiting.html", root=_ROOT, visitor=visitor, parts=parts)

    def _began(self, one: Standing) -> bool:
        job = self._handler.standing.job(one.prompt_id)
        return job is not None and job.began_at is not None

    def _place(self, one: Standing, index: int, visitor: Visitor) -> int | None:
        if visitor.sees_all:
            return index + 1
        ahead = self._handler.queue.position(one.prompt_id)
        return None if ahead is None else ahead + 1

    async def _records_of(self, prompt_ids: Sequence[str]) -> Mapping[str, JobRecord]:
        """Of those that the journal has. What does not change of a job is read once."""
        missing = [one for one in prompt_ids if one not in self._records]
        if missing:
            # The page shows less where it cannot be read; readiness and log say why.
            with contextlib.suppress(JournalError):
                self._records |= {one.prompt_id: one for one in await self._handler.journal.get_all(missing)}
        return self._records

    def _shown(self, one: Standing, record: JobRecord | None, place: int | None = None) -> ShownJob:
        job = self._handler.standing.job(one.prompt_id)
        entry, call = (None, None) if job is None else (job.entry, job.call)
        queued_at = record.queued_at if record is not None else entry.queued_at if entry is not None else 0.0
        return ShownJob(
            prompt_id=one.prompt_id,
            owner=one.owner,
            name=(record.workflow_name if record is not None else call.name if call is not None else None) or "",
            priority=record.priority if record is not None else 0,
            server=one.server,
            queued_at=queued_at,
            started_at=(entry.started_at if entry is not None else None) or 0.0,
            place=place,
        )

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
        )


def _other(item: QueueItem, server: str) -> ShownJob:
    created = item.extra_data.get("create_time")
    queued_at = created / 1000 if isinstance(created, int | float) and 0 < created < 1e15 else 0.0
    return ShownJob(item.prompt_id, owner=OWNER, server=server, queued_at=queued_at, is_ours=False)
