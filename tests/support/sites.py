"""A page of ComfyUI's web frontend before three servers, and what tests do with it."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image

from comfyui.engine import Engine, EngineOptions
from tests.support.browsing import browser, chromium, frontend_root
from tests.support.running import RunningGateway, running_gateway, sleep_workflow, until

PATIENCE_MS = 60_000
_CONNECTED = "window.app?.graph && window.app.api?.socket?.readyState === WebSocket.OPEN"
EXECUTION = "document.querySelector('#vue-app').__vue_app__.config.globalProperties.$pinia._s.get('execution')"
# A newer frontend says job where the older one says prompt.
ACTIVE = f"({EXECUTION}.activeJobId === undefined ? {EXECUTION}.activePromptId : {EXECUTION}.activeJobId)"
_SIDEBAR = "window.app.extensionManager.sidebarTab"
_QUEUE = """workflow => window.app.api.queuePrompt(0, { output: workflow, workflow: { nodes: [] } })"""
# The widths of the pictures that the page shows of its history.
_SHOWN = """() => {
    const shown = [...document.querySelectorAll('img')].filter(one => one.src.includes('/view?'))
    // One for each prompt: a newer page shows that which came last a second time.
    return [...new Map(shown.map(one => [new URL(one.src).searchParams.get('subfolder'), one.naturalWidth])).values()]
}"""
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
_CLEAR = f"""async () => {{
    {_SIDEBAR}.activeSidebarTabId = null
    window.app.graph.clear()
    await window.app.api.clearItems('history')
    window.ends = []
}}"""
SAME_SOCKET = "window.lost === 0 && window.app.api.socket === window.first"


@dataclass
class Site:
    """A page, the gateway that it knows as ComfyUI, and the servers behind that.

    Attributes:
        servers: as the gateway names them.
        is_old: the page has its queue in the sidebar, as of frontend 1.27.
        stack: closes what is open.
    """

    page: Any
    gateway: RunningGateway
    servers: dict[str, Engine]
    is_old: bool
    stack: AsyncExitStack

    async def queue(self, tag: int, *, steps: int = 1) -> str:
        """Queues a prompt that runs until it is woken; its picture is 16 · (tag + 1) pixels wide."""
        workflow = sleep_workflow(600, tag=tag)
        workflow["1"]["inputs"]["width"] = 16 * (tag + 1)
        workflow["4"]["inputs"]["steps"] = steps
        told = await self.page.evaluate(_QUEUE, workflow)
        return str(told["prompt_id"])

    def wake(self, *prompt_ids: str) -> None:
        for server in self.servers.values():
            server.wake(*prompt_ids)

    async def ended(self, count: int) -> list[str]:
        await self.page.wait_for_function(f"window.ends.length >= {count}", timeout=PATIENCE_MS)
        return list(await self.page.evaluate("window.ends"))

    async def open_queue(self) -> None:
        """Opens what the page calls its queue, which shows the history, too."""
        if self.is_old:
            await self.page.evaluate(f"{_SIDEBAR}.activeSidebarTabId = 'queue'")
        elif not await self.page.get_by_role("button", name="Clear queued").is_visible():
            await self.page.get_by_role("button", name="Expand job queue").click()

    async def shown(self, widths: Sequence[int]) -> None:
        """The page's history shows pictures of these widths, in the order of their ends, the last first."""
        await self.open_queue()
        # The newer page sorts them by their submissions.
        order = list if self.is_old else sorted
        # For a moment it may show what was in the history before.
        await until(
            lambda: self.page.evaluate(_SHOWN),
            lambda found: order(found) == order(widths),
            timeout_s=PATIENCE_MS / 1000,
        )

    async def running(self) -> dict[str, str]:
        """By prompt, the server that runs it."""
        watchers = {one.name: one.watcher.running for one in self.gateway.handler.pool.backends}
        return {watch.prompt_id: name for name, watch in watchers.items() if watch is not None}

    async def run_until(self, count: int) -> dict[str, str]:
        return await until(self.running, lambda found: len(found) == count, timeout_s=PATIENCE_MS / 1000)

    async def jobs(self) -> list[list[str]]:
        """The ids that run, and those that wait."""
        async with self.gateway.http.get("/queue") as answer:
            queue = await answer.json()
        return [sorted(item[1] for item in queue[part]) for part in ("queue_running", "queue_pending")]

    async def picture(self, number: int) -> Image.Image:
        """What one of `window.savers` has saved in the run that ended last."""
        prompt_id = (await self.page.evaluate("window.ends")).pop()
        async with self.gateway.http.get(f"/history/{prompt_id}") as answer:
            outputs = (await answer.json())[prompt_id]["outputs"]
        (file,) = outputs[await self.page.evaluate(f"`${{window.savers[{number}].id}}`")]["images"]
        async with self.gateway.http.get("/view", params=file) as answer:
            return Image.open(io.BytesIO(await answer.read())).convert("RGB")

    @asynccontextmanager
    async def only(self, name: str) -> AsyncIterator[None]:
        """Meanwhile this server alone gets prompts."""
        others = [one for one in self.servers if one != name]
        for other in others:
            assert (await self.gateway.http.post(f"/servers/{other}/drain")).status == 200
        yield
        for other in others:
            assert (await self.gateway.http.post(f"/servers/{other}/resume")).status == 200

    async def clear(self) -> None:
        """Empties graph and history, and closes the queue; nothing may run or wait."""
        assert await self.jobs() == [[], []]
        await self.page.evaluate(_CLEAR)

    async def kill(self, name: str) -> None:
        await self.servers[name].__aexit__(None, None, None)

    async def start_again(self, name: str) -> None:
        """A server that was killed is there again, with empty folders."""
        options = self.servers[name].options
        port = int(name.rpartition(":")[2])
        self.servers[name] = await self.stack.enter_async_context(Engine(replace(options, port=port)))


@asynccontextmanager
async def open_site() -> AsyncIterator[Site]:
    """Skips the test where there is no browser or no frontend."""
    chromium()
    options = EngineOptions(front_end_root=frontend_root())
    async with AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(Engine(options)) for _ in range(3)]
        gateway = await stack.enter_async_context(running_gateway(*(server.url for server in servers)))
        # To a new user the frontend offers templates, in a dialog over everything.
        assert (await gateway.http.post("/settings/Comfy.TutorialCompleted", json=True)).status == 200
        running = await stack.enter_async_context(browser())
        page = await running.new_page(viewport={"width": 1400, "height": 1800})
        await page.goto(f"{gateway.url}/")
        await page.wait_for_function(_CONNECTED, timeout=120_000)
        await page.wait_for_load_state("networkidle")
        await page.evaluate(_LISTEN)
        is_old = await page.evaluate(f"{_SIDEBAR}.sidebarTabs[0].id === 'queue'")
        names = [one.name for one in gateway.handler.pool.backends]
        yield Site(page, gateway, dict(zip(names, servers, strict=True)), is_old, stack)
