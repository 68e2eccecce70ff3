"""`ComfyUIProcess`: a ComfyUI as our child process: started, watched until it answers, restarted after a crash,
stopped.

It runs behind `comfyui.servers.guard`, so that it ends when this process does, even by SIGKILL. It counts as ready only
when it listens on its port itself. Its output is read all the time (a full pipe would block ComfyUI), and only the last
lines are kept: a failed job shows them as the reason.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import errno
import os
import re
import shutil
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import structlog

from comfyui.client import ComfyUIClient
from comfyui.exceptions import ComfyUIConnectionError, ComfyUIError
from comfyui.retrying import Backoff
from comfyui.servers import guard, ports
from comfyui.tasks import SideTasks, end_tasks

_ASK_EVERY_S = 0.1
_ASK_TIMEOUT_S = 5.0
_READ_BYTES = 65536
_LONGEST_LINE = 2000
# tqdm draws its bar again and again on one line, with carriage returns instead of newlines.
_LINE_END = re.compile(rb"[\r\n]+")
_BACKOFF_MAX_S = 30.0
# A child that lived this long after it was ready did not die of its start: the next crash is a new one.
_STABLE_S = 60.0
_DEATH_LINES = 12

Clock = Callable[[], float]


class ProcessState(enum.Enum):
    """The state of the child."""

    STARTING = "starting"
    READY = "ready"
    CRASHED = "crashed"
    """It ended by itself; it is started again after a pause."""
    FAILED = "failed"
    """It crashed too often in succession; only `restart` starts it again."""
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class Death:
    """How a child ended by itself.

    Attributes:
        how: a clause such as "it was ended by SIGSEGV".
        lines: the last lines that it wrote.
        was_ready: whether it had answered before; if not, it died of its start.
    """

    how: str
    lines: tuple[str, ...] = ()
    was_ready: bool = False


class ComfyUIProcess:
    """Open it with ``async with``: that starts the child without waiting for it; the end stops it.

    Args:
        command: ComfyUI's command line, such as ``["python", "main.py", "--port", "8188"]``.
        address: of the child, ``host:port`` or URL.
        env: variables besides those of this process.
        start_timeout_s: time for the child to answer; after that it counts as crashed.
        stop_grace_s: seconds between SIGTERM and SIGKILL.
        max_crashes: crashes in a row, each before the child was stable; after one more, it is not started again.
        restart_delay_s: the longest pause after the first crash; later pauses grow as in `Backoff`.
        kept_lines: how many lines of its output are kept.
        on_line: gets every line of its output, to show it in the log of a container.
        port_patience_s: how long the port may still be in use when the child is started: its last user may be ending.
        holders_of: finds the processes that listen on a host and port.
    """

    def __init__(
        self,
        command: Sequence[str],
        address: str,
        *,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        start_timeout_s: float = 600.0,
        stop_grace_s: float = 10.0,
        max_crashes: int = 3,
        restart_delay_s: float = 0.5,
        kept_lines: int = 200,
        on_line: Callable[[str], None] | None = None,
        port_patience_s: float = 3.0,
        clock: Clock = time.monotonic,
        holders_of: Callable[[str, int], list[ports.Holder]] = ports.holders,
    ) -> None:
        self.state = ProcessState.STARTING
        self.reason = "not started yet"
        self.crashes = 0
        """Number of times that it ended by itself since this object was opened."""
        self.last_death: Death | None = None
        self._command = tuple(command)
        self._client = ComfyUIClient(address, timeout_s=_ASK_TIMEOUT_S, retries=0)
        self._cwd = cwd
        self._env = env
        self._start_timeout_s = start_timeout_s
        self._stop_grace_s = stop_grace_s
        self._max_crashes = max_crashes
        self._backoff = Backoff(restart_delay_s, _BACKOFF_MAX_S)
        self._on_line = on_line
        self._port_patience_s = port_patience_s
        self._clock = clock
        self._holders_of = holders_of
        self._lines: deque[str] = deque(maxlen=kept_lines)
        self._lines_of_this_child = 0
        self._proved = False
        self._log = structlog.get_logger(__name__).bind(server=self._client.name)
        self._changed = asyncio.Event()
        self._process: asyncio.subprocess.Process | None = None
        self._keeper = SideTasks(self._keeper_died)

    async def __aenter__(self) -> Self:
        await self._client.__aenter__()
        self._keep()
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self._keeper.close()
        self._set(ProcessState.STOPPED, "stopped")
        await self._client.__aexit__()

    @property
    def pid(self) -> int | None:
        """The process id of the present child."""
        return self._process.pid if self._process is not None and self._process.returncode is None else None

    @property
    def recent_lines(self) -> list[str]:
        """The last lines of its output and error output, over restarts."""
        return list(self._lines)

    def prove(self) -> None:
        """The child has finished a job, so its next crash starts a new count."""
        self._proved = True

    async def wait_until_ready(self) -> None:
        """Waits until it answers, through crashes and restarts, as long as it is started again.

        Raises:
            ComfyUIConnectionError: it crashed too often, or was stopped.
        """
        while self.state is not ProcessState.READY:
            if self.state in {ProcessState.FAILED, ProcessState.STOPPED}:
                raise ComfyUIConnectionError(f"ComfyUI does not run: {self.reason}")
            await self._changed.wait()

    async def wait_for_change(self) -> ProcessState:
        """The next state that it enters."""
        await self._changed.wait()
        return self.state

    async def restart(self) -> None:
        """Stops the child, crashed or not, and starts it again; returns before it is ready."""
        await self._keeper.close()
        self._keep()

    # Its life

    def _keep(self) -> None:
        self._set(ProcessState.STARTING, "starting")
        self._keeper.start(self._keep_running(), f"keep {self._client.name}")

    def _keeper_died(self, keeper: asyncio.Task[None]) -> None:
        """Its waiters must not wait for ever because of a bug of ours."""
        self._log.error("comfyui.keeper_died", exc_info=keeper.exception())
        self._set(ProcessState.FAILED, "the gateway failed; its log has the reason")

    async def _keep_running(self) -> None:
        in_succession = 0
        while True:
            self._lines_of_this_child, self._proved = 0, False
            stable, was_ready, reason = await self._live_once()
            self.crashes += 1
            lines = min(self._lines_of_this_child, _DEATH_LINES)
            self.last_death = Death(reason, tuple(self._lines)[len(self._lines) - lines :], was_ready)
            in_succession = 1 if stable or self._proved else in_succession + 1
            self._log.warning("comfyui.crashed", reason=reason, in_succession=in_succession)
            if in_succession > self._max_crashes:
                self._set(ProcessState.FAILED, f"{reason}, {in_succession} times in a row")
                return
            self._set(ProcessState.CRASHED, reason)
            await asyncio.sleep(self._backoff.delay_s(in_succession))
            self._set(ProcessState.STARTING, f"starting again after: {reason}")

    async def _live_once(self) -> tuple[bool, bool, str]:
        """One child from its start to its end: whether it was stable, whether it was ever ready, and how it ended."""
        started = self._clock()
        if (holder := await self._port_holder()) is not None:
            return False, False, f"{self._port_name()} is taken by {holder}"
        try:
            process = self._process = await self._spawn()
        except OSError as error:
            return False, False, f"it cannot be started: {error.strerror}"
        reader = asyncio.create_task(self._read(process), name=f"read {self._client.name}")
        try:
            if not await self._answers_in_time(process):
                return False, False, f"it did not answer within {self._start_timeout_s:g} s{await self._who_answers()}"
            ready = process.returncode is None
            if ready:
                pid = await self._listener(process) or process.pid
                self._log.info("comfyui.ready", pid=pid, seconds=round(self._clock() - started, 1))
                self._set(ProcessState.READY, "")
            ready_at = self._clock()
            await process.wait()
            how = _how_it_ended(process.returncode)
            if not ready:
                how += await self._who_answers()
            return self._clock() - ready_at > _STABLE_S, ready, how
        finally:
            await self._stop(process)
            await end_tasks(reader)

    async def _spawn(self) -> asyncio.subprocess.Process:
        """Raises OSError if it cannot be started."""
        environment = {**os.environ, **(self._env or {})}
        await asyncio.to_thread(_find, self._command[0], self._cwd, environment.get("PATH"))
        # Its own session: a Ctrl-C in a terminal goes to us, who stop it in order, together with its children.
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", guard.__file__, str(os.getpid()), str(self._stop_grace_s)),
            *self._command,
            cwd=self._cwd,
            env=environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )

    async def _answers_in_time(self, process: asyncio.subprocess.Process) -> bool:
        """True also if it ended: there is nothing more to wait for."""
        deadline = self._clock() + self._start_timeout_s
        while process.returncode is None:
            with contextlib.suppress(ComfyUIError):
                await self._client.system_stats()
                if await self._is_it(process):
                    return True
            if self._clock() >= deadline:
                return False
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), _ASK_EVERY_S)
        return True

    # Its port

    def _port_name(self) -> str:
        return f"port {self._client.base_url.port}"

    async def _holders(self) -> list[ports.Holder]:
        url = self._client.base_url
        return await asyncio.to_thread(self._holders_of, url.host or "", url.port or 0)

    async def _port_holder(self) -> ports.Holder | None:
        """The process that has the child's port before the child is started, and keeps it."""
        deadline = self._clock() + self._port_patience_s
        while holders := await self._holders():
            if self._clock() >= deadline:
                return holders[0]
            await asyncio.sleep(_ASK_EVERY_S)
        return None

    async def _listener(self, process: asyncio.subprocess.Process) -> int | None:
        """The pid of the listener, if it is ours."""
        holders = await self._holders()
        return next((each.pid for each in holders if each.pid and ports.belongs_to(each.pid, process.pid)), None)

    async def _is_it(self, process: asyncio.subprocess.Process) -> bool:
        """Whether our child is the one that answers; also true if that cannot be found out."""
        return await self._listener(process) is not None or not await self._holders()

    async def _who_answers(self) -> str:
        """For the reason of a child that never was ready, which is usually a port in use."""
        holders = [holder for holder in await self._holders() if not self._is_ours(holder)]
        return f"; {self._port_name()} is taken by {holders[0]}" if holders else ""

    def _is_ours(self, holder: ports.Holder) -> bool:
        process = self._process
        return process is not None and holder.pid is not None and ports.belongs_to(holder.pid, process.pid)

    async def _stop(self, process: asyncio.subprocess.Process) -> None:
        """SIGTERM to its whole group, then SIGKILL to the rest; also if only its own children are left.

        It is cancelled twice if an event loop ends by cancelling every task; the child keeps its full grace
        nevertheless.
        """
        _signal_group(process.pid, signal.SIGTERM)
        deadline = self._clock() + self._stop_grace_s
        cancelled = False
        while process.returncode is None and self._clock() < deadline:
            try:
                async with asyncio.timeout(deadline - self._clock()):
                    await process.wait()
            except TimeoutError:
                self._log.warning("comfyui.killed", pid=process.pid, grace_s=self._stop_grace_s)
            except asyncio.CancelledError:
                cancelled = True
        _signal_group(process.pid, signal.SIGKILL)
        await process.wait()
        if cancelled:
            raise asyncio.CancelledError

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None  # noqa: S101 - it was opened with a pipe
        rest = b""
        while chunk := await process.stdout.read(_READ_BYTES):
            *lines, rest = _LINE_END.split(rest + chunk)
            for line in lines:
                self._keep_line(line)
            if len(rest) > _LONGEST_LINE:
                self._keep_line(rest)
                rest = b""
        self._keep_line(rest)

    def _keep_line(self, line: bytes) -> None:
        if text := line[:_LONGEST_LINE].decode(errors="replace").rstrip():
            self._lines.append(text)
            self._lines_of_this_child += 1
            if self._on_line is not None:
                self._on_line(text)

    def _set(self, state: ProcessState, reason: str) -> None:
        self.state, self.reason = state, reason
        self._changed.set()
        self._changed = asyncio.Event()


def _find(program: str, cwd: Path | None, path: str | None) -> None:
    """Raises OSError if there is no such program: the guard, which is started, always exists."""
    if "\0" in program:
        return
    found = (cwd or Path()) / program if "/" in program else shutil.which(program, path=path)
    if found is None or not os.path.exists(found):  # noqa: PTH110 - a path or a text
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    if not os.access(found, os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def _signal_group(pid: int, number: signal.Signals) -> None:
    # All of them are gone already.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, number)


def _how_it_ended(returncode: int | None) -> str:
    if returncode is not None and returncode < 0:
        with contextlib.suppress(ValueError):
            return f"it was ended by {signal.Signals(-returncode).name}"
    return f"it ended with exit status {returncode}"
