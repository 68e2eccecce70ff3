"""Settings of the Postgres and Supabase worker: typed, one line of meaning each."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import NoDecode, SettingsConfigDict

from comfyui.outputs.stores.s3 import MAX_PRESIGN_SECONDS
from comfyui.workers.base import WorkerOptions
from comfyui.workers.postgres.schema import WAN2GP, TaskNames
from comfyui.workers.settings import StoringWorkerSettings

_MB = 1_000_000
Mapped = Annotated[dict[str, str], NoDecode]


class PostgresWorkerSettings(StoringWorkerSettings):
    """Read from the environment, then `.env`. Durations are in seconds; docs/postgres.md explains them."""

    model_config = SettingsConfigDict(env_file=".env", extra="ignore", frozen=True, hide_input_in_errors=True)

    database_url: SecretStr | None = Field(default=None, description="postgresql://…: connect to Postgres directly.")
    supabase_url: str | None = Field(default=None, description="https://….supabase.co: queue or storage over HTTPS.")
    supabase_service_role_key: SecretStr | None = Field(default=None, description="The key for SUPABASE_URL.")
    supabase_bucket: str = Field(default="outputs", min_length=1, description="Bucket of Supabase's storage.")
    supabase_signed_url_seconds: int = Field(
        default=7 * 24 * 3600, ge=0, description="How long links work; 0: the bucket is public."
    )
    supabase_prefix: str = Field(default="", description="In front of every key there.")
    s3_presign_seconds: int = Field(
        default=7 * 24 * 3600, ge=1, le=MAX_PRESIGN_SECONDS, description="How long links work."
    )

    tasks_table: str = Field(default="tasks", description="Table of the tasks; schema.table is allowed.")
    workers_table: str = Field(default="workers", description="Table of the workers.")
    task_type: str = Field(default="comfy", description="Which tasks are ours.")
    tasks_preset: Literal["", "wan2gp"] = Field(
        default="", description="wan2gp: the names that users of Headless-Wan2GP's ComfyUI worker know."
    )
    task_columns: Mapped = Field(default={}, description="Other column names: output_url=output_location,…")
    task_statuses: Mapped = Field(default={}, description="Other statuses: queued=Queued,in_progress=In Progress,…")
    worker_statuses: Mapped = Field(default={}, description="Other statuses of workers: idle=active,working=active,…")

    comfyui_server_address: str = Field(default="", description="ComfyUI, where it is not 127.0.0.1:COMFY_PORT.")
    comfy_path: Path | None = Field(default=None, description="ComfyUI's folder: the worker starts it from there.")
    comfy_python: str = Field(default="python", description="The interpreter that has ComfyUI's packages.")
    comfy_args: str = Field(default="", description="Further arguments of ComfyUI.")
    comfyui_start_timeout: float = Field(default=600.0, gt=0, description="Seconds that ComfyUI may take to answer.")
    comfy_port: int = Field(default=8188, ge=1, le=65535, description="ComfyUI's port on this machine.")
    poll_interval: float = Field(default=5.0, gt=0, description="Longest time until a new task is noticed.")
    lease_seconds: float = Field(default=60.0, ge=1, description="A task whose worker is silent so long is retaken.")
    max_attempts: int = Field(default=3, ge=1, description="How often a task is tried.")
    retry_delay_seconds: float = Field(default=10.0, ge=0, description="Wait before a task is tried again.")
    job_timeout: float = Field(default=3600.0, gt=0, description="Longest time for one render.")
    jobs_at_once: int = Field(default=1, ge=1, le=64, description="Jobs at a time; one suits one GPU.")
    http_timeout: float = Field(default=30.0, gt=0, description="Seconds for one request to ComfyUI.")
    http_retries: int = Field(default=3, ge=0, le=20, description="Further tries of a request to ComfyUI.")
    max_input_mb: float = Field(default=2048.0, gt=0, description="Largest single input, in MB.")
    input_url_allow: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(), description="Hosts that input URLs may reach though not public."
    )
    input_url_timeout: float = Field(default=600.0, gt=0, description="Seconds in all for fetching one input URL.")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"] = Field(
        default="INFO", description="Lines below this level are not written."
    )
    log_output: str = Field(default="console", description="console, json, or the path of a file.")

    @field_validator("log_level", mode="before")
    @classmethod
    def _upper(cls, value: Any) -> Any:
        return value.upper() if isinstance(value, str) else value

    @field_validator("task_columns", "task_statuses", "worker_statuses", mode="before")
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
        preset = WAN2GP if self.tasks_preset == "wan2gp" else TaskNames()
        return TaskNames(
            self.tasks_table,
            self.workers_table,
            self.task_type,
            {**preset.columns, **self.task_columns},
            {**preset.statuses, **self.task_statuses},
            {**preset.worker_statuses, **self.worker_statuses},
            preset.id_type,
        )

    def missing(self) -> str | None:
        """What a worker lacks to run; the SQL can be printed without it."""
        if self.database_url is None and self.supabase_url is None:
            return "set DATABASE_URL, or SUPABASE_URL with SUPABASE_SERVICE_ROLE_KEY"
        if not self.s3_bucket and self.supabase_url is None:
            return "there is no place for outputs: set S3_BUCKET, or SUPABASE_URL with SUPABASE_SERVICE_ROLE_KEY"
        return None

    def worker_options(self) -> WorkerOptions:
        command: tuple[str, ...] = ()
        if self.comfy_path:
            arguments = shlex.split(self.comfy_args)
            command = (self.comfy_python, "main.py", "--port", str(self.comfy_port), *arguments)
        return WorkerOptions(
            server_address=self.comfyui_server_address or f"127.0.0.1:{self.comfy_port}",
            command=command,
            comfyui_dir=self.comfy_path,
            max_job_s=self.job_timeout,
            jobs_at_once=self.jobs_at_once,
            http_timeout_s=self.http_timeout,
            http_retries=self.http_retries,
            max_input_bytes=int(self.max_input_mb * _MB),
            input_url_allow=self.input_url_allow,
            input_url_timeout_s=self.input_url_timeout,
            start_timeout_s=self.comfyui_start_timeout,
            **self.child_options(),
            **self.common_options(),
            on_line=_show_line,
            # A worker that loses a lease leaves its render to whoever has the task next; only a cancelled task ends it.
            cancel_abandoned=False,
        )


def _show_line(line: str) -> None:
    sys.stderr.write(f"comfyui | {line}\n")
