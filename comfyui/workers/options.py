"""`WorkerOptions`: how a worker reaches ComfyUI and runs jobs. Each worker makes it of its settings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from comfyui.limits import DEFAULT_ANSWERS, AnswerLimits
from comfyui.outputs.files import DELIVERY_BACKOFF
from comfyui.retrying import Backoff
from comfyui.workers.cleanup import CleanupOptions


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """How a worker reaches ComfyUI and runs jobs.

    Attributes:
        command: starts ComfyUI as a child; empty: another program starts it, and the worker waits for it.
        start_timeout_s: how long ComfyUI may take until it answers.
        jobs_at_once: one for each GPU.
        restart_delay_s: as of `ComfyUIProcess`.
        hung_after_s: if a cancelled prompt still runs after this time, the child is restarted.
        free_after_idle_s: without work for so long, ComfyUI unloads its models; 0: never.
        lost_prompt_retries: how often one job is rendered again because ComfyUI crashed or forgot it, in all.
        delivery_retries: how often a file that cannot be read or stored is tried again, with back-off.
        cancel_abandoned: a job whose `run` is cancelled or timed out is taken out of ComfyUI; else only a timeout does.
        max_journal_bytes: about how much memory the records of ended jobs may take. Not a setting.
        on_line: gets the child's output, line by line.
        cleanup: which of ComfyUI's folders are cleaned after jobs, and when.
        workflows_dir: of the workflows that jobs may name; None: there are none.
    """

    server_address: str = "127.0.0.1:8188"
    command: Sequence[str] = ()
    comfyui_dir: Path | None = None
    start_timeout_s: float = 600.0
    restart_delay_s: float = 0.5
    hung_after_s: float = 30.0
    max_job_s: float = 3600.0
    jobs_at_once: int = 1
    http_timeout_s: float = 30.0
    http_retries: int = 3
    answers: AnswerLimits = DEFAULT_ANSWERS
    poll_interval_s: float = 1.0
    lost_prompt_retries: int = 1
    quarantine_after: int = 2
    quarantine_s: float = 600.0
    free_after_idle_s: float = 0.0
    max_input_bytes: int = 512_000_000
    input_url_allow: Sequence[str] = ()
    input_url_timeout_s: float = 60.0
    cancel_abandoned: bool = True
    delivery_retries: int = 4
    delivery_backoff: Backoff = DELIVERY_BACKOFF
    max_journal_bytes: int = 16_000_000
    on_line: Callable[[str], None] | None = None
    cleanup: CleanupOptions = field(default_factory=CleanupOptions)
    workflows_dir: Path | None = None
