"""A page of ComfyUI's web frontend in front of three servers, and what tests do with it."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image

from comfyui.engine import Engine, EngineOptions
from tests.support.browsing import FRONTEND_IS_CONNECTED, browser, chromium, frontend_root
from tests.support.running import RunningGateway, running_gateway, sleep_workflow, until

PATIENCE_MS = 60_000
EXECUTION = "document.querySelector('#vue-app').__vue_app__.config.globalProperties.$pinia._s.get('execution')"
# A newer frontend uses the word job, the older one prompt.
ACTIVE = f"({EXECUTION}.activeJobId === undefined ? {EXECUTION}.activePromptId : {EXECUTION}.activeJobId)"
_SIDEBAR = "window.app.extensionManager.sidebarTab"
_QUEUE = """workflow => window.app.api.queuePrompt(0, { output: workflow, workflow: { nodes: [] } })"""
# The widths of the pictures that the page shows of its history.
_SHOWN = """() => {
    const shown = [...document.querySelectorAll('img')].filter(one => one.src.includes('/view?'))
    // One for each prompt: a newer page shows that which came last a second time.
    return [...new Map(shown.map(one => [new URL(one.src).searchParams.get('subfolder'), one.naturalWidth])).values()]
}"""
# Records the page's events, and whether its websocket is still the first one.
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
    """A page, the gateway that it uses as ComfyUI, and the servers behind the gateway.

    Attributes:
        servers: by the gateway's names.
        is_old: whether the page has its queue in the sidebar, as frontend 1.27 does.
        stack: closes everything that is open.
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
        """Opens the page's queue, which shows the history, too."""
        if self.is_old:
            await self.page.evaluate(f"{_SIDEBAR}.activeSidebarTabId = 'queue'")
        elif not await self.page.get_by_role("button", name="Clear queued").is_visible():
            await self.page.get_by_role("button", name="Expand job queue").click()

    async def shown(self, widths: Sequence[int]) -> None:
        """Waits until the page's history shows pictures of these widths, the last one that ended first."""
        await self.open_queue()
        # The newer page sorts them by submission.
        order = list if self.is_old else sorted
        # For a moment it may still show the previous history.
        await until(
            lambda: self.page.evaluate(_SHOWN),
            lambda found: order(found) == order(widths),
            timeout_s=PATIENCE_MS / 1000,
        )

    async def running(self) -> dict[str, str]:
        """The server of each running prompt, by the prompt's id."""
        watchers = {one.name: one.watcher.running for one in self.gateway.handler.pool.backends}
        return {watch.prompt_id: name for name, watch in watchers.items() if watch is not None}

    async def run_until(self, count: int) -> dict[str, str]:
        return await until(self.running, lambda found: len(found) == count, timeout_s=PATIENCE_MS / 1000)

    async def jobs(self) -> list[list[str]]:
        """The ids of running prompts, and those of waiting ones."""
        async with self.gateway.http.get("/queue") as answer:
            queue = await answer.json()
        return [sorted(item[1] for item in queue[part]) for part in ("queue_running", "queue_pending")]

    async def picture(self, number: int) -> Image.Image:
        """The picture that one of `window.savers` saved in the last run."""
        prompt_id = (await self.page.evaluate("window.ends")).pop()
        async with self.gateway.http.get(f"/history/{prompt_id}") as answer:
            outputs = (await answer.json())[prompt_id]["outputs"]
        (file,) = outputs[await self.page.evaluate(f"`${{window.savers[{number}].id}}`")]["images"]
        async with self.gateway.http.get("/view", params=file) as answer:
            return Image.open(io.BytesIO(await answer.read())).convert("RGB")

    @asynccontextmanager
    async def only(self, name: str) -> AsyncIterator[None]:
        """Lets only this server get prompts within the block."""
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
        """Starts a killed server again, with empty folders."""
        options = self.servers[name].options
        port = int(name.rpartition(":")[2])
        self.servers[name] = await self.stack.enter_async_context(Engine(replace(options, port=port)))


@asynccontextmanager
async def open_site() -> AsyncIterator[Site]:
    """Opens the page; skips the test without a browser or a frontend."""
    chromium()
    options = EngineOptions(front_end_root=frontend_root())
    async with AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(Engine(options)) for _ in range(3)]
        gateway = await stack.enter_async_context(running_gateway(*(server.url for server in servers)))
        # Without this, the frontend shows a new user a dialog over the whole page.
        assert (await gateway.http.post("/settings/Comfy.TutorialCompleted", json=True)).status == 200
        running = await stack.enter_async_context(browser())
        page = await running.new_page(viewport={"width": 1400, "height": 1800})
        await page.goto(f"{gateway.url}/")
        await page.wait_for_function(FRONTEND_IS_CONNECTED, timeout=120_000)
        await page.wait_for_load_state("networkidle")
        await page.evaluate(_LISTEN)
        is_old = await page.evaluate(f"{_SIDEBAR}.sidebarTabs[0].id === 'queue'")
        names = [one.name for one in gateway.handler.pool.backends]
        yield Site(page, gateway, dict(zip(names, servers, strict=True)), is_old, stack)
