"""Runs the container's own entry point, supervisord and scripts on this machine, with the engine as ComfyUI."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shlex
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"


def environment(tmp_path: Path, **variables: str) -> dict[str, str]:
    """The variables that the image sets, with the folders of this test and nothing of the developer's shell."""
    venvs = tmp_path / "venv"
    venvs.mkdir(exist_ok=True)
    gateway = venvs / "gateway"
    if not gateway.exists():
        # A link to this interpreter's environment, which has all packages of requirements/gateway.txt.
        gateway.symlink_to(Path(sys.prefix))
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "APP_DIR": str(ROOT),
        "VENV_ROOT": str(venvs),
        "COMFYUI_DIR": str(tmp_path / "comfyui"),
        "DATA_DIR": str(tmp_path / "data"),
        "RUN_DIR": str(tmp_path / "run"),
        "REQUIRE_GPU": "false",
        "PYTHONDONTWRITEBYTECODE": "1",
        **variables,
    }


def engine_command(port: int, *arguments: str) -> str:
    """The command that runs the embedded engine in place of ComfyUI."""
    return shlex.join([sys.executable, "-m", "comfyui.engine", "--port", str(port), *arguments])


class Container:
    """The running entry point. `lines` is its log so far."""

    def __init__(self, process: asyncio.subprocess.Process, url: str) -> None:
        self.process = process
        self.url = url
        self.lines: list[str] = []
        self.reader: asyncio.Task[None] | None = None
        self._grew = asyncio.Event()

    async def read_to_end(self) -> None:
        """Waits, after the end of the process, until the last line is in `lines`."""
        assert self.reader is not None
        await asyncio.wait_for(asyncio.shield(self.reader), 30)

    async def read(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            self.lines.append(line.decode(errors="replace").rstrip())
            self._grew.set()
            self._grew = asyncio.Event()

    async def logged(self, pattern: str, *, after: int = 0, timeout_s: float = 30) -> re.Match[str]:
        """The first line after number `after` in which `pattern` is found."""
        seen = after
        async with asyncio.timeout(timeout_s):
            while True:
                grew = self._grew
                while seen < len(self.lines):
                    if match := re.search(pattern, self.lines[seen]):
                        return match
                    seen += 1
                await grew.wait()

    async def get(self, path: str) -> tuple[int, Any]:
        """Status and JSON of the gateway's answer; status 0 while it does not serve."""
        try:
            async with aiohttp.ClientSession() as http, http.get(self.url + path) as response:
                return response.status, json.loads(await response.read())
        except aiohttp.ClientConnectionError:
            return 0, None

    async def answers(self, path: str, status: int, *, timeout_s: float = 30) -> Any:
        """The JSON of the first answer with this status."""
        async with asyncio.timeout(timeout_s):
            while True:
                got, body = await self.get(path)
                if got == status:
                    return body
                await asyncio.sleep(0.05)

    async def serves(self, path: str, accept: Callable[[Any], bool], *, timeout_s: float = 30) -> None:
        """Waits until `accept` is true for the JSON of an answer."""
        async with asyncio.timeout(timeout_s):
            while True:
                status, body = await self.get(path)
                if status and accept(body):
                    return
                await asyncio.sleep(0.05)

    async def ended(self, *, timeout_s: float = 30) -> int:
        async with asyncio.timeout(timeout_s):
            return await self.process.wait()


@asynccontextmanager
async def running_container(variables: dict[str, str], *arguments: str) -> AsyncIterator[Container]:
    """Starts entrypoint.sh as the container does. At the end it sends SIGTERM, then SIGKILL to the process group."""
    url = f"http://127.0.0.1:{variables.get('SERVER_PORT', '18188')}"
    process = await asyncio.create_subprocess_exec(
        DEPLOY / "entrypoint.sh",
        *arguments,
        env=variables,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
    )
    container = Container(process, url)
    reader = container.reader = asyncio.create_task(container.read())
    try:
        yield container
    finally:
        if process.returncode is None:
            process.terminate()
            try:
                await container.ended(timeout_s=30)
            except TimeoutError:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
        reader.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await reader
