"""The console's results in a browser: media, files that must not run as code, filters, and endless scrolling."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest

from comfyui.jobs.journal.sqlite import FILE_NAME
from tests.support.console import DESK, PHONE, Console, accessible, fits, open_console, sign_in, tab_to
from tests.support.engine_workflows import txt2img, writing
from tests.support.keys import ALICE, BOB
from tests.support.many_jobs import many_jobs
from tests.support.outputs import SCRIPTED_PAGE, SCRIPTED_SVG, made_file, png
from tests.support.running import invert_workflow, until
from tests.support.target import node
from tests.support.videos import make_video

pytestmark = pytest.mark.timeout(180)

_OLDER = re.compile(r"/console/results\?cursor=")
_SHOWN = "image => image.complete && image.naturalWidth > 0"


async def results(console: Console, query: str = "") -> Any:
    """Opens the results and returns the page."""
    await console.open(f"/console/results{query}")
    return console.page


async def becomes_true(page: Any, script: str, arg: Any = None) -> None:
    """Waits until the script is true. Playwright's own wait needs `eval`, which the page's policy forbids."""
    await until(lambda: page.evaluate(script, arg), bool, timeout_s=30)


async def shown_images(page: Any, count: int) -> None:
    """Waits until `count` pictures of the page are loaded and shown."""
    await becomes_true(
        page, f"count => [...document.querySelectorAll('.gallery img')].filter({_SHOWN}).length === count", count
    )


async def test_pictures_videos_sounds_models_and_texts_are_shown(tmp_path: Path) -> None:
    video = await make_video(tmp_path / "a.mp4", "-c:v", "libx264", "-pix_fmt", "yuv420p")
    sound = await make_video(tmp_path / "a.wav", source="sine=frequency=440")
    async with open_console(servers=1) as console:
        gateway, engine = console.gateway, console.engines[0]
        await made_file(gateway, engine, "png", png())
        await made_file(gateway, engine, "mp4", await asyncio.to_thread(video.read_bytes))
        await made_file(gateway, engine, "wav", await asyncio.to_thread(sound.read_bytes))
        await made_file(gateway, engine, "glb", b"glTF")
        await gateway.prompt_sync({"1": node("PreviewAny", source="what a node tells")}, labels={"order": "12"})
        await gateway.prompt_sync(
            {
                "1": node("SimulatedError", exception_type="RuntimeError", message="no memory left"),
                "2": node("PreviewAny", source=["1", 0]),
            }
        )
        page = await results(console)
        await shown_images(page, 1)
        await page.get_by_text("what a node tells").wait_for()
        await page.get_by_text("no memory left").wait_for()
        assert await page.get_by_role("link", name="Save written").get_attribute("download") is not None
        for medium in ("video", "audio"):
            element = page.locator(medium)
            assert await element.evaluate("one => one.preload") == "none", "nothing is loaded before it is played"
            await element.evaluate("one => { one.muted = true; return one.play() }")
            await becomes_true(page, "one => document.querySelector(one).currentTime > 0.05", medium)
        poster = await page.locator("video").get_attribute("poster")
        assert await page.evaluate("url => fetch(url).then(answer => answer.headers.get('content-type'))", poster) == (
            "image/webp"
        )
        await accessible(page)


async def test_no_file_that_a_job_made_runs_as_code(console: Console) -> None:
    """Files with scripts are shown on the results, opened, put into a frame, and loaded as another type."""
    gateway = console.gateway
    console.allowed += ["Refused to", "status of 404", "MIME type", "Content Security Policy", "ERR_ABORTED", "nosniff"]
    ids = []
    for extension, content in (
        ("svg", SCRIPTED_SVG),
        ("html", SCRIPTED_PAGE),
        ("js", b"window.ran = 1"),
        ("xml", SCRIPTED_SVG),
    ):
        before = {path for engine in console.engines for path in engine.folders.output.rglob("*")}
        _, answer = await gateway.prompt_sync(writing(extension=extension))
        ids.append(answer["prompt_id"])
        (made,) = {path for engine in console.engines for path in engine.folders.output.rglob("*")} - before
        await asyncio.to_thread(made.write_bytes, content)
    asked: list[str] = []
    console.page.on("request", lambda request: asked.append(request.url))
    page = await results(console)
    assert await page.get_by_role("link", name="Save written").count() == 4
    for prompt_id in ids:
        address = f"{gateway.url}/console/files/{prompt_id}/0"
        # The browser saves the file instead of opening it.
        async with page.expect_download() as saving:
            await page.evaluate("url => { window.location.href = url }", address)
        await (await saving.value).delete()
        # Even elements that are added to our page do not run it, neither as a script nor in a frame.
        await page.evaluate(
            """url => Promise.all(['script', 'iframe', 'embed', 'object'].map(tag => new Promise(done => {
                const element = document.createElement(tag)
                element[tag === 'object' ? 'data' : 'src'] = url
                element.onload = element.onerror = done
                setTimeout(done, 300)
                document.body.append(element)
            })))""",
            address,
        )
    assert await page.evaluate("window.ran") is None
    assert not [url for url in asked if url.endswith("/prompt_sync")]
    assert page.url.startswith(f"{gateway.url}/console/results")


async def test_an_opened_text_is_shown_as_plain_text(console: Console) -> None:
    _, answer = await console.gateway.prompt_sync({"1": node("PreviewAny", source=SCRIPTED_PAGE.decode())})
    page = await results(console)
    await page.locator("a.said").click()
    await page.wait_for_url(f"**/console/files/{answer['prompt_id']}/0")
    assert await page.evaluate("document.contentType") == "text/plain"
    assert await page.evaluate("window.ran") is None
    assert "<script>" in await page.evaluate("document.body.textContent")


@pytest.mark.long
async def test_a_picture_without_a_thumbnail_is_shown_by_its_name(console: Console) -> None:
    console.allowed += ["status of 404"]
    await console.gateway.prompt_sync(writing(extension="png"))
    page = await results(console)
    await page.locator("a.tile span", has_text="_.png, picture").wait_for()
    assert await page.locator(".gallery img").count() == 0


async def test_the_keyboard_alone_finds_an_error(console: Console) -> None:
    gateway = console.gateway
    await gateway.prompt_sync(txt2img(steps=1), labels={"order": "11"})
    await gateway.prompt_sync(
        {
            "1": node("SimulatedError", exception_type="RuntimeError", message="the lens is dirty"),
            "2": node("PreviewAny", source=["1", 0]),
        },
        labels={"order": "12"},
    )
    page = await results(console)
    await tab_to(page, "Words", tag="input")
    await page.keyboard.type("lens DIRTY")
    await page.keyboard.press("Enter")
    await page.wait_for_url("**text=lens+DIRTY**")
    await page.get_by_text("the lens is dirty").wait_for()
    assert await page.locator(".result").count() == 1
    await page.get_by_label("State").select_option("succeeded")
    await page.keyboard.press("Enter")
    await tab_to(page, "Find", tag="button")
    await page.keyboard.press("Enter")
    await page.get_by_text("No job matches all of these").wait_for()
    await tab_to(page, "Show all", tag="a")
    await page.keyboard.press("Enter")
    await page.wait_for_url(f"{gateway.url}/console/results")
    assert await page.locator(".result").count() == 2


@pytest.mark.long
async def test_an_invalid_label_filter_shows_an_error(console: Console) -> None:
    console.allowed += ["status of 400"]
    page = await results(console)
    await page.get_by_label("Label").fill("order")
    await page.get_by_role("button", name="Find").click()
    await page.get_by_role("alert").get_by_text("Label: write it as key=value.").wait_for()
    assert await page.get_by_label("Label").input_value() == "order"
    await accessible(page)


async def test_the_keyboard_alone_browses_large_pictures(console: Console) -> None:
    console.allowed += ["ERR_ABORTED"]
    for color in range(3):
        await console.gateway.prompt_sync(invert_workflow(color, width=64, height=48, prefix=f"look{color}"))
    page = await results(console)
    await shown_images(page, 3)
    dialog, large = page.get_by_role("dialog"), page.locator("dialog img")
    await tab_to(page, "Find", tag="button")
    await page.keyboard.press("Tab")
    await page.keyboard.press("Enter")
    for name, key in (
        ("look2_", "ArrowRight"),
        ("look1_", "ArrowRight"),
        ("look0_", "ArrowRight"),
        ("look0_", "ArrowLeft"),
    ):
        assert name in (await large.get_attribute("alt") or "")
        await becomes_true(page, f"[document.querySelector('dialog img')].some({_SHOWN})")
        await page.keyboard.press(key)
    assert "look1_" in (await large.get_attribute("alt") or "")
    saved = await dialog.get_by_role("link", name="Save").get_attribute("href")
    assert saved == await large.evaluate("image => image.src")
    await accessible(page)
    await page.keyboard.press("Escape")
    await dialog.wait_for(state="hidden")
    assert "look1_" in await page.evaluate("document.activeElement.querySelector('img').alt")


async def test_jobs_that_end_while_the_page_is_open_are_announced(console: Console) -> None:
    page = await results(console)
    await page.get_by_text("No job has ended yet").wait_for()
    await becomes_true(page, "document.body.dataset.feed === 'open'")
    await console.gateway.prompt_sync(writing())
    await console.gateway.prompt_sync(writing(size=1))
    await page.get_by_text("Jobs that have ended since: 2.").wait_for()
    await page.get_by_role("link", name="To the newest results").click()
    await page.locator(".result").nth(1).wait_for()


async def test_each_user_sees_only_its_own_results(keys_path: Path) -> None:
    async with open_console(servers=1, keys_file=keys_path) as console:
        await made_file(console.gateway, console.engines[0], "png", png("red"), key=ALICE)
        await console.sign_in(ALICE, "/console/results")
        await shown_images(console.page, 1)
        other = await console.another()
        await sign_in(other, f"{console.gateway.url}/console/results", BOB)
        await other.get_by_text("No job has ended yet").wait_for()


@pytest.mark.long
async def test_a_phone_shows_results_in_one_column() -> None:
    async with open_console(servers=1, size=PHONE, scheme="dark") as console:
        for _ in range(3):
            await made_file(console.gateway, console.engines[0], "png", png())
        await console.gateway.prompt_sync({"1": node("PreviewAny", source="x" * 2000)}, labels={"a" * 40: "b" * 80})
        page = await results(console)
        await page.locator(".result").nth(3).wait_for()
        await fits(page)
        lefts = await page.evaluate(
            "[...document.querySelectorAll('.result')].map(one => one.getBoundingClientRect().left)"
        )
        assert len(set(lefts)) == 1
        await accessible(page)


@pytest.mark.long
async def test_without_javascript_links_lead_to_older_results(tmp_path: Path) -> None:
    async with open_console(servers=1, javascript=False, state_dir=str(tmp_path)) as console:
        await console.gateway.prompt_sync(writing())
    many_jobs(tmp_path / FILE_NAME, 120)
    async with open_console(servers=1, javascript=False, state_dir=str(tmp_path)) as console:
        page = await results(console)
        await page.get_by_role("link", name="Older results").click()
        await page.wait_for_url("**cursor=**")
        await page.get_by_role("link", name="Older results").click()
        await page.get_by_text("There are no older results.").wait_for()
        assert await page.locator(".result").count() == 24
        await page.get_by_role("link", name="To the newest results").click()
        assert await page.locator(".result").count() == 48


async def test_scrolling_loads_older_results_and_unloads_distant_ones(tmp_path: Path) -> None:
    async with open_console(servers=1, state_dir=str(tmp_path)) as console:
        await console.gateway.prompt_sync(writing(extension="bin"))
    many_jobs(tmp_path / FILE_NAME, 100_000)
    async with open_console(servers=1, size=DESK, state_dir=str(tmp_path)) as console:
        page = await results(console)
        ids = "[...document.querySelectorAll('.result a[href*=jobs]')].map(one => one.href)"
        first = await page.evaluate(ids)
        assert first
        for count in range(1, 15):
            await page.evaluate("window.scrollTo(0, document.body.scrollHeight)")
            await becomes_true(page, "count => document.querySelectorAll('.page').length > count", count)
            assert await page.locator(".result").count() <= 48 * 9
        assert len(set(await page.evaluate(ids))) == await page.locator(".result").count()
        # The address leads back to the visible results, also after a visit to another page.
        await becomes_true(page, "location.search.includes('cursor=')")
        # After scrolling back, results that were unloaded come again at the same place.
        second = "document.querySelectorAll('.page')[1]"
        assert await page.evaluate(f"{second}.children.length") == 0
        height = await page.evaluate(f"{second}.offsetHeight")
        await page.evaluate(f"{second}.scrollIntoView()")
        await becomes_true(page, f"{second}.children.length > 0")
        assert await page.evaluate(f"{second}.offsetHeight") == height
        again = await page.evaluate(ids)
        assert again[:48] == first
        assert len(set(again[:96])) == 96


@pytest.mark.long
async def test_a_search_without_results_asks_before_it_searches_further(tmp_path: Path) -> None:
    async with open_console(servers=1, state_dir=str(tmp_path)) as console:
        await console.gateway.prompt_sync(writing())
    many_jobs(tmp_path / FILE_NAME, 25_000)
    async with open_console(servers=1, state_dir=str(tmp_path)) as console:
        asked: list[str] = []
        console.page.on("request", lambda request: asked.append(request.url))
        page = await results(console, "?text=zebra")
        link = page.get_by_role("link", name="Search further")

        def searched() -> list[str]:
            return [url for url in asked if "cursor=" in url]

        async def settled() -> int:
            return len(searched()) if await link.get_attribute("aria-busy") is None else 0

        await until(settled, lambda count: count == 5, timeout_s=30)
        before = await link.get_attribute("href")
        await becomes_true(page, "new Promise(done => setTimeout(() => done(true), 300))")
        assert len(searched()) == 5, "after five searches without a result the visitor is asked"
        await link.click()
        await becomes_true(
            page, "before => document.querySelector('[data-more] a')?.getAttribute('href') !== before", before
        )
        await (
            page.get_by_text("No job matches all of these")
            .or_(page.get_by_text("There are no older results."))
            .or_(link)
            .first.wait_for()
        )


@pytest.mark.long
async def test_results_that_cannot_be_loaded_show_an_error_and_can_be_retried(tmp_path: Path) -> None:
    async with open_console(servers=1, state_dir=str(tmp_path)) as console:
        await console.gateway.prompt_sync(writing())
    many_jobs(tmp_path / FILE_NAME, 150)
    async with open_console(servers=1, state_dir=str(tmp_path)) as console:
        console.allowed += ["ERR_FAILED"]
        await console.page.route(_OLDER, lambda route: route.abort())
        page = await results(console)
        await page.evaluate("window.scrollTo(0, document.body.scrollHeight)")
        await page.get_by_text("Older results could not be loaded.").wait_for()
        await page.unroute(_OLDER)
        await page.get_by_role("link", name="Older results").click()
        await becomes_true(page, "document.querySelectorAll('.result').length > 48")
