"""The search for jobs by a text, in a journal of either kind."""

from __future__ import annotations

import asyncio
import json
import random
from dataclasses import replace
from typing import Any

import pytest

from comfyui.exceptions import QueryError
from comfyui.jobs.journal.protocol import Journal
from comfyui.jobs.journal.records import JobFilter, State
from comfyui.jobs.journal.searching import LONGEST_TEXT, MOST_LOOKED_AT, MOST_TEXT
from comfyui.jobs.journal.writes import Add
from tests.support.journals import CALL, end, new_job, prompt_id


def body(text: str) -> bytes:
    return json.dumps({"prompt": {"6": {"inputs": {"text": text}}}}, ensure_ascii=False).encode()


async def found(journal: Journal, text: str, limit: int = 50, **narrowed: Any) -> list[float]:
    """The submission times of the jobs on the only page; each test's jobs have different ones."""
    page = await journal.page(JobFilter(text=text, **narrowed), limit)
    assert (page.next_cursor, page.searched_to) == (None, None)
    return [record.created_at for record in page.records]


async def add(journal: Journal, number: int, **fields: Any) -> None:
    assert await journal.write(Add(new_job(number, **fields)))


async def test_a_text_is_found_in_any_field_of_a_job(journal: Journal) -> None:
    await add(journal, 1, body=body("a red Fox"))
    await add(journal, 2, workflow_name="Foxes")
    await add(journal, 3, labels={"animal": "fox"})
    await add(journal, 4, note="for the fox")
    await add(journal, 5)
    await end(journal, 5, State.FAILED, error={"type": "task_failed", "detail": "no FOX here"})
    await add(journal, 6, call=CALL)
    await add(journal, 7, body=None)
    assert await found(journal, "fox") == [6.0, 5.0, 4.0, 3.0, 2.0, 1.0]
    assert await found(journal, "animal=fox") == [3.0]
    assert await found(journal, prompt_id(7)[:8] + " " + prompt_id(7)[-4:]) == [7.0]
    assert await found(journal, "wolf") == []


async def test_all_words_of_a_search_must_match_in_any_order_and_case(journal: Journal) -> None:
    await add(journal, 1, body=body("a red fox"), labels={"order": "12"})
    await add(journal, 2, body=body("a red hen"))
    assert await found(journal, "FOX  red\tORDER=12") == [1.0]
    assert await found(journal, "red") == [2.0, 1.0]
    assert await found(journal, "fox hen") == []


@pytest.mark.parametrize("text", ['"quoted"', "back\\slash", "ÄRGER", "straße", "日本", "🦊", "\ud800x"])
async def test_a_text_is_found_in_any_json_notation(journal: Journal, text: str) -> None:
    await add(
        journal,
        1,
        body=body(f"before {text.encode('utf-8', 'replace').decode()} behind")
        if text[0] != "\ud800"
        else body("\ufffdx"),
    )
    await add(journal, 2)
    assert await found(journal, text) == [1.0]


async def test_a_search_respects_the_other_filters(journal: Journal) -> None:
    for number, owner in enumerate(("alice", "bob", "alice/x", "alice"), start=1):
        await add(journal, number, owner=owner, labels={"n": str(number % 2)}, body=body("fox"))
    await end(journal, 4, State.LOST)
    assert await found(journal, "fox", owner="alice") == [4.0, 1.0]
    assert await found(journal, "fox", key="alice") == [4.0, 3.0, 1.0]
    assert await found(journal, "fox", labels={"n": "1"}) == [3.0, 1.0]
    assert await found(journal, "fox", states=frozenset({State.LOST})) == [4.0]
    assert await found(journal, "hen", key="alice") == []


@pytest.mark.parametrize("text", ["", None])
async def test_an_empty_search_text_finds_all_jobs(journal: Journal, text: str | None) -> None:
    await add(journal, 1)
    page = await journal.page(JobFilter(text=text), 1)
    assert [record.created_at for record in page.records] == [1.0]
    assert page.next_cursor is None


async def test_pages_of_a_search_have_each_job_once(journal: Journal) -> None:
    for number in range(1, 8):
        await add(journal, number, body=body("fox" if number % 2 else "hen"))
    narrowed = JobFilter(text="fox")
    first = await journal.page(narrowed, 2)
    await add(journal, 9, body=body("fox"))
    second = await journal.page(narrowed, 2, first.next_cursor)
    assert [one.created_at for one in (*first.records, *second.records)] == [7.0, 5.0, 3.0, 1.0]
    last = await journal.page(narrowed, 2, second.next_cursor)
    assert (last.records, last.next_cursor) == ((), None)
    with pytest.raises(QueryError, match=r"^cursor belongs to a list with other filters"):
        await journal.page(replace(narrowed, text="hen"), 2, first.next_cursor)
    with pytest.raises(QueryError, match=r"^cursor belongs to a list with other filters"):
        await journal.page(JobFilter(), 2, first.next_cursor)


async def test_a_page_of_a_search_reads_a_limited_number_of_jobs_and_says_how_far(journal: Journal) -> None:
    await add(journal, 1, body=body("the one fox"))
    many = range(2, MOST_LOOKED_AT + 52)
    await journal.write_all([Add(new_job(number)) for number in many])
    narrowed = JobFilter(text="fox")
    first = await journal.page(narrowed, 50)
    assert first.records == ()
    assert first.searched_to == many[-1] - MOST_LOOKED_AT + 1
    second = await journal.page(narrowed, 50, first.next_cursor)
    assert [one.created_at for one in second.records] == [1.0]
    assert (second.next_cursor, second.searched_to) == (None, None)


async def test_a_write_does_not_wait_for_a_search(journal: Journal) -> None:
    await journal.write_all([Add(new_job(number)) for number in range(1, 1001)])
    done: list[str] = []
    searching = asyncio.ensure_future(journal.page(JobFilter(text="nothing has this"), 50))
    searching.add_done_callback(lambda _task: done.append("search"))
    await asyncio.sleep(0)
    writing = asyncio.ensure_future(journal.write(Add(new_job(5000))))
    writing.add_done_callback(lambda _task: done.append("write"))
    await asyncio.gather(searching, writing)
    assert done == ["write", "search"]


@pytest.mark.parametrize("filling", ["blanks", "noise"])
async def test_a_large_body_is_searched_at_its_beginning(journal: Journal, filling: str) -> None:
    noise = random.Random(1)  # noqa: S311 - the same each time
    middle = " " * 3 * LONGEST_TEXT if filling == "blanks" else noise.randbytes(LONGEST_TEXT).hex()
    await add(journal, 1, body=body(f"fox {middle} hen"))
    assert await found(journal, "fox") == [1.0]
    assert await found(journal, "hen") == []


async def test_a_page_of_a_search_reads_a_limited_amount_of_text(journal: Journal) -> None:
    await add(journal, 1, body=body("fox"))
    for number in range(2, 62):
        await add(journal, number, body=body(f"{number}{' ' * LONGEST_TEXT}"))
    first = await journal.page(JobFilter(text="fox"), 50)
    assert first.records == ()
    assert first.searched_to == 61 - MOST_TEXT // LONGEST_TEXT + 1
    second = await journal.page(JobFilter(text="fox"), 50, first.next_cursor)
    assert [one.created_at for one in second.records] == [1.0]


async def test_bodies_larger_together_than_one_read_are_all_searched(journal: Journal) -> None:
    noise = random.Random(2)  # noqa: S311 - the same each time
    await add(journal, 1, body=body("fox"))
    for number in range(2, 12):
        await add(journal, number, body=body(noise.randbytes(LONGEST_TEXT // 2).hex()))
    assert await found(journal, "fox") == [1.0]
