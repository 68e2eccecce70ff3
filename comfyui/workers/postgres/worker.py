"""The worker for a table of tasks in Postgres or Supabase: ``python -m comfyui.workers.postgres_worker --help``."""

from __future__ import annotations

import argparse
import asyncio
import os
import secrets
import socket
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any

import structlog

from comfyui.exceptions import ComfyUIConnectionError, ComfyUIError, QueueError, QueueSetupError, SettingsError
from comfyui.logs import configure_logging
from comfyui.outputs.stores.store import ObjectStore
from comfyui.outputs.stores.supabase import SupabaseApi, SupabaseStorage
from comfyui.retrying import Backoff
from comfyui.settings import ENV_FILE, load
from comfyui.tasks import happens_within
from comfyui.workers.base import ComfyUIWorker, stop_on_signals
from comfyui.workers.diagnostics import describing
from comfyui.workers.postgres.runner import TaskRunner, TaskRunnerOptions
from comfyui.workers.postgres.schema import migrations
from comfyui.workers.postgres.settings import PostgresWorkerSettings
from comfyui.workers.postgres.supabase import SupabaseQueue
from comfyui.workers.postgres.tasks import TaskQueue

_log = structlog.get_logger("postgres_worker")
_BACKOFF = Backoff(start_s=0.4, max_s=15.0)


async def serve(settings: PostgresWorkerSettings, worker_id: str, stop: asyncio.Event) -> None:
    """Works until `stop` is set, and then finishes the running task.

    Raises:
        QueueSetupError: the database or project does not take us; the text says what to do.
        ComfyUIConnectionError: the ComfyUI that this worker starts crashed too often.
    """
    failure: BaseException | None = None
    async with AsyncExitStack() as stack:
        api = None
        if settings.supabase_url and settings.supabase_service_role_key:
            api = SupabaseApi(settings.supabase_url, settings.supabase_service_role_key)
            await stack.enter_async_context(api)
        comfyui = await stack.enter_async_context(ComfyUIWorker(settings.worker_options()))
        store = await stack.enter_async_context(_store(settings, api))
        queue = await _open_queue(stack, settings, api, stop)
        if queue is None:
            return
        options = TaskRunnerOptions(
            poll_interval_s=settings.task_poll_interval,
            heartbeat_s=min(settings.task_poll_interval, settings.lease_seconds / 4),
            workflows=settings.workflows(),
        )
        names = [worker_id, *(f"{worker_id}-{lane}" for lane in range(2, settings.jobs_at_once + 1))]
        _log.info("worker.started", worker_id=worker_id, jobs_at_once=len(names))
        await stack.enter_async_context(describing(comfyui))
        try:
            async with asyncio.TaskGroup() as group:
                for name in names:
                    group.create_task(TaskRunner(name, queue, comfyui, store, options).run(stop), name=f"worker {name}")
        except* ComfyUIConnectionError as errors:
            failure = _first(errors)
        if failure is not None:
            raise failure
    _log.info("worker.stopped", worker_id=worker_id)


def _first(errors: BaseExceptionGroup[Any]) -> BaseException:
    """One reason is enough; each worker of this process met the same."""
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _store(settings: PostgresWorkerSettings, api: SupabaseApi | None) -> ObjectStore:
    if (store := settings.store()) is not None:
        return store
    if api is None:
        raise QueueSetupError(str(settings.missing()))
    return SupabaseStorage(
        api,
        settings.supabase_bucket,
        prefix=settings.supabase_prefix,
        signed_url_s=settings.supabase_signed_url_seconds or None,
    )


async def _open_queue(
    stack: AsyncExitStack, settings: PostgresWorkerSettings, api: SupabaseApi | None, stop: asyncio.Event
) -> TaskQueue | None:
    """Opened as soon as the database answers; None if `stop` came before."""
    failures = 0
    while not stop.is_set():
        try:
            return await stack.enter_async_context(_queue(settings, api))
        except QueueSetupError:
            raise
        except QueueError as error:
            failures += 1
            if failures == 1:
                _log.warning("queue.unavailable", detail=str(error), until_then="trying again")
        await happens_within(stop, _BACKOFF.delay_s(failures))
    return None


def _queue(settings: PostgresWorkerSettings, api: SupabaseApi | None) -> TaskQueue:
    common: dict[str, Any] = {
        "lease_s": settings.lease_seconds,
        "max_attempts": settings.max_attempts,
        "retry_delay_s": settings.retry_delay_seconds,
    }
    if settings.database_url is not None:
        from comfyui.workers.postgres.queue import PostgresQueue

        return PostgresQueue(settings.database_url, connections=2 * settings.jobs_at_once, **common)
    if api is None:
        raise QueueSetupError(str(settings.missing()))
    return SupabaseQueue(api, **common)


def main(arguments: Sequence[str] | None = None) -> int:
    """0: stopped as asked; 1: the database or project does not take us; 2: settings that cannot be used."""
    parser = argparse.ArgumentParser(
        prog="python -m comfyui.workers.postgres_worker",
        description="Runs the tasks of a table in Postgres with ComfyUI.",
    )
    parser.add_argument(
        "--worker-id", help="the worker's id in the table of workers (default: host name and a random part)"
    )
    parser.add_argument("--migrate", action="store_true", help="create or update the tables and functions, then exit")
    parser.add_argument("--sql", action="store_true", help="print the SQL of --migrate with your names, then exit")
    chosen = parser.parse_args(arguments)
    try:
        settings = load(PostgresWorkerSettings, env_file=ENV_FILE)
    except SettingsError as error:
        print(error, file=sys.stderr)
        return 2
    if chosen.sql:
        print("\n".join(f"-- {name}\n{sql}" for name, sql in migrations(settings.names())))
        return 0
    configure_logging(settings.log_level, settings.log_output)
    try:
        return asyncio.run(_migrate(settings) if chosen.migrate else _work(settings, chosen.worker_id))
    except (QueueError, ComfyUIError) as error:
        print(error, file=sys.stderr)
        return 1


async def _migrate(settings: PostgresWorkerSettings) -> int:
    from comfyui.workers.postgres.queue import migrate

    if settings.database_url is None:
        raise QueueSetupError(
            "--migrate requires DATABASE_URL; if you have none, run the output of --sql in the SQL editor"
        )
    for name in await migrate(settings.database_url, settings.names()):
        print(name)
    return 0


async def _work(settings: PostgresWorkerSettings, worker_id: str | None) -> int:
    if problem := settings.missing():
        print(problem, file=sys.stderr)
        return 2
    default_id = f"{os.environ.get('HOSTNAME') or socket.gethostname()}-{secrets.token_hex(3)}"
    await serve(settings, worker_id or default_id, stop_on_signals())
    return 0


if __name__ == "__main__":
    sys.exit(main())
