"""What the tests of the workers share."""

from __future__ import annotations

import importlib.util
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING

import pytest

from tests.support.postgres_server import PostgresServer, binaries, running_postgres

if TYPE_CHECKING:
    from tests.support.tables import Tables


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """One real Postgres for all tests of this session."""
    if binaries() is None or importlib.util.find_spec("asyncpg") is None:
        pytest.skip("no Postgres here: install requirements/dev.txt")
    with running_postgres() as server:
        yield server


@pytest.fixture
async def tables(postgres: PostgresServer) -> AsyncIterator[Tables]:
    """A database of this test alone, with the migrations run."""
    from tests.support.tables import new_database

    async with new_database(postgres) as database:
        yield database


@pytest.fixture(autouse=True)
def _no_setting_of_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """No platform's variable of the developer's shell reaches a test."""
    for name in ("DATABASE_URL", "SUPABASE_URL", "SUPABASE_SERVICE_ROLE_KEY", "LH_HOST", "S3_BUCKET", "COMFY_PATH"):
        monkeypatch.delenv(name, raising=False)
