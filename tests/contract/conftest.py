"""Each contract test runs against the engine, old and new, and a real ComfyUI where COMFYUI_TEST_URL names one."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator

import aiohttp
import pytest

from comfyui.engine import NEW_VERSION, OLD_VERSION, Engine, EngineOptions
from tests.support.target import Target

_REAL = "real"


@pytest.fixture(params=[OLD_VERSION, NEW_VERSION, pytest.param(_REAL, marks=pytest.mark.real)])
async def target(request: pytest.FixtureRequest) -> AsyncIterator[Target]:
    timeout = aiohttp.ClientTimeout(total=30)
    if request.param != _REAL:
        async with (
            Engine(EngineOptions(comfyui_version=request.param)) as engine,
            aiohttp.ClientSession(engine.url, timeout=timeout) as session,
        ):
            yield Target(engine.url, session, request.param, is_real=False)
        return
    url = os.environ.get("COMFYUI_TEST_URL")
    if not url:
        pytest.skip("COMFYUI_TEST_URL does not name a real ComfyUI")
    async with aiohttp.ClientSession(url, timeout=timeout) as session:
        async with session.get("/system_stats") as response:
            version = (await response.json())["system"]["comfyui_version"]
        yield Target(url, session, version, is_real=True)
