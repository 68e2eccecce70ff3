"""A prompt's events as what people want to see: which node runs, how far it is, how far the whole prompt is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import inf, isfinite
from typing import Any

from comfyui.events import Event, Executing, ExecutionCached, ExecutionStart, Progress, ProgressState
from comfyui.workflows.api_format import node_title

# No node weighs more than this many steps: some count pixels or bytes.
_MOST_STEPS = 1000.0


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

    ``overall`` is the part of the prompt's steps that is done. A node has the steps that it reports, before that those
    that its inputs ask for, else one. Nodes that ComfyUI serves from its cache are no work and do not count.

    Args:
        workflow: gives the prompt's workflow, or None while it is not known (another caller's prompt).
    """

    def __init__(self, workflow: Callable[[], Mapping[str, Any] | None]) -> None:
        self._workflow = workflow
        self._has_states = False
        self._begin()

    def _begin(self) -> None:
        self._current: str | None = None
        self._expected: Mapping[str, float] | None = None
        self._cached: set[str] = set()
        self._shares: dict[str, float] = {}
        self._weights: dict[str, float] = {}
        self._steps: dict[str, tuple[float, float]] = {}
        self._overall = 0.0

    @property
    def started(self) -> bool:
        """Whether ComfyUI has begun to run the prompt."""
        return self._current is not None or bool(self._steps)

    def observe(self, event: Event) -> Iterator[NodeStarted | NodeProgress]:
        """The news of this event."""
        match event:
            case ExecutionStart():  # the first time, or again after ComfyUI had lost it
                self._begin()
            case ExecutionCached(nodes=nodes):
                self._cached |= set(nodes)
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
            self._finish(self._current)
        self._current = node
        workflow = self._workflow() or {}
        found = workflow.get(node)
        class_type = str(found.get("class_type") or "") if isinstance(found, Mapping) else ""
        yield NodeStarted(node, node_title(workflow, node), class_type)

    def _in_state(self, node: str, state: Any) -> Iterator[NodeProgress]:
        if node in self._cached:
            return  # ComfyUI calls it finished, and has not run it
        if not isinstance(state, Mapping) or state.get("state") not in {"running", "finished"}:
            return
        value, maximum = state.get("value"), state.get("max")
        if isinstance(value, int | float) and isinstance(maximum, int | float) and value > 0:
            yield from self._stepped(node, float(value), float(maximum), finished=state["state"] == "finished")

    def _stepped(self, node: str, value: float, maximum: float, *, finished: bool = False) -> Iterator[NodeProgress]:
        self._cached.discard(node)
        if finished:
            self._finish(node)
        if maximum > 1:
            # Some nodes count more than once, each time to another end: the longest of these counts.
            self._weights[node] = max(self._weights.get(node, 1.0), min(maximum, _MOST_STEPS))
        share = min(1.0, max(0.0, value / maximum)) if maximum > 0 and isfinite(value) and isfinite(maximum) else 0.0
        self._shares[node] = max(self._shares.get(node, 0.0), share)
        if self._steps.get(node) == (value, maximum):
            return
        self._steps[node] = (value, maximum)
        self._overall = max(self._overall, min(1.0, self._part_done()))
        yield NodeProgress(node, value, maximum, round(self._overall, 4))

    def _finish(self, node: str) -> None:
        self._shares[node] = 1.0
        # One that has ended without a word of steps had none, whatever its inputs are called.
        self._weights.setdefault(node, 1.0)

    def _part_done(self) -> float:
        if self._expected is None and (workflow := self._workflow()):
            self._expected = expected_steps(workflow)
        expected = self._expected or dict.fromkeys(self._shares, 1.0)
        total = done = 0.0
        for node, steps in expected.items():
            if node in self._cached:
                continue
            weight = self._weights.get(node, steps)
            total += weight
            done += weight * self._shares.get(node, 0.0)
        return done / total if total else 0.0


def expected_steps(workflow: Mapping[str, Any]) -> dict[str, float]:
    """How many steps each node will report, as far as its inputs say; otherwise one.

    A sampler either has ``steps`` itself or takes them as ``sigmas`` from a scheduler, whose own work is nothing.
    """
    steps = {node: _steps(workflow, node) for node in workflow}
    sources = {node: source for node in workflow if (source := _source(_inputs(workflow, node).get("sigmas"))) in steps}
    for sampler in sources.keys() - sources.values():
        scheduler, seen = sources[sampler], {sampler}
        # Nodes between the two cut or change the sigmas.
        while scheduler in sources and scheduler not in seen:
            seen.add(scheduler)
            scheduler = sources[scheduler]
        steps[sampler] = max(steps[sampler], _steps(workflow, scheduler))
    return steps | dict.fromkeys(sources.values(), 1.0)


def _steps(workflow: Mapping[str, Any], node: str) -> float:
    value = _inputs(workflow, node).get("steps")
    if (source := _source(value)) is not None:
        # A primitive in the editor: the number stands there.
        value = _inputs(workflow, source).get("value")
    if isinstance(value, int | float) and not isinstance(value, bool) and 1 <= value < inf:
        return min(float(value), _MOST_STEPS)
    return 1.0


def _inputs(workflow: Mapping[str, Any], node: str) -> Mapping[str, Any]:
    found = workflow.get(node)
    inputs = found.get("inputs") if isinstance(found, Mapping) else None
    return inputs if isinstance(inputs, Mapping) else {}


def _source(value: Any) -> str | None:
    """The node that a link comes from; None for a value that is not a link."""
    return value[0] if isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) else None
