"""Processes that begin with all modules loaded: forked from one that has imported them.

To load them takes 0.6 s of CPU, and the suite starts some hundred gateways. All else is as with `python server.py`: a
process of its own, with its own environment, that a signal ends. The suite starts that command itself where the start
is the subject.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROGRAMS = {"server.py": "server", "comfyui.engine": "comfyui.engine.__main__"}
"""The module whose `main` each runs."""
_LARGEST_ORDER = 1 << 17
_READ, _WRITE = 0, 1


@dataclass(frozen=True)
class _Order:
    program: str
    arguments: tuple[str, ...]
    environ: Mapping[str, str]
    descriptor: int
    """Of the new process: its output goes to the pipe that comes with the order."""


class ForkedProcess:
    """As asyncio's `Process`, with its one pipe as `output`."""

    def __init__(self, pid: int, news: asyncio.StreamReader, output: asyncio.StreamReader) -> None:
        self.pid = pid
        self.output = output
        self.returncode: int | None = None
        self._ending = asyncio.create_task(self._end(news), name=f"end of process {pid}")

    async def _end(self, news: asyncio.StreamReader) -> int:
        self.returncode = int(await news.readline())
        return self.returncode

    async def wait(self) -> int:
        return await asyncio.shield(self._ending)

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)


@asynccontextmanager
async def forked(
    program: str, *arguments: str, environ: Mapping[str, str], descriptor: int
) -> AsyncIterator[ForkedProcess]:
    """A process that runs one of `PROGRAMS`; killed at the end where it has not ended by itself.

    Args:
        descriptor: what goes to `output`: 1 or 2.
    """
    order = _Order(program, arguments, environ, descriptor)
    control = await asyncio.to_thread(_forker)
    ends = os.pipe()
    ours, theirs = socket.socketpair()
    with theirs:
        socket.send_fds(control, [json.dumps(asdict(order)).encode()], [ends[_WRITE], theirs.fileno()])
    os.close(ends[_WRITE])
    output = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(output), os.fdopen(ends[_READ], "rb", buffering=0)
    )
    news, writer = await asyncio.open_connection(sock=ours)
    try:
        process = ForkedProcess(int(await news.readline()), news, output)
        try:
            yield process
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
            await process.wait()
    finally:
        transport.close()
        writer.close()


@functools.cache
def _forker() -> socket.socket:
    """Starts the process that others are forked from; it ends with this one. Blocks until it runs."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(theirs.fileno())],
            cwd=ROOT,
            env={"PATH": os.environ["PATH"]},
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
        )

    @atexit.register
    def end() -> None:
        ours.close()
        process.wait()

    return ours


# Of the process that others are forked from.


def _serve(control: socket.socket) -> _Order | None:
    """Forks for each order: returns it in the new process, and None in this one once nobody can send any more."""
    woken, waker = socket.socketpair()
    waker.setblocking(False)
    signal.set_wakeup_fd(waker.fileno())
    signal.signal(signal.SIGCHLD, lambda *_: None)
    told: dict[int, socket.socket] = {}
    with selectors.DefaultSelector() as selector:
        for ready in (control, woken):
            selector.register(ready, selectors.EVENT_READ)
        while True:
            if any(key.fileobj is woken for key, _ in selector.select()):
                woken.recv(1 << 12)
                _tell_ends(told)
                continue
            data, descriptors, _, _ = socket.recv_fds(control, _LARGEST_ORDER, 2)
            if not data:
                for pid in told:
                    os.kill(pid, signal.SIGKILL)
                return None
            output, news = descriptors
            order = _Order(**json.loads(data))
            if (pid := os.fork()) == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                os.dup2(output, order.descriptor)
                return order
            os.close(output)
            told[pid] = socket.socket(fileno=news)
            told[pid].sendall(b"%d\n" % pid)


def _tell_ends(told: dict[int, socket.socket]) -> None:
    while told:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        with told.pop(pid) as news, contextlib.suppress(BrokenPipeError):
            news.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))


def _main() -> int:
    for module in PROGRAMS.values():
        importlib.import_module(module)
    gc.freeze()  # so that the collector of a new process does not touch, and copy, what it shares with this one
    order = _serve(socket.socket(fileno=int(sys.argv[1])))
    if order is None:
        return 0
    gc.unfreeze()
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    os.environ.clear()
    os.environ.update(order.environ)
    sys.argv = [order.program, *order.arguments]
    status: int = sys.modules[PROGRAMS[order.program]].main()
    return status


if __name__ == "__main__":
    sys.exit(_main())
