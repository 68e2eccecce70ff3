"""Tasks that run beside their owner: how they start and end, and how an event is waited for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Coroutine
from contextvars import Context
from typing import Any, Self, TypeVar

import structlog

_T = TypeVar("_T")
_log = structlog.get_logger(__name__)


class SideTasks:
    """Keeps tasks referenced while they run, reports each that fails by a bug of ours, and ends with all of them.

    Open it with ``async with``, or call `close`.

    Args:
        crashed: called with a task that ended with an error, instead of a line in the log. An owner that cannot work
            without its tasks stops there.
    """

    def __init__(self, crashed: Callable[[asyncio.Task[Any]], None] | None = None) -> None:
        self._crashed = crashed or _log_crash
        self._tasks: set[asyncio.Task[Any]] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.close()

    def start(self, work: Coroutine[Any, Any, _T], name: str, context: Context | None = None) -> asyncio.Task[_T]:
        """Runs `work` in a task of this name, which the log shows if it fails.

        Args:
            context: the context of the task; a copy of the caller's when not given. Its log lines have the values bound
                there.
        """
        task = asyncio.create_task(work, name=name, context=context)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    async def join(self, timeout_s: float | None = None) -> None:
        """Returns when all present tasks have ended by themselves, or after `timeout_s`."""
        if others := self._others():
            await asyncio.wait(others, timeout=timeout_s)

    async def close(self, *, patience_s: float = 0.0) -> None:
        """Returns when all tasks have ended; those that still run after `patience_s` are cancelled.

        A task that calls it is not ended.
        """
        if patience_s:
            await self.join(patience_s)
        await _end(self._others())

    def _others(self) -> list[asyncio.Task[Any]]:
        return [task for task in self._tasks if task is not asyncio.current_task()]

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._crashed(task)


def _log_crash(task: asyncio.Task[Any]) -> None:
    _log.critical("side_task.crashed", task=task.get_name(), exc_info=task.exception())


def heeded(task: asyncio.Task[Any]) -> None:
    """Marks the error of a task as seen, when no one waits for the task any more."""
    if not task.cancelled():
        task.exception()


async def end_tasks(*tasks: asyncio.Task[Any]) -> None:
    """Cancels the tasks and returns when all have ended, however they end.

    An error that a task raises while it is ended is logged, because no one else will read it. The outcome of a task
    that had ended before is its owner's concern.

    Raises:
        asyncio.CancelledError: the caller was cancelled meanwhile. The tasks have ended nevertheless.
    """
    running = [task for task in tasks if not task.done()]
    try:
        await _end(tasks)
    finally:
        for task in running:
            if task.done() and not task.cancelled() and task.exception() is not None:
                _log_crash(task)


async def _end(tasks: Collection[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    # Waits for all of them even if the caller is cancelled meanwhile, and then raises that.
    await asyncio.gather(*tasks, return_exceptions=True)


async def happens_within(event: asyncio.Event, timeout_s: float | None) -> bool:
    """Waits for the event; whether it came within `timeout_s` (None: for ever).

    `asyncio.wait_for` is not used: up to Python 3.11 it swallows a cancellation that comes together with the event.
    """
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        return False
    return True
