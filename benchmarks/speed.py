"""Added latency of one caller, and throughput of many."""

from __future__ import annotations

import statistics
import time

from benchmarks.callers import Call, GatewayClient, Pool, Workflow, aiohttp_client, all_of, workflow
from benchmarks.processes import running_forwarder
from benchmarks.stage import Cpu, Row, Stage, cpu_text, percentile

Figures = tuple[float, float, float]
"""Milliseconds of the engine, the gateway and the load client, from `Cpu.per_call_ms`."""

_CALLERS = 32
_TARGET_MS = 1.5
_FORWARDER_MS = 1.2


async def latency(on: Stage) -> list[Row]:
    """One caller, prompts of 50 ms: what the gateway adds to the direct client's time, call by call in turn.

    A plain FastAPI forwarder takes its turn, too, and shows how fast this machine is. The target was set on a machine
    on which the forwarder adds 1.2 ms.
    """
    await on.warm_up()
    calls = 60 if on.quick else 300
    direct, through, forwarded = [], [], []
    cpu = Cpu(on)
    async with running_forwarder(on.engine, on.logs) as forwarder:
        forward = GatewayClient(Pool(forwarder))
        for _ in range(30):
            await forward(workflow())
        for _ in range(calls):
            direct.append(await on.direct(workflow(0.05)) * 1000)
            through.append(await on.through(workflow(0.05)) * 1000)
            forwarded.append(await forward(workflow(0.05)) * 1000)
        forward.pool.close()
    added50 = percentile(through, 50) - percentile(direct, 50)
    plain50 = percentile(forwarded, 50) - percentile(direct, 50)
    added95 = percentile(through, 95) - percentile(direct, 95)
    # Each turn has three calls: one goes through the gateway, and all go to the engine.
    detail = f"CPU per turn: {cpu_text(cpu.per_call_ms(calls))}"
    ratio = percentile(through, 50) / percentile(direct, 50)
    return [
        Row(
            "added latency, 50 ms prompts, p50",
            f"{added50:.2f} ms",
            f"≤ {_TARGET_MS} ms",
            added50 <= _TARGET_MS,
            f"direct {percentile(direct, 50):.2f} ms, gateway × {ratio:.3f}; {detail}",
        ),
        Row(
            "the same, compared with a plain FastAPI forwarder",
            f"{added50 / plain50:.2f} x",
            f"≤ {_TARGET_MS / _FORWARDER_MS:.2f} x",
            added50 / plain50 <= _TARGET_MS / _FORWARDER_MS,
            f"the forwarder adds {plain50:.2f} ms here, {_FORWARDER_MS} ms where the target was set",
        ),
        Row(
            "added latency, 50 ms prompts, p95",
            f"{added95:.2f} ms",
            "≤ 4 ms",
            added95 <= 4,
            f"direct {percentile(direct, 95):.2f} ms, gateway {percentile(through, 95):.2f} ms",
        ),
    ]


async def throughput(on: Stage) -> list[Row]:
    """32 callers, prompts of 0 ms: the gateway's prompts per second as a share of each direct client's.

    With the picture it is compared with the best direct client, without it with the client that a user would write.
    """
    await on.warm_up()
    turns, calls = (4, 200) if on.quick else (12, 400)

    async def without_files(prompt: Workflow) -> float:
        return await on.through(prompt, return_image_base64=False)

    async with aiohttp_client(on.engine) as aiohttp_direct:
        with_files = _Race(on, "direct", on.direct, on.through)
        names_only = _Race(on, "aiohttp", aiohttp_direct, without_files)
        for _ in range(turns):
            await with_files.turn(calls)
            await names_only.turn(calls)
    return [
        with_files.row("throughput, 32 callers, 0 ms prompts", 0.95),
        names_only.row("the same without the files, compared with a client on aiohttp", 0.85),
    ]


class _Race:
    """Measures a direct client and the gateway in turn, block by block."""

    def __init__(self, on: Stage, name: str, direct: Call, gateway: Call) -> None:
        self._on = on
        self._name = name
        self._calls = (direct, gateway)
        self._rates: tuple[list[float], list[float]] = ([], [])
        self._cpu: tuple[list[Figures], list[Figures]] = ([], [])

    async def turn(self, calls: int) -> None:
        for call, rates, cpu in zip(self._calls, self._rates, self._cpu, strict=True):
            rate, spent = await _rate(self._on, call, calls)
            rates.append(rate)
            cpu.append(spent)

    def row(self, figure: str, target: float) -> Row:
        direct, gateway = self._rates
        shares = [b / a for a, b in zip(direct, gateway, strict=True)]
        share = statistics.median(shares)
        detail = (
            f"{self._name} {statistics.median(direct):.0f}/s, gateway {statistics.median(gateway):.0f}/s, "
            f"shares {min(shares):.2f} to {max(shares):.2f}; CPU per prompt, {self._name}: "
            f"{cpu_text(_mean(self._cpu[0]))}; gateway: {cpu_text(_mean(self._cpu[1]))}"
        )
        return Row(figure, f"{share:.2f} of {self._name}", f"≥ {target:.2f}", share >= target, detail)


async def _rate(on: Stage, call: Call, calls: int) -> tuple[float, Figures]:
    cpu = Cpu(on)
    started = time.perf_counter()
    await all_of(calls, _CALLERS, lambda: call(workflow()))
    return calls / (time.perf_counter() - started), cpu.per_call_ms(calls)


def _mean(samples: list[Figures]) -> Figures:
    engine, gateway, own = (statistics.fmean(column) for column in zip(*samples, strict=True))
    return engine, gateway, own
