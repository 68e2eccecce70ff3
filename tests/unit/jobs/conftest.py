"""Fixtures of the tests of jobs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from comfyui.jobs.journal.protocol import Journal
from tests.support.journals import journal_of


@pytest.fixture(params=["sqlite", "memory"])
async def journal(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Journal]:
    async with journal_of(request.param, tmp_path) as opened:
        yield opened
