"""The console's page of one job in a browser: running it again, opening it in ComfyUI, and live changes."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.support.browsing import frontend_root
from tests.support.console import PATIENCE_MS, PHONE, Console, accessible, fits, open_console, tab_to
from tests.support.engine_workflows import sleeping, txt2img
from tests.support.jobs import ended, submit
from tests.support.running import RunningGateway, invert_workflow
from tests.support.target import node

pytestmark = pytest.mark.timeout(180)

_TITLES = "window.app.graph.nodes.map(node => node.title).sort()"
_PREFIXES = "window.app.graph.nodes.filter(node => node.type === 'SaveImage').map(node => node.widgets[0].value)"


async def ended_job(gateway: RunningGateway, prompt: dict[str, Any], **fields: Any) -> str:
    """The id of an async job that has ended."""
    prompt_id = await submit(gateway.http, prompt, **fields)
    await ended(gateway, prompt_id)
    return prompt_id


async def test_a_graph_and_a_workflow_of_the_editor_open_in_comfyui() -> None:
    """The frontend is 1.27.10; COMFYUI_TEST_FRONTEND names the folder of another version."""
    async with open_console(front_end_root=frontend_root()) as console:
        assert (await console.gateway.http.post("/settings/Comfy.TutorialCompleted", json=True)).status == 200
        prompt_id = await ended_job(console.gateway, invert_workflow(prefix="red-fox"))
        await console.open(f"/console/jobs/{prompt_id}")
        comfyui = await opened(console)
        await comfyui.wait_for_function(f"{_PREFIXES}.includes('red-fox')", timeout=PATIENCE_MS)
        drawn = await comfyui.evaluate("window.app.graph.serialize()")
        drawn["nodes"][0]["title"] = "Drawn by hand"
        # The frontend loads its default workflow first, which must not replace ours.
        await comfyui.wait_for_load_state("networkidle")
        assert await comfyui.evaluate(f"{_PREFIXES}.includes('red-fox')")
        await comfyui.close()
        other = await ended_job(
            console.gateway, invert_workflow(1, prefix="blue-fox"), extra_data={"extra_pnginfo": {"workflow": drawn}}
        )
        await console.open(f"/console/jobs/{other}")
        comfyui = await opened(console)
        await comfyui.wait_for_function(f"{_TITLES}.includes('Drawn by hand')", timeout=PATIENCE_MS)


async def opened(console: Console) -> Any:
    """The window that the button opens."""
    async with console.page.expect_popup() as popup:
        await console.page.get_by_role("button", name="Open in ComfyUI").click()
    page = await popup.value
    await page.wait_for_function("window.app?.graph", timeout=4 * PATIENCE_MS)
    return page


async def test_the_page_of_a_job_follows_it_from_the_queue_to_its_end() -> None:
    async with open_console(servers=1, queue="gateway") as console:
        page, engine = console.page, console.engines[0]
        first, second = [await submit(console.gateway.http, sleeping(seconds, 4)) for seconds in (61.0, 62.0)]
        await console.open(f"/console/jobs/{second}")
        await page.wait_for_selector("#job[data-state=queued]")
        engine.wake(first)
        await page.wait_for_selector("#job[data-state=running] progress")
        await page.wait_for_function("document.querySelector('[data-node]')?.textContent === 'SimulatedSleep'")
        # A value that is typed before the end stays.
        await page.get_by_label("steps").fill("7")
        engine.wake(second)
        await page.wait_for_selector("#job[data-state=succeeded]")
        assert await page.locator("progress").count() == 0
        await page.get_by_role("button", name="Run again").wait_for()
        assert await page.get_by_label("steps").input_value() == "7"


async def test_a_waiting_job_is_put_first_and_cancelled_on_its_page() -> None:
    async with open_console(servers=1, queue="gateway") as console:
        page = console.page
        page.on("dialog", lambda dialog: dialog.accept())
        jobs = [await submit(console.gateway.http, sleeping(61.0 + number)) for number in range(5)]
        await console.open(f"/console/jobs/{jobs[-1]}")
        place = page.locator("section", has=page.get_by_role("heading", name="Progress")).locator("p")
        before = await place.text_content()
        await page.get_by_role("button", name="Put first").click()
        await page.wait_for_function(
            "([place, before]) => place.textContent !== before", arg=[await place.element_handle(), before]
        )
        await page.get_by_role("button", name="Cancel").click()
        await page.wait_for_selector("#job[data-state=canceled]")
        await page.get_by_role("button", name="Run again").wait_for()
        assert console.gateway.handler.queue.has_no_turn(jobs[-2])


@pytest.mark.long
async def test_an_end_that_came_while_the_browser_was_offline_is_shown() -> None:
    async with open_console(servers=1) as console:
        page, engine = console.page, console.engines[0]
        console.allowed += ["ERR_INTERNET_DISCONNECTED"]
        prompt_id = await submit(console.gateway.http, sleeping(61.0))
        await console.open(f"/console/jobs/{prompt_id}")
        await page.wait_for_selector("#job[data-state=running]")
        await page.context.set_offline(True)
        engine.wake(prompt_id)
        await ended(console.gateway, prompt_id)
        await page.context.set_offline(False)
        await page.wait_for_selector("#job[data-state=succeeded]")


async def test_the_keyboard_alone_runs_a_job_again_with_and_without_changes() -> None:
    async with open_console(servers=2) as console:
        page = console.page
        prompt_id = await ended_job(console.gateway, invert_workflow(prefix="keys"))
        await console.open(f"/console/jobs/{prompt_id}")
        await tab_to(page, "Run again", tag="button")
        await page.keyboard.press("Enter")
        await page.wait_for_url(lambda url: "/console/jobs/" in url and prompt_id not in url)
        again = page.url.rpartition("/")[2]
        await page.wait_for_selector("#job[data-state=succeeded]")
        await tab_to(page, "filename_prefix")
        await page.keyboard.press("Control+A")
        await page.keyboard.type("changed")
        await tab_to(page, "Run with these values", tag="button")
        await page.keyboard.press("Enter")
        await page.wait_for_url(lambda url: "/console/jobs/" in url and again not in url)
        await page.wait_for_selector("#job[data-state=succeeded]")
        await page.get_by_role("link", name="changed_00001_.png", exact=True).wait_for()
        shown = page.get_by_role("img", name="Picture changed_00001_.png")
        await page.wait_for_function(
            "image => image.complete && image.naturalWidth > 0", arg=await shown.element_handle()
        )


async def test_a_wrong_value_shows_its_error_and_keeps_the_input() -> None:
    async with open_console(servers=1) as console:
        console.allowed.append("status of 422")
        prompt_id = await ended_job(console.gateway, invert_workflow())
        await console.open(f"/console/jobs/{prompt_id}")
        await console.page.get_by_label("width").fill("wide")
        await console.page.get_by_role("button", name="Run with these values").click()
        await console.page.get_by_role("alert").get_by_text("EmptyImage (node 1), width must be a number").wait_for()
        assert await console.page.get_by_label("width").input_value() == "wide"


@pytest.mark.long
@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_every_part_of_the_page_is_accessible_and_fits_a_phone(scheme: Any) -> None:
    async with open_console(servers=1, scheme=scheme, size=PHONE) as console:
        prompt = txt2img(text="a long text " * 50)
        prompt["10"] = node("SimulatedError", exception_type="ValueError", message="x" * 300, value=["8", 0])
        prompt["11"] = node("PreviewAny", source=["10", 0])
        labels = {"order-of-a-person-with-a-long-key": "v" * 200}
        failed = await ended_job(console.gateway, prompt, labels=labels)
        for prompt_id in (failed, await ended_job(console.gateway, txt2img())):
            await console.open(f"/console/jobs/{prompt_id}")
            await console.page.wait_for_load_state("networkidle")
            await accessible(console.page)
            await fits(console.page)


@pytest.mark.long
async def test_without_javascript_the_forms_work() -> None:
    async with open_console(servers=1, javascript=False) as console:
        prompt_id = await ended_job(console.gateway, txt2img(seed=3))
        await console.open(f"/console/jobs/{prompt_id}")
        await console.page.get_by_role("button", name="Run with new seeds").click()
        await console.page.wait_for_url(lambda url: "/console/jobs/" in url and prompt_id not in url)
        assert not await console.page.get_by_role("button", name="Open in ComfyUI").is_visible()


async def test_an_end_before_the_feed_of_the_page_opens_is_shown() -> None:
    """The page used to say "Queued" for ever, because the job ended after the page was made and before its feed."""
    async with open_console(servers=1) as console:
        has_ended = asyncio.Event()

        async def held(route: Any) -> None:
            await has_ended.wait()
            await route.continue_()

        await console.page.route("**/console/feed*", held)
        prompt_id = await submit(console.gateway.http, sleeping(60.0, 1))
        await console.open(f"/console/jobs/{prompt_id}")
        assert await console.page.locator("#job").get_attribute("data-state") in {"queued", "running"}
        console.engines[0].wake(prompt_id)
        await ended(console.gateway, prompt_id)
        has_ended.set()
        await console.page.wait_for_selector("#job[data-state=succeeded]")
