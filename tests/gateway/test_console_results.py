"""The results in the console: the jobs on a page, what each key sees, and the cost of a page."""

from __future__ import annotations

import re
from collections.abc import Mapping
from html import unescape
from pathlib import Path
from urllib.parse import urlencode

import pytest

from comfyui.engine import Engine
from comfyui.jobs.journal.cursor import cursor_of
from comfyui.jobs.journal.records import ENDS, JobFilter
from comfyui.jobs.journal.sqlite import FILE_NAME, SqliteJournal
from tests.support.engine_workflows import sleeping, txt2img, writing
from tests.support.jobs import submit
from tests.support.keys import ALICE, BOB, KEYS, ROOT, WATCHER, bearer, write_keys
from tests.support.many_jobs import many_jobs
from tests.support.named_folder import named_folder
from tests.support.outputs import made_file, png
from tests.support.running import RunningGateway, running_gateway
from tests.support.target import node


async def shown(
    gateway: RunningGateway, query: Mapping[str, str] | str = "", *, key: str | None = None, status: int = 200
) -> str:
    """Returns the text of the results page."""
    given = query if isinstance(query, str) else urlencode(query)
    async with gateway.http.get(f"/console/results?{given}", headers=bearer(key) if key else {}) as response:
        text = await response.text()
        assert response.status == status, text
        return text


def jobs_in(text: str) -> list[str]:
    """Returns the ids of the jobs on a page, in their order."""
    return re.findall(r'href="[./]*console/jobs/([0-9a-f-]{36})"', text)


def older_in(text: str) -> str | None:
    """Returns the query of the next page."""
    found = re.search(r'rel="next" href="[./]*console/results\?([^"]*)"', text)
    return None if found is None else unescape(found[1])


async def run(
    gateway: RunningGateway, workflow: Mapping[str, object], *, key: str | None = None, **fields: object
) -> str:
    body = {"prompt": workflow, **fields}
    async with gateway.http.post("/prompt_sync", json=body, headers=bearer(key) if key else {}) as response:
        answer = await response.json()
        prompt_id: str = answer["prompt_id"]
        return prompt_id


def failing(message: str) -> dict[str, object]:
    return {
        "1": node("SimulatedError", exception_type="RuntimeError", message=message),
        "2": node("PreviewAny", source=["1", 0]),
    }


async def test_the_page_says_when_there_are_no_results(gateway: RunningGateway) -> None:
    text = await shown(gateway)
    assert "No job has ended yet" in text
    assert "they go to the one server directly" in text


async def test_with_the_gateway_queue_the_page_does_not_warn_of_missing_prompts(engine: Engine) -> None:
    async with running_gateway(engine.url, queue="gateway") as gateway:
        text = await shown(gateway)
    assert "No job has ended yet" in text
    assert "directly" not in text


async def test_each_type_of_media_has_its_own_element(gateway: RunningGateway, engine: Engine) -> None:
    shows = {
        "png": '<img src="../console/thumbs/{id}/0"',
        "gif": '<img src="../console/thumbs/{id}/0"',
        "mp4": '<video class="tile" src="../console/files/{id}/0"',
        "flac": '<audio src="../console/files/{id}/0"',
        "glb": 'href="../console/files/{id}/0" download',
        "svg": 'href="../console/files/{id}/0" download',
        "html": 'href="../console/files/{id}/0" download',
    }
    for extension, html in shows.items():
        prompt_id = await made_file(gateway, engine, extension, png())
        text = await shown(gateway)
        assert jobs_in(text)[0] == prompt_id, "newest first"
        assert html.format(id=prompt_id) in text


async def test_texts_of_jobs_are_escaped_on_the_page(gateway: RunningGateway) -> None:
    bad = "<script>alert(1)</script>'\"&"
    await run(gateway, {"1": node("PreviewAny", source=bad)}, labels={"a": bad})
    await run(gateway, failing(bad))
    for query in ({}, {"text": bad}, {"label": f"a={bad}"}, {"workflow": bad, "cursor": bad}, {"state": bad}):
        async with gateway.http.get(f"/console/results?{urlencode(query)}") as response:
            text = await response.text()
        assert "<script>alert" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in await shown(gateway)


async def test_labels_and_owners_link_to_the_jobs_that_share_them(engine: Engine, tmp_path: Path) -> None:
    async with running_gateway(engine.url, keys_file=write_keys(tmp_path / "keys.toml", KEYS)) as gateway:
        alices = await run(gateway, writing(), key=ALICE, labels={"to": "a&b=c d"})
        await run(gateway, writing(), key=BOB)
        text = await shown(gateway, key=ROOT)
        for name in ("label", "owner"):
            (query, *_) = re.findall(rf'console/results\?({name}=[^"]+)"', text)[-1:]
            assert jobs_in(await shown(gateway, unescape(query), key=ROOT)) == [alices], query


async def test_a_job_with_many_files_shows_only_the_first_ones(gateway: RunningGateway) -> None:
    await run(gateway, writing(count=50, extension="png"))
    text = await shown(gateway)
    assert text.count("console/thumbs/") == 4
    assert "46 more" in text


async def test_results_contain_only_jobs_that_have_ended(gateway: RunningGateway) -> None:
    prompt_id = await submit(gateway.http, sleeping(60))
    assert jobs_in(await shown(gateway)) == []
    await gateway.http.delete(f"/prompt_sync/{prompt_id}")
    assert jobs_in(await shown(gateway)) == [prompt_id]


async def test_results_are_found_by_each_filter(engine: Engine, tmp_path: Path) -> None:
    async with running_gateway(engine.url, workflows_dir=named_folder(tmp_path / "workflows")) as gateway:
        fox = await run(gateway, txt2img(text="a red fox", steps=1), labels={"order": "12", "to": "ann"})
        hen = await run(gateway, failing("no hen in memory"), labels={"order": "12"})
        async with gateway.http.post("/workflows/flat", json={"seed": 5}) as response:
            named = (await response.json())["prompt_id"]
        found = {
            "state=failed": [hen],
            "state=succeeded": [named, fox],
            "state=lost": [],
            "workflow=flat": [named],
            "label=order%3D12": [hen, fox],
            "label=to%3Dann": [fox],
            "label=to%3D": [],
            # The prompt of a sync call is not kept; its labels and error are.
            "text=order%3D12": [hen, fox],
            "text=hen+MEMORY": [hen],
            f"text={fox[:13]}": [fox],
            "text=flat": [named],
            "text=nothing+has+this": [],
            "state=failed&text=ann": [],
            "state=&workflow=&label=&text=&cursor=&other=1": [named, hen, fox],
        }
        for query, expected in found.items():
            assert jobs_in(await shown(gateway, query)) == expected, query


async def test_the_search_finds_an_async_job_by_a_text_in_its_prompt(gateway: RunningGateway) -> None:
    async with gateway.http.post(
        "/prompt_sync",
        json={"prompt": txt2img(text="a RED fox", steps=1)},
        headers={"Prefer": "respond-async, wait=20"},
    ) as response:
        prompt_id = (await response.json())["prompt_id"]
    assert jobs_in(await shown(gateway, "text=red+FOX")) == [prompt_id]
    assert "No job matches all of these" in await shown(gateway, "text=red+hen")


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ("state=running", "State: choose one from the list."),
        ("label=x", "Label: write it as key=value."),
        ("label=a+b%3Dx", "Label: the key"),
        ("cursor=x", "cursor must be"),
    ],
)
async def test_an_invalid_filter_is_named_in_the_error(gateway: RunningGateway, query: str, reason: str) -> None:
    text = await shown(gateway, query, status=400)
    assert reason in unescape(text)


async def test_each_key_sees_only_the_results_it_may(engine: Engine, tmp_path: Path) -> None:
    async with running_gateway(engine.url, keys_file=write_keys(tmp_path / "keys.toml", KEYS)) as gateway:
        alices, bobs = [await run(gateway, writing(), key=key) for key in (ALICE, BOB)]
        for key, expected in ((ALICE, [alices]), (BOB, [bobs]), (WATCHER, [bobs, alices]), (ROOT, [bobs, alices])):
            text = await shown(gateway, key=key)
            assert jobs_in(text) == expected
            assert ('name="owner"' in text) is (key in {WATCHER, ROOT})
        for key in (WATCHER, ROOT):
            assert jobs_in(await shown(gateway, "owner=alice", key=key)) == [alices]
            assert jobs_in(await shown(gateway, f"owner=bob&text={bobs}", key=key)) == [bobs]
        # A user cannot reach the jobs of another user by owner or by text.
        assert jobs_in(await shown(gateway, "owner=alice", key=BOB)) == [bobs]
        assert jobs_in(await shown(gateway, f"text={alices}", key=BOB)) == []


async def test_pages_of_results_show_each_job_exactly_once(gateway: RunningGateway) -> None:
    made = [await run(gateway, writing(size=number + 1), labels={"n": str(number)}) for number in range(53)]
    first = await shown(gateway)
    assert jobs_in(first) == made[:4:-1]
    query = older_in(first)
    assert query is not None
    await run(gateway, writing(size=999))
    second = await shown(gateway, query)
    assert jobs_in(second) == made[4::-1]
    assert older_in(second) is None
    assert "To the newest results" in second


async def test_a_page_deep_in_100_000_jobs_costs_as_much_as_the_first(engine: Engine, tmp_path: Path) -> None:
    async with running_gateway(engine.url, state_dir=str(tmp_path)) as gateway:
        await run(gateway, writing())
    many_jobs(tmp_path / FILE_NAME, 100_000)
    async with running_gateway(engine.url, state_dir=str(tmp_path)) as gateway:
        journal = gateway.handler.journal
        assert isinstance(journal, SqliteJournal)
        steps = 0

        def count() -> None:
            nonlocal steps
            steps += 1

        await journal._ask(lambda sql: sql.database.set_progress_handler(count, 50))

        found: list[str] = []
        costs = []
        list_of_all = JobFilter(states=ENDS)
        for query in ("", *(f"cursor={cursor_of(seq, list_of_all)}" for seq in (90_000, 50_000, 100))):
            steps = 0
            ids = jobs_in(await shown(gateway, query))
            costs.append(steps)
            assert len(ids) == 48
            found += ids
        assert len(set(found)) == len(found)
        assert max(costs) < 1.5 * min(costs)
        # A word in one of 26 jobs fills a page at once; the search for a word in no job stops after many jobs.
        assert len(jobs_in(await shown(gateway, {"text": "note c"}))) == 48
        none = await shown(gateway, {"text": "zebra"})
        assert jobs_in(none) == []
        assert "Searched back to" in none
        assert older_in(none) is not None
