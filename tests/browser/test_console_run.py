"""`/console/run` in a browser: forms with every kind of field, files by drop and paste, and the run beside a form."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest

from tests.support.console import PHONE, Console, accessible, fits, focused, open_console, tab_to
from tests.support.named_folder import png
from tests.support.run_forms import LARGEST_SEED, every_folder

pytestmark = pytest.mark.timeout(180)

_BRING = """({ zone, kind, data, name }) => {
    const bytes = Uint8Array.from(atob(data), (one) => one.charCodeAt(0))
    const transfer = new DataTransfer()
    transfer.items.add(new File([bytes], name, { type: 'image/png' }))
    const options = { bubbles: true, cancelable: true }
    const event = kind === 'paste'
        ? new ClipboardEvent('paste', { ...options, clipboardData: transfer })
        : new DragEvent(kind, { ...options, dataTransfer: transfer })
    document.querySelector(zone).dispatchEvent(event)
}"""


async def _bring(page: Any, kind: str, zone: str, name: str) -> None:
    """Sends the events to the page that a browser sends for a dropped or pasted picture."""
    data = base64.b64encode(png("red")).decode()
    await page.evaluate(_BRING, {"zone": zone, "kind": kind, "data": data, "name": name})


async def _used(console: Console) -> dict[str, Any]:
    """The parameters of the run that is shown beside the form."""
    prompt_id = await console.page.get_attribute("#panel [data-job]", "data-job")
    async with console.gateway.http.get(f"/prompt_sync/{prompt_id}") as response:
        used: dict[str, Any] = (await response.json())["workflow"]["parameters"]
    return used


async def test_the_keyboard_alone_runs_a_workflow_whose_result_appears_beside_the_form(run_console: Console) -> None:
    page = run_console.page
    await run_console.open()
    await tab_to(page, "Run", tag="a")
    await page.keyboard.press("Enter")
    await page.wait_for_url("**/console/run")
    await tab_to(page, "Every <kind>", tag="a")
    await page.keyboard.press("Enter")
    await page.wait_for_url("**/console/run/*")
    await tab_to(page, "Prompt", tag="textarea")
    await page.keyboard.type("a fox")
    await tab_to(page, "Steps, as a slider")
    await page.keyboard.press("ArrowRight")
    await page.keyboard.press("ArrowRight")
    assert await page.input_value("#field-steps") == "4"
    await tab_to(page, "Lossless")
    await page.keyboard.press("Space")
    await tab_to(page, "Run", tag="button")
    await page.keyboard.press("Enter")
    await page.wait_for_selector("#panel [data-state=succeeded] img")
    await page.wait_for_function("() => document.querySelector('#panel img').naturalWidth === 64")
    used = await _used(run_console)
    assert (used["prompt"], used["steps"], used["lossless"]) == ("a fox", 4, False)
    # The run is among the recent runs, and is shown again after a reload.
    await page.wait_for_selector("[data-recent] td a")
    await page.reload()
    await page.wait_for_selector("#panel [data-state=succeeded] img")


async def test_seeds_are_random_or_typed_and_stay_exact(run_console: Console) -> None:
    page = run_console.page
    await run_console.open("/console/run/every")
    each, seed = page.get_by_label("Random each run"), page.locator("#field-seed")
    await page.wait_for_selector("[data-each-run]:checked")
    await page.get_by_role("button", name="Another Seed").click()
    first = await seed.input_value()
    assert first.isdigit()
    assert int(first) < 2**53
    assert not await each.is_checked()
    await page.get_by_role("button", name="Another Seed").click()
    assert await seed.input_value() != first
    await each.check()
    assert await seed.input_value() == "random"
    await seed.fill(str(LARGEST_SEED))
    assert not await each.is_checked()
    await page.fill("#field-prompt", "a fox")
    await page.click("#run button.first")
    await page.wait_for_selector("#panel [data-state=succeeded]")
    assert (await _used(run_console))["seed"] == LARGEST_SEED


async def test_a_pasted_picture_replaces_a_dropped_one(run_console: Console) -> None:
    page = run_console.page
    await run_console.open("/console/run/inverted")
    await _bring(page, "drop", "[data-drop]", "dropped.png")
    await page.wait_for_function("() => document.querySelector('.drop img')?.naturalWidth === 8")
    assert "dropped.png" in await page.inner_text("[data-chosen]")
    await _bring(page, "paste", "body", "pasted.png")
    await page.wait_for_selector(".drop img[alt='pasted.png']")
    assert "pasted.png" in await page.inner_text("[data-chosen]")
    await page.click("#run button.first")
    await page.wait_for_selector("#panel [data-state=succeeded] img")
    assert (await _used(run_console))["image"].startswith("file:")
    await page.get_by_role("button", name="Remove the file").click()
    assert await page.inner_text("[data-chosen]") == ""
    assert await focused(page) != ""


async def test_an_error_appears_at_its_field_which_gets_the_focus(run_console: Console) -> None:
    run_console.allowed.append("status of 422")
    page = run_console.page
    await run_console.open("/console/run/every")
    await page.fill("#field-prompt", "a fox")
    await page.fill("#field-steps", "500")
    await page.locator("details", has_text="More settings").locator("summary").click()
    await page.click("#run button.first")
    await page.wait_for_selector("#field-steps-why:not([hidden])")
    assert await page.inner_text("#field-steps-why") == "must be a whole number from 1 to 30, not 500"
    assert await page.evaluate("document.activeElement.id") == "field-steps"
    assert await page.get_attribute("#field-steps", "aria-invalid") == "true"
    assert "field-steps-why" in await page.get_attribute("#field-steps", "aria-describedby")
    assert await page.input_value("#field-prompt") == "a fox"
    await accessible(page)
    await page.fill("#field-steps", "2")
    await page.focus("#field-prompt")
    await page.keyboard.press("Control+Enter")
    await page.wait_for_selector("#panel [data-state=succeeded]")
    assert await page.is_hidden("#field-steps-why")
    assert await page.is_hidden("#problem")


async def test_a_run_shows_its_progress_even_after_a_reload(tmp_path: Path) -> None:
    folder = every_folder(tmp_path / "workflows")
    async with open_console(servers=1, step_seconds=0.2, workflows_dir=folder) as console:
        page = console.page
        await console.open("/console/run/every")
        await page.fill("#field-prompt", "a fox")
        await page.fill("#field-steps", "20")
        await page.click("#run button.first")
        await page.wait_for_function("() => document.querySelector('#panel progress')?.value > 0")
        await page.wait_for_selector("#panel [data-node]:not(:empty)")
        await page.wait_for_selector("#panel [data-preview]:not([hidden])")
        await page.reload()
        await page.wait_for_function("() => document.querySelector('#panel progress')?.value > 0")
        await page.wait_for_selector("#panel [data-state=succeeded] img")


@pytest.mark.long
async def test_a_run_is_cancelled_beside_its_form(tmp_path: Path) -> None:
    folder = every_folder(tmp_path / "workflows")
    async with open_console(servers=1, step_seconds=60, workflows_dir=folder) as console:
        page = console.page
        await console.open("/console/run/every")
        await page.fill("#field-prompt", "a fox")
        await page.click("#run button.first")
        await page.get_by_role("button", name="Cancel this run").click()
        await page.wait_for_selector("#panel [data-state=canceled]")
        assert await page.get_by_role("button", name="Cancel this run").count() == 0


async def test_the_code_examples_follow_the_values(run_console: Console) -> None:
    page = run_console.page
    await run_console.open("/console/run/inverted")
    await page.locator("#code summary").click()
    await _bring(page, "drop", "[data-drop]", "my photo.png")
    await page.wait_for_function(
        "() => document.querySelector('[data-language=curl]').textContent.includes('my photo.png')"
    )
    assert run_console.gateway.url in await page.inner_text("[data-language=Python]")
    await page.get_by_role("button", name="Copy the curl code").click()
    await page.wait_for_selector(".toast:has-text('Copied.')")


@pytest.mark.long
async def test_without_javascript_a_form_leads_to_its_job(tmp_path: Path) -> None:
    folder = every_folder(tmp_path / "workflows")
    async with open_console(servers=1, javascript=False, workflows_dir=folder) as console:
        page = console.page
        await console.open("/console/run/every")
        await page.fill("#field-prompt", "a fox\nin the snow")
        await page.uncheck("#field-lossless")
        await page.click("#run button.first")
        await page.wait_for_url("**/console/jobs/*")
        async with console.gateway.http.get(f"/prompt_sync/{page.url.rpartition('/')[2]}") as response:
            used = (await response.json())["workflow"]["parameters"]
        assert (used["prompt"], used["lossless"]) == ("a fox\nin the snow", False)


@pytest.mark.long
@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_the_pages_fit_a_phone_and_are_accessible(tmp_path: Path, scheme: Any) -> None:
    folder = every_folder(tmp_path / "workflows")
    async with open_console(servers=1, size=PHONE, scheme=scheme, workflows_dir=folder) as console:
        for path in ("/console/run", "/console/run/every", "/console/run/inverted"):
            await console.open(path)
            for summary in await console.page.locator("summary").all():
                await summary.click()
            await fits(console.page)
            await accessible(console.page)
