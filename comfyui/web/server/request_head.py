"""How much of a request's head is read, and for how long, before anyone knows whose it is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from comfyui.exceptions import HeadTooLargeError


@dataclass(frozen=True, slots=True)
class HeadLimits:
    """The limits of a request's head; docs/limits.md names them.

    Attributes:
        max_bytes: of the target and all fields of one request, and of its trailers.
        max_fields: header fields of one request.
        seconds: from a connection's begin, or a head's first byte, to the head's end.
    """

    max_bytes: int = 64_000
    max_fields: int = 200
    seconds: float = 20.0


class HeadWatch:
    """Watches the parser of one connection; tell it of each event in order.

    The parser keeps an incomplete field until it ends, and copies it at each read. So an endless head is ended here:
    after the read in which it began, at most `max_bytes` more are read.

    Args:
        late: called once when a head has taken too long, with whether anything of it has come. An answered request
            whose body does not end counts as one of which nothing has come.
    """

    __slots__ = ("_in_head", "_in_message", "_late", "_limits", "_loop", "_moved", "_size", "_timer")

    def __init__(self, limits: HeadLimits, loop: asyncio.AbstractEventLoop, late: Callable[[bool], None]) -> None:
        self._limits = limits
        self._loop = loop
        self._late = late
        self._timer: asyncio.TimerHandle | None = loop.call_later(limits.seconds, self._end)
        self._in_head = False
        self._in_message = False
        self._moved = False
        self._size = 0

    def begun(self) -> None:
        """A request begins."""
        self._in_head = self._in_message = self._moved = True
        self._size = 0

    def moved(self) -> None:
        """Some of the body has come."""
        self._moved = True
        self._size = 0

    def head_ended(self, target: bytes, fields: Sequence[tuple[bytes, bytes]]) -> None:
        """Raises `HeadTooLargeError`."""
        self._in_head = False
        self.moved()
        self.stop()
        limits = self._limits
        if len(fields) > limits.max_fields:
            raise HeadTooLargeError(f"the request has more than {limits.max_fields} header fields")
        if len(target) + sum([len(name) + len(value) for name, value in fields]) > limits.max_bytes:
            raise self._too_large()

    def ended(self) -> None:
        """The request ends, with its body and trailers."""
        self._in_message = False
        self.stop()

    @property
    def in_message(self) -> bool:
        """A request has begun and has not ended."""
        return self._in_message

    def fed(self, size: int) -> None:
        """Counts bytes that the parser has read. Raises `HeadTooLargeError`."""
        if not self._in_message:
            return
        if self._moved:
            self._moved = False  # how many of the bytes belong to what began in them is not known
        else:
            self._size += size
            if self._size > self._limits.max_bytes:
                raise self._too_large()
        if self._in_head and self._timer is None:
            self._timer = self._loop.call_later(self._limits.seconds, self._end)

    def wait(self) -> None:
        """The head that has begun gets its full time again; so does a body that was answered before its end."""
        self._timer = self._loop.call_later(self._limits.seconds, self._end)

    def stop(self) -> None:
        """The connection waits for nothing."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_large(self) -> HeadTooLargeError:
        limit = f"{self._limits.max_bytes / 1000:g} KB"
        return HeadTooLargeError(f"the headers of the request, or its trailers, are larger than {limit}")

    def _end(self) -> None:
        self._timer = None
        self._late(self._in_head)
