"""ComfyUI's own web frontend in Chromium before three servers: for a page they are one ComfyUI."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from comfyui.engine import Engine, EngineOptions
from tests.support.browsing import browser, chromium, frontend_root
from tests.support.running import RunningGateway, executions, running_gateway, sleep_workflow, until

pytestmark = pytest.mark.timeout(240)

_CONNECTED = "window.app?.graph && window.app.api?.socket?.readyState === WebSocket.OPEN"
_STORES = "document.querySelector('#vue-app').__vue_app__.config.globalProperties.$pinia._s"
_PICTURES = f"""async () => {{
    const pictures = {_STORES}.get('queue').historyTasks.map(task => task.previewOutput?.url)
    const widths = pictures.map(async url => (await createImageBitmap(await (await fetch(url)).blob())).width)
    return await Promise.all(widths)
}}"""
_QUEUE = """workflow => window.app.api.queuePrompt(0, { output: workflow, workflow: {} })"""
# What the page is told, and whether its websocket is still the one that it opened.
_LISTEN = """() => {
    window.first = window.app.api.socket
    window.ends = []
    window.lost = 0
    window.app.api.addEventListener('reconnecting', () => { window.lost += 1 })
    window.app.api.socket.addEventListener('message', event => {
        if (typeof event.data !== 'string') return
        const { type, data } = JSON.parse(event.data)
        if (type === 'executing' && data.node === null) window.ends.push(data.prompt_id)
    })
}"""


@asynccontextmanager
async def _page() -> AsyncIterator[tuple[Any, RunningGateway, list[Engine]]]:
    async with AsyncExitStack() as stack:
        servers = [
            await stack.enter_async_context(Engine(EngineOptions(front_end_root=frontend_root()))) for _ in range(3)
        ]
        gateway = await stack.enter_async_context(running_gateway(*(server.url for server in servers)))
        page = await (await stack.enter_async_context(browser())).new_page()
        await page.goto(f"{gateway.url}/")
        await page.wait_for_function(_CONNECTED, timeout=120_000)
        await page.wait_for_load_state("networkidle")
        await page.evaluate(_LISTEN)
        yield page, gateway, servers


async def _queue(page: Any, seconds: float, tag: int, *, steps: int = 1) -> str:
    workflow = sleep_workflow(seconds, tag=tag)
    workflow["1"]["inputs"]["width"] = 16 * (tag + 1)
    workflow["4"]["inputs"]["steps"] = steps
    told = await page.evaluate(_QUEUE, workflow)
    return str(told["prompt_id"])


async def _ended(page: Any, count: int) -> list[str]:
    await page.wait_for_function(f"window.ends.length >= {count}", timeout=60_000)
    return list(await page.evaluate("window.ends"))


async def test_six_prompts_of_one_page_that_end_out_of_order_show_six_pictures() -> None:
    chromium()
    async with _page() as (page, _, servers):
        seconds = (4.0, 0.2, 0.8, 0.1, 0.4, 0.05)
        ids = [await _queue(page, long, tag) for tag, long in enumerate(seconds)]
        ended = await _ended(page, 6)
        assert sorted(ended) == sorted(ids)
        assert ended != ids
        assert sum(bool(executions(server)) for server in servers) >= 2
        pictures = await until(
            lambda: page.evaluate(_PICTURES), lambda widths: len(widths) == 6 and None not in widths, timeout_s=60
        )
        assert pictures == [16 * (ids.index(prompt_id) + 1) for prompt_id in reversed(ended)]


async def test_of_two_at_once_the_first_keeps_its_progress() -> None:
    chromium()
    store = f"{_STORES}.get('execution')"
    progress = f"{store}.activePromptId && [{store}.activePromptId, {store}.executingNodeId]"
    async with _page() as (page, gateway, _):
        first = await _queue(page, 600, 1, steps=2000)
        await page.wait_for_function(f"{store}.executingNodeId === '4'", timeout=60_000)
        second = await _queue(page, 0.05, 2)
        assert await _ended(page, 1) == [second]
        await page.wait_for_function(f"{store}.activePromptId === '{first}'", timeout=60_000)
        assert await page.evaluate(progress) == [first, "4"]
        before = await page.evaluate(f"{store}.executingNodeProgress")
        await page.wait_for_function(f"{store}.executingNodeProgress > {before or 0}", timeout=60_000)
        await page.evaluate("window.app.api.interrupt()")
        assert await _ended(page, 2) == [second, first]
        await page.wait_for_function(f"{store}.activePromptId === null", timeout=60_000)
        assert await page.evaluate("window.lost") == 0
        assert gateway.handler.waiting == 0


async def test_a_server_that_ends_while_it_works_does_not_end_the_page_s_socket() -> None:
    chromium()
    async with _page() as (page, gateway, servers):
        prompt_id = await _queue(page, 600, 1)
        pool = gateway.handler.pool

        async def running() -> list[str]:
            return [one.name for one in pool.backends if one.watcher.running is not None]

        (name,) = await until(running, bool)
        (server,) = [one for one in servers if one.url.endswith(name)]
        await server.__aexit__(None, None, None)
        await until(running, lambda found: bool(found) and name not in found)
        assert await page.evaluate("window.ends") == []
        await page.evaluate("window.app.api.interrupt()")
        assert await _ended(page, 1) == [prompt_id]
        assert await page.evaluate("window.lost === 0 && window.app.api.socket === window.first")
