"""`Quarantine`: workflows that ended ComfyUI's process are refused for a time, by the hash of the workflow.

A workflow that crashes ComfyUI would crash it again at every retry, and take the other prompts with it each time. Only
the workflow counts, not its sender or its prompt id.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import structlog

from comfyui import jsonio
from comfyui.exceptions import ComfyUIPromptQuarantinedError, JournalError
from comfyui.jobs.journal.protocol import Journal
from comfyui.jobs.journal.writes import Died, Forgive

_REMEMBERED = 1000
_LINES = 12
# Paths of the server are cut to their last part, because clients can see them.
_PATH = re.compile(r"(?<![\w:/.])/(?:[\w.@+-]+/)+([\w.@+-]+)")

Clock = Callable[[], float]

_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Record:
    """The record of one workflow: when it ended ComfyUI, how it did so last, and ComfyUI's last lines."""

    times: list[float] = field(default_factory=list)
    how: str = ""
    lines: tuple[str, ...] = ()


class Quarantine:
    """Not thread-safe.

    Args:
        after: a workflow is refused when it has ended ComfyUI this often within `seconds`; 0: never.
        seconds: how long it is refused, counted from the last time.
        journal: keeps the records for later processes. Open it before this.
        wall_clock: Unix time, for the journal.
    """

    def __init__(
        self,
        after: int = 2,
        seconds: float = 600.0,
        journal: Journal | None = None,
        *,
        clock: Clock = time.monotonic,
        wall_clock: Clock = time.time,
    ) -> None:
        self._after = after
        self._seconds = seconds
        self._journal = journal
        self._clock = clock
        self._wall_clock = wall_clock
        # Ordered by the last death, the oldest first.
        self._records: OrderedDict[str, _Record] = OrderedDict()

    async def open(self) -> None:
        """Loads the journal's records. Raises `JournalError`."""
        if self._journal is None or not self._after:
            return
        self._records.clear()
        now, at_now = self._clock(), self._wall_clock()
        for workflow, at in await self._journal.deaths(at_now - self._seconds):
            record = self._records.pop(workflow, None) or _Record()
            record.times.append(now - max(0.0, at_now - at))
            self._records[workflow] = record

    async def ended_comfyui(self, workflow: Mapping[str, Any], how: str = "", lines: Sequence[str] = ()) -> None:
        """The workflow was running when ComfyUI's process ended. Returns when the journal has it, if that is possible.

        Args:
            how: a clause such as "it was ended by SIGSEGV"; "" if it is not known.
            lines: the last lines that ComfyUI wrote.
        """
        if not self._after:
            return
        key, now = workflow_hash(workflow), self._clock()
        record = self._records.pop(key, None) or _Record()
        record.times = [*(then for then in record.times if now - then < self._seconds), now]
        record.how, record.lines = how, tuple(_PATH.sub(r"\1", line) for line in lines[-_LINES:])
        self._records[key] = record
        while len(self._records) > _REMEMBERED:
            self._records.popitem(last=False)
        if self._journal is not None:
            at = self._wall_clock()
            try:
                await self._journal.write(Died(key, at, at - self._seconds))
            except JournalError as error:
                _log.error("journal.not_written", reason=error.detail)

    def check(self, workflow: Mapping[str, Any], prompt_id: str | None = None) -> None:
        """Raises `ComfyUIPromptQuarantinedError` for a workflow that is refused now."""
        while self._records and next(iter(self._records.values())).times[-1] + self._seconds <= self._clock():
            self._records.popitem(last=False)
        if not self._records:
            return  # hashing a large workflow takes longer than the rest of this
        record = self._records.get(workflow_hash(workflow))
        if record is None or len(record.times) < self._after:
            return
        left_s = record.times[-1] + self._seconds - self._clock()
        how = f" (the last time {record.how})" if record.how else ""
        raise ComfyUIPromptQuarantinedError(
            f"this workflow ended ComfyUI's process {len(record.times)} times{how}; it is refused for another"
            f" {max(1, round(left_s))} s. Change the workflow, or repair its node or model that crashes",
            prompt_id=prompt_id,
            log_tail=record.lines,
        )

    def succeeded(self, workflow: Mapping[str, Any]) -> None:
        """The workflow ran to its end: the recorded deaths were not its fault."""
        if not self._records:
            return
        key = workflow_hash(workflow)
        if self._records.pop(key, None) is not None and self._journal is not None:
            self._journal.write_behind(Forgive(key))


def workflow_hash(workflow: Mapping[str, Any]) -> str:
    """SHA-256 of what runs: class and inputs of each node, without the titles that editors write beside them."""
    decisive = {
        node_id: {"class_type": node.get("class_type"), "inputs": node.get("inputs")}
        if isinstance(node, Mapping)
        else node
        for node_id, node in workflow.items()
    }
    return hashlib.sha256(jsonio.canonical(decisive)).hexdigest()
