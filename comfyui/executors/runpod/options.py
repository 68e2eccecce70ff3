"""`RunPodOptions`: which endpoint renders, where its files are kept, and how patient we are with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import SecretStr

from comfyui.retrying import Backoff


@dataclass(frozen=True, slots=True)
class RunPodTimes:
    """Durations in seconds, none of which is a setting.

    Attributes:
        first_look_s: from a job's submission to the first question for its state. Later looks are less frequent.
        look_backoff: between the questions for a job's state, and the tries to cancel it, that get no answer.
        send_backoff: between the tries to send jobs while RunPod surely does not take them.
        last_word_s: for a job that is on its way when the gateway stops. Without it, nobody would know whether RunPod
            has the job.
        cancel_s: so long a caller waits for RunPod to be told of a cancel. After that it is told without a caller.
        journal_backoff: between the tries to write down what has happened already and must not be forgotten.
        rewrite_backoff: between the tries to write a result to a full disk.
        clean_every_s: between the removals of old files.
    """

    first_look_s: float = 0.5
    look_backoff: Backoff = Backoff(start_s=1.0, max_s=30.0)
    send_backoff: Backoff = Backoff(start_s=0.5, max_s=15.0)
    last_word_s: float = 5.0
    cancel_s: float = 5.0
    journal_backoff: Backoff = Backoff(start_s=1.0, max_s=10.0)
    rewrite_backoff: Backoff = Backoff(start_s=1.0, max_s=30.0)
    clean_every_s: float = 3600.0


@dataclass(frozen=True, slots=True)
class RunPodOptions:
    """The settings of the same names (docs/configuration.md).

    Attributes:
        endpoint_url: of another API server with RunPod's protocol; empty: RunPod's.
        data_dir: for results and inputs; one gateway at a time.
        url_allow: see `fetch.AddressPolicy`; for the endpoint's own store.
        data_days: after which results and inputs are removed; 0: never.
    """

    endpoint_id: str
    api_key: SecretStr
    data_dir: Path
    endpoint_url: str = ""
    url_allow: Sequence[str] = ()
    data_days: float = 0
    times: RunPodTimes = field(default_factory=RunPodTimes)
