"""The input files of a workflow: kept when they are uploaded, and sent along with its job.

A worker of the endpoint has none of the gateway's files, so each file that a workflow names goes into the job's body as
base64. RunPod takes 10 MB there, all together.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlencode

import pybase64

from comfyui import jsonio
from comfyui.exceptions import (
    ComfyUIConnectionError,
    ComfyUIInputError,
    ComfyUIServerError,
    ComfyUIValidationError,
)
from comfyui.offload import finished_in_thread, made_in_thread
from comfyui.runpod.endpoint import MAX_RUN_BYTES
from comfyui.runpod.job import Job, Prompt
from comfyui.runpod.local import LocalComfyUI
from comfyui.runpod.results import ResultFiles, checked_name, existing
from comfyui.workflows.api_format import upload_inputs

_KINDS = ("input", "output", "temp")
_LONGEST_PATH = 1300
_LOOK_S = 5.0
_READ_S = 60.0
# Of an entry of `images` beside its name and content, and of the body around the workflow.
_ENTRY_BYTES = 40
_BODY_BYTES = 400


@dataclass(frozen=True, slots=True)
class InputRef:
    """A file that goes along: from `path` where it is on this disk, else from the local ComfyUI's ``/view``."""

    name: str
    size: int
    path: Path | None = None
    view: str = ""


@dataclass(frozen=True, slots=True)
class NamedFile:
    """A workflow's input that may name a file: ``kind`` is ComfyUI's folder, ``path`` what is below it."""

    node_id: str
    input_name: str
    path: str
    kind: str


class InputFiles:
    """The folder of uploaded inputs, and the finding of those that a workflow names."""

    def __init__(self, folder: Path, results: ResultFiles, local: LocalComfyUI) -> None:
        self.folder = folder
        self._results = results
        self._local = local

    # Uploads

    async def spool(self, chunks: AsyncIterator[bytes]) -> Path:
        """The content of an upload, on disk; the caller hands it to `keep` or removes it."""
        target = await made_in_thread(self._part, _discard)
        part = Path(target.name)
        try:
            async for chunk in chunks:
                await asyncio.to_thread(target.write, chunk)
        except BaseException:
            await finished_in_thread(lambda: part.unlink(missing_ok=True))
            raise
        finally:
            await finished_in_thread(target.close)
        return part

    def keep(self, part: Path, name: str, subfolder: str, *, overwrite: bool) -> str:
        """Put an upload in place; returns the name, which is another where that one is taken by other content.

        Raises `ComfyUIInputError` for a name that leads elsewhere. Works on the disk.
        """
        checked = checked_name(name, subfolder)
        if checked is None:
            raise ComfyUIInputError("filename, subfolder: a plain file name and a relative folder without '..'")
        folder = self.folder / checked.subfolder
        folder.mkdir(parents=True, exist_ok=True)
        stem, extension = os.path.splitext(checked.name)  # noqa: PTH122
        chosen, number = checked.name, 1
        while not overwrite and (folder / chosen).exists():
            if _digest(folder / chosen) == _digest(part):
                break
            chosen = f"{stem} ({number}){extension}"
            number += 1
        part.replace(folder / chosen)
        return chosen

    def forget(self, name: str, subfolder: str) -> None:
        """The local ComfyUI has another file of that name now."""
        checked = checked_name(name, subfolder)
        if checked is not None:
            (self.folder / checked.subfolder / checked.name).unlink(missing_ok=True)

    def find(self, subfolder: str, filename: str) -> Path | None:
        """An uploaded file, None where there is none. Looks at the disk."""
        checked = checked_name(filename, subfolder)
        return existing(self.folder / checked.subfolder / checked.name) if checked else None

    def _part(self) -> IO[bytes]:
        self.folder.mkdir(parents=True, exist_ok=True)
        return tempfile.NamedTemporaryFile(dir=self.folder, prefix=".part-", delete=False)

    # The files of a workflow

    async def check(self, job: Job) -> None:
        """Raises `ComfyUIValidationError` when the workflow and its files are more than RunPod takes."""
        prompt, files = await self._files_of(job.prompt)
        await asyncio.to_thread(_touch, files)
        size = await asyncio.to_thread(_body_size, job, prompt, files)
        if size > MAX_RUN_BYTES:
            raise _too_large(files, size)

    async def body(self, job: Job) -> bytes:
        """The body of ``/run``, with the files as they are now: as in ComfyUI, which reads them when it runs.

        Raises:
            ComfyUIValidationError: they have grown beyond what RunPod takes.
            ComfyUIConnectionError, ComfyUIServerError: the local ComfyUI did not give one of them.
        """
        prompt, files = await self._files_of(job.prompt)
        if (size := _files_size(files)) > MAX_RUN_BYTES:
            raise _too_large(files, size)
        contents = [(file.name, await self._content(file)) for file in files]
        body = await asyncio.to_thread(_encoded, job, prompt, contents)
        if len(body) > MAX_RUN_BYTES:
            raise _too_large(files, len(body))
        return body

    async def _content(self, file: InputRef) -> bytes:
        try:
            if file.path is not None:
                return await asyncio.to_thread(file.path.read_bytes)
        except OSError as error:
            raise ComfyUIServerError(f"the input {file.name!r} is gone") from error
        content = bytearray()
        async with self._local.request("GET", file.view, timeout_s=_READ_S) as response:
            if response.status != 200:
                raise ComfyUIServerError(f"the local ComfyUI does not have the input {file.name!r} any more")
            async for chunk in response.content.iter_any():
                content += chunk
                if len(content) > MAX_RUN_BYTES:
                    raise _too_large([replace(file, size=len(content))], len(content))
        return bytes(content)

    async def _files_of(self, prompt: Prompt) -> tuple[Prompt, list[InputRef]]:
        """The workflow as the worker gets it, and the files that it names; each file once."""
        found = await asyncio.to_thread(lambda: {one: self._on_disk(one) for one in named_files(prompt)})
        if missing := [one for one, file in found.items() if file is None]:
            uploads = await self._uploads(prompt)
            for one in missing:
                if (one.node_id, one.input_name) in uploads:
                    found[one] = await self._at_local(one)
        files: dict[str, InputRef] = {}
        changed = dict(prompt)
        for one, file in found.items():
            if file is None:
                continue
            files[file.name] = file
            if one.kind != "input":
                # On the worker it is an input, whatever it was here.
                node = changed[one.node_id]
                changed[one.node_id] = {**node, "inputs": {**node["inputs"], one.input_name: file.name}}
        return changed, list(files.values())

    def _on_disk(self, one: NamedFile) -> InputRef | None:
        subfolder, _, filename = one.path.rpartition("/")
        if one.kind == "input":
            path = self.find(subfolder, filename)
        else:
            path = self._results.find(subfolder, filename) if one.kind == "output" else None
        return InputRef(_name_of(one), path.stat().st_size, path) if path else None

    async def _uploads(self, prompt: Prompt) -> set[tuple[str, str]]:
        definitions = await self._local.object_info()
        return set(upload_inputs(prompt, definitions)) if definitions else set()

    async def _at_local(self, one: NamedFile) -> InputRef | None:
        subfolder, _, filename = one.path.rpartition("/")
        view = f"/view?{urlencode({'filename': filename, 'subfolder': subfolder, 'type': one.kind})}"
        # Where it is not here, the worker may have it, and says so where it has not.
        with suppress(ComfyUIConnectionError):
            async with self._local.request("HEAD", view, timeout_s=_LOOK_S) as response:
                if response.status == 200:
                    return InputRef(_name_of(one), int(response.headers.get("Content-Length") or 0), view=view)
        return None


def named_files(prompt: Prompt) -> Iterator[NamedFile]:
    """Each input whose text could be the name of a file."""
    for node_id, node in prompt.items():
        for input_name, value in node["inputs"].items():
            if not isinstance(value, str) or not 0 < len(value) <= _LONGEST_PATH:
                continue
            kind = next((kind for kind in _KINDS if value.endswith(f" [{kind}]")), "")
            path = value.removesuffix(f" [{kind}]") if kind else value
            subfolder, _, filename = path.rpartition("/")
            if checked_name(filename, subfolder) is not None:
                yield NamedFile(node_id, input_name, path, kind or "input")


def _name_of(one: NamedFile) -> str:
    """The name that the file has as an input of the worker."""
    if one.kind == "input":
        return one.path
    # Two results may have the same name; the worker's input folder has no place for both.
    mark = hashlib.sha256(f"{one.kind}/{one.path}".encode()).hexdigest()[:12]
    return f"{mark}-{one.path.rpartition('/')[2]}"


def _discard(part: IO[bytes]) -> None:
    part.close()
    Path(part.name).unlink(missing_ok=True)


def _touch(files: list[InputRef]) -> None:
    """Their age counts from when they were used last: `Retention` must not take what a prompt is about to send."""
    for file in files:
        if file.path is not None:
            with suppress(OSError):
                os.utime(file.path, follow_symlinks=False)


def _digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _files_size(files: list[InputRef]) -> int:
    return sum((file.size + 2) // 3 * 4 + len(jsonio.dumps(file.name)) + _ENTRY_BYTES for file in files)


def _body_size(job: Job, prompt: Prompt, files: list[InputRef]) -> int:
    return _BODY_BYTES + len(jsonio.dumps(_job_input(job, prompt))) + _files_size(files)


def _job_input(job: Job, prompt: Prompt) -> dict[str, Any]:
    """All of a job's ``input`` but its files."""
    job_input: dict[str, Any] = {"workflow": prompt}
    if isinstance(info := job.extra_data.get("extra_pnginfo"), dict):
        job_input["extra_pnginfo"] = info
    return job_input | {name: key.get_secret_value() for name, key in job.keys.items()}


def _encoded(job: Job, prompt: Prompt, contents: list[tuple[str, bytes]]) -> bytes:
    job_input = _job_input(job, prompt)
    if contents:
        job_input["images"] = [
            {"name": name, "image": pybase64.b64encode(content).decode("ascii")} for name, content in contents
        ]
    return jsonio.dumps({"input": job_input})


def _too_large(files: list[InputRef], size: int) -> ComfyUIValidationError:
    listed = ", ".join(f"{file.name} {file.size / 1e6:.1f} MB" for file in files) or "the workflow itself"
    detail = (
        f"the job would be {size / 1e6:.1f} MB with its inputs in base64, and RunPod takes {MAX_RUN_BYTES / 1e6:g} MB:"
        f" {listed}. Make the inputs smaller; or post the workflow to /prompt with the file's http(s) URL in place of"
        " its name, which the endpoint's worker fetches itself"
    )
    return ComfyUIValidationError(detail, upstream=_shape(detail))


def _shape(detail: str) -> Mapping[str, Any]:
    error = {"type": "runpod_job_too_large", "message": "Job too large for RunPod", "details": detail, "extra_info": {}}
    return {"error": error, "node_errors": {}}
