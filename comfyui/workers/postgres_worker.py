"""The worker for a table of tasks in Postgres or Supabase: ``python -m comfyui.workers.postgres_worker --help``."""

from __future__ import annotations

import argparse
import asyncio
import os
import secrets
import shlex
import socket
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import structlog
from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from comfyui.client import backoff_s
from comfyui.logs import configure_logging
from comfyui.storage import ObjectStore
from comfyui.storage_s3 import S3Settings, S3Store
from comfyui.workers.base import ComfyUIWorker, WorkerOptions, stop_on_signals
from comfyui.workers.postgres_runner import TaskRunner, TaskRunnerOptions
from comfyui.workers.postgres_schema import TaskNames, migrations
from comfyui.workers.postgres_tasks import QueueError, QueueSetupError, TaskQueue
from comfyui.workers.supabase import SupabaseApi, SupabaseQueue, SupabaseStorage

_log = structlog.get_logger("postgres_worker")
_MB = 1_000_000
_RETRY_MAX_S = 15.0

Mapped = Annotated[dict[str, str], NoDecode]
CommaList = Annotated[tuple[str, ...], NoDecode]


class PostgresWorkerSettings(BaseSettings):
    """Read from the environment, then `.env`. Durations are in seconds; docs/postgres.md explains them."""

    model_config = SettingsConfigDict(env_file=".env", extra="ignore", frozen=True, hide_input_in_errors=True)

    database_url: SecretStr | None = Field(default=None, description="postgresql://…: connect to Postgres directly.")
    supabase_url: str | None = Field(default=None, description="https://….supabase.co: queue or storage over HTTPS.")
    supabase_service_role_key: SecretStr | None = Field(default=None, description="The key for SUPABASE_URL.")
    supabase_bucket: str = Field(default="outputs", min_length=1, description="Bucket of Supabase's storage.")
    supabase_signed_url_seconds: int = Field(
        default=7 * 24 * 3600, ge=0, description="How long links work; 0: the bucket is public."
    )
    output_prefix: str = Field(default="", description="In front of every key in the storage.")
    s3_bucket: str | None = Field(default=None, description="Store outputs in this bucket by S3.")
    s3_endpoint_url: str | None = Field(default=None, description="Of a compatible store; without it AWS.")
    s3_region: str = Field(default="us-east-1", description="Region of the bucket.")
    s3_access_key_id: SecretStr | None = Field(default=None, description="Without it, where AWS's tools look.")
    s3_secret_access_key: SecretStr | None = Field(default=None, description="Belongs to S3_ACCESS_KEY_ID.")
    s3_addressing_style: Literal["auto", "path", "virtual"] = Field(default="auto", description="path suits most.")
    s3_presign_seconds: int = Field(default=7 * 24 * 3600, ge=1, le=7 * 24 * 3600, description="How long links work.")

    tasks_table: str = Field(default="tasks", description="Table of the tasks; schema.table is allowed.")
    workers_table: str = Field(default="workers", description="Table of the workers.")
    task_type: str = Field(default="comfy", description="Which tasks are ours.")
    task_columns: Mapped = Field(default={}, description="Other column names: output_url=output_location,…")
    task_statuses: Mapped = Field(default={}, description="Other statuses: queued=Queued,in_progress=In Progress,…")

    comfyui_server_address: str = Field(default="", description="ComfyUI, where it is not 127.0.0.1:COMFY_PORT.")
    comfy_path: Path | None = Field(default=None, description="ComfyUI's folder: the worker starts it from there.")
    comfy_python: str = Field(default="python", description="The interpreter that has ComfyUI's packages.")
    comfy_args: str = Field(default="", description="Further arguments of ComfyUI.")
    comfy_port: int = Field(default=8188, ge=1, le=65535, description="ComfyUI's port on this machine.")
    poll_interval: float = Field(default=5.0, gt=0, description="Longest time until a new task is noticed.")
    lease_seconds: float = Field(default=60.0, ge=1, description="A task whose worker is silent so long is retaken.")
    max_attempts: int = Field(default=3, ge=1, description="How often a task is tried.")
    retry_delay_seconds: float = Field(default=10.0, ge=0, description="Wait before a task is tried again.")
    task_timeout: float = Field(default=3600.0, gt=0, description="Longest time for one render.")
    worker_concurrency: int = Field(default=1, ge=1, le=64, description="Jobs at a time; one suits one GPU.")
    http_timeout: float = Field(default=30.0, gt=0, description="Seconds for one request to ComfyUI.")
    http_retries: int = Field(default=3, ge=0, le=20, description="Further tries of a request to ComfyUI.")
    max_input_mb: float = Field(default=2048.0, gt=0, description="Largest single input, in MB.")
    input_url_allow: CommaList = Field(default=(), description="Hosts that input URLs may reach though not public.")
    input_url_timeout: float = Field(default=600.0, gt=0, description="Seconds in all for fetching one input URL.")
    log_level: str = Field(default="INFO", description="Lines below this level are not written.")
    log_output: str = Field(default="console", description="console, json, or the path of a file.")

    @field_validator("task_columns", "task_statuses", mode="before")
    @classmethod
    def _pairs(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        parts = [part.partition("=") for part in value.split(",") if part.strip()]
        if any(not equals for _, equals, _ in parts):
            raise ValueError("must be name=yours, with commas between")
        return {name.strip(): yours.strip() for name, _, yours in parts}

    @field_validator("input_url_allow", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _names_are_usable(self) -> Self:
        self.names()
        return self

    @model_validator(mode="after")
    def _key_and_url(self) -> Self:
        if (self.supabase_url is None) != (self.supabase_service_role_key is None):
            raise ValueError("SUPABASE_URL and SUPABASE_SERVICE_ROLE_KEY go together")
        return self

    def names(self) -> TaskNames:
        return TaskNames(self.tasks_table, self.workers_table, self.task_type, self.task_columns, self.task_statuses)

    def missing(self) -> str | None:
        """What a worker lacks to run; the SQL can be printed without it."""
        if self.database_url is None and self.supabase_url is None:
            return "set DATABASE_URL, or SUPABASE_URL with SUPABASE_SERVICE_ROLE_KEY"
        if self.s3_bucket is None and self.supabase_url is None:
            return "there is no place for outputs: set S3_BUCKET, or SUPABASE_URL with SUPABASE_SERVICE_ROLE_KEY"
        return None


async def serve(settings: PostgresWorkerSettings, worker_id: str, stop: asyncio.Event) -> None:
    """Work until `stop` is set, and finish what runs then.

    Raises:
        QueueSetupError: the database or project does not take us; the text says what to do.
    """
    async with AsyncExitStack() as stack:
        api = None
        if settings.supabase_url and settings.supabase_service_role_key:
            api = SupabaseApi(settings.supabase_url, settings.supabase_service_role_key)
            await stack.enter_async_context(api)
        comfyui = await stack.enter_async_context(ComfyUIWorker(_worker_options(settings)))
        store = await stack.enter_async_context(_store(settings, api))
        queue = await _open_queue(stack, settings, api, stop)
        if queue is None:
            return
        options = TaskRunnerOptions(
            poll_interval_s=settings.poll_interval,
            heartbeat_s=min(settings.poll_interval, settings.lease_seconds / 4),
        )
        async with asyncio.TaskGroup() as group:
            for lane in range(1, settings.worker_concurrency + 1):
                name = worker_id if lane == 1 else f"{worker_id}-{lane}"
                group.create_task(TaskRunner(name, queue, comfyui, store, options).run(stop), name=f"worker {name}")
            _log.info("worker.started", worker_id=worker_id, lanes=settings.worker_concurrency)
    _log.info("worker.stopped", worker_id=worker_id)


def _worker_options(settings: PostgresWorkerSettings) -> WorkerOptions:
    command: tuple[str, ...] = ()
    if settings.comfy_path:
        arguments = shlex.split(settings.comfy_args)
        command = (settings.comfy_python, "main.py", "--port", str(settings.comfy_port), *arguments)
    return WorkerOptions(
        server_address=settings.comfyui_server_address or f"127.0.0.1:{settings.comfy_port}",
        command=command,
        comfyui_dir=settings.comfy_path,
        max_job_s=settings.task_timeout,
        jobs_at_once=settings.worker_concurrency,
        http_timeout_s=settings.http_timeout,
        http_retries=settings.http_retries,
        max_input_bytes=int(settings.max_input_mb * _MB),
        input_url_allow=settings.input_url_allow,
        input_url_timeout_s=settings.input_url_timeout,
        # A worker that loses a lease leaves its render to whoever has the task next; only a cancelled task ends it.
        cancel_abandoned=False,
    )


def _store(settings: PostgresWorkerSettings, api: SupabaseApi | None) -> ObjectStore:
    if settings.s3_bucket:
        return S3Store(
            S3Settings(
                bucket=settings.s3_bucket,
                region=settings.s3_region,
                endpoint_url=settings.s3_endpoint_url,
                prefix=settings.output_prefix,
                access_key=settings.s3_access_key_id,
                secret_key=settings.s3_secret_access_key,
                addressing_style=settings.s3_addressing_style,
                presign_seconds=settings.s3_presign_seconds,
            )
        )
    if api is None:
        raise QueueSetupError(str(settings.missing()))
    return SupabaseStorage(
        api,
        settings.supabase_bucket,
        prefix=settings.output_prefix,
        signed_url_s=settings.supabase_signed_url_seconds or None,
    )


async def _open_queue(
    stack: AsyncExitStack, settings: PostgresWorkerSettings, api: SupabaseApi | None, stop: asyncio.Event
) -> TaskQueue | None:
    """Opened as soon as the database answers; None when `stop` came before."""
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
        try:
            await asyncio.wait_for(stop.wait(), backoff_s(failures, start_s=0.2, max_s=_RETRY_MAX_S))
        except TimeoutError:
            continue
    return None


def _queue(settings: PostgresWorkerSettings, api: SupabaseApi | None) -> TaskQueue:
    common: dict[str, Any] = {
        "lease_s": settings.lease_seconds,
        "max_attempts": settings.max_attempts,
        "retry_delay_s": settings.retry_delay_seconds,
    }
    if settings.database_url is not None:
        from comfyui.workers.postgres_queue import PostgresQueue

        return PostgresQueue(settings.database_url, connections=2 * settings.worker_concurrency, **common)
    if api is None:
        raise QueueSetupError(str(settings.missing()))
    return SupabaseQueue(api, **common)


def main(arguments: Sequence[str] | None = None) -> int:
    """0: stopped as asked; 1: the database or project does not take us; 2: settings that cannot be used."""
    parser = argparse.ArgumentParser(
        prog="python -m comfyui.workers.postgres_worker", description="Renders the tasks of a table in Postgres."
    )
    parser.add_argument("--worker-id", help="its row in the table of workers (default: host name and a random part)")
    parser.add_argument("--migrate", action="store_true", help="create or extend the tables and functions, then end")
    parser.add_argument("--sql", action="store_true", help="print that SQL with your names, then end")
    chosen = parser.parse_args(arguments)
    try:
        settings = PostgresWorkerSettings()
    except ValidationError as error:
        for item in error.errors():
            name = "_".join(map(str, item["loc"][:1])).upper()
            print(f"{name + ': ' if name else ''}{item['msg'].removeprefix('Value error, ')}", file=sys.stderr)
        return 2
    if chosen.sql:
        print("\n".join(f"-- {name}\n{sql}" for name, sql in migrations(settings.names())))
        return 0
    configure_logging(settings.log_level, settings.log_output)
    try:
        return asyncio.run(_migrate(settings) if chosen.migrate else _work(settings, chosen.worker_id))
    except QueueError as error:
        print(error, file=sys.stderr)
        return 1


async def _migrate(settings: PostgresWorkerSettings) -> int:
    from comfyui.workers.postgres_queue import migrate

    if settings.database_url is None:
        raise QueueSetupError("--migrate needs DATABASE_URL; without one, run the output of --sql in the SQL editor")
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
