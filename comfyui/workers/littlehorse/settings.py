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

    lh_host: str = Field(
        default="", description="LittleHorse's server as host or host:port; empty means localhost:2023."
    )
    comfyui_base_url: Annotated[str, AfterValidator(check_address)] = Field(
        default="http://127.0.0.1:8188", description="ComfyUI's URL or host:port."
    )
    # The other workers' COMFYUI_OUTPUT_DIR is a folder on their own machine.
    reader_output_dir: str = Field(
        default="",
        alias="comfyui_output_dir",
        description="ComfyUI's output folder as those who read the paths in results see it.",
    )
    cleanup_comfyui_output_dir: Path | None = Field(
        default=None,
        description="ComfyUI's output folder on this machine; if set, files are removed there after CLEANUP_MAX_AGE.",
    )
    comfyui_poll_interval_sec: float = Field(
        default=2, gt=0, description="Seconds between two polls of ComfyUI's queue."
    )
    comfyui_history_timeout_sec: float = Field(default=600, gt=0, description="Most seconds that one task may take.")
    comfyui_http_timeout_sec: float = Field(default=30, gt=0, description="Most seconds for one request to ComfyUI.")
    comfyui_http_retries: int = Field(
        default=3, ge=0, le=20, description="How often a failed request to ComfyUI is tried again."
    )
    lhw_num_worker_threads: int = Field(
        default=1,
        ge=1,
        description=(
            "Number of jobs that run at the same time, over all LittleHorse servers together; use one for each GPU."
        ),
    )
    health_port: int = Field(
        default=0, ge=0, le=65535, description="Port that serves /health and /metrics; 0 means none."
    )

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
