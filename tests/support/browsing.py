"""Debian's Chromium, driven by playwright, and ComfyUI's own web frontend for the engine to serve."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

# JavaScript that is true once ComfyUI's frontend has its graph and an open websocket.
FRONTEND_IS_CONNECTED = "window.app?.graph && window.app.api?.socket?.readyState === WebSocket.OPEN"
# JavaScript that gives the width of the picture at the first SaveImage node, if there is one.
SAVED_PICTURE_WIDTH = "() => window.app.graph.nodes.find(node => node.type === 'SaveImage')?.imgs?.[0]?.naturalWidth"
# The animated icon of the browser tab: the frontend always requests it at the root of the site.
TAB_ICON = "/assets/images/favicon_progress_16x16/"

_PROGRAMS = ("chromium-headless-shell", "chromium", "google-chrome")
_QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
]


def chromium() -> str:
    """The path of the program; skips the test without it. The build without windows starts in half of the CPU time."""
    found = next(filter(None, map(shutil.which, _PROGRAMS)), None)
    if found is None:
        pytest.skip("no chromium: apt-get install --no-install-recommends chromium-headless-shell")
    return found


def frontend_root() -> Path:
    """The folder of ComfyUI's web frontend; skips the test if the package is not installed.

    COMFYUI_TEST_FRONTEND names the folder ``static`` of another version's package.
    """
    if other := os.environ.get("COMFYUI_TEST_FRONTEND"):
        return Path(other)
    found = importlib.util.find_spec("comfyui_frontend_package")
    if found is None or found.origin is None:
        pytest.skip("no web frontend: pip install 'comfyui-frontend-package>=1.27,<1.28'")
    return Path(found.origin).parent / "static"


@asynccontextmanager
async def browser() -> AsyncIterator[Any]:
    """A new browser without cookies."""
    playwright = pytest.importorskip("playwright.async_api", reason="playwright is not installed")
    program = chromium()
    async with playwright.async_playwright() as driver:
        running = await driver.chromium.launch(executable_path=program, args=_QUIET)
        try:
            yield running
        finally:
            await running.close()
