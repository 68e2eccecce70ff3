"""The queue of the console in a browser: ten thousand jobs, moved and cancelled by mouse, keyboard and phone."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from comfyui.jobs.journal.sqlite import SqliteJournal
from comfyui.jobs.journal.writes import Add, Pause
from comfyui.workflows.needs import needs_of
from tests.support.console import PHONE, Console, accessible, fits, open_console, sign_in, tab_to
from tests.support.jobs import fetch, submit
from tests.support.journals import new_job, prompt_id
from tests.support.keys import ALICE, BOB, ROOT, WATCHER, bearer
from tests.support.running import invert_workflow, sleep_workflow

pytestmark = pytest.mark.timeout(120)


@asynccontextmanager
async def paused(count: int, **options: Any) -> AsyncIterator[tuple[Console, list[str]]]:
    """A console with a paused queue, and `count` jobs that wait in it."""
    async with open_console(**options) as console:
        await console.gateway.handler.queue.pause(True)
        yield console, [await submit(console.gateway.http, invert_workflow(tag)) for tag in range(count)]


async def shown(page: Any) -> list[str]:
    """The jobs on the page, in their order."""
    return [
        one.removeprefix("job-")
        for one in await page.locator("ol.list > li").evaluate_all("all => all.map(one => one.id)")
    ]


async def shows(page: Any, *jobs: str) -> None:
    """Waits until the page shows these jobs, in this order."""
    await page.wait_for_function(
        "jobs => [...document.querySelectorAll('ol.list > li')].map(one => one.id).join() === jobs",
        arg=",".join(f"job-{one}" for one in jobs),
    )


async def test_jobs_are_moved_and_cancelled_on_the_page() -> None:
    async with paused(4) as (console, (one, two, three, four)):
        page = console.page
        await console.open("/console/queue")
        assert await shown(page) == [one, two, three, four]
        await page.get_by_role("button", name=f"Put first: Unnamed workflow {four[:8]}").click()
        await page.get_by_role("status").get_by_text("The job is the first one of its owner.").wait_for()
        await shows(page, four, one, two, three)
        row = page.locator(f"#job-{three}")
        await row.get_by_role("spinbutton").fill("5")
        await row.get_by_role("spinbutton").press("Enter")
        await shows(page, three, four, one, two)
        assert "Priority 5" in await row.inner_text()
        asked: list[str] = []

        async def accept(dialog: Any) -> None:
            asked.append(dialog.message)
            await dialog.accept()

        page.on("dialog", accept)
        await page.locator(f"#job-{one}").get_by_role("button", name="Cancel").click()
        await shows(page, three, four, two)
        assert asked == ["Cancel this job?"]
        await page.get_by_role("button", name="Resume the queue").click()
        for prompt_id_ in (three, four, two):
            await fetch(console.gateway.http, prompt_id_)


async def test_several_jobs_are_selected_and_cancelled() -> None:
    async with paused(5) as (console, jobs):
        page = console.page
        page.on("dialog", lambda dialog: dialog.accept())
        await console.open("/console/queue")
        for job in (jobs[1], jobs[3]):
            await page.get_by_label(f"Select Unnamed workflow {job[:8]}").check()
        await page.get_by_role("button", name="Cancel the selected jobs").click()
        await page.get_by_role("status").get_by_text("2 jobs are cancelled.").wait_for()
        await shows(page, jobs[0], jobs[2], jobs[4])
        await page.get_by_label("Select all on this page").check()
        await page.get_by_role("button", name="Cancel the selected jobs").click()
        await page.get_by_text("No job waits.").wait_for()


async def test_the_keyboard_alone_moves_and_cancels_a_job() -> None:
    async with paused(3) as (console, (one, two, three)):
        page = console.page
        page.on("dialog", lambda dialog: dialog.accept())
        await console.open("/console/queue")
        await tab_to(page, f"Put first: Unnamed workflow {three[:8]}", tag="button")
        await page.keyboard.press("Enter")
        await shows(page, three, one, two)
        await tab_to(page, f"Cancel Unnamed workflow {one[:8]}", tag="button", back=True)
        await page.keyboard.press("Enter")
        await shows(page, three, two)


@pytest.mark.long
async def test_every_change_works_without_javascript() -> None:
    async with paused(3, javascript=False) as (console, (one, two, three)):
        page = console.page
        await console.open("/console/queue")
        await page.locator(f"#job-{three}").get_by_role("button", name="first").click()
        assert await shown(page) == [three, one, two]
        await page.locator(f"#job-{two}").get_by_role("spinbutton").fill("2")
        await page.locator(f"#job-{two}").get_by_role("button", name="Set the priority").click()
        assert await shown(page) == [two, three, one]
        await page.locator(f"#job-{three}").get_by_role("checkbox").check()
        await page.get_by_role("button", name="Cancel the selected jobs").click()
        assert await shown(page) == [two, one]
        await page.get_by_role("button", name="Resume the queue").click()
        assert page.url == f"{console.gateway.url}/console/queue"


@pytest.mark.long
async def test_ten_thousand_jobs_are_shown_in_pages(tmp_path: Path) -> None:
    """The first page and the last, of all owners and of one, and on a phone, too."""
    async with SqliteJournal(tmp_path) as journal:
        jobs = [new_job(number, owner=f"owner-{number % 4}") for number in range(1, 10_001)]
        await journal.write_all([Pause(True), *map(Add, jobs)])
    async with open_console(state_dir=tmp_path, queue="gateway", servers=3) as console:
        page = console.page
        await console.open("/console/queue")
        assert len(await shown(page)) == 50
        assert "10000 jobs wait" in await page.locator("main").inner_text()
        await page.get_by_role("link", name="Next").click()
        await page.get_by_text("Page 2 of 200").wait_for()
        await console.open("/console/queue?page=200")
        assert len(await shown(page)) == 50
        assert await page.get_by_role("link", name="Next").count() == 0
        await page.get_by_label("Owner").select_option("owner-2")
        await page.get_by_role("button", name="Show").click()
        await page.get_by_text("2500 jobs wait").wait_for()
        assert (await shown(page))[0] == prompt_id(2)
        await page.get_by_role("link", name="Next").click()
        await page.get_by_text("Page 2 of 50").wait_for()
        phone = await console.another(size=PHONE, scheme="dark")
        await phone.goto(f"{console.gateway.url}/console/queue")
        await fits(phone)
        await accessible(phone)


async def test_input_and_selection_stay_while_the_page_changes() -> None:
    async with paused(3) as (console, (one, two, three)):
        page = console.page
        await console.open("/console/queue")
        await page.get_by_label(f"Select Unnamed workflow {two[:8]}").check()
        await page.locator(f"#job-{one}").get_by_role("spinbutton").fill("12")
        await page.locator(f"#job-{three}").get_by_role("button", name="first").click()
        await shows(page, three, one, two)
        assert await page.get_by_label(f"Select Unnamed workflow {two[:8]}").is_checked()
        assert await page.locator(f"#job-{one}").get_by_role("spinbutton").input_value() == "12"


async def test_a_user_sees_its_own_jobs_and_a_reader_can_change_nothing(keys_path: Path) -> None:
    async with open_console(keys_file=keys_path) as console:
        await console.gateway.handler.queue.pause(True)
        body = {"prompt": invert_workflow(1)}
        headers = {**bearer(BOB), "Prefer": "respond-async"}
        async with console.gateway.http.post("/prompt_sync", json=body, headers=headers) as answer:
            bobs = (await answer.json())["prompt_id"]
        await console.sign_in(ALICE, "/console/queue")
        await console.page.get_by_text("No job waits.").wait_for()
        assert await console.page.get_by_role("button").count() == 0
        reader, admin = await console.another(), await console.another()
        for page, key in ((reader, WATCHER), (admin, ROOT)):
            await sign_in(page, f"{console.gateway.url}/console/queue", key)
            await shows(page, bobs)
        assert await reader.get_by_role("button").count() == 0
        assert "bob" in await reader.locator("ol.list").inner_text()
        await admin.get_by_role("button", name="Resume the queue").wait_for()
        await admin.get_by_role("button", name="Cancel Unnamed").wait_for()


@pytest.mark.long
async def test_the_page_shows_when_a_job_begins_and_is_accessible() -> None:
    async with open_console(servers=2) as console:
        http = console.gateway.http
        console.gateway.handler.etas.times.ended("before", needs_of(sleep_workflow(600)), 300.0)
        jobs = [await submit(http, sleep_workflow(600, tag=10 + tag), labels={"order": "12"}) for tag in range(12)]
        await console.open("/console/queue")
        text = await console.page.locator("ol.list").inner_text()
        assert text.count("next on") == 2
        assert "begins in about 10 min" in text
        await accessible(console.page)
        await fits(console.page)
        for engine in console.engines:
            engine.wake(*jobs)
        for job in jobs:
            async with http.delete(f"/prompt_sync/{job}"):
                pass


async def test_changes_by_others_appear_without_a_click() -> None:
    async with paused(1) as (console, (one,)):
        await console.open("/console/queue")
        await shows(console.page, one)
        await console.page.wait_for_function("document.body.dataset.feed === 'open'")
        two = await submit(console.gateway.http, invert_workflow(7), priority=1)
        await shows(console.page, two, one)
        async with console.gateway.http.delete(f"/prompt_sync/{one}") as answer:
            assert answer.status == 200
        await shows(console.page, two)
