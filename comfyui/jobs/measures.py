"""The metrics of the jobs and of their journal."""

from __future__ import annotations

import asyncio
import math
import time

from comfyui.exceptions import JournalError
from comfyui.jobs.entry import Clock
from comfyui.jobs.journal.protocol import Journal
from comfyui.metrics import Metrics


class JournalMeasures:
    """`JournalObserver`: counts the writes, and times what commits them."""

    def __init__(self, metrics: Metrics) -> None:
        self._commit_seconds = metrics.journal_commit_seconds
        self._kept = metrics.journal_writes.labels("kept")
        self._failed = metrics.journal_writes.labels("failed")

    def committed(self, writes: int, seconds: float) -> None:
        self._kept.inc(writes)
        self._commit_seconds.observe(seconds)

    def failed(self, writes: int) -> None:
        self._failed.inc(writes)


async def measure_jobs(
    journal: Journal, metrics: Metrics, *, patience_s: float = 1.0, clock: Clock = time.time
) -> None:
    """Asks the journal how many jobs there are, and since when the first one waits.

    A journal that does not answer within `patience_s` delays no one: unknown values are NaN, or left out.
    """
    try:
        async with asyncio.timeout(patience_s):
            counts = await journal.counts()
            oldest = await journal.oldest_waiting()
    except (JournalError, TimeoutError):
        metrics.jobs.clear()
        metrics.oldest_waiting_job_seconds.set(math.nan)
        return
    for state, count in counts.items():
        metrics.jobs.labels(state.value).set(count)
    metrics.oldest_waiting_job_seconds.set(0.0 if oldest is None else max(0.0, clock() - oldest))
