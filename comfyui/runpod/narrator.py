"""What clients are told of a job, in ComfyUI's words and order, and the history entry that is left of it.

The order is ComfyUI's: `execution_success` before the history is written, `executing` with node null after.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from comfyui import jsonio
from comfyui.exceptions import JSONError
from comfyui.outputs.history import files_of
from comfyui.runpod.job import Job, Prompt, now_ms
from comfyui.runpod.sockets import Hub
from comfyui.workflows.api_format import is_link

ERROR_TYPE = "RunPodError"
# What the first part of our worker's error text says: "…: KSampler (node 3): RuntimeError: no such luck".
_NODE_FAILED = re.compile(r"(?:^|: )([^:\n]+) \(node ([^)\s]+)\): ([\w.]+)(?:: (.*)|(?=\n)|$)", re.DOTALL)
# With these the worker's diagnostics begin: for whoever looks closer, not for the message.
_DIAGNOSTICS = re.compile(r"^(?:last lines of the node's traceback:|prompt_id: |ComfyUI: )", re.MULTILINE)
_LONGEST_MESSAGE = 4000
_PREVIEWABLE = frozenset({"images", "video", "audio", "3d"})
_ENDS = ("execution_success", "execution_error", "execution_interrupted")


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a job failed; ``node_id`` where one of its nodes raised."""

    message: str
    exception_type: str = ERROR_TYPE
    node_id: str | None = None
    traceback: tuple[str, ...] = ()


class Narrator:
    """Tells the hub; keeps in `Job` what the history will say."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    def started(self, job: Job) -> None:
        """A worker has it. Nothing happens when that was told before."""
        if job.messages:
            return
        self._message(job, "execution_start", {})
        self._message(job, "execution_cached", {"nodes": []})

    def progressed(self, job: Job, report: Any) -> None:
        """Our worker's report, as `comfyui.workers.progress` writes it; anything else says nothing."""
        node_id = report.get("node_id") if isinstance(report, dict) else None
        if not isinstance(node_id, str) or node_id not in job.prompt:
            return
        value, maximum = _number(report.get("value")), _number(report.get("max"))
        if node_id != job.node:
            if job.node in job.seen_nodes:
                job.seen_nodes[job.node]["state"] = "finished"
            job.node = node_id
            # What a running node depends on has run, whether anybody saw it or not.
            for done in _ancestors(job.prompt, node_id) - job.seen_nodes.keys():
                job.seen_nodes[done] = _state(job, done, "finished", 1.0, 1.0)
            self._send(job, "executing", {"node": node_id, "display_node": node_id})
        state = _state(job, node_id, "running", value, maximum or 1.0)
        if job.seen_nodes.get(node_id) == state:
            return
        job.seen_nodes[node_id] = state
        self._send(job, "progress_state", {"nodes": job.seen_nodes})
        if maximum:
            self._send(job, "progress", {"value": value, "max": maximum, "node": node_id})

    def succeeded(self, job: Job, outputs: Mapping[str, Any], execution_ms: float | None) -> dict[str, Any]:
        """The history entry, after the messages that come before it."""
        self.started(job)
        for node_id, output in outputs.items():
            self._send(job, "executed", {"node": node_id, "display_node": node_id, "output": output})
        if execution_ms is not None:
            # RunPod's own figure: we only see the job when we look.
            job.messages[0][1]["timestamp"] = now_ms() - int(execution_ms)
        self._message(job, "execution_success", {})
        return _entry(job, outputs, completed=True)

    def failed(self, job: Job, failure: Failure) -> dict[str, Any]:
        self.started(job)
        node = job.prompt.get(failure.node_id) if failure.node_id else None
        details: dict[str, Any] = {
            "node_id": failure.node_id,
            "node_type": node.get("class_type") if isinstance(node, Mapping) else None,
            "executed": [node_id for node_id, state in job.seen_nodes.items() if state["state"] == "finished"],
            "exception_message": failure.message,
            "exception_type": failure.exception_type,
            "traceback": list(failure.traceback),
            "current_inputs": {},
            "current_outputs": [],
        }
        self._message(job, "execution_error", details)
        return _entry(job, {}, completed=False)

    def interrupted(self, job: Job) -> dict[str, Any]:
        self.started(job)
        node = job.prompt.get(job.node) if job.node else None
        details = {
            "node_id": job.node,
            "node_type": node.get("class_type") if isinstance(node, Mapping) else None,
            "executed": [node_id for node_id, state in job.seen_nodes.items() if state["state"] == "finished"],
        }
        self._message(job, "execution_interrupted", details, to_all=True)
        return _entry(job, {}, completed=False)

    def done(self, job: Job) -> None:
        """Once its history entry can be read."""
        self._hub.finished(job.prompt_id, job.client_id)

    def _message(self, job: Job, kind: str, data: dict[str, Any], *, to_all: bool = False) -> None:
        """One that the history keeps."""
        data = {"prompt_id": job.prompt_id, **data, "timestamp": now_ms()}
        job.messages.append([kind, data])
        self._hub.send(kind, data, job.client_id, to_all=to_all)

    def _send(self, job: Job, kind: str, data: Mapping[str, Any]) -> None:
        self._hub.send(kind, {**data, "prompt_id": job.prompt_id}, job.client_id)


def failure_of(error: Any) -> Failure:
    """What a failed job's ``error`` says: our worker's text, or the JSON text in which the SDK puts an exception."""
    text = error if isinstance(error, str) else jsonio.dumps(error).decode() if error else ""
    try:
        said = jsonio.loads(text) if text.startswith("{") else None
    except JSONError:
        said = None
    if isinstance(said, dict) and "error_message" in said:
        kind = re.sub(r"^<class '(.*)'>$", r"\1", str(said.get("error_type") or ERROR_TYPE))
        trace = str(said.get("error_traceback") or "").splitlines(keepends=True)
        return Failure(str(said["error_message"])[:_LONGEST_MESSAGE], kind, traceback=tuple(trace))
    if not text:
        return Failure("the job failed at the endpoint, which gave no reason")
    begin = _DIAGNOSTICS.search(text)
    message = (text[: begin.start()] if begin else text).strip()[:_LONGEST_MESSAGE]
    trace = text[begin.start() :].splitlines(keepends=True) if begin else []
    raised = _NODE_FAILED.search(message)
    if raised is None:
        return Failure(message, traceback=tuple(trace))
    # Below its first line the text lists the nodes' errors, of which this is one.
    reason = (raised[4] or "").partition(f"\nnode {raised[2]}: ")[0]
    return Failure(reason, raised[3], raised[2], tuple(trace))


def described(entry: Mapping[str, Any]) -> dict[str, Any]:
    """A history entry as ``/api/jobs`` lists it."""
    number, prompt_id, _, extra_data, _ = entry["prompt"]
    events = dict(entry["status"]["messages"])
    if entry["status"]["status_str"] == "success":
        status = "completed"
    else:
        status = "cancelled" if "execution_interrupted" in events else "failed"
    files = files_of(entry["outputs"])
    previewable = [
        {"filename": file.filename, "subfolder": file.subfolder, "type": file.type}
        | {"nodeId": file.node_id, "mediaType": file.key}
        for file in files
        if file.key in _PREVIEWABLE
    ]
    known = {
        "id": prompt_id,
        "status": status,
        "priority": number,
        "create_time": extra_data.get("create_time"),
        "execution_start_time": events["execution_start"]["timestamp"],
        "execution_end_time": next(events[kind]["timestamp"] for kind in _ENDS if kind in events),
        "execution_error": events.get("execution_error"),
        "preview_output": next(iter(previewable), None),
    }
    counts = {"outputs_count": len(files), "previewable_outputs_count": len(previewable)}
    return {name: value for name, value in known.items() if value is not None} | counts


def _entry(job: Job, outputs: Mapping[str, Any], *, completed: bool) -> dict[str, Any]:
    meta = {
        node_id: {"node_id": node_id, "display_node": node_id, "parent_node": None, "real_node_id": node_id}
        for node_id in outputs
    }
    status = {
        "status_str": "success" if completed else "error",
        "completed": completed,
        "messages": job.messages,
    }
    return {"prompt": job.item(), "outputs": outputs, "status": status, "meta": meta}


def _state(job: Job, node_id: str, state: str, value: float, maximum: float) -> dict[str, Any]:
    return {
        "value": value,
        "max": maximum,
        "state": state,
        "node_id": node_id,
        "prompt_id": job.prompt_id,
        "display_node_id": node_id,
        "parent_node_id": None,
        "real_node_id": node_id,
    }


def _ancestors(prompt: Prompt, node_id: str) -> set[str]:
    found: set[str] = set()
    waiting = [node_id]
    while waiting:
        for value in prompt[waiting.pop()]["inputs"].values():
            if is_link(value) and value[0] not in found and value[0] != node_id:
                found.add(value[0])
                waiting.append(value[0])
    return found


def needed_by(prompt: Prompt, targets: list[str]) -> dict[str, Any]:
    """The part of the workflow that these nodes need, themselves included."""
    kept = {node_id for target in targets for node_id in (target, *_ancestors(prompt, target))}
    return {node_id: node for node_id, node in prompt.items() if node_id in kept}


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else 0.0
