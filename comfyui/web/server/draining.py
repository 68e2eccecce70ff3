"""A signal ends the gateway in order: no new prompts, answers for those in flight, then the end of the server."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import structlog

from comfyui.handler import ComfyUIHandler

_log = structlog.get_logger("gateway")


@contextmanager
def draining_on_signal(
    handler: ComfyUIHandler, grace_s: float, on_drained: Callable[[float], None] | None
) -> Iterator[None]:
    """The first SIGTERM or SIGINT begins to drain, a second one answers all that wait at once.

    uvicorn stops listening and closes idle connections as soon as it sees a signal; it sees it when the drain has
    ended. Before that, new requests are answered on every connection, with 503 if they would start work.

    Args:
        on_drained: is told how many seconds of the grace are left.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # an embedded server (in a test, for example): its owner calls `drain`
        return
    loop = asyncio.get_running_loop()
    drains: set[asyncio.Task[None]] = set()
    previous = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    signals = 0
    stopped = False

    def stop(number: int) -> None:
        nonlocal stopped
        stopped = True
        before = previous[signal.Signals(number)]
        if callable(before):
            before(number, None)

    async def drain(number: int, patience_s: float) -> None:
        ends = loop.time() + patience_s
        await handler.drain(patience_s)
        if not stopped:
            if on_drained is not None:
                on_drained(max(0.0, ends - loop.time()))
            stop(number)

    def begin(number: int) -> None:
        nonlocal signals
        signals += 1
        if signals > 2:
            stop(number)  # uvicorn knows a way that is quicker still
            return
        again = signals > 1
        _log.info("shutdown.now" if again else "shutdown.draining", waiting=handler.waiting, grace_s=grace_s)
        drains.add(loop.create_task(drain(number, 0 if again else grace_s)))

    def on_signal(number: int, _frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(begin, number)

    for number in previous:
        signal.signal(number, on_signal)
    try:
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, before)
        for task in drains:
            task.cancel()
