"""What the tests of this folder share."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import structlog
from aioresponses import aioresponses

from comfyui.client import ComfyUIClient
from comfyui.retrying import Backoff
from tests.support.mocked import MOCKED_URL, MockedResponse


@pytest.fixture
def upstream(monkeypatch: pytest.MonkeyPatch) -> Iterator[aioresponses]:
    monkeypatch.setattr("aioresponses.core.ClientResponse", MockedResponse)
    with aioresponses() as mocked:
        yield mocked


@pytest.fixture
async def client() -> AsyncIterator[ComfyUIClient]:
    async with ComfyUIClient(MOCKED_URL, retries=2, backoff=Backoff(0, 0)) as opened:
        yield opened


@pytest.fixture
def log_file(tmp_path: Path) -> Iterator[Path]:
    root = logging.getLogger()
    before = root.handlers[:], root.level
    configured = structlog.get_config()
    yield tmp_path / "gateway.log"
    for handler in root.handlers:
        if handler not in before[0]:
            handler.close()
    root.handlers[:], level = before
    root.setLevel(level)
    structlog.configure(**configured)
