"""How a client's websocket ends: its close codes, the close frame, and the client that takes nothing."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from starlette.types import Scope, Send

from comfyui.web.server.socket import server_socket_of

NORMAL, GOING_AWAY, TOO_BIG, TRY_AGAIN_LATER = 1000, 1001, 1009, 1013
_INTERNAL_ERROR = 1011
# Codes that say how a connection ended; no endpoint may send them.
_NO_CODE = 1005
NEVER_SENT = frozenset({0, 1004, _NO_CODE, 1006, 1015})
_LOOKS_WITHIN_IDLE = 10


async def end_client(scope: Scope, send: Send, code: int, reason: str, patience_s: float) -> None:
    """Closes the client's websocket, or cuts it if the code says that a connection was lost."""
    socket = server_socket_of(scope)
    if socket is not None:
        if code in NEVER_SENT - {_NO_CODE}:
            socket.cut()
        else:
            socket.drop(NORMAL if code == _NO_CODE else code, reason)
        return
    close = {"type": "websocket.close", "code": _INTERNAL_ERROR if code in NEVER_SENT else code, "reason": reason}
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(patience_s):
            await send(close)


class SlowReader:
    """Watches whether a client takes its messages."""

    def __init__(self, scope: Scope, idle_s: float) -> None:
        self._socket = server_socket_of(scope)
        self._idle_s = idle_s

    async def takes_nothing(self, written: Callable[[], int], waits: Callable[[], bool]) -> None:
        """Returns when something waits for the client, and it has taken nothing for long.

        Args:
            written: bytes that were handed to its connection.
            waits: whether more is waiting for it.
        """
        loop = asyncio.get_running_loop()
        taken_before, since = -1, loop.time()
        while True:
            await asyncio.sleep(self._idle_s / _LOOKS_WITHIN_IDLE)
            unsent = self._socket.unsent if self._socket is not None else 0
            taken = written() - unsent
            if taken != taken_before or not (waits() or unsent):
                taken_before, since = taken, loop.time()
            elif loop.time() - since >= self._idle_s:
                return
