"""The bytes of an asset: of a file in the store, of a text, or of a file that a server has. Whole or in part."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack
from pathlib import Path

import structlog
from blake3 import blake3
from starlette.requests import Request
from starlette.responses import Response

from comfyui.assets.job_outputs import FoundOutput, JobOutputs
from comfyui.assets.uploaded import UploadedAssets
from comfyui.exceptions import Breach, ContractError, StorageError
from comfyui.inputs.content import pieces_of
from comfyui.jobs.journal.asset_writes import Asset, OutputFacts
from comfyui.offload import offloaded
from comfyui.outputs.delivery import Deliverer
from comfyui.transport.body import IteratedBody, OpenBody
from comfyui.web.api.streams import BodyStream, content_disposition
from comfyui.web.front.errors import json_response
from comfyui.web.front.v2_errors import envelope
from comfyui.web.v2.ranges import Part, is_one_part, part_of

_log = structlog.get_logger(__name__)
_GONE = "the file is no longer on its server"


async def of_upload(request: Request, uploaded: UploadedAssets, asset: Asset) -> Response:
    """The answer to a request for an upload's bytes, which stay in the store until they are sent."""
    headers = _headers(asset.file_path or asset.id, asset.blake3)
    whole = _whole_or_part(request, asset.size, headers)
    if isinstance(whole, Response):
        return whole
    content = uploaded.content_of(asset)
    async with AsyncExitStack() as stack:
        stack.enter_context(uploaded.held(asset))
        body = IteratedBody(content.chunks(whole.start, whole.size), whole.size)
        if request.method != "HEAD":
            await body.begin()  # so that a file that cannot be read still has a status
        opened = stack.pop_all()
    return _answer(request, body, asset.content_type, headers, whole, asset.size, opened)


async def of_output(
    request: Request, outputs: JobOutputs, found: FoundOutput, facts: OutputFacts | None, deliverer: Deliverer
) -> Response:
    """The answer to a request for a job's output: its bytes, or a link to the object store that has them.

    The first time that all bytes of a file pass, they are hashed.

    Args:
        facts: about the output; None if it could not be measured.
    """
    output = found.output
    if found.stored is not None:
        try:
            link = await deliverer.link(found.stored)
        except StorageError as error:
            _log.warning("output.not_linked", prompt_id=found.record.prompt_id, detail=error.detail)
        else:
            return Response(status_code=302, headers={"Location": link, "Cache-Control": "no-store"})
    headers = _headers(output.name, facts.blake3 if facts else None)
    return await as_it_is(request, outputs, found, facts, output.content_type, headers)


async def as_it_is(
    request: Request,
    outputs: JobOutputs,
    found: FoundOutput,
    facts: OutputFacts | None,
    kind: str,
    headers: dict[str, str],
) -> Response:
    """The answer with the output's bytes, as of `kind` and with these headers, of which an ``ETag`` is compared.

    Raises:
        ContractError: it no longer exists.
        ComfyUIError: its server does not answer.
    """
    output = found.output
    if output.file is None:
        content = await offloaded(len(output.text), output.content)
        whole = _whole_or_part(request, len(content), headers)
        if isinstance(whole, Response):
            return whole
        body: OpenBody = IteratedBody(_pieces(content[whole.start : whole.end + 1]), whole.size)
        return _answer(request, body, kind, headers, whole, len(content), AsyncExitStack())
    if request.method == "HEAD" and facts is not None:
        whole = _whole_or_part(request, facts.size, headers)
        if isinstance(whole, Response):
            return whole
        return _answer(request, _nothing(), kind, headers, whole, facts.size, AsyncExitStack())
    return await _of_server(request, outputs, found, facts, kind, headers)


async def _of_server(
    request: Request,
    outputs: JobOutputs,
    found: FoundOutput,
    facts: OutputFacts | None,
    kind: str,
    headers: dict[str, str],
) -> Response:
    wanted = _range_of(request, headers)
    if is_known(request, headers):
        return Response(status_code=304, headers=headers)
    async with AsyncExitStack() as stack:
        if wanted is None:
            body = await stack.enter_async_context(outputs.whole(found))
            if body is None:
                raise ContractError(Breach.OUTPUT_UNAVAILABLE, _GONE)
            await body.begin()
            if body.length is not None:
                headers["Content-Length"] = str(body.length)
            if request.method == "HEAD":
                return BodyStream(_nothing(), kind, headers)
            if facts is None or facts.blake3 is None:
                hashed = _hashed(outputs, found, body)
                stack.push_async_callback(hashed.aclose)
                body = IteratedBody(hashed, body.length)
            return BodyStream(body, kind, headers, stack.pop_all())
        if (path := await outputs.path_of(found)) is not None:
            return await _of_disk(request, path, kind, headers)
        reply = await outputs.open(found, {"Range": wanted})
        if reply is None:
            raise ContractError(Breach.OUTPUT_UNAVAILABLE, _GONE)
        stack.callback(reply.close)
        said = reply.header(b"content-range")
        if reply.status == 416:
            return _no_such_part(said)
        if said is not None:
            headers["Content-Range"] = said
        if reply.body.length is not None:
            headers["Content-Length"] = str(reply.body.length)
        if request.method == "HEAD":
            return BodyStream(_nothing(), kind, headers, status=reply.status)
        return BodyStream(reply.body, kind, headers, stack.pop_all(), reply.status)


async def _of_disk(request: Request, path: Path, kind: str, headers: dict[str, str]) -> Response:
    """A part of a file that the gateway itself has."""
    try:
        size = (await asyncio.to_thread(path.stat)).st_size
    except FileNotFoundError as error:
        raise ContractError(Breach.OUTPUT_UNAVAILABLE, _GONE) from error
    part = _whole_or_part(request, size, headers)
    if isinstance(part, Response):
        return part
    body = IteratedBody(pieces_of(path, part.start, part.size, "RUNPOD_DATA_DIR"), part.size)
    if request.method != "HEAD":
        await body.begin()
    return _answer(request, body, kind, headers, part, size, AsyncExitStack())


async def _hashed(outputs: JobOutputs, found: FoundOutput, body: OpenBody) -> AsyncGenerator[bytes, None]:
    """The body; its hash is known before its last byte has left."""
    hasher, size = blake3(), 0
    async for chunk in body:
        await offloaded(len(chunk), hasher.update, chunk)
        size += len(chunk)
        if size == body.length:
            outputs.hashed(found, size, hasher.hexdigest())
        yield chunk
    if body.length is None or not size:
        outputs.hashed(found, size, hasher.hexdigest())


async def _pieces(content: bytes) -> AsyncGenerator[bytes, None]:
    yield content


def _nothing() -> OpenBody:
    return IteratedBody(_pieces(b""), 0)


def _headers(name: str, digest: str | None) -> dict[str, str]:
    headers = {
        "Accept-Ranges": "bytes",
        "Cache-Control": "private, no-cache",
        "Content-Disposition": content_disposition(name),
        "X-Content-Type-Options": "nosniff",
    }
    if digest is not None:
        headers["ETag"] = f'"{digest}"'
    return headers


def _range_of(request: Request, headers: Mapping[str, str]) -> str | None:
    """The requested part of the content; None for all of it, also if the client has a part of another content."""
    wanted, version = request.headers.get("range"), request.headers.get("if-range")
    if wanted is None or not is_one_part(wanted) or (version is not None and version != headers.get("ETag")):
        return None
    return wanted


def is_known(request: Request, headers: Mapping[str, str]) -> bool:
    """Whether the client already has this content."""
    known = request.headers.get("if-none-match", "")
    return "ETag" in headers and headers["ETag"] in {one.strip().removeprefix("W/") for one in known.split(",")}


def _whole_or_part(request: Request, size: int, headers: Mapping[str, str]) -> Part | Response:
    """The bytes to send, or the answer if there are none to send."""
    if is_known(request, headers):
        return Response(status_code=304, headers=dict(headers))
    part = part_of(_range_of(request, headers), size)
    if part == "none":
        return _no_such_part(f"bytes */{size}")
    return part or Part(0, size - 1, is_whole=True)


def _answer(
    request: Request,
    body: OpenBody,
    content_type: str,
    headers: dict[str, str],
    part: Part,
    size: int,
    stack: AsyncExitStack,
) -> Response:
    if not part.is_whole:
        headers["Content-Range"] = f"bytes {part.start}-{part.end}/{size}"
    headers["Content-Length"] = str(part.size)
    if request.method == "HEAD":
        body = _nothing()
    return BodyStream(body, content_type, headers, stack, 200 if part.is_whole else 206)


def _no_such_part(content_range: str | None) -> Response:
    told = envelope("invalid_range", "Range: the content has no such bytes")
    return json_response(416, told, {"Content-Range": content_range} if content_range else None)
