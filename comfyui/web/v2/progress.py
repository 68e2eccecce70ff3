"""How far a prompt is, as the contract's Progress has it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from comfyui.events import Event, Executing, ExecutionCached, ExecutionStart, ProgressState
from comfyui.jobs.admission import Look
from comfyui.workflows.progress import NodeProgress, NodeStarted, ProgressTracker

JSON = dict[str, Any]


class Snapshots:
    """Give it the events of one prompt; `value` never falls, even if the prompt runs again.

    Args:
        workflow: gives the prompt's workflow, or None while it is not known.
    """

    def __init__(self, workflow: Callable[[], Mapping[str, Any] | None]) -> None:
        self._workflow = workflow
        self._tracker = ProgressTracker(workflow)
        self._done: set[str] = set()
        self._node: str | None = None
        self._class = ""
        self._steps: tuple[float, float] | None = None
        self._value = 0.0

    @property
    def node(self) -> str | None:
        """The node that runs."""
        return self._node

    def observe(self, event: Event) -> bool:
        """Whether this event brings news."""
        match event:
            case ExecutionStart():
                self._done.clear()
                self._node, self._steps = None, None
            case ExecutionCached(nodes=nodes):
                self._done |= set(nodes)
            case Executing(node=str() as node) if node != self._node and self._node is not None:
                self._done.add(self._node)
            case ProgressState(nodes=nodes):
                done = {node for node, state in nodes.items() if _is_finished(state)}
                self._done |= done
            case _:
                pass
        before = len(self._done), self._value, self._node, self._steps
        for step in self._tracker.observe(event):
            if isinstance(step, NodeStarted):
                self._node, self._class, self._steps = step.node, step.class_type, None
                self._done.discard(step.node)
            elif isinstance(step, NodeProgress):
                self._value = max(self._value, step.overall)
                if step.node == self._node:
                    self._steps = step.value, step.max
        return (len(self._done), self._value, self._node, self._steps) != before

    def now(self) -> JSON:
        """A Progress."""
        workflow = self._workflow() or {}
        total = max(len(workflow), len(self._done))
        found: JSON = {"value": min(1.0, self._value), "nodes_done": len(self._done), "nodes_total": total}
        if self._node is not None:
            found["current_node"] = self._node
            found["current_node_class"] = self._class
        if self._steps is not None:
            found["step"], found["steps"] = (round(steps) for steps in self._steps)
        return found

    def at_end(self) -> JSON:
        """A Progress of a prompt that has succeeded."""
        total = max(len(self._workflow() or {}), len(self._done))
        return {"value": 1.0, "nodes_done": total, "nodes_total": total}


def progress_of(look: Look) -> JSON:
    """A Progress of a job that runs."""
    snapshots = Snapshots(lambda: look.workflow)
    for event in look.events:
        snapshots.observe(event)
    return snapshots.now()


def _is_finished(state: Any) -> bool:
    return isinstance(state, Mapping) and state.get("state") == "finished"
