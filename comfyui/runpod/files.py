"""The bridge's routes about files: ``/view`` of results and inputs, and uploads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

from aiohttp import BodyPartReader, hdrs, web

from comfyui import jsonio
from comfyui.client import upload_form
from comfyui.exceptions import (
    ComfyUIConnectionError,
    ComfyUIDiskError,
    ComfyUIInputError,
    ComfyUIServerError,
    JSONError,
)
from comfyui.models import content_type_of
from comfyui.offload import finished_in_thread, opened_in_thread
from comfyui.runpod.disk import advice, is_of_the_disk, reason_of
from comfyui.runpod.inputs import InputFiles
from comfyui.runpod.local import LocalComfyUI
from comfyui.runpod.results import ResultFiles
from comfyui.transport.over_aiohttp import whole_body

# What a browser would run with the rights of the gateway's page.
_NEVER_SHOWN = frozenset({"text/html", "text/javascript", "text/css"})
_XML = ("/xml", "+xml")
_LONGEST_FIELD = 64 * 1024


class FileRoutes:
    def __init__(self, results: ResultFiles, inputs: InputFiles, local: LocalComfyUI) -> None:
        self._results = results
        self._inputs = inputs
        self._local = local

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/view", self.view),
            web.post("/upload/image", self.upload_image),
            web.post("/upload/mask", self.upload_mask),
        ]

    async def view(self, request: web.Request) -> web.StreamResponse:
        """Ours as it is, also where a preview is asked for; any other is the local ComfyUI's."""
        query = request.query
        name, subfolder, kind = query.get("filename", ""), query.get("subfolder", ""), query.get("type", "output")
        path: Path | None = None
        if kind == "output":
            path = await asyncio.to_thread(self._results.find, subfolder, name)
        elif kind == "input":
            path = await asyncio.to_thread(self._inputs.find, subfolder, name)
        if path is None:
            if self._local.reachable:
                return await self._local.relay(request)
            return web.Response(status=404 if name else 400)
        content_type = content_type_of(name)
        if content_type in _NEVER_SHOWN or content_type.endswith(_XML):
            content_type = "application/octet-stream"
        return web.FileResponse(
            path,
            headers={
                hdrs.CONTENT_TYPE: content_type,
                hdrs.CONTENT_DISPOSITION: f'filename="{_quoted(path.name)}"',
            },
        )

    async def upload_image(self, request: web.Request) -> web.StreamResponse:
        """Kept here, and passed on: whichever of the two is asked for it later has it."""
        return await self._upload(request, self._keep)

    async def upload_mask(self, request: web.Request) -> web.StreamResponse:
        """The local ComfyUI's alone: it puts the mask into the picture."""
        return await self._upload(request, self._mask)

    async def _upload(
        self, request: web.Request, place: Callable[[Path, str, dict[str, str]], Awaitable[web.Response]]
    ) -> web.Response:
        try:
            part, filename, fields = await self._received(request)
            try:
                return await place(part, filename, fields)
            finally:
                await asyncio.to_thread(part.unlink, True)
        except ConnectionError:
            raise  # nobody is left to answer
        except ValueError as error:
            raise ComfyUIInputError(f"no proper form: {error}") from error
        except OSError as error:
            problem = f"the upload cannot be stored: {reason_of(error)}"
            raise (
                ComfyUIDiskError(advice(problem)) if is_of_the_disk(error) else ComfyUIServerError(problem)
            ) from error

    async def _keep(self, part: Path, filename: str, fields: dict[str, str]) -> web.Response:
        kind = fields.get("type") or "input"
        try:
            passed_on = await self._pass_on("/upload/image", part, filename, fields)
        except ComfyUIConnectionError:
            if kind != "input":
                raise
            subfolder, overwrite = fields.get("subfolder", ""), fields.get("overwrite") in {"true", "1"}
        else:
            if passed_on.status != 200 or kind != "input":
                return passed_on
            # Under the name that it has there.
            filename, subfolder = _stored_as(passed_on)
            overwrite = True
        name = await asyncio.to_thread(lambda: self._inputs.keep(part, filename, subfolder, overwrite=overwrite))
        return web.json_response({"name": name, "subfolder": subfolder, "type": kind})

    async def _mask(self, part: Path, filename: str, fields: dict[str, str]) -> web.Response:
        passed_on = await self._pass_on("/upload/mask", part, filename, fields)
        if passed_on.status == 200:
            # What is kept here under that name is another picture now.
            await asyncio.to_thread(self._inputs.forget, *_stored_as(passed_on))
        return passed_on

    async def _pass_on(self, route: str, part: Path, filename: str, fields: dict[str, str]) -> web.Response:
        """The local ComfyUI's answer. Raises `ComfyUIConnectionError`."""
        file = await opened_in_thread(lambda: part.open("rb"))
        try:
            payload = upload_form(filename, file, fields)
            # Its type has the boundary; the session sets none, since what it relays has one already.
            headers: dict[str, str] = {hdrs.CONTENT_TYPE: payload.headers[hdrs.CONTENT_TYPE]}
            async with self._local.request("POST", route, headers=headers, data=payload) as response:
                body = await whole_body(response, self._local.answers, f"POST {route}")
                return web.Response(status=response.status, body=body, content_type=response.content_type)
        finally:
            await finished_in_thread(file.close)

    async def _received(self, request: web.Request) -> tuple[Path, str, dict[str, str]]:
        """The file on disk, its name, and the other fields of the form."""
        if not request.content_type.startswith("multipart/"):
            raise ComfyUIInputError("multipart/form-data with a field 'image' is wanted")
        part: Path | None = None
        filename, fields = "", dict[str, str]()
        try:
            async for field in await request.multipart():
                if not isinstance(field, BodyPartReader) or not field.name:
                    continue
                if field.name == "image" and field.filename and part is None:
                    filename = field.filename
                    part = await self._inputs.spool(_chunks(field))
                else:
                    fields[field.name] = await _text(field)
        except BaseException:
            if part is not None:
                await asyncio.to_thread(part.unlink, True)
            raise
        if part is None:
            raise ComfyUIInputError("image: a file with a name is wanted")
        return part, filename, fields


def _stored_as(answer: web.Response) -> tuple[str, str]:
    """Name and subfolder, as the local ComfyUI says them."""
    try:
        stored = jsonio.loads(answer.body if isinstance(answer.body, bytes) else b"")
        return str(stored["name"]), str(stored.get("subfolder") or "")
    except (JSONError, KeyError, TypeError, AttributeError) as error:
        raise ComfyUIServerError("the local ComfyUI did not say where it stored the upload") from error


async def _text(field: BodyPartReader) -> str:
    text = bytearray()
    while chunk := await field.read_chunk():
        text += chunk
        if len(text) > _LONGEST_FIELD:
            raise ComfyUIInputError(f"{field.name}: too long")
    return text.decode(errors="replace")


async def _chunks(field: BodyPartReader) -> AsyncIterator[bytes]:
    while chunk := await field.read_chunk(256 * 1024):
        yield chunk


def _quoted(name: str) -> str:
    return name.encode("ascii", "replace").decode().replace('"', "_").replace("\n", "_").replace("\r", "_")
