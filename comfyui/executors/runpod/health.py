"""`EndpointHealth`: whether RunPod accepts our key and endpoint. Checked at the start, and while anything waits or is
wrong.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from comfyui.exceptions import ComfyUIError, RunPodRefusedError
from comfyui.executors.runpod.endpoint import RunPodEndpoint
from comfyui.retrying import Backoff
from comfyui.tasks import happens_within

_log = structlog.get_logger(__name__)

_INTERVAL_S = 15.0
_BACKOFF = Backoff(start_s=1.0, max_s=_INTERVAL_S)


class EndpointHealth:
    """The state of the endpoint, reported by its users; `run` is the task that asks.

    Only a refusal is trouble: while RunPod cannot be reached, prompts are accepted and wait.

    Attributes:
        trouble: why it refuses the gateway; "" while it does not.
        away: why it cannot be reached; "" while it can.
    """

    def __init__(self) -> None:
        self._listeners: list[Callable[[str], None]] = []
        self._wake = asyncio.Event()
        self._begins = asyncio.Event()
        self._fatal = False
        self.trouble = self.away = ""

    def listen(self, listener: Callable[[str], None]) -> None:
        """Calls the listener with the reason now and whenever it changes; "" means no trouble."""
        self._listeners.append(listener)
        listener(self.trouble)

    def look(self) -> None:
        """Something may have changed: look at once."""
        self._wake.set()
        self._begins.set()

    def begin(self) -> None:
        """Something waits: look now and then."""
        self._begins.set()

    def unreachable(self, reason: str) -> None:
        """A request could not reach it: look until it answers."""
        if not self.away:
            _log.warning("runpod.unreachable", detail=reason)
            self.look()
        self.away = reason

    def give_up(self, reason: str) -> None:
        """The endpoint will not work again in this process."""
        self._fatal = True
        self._tell(reason)

    async def run(self, endpoint: RunPodEndpoint, is_busy: Callable[[], bool]) -> None:
        """Asks the endpoint at once, and again while there is trouble or `is_busy` says that anything waits."""
        failures = 0
        while True:
            self._wake.clear()
            self._begins.clear()
            await self._ask(endpoint)
            failures = failures + 1 if self.trouble or self.away else 0
            await happens_within(self._wake, _BACKOFF.delay_s(failures) if failures else _INTERVAL_S)
            if not (self.trouble or self.away or is_busy()):
                await self._begins.wait()

    async def _ask(self, endpoint: RunPodEndpoint) -> None:
        if self._fatal:
            return
        try:
            await endpoint.health()
        except RunPodRefusedError as error:
            if error.detail != self.trouble:
                _log.error("runpod.refused", detail=error.detail)
                self._tell(error.detail)
        except ComfyUIError as error:
            self.unreachable(error.detail)
        else:
            if self.trouble or self.away:
                _log.info("runpod.recovered")
            self.away = ""
            if self.trouble:
                self._tell("")

    def _tell(self, trouble: str) -> None:
        self.trouble = trouble
        for listener in self._listeners:
            listener(trouble)
