"""ComfyUI's answers as frozen types. Their shapes are checked here and nowhere else.

The main content of an answer must be right; otherwise a `ComfyUIUnreadableError` says what is wrong. Additional members
that are malformed are left out: nodes, proxies and forks write there, too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from comfyui.exceptions import ComfyUIUnreadableError, ComfyUIValidationError

JSON = dict[str, Any]

_TEXTS_OF_A_DEFINITION = ("name", "display_name", "python_module", "category", "description")


@dataclass(frozen=True, slots=True)
class Queued:
    """ComfyUI's answer to a submission. ``node_errors``: outputs that will not be produced (docs/comfyui.md trap 8)."""

    prompt_id: str
    number: float
    node_errors: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class QueueItem:
    """One prompt in ComfyUI's queue; ``running`` or pending. Its workflow stays in ``prompt``."""

    number: float
    prompt_id: str
    running: bool
    prompt: Mapping[str, Any]
    extra_data: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """How a prompt ended.

    Attributes:
        outputs: verbatim, node id to what the node showed.
        messages: kind and data of each, in ComfyUI's order.
        meta: verbatim, node id to which node of the workflow it stands for.
        number, prompt, extra_data, output_nodes: the prompt as it stood in the queue.
    """

    outputs: Mapping[str, Any]
    status_str: str = ""
    messages: Sequence[tuple[str, Mapping[str, Any]]] = ()
    number: float = 0.0
    prompt: Mapping[str, Any] = field(default_factory=dict)
    extra_data: Mapping[str, Any] = field(default_factory=dict)
    output_nodes: Sequence[str] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)


def queued(answer: Mapping[str, Any]) -> Queued:
    prompt_id, number = answer.get("prompt_id"), _number(answer.get("number"))
    if not isinstance(prompt_id, str) or number is None:
        raise ComfyUIUnreadableError("POST /prompt: the answer has no prompt_id and number")
    return Queued(prompt_id, number, _object(answer.get("node_errors")))


def queue_items(answer: Mapping[str, Any]) -> dict[str, QueueItem]:
    """Running and pending prompts, by id. An item without an id of its own is left out."""
    items: dict[str, QueueItem] = {}
    for name, running in (("queue_pending", False), ("queue_running", True)):
        listed = answer.get(name)
        if not isinstance(listed, list):
            raise ComfyUIUnreadableError(f"GET /queue: {name} is not a list")
        for item in listed:
            if isinstance(item, list) and len(item) > 1 and isinstance(item[1], str):
                number, prompt, extra_data, _ = _place(item)
                items[item[1]] = QueueItem(number, item[1], running, prompt, extra_data)
    return items


def queue_item_of_job(job: Mapping[str, Any], prompt_id: str) -> QueueItem | None:
    """The answer of ``/api/jobs/{id}``; None for a job that is no longer in the queue."""
    if job.get("status") not in ("pending", "in_progress"):
        return None
    number, workflow = _number(job.get("priority")), _object(job.get("workflow"))
    if number is None or not isinstance(workflow.get("prompt"), dict):
        raise ComfyUIUnreadableError("GET /api/jobs/{id}: the answer has no priority and workflow")
    running = job["status"] == "in_progress"
    return QueueItem(number, prompt_id, running, workflow["prompt"], _object(workflow.get("extra_data")))


def queue_remaining(answer: Mapping[str, Any]) -> int:
    remaining = _number(_object(answer.get("exec_info")).get("queue_remaining"))
    if remaining is None or not math.isfinite(remaining):
        raise ComfyUIUnreadableError("GET /prompt: the answer has no exec_info.queue_remaining")
    return int(remaining)


def history_entry(answer: Mapping[str, Any], prompt_id: str) -> HistoryEntry | None:
    """The entry of this prompt; None if the history has none."""
    if prompt_id not in answer:
        return None
    what, entry = "GET /history/{id}", answer[prompt_id]
    if not isinstance(entry, dict):
        raise ComfyUIUnreadableError(f"{what}: the entry is not an object", prompt_id=prompt_id)
    status, outputs = entry.get("status"), entry.get("outputs")
    for name, value in (("status", status), ("outputs", outputs)):
        if value is not None and not isinstance(value, dict):
            raise ComfyUIUnreadableError(f"{what}: {name} is not an object", prompt_id=prompt_id)
    status_str = (status or {}).get("status_str")
    number, prompt, extra_data, output_nodes = _place(entry.get("prompt"))
    return HistoryEntry(
        outputs or {},
        status_str if isinstance(status_str, str) else "",
        tuple(_messages((status or {}).get("messages"))),
        number,
        prompt,
        extra_data,
        output_nodes,
        _object(entry.get("meta")),
    )


def object_info(answer: Mapping[str, Any]) -> JSON:
    """Node definitions by class, without malformed definitions, and each without malformed members: a node of one pack
    must not break questions about all others.
    """
    return {
        class_type: _definition(definition) for class_type, definition in answer.items() if isinstance(definition, dict)
    }


def _definition(definition: JSON) -> JSON:
    sections = _object(definition.get("input"))
    order = _object(definition.get("input_order"))
    right = {
        "input": {name: inputs for name, inputs in sections.items() if isinstance(inputs, dict)},
        "input_order": {name: names for name, names in order.items() if _are_texts(names)},
        "output": _list(definition.get("output")),
    }
    wrong_texts = [name for name in _TEXTS_OF_A_DEFINITION if not isinstance(definition.get(name) or "", str)]
    return {**definition, **right, **dict.fromkeys(wrong_texts)}


def refusal(answer: Mapping[str, Any]) -> ComfyUIValidationError:
    """ComfyUI's 400 body as our error: its message, and per node what is wrong with it."""
    error = answer.get("error")
    detail = _said(error) if isinstance(error, Mapping) else str(error or "")
    node_errors = flat_node_errors(answer.get("node_errors"))
    return ComfyUIValidationError(detail or "ComfyUI refused the workflow", node_errors=node_errors, upstream=answer)


def flat_node_errors(node_errors: Any) -> dict[str, tuple[str, ...]]:
    """ComfyUI's ``node_errors`` as node id to messages, ``"Value not in list: sampler_name: 'nope' not in […]"``."""
    return {
        str(node_id): tuple(_said(error) for error in _list(node.get("errors")) if isinstance(error, Mapping))
        for node_id, node in _object(node_errors).items()
        if isinstance(node, Mapping)
    }


def error_types(node_errors: Any) -> set[str]:
    """The types of the errors in ComfyUI's ``node_errors``, such as ``value_not_in_list``."""
    errors = [error for node in _object(node_errors).values() for error in _list(_object(node).get("errors"))]
    return {str(error.get("type")) for error in errors if isinstance(error, Mapping)}


def node_errors_of(messages: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Messages by node in the shape of ComfyUI's ``node_errors``."""
    failed = {"type": "custom_validation_failed", "message": "Custom validation failed for node", "extra_info": {}}
    return {
        node_id: {
            "errors": [{**failed, "details": text} for text in texts],
            "dependent_outputs": [],
            "class_type": "",
        }
        for node_id, texts in messages.items()
    }


def _said(error: Mapping[str, Any]) -> str:
    return ": ".join(str(part) for part in (error.get("message"), error.get("details")) if part)


def _messages(messages: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for message in _list(messages):
        if isinstance(message, list) and message and isinstance(message[0], str):
            yield message[0], _object(message[1]) if len(message) > 1 else {}


def _place(item: Any) -> tuple[float, Mapping[str, Any], Mapping[str, Any], Sequence[str]]:
    """Number, workflow, extra_data and output nodes of ``[number, id, prompt, extra_data, outputs]``."""
    parts = [*_list(item), *(None,) * 5]
    number = _number(parts[0])
    outputs = tuple(node_id for node_id in _list(parts[4]) if isinstance(node_id, str))
    return math.inf if number is None else number, _object(parts[2]), _object(parts[3]), outputs


def _number(value: Any) -> float | None:
    """A place in an order; None for NaN, an infinity for an integer beyond all floats."""
    if not isinstance(value, int | float) or value != value:
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _are_texts(names: Any) -> bool:
    return isinstance(names, list) and all(isinstance(name, str) for name in names)


def _object(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
