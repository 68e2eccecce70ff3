"""Settings of the LittleHorse worker, without those that its SDK reads itself. Knows nothing of the SDK."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field, field_validator

from comfyui.address import parse_server_address
from comfyui.settings import check_address
from comfyui.workers.options import WorkerOptions
from comfyui.workers.settings import CommonWorkerSettings


class LittleHorseSettings(CommonWorkerSettings):
    """The shared settings and its own. The SDK reads its ``LHC_*`` and ``LHW_*`` itself, and they win."""

    lh_host: str = Field(default="", description="LittleHorse's server, host or host:port; empty: localhost:2023.")
    comfyui_base_url: Annotated[str, AfterValidator(check_address)] = Field(
        default="http://127.0.0.1:8188", description="ComfyUI as URL or host:port."
    )
    # The other workers' COMFYUI_OUTPUT_DIR is a folder on their own machine.
    reader_output_dir: str = Field(
        default="",
        alias="comfyui_output_dir",
        description="ComfyUI's output folder as the readers of the paths see it.",
    )
    cleanup_comfyui_output_dir: Path | None = Field(
        default=None,
        description="ComfyUI's output folder on this machine; when set, cleaned: give readers CLEANUP_MAX_AGE to read.",
    )
    comfyui_poll_interval_sec: float = Field(default=2, gt=0, description="Seconds between looks at ComfyUI's queue.")
    comfyui_history_timeout_sec: float = Field(default=600, gt=0, description="The longest that one task may take.")
    comfyui_http_timeout_sec: float = Field(default=30, gt=0, description="Seconds for one request to ComfyUI.")
    comfyui_http_retries: int = Field(default=3, ge=0, le=20, description="Further tries of a request to ComfyUI.")
    lhw_num_worker_threads: int = Field(
        default=1, ge=1, description="Jobs at a time, over all server hosts together; one suits one GPU."
    )
    lhw_heartbeat_interval_sec: float = Field(
        default=10, gt=0, le=60, description="Seconds until a lost connection to LittleHorse is made again."
    )
    health_port: int = Field(default=0, ge=0, le=65535, description="Serve /health and /metrics here; 0: do not.")

    @field_validator("lh_host")
    @classmethod
    def _host_and_port(cls, value: str) -> str:
        if value:
            server_of(value)
        return value

    def cleaned_output_dir(self) -> Path | None:
        return self.cleanup_comfyui_output_dir

    def worker_options(self) -> WorkerOptions:
        return replace(
            super().worker_options(),
            server_address=self.comfyui_base_url,
            start_timeout_s=self.comfyui_history_timeout_sec,
            max_job_s=self.comfyui_history_timeout_sec,
            jobs_at_once=self.lhw_num_worker_threads,
            http_timeout_s=self.comfyui_http_timeout_sec,
            http_retries=self.comfyui_http_retries,
            poll_interval_s=self.comfyui_poll_interval_sec,
        )


def server_of(host: str) -> dict[str, str]:
    """``host``, ``host:port`` or ``[v6]:port`` as the SDK's settings; raises ValueError."""
    url = parse_server_address(host).url
    port = {"LHC_API_PORT": str(url.port)} if f"{url.host}" and host.rstrip("/").endswith(f":{url.port}") else {}
    return {"LHC_API_HOST": str(url.host), **port}
