"""Settings of the RunPod worker. RunPod itself sets further variables, ``RUNPOD_…``, which its SDK reads."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, field_validator
from pydantic_settings import NoDecode

from comfyui.settings import PollFields, PresignSeconds, S3ChoiceFields
from comfyui.workers.options import WorkerOptions
from comfyui.workers.settings import StoringWorkerSettings


def _as_arguments(value: Any) -> Any:
    return tuple(shlex.split(value)) if isinstance(value, str) else value


class RunPodSettings(StoringWorkerSettings, S3ChoiceFields, PollFields):
    """The shared settings, and those of a worker that RunPod sends jobs to."""

    comfyui_command: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_as_arguments)] = Field(
        default=(), description="Command line that starts ComfyUI; empty means that the worker does not start it."
    )
    comfyui_dir: Path | None = Field(default=None, description="Folder in which COMFYUI_COMMAND runs.")
    refresh_worker: bool = Field(default=False, description="Whether RunPod replaces the worker after every job.")
    max_result_mb: float | None = Field(
        default=None,
        gt=0,
        description="Largest reply, in MB; empty means RunPod's limits: 10 for /run, 20 for /runsync.",
    )
    progress_interval: float = Field(default=1, ge=0, description="Least seconds between two progress updates.")
    # A caller may fetch a job's result a day later.
    s3_presign_seconds: PresignSeconds = 24 * 3600

    @field_validator("comfyui_server_address")
    @classmethod
    def _is_given(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise ValueError("must be the host:port or URL of ComfyUI")
        return value

    def worker_options(self) -> WorkerOptions:
        return replace(
            super().worker_options(),
            command=self.comfyui_command,
            comfyui_dir=self.comfyui_dir,
            poll_interval_s=self.poll_interval,
        )
