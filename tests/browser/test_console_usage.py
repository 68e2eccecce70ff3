"""The pages of usage and keys, and the login page, as a person uses them."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest

from tests.support.console import PHONE, Console, accessible, fits, focused, open_console, tab_to
from tests.support.jobs import ASYNC
from tests.support.keys import ALICE, BOB, CAROL, ROOT, bearer, table, write_keys
from tests.support.running import invert_workflow, sleep_workflow, until

pytestmark = pytest.mark.timeout(180)


async def _use(console: Console) -> None:
    """Three runs of alice, one of bob, and a job of bob that does not end."""
    for key, count in ((ALICE, 3), (BOB, 1)):
        for color in range(count):
            body = {"prompt": invert_workflow(color)}
            async with console.gateway.http.post("/prompt_sync", json=body, headers=bearer(key)) as answer:
                assert answer.status == 200
    body = {"prompt": sleep_workflow(600)}
    async with console.gateway.http.post("/prompt_sync", json=body, headers=bearer(BOB) | ASYNC) as answer:
        assert answer.status == 202
    standing = console.gateway.handler.standing

    async def placed() -> int:
        return sum(one.placed for one in standing.by_key().values())

    await until(placed, lambda found: found == 1)


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_a_person_signs_in_reads_the_usage_and_signs_out(
    keys_path: Path, scheme: Literal["light", "dark"]
) -> None:
    async with open_console(scheme=scheme, keys_file=keys_path) as console:
        await _use(console)
        page = console.page
        await console.open("/console/usage")
        await accessible(page)
        await page.get_by_label("API key").fill("wrong")
        console.allowed.append("status of 401")
        await page.get_by_role("button", name="Sign in").click()
        await page.get_by_text("The gateway does not know this key.").wait_for()
        await accessible(page)
        await page.get_by_label("API key").fill(ROOT)
        await page.get_by_role("button", name="Sign in").click()
        await page.get_by_role("heading", name="Usage").wait_for()
        await accessible(page)
        await page.get_by_label("Measure").select_option("prompts")
        await page.get_by_label("By").select_option("key")
        await page.get_by_role("button", name="Show").click()
        await page.get_by_role("row").filter(has_text="alice").filter(has_text="75%").wait_for()
        assert await page.locator("figure rect[class^=series-]").count() == 4  # two parts, and two of the legend
        await page.get_by_role("link", name="365 days").click()
        await page.locator("a[aria-current=true]", has_text="365 days").wait_for()
        await accessible(page)
        await page.get_by_role("link", name="Keys").click()
        await page.get_by_role("heading", name="Keys").wait_for()
        await page.get_by_role("row").filter(has_text="bob").wait_for()
        await accessible(page)
        await page.get_by_role("link", name="Sign out").click()
        await page.get_by_label("API key").wait_for()
        console.allowed.append("ERR_ABORTED")
        await console.open("/console/keys")
        await page.get_by_label("API key").wait_for()


@pytest.mark.long
async def test_usage_and_keys_fit_a_phone(tmp_path: Path) -> None:
    keys = table("a" * 64, ROOT, "admin")
    keys += table("alice", ALICE, max_queued=5, per_minute=10, user_header="X-User") + table("bob", BOB)
    keys += table("carol", CAROL, workflows=["portrait", "landscape"])
    async with open_console(size=PHONE, keys_file=write_keys(tmp_path / "keys.toml", keys)) as console:
        await _use(console)
        await console.open("/console/usage")
        await fits(console.page)
        for path in ("/console/usage", "/console/usage?by=day", "/console/keys"):
            if path == "/console/usage":
                await console.sign_in(ROOT, path)
            else:
                await console.open(path)
            await fits(console.page)
            await accessible(console.page)


@pytest.mark.long
async def test_the_keyboard_alone_signs_in_and_chooses_days(keys_path: Path) -> None:
    async with open_console(keys_file=keys_path) as console:
        await _use(console)
        page = console.page
        await console.open("/console/usage")
        await page.wait_for_function("document.activeElement.id === 'key'")  # autofocus, once the page is drawn
        assert await focused(page) == "input API key"
        await page.keyboard.type(ROOT)
        await page.keyboard.press("Enter")
        await page.get_by_role("heading", name="Usage").wait_for()
        await tab_to(page, "Measure", tag="select")
        await page.keyboard.press("ArrowDown")
        await tab_to(page, "Show", tag="button")
        await page.keyboard.press("Enter")
        await page.wait_for_url("**/console/usage?*show=prompts*")
        await tab_to(page, "7 days", tag="a")
        await page.keyboard.press("Enter")
        await page.locator("a[aria-current=true]", has_text="7 days").wait_for()
        # A table that is too wide gets the focus, so that the arrow keys scroll it.
        await tab_to(page, "Usage")


@pytest.mark.long
async def test_usage_needs_no_javascript(keys_path: Path) -> None:
    async with open_console(servers=1, javascript=False, keys_file=keys_path) as console:
        page = console.page
        await console.sign_in(ROOT, "/console/usage")
        await page.get_by_label("From").fill("2001-01-01")
        await page.get_by_label("To").fill("2001-01-31")
        await page.get_by_role("button", name="Show").click()
        await page.get_by_text("Nothing was used in these days.").wait_for()
