"""`Moving`: gives a job that waits another priority, or puts it first."""

from __future__ import annotations

import structlog

from comfyui.exceptions import ComfyUIConflictError, ComfyUINotFoundError, RequestError
from comfyui.jobs.admission import check_seen
from comfyui.jobs.journal.protocol import Journal
from comfyui.jobs.journal.records import State
from comfyui.jobs.journal.writes import Reorder
from comfyui.jobs.numbers import Numbers
from comfyui.jobs.origin import Origin
from comfyui.jobs.queue import JobQueue
from comfyui.jobs.runs import Runs
from comfyui.jobs.webhooks.again import UNKNOWN_JOB
from comfyui.owners import HIGHEST_PRIORITY

_HAS_TURN = "the job no longer waits in the gateway, and only a waiting job can be moved"

_log = structlog.get_logger(__name__)


class Moving:
    """Writes a job's new place into the journal, and then tells the queue."""

    def __init__(self, journal: Journal, runs: Runs, queue: JobQueue, numbers: Numbers) -> None:
        self._journal = journal
        self._live = runs.live
        self._queue = queue
        self._numbers = numbers

    async def move(self, prompt_id: str, origin: Origin, *, priority: int | None = None, first: bool = False) -> None:
        """Give the job this priority, and with `first` the place before all others of its owner and priority.

        Committed when this returns, and kept over restarts. The job may get its turn meanwhile.

        Raises:
            RequestError: the caller's key may not ask for this priority.
            ComfyUINotFoundError: there is no such job, or it is another owner's.
            ComfyUIConflictError: the job no longer waits.
            JournalError: it cannot be written.
        """
        if priority is not None:
            if not -HIGHEST_PRIORITY <= priority <= HIGHEST_PRIORITY:
                raise RequestError(f"priority must be a whole number from {-HIGHEST_PRIORITY} to {HIGHEST_PRIORITY}")
            origin.check_priority(priority)
        record = await self._journal.get(prompt_id)
        if record is None:
            if (job := self._live.get(prompt_id)) is None or job.entry is None:
                raise ComfyUINotFoundError(UNKNOWN_JOB, prompt_id=prompt_id)
            check_seen(origin, job.owner, prompt_id, submits=False, unknown=UNKNOWN_JOB)
            raise ComfyUIConflictError(_HAS_TURN, prompt_id=prompt_id)
        check_seen(origin, record.owner, prompt_id, submits=False, unknown=UNKNOWN_JOB)
        if record.state.is_end or record.state is State.CANCELING:
            detail = "the job has already ended" if record.state.is_end else "the job is being cancelled"
            raise ComfyUIConflictError(detail, prompt_id=prompt_id)
        number = 0
        if self._queue.has_no_turn(prompt_id):
            number = await self._journal.write(Reorder(record.fence, priority, first))
        if not number:
            raise ComfyUIConflictError(_HAS_TURN, prompt_id=prompt_id)
        if first:
            self._numbers.seen(number)
        turn = -number if first else None
        if (job := self._live.get(prompt_id)) is not None:
            job.move(turn)
        self._queue.move(prompt_id, priority, turn)
        _log.info("job.moved", prompt_id=prompt_id, key=origin.owner, priority=priority, first=first)
