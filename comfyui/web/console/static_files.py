"""The files that pages of the console load: `static/`, in memory, under an address that changes with their content."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fastapi import Response

from comfyui.exceptions import ComfyUINotFoundError

_FOLDER = Path(__file__).parent / "static"
_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_TYPES[".mjs"] = _TYPES[".js"]
_HEADERS = {"Cache-Control": "public, max-age=31536000, immutable", "X-Content-Type-Options": "nosniff"}


@dataclass(frozen=True, slots=True)
class StaticFiles:
    """All files by name. `digest`: of all their bytes, for their address."""

    digest: str
    files: Mapping[str, bytes]


@functools.cache
def static_files() -> StaticFiles:
    """Reads them at the first call."""
    found = sorted((path.name, path.read_bytes()) for path in _FOLDER.iterdir() if path.suffix in _TYPES)
    digest = hashlib.sha256()
    for name, data in found:
        digest.update(f"{name}\0{len(data)}\0".encode() + data)
    return StaticFiles(digest.hexdigest()[:16], dict(found))


def static_folder() -> str:
    """The path of the files below the root of the gateway, with a slash at its end."""
    return f"console/static/{static_files().digest}/"


def static_answer(name: str) -> Response:
    """The file of this name. A page of before an update gets the present one."""
    data = static_files().files.get(name)
    if data is None:
        raise ComfyUINotFoundError("the console has no such file")
    return Response(data, 200, _HEADERS, media_type=_TYPES[Path(name).suffix])
