"""ComfyUI's answer to a workflow that it would refuse, made from the preflight's problems. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from comfyui.workflows.api_format import Prompt, is_link
from comfyui.workflows.node_definitions import ObjectInfo
from comfyui.workflows.preflight import Problem

# Our codes to ComfyUI's names and words for the same problems. Codes that are missing here have our own words.
_NAMES: Mapping[str, tuple[str, str]] = {
    "required_input_missing": ("required_input_missing", "Required input is missing"),
    "bad_linked_input": ("bad_linked_input", "Bad linked input, must be a length-2 list of [node_id, slot_index]"),
    "return_type_mismatch": ("return_type_mismatch", "Return type mismatch between linked nodes"),
    "invalid_input_type": ("invalid_input_type", "Failed to convert an input value"),
    "value_smaller_than_min": ("value_smaller_than_min", "Value smaller than min"),
    "value_bigger_than_max": ("value_bigger_than_max", "Value bigger than max"),
    "value_not_in_list": ("value_not_in_list", "Value not in list"),
    "missing_model_file": ("value_not_in_list", "Value not in list"),
    "missing_input_file": ("custom_validation_failed", "Custom validation failed for node"),
    "file_not_own": ("custom_validation_failed", "Custom validation failed for node"),
    "dangling_link": ("exception_during_validation", "Exception when validating node"),
    "bad_output_index": ("exception_during_validation", "Exception when validating node"),
}
# For a required input that is missing, ComfyUI gives only the input's name.
_NAMED_ONLY = "required_input_missing"


def comfyui_answer(problems: Sequence[Problem], prompt: Prompt, object_info: ObjectInfo) -> dict[str, Any]:
    """The body of ComfyUI's 400. `problems` has at least one error."""
    errors = [problem for problem in problems if problem.severity == "error"]
    missing = next((problem for problem in errors if problem.code == "missing_node_type"), None)
    if missing is not None:
        message = f"Node '{missing.title}' not found. The custom node may not be installed."
        where = {"node_id": missing.node_id, "class_type": missing.class_type, "node_title": missing.title}
        closest = {"closest": list(missing.closest)} if missing.closest else {}
        return _answer("missing_node_type", message, f"Node ID '#{missing.node_id}'", {**where, **closest})
    by_node: dict[str, list[Problem]] = {}
    for problem in errors:
        if problem.node_id:
            by_node.setdefault(problem.node_id, []).append(problem)
    if not by_node:
        return _answer("prompt_no_outputs", "Prompt has no outputs", "", {})
    needed = {node_id: _needed(node_id, prompt) for node_id in _outputs(prompt, object_info)}
    node_errors = {
        node_id: {
            "errors": [_error(problem) for problem in found],
            "dependent_outputs": [output for output, nodes in needed.items() if node_id in nodes],
            "class_type": found[0].class_type,
        }
        for node_id, found in by_node.items()
    }
    told = [_error(problem) for output in needed for problem in by_node.get(output, ())]
    details = "\n".join(f"{error['message']}: {error['details']}" for error in told)
    answer = _answer("prompt_outputs_failed_validation", "Prompt outputs failed validation", details, {})
    return {**answer, "node_errors": node_errors}


def _answer(kind: str, message: str, details: str, extra_info: Mapping[str, Any]) -> dict[str, Any]:
    error = {"type": kind, "message": message, "details": details, "extra_info": dict(extra_info)}
    return {"error": error, "node_errors": {}}


def _error(problem: Problem) -> dict[str, Any]:
    kind, message = _NAMES.get(problem.code, (problem.code, problem.message))
    details = problem.message
    if problem.code == _NAMED_ONLY and problem.input_name is not None:
        details = problem.input_name
    elif problem.closest:
        details = f"{details}. Closest: {', '.join(problem.closest)}"
    extra_info = {} if problem.input_name is None else {"input_name": problem.input_name}
    return {"type": kind, "message": message, "details": details, "extra_info": extra_info}


def _outputs(prompt: Prompt, object_info: ObjectInfo) -> list[str]:
    return [
        node_id
        for node_id, node in prompt.items()
        if (object_info.get(node["class_type"]) or {}).get("output_node") is True
    ]


def _needed(node_id: str, prompt: Prompt) -> set[str]:
    """The node, and all that feed it."""
    found: set[str] = set()
    pending = [node_id]
    while pending:
        node_id = pending.pop()
        if node_id in found or node_id not in prompt:
            continue
        found.add(node_id)
        pending += [value[0] for value in prompt[node_id]["inputs"].values() if is_link(value)]
    return found
