"""The command line: `python -m benchmarks --help`."""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import os
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

import uvloop
from rich.console import Console
from rich.table import Table

from benchmarks import (
    bombs,
    console,
    cost,
    fleet,
    jobs,
    journal,
    mcp,
    memory,
    merged,
    named,
    prompts,
    scaling,
    speed,
    turns,
    v2,
)
from benchmarks.processes import ROOT, BenchError
from benchmarks.stage import Row, Stage, stage

_FIGURES: dict[str, Callable[[Stage], Awaitable[list[Row]]]] = {
    "latency": speed.latency,
    "throughput": speed.throughput,
    "requests": cost.requests,
    "waiting": memory.waiting_callers,
    "file": memory.large_file,
    "rush": memory.rush,
    "start": memory.start,
    "queue": cost.queue_length,
    "bombs": bombs.bombs,
    "journal": journal.journal,
    "journal-cost": jobs.journal_cost,
    "submissions": jobs.submissions,
    "waiting-jobs": jobs.waiting_jobs,
    "many-jobs": jobs.many_jobs,
    "turns": turns.added_by_turns,
    "placing": turns.placing,
    "listing": turns.listing,
    "six": fleet.six_prompts,
    "cancel": fleet.cancels,
    "fairness": fleet.fairness,
    "scaling": scaling.scaling,
    "frames": merged.frames,
    "merged-file": merged.merged_file,
    "v2": v2.beside_the_proxy,
    "v2-listing": v2.listing,
    "prompts": prompts.added_by_the_queue,
    "binding": named.binding,
    "named-start": named.starting,
    "named-document": named.document,
    "mcp": mcp.tools,
    "console": console.page,
    "open-consoles": console.open_consoles,
}
_RELAY = "relay"
_LOG_LINES = 15
_LINE = 500


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="fewer calls, for a first look and not for figures to keep"
    )
    parser.add_argument(
        "--only", action="append", choices=[*_FIGURES, _RELAY], help="measure only this figure; may be repeated"
    )
    arguments = parser.parse_args()
    console = Console(width=max(120, Console().width))
    console.print(_load())
    return uvloop.run(_run(arguments.only or [*_FIGURES, _RELAY], console, quick=arguments.quick))


async def _run(names: list[str], console: Console, *, quick: bool) -> int:
    table = Table("figure", "measured", "target", "", "detail", title="gateway, engine and load client on one machine")
    failed = False
    for name in names:
        if name == _RELAY:
            continue
        with tempfile.TemporaryDirectory() as folder, console.status(f"{name} …"):
            try:
                async with stage(Path(folder), quick=quick) as on:
                    rows = await _FIGURES[name](on)
            except* (BenchError, OSError, TimeoutError) as errors:
                failed = True
                rows = [Row(name, "failed", detail=str(errors.exceptions[0]))]
                _print_logs(Path(folder))
        for row in rows:
            table.add_row(row.figure, row.measured, row.target, _mark(row), row.detail)
            console.print(f"{row.figure}: {row.measured}")
    if table.rows:
        console.print(table)
    console.print(_load())
    if _RELAY in names and importlib.util.find_spec("benchmarks.relay") is not None:
        failed |= await _relay(quick=quick)
    return 1 if failed else 0


async def _relay(*, quick: bool) -> bool:
    """Measures the relay's own figures; returns whether that failed."""
    arguments = ["-m", "benchmarks.relay", *(["--quick"] if quick else [])]
    process = await asyncio.create_subprocess_exec(sys.executable, *arguments, cwd=ROOT)
    return await process.wait() != 0


def _mark(row: Row) -> str:
    return {None: "", True: "[green]met", False: "[red]missed"}[row.met]


def _load() -> str:
    one, five, fifteen = os.getloadavg()
    return (
        f"{os.cpu_count()} cores, load {one:.2f} {five:.2f} {fifteen:.2f} (1, 5, 15 minutes; 0 when nothing else runs)"
    )


def _print_logs(folder: Path) -> None:
    for log in sorted(path for path in folder.iterdir() if path.is_file()):
        lines = [line[:_LINE] for line in log.read_text(errors="replace").splitlines()[-_LOG_LINES:]]
        print(f"--- {log.name}, last lines:", *lines, sep="\n")


if __name__ == "__main__":
    sys.exit(main())
