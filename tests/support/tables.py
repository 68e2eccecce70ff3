"""A new database with the migrations applied, and what tests do with its tasks."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import asyncpg
from pydantic import SecretStr

from comfyui.workers.postgres.queue import PostgresQueue, migrate
from comfyui.workers.postgres.schema import TaskNames
from tests.support.postgres_server import PostgresServer

_numbers = itertools.count(1)
Row = dict[str, Any]


@dataclass(frozen=True)
class Tables:
    """`url` leads to a database that is dropped after the test."""

    url: str
    sql: asyncpg.Connection[asyncpg.Record]
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Serialises the statements, because a connection runs one at a time and a test may wait for two rows at once."""

    async def workers(self) -> dict[str, Row]:
        """The rows of the table of workers, by id."""
        async with self._turn:
            return {record["id"]: dict(record) for record in await self.sql.fetch("select * from workers")}

    async def add(self, params: dict[str, Any], **columns: Any) -> str:
        """Queues a task; returns its id."""
        names = ", ".join(["params", *columns])
        values = ", ".join(f"${number}" for number in range(1, len(columns) + 2))
        query = f"insert into tasks ({names}) values ({values}) returning id"  # noqa: S608
        return str(await self.sql.fetchval(query, json.dumps(params), *columns.values()))

    async def row(self, task_id: str) -> Row:
        async with self._turn:
            record = await self.sql.fetchrow("select * from tasks where id = $1", UUID(task_id))
        assert record is not None
        row = dict(record)
        for column in ("outputs", "result"):
            row[column] = json.loads(row[column]) if row.get(column) else None
        return row

    async def set_status(self, task_id: str, status: str) -> None:
        await self.sql.execute("update tasks set status = $2 where id = $1", UUID(task_id), status)

    async def expire(self, task_id: str) -> None:
        """Sets the task's lease to a time that is over."""
        query = "update tasks set lease_expires_at = now() - interval '1 second' where id = $1"
        await self.sql.execute(query, UUID(task_id))

    async def until(self, task_id: str, is_so: Callable[[Row], bool], *, within_s: float = 15.0) -> Row:
        """Waits until `is_so` is true for the row, and returns the row."""
        async with asyncio.timeout(within_s):
            while not is_so(row := await self.row(task_id)):
                await asyncio.sleep(0.02)
        return row

    async def until_status(self, task_id: str, *statuses: str, within_s: float = 15.0) -> Row:
        return await self.until(task_id, lambda row: row["status"] in statuses, within_s=within_s)

    def queue(self, **options: Any) -> PostgresQueue:
        chosen: dict[str, Any] = {"lease_s": 30.0, "max_attempts": 3, "retry_delay_s": 0.0, **options}
        return PostgresQueue(SecretStr(self.url), **chosen)


@asynccontextmanager
async def new_database(server: PostgresServer, names: TaskNames | None = None) -> AsyncIterator[Tables]:
    """A database with the migrations applied. With the default names it is copied from a template, which is faster."""
    name = f"test_{next(_numbers)}"
    admin = await asyncpg.connect(server.url())
    try:
        if not await admin.fetchval("select count(*) from pg_database where datname = 'migrated'"):
            await admin.execute("create database migrated")
            await migrate(SecretStr(server.url("migrated")), TaskNames())
        template = "template0" if names else "migrated"
        await admin.execute(f"create database {name} template {template}")
        if names:
            await migrate(SecretStr(server.url(name)), names)
        sql = await asyncpg.connect(server.url(name))
        try:
            yield Tables(server.url(name), sql)
        finally:
            await sql.close()
            await admin.execute(f"drop database {name} with (force)")
    finally:
        await admin.close()
