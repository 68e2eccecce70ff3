"""`FirstWrite`: the row of a new job, which is written while its prompt is on its way to ComfyUI.

The caller waits for both. So the row is made, and its commit begun, when the submission has left: earlier, they would
delay ComfyUI by another 0.1 ms.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from comfyui.exceptions import ComfyUIError
from comfyui.jobs.journal.protocol import Journal
from comfyui.jobs.journal.writes import Add


class FirstWrite:
    """Begins by itself after the tasks that are there have had their turn.

    Args:
        make: makes the row.
        settle: called once with the row and with the result or error of `Journal.write`. All waiters get its error.
    """

    def __init__(
        self, journal: Journal, make: Callable[[], Add], settle: Callable[[Add, int | ComfyUIError], None]
    ) -> None:
        self._journal = journal
        self._make = make
        self._settle = settle
        self._written: tuple[Add, asyncio.Future[int]] | None = None
        self._is_settled = False
        self._error: ComfyUIError | None = None
        asyncio.get_running_loop().call_soon(self.begin)

    def begin(self) -> None:
        """Begins at the latest now: other writes of the job come after it."""
        if self._written is None:
            add = self._make()
            self._written = add, self._journal.begin(add)
            self._written[1].add_done_callback(self._done)

    async def committed(self) -> None:
        """Returns when the row is committed. Raises what `settle` raised."""
        self.begin()
        if self._written is not None:
            writing = self._written[1]
            if not writing.done():
                await asyncio.wait([writing])
            self._done(writing)
        if self._error is not None:
            raise self._error

    def _done(self, writing: asyncio.Future[int]) -> None:
        if self._is_settled or self._written is None:
            return
        self._is_settled = True
        error = writing.exception()
        if error is not None and not isinstance(error, ComfyUIError):
            raise error
        try:
            self._settle(self._written[0], writing.result() if error is None else error)
        except ComfyUIError as refusal:
            self._error = refusal
