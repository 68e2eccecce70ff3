"""The servers and callers for a measurement, and the form of its result."""

from __future__ import annotations

import statistics
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.callers import DirectClient, GatewayClient, Pool, direct_client, workflow
from benchmarks.processes import Server, running_engine, running_gateway


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table. `met` is None if the figure has no target."""

    figure: str
    measured: str
    target: str = ""
    met: bool | None = None
    detail: str = ""


@dataclass(frozen=True)
class Stage:
    """A fresh engine and a fresh gateway, each with its callers. `quick`: fewer calls, for a first look."""

    engine: Server
    gateway: Server
    direct: DirectClient
    through: GatewayClient
    logs: Path
    quick: bool

    @property
    def engine_pool(self) -> Pool:
        return self.direct.pool

    @property
    def gateway_pool(self) -> Pool:
        return self.through.pool

    async def warm_up(self, calls: int = 30) -> None:
        """Opens the connections and runs the code paths once."""
        for _ in range(calls):
            await self.direct(workflow())
            await self.through(workflow())


@asynccontextmanager
async def stage(logs: Path, *, quick: bool) -> AsyncIterator[Stage]:
    async with (
        running_engine(logs) as engine,
        running_gateway(engine, logs) as gateway,
        direct_client(engine) as direct,
    ):
        pool = Pool(gateway)
        try:
            yield Stage(engine, gateway, direct, GatewayClient(pool), logs, quick)
        finally:
            pool.close()


class Cpu:
    """CPU time of the three processes per call since it was made; on a shared machine it is steadier than any clock."""

    def __init__(self, on: Stage) -> None:
        self._on = on
        self._before = self._now()

    def _now(self) -> tuple[float, float, float]:
        return self._on.engine.cpu_s(), self._on.gateway.cpu_s(), time.process_time()

    def per_call_ms(self, calls: int) -> tuple[float, float, float]:
        """Milliseconds per call of the engine, the gateway and this load client."""
        engine, gateway, own = (
            (after - before) / calls * 1000 for before, after in zip(self._before, self._now(), strict=True)
        )
        return engine, gateway, own


def cpu_text(ms: tuple[float, float, float]) -> str:
    return f"engine {ms[0]:.2f} ms, gateway {ms[1]:.2f} ms, load client {ms[2]:.2f} ms"


def percentile(values: Sequence[float], percent: int) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]
