"""The gateway's memory: for each waiting caller, with a large file, after a rush. Also the time of its start."""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
import time

import orjson

from benchmarks.callers import Pool, all_of, file_workflow, view_path, workflow
from benchmarks.processes import ROOT, BenchError, free_port, gateway_env, stop, until_ok
from benchmarks.stage import Row, Stage, percentile

_MB = 1_000_000
_RAW = "Accept: application/octet-stream\r\n"


async def waiting_callers(on: Stage) -> list[Row]:
    """1,000 callers that wait for the end of one long prompt."""
    await on.warm_up()
    callers = 200 if on.quick else 1000
    before = on.gateway.rss_kb()
    tasks = [asyncio.create_task(on.through(workflow(3600.0 if first == 0 else 0.0))) for first in range(callers)]
    try:
        await _until_waiting(on, callers)
        await asyncio.sleep(1)
        after = on.gateway.rss_kb()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        on.gateway_pool.close()
    each = (after - before) / callers
    return [
        Row(
            f"memory per waiting caller, at {callers:,}",
            f"{each:.1f} KB",
            "≤ 40 KB",
            each <= 40,
            f"gateway's VmRSS {before / 1000:.1f} → {after / 1000:.1f} MB",
        )
    ]


async def _until_waiting(on: Stage, callers: int) -> None:
    """Waits until all prompts are in ComfyUI's queue."""
    async with asyncio.timeout(60):
        while True:
            reply = await on.engine_pool.request("GET", "/prompt")
            if orjson.loads(reply.body)["exec_info"]["queue_remaining"] >= callers:
                return
            await asyncio.sleep(0.1)


async def large_file(on: Stage) -> list[Row]:
    """A file of 64 MB: as bytes and as base64 in the answer, in turn with a plain /view of ComfyUI."""
    await on.warm_up(3)
    size, turns = 64 * _MB, 3 if on.quick else 7
    answer = await on.through.result(file_workflow(size), return_image_base64=False)
    path = view_path(answer["images"][0])
    attach = f"/prompt_sync/{answer['prompt_id']}"
    before = on.gateway.rss_kb()
    on.gateway.forget_peak()
    plain, relayed, raw, base64 = [], [], [], []
    for _ in range(turns):
        plain.append(await _seconds(on.engine_pool, path, size))
        relayed.append(await _seconds(on.gateway_pool, path, size))
        raw.append(await _seconds(on.gateway_pool, attach, size, _RAW))
        base64.append(await _seconds(on.gateway_pool, f"{attach}?return_image_base64=true", size * 4 // 3))
    grown = (on.gateway.peak_rss_kb() - before) / 1000
    base = statistics.median(plain)
    rows = [
        Row(
            f"64 MB output, {name}",
            f"{statistics.median(times) / base:.2f} × plain /view",
            f"≤ {most} ×",
            statistics.median(times) / base <= most,
            f"/view {base * 1000:.0f} ms, here {statistics.median(times) * 1000:.0f} ms",
        )
        for name, times, most in (("/view relayed", relayed, 1.3), ("raw", raw, 1.3), ("base64", base64, 3.0))
    ]
    detail = f"from {before / 1000:.1f} MB, at most while {3 * turns} of them went through"
    return [*rows, Row("64 MB output, memory growth", f"{grown:.1f} MB", "≤ 16 MB", grown <= 16, detail)]


async def _seconds(pool: Pool, path: str, at_least: int, headers: str = "") -> float:
    started = time.perf_counter()
    reply = await pool.request("GET", path, headers=headers, keep=False)
    if reply.size < at_least:
        raise BenchError(f"GET {path}: {reply.size:,} bytes, not {at_least:,}")
    return time.perf_counter() - started


async def rush(on: Stage) -> list[Row]:
    """1,000 concurrent callers with ten prompts each; the figure excludes the time in ComfyUI itself."""
    await on.warm_up()
    callers, each = (200, 5) if on.quick else (1000, 10)
    before = on.gateway.rss_kb()
    direct = await _rush(on, callers, each, through=False)
    through = await _rush(on, callers, each, through=True)
    on.gateway_pool.close()
    peak = on.gateway.peak_rss_kb()
    await asyncio.sleep(3)
    after = on.gateway.rss_kb()
    added = percentile(through, 99) - percentile(direct, 99)
    answered = f"{len(through):,} of {callers * each:,}"
    return [
        Row(
            f"{callers:,} callers at once, answered",
            answered,
            "all",
            len(through) == callers * each,
        ),
        Row(
            f"{callers:,} callers at once, p99 without queueing",
            f"{percentile(through, 99):.0f} ms, direct {percentile(direct, 99):.0f} ms: {added:+.0f} ms",
            "≤ 50 ms over direct",
            added <= 50,
            f"p50 {percentile(through, 50):.1f} ms, direct {percentile(direct, 50):.1f} ms",
        ),
        Row(
            f"{callers:,} callers at once, memory after",
            f"{(after - before) / 1000:+.1f} MB",
            "as before",
            after - before <= 10_000,
            f"VmRSS {before / 1000:.1f} → {after / 1000:.1f} MB, at most {peak / 1000:.1f} MB",
        ),
    ]


async def _rush(on: Stage, callers: int, each: int, *, through: bool) -> list[float]:
    """Milliseconds of each call beyond the time in ComfyUI, according to its history (which keeps 10,000)."""
    await on.engine_pool.request("POST", "/history", b'{"clear":true}')
    calls: dict[str, float] = {}

    async def call() -> float:
        started = time.perf_counter()
        if through:
            prompt_id = (await on.through.result(workflow()))["prompt_id"]
        else:
            prompt_id = await on.direct.run(workflow())
        calls[prompt_id] = time.perf_counter() - started
        return calls[prompt_id]

    await all_of(callers * each, callers, call)
    history = orjson.loads((await on.engine_pool.request("GET", "/history")).body)
    return [
        (seconds - _held_s(history[prompt_id])) * 1000 for prompt_id, seconds in calls.items() if prompt_id in history
    ]


def _held_s(entry: dict[str, object]) -> float:
    """Seconds from the prompt's arrival in ComfyUI's queue to the end of its execution."""
    extra_data = entry["prompt"][3]  # type: ignore[index]
    end = entry["status"]["messages"][-1][1]["timestamp"]  # type: ignore[index]
    return float(end - extra_data["create_time"]) / 1000


async def start(on: Stage) -> list[Row]:
    """The time from the start of the process to 200 at /health/live, in turn with a minimal FastAPI application."""
    turns = 3 if on.quick else 9
    ours, bare = [], []
    for _ in range(turns):
        bare.append(await _start_s(["-m", "benchmarks.bare_server"], on))
        ours.append(await _start_s(["server.py"], on))
    seconds = statistics.median(ours)
    return [
        Row(
            "import and start until /health/live",
            f"{seconds:.2f} s",
            "≤ 1.0 s",
            seconds <= 1.0,
            f"{min(ours):.2f} to {max(ours):.2f} s; a bare FastAPI application {statistics.median(bare):.2f} s",
        )
    ]


async def _start_s(command: list[str], on: Stage) -> float:
    port = free_port()
    started = time.perf_counter()
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *command,
        cwd=ROOT,
        env={**os.environ, **gateway_env(on.engine.address, port)},
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        return await until_ok(process, port, "/health/live") - started
    finally:
        await stop(process)
