"""The gateway takes over the journal that older versions kept in RUNPOD_DATA_DIR.

Commit 68d777b wrote the file in tests/data.
"""

from __future__ import annotations

import asyncio
import base64
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from comfyui.exceptions import JournalError
from comfyui.jobs.journal.attempts import Attempt
from comfyui.jobs.journal.memory import MemoryJournal
from comfyui.jobs.journal.records import Fence, JobFilter
from comfyui.jobs.journal.sqlite import FILE_NAME, SqliteJournal
from comfyui.jobs.journal.writes import NoteAttempt
from comfyui.jobs.runpod_journal import take_over_runpod_journal
from tests.support.log_lines import Lines
from tests.support.running import RunningGateway, invert_workflow, running_gateway, until
from tests.support.runpod_endpoint import DATA, NOWHERE, FakeEndpoint, base64_image, error_of, get, history

WRITTEN_BEFORE = Path(__file__).parents[1] / "data" / "runpod-journal-68d777b.sqlite3"
(
    SUCCEEDED, FAILED, INTERRUPTED, SENT, DELIVERED, BEING_SENT, WAITING, WITH_A_KEY, AT_THE_FRONT,
) = (f"0000000{number}-0000-4000-8000-000000000000" for number in range(9))  # fmt: skip


def put_old_journal(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(WRITTEN_BEFORE, folder / "journal.sqlite3")


async def ids(gateway: RunningGateway, path: str, name: str = "") -> list[str]:
    _, answer = await get(gateway, path)
    return [item[1] for item in answer[name]] if name else list(answer)


async def test_the_old_journal_becomes_jobs(endpoint: FakeEndpoint, tmp_path: Path) -> None:
    put_old_journal(tmp_path)
    (tmp_path / "outputs" / SUCCEEDED / "sub").mkdir(parents=True)
    (tmp_path / "outputs" / SUCCEEDED / "sub" / "a.png").write_bytes(base64.b64decode(DATA))
    endpoint.says("job-4", "IN_PROGRESS")
    async with running_gateway(NOWHERE, **endpoint.settings(tmp_path)) as gateway:
        # Jobs that had ended.
        status, answer = await gateway.prompt_sync(invert_workflow(0), prompt_id=SUCCEEDED, return_image_base64=True)
        assert (status, answer["images"][0]["base64"], answer["outputs"]["9"]) == (200, DATA, {"text": ["said"]})
        assert answer["timings"]["executing"] == pytest.approx(1.5, abs=0.01)
        entry = await history(gateway, SUCCEEDED)
        assert entry["status"]["status_str"] == "success"
        assert entry["prompt"][3]["client_id"] == "front"
        assert "comfyui_gateway" not in entry["prompt"][3]
        assert "no such luck" in error_of(await history(gateway, FAILED))
        kinds = [kind for kind, _ in (await history(gateway, INTERRUPTED))["status"]["messages"]]
        assert kinds[-1] == "execution_interrupted"
        # Jobs that had not ended: callers join one, others are collected, not sent again, or sent.
        assert "the gateway was stopped while it sent the prompt" in error_of(await history(gateway, BEING_SENT))
        assert (await history(gateway, DELIVERED))["outputs"]["3"]["images"][0]["filename"] == "b.png"
        assert "the gateway was restarted before it ran" in error_of(await history(gateway, WITH_A_KEY))
        asking = asyncio.create_task(gateway.prompt_sync(invert_workflow(3), prompt_id=SENT))
        endpoint.complete("job-4", base64_image(DATA))
        assert (await asking)[0] == 200
        sent = [endpoint.inputs[await endpoint.job(number)]["workflow"] for number in (1, 2)]
        assert [workflow["1"]["inputs"]["color"] for workflow in sent] == [8, 6]
        for number, prompt_id in ((1, AT_THE_FRONT), (2, WAITING)):
            endpoint.complete(await endpoint.job(number), base64_image(DATA))
            assert (await history(gateway, prompt_id))["status"]["completed"] is True
    assert endpoint.runs == 2
    assert not (tmp_path / "journal.sqlite3").exists()
    assert (tmp_path / "journal.sqlite3.imported").exists()
    with closing(sqlite3.connect(tmp_path / "state" / FILE_NAME)) as database:
        assert database.execute("SELECT COUNT(*) FROM jobs").fetchone() == (9,)


async def test_a_repeated_takeover_sends_no_job_twice(endpoint: FakeEndpoint, tmp_path: Path) -> None:
    endpoint.says("job-4", "IN_PROGRESS")
    for _ in range(2):
        put_old_journal(tmp_path)
        async with running_gateway(NOWHERE, **endpoint.settings(tmp_path)) as gateway:
            await endpoint.job(2)

            async def is_over(gateway: RunningGateway = gateway) -> Any:
                return await ids(gateway, "/history")

            await until(is_over, lambda ended: {BEING_SENT, DELIVERED, WITH_A_KEY} <= set(ended))
            assert len(await ids(gateway, "/history")) == 6
    assert endpoint.runs == 2, "each of the two waiting jobs was sent once"


async def test_damaged_rows_are_skipped_and_logged_and_the_others_taken_over(tmp_path: Path, log_lines: Lines) -> None:
    put_old_journal(tmp_path)
    with closing(sqlite3.connect(tmp_path / "journal.sqlite3")) as database, database:
        database.execute("UPDATE jobs SET prompt = ? WHERE prompt_id = ?", (b'{"1": ', WAITING))
        database.execute("UPDATE jobs SET extra_data = '[1]' WHERE prompt_id = ?", (DELIVERED,))
        database.execute("UPDATE jobs SET prompt = '{}', number = 'nine' WHERE prompt_id = ?", (WITH_A_KEY,))
        database.execute("UPDATE history SET entry = '[]' WHERE prompt_id = ?", (FAILED,))
        database.execute("UPDATE history SET entry = '{\"status\": 7}' WHERE prompt_id = ?", (INTERRUPTED,))
    async with SqliteJournal(tmp_path / "state") as journal:
        await take_over_runpod_journal(tmp_path, "runpod:endpoint1", journal, now=5.0)
        states = {prompt_id: await journal.get(prompt_id) for prompt_id in (SUCCEEDED, SENT, BEING_SENT, AT_THE_FRONT)}
        assert [None if one is None else (one.state.value, one.server) for one in states.values()] == [
            ("succeeded", "runpod:endpoint1"),
            ("queued", "runpod:endpoint1"),
            ("queued", "runpod:endpoint1"),
            ("queued", None),
        ]
        odd = {WAITING, DELIVERED, WITH_A_KEY, FAILED, INTERRUPTED}
        assert [prompt_id for prompt_id in odd if await journal.get(prompt_id) is not None] == []
    skipped = [line for line in log_lines if line["event"] == "runpod.not_taken_over"]
    assert {line["prompt_id"] for line in skipped} == odd
    assert all(line["detail"] for line in skipped)
    [done] = [line for line in log_lines if line["event"] == "runpod.taken_over"]
    assert (done["left_out"], done["renamed"]) == (5, "journal.sqlite3.imported")
    with closing(sqlite3.connect(tmp_path / "journal.sqlite3.imported")) as database:
        assert database.execute("SELECT COUNT(*) FROM jobs").fetchone() == (6,), "the old file still has all its jobs"


async def test_a_repeated_takeover_does_not_overwrite_newer_state(tmp_path: Path) -> None:
    async with SqliteJournal(tmp_path / "state") as journal:
        put_old_journal(tmp_path)
        await take_over_runpod_journal(tmp_path, "runpod:endpoint1", journal, now=5.0)
        fence = Fence(SENT, 1, 1)
        assert await journal.write(NoteAttempt(fence, 6.0, "job-4", b"reply")) == 1
        put_old_journal(tmp_path)
        await take_over_runpod_journal(tmp_path, "runpod:endpoint1", journal, now=7.0)
        assert await journal.attempt_of(SENT) == Attempt(fence, 6.0, "job-4", has_reply=True)


def _locked(path: Path) -> sqlite3.Connection:
    """Opens the journal as an older gateway does."""
    database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    for statement in ("PRAGMA locking_mode = EXCLUSIVE", "PRAGMA journal_mode = WAL", "BEGIN IMMEDIATE", "COMMIT"):
        database.execute(statement)
    return database


async def test_the_takeover_waits_until_an_older_gateway_releases_the_journal(tmp_path: Path, log_lines: Lines) -> None:
    put_old_journal(tmp_path)
    async with SqliteJournal(tmp_path / "state") as journal:
        with closing(_locked(tmp_path / "journal.sqlite3")) as database:
            taking = asyncio.create_task(
                take_over_runpod_journal(tmp_path, "runpod:endpoint1", journal, now=5.0, lock_wait_s=60)
            )

            async def lines() -> Any:
                return [line["detail"] for line in log_lines if line["event"] == "runpod.journal_in_use"]

            [detail] = await until(lines, bool)
            assert detail.startswith("RUNPOD_DATA_DIR: another gateway already uses the journal ")
            # Its last write is not lost: SQLite keeps it in another file beside the journal.
            database.execute("UPDATE jobs SET job_id = 'job-40' WHERE prompt_id = ?", (SENT,))
        await taking
        attempt = await journal.attempt_of(SENT)
        assert attempt is not None
        assert attempt.ref == "job-40"
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["journal.sqlite3.imported"]


async def test_a_journal_that_stays_in_use_stops_the_start(tmp_path: Path) -> None:
    put_old_journal(tmp_path)
    async with SqliteJournal(tmp_path / "state") as journal:
        with (
            closing(_locked(tmp_path / "journal.sqlite3")),
            pytest.raises(JournalError, match=r"RUNPOD_DATA_DIR: another gateway already uses the journal .* Stop it"),
        ):
            await take_over_runpod_journal(tmp_path, "runpod:endpoint1", journal, now=5.0)
        assert (await journal.page(JobFilter(), 50)).records == ()


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("PRAGMA user_version = 3", "its schema is 3"),
        ("ALTER TABLE jobs DROP COLUMN keyed", "no such column: keyed"),
        ("DROP TABLE history", "no such table: history"),
    ],
)
async def test_a_journal_of_another_version_stops_the_start_and_is_kept(
    statement: str, said: str, tmp_path: Path
) -> None:
    put_old_journal(tmp_path)
    with closing(sqlite3.connect(tmp_path / "journal.sqlite3")) as database:
        database.execute(statement)
    async with SqliteJournal(tmp_path / "state") as journal:
        with pytest.raises(JournalError, match=f"RUNPOD_DATA_DIR: the journal .*{said}"):
            await take_over_runpod_journal(tmp_path, "runpod:endpoint1", journal, now=5.0)
        assert (await journal.page(JobFilter(), 50)).records == ()
    assert (tmp_path / "journal.sqlite3").exists()


async def test_a_journal_that_cannot_be_renamed_stops_the_start(tmp_path: Path) -> None:
    put_old_journal(tmp_path)
    (tmp_path / "journal.sqlite3.imported" / "in the way").mkdir(parents=True)
    async with SqliteJournal(tmp_path / "state") as journal:
        with pytest.raises(JournalError, match=r"RUNPOD_DATA_DIR: the journal .* cannot be renamed"):
            await take_over_runpod_journal(tmp_path, "runpod:endpoint1", journal, now=5.0)


async def test_the_old_journal_is_kept_and_logged_without_state_dir(tmp_path: Path, log_lines: Lines) -> None:
    put_old_journal(tmp_path)
    await take_over_runpod_journal(tmp_path, "runpod:endpoint1", MemoryJournal(), now=5.0)
    assert (tmp_path / "journal.sqlite3").read_bytes() == WRITTEN_BEFORE.read_bytes()
    [line] = log_lines
    assert (line["event"], "STATE_DIR is empty" in line["detail"]) == ("runpod.not_taken_over", True)


async def test_a_journal_that_cannot_be_read_stops_the_start_and_is_kept(tmp_path: Path) -> None:
    (tmp_path / "journal.sqlite3").write_bytes(b"not a database, and longer than its head would be" * 20)
    async with SqliteJournal(tmp_path / "state") as journal:
        with pytest.raises(JournalError, match=r"RUNPOD_DATA_DIR: the journal .* cannot be read: file is not a data"):
            await take_over_runpod_journal(tmp_path, "runpod:endpoint1", journal, now=0.0)
    assert (tmp_path / "journal.sqlite3").exists()
