"""A RunPod job's input as a request, and a result as its reply. Knows no SDK.

The input is ours and that of worker-comfyui at once: ``workflow`` and ``images: [{name, image}]`` are common to both.
The reply is, too: ``{"images": [{"filename", "type": "base64" or "s3_url", "data"}], …}``.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, Literal, Self
from uuid import UUID

from pydantic import ConfigDict, Field, SecretStr, ValidationError, field_validator, model_validator

from comfyui import jsonio
from comfyui.exceptions import ComfyUIError, ComfyUIInputError, JSONError, ResultTooLargeError
from comfyui.models import Given, InputFile, OutputFile, PromptRequest, PromptResult
from comfyui.named.library import NamedWorkflows
from comfyui.outputs.files import OutputFiles
from comfyui.outputs.keys import node_key
from comfyui.outputs.stores.store import Placement
from comfyui.workers.base import JobFields
from comfyui.workers.named import NAME_FIELD, named_request
from comfyui.workers.results import (
    check_delivered,
    is_partial,
    kept_files,
    reason_not_delivered,
    result_members,
)

_LIMITS = "RunPod takes 10 MB as the reply of /run and 20 MB of /runsync"
_MB = 1_000_000
_RUN_MB, _RUNSYNC_MB = 10.0, 20.0
# Bytes that RunPod and its SDK put around the reply.
_ENVELOPE_BYTES = 100_000
# RunPod's own mark on the ids of jobs that came by /runsync.
_SYNC_ID = "sync-"
_LONGEST_NAME = 100
# Bytes of one file's entries besides those of `_head`: type, commas, an empty `data`.
_ENTRY_BYTES = 64


class _Tolerant(Given):
    """A caller's object: null counts as not given, and unknown members are left out and named in `warnings`."""

    model_config = ConfigDict(extra="ignore", hide_input_in_errors=True)


class NamedInput(_Tolerant):
    """One entry of ``images``: a name, which may have a folder before it, and base64, a data URI or a URL."""

    name: str
    image: str


class OutputPlacement(_Tolerant):
    """The place of the files, as far as a caller may choose it: ``output`` of ``/prompt_sync``.

    A member that is not known is refused: files must not go elsewhere than their owner meant.
    """

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    store: Literal["s3", "none"] = "s3"
    bucket: str | None = None
    prefix: str | None = None
    presign_seconds: int | None = None


class JobInput(_Tolerant):
    """``job["input"]``, ours and worker-comfyui's."""

    workflow: dict[str, Any] | None = Field(
        default=None, description="The graph in ComfyUI's API format, as an object or as JSON text."
    )
    workflow_name: str | None = Field(default=None, description="The name of a workflow, instead of a graph.")
    parameters: dict[str, Any] = Field(default={}, description="The parameters of the named workflow.")
    images: list[NamedInput] = Field(default=[])
    reference_images: dict[str, str] = Field(default={}, description="Path below ComfyUI's input folder to content.")
    return_base64: bool | None = Field(
        default=None, description="True: in the reply if it fits. False: never. None: only without a store."
    )
    comfy_org_api_key: SecretStr | None = None
    comfy_org_auth_token: SecretStr | None = None
    extra_pnginfo: dict[str, Any] = Field(
        default={}, description="ComfyUI's extra_pnginfo, which its nodes write into their pictures."
    )
    output: OutputPlacement | None = None
    prompt_id: UUID | None = Field(
        default=None, description="The id of an earlier job: its result is delivered, and not rendered again."
    )
    warnings: tuple[str, ...] = Field(default=(), exclude=True, description="Members that were not understood.")

    @field_validator("workflow", mode="before")
    @classmethod
    def _parsed(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return jsonio.loads(value)
        except JSONError as error:
            raise ValueError(f"is a text that is not JSON: {error}") from error

    @model_validator(mode="after")
    def _one_workflow(self) -> Self:
        if (self.workflow is None) == (self.workflow_name is None):
            raise ValueError("workflow or workflow_name must be given, but not both")
        if self.parameters and self.workflow_name is None:
            raise ValueError("parameters must be given together with workflow_name")
        return self

    @property
    def secrets(self) -> dict[str, str]:
        """The caller's keys as members of ComfyUI's ``extra_data``."""
        given = {"api_key_comfy_org": self.comfy_org_api_key, "auth_token_comfy_org": self.comfy_org_auth_token}
        return {name: secret.get_secret_value() for name, secret in given.items() if secret}

    @property
    def placement(self) -> Placement:
        chosen = self.output
        return Placement(chosen.bucket, chosen.prefix, chosen.presign_seconds) if chosen else Placement()

    @property
    def wants_store(self) -> bool | None:
        """None: the worker's default."""
        return None if self.output is None else self.output.store == "s3"

    @property
    def may_be_stored(self) -> bool:
        """Whether it may be put into the store, if there is one."""
        return self.wants_store is not False

    def check_placement(self, files: OutputFiles) -> None:
        """Raises `StorageRefusedError` for a place that the files cannot have, before any work is done."""
        if files.has_store or self.wants_store:
            files.check(self.placement)

    def request(self, prompt_id: UUID) -> PromptRequest:
        """The request of a job that brings its graph.

        Raises `ComfyUIInputError` with the field's name for a file name that ComfyUI must not be given.
        """
        images = tuple(_input_file(*file) for file in self._files)
        return PromptRequest(prompt=self.workflow or {}, images=images, **self._fields(prompt_id))

    async def named_request(self, prompt_id: UUID, named: NamedWorkflows) -> PromptRequest:
        """The request of a job that names its workflow. ComfyUI has to be ready.

        Raises:
            ComfyUIError: as `comfyui.workers.named.named_request`.
        """
        if self._files:
            raise ComfyUIInputError(
                "images must be left out for a named workflow, which takes files in its parameters",
                field=self._files[0][0],
            )
        return await named_request(named, self.workflow_name, self.parameters, self._fields(prompt_id))

    @property
    def _files(self) -> list[tuple[str, str, str]]:
        """Field, path and content of each file."""
        files = [(f"images[{index}]", image.name, image.image) for index, image in enumerate(self.images)]
        return files + [
            (f"reference_images[{path!r}]", path, content) for path, content in self.reference_images.items()
        ]

    def _fields(self, prompt_id: UUID) -> dict[str, Any]:
        extra_data: dict[str, Any] = {"extra_pnginfo": self.extra_pnginfo} if self.extra_pnginfo else {}
        return {"prompt_id": prompt_id, "extra_data": extra_data | self.secrets or None}


def job_fields(job: JobInput, request: PromptRequest) -> JobFields:
    """How the job's input names what its request has."""
    if request.call is not None:
        return JobFields(NAME_FIELD)
    names = [f"images[{index}].image" for index in range(len(job.images))]
    return JobFields("workflow", [*names, *(f"reference_images[{path!r}]" for path in job.reference_images)])


def parse_input(job_input: Any) -> JobInput:
    """The input as an object or as its JSON text; `JobInput.warnings` names the members that are not known.

    Raises `ComfyUIInputError` that names each field that is wrong, without its value.
    """
    if isinstance(job_input, str | bytes):
        try:
            job_input = jsonio.loads(job_input)
        except JSONError as error:
            raise ComfyUIInputError(f"input is a text that is not JSON: {error}") from error
    if not isinstance(job_input, Mapping):
        raise ComfyUIInputError("input must be an object with workflow or workflow_name, or its JSON text")
    given = {name: value for name, value in job_input.items() if name != "warnings"}
    warnings = tuple(_not_understood(job_input))
    try:
        return JobInput.model_validate({**given, "warnings": warnings})
    except ValidationError as error:
        # A name that is not known is often the misspelt one that is missed.
        raise ComfyUIInputError("; ".join([_problems(error), *warnings])) from error


def _not_understood(job_input: Mapping[str, Any]) -> Iterator[str]:
    known = JobInput.model_fields.keys() - {"warnings"}
    for name, value in job_input.items():
        if name not in known and value is not None:
            yield f"input.{_shown(name)} is unknown and was ignored"
    images = job_input.get("images")
    for index, image in enumerate(images if isinstance(images, list) else ()):
        for name, value in image.items() if isinstance(image, Mapping) else ():
            if name not in NamedInput.model_fields and value is not None:
                yield f"input.images[{index}].{_shown(name)} is unknown and was ignored"


def _shown(name: Any) -> str:
    return str(name)[:_LONGEST_NAME]


def _input_file(field: str, path: str, content: str) -> InputFile:
    folder, _, name = path.replace("\\", "/").rpartition("/")
    try:
        return InputFile(name=name, image=content, subfolder=folder)
    except ValidationError as error:
        raise ComfyUIInputError(f"{field}: {_problems(error)}") from error


def _problems(error: ValidationError) -> str:
    return "; ".join(
        f"{'.'.join(str(part) for part in item['loc']) or 'input'}: {item['msg'].removeprefix('Value error, ')}"
        for item in error.errors(include_input=False, include_url=False)
    )


def max_reply_bytes(job_id: str, max_result_mb: float | None) -> int:
    """The largest reply to this job: RunPod's limit for the way in which the job came, or the setting."""
    if max_result_mb is None:
        max_result_mb = _RUNSYNC_MB if job_id.startswith(_SYNC_ID) else _RUN_MB
        return int(max_result_mb * _MB) - _ENVELOPE_BYTES
    return int(max_result_mb * _MB)


async def reply(files: OutputFiles, result: PromptResult, job: JobInput, *, max_bytes: int) -> dict[str, Any]:
    """The job's reply. A file that cannot be delivered has ``error`` instead of ``data``; the others are still sent.

    Raises:
        ResultTooLargeError: as base64 it would be larger than `max_bytes`, and there is no store.
        ComfyUIDeliveryError: not one of its files could be delivered.
    """
    warnings = list(job.warnings)
    body = {**result_members(result, []), "images": [], "outputs": result.outputs, "warnings": warnings}
    if _size(body) > max_bytes // 2 and result.outputs:
        # `images` has the files; what remains are other outputs of nodes.
        body["outputs"] = {}
        warnings.append("outputs was left out of the reply, because RunPod does not take so large a reply")
    images = await _images(files, result, job, max_bytes - _size(body))
    if images is None:
        raise _too_large(result, max_bytes, "the files are too large for base64 in the reply")
    check_delivered(result, images)
    body |= {"images": images, "partial": is_partial(images), "files": [_without_data(image) for image in images]}
    if _size(body) > max_bytes:
        raise _too_large(result, max_bytes, f"the reply lists {len(images)} files")
    return body


async def _images(
    files: OutputFiles, result: PromptResult, job: JobInput, max_bytes: int
) -> list[dict[str, Any]] | None:
    """None if they are larger than that as base64, and there is no store."""
    kept = kept_files(result.files)
    may_store = files.has_store and job.may_be_stored
    if job.return_base64 is False and not may_store:
        return [{**_head(file), "type": "file"} for file in kept]
    if not may_store or (job.return_base64 and not job.wants_store):
        images = await _as_base64(files, result, kept, max_bytes)
        if images is not None or not may_store:
            return images
    return [await _stored(files, result, file, job.placement) for file in kept]


def _too_large(result: PromptResult, max_bytes: int, what: str) -> ResultTooLargeError:
    return ResultTooLargeError(
        f"{what}: the reply is larger than {max_bytes / 1e6:.3g} MB, and {_LIMITS}: set S3_BUCKET to have the files"
        " stored and linked, or MAX_RESULT_MB if all callers use /runsync; or save fewer or smaller files",
        prompt_id=result.prompt_id,
    )


def _size(value: Any) -> int:
    """The largest size in bytes as the SDK sends it: its JSON has a blank after each comma and colon."""
    text = jsonio.dumps(value)
    return len(text) + text.count(b",") + text.count(b":")


def _without_data(image: Mapping[str, Any]) -> dict[str, Any]:
    """A file's entry, the same on every platform: its place, or why it is not there."""
    told = {name: value for name, value in image.items() if name not in {"data", "type"}}
    return {**told, "url": image["data"]} if image["type"] == "s3_url" else told


def _head(file: OutputFile) -> dict[str, Any]:
    return {
        "filename": file.filename,
        "node_id": file.node_id,
        "subfolder": file.subfolder,
        "content_type": file.content_type,
    }


async def _as_base64(
    files: OutputFiles, result: PromptResult, kept: list[OutputFile], max_bytes: int
) -> list[dict[str, Any]] | None:
    """None as soon as they are more than `max_bytes`; a file that does not fit is not read to its end."""
    images = []
    for file in kept:
        head = _head(file)
        # Told twice: in `images` and, without its data, in `files`.
        max_bytes -= 2 * _size(head) + _ENTRY_BYTES
        try:
            content = await files.read(result, file, max_bytes * 3 // 4)
        except ComfyUIError as error:
            images.append({**head, "type": "error", **reason_not_delivered(error)})
            continue
        if content is None:
            return None
        data = base64.b64encode(content).decode("ascii")
        max_bytes -= len(data)
        images.append({**head, "type": "base64", "data": data})
    return images


async def _stored(files: OutputFiles, result: PromptResult, file: OutputFile, placement: Placement) -> dict[str, Any]:
    try:
        stored = (await files.put(result, file, partial(node_key, result.prompt_id), placement)).object
    except ComfyUIError as error:
        return {**_head(file), "type": "error", **reason_not_delivered(error)}
    return {**_head(file), "type": "s3_url", "data": stored.url, "size": stored.size}
