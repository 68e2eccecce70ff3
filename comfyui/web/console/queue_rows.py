"""The jobs that wait, as rows of a page: `templates/_queue_row.html` shows one."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from comfyui.exceptions import JournalError
from comfyui.handler import ComfyUIHandler
from comfyui.jobs.etas import EtasNow
from comfyui.jobs.forecast import Eta
from comfyui.jobs.job import Job
from comfyui.jobs.journal.records import JobRecord
from comfyui.jobs.standing import Waits
from comfyui.owners import HIGHEST_PRIORITY
from comfyui.web.console.texts import TEXTS
from comfyui.web.console.viewer import Visitor


@dataclass(frozen=True, slots=True)
class QueueRow:
    """A job that waits.

    Attributes:
        owner: None where no keys are asked for.
        name: of its workflow; "" where a graph was sent.
        place: the number of jobs before it, plus one; None if unknown.
        server: where it waits behind another prompt; None where it waits for its turn.
        queued_at: in Unix time; 0 if unknown.
        eta: when it begins, in words; "" if unknown.
        is_late: it waits for its inputs, or for a server that takes it, and not for its turn.
        may_move: its place in the order can be changed.
    """

    prompt_id: str
    owner: str | None
    name: str
    labels: tuple[tuple[str, str], ...]
    priority: int
    place: int | None
    server: str | None
    queued_at: float
    eta: str
    is_late: bool
    may_move: bool


@dataclass(frozen=True, slots=True)
class QueuePart:
    """Some rows of the queue. `total`: how many rows there are for this visitor, with this owner."""

    rows: tuple[QueueRow, ...]
    total: int


def queue_row(
    handler: ComfyUIHandler, one: Waits, record: JobRecord | None, etas: EtasNow, visitor: Visitor
) -> QueueRow:
    """The row of a job. `record`: None where the journal does not have it, or not yet."""
    prompt_id = one.standing.prompt_id
    job = handler.standing.job(prompt_id)
    entry = None if job is None else job.entry
    queued_at = record.queued_at if record is not None else entry.queued_at if entry is not None else 0.0
    ahead = None if one.place is None else one.place - 1
    return QueueRow(
        prompt_id=prompt_id,
        owner=one.standing.owner,
        name=workflow_name_of(record, job),
        labels=() if record is None else tuple(sorted(record.labels.items())),
        priority=0 if record is None else record.priority,
        place=one.place,
        server=one.standing.server,
        queued_at=queued_at,
        eta=eta_text(etas.of(prompt_id, ahead)),
        is_late=one.place is None and one.standing.server is None,
        may_move=visitor.may_change and record is not None and handler.queue.has_no_turn(prompt_id),
    )


def workflow_name_of(record: JobRecord | None, job: Job | None) -> str:
    """The name of the workflow that a job runs; "" if a graph was sent. Either may be None: not known, or not yet."""
    if record is not None:
        return record.workflow_name or ""
    return job.call.name if job is not None and job.call is not None else ""


async def records_of(handler: ComfyUIHandler, prompt_ids: Sequence[str]) -> Mapping[str, JobRecord]:
    """Those of the jobs that the journal has; none where it cannot be read: readiness and log say why."""
    with contextlib.suppress(JournalError):
        return {one.prompt_id: one for one in await handler.journal.get_all(prompt_ids)}
    return {}


async def queue_part(handler: ComfyUIHandler, visitor: Visitor, skip: int, most: int, owner: str | None) -> QueuePart:
    """Rows from `skip` on, at most `most`.

    Args:
        owner: the jobs of this one only; None: of all that the visitor sees.
    """

    def fits(other: str | None) -> bool:
        return visitor.sees(other) and owner in {None, other}

    total = handler.standing.count_waiting(fits)
    fitting = (one for one in handler.standing.waiting() if fits(one.standing.owner))
    shown = list(islice(fitting, skip, min(skip + most, total))) if skip < total else []
    records = await records_of(handler, [one.standing.prompt_id for one in shown])
    etas = handler.etas.now()
    rows = (queue_row(handler, one, records.get(one.standing.prompt_id), etas, visitor) for one in shown)
    return QueuePart(tuple(rows), total)


def eta_text(eta: Eta) -> str:
    """When the job begins, in words that change seldom; "" where that is not known."""
    if eta.begins_s is None:
        return ""
    return str(TEXTS.queue.soon if eta.begins_s < 1 else TEXTS.queue.begins.format(time=about(eta.begins_s)))


def about(seconds: float) -> str:
    """A duration that is a guess: ``5 s``, ``40 s``, ``3 min``, ``2 h``."""
    if seconds < 10:
        return f"{math.ceil(seconds)} s"
    if seconds < 60:
        return f"{round(seconds / 5) * 5} s"
    if seconds < 3600:
        return f"{round(seconds / 60)} min"
    return f"{seconds / 3600:.1f} h" if seconds < 36_000 else f"{round(seconds / 3600)} h"


def priorities_of(visitor: Visitor) -> tuple[int, int]:
    """The lowest and the highest priority that the visitor may give a job."""
    rules = visitor.origin.rules
    return -HIGHEST_PRIORITY, HIGHEST_PRIORITY if rules is None else rules.max_priority
