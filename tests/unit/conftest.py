"""Fixtures of the tests in this folder."""

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
    """The file for a test's log. `_logging_as_before` undoes the test's logging set-up."""
    return tmp_path / "gateway.log"
