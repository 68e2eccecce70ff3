"""Several servers of equal speed behind one gateway: their throughput as a multiple of one server's."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

from benchmarks.callers import Call, GatewayClient, direct_client, pool_of, workflow
from benchmarks.fleet import all_are_up
from benchmarks.processes import Server, running_engine, running_gateway
from benchmarks.stage import Row, Stage

_TARGET = 0.95
# Callers for each server: one prompt runs, one waits on the server, and two wait in the gateway or get their answer.
_CALLERS = 4
_WARM_S = 1.0


async def scaling(on: Stage) -> list[Row]:
    """1 to 4 servers with prompts of 50 ms, and 8 with prompts of 250 ms.

    They are compared with one server that a direct client keeps busy, so that the gateway's own cost counts, too.
    """
    rows = []
    async with AsyncExitStack() as stack:
        engines = await asyncio.gather(
            *(stack.enter_async_context(running_engine(on.logs, f"engine-{number}")) for number in range(8))
        )
        for counts, sleep_s, lasts_s in (((1, 2, 3, 4), 0.05, 5.0), ((8,), 0.25, 8.0)):
            measured_s = lasts_s / 2 if on.quick else lasts_s
            async with direct_client(engines[0]) as direct:
                one, _ = await _rate(direct, _CALLERS, sleep_s, measured_s, ())
            for count in counts:
                async with _gateway(on, engines[:count]) as (call, gateway):
                    servers = (gateway, *engines[:count])
                    each, cpu = await _rate(call, _CALLERS * count, sleep_s, measured_s, servers)
                rows.append(_row(count, sleep_s, each, one, cpu))
    return rows


def _row(count: int, sleep_s: float, rate: float, one: float, cpu: Sequence[float]) -> Row:
    gateway, *engines, client = (f"{share:.0%}" for share in (cpu[0], sum(cpu[1:-1]) / count, cpu[-1]))
    return Row(
        f"{count} server{'s' if count > 1 else ''}, prompts of {sleep_s * 1000:.0f} ms, callers that wait",
        f"{rate / one / count:.3f} × {count} of one",
        f"≥ {_TARGET} × {count}",
        rate / one >= _TARGET * count,
        f"{rate:.1f}/s, one directly {one:.1f}/s; CPU of a core: gateway {gateway}, each engine {engines[0]},"
        f" load client {client}",
    )


@asynccontextmanager
async def _gateway(on: Stage, engines: Sequence[Server]) -> AsyncIterator[tuple[Call, Server]]:
    addresses = ",".join(engine.address for engine in engines)
    async with (
        running_gateway(engines[0], on.logs, COMFYUI_SERVER_ADDRESS=addresses, QUEUE="gateway") as gateway,
        pool_of(gateway) as pool,
    ):
        await all_are_up(pool, len(engines))
        yield GatewayClient(pool), gateway


async def _rate(
    call: Call, callers: int, sleep_s: float, lasts_s: float, servers: Sequence[Server]
) -> tuple[float, list[float]]:
    """Prompts per second while all callers call, and CPU time per second of the servers and of this process."""
    ends: list[float] = []
    is_over = False

    async def caller() -> None:
        while not is_over:
            await call(workflow(sleep_s))
            ends.append(time.perf_counter())

    async with asyncio.TaskGroup() as group:
        for _ in range(callers):
            group.create_task(caller())
        await asyncio.sleep(_WARM_S)
        before, began = _cpu(servers), time.perf_counter()
        await asyncio.sleep(lasts_s)
        after, ended = _cpu(servers), time.perf_counter()
        is_over = True
    inside = [at for at in ends if began <= at <= ended]
    # Servers end their prompts at the same times, so a plain count would depend on when it begins and ends.
    rate = statistics.linear_regression(inside, range(len(inside))).slope
    return rate, [(now - then) / (ended - began) for then, now in zip(before, after, strict=True)]


def _cpu(servers: Sequence[Server]) -> list[float]:
    return [*(server.cpu_s() for server in servers), time.process_time()]
