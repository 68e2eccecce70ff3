"""`TaskGate`: between LittleHorse's SDK and its server, so that no task is claimed that cannot run, and none is lost.

The SDK alone claims one task more than it runs, while the server's timeout for it already runs; and when it stops, it
cancels running tasks. So the gate holds back each request for a task until there is a place for it, knows from passing
replies and reports which tasks are under way, and waits for them at the end. It sees the SDK through two calls of its
stub and imports nothing of it.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import structlog

_STREAM_END_S = 0.5

Replies = AsyncIterator[Any]
Poll = Callable[[AsyncIterator[Any]], Any]
Report = Callable[..., Awaitable[Any]]


class TaskGate:
    """One for the process, whatever number of server hosts the SDK polls.

    Args:
        slots: how many tasks may be under way.
        ready: returns when a task could run now; it is awaited before each request for one.
        report_tries: after this number the SDK gives a report up, and the gate no longer waits for it.
    """

    def __init__(self, slots: int, ready: Callable[[], Awaitable[None]], *, report_tries: int) -> None:
        self._slots = slots
        self._ready = ready
        self._report_tries = report_tries
        self._failed_reports: Counter[Any] = Counter()
        self._running: set[Any] = set()
        self._unreported: set[Any] = set()
        self._streams: set[Any] = set()
        self._changed = asyncio.Condition()
        self._draining = asyncio.Event()
        self._log = structlog.get_logger(__name__)

    @property
    def under_way(self) -> int:
        """Tasks that were taken and whose report has not arrived."""
        return len(self._unreported)

    def poll(self, poll_task: Poll) -> Poll:
        """The stub's ``PollTask``, held back."""

        def held_back(requests: AsyncIterator[Any]) -> Replies:
            return self._replies(poll_task, requests)

        return held_back

    def report(self, report_task: Report) -> Report:
        """The stub's ``ReportTask``, watched. The SDK calls it again when it fails."""

        async def watched(result: Any, **options: Any) -> Any:
            key = _key(result)
            await self._forget(self._running, key)
            try:
                answer = await report_task(result, **options)
            except Exception:
                self._failed_reports[key] += 1
                if self._failed_reports[key] < self._report_tries:
                    raise
                self._log.error("report.given_up", wf_run=key[0], task=key[1])
                await self._forget(self._unreported, key)
                raise
            await self._forget(self._unreported, key)
            return answer

        return watched

    async def drain(self, stop_polling: Callable[[], None], *, grace_s: float) -> bool:
        """Take nothing more, wait until all that was taken is reported or given up; False when not within `grace_s`."""
        self._draining.set()
        async with self._changed:
            self._changed.notify_all()
        stop_polling()
        # The server may answer a request that it has already; after a moment it is withdrawn.
        await self._until(lambda: not self._streams, _STREAM_END_S)
        for stream in tuple(self._streams):
            stream.cancel()
        if self._unreported:
            self._log.info("worker.finishing", tasks=len(self._unreported))
        return await self._until(lambda: not self._unreported, grace_s)

    async def _replies(self, poll_task: Poll, requests: AsyncIterator[Any]) -> Replies:
        stream = poll_task(self._requests(requests))
        self._streams.add(stream)
        try:
            async for reply in stream:
                if reply.HasField("result"):
                    self._running.add(_key(reply.result))
                    self._unreported.add(_key(reply.result))
                yield reply
        except (asyncio.CancelledError, Exception):
            # A request that `drain` withdraws ends in one of many errors; any other is left to the SDK.
            if not self._draining.is_set():
                raise
        finally:
            self._streams.discard(stream)
            async with self._changed:
                self._changed.notify_all()

    async def _requests(self, requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
        async for request in requests:
            await self._place()
            if self._draining.is_set():
                return
            yield request

    async def _place(self) -> None:
        """Waits until a task may run, or no more are taken."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._draining.is_set() or len(self._running) < self._slots)
        ready = asyncio.ensure_future(self._ready())
        draining = asyncio.ensure_future(self._draining.wait())
        try:
            await asyncio.wait([ready, draining], return_when=asyncio.FIRST_COMPLETED)
        finally:
            ready.cancel()
            draining.cancel()

    async def _forget(self, tasks: set[Any], key: Any) -> None:
        tasks.discard(key)
        if tasks is self._unreported:
            self._failed_reports.pop(key, None)
        async with self._changed:
            self._changed.notify_all()

    async def _until(self, is_so: Callable[[], bool], timeout_s: float) -> bool:
        try:
            async with asyncio.timeout(timeout_s), self._changed:
                await self._changed.wait_for(is_so)
        except TimeoutError:
            return False
        return True


def _key(task: Any) -> tuple[str, str, int]:
    """The key of a scheduled task, and of its report."""
    return task.task_run_id.wf_run_id.id, task.task_run_id.task_guid, task.attempt_number
