"""The files of WORKFLOWS_DIR: their names and contents. Blocking; no link is followed out of the folder."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
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
        path, sidecar: the two files; None for a missing one.
        problem: why they cannot be used at all, for people.
    """

    name: str
    folder: Path
    path: Path | None = None
    sidecar: Path | None = None
    signature: _Signature | None = None
    sidecar_signature: _Signature | None = None
    problem: str = ""

    @property
    def sidecar_name(self) -> str:
        """The name of the sidecar in messages."""
        return "" if self.sidecar is None else self.sidecar.relative_to(self.folder).as_posix()


def sources_in(folder: Path) -> dict[str, Source]:
    """The workflows of a folder by name; none if the folder does not exist.

    Names that begin with a dot are skipped, as are files of other kinds and folders without a workflow.

    Raises:
        OSError: the folder cannot be read.
    """
    root = Path(os.path.realpath(folder))
    found: dict[str, Source] = {}
    for entry in _entries(root):
        stem, ending = Path(entry.name).stem, Path(entry.name).suffix
        if entry.name.startswith("."):
            continue
        if ending == ".json":
            _add(found, root, stem, path=root / entry.name)
        elif ending == ".toml":
            _add(found, root, stem, sidecar=root / entry.name)
        elif _is_folder(entry):
            inside = root / entry.name
            if _signature(inside / _FILE) is not None:
                _add(found, root, entry.name, path=inside / _FILE)
            if _signature(inside / _SIDECAR) is not None:
                _add(found, root, entry.name, sidecar=inside / _SIDECAR)
    return _checked(found)


def read_source(source: Source, max_bytes: int) -> tuple[bytes, bytes | None]:
    """The contents of the workflow and of its sidecar. Raises `NamedWorkflowUnusableError`."""
    assert source.path is not None  # noqa: S101 - a source without one has a problem
    content = _read(source.folder, source.path, max_bytes, "MAX_REQUEST_BODY_MB")
    if source.sidecar is None:
        return content, None
    return content, _read(source.folder, source.sidecar, MAX_SIDECAR_BYTES, "which no setting changes")


def _entries(folder: Path) -> list[os.DirEntry[str]]:
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


def _add(
    found: dict[str, Source], root: Path, name: str, *, path: Path | None = None, sidecar: Path | None = None
) -> None:
    source = found.get(name) or Source(without_surrogates(name), root)
    if path is not None:
        if source.path is not None:
            source = replace(source, problem=f"there are both {name}.json and {name}/{_FILE}; remove one")
        source = replace(source, path=path, signature=_signature(path))
    if sidecar is not None:
        if source.sidecar is not None:
            source = replace(source, problem=f"there are both {name}.toml and {name}/{_SIDECAR}; remove one")
        source = replace(source, sidecar=sidecar, sidecar_signature=_signature(sidecar))
    found[name] = source


def _checked(found: Mapping[str, Source]) -> dict[str, Source]:
    """The sources with the reason why one cannot be used at all."""
    alike = Counter(name.casefold() for name in found)
    checked = {}
    for name, source in found.items():
        problem = source.problem
        if not WORKFLOW_NAME.fullmatch(name):
            problem = f"rename its file: {WORKFLOW_NAME_IS}"
        elif alike[name.casefold()] > 1:
            problem = "another workflow has the same name but for upper and lower case; rename one of them"
        elif source.path is None:
            problem = f"the sidecar has no {name}.json beside it"
        elif source.sidecar is not None and source.sidecar.parent != source.path.parent:
            problem = f"the sidecar must be beside the workflow's file, but it is at {source.sidecar_name}"
        checked[source.name] = replace(source, problem=problem)
    return checked


def _signature(path: Path) -> _Signature | None:
    """A value that differs after each change, even if another file was renamed to this name; None if there is no
    file.
    """
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _read(root: Path, path: Path, max_bytes: int, setting: str) -> bytes:
    shown = path.relative_to(root).as_posix()
    try:
        real = path.resolve(strict=True)
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
