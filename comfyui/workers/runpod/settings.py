"""Settings of the RunPod worker. RunPod itself sets further variables, ``RUNPOD_…``, which its SDK reads."""

from __future__ import annotations

from dataclasses import replace

from pydantic import Field, field_validator

from comfyui.settings import PollFields, PresignSeconds, S3ChoiceFields
from comfyui.workers.options import WorkerOptions
from comfyui.workers.settings import StoringWorkerSettings


class RunPodSettings(StoringWorkerSettings, S3ChoiceFields, PollFields):
    """The shared settings, and those of a worker that RunPod sends jobs to."""

    refresh_worker: bool = Field(default=False, description="Whether RunPod replaces the worker after every job.")
    max_result_mb: float | None = Field(
        default=None,
        gt=0,
        description="Largest reply, in MB; empty means RunPod's limits: 10 for /run, 20 for /runsync.",
    )
    # A caller may fetch a job's result a day later.
    s3_presign_seconds: PresignSeconds = 24 * 3600

    @field_validator("comfyui_server_address")
    @classmethod
    def _is_given(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise ValueError("must be the host:port or URL of ComfyUI")
        return value

    def worker_options(self) -> WorkerOptions:
        return replace(super().worker_options(), poll_interval_s=self.poll_interval)
