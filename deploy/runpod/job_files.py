"""Code that submit.py and test_handler.py share: a job's input from files, and a job's output as files."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import time
import urllib.request
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.error import HTTPError

_PAUSES_S = (0.2, 1.0)


class JobFileError(Exception):
    """A named file cannot be used."""


def job_input(workflow: Path, inputs: list[Path]) -> dict[str, Any]:
    """The input of a job. A file in `inputs` keeps its name; a folder's files keep their paths below that folder.

    Raises:
        JobFileError: a file is missing, is no workflow in API format, or has the same name as another.
    """
    try:
        graph = json.loads(workflow.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise JobFileError(f"{workflow}: {error}") from error
    if not isinstance(graph, dict) or isinstance(graph.get("nodes"), list):
        raise JobFileError(f"{workflow}: not in API format; in ComfyUI's editor: Workflow > Export (API)")
    images: dict[str, str] = {}
    for given in inputs:
        paths = sorted(path for path in given.rglob("*") if path.is_file()) if given.is_dir() else [given]
        for path in paths:
            name = path.relative_to(given).as_posix() if given.is_dir() else path.name
            if name in images:
                raise JobFileError(f"{path}: there is another input named {name}")
            try:
                images[name] = base64.b64encode(path.read_bytes()).decode("ascii")
            except OSError as error:
                raise JobFileError(f"{path}: {error.strerror}") from error
    return {"workflow": graph, "reference_images": images}


def save_output(output: dict[str, Any], folder: Path) -> tuple[list[Path], int]:
    """Writes the files of a job's output. It overwrites no existing file: a new file then gets a number.

    Returns the saved files, and how many could not be saved; the reason for each of these goes to standard error.
    """
    saved, missing = [], 0
    for image in output.get("images") or ():
        try:
            content = _content(image)
            path = _free(folder, image)
            path.write_bytes(content)
        except (OSError, ValueError, HTTPException) as error:
            print(f"{image.get('filename')}: {error}", file=sys.stderr)
            missing += 1
        else:
            saved.append(path)
    return saved, missing


def status_of(saved: list[Path], missing: int) -> int:
    """The exit status: 0 if no file is missing, 1 if all are missing, 3 if some are."""
    if not missing:
        return 0
    return 3 if saved else 1


def _content(image: dict[str, Any]) -> bytes:
    """The content of a file. Raises ValueError with the reason without one, OSError or HTTPException for a bad link."""
    kind, data = image.get("type"), image.get("data")
    if kind == "base64":
        return base64.b64decode(str(data), validate=True)
    if kind == "s3_url" and str(data).startswith(("http://", "https://")):
        return _downloaded(str(data))
    raise ValueError(image.get("error") or "left on the worker")


def _downloaded(url: str) -> bytes:
    """The content behind a link; retries temporary errors (connection, 429, 5xx)."""
    for pause_s in (*_PAUSES_S, None):
        try:
            with urllib.request.urlopen(url, timeout=300) as response:  # noqa: S310 - the caller checked the scheme
                content: bytes = response.read()
                return content
        except (OSError, HTTPException) as error:
            if pause_s is None or (isinstance(error, HTTPError) and error.code != 429 and error.code < 500):
                raise
            time.sleep(pause_s)
    raise AssertionError("not reached: the last try raises")


def _free(folder: Path, image: dict[str, Any]) -> Path:
    # The names come from another machine: only the last part of a name counts, and only subfolders without '..'.
    name = PurePosixPath(str(image.get("filename") or "output")).name
    parts = [part for part in PurePosixPath(str(image.get("subfolder") or "")).parts if part not in {"/", ".", ".."}]
    target = folder.joinpath(*parts) / name
    target.parent.mkdir(parents=True, exist_ok=True)
    number = 1
    while target.exists():
        target = target.with_name(f"{Path(name).stem}-{number}{Path(name).suffix}")
        number += 1
    return target


def open_files(paths: list[Path]) -> None:
    """Opens the files with the desktop's usual program; does nothing without a desktop."""
    if sys.platform == "darwin":
        opener = "open"
    elif sys.platform.startswith("linux") and (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        opener = "xdg-open"
    else:
        return
    for path in paths:
        subprocess.Popen([opener, str(path)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # noqa: S603
