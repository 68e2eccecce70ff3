from __future__ import annotations

from collections.abc import AsyncIterator

import aiohttp
import pytest

from comfyui.engine import Engine, EngineOptions
from tests.support.target import Target


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    async with Engine(EngineOptions(step_seconds=0.0)) as engine:
        yield engine


@pytest.fixture
async def target(engine: Engine) -> AsyncIterator[Target]:
    async with aiohttp.ClientSession(engine.url, timeout=aiohttp.ClientTimeout(total=20)) as session:
        yield Target(engine.url, session, engine.options.comfyui_version, is_real=False)
