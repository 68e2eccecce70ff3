"""The client that goes away while its request is worked on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from starlette.types import Receive

from comfyui.exceptions import ClientGoneError

# Only a request that takes longer than this gets a task that looks whether its client is still there. A client that
# left earlier is noticed then.
_PATIENCE_S = 0.25


class ClientWatch:
    """A block that is cancelled when the client goes away, and then raises `ClientGoneError`.

    Args:
        receive: the request's; nothing else may call it once the body was read.
        body_read: whether the body was read, if not from the start. Until then, the reader of the body notices a client
            that leaves.
    """

    def __init__(self, receive: Receive, body_read: Callable[[], bool] | None = None) -> None:
        self._receive = receive
        self._body_read = body_read
        self._working: asyncio.Task[Any] | None = None
        self._task: asyncio.Task[None] | None = None

    def __enter__(self) -> None:
        self._working = asyncio.current_task()
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(_PATIENCE_S, self._begin)

    def _begin(self) -> None:
        if self._body_read is None or self._body_read():
            self._task = self._loop.create_task(self._listen())
        else:
            self._timer = self._loop.call_later(_PATIENCE_S, self._begin)

    async def _listen(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        if self._working is not None:
            self._working.cancel()

    def __exit__(self, kind: type[BaseException] | None, _error: object, _trace: object) -> None:
        self._timer.cancel()
        working, listening = self._working, self._task
        # A cancelled task keeps the frames in which it was: with a way from there to the task, all that this request
        # holds would stay until the garbage collector comes.
        self._working = self._task = None
        if listening is None:
            return
        gone = listening.done()
        listening.cancel()
        # If someone else cancelled the task too, let their cancellation win.
        if gone and working is not None and working.uncancel() == 0 and kind is asyncio.CancelledError:
            raise ClientGoneError
