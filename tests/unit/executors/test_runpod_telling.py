"""The ComfyUI events that are derived from RunPod's reports on a job."""

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


def test_a_start_is_sent_once_however_often_it_is_seen() -> None:
    one, told = telling()
    for _ in range(3):
        one.progressed(None)
    one.started()
    assert kinds(told) == ["execution_start", "execution_cached"]


def test_the_nodes_before_a_running_node_are_finished_without_a_report() -> None:
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
    assert len(told) == before, "the same report again sends no event"


def test_a_reported_node_is_finished_when_another_node_runs() -> None:
    one, told = telling()
    for node in ("1", "2"):
        one.progressed({"node_id": node, "value": 0, "max": 1})
    assert told[-2][1]["nodes"]["1"]["state"] == "finished"
    assert told[-2][1]["nodes"]["2"]["state"] == "running"


@pytest.mark.parametrize(
    "report", [5, [], {"node_id": 2}, {"node_id": "absent"}, {"node_id": ["2"]}, {"node_id": None, "value": "x"}]
)
def test_an_unusable_report_still_proves_that_the_job_runs(report: Any) -> None:
    one, told = telling()
    one.progressed(report)
    assert kinds(told) == ["execution_start", "execution_cached"]


def test_the_kept_history_has_the_start_time_that_runpod_reports() -> None:
    one, _ = telling()
    one.progressed(None)
    one.succeeded({"3": {"images": []}}, 60_000)
    history = one.told({"3": {}})
    stamps = [data["timestamp"] for _, data in history.messages]
    assert [kind for kind, _ in history.messages] == ["execution_start", "execution_cached", "execution_success"]
    assert stamps[0] == stamps[1]
    assert one.executing_s == pytest.approx(60, abs=1)
    assert history.meta == {"3": {"node_id": "3", "display_node": "3", "parent_node": None, "real_node_id": "3"}}


def test_a_failure_names_the_node_and_the_nodes_that_ran_before_it() -> None:
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
def test_a_failure_without_a_known_node_names_no_executed_node(node: str | None) -> None:
    one, told = telling()
    one.failed("no luck", "RuntimeError", node, [])
    assert (told[-1][1]["node_type"], told[-1][1]["executed"]) == (None, [])


def test_a_cycle_of_nodes_ends_the_search_for_executed_nodes() -> None:
    circle = {
        "1": {"class_type": "A", "inputs": {"a": ["2", 0]}},
        "2": {"class_type": "B", "inputs": {"a": ["1", 0]}},
    }
    one, told = telling(circle)
    one.progressed({"node_id": "1", "value": 0, "max": 1})
    one.interrupted()
    assert (told[-1][0], told[-1][1]["node_id"], told[-1][1]["executed"]) == ("execution_interrupted", "1", ["2"])
