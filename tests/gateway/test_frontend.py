"""ComfyUI's own web frontend in Chromium, behind a proxy that strips a path; and a foreign page with tickets.

The engine serves the frontend. `tests/contract/test_frontend_real.py` tests more of it against a real ComfyUI.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest
from aiohttp import web
from yarl import URL

from comfyui.engine import Engine, EngineOptions
from tests.support.browsing import (
    FRONTEND_IS_CONNECTED,
    SAVED_PICTURE_WIDTH,
    TAB_ICON,
    browser,
    chromium,
    frontend_root,
)
from tests.support.relaying import fetch
from tests.support.running import invert_workflow, running_gateway
from tests.support.stripping import behind

pytestmark = pytest.mark.timeout(180)

_KEY = "shown-once-to-the-login-page"


async def _visit(page: Any, address: str) -> None:
    """Opens the frontend, signs in, and runs a workflow until its picture is shown."""
    await page.goto(f"{address}/")
    await page.get_by_label("API key").fill(_KEY)
    await page.get_by_role("button", name="Sign in").click()
    await page.wait_for_function(FRONTEND_IS_CONNECTED, timeout=90_000)
    await page.wait_for_load_state("networkidle")
    await page.evaluate(
        "workflow => window.app.loadApiJson(workflow, 'test.json')", invert_workflow(width=96, height=64)
    )
    await page.evaluate("window.app.queuePrompt(0)")
    await page.wait_for_function(SAVED_PICTURE_WIDTH, timeout=60_000)
    assert await page.evaluate(SAVED_PICTURE_WIDTH) == 96


async def test_the_web_frontend_works_behind_a_path_prefix_with_keys(tmp_path: Path) -> None:
    chromium()
    kind = "nginx" if shutil.which("nginx") else "stripping"
    requested: list[str] = []
    failed: dict[tuple[str, str], int] = {}

    def note(address: str, answer: Any) -> None:
        if answer.status >= 400 and TAB_ICON not in answer.url:
            failed[answer.request.method, answer.url.replace(address, "")] = answer.status

    async with (
        Engine(EngineOptions(step_seconds=0.002, front_end_root=frontend_root())) as engine,
        running_gateway(engine.url, api_keys=_KEY) as gateway,
        behind(kind, gateway.url, tmp_path) as address,
        browser() as running,
        aiohttp.ClientSession(engine.url) as comfyui,
    ):
        # For a new user the frontend covers the page with a dialog of templates.
        assert (await comfyui.post("/settings/Comfy.TutorialCompleted", json=True)).status == 200
        page = await running.new_page()
        page.on("request", lambda request: requested.append(request.url))
        page.on("websocket", lambda socket: requested.append(socket.url.replace("ws", "http", 1)))
        page.on("response", lambda answer: note(address, answer))
        await _visit(page, address)
        assert page.url.rstrip("/") == address
        # A reload needs no key and finds what the frontend has stored.
        await page.reload()
        await page.wait_for_function(FRONTEND_IS_CONNECTED, timeout=90_000)
        # Requests for missing user files fail on ComfyUI itself with the same status.
        for (method, path), status in failed.items():
            async with comfyui.request(method, URL(path, encoded=True)) as answer:
                assert answer.status == status, f"{method} {path}"
    own = [url for url in requested if not url.startswith(("data:", "blob:", "https://")) and TAB_ICON not in url]
    assert any(url.startswith(f"{address}/ws") for url in own)
    assert [url for url in own if not url.startswith(f"{address}/")] == []


_OTHER_PAGE = """<!doctype html><title>another origin</title><img id="picture"><script>
const heard = []
async function open(kind) {
    const answer = await fetch('/addresses')
    const { picture, websocket } = await answer.json()
    document.getElementById('picture').src = kind === 'ticket' ? picture : picture.replace(/&ticket=.*/, '')
    const socket = new WebSocket(kind === 'ticket' ? websocket : websocket.replace(/&ticket=.*/, ''))
    socket.onmessage = message => heard.push(message.data)
    socket.onerror = () => heard.push('refused')
}
</script>"""


async def test_tickets_give_a_foreign_page_a_picture_and_the_websocket(engine: Engine) -> None:
    chromium()
    async with running_gateway(engine.url, api_keys=_KEY) as gateway, browser() as running:
        bearer = {"Authorization": f"Bearer {_KEY}"}
        body = {"prompt": invert_workflow(width=96, height=64)}
        answer = await fetch(gateway, "/prompt_sync", "POST", json=body, headers=bearer)
        picture = orjson.loads(answer.body)["images"][0]["url"]

        async def ticket(url: str, *, websocket: bool = False) -> str:
            """Requests a ticket as the server of the application does."""
            wanted = {"url": url, "websocket": websocket}
            made = await fetch(gateway, "/tickets", "POST", json=wanted, headers=bearer)
            return str(orjson.loads(made.body)["url"])

        async def addresses(_request: web.Request) -> web.Response:
            socket = await ticket("/ws?clientId=other", websocket=True)
            ws = gateway.url.replace("http", "ws")
            return web.json_response({"picture": f"{gateway.url}{await ticket(picture)}", "websocket": f"{ws}{socket}"})

        async def index(_request: web.Request) -> web.Response:
            return web.Response(text=_OTHER_PAGE, content_type="text/html")

        application = web.Application()
        application.add_routes([web.get("/", index), web.get("/addresses", addresses)])
        runner = web.AppRunner(application, access_log=None)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            # `localhost` is another site, not only another port of 127.0.0.1.
            page = await running.new_page()
            await page.goto(f"http://localhost:{runner.addresses[0][1]}/")
            await page.evaluate("open('ticket')")
            await page.wait_for_function("document.getElementById('picture').naturalWidth === 96", timeout=30_000)
            await page.wait_for_function("heard.some(text => text.includes('status'))", timeout=30_000)
            await page.reload()
            await page.evaluate("open('none')")
            await page.wait_for_function("heard.includes('refused')", timeout=30_000)
            assert await page.evaluate("document.getElementById('picture').naturalWidth") == 0
        finally:
            await runner.cleanup()
