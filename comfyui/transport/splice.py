"""Moves a body from one socket to another within the kernel, without a copy in this process (Linux's splice(2)).

CPU of this process for 64 MB: 28 ms instead of 75 (docs/performance.md). Without splice, `OpenBody.read` reads the same
bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import sys
from collections.abc import Callable
from typing import Final, Self

# Large enough for few turns, and small enough that the kernel does not make the source's buffer many MB in its first
# turn.
_PIPE_BYTES: Final = 512 * 1024
# Each splice takes four descriptors, and a process may have only 1,024; further bodies are copied.
_AT_ONCE: Final = 32
# Errors of a sandbox, or of a kind of socket, without splice. The bytes are still there to be read.
_REFUSALS: Final = frozenset({errno.EINVAL, errno.ENOSYS, errno.EPERM})


class Splice:
    """The rest of a body; no one else may read the source before its end. `close` it.

    Attributes:
        source: a descriptor that becomes readable when there is more.
        left: bytes of the source that are still to be moved.
        moved: how many bytes the last `move_to` took.
        cut: whether the source ended although something is left.
        refused: whether the system cannot do it, so that the rest must be read.
    """

    _open = 0
    """The number of all splices."""

    def __init__(self, source: int, left: int, on_taken: Callable[[int], None]) -> None:
        self.left = left
        self.moved = 0
        self.cut = False
        self.refused = False
        self._on_taken: Callable[[int], None] | None = on_taken
        self._aimed = False
        self._descriptors = contextlib.ExitStack()
        with contextlib.ExitStack() as stack:
            # The second descriptor is for the target: when the target is known, no descriptor may be left.
            self.source, self._target = (_kept(os.dup(source), stack) for _ in range(2))
            self._outlet, self._inlet = (_kept(end, stack) for end in os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC))
            _widen(self._inlet)
            self._descriptors = stack.pop_all()
        Splice._open += 1
        self._descriptors.callback(self._ended)

    @classmethod
    def of(cls, source: int, left: int, on_taken: Callable[[int], None]) -> Self | None:
        """None if the system cannot do it, or not one more.

        Args:
            source: a connected socket's descriptor.
            left: bytes of the body that have not been read.
            on_taken: called with the number of bytes taken from the source.
        """
        if not hasattr(os, "splice") or cls._open >= _AT_ONCE:
            return None
        try:
            return cls(source, left, on_taken)
        except OSError:
            return None  # no descriptor is left

    async def move_to(self, target: int) -> None:
        """Moves the bytes that the source has now, at most half a MB, as fast as `target` takes them.

        Args:
            target: a connected socket's descriptor, the same one each time; no other bytes may be on their way there.

        Raises:
            OSError: `target` takes no more.
        """
        self.moved = 0
        if not self._aimed:
            # The event loop can wait only at a descriptor that none of its transports has.
            os.dup2(target, self._target, inheritable=False)
            self._aimed = True
        try:
            count = os.splice(self.source, self._inlet, min(self.left, _PIPE_BYTES), flags=os.SPLICE_F_NONBLOCK)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno in _REFUSALS:
                self.refused = True
                return
            count = 0
        if not count:
            self.cut = True
            return
        self.moved = count
        self.left -= count
        if self._on_taken is not None:
            self._on_taken(count)
        while count:
            try:
                count -= os.splice(self._outlet, self._target, count, flags=os.SPLICE_F_NONBLOCK)
            except BlockingIOError:
                await _writable(self._target)

    def close(self) -> None:
        """May be called again."""
        self._on_taken = None
        self._descriptors.close()

    @staticmethod
    def _ended() -> None:
        Splice._open -= 1


def _kept(descriptor: int, stack: contextlib.ExitStack) -> int:
    stack.callback(os.close, descriptor)
    return descriptor


def _widen(pipe: int) -> None:
    """Fewer turns per MB. All pipes of a user share a limit, beyond which this one stays small."""
    if sys.platform == "linux":
        import fcntl  # other systems do not have it

        with contextlib.suppress(OSError):
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)


async def _writable(descriptor: int) -> None:
    loop = asyncio.get_running_loop()
    ready = loop.create_future()

    def wake() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_writer(descriptor, wake)
    try:
        await ready
    finally:
        loop.remove_writer(descriptor)
