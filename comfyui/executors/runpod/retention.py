"""`Retention`: removes old results and uploaded inputs, if `RUNPOD_DATA_DAYS` is set.

ComfyUI deletes no outputs, so this happens only on request. Every file is checked and removed by its name in the open
folder, and symbolic links are neither followed nor removed: nothing outside the two folders can be reached.
"""

from __future__ import annotations

import asyncio
import os
import stat
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import structlog

from comfyui.executors.runpod.disk import reason_of
from comfyui.executors.runpod.inputs import InputFiles, named_files
from comfyui.executors.runpod.results import ResultFiles

_log = structlog.get_logger(__name__)


Unfinished = Callable[[], AsyncIterator[tuple[str, Mapping[str, Any]]]]
"""Id and workflow of each prompt that has not ended."""


@dataclass(slots=True)
class _Removed:
    files: int = 0
    size: int = 0
    left: int = 0
    """Files that could not be removed; `reason` is that of the last one."""
    reason: str = ""


class Retention:
    """`run` is its task. Files that unfinished prompts name or have written are never removed.

    Args:
        unfinished: gives the prompts that have not ended, by their ids.
        max_age_s: since a file was written, or an input was last used by a prompt.
        every_s: seconds between two passes.
        on_inputs_removed: called when uploads are gone that the gateway may still know.
    """

    def __init__(
        self,
        results: ResultFiles,
        inputs: InputFiles,
        unfinished: Unfinished,
        *,
        max_age_s: float,
        every_s: float,
        on_inputs_removed: Callable[[], None],
    ) -> None:
        self._results = results
        self._inputs = inputs
        self._unfinished = unfinished
        self._max_age_s = max_age_s
        self._every_s = every_s
        self._on_inputs_removed = on_inputs_removed
        self._stopped = threading.Event()

    async def run(self) -> None:
        try:
            while True:
                try:
                    await self.clean()
                except Exception:
                    # A bug of ours must not stop any prompt.
                    _log.exception("runpod.cleanup_crashed")
                await asyncio.sleep(self._every_s)
        finally:
            # The thread would go on, and the process would wait for it before its end.
            self._stopped.set()

    async def clean(self) -> None:
        """One pass through both folders, outside the event loop."""
        # Computed before they are read: files that are sent meanwhile are touched.
        cutoff = time.time() - self._max_age_s
        named: set[tuple[str, PurePosixPath]] = set()
        ids: set[str] = set()
        async for prompt_id, prompt in self._unfinished():
            ids.add(prompt_id)
            named |= {(file.kind, PurePosixPath(file.path)) for file in named_files(prompt)}
        outputs, inputs = await asyncio.to_thread(self._clean, ids, named, cutoff)
        if inputs.files:
            self._on_inputs_removed()
        if removed := outputs.files + inputs.files:
            freed_mb = round((outputs.size + inputs.size) / 1e6, 1)
            _log.info("runpod.cleaned", removed=removed, freed_mb=freed_mb)
        if left := outputs.left + inputs.left:
            _log.warning("runpod.cleanup_failed", left=left, reason=outputs.reason or inputs.reason)

    def _clean(self, ids: set[str], named: set[tuple[str, PurePosixPath]], cutoff: float) -> tuple[_Removed, _Removed]:
        def is_kept_result(path: PurePosixPath) -> bool:
            return path.parts[0] in ids or ("output", path) in named

        outputs = self._remove(self._results.folder, cutoff, is_kept_result, folders=True)
        return outputs, self._remove(self._inputs.folder, cutoff, lambda path: ("input", path) in named, folders=False)

    def _remove(self, top: Path, cutoff: float, is_kept: Callable[[PurePosixPath], bool], *, folders: bool) -> _Removed:
        """Removes files last written before `cutoff`, and with `folders` those that are empty then."""
        removed = _Removed()

        def failed(error: OSError) -> None:
            removed.left += 1
            removed.reason = reason_of(error)

        if top.is_symlink():
            return _Removed(left=1, reason=f"{top.name} is a symbolic link")
        if not top.is_dir():
            return removed
        for parent, subfolders, names, folder in os.fwalk(top, topdown=False, onerror=failed, follow_symlinks=False):
            here = PurePosixPath(Path(parent).relative_to(top).as_posix())
            for name in names:
                if self._stopped.is_set():
                    return removed
                try:
                    status = os.stat(name, dir_fd=folder, follow_symlinks=False)
                    if stat.S_ISREG(status.st_mode) and status.st_mtime < cutoff and not is_kept(here / name):
                        os.unlink(name, dir_fd=folder)
                        removed.files += 1
                        removed.size += status.st_size
                except FileNotFoundError:
                    continue
                except OSError as error:
                    failed(error)
            for name in subfolders if folders else ():
                if not is_kept(here / name):
                    with suppress(OSError):  # not empty, or a link
                        os.rmdir(name, dir_fd=folder)
        return removed
