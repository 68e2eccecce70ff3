"""The reason for which a job failed at RunPod, as an error of ours."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from comfyui import jsonio
from comfyui.exceptions import (
    ComfyUIError,
    ComfyUITaskCancelledError,
    ComfyUITaskError,
    ComfyUIValidationError,
    JSONError,
)
from comfyui.executors.runpod.endpoint import JobAnswer, JobStatus

ERROR_TYPE = "RunPodError"
# The first part of our worker's error text: "…: KSampler (node 3): RuntimeError: no such luck".
_NODE_FAILED = re.compile(r"(?:^|: )([^:\n]+) \(node ([^)\s]+)\): ([\w.]+)(?:: (.*)|(?=\n)|$)", re.DOTALL)
# These begin the worker's diagnostics, which are for experts, not for the message.
_DIAGNOSTICS = re.compile(r"^(?:last lines of the node's traceback:|prompt_id: |ComfyUI: )", re.MULTILINE)
_OUT_OF_TIME = "RunPod ended the job, which took longer than the endpoint's execution timeout"
_LONGEST_MESSAGE = 4000
_MOST_NODES = 1000


def error_of(answer: JobAnswer, prompt: Mapping[str, Any], prompt_id: str) -> ComfyUIError | None:
    """The reason for which the job has no result; None if it has one."""
    match answer.status:
        case JobStatus.COMPLETED:
            # A worker may return an error instead of raising it.
            output = answer.output
            if isinstance(output, dict) and output.get("error") and "images" not in output:
                return failure_of(output["error"], output, prompt, prompt_id)
            return None
        case JobStatus.CANCELLED:
            return ComfyUITaskCancelledError("cancelled at RunPod", prompt_id=prompt_id)
        case JobStatus.TIMED_OUT:
            said = f": {answer.error}" if isinstance(answer.error, str) and answer.error else ""
            return task_failed(f"{_OUT_OF_TIME}{said}", prompt_id, "RunPodTimeoutError")
        case _:
            return failure_of(answer.error, answer.output, prompt, prompt_id)


def failure_of(error: Any, output: Any, prompt: Mapping[str, Any], prompt_id: str) -> ComfyUIError:
    """The error in a failed job's ``output``, if the worker is one of ours, or in its ``error`` text.

    Args:
        error: a text, or the JSON text in which the SDK puts an exception.
        prompt: the workflow.
    """
    members = output if isinstance(output, Mapping) and isinstance(output.get("error_type"), str) else None
    if members is not None and isinstance(members.get("detail"), str):
        return _of_members(members, prompt_id)
    return _of_text(
        _text_of(error or (output.get("error") if isinstance(output, Mapping) else None)), prompt, prompt_id
    )


def _of_members(members: Mapping[str, Any], prompt_id: str) -> ComfyUIError:
    """See `comfyui.workers.diagnostics.error_members`."""
    detail = members["detail"][:_LONGEST_MESSAGE]
    node_errors = _node_errors(members.get("node_errors"))
    if members["error_type"] == ComfyUIValidationError.code:
        return ComfyUIValidationError(detail, prompt_id=prompt_id, node_errors=node_errors)
    said = members.get("node")
    node: Mapping[str, Any] = said if isinstance(said, Mapping) else {}
    tail = members.get("traceback_tail")
    return ComfyUITaskError(
        detail,
        prompt_id=prompt_id,
        node_errors=node_errors,
        node_id=_text(node.get("id")),
        node_type=_text(node.get("type")),
        exception_type=_text(node.get("exception_type")) or ERROR_TYPE,
        traceback_tail=[str(line) for line in tail] if isinstance(tail, list) else [],
    )


def _of_text(said: str | Mapping[str, Any], prompt: Mapping[str, Any], prompt_id: str) -> ComfyUITaskError:
    if isinstance(said, Mapping):
        kind = re.sub(r"^<class '(.*)'>$", r"\1", str(said.get("error_type") or ERROR_TYPE))
        trace = str(said.get("error_traceback") or "").splitlines()
        return task_failed(str(said["error_message"])[:_LONGEST_MESSAGE], prompt_id, kind, traceback=trace)
    if not said:
        return task_failed("the job failed at the endpoint, which gave no reason", prompt_id)
    begin = _DIAGNOSTICS.search(said)
    message = (said[: begin.start()] if begin else said).strip()[:_LONGEST_MESSAGE]
    trace = said[begin.start() :].splitlines() if begin else []
    raised = _NODE_FAILED.search(message)
    if raised is None or raised[2] not in prompt:
        return task_failed(message, prompt_id, traceback=trace)
    # The text lists the nodes' errors below its first line; this is one of them.
    reason = (raised[4] or "").partition(f"\nnode {raised[2]}: ")[0]
    return task_failed(reason, prompt_id, raised[3], node=(raised[2], raised[1]), traceback=trace)


def task_failed(
    message: str,
    prompt_id: str,
    exception_type: str = ERROR_TYPE,
    *,
    node: tuple[str, str] | None = None,
    traceback: Sequence[str] = (),
) -> ComfyUITaskError:
    """A failed node as ComfyUI would report it. `node`: id and class of the node that raised."""
    said = f"{exception_type}: {message}" if message else exception_type
    node_id, node_type = node or (None, None)
    return ComfyUITaskError(
        said if node_id is None else f"{node_type} (node {node_id}): {said}",
        prompt_id=prompt_id,
        node_errors=None if node_id is None else {node_id: [said]},
        node_id=node_id,
        node_type=node_type,
        exception_type=exception_type,
        traceback_tail=traceback,
    )


def message_of(error: ComfyUIError) -> str:
    """ComfyUI's message alone: ComfyUI reports node and exception separately."""
    if not isinstance(error, ComfyUITaskError):
        return error.detail
    where = f"{error.node_type} (node {error.node_id}): " if error.node_id is not None else ""
    said = f"{where}{error.exception_type}"
    return "" if error.detail == said else error.detail.removeprefix(f"{said}: ")


def _text_of(error: Any) -> str | Mapping[str, Any]:
    text = error if isinstance(error, str) else jsonio.dumps(error).decode() if error else ""
    try:
        said = jsonio.loads(text) if text.startswith("{") else None
    except JSONError:
        said = None
    return said if isinstance(said, dict) and "error_message" in said else text


def _node_errors(said: Any) -> dict[str, list[str]]:
    """The worker's messages for each node, as far as they have the right shape."""
    found = said.items() if isinstance(said, Mapping) else ()
    return {
        str(node_id): [str(message)[:_LONGEST_MESSAGE] for message in messages]
        for node_id, messages in list(found)[:_MOST_NODES]
        if isinstance(messages, list)
    }


def _text(value: Any) -> str | None:
    return None if value is None else str(value)
