"""The answers of tools. The first part is the whole JSON, because some clients show nothing else.

There is no structured content: if there is, some clients show only that, and no picture.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pybase64
import structlog
from fastapi import Request
from mcp_types import CallToolResult, ContentBlock, ImageContent, ResourceLink, TextContent

from comfyui import jsonio
from comfyui.answer_json import FileEntry
from comfyui.exceptions import ComfyUIError, error_body, error_body_of, retry_after_s
from comfyui.models import OutputFile, PromptResult
from comfyui.outputs.delivery import Order
from comfyui.owners import owner_of
from comfyui.web.api.rendering import MAX_OUTPUTS_BYTES
from comfyui.web.front.forwarded import prefix_of
from comfyui.web.front.gateway_state import GatewayState
from comfyui.web.front.request_state import state_of
from comfyui.web.mcp.options import McpOptions

_log = structlog.get_logger(__name__)


def answered(body: Mapping[str, Any]) -> CallToolResult:
    """A result that is JSON alone."""
    return CallToolResult(content=[_text(jsonio.dumps(body))])


def failed(error: ComfyUIError, request: Request) -> CallToolResult:
    """An error of ours: what went wrong and what to do, which a model can act on."""
    body: dict[str, Any] = {**error_body_of(error, request_id=state_of(request.scope).request_id)}
    if (seconds := retry_after_s(error)) is not None:
        body["retry_after_seconds"] = seconds
    return CallToolResult(content=[_text(jsonio.dumps(body))], is_error=True)


def refused(detail: str, request: Request) -> CallToolResult:
    """The key of this request may not do that."""
    request_id = state_of(request.scope).request_id
    body = error_body(title="Forbidden", code="forbidden", detail=detail, request_id=request_id)
    return CallToolResult(content=[_text(jsonio.dumps(body))], is_error=True)


@dataclass(frozen=True, slots=True)
class Results:
    """Makes the answers about results of jobs, for the caller of one request."""

    gateway: GatewayState
    request: Request
    options: McpOptions

    async def finished(self, result: PromptResult, order: Order, deadline: float) -> CallToolResult:
        """The JSON of the result, small pictures of its pictures, and a link to each file.

        Args:
            deadline: in the loop's time. Files that are not in the requested store by then are given up.
        """
        options = self.options
        shown = replace(result, files=result.files[: options.files])
        delivery = result.delivery
        if delivery is not None:
            shown = replace(shown, delivery=replace(delivery, files=delivery.files[: options.files]))
        entries = await self.gateway.deliverer.entries(shown, order, deadline=deadline)
        entries = [self._linked(entry) for entry in entries]
        content: list[ContentBlock] = [_text(await self._json(shown, entries))]
        if more := len(result.files) - len(shown.files):
            content.append(TextContent(text=f"{more} further files are not listed: see GET /prompt_sync/{{prompt_id}}"))
        pictures = [file for file in shown.files if file.content_type.startswith("image/")][: options.pictures]
        content += await self._pictures(shown, pictures)
        content += [
            ResourceLink(uri=entry["url"], name=entry["filename"], mime_type=entry["content_type"])
            for entry in entries
            if "error" not in entry
        ]
        return CallToolResult(content=content)

    async def _json(self, result: PromptResult, entries: list[FileEntry]) -> bytes:
        """Without ComfyUI's own outputs if they are long; the answer then says so."""
        for with_outputs in (True, False):
            body = bytearray()
            pieces = self.gateway.deliverer.json(result, entries, Order(), with_outputs=with_outputs)
            async for piece in pieces:
                body += piece
                if with_outputs and len(body) > MAX_OUTPUTS_BYTES:
                    await pieces.aclose()
                    break
            else:
                break
        return bytes(body)

    async def _pictures(self, result: PromptResult, files: Sequence[OutputFile]) -> list[ImageContent]:
        """The pictures that can be made in time."""
        if not files:
            return []
        tasks = [asyncio.create_task(self._picture(result, file), name="picture of a tool") for file in files]
        try:
            await asyncio.wait(tasks, timeout=self.options.pictures_s)
            return [made for task in tasks if task.done() and (made := task.result()) is not None]
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    async def _picture(self, result: PromptResult, file: OutputFile) -> ImageContent | None:
        max_bytes = self.options.picture_chars // 4 * 3
        try:
            made = await self.gateway.deliverer.preview(result, file, max_bytes)
        except ComfyUIError as error:
            _log.info("mcp.no_picture", prompt_id=result.prompt_id, filename=file.filename, detail=error.detail)
            return None
        return ImageContent(data=pybase64.b64encode_as_string(made), mime_type="image/webp")

    def _linked(self, entry: FileEntry) -> FileEntry:
        """The entry with an address that the caller's browser can open, without a key in it. A store's address already
        is one.
        """
        if "bucket" in entry:
            return entry
        file = entry["url"].removeprefix(self.gateway.options.public_url)
        caller = state_of(self.request.scope).caller
        owner = None if caller is None else owner_of(caller.rules.name)
        link = self.gateway.tickets.link(owner, file)
        if self.gateway.options.public_url:
            return {**entry, "url": link}
        request = self.request
        host = request.headers.get("host", "")
        return {**entry, "url": f"{request.url.scheme}://{host}{prefix_of(request.scope)}{link}"}


def _text(body: bytes) -> TextContent:
    return TextContent(text=body.decode())
