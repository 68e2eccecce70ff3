"""`RunPodOptions`: the endpoint that renders, the folder of its files, and how patient we are with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import SecretStr

from comfyui.retrying import Backoff


@dataclass(frozen=True, slots=True)
class RunPodTimes:
    """Durations in seconds; none is a setting.

    Attributes:
        first_look_s: from a job's submission to the first request for its state. Later ones are less frequent.
        look_backoff: between requests for a job's state, or to cancel it, that get no answer.
        send_backoff: between attempts to send jobs while RunPod certainly does not accept them.
        last_word_s: for a job that is on its way when the gateway stops. Without it, no one would know whether RunPod
            has the job.
        cancel_s: how long a caller waits until RunPod is told of a cancel. After that, RunPod is told without a caller.
        journal_backoff: between attempts to record something that has already happened and must not be forgotten.
        rewrite_backoff: between attempts to write a result to a full disk.
        clean_every_s: between removals of old files.
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
        endpoint_url: another API server with RunPod's protocol; empty: RunPod's.
        data_dir: for results and inputs; only one gateway may use it.
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
