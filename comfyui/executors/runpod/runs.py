"""`Run`: the state of a job at RunPod."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Run:
    """A job that RunPod has.

    Attributes:
        job_id: RunPod's id.
        has_reply: whether its reply is in the journal.
        is_running: whether a worker has it.
        latest: the last frame of each type since its start.
    """

    job_id: str
    has_reply: bool = False
    staging_s: float = 0.0
    since: float = 0.0
    is_running: bool = False
    latest: dict[str, bytes] = field(default_factory=dict)

    def began(self) -> None:
        """A worker has it."""
        self.is_running = True
