"""`KeptFile`: an upload from our store, answered as ComfyUI answers for a file in its folders."""

from __future__ import annotations

import mimetypes
import re
from email.utils import formatdate, parsedate_to_datetime

from starlette.responses import FileResponse, Response
from starlette.types import Receive, Scope, Send

from comfyui.file_names import content_type_of
from comfyui.inputs.catalogue import Catalogue
from comfyui.jobs.journal.writes import KeptUpload
from comfyui.web.front.headers import header

# As in ComfyUI: a browser would run these types.
_NEVER_SHOWN = frozenset({"text/html", "text/html-sandboxed", "application/xhtml+xml", "text/javascript", "text/css"})
_OF_BYTES = frozenset({b"content-length", b"accept-ranges"})
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


class KeptFile(FileResponse):
    """Its bytes stay in the store until they are sent."""

    def __init__(self, catalogue: Catalogue, kept: KeptUpload, filename: str) -> None:
        self._catalogue, self._kept = catalogue, kept
        kind = _type_of(filename)
        told = {
            "Content-Type": "application/octet-stream" if kind in _NEVER_SHOWN else kind,
            "ETag": f'"{kept.digest}"',
            "Last-Modified": formatdate(kept.at, usegmt=True),
            "X-Content-Type-Options": "nosniff",
        }
        super().__init__(str(catalogue.content_of(kept).source), headers=told)
        # ComfyUI's form for names that are not in Latin-1.
        name = filename.rpartition("/")[2]
        self.raw_headers.append((b"content-disposition", f'filename="{name}"'.encode()))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if _is_known(scope, self._kept):
            await self._without_body(304, scope, receive, send)
            return
        asked = header(scope, b"range")
        if asked is not None:
            found = byte_range(asked.decode("latin-1"), self._kept.size)
            if found is None:
                self.raw_headers.append((b"content-range", f"bytes */{self._kept.size}".encode()))
                await self._without_body(416, scope, receive, send)
                return
            first, last = found
            others = [pair for pair in scope["headers"] if pair[0].lower() != b"range"]
            scope = {**scope, "headers": [*others, (b"range", f"bytes={first}-{last}".encode())]}
        with self._catalogue.held([self._kept]):
            await super().__call__(scope, receive, send)

    async def _without_body(self, status: int, scope: Scope, receive: Receive, send: Send) -> None:
        answer = Response(status_code=status)
        length = [pair for pair in answer.raw_headers if pair[0] == b"content-length"]
        answer.raw_headers = [*(pair for pair in self.raw_headers if pair[0] not in _OF_BYTES), *length]
        await answer(scope, receive, send)


def byte_range(asked: str, size: int) -> tuple[int, int] | None:
    """First and last byte of a ``Range``, as ComfyUI's server reads it; None if there is no such range."""
    match = _RANGE.fullmatch(asked)
    if match is None or match[0] == "bytes=-":
        return None
    first, last = match[1], match[2]
    if not first:
        start, end = max(size - int(last), 0) if int(last) else 0, size - 1
    else:
        start, end = int(first), min(int(last), size - 1) if last else size - 1
        if last and int(last) < start:
            return None
    return (start, end) if start < size else None


def _is_known(scope: Scope, kept: KeptUpload) -> bool:
    """Whether the caller already has these bytes."""
    if (tags := header(scope, b"if-none-match")) is not None:
        known = [tag.strip().removeprefix("W/") for tag in tags.decode("latin-1").split(",")]
        return "*" in known or f'"{kept.digest}"' in known
    since = header(scope, b"if-modified-since")
    if since is None:
        return False
    try:
        return int(kept.at) <= parsedate_to_datetime(since.decode("latin-1")).timestamp()
    except (ValueError, OverflowError):
        return False


def _type_of(filename: str) -> str:
    """ComfyUI's type: for a packed file, that of its content."""
    name, dot, ending = filename.rpartition(".")
    if f"{dot}{ending.lower()}" in mimetypes.encodings_map:
        return mimetypes.guess_type(name)[0] or "application/octet-stream"
    return content_type_of(filename)
