"""What the tests of the console in a browser share."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.console import Console, open_console
from tests.support.keys import KEYS, write_keys
from tests.support.run_forms import every_folder


@pytest.fixture
def keys_path(tmp_path: Path) -> Path:
    """A file with the keys of two users, of a reader and of an admin: see `tests.support.keys`."""
    return write_keys(tmp_path / "keys.toml", KEYS)


@pytest.fixture
async def console() -> AsyncIterator[Console]:
    """A gateway without keys and with three servers, in a desktop window."""
    async with open_console() as opened:
        yield opened


@pytest.fixture
async def run_console(tmp_path: Path) -> AsyncIterator[Console]:
    """As `console`, with the workflows of `every_folder`."""
    async with open_console(workflows_dir=every_folder(tmp_path / "workflows")) as opened:
        yield opened
