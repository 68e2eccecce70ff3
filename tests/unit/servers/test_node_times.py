"""Seconds by node, from frames in the form that ComfyUI 0.3.64 sends."""

from __future__ import annotations

import json
from typing import Any

import pytest

from comfyui.servers.node_times import NodeTimes

PROMPT = "6c1f0b5e-3c1d-4b62-9a55-0f6f2f0a8d11"


def executing(node: str, shown: str | None = None) -> bytes:
    data = {"node": node, "display_node": shown or node, "prompt_id": PROMPT}
    return json.dumps({"type": "executing", "data": data}).encode()


def states(**nodes: str) -> bytes:
    """A frame with the states of nodes by id, in the order in which the nodes began."""
    said: dict[str, Any] = {
        node.removeprefix("n"): {"value": 0.0, "max": 1.0, "state": state, "node_id": node.removeprefix("n")}
        for node, state in nodes.items()
    }
    data = {"prompt_id": PROMPT, "nodes": said}
    return json.dumps({"type": "progress_state", "data": data}).encode()


def test_nodes_that_run_one_after_the_other_have_their_own_times(times: NodeTimes) -> None:
    times.states(states(n1="running"), 0.0)
    times.executing(executing("1"), 0.0)
    times.states(states(n1="running"), 0.7)
    times.states(states(n1="finished"), 1.0)
    times.states(states(n1="finished", n11="running"), 1.1)
    times.executing(executing("11"), 1.1)
    times.states(states(n1="finished", n11="finished"), 4.1)
    times.ended(4.2)
    assert times.seconds() == {"1": 1.0, "11": 3.0}


def test_without_state_frames_a_node_ends_when_the_next_one_begins(times: NodeTimes) -> None:
    times.executing(executing("1"), 0.0)
    times.executing(executing("2"), 1.0)
    times.executing(executing("2.0.0.1", "2"), 1.5)
    times.executing(executing("2.0.0.2", "2"), 2.0)
    times.executing(executing("3"), 4.0)
    times.ended(4.5)
    assert times.seconds() == {"1": 1.0, "2": 3.0, "3": 0.5}


def test_nodes_that_run_at_the_same_time_have_overlapping_times(times: NodeTimes) -> None:
    times.states(states(n1="running"), 0.0)
    times.executing(executing("1"), 0.0)
    times.states(states(n1="running", n2="running"), 0.1)
    times.executing(executing("2"), 0.1)
    times.states(states(n1="running", n2="finished"), 2.1)
    times.states(states(n1="finished", n2="finished"), 5.0)
    times.ended(5.0)
    assert times.seconds() == {"1": 5.0, "2": 2.0}


def test_a_node_that_waits_for_late_inputs_does_not_have_their_time(times: NodeTimes) -> None:
    times.states(states(n5="running"), 0.0)
    times.executing(executing("5"), 0.0)
    times.states(states(n5="running", n1="running"), 0.25)
    times.executing(executing("1"), 0.25)
    times.states(states(n5="running", n1="finished"), 3.25)
    times.states(states(n5="running", n1="finished"), 3.25)
    times.executing(executing("5"), 3.25)
    times.states(states(n5="finished", n1="finished"), 4.0)
    times.ended(4.0)
    assert times.seconds() == {"5": 1.0, "1": 3.0}


def test_a_node_has_the_time_of_the_nodes_that_it_expands_to(times: NodeTimes) -> None:
    times.states(states(n2="running"), 0.0)
    times.executing(executing("2"), 0.0)
    for step in range(3):
        times.executing(executing(f"2.0.0.{step}", "2"), 1.0 + step)
        times.states(states(n2="running", **{f"2.0.0.{step}": "finished"}), 2.0 + step)
    times.states(states(n2="finished"), 4.5)
    times.ended(4.5)
    assert times.seconds() == {"2": 4.5}


def test_a_node_id_may_be_any_text(times: NodeTimes) -> None:
    ids = ['a "quoted" one', "é\\n", "\U0001f5bc", "", "12:3"]
    for second, node in enumerate(ids):
        times.executing(executing(node), float(second))
    times.ended(5.0)
    assert times.seconds() == dict.fromkeys(ids, 1.0)


def test_a_run_without_nodes_has_no_times() -> None:
    times = NodeTimes()
    times.started()
    times.ended(1.0)
    assert times.seconds() == {}


def test_a_run_that_was_not_observed_completely_has_no_times() -> None:
    late = NodeTimes()
    late.executing(executing("2"), 0.0)
    late.ended(1.0)
    assert late.seconds() is None
    cut_off = NodeTimes()
    cut_off.started()
    cut_off.executing(executing("2"), 0.0)
    assert cut_off.seconds() is None


def test_a_second_run_starts_without_times(times: NodeTimes) -> None:
    times.executing(executing("1"), 0.0)
    times.started()
    times.executing(executing("1"), 10.0)
    times.ended(11.0)
    assert times.seconds() == {"1": 1.0}


@pytest.mark.parametrize(
    "frame",
    [
        executing("x" * 5000),
        b'{"type": "executing", "data": {"node": 5, "display_node": 5}}',
        b'{"type": "executing", "data": {"node": "\\u12", "display_node": "\\u12"}}',
    ],
)
def test_a_run_with_an_unreadable_frame_has_no_times(times: NodeTimes, frame: bytes) -> None:
    times.executing(frame, 0.0)
    times.ended(1.0)
    assert times.seconds() is None


def test_the_number_of_nodes_with_times_is_bounded(times: NodeTimes) -> None:
    for number in range(10_000):
        times.executing(executing(str(number)), float(number))
    times.ended(10_000.0)
    found = times.seconds()
    assert found is not None
    assert (len(found), set(found.values())) == (10_000, {1.0})
    for begun, beside in ((30_000, False), (100, True)):
        endless = NodeTimes()
        endless.started()
        if beside:
            endless.states(states(), 0.0)
        for number in range(begun):
            endless.executing(executing(str(number)), float(number))
        endless.ended(1.0)
        assert endless.seconds() is None
