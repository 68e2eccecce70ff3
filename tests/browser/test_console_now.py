"""The Now page in Chromium with three engines: running jobs, the servers, and the feed of changes."""

from __future__ import annotations

from typing import Any

import pytest

from comfyui.web.console.static_files import static_files
from tests.support.console import PHONE, accessible, fits, open_console
from tests.support.engine_workflows import txt2img
from tests.support.jobs import submit
from tests.support.running import sleep_workflow, until

pytestmark = pytest.mark.timeout(120)


async def feed_is(page: Any, state: str) -> None:
    await page.wait_for_selector(f"body[data-feed={state}]")


async def test_progress_and_preview_appear_while_a_job_runs() -> None:
    async with open_console(step_seconds=0.05) as console:
        await console.open()
        await feed_is(console.page, "open")
        assert await console.page.locator(".server").count() == 3
        prompt_id = await submit(console.gateway.http, txt2img(steps=300))
        running = console.page.locator(f'[data-job="{prompt_id}"]')
        await running.get_by_text("KSampler").wait_for()
        await running.locator("[data-preview]:not([hidden])").wait_for()
        assert await running.locator("[data-preview]").evaluate("one => one.decode().then(() => one.naturalWidth > 0)")
        first = float(await running.locator("progress").get_attribute("value") or 0)
        await console.page.wait_for_function(
            "([id, first]) => document.querySelector(`[data-job='${id}'] progress`).value > first",
            arg=[prompt_id, first],
        )
        await accessible(console.page)
        async with console.gateway.http.delete(f"/prompt_sync/{prompt_id}") as answer:
            assert answer.status == 200
        await running.wait_for(state="detached")


async def test_a_server_is_drained_and_resumed_on_its_card() -> None:
    async with open_console() as console:
        await console.open()
        await feed_is(console.page, "open")
        name = console.gateway.handler.pool.backends[1].name
        card = console.page.locator(".server", has_text=name)
        await card.get_by_role("button", name=f"Drain {name}").click()
        await card.get_by_text("drained", exact=True).wait_for()
        assert [one.drained for one in console.gateway.handler.pool.backends] == [False, True, False]
        await accessible(console.page)
        await card.get_by_role("button", name=f"Resume {name}").click()
        await card.get_by_text("ready", exact=True).wait_for()
        assert [one.drained for one in console.gateway.handler.pool.backends] == [False, False, False]
        await card.get_by_role("button", name=f"Free memory of {name}").click()
        await console.page.get_by_text(f"{name} frees").wait_for()


async def test_a_running_job_is_cancelled_on_its_card() -> None:
    async with open_console(servers=1) as console:
        prompt_id = await submit(console.gateway.http, sleep_workflow(60))
        await console.open()
        running = console.page.locator(f'[data-job="{prompt_id}"]')
        console.page.once("dialog", lambda dialog: dialog.accept())
        await running.get_by_role("button", name="Cancel").click()
        await running.wait_for(state="detached")


async def test_a_lost_feed_reconnects_and_shows_the_current_jobs() -> None:
    async with open_console() as console:
        await console.open()
        await feed_is(console.page, "open")
        console.allowed.append("ERR_|Failed to load|net::")
        await console.page.context.set_offline(True)
        for audience in console.gateway.app.state.open_consoles.audiences:
            for each in audience.consoles:
                each.end()
        await feed_is(console.page, "lost")
        await console.page.get_by_text("The connection to the gateway is lost.").wait_for()
        prompt_id = await submit(console.gateway.http, sleep_workflow(60))
        await console.page.context.set_offline(False)
        await feed_is(console.page, "open")
        await console.page.locator(f'[data-job="{prompt_id}"]').wait_for()
        assert await console.page.get_by_text("The connection to the gateway is lost.").is_hidden()


@pytest.mark.long
async def test_waiting_jobs_are_listed_in_their_order() -> None:
    async with open_console(servers=1) as console:
        jobs = [await submit(console.gateway.http, sleep_workflow(60, tag=tag)) for tag in range(5)]
        await console.open()
        rows = console.page.locator("#queue .list > li")
        await console.page.wait_for_function("document.querySelectorAll('#queue .list > li').length >= 3")
        shown = await rows.evaluate_all("rows => rows.map(row => row.id)")
        assert [one.removeprefix("job-") for one in shown] == jobs[-len(shown) :]


@pytest.mark.long
async def test_without_javascript_the_page_shows_running_jobs() -> None:
    async with open_console(servers=1, javascript=False) as console:
        prompt_id = await submit(console.gateway.http, sleep_workflow(60))

        async def page() -> str:
            async with console.gateway.http.get("/console") as answer:
                return await answer.text()

        await until(page, lambda text: "SimulatedSleep" in text)
        await console.open()
        assert await console.page.locator(f'[data-job="{prompt_id}"]').get_by_text("SimulatedSleep").is_visible()


@pytest.mark.long
@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_the_page_fits_a_phone_and_is_accessible(scheme: Any) -> None:
    async with open_console(size=PHONE, scheme=scheme) as console:
        for tag in range(8):
            await submit(console.gateway.http, sleep_workflow(60, tag=tag))
        await console.open()
        await console.page.locator("#queue .list > li").first.wait_for()
        await fits(console.page)
        await accessible(console.page)


async def test_a_hidden_page_has_no_feed() -> None:
    async with open_console(servers=1) as console:
        await console.open()
        await feed_is(console.page, "open")
        consoles = console.gateway.app.state.open_consoles
        await console.page.evaluate(
            "() => { Object.defineProperty(document, 'hidden', { value: true, configurable: true });"
            " document.dispatchEvent(new Event('visibilitychange')) }"
        )

        async def looking() -> int:
            return len(consoles.audiences)

        await until(looking, lambda count: count == 0)
        await console.page.evaluate(
            "() => { delete document.hidden; document.dispatchEvent(new Event('visibilitychange')) }"
        )
        await until(looking, lambda count: count == 1)


@pytest.mark.long
async def test_a_server_that_stops_is_shown_as_unreachable() -> None:
    async with open_console(servers=2) as console:
        await console.open()
        await feed_is(console.page, "open")
        await console.engines[0].__aexit__(None, None, None)
        await console.page.locator(".server", has_text="unreachable").wait_for()


@pytest.mark.long
async def test_a_page_from_before_an_update_reloads_once() -> None:
    async with open_console(servers=1) as console:
        loads = 0

        async def old(route: Any) -> None:
            nonlocal loads
            loads += 1
            answer = await route.fetch()
            text = (await answer.text()).replace(static_files().digest, "0" * 16)
            await route.fulfill(response=answer, body=text)

        await console.page.route("**/console", old)
        await console.open()
        await feed_is(console.page, "open")
        assert loads == 2
