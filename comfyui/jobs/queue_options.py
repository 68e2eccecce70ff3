"""Options for the place where jobs wait, how many may wait, and how many go to a server."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class TurnOptions:
    """The place where jobs wait.

    Attributes:
        queue: gateway: all jobs wait here, and a server has one prompt that runs and one that waits. comfyui: sync jobs
            go to ComfyUI's queue at once, and async ones wait here.
        ahead: with queue comfyui: unfinished async jobs on each server, and more if they are quick (`Paces`); 0: none
            is passed on.
        places: with queue gateway: prompts on each server, including the running one; None: any number, for a server
            that stands for many.
        affinity_wait_s: see `SchedulerOptions`.
        move_after_s: a server is away for so long before its jobs go to another one.
    """

    queue: Literal["gateway", "comfyui"] = "comfyui"
    ahead: int = 4
    places: int | None = 2
    affinity_wait_s: float = 10.0
    move_after_s: float = 5.0


@dataclass(frozen=True, slots=True)
class QueueOptions(TurnOptions):
    """The place where jobs wait (`TurnOptions`), and their number.

    Attributes:
        max_queued: async jobs that wait with us; beyond it submissions are refused.
        max_queued_s: how long a job may wait; 0: any time.
        storing: async jobs that wait for the store, with their results in memory; at this number, none is passed on.
    """

    max_queued: int = 10_000
    max_queued_s: float = 0.0
    storing: int = 64
