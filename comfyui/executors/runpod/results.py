"""Turns a finished job's reply into files on this disk and ComfyUI's `outputs`.

Two kinds of replies are known: our worker's, which has ComfyUI's own `outputs` beside the files, and that of
worker-comfyui, which has only the files. The endpoint's operator wrote the answer: a name that leads out of the folder
is refused, and links are fetched as guardedly as those of callers.
"""

from __future__ import annotations

import asyncio
import functools
import io
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pybase64
import structlog
from pydantic import ValidationError

from comfyui import jsonio
from comfyui.exceptions import ComfyUIDiskError, ComfyUIError, ComfyUINotFoundError, ComfyUIServerError, JSONError
from comfyui.executors.runpod.disk import advice, is_of_the_disk, reason_of
from comfyui.executors.runpod.options import RunPodTimes
from comfyui.file_names import content_type_of
from comfyui.inputs.fetch import UrlFetcher
from comfyui.metrics import Metrics
from comfyui.models import InputFile
from comfyui.offload import finished_in_thread, opened_in_thread
from comfyui.outputs.stores.folder import draft_of
from comfyui.transport.body import IteratedBody, OpenBody

_log = structlog.get_logger(__name__)

_PIECE = 256 * 1024
_KEYS = {"audio": "audio", "model": "3d"}
Outputs = dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Listed:
    """One entry of the reply's ``images``, with a safe name."""

    node_id: str
    filename: str
    subfolder: str
    kind: str
    data: str

    @property
    def key(self) -> tuple[str, str, str]:
        return self.node_id, self.subfolder, self.filename


class ResultFiles:
    """The folder of results: ``<prompt id>/<the worker's subfolder>/<file>``, so that no two jobs' files collide.

    A merged subfolder (`comfyui.merged_files`) is the path of a file below it.

    The fetcher belongs to its creator.
    """

    def __init__(self, folder: Path, fetcher: UrlFetcher, metrics: Metrics, times: RunPodTimes) -> None:
        self._metrics = metrics
        self.folder = folder
        self._fetcher = fetcher
        self._backoff = times.rewrite_backoff

    def find(self, subfolder: str, filename: str) -> Path | None:
        """The file with this merged subfolder, None if it is not one of ours. Reads the disk."""
        checked = checked_name(filename, subfolder)
        if checked is None or not checked.subfolder:
            return None
        return existing(self.folder / checked.subfolder / checked.name)

    async def save(self, prompt_id: str, node_id: str, body: bytes) -> Outputs:
        """Writes every file of the reply to this disk; returns ComfyUI's `outputs` with the subfolders of the files
        here.

        Args:
            node_id: for files whose node the reply does not name.

        A file that cannot be fetched stays listed, like a file that ComfyUI has lost. While the disk cannot be written,
        this waits.

        Raises:
            ComfyUIServerError: it is not a reply of a ComfyUI worker, or none of its files can be fetched.
        """
        reply = await asyncio.to_thread(_reply_of, body)
        placed: list[tuple[_Listed, str]] = []
        taken: set[tuple[str, str]] = set()
        problems = []
        for number, file in enumerate(_listed(reply, prompt_id, node_id)):
            subfolder = str(number) if (file.subfolder, file.filename) in taken else file.subfolder
            taken.add((subfolder, file.filename))
            placed.append((file, subfolder))
            try:
                await self._save(prompt_id, file, self.folder / prompt_id / subfolder / file.filename)
            except ComfyUIError as error:
                problems.append(f"{file.filename}: {error.detail}")
                _log.warning("runpod.file_lost", prompt_id=prompt_id, file=file.filename, detail=error.detail)
        if problems and len(problems) == len(placed):
            raise ComfyUIServerError(f"the job's files cannot be fetched: {'; '.join(problems)}")
        return _outputs(reply, _Places(placed))

    async def _insist(
        self, prompt_id: str, file: _Listed, work: Callable[[], Awaitable[None]], *, setting: str = "RUNPOD_DATA_DIR"
    ) -> None:
        """A full disk is no reason to lose a render: until it is written, the result stays in the journal."""
        failures = 0
        while True:
            try:
                await work()
                return
            except (OSError, ComfyUIDiskError) as error:
                # Errors of a temporary file arrive translated.
                cause = error if isinstance(error, OSError) else error.__cause__
                if not isinstance(cause, OSError):
                    raise
                problem = f"it cannot be written: {reason_of(cause)}"
                if not is_of_the_disk(cause):
                    raise ComfyUIServerError(problem) from error
            failures += 1
            if failures == 1:
                detail = advice(problem, setting)
                _log.error("runpod.file_waits", prompt_id=prompt_id, file=file.filename, detail=detail)
            await asyncio.sleep(self._backoff.delay_s(failures))

    async def _save(self, prompt_id: str, file: _Listed, path: Path) -> None:
        if file.kind == "base64":
            try:
                await self._place(prompt_id, file, path, lambda target: _write_base64(target, file.data))
            except ValueError as error:
                raise ComfyUIServerError("the reply's content of the file is not valid base64") from error
        elif file.kind == "s3_url":
            await self._insist(prompt_id, file, lambda: self._download(prompt_id, file, path), setting="TMPDIR")
        else:
            raise ComfyUIServerError(file.data or "the worker did not send the file")

    async def _place(self, prompt_id: str, file: _Listed, path: Path, fill: Callable[[IO[bytes]], None]) -> None:
        await self._insist(prompt_id, file, lambda: asyncio.to_thread(_write, path, fill))

    async def _download(self, prompt_id: str, file: _Listed, path: Path) -> None:
        async with self._fetcher.fetch(file.data) as content:
            self._metrics.runpod_result_bytes.labels("link").inc(content.size)
            # Kept until it is in place: it may be large, and its link may expire soon.
            await self._place(prompt_id, file, path, functools.partial(_copy, content.source))


@asynccontextmanager
async def opened(find: Callable[[], Path | None], name: str) -> AsyncIterator[OpenBody]:
    """The content of the file that `find` finds on this disk. Raises `ComfyUINotFoundError` if there is none."""
    path = await asyncio.to_thread(find)
    try:
        if path is None:
            raise FileNotFoundError
        file = await opened_in_thread(lambda: path.open("rb"))
    except FileNotFoundError as error:
        raise ComfyUINotFoundError(f"the file {name!r} is no longer kept") from error
    except OSError as error:
        raise ComfyUIServerError(f"the file {name!r} cannot be read: {reason_of(error)}") from error
    try:
        size = (await asyncio.to_thread(path.stat)).st_size

        async def pieces() -> AsyncIterator[bytes]:
            while piece := await asyncio.to_thread(file.read, _PIECE):
                yield piece

        yield IteratedBody(pieces(), size)
    finally:
        await finished_in_thread(file.close)


def existing(path: Path) -> Path | None:
    """The path if it is a file; a path with a part that is too long counts as none."""
    try:
        return path if path.is_file() else None
    except OSError:
        return None


def checked_name(filename: Any, subfolder: Any) -> InputFile | None:
    """A plain file name and a relative folder, None if they are anything else."""
    try:
        return InputFile(name=filename, subfolder=subfolder, image="-")
    except ValidationError:
        return None


def _reply_of(body: bytes) -> Mapping[str, Any]:
    try:
        reply = jsonio.loads(body)["output"]
    except (JSONError, KeyError, TypeError):
        reply = None
    if not isinstance(reply, dict) or not ("images" in reply or "outputs" in reply):
        raise ComfyUIServerError("the endpoint's reply has no images: is the worker behind it one for ComfyUI?")
    return reply


def _listed(reply: Mapping[str, Any], prompt_id: str, made_by: str) -> Iterator[_Listed]:
    images = reply.get("images")
    for image in images if isinstance(images, list) else ():
        if not isinstance(image, dict):
            continue
        name = checked_name(image.get("filename"), image.get("subfolder") or "")
        if name is None:
            _log.warning("runpod.file_refused", prompt_id=prompt_id, file=repr(image.get("filename"))[:200])
            continue
        node_id = str(image.get("node_id") or made_by)
        kind = str(image.get("type") or "")
        said = image.get("data") if kind in {"base64", "s3_url"} else image.get("error")
        yield _Listed(node_id, name.name, name.subfolder, kind, said if isinstance(said, str) else "")


class _Places:
    """The place of each listed file here; a reply may list several files of one name."""

    def __init__(self, placed: Sequence[tuple[_Listed, str]]) -> None:
        self._placed = placed
        self._free: dict[tuple[str, str, str], list[int]] = {}
        for index, (file, _) in enumerate(placed):
            self._free.setdefault(file.key, []).append(index)
        self._used: set[int] = set()

    def moved(self, node_id: str, item: Any) -> Any:
        """The item with the subfolder of its file here; None for a preview that stayed on the worker."""
        if not isinstance(item, dict) or "filename" not in item:
            return item
        name = checked_name(item["filename"], item.get("subfolder") or "")
        if name is None:
            return None
        indexes = self._free.get((node_id, name.subfolder, name.name))
        if indexes:
            index = indexes.pop(0) if len(indexes) > 1 else indexes[0]
            self._used.add(index)
            return {**item, "subfolder": self._placed[index][1], "type": "output"}
        if item.get("type") == "temp":
            return None
        return {**item, "subfolder": name.subfolder, "type": "output"}

    def left(self) -> Iterator[tuple[_Listed, str]]:
        """The files that no item has referred to."""
        return (placed for index, placed in enumerate(self._placed) if index not in self._used)


def _outputs(reply: Mapping[str, Any], places: _Places) -> Outputs:
    known = reply.get("outputs")
    outputs: Outputs = {}
    for node_id, output in known.items() if isinstance(known, dict) else ():
        if not isinstance(output, dict):
            continue
        outputs[node_id] = shown = {}
        for key, items in output.items():
            if not isinstance(items, list):
                shown[key] = items
                continue
            moved = (places.moved(node_id, item) for item in items)
            shown[key] = [item for item in moved if item is not None]
    for file, subfolder in places.left():
        major = content_type_of(file.filename).partition("/")[0]
        entry = {"filename": file.filename, "subfolder": subfolder, "type": "output"}
        outputs.setdefault(file.node_id, {}).setdefault(_KEYS.get(major, "images"), []).append(entry)
    return outputs


def _write(path: Path, fill: Callable[[IO[bytes]], None]) -> None:
    with draft_of(path) as target:
        fill(target)


def _write_base64(target: IO[bytes], data: str) -> None:
    text = data.partition(",")[2] if data.startswith("data:") else data
    target.write(pybase64.b64decode(text, validate=True))


def _copy(source: Path | bytes, target: IO[bytes]) -> None:
    with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as opened:
        shutil.copyfileobj(opened, target, 1 << 20)
