"""A prompt's progress as platforms show it: one line, and one figure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from comfyui.events import Event
from comfyui.workflows import progress
from comfyui.workflows.api_format import node_title


@dataclass(frozen=True, slots=True)
class ProgressReport:
    """How far a prompt is.

    Attributes:
        fraction: of the whole prompt, from 0.0 to 1.0.
        node_id, title: of the node that runs now.
        value, max: steps of that node, both 0 when it has reported none.
    """

    fraction: float
    node_id: str
    title: str
    value: float = 0
    max: float = 0

    def to_json(self) -> dict[str, Any]:
        steps = f" {self.value:g}/{self.max:g}" if self.max > 1 else ""
        return {**asdict(self), "message": f"{self.title}{steps}"}


class ProgressTracker:
    """Feed it the events of one prompt."""

    def __init__(self, prompt: Mapping[str, Any]) -> None:
        self._prompt = prompt
        self._tracker = progress.ProgressTracker(lambda: prompt)
        self._fraction = 0.0

    def observe(self, event: Event) -> ProgressReport | None:
        """The report to show now; None if the event changes nothing in it."""
        report = None
        for news in self._tracker.observe(event):
            title = node_title(self._prompt, news.node)
            if isinstance(news, progress.NodeProgress):
                self._fraction = news.overall
                report = ProgressReport(news.overall, news.node, title, news.value, news.max)
            else:
                report = ProgressReport(self._fraction, news.node, title)
        return report
