"""Gateway and ComfyUI as processes that can be killed. They are forked, so that hundreds of them start quickly."""

from __future__ import annotations

import asyncio
import functools
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Self, cast

import server
from comfyui.engine import Engine, EngineOptions
from comfyui.jobs.journal.protocol import Journal
from comfyui.jobs.journal.sqlite import SqliteJournal
from comfyui.jobs.journal.writes import Write
from comfyui.logs import configure_logging
from comfyui.metrics import Metrics
from comfyui.web.server.serving import run
from config import GatewayOptions, Settings
from tests.support.forking import FORKS


class ReportingJournal:
    """A journal that reports each write before it is made and after it is committed, and waits for permission to go on.

    The commit of a write behind is reported only on request, because looking for the commit makes it come earlier.
    """

    def __init__(self, journal: Journal, control: socket.socket) -> None:
        self._journal = journal
        self._control = control.makefile("rw", encoding="ascii")
        self._tasks: set[asyncio.Task[None]] = set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._journal, name)

    async def __aenter__(self) -> Self:
        await self._journal.__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._journal.__aexit__(*exc)

    async def write(self, write: Write) -> int:
        return await self.begin(write)

    def begin(self, write: Write) -> asyncio.Future[int]:
        name = type(write).__name__
        number, _ = self._report(f"before {name}").split()
        writing = self._journal.begin(write)
        writing.add_done_callback(lambda _: self._report(f"after {name} {number}"))
        return writing

    def write_behind(self, write: Write, *, soon: bool = True) -> None:
        name = type(write).__name__
        number, looked_for = self._report(f"before {name}").split()
        self._journal.write_behind(write, soon=soon)
        if looked_for == "watch":
            self._tasks.add(asyncio.create_task(self._committed(f"after {name} {number}")))

    async def _committed(self, report: str) -> None:
        await self._journal.counts()  # the journal answers this after all writes behind
        self._report(report)

    def _report(self, line: str) -> str:
        """Blocks the whole process until the answer comes."""
        self._control.write(f"{line}\n")
        self._control.flush()
        return self._control.readline()


def _gateway(fields: dict[str, Any], control: str, log: str, ahead: int) -> None:
    _log_to(log)
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(control)

    class Chosen(Settings):
        def options(self) -> GatewayOptions:
            options = super().options()
            return replace(options, handler=replace(options.handler, queue=replace(options.handler.queue, ahead=ahead)))

    def journal(settings: Settings, metrics: Metrics) -> Journal:
        assert settings.state_dir is not None
        return cast("Journal", ReportingJournal(SqliteJournal(settings.state_dir, lock_wait_s=10), connection))

    server._journal = journal
    configure_logging("INFO", "json")
    run(server._serve(Chosen(**fields)))


def _engine(port: int, folder: str, log: str) -> None:
    _log_to(log)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())

    async def serve() -> None:
        options = EngineOptions(
            port=port,
            base_directory=Path(folder, "comfyui"),
            executions_file=Path(folder, "executions"),
            own_process=True,
        )
        async with Engine(options):
            await asyncio.to_thread(stop.wait)

    asyncio.run(serve())


def _log_to(path: str) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.path.insert(0, str(Path(__file__).parents[3]))


class Killable:
    """A process that can be started again after it was killed."""

    def __init__(self, target: Callable[..., None], *arguments: Any) -> None:
        self._make = functools.partial(FORKS.Process, target=target, args=arguments, daemon=True)
        self._process: Any = None

    async def start(self) -> None:
        self._process = self._make()
        await asyncio.to_thread(self._process.start)

    @property
    def lives(self) -> bool:
        return self._process is not None and self._process.is_alive()

    def signal(self, number: signal.Signals) -> None:
        if self.lives:
            os.kill(self._process.pid, number)

    async def kill(self) -> None:
        """Kills the process and returns when it has ended."""
        self.signal(signal.SIGKILL)
        await self.ended()

    async def ended(self) -> None:
        if self._process is not None:
            await asyncio.to_thread(self._process.join)


def gateway_at(settings: dict[str, Any], control: Path, log: Path, ahead: int) -> Killable:
    return Killable(_gateway, settings, str(control), str(log), ahead)


def engine_at(port: int, folder: Path) -> Killable:
    return Killable(_engine, port, str(folder), str(folder / "comfyui.log"))
