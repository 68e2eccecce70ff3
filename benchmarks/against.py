"""Compares this checkout's gateway with another one's, in turn in front of one engine: what a change costs or gains.

    python -m benchmarks.against /path/to/another/checkout

Both gateways run for the whole time and take turns, call by call and block by block, so that a machine that gets slower
slows both. The CPU time per prompt is the steadier figure: it hardly depends on other programs.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import uvloop
from rich.console import Console
from rich.table import Table

from benchmarks.callers import GatewayClient, Pool, all_of, workflow
from benchmarks.processes import ROOT, Server, exact_cpu_s, free_port, gateway_env, running_engine, running_server
from benchmarks.stage import percentile

_CALLERS = 32


@dataclass
class Side:
    """One of the two gateways, with its measurements: milliseconds, and prompts per second."""

    name: str
    gateway: Server
    call: GatewayClient
    latency_ms: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Entrant:
    """A gateway to measure: its checkout, and its settings besides the benchmarks' own."""

    name: str
    root: Path = ROOT
    settings: Mapping[str, str] = field(default_factory=dict)


async def measure(entrants: Sequence[Entrant], *, pairs: int, blocks: int, calls: int) -> list[Side]:
    """Measures both gateways."""
    async with AsyncExitStack() as stack:
        logs = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        engine = await stack.enter_async_context(running_engine(logs))
        sides = [await stack.enter_async_context(_side(entrant, engine, logs)) for entrant in entrants]
        for _ in range(50):
            for side in sides:
                await side.call(workflow())
        for number in range(pairs):
            for side in _in_turn(sides, number):
                side.latency_ms.append(await side.call(workflow(0.02)) * 1000)
        for number in range(blocks):
            for side in _in_turn(sides, number):
                await _block(side, calls)
        return sides


def _in_turn(sides: list[Side], number: int) -> list[Side]:
    """The sides in alternating order, because the second one may find a warmer machine."""
    return sides if number % 2 else sides[::-1]


async def _block(side: Side, calls: int) -> None:
    cpu, started = exact_cpu_s(side.gateway.pid), time.perf_counter()
    await all_of(calls, _CALLERS, lambda: side.call(workflow()))
    side.rates.append(calls / (time.perf_counter() - started))
    side.cpu_ms.append((exact_cpu_s(side.gateway.pid) - cpu) / calls * 1000)


@asynccontextmanager
async def _side(entrant: Entrant, engine: Server, logs: Path) -> AsyncIterator[Side]:
    port = free_port()
    command = [str(entrant.root / "server.py")]
    env = gateway_env(engine.address, port) | {"PYTHONPATH": str(entrant.root), **entrant.settings}
    async with running_server(entrant.name, command, port, "/health/ready", logs, env) as gateway:
        pool = Pool(gateway)
        try:
            yield Side(entrant.name, gateway, GatewayClient(pool))
        finally:
            pool.close()


def differences_ms(this: Side, other: Side) -> float:
    """The median difference, over pairs of calls, between this side's time and the other's."""
    return statistics.median(a - b for a, b in zip(this.latency_ms, other.latency_ms, strict=True))


def _table(sides: list[Side]) -> Table:
    this, other = sides
    table = Table("figure", "this", "other", "this / other")
    figures = (
        ("one caller, p50, ms", percentile(this.latency_ms, 50), percentile(other.latency_ms, 50)),
        ("one caller, p95, ms", percentile(this.latency_ms, 95), percentile(other.latency_ms, 95)),
        (f"{_CALLERS} callers, prompts per second", statistics.median(this.rates), statistics.median(other.rates)),
        (f"{_CALLERS} callers, CPU per prompt, ms", statistics.median(this.cpu_ms), statistics.median(other.cpu_ms)),
    )
    for name, mine, theirs in figures:
        table.add_row(name, f"{mine:.2f}", f"{theirs:.2f}", f"{mine / theirs:.3f}")
    table.add_row("one caller, median of the pairs' differences, ms", f"{differences_ms(this, other):+.3f}", "", "")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.against", description=__doc__)
    parser.add_argument("other", type=Path, help="the folder of another checkout, whose server.py is run")
    parser.add_argument("--pairs", type=int, default=300, help="calls of one caller to each gateway")
    parser.add_argument("--blocks", type=int, default=8, help=f"blocks of calls by {_CALLERS} callers to each")
    parser.add_argument("--calls", type=int, default=400, help="calls in a block")
    options = parser.parse_args()
    if not (options.other / "server.py").is_file():
        parser.error(f"{options.other} has no server.py")
    entrants = (Entrant("this"), Entrant("other", options.other.resolve()))
    sides = uvloop.run(measure(entrants, pairs=options.pairs, blocks=options.blocks, calls=options.calls))
    Console().print(_table(sides))


if __name__ == "__main__":
    main()
