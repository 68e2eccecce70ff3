"""Settings of the Postgres and Supabase worker."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, model_validator
from pydantic_settings import NoDecode

from comfyui.named.parameters import WORKFLOW_NAME
from comfyui.settings import (
    MAX_PRESIGN_SECONDS,
    CommaList,
    InputUrlTimeout,
    MaxInputMb,
    PresignSeconds,
    ServerAddresses,
)
from comfyui.workers.options import WorkerOptions
from comfyui.workers.postgres.schema import WAN2GP, TaskNames
from comfyui.workers.settings import StoringWorkerSettings


def _pairs(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    parts = [part.partition("=") for part in value.split(",") if part.strip()]
    if any(not equals for _, equals, _ in parts):
        raise ValueError("must be pairs such as name=yours, separated by commas")
    return {name.strip(): yours.strip() for name, _, yours in parts}


def _check_types(entries: tuple[str, ...]) -> tuple[str, ...]:
    if not entries:
        raise ValueError("must have at least one type")
    if len(_workflows_of(entries)) < len(entries):
        raise ValueError("must not have a type twice")
    for kind, workflow in _workflows_of(entries).items():
        if not kind or (workflow is not None and not WORKFLOW_NAME.fullmatch(workflow)):
            raise ValueError(
                f"{kind}:{workflow or ''} must be TYPE, or TYPE:WORKFLOW with the name of a named workflow"
            )
    return entries


def _workflows_of(entries: tuple[str, ...]) -> dict[str, str | None]:
    parts = (entry.partition(":") for entry in entries)
    return {kind.strip(): name.strip() if colon else None for kind, colon, name in parts}


Mapped = Annotated[dict[str, str], NoDecode, BeforeValidator(_pairs)]


class PostgresWorkerSettings(StoringWorkerSettings):
    """The shared settings and its own; docs/postgres.md explains them."""

    database_url: SecretStr | None = Field(
        default=None, description="URL of Postgres (postgresql://…), for a direct connection."
    )
    supabase_url: str | None = Field(
        default=None,
        description="URL of a Supabase project (https://….supabase.co), for the queue or the storage over HTTPS.",
    )
    supabase_service_role_key: SecretStr | None = Field(
        default=None, description="The project's service-role key; required with SUPABASE_URL."
    )
    supabase_bucket: str = Field(
        default="outputs", min_length=1, description="Bucket in Supabase's storage for output files."
    )
    supabase_signed_url_seconds: int = Field(
        default=7 * 24 * 3600,
        ge=0,
        description="Seconds that links to files in that bucket work; 0 means that the bucket is public.",
    )
    supabase_prefix: str = Field(default="", description="Folder of all outputs in that bucket.")

    tasks_table: str = Field(default="tasks", description="Table of the tasks, also as schema.table.")
    workers_table: str = Field(default="workers", description="Table of the workers.")
    task_types: Annotated[CommaList, AfterValidator(_check_types)] = Field(
        default=("comfy",),
        description=(
            "Task types that this worker runs; upscale:upscale-4x runs the named workflow upscale-4x for the type"
            " upscale."
        ),
    )
    tasks_preset: Literal["", "wan2gp"] = Field(
        default="",
        description="Set of table, column and status names; wan2gp has those of Headless-Wan2GP's ComfyUI worker.",
    )
    task_columns: Mapped = Field(
        default={}, description="Your names for columns of the tasks: output_url=output_location,…"
    )
    task_statuses: Mapped = Field(
        default={}, description="Your names for statuses of tasks: queued=Queued,in_progress=In Progress,…"
    )
    worker_statuses: Mapped = Field(
        default={}, description="Your names for statuses of workers: idle=active,working=active,…"
    )

    comfy_path: Path | None = Field(
        default=None,
        description="ComfyUI's folder; if set, the worker starts ComfyUI there, by COMFYUI_COMMAND or python main.py.",
    )
    comfy_port: int = Field(
        default=8188,
        ge=1,
        le=65535,
        description="ComfyUI's port on this machine, used if COMFYUI_SERVER_ADDRESS is empty.",
    )
    # In the gateway and the RunPod worker, POLL_INTERVAL concerns ComfyUI.
    task_poll_interval: float = Field(
        default=5,
        gt=0,
        alias="poll_interval",
        description="Most seconds until a new task is noticed, and between two heartbeats.",
    )
    lease_seconds: float = Field(
        default=60, ge=1, description="Seconds without a heartbeat after which another worker takes the task over."
    )
    max_attempts: int = Field(default=3, ge=1, description="How often a task is tried in all.")
    retry_delay_seconds: float = Field(default=10, ge=0, description="Seconds before a failed task is tried again.")

    # Empty: COMFY_PORT of this machine.
    comfyui_server_address: ServerAddresses = ()
    # Videos are usual inputs here, and come from storage that may be slow.
    max_input_mb: MaxInputMb = 2048
    input_url_timeout: InputUrlTimeout = 600
    # A task's link is kept in its row.
    s3_presign_seconds: PresignSeconds = MAX_PRESIGN_SECONDS

    @model_validator(mode="after")
    def _names_are_usable(self) -> Self:
        self.names()
        return self

    @model_validator(mode="after")
    def _key_and_url(self) -> Self:
        if (self.supabase_url is None) != (self.supabase_service_role_key is None):
            raise ValueError("SUPABASE_URL and SUPABASE_SERVICE_ROLE_KEY must be set together")
        return self

    def workflows(self) -> Mapping[str, str]:
        """The named workflow of each type of task that has one."""
        return {kind: name for kind, name in _workflows_of(self.task_types).items() if name is not None}

    def names(self) -> TaskNames:
        preset = WAN2GP if self.tasks_preset == "wan2gp" else TaskNames()
        return TaskNames(
            self.tasks_table,
            self.workers_table,
            tuple(_workflows_of(self.task_types)),
            {**preset.columns, **self.task_columns},
            {**preset.statuses, **self.task_statuses},
            {**preset.worker_statuses, **self.worker_statuses},
            preset.id_type,
        )

    def missing(self) -> str | None:
        """The settings that a worker lacks; the SQL can be printed without them."""
        if self.database_url is None and self.supabase_url is None:
            return "set DATABASE_URL, or SUPABASE_URL with SUPABASE_SERVICE_ROLE_KEY"
        if not self.s3_bucket and self.supabase_url is None:
            return "output files have no store: set S3_BUCKET, or SUPABASE_URL with SUPABASE_SERVICE_ROLE_KEY"
        return None

    def server_address(self) -> str:
        return self.comfyui_server_address[0] if self.comfyui_server_address else f"127.0.0.1:{self.comfy_port}"

    def worker_options(self) -> WorkerOptions:
        command = self.comfyui_command
        if self.comfy_path and not command:
            command = ("python", "main.py", "--port", str(self.comfy_port))
        return replace(
            super().worker_options(),
            command=command,
            comfyui_dir=self.comfy_path or self.comfyui_dir,
            # A worker that loses a lease leaves its render to the task's next owner; only a cancelled task ends it.
            cancel_abandoned=False,
        )
