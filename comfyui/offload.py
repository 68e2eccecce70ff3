"""Work that takes longer than some milliseconds goes to threads, so that the event loop can answer others.

Python runs one thread at a time: a thread helps only if the work has many short steps, between which the event loop
gets its turn. One long step (such as parsing a whole body) stops the loop even from a thread: it must be cut in pieces
or be limited. `comfyui.big_json` and `comfyui.inputs.staging` do that.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import IO, Any, ParamSpec, TypeVar

# Work on this many bytes takes less time than the start of a thread costs the others.
ON_LOOP_BYTES = 64 * 1024
# How much is handled in one turn of the event loop, if a small message counts as a KB: about a millisecond of work.
_A_TURN = 128 * 1024
_A_MESSAGE = 1024
# Each thread that computes makes the event loop wait up to one switch of threads (5 ms) longer for its turn.
_AT_ONCE = 2

_P = ParamSpec("_P")
_T = TypeVar("_T")
_F = TypeVar("_F", bound=IO[Any])
# Separate from asyncio's own threads: files and host names must not wait for long computations.
_threads = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="offload")


async def offloaded(size: int, work: Callable[_P, _T], /, *args: _P.args, **options: _P.kwargs) -> _T:
    """Does `work` here, or in one of few threads if it concerns a body of more than `ON_LOOP_BYTES`.

    Args:
        size: bytes of the body that the work is about.

    Raises:
        Exception: whatever `work` raises.
    """
    if size <= ON_LOOP_BYTES:
        return work(*args, **options)
    return await in_thread(work, *args, **options)


async def in_thread(work: Callable[_P, _T], /, *args: _P.args, **options: _P.kwargs) -> _T:
    """Does `work` in one of few threads, however small it looks. Raises whatever `work` raises."""
    context = contextvars.copy_context()
    return await asyncio.get_running_loop().run_in_executor(_threads, partial(context.run, work, *args, **options))


async def finished_in_thread(work: Callable[[], _T]) -> _T:
    """The result of blocking `work`, done outside the event loop.

    A caller that is cancelled once still waits until the thread has ended, so its next step comes after `work`.
    """
    task = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


async def made_in_thread(make: Callable[[], _T], discard: Callable[[_T], object]) -> _T:
    """The result of blocking `make`, made outside the event loop: an open file, for example.

    If the caller is cancelled meanwhile, however often, `discard` is called with the result, also in a thread.
    """
    made: list[_T] = []
    is_left = False

    def give_up() -> None:
        try:
            thing = made.pop()
        except IndexError:
            return  # the other side has it
        discard(thing)

    def work() -> None:
        made.append(make())
        if is_left:
            give_up()

    try:
        await asyncio.to_thread(work)
    except asyncio.CancelledError:
        # The thread discards a later result; an earlier one is discarded here.
        is_left = True
        if made:
            asyncio.get_running_loop().run_in_executor(None, give_up)
        raise
    return made.pop()


async def opened_in_thread(open_file: Callable[[], _F]) -> _F:
    """The file that blocking `open_file` opens; it is closed if the caller is cancelled meanwhile."""
    return await made_in_thread(open_file, lambda file: file.close())


class Turns:
    """Gives the event loop its turns in work that may run long without any wait.

    Reading messages that have already arrived is no wait: 50,000 messages of one connection took half a second in one
    turn.
    """

    __slots__ = ("_done",)

    def __init__(self) -> None:
        self._done = 0

    def over(self, size: int) -> bool:
        """Counts a message of `size` bytes; returns whether it is time for ``asyncio.sleep(0)``."""
        self._done += size + _A_MESSAGE
        if self._done < _A_TURN:
            return False
        self._done = 0
        return True

    async def handled(self, size: int) -> None:
        """The same as `over`, and returns in a later turn when it is time for one."""
        if self.over(size):
            await asyncio.sleep(0)


def after_turns(turns: int, call: Callable[[], None]) -> None:
    """Calls `call` after this number of turns of the event loop."""
    asyncio.get_running_loop().call_soon(*((after_turns, turns - 1, call) if turns else (call,)))
