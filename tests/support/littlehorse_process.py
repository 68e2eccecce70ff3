"""LittleHorse on loopback: the fake of its server and the worker, each as a process of its own."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from comfyui.engine import Engine

ROOT = Path(__file__).parents[2]


@dataclass
class Fake:
    """The fake's process; `events` has what it has reported so far."""

    process: asyncio.subprocess.Process
    ports: list[int] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)

    def do(self, **command: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(command).encode() + b"\n")

    def schedule(self, workflow: Any, guid: str, **options: Any) -> None:
        self.do(schedule=workflow, guid=guid, **options)

    async def until(self, event: str, *, within_s: float = 20.0, **facts: Any) -> dict[str, Any]:
        """Waits for such an event and returns the first that `until` has not returned before."""
        assert self.process.stdout is not None
        async with asyncio.timeout(within_s):
            while True:
                for told in self.events:
                    if told["event"] == event and facts.items() <= told.items():
                        self.events.remove(told)
                        return told
                line = await self.process.stdout.readline()
                assert line, "the fake ended"
                self.events.append(json.loads(line))

    async def report(self, guid: str, *, within_s: float = 20.0) -> dict[str, Any]:
        """Waits for the report of this task."""
        others = []
        try:
            while True:
                told = await self.until("ReportTask", within_s=within_s)
                if told["report"]["taskRunId"]["taskGuid"] == guid:
                    return {**told["report"], "size": told["size"]}
                others.append(told)
        finally:
            self.events.extend(others)


@asynccontextmanager
async def running_fake(hosts: int = 1, port: int = 0) -> AsyncIterator[Fake]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "tests.support.littlehorse_fake", str(hosts), str(port)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=64 << 20,
        cwd=ROOT,
    )
    fake = Fake(process)
    try:
        fake.ports = (await fake.until("serving"))["ports"]
        yield fake
    finally:
        process.kill()
        await process.wait()


@dataclass(frozen=True)
class Worker:
    process: asyncio.subprocess.Process
    log: Path

    async def stop(self) -> int:
        """Sends SIGTERM; returns the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return await self.ended()

    async def ended(self) -> int:
        async with asyncio.timeout(20):
            return await self.process.wait()

    async def until_logged(self, text: str) -> None:
        async with asyncio.timeout(20):
            while text not in self.log.read_text():
                await asyncio.sleep(0.02)


@asynccontextmanager
async def running_worker(port: int, comfyui_url: str, **settings: Any) -> AsyncIterator[Worker]:
    """A worker's process, killed on exit if it still runs. Its log is printed, so pytest shows it with a failure."""
    environment = {
        "PATH": os.environ["PATH"],
        "LH_HOST": f"127.0.0.1:{port}",
        "COMFYUI_BASE_URL": comfyui_url,
        "COMFYUI_OUTPUT_DIR": "/data/output",
        "COMFYUI_POLL_INTERVAL_SEC": "0.1",
        **{name.upper(): str(value) for name, value in settings.items()},
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log"
        with path.open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", "comfyui.workers.littlehorse_worker"),
                env=environment,
                stdout=log,
                stderr=log,
                cwd=ROOT,
            )
        try:
            yield Worker(process, path)
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()
            print(path.read_text()[-6000:])


@dataclass(frozen=True)
class Trio:
    """A server, a worker and a ComfyUI that are shared by tests which do not change them."""

    fake: Fake
    worker: Worker
    engine: Engine
    definition: dict[str, Any]
