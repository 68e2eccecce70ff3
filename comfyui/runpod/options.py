"""`RunPodOptions`: which endpoint renders, where its files are kept, and how patient the bridge is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import SecretStr

from comfyui.limits import DEFAULT_ANSWERS, AnswerLimits
from comfyui.retrying import Backoff


@dataclass(frozen=True, slots=True)
class RunPodTimes:
    """Durations in seconds, none of which is a setting.

    Attributes:
        first_look_s: from a job's submission to the first question for its state. Later looks are less frequent.
        look_backoff: between the questions for a job's state, and the tries to cancel it, that get no answer.
        send_backoff: between the tries to send a job that RunPod surely did not take.
        last_word_s: for a job that is on its way when the gateway stops. Without it, nobody would know whether RunPod
            has the job.
        rewrite_backoff: between the tries to write a result to a full disk.
        probe_local_s: between the looks whether the local ComfyUI is there.
        local_definitions_s: for the local ComfyUI's node definitions. Shorter than a caller waits: a ComfyUI that hangs
            must not hold up the queue.
        clean_every_s: between the removals of old files.
    """

    first_look_s: float = 0.5
    look_backoff: Backoff = Backoff(start_s=1.0, max_s=30.0)
    send_backoff: Backoff = Backoff(start_s=0.5, max_s=15.0)
    last_word_s: float = 5.0
    rewrite_backoff: Backoff = Backoff(start_s=1.0, max_s=30.0)
    probe_local_s: float = 5.0
    local_definitions_s: float = 15.0
    clean_every_s: float = 3600.0


@dataclass(frozen=True, slots=True)
class RunPodOptions:
    """The settings of the same names (docs/configuration.md).

    Attributes:
        endpoint_url: of another API server with RunPod's protocol; empty: RunPod's.
        data_dir: for the journal, results and inputs; one gateway at a time.
        local_address: of the ComfyUI that has everything but prompts.
        url_allow: see `fetch.AddressPolicy`; for the endpoint's own store.
        data_days: after which results and uploaded inputs are removed; 0: never.
    """

    endpoint_id: str
    api_key: SecretStr
    data_dir: Path
    local_address: str
    endpoint_url: str = ""
    url_allow: Sequence[str] = ()
    socket_buffer_bytes: int = 16_000_000
    data_days: float = 0
    answers: AnswerLimits = DEFAULT_ANSWERS
    times: RunPodTimes = field(default_factory=RunPodTimes)
