"""`Gate`: while RunPod certainly accepts no jobs, none is sent to it, so that other servers may have them."""

from __future__ import annotations

import asyncio

import structlog

from comfyui.executors.runpod.submissions import NotTaken
from comfyui.retrying import Backoff

_log = structlog.get_logger(__name__)


class Gate:
    """Closed for a time after each job that was not accepted, and longer after several in a row. `news` is set when it
    opens.
    """

    def __init__(self, backoff: Backoff, news: asyncio.Event) -> None:
        self._backoff = backoff
        self._news = news
        self._refused_in_row = 0
        self._closed: asyncio.TimerHandle | None = None

    @property
    def is_open(self) -> bool:
        return self._closed is None

    def taken(self) -> None:
        """RunPod has accepted a job."""
        self._refused_in_row = 0

    def refused(self, refused: NotTaken) -> None:
        """RunPod has not accepted a job."""
        self._refused_in_row += 1
        if self._refused_in_row == 1:
            _log.warning("runpod.waiting", detail=refused.reason)
        wait_s = max(refused.wait_s, self._backoff.delay_s(self._refused_in_row))
        self.close()
        self._closed = asyncio.get_running_loop().call_later(wait_s, self._open)

    def close(self) -> None:
        """Closes for ever."""
        if self._closed is not None:
            self._closed.cancel()

    def _open(self) -> None:
        self._closed = None
        self._news.set()
