"""Settings that workers share, besides those that the gateway has, too (`comfyui.settings`)."""

from __future__ import annotations

import contextlib
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator
from pydantic_settings import NoDecode

from comfyui.outputs.stores.s3 import S3Store, s3_store
from comfyui.settings import (
    MB,
    AnswerFields,
    ComfyUIFields,
    InputFields,
    LogFields,
    NamedFields,
    RecoveryFields,
    S3Fields,
)
from comfyui.transport.address_guard import AddressPolicy
from comfyui.workers.cleanup import CleanupOptions
from comfyui.workers.options import WorkerOptions


def _as_arguments(value: Any) -> Any:
    return tuple(shlex.split(value)) if isinstance(value, str) else value


class CommonWorkerSettings(AnswerFields, InputFields, NamedFields, RecoveryFields, LogFields):
    """Settings of the workers of all platforms, under the same names."""

    comfyui_input_dir: Path | None = Field(
        default=None, description="ComfyUI's input folder; if set, old files of jobs are removed there."
    )
    comfyui_temp_dir: Path | None = Field(
        default=None, description="ComfyUI's temp folder; if set, old files of jobs are removed there."
    )
    cleanup_max_age: float = Field(
        default=3600, ge=0, description="Seconds after which a file of a finished job is removed."
    )
    cleanup_max_mb: float = Field(
        default=2000,
        ge=0,
        description="Most MB that the files of jobs take in each folder; above it, the oldest are removed.",
    )

    @field_validator("input_url_allow")
    @classmethod
    def _addresses(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        AddressPolicy(value)
        return value

    def cleaned_output_dir(self) -> Path | None:
        """ComfyUI's output folder on this machine, if it shall be cleaned."""
        return None

    def worker_options(self) -> WorkerOptions:
        """The options that these settings name; those of a platform add theirs."""
        return WorkerOptions(
            lost_prompt_retries=self.lost_prompt_retries,
            quarantine_after=self.quarantine_after,
            quarantine_s=self.quarantine_seconds,
            free_after_idle_s=self.free_after_idle,
            answers=self.answers(),
            max_input_bytes=self.max_input_bytes,
            input_url_allow=self.input_url_allow,
            input_url_timeout_s=self.input_url_timeout,
            workflows_dir=self.workflows_dir,
            cleanup=CleanupOptions(
                self.comfyui_input_dir,
                self.cleaned_output_dir(),
                self.comfyui_temp_dir,
                self.cleanup_max_age,
                int(self.cleanup_max_mb * MB),
            ),
        )


class StoringWorkerSettings(CommonWorkerSettings, ComfyUIFields, S3Fields):
    """Settings of a worker that can start ComfyUI itself, and store files by S3."""

    comfyui_command: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_as_arguments)] = Field(
        default=(), description="Command line that starts ComfyUI; empty means that the worker does not start it."
    )
    comfyui_dir: Path | None = Field(default=None, description="Folder in which COMFYUI_COMMAND runs.")
    comfyui_output_dir: Path | None = Field(
        default=None, description="ComfyUI's output folder; if set, old files of jobs are removed there."
    )
    comfyui_start_timeout: float = Field(
        default=600, gt=0, description="Most seconds from ComfyUI's start to its first answer."
    )
    job_timeout: float = Field(
        default=3600, gt=0, description="Most seconds that one job may take, its wait in the queue included."
    )
    jobs_at_once: int = Field(
        default=1, ge=1, le=64, description="Number of jobs that run at the same time; use one for each GPU."
    )

    @field_validator("comfyui_server_address")
    @classmethod
    def _one_comfyui(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(value) > 1:
            raise ValueError("must be one address, because a worker has one ComfyUI")
        return value

    @model_validator(mode="after")
    def _store_is_usable(self) -> Self:
        self.store()
        return self

    def cleaned_output_dir(self) -> Path | None:
        return self.comfyui_output_dir

    def server_address(self) -> str:
        """The address of the worker's ComfyUI."""
        return self.comfyui_server_address[0]

    def store(self) -> S3Store | None:
        """The object store for output files, not opened; None if they do not go to S3."""
        return s3_store(self)

    def worker_options(self) -> WorkerOptions:
        return replace(
            super().worker_options(),
            server_address=self.server_address(),
            command=self.comfyui_command,
            comfyui_dir=self.comfyui_dir,
            http_timeout_s=self.http_timeout,
            http_retries=self.http_retries,
            start_timeout_s=self.comfyui_start_timeout,
            max_job_s=self.job_timeout,
            jobs_at_once=self.jobs_at_once,
            on_line=_show_line,
        )


def _show_line(line: str) -> None:
    # If the log can no longer be written, ComfyUI's output must still be read: ComfyUI would block.
    with contextlib.suppress(OSError):
        sys.stderr.write(f"comfyui | {line}\n")
