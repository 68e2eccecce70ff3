"""`World`: a gateway, a ComfyUI and a persistent caller; one or both of the processes are killed once."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

import aiohttp

from comfyui.jobs.journal.records import JobFilter, JobRecord
from comfyui.jobs.journal.sqlite import SqliteJournal
from tests.chaos.kills.points import Point, Points
from tests.chaos.kills.processes import engine_at, gateway_at
from tests.chaos.kills.relay import KillRelay
from tests.support.ports import free_port
from tests.support.running import until

Victim = Literal["gateway", "ComfyUI", "both"]
AWAY_S = 0.3
"""Time until a killed process is started again."""
SETTLED_S = 25.0
"""Time after which no job may be unfinished."""
REATTACH_S = 4.0

_PATIENCE = aiohttp.ClientTimeout(60)

Answer = tuple[int, Any]


class World:
    """Runs within `living`. `engine` and `gateway` are addresses that stay the same across restarts."""

    def __init__(self, folder: Path, victim: Victim, at: Point | None, ahead: int) -> None:
        self.points = Points(at, self._strike)
        self.begun_before = Counter[str]()
        self.failures = 0
        self.prefix = f"kill_{uuid4().hex[:12]}"
        self._victim = victim
        self._folder = folder
        self._executions = folder / "executions"
        relay_port, engine_port, gateway_port = free_port(), free_port(), free_port()
        self.engine = f"http://127.0.0.1:{engine_port}"
        self.gateway = f"http://127.0.0.1:{gateway_port}"
        self._relay = KillRelay(relay_port, engine_port, self.points)
        self._engine = engine_at(engine_port, folder)
        settings = {
            "comfyui_server_address": (f"127.0.0.1:{relay_port}",),
            "server_host": "127.0.0.1",
            "server_port": gateway_port,
            "state_dir": folder / "state",
            "reattach_seconds": REATTACH_S,
            "shutdown_grace_seconds": 0.5,
        }
        self._gateway = gateway_at(settings, folder / "control", folder / "gateway.log", ahead)
        self._back: asyncio.Task[None] | None = None
        self.http: aiohttp.ClientSession

    @asynccontextmanager
    async def living(self) -> AsyncIterator[World]:
        async with AsyncExitStack() as stack:
            control = await asyncio.start_unix_server(self.points.report, self._folder / "control")
            stack.callback(control.close)
            await stack.enter_async_context(self._relay)
            self.http = await stack.enter_async_context(
                aiohttp.ClientSession(
                    timeout=aiohttp.ClientTimeout(60), connector=aiohttp.TCPConnector(force_close=True)
                )
            )
            stack.push_async_callback(self._gateway.kill)
            stack.push_async_callback(self._engine.kill)
            await self._engine.start()
            await self._answers(f"{self.engine}/system_stats")
            await self._gateway.start()
            await self._answers(f"{self.gateway}/health/ready")
            yield self
            if self._back is not None:
                self._back.cancel()

    async def _answers(self, url: str) -> None:
        async def status() -> int:
            with contextlib.suppress(aiohttp.ClientError):
                async with self.http.get(url) as response:
                    return response.status
            return 0

        await until(status, lambda answered: answered == 200, timeout_s=30)

    # Killing

    async def _strike(self) -> None:
        if self._victim != "gateway":
            await self._engine.kill()
            self._relay.cut()
        # Counted only now, because ComfyUI may begin another run until it is dead.
        self.begun_before = self.executions()
        if self._victim != "ComfyUI":
            await self._gateway.kill()
        self._back = asyncio.create_task(self._come_back(), name="restart")

    async def _come_back(self) -> None:
        await asyncio.sleep(AWAY_S)
        if self._victim != "ComfyUI":
            await self._gateway.start()
        if self._victim == "both":
            # The gateway finds ComfyUI down.
            await asyncio.sleep(AWAY_S)
        if self._victim != "gateway":
            await self._engine.start()
            self._relay.listen()

    def stop_gateway(self) -> None:
        """Sends SIGTERM once, as an orchestrator does."""
        self._gateway.signal(signal.SIGTERM)

    async def struck_or(self, seconds: float) -> None:
        """Returns when a process was killed, or after `seconds`."""
        deadline = time.monotonic() + seconds
        while not self.points.struck and time.monotonic() < deadline:
            await asyncio.sleep(0.01)

    async def fault(self, **faults: Any) -> None:
        """Sets faults of ComfyUI."""
        try:
            async with self.http.post(f"{self.engine}/engine/faults", json=faults) as response:
                assert response.status == 200, await response.text()
        except aiohttp.ClientError:
            if not self.points.struck:
                raise

    async def restart_gateway(self) -> None:
        """Starts a gateway that has ended by itself, unless it was killed meanwhile."""
        await self._gateway.ended()
        if self._victim == "ComfyUI" or not self.points.struck:
            await self._gateway.start()

    def executions(self) -> Counter[str]:
        """How often ComfyUI began to run each prompt."""
        return Counter(self._executions.read_text().split()) if self._executions.exists() else Counter()

    # The caller

    async def call(self, method: str, path: str, **arguments: Any) -> Answer:
        """Makes one request; the status is 0 if the connection broke."""
        try:
            async with self.http.request(method, self.gateway + path, **{"timeout": _PATIENCE} | arguments) as response:
                return response.status, await response.json()
        except (aiohttp.ClientError, TimeoutError):
            return 0, {"type": "no answer"}

    async def insist(self, method: str, path: str, **arguments: Any) -> Answer:
        """Repeats the request while the connection breaks or the answer is 429 or 503."""
        async with asyncio.timeout(SETTLED_S):
            while True:
                status, body = await self.call(method, path, **arguments)
                if status and status not in {429, 503}:
                    return status, body
                self.failures += 1
                await asyncio.sleep(0.1)

    async def status_of(self, prompt_id: str) -> str:
        """The status of a job."""
        _, body = await self.call("GET", f"/prompt_sync/{prompt_id}?timeout=0")
        return str(body.get("status"))

    # The end

    async def queue(self) -> list[str]:
        """Ids of the prompts that run or wait in ComfyUI."""
        try:
            async with self.http.get(f"{self.engine}/queue") as response:
                queue = await response.json()
        except aiohttp.ClientError:
            return ["unknown: ComfyUI does not answer"]
        return [item[1] for item in (*queue["queue_running"], *queue["queue_pending"])]

    async def unfinished(self) -> list[str]:
        """Jobs that have not ended according to the gateway's list."""
        status, body = await self.call("GET", "/prompt_sync?status=queued,running,canceling")
        if status != 200:
            return [f"the list answers {status}"]
        return [f"{job['status']} {job['prompt_id']}" for job in body["jobs"]]

    async def settled(self) -> str:
        """Waits for the end of all jobs; returns what is unfinished after `SETTLED_S`, or ""."""
        deadline = time.monotonic() + SETTLED_S
        while True:
            unfinished, queue = await self.unfinished(), await self.queue()
            if not unfinished and not queue:
                return ""
            if time.monotonic() > deadline:
                return "; ".join([*unfinished, *(f"in ComfyUI's queue: {prompt_id}" for prompt_id in queue)])
            await asyncio.sleep(0.05)

    async def records(self) -> list[JobRecord]:
        """All jobs in the journal's file; kills the gateway to read it."""
        if self._back is not None:
            await self._back
        await self._gateway.kill()
        async with SqliteJournal(self._folder / "state", lock_wait_s=5) as journal:
            return list((await journal.page(JobFilter(), 100)).records)
