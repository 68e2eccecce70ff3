"""A RunPod job's input as a request, and a result as its reply. Knows no SDK.

The input is ours and that of worker-comfyui at once: ``workflow`` and ``images: [{name, image}]`` are common to both.
The reply is, too: ``{"images": [{"filename", "type": "base64" or "s3_url", "data"}], …}``.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any, Literal
from uuid import UUID

from pydantic import ConfigDict, Field, SecretStr, ValidationError, field_validator

from comfyui import jsonio
from comfyui.client import View
from comfyui.exceptions import ComfyUIError, ComfyUIInputError
from comfyui.handler import ComfyUIHandler
from comfyui.models import Given, InputFile, OutputFile, PromptRequest, PromptResult
from comfyui.storage import ObjectStore, Placement, StorageRefusedError
from comfyui.workers.base import JobFields

_LIMITS = "RunPod takes 10 MB as the reply of /run and 20 MB of /runsync"


class ResultTooLargeError(ComfyUIError):
    """The files do not fit into a reply, and there is nowhere else to put them."""

    title = "Result too large"
    code = "result_too_large"


class NamedInput(Given):
    """One entry of ``images``: a name, which may have a folder before it, and base64, a data URI or a URL."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    name: str
    image: str


class OutputPlacement(Given):
    """Where the files are stored, as far as a caller may choose: ``output`` of ``/prompt_sync``."""

    model_config = ConfigDict(extra="forbid")

    store: Literal["s3", "none"] = "s3"
    bucket: str | None = None
    prefix: str | None = None
    presign_seconds: int | None = None


class JobInput(Given):
    """``job["input"]``. A field that is not listed is refused by name."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    workflow: dict[str, Any] = Field(description="In ComfyUI's API format, as an object or as JSON text.")
    images: list[NamedInput] = Field(default=[])
    reference_images: dict[str, str] = Field(default={}, description="Path below ComfyUI's input folder to content.")
    return_base64: bool | None = Field(
        default=None, description="True: in the reply where it fits. False: never. None: where there is no store."
    )
    comfy_org_api_key: SecretStr | None = None
    comfy_org_auth_token: SecretStr | None = None
    extra_pnginfo: dict[str, Any] = Field(
        default={}, description="As in ComfyUI's extra_data: what its nodes write into their pictures."
    )
    output: OutputPlacement | None = None

    @field_validator("workflow", mode="before")
    @classmethod
    def _parsed(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return jsonio.loads(value)
        except jsonio.JSONError as error:
            raise ValueError(f"is a text that is not JSON: {error}") from error

    @property
    def secrets(self) -> dict[str, str]:
        """As members of ComfyUI's ``extra_data``."""
        given = {"api_key_comfy_org": self.comfy_org_api_key, "auth_token_comfy_org": self.comfy_org_auth_token}
        return {name: secret.get_secret_value() for name, secret in given.items() if secret}

    @property
    def placement(self) -> Placement:
        chosen = self.output
        return Placement(chosen.bucket, chosen.prefix, chosen.presign_seconds) if chosen else Placement()

    @property
    def wants_store(self) -> bool | None:
        """None: as the worker is set up."""
        return None if self.output is None else self.output.store == "s3"

    def check_placement(self, store: ObjectStore | None) -> None:
        """Raises `StorageRefusedError` for a place that the files cannot have, before any work is done."""
        if store is not None:
            store.check(self.placement)
        elif self.wants_store:
            raise StorageRefusedError("output.store: this worker has no object store (S3_BUCKET is not set)")

    def request(self, prompt_id: UUID) -> PromptRequest:
        """Raises `ComfyUIInputError` with the field's name for a file name that ComfyUI must not be given."""
        files = [(f"images[{index}]", image.name, image.image) for index, image in enumerate(self.images)]
        files += [(f"reference_images[{path!r}]", path, content) for path, content in self.reference_images.items()]
        extra_data: dict[str, Any] = {"extra_pnginfo": self.extra_pnginfo} if self.extra_pnginfo else {}
        extra_data |= self.secrets
        return PromptRequest(
            prompt=self.workflow,
            images=tuple(_input_file(*file) for file in files),
            prompt_id=prompt_id,
            extra_data=extra_data or None,
        )


def job_fields(job: JobInput) -> JobFields:
    """How the job's input names what its request has."""
    names = [f"images[{index}].image" for index in range(len(job.images))]
    return JobFields("workflow", [*names, *(f"reference_images[{path!r}]" for path in job.reference_images)])


def parse_input(job_input: Any) -> JobInput:
    """Raises `ComfyUIInputError` that names each field that is wrong, without its value."""
    try:
        return JobInput.model_validate(job_input)
    except ValidationError as error:
        raise ComfyUIInputError(_problems(error)) from error


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


async def reply(
    handler: ComfyUIHandler,
    result: PromptResult,
    job: JobInput,
    *,
    store: ObjectStore | None,
    max_bytes: int,
) -> dict[str, Any]:
    """The job's reply. A file that cannot be read has ``error`` in place of ``data``; the others still come.

    Raises:
        ResultTooLargeError: as base64 it would be larger than `max_bytes`, and there is no store.
    """
    files = _wanted(result.files)
    body = {
        "images": [],
        "prompt_id": result.prompt_id,
        "status": "success",
        "execution_time": round(result.timings.total_s, 4),
        "timings": result.timings.to_json(),
        "outputs": result.outputs,
        "node_errors": result.node_errors,
    }
    left = max_bytes - len(jsonio.dumps(body))
    if job.wants_store is False:
        store = None
    if job.return_base64 is False and store is None:
        return {**body, "images": [{**_head(file), "type": "file"} for file in files]}
    if store is None or (job.return_base64 and not job.wants_store):
        images = await _as_base64(handler, result, files, left)
        if images is not None:
            return {**body, "images": images}
        if store is None:
            raise ResultTooLargeError(
                f"the files are larger than {max_bytes / 1e6:g} MB as base64, and {_LIMITS}: set S3_BUCKET to have them"
                " stored and linked, or MAX_RESULT_MB where all callers use /runsync; or save fewer or smaller files",
                prompt_id=result.prompt_id,
            )
    return {**body, "images": [await _stored(handler, result, file, store, job.placement) for file in files]}


def _wanted(files: tuple[OutputFile, ...]) -> list[OutputFile]:
    """Previews and other temporary files only where there is nothing else."""
    return [file for file in files if file.type != "temp"] or list(files)


def _head(file: OutputFile) -> dict[str, Any]:
    return {
        "filename": file.filename,
        "node_id": file.node_id,
        "subfolder": file.subfolder,
        "content_type": file.content_type,
    }


async def _as_base64(
    handler: ComfyUIHandler, result: PromptResult, files: list[OutputFile], max_bytes: int
) -> list[dict[str, Any]] | None:
    """None as soon as they are more than `max_bytes`; what does not fit is not read to its end."""
    images = []
    for file in files:
        head = _head(file)
        max_bytes -= len(jsonio.dumps(head))
        try:
            async with handler.open_file(result, file) as view:
                content = await _read(view, max_bytes * 3 // 4)
        except ComfyUIError as error:
            images.append({**head, "type": "error", "error": error.detail})
            continue
        if content is None:
            return None
        data = base64.b64encode(content).decode("ascii")
        max_bytes -= len(data)
        images.append({**head, "type": "base64", "data": data})
    return images


async def _read(view: View, max_bytes: int) -> bytes | None:
    if max_bytes < 0 or (view.length or 0) > max_bytes:
        return None
    content = bytearray()
    async for chunk in view.chunks:
        content += chunk
        if len(content) > max_bytes:
            return None
    return bytes(content)


async def _stored(
    handler: ComfyUIHandler, result: PromptResult, file: OutputFile, store: ObjectStore, placement: Placement
) -> Mapping[str, Any]:
    key = "/".join(part for part in (result.prompt_id, file.node_id, file.subfolder, file.filename) if part)
    try:
        async with handler.open_file(result, file) as view:
            stored = await store.put(key, view.chunks, view.length, file.content_type, placement)
    except ComfyUIError as error:
        return {**_head(file), "type": "error", "error": error.detail}
    return {**_head(file), "type": "s3_url", "data": stored.url, "size": stored.size}
