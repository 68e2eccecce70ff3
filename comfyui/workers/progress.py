"""A prompt's events as one line of progress, for platforms that show some."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from comfyui.events import Event, Executing, ExecutionCached, Progress, ProgressState
from comfyui.workflow import node_title


@dataclass(frozen=True, slots=True)
class ProgressReport:
    """How far a prompt is.

    Attributes:
        fraction: of its nodes, from 0.0 to 1.0; it never goes back.
        node_id, title: what runs now.
        value, max: steps of that node, both 0 when it reports none.
    """

    fraction: float
    node_id: str
    title: str
    value: float = 0
    max: float = 0

    def to_json(self) -> dict[str, Any]:
        steps = f" {self.value:g}/{self.max:g}" if self.max else ""
        return {**asdict(self), "message": f"{self.title}{steps}"}


class ProgressTracker:
    """Feed it the events of one prompt."""

    def __init__(self, prompt: Mapping[str, Any]) -> None:
        self._prompt = prompt
        self._done: set[str] = set()
        self._current = ""
        self._fraction = 0.0

    def observe(self, event: Event) -> ProgressReport | None:
        """What is to be shown now; None when the event changes nothing of it."""
        match event:
            case ExecutionCached(nodes=nodes):
                self._done.update(nodes)
                return None
            case Executing(node=str() as node):
                self._move_to(node)
                return self._report(node)
            case Progress(node=node, value=value, max=maximum):
                node = node or self._current
                self._move_to(node)
                return self._report(node, value, maximum)
            case ProgressState(nodes=nodes):
                self._done.update(node for node, state in nodes.items() if state.get("state") == "finished")
                return None
            case _:
                return None

    def _move_to(self, node_id: str) -> None:
        if self._current and self._current != node_id:
            self._done.add(self._current)
        self._current = node_id

    def _report(self, node_id: str, value: float = 0, maximum: float = 0) -> ProgressReport:
        done = len(self._done - {node_id}) + (value / maximum if maximum else 0)
        self._fraction = max(self._fraction, min(1.0, done / len(self._prompt)))
        return ProgressReport(round(self._fraction, 4), node_id, node_title(self._prompt, node_id), value, maximum)
