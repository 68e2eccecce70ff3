"""The idempotency keys that are certainly new."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from comfyui.jobs.journal.sqlite import SqliteJournal
from comfyui.jobs.journal.statements import Statements
from comfyui.jobs.journal.used_keys import UsedKeys
from comfyui.jobs.journal.writes import Add
from tests.support.clock import Clock
from tests.support.journals import new_job, prompt_id

_HOUR_S = 3600.0


def test_no_key_is_certainly_new_before_the_keys_of_the_file_are_known() -> None:
    keys = UsedKeys()
    assert not keys.is_new(None, "a", 100.0)
    keys.learned([(None, "b")])
    assert not keys.is_new(None, "a", 100.0)
    keys.all_are_known(100.0)
    assert keys.is_new(None, "a", 100.0)
    assert not keys.is_new(None, "b", 100.0)
    assert keys.is_new("alice", "b", 100.0), "the key of another owner"
    assert not keys.is_new(None, "a", 99.0), "not all keys of that time are known"


def test_a_used_key_is_never_new_for_a_day_and_few_new_keys_are_looked_up() -> None:
    clock = Clock()
    keys = UsedKeys(clock=clock)
    keys.all_are_known(0.0)
    used = [(f"owner {number % 3}", f"key {number}") for number in range(20_000)]
    for number, (owner, key) in enumerate(used):
        clock.now = number * 30 * _HOUR_S / len(used)  # over thirty hours
        keys.add(owner, key)
    assert not any(keys.is_new(owner, key, 0.0) for owner, key in used)
    asked = sum(not keys.is_new(None, f"new {number}", 0.0) for number in range(20_000))
    assert asked < 200


def test_keys_of_the_day_before_yesterday_are_forgotten() -> None:
    clock = Clock()
    keys = UsedKeys(clock=clock)
    keys.all_are_known(0.0)
    keys.add(None, "old")
    for hours in (26, 52):
        clock.now = hours * _HOUR_S
        assert not keys.is_new(None, "old", 0.0)
        keys.add(None, f"at {hours}")
    assert keys.is_new(None, "old", 0.0)
    assert not keys.is_new(None, "at 26", 0.0)


class _CountingJournal(SqliteJournal):
    asked = 0

    async def _ask(self, work: Callable[[Statements], Any]) -> Any:
        self.asked += 1
        return await super()._ask(work)


async def test_keys_of_an_earlier_process_are_found_and_new_keys_are_not_looked_up(tmp_path: Path) -> None:
    async with SqliteJournal(tmp_path) as journal:
        for number in range(1, 11):
            await journal.write(Add(new_job(number, owner="alice", idempotency_key=f"k{number}")))
        await journal.write(Add(new_job(11)))
    async with _CountingJournal(tmp_path) as journal:
        assert await journal.sent_under("alice", "k3", 2.0) == prompt_id(3)
        await journal._tasks.join()
        before = journal.asked
        assert [await journal.sent_under("alice", f"new {number}", 2.0) for number in range(20)] == [None] * 20
        assert journal.asked == before
        found = [await journal.sent_under("alice", f"k{number}", 2.0) for number in range(1, 11)]
        assert found == [None, *(prompt_id(number) for number in range(2, 11))]
        assert await journal.sent_under("bob", "k3", 2.0) is None
        writing = journal.begin(Add(new_job(12, idempotency_key="now")))
        assert await journal.sent_under(None, "now", 2.0) == prompt_id(12)
        await writing
