"""`PostgresQueue`: the task queue over a direct connection to Postgres. The only file that knows asyncpg."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, contextmanager
from typing import Any, Self
from uuid import UUID

import asyncpg
import structlog
from pydantic import SecretStr

from comfyui import jsonio
from comfyui.exceptions import QueueError, QueueSetupError
from comfyui.retrying import Backoff
from comfyui.tasks import SideTasks
from comfyui.workers.postgres.schema import SCHEMA_VERSION, TaskNames, migrations
from comfyui.workers.postgres.tasks import ClaimedTask, Heard, Lease, WorkerState

_CHANNEL = "comfy_tasks"
_COMMAND_S = 30.0
_CONNECT_S = 10.0
_RECONNECT = Backoff(start_s=0.4, max_s=10.0)
# Lets two workers that start together migrate one after the other.
_MIGRATION_LOCK = 0x636F6D6679

_NOT_MIGRATED = (asyncpg.UndefinedFunctionError, asyncpg.UndefinedTableError, asyncpg.UndefinedColumnError)
_REFUSED = (
    asyncpg.InvalidPasswordError,
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.InsufficientPrivilegeError,
)


class PostgresQueue:
    """Open it with ``async with``; it owns a small pool, and one connection that listens.

    Args:
        database_url: ``postgresql://…``; also of a pooler, where LISTEN may not work and polling goes on.
        lease_s: how long a task is ours without a heartbeat.
        max_attempts: how often a task is tried before it fails.
        retry_delay_s: how long a task that goes back waits for its next attempt.
    """

    def __init__(
        self,
        database_url: SecretStr,
        *,
        lease_s: float,
        max_attempts: int,
        retry_delay_s: float,
        connections: int = 2,
    ) -> None:
        self._url = database_url
        self._lease_s = lease_s
        self._max_attempts = max_attempts
        self._retry_delay_s = retry_delay_s
        self._connections = connections
        self._log = structlog.get_logger(__name__)
        self._listeners: list[Heard] = []
        self._stack = AsyncExitStack()
        self._pool: asyncpg.Pool[asyncpg.Record]

    async def __aenter__(self) -> Self:
        """Raises `QueueSetupError` when the database has not our functions, or others; `QueueError` when it is away."""
        async with AsyncExitStack() as stack:
            with _translated():
                self._pool = await asyncpg.create_pool(
                    self._url.get_secret_value(),
                    min_size=1,
                    max_size=self._connections,
                    timeout=_CONNECT_S,
                    command_timeout=_COMMAND_S,
                    # A pooler in transaction mode gives every statement another session.
                    statement_cache_size=0,
                )
            stack.push_async_callback(self._close_pool)
            await self._check_schema()
            side = await stack.enter_async_context(SideTasks())
            side.start(self._listen(), "postgres listen")
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self._stack.aclose()

    async def claim(self, worker_id: str, token: UUID) -> ClaimedTask | None:
        with _translated():
            row = await self._pool.fetchrow(
                "select * from comfy_claim_task($1, $2, $3, $4)", worker_id, token, self._lease_s, self._max_attempts
            )
        if row is None:
            return None
        return ClaimedTask.of_row(row, token)

    async def renew(self, task: ClaimedTask, progress: float | None = None, note: str = "") -> Lease:
        return Lease(
            await self._value(
                "select comfy_renew_lease($1, $2, $3, $4, $5)",
                *(task.id, task.token, self._lease_s, progress, note or None),
            )
        )

    async def seen(self, worker_id: str, state: WorkerState, task: ClaimedTask | None = None) -> bool:
        return bool(
            await self._value(
                "select comfy_worker_seen($1, $2, $3, $4)", worker_id, int(state), task and task.id, self._lease_s
            )
        )

    async def complete(
        self,
        task: ClaimedTask,
        output_url: str,
        outputs: Sequence[Mapping[str, Any]],
        result: Mapping[str, Any] | None = None,
    ) -> bool:
        return bool(
            await self._value(
                "select comfy_complete_task($1, $2, $3, $4, $5)",
                *(task.id, task.token, output_url, jsonio.dumps(outputs).decode(), _json_or_null(result)),
            )
        )

    async def fail(
        self,
        task: ClaimedTask,
        error: str,
        *,
        retry: bool,
        outputs: Sequence[Mapping[str, Any]] = (),
        result: Mapping[str, Any] | None = None,
    ) -> bool:
        return bool(
            await self._value(
                "select comfy_fail_task($1, $2, $3, $4, $5, $6, $7, $8)",
                *(task.id, task.token, error, retry, self._max_attempts, self._retry_delay_s),
                *(_json_or_null(outputs or None), _json_or_null(result)),
            )
        )

    def listen(self, heard: Heard) -> None:
        self._listeners.append(heard)

    async def _value(self, query: str, *arguments: Any) -> Any:
        with _translated():
            return await self._pool.fetchval(query, *arguments)

    async def _check_schema(self) -> None:
        version = await self._value("select comfy_schema_version()")
        if version != SCHEMA_VERSION:
            raise QueueSetupError(
                f"the database has version {version} of the functions, but this worker needs version {SCHEMA_VERSION}"
            )

    async def _close_pool(self) -> None:
        try:
            async with asyncio.timeout(_CONNECT_S):
                await self._pool.close()
        except TimeoutError:
            self._pool.terminate()

    async def _listen(self) -> None:
        """Keeps one connection that listens; while there is none, the workers' polls find the news."""
        failures = 0
        while True:
            try:
                connection = await asyncpg.connect(self._url.get_secret_value(), timeout=_CONNECT_S)
            except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
                failures += 1
                if failures == 1:
                    self._log.warning("queue.not_listening", reason=type(error).__name__, until_then="polling")
                await asyncio.sleep(_RECONNECT.delay_s(failures))
                continue
            ended = asyncio.Event()
            connection.add_termination_listener(lambda _connection, ended=ended: ended.set())
            try:
                with contextlib.suppress(asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
                    await connection.add_listener(_CHANNEL, lambda *call: self._heard(str(call[-1])))
                    failures = 0
                    self._heard("")  # for events while no connection listened
                    await ended.wait()
            finally:
                connection.terminate()
            failures += 1
            await asyncio.sleep(_RECONNECT.delay_s(failures))

    def _heard(self, task_id: str) -> None:
        for heard in self._listeners:
            heard(task_id)


async def migrate(database_url: SecretStr, names: TaskNames) -> list[str]:
    """Run every migration in one transaction; returns their names.

    The last one tries a worker's work and undoes it.

    Raises:
        QueueSetupError: a migration failed, or the tables do not accept a worker's writes; nothing is changed then.
        QueueError: the database cannot be reached.
    """
    applied = []
    with _translated():
        connection = await asyncpg.connect(database_url.get_secret_value(), timeout=_CONNECT_S)
        try:
            connection.add_log_listener(_show_notice)
            async with connection.transaction():
                await connection.execute("select pg_advisory_xact_lock($1)", _MIGRATION_LOCK)
                await connection.execute("set local client_min_messages = warning")
                for name, sql in migrations(names):
                    with _translated(migration=name):
                        await connection.execute(sql)
                    applied.append(name)
        finally:
            await connection.close()
    return applied


def _json_or_null(value: Any) -> str | None:
    return None if value is None else jsonio.dumps(value).decode()


def _show_notice(_connection: object, notice: asyncpg.PostgresLogMessage) -> None:
    structlog.get_logger(__name__).warning("migration.warning", detail=str(notice))


@contextmanager
def _translated(*, migration: str = "") -> Iterator[None]:
    """Turns asyncpg's errors into ours. Only the server's own messages are repeated: the driver's may quote the URL."""
    try:
        yield
    except _REFUSED as error:
        raise QueueSetupError(f"the database refused the worker: {error}") from None
    except asyncpg.PostgresConnectionError as error:
        raise QueueError(f"the database cannot be reached: {type(error).__name__}") from None
    except asyncpg.PostgresError as error:
        if migration:
            raise QueueSetupError(f"the migration {migration} failed and changed nothing: {error}") from None
        if isinstance(error, _NOT_MIGRATED):
            raise QueueSetupError(f"the database lacks a table or function; run --migrate: {error}") from None
        raise QueueError(f"the database failed: {error}") from None
    except ValueError as error:
        raise QueueSetupError(f"DATABASE_URL cannot be used: {type(error).__name__}") from None
    # The last is the driver's, on a connection that ended in this moment.
    except (OSError, TimeoutError, asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
        raise QueueError(f"the database cannot be reached: {type(error).__name__}") from None
