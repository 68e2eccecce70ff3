"""`overall` is the finished part of a prompt's steps, for workflows and events of any shape."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from comfyui.events import Event, Executing, ExecutionCached, ExecutionStart, Progress, ProgressState
from comfyui.workflows.progress import NodeProgress, ProgressTracker, expected_steps

EXAMPLES = Path(__file__).parents[3] / "examples"


def overalls(workflow: dict[str, Any] | None, events: Iterator[Event] | list[Event]) -> list[float]:
    tracker = ProgressTracker(lambda: workflow)
    return [step.overall for event in events for step in tracker.observe(event) if isinstance(step, NodeProgress)]


def sampling(node: str, steps: int, *, states: bool) -> Iterator[Event]:
    """The events that ComfyUI sends for a node with this number of steps; a node with one step reports no progress."""
    yield Executing("p", node)
    if steps == 1:
        if states:
            yield ProgressState("p", {node: {"state": "finished", "value": 1.0, "max": 1.0}})
        return
    if states:
        yield ProgressState("p", {node: {"state": "running", "value": 0.0, "max": 1.0}})
    for step in range(1, steps + 1):
        if states:
            yield ProgressState("p", {node: {"state": "running", "value": step, "max": steps}})
        yield Progress("p", node, step, steps)
    if states:
        yield ProgressState("p", {node: {"state": "finished", "value": steps, "max": steps}})


def run(steps: dict[str, int], cached: set[str], *, states: bool) -> Iterator[Event]:
    yield ExecutionStart("p")
    yield ExecutionCached("p", sorted(cached))
    if states and cached:
        finished = {"state": "finished", "value": 1.0, "max": 1.0}
        yield ProgressState("p", dict.fromkeys(sorted(cached), finished))
    for node, count in steps.items():
        if node not in cached:
            yield from sampling(node, count, states=states)


WORKFLOWS = st.lists(st.sampled_from([1, 1, 1, 2, 4, 20, 50]), min_size=1, max_size=12)


@given(WORKFLOWS, st.data(), st.booleans())
def test_overall_is_the_finished_part_of_the_steps(counts: list[int], data: st.DataObject, states: bool) -> None:
    steps = {str(index): count for index, count in enumerate(counts)}
    cached = data.draw(st.sets(st.sampled_from(sorted(steps)), max_size=len(steps) - 1))
    workflow = {
        node: {"class_type": "A", "inputs": {"steps": count} if count > 1 else {}} for node, count in steps.items()
    }
    shown = overalls(workflow, run(steps, cached, states=states))
    to_do = [count for node, count in steps.items() if node not in cached]
    total = sum(to_do)
    # Each event is one more step. Without states, a node without progress is noticed when the next node counts.
    assert shown == sorted(shown)
    rises = [after - before for before, after in zip([0.0, *shown], shown, strict=False)]
    silent = 1 if states else 1 + to_do.count(1)
    assert all(rise <= silent / total + 1e-3 for rise in rises)
    if states:
        assert shown[-1] == 1.0


NODES = st.sampled_from(["1", "2", "3", "9"])
NUMBERS = st.one_of(st.floats(), st.integers(-3, 10**12))
STATES = st.fixed_dictionaries(
    {"state": st.sampled_from(["running", "finished", "pending"]), "value": NUMBERS, "max": NUMBERS}
)
EVENTS = st.one_of(
    st.builds(Executing, st.just("p"), st.one_of(NODES, st.none())),
    st.builds(ExecutionCached, st.just("p"), st.lists(NODES)),
    st.builds(Progress, st.just("p"), NODES, NUMBERS, NUMBERS),
    st.builds(ProgressState, st.just("p"), st.dictionaries(NODES, STATES)),
)
INPUTS = st.dictionaries(
    st.sampled_from(["steps", "sigmas", "value"]),
    st.one_of(NUMBERS, st.none(), st.text(max_size=2), st.tuples(NODES, st.just(0)).map(list)),
)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)  # its speed depends on the load
@given(
    st.one_of(st.none(), st.dictionaries(NODES, st.fixed_dictionaries({"inputs": INPUTS}))),
    st.lists(EVENTS, max_size=30),
)
def test_overall_never_falls_and_stays_between_0_and_1_for_any_events(
    workflow: dict[str, Any] | None, events: list[Event]
) -> None:
    shown = overalls(workflow, events)
    assert all(math.isfinite(overall) and 0 <= overall <= 1 for overall in shown)
    assert shown == sorted(shown)


def test_overall_begins_near_zero_when_all_nodes_before_the_sampler_are_cached() -> None:
    workflow = json.loads((EXAMPLES / "txt2img.json").read_text())
    sampler = next(node for node, found in workflow.items() if found["class_type"] == "KSampler")
    count = workflow[sampler]["inputs"]["steps"]
    cached = {node for node in workflow if workflow[node]["class_type"] not in {"KSampler", "VAEDecode", "SaveImage"}}
    steps = {node: count if node == sampler else 1 for node in workflow}
    shown = overalls(workflow, run(steps, cached, states=True))
    assert shown[0] == pytest.approx(1 / (count + 2), abs=1e-3)
    assert all(after - before < 0.1 for before, after in itertools.pairwise(shown))


def test_the_steps_of_a_scheduler_count_for_its_samplers() -> None:
    workflow = {
        "1": {"class_type": "BasicScheduler", "inputs": {"steps": ["5", 0]}},
        "2": {"class_type": "SplitSigmas", "inputs": {"sigmas": ["1", 0], "step": 10}},
        "3": {"class_type": "SamplerCustomAdvanced", "inputs": {"sigmas": ["2", 0]}},
        "4": {"class_type": "SamplerCustomAdvanced", "inputs": {"sigmas": ["2", 1]}},
        "5": {"class_type": "PrimitiveInt", "inputs": {"value": 20}},
    }
    assert expected_steps(workflow) == {"1": 1, "2": 1, "3": 20, "4": 20, "5": 1}
