"""Servers that die, hang, are cut off and come back, each with its own folder and address."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from tests.chaos.kills.processes import engine_at
from tests.support.links import Link
from tests.support.ports import free_port
from tests.support.running import until

_SOON = aiohttp.ClientTimeout(2)


class Member:
    """An engine in a process of its own, and the link to it. `url` is the address for the gateway."""

    def __init__(self, folder: Path, link: Link, port: int) -> None:
        self.link = link
        self.engine = f"http://127.0.0.1:{port}"
        self._folder = folder
        self._process = engine_at(port, folder)

    @property
    def url(self) -> str:
        return self.link.url

    @property
    def name(self) -> str:
        """The gateway's name for this server."""
        return self.url.removeprefix("http://")

    async def start(self) -> None:
        """Starts the engine; returns when it answers without the link."""
        await self._process.start()
        await until(self._answers, bool, timeout_s=30)

    async def kill(self) -> None:
        """Sends SIGKILL; returns when the process has ended."""
        await self._process.kill()

    async def stop(self) -> None:
        """Sends SIGTERM; returns when the process has ended."""
        self._process.signal(signal.SIGTERM)
        await self._process.ended()

    def hang(self) -> None:
        """Suspends the process, with its connections open, until `go_on`."""
        self._process.signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._process.signal(signal.SIGCONT)

    def input(self, name: str) -> Path:
        """A file in its input folder."""
        return self._folder / "comfyui" / "input" / name

    def output(self, name: str) -> Path:
        """A file in its output folder."""
        return self._folder / "comfyui" / "output" / name

    def executions(self) -> Counter[str]:
        """How often it began to run each prompt, across its restarts."""
        path = self._folder / "executions"
        return Counter(path.read_text().split() if path.exists() else ())

    async def queue(self) -> tuple[list[str], list[str]]:
        """Ids of running and of pending prompts, read without the link."""
        async with (
            aiohttp.ClientSession(timeout=_SOON) as http,
            http.get(f"{self.engine}/queue") as response,
        ):
            queue = await response.json()
        return [item[1] for item in queue["queue_running"]], [item[1] for item in queue["queue_pending"]]

    async def is_empty(self) -> bool:
        return await self.queue() == ([], [])

    async def fault(self, **faults: Any) -> None:
        """Sets faults; does nothing if the process does not run."""
        with contextlib.suppress(aiohttp.ClientError, TimeoutError):
            async with (
                aiohttp.ClientSession(timeout=_SOON) as http,
                http.post(f"{self.engine}/engine/faults", json=faults) as response,
            ):
                assert response.status == 200, await response.text()

    async def well(self) -> None:
        """Removes all faults."""
        async with (
            aiohttp.ClientSession(timeout=_SOON) as http,
            http.delete(f"{self.engine}/engine/faults") as response,
        ):
            assert response.status == 200

    async def _answers(self) -> bool:
        with contextlib.suppress(aiohttp.ClientError, TimeoutError):
            async with (
                aiohttp.ClientSession(timeout=_SOON) as http,
                http.get(f"{self.engine}/prompt") as response,
            ):
                return response.status == 200
        return False


@asynccontextmanager
async def fleet(folder: Path, count: int) -> AsyncIterator[list[Member]]:
    """Starts `count` servers."""
    async with AsyncExitStack() as stack:
        members = []
        for index in range(count):
            own = folder / f"server-{index}"
            await asyncio.to_thread(os.makedirs, own)
            port = free_port()
            link = await stack.enter_async_context(Link(port))
            member = Member(own, link, port)
            stack.push_async_callback(member.kill)
            members.append(member)
        await asyncio.gather(*(member.start() for member in members))
        yield members
