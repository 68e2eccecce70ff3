"""``python -m tests.chaos.workers``: ComfyUI crashes 1 to 6 times in a row at every stage, on each job platform.

Promises, checked for each run: the job ends within its time; it is done or has failed with a reason; ComfyUI began to
run it no more often than the budget allows. Exit status 1 if a promise is broken. The suite runs the short form.
The SDKs of RunPod and LittleHorse are in virtual environments of their own: choose with ``--platform``. LittleHorse's
worker starts no ComfyUI: a supervisor restarts it, here the test itself.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from tests.chaos.crashing import STAGES, renders
from tests.chaos.platforms import PLATFORMS

BUDGET = 2
"""Renders that LOST_PROMPT_RETRIES=1 allows."""


@dataclass(frozen=True)
class Ended:
    """How one job ended: "done" or the type of error; `renders` is how often ComfyUI began to run it."""

    platform: str
    stage: str
    crashes: int
    outcome: str
    renders: int
    seconds: float

    @property
    def is_right(self) -> bool:
        lost = self.outcome in {"", "hung", "no files"} or (self.outcome == "done" and not self.renders)
        return not lost and self.renders <= BUDGET


async def one(platform: str, stage: str, crashes: int, *, within_s: float = 120.0) -> Ended:
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        outcome = "hung"
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                outcome = await PLATFORMS[platform](folder, stage, crashes)
        return Ended(platform, stage, crashes, outcome, renders(folder), time.monotonic() - started)


async def all_of(platforms: Sequence[str], most: int) -> list[Ended]:
    ended = []
    for platform in platforms:
        for stage in STAGES:
            for crashes in range(1, most + 1):
                last = await one(platform, stage, crashes)
                ended.append(last)
                print(
                    f"{platform:11} {stage:10} {crashes} crashes: {last.outcome:28} {last.renders} renders"
                    f" {last.seconds:5.1f} s{'' if last.is_right else '  <-- wrong'}",
                    flush=True,
                )
    return ended


def table(ended: Sequence[Ended], most: int) -> str:
    """A row for each platform and stage, a column for each number of crashes: + or -, and the renders."""
    lines = [f"{'':22} {' '.join(f'{crashes:>4}' for crashes in range(1, most + 1))}  crashes in a row"]
    for platform in dict.fromkeys(each.platform for each in ended):
        for stage in STAGES:
            cells = [
                f"{'+' if each.outcome == 'done' else '-'}{each.renders}{'' if each.is_right else '!'}"
                for each in ended
                if (each.platform, each.stage) == (platform, stage)
            ]
            lines.append(f"{platform:11} {stage:10} {' '.join(f'{cell:>4}' for cell in cells)}")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--crashes", type=int, default=6, help="largest number of crashes in a row (%(default)s)")
    said = "may be repeated; without it, the platforms that need no SDK"
    parser.add_argument("--platform", action="append", choices=list(PLATFORMS), help=said)
    parser.add_argument("--log", action="store_true", help="show the log lines of this process")
    arguments = parser.parse_args()
    if not arguments.log:
        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    platforms = arguments.platform or ["own child", "supervised", "postgres"]
    ended = asyncio.run(all_of(platforms, arguments.crashes))
    wrong = [each for each in ended if not each.is_right]
    print(f"\n{table(ended, arguments.crashes)}")
    print(f"+ done, - failed with a reason; the number is that of renders, of which {BUDGET} are allowed")
    print(f"{len(ended)} jobs, {sum(each.outcome == 'done' for each in ended)} done, {len(wrong)} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
