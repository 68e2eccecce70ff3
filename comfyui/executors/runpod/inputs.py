"""The input files of a workflow: kept when they are uploaded, and sent along with its job.

A worker of the endpoint has none of the gateway's files, so each file that a workflow names goes into the job's body as
base64. RunPod accepts 10 MB in all.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pybase64

from comfyui import jsonio
from comfyui.exceptions import (
    ComfyUIDiskError,
    ComfyUIError,
    ComfyUIInputError,
    ComfyUIServerError,
    ComfyUIValidationError,
)
from comfyui.executors.own_files import is_below
from comfyui.executors.runpod.disk import advice, is_of_the_disk, reason_of
from comfyui.executors.runpod.endpoint import MAX_RUN_BYTES
from comfyui.executors.runpod.results import ResultFiles, checked_name, existing, opened
from comfyui.inputs.catalogue import numbered
from comfyui.inputs.plan import is_inline, is_url
from comfyui.inputs.staging import OURS
from comfyui.models import PromptRequest
from comfyui.offload import finished_in_thread, made_in_thread
from comfyui.owners import folder_of
from comfyui.replies import JSON
from comfyui.servers.backend import Backend
from comfyui.transport.body import OpenBody
from comfyui.workflows.api_format import needed_by, upload_inputs

Prompt = Mapping[str, Any]

_KINDS = ("input", "output", "temp")
_LONGEST_PATH = 1300
_READ_S = 60.0
# ComfyUI's names of a caller's keys for paid nodes, and the worker's.
_KEYS = {"api_key_comfy_org": "comfy_org_api_key", "auth_token_comfy_org": "comfy_org_auth_token"}
# Bytes of an entry of `images` besides its name and content, and of the body around the workflow.
_ENTRY_BYTES = 40
_BODY_BYTES = 400


@dataclass(frozen=True, slots=True)
class InputRef:
    """A file that goes along: from `path` if it is on this disk, otherwise with its content."""

    name: str
    size: int
    path: Path | None = None
    content: bytes | None = None


@dataclass(frozen=True, slots=True)
class NamedFile:
    """An input of a workflow that may name a file: ``kind`` is ComfyUI's folder, ``path`` is below it."""

    node_id: str
    input_name: str
    path: str
    kind: str


class InputFiles:
    """The folder of uploaded inputs; finds those that a workflow names."""

    def __init__(self, folder: Path, results: ResultFiles, home: Backend) -> None:
        self.folder = folder
        self._results = results
        self._home = home

    # Uploads

    async def upload_image(
        self, filename: str, content: bytes | AsyncIterator[bytes], *, subfolder: str = "", overwrite: bool = True
    ) -> JSON:
        """Keeps an input for prompts that name it: see `comfyui.servers.server.FileShelf`.

        Raises:
            ComfyUIInputError: the name leads elsewhere.
            ComfyUIDiskError: the disk cannot be written.
        """
        try:
            part = await self._spool(content)
            try:
                name = await asyncio.to_thread(self._keep, part, filename, subfolder, overwrite=overwrite)
            finally:
                await finished_in_thread(lambda: part.unlink(missing_ok=True))
        except OSError as error:
            problem = f"the input cannot be stored: {reason_of(error)}"
            raise (
                ComfyUIDiskError(advice(problem)) if is_of_the_disk(error) else ComfyUIServerError(problem)
            ) from error
        return {"name": name, "subfolder": subfolder, "type": "input"}

    def view(
        self, filename: str, subfolder: str = "", folder_type: str = "input"
    ) -> AbstractAsyncContextManager[OpenBody]:
        """An input that is kept here; see `comfyui.servers.server.FileShelf`."""
        return opened(lambda: self._find(subfolder, filename) if folder_type == "input" else None, filename)

    def _find(self, subfolder: str, filename: str) -> Path | None:
        checked = checked_name(filename, subfolder)
        return existing(self.folder / checked.subfolder / checked.name) if checked else None

    async def _spool(self, content: bytes | AsyncIterator[bytes]) -> Path:
        """Writes the content to this disk."""
        target = await made_in_thread(self._part, _discard)
        part = Path(target.name)
        try:
            if isinstance(content, bytes):
                await asyncio.to_thread(target.write, content)
            else:
                async for chunk in content:
                    await asyncio.to_thread(target.write, chunk)
        except BaseException:
            await finished_in_thread(lambda: part.unlink(missing_ok=True))
            raise
        finally:
            await finished_in_thread(target.close)
        return part

    def _keep(self, part: Path, name: str, subfolder: str, *, overwrite: bool) -> str:
        """Puts an upload in place; returns its name, which is a new one if that one has other content."""
        checked = checked_name(name, subfolder)
        if checked is None:
            raise ComfyUIInputError("filename must be a plain file name, and subfolder a relative folder without '..'")
        folder = self.folder / checked.subfolder
        folder.mkdir(parents=True, exist_ok=True)
        chosen, number = checked.name, 1
        while not overwrite and (folder / chosen).exists():
            if _digest(folder / chosen) == _digest(part):
                break
            chosen = numbered(checked.name, number)
            number += 1
        part.replace(folder / chosen)
        return chosen

    def _part(self) -> IO[bytes]:
        self.folder.mkdir(parents=True, exist_ok=True)
        return tempfile.NamedTemporaryFile(dir=self.folder, prefix=".part-", delete=False)

    # The files of a workflow

    async def body(self, prompt: Prompt, request: PromptRequest, key: str | None = None) -> bytes:
        """The body of ``/run``, with the files that the workflow names.

        A file that the request gives by URL is left to the worker if it would not fit.

        Args:
            key: the name of the only key whose files may go along; None: any file that is here.

        Raises:
            ComfyUIValidationError: it is larger than RunPod accepts.
            ComfyUIServerError: one of the files was removed meanwhile.
        """
        given, files, size = await self._measured(prompt, request, key)
        if size > MAX_RUN_BYTES and (by_url := _with_urls(prompt, request.prompt)) is not None:
            given, files, size = await self._measured(by_url, request, key)
        if size > MAX_RUN_BYTES:
            raise _too_large(files, size)
        contents = [(file.name, await self._content(file)) for file in files]
        body = await asyncio.to_thread(_encoded, given, contents)
        if len(body) > MAX_RUN_BYTES:
            raise _too_large(files, len(body))
        return body

    async def _measured(
        self, prompt: Prompt, request: PromptRequest, key: str | None
    ) -> tuple[dict[str, Any], list[InputRef], int]:
        """A job's ``input`` without its files, the files, and the size of the body with them."""
        prompt, files = await self._files_of(prompt, request.prompt, key)
        await asyncio.to_thread(_touch, files)
        given = _job_input(prompt, request.extra_data or {})
        return given, files, await asyncio.to_thread(_body_size, given, files)

    async def _content(self, file: InputRef) -> bytes:
        if file.content is not None or file.path is None:
            return file.content or b""
        try:
            return await asyncio.to_thread(file.path.read_bytes)
        except OSError as error:
            raise ComfyUIServerError(f"the input {file.name!r} no longer exists") from error

    async def _files_of(self, prompt: Prompt, posted: Prompt, key: str | None) -> tuple[Prompt, list[InputRef]]:
        """The workflow for the worker, and the files that it names; each file once."""
        named = [one for one in named_files(prompt) if key is None or _is_own(one, prompt, posted, key)]
        found = await asyncio.to_thread(lambda: {one: self._on_disk(one) for one in named})
        if missing := [one for one, file in found.items() if file is None]:
            uploads = await self._uploads(prompt)
            for one in missing:
                if (one.node_id, one.input_name) in uploads:
                    found[one] = await self._at_home(one)
        files: dict[str, InputRef] = {}
        changed = dict(prompt)
        for one, file in found.items():
            if file is None:
                continue
            files[file.name] = file
            if one.kind != "input":
                # On the worker every file is an input, whatever it was here.
                node = changed[one.node_id]
                changed[one.node_id] = {**node, "inputs": {**node["inputs"], one.input_name: file.name}}
        return changed, list(files.values())

    def _on_disk(self, one: NamedFile) -> InputRef | None:
        subfolder, _, filename = one.path.rpartition("/")
        path: Path | None = None
        if one.kind == "input":
            path = self._find(subfolder, filename)
        elif one.kind == "output":
            path = self._results.find(subfolder, filename)
        return InputRef(_name_of(one), path.stat().st_size, path) if path else None

    async def _uploads(self, prompt: Prompt) -> set[tuple[str, str]]:
        """The inputs that are files which the ComfyUI beside us may have; none while it does not answer."""
        if not self._home.ready:
            return set()
        try:
            async with self._home.soon():
                return set(upload_inputs(prompt, await self._home.object_info()))
        except (ComfyUIError, TimeoutError):
            return set()

    async def _at_home(self, one: NamedFile) -> InputRef | None:
        """The file from the ComfyUI beside us. If it has none, the worker may, and reports it if not."""
        subfolder, _, filename = one.path.rpartition("/")
        content = bytearray()
        try:
            async with asyncio.timeout(_READ_S), self._home.client.view(filename, subfolder, one.kind) as body:
                size = body.length or 0
                if size <= MAX_RUN_BYTES:
                    async for chunk in body:
                        content += chunk
                        if len(content) > MAX_RUN_BYTES:
                            break
        except (ComfyUIError, TimeoutError):
            return None
        return InputRef(_name_of(one), max(size, len(content)), content=bytes(content))


def wanted_of(prompt: Mapping[str, Any], request: PromptRequest) -> Mapping[str, Any]:
    """The part of the workflow that will run. Raises `ComfyUIValidationError`."""
    targets = request.partial_execution_targets
    if targets is None:
        return prompt
    if not targets or any(one not in prompt for one in targets):
        raise ComfyUIValidationError("partial_execution_targets must be a list of this workflow's nodes")
    kept = {node_id for target in targets for node_id in needed_by(prompt, target)}
    return {node_id: node for node_id, node in prompt.items() if node_id in kept}


def named_files(prompt: Prompt) -> Iterator[NamedFile]:
    """Each input whose text may be the name of a file."""
    for node_id, node in prompt.items():
        for input_name, value in node["inputs"].items():
            if not isinstance(value, str) or not 0 < len(value) <= _LONGEST_PATH:
                continue
            kind = next((kind for kind in _KINDS if value.endswith(f" [{kind}]")), "")
            path = value.removesuffix(f" [{kind}]") if kind else value
            subfolder, _, filename = path.rpartition("/")
            if checked_name(filename, subfolder) is not None:
                yield NamedFile(node_id, input_name, path, kind or "input")


def _is_own(one: NamedFile, prompt: Prompt, posted: Prompt, key: str) -> bool:
    """Whether a file is the key's own, or was placed for this workflow, which then did not name it so by itself.

    Any text of a workflow may name a file, and a node that only the worker knows may read it.
    """
    if one.kind != "input":
        return False
    said = posted[one.node_id]["inputs"].get(one.input_name) if one.node_id in posted else None
    was_placed = said != prompt[one.node_id]["inputs"][one.input_name]
    return is_below(folder_of(key), one.path) or (was_placed and one.path.startswith(OURS))


def _with_urls(prompt: Prompt, posted: Prompt) -> Prompt | None:
    """The workflow with the URLs of its inputs as they were posted; None if there are none."""
    changed = dict(prompt)
    for node_id, node in prompt.items():
        given = posted[node_id]["inputs"] if node_id in posted else {}
        urls = {name: value for name, value in given.items() if is_inline(value) and is_url(value)}
        if urls:
            changed[node_id] = {**node, "inputs": {**node["inputs"], **urls}}
    return None if changed == prompt else changed


def _name_of(one: NamedFile) -> str:
    """The file's name as an input of the worker."""
    if one.kind == "input":
        return one.path
    # Two results may have the same name, and the worker's input folder has room for only one.
    mark = hashlib.sha256(f"{one.kind}/{one.path}".encode()).hexdigest()[:12]
    return f"{mark}-{one.path.rpartition('/')[2]}"


def _discard(part: IO[bytes]) -> None:
    part.close()
    Path(part.name).unlink(missing_ok=True)


def _touch(files: list[InputRef]) -> None:
    """The age of files counts from their last use: `Retention` must not remove a file that a prompt is about to
    send.
    """
    for file in files:
        if file.path is not None:
            with suppress(OSError):
                os.utime(file.path, follow_symlinks=False)


def _digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _files_size(files: list[InputRef]) -> int:
    return sum((file.size + 2) // 3 * 4 + len(jsonio.dumps(file.name)) + _ENTRY_BYTES for file in files)


def _body_size(given: Mapping[str, Any], files: list[InputRef]) -> int:
    return _BODY_BYTES + len(jsonio.dumps(given)) + _files_size(files)


def _job_input(prompt: Prompt, extra_data: Mapping[str, Any]) -> dict[str, Any]:
    """A job's ``input`` without its files."""
    job_input: dict[str, Any] = {"workflow": prompt}
    if isinstance(info := extra_data.get("extra_pnginfo"), dict):
        job_input["extra_pnginfo"] = info
    keys = ((there, extra_data.get(name)) for name, there in _KEYS.items())
    return job_input | {there: key for there, key in keys if isinstance(key, str) and key}


def _encoded(given: Mapping[str, Any], contents: list[tuple[str, bytes]]) -> bytes:
    job_input = dict(given)
    if contents:
        job_input["images"] = [
            {"name": name, "image": pybase64.b64encode(content).decode("ascii")} for name, content in contents
        ]
    return jsonio.dumps({"input": job_input})


def _too_large(files: list[InputRef], size: int) -> ComfyUIValidationError:
    listed = ", ".join(f"{file.name} {file.size / 1e6:.1f} MB" for file in files) or "the workflow itself"
    detail = (
        f"the job would be {size / 1e6:.1f} MB with its inputs in base64, and RunPod takes {MAX_RUN_BYTES / 1e6:g} MB:"
        f" {listed}. Make the inputs smaller; or give the file's http(s) URL in the workflow in place of its name,"
        " which the endpoint's worker fetches itself"
    )
    return ComfyUIValidationError(detail, upstream=_shape(detail))


def _shape(detail: str) -> Mapping[str, Any]:
    error = {"type": "runpod_job_too_large", "message": "Job too large for RunPod", "details": detail, "extra_info": {}}
    return {"error": error, "node_errors": {}}
