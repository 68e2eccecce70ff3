"""A connection that is written to once in each turn of the event loop.

An answer takes one system call; uvicorn makes two. A system call and a packet for the head alone took an eighth of the
time of a small relayed request, for the client, too.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.flow_control import FlowControl

# More than this is written at once: back-pressure must see it.
_SMALL = 16 * 1024


class GatheringTransport:
    """A transport that sends everything written within one turn of the loop together: an answer's head and its body."""

    __slots__ = ("_held", "_loop", "_paused", "_pending", "_transport")

    def __init__(self, transport: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._pending: list[bytes] = []
        self._held = self._paused = False

    def __getattr__(self, name: str) -> Any:
        """The rest is the transport's own."""
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if len(data) > _SMALL:
            self._pending.append(data)
            self.flush()
            return
        if not self._pending:
            self._loop.call_soon(self.flush)
        self._pending.append(data)

    def hold(self, held: bool) -> None:
        """Read nothing while `held`, whatever `resume_reading` says."""
        if held != self._held:
            self._held = held
            self._read_or_not()

    def pause_reading(self) -> None:
        self._paused = True
        self._read_or_not()

    def resume_reading(self) -> None:
        self._paused = False
        self._read_or_not()

    def _read_or_not(self) -> None:
        if self._transport.is_closing():
            return
        if self._held or self._paused:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    def close(self) -> None:
        self.flush()
        self._transport.close()

    def flush(self) -> None:
        pending, self._pending = self._pending, []
        if not pending or self._transport.is_closing():
            return
        if len(pending) == 1:
            self._transport.write(pending[0])
        else:
            self._transport.writelines(pending)

    def fileno(self) -> int:
        descriptor: int = self._transport.get_extra_info("socket").fileno()
        return descriptor

    async def drained(self, flow: FlowControl) -> None:
        """Waits until all written bytes are on their way; then others may write to the socket."""
        self.flush()
        if self._transport.is_closing() or not self._transport.get_write_buffer_size():
            return
        low, high = self._transport.get_write_buffer_limits()
        self._transport.set_write_buffer_limits(high=0)  # pauses until it is empty
        try:
            while flow.write_paused:
                await flow.drain()
        finally:
            if not self._transport.is_closing():
                self._transport.set_write_buffer_limits(high=high, low=low)
