"""The contents of a task row, and the worker's interface to a queue of them; both ways of connecting implement
`TaskQueue`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from pathlib import PurePosixPath
from typing import Any, Protocol, Self
from urllib.parse import unquote, urlsplit
from uuid import UUID

from pydantic import ValidationError

from comfyui import jsonio
from comfyui.exceptions import ComfyUIInputError, ComfyUIValidationError, JSONError
from comfyui.models import PromptRequest
from comfyui.named.library import NamedWorkflows
from comfyui.workers.base import JobFields
from comfyui.workers.named import NAME_FIELD, PARAMETERS_FIELD, named_request
from comfyui.workflows.api_format import check_api_format

_VIDEO_FIELDS = ("video", "file")
_VIDEO_PARAMS = ("video_url", "video_node_id", "video_input_field")
Heard = Callable[[str], None]
_PLAIN_EXTENSION = re.compile(r"\.[A-Za-z0-9]{1,8}")


class WorkerState(IntEnum):
    """The status in a worker's row; the database has the deployment's words for it."""

    STARTING = 1
    WAITING = 2
    """ComfyUI does not run yet."""
    IDLE = 3
    WORKING = 4
    STOPPED = 5


class Lease(StrEnum):
    """The outcome of renewing a lease."""

    HELD = "held"
    STOP = "stop"
    """The task was cancelled or deleted."""
    LOST = "lost"
    """Another worker has the task, or may take it now."""


@dataclass(frozen=True, slots=True)
class ClaimedTask:
    """A task that is ours as long as `token` matches.

    Attributes:
        run: how often the task was queued again after its end.
        attempt: 1 for the first time that a worker took it in this run.
        type: the row's.
    """

    id: str
    token: UUID
    run: int
    attempt: int
    params: Mapping[str, Any]
    type: str = ""

    @classmethod
    def of_row(cls, row: Mapping[str, Any], token: UUID) -> Self:
        """The row from `comfy_claim_task`."""
        params = parsed_params(row["task_params"])
        return cls(row["task_id"], token, row["run"], row["attempt"], params, row["task_kind"] or "")

    @property
    def job_id(self) -> str:
        """The same for every attempt of one run, so that a later one attaches to the render of an earlier one."""
        return f"{self.id}#{self.run}" if self.run else self.id


class TaskQueue(Protocol):
    """Open it with ``async with``. Every method raises `QueueError` when the queue cannot be asked."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *exc: object) -> None: ...

    async def claim(self, worker_id: str, token: UUID) -> ClaimedTask | None:
        """The next task that is due; asked again with the same token, the same task."""
        ...

    async def renew(self, task: ClaimedTask, progress: float | None = None, note: str = "") -> Lease:
        """The task stays ours for another lease. A fault of the worker's row does not matter here."""
        ...

    async def seen(self, worker_id: str, state: WorkerState, task: ClaimedTask | None = None) -> bool:
        """Write the worker's row. False: an orchestrator has told this worker to take nothing more."""
        ...

    async def complete(
        self,
        task: ClaimedTask,
        output_url: str,
        outputs: Sequence[Mapping[str, Any]],
        result: Mapping[str, Any] | None = None,
    ) -> bool:
        """Its files are stored; `result` says how it ended. False: the lease was lost, and nothing was written."""
        ...

    async def fail(
        self,
        task: ClaimedTask,
        error: str,
        *,
        retry: bool,
        outputs: Sequence[Mapping[str, Any]] = (),
        result: Mapping[str, Any] | None = None,
    ) -> bool:
        """The reason, whether another attempt may help, and what other nodes had saved, which a last failure keeps.

        False: the lease was lost, and nothing was written.
        """
        ...

    def listen(self, heard: Heard) -> None:
        """Calls `heard` with the id of every task that is queued or cancelled from now on, if the queue can tell; with
        an empty one when anything may have happened.
        """
        ...


async def task_request(
    task: ClaimedTask, prompt_id: UUID, named: NamedWorkflows, workflows: Mapping[str, str]
) -> PromptRequest:
    """As `prompt_request`, and also for a task that names a workflow, or whose type does.

    Args:
        workflows: named ones by types of tasks, whose params are the workflow's parameters.

    Raises:
        ComfyUIValidationError: a field is missing, not known or not well-formed; each is named.
        ComfyUIError: as `named_request`.
    """
    fields = {"prompt_id": prompt_id}
    if (name := workflows.get(task.type)) is not None:
        return await named_request(named, name, task.params, fields)
    if NAME_FIELD not in task.params:
        return prompt_request(task, prompt_id)
    params = dict(task.params)
    name, parameters = params.pop(NAME_FIELD), params.pop(PARAMETERS_FIELD, {})
    if params:
        raise ComfyUIValidationError(f"params.{next(iter(params))} must not be given together with {NAME_FIELD}")
    return await named_request(named, name, parameters, fields, where="params.")


def prompt_request(task: ClaimedTask, prompt_id: UUID) -> PromptRequest:
    """A task's params as the request that `/prompt_sync` would take.

    ``workflow`` is the object or its JSON text; ``video_url`` becomes an input of the node ``video_node_id`` or, if
    that is not given, of the only node that loads a video; the other fields are those of `PromptRequest`.

    Raises:
        ComfyUIValidationError: a field is missing, not known or not well-formed; each is named.
    """
    params = dict(task.params)
    video_url, node_id, input_name = (params.pop(name, None) for name in _VIDEO_PARAMS)
    workflow = _workflow(params.pop("workflow", None))
    if "prompt_id" in params:
        raise ComfyUIValidationError(
            "params.prompt_id must be left out, because the worker derives it from the task's id"
        )
    if video_url is not None:
        if not isinstance(video_url, str) or not video_url.strip():
            raise ComfyUIInputError("must be an http(s) URL, a data URI or base64", field="params.video_url")
        check_api_format(workflow)
        node_id, input_name = _video_input(workflow, node_id, input_name)
        name = f"task-{task.id}{_extension(video_url.strip())}"
        node = workflow[node_id]
        workflow = {**workflow, node_id: {**node, "inputs": {**node["inputs"], input_name: name}}}
        params["images"] = [*(params.get("images") or ()), {"name": name, "image": video_url}]
    try:
        return PromptRequest.model_validate({**params, "prompt": workflow, "prompt_id": prompt_id})
    except ValidationError as error:
        raise ComfyUIValidationError(
            "; ".join(f"params.{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
        ) from None


def job_fields(task: ClaimedTask, request: PromptRequest) -> JobFields:
    """How the task's params name what its request has."""
    if request.call is not None:
        return JobFields(NAME_FIELD)
    count = len(request.images)
    names = [f"params.images[{index}].image" for index in range(count)]
    if task.params.get("video_url") is None:
        return JobFields("params.workflow", names)
    names[-1] = "params.video_url"
    node_id, input_name = _video_input(request.prompt, *(task.params.get(name) for name in _VIDEO_PARAMS[1:]))
    return JobFields("params.workflow", names, ("params.video_input_field", node_id, input_name))


def parsed_params(value: Any) -> Mapping[str, Any]:
    """jsonb comes as text over SQL and as an object over HTTPS; any other value counts as an empty object."""
    params = jsonio.loads(value) if isinstance(value, str | bytes) else value
    return params if isinstance(params, Mapping) else {}


def _workflow(value: Any) -> dict[str, Any]:
    if isinstance(value, str):
        try:
            value = jsonio.loads(value)
        except JSONError as error:
            raise ComfyUIValidationError(f"params.workflow is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ComfyUIValidationError("params.workflow must be a workflow in ComfyUI's API format, an object")
    return value


def _video_input(workflow: Mapping[str, Any], node_id: Any, input_name: Any) -> tuple[str, str]:
    """The node and the input for the video."""
    if node_id is None:
        loaders = [key for key, node in workflow.items() if "LoadVideo" in node["class_type"]]
        if len(loaders) != 1:
            found = f"nodes {', '.join(loaders)} load one" if loaders else "no node loads one"
            raise ComfyUIInputError(
                f"the name must have the node that loads the video; {found}", field="params.video_node_id"
            )
        node_id = loaders[0]
    node_id = str(node_id)
    if node_id not in workflow:
        raise ComfyUIInputError(f"the workflow has no node {node_id}", field="params.video_node_id")
    if input_name is None:
        inputs = workflow[node_id]["inputs"]
        input_name = next((name for name in _VIDEO_FIELDS if name in inputs), _VIDEO_FIELDS[0])
    return node_id, str(input_name)


def _extension(url: str) -> str:
    """The extension of the file in the URL; videos without one usually have this one."""
    suffix = PurePosixPath(unquote(urlsplit(url).path)).suffix
    return suffix.lower() if _PLAIN_EXTENSION.fullmatch(suffix) else ".mp4"
