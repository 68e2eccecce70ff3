"""How many requests to ComfyUI a prompt costs, and whether that depends on waiting callers or on ComfyUI's queue."""

from __future__ import annotations

import asyncio
import time
import uuid
from dataclasses import dataclass

import orjson

from benchmarks.callers import forget_counts, request_counts, workflow
from benchmarks.processes import BenchError
from benchmarks.stage import Row, Stage, percentile

_ONCE_PER_PROMPT = ("POST /prompt", "GET /view")
_TICKS_AT_THE_ENDS = 3
_PENDING_BYTES = 100_000
_PENDING_S = 0.005


async def requests(on: Stage) -> list[Row]:
    """Requests to ComfyUI per prompt, for one caller and for many that wait behind a long prompt."""
    await on.warm_up(3)
    wait_s = 5.0 if on.quick else 60.0
    rows = []
    for callers in (1, 1000):
        await forget_counts(on.engine_pool)
        started = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            group.create_task(on.through(workflow(wait_s)))
            await asyncio.sleep(0.2)  # it runs now, and all others wait for it
            for _ in range(callers - 1):
                group.create_task(on.through(workflow()))
        lasted_s = time.perf_counter() - started
        counts = await request_counts(on.engine_pool)
        # Each prompt needs one history request; the others come from the shared poll for the prompt in front.
        own = [counts.get(route, 0) / callers for route in _ONCE_PER_PROMPT]
        shared = sum(counts.values()) - 3 * callers
        rows.append(
            Row(
                f"requests per prompt, {callers:,} waiting {wait_s:.0f} s",
                f"{own[0]:g} POST + 1 history + {own[1]:g} view, besides {shared / lasted_s:.2f}/s",
                "1 + 1 + 1, ≤ 0.5/s",
                own == [1, 1] and shared <= lasted_s / 2 + _TICKS_AT_THE_ENDS,
                f"in {lasted_s:.1f} s: {counts}",
            )
        )
    return rows


async def queue_length(on: Stage) -> list[Row]:
    """The same prompt at the front of ComfyUI's queue, with no and with 5,000 pending prompts of 100 KB."""
    await on.warm_up()
    calls = 60 if on.quick else 200
    empty = await _to_the_front(on, calls)
    pending = 500 if on.quick else 5000
    await _fill(on, pending)
    full = await _to_the_front(on, calls)
    remaining = orjson.loads((await on.engine_pool.request("GET", "/prompt")).body)["exec_info"]["queue_remaining"]
    await on.engine_pool.request("POST", "/queue", b'{"clear":true}')
    if remaining < pending / 2:
        raise BenchError(f"only {remaining} of {pending} prompts were still pending at the end")
    growth = full.added_ms - empty.added_ms
    return [
        Row(
            f"added latency with {pending} pending",
            f"{full.added_ms:.2f} ms, with none {empty.added_ms:.2f} ms",
            "flat",
            growth <= 1.0,
            f"p50; {remaining} of {pending} were left at the end",
        ),
        Row(
            f"requests and bytes read per prompt with {pending} pending",
            f"{full.requests:.2f} and {full.kb:.1f} KB, with none {empty.requests:.2f} and {empty.kb:.1f} KB",
            "flat",
            full.requests <= empty.requests + 0.2 and full.kb <= empty.kb + 10,
            f"GET /queue: {full.queue_gets} times",
        ),
    ]


@dataclass(frozen=True, slots=True)
class _Cost:
    """The cost of one prompt through the gateway; `added_ms` is the time beyond the direct client's."""

    added_ms: float
    requests: float
    kb: float
    queue_gets: int


async def _to_the_front(on: Stage, calls: int) -> _Cost:
    await forget_counts(on.engine_pool)
    read = 0
    direct, through = [], []
    asked = 0
    for _ in range(calls):
        direct.append(await on.direct(workflow(), front=True) * 1000)
        before = on.gateway.bytes_read()
        counts = sum((await request_counts(on.engine_pool)).values())
        through.append(await on.through(workflow(), front=True) * 1000)
        asked += sum((await request_counts(on.engine_pool)).values()) - counts
        read += on.gateway.bytes_read() - before
    queue_gets = (await request_counts(on.engine_pool)).get("GET /queue", 0)
    added = percentile(through, 50) - percentile(direct, 50)
    return _Cost(added, asked / calls, read / calls / 1000, queue_gets)


async def _fill(on: Stage, pending: int) -> None:
    """Queues the prompts behind a long one. Each has one long text, which needs little memory."""
    blocker = str(uuid.uuid4())
    await on.engine_pool.request("POST", "/prompt", orjson.dumps({"prompt": workflow(3600.0), "prompt_id": blocker}))
    big = workflow(_PENDING_S)
    big["4"] = {"class_type": "CLIPTextEncode", "inputs": {"text": "x" * _PENDING_BYTES, "clip": ["5", 1]}}
    for _ in range(pending):
        big["1"] = workflow()["1"]
        await on.engine_pool.request("POST", "/prompt", orjson.dumps({"prompt": big}))
    await on.engine_pool.request("POST", "/interrupt", orjson.dumps({"prompt_id": blocker}))
