"""The journal's file after a kill, on a full disk, beside another process and with another version."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import structlog

from comfyui.exceptions import JournalError
from comfyui.jobs.journal.made import MadeFilter
from comfyui.jobs.journal.records import Fence, JobFilter, State
from comfyui.jobs.journal.schema import MIGRATIONS
from comfyui.jobs.journal.sqlite import FILE_NAME, SqliteJournal
from comfyui.jobs.journal.statements import Statements
from comfyui.jobs.journal.usage_records import UsageQuery
from comfyui.jobs.journal.writes import Add, Again, Finish, MadeFile, Pause, Place, Start
from comfyui.jobs.measures import JournalMeasures
from comfyui.metrics import Metrics
from tests.support.journals import delivery, end, new_job, prompt_id, run

_ROOT = Path(__file__).parents[3]

# Prints the number of each acknowledged job until it is killed.
_WRITER = """
import asyncio, sys
from pathlib import Path
from comfyui.jobs.journal.sqlite import SqliteJournal
from comfyui.jobs.journal.writes import Add
from tests.support.journals import new_job

async def write(journal, start):
    for number in range(start, 1_000_000, 8):
        assert await journal.write(Add(new_job(number, labels={"n": str(number)})))
        print(number, flush=True)

async def main():
    async with SqliteJournal(Path(sys.argv[1]), lock_wait_s=30) as journal:
        first = int(sys.argv[2])
        await asyncio.gather(*(write(journal, first + offset) for offset in range(8)))

asyncio.run(main())
"""
# Opens the journal, prints "open", and holds the journal until its standard input ends.
_HOLDER = """
import asyncio, sys
from pathlib import Path
from comfyui.jobs.journal.sqlite import SqliteJournal

async def main():
    async with SqliteJournal(Path(sys.argv[1])):
        print("open", flush=True)
        await asyncio.to_thread(sys.stdin.read)

asyncio.run(main())
"""


def started(program: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        cwd=_ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


async def read_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return await asyncio.to_thread(process.stdout.readline)


async def problem_of(journal: SqliteJournal) -> str:
    """Waits until the journal reports a problem, and returns the problem."""
    while not (problem := journal.problem):
        await asyncio.sleep(0.01)
    return problem


async def with_connection(journal: SqliteJournal, work: Callable[[sqlite3.Connection], Any]) -> None:
    """Runs `work` on the journal's own connection, for example to imitate a fault of the disk."""
    await journal._ask(lambda sql: work(sql.database))


async def test_a_journal_that_is_opened_again_has_all_its_records(tmp_path: Path) -> None:
    async with SqliteJournal(tmp_path) as journal:
        fence = await run(journal, 1, at=2.0)
        await journal.write(Finish(fence=fence, state=State.LOST, at=3.0, deliveries=(delivery("d"),)))
        before = (await journal.page(JobFilter(), 50), await journal.deliveries(fence.prompt_id))
        journal.write_behind(Add(new_job(2)))
    async with SqliteJournal(tmp_path) as journal:
        second = await journal.get(prompt_id(2))
        assert second is not None, "closing commits pending writes"
        assert second.number == before[0].records[0].number + 2, "the counter continues"
        assert (await journal.deliveries(fence.prompt_id)) == before[1]
        assert (await journal.page(JobFilter(), 50)).records[1] == before[0].records[0]


async def test_a_kill_loses_no_job_that_was_acknowledged(tmp_path: Path) -> None:
    told: list[int] = []
    for round_ in range(3):
        process = started(_WRITER, str(tmp_path), str(1 + round_ * 100_000))
        told += [int(await read_line(process)) for _ in range(50 * (round_ + 1))]
        process.send_signal(signal.SIGKILL)
        # These lines are read before `communicate`, which skips what `readline` has buffered.
        while (line := await read_line(process)).endswith("\n"):
            told.append(int(line))
        await asyncio.to_thread(process.communicate)
    async with SqliteJournal(tmp_path) as journal:
        for number in told:
            assert await journal.get(prompt_id(number)) is not None, number
            page = await journal.page(JobFilter(labels={"n": str(number)}), 2)
            assert len(page.records) == 1
        await with_connection(journal, _assert_sound)


def _assert_sound(database: sqlite3.Connection) -> None:
    assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


async def test_only_its_user_may_read_the_journal(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "state"
    mask = os.umask(0)
    try:
        async with SqliteJournal(folder) as journal:
            await journal.write(Add(new_job(1)))
            modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    finally:
        os.umask(mask)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert modes.pop(FILE_NAME) == 0o600
    assert set(modes.values()) <= {0o600}


async def test_a_second_process_waits_for_the_first_one_to_end(tmp_path: Path) -> None:
    holder = started(_HOLDER, str(tmp_path))
    assert await read_line(holder) == "open\n"
    waiting = SqliteJournal(tmp_path, lock_wait_s=30.0)
    opening = asyncio.create_task(waiting.__aenter__())
    assert await problem_of(waiting) == "another process already uses the journal in STATE_DIR"
    await asyncio.to_thread(holder.communicate)
    await opening
    assert not waiting.problem
    assert await waiting.write(Add(new_job(1)))
    await waiting.__aexit__()


async def test_a_locked_journal_fails_the_start_after_the_lock_wait(tmp_path: Path) -> None:
    async with SqliteJournal(tmp_path) as journal:
        with pytest.raises(JournalError, match="STATE_DIR: another process already uses the journal") as refused:
            await SqliteJournal(tmp_path, lock_wait_s=0.05).__aenter__()
        assert (refused.value.status, refused.value.retryable) == (503, True)
        assert await journal.write(Add(new_job(1))), "the journal has kept its own lock"
        other = started(_HOLDER, str(tmp_path))
        assert await read_line(other) == "", "the lock still keeps other processes out"
        await asyncio.to_thread(other.communicate)


async def test_a_start_that_is_cancelled_during_its_wait_leaves_the_file_alone(tmp_path: Path) -> None:
    async with SqliteJournal(tmp_path) as journal:
        waiting = SqliteJournal(tmp_path, lock_wait_s=60.0)
        opening = asyncio.create_task(waiting.__aenter__())
        assert await problem_of(waiting)
        opening.cancel()
        await asyncio.gather(opening, return_exceptions=True)
        assert opening.cancelled()
        assert await journal.write(Add(new_job(1)))
    async with SqliteJournal(tmp_path, lock_wait_s=5.0) as journal:
        assert await journal.get(prompt_id(1)) is not None


async def test_a_newer_file_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    async with SqliteJournal(tmp_path) as journal:
        await journal.write(Add(new_job(1)))
        await with_connection(journal, lambda database: database.execute("PRAGMA user_version = 99"))
    with pytest.raises(JournalError, match=r"STATE_DIR: .* newer version of the gateway \(its schema is 99"):
        await SqliteJournal(tmp_path).__aenter__()
    with sqlite3.connect(tmp_path / FILE_NAME) as database:
        assert database.execute("PRAGMA user_version").fetchone() == (99,)
        assert database.execute("SELECT COUNT(*) FROM jobs").fetchone() == (1,)
    database.close()


async def test_a_migration_that_fails_halfway_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with SqliteJournal(tmp_path) as journal:
        await journal.write(Add(new_job(1)))
    broken = "ALTER TABLE jobs ADD COLUMN more TEXT;\nALTER TABLE missing ADD COLUMN more TEXT;\n"
    monkeypatch.setattr("comfyui.jobs.journal.schema.MIGRATIONS", (*MIGRATIONS, broken))
    with pytest.raises(JournalError, match="STATE_DIR"):
        await SqliteJournal(tmp_path).__aenter__()
    whole = "ALTER TABLE jobs ADD COLUMN more TEXT;\n"
    monkeypatch.setattr("comfyui.jobs.journal.schema.MIGRATIONS", (*MIGRATIONS, whole))
    async with SqliteJournal(tmp_path) as journal:
        assert await journal.get(prompt_id(1)) is not None
        await with_connection(journal, lambda database: database.execute("SELECT more FROM jobs"))


async def test_a_file_of_the_first_version_keeps_its_jobs_and_their_order(tmp_path: Path) -> None:
    database = sqlite3.connect(tmp_path / FILE_NAME, isolation_level=None)
    database.executescript(f"{MIGRATIONS[0]} PRAGMA user_version = 1;")
    # The body `null` of the second job stands for a body that is not kept.
    database.execute("INSERT INTO bodies (id, sha256, data) VALUES (1, x'00', CAST('{}' AS BLOB))")
    database.execute("INSERT INTO bodies (id, sha256, data) VALUES (2, x'01', CAST('null' AS BLOB))")
    for number in (1, 2):
        database.execute(
            "INSERT INTO jobs (seq, prompt_id, kind, callers_id, created_at, face, needs_secrets, priority, body_id,"
            " run, state, attempt, losses, number, queued_at, retryable)"
            " VALUES (?, ?, 'async', 0, ?, '', 0, 0, ?, 1, 'queued', 0, 0, ?, ?, 0)",
            (number, prompt_id(number), number, number, number, number),
        )
    database.execute("UPDATE counter SET value = 2")
    database.close()
    async with SqliteJournal(tmp_path) as journal:
        assert [record.created_at for record in await journal.waiting(0, 10)] == [1, 2]
        assert [await journal.body_of(prompt_id(number)) for number in (1, 2)] == [b"{}", None]
        assert await journal.write(Add(new_job(3, inputs={"images[0].image": ""})))
        assert [record.number for record in await journal.fetching(0, 10)] == [3]
        assert [record.created_at for record in await journal.waiting(0, 10)] == [1, 2]


async def test_a_pending_job_and_its_end_are_one_write(tmp_path: Path) -> None:
    metrics = Metrics()
    async with SqliteJournal(tmp_path, observer=JournalMeasures(metrics)) as journal:
        for number in range(1, 11):
            journal.write_behind(Add(new_job(number), "gpu-1"), soon=False)
            fence = Fence(prompt_id(number), 1, 1)
            journal.write_behind(Finish(fence=fence, state=State.SUCCEEDED, at=9.0), soon=False)
        assert (await journal.counts())[State.SUCCEEDED] == 10
        assert metrics.journal_writes.labels("kept")._value.get() == 10


async def test_a_pending_job_its_placement_and_its_end_are_one_write(tmp_path: Path) -> None:
    metrics = Metrics()
    async with SqliteJournal(tmp_path, observer=JournalMeasures(metrics)) as journal:
        for number in range(1, 11):
            journal.write_behind(Add(new_job(number)), soon=False)
        for number in range(1, 11):
            fence = Fence(prompt_id(number), 1, 1)
            journal.write_behind(Place(fence, "gpu-1"), soon=False)
            journal.write_behind(Finish(fence=fence, state=State.SUCCEEDED, at=9.0), soon=False)
        ended = (await journal.page(JobFilter(), 50)).records
        assert {(record.state, record.server, record.fence.attempt) for record in ended} == {
            (State.SUCCEEDED, "gpu-1", 1)
        }
        assert metrics.journal_writes.labels("kept")._value.get() == 10


async def test_the_identity_belongs_to_the_file(tmp_path: Path) -> None:
    identities = []
    for folder in ("a", "a", "b"):
        async with SqliteJournal(tmp_path / folder) as journal:
            identities.append(journal.identity)
    assert identities[0] == identities[1] != identities[2]


async def test_a_refused_duplicate_leaves_no_body(tmp_path: Path) -> None:
    async with SqliteJournal(tmp_path) as journal:
        assert await journal.write(Add(new_job(1)))
        assert not await journal.write(Add(new_job(1, body=b"another")))
        assert await journal.write(Add(new_job(2)))
        assert [job.seq for job in (await journal.page(JobFilter(), 50)).records] == [2, 1]
    with closing(sqlite3.connect(tmp_path / FILE_NAME)) as database:
        assert database.execute("SELECT data FROM bodies").fetchall() == [(new_job(1).body,)]


@pytest.mark.parametrize("version", range(1, len(MIGRATIONS)))
async def test_a_file_of_each_earlier_version_learns_of_pauses_owners_and_usage(tmp_path: Path, version: int) -> None:
    database = sqlite3.connect(tmp_path / FILE_NAME, isolation_level=None)
    database.executescript("".join(MIGRATIONS[:version]) + f"PRAGMA user_version = {version};")
    database.execute("INSERT INTO bodies (id, sha256, data) VALUES (1, x'00', '{}')")
    database.execute(
        "INSERT INTO jobs (seq, prompt_id, kind, callers_id, created_at, face, needs_secrets, priority, body_id,"
        " run, state, attempt, losses, number, queued_at, retryable, owner)"
        " VALUES (1, ?, 'async', 0, 1, '', 0, 0, 1, 1, 'queued', 0, 0, 1, 1, 0, 'alice/eve')",
        (prompt_id(1),),
    )
    database.execute("UPDATE counter SET value = 1")
    database.close()
    for paused in (False, True):
        async with SqliteJournal(tmp_path) as journal:
            assert (await journal.held()).paused is paused
            assert await journal.write(Pause(not paused))
    async with SqliteJournal(tmp_path) as journal:
        assert await journal.queued_of("alice", 10) == [prompt_id(1)]
        fence = Fence(prompt_id(1), 1, 0)
        assert await journal.write(
            Finish(fence=fence, state=State.SUCCEEDED, at=2, files=(MadeFile("gpu-1", "output//a.png", True),))
        )
        found = await journal.made(MadeFilter(key="alice", place="output//a.png"), 9)
        assert [(made.server, made.prompt_id) for made in found] == [("gpu-1", prompt_id(1))]
        used = await journal.usage(UsageQuery(by=("person",), since="1970-01-01", until="1970-01-01"))
        assert [(row.person, row.succeeded) for row in used] == [("eve", 1)]


@pytest.mark.parametrize("content", [b"no database at all" * 100, b"SQLite format 3\0" + b"\xff" * 5000])
async def test_a_file_that_is_no_journal_is_refused_and_left_as_it_is(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE_NAME).write_bytes(content)
    with pytest.raises(JournalError, match="STATE_DIR: the journal cannot be read"):
        await SqliteJournal(tmp_path).__aenter__()
    assert (tmp_path / FILE_NAME).read_bytes() == content


async def test_a_folder_that_cannot_be_made_is_refused_by_its_setting(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(JournalError, match=rf"STATE_DIR.*be a folder.*{os.strerror(errno.ENOTDIR)}") as refused:
        await SqliteJournal(tmp_path / "file" / "state").__aenter__()
    assert str(tmp_path) not in refused.value.detail


async def test_on_a_full_disk_writes_fail_and_reads_go_on_until_there_is_room(tmp_path: Path) -> None:
    async with SqliteJournal(tmp_path) as journal:
        await journal.write(Add(new_job(1)))
        await with_connection(journal, lambda database: database.execute("PRAGMA max_page_count = 1"))
        large = os.urandom(100_000)
        writes = (journal.write(Add(new_job(number, body=large + bytes([number])))) for number in range(2, 5))
        refused = await asyncio.gather(*writes, return_exceptions=True)
        assert [type(error) for error in refused] == [JournalError] * 3
        assert "STATE_DIR" in str(refused[0])
        assert "full" in str(refused[0])
        assert "STATE_DIR" in str(journal.problem)
        assert (await journal.page(JobFilter(), 50)).next_cursor is None
        assert await journal.get(prompt_id(2)) is None
        await with_connection(journal, lambda database: database.execute("PRAGMA max_page_count = 100000"))
        assert await journal.write(Add(new_job(2, body=large)))
        assert not journal.problem
        assert await journal.body_of(prompt_id(2)) == large


async def test_lost_writes_are_logged_at_most_once_a_minute_with_their_number(tmp_path: Path) -> None:
    now = 1000.0
    journal = await SqliteJournal(tmp_path, clock=lambda: now).__aenter__()
    await with_connection(journal, lambda database: database.execute("PRAGMA query_only = 1"))
    with structlog.testing.capture_logs() as logs:
        for number in range(1, 4):
            journal.write_behind(Add(new_job(number)))
            assert await journal.get(prompt_id(number)) is None
        now = 1060.0
        journal.write_behind(Add(new_job(4)))
        assert await journal.get(prompt_id(4)) is None
        journal.write_behind(Add(new_job(5)))
        await journal.__aexit__()
    assert [(line["event"], line["writes"]) for line in logs] == [
        ("journal.writes_not_kept", 1),
        ("journal.writes_not_kept", 3),
        ("journal.writes_not_kept", 1),
    ]
    assert "STATE_DIR" in logs[0]["reason"]


async def test_the_number_of_pending_writes_is_bounded(tmp_path: Path) -> None:
    metrics = Metrics()
    async with SqliteJournal(tmp_path, max_behind=5, observer=JournalMeasures(metrics)) as journal:
        with structlog.testing.capture_logs() as logs:
            for number in range(1, 8):
                journal.write_behind(Add(new_job(number)))
        assert len((await journal.page(JobFilter(), 50)).records) == 5
        assert logs[0]["event"] == "journal.writes_not_kept"
        journal.write_behind(Add(new_job(8)))
        assert await journal.get(prompt_id(8)) is not None
    writes = {outcome: metrics.journal_writes.labels(outcome)._value.get() for outcome in ("kept", "failed")}
    assert writes == {"kept": 6, "failed": 2}


async def test_an_impossible_write_does_not_spoil_the_others(tmp_path: Path) -> None:
    async with SqliteJournal(tmp_path) as journal:
        writes = [journal.write(Add(new_job(number, priority=2**70 if number == 2 else 0))) for number in (1, 2, 3)]
        first, second, third = await asyncio.gather(*writes, return_exceptions=True)
        assert isinstance(second, OverflowError)
        assert isinstance(first, int)
        assert isinstance(third, int)
        assert 0 < first < third
        assert len((await journal.page(JobFilter(), 50)).records) == 2


async def test_writes_that_come_together_are_committed_together(tmp_path: Path) -> None:
    commits: list[int] = []

    class Observer:
        def committed(self, writes: int, seconds: float) -> None:
            assert seconds > 0
            commits.append(writes)

        def failed(self, writes: int) -> None:
            raise AssertionError(writes)

    async with SqliteJournal(tmp_path, observer=Observer()) as journal:
        for number in range(1, 6):
            journal.write_behind(Add(new_job(number)))
        await asyncio.gather(*(journal.write(Add(new_job(number))) for number in range(6, 38)))
    assert commits == [37]


async def test_a_pending_write_is_committed_without_a_further_write(tmp_path: Path) -> None:
    committed = asyncio.Event()

    class Observer:
        def committed(self, writes: int, seconds: float) -> None:
            committed.set()

        def failed(self, writes: int) -> None: ...

    async with SqliteJournal(tmp_path, observer=Observer()) as journal:
        journal.write_behind(Add(new_job(1)))
        await committed.wait()


async def test_a_journal_that_is_not_open_says_so(tmp_path: Path) -> None:
    journal = SqliteJournal(tmp_path)
    with pytest.raises(JournalError, match="STATE_DIR: the journal is not open"):
        await journal.get(prompt_id(1))
    async with journal:
        pass
    with pytest.raises(JournalError, match="STATE_DIR: the journal is not open"):
        await journal.write(Add(new_job(1)))
    with structlog.testing.capture_logs() as logs:
        journal.write_behind(Add(new_job(1)))
    assert logs[0]["event"] == "journal.writes_not_kept"


async def test_removed_jobs_leave_no_row_in_any_table(tmp_path: Path) -> None:
    async with SqliteJournal(tmp_path) as journal:
        for number in range(1, 500):
            await journal.write(Add(new_job(number, body=str(number // 2).encode(), labels={"a": "1"})))
            await end(journal, number)
        assert await journal.prune(86_400.0 * 9, keep_days=7, keep=None) == 499

        def assert_empty(database: sqlite3.Connection) -> None:
            for table in ("jobs", "bodies", "labels", "runs", "deliveries"):
                assert database.execute(f"SELECT COUNT(*) FROM {table}").fetchone() == (0,), table  # noqa: S608

        await with_connection(journal, assert_empty)


@pytest.mark.parametrize(
    ("narrowed", "index"),
    [
        (JobFilter(), "USING INTEGER PRIMARY KEY|SCAN jobs"),
        (JobFilter(owner="a"), "jobs_by_owner"),
        (JobFilter(workflow_name="a"), "jobs_by_workflow"),
        (JobFilter(states=frozenset({State.LOST})), "jobs_by_state"),
        (JobFilter(labels={"a": "1"}), "first USING PRIMARY KEY"),
    ],
)
async def test_a_page_is_read_by_an_index_without_sorting(tmp_path: Path, narrowed: JobFilter, index: str) -> None:
    queries: list[str] = []
    async with SqliteJournal(tmp_path) as journal:
        await with_connection(journal, lambda database: database.set_trace_callback(queries.append))
        await journal.page(narrowed, 50)
        await with_connection(journal, lambda database: database.set_trace_callback(None))
        page = next(query for query in queries if "ORDER BY" in query)
        plans: list[str] = []

        def explain(sql: Statements) -> None:
            plans.extend(row[3] for row in sql.database.execute(f"EXPLAIN QUERY PLAN {page}"))

        await journal._ask(explain)
    assert any(name in plan for plan in plans for name in index.split("|")), plans
    assert not any("TEMP B-TREE" in plan for plan in plans), plans


async def test_a_job_whose_placement_was_not_kept_can_still_end(tmp_path: Path) -> None:
    async with SqliteJournal(tmp_path) as journal:
        await journal.write(Add(new_job(1)))
        fence = Fence(prompt_id(1), 1, 1)
        await with_connection(journal, lambda database: database.execute("PRAGMA query_only = 1"))
        with structlog.testing.capture_logs():
            journal.write_behind(Place(fence, "gpu-1"))
            with pytest.raises(JournalError):
                await journal.write(Start(fence, 1.0))
        await with_connection(journal, lambda database: database.execute("PRAGMA query_only = 0"))
        assert not await journal.write(Start(fence, 1.0))
        assert await journal.write(Finish(fence=fence, state=State.SUCCEEDED, at=2.0))


async def test_jobs_are_counted_without_reading_ended_jobs(tmp_path: Path) -> None:
    async with SqliteJournal(tmp_path) as journal:
        for number in range(1, 7):
            await journal.write(Add(new_job(number)))
        await end(journal, 1)
        await end(journal, 2, State.CANCELED)
        counted = await journal.counts()
        assert (counted[State.SUCCEEDED], counted[State.CANCELED], counted[State.QUEUED]) == (1, 1, 4)
        scans: list[str] = []
        await with_connection(journal, lambda database: database.set_trace_callback(scans.append))
        await end(journal, 3, State.CANCELED)
        await journal.write(Again(prompt_id(2), 1, "async", 1.0))
        with pytest.raises(OverflowError):
            # The failed write also takes back the counts of the write that shares its transaction.
            await asyncio.gather(end(journal, 4, State.CANCELED), journal.write(Add(new_job(9, priority=2**70))))
        scans.clear()
        counted = await journal.counts()
        assert (counted[State.SUCCEEDED], counted[State.CANCELED], counted[State.QUEUED]) == (1, 2, 3)
        scans.clear()
        assert await journal.counts() == counted
        (query,) = [scan for scan in scans if "COUNT" in scan]
        assert "succeeded" not in query


async def test_files_that_were_recorded_without_their_prompts_stay_with_their_key(tmp_path: Path) -> None:
    database = sqlite3.connect(tmp_path / FILE_NAME, isolation_level=None)
    database.executescript("".join(MIGRATIONS[:13]) + "PRAGMA user_version = 13;")
    database.execute("INSERT INTO files VALUES ('output//a.png', 'gpu-1', 'alice', '2026-11-30', 5)")
    database.close()
    async with SqliteJournal(tmp_path) as journal:
        for wanted, found in (
            (MadeFilter(key="alice", place="output//a.png", prompt_id=prompt_id(1)), ["gpu-1"]),
            (MadeFilter(key="bob", place="output//a.png", prompt_id=prompt_id(1)), []),
        ):
            assert [made.server for made in await journal.made(wanted, 9)] == found
