"""`Quarantine`: workflows that ended ComfyUI's process are refused for a time, by the hash of the workflow.

A workflow that crashes ComfyUI would crash it again at every retry, and take the other prompts with it each time. What
counts is the workflow alone, whoever sends it under whatever prompt id.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from comfyui import jsonio
from comfyui.exceptions import ComfyUIPromptQuarantinedError

_REMEMBERED = 1000
_LINES = 12
# Paths of the server are cut to their last part, as everywhere that a client can see.
_PATH = re.compile(r"(?<![\w:/.])/(?:[\w.@+-]+/)+([\w.@+-]+)")

Clock = Callable[[], float]


@dataclass(slots=True)
class _Record:
    """What is known of one workflow: when it ended ComfyUI, how the last time, and the last words."""

    times: list[float] = field(default_factory=list)
    how: str = ""
    lines: tuple[str, ...] = ()


class Quarantine:
    """Not for use from several threads.

    Args:
        after: a workflow is refused once it ended ComfyUI so often within `seconds`; 0: never.
        seconds: how long it is refused, counted from the last time.
    """

    def __init__(self, after: int = 2, seconds: float = 600.0, *, clock: Clock = time.monotonic) -> None:
        self._after = after
        self._seconds = seconds
        self._clock = clock
        self._records: OrderedDict[str, _Record] = OrderedDict()

    def ended_comfyui(self, workflow: Mapping[str, Any], how: str = "", lines: Sequence[str] = ()) -> None:
        """The workflow was running when ComfyUI's process ended.

        Args:
            how: a clause such as "it was ended by SIGSEGV"; "" where nobody saw it.
            lines: the last ones that ComfyUI wrote.
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

    def check(self, workflow: Mapping[str, Any], prompt_id: str | None = None) -> None:
        """Raise `ComfyUIPromptQuarantinedError` for a workflow that is refused now."""
        if not self._records:
            return  # to hash a large workflow takes longer than all else here
        record = self._records.get(workflow_hash(workflow))
        if record is None or len(record.times) < self._after:
            return
        left_s = record.times[-1] + self._seconds - self._clock()
        if left_s <= 0:
            return
        how = f" (the last time {record.how})" if record.how else ""
        raise ComfyUIPromptQuarantinedError(
            f"this workflow ended ComfyUI's process {len(record.times)} times{how}; it is refused for another"
            f" {max(1, round(left_s))} s. Change the workflow, or what of its nodes and models crashes",
            prompt_id=prompt_id,
            log_tail=record.lines,
        )

    def succeeded(self, workflow: Mapping[str, Any]) -> None:
        """The workflow ran to its end: what was held against it was not its fault."""
        if self._records:
            self._records.pop(workflow_hash(workflow), None)


def workflow_hash(workflow: Mapping[str, Any]) -> str:
    """SHA-256 of what is run: class and inputs of each node, without the titles that editors write beside them."""
    decisive = {
        node_id: {"class_type": node.get("class_type"), "inputs": node.get("inputs")}
        if isinstance(node, Mapping)
        else node
        for node_id, node in workflow.items()
    }
    return hashlib.sha256(jsonio.canonical(decisive)).hexdigest()
