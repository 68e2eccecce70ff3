"""Comfy API v2 through the official Python SDK: the gateway compared with comfy-api-proxy, interleaved in one run."""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from comfy_sdk import AsyncComfy

from benchmarks.callers import workflow
from benchmarks.jobs import pages
from benchmarks.journal import JOBS, fill
from benchmarks.processes import (
    ROOT,
    Server,
    exact_cpu_s,
    free_port,
    running_engine,
    running_gateway,
    running_server,
    stop,
    until_ok,
)
from benchmarks.stage import Row, Stage, percentile
from comfyui.jobs.journal.sqlite import SqliteJournal

_CALLERS = 32
_PROXY = ROOT / ".venv-proxy/bin/comfy-api-proxy"
_MISSING = "comfy-api-proxy is not installed: make .venv-proxy/.ready"
_KEEP_ALL = {"JOBS_KEEP_DAYS": "100000", "JOBS_KEEP": str(2 * JOBS)}
"""Keeps the jobs of `fill`, which are years old."""


@asynccontextmanager
async def _running_proxy(engine: Server, logs: Path) -> AsyncIterator[Server]:
    port = free_port()
    command = [str(_PROXY), "run", "--comfyui", f"http://{engine.address}", "--port", str(port)]
    with (logs / "comfy-api-proxy").open("wb") as log:
        process = await asyncio.create_subprocess_exec(*command, cwd=logs, stdout=log, stderr=log)
    try:
        await until_ok(process, port, "/api/v2/health")
        yield Server(process.pid, port)
    finally:
        await stop(process)


def _client(server: Server) -> AsyncComfy:
    """A client of the SDK, which reads the address only from the environment."""
    os.environ["COMFY_BASE_URL"] = f"http://{server.address}"
    return AsyncComfy()


async def _run(client: AsyncComfy) -> str:
    """Runs a quick job from its submission to its result; returns how it ended."""
    job = await client.submit(client.workflows.from_json(workflow()))
    await job.wait()
    return job.status if job.outputs else f"{job.status} without outputs"


async def beside_the_proxy(on: Stage) -> list[Row]:
    """One caller, in turn; then 32 callers, one server after the other, and the limit of the SDK itself."""
    if not _PROXY.exists():
        return [Row("comfy-sdk compared with comfy-api-proxy", "skipped", detail=_MISSING)]
    pairs, calls = (20, 100) if on.quick else (200, 500)
    async with (
        running_engine(on.logs, "engine of the proxy") as other,
        _running_proxy(other, on.logs) as proxy,
        _running_canned(on.logs) as canned,
        _client(on.gateway) as ours,
        _client(proxy) as theirs,
        _client(canned) as nothing,
    ):
        took: dict[str, list[float]] = {"gateway": [], "proxy": []}
        ends: dict[str, Counter[str]] = {"gateway": Counter(), "proxy": Counter()}
        clients = {"gateway": ours, "proxy": theirs}
        for _ in range(pairs):
            for name, client in clients.items():
                began = time.perf_counter()
                ends[name][await _run(client)] += 1
                took[name].append((time.perf_counter() - began) * 1000)
        ceiling = await _rate(nothing, canned, calls)
        rates = {"gateway": await _rate(ours, on.gateway, calls), "proxy": await _rate(theirs, proxy, calls)}
    for name, rate in rates.items():
        ends[name] += rate.ends
    return [*_latency_rows(took, pairs), *_rate_rows(rates, ends, calls), _ceiling_row(ceiling, rates["proxy"])]


@asynccontextmanager
async def _running_canned(logs: Path) -> AsyncIterator[Server]:
    port = free_port()
    command = ["-m", "benchmarks.canned_v2", "--port", str(port)]
    async with running_server("canned", command, port, "/api/v2/jobs/0", logs) as server:
        yield server


def _latency_rows(took: dict[str, list[float]], pairs: int) -> list[Row]:
    rows = []
    for share in (50, 95):
        ours, theirs = (percentile(took[name], share) for name in ("gateway", "proxy"))
        figure = f"comfy-sdk, a quick job to its result, p{share} of {pairs}"
        rows.append(Row(figure, f"{ours:.1f} ms", "≤ comfy-api-proxy's", ours <= theirs, f"proxy {theirs:.1f} ms"))
    return rows


@dataclass(frozen=True, slots=True)
class _Rate:
    """Jobs by 32 callers. `ends`: how they ended; `cpu_ms` and `own_ms`: CPU per job of the server and the SDK."""

    each_s: float
    ends: Counter[str]
    cpu_ms: float
    own_ms: float

    @property
    def true_each_s(self) -> float:
        """Jobs per second whose callers got their end."""
        return self.each_s * self.ends["succeeded"] / self.ends.total()


def _rate_rows(rates: dict[str, _Rate], ends: dict[str, Counter[str]], calls: int) -> list[Row]:
    ours, theirs = rates["gateway"], rates["proxy"]
    ratio = ours.each_s / theirs.each_s
    false = {name: sum(count for end, count in found.items() if end != "succeeded") for name, found in ends.items()}
    return [
        Row(
            f"comfy-sdk, {calls} quick jobs by {_CALLERS} callers",
            f"{ours.each_s:.0f}/s",
            "≥ 2 times comfy-api-proxy's",
            ratio >= 2,
            f"proxy {theirs.each_s:.0f}/s, {theirs.true_each_s:.0f}/s without false ends: {ratio:.1f} times",
        ),
        Row(
            "the same, CPU of the server for each job",
            f"{ours.cpu_ms:.1f} ms",
            detail=f"proxy {theirs.cpu_ms:.1f} ms, the SDK itself {ours.own_ms:.1f} ms",
        ),
        Row(
            "comfy-sdk, quick jobs reported with a wrong end",
            f"{false['gateway']}",
            "0",
            false["gateway"] == 0,
            f"proxy {false['proxy']}: {dict(ends['proxy'])}",
        ),
    ]


def _ceiling_row(ceiling: _Rate, theirs: _Rate) -> Row:
    return Row(
        "the same with a server that does nothing: the SDK's own limit",
        f"{ceiling.each_s:.0f}/s",
        detail=f"{ceiling.each_s / theirs.each_s:.1f} times the proxy's; the SDK itself {ceiling.own_ms:.1f} ms",
    )


async def _rate(client: AsyncComfy, server: Server, calls: int) -> _Rate:
    left = iter(range(calls))
    ends: Counter[str] = Counter()

    async def caller() -> None:
        for _ in left:
            ends[await _run(client)] += 1

    cpu_s, own_s, began = exact_cpu_s(server.pid), time.process_time(), time.perf_counter()
    async with asyncio.TaskGroup() as callers:
        for _ in range(_CALLERS):
            callers.create_task(caller())
    each_s = calls / (time.perf_counter() - began)
    per_call = 1000 / calls
    return _Rate(each_s, ends, (exact_cpu_s(server.pid) - cpu_s) * per_call, (time.process_time() - own_s) * per_call)


async def listing(on: Stage) -> list[Row]:
    """Pages of `GET /api/v2/jobs` among 100,000 jobs."""
    count = JOBS // 10 if on.quick else JOBS
    folder = on.logs / "many"
    async with SqliteJournal(folder) as journal:
        await fill(journal, count, unfinished=0)
    queries = {"none": "", "state": "&status=failed", "label": "&metadata[project]=p18"}
    async with running_gateway(on.engine, on.logs, STATE_DIR=str(folder), **_KEEP_ALL) as gateway:
        return [
            await pages(gateway, "/api/v2/jobs", f"a page of v2's list, filter: {name}", query)
            for name, query in queries.items()
        ]
