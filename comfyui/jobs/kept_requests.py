"""`KeptRequests`: the first jobs that wait, as they were submitted, so that they need not be read back at their turn.

Without it, each job of a short queue was read three times on the journal's thread (record, body, record), and its
request was parsed a second time: 0.6 ms of CPU, and three waits for that thread's commits.
"""

from __future__ import annotations

from comfyui.jobs.journal.records import JobRecord
from comfyui.models import PromptRequest

_MOST = 64
_MOST_BYTES = 1_000_000


class KeptRequests:
    """Jobs that do not fit are read from the journal. A job is kept until its first turn, since its row changes
    then.
    """

    def __init__(self, most: int = _MOST, most_bytes: int = _MOST_BYTES) -> None:
        self._most, self._most_bytes = most, most_bytes
        self._kept: dict[str, tuple[JobRecord, PromptRequest]] = {}
        self._bytes = 0

    def keep(self, record: JobRecord, request: PromptRequest) -> None:
        """The job was added now; `request` is all that it brings."""
        if len(self._kept) < self._most and self._bytes + request.size <= self._most_bytes:
            self._kept[record.prompt_id] = record, request
            self._bytes += request.size

    def take(self, prompt_id: str) -> tuple[JobRecord, PromptRequest] | None:
        """The job, which is then no longer kept; None if it was not."""
        kept = self._kept.pop(prompt_id, None)
        if kept is not None:
            self._bytes -= kept[1].size
        return kept
