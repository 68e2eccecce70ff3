"""ComfyUI's own web frontend, unchanged, in headless Chromium: against ComfyUI itself, then through the gateway."""

from __future__ import annotations

import base64
import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.support import browsing
from tests.support.running import running_gateway
from tests.support.runpod_endpoint import FakeEndpoint, base64_image, outputs_of
from tests.support.target import any_color, inverted
from tests.support.visits import Visit

pytestmark = [pytest.mark.real, pytest.mark.timeout(180), pytest.mark.usefixtures("no_first_visit")]

_KEY = "shown-once-to-the-login-page"
_PICTURE = "type => window.app.graph.nodes.find(node => node.type === type)?.imgs?.[0]?.naturalWidth"


@asynccontextmanager
async def _page(chromium: str, base: str, visit: Visit) -> AsyncIterator[Any]:
    async with browsing.browser() as running:
        page = await running.new_page(viewport={"width": 1400, "height": 900})

        def note(kind: str, text: str) -> None:
            visit.errors.add(f"{kind} {text.replace(base, '').replace(base.replace('http', 'ws'), '')}")

        page.on("console", lambda message: note("console", message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: note("exception", str(error)))
        page.on("response", lambda answer: note(str(answer.status), answer.url) if answer.status >= 400 else None)
        yield page


async def _visit(chromium: str, base: str, *, key: str = "") -> Visit:
    visit = Visit()
    async with _page(chromium, base, visit) as page:
        await page.goto(base)
        if key:
            await page.get_by_label("API key").fill(key)
            await page.get_by_role("button", name="Sign in").click()
        await page.wait_for_function(browsing.FRONTEND_IS_CONNECTED, timeout=60_000)
        await page.wait_for_load_state("networkidle")
        await _run(page, visit)
        await _look_at_history(page, visit)
        await _upload(page, visit)
    return visit


async def _run(page: Any, visit: Visit) -> None:
    workflow = inverted("frontend", color=any_color(), width=96, height=64)
    await page.evaluate("workflow => window.app.loadApiJson(workflow, 'test.json')", workflow)
    await page.get_by_role("button", name="Run", exact=True).first.click()
    await page.wait_for_function(_PICTURE, arg="SaveImage", timeout=30_000)
    visit.run_width = await page.evaluate(_PICTURE, "SaveImage")


async def _look_at_history(page: Any, visit: Visit) -> None:
    await page.reload()
    await page.wait_for_function(browsing.FRONTEND_IS_CONNECTED, timeout=60_000)
    await page.get_by_role("button", name="Queue (q)").click()
    pictures = page.locator(".side-bar-panel img, .sidebar-content-container img, .task-item img")
    await pictures.first.wait_for(state="visible", timeout=30_000)
    visit.history_pictures = await pictures.count()


async def _upload(page: Any, visit: Visit) -> None:
    picture = io.BytesIO()
    Image.new("RGB", (33, 21), any_color()).save(picture, "PNG")
    await page.evaluate(
        "() => { const node = LiteGraph.createNode('LoadImage'); window.app.graph.clear(); window.app.graph.add(node) }"
    )
    async with page.expect_file_chooser() as chooser:
        await page.evaluate(
            "() => window.app.graph.nodes[0].widgets.find(widget => widget.type === 'button').callback()"
        )
    file = {"name": "uploaded.png", "mimeType": "image/png", "buffer": picture.getvalue()}
    await (await chooser.value).set_files(files=[file])
    await page.wait_for_function("() => window.app.graph.nodes[0].imgs?.[0]?.naturalWidth === 33", timeout=30_000)
    visit.uploaded = await page.evaluate("() => window.app.graph.nodes[0].widgets[0].value")
    visit.upload_width = await page.evaluate(_PICTURE, "LoadImage")


@pytest.mark.parametrize("key", ["", _KEY], ids=["open", "with a key, through the login page"])
async def test_the_web_frontend_works_through_the_gateway_as_without_it(
    key: str, real_comfyui: str, chromium_path: str, bare_visit: dict[str, Visit]
) -> None:
    if "visit" not in bare_visit:
        bare_visit["visit"] = await _visit(chromium_path, real_comfyui)
    async with running_gateway(real_comfyui, api_keys=key) as gateway:
        through = await _visit(chromium_path, gateway.url, key=key)

    assert through.run_width == 96
    assert through.history_pictures > 0
    assert through.uploaded.startswith("uploaded")
    assert through.upload_width == 33
    # The frontend has errors without a gateway, too: it requests user files that do not exist.
    assert through.errors - bare_visit["visit"].errors == set()


_LISTEN = """() => {
    window.heard = []
    for (const kind of ['execution_start', 'progress', 'executed', 'execution_success', 'execution_interrupted'])
        window.app.api.addEventListener(kind, () => window.heard.push(kind))
}"""


async def test_the_web_frontends_queue_button_renders_on_runpod(
    real_comfyui: str, chromium_path: str, tmp_path: Path
) -> None:
    picture = io.BytesIO()
    Image.new("RGB", (96, 64), any_color()).save(picture, "PNG")
    saved = base64_image(base64.b64encode(picture.getvalue()).decode(), node_id="3")
    visit = Visit()
    async with (
        FakeEndpoint() as endpoint,
        running_gateway(real_comfyui, **endpoint.settings(tmp_path)) as gateway,
        _page(chromium_path, gateway.url, visit) as page,
    ):
        await page.goto(gateway.url)
        await page.wait_for_function(browsing.FRONTEND_IS_CONNECTED, timeout=60_000)
        await page.wait_for_load_state("networkidle")
        await page.evaluate(_LISTEN)
        workflow = inverted("frontend", color=any_color(), width=96, height=64)
        await page.evaluate("workflow => window.app.loadApiJson(workflow, 'test.json')", workflow)

        await page.evaluate("window.app.queuePrompt(0)")
        job = await endpoint.job()
        endpoint.says(job, "IN_PROGRESS", output={"node_id": "2", "value": 2, "max": 4})
        await page.wait_for_function("window.heard.includes('progress')")
        endpoint.complete(job, saved, outputs=outputs_of("a_00001_.png"))
        await page.wait_for_function(_PICTURE, arg="SaveImage", timeout=30_000)
        assert await page.evaluate(_PICTURE, "SaveImage") == 96
        assert await page.evaluate("window.heard") == ["execution_start", "progress", "executed", "execution_success"]

        # Now one prompt runs and one waits.
        await page.evaluate("window.app.queuePrompt(0)")
        endpoint.says(await endpoint.job(2), "IN_PROGRESS")
        await page.wait_for_function("window.heard.filter(kind => kind === 'execution_start').length === 2")
        await page.evaluate("window.app.queuePrompt(0)")
        await endpoint.job(3)
        await page.get_by_role("button", name="Clear Pending Tasks").click()
        await endpoint.until(lambda: endpoint.cancelled == ["job-3"])
        await page.get_by_role("button", name="Cancel current run").click()
        await endpoint.until(lambda: endpoint.cancelled == ["job-3", "job-2"])
        await page.wait_for_function("window.heard.includes('execution_interrupted')")

        await _look_at_history(page, visit)
    assert visit.history_pictures > 0
