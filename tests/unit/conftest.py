"""What the tests of this folder share."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
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
def log_file(tmp_path: Path) -> Path:
    """Where a test has the log written: what it sets up is undone after it, as after every test."""
    return tmp_path / "gateway.log"
