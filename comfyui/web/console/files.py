"""The outputs of jobs, for pages of the console: a file as it is, and a small picture of it.

Nodes write whatever they like, and a page or an SVG of theirs must not run as ours. So only types in which nothing can
run are shown by the browser; everything else it saves. And what it shows has a policy that lets nothing run.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager

import structlog
from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from comfyui.assets.job_outputs import FoundOutput
from comfyui.assets.outputs import JobOutput
from comfyui.exceptions import (
    ComfyUIConnectionError,
    ComfyUINotFoundError,
    ComfyUIUndeliverableError,
    ContractError,
    StorageError,
)
from comfyui.transport.body import OpenBody
from comfyui.web.api.streams import content_disposition
from comfyui.web.console.errors import ConsoleRoute
from comfyui.web.console.viewer import visitor_of
from comfyui.web.front.gateway_state import GatewayState, gateway_of
from comfyui.web.v2 import contents

router = APIRouter(route_class=ConsoleRoute, include_in_schema=False, default_response_class=Response)

_GONE = "the file no longer exists: its job, its server or the file itself was removed"
_SAVED = "application/octet-stream"
_TEXT = "text/plain; charset=utf-8"
# Nothing of these runs, whatever is in them: `nosniff` has browsers take them for what they are called.
_SHOWN = frozenset(
    [f"image/{name}" for name in ("png", "jpeg", "gif", "webp", "avif", "bmp")]
    + [f"video/{name}" for name in ("mp4", "webm", "ogg", "quicktime", "x-matroska")]
    + [f"audio/{name}" for name in ("mpeg", "wav", "x-wav", "flac", "ogg", "mp4", "aac", "webm")]
)
_SHOWN_AS_TEXT = frozenset(
    [f"text/{name}" for name in ("plain", "csv", "markdown", "vtt")]
    + [f"application/{name}" for name in ("json", "x-subrip", "yaml")]
)
_HEADERS = {
    "Accept-Ranges": "bytes",
    "Content-Security-Policy": "default-src 'none'; img-src 'self'; media-src 'self'; style-src 'unsafe-inline';"
    " sandbox",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_FILE_KEPT = "private, no-cache"
# A page of many pictures does not ask for each of them every time.
_THUMBNAIL_KEPT = "private, max-age=3600"
_log = structlog.get_logger(__name__)


@router.api_route("/console/files/{prompt_id}/{index}", methods=["GET", "HEAD"])
async def file(request: Request) -> Response:
    """The file, or a part of it."""
    found = await _found(request)
    gateway = gateway_of(request)
    outputs, name = gateway.assets.outputs, found.output.name
    kind = shown_type(found.output)
    headers = {**_HEADERS, "Cache-Control": _FILE_KEPT, "ETag": _tag(found, "file")}
    disposition = content_disposition(name)
    headers["Content-Disposition"] = disposition if kind == _SAVED else disposition.replace("attachment", "inline", 1)
    facts = (await outputs.facts(found.record, found.made)).get(found.output.id)
    try:
        return await contents.as_it_is(request, outputs, found, facts, kind, headers)
    except (ContractError, ComfyUIConnectionError) as error:
        if found.stored is not None:
            try:
                return RedirectResponse(await gateway.deliverer.link(found.stored), 302, {"Cache-Control": "no-store"})
            except StorageError as failed:
                _log.warning("output.not_linked", prompt_id=found.record.prompt_id, detail=failed.detail)
        if isinstance(error, ContractError):
            raise ComfyUINotFoundError(_GONE) from error
        raise


@router.api_route("/console/thumbs/{prompt_id}/{index}", methods=["GET", "HEAD"])
async def thumbnail(request: Request) -> Response:
    """A small picture of the file, as WebP; 404 where there is none."""
    found = await _found(request)
    gateway = gateway_of(request)
    headers = {**_HEADERS, "Cache-Control": _THUMBNAIL_KEPT, "ETag": _tag(found, "thumbnail")}
    if contents.is_known(request, headers):
        return Response(status_code=304, headers=headers)

    def opened() -> AbstractAsyncContextManager[OpenBody | None]:
        return gateway.assets.outputs.whole(found)

    name = f"{found.output.id}.{found.record.run}"
    try:
        picture = await gateway.thumbnails.of(name, found.output.content_type, opened)
    except ComfyUIUndeliverableError as error:
        raise ComfyUINotFoundError(f"the gateway has no small picture of this file: {error.detail}") from error
    return Response(picture, 200, headers, media_type="image/webp")


def shown_type(output: JobOutput) -> str:
    """The type under which a browser may show the file; that of unknown bytes where it must not."""
    kind = output.content_type.partition(";")[0].strip().lower()
    if kind in _SHOWN:
        return kind
    return _TEXT if kind in _SHOWN_AS_TEXT else _SAVED


def kind_of(output: JobOutput) -> str:
    """How a page shows it: as ``image``, ``video``, ``audio`` or ``text``; ``file``: by its name."""
    if output.file is None:
        return "text"
    medium = shown_type(output).partition("/")[0]
    return medium if medium in {"image", "video", "audio"} else "file"


def file_path(prompt_id: str, index: int) -> str:
    """The path, below the root, of the output with this place among all outputs of its job."""
    return f"console/files/{prompt_id}/{index}"


def thumbnail_path(gateway: GatewayState, prompt_id: str, index: int, output: JobOutput) -> str:
    """The path of a small picture of the output; "" if there is none."""
    is_made = output.file is not None and gateway.thumbnails.are_made_of(output.content_type)
    return f"console/thumbs/{prompt_id}/{index}" if is_made else ""


async def _found(request: Request) -> FoundOutput:
    """The output that the path names. Raises `ComfyUINotFoundError`, also for what the visitor may not see."""
    visitor, index = visitor_of(request), request.path_params["index"]
    if index.isascii() and index.isdecimal() and len(index) < 7:
        outputs = gateway_of(request).assets.outputs
        found = await outputs.at(request.path_params["prompt_id"], int(index), visitor.origin)
        if found is not None and visitor.sees(found.record.owner):
            return found
    raise ComfyUINotFoundError(_GONE)


def _tag(found: FoundOutput, what: str) -> str:
    """The output's id and the run that made it tell its bytes from all others."""
    return f'"{found.output.id.rpartition(".")[2]}.{found.record.run}.{what}"'
