"""Settings of the workers: typed, one line of meaning each, read from the environment and `.env` when asked for."""

from __future__ import annotations

import contextlib
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import AliasChoices, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from comfyui.address import parse_server_address
from comfyui.outputs.stores.s3 import MAX_PRESIGN_SECONDS, S3Store, s3_store
from comfyui.workers.base import WorkerOptions
from comfyui.workers.cleanup import CleanupOptions

_MB = 1_000_000
_Settings = TypeVar("_Settings", bound=BaseSettings)


class WorkerSettingsError(Exception):
    """One or more settings cannot be used; the message has a line for each."""


class CommonWorkerSettings(BaseSettings):
    """What the workers of all platforms are told about their ComfyUI, under the same names."""

    lost_prompt_retries: int = Field(
        default=1, ge=0, le=10, description="How often one job is run again when ComfyUI crashed or forgot it, in all."
    )
    quarantine_after: int = Field(
        default=2, ge=0, le=100, description="Times that a workflow may end ComfyUI before it is refused; 0: never."
    )
    quarantine_seconds: float = Field(default=600, gt=0, description="Seconds for which such a workflow is refused.")
    free_after_idle: float = Field(
        default=0, ge=0, description="Seconds without work after which ComfyUI unloads its models; 0: never."
    )

    comfyui_input_dir: Path | None = Field(default=None, description="ComfyUI's input folder; when set, cleaned.")
    comfyui_temp_dir: Path | None = Field(default=None, description="ComfyUI's temp folder; when set, cleaned.")
    cleanup_max_age: float = Field(
        default=3600, ge=0, description="Seconds after which a file of a finished job is removed."
    )
    cleanup_max_mb: float = Field(
        default=2000, ge=0, description="Above this size of a folder's jobs' files, the oldest are removed."
    )

    def cleanup_output_dir(self) -> Path | None:
        """ComfyUI's output folder on this machine, where it is to be cleaned."""
        return None

    def cleanup_options(self) -> CleanupOptions:
        return CleanupOptions(
            self.comfyui_input_dir,
            self.cleanup_output_dir(),
            self.comfyui_temp_dir,
            self.cleanup_max_age,
            int(self.cleanup_max_mb * _MB),
        )

    def common_options(self) -> dict[str, Any]:
        """As members of `WorkerOptions`."""
        return {
            "lost_prompt_retries": self.lost_prompt_retries,
            "quarantine_after": self.quarantine_after,
            "quarantine_s": self.quarantine_seconds,
            "free_after_idle_s": self.free_after_idle,
            "cleanup": self.cleanup_options(),
        }


class StoringWorkerSettings(CommonWorkerSettings):
    """Of a worker that can store files by S3: the gateway's settings of the same names.

    The keys have other names, too, which only workers had (S3_ACCESS_KEY, S3_SECRET_KEY). Where both are set, the
    gateway's hold.
    """

    s3_bucket: str = Field(default="", description="Bucket for output files; empty: they do not go to S3.")
    s3_region: str = Field(default="us-east-1", description="Region of the bucket.")
    s3_endpoint_url: str = Field(default="", description="URL of a compatible store; empty: AWS.")
    s3_public_endpoint_url: str = Field(default="", description="Where readers reach it, when elsewhere.")
    s3_prefix: str = Field(default="", description="In front of every key.")
    s3_access_key_id: SecretStr | None = Field(
        default=None,
        validation_alias=AliasChoices("s3_access_key_id", "s3_access_key"),
        description="Without it, where AWS's tools look.",
    )
    s3_secret_access_key: SecretStr | None = Field(
        default=None,
        validation_alias=AliasChoices("s3_secret_access_key", "s3_secret_key"),
        description="Belongs to S3_ACCESS_KEY_ID.",
    )
    s3_session_token: SecretStr | None = Field(default=None, description="Only for temporary keys.")
    s3_addressing_style: Literal["auto", "path", "virtual"] = Field(
        default="auto", description="path suits most stores that are not AWS."
    )
    s3_presign_seconds: int

    comfyui_output_dir: Path | None = Field(default=None, description="ComfyUI's output folder; when set, cleaned.")
    comfyui_stop_grace: float = Field(
        default=10, gt=0, description="Seconds that ComfyUI gets to stop before it is killed."
    )
    comfyui_max_crashes: int = Field(
        default=3,
        ge=0,
        le=100,
        description="Crashes in a row after which ComfyUI is started again.",
    )
    comfyui_restart_delay: float = Field(
        default=0.5,
        ge=0,
        le=30,
        description="Seconds until a crashed ComfyUI is started again; doubled with each.",
    )

    @model_validator(mode="after")
    def _store_is_usable(self) -> Self:
        self.store()
        return self

    def cleanup_output_dir(self) -> Path | None:
        return self.comfyui_output_dir

    def allowed_buckets(self) -> tuple[str, ...]:
        """Which others than `s3_bucket` a job may name."""
        return ()

    def child_options(self) -> dict[str, Any]:
        """As members of `WorkerOptions`: what a worker that starts ComfyUI itself is told about it."""
        return {
            "stop_grace_s": self.comfyui_stop_grace,
            "max_crashes": self.comfyui_max_crashes,
            "restart_delay_s": self.comfyui_restart_delay,
        }

    def store(self) -> S3Store | None:
        """The object store for output files, not opened; None when they do not go to S3."""
        return s3_store(self, self.allowed_buckets())


class RunPodSettings(StoringWorkerSettings):
    """Of the RunPod worker. Durations are in seconds. The names shared with the gateway mean the same there."""

    model_config = SettingsConfigDict(env_file=".env", extra="ignore", frozen=True, hide_input_in_errors=True)

    comfyui_command: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(), description="Command line that starts ComfyUI; empty: it is started by something else."
    )
    comfyui_dir: Path | None = Field(default=None, description="Folder in which the command is run.")
    comfyui_server_address: str = Field(default="127.0.0.1:8188", description="ComfyUI as host:port or URL.")
    comfyui_start_timeout: float = Field(default=600, gt=0, description="Seconds that ComfyUI may take to answer.")
    job_timeout: float = Field(default=3600, gt=0, description="Seconds that one job may take, queueing included.")
    jobs_at_once: int = Field(default=1, ge=1, description="Jobs that run at once; one for each GPU.")
    refresh_worker: bool = Field(default=False, description="Have RunPod replace the worker after every job.")
    max_result_mb: float | None = Field(
        default=None, gt=0, description="Largest reply, in MB; empty: RunPod's limits, 10 of /run and 20 of /runsync."
    )
    progress_interval: float = Field(default=1, ge=0, description="Least time between two progress updates.")
    http_timeout: float = Field(default=30, gt=0, description="Seconds for one request to ComfyUI.")
    http_retries: int = Field(default=3, ge=0, le=20, description="Further tries of a request to ComfyUI.")
    poll_interval: float = Field(default=1, gt=0, le=60, description="Longest time between polls without websocket.")
    max_input_mb: float = Field(default=512, gt=0, description="Largest single input, in MB.")
    input_url_allow: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(), description="Hosts or networks that input URLs may reach though they are not public."
    )
    input_url_timeout: float = Field(default=60, gt=0, description="Seconds in all for fetching one input URL.")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"] = Field(
        default="INFO", description="Lines below this level are not written."
    )
    log_output: str = Field(default="console", min_length=1, description="console, json, or the path of a file.")
    s3_allowed_buckets: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(), description="Further buckets that a job may name."
    )
    s3_presign_seconds: int = Field(
        default=86400, ge=1, le=MAX_PRESIGN_SECONDS, description="How long a file's link works."
    )

    @field_validator("comfyui_command", mode="before")
    @classmethod
    def _as_arguments(cls, value: Any) -> Any:
        return tuple(shlex.split(value)) if isinstance(value, str) else value

    @field_validator("input_url_allow", "s3_allowed_buckets", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("comfyui_server_address")
    @classmethod
    def _address(cls, value: str) -> str:
        parse_server_address(value)
        return value

    @field_validator("log_level", mode="before")
    @classmethod
    def _upper(cls, value: Any) -> Any:
        return value.upper() if isinstance(value, str) else value

    def allowed_buckets(self) -> tuple[str, ...]:
        return self.s3_allowed_buckets

    def worker_options(self) -> WorkerOptions:
        return WorkerOptions(
            server_address=self.comfyui_server_address,
            command=self.comfyui_command,
            comfyui_dir=self.comfyui_dir,
            start_timeout_s=self.comfyui_start_timeout,
            max_job_s=self.job_timeout,
            jobs_at_once=self.jobs_at_once,
            http_timeout_s=self.http_timeout,
            http_retries=self.http_retries,
            poll_interval_s=self.poll_interval,
            **self.child_options(),
            **self.common_options(),
            max_input_bytes=int(self.max_input_mb * _MB),
            input_url_allow=self.input_url_allow,
            input_url_timeout_s=self.input_url_timeout,
            on_line=_show_line,
        )


def load(settings: type[_Settings]) -> _Settings:
    """The settings of this type from the environment and `.env`.

    Raises:
        WorkerSettingsError: with a line for each bad value.
    """
    try:
        return settings()
    except ValidationError as error:
        raise WorkerSettingsError(
            "\n".join(_problem(settings, item["loc"], item["msg"]) for item in error.errors())
        ) from error


def _problem(settings: type[BaseSettings], where: tuple[int | str, ...], message: str) -> str:
    message = message.removeprefix("Value error, ")
    if not where:
        return message
    field = settings.model_fields.get(str(where[0]))
    return f"{str(where[0]).upper()}: {message}{f' ({field.description})' if field else ''}"


def _show_line(line: str) -> None:
    # A log that nobody reads any more is no reason to stop reading what ComfyUI writes: it would block.
    with contextlib.suppress(OSError):
        sys.stderr.write(f"comfyui | {line}\n")
