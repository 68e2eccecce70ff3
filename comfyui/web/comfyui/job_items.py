"""Our jobs in ComfyUI's shapes: an item of the queue, an entry of the history, a job of ``/api/jobs``. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from comfyui import jsonio
from comfyui.inputs.decoding import head_of_data_uri
from comfyui.inputs.plan import field_of, has_inline_values, is_inline, is_url
from comfyui.jobs.job import Job
from comfyui.jobs.journal.records import JobRecord, KeptJob, State
from comfyui.jobs.stored import result_from_bytes
from comfyui.merged_files import merged_outputs
from comfyui.models import SECRETS, PromptResult, Told
from comfyui.outputs.history import without_paths
from comfyui.workflows.api_format import last_nodes, needed_by

JSON = dict[str, Any]
Item = list[Any]
"""``[number, id, prompt, extra_data, outputs]``."""

STATUSES = {
    State.SUCCEEDED: "completed",
    State.FAILED: "failed",
    State.LOST: "failed",
    State.CANCELED: "cancelled",
}
"""The words of ``/api/jobs`` for how a job has ended."""
_ENDS = ("execution_success", "execution_error", "execution_interrupted")
# Bytes of a URL, whoever fetches it.
_USER = re.compile(r"^(\s*\w+://)[^/]*@")
# Characters of a data URI; one that stands for a content of the input store is shorter.
_LONGEST_VALUE = 200
_PREVIEWABLE = frozenset({"images", "video", "audio", "3d", "text"})
_3D = (".obj", ".fbx", ".gltf", ".glb", ".usdz")


@dataclass(frozen=True, slots=True)
class ShownJob:
    """A job, as far as it is known.

    Attributes:
        prompt: the workflow; empty if it is not kept.
        output_classes: the classes of output nodes; empty if no server has told.
        record: None for a sync job that is not in the journal yet.
        result: as `Journal.result_of` gives it.
    """

    prompt_id: str
    owner: str | None
    client_id: str | None
    queued_at: float
    prompt: Mapping[str, Any]
    extra_data: Mapping[str, Any]
    targets: list[str] | None
    output_classes: frozenset[str] = frozenset()
    record: JobRecord | None = None
    result: bytes | None = None

    def item(self, *, with_owner: bool) -> Item:
        """Its entry in ComfyUI's queue and history. `with_owner`: whether the viewer sees its owner."""
        extra_data = {name: value for name, value in self.extra_data.items() if name not in SECRETS}
        if self.client_id is not None:
            extra_data["client_id"] = self.client_id
        extra_data["create_time"] = int(self.queued_at * 1000)
        if with_owner and self.owner is not None:
            extra_data["owner"] = self.owner
        prompt = self._shown_prompt()
        return [self.number, self.prompt_id, prompt, extra_data, self._outputs(prompt)]

    def _outputs(self, prompt: Mapping[str, Any]) -> list[str]:
        """The output nodes that are to run, as ComfyUI finds them."""
        named = sorted(node_id for node_id in prompt if prompt[node_id]["class_type"] in self.output_classes)
        if self.targets is not None:
            return [node_id for node_id in named if node_id in self.targets] or self.targets
        return named or sorted(last_nodes(prompt))

    def _shown_prompt(self) -> Mapping[str, Any]:
        """The workflow without the contents of inputs, and without the secrets that URLs of inputs may have."""
        if not has_inline_values(self.prompt):
            return self.prompt
        shown = {}
        for node_id, node in self.prompt.items():
            inputs = {
                name: self._shown_value(field_of(node_id, name), value) if is_inline(value) else value
                for name, value in node["inputs"].items()
            }
            shown[node_id] = {**node, "inputs": inputs}
        return shown

    def _shown_value(self, field: str, value: str) -> str:
        if not is_url(value):
            return value if len(value) <= _LONGEST_VALUE else f"{head_of_data_uri(value)}…"
        is_text = self.record is not None and self.record.kind == "async" and field not in self.record.inputs
        return value if is_text else _USER.sub(r"\1", value.partition("#")[0].partition("?")[0])

    @property
    def number(self) -> float:
        """The number of its end, if it has ended: the web frontend finds the newest by it."""
        if self.record is None:
            return 0
        return self.record.shown_number if self.record.end_number is None else self.record.end_number

    @property
    def workflow_id(self) -> Any:
        """The web frontend's id of the workflow."""
        found: Any = self.extra_data
        for name in ("extra_pnginfo", "workflow", "id"):
            found = found.get(name) if isinstance(found, Mapping) else None
        return found


def shown(
    kept: KeptJob | None, job: Job | None, prompt_id: str, output_classes: frozenset[str] = frozenset()
) -> ShownJob | None:
    """A job from the journal, or from the running jobs if the journal has no body."""
    record = None if kept is None else kept.record
    if record is None and job is None:
        return None
    fields: Mapping[str, Any] = {}
    if kept is not None and kept.body is not None:
        fields = jsonio.loads(kept.body)
    elif job is not None and job.request is not None:
        request = job.request
        fields = {
            "prompt": request.prompt,
            "extra_data": request.extra_data,
            "client_id": request.client_id,
            "partial_execution_targets": request.partial_execution_targets,
        }
    elif job is not None and job.workflow is not None:
        fields = {"prompt": job.workflow}
    entry = None if job is None else job.entry
    queued_at = record.queued_at if record is not None else entry.queued_at if entry is not None else 0.0
    return ShownJob(
        prompt_id,
        record.owner if record is not None else None if job is None else job.owner,
        record.client_id if record is not None else fields.get("client_id"),
        queued_at,
        fields.get("prompt") or {},
        fields.get("extra_data") or {},
        fields.get("partial_execution_targets"),
        output_classes,
        record,
        None if kept is None else kept.result,
    )


def history_entry(job: ShownJob, record: JobRecord, *, with_owner: bool) -> JSON:
    """ComfyUI's history entry of a prompt that has ended. `with_owner`: the viewer sees everything, including servers'
    paths.
    """
    result = _result(job)
    outputs = {} if result is None else merged_outputs(job.prompt_id, result.outputs)
    told = None if result is None else result.told
    item = job.item(with_owner=with_owner)
    if result is not None and result.node_errors:
        refused = result.node_errors.keys()
        item[4] = [node_id for node_id in item[4] if not refused & needed_by(job.prompt, node_id)]
    return {
        "prompt": item,
        "outputs": outputs,
        "status": _status(record, told, list(outputs), with_paths=with_owner),
        "meta": told.meta if told is not None and told.meta else _meta(outputs),
    }


def _result(job: ShownJob) -> PromptResult | None:
    return None if job.result is None else result_from_bytes(job.prompt_id, job.result)


def _meta(outputs: Mapping[str, Any]) -> JSON:
    """The metadata of a node that is in the workflow itself."""
    return {
        node_id: {"node_id": node_id, "display_node": node_id, "parent_node": None, "real_node_id": node_id}
        for node_id in outputs
    }


def _status(record: JobRecord, told: Told | None, executed: list[str], *, with_paths: bool) -> JSON:
    """How the prompt ended, in ComfyUI's own messages, or in such as it would have had."""
    succeeded = record.state is State.SUCCEEDED
    messages: list[list[Any]] = []
    if told is not None and told.messages:
        messages = [[kind, data if with_paths else without_paths(data)] for kind, data in told.messages]
    else:
        if record.started_at is not None:
            messages.append(["execution_start", _moment(record, record.started_at)])
        messages.append(_end(record, executed))
    return {"status_str": "success" if succeeded else "error", "completed": succeeded, "messages": messages}


def _end(record: JobRecord, executed: list[str]) -> list[Any]:
    ended = _moment(record, record.ended_at or 0.0)
    if record.state is State.SUCCEEDED:
        return ["execution_success", ended]
    where = {"node_id": None, "node_type": None, "executed": executed}
    if record.state is State.CANCELED:
        return ["execution_interrupted", {**ended, **where}]
    error = record.error or {}
    told = {
        "exception_message": error.get("detail"),
        "exception_type": error.get("type"),
        "traceback": [],
        "current_inputs": {},
        "current_outputs": [],
        **({"node_errors": error["node_errors"]} if error.get("node_errors") else {}),
    }
    return ["execution_error", {**ended, **where, **told}]


def _moment(record: JobRecord, at: float) -> JSON:
    return {"prompt_id": record.prompt_id, "timestamp": int(at * 1000)}


def standing_job(job: ShownJob, status: str) -> JSON:
    """The entry of ``/api/jobs`` for a waiting or running prompt."""
    return {
        **_pruned(
            id=job.prompt_id,
            status=status,
            priority=job.number,
            create_time=int(job.queued_at * 1000),
            workflow_id=job.workflow_id,
        ),
        "outputs_count": 0,
        "previewable_outputs_count": 0,
    }


def ended_job(job: ShownJob, record: JobRecord, *, with_owner: bool, in_detail: bool = False) -> JSON:
    """The entry of ``/api/jobs`` for an ended prompt; `in_detail`: as in ``/api/jobs/{id}``."""
    entry = history_entry(job, record, with_owner=with_owner)
    outputs, messages = entry["outputs"], dict(entry["status"]["messages"])
    files = list(_files(outputs, job.prompt_id))
    previewable = [file for file in files if _is_previewable(file)]
    end: JSON = next((messages[kind] for kind in _ENDS if kind in messages), {})
    found = {
        **_pruned(
            id=job.prompt_id,
            status=STATUSES[record.state],
            priority=job.number,
            create_time=int(job.queued_at * 1000),
            execution_start_time=messages.get("execution_start", {}).get("timestamp"),
            execution_end_time=end.get("timestamp"),
            execution_error=messages.get("execution_error"),
            preview_output=next((file for file in previewable if file.get("type") == "output"), None)
            or next(iter(previewable), None),
            workflow_id=job.workflow_id,
        ),
        "outputs_count": len(files),
        "previewable_outputs_count": len(previewable),
    }
    if in_detail:
        found["outputs"] = {node_id: _normalised(output, job.prompt_id) for node_id, output in outputs.items()}
        found["execution_status"] = entry["status"]
    return found


def _pruned(**values: Any) -> JSON:
    return {name: value for name, value in values.items() if value is not None}


def _files(outputs: Mapping[str, Any], prompt_id: str) -> Iterator[JSON]:
    """The outputs that count as files."""
    for node_id, output in outputs.items():
        for key, items in output.items() if isinstance(output, dict) else ():
            for item in items if isinstance(items, list) and key != "animated" else ():
                if isinstance(found := _as_file(item, prompt_id), dict):
                    yield {"mediaType": key, **found, "nodeId": node_id}


def _as_file(item: Any, prompt_id: str) -> Any:
    """Some nodes give the path of the model that they made instead of a file."""
    if isinstance(item, str) and item.lower().endswith(_3D):
        name = item.removeprefix(f"{prompt_id}/")
        return {"filename": name, "type": "output", "subfolder": prompt_id, "mediaType": "3d"}
    return item


def _normalised(output: Any, prompt_id: str) -> Any:
    if not isinstance(output, dict):
        return output
    return {
        key: [_as_file(item, prompt_id) for item in items if item is not None]
        if isinstance(items, list) and key != "animated"
        else items
        for key, items in output.items()
    }


def _is_previewable(file: JSON) -> bool:
    kind, name = file.get("format"), file.get("filename")
    return (
        file["mediaType"] in _PREVIEWABLE
        or (isinstance(kind, str) and kind.startswith(("video/", "audio/")))
        or (isinstance(name, str) and name.lower().endswith(_3D))
    )
