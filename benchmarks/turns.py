"""What the gateway's own queue costs: a sync prompt compared with ComfyUI's queue, a placement, and the list."""

from __future__ import annotations

import asyncio
import itertools
import statistics
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import orjson

from benchmarks.against import Entrant, Side, differences_ms, measure
from benchmarks.callers import Pool, pool_of, submitted, workflow
from benchmarks.jobs import submission_rate
from benchmarks.processes import BenchError, running_gateway
from benchmarks.stage import Row, Stage, percentile
from comfyui.client import ComfyUIClient
from comfyui.inputs.catalogue import Catalogue
from comfyui.inputs.store import InputStore
from comfyui.jobs.journal.memory import MemoryJournal
from comfyui.jobs.lines import Lane, Waiting
from comfyui.jobs.queue_options import TurnOptions
from comfyui.jobs.scheduler import Place, Scheduler
from comfyui.jobs.shares import Terms
from comfyui.jobs.turns import Turns
from comfyui.metrics import Metrics
from comfyui.models import PromptRequest
from comfyui.replies import JSON
from comfyui.servers.backend import Backend
from comfyui.servers.pool import BackendPool
from comfyui.servers.watcher import CompletionWatcher

_WAITING = 10_000
_SERVERS = 8
_LISTED_MB = 16
"""The allowed growth of the memory while a list is read, the same as for a file."""


async def added_by_turns(on: Stage) -> list[Row]:
    """A sync prompt of a gateway that holds waiting prompts, in turn with one that leaves them to ComfyUI."""
    entrants = (Entrant("gateway", settings={"QUEUE": "gateway"}), Entrant("comfyui", settings={"QUEUE": "comfyui"}))
    pairs, blocks = (200, 4) if on.quick else (2000, 12)
    ours, theirs = await measure(entrants, pairs=pairs, blocks=blocks, calls=400)
    return _added(ours, theirs, pairs)


def _added(ours: Side, theirs: Side, pairs: int) -> list[Row]:
    added = percentile(ours.latency_ms, 50) - percentile(theirs.latency_ms, 50)
    cpu = statistics.median(a - b for a, b in zip(ours.cpu_ms, theirs.cpu_ms, strict=True))
    return [
        Row(
            f"/prompt_sync, added by the gateway's queue, {pairs:,} pairs",
            f"{added:+.3f} ms at p50",
            "≤ 1 ms over ComfyUI's queue",
            added <= 1,
            f"median of the pairs {differences_ms(ours, theirs):+.3f} ms;"
            f" p95 {percentile(ours.latency_ms, 95):.2f}, ComfyUI's {percentile(theirs.latency_ms, 95):.2f} ms",
        ),
        Row(
            "the same, CPU of the gateway per prompt, 32 callers",
            f"{cpu:+.3f} ms",
            detail=f"{statistics.median(ours.cpu_ms):.2f}, ComfyUI's {statistics.median(theirs.cpu_ms):.2f} ms;"
            f" {statistics.median(ours.rates):.0f}, ComfyUI's {statistics.median(theirs.rates):.0f} prompts/s",
        ),
    ]


# A place among many


async def placing(on: Stage) -> list[Row]:
    """CPU of this process; it makes no requests to servers."""
    placings = 300 if on.quick else 3000
    mixes = ((1, 1, 1), (200, 20, 3), (10_000, 20, 3), (200, 1000, 10))
    rows = [_scheduled(*mix, placings) for mix in mixes]
    rows.append(await _turned(200, 20, 3, placings))
    return rows


def _scheduled(owners: int, shapes: int, priorities: int, placings: int) -> Row:
    """In each step, one job ends, one comes, and the next one is placed."""
    scheduler = Scheduler()
    names = [f"gpu-{index}" for index in range(_SERVERS)]
    for name in names:
        scheduler.set_server(name, up=True)
    jobs = _jobs(names, owners, shapes, priorities)
    for job in itertools.islice(jobs, _WAITING + 2 * _SERVERS):
        scheduler.add(job, _terms(job))
    on_servers: list[str] = []
    took = []
    for turn, job in enumerate(itertools.islice(jobs, placings + 2 * _SERVERS)):
        began = time.thread_time()
        scheduler.add(job, _terms(job))
        if turn >= 2 * _SERVERS:
            scheduler.left(on_servers.pop(0), 1.0 + turn % 7)
        decisions = scheduler.decide(float(turn))
        for decision in decisions:
            scheduler.accepted(decision.prompt_id)
        if turn >= 2 * _SERVERS:
            took.append((time.thread_time() - began) * 1000)
        on_servers += [decision.prompt_id for decision in decisions if isinstance(decision, Place)]
    if scheduler.waiting < _WAITING or not on_servers:
        raise BenchError(f"{scheduler.waiting} jobs waited at the end, and {len(on_servers)} were on servers")
    name = f"a place among {_WAITING:,}: {owners:,} owners, {shapes:,} shapes, {priorities} priorities"
    return _placing_row(name, took)


def _jobs(names: list[str], owners: int, shapes: int, priorities: int) -> Iterator[Waiting]:
    able = [names[: 1 + shape % len(names)] for shape in range(shapes)]
    lanes = [Lane(frozenset(some), frozenset(names) - frozenset(some)) for some in able]
    files = [frozenset({f"model-{shape}.safetensors"}) for shape in range(shapes)]
    for number in itertools.count(1):
        shape = number % shapes
        yield Waiting(
            f"00000000-0000-4000-8000-{number:012}",
            number,
            f"owner {number % owners}",
            priority=number % priorities,
            loaders=files[shape],
            shape=shape,
            lane=lanes[shape],
        )


def _terms(job: Waiting) -> Terms:
    return Terms(1.0 + job.number % 3, job.owner, 4)


def _placing_row(name: str, took: list[float]) -> Row:
    p95 = percentile(took, 95)
    return Row(name, f"p95 {p95:.3f} ms CPU", "≤ 1 ms", p95 <= 1, f"p50 {percentile(took, 50):.3f} ms")


async def _turned(owners: int, shapes: int, priorities: int, placings: int) -> Row:
    """Places jobs as the queue of async jobs does, which finds a workflow's needs in its nodes."""
    servers = tuple(_KnownServer(f"gpu-{index}", shapes) for index in range(_SERVERS))
    pool = SimpleNamespace(
        servers=servers,
        backends=servers,
        ready_servers=list(servers),
        news=asyncio.Event(),
        named={server.name: server for server in servers}.get,
    )
    turns = Turns(cast("BackendPool", pool), TurnOptions("gateway"), Catalogue(MemoryJournal(), InputStore(None)))
    turns.open()
    requests = [PromptRequest(prompt=_loading(f"model-{shape}.safetensors")) for shape in range(shapes)]
    took: list[float] = []

    async def come(number: int) -> None:
        needs = await turns.needs_of(requests[number % shapes], None, ())
        owner, priority = f"owner {number % owners}", number % priorities
        turns.expect(Waiting(str(number), turns.numbers.next(), owner, priority=priority), needs)

    for number in range(_WAITING + 2 * _SERVERS):
        await come(number)
    placed = [await turns.next_due() for _ in range(_SERVERS)]
    for number in range(placings):
        began = time.thread_time()
        await come(_WAITING + 2 * _SERVERS + number)
        turns.drop(placed.pop(0))
        placed.append(await turns.next_due())
        took.append((time.thread_time() - began) * 1000)
    await turns.close()
    name = f"the same with what the workflow needs: {owners:,} owners, {shapes:,} shapes, {priorities} priorities"
    return _placing_row(name, took)


class _KnownServer(Backend):
    """A server that is up, known, and has all models; it gets no requests."""

    def __init__(self, name: str, shapes: int) -> None:
        client = ComfyUIClient(f"http://{name}")
        super().__init__(client, CompletionWatcher(client), Metrics())
        models = [f"model-{shape}.safetensors" for shape in range(shapes)]
        self._known = {
            "CheckpointLoaderSimple": {"input": {"required": {"ckpt_name": [models]}}},
            **{kind: {"input": {"required": {}}} for kind in ("CLIPTextEncode", "KSampler", "VAEDecode", "SaveImage")},
        }

    @property
    def ready(self) -> bool:
        return True

    @property
    def is_cleared(self) -> bool:
        return True

    @property
    def last_definitions(self) -> JSON:
        return self._known

    async def object_info(self, **_: object) -> JSON:
        return self._known


def _loading(model: str) -> dict[str, Any]:
    """A usual workflow for a picture."""
    nodes = {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": model}},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"text": "a house by the sea", "clip": ["1", 1]}},
        "3": {"class_type": "CLIPTextEncode", "inputs": {"text": "blurred", "clip": ["1", 1]}},
        "4": {"class_type": "KSampler", "inputs": {"seed": 5, "steps": 20, "model": ["1", 0], "positive": ["2", 0]}},
        "5": {"class_type": "VAEDecode", "inputs": {"samples": ["4", 0], "vae": ["1", 2]}},
        "6": {"class_type": "SaveImage", "inputs": {"images": ["5", 0], "filename_prefix": "house"}},
    }
    return dict(nodes)


# The list of all


async def listing(on: Stage) -> list[Row]:
    """`GET /queue` while 10,000 prompts wait: its time, its memory, and the times of other requests."""
    count = 2000 if on.quick else _WAITING
    reads = 3 if on.quick else 5
    async with (
        running_gateway(on.engine, on.logs, QUEUE="gateway", MAX_QUEUED_JOBS=str(count + 2)) as gateway,
        pool_of(gateway) as pool,
    ):
        for _ in range(2):
            await submitted(pool, workflow(3600.0))
        await submission_rate(pool, count)
        alone = await _probed(pool, asyncio.create_task(asyncio.sleep(1.0)))
        gateway.forget_peak()
        before = gateway.rss_kb()
        took, probes, size = [], [], 0
        for _ in range(reads):
            began = time.perf_counter()
            reading = asyncio.create_task(pool.request("GET", "/queue"))
            probes += await _probed(pool, reading)
            took.append(time.perf_counter() - began)
            reply = reading.result()
            size = reply.size
            pending = len(orjson.loads(reply.body)["queue_pending"])
            if pending < count:
                raise BenchError(f"GET /queue has {pending} of {count} prompts that are pending")
        growth_mb = (gateway.peak_rss_kb() - before) / 1000
    return [
        Row(
            f"GET /queue of {count:,}, memory",
            f"{growth_mb:+.1f} MB at most",
            f"≤ {_LISTED_MB} MB",
            growth_mb <= _LISTED_MB,
            f"{size / 1e6:.1f} MB sent; VmRSS before {before / 1000:.1f} MB; {reads} times one after the other",
        ),
        Row(
            f"GET /queue of {count:,}, time",
            f"{statistics.median(took):.2f} s",
            detail=f"{min(took):.2f} to {max(took):.2f} s",
        ),
        Row(
            "the liveness probe meanwhile",
            f"p95 {percentile(probes, 95):.1f} ms",
            "≤ 50 ms",
            percentile(probes, 95) <= 50,
            f"at most {max(probes):.1f} ms; {len(probes)} answers; without a list p95 {percentile(alone, 95):.1f} ms",
        ),
    ]


async def _probed(pool: Pool, meanwhile: asyncio.Task[Any]) -> list[float]:
    """Milliseconds of the liveness probes while `meanwhile` runs."""
    took = []
    while not meanwhile.done():
        began = time.perf_counter()
        await pool.request("GET", "/health/live")
        took.append((time.perf_counter() - began) * 1000)
        await asyncio.sleep(0.002)
    await meanwhile
    return took
