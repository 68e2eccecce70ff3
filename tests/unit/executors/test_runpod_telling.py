"""What is told of a job at RunPod, of what a look at it says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from comfyui.executors.runpod.telling import Telling
from tests.support.running import invert_workflow

Told = list[tuple[str, Mapping[str, Any]]]


def telling(prompt: Mapping[str, Any] | None = None) -> tuple[Telling, Told]:
    told: Told = []
    return Telling("id", prompt or invert_workflow(), lambda kind, data: told.append((kind, data))), told


def kinds(told: Told) -> list[str]:
    return [kind for kind, _ in told]


def test_a_start_is_told_once_however_often_it_is_seen() -> None:
    one, told = telling()
    for _ in range(3):
        one.progressed(None)
    one.started()
    assert kinds(told) == ["execution_start", "execution_cached"]


def test_the_nodes_before_a_running_node_have_run_even_if_unseen() -> None:
    one, told = telling()
    one.progressed({"node_id": "3", "value": 1, "max": 4})
    [states] = [data["nodes"] for kind, data in told if kind == "progress_state"]
    assert {node: state["state"] for node, state in states.items()} == {
        "1": "finished",
        "2": "finished",
        "3": "running",
    }
    assert told[-1] == ("progress", {"value": 1.0, "max": 4.0, "node": "3", "prompt_id": "id"})
    before = len(told)
    one.progressed({"node_id": "3", "value": 1, "max": 4})
    assert len(told) == before, "the same report tells nothing new"


def test_a_node_that_was_told_of_is_finished_when_another_one_runs() -> None:
    one, told = telling()
    for node in ("1", "2"):
        one.progressed({"node_id": node, "value": 0, "max": 1})
    assert told[-2][1]["nodes"]["1"]["state"] == "finished"
    assert told[-2][1]["nodes"]["2"]["state"] == "running"


@pytest.mark.parametrize(
    "report", [5, [], {"node_id": 2}, {"node_id": "absent"}, {"node_id": ["2"]}, {"node_id": None, "value": "x"}]
)
def test_a_report_that_is_none_says_that_the_job_runs(report: Any) -> None:
    one, told = telling()
    one.progressed(report)
    assert kinds(told) == ["execution_start", "execution_cached"]


def test_the_start_is_when_runpod_says_that_it_was_for_all_that_is_kept() -> None:
    one, _ = telling()
    one.progressed(None)
    one.succeeded({"3": {"images": []}}, 60_000)
    history = one.told({"3": {}})
    stamps = [data["timestamp"] for _, data in history.messages]
    assert [kind for kind, _ in history.messages] == ["execution_start", "execution_cached", "execution_success"]
    assert stamps[0] == stamps[1]
    assert one.executing_s == pytest.approx(60, abs=1)
    assert history.meta == {"3": {"node_id": "3", "display_node": "3", "parent_node": None, "real_node_id": "3"}}


def test_a_failure_names_the_node_and_what_ran_before_it() -> None:
    one, told = telling()
    one.failed("no luck", "RuntimeError", "3", ["a line\n"])
    kind, data = told[-1]
    assert kind == "execution_error"
    assert (data["node_id"], data["node_type"], data["executed"]) == ("3", "SaveImage", ["1", "2"])
    assert (data["exception_message"], data["exception_type"], data["traceback"]) == (
        "no luck",
        "RuntimeError",
        ["a line\n"],
    )


@pytest.mark.parametrize("node", [None, "absent"])
def test_a_failure_of_no_node_that_there_is_says_of_none_that_it_ran(node: str | None) -> None:
    one, told = telling()
    one.failed("no luck", "RuntimeError", node, [])
    assert (told[-1][1]["node_type"], told[-1][1]["executed"]) == (None, [])


def test_nodes_in_a_circle_end_the_search_for_what_has_run() -> None:
    circle = {
        "1": {"class_type": "A", "inputs": {"a": ["2", 0]}},
        "2": {"class_type": "B", "inputs": {"a": ["1", 0]}},
    }
    one, told = telling(circle)
    one.progressed({"node_id": "1", "value": 0, "max": 1})
    one.interrupted()
    assert (told[-1][0], told[-1][1]["node_id"], told[-1][1]["executed"]) == ("execution_interrupted", "1", ["2"])
