"""What the gateway's queue adds to ComfyUI's own `POST /prompt`, compared with the relay to the same engine."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.callers import workflow
from benchmarks.http import Connection
from benchmarks.processes import BenchError, Server, running_gateway
from benchmarks.stage import Row, Stage, percentile

_TARGET_MS = 1.0


@dataclass(slots=True)
class _Caller:
    """Posts through one server and waits, by requests to `engine`, until the prompt is done and the engine is idle."""

    through: Connection
    engine: Connection
    gateway: Server

    async def post(self) -> tuple[float, float]:
        """Seconds until the answer, and seconds until ComfyUI had the prompt (to the millisecond)."""
        body = json.dumps({"prompt": workflow()}).encode()
        began, clock = time.perf_counter(), time.time()
        reply = await self.through.request("POST", "/prompt", body)
        seconds = time.perf_counter() - began
        if reply.status != 200:
            raise BenchError(f"POST /prompt: HTTP {reply.status}: {reply.body[:200]!r}")
        prompt_id = json.loads(reply.body)["prompt_id"]
        while (entry := await self._entry(prompt_id)) is None:  # noqa: ASYNC110 - as a client does
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.003)  # the gateway learns of the end a little later
        return seconds, entry["prompt"][3]["create_time"] / 1000 - clock

    async def _entry(self, prompt_id: str) -> Any:
        reply = await self.engine.request("GET", f"/history/{prompt_id}")
        return json.loads(reply.body).get(prompt_id)


async def added_by_the_queue(on: Stage) -> list[Row]:
    """One caller who uses the relay and the gateway's queue in turn."""
    pairs = 150 if on.quick else 400
    async with (
        running_gateway(on.engine, on.logs, QUEUE="comfyui") as relay,
        running_gateway(on.engine, on.logs, QUEUE="gateway") as queue,
    ):
        engine = await Connection.open(on.engine.port)
        callers = [_Caller(await Connection.open(server.port), engine, server) for server in (relay, queue)]
        times: tuple[list[tuple[float, float]], list[tuple[float, float]]] = ([], [])
        cpu = []
        for turn in range(pairs + 30):
            if turn == 30:
                for measured in times:
                    measured.clear()
                cpu = [caller.gateway.cpu_s() for caller in callers]
            for caller, measured in zip(callers, times, strict=True):
                measured.append(await caller.post())
        spent = [(caller.gateway.cpu_s() - before) / pairs * 1000 for caller, before in zip(callers, cpu, strict=True)]
        for caller in callers:
            caller.through.close()
        engine.close()
    cpu_text = f"CPU of the gateway per prompt {spent[0]:.2f}, {spent[1]:.2f} ms"
    return [
        _row("until the answer", [[answer for answer, _ in measured] for measured in times], cpu_text),
        _row("until ComfyUI has it", [[arrival for _, arrival in measured] for measured in times], cpu_text),
    ]


def _row(until: str, times: Sequence[Sequence[float]], cpu: str) -> Row:
    p50 = [percentile(measured, 50) * 1000 for measured in times]
    p95 = [percentile(measured, 95) * 1000 for measured in times]
    added = p50[1] - p50[0]
    return Row(
        f"POST /prompt, added by the gateway's queue {until}",
        f"{added:.2f} ms at p50",
        f"≤ {_TARGET_MS:g} ms beyond the relay",
        added <= _TARGET_MS,
        f"relay {p50[0]:.2f}, queue {p50[1]:.2f}; p95 {p95[0]:.2f}, {p95[1]:.2f}; {cpu}",
    )
