"""Runs the engine and the gateway as processes of their own, and reads figures of a process from /proc."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.http import Connection

ROOT = Path(__file__).resolve().parent.parent
_START_S = 30.0
_STOP_S = 10.0
_TICKS = os.sysconf("SC_CLK_TCK")


class BenchError(Exception):
    """A call failed, so the figures that depend on it do not exist."""


@dataclass(frozen=True)
class Server:
    """A server on the loopback that runs as a process of its own."""

    pid: int
    port: int

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def cpu_s(self) -> float:
        return cpu_s(self.pid)

    def rss_kb(self) -> int:
        """Its resident memory now."""
        return _status_kb(self.pid, "VmRSS")

    def peak_rss_kb(self) -> int:
        """Its largest resident memory since `forget_peak`."""
        return _status_kb(self.pid, "VmHWM")

    def forget_peak(self) -> None:
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")

    def bytes_read(self) -> int:
        """Bytes read from files and sockets, including its clients' requests."""
        for line in Path(f"/proc/{self.pid}/io").read_text().splitlines():
            if line.startswith("rchar:"):
                return int(line.split()[1])
        return 0


def exact_cpu_s(pid: int) -> float:
    """CPU time of all threads of a process, in nanosecond steps; `cpu_s` has steps of 10 ms."""
    total_ns = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):  # the thread has ended meanwhile
            total_ns += int((task / "schedstat").read_text().split()[0])
    return total_ns / 1e9


def cpu_s(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def _status_kb(pid: int, name: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    return 0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@asynccontextmanager
async def running_engine(logs: Path, name: str = "engine") -> AsyncIterator[Server]:
    port = free_port()
    async with running_server(name, ["-m", "comfyui.engine", "--port", str(port)], port, "/prompt", logs) as server:
        yield server


@asynccontextmanager
async def running_gateway(
    engine: Server, logs: Path, ready: str = "/health/ready", **settings: str
) -> AsyncIterator[Server]:
    """Runs a gateway; yields when `ready` answers 200. `settings` are environment variables."""
    port = free_port()
    env = gateway_env(engine.address, port) | settings
    async with running_server("gateway", ["server.py"], port, ready, logs, env) as server:
        yield server


@asynccontextmanager
async def running_forwarder(engine: Server, logs: Path) -> AsyncIterator[Server]:
    """Runs `benchmarks.plain_forwarder`."""
    port = free_port()
    command = ["-m", "benchmarks.plain_forwarder", "--port", str(port), "--comfyui", f"http://{engine.address}"]
    async with running_server("forwarder", command, port, "/ready", logs) as server:
        yield server


def gateway_env(comfyui: str, port: int) -> dict[str, str]:
    """Variables as in production, with JSON logs, but with room for 1,000 callers and one more."""
    return {
        "SERVER_HOST": "127.0.0.1",
        "SERVER_PORT": str(port),
        "COMFYUI_SERVER_ADDRESS": comfyui,
        "LOG_OUTPUT": "json",
        "MAX_CONCURRENT_REQUESTS": "2000",
        "STATE_DIR": str(Path(_states().name) / str(port)),
    }


@functools.cache
def _states() -> tempfile.TemporaryDirectory[str]:
    """The folder of all gateways' journals, which is removed when this process ends."""
    return tempfile.TemporaryDirectory(prefix="comfyui-gateway-benchmark-")


@asynccontextmanager
async def running_server(
    name: str, command: list[str], port: int, ready: str, logs: Path, env: Mapping[str, str] | None = None
) -> AsyncIterator[Server]:
    """Runs Python with `command` until the block ends; yields when `ready` answers 200. Its output goes to `logs`."""
    with (logs / name).open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable, *command, cwd=ROOT, env={**os.environ, **(env or {})}, stdout=log, stderr=log
        )
    try:
        await until_ok(process, port, ready)
        yield Server(process.pid, port)
    finally:
        await stop(process)


async def stop(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    process.terminate()
    try:
        await asyncio.wait_for(process.wait(), _STOP_S)
    except TimeoutError:
        process.kill()
        await process.wait()


async def until_ok(process: asyncio.subprocess.Process, port: int, path: str) -> float:
    """Waits until the server answers 200 there; returns that time of `time.perf_counter`."""
    deadline = time.perf_counter() + _START_S
    while time.perf_counter() < deadline:
        if process.returncode is not None:
            raise BenchError(f"the server of port {port} ended with exit code {process.returncode}")
        try:
            connection = await Connection.open(port)
        except OSError:
            await asyncio.sleep(0.002)
            continue
        try:
            if (await connection.request("GET", path)).status == 200:
                return time.perf_counter()
        except ConnectionError:
            pass
        finally:
            connection.close()
        await asyncio.sleep(0.005)
    raise BenchError(f"port {port} did not answer GET {path} with 200 within {_START_S:.0f} s")
