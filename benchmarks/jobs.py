"""What jobs cost a gateway: writing them to the journal, submitting, waiting, listing, and loading at the start."""

from __future__ import annotations

import asyncio
import statistics
import time
from pathlib import Path

import orjson

from benchmarks.against import Entrant, differences_ms, measure
from benchmarks.callers import Pool, all_of, forget_counts, pool_of, request_counts, submitted, workflow
from benchmarks.journal import JOBS, fill
from benchmarks.processes import Server, free_port, running_gateway
from benchmarks.stage import Row, Stage, percentile
from comfyui.jobs.journal.sqlite import SqliteJournal

_CALLERS = 32
_WAITING = 10_000
_AHEAD = 4
"""Number of jobs that a gateway has with one server."""

_KEEP_ALL = {"JOBS_KEEP_DAYS": "100000", "JOBS_KEEP": str(2 * JOBS)}
"""Keeps the jobs of `fill`, which are years old."""


async def journal_cost(on: Stage) -> list[Row]:
    """A sync prompt of a gateway with a journal on disk, in turn with one that has its jobs in memory only."""
    entrants = (Entrant("file"), Entrant("memory", settings={"STATE_DIR": ""}))
    pairs, blocks = (200, 4) if on.quick else (2000, 12)
    file, memory = await measure(entrants, pairs=pairs, blocks=blocks, calls=400)
    cpu = statistics.median(a - b for a, b in zip(file.cpu_ms, memory.cpu_ms, strict=True))
    added = differences_ms(file, memory)
    return [
        Row(
            "a sync prompt with the journal, CPU",
            f"{cpu:+.3f} ms",
            "≤ 0.15 ms more",
            cpu <= 0.15,
            f"{statistics.median(file.cpu_ms):.2f} ms, in memory {statistics.median(memory.cpu_ms):.2f} ms",
        ),
        Row(
            f"a sync prompt with the journal, median of {pairs:,} pairs",
            f"{added:+.3f} ms",
            "≤ 0.2 ms more",
            added <= 0.2,
            f"p50 {percentile(file.latency_ms, 50):.2f} ms, in memory {percentile(memory.latency_ms, 50):.2f} ms",
        ),
    ]


async def submissions(on: Stage) -> list[Row]:
    """Async jobs by 32 callers, written to disk before the answer: without a server, and while jobs run."""
    count = 1000 if on.quick else 5000
    nowhere = Server(0, free_port())
    async with running_gateway(nowhere, on.logs, "/health/live") as gateway, pool_of(gateway) as pool:
        alone = await submission_rate(pool, count)
    async with running_gateway(on.engine, on.logs) as gateway, pool_of(gateway) as pool:
        running = await submission_rate(pool, count)
        ended = await _ended(pool)
    return [
        Row(f"async submissions, {_CALLERS} callers, without a server", f"{alone:,.0f}/s", "≥ 400/s", alone >= 400),
        Row(
            f"async submissions, {_CALLERS} callers, while jobs run",
            f"{running:,.0f}/s",
            "≥ 150/s",
            running >= 150,
            f"{ended:,} had ended by then",
        ),
    ]


async def waiting_jobs(on: Stage) -> list[Row]:
    """Memory and requests to ComfyUI for 10,000 async jobs that wait behind long ones."""
    count = 2000 if on.quick else _WAITING
    async with (
        running_gateway(on.engine, on.logs, MAX_QUEUED_JOBS=str(count + _AHEAD)) as gateway,
        pool_of(gateway) as pool,
    ):
        blockers = [await submitted(pool, workflow(3600.0)) for _ in range(_AHEAD)]
        await submission_rate(pool, count // 10)
        before = gateway.rss_kb()
        rate = await submission_rate(pool, count - count // 10)
        after = gateway.rss_kb()
        await forget_counts(on.engine_pool)
        watched_s = 5.0
        await asyncio.sleep(watched_s)
        asked = sum((await request_counts(on.engine_pool)).values())
        for blocker in reversed(blockers):
            await pool.request("DELETE", f"/prompt_sync/{blocker}")
    each = (after - before) / (count - count // 10)
    return [
        Row(
            f"memory for each of {count:,} waiting jobs",
            f"{each:.2f} KB",
            "≤ 2 KB",
            each <= 2,
            f"gateway's VmRSS {before / 1000:.1f} → {after / 1000:.1f} MB; {rate:,.0f} submissions/s",
        ),
        Row(
            f"requests to ComfyUI in {watched_s:.0f} s with {count:,} waiting jobs",
            f"{asked}",
            "≤ 0.5/s, for those that run",
            asked <= watched_s / 2 + 1,
        ),
    ]


async def many_jobs(on: Stage) -> list[Row]:
    """The start of a gateway with a journal of 100,000 jobs, and pages of its list."""
    count = JOBS // 10 if on.quick else JOBS
    folder = on.logs / "many"
    async with SqliteJournal(folder) as journal:
        await fill(journal, count, unfinished=0)
    turns = 3 if on.quick else 7
    empty, full = [], []
    for turn in range(turns):
        empty.append(await _start_s(on, on.logs / f"empty-{turn}"))
        full.append(await _start_s(on, folder))
    more = statistics.median(full) - statistics.median(empty)
    async with running_gateway(on.engine, on.logs, STATE_DIR=str(folder), **_KEEP_ALL) as gateway:
        rows = [
            await pages(gateway, "/prompt_sync", f"a list's page, filter: {name}", query) for name, query in _QUERIES
        ]
    return [
        Row(
            f"start with {count:,} jobs",
            f"{more:+.2f} s",
            "≤ 0.3 s later",
            more <= 0.3,
            f"{statistics.median(full):.2f} s, with none {statistics.median(empty):.2f} s",
        ),
        *rows,
    ]


_QUERIES = (
    ("none", ""),
    ("state", "&status=failed"),
    ("workflow", "&workflow=workflow-8"),
    ("label", "&label.project=p18"),
    ("state, workflow, two labels", "&status=failed&workflow=workflow-8&label.every=one&label.project=p8"),
    ("nothing fits", "&status=failed&workflow=workflow-8&label.project=p9"),
)


async def _start_s(on: Stage, folder: Path) -> float:
    began = time.perf_counter()
    async with running_gateway(on.engine, on.logs, STATE_DIR=str(folder), **_KEEP_ALL):
        return time.perf_counter() - began


async def pages(gateway: Server, path: str, figure: str, query: str) -> Row:
    """60 pages of the list at `path`, one after the other, filtered by `query`."""
    took: list[float] = []
    found = 0
    async with pool_of(gateway) as pool:
        cursor = ""
        for _ in range(60):
            began = time.perf_counter()
            reply = await pool.request("GET", f"{path}?limit=50{query}{cursor}")
            took.append((time.perf_counter() - began) * 1000)
            page = orjson.loads(reply.body)
            found += len(page["jobs"])
            cursor = f"&cursor={page['next_cursor']}" if "next_cursor" in page else ""
    p95 = percentile(took, 95)
    return Row(
        figure,
        f"p95 {p95:.1f} ms",
        "≤ 10 ms",
        p95 <= 10,
        f"p50 {statistics.median(took):.1f} ms; {found:,} jobs seen",
    )


async def submission_rate(pool: Pool, count: int) -> float:
    """Submissions per second of async jobs that do nothing, by 32 callers."""

    async def submit() -> float:
        await submitted(pool, workflow())
        return 0.0

    began = time.perf_counter()
    await all_of(count, _CALLERS, submit)
    return count / (time.perf_counter() - began)


async def _ended(pool: Pool) -> int:
    """How many jobs have a result according to the list."""
    ended, cursor = 0, ""
    while True:
        reply = await pool.request("GET", f"/prompt_sync?limit=200&status=succeeded{cursor}")
        page = orjson.loads(reply.body)
        ended += len(page["jobs"])
        if "next_cursor" not in page:
            return ended
        cursor = f"&cursor={page['next_cursor']}"
