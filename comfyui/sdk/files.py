"""Output files on the caller's disk: safe names, and never over a file that is there."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import IO

from comfyui.sdk.models import OutputFile

_WINDOWS_DEVICES = frozenset(
    {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(10))}
)


_NAME_BYTES = 200  # of the 255 that file systems take: room for a number
_PROMPT_ID = re.compile(r"^[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}(?:/|$)")


def safe_name(name: str) -> str:
    """The base name of a name that came over the network: a plain, visible file name on every system."""
    base = re.split(r"[/\\]", name)[-1]
    base = "".join("_" if char in '<>:"|?*' or not char.isprintable() else char for char in base).strip(" .")
    stem, dot, suffix = base.rpartition(".")
    if not dot or len(suffix) > 20:
        stem, suffix = base, ""
    stem = stem.encode()[: _NAME_BYTES - len(suffix)].decode(errors="ignore")
    if not stem or stem.lower() in _WINDOWS_DEVICES:
        stem = f"{stem}_file"
    return f"{stem}.{suffix}" if suffix else stem


def safe_folder(subfolder: str) -> Path:
    """A subfolder that came over the network, as a path that cannot leave the folder it is joined to."""
    parts = [part for part in re.split(r"[/\\]", subfolder) if part.strip(" .")]
    return Path(*map(safe_name, parts))


def create_file(folder: Path, file: OutputFile) -> tuple[Path, IO[bytes]]:
    """A new file for `file` below `folder`, open for writing: ``a.png``, or ``a (1).png`` when there is one.

    The place is the same with one server and with many, for which the gateway puts the prompt's id before the
    subfolder.
    """
    target = folder / safe_folder(_PROMPT_ID.sub("", file.subfolder)) / safe_name(file.filename)
    target.parent.mkdir(parents=True, exist_ok=True)
    for number in itertools.count():
        path = target.with_stem(f"{target.stem} ({number})") if number else target
        try:
            return path, path.open("xb")
        except FileExistsError:
            continue
    raise AssertionError("no number is left for the file's name")
