"""Warming up: a workflow that loads the models runs before the gateway reports that it is ready."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import structlog

from comfyui import jsonio
from comfyui.exceptions import ComfyUIError, ComfyUIShutdownError
from comfyui.handler import ComfyUIHandler
from comfyui.models import PromptRequest
from comfyui.retrying import Backoff
from comfyui.servers.pool import BackendPool
from comfyui.servers.server import Server
from comfyui.tasks import SideTasks
from comfyui.workflows.api_format import check_api_format

_PATIENCE_S = 60.0
# A server whose node definitions are not known yet gets no prompt in the first round.
_ROUNDS = 3
_BACKOFF = Backoff(start_s=1.0, max_s=30.0)

_log = structlog.get_logger(__name__)


def load_workflow(path: Path) -> dict[str, Any]:
    """A workflow in API format from a file.

    Raises:
        ValueError: it cannot be read or is not such a workflow; the text says why.
    """
    try:
        workflow = jsonio.loads(path.read_bytes())
        check_api_format(workflow)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from error
    except ComfyUIError as error:
        raise ValueError(f"{path}: {error.detail}") from error
    except ValueError as error:
        raise ValueError(f"{path}: it is not JSON ({error})") from error
    loaded: dict[str, Any] = workflow
    return loaded


class WarmUp:
    """Runs a workflow on each server that is up, again and again until it worked; the gateway is not ready before.

    Prompts are accepted nevertheless: only the probe says that they may be slow. A workflow that fails keeps the
    gateway unready on purpose, so that a rollout stops while the old version still runs.
    """

    def __init__(self, workflow: dict[str, Any], *, timeout_s: float) -> None:
        self._workflow = workflow
        self._timeout_s = timeout_s
        self._missing: str | None = "warming up"

    def why_not_ready(self, *, in_detail: bool) -> str | None:
        """See `comfyui.handler.Readiness`."""
        return (
            self._missing
            if in_detail or self._missing is None
            else "the warm-up workflow (WARMUP_WORKFLOW) has not succeeded yet"
        )

    @asynccontextmanager
    async def running(self, handler: ComfyUIHandler) -> AsyncIterator[None]:
        """Warms the servers of `handler` beside the ``async with`` body."""
        async with SideTasks() as tasks:
            tasks.start(self._run(handler), "warm up")
            yield

    async def _run(self, handler: ComfyUIHandler) -> None:
        failures = 0
        while True:
            try:
                while not handler.pool.ready_servers:
                    await handler.pool.wait_for_change(_PATIENCE_S)
                started = time.monotonic()
                warm: set[str] = set()
                for _ in range(_ROUNDS):
                    warm |= await self._run_on_all(handler)
                    if warm >= {server.name for server in _to_warm(handler.pool)}:
                        break
            except ComfyUIShutdownError:
                return
            except ComfyUIError as error:
                failures += 1
                if handler.pool.ready_servers:
                    self._missing = f"the warm-up workflow failed: {error.detail}"
                    _log.error("warmup.failed", detail=error.detail, failures=failures)
                await asyncio.sleep(_BACKOFF.delay_s(failures))
            else:
                self._missing = None
                _log.info("warmup.done", seconds=round(time.monotonic() - started, 1))
                return

    async def _run_on_all(self, handler: ComfyUIHandler) -> set[str]:
        """The names of the servers that have run it. Raises the error of the first run."""
        # Each prompt goes to the least busy server, so that every server gets one.
        runs = [
            handler.submit_prompt_sync(PromptRequest(prompt=self._workflow), timeout_s=self._timeout_s)
            for _ in _to_warm(handler.pool)
        ]
        warm = set()
        for outcome in await asyncio.gather(*runs, return_exceptions=True):
            if isinstance(outcome, BaseException):
                raise outcome
            warm.add(outcome.server)
        return warm


def _to_warm(pool: BackendPool) -> Sequence[Server]:
    """RunPod starts and ends its machines itself, and bills each run: it is warmed only if there is no other server."""
    return [server for server in pool.ready if server in pool.servers] or pool.ready_servers
