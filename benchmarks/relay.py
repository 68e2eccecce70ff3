"""What the relay costs compared with ComfyUI alone: small requests, files of 1 GB. Run: `python -m benchmarks.relay`"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import uvloop
from rich.console import Console
from rich.table import Table

from benchmarks.http import Connection
from benchmarks.processes import BenchError, Server, free_port, running_engine, running_gateway, running_server
from benchmarks.stage import Row, percentile

_CALLERS = 32
_CHUNK = bytes(1 << 20)
_GB = 1_000_000_000
_MOST_GROWTH_KB = 16_000


@dataclass(frozen=True, slots=True)
class Transfer:
    seconds: float
    bytes_moved: int
    growth_kb: int
    """The largest growth of the gateway's memory; 0 without a gateway."""


async def run(*, quick: bool = False) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        async with running_engine(Path(folder)) as engine, running_gateway(engine, Path(folder)) as gateway:
            rows = await _small_requests(engine, gateway, turns=3 if quick else 8, calls=1000 if quick else 3000)
        async with large_file(Path(folder), 256 << 20 if quick else _GB) as (server, gateway, size):
            rows += await _transfers(server, gateway, size, turns=2 if quick else 3)
    return rows


@asynccontextmanager
async def large_file(folder: Path, size: int) -> AsyncIterator[tuple[Server, Server, int]]:
    """A server with a file of that size, which takes uploads, and a gateway in front of it."""
    port = free_port()
    command = ["-m", "benchmarks.file_server", "--port", str(port), "--size", str(size)]
    async with (
        running_server("files", command, port, "/prompt", folder) as server,
        running_gateway(server, folder) as gateway,
    ):
        yield server, gateway, size


async def download(server: Server, watched: Server | None = None) -> Transfer:
    """Reads GET /view to its end."""

    async def work() -> int:
        connection = await Connection.open(server.port)
        reply = await connection.request("GET", "/view", keep=False)
        connection.close()
        return reply.size

    return await _timed(work, watched)


async def upload(server: Server, size: int, watched: Server | None = None) -> Transfer:
    """Sends POST /upload/image of that size; `bytes_moved` is the size that the server reports."""

    async def work() -> int:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        head = f"POST /upload/image HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\nConnection: close\r\n\r\n"
        writer.write(head.encode())
        for left in range(size, 0, -len(_CHUNK)):
            writer.write(_CHUNK[:left])
            await writer.drain()
        answer = await reader.read()
        writer.close()
        return int(answer.rpartition(b":")[2].strip(b" }"))

    return await _timed(work, watched)


async def _timed(work: Callable[[], Awaitable[int]], watched: Server | None) -> Transfer:
    before = 0
    if watched is not None:
        watched.forget_peak()
        before = watched.rss_kb()
    started = time.perf_counter()
    moved = await work()
    seconds = time.perf_counter() - started
    return Transfer(seconds, moved, watched.peak_rss_kb() - before if watched is not None else 0)


async def _small_requests(engine: Server, gateway: Server, *, turns: int, calls: int) -> list[Row]:
    bare, through = [], []
    bare_alone: list[float] = []
    through_alone: list[float] = []
    for turn in range(turns + 1):
        rates = (await _rate(engine, calls), await _rate(gateway, calls))
        alone = (await _latencies(engine, calls // 10), await _latencies(gateway, calls // 10))
        if turn == 0:
            continue  # warms both up
        bare.append(rates[0])
        through.append(rates[1])
        bare_alone += alone[0]
        through_alone += alone[1]
    share = statistics.median(b / a for a, b in zip(bare, through, strict=True))
    added_ms = (percentile(through_alone, 50) - percentile(bare_alone, 50)) * 1000
    added95_ms = (percentile(through_alone, 95) - percentile(bare_alone, 95)) * 1000
    rates_text = f"bare {statistics.median(bare):.0f}/s, gateway {statistics.median(through):.0f}/s"
    return [
        Row("relay, small GET, 32 callers", f"{share:.2f} of bare", "≥ 0.5", share >= 0.5, rates_text),
        Row(
            "relay, small GET, 1 caller, added",
            f"{added_ms:.2f} ms",
            detail=f"p50; p95 {added95_ms:.2f} ms; bare p50 {percentile(bare_alone, 50) * 1000:.2f} ms",
        ),
    ]


async def _rate(server: Server, calls: int) -> float:
    async def caller() -> None:
        connection = await Connection.open(server.port)
        for _ in range(calls // _CALLERS):
            if (await connection.request("GET", "/prompt")).status != 200:
                raise BenchError("GET /prompt failed")
        connection.close()

    started = time.perf_counter()
    async with asyncio.TaskGroup() as callers:
        for _ in range(_CALLERS):
            callers.create_task(caller())
    return (calls // _CALLERS) * _CALLERS / (time.perf_counter() - started)


async def _latencies(server: Server, calls: int) -> list[float]:
    connection = await Connection.open(server.port)
    seconds = []
    for _ in range(calls):
        started = time.perf_counter()
        await connection.request("GET", "/prompt")
        seconds.append(time.perf_counter() - started)
    connection.close()
    return seconds


async def _transfers(server: Server, gateway: Server, size: int, *, turns: int) -> list[Row]:
    downs, ups = [], []
    for _ in range(turns):
        downs.append((await download(server), await download(gateway, gateway)))
        ups.append((await upload(server, size), await upload(gateway, size, gateway)))
    return [
        _transfer_row(f"relay, {size / _GB:.2g} GB download", downs, size, target=0.8),
        _transfer_row(f"relay, {size / _GB:.2g} GB upload", ups, size, target=None),
    ]


def _transfer_row(name: str, turns: list[tuple[Transfer, Transfer]], size: int, *, target: float | None) -> Row:
    if any(transfer.bytes_moved != size for turn in turns for transfer in turn):
        raise BenchError(f"{name}: bytes are missing")
    share = statistics.median(bare.seconds / through.seconds for bare, through in turns)
    growth_kb = max(through.growth_kb for _, through in turns)
    bare_rate = size / statistics.median(bare.seconds for bare, _ in turns) / 1e6
    return Row(
        name,
        f"{share:.2f} of bare's rate",
        f"≥ {target}" if target else "",
        None if target is None else share >= target and growth_kb <= _MOST_GROWTH_KB,
        f"bare {bare_rate:.0f} MB/s; the gateway's memory grew by {growth_kb / 1000:.1f} MB at most",
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.relay", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer calls and a smaller file, for a first look")
    quick = parser.parse_args().quick
    table = Table("figure", "measured", "target", "", "detail", title="the relay compared with ComfyUI alone")
    for row in uvloop.run(run(quick=quick)):
        mark = {None: "", True: "[green]met", False: "[red]missed"}[row.met]
        table.add_row(row.figure, row.measured, row.target, mark, row.detail)
    Console(width=max(120, Console().width)).print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
