"""What the journal of jobs costs by itself, with an empty file and with 100,000 jobs."""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from uuid import UUID

from benchmarks.stage import Row, Stage
from comfyui.jobs.journal.records import Fence, JobFilter, NewJob, State
from comfyui.jobs.journal.sqlite import SqliteJournal
from comfyui.jobs.journal.writes import Add, Finish, Place, Start
from comfyui.jobs.stored import result_to_bytes
from comfyui.models import PromptResult, Timings
from comfyui.outputs.history import files_of

JOBS = 100_000
_CALLERS = 32
_OWNERS = 20
_PICTURES = [{"filename": f"ComfyUI_{number:05d}_.png", "subfolder": "", "type": "output"} for number in range(4)]
_OUTPUTS = {"9": {"images": _PICTURES}}
_RESULT = result_to_bytes(PromptResult("", "gpu-1", _OUTPUTS, files_of(_OUTPUTS), Timings(executing_s=9.0)))
_ENDS = (State.SUCCEEDED,) * 8 + (State.FAILED, State.CANCELED)


def _body(number: int) -> bytes:
    """A workflow of 6.5 KB, a usual size; every second one is new."""
    node = '"%d": {"class_type": "KSampler", "inputs": {"seed": %d, "steps": 20, "cfg": 7.5, "model": ["%d", 0]}}'
    nodes = ", ".join(node % (one, number // 2 * 31 + one, one - 1) for one in range(75))
    return f'{{"prompt": {{{nodes}}}}}'.encode()


def _job(number: int, *, anonymous: bool = False) -> NewJob:
    return NewJob(
        prompt_id=str(UUID(int=number * 0x9E3779B97F4A7C15F39CC0605CEDC835 & (1 << 128) - 1)),
        kind="sync" if anonymous else "async",
        callers_id=not anonymous,
        created_at=1_700_000_000.0 + number,
        fingerprint=f"{number:064x}",
        owner=None if anonymous else f"owner-{number % _OWNERS}",
        face="prompt_sync",
        workflow_name=None if anonymous else f"workflow-{number % 50}",
        labels={} if anonymous else {"project": f"p{number % 200}", "every": "one"},
        body=_body(number),
    )


def _finish(job: NewJob, number: int, attempt: int) -> Finish:
    state = _ENDS[number % len(_ENDS)]
    return Finish(fence=Fence(job.prompt_id, 1, attempt), state=state, at=job.created_at + 9.0, result=_RESULT)


async def journal(on: Stage) -> list[Row]:
    """All rows; takes about ten seconds, or two with `--quick`."""
    quick = on.quick
    jobs = JOBS // 10 if quick else JOBS
    with tempfile.TemporaryDirectory() as folder:
        rows = await _writes(Path(folder) / "writes", 500 if quick else 5000)
        rows += await _loop_cost(Path(folder) / "behind", 500 if quick else 5000)
        rows += await _many(Path(folder) / "many", jobs)
    return rows


async def _writes(folder: Path, each: int) -> list[Row]:
    async with SqliteJournal(folder) as journal:
        alone: list[float] = []
        for number in range(min(each, 1000)):
            job = _job(number)
            began = time.perf_counter()
            await journal.write(Add(job))
            alone.append((time.perf_counter() - began) * 1000)
        jobs = iter([_job(number) for number in range(each, each * 3)])

        async def caller() -> None:
            for job in jobs:
                await journal.write(Add(job))

        began = time.perf_counter()
        await asyncio.gather(*(caller() for _ in range(_CALLERS)))
        seconds = time.perf_counter() - began
    return [
        Row("journal: one job, committed", f"{statistics.median(alone):.2f} ms", detail=f"p95 {_p95(alone):.2f} ms"),
        Row(
            f"journal: jobs committed by {_CALLERS} callers",
            f"{each * 2 / seconds:,.0f}/s",
            ">= 400/s",
            each * 2 / seconds >= 400,
        ),
    ]


async def _loop_cost(folder: Path, count: int) -> list[Row]:
    """CPU of the event loop's thread and of the whole process, for a sync call whose id the gateway makes."""
    jobs = [_job(number, anonymous=True) for number in range(count)]
    async with SqliteJournal(folder) as journal:
        process, thread = time.process_time(), time.thread_time()
        pair = 0.0
        for number, job in enumerate(jobs):
            fence = Fence(job.prompt_id, 1, 1)
            before = time.thread_time()
            journal.write_behind(Add(job))
            end = _finish(job, number, 1)
            journal.write_behind(end)
            pair += time.thread_time() - before
            journal.write_behind(Place(fence, "gpu-1"))
            journal.write_behind(Start(fence, job.created_at))
            if number % 20 == 19:
                await journal.get(job.prompt_id)
        await journal.get(jobs[-1].prompt_id)
        loop_ms = (time.thread_time() - thread) / count * 1000
        all_ms = (time.process_time() - process) / count * 1000
    return [
        Row(
            "journal: add and finish behind, CPU on the loop",
            f"{pair / count * 1000:.3f} ms",
            "<= 0.1 ms",
            pair / count <= 1e-4,
        ),
        Row(
            "journal: a sync call, CPU",
            f"{all_ms:.3f} ms",
            "<= 0.15 ms",
            all_ms <= 0.15,
            f"on the loop {loop_ms:.3f} ms",
        ),
    ]


async def fill(journal: SqliteJournal, count: int, *, unfinished: int = 1000) -> None:
    """Writes `count` jobs, all ended except the last `unfinished`."""
    for start in range(0, count, 1000):
        writes: list[Add | Finish] = []
        for number in range(start, min(start + 1000, count)):
            job = _job(number)
            writes.append(Add(job))
            if number < count - unfinished:
                writes.append(_finish(job, number, 0))
        await asyncio.gather(*(journal.write(write) for write in writes))


async def _many(folder: Path, count: int) -> list[Row]:
    began = time.perf_counter()
    async with SqliteJournal(folder.with_name("empty")):
        empty_s = time.perf_counter() - began
    async with SqliteJournal(folder) as journal:
        await fill(journal, count)
    size = _size_of(folder)
    began = time.perf_counter()
    async with SqliteJournal(folder) as journal:
        open_s = time.perf_counter() - began - empty_s
        rows = [
            Row(f"journal: open with {count:,} jobs", f"{open_s:.3f} s more", "<= 0.3 s", open_s <= 0.3),
            Row(
                f"journal: {count:,} jobs, each",
                f"{size / count:,.0f} bytes",
                detail=f"{size >> 20} MB",
            ),
        ]
        rows += [await _page(journal, name, narrowed) for name, narrowed in _filters()]
        for name, question in (("counts", journal.counts), ("oldest waiting", journal.oldest_waiting)):
            began = time.perf_counter()
            await question()
            rows.append(Row(f"journal: {name}", f"{(time.perf_counter() - began) * 1000:.2f} ms"))
        began = time.perf_counter()
        removed = await journal.prune(1e12, keep_days=None, keep=count // 2)
        rows.append(Row(f"journal: remove {removed:,} jobs", f"{time.perf_counter() - began:.2f} s"))
    return rows


def _filters() -> Iterable[tuple[str, JobFilter]]:
    failed = frozenset({State.FAILED})
    yield "no filter", JobFilter()
    yield "state", JobFilter(states=failed)
    yield "states", JobFilter(states=frozenset({State.FAILED, State.SUCCEEDED}))
    yield "owner", JobFilter(owner="owner-3")
    yield "workflow", JobFilter(workflow_name="workflow-8")
    yield "rare label", JobFilter(labels={"project": "p18"})
    yield "common label", JobFilter(labels={"every": "one"})
    yield "all", JobFilter(owner="owner-8", states=failed, workflow_name="workflow-8", labels={"every": "one"})
    yield "nothing fits", JobFilter(states=failed, labels={"every": "one"}, owner="owner-3")


async def _page(journal: SqliteJournal, name: str, narrowed: JobFilter) -> Row:
    took: list[float] = []
    cursor = None
    found = 0
    for _ in range(100):
        began = time.perf_counter()
        page = await journal.page(narrowed, 50, cursor)
        took.append((time.perf_counter() - began) * 1000)
        found += len(page.records)
        cursor = page.next_cursor
    p95 = _p95(took)
    detail = f"p50 {statistics.median(took):.2f} ms, {found:,} jobs"
    return Row(f"journal: a page of 50, {name}", f"p95 {p95:.2f} ms", "<= 10 ms", p95 <= 10, detail)


def _size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def _p95(took: list[float]) -> float:
    return statistics.quantiles(took, n=20)[-1]
