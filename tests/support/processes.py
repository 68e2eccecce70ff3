"""The gateway as a process of its own."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
from yarl import URL

from tests.support.forking import ForkedProcess, forked, serve_engine, serve_gateway


class GatewayProcess:
    """`python server.py` with JSON logs on a free port."""

    def __init__(self, process: ForkedProcess) -> None:
        self.process = process
        self.lines: list[dict[str, Any]] = []
        self.http: aiohttp.ClientSession
        self.url = ""
        self._news = asyncio.Condition()

    async def read_log(self) -> None:
        async for line in self.process.output:
            async with self._news:
                self.lines.append(json.loads(line))
                self._news.notify_all()

    async def logged(self, event: str) -> dict[str, Any]:
        """Waits for the first line with this event."""
        async with asyncio.timeout(30), self._news:
            await self._news.wait_for(lambda: any(event in line["event"] for line in self.lines))
            return next(line for line in self.lines if event in line["event"])

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.process.pid, number)

    async def kill(self) -> None:
        """Sends SIGKILL; returns when the process has ended."""
        self.signal(signal.SIGKILL)
        await self.process.wait()

    def lines_of(self, *levels: str) -> list[dict[str, Any]]:
        return [line for line in self.lines if line.get("level") in levels]

    @property
    def port(self) -> int:
        return URL(self.url).port or 0

    async def exit_status(self) -> int:
        async with asyncio.timeout(30):
            return await self.process.wait()

    async def prompt_sync(self, workflow: dict[str, Any]) -> tuple[int, Any]:
        async with self.http.post("/prompt_sync", json={"prompt": workflow}) as response:
            return response.status, await response.json()


def peak_kb(gateway: GatewayProcess) -> int:
    """The largest memory that the process ever had, in KB. Linux only."""
    lines = Path(f"/proc/{gateway.process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


@asynccontextmanager
async def gateway_process(comfyui: str, *arguments: str, **settings: str) -> AsyncIterator[GatewayProcess]:
    environ = {
        "PATH": os.environ["PATH"],
        "COMFYUI_SERVER_ADDRESS": comfyui,
        "SERVER_HOST": "127.0.0.1",
        "SERVER_PORT": "0",
        "LOG_OUTPUT": "json",
        "STATE_DIR": "",
        **settings,
    }
    async with forked(serve_gateway, *arguments, environ=environ, descriptor=2) as process:
        gateway = GatewayProcess(process)
        reading = asyncio.create_task(gateway.read_log())
        try:
            running = await gateway.logged("Uvicorn running on")
            gateway.url = next(word for word in running["event"].split() if word.startswith("http"))
            async with aiohttp.ClientSession(gateway.url) as gateway.http:
                await gateway.logged("comfyui.health")
                yield gateway
        finally:
            process.kill()
            await process.wait()
            await reading


@asynccontextmanager
async def engine_process(*options: str) -> AsyncIterator[str]:
    """Runs the embedded engine as a process of its own and yields its address."""
    arguments, environ = ("--port", "0", *options), {"PATH": os.environ["PATH"]}
    async with forked(serve_engine, *arguments, environ=environ, descriptor=1) as process:
        line = (await process.output.readline()).decode()
        try:
            yield next(word for word in line.split() if word.startswith("http"))
        finally:
            process.terminate()
            await process.wait()
