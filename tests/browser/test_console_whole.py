"""The console as a whole: every page on a phone, and one way through all pages with the keyboard alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest

from tests.support.console import PHONE, Console, accessible, fits, focused, open_console, tab_to
from tests.support.jobs import ASYNC, ended
from tests.support.keys import ALICE, ROOT, bearer
from tests.support.named_folder import named_folder, run
from tests.support.running import invert_workflow, sleep_workflow, until

pytestmark = pytest.mark.timeout(300)


async def _submit(console: Console, workflow: object, key: str) -> str:
    http, body = console.gateway.http, {"prompt": workflow, "labels": {"order": "4711"}}
    async with http.post("/prompt_sync", json=body, headers=bearer(key) | ASYNC) as answer:
        assert answer.status == 202, await answer.text()
        return str((await answer.json())["prompt_id"])


async def _jobs(console: Console) -> tuple[str, str, list[str]]:
    """A job that made a picture, one that failed, and four long ones, of which three run and one waits."""
    made = await _submit(console, invert_workflow(1), ALICE)
    await ended(console.gateway, made)
    assert (await run(console.gateway.http, "flat", {"seed": 1}, headers=bearer(ALICE)))[0] == 200
    for engine in console.engines:
        await engine.set_faults({"node_error": {"message": "Out of memory, and a_long_name" * 4, "times": 1}})
    failed = await _submit(console, invert_workflow(2), ALICE)
    await ended(console.gateway, failed)
    for engine in console.engines:
        engine.faults.clear()
    standing_ids = [await _submit(console, sleep_workflow(600, tag=tag), ALICE) for tag in range(4)]
    standing = console.gateway.handler.standing

    async def running() -> int:
        return len(standing.now(lambda _owner: True).running)

    await until(running, lambda found: found == 3)
    return made, failed, standing_ids


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_every_page_fits_a_phone_and_is_accessible(
    keys_path: Path, tmp_path: Path, scheme: Literal["light", "dark"]
) -> None:
    workflows = named_folder(tmp_path / "workflows")
    async with open_console(size=PHONE, scheme=scheme, keys_file=keys_path, workflows_dir=workflows) as console:
        made, failed, _ = await _jobs(console)
        await console.sign_in(ROOT)
        console.allowed.append("status of 404")
        wrong = []
        for path in (
            "",
            "/queue",
            "/results",
            f"/jobs/{made}",
            f"/jobs/{failed}",
            "/run",
            "/run/flat",
            "/run/inverted",
            "/usage",
            "/keys",
            "/no-such-page",
        ):
            await console.open(f"/console{path}")
            for held in (fits, accessible):
                try:
                    await held(console.page)
                except AssertionError as error:
                    wrong.append(f"/console{path}: {error}")
        assert wrong == [], "\n".join(wrong)


async def _go(page: Any, name: str, heading: str | None = None) -> None:
    """Goes to another page by a link of the navigation."""
    await tab_to(page, name, tag="a", exact=True)
    await page.keyboard.press("Enter")
    await page.get_by_role("heading", level=1, name=heading or name).wait_for()


async def test_the_whole_console_can_be_used_with_the_keyboard_alone(keys_path: Path, tmp_path: Path) -> None:
    workflows = named_folder(tmp_path / "workflows")
    async with open_console(keys_file=keys_path, workflows_dir=workflows) as console:
        _, _, standing_ids = await _jobs(console)
        page, press = console.page, console.page.keyboard.press
        # A dialog of the browser itself has the focus on its first button.
        page.on("dialog", lambda question: question.accept())
        await console.open("/console")
        await page.wait_for_function("document.activeElement.id === 'key'")
        await page.keyboard.type(ROOT)
        await press("Enter")
        await page.get_by_role("heading", name="Now").wait_for()

        await press("Tab")
        assert await focused(page) == "a Skip to the content"
        await press("Enter")
        await tab_to(page, "Drain", tag="button")
        await press("Enter")
        await page.get_by_text("gets no more prompts").wait_for()
        await tab_to(page, "Resume", tag="button")
        await press("Space")
        await page.get_by_text("gets prompts again").wait_for()

        await _go(page, "Queue")
        await tab_to(page, "Cancel Unnamed workflow", tag="button")
        await press("Enter")
        await page.get_by_text("The job is cancelled.").wait_for()
        await page.get_by_text("No job waits.").wait_for()
        for engine in console.engines:
            engine.wake(*standing_ids)

        await _go(page, "Results")
        await tab_to(page, "State", tag="select")
        await page.keyboard.type("Failed")
        await tab_to(page, "Find", tag="button")
        await press("Enter")
        await page.wait_for_url("**/console/results?*state=failed*")
        await tab_to(page, "Unnamed workflow", tag="a", exact=True)
        await press("Enter")
        await page.get_by_text("End of the traceback").wait_for()
        await tab_to(page, "Run again", tag="button")
        await press("Enter")
        await page.get_by_text("Succeeded", exact=True).wait_for()

        await _go(page, "Run", "Run a workflow")
        await tab_to(page, "Flat", tag="a")
        await press("Enter")
        await page.get_by_role("heading", level=1, name="Flat").wait_for()
        await tab_to(page, "Width", tag="input", exact=True)
        await press("ArrowUp")
        await tab_to(page, "Run", tag="button", exact=True)
        await press("Enter")
        await page.locator("#panel img").first.wait_for()
        await tab_to(page, "All about this job", tag="a")
        await press("Enter")
        await page.get_by_role("heading", level=2, name="Parameters").wait_for()

        await _go(page, "Usage")
        await tab_to(page, "By", tag="select")
        await press("ArrowDown")
        await tab_to(page, "Show", tag="button")
        await press("Enter")
        await page.wait_for_url("**/console/usage?*by=person*")
        await _go(page, "Keys")
        await tab_to(page, "Sign out", tag="a")
        await press("Enter")
        await page.get_by_label("API key").wait_for()
