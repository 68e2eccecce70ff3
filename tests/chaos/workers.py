"""``python -m tests.chaos.workers``: ComfyUI crashes 1 to 6 times in a row at every stage, under each kind of worker.

Promises, checked for each run: the job ends within its time; it is done, or has failed with a reason; ComfyUI began to
run it no more often than the one budget says. Exit status 1 when one is broken. The short form runs in the suite.
LittleHorse's worker starts no ComfyUI of its own: a supervisor, here the chaos, starts it again.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from comfyui.exceptions import ComfyUIError
from comfyui.models import PromptRequest
from comfyui.process import ComfyUIProcess
from comfyui.workers.base import ComfyUIWorker, WorkerOptions
from tests.running import invert_workflow
from tests.workers.job_api import free_port

STAGES: dict[str, dict[str, Any]] = {
    "starting": {"at": "start"},
    "staging": {"route": "/upload/image"},
    "queued": {"route": "/prompt", "method": "POST"},
    "running": {"class_type": "ImageInvert"},
    "collecting": {"route": "/history/*", "method": "GET"},
}
PICTURE = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
BUDGET = 2
"""Renders that LOST_PROMPT_RETRIES=1 allows."""


@dataclass(frozen=True)
class Ended:
    """How one job ended: "done" or the error's type; `renders` is how often ComfyUI began to run it."""

    platform: str
    stage: str
    crashes: int
    outcome: str
    renders: int
    seconds: float

    @property
    def is_right(self) -> bool:
        return self.outcome not in {"", "hung"} and self.renders <= BUDGET


def engine_command(port: int, folder: Path, stage: str, crashes: int) -> tuple[str, ...]:
    """An engine that crashes so often at this stage, counted over its starts, and writes down each prompt it begins."""
    faults = folder / "faults.json"
    if not faults.exists():
        faults.write_text(json.dumps({"segfault": {**STAGES[stage], "times": crashes}}))
    return (
        *(sys.executable, "-m", "comfyui.engine", "--port", str(port), "--step-seconds", "0.002"),
        *("--faults-file", str(faults), "--base-directory", str(folder / "engine")),
        *("--executions-file", str(folder / "executions")),
    )


def renders(folder: Path) -> int:
    path = folder / "executions"
    return len(path.read_text().splitlines()) if path.exists() else 0


def request() -> PromptRequest:
    images = [{"name": "a.png", "image": PICTURE}]
    return PromptRequest.model_validate({"prompt": invert_workflow(3), "prompt_id": str(uuid4()), "images": images})


@asynccontextmanager
async def own_child(folder: Path, stage: str, crashes: int) -> AsyncIterator[ComfyUIWorker]:
    """As RunPod's and Postgres' workers have it: ComfyUI is the worker's child."""
    port = free_port()
    command = engine_command(port, folder, stage, crashes)
    async with ComfyUIWorker(WorkerOptions(f"127.0.0.1:{port}", command, http_retries=0)) as worker:
        yield worker


@asynccontextmanager
async def supervised(folder: Path, stage: str, crashes: int) -> AsyncIterator[ComfyUIWorker]:
    """As LittleHorse's worker has it: something else starts ComfyUI again."""
    port = free_port()
    command = engine_command(port, folder, stage, crashes)
    process = ComfyUIProcess(command, f"127.0.0.1:{port}", max_crashes=20)
    async with process, ComfyUIWorker(WorkerOptions(f"127.0.0.1:{port}", http_retries=0)) as worker:
        yield worker


HOSTS = {"own child": own_child, "supervised": supervised}


async def one(host: str, stage: str, crashes: int, *, within_s: float = 60.0) -> Ended:
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        outcome = "hung"
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s), HOSTS[host](folder, stage, crashes) as worker:
                try:
                    outcome = "done" if (await worker.run(request())).files else "no files"
                except ComfyUIError as error:
                    outcome = error.code
        return Ended(host, stage, crashes, outcome, renders(folder), time.monotonic() - started)


async def all_of(platforms: Sequence[str], most: int) -> list[Ended]:
    ended = []
    for platform in platforms:
        for stage in STAGES:
            for crashes in range(1, most + 1):
                ended.append(await one(platform, stage, crashes))
                last = ended[-1]
                print(
                    f"{platform:10} {stage:10} {crashes} crashes: {last.outcome:20} {last.renders} renders"
                    f" {last.seconds:5.1f} s{'' if last.is_right else '  <-- wrong'}",
                    flush=True,
                )
    return ended


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--crashes", type=int, default=6, help="at most so many in a row (%(default)s)")
    arguments = parser.parse_args()
    ended = asyncio.run(all_of(list(HOSTS), arguments.crashes))
    wrong = [each for each in ended if not each.is_right]
    print(f"{len(ended)} jobs, {sum(each.outcome == 'done' for each in ended)} done, {len(wrong)} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
