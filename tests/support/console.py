"""The gateway's console in Chromium, in front of three servers."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import pytest

from comfyui.engine import Engine, EngineOptions
from tests.support.browsing import browser, chromium
from tests.support.node import SOURCES
from tests.support.running import RunningGateway, running_gateway

PHONE: Final = {"width": 360, "height": 740}
DESK: Final = {"width": 1280, "height": 900}
PATIENCE_MS: Final = 30_000
_AXE = SOURCES / "node_modules/axe-core/axe.min.js"
_AXE_RUN = """async tags => {
    const found = await axe.run(document, { resultTypes: ['violations'], runOnly: { type: 'tag', values: tags } })
    return found.violations.map(one => ({
        id: one.id, impact: one.impact, help: one.help,
        nodes: one.nodes.slice(0, 5).map(node => `${node.html.slice(0, 200)}: ${node.failureSummary}`),
    }))
}"""
_AXE_TAGS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
_SERIOUS = frozenset({"serious", "critical"})
# About what a screen reader says of the focused element: its tag, its name, and whether the focus is visible.
_FOCUSED = """() => {
    const element = document.activeElement
    if (element === null || element === document.body) return { tag: '', name: '', visible: true }
    const labels = [...(element.labels ?? [])].map(one => one.textContent)
    const texts = [element.getAttribute('aria-label'), labels.join(' '), element.textContent, element.title]
    const style = getComputedStyle(element)
    return {
        tag: element.localName,
        name: (texts.find(one => one?.trim()) ?? element.value ?? '').replace(/\\s+/g, ' ').trim(),
        visible: style.outlineStyle !== 'none' || style.boxShadow !== 'none',
    }
}"""


@dataclass
class Console:
    """A page of the console, the gateway that serves it, and the servers behind that.

    Attributes:
        page: playwright's page; it has no address before `open` or `sign_in`.
        allowed: regular expressions of texts in the browser's console that are not a fault in this test, such as
            ``status of 409`` in the test of a refusal.
        faults: everything that the pages have done wrong.
    """

    page: Any
    gateway: RunningGateway
    engines: list[Engine]
    stack: AsyncExitStack
    running: Any
    allowed: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    async def open(self, path: str = "/console") -> Any:
        """Goes to a path of the gateway and returns playwright's response."""
        return await self.page.goto(f"{self.gateway.url}{path}", wait_until="domcontentloaded")

    async def sign_in(self, key: str, path: str = "/console") -> None:
        """Opens the path and enters the key on the login page, which leads back to the path."""
        await sign_in(self.page, f"{self.gateway.url}{path}", key)

    async def another(self, **options: Any) -> Any:
        """A page of another browser user, without this one's cookies. `options`: those of `open_console`."""
        page = await new_page(self.running, self.stack, **options)
        self.watch(page)
        return page

    def watch(self, page: Any) -> None:
        """Collects this page's faults: errors, breaches of its Content-Security-Policy, requests to other hosts."""
        page.on("console", lambda message: self._note(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: self._note(f"uncaught: {error}"))
        page.on("request", lambda request: self._see(request.url))

    def _note(self, text: str) -> None:
        if not any(re.search(one, text) for one in self.allowed):
            self.faults.append(text)

    def _see(self, url: str) -> None:
        if not url.startswith((f"{self.gateway.url}/", "data:", "blob:", "about:")):
            self.faults.append(f"the page asks another host: {url}")


@asynccontextmanager
async def open_console(
    *,
    servers: int = 3,
    size: Mapping[str, int] = DESK,
    scheme: Literal["light", "dark"] = "light",
    javascript: bool = True,
    motion: Literal["reduce", "no-preference"] = "no-preference",
    step_seconds: float = 0.002,
    front_end_root: Path | None = None,
    **gateway: Any,
) -> AsyncIterator[Console]:
    """Starts engines, a gateway and a browser. Skips the test without a browser; fails it for any fault of a page.

    Args:
        servers: number of engines behind the gateway.
        size: of the window, in CSS pixels: `DESK` or `PHONE`.
        front_end_root: the folder of ComfyUI's frontend that the engines serve.
        gateway: arguments of `running_gateway`: settings such as ``keys_file``, ``workflows_dir``, ``state_dir``.
    """
    chromium()
    options = EngineOptions(step_seconds=step_seconds, front_end_root=front_end_root)
    async with AsyncExitStack() as stack:
        engines = [await stack.enter_async_context(Engine(options)) for _ in range(servers)]
        served = await stack.enter_async_context(running_gateway(*(one.url for one in engines), **gateway))
        running = await stack.enter_async_context(browser())
        page = await new_page(running, stack, size=size, scheme=scheme, javascript=javascript, motion=motion)
        console = Console(page, served, engines, stack, running)
        console.watch(page)
        yield console
        assert console.faults == [], "\n".join(console.faults)


async def new_page(
    running: Any,
    stack: AsyncExitStack,
    *,
    size: Mapping[str, int] = DESK,
    scheme: Literal["light", "dark"] = "light",
    javascript: bool = True,
    motion: Literal["reduce", "no-preference"] = "no-preference",
) -> Any:
    """A page in a new browser context, which the stack closes."""
    context = await running.new_context(
        viewport=dict(size), color_scheme=scheme, java_script_enabled=javascript, reduced_motion=motion
    )
    stack.push_async_callback(context.close)
    context.set_default_timeout(PATIENCE_MS)
    return await context.new_page()


async def sign_in(page: Any, address: str, key: str) -> None:
    """Opens an address of a gateway with keys, and enters the key on the login page."""
    await page.goto(address, wait_until="domcontentloaded")
    await page.get_by_label("API key").fill(key)
    await page.get_by_role("button", name="Sign in").click()
    await page.wait_for_url(lambda url: url.partition("?")[0] == address.partition("?")[0])


async def accessible(page: Any) -> None:
    """Fails if axe-core finds a serious or critical problem. Skips the test if npm has not installed axe-core."""
    if not _AXE.exists():
        pytest.skip("no axe-core for Node here: make tests/contract/openapi/node_modules/.ready")
    # The page's Content-Security-Policy refuses a script tag, but it does not apply to the debugger.
    if not await page.evaluate("'axe' in window"):
        await page.evaluate(_AXE.read_text())
    found = await page.evaluate(_AXE_RUN, _AXE_TAGS)
    serious = [one for one in found if one["impact"] in _SERIOUS]
    assert serious == [], "\n".join(f"{one['id']}: {one['help']}\n  " + "\n  ".join(one["nodes"]) for one in serious)


async def fits(page: Any) -> None:
    """Fails if the page is wider than its window, so that a phone would scroll it sideways."""
    wide = await page.evaluate(
        """() => {
            const width = document.documentElement.clientWidth
            if (document.documentElement.scrollWidth <= width) return []
            const inside = one => one.closest('.scroll') ?? one
            return [...document.querySelectorAll('body *')]
                .filter(one => inside(one).getBoundingClientRect().right > width + 1)
                .slice(0, 10).map(one => one.outerHTML.slice(0, 160))
        }"""
    )
    assert wide == [], "wider than the window:\n" + "\n".join(wide)


async def focused(page: Any) -> str:
    """Tag and name of the focused element, such as ``button Cancel``, or "" if none has the focus."""
    found = await page.evaluate(_FOCUSED)
    return f"{found['tag']} {found['name']}".strip()


async def tab_to(
    page: Any, name: str, *, tag: str | None = None, exact: bool = False, back: bool = False, most: int = 150
) -> None:
    """Presses Tab until an element whose name contains `name` has the focus; fails if the focus is not visible.

    Args:
        tag: the element must have this tag, such as ``button``.
        exact: `name` is the whole name.
        back: presses Shift and Tab.
        most: number of presses after which it fails and shows which elements had the focus.
    """
    passed = []
    for _ in range(most):
        await page.keyboard.press("Shift+Tab" if back else "Tab")
        found = await page.evaluate(_FOCUSED)
        assert found["visible"], f"the focus of {found['tag']} {found['name']!r} is not visible"
        fits_name = name == found["name"] if exact else name in found["name"]
        if fits_name and tag in {None, found["tag"]}:
            return
        passed.append(f"{found['tag']} {found['name'][:40]}".strip())
    raise AssertionError(f"no Tab leads to {name!r}; it led to {passed}")
