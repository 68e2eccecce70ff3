"""The journal's process is killed 50 times at random moments: every acknowledged write stays in an intact file."""

from __future__ import annotations

import asyncio
import os
import random
import sqlite3
from pathlib import Path

import pytest

from comfyui.jobs.journal.records import Fence, JobRecord, State
from comfyui.jobs.journal.sqlite import FILE_NAME, SqliteJournal
from comfyui.jobs.journal.writes import Add, Again, Cancel, Finish, Place, Start, Write
from tests.chaos.kills.processes import Killable
from tests.support.journals import new_job, prompt_id
from tests.support.running import until

KILLS = 50
_AT_ONCE = 4


def life_of(number: int) -> list[Write]:
    """All writes of one job's life, in their order."""
    name = prompt_id(number)
    first, second = Fence(name, 1, 1), Fence(name, 2, 1)
    return [
        Add(new_job(number, labels={"n": str(number)})),
        Place(first, "gpu-1"),
        Start(first, 1.0),
        Place(first.next(), "gpu-2"),
        Cancel(name, 1),
        Finish(fence=first.next(), state=State.CANCELED, at=2.0, error={"type": "task_cancelled"}),
        Again(name, 1, "async", 3.0),
        Place(second, "gpu-1"),
        Start(second, 4.0),
        Finish(fence=second, state=State.SUCCEEDED, at=5.0, result=b"{}"),
    ]


def writes_behind(record: JobRecord | None) -> int:
    """The largest number of writes from `life_of` that can lead to this record."""
    if record is None:
        return 0
    if record.run == 2:
        return {State.QUEUED: 8 if record.server else 7, State.RUNNING: 9, State.SUCCEEDED: 10}[record.state]
    if record.state is State.RUNNING:
        return 3 if record.begun else 4
    return {State.QUEUED: 2 if record.server else 1, State.CANCELING: 5, State.CANCELED: 6}[record.state]


def write_lives(folder: str, first: int) -> None:
    """Writes lives of jobs until it is killed; after each write it notes the job and the number of its writes."""
    told = os.open(Path(folder, "told"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    async def one_after_the_other(journal: SqliteJournal, number: int) -> None:
        while True:
            for count, write in enumerate(life_of(number), start=1):
                assert await journal.write(write), write
                os.write(told, f"{number} {count}\n".encode())
            number += _AT_ONCE

    async def main() -> None:
        async with SqliteJournal(Path(folder), lock_wait_s=30) as journal:
            await asyncio.gather(*(one_after_the_other(journal, first + offset) for offset in range(_AT_ONCE)))

    asyncio.run(main())


def acknowledged(folder: Path) -> dict[int, int]:
    """The number of acknowledged writes of each job."""
    path = folder / "told"
    lines = path.read_text().splitlines() if path.exists() else []
    return {int(number): int(count) for number, count in (line.split() for line in lines)}


@pytest.mark.timeout(300)  # each write waits for the disk
async def test_fifty_kills_lose_no_acknowledged_write(tmp_path: Path) -> None:
    chance = random.Random(18)  # noqa: S311 - reproducible, not secret
    for round_ in range(KILLS):
        before = sum(acknowledged(tmp_path).values())
        wanted = chance.randint(1, 8)

        async def grown(before: int = before) -> int:
            return sum(acknowledged(tmp_path).values()) - before

        process = Killable(write_lives, str(tmp_path), 1 + round_ * 10_000)
        await process.start()
        await until(grown, lambda more, wanted=wanted: more >= wanted, timeout_s=30)  # type: ignore[misc]
        await process.kill()
    told = acknowledged(tmp_path)
    async with SqliteJournal(tmp_path) as journal:
        for number, count in told.items():
            assert writes_behind(await journal.get(prompt_id(number))) >= count, number
        assert sum((await journal.counts()).values()) >= len(told)
    with sqlite3.connect(tmp_path / FILE_NAME) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    database.close()
