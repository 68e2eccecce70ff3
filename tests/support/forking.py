"""Processes that begin with all modules loaded, because they are forked from one that has imported them.

The imports take 0.7 s of CPU, and the suite starts hundreds of processes. Otherwise they are like `python server.py`:
processes with their own environment that a signal ends. Tests of the start itself run the command.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import comfyui.engine.__main__
import server

ROOT = Path(__file__).parents[2]
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload([__name__])


def serve_gateway(*arguments: str) -> int:
    """Does what `python server.py` does with these arguments."""
    sys.argv = ["server.py", *arguments]
    return server.main()


def serve_engine(*arguments: str) -> int:
    """Does what `python -m comfyui.engine` does with these arguments."""
    sys.argv = ["comfyui.engine", *arguments]
    return comfyui.engine.__main__.main()


def _run(
    program: Callable[..., int],
    arguments: tuple[str, ...],
    environ: Mapping[str, str],
    descriptor: int,
    output: Connection,
) -> None:
    os.dup2(output.fileno(), descriptor)
    output.close()
    os.chdir(ROOT)
    os.environ.clear()
    os.environ.update(environ)
    sys.exit(program(*arguments))


class ForkedProcess:
    """Like asyncio's `Process`, with its one pipe as `output`."""

    def __init__(self, process: Any, output: asyncio.StreamReader) -> None:
        self._process = process
        self.pid: int = process.pid
        self.output = output

    @property
    def returncode(self) -> int | None:
        status: int | None = self._process.exitcode
        return status

    async def wait(self) -> int:
        await asyncio.to_thread(self._process.join)
        status: int = self._process.exitcode
        return status

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)


@asynccontextmanager
async def forked(
    program: Callable[..., int], *arguments: str, environ: Mapping[str, str], descriptor: int
) -> AsyncIterator[ForkedProcess]:
    """A process that runs `serve_gateway` or `serve_engine`; killed at the end if it still runs.

    Args:
        descriptor: the stream that goes to `output`: 1 or 2.
    """
    reader, writer = FORKS.Pipe(duplex=False)
    with writer:
        process = FORKS.Process(target=_run, args=(program, arguments, environ, descriptor, writer), daemon=True)
        await asyncio.to_thread(process.start)
    output = asyncio.StreamReader()
    pipe = os.fdopen(os.dup(reader.fileno()), "rb", buffering=0)
    reader.close()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(output), pipe
    )
    running = ForkedProcess(process, output)
    try:
        yield running
    finally:
        running.kill()
        await running.wait()
        transport.close()
        await asyncio.sleep(0)  # the pipe is closed in the loop's next turn
