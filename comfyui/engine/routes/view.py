"""`/view` and the uploads: files in and out, with ComfyUI's rules about paths."""

from __future__ import annotations

import asyncio
import json
import mimetypes
import os
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from aiohttp import BodyPartReader, hdrs, web
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from comfyui.engine.faults import Faults
from comfyui.engine.files import Folders, is_within

_NEVER_SHOWN = {"text/html", "text/html-sandboxed", "application/xhtml+xml", "text/javascript", "text/css"}
_CHUNK_BYTES = 256 * 1024

mimetypes.add_type("image/webp", ".webp")


@dataclass(frozen=True, slots=True)
class _File:
    filename: str
    content: bytes


class FileRoutes:
    def __init__(self, folders: Folders, faults: Faults) -> None:
        self._folders = folders
        self._faults = faults

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/view", self.view),
            web.post("/upload/image", self.upload_image),
            web.post("/upload/mask", self.upload_mask),
        ]

    async def view(self, request: web.Request) -> web.StreamResponse:
        query = request.query
        if not query.get("filename"):
            return web.Response(status=400 if "filename" in query else 404)
        path = self._find(query["filename"], query.get("type", "output"), query.get("subfolder", ""))
        size = await asyncio.to_thread(self._size, path)
        if size is None:
            return web.Response(status=404)
        disposition = {hdrs.CONTENT_DISPOSITION: f'filename="{path.name}"'}
        cut = self._faults.take("view_cut", match=path.name)
        if cut is not None:
            return await _send_and_cut(request, path, size, int(cut.get("after_bytes", size // 2)))
        channel = query.get("channel", "rgba")
        if "preview" in query:
            body, kind = await asyncio.to_thread(_preview, path, query["preview"], query.get("channel", ""))
            return web.Response(body=body, content_type=kind, headers=disposition)
        if channel in ("rgb", "a"):
            body = await asyncio.to_thread(_rgb if channel == "rgb" else _alpha, path)
            return web.Response(body=body, content_type="image/png", headers=disposition)
        content_type = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
        if content_type in _NEVER_SHOWN:
            content_type = "application/octet-stream"
        return web.FileResponse(path, headers={**disposition, hdrs.CONTENT_TYPE: content_type})

    def _size(self, path: Path) -> int | None:
        """In bytes; None if there is no such file (any more)."""
        if not os.path.isfile(path):  # noqa: PTH113 - a name may be too long for the disk
            return None
        if self._faults.take("output_deleted", match=path.name) is not None:
            path.unlink()
            return None
        return path.stat().st_size

    def _find(self, name: str, folder_type: str, subfolder: str) -> Path:
        filename, folder = self._folders.annotated(name)
        if not filename or filename[0] == "/" or ".." in filename:
            raise _Refused(400)
        folder = folder or self._folders.by_type(folder_type)
        if folder is None:
            raise _Refused(400)
        if not is_within(folder, folder / subfolder):
            raise _Refused(403)
        return folder / subfolder / os.path.basename(filename)  # noqa: PTH119 (of a name, as it came)

    async def upload_image(self, request: web.Request) -> web.Response:
        return await self._posted(request, as_mask=False)

    async def upload_mask(self, request: web.Request) -> web.Response:
        return await self._posted(request, as_mask=True)

    async def _posted(self, request: web.Request, *, as_mask: bool) -> web.Response:
        post = await _form(request)
        image = post.get("image")
        folder_type = str(post.get("type") or "input")
        folder = self._folders.by_type(folder_type)
        if folder is None:
            raise web.HTTPInternalServerError  # as ComfyUI, which has no answer for an unknown type
        if not isinstance(image, _File):
            return web.Response(status=400)
        filename, subfolder = image.filename, str(post.get("subfolder", ""))
        if (renamed := self._faults.take("upload_renamed", match=filename)) is not None:
            filename, subfolder = renamed.get("name", filename), renamed.get("subfolder", subfolder)
        target = folder / os.path.normpath(subfolder)  # noqa: ASYNC240 (no I/O)
        if not is_within(folder, target / filename):
            return web.Response(status=400)
        overwrite = post.get("overwrite") in ("true", "1")
        original = str(post["original_ref"]) if as_mask else None
        name = await asyncio.to_thread(self._place, target, filename, image.content, overwrite, original)
        return web.json_response({"name": name, "subfolder": subfolder, "type": folder_type})

    def _place(self, folder: Path, filename: str, content: bytes, overwrite: bool, original: str | None) -> str:
        """Writes under a free name, unless the same content has the name already; returns the name."""
        folder.mkdir(parents=True, exist_ok=True)
        stem, extension = os.path.splitext(filename)  # noqa: PTH122 (of a name with folders, as it came)
        name, number = filename, 1
        while not overwrite and (folder / name).exists():
            if (folder / name).read_bytes() == content:
                return name
            name = f"{stem} ({number}){extension}"
            number += 1
        if original is None:
            (folder / name).write_bytes(content)
        else:
            self._place_masked(folder / name, content, json.loads(original))
        return name

    def _place_masked(self, target: Path, mask: bytes, reference: dict[str, str]) -> None:
        """The original with the mask's alpha; empty if the original does not exist."""
        source = self._find(reference["filename"], reference.get("type", "output"), reference.get("subfolder", ""))
        if not os.path.isfile(source):  # noqa: PTH113
            return
        with Image.open(source) as original, Image.open(BytesIO(mask)) as painted:
            metadata = PngInfo()
            for key, value in getattr(original, "text", {}).items():
                metadata.add_text(key, value)
            result = original.convert("RGBA")
            result.putalpha(painted.convert("RGBA").getchannel("A"))
            result.save(target, compress_level=4, pnginfo=metadata)


class _Refused(web.HTTPException):
    """A path that leads elsewhere: the bare status, as ComfyUI answers it."""

    empty_body = True

    def __init__(self, status: int) -> None:
        self.status_code = status
        super().__init__()


def _preview(path: Path, wanted: str, channel: str) -> tuple[bytes, str]:
    parts = wanted.split(";")
    kind = parts[0] if parts[0] in ("webp", "jpeg") and "a" not in channel else "webp"
    quality = int(parts[-1]) if parts[-1].isdigit() else 90
    with Image.open(path) as image:
        shown = image.convert("RGB") if kind == "jpeg" or channel == "rgb" else image
        return _encoded(shown, kind, quality=quality), f"image/{kind}"


def _rgb(path: Path) -> bytes:
    with Image.open(path) as image:
        return _encoded(image.convert("RGB"), "PNG")


def _alpha(path: Path) -> bytes:
    with Image.open(path) as image:
        alpha = image.getchannel("A") if image.mode == "RGBA" else Image.new("L", image.size, 255)
        only_alpha = Image.new("RGBA", image.size)
        only_alpha.putalpha(alpha)
        return _encoded(only_alpha, "PNG")


def _encoded(image: Image.Image, kind: str, **options: int) -> bytes:
    buffer = BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


async def _form(request: web.Request) -> dict[str, str | _File]:
    """The fields of a form. aiohttp's own `post` leaves the temporary file of an upload that breaks off unclosed."""
    form: dict[str, str | _File] = {}
    if request.content_type != "multipart/form-data":
        return form
    async for part in await request.multipart():
        if isinstance(part, BodyPartReader) and part.name:
            content = bytes(await part.read(decode=True))
            form.setdefault(part.name, _File(part.filename, content) if part.filename else content.decode())
    return form


def _first(path: Path, size: int) -> list[bytes]:
    """The start of a file, in pieces."""
    with path.open("rb") as file:
        content = file.read(size)
    return [content[start : start + _CHUNK_BYTES] for start in range(0, len(content), _CHUNK_BYTES)]


async def _send_and_cut(request: web.Request, path: Path, size: int, after_bytes: int) -> web.StreamResponse:
    """Promises the whole file and stops."""
    response = web.StreamResponse()
    response.content_length = size
    await response.prepare(request)
    for chunk in await asyncio.to_thread(_first, path, after_bytes):
        await response.write(chunk)
    if request.transport is not None:
        request.transport.close()
    return response
