"""`ServerOptions`: how ComfyUI servers are called, watched and found unreachable."""

from __future__ import annotations

from dataclasses import dataclass

from comfyui.limits import DEFAULT_ANSWERS, AnswerLimits
from comfyui.retrying import Backoff


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """Options of all servers of one pool; durations in seconds. The first group are settings
    (docs/configuration.md).
    """

    http_timeout_s: float = 30.0
    http_retries: int = 3
    poll_interval_s: float = 1.0
    stalled_after_s: float = 60.0
    silent_after_s: float = 600.0
    dead_after_s: float = 0.0
    answers: AnswerLimits = DEFAULT_ANSWERS

    probe_timeout_s: float = 5.0
    """For an answer to the smallest request: a slower server does not accept a prompt, either."""
    probe_backoff: Backoff = Backoff(start_s=0.5, max_s=3.0)
    """Between the probes of a server that does not answer."""
    probe_unwatched_s: float = 5.0
    """Between the probes of a server that answers while its websocket is refused."""
    kind_within_s: float = 1.0
    """For a server to report its kind. One that does not is taken for a ComfyUI."""
    definitions_within_s: float = 5.0
    """For a server to give its node definitions, if a choice depends on them: some seconds with many nodes on a slow
    disk.

    A wrong guess is a refused workflow; waiting costs once, because later callers share the same request.
    """
    heartbeat_s: float = 20.0
    """A websocket that is silent for this long is pinged; without an answer within half of that it ends."""
    reconnect: Backoff = Backoff(start_s=0.1, max_s=3.0)
    """Between attempts to open the websocket."""
    history_backoff: Backoff = Backoff(start_s=0.4, max_s=3.0)
    """Between requests for the history entry of a prompt that is done."""
    tick_s: float = 2.0
    """While the websocket works and prompts wait, one small request each `tick_s` checks that it is not silent."""


DEFAULT_SERVERS = ServerOptions()
