"""The files of WORKFLOWS_DIR: their names and contents. Blocking; no link is followed out of the folder."""

from __future__ import annotations

import os
import stat
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from comfyui.exceptions import NamedWorkflowUnusableError
from comfyui.jsonio import without_surrogates
from comfyui.named.parameters import WORKFLOW_NAME, WORKFLOW_NAME_IS
from comfyui.named.sidecar import MAX_BYTES as MAX_SIDECAR_BYTES

_FILE, _SIDECAR = "workflow.json", "workflow.toml"
_Signature = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Source:
    """The files of one name, as they are on the disk. Two are equal when nothing has changed.

    Attributes:
        folder: WORKFLOWS_DIR, resolved; no file outside of it is read.
        path, sidecar: the names of the two files below it; "" for a missing one.
        problem: why they cannot be used at all, for people.
    """

    name: str
    folder: str
    path: str = ""
    sidecar: str = ""
    signature: _Signature | None = None
    sidecar_signature: _Signature | None = None
    problem: str = ""


@dataclass(slots=True)
class _Files:
    """All files of one name: their names below the folder, with their signatures."""

    workflows: dict[str, _Signature | None] = field(default_factory=dict)
    sidecars: dict[str, _Signature | None] = field(default_factory=dict)


def sources_in(folder: Path) -> dict[str, Source]:
    """The workflows of a folder by name; none if the folder does not exist.

    Names that begin with a dot are skipped, as are files of other kinds and folders without a workflow. It runs each
    second: with texts in place of `Path` it takes a quarter of the time.

    Raises:
        OSError: the folder cannot be read.
    """
    root = os.path.realpath(folder)
    found: defaultdict[str, _Files] = defaultdict(_Files)
    for entry in _entries(root):
        name = entry.name
        stem, dot, ending = name.rpartition(".")
        if name.startswith("."):
            continue
        if dot and ending == "json":
            found[stem].workflows[name] = _signature(entry.path)
        elif dot and ending == "toml":
            found[stem].sidecars[name] = _signature(entry.path)
        elif _is_folder(entry):
            if (signature := _signature(f"{entry.path}/{_FILE}")) is not None:
                found[name].workflows[f"{name}/{_FILE}"] = signature
            if (signature := _signature(f"{entry.path}/{_SIDECAR}")) is not None:
                found[name].sidecars[f"{name}/{_SIDECAR}"] = signature
    alike = Counter(name.casefold() for name in found)
    sources = [_source(root, name, files, alike[name.casefold()] > 1) for name, files in found.items()]
    return {source.name: source for source in sources}


def read_source(source: Source, max_bytes: int) -> tuple[bytes, bytes | None]:
    """The contents of the workflow and of its sidecar. Raises `NamedWorkflowUnusableError`."""
    content = _read(source.folder, source.path, max_bytes, "MAX_REQUEST_BODY_MB")
    if not source.sidecar:
        return content, None
    return content, _read(source.folder, source.sidecar, MAX_SIDECAR_BYTES, "which no setting changes")


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except FileNotFoundError:
        return []


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _source(root: str, name: str, files: _Files, has_twin: bool) -> Source:
    """The source of a name, with the reason if it cannot be used at all."""
    path, signature = next(reversed(files.workflows.items()), ("", None))
    sidecar, sidecar_signature = next(reversed(files.sidecars.items()), ("", None))
    problem = ""
    if not WORKFLOW_NAME.fullmatch(name):
        problem = f"rename its file: {WORKFLOW_NAME_IS}"
    elif has_twin:
        problem = "another workflow has the same name but for upper and lower case; rename one of them"
    elif not path:
        problem = f"the sidecar has no {name}.json beside it"
    elif sidecar and ("/" in sidecar) is not ("/" in path):
        problem = f"the sidecar must be beside the workflow's file, but it is at {sidecar}"
    elif len(files.workflows) > 1:
        problem = f"there are both {name}.json and {name}/{_FILE}; remove one"
    elif len(files.sidecars) > 1:
        problem = f"there are both {name}.toml and {name}/{_SIDECAR}; remove one"
    return Source(without_surrogates(name), root, path, sidecar, signature, sidecar_signature, problem)


def _signature(path: str) -> _Signature | None:
    """A value that differs after each change, even if another file was renamed to this name; None if there is no
    file.
    """
    try:
        status = os.stat(path)  # noqa: PTH116 - see `sources_in`
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _read(root: str, shown: str, max_bytes: int, setting: str) -> bytes:
    try:
        real = Path(root, shown).resolve(strict=True)
        if not real.is_relative_to(root):
            raise NamedWorkflowUnusableError(f"{shown} is a link that leads out of WORKFLOWS_DIR")
        # Not a pipe without a writer, and not another file that has replaced this one since.
        descriptor = os.open(real, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise NamedWorkflowUnusableError(f"{shown} is not a file")
            content = file.read(max_bytes + 1)
    except (OSError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "the link leads to itself"
        raise NamedWorkflowUnusableError(f"{shown} cannot be read: {reason}") from None
    if len(content) > max_bytes:
        raise NamedWorkflowUnusableError(f"{shown} must not be larger than {max_bytes / 1e6:g} MB ({setting})")
    return content
