"""A prompt's events as what people want to see: which node runs, how far it is, how far the whole prompt is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from comfyui.events import Event, Executing, ExecutionCached, ExecutionStart, Progress, ProgressState
from comfyui.workflow import node_title


@dataclass(frozen=True, slots=True)
class NodeStarted:
    """``title`` is the node's in the editor, else its class."""

    node: str
    title: str
    class_type: str


@dataclass(frozen=True, slots=True)
class NodeProgress:
    """``value`` of ``max`` steps of one node; ``overall`` of the whole prompt, 0 to 1, never going back."""

    node: str
    value: float
    max: float
    overall: float


class ProgressTracker:
    """Feed it the events of one prompt.

    Args:
        workflow: gives the prompt's workflow, or None while it is not known (somebody else's prompt).
    """

    def __init__(self, workflow: Callable[[], Mapping[str, Any] | None]) -> None:
        self._workflow = workflow
        self._has_states = False
        self._begin()

    def _begin(self) -> None:
        self._current: str | None = None
        self._shares: dict[str, float] = {}
        self._steps: dict[str, tuple[float, float]] = {}
        self._overall = 0.0

    @property
    def started(self) -> bool:
        """Whether ComfyUI has begun to run the prompt."""
        return self._current is not None or bool(self._steps)

    def observe(self, event: Event) -> Iterator[NodeStarted | NodeProgress]:
        """What is new with this event."""
        match event:
            case ExecutionStart():  # the first time, or once more after ComfyUI had lost it
                self._begin()
            case ExecutionCached(nodes=nodes):
                self._shares |= dict.fromkeys(nodes, 1.0)
            case Executing(node=str() as node):
                yield from self._moved_to(node)
            case Progress(node=node, value=value, max=maximum):
                yield from self._stepped(node or self._current or "", value, maximum)
            case ProgressState(nodes=nodes):
                self._has_states = True
                for node, state in nodes.items():
                    yield from self._in_state(node, state)

    def _moved_to(self, node: str) -> Iterator[NodeStarted]:
        # Only a ComfyUI that reports no states runs strictly one node after the other.
        if self._current is not None and self._current != node and not self._has_states:
            self._shares[self._current] = 1.0
        self._current = node
        workflow = self._workflow() or {}
        found = workflow.get(node)
        class_type = str(found.get("class_type") or "") if isinstance(found, Mapping) else ""
        yield NodeStarted(node, node_title(workflow, node), class_type)

    def _in_state(self, node: str, state: Any) -> Iterator[NodeProgress]:
        if not isinstance(state, Mapping) or state.get("state") not in {"running", "finished"}:
            return
        value, maximum = state.get("value"), state.get("max")
        if isinstance(value, int | float) and isinstance(maximum, int | float) and value > 0:
            yield from self._stepped(node, float(value), float(maximum), finished=state["state"] == "finished")

    def _stepped(self, node: str, value: float, maximum: float, *, finished: bool = False) -> Iterator[NodeProgress]:
        share = 1.0 if finished else min(1.0, value / maximum) if maximum > 0 else 0.0
        known = self._shares.get(node, 0.0)
        self._shares[node] = max(known, share)
        if self._steps.get(node) == (value, maximum):
            return
        self._steps[node] = (value, maximum)
        nodes = self._workflow() or self._shares
        done = sum(share for node_id, share in self._shares.items() if node_id in nodes)
        self._overall = max(self._overall, min(1.0, done / len(nodes)))
        yield NodeProgress(node, value, maximum, round(self._overall, 4))
