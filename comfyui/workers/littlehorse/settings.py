"""Settings of the LittleHorse worker, beside those that its SDK reads itself. Knows nothing of the SDK."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator
from pydantic_settings import NoDecode, SettingsConfigDict

from comfyui.address import parse_server_address
from comfyui.workers.base import WorkerOptions
from comfyui.workers.settings import CommonWorkerSettings

_MB = 1_000_000


class LittleHorseSettings(CommonWorkerSettings):
    """Read from the environment, then `.env`. The SDK reads its own ``LHC_*`` and ``LHW_*`` beside, and they win."""

    model_config = SettingsConfigDict(env_file=".env", extra="ignore", frozen=True, hide_input_in_errors=True)

    lh_host: str = Field(default="", description="LittleHorse's server, host or host:port; the port is 2023 else.")
    comfyui_base_url: str = Field(default="http://127.0.0.1:8188", description="ComfyUI, URL or host:port.")
    comfyui_output_dir: str = Field(default="", description="ComfyUI's output folder as the workflow's reader sees it.")
    cleanup_comfyui_output_dir: Path | None = Field(
        default=None,
        description="ComfyUI's output folder on this machine; when set, cleaned: give readers CLEANUP_MAX_AGE to read.",
    )
    comfyui_poll_interval_sec: float = Field(default=2.0, gt=0, description="Seconds between looks at ComfyUI's queue.")
    comfyui_history_timeout_sec: float = Field(default=600.0, gt=0, description="The longest that one task may take.")
    comfyui_http_timeout_sec: float = Field(default=30.0, gt=0, description="Seconds for one request to ComfyUI.")
    comfyui_http_retries: int = Field(default=3, ge=0, le=20, description="Further tries of a request to ComfyUI.")
    lhw_num_worker_threads: int = Field(default=1, ge=1, description="Jobs at a time; one suits one GPU.")
    lhw_heartbeat_interval_sec: float = Field(
        default=10.0, gt=0, le=60, description="Seconds until a lost connection to LittleHorse is made again."
    )
    health_port: int = Field(default=0, ge=0, le=65535, description="Serve /health and /metrics here; 0: do not.")
    max_input_mb: float = Field(default=512.0, gt=0, description="Largest single input, in MB.")
    input_url_allow: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(), description="Hosts that input URLs may reach though not public."
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"] = Field(
        default="INFO", description="Lines below this level are not written."
    )
    log_output: str = Field(default="console", min_length=1, description="console, json, or the path of a file.")

    @field_validator("input_url_allow", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("log_level", mode="before")
    @classmethod
    def _upper(cls, value: Any) -> Any:
        return value.upper() if isinstance(value, str) else value

    @field_validator("lh_host")
    @classmethod
    def _host_and_port(cls, value: str) -> str:
        if value:
            server_of(value)
        return value

    @field_validator("comfyui_base_url")
    @classmethod
    def _address(cls, value: str) -> str:
        parse_server_address(value)
        return value

    def cleanup_output_dir(self) -> Path | None:
        return self.cleanup_comfyui_output_dir

    def worker_options(self) -> WorkerOptions:
        return WorkerOptions(
            server_address=self.comfyui_base_url,
            start_timeout_s=self.comfyui_history_timeout_sec,
            max_job_s=self.comfyui_history_timeout_sec,
            jobs_at_once=self.lhw_num_worker_threads,
            http_timeout_s=self.comfyui_http_timeout_sec,
            http_retries=self.comfyui_http_retries,
            poll_interval_s=self.comfyui_poll_interval_sec,
            max_input_bytes=int(self.max_input_mb * _MB),
            input_url_allow=self.input_url_allow,
            **self.common_options(),
        )


def server_of(host: str) -> dict[str, str]:
    """``host``, ``host:port`` or ``[v6]:port`` as the SDK's settings; raises ValueError."""
    url = parse_server_address(host).url
    port = {"LHC_API_PORT": str(url.port)} if f"{url.host}" and host.rstrip("/").endswith(f":{url.port}") else {}
    return {"LHC_API_HOST": str(url.host), **port}
