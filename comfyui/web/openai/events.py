"""Pictures as OpenAI's events: previews while they are made, then each picture."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pybase64
import structlog

from comfyui import jsonio
from comfyui.events import Event, Preview
from comfyui.exceptions import ComfyUIError
from comfyui.models import ImageConversion
from comfyui.named.model_names import ModelKind
from comfyui.outputs.delivery import Deliverer
from comfyui.web.api.sse import KEEP_ALIVE, moments
from comfyui.web.front.openai_errors import envelope_of
from comfyui.web.openai.answers import Facts, Picture, base64_of

_log = structlog.get_logger(__name__)
_PREFIX: dict[ModelKind, str] = {"generations": "image_generation", "edits": "image_edit"}


class Previews:
    """The previews that a client has still to be told: the newest one, as many times as it wants. A listener."""

    def __init__(self, wanted: int) -> None:
        self._left = wanted
        self._newest: Preview | None = None
        self._news = asyncio.Event()

    def __call__(self, event: Event) -> None:
        if isinstance(event, Preview) and self._left:
            self._newest = event
            self._news.set()

    async def news(self) -> None:
        """Returns when there is one to tell."""
        await self._news.wait()

    def take(self) -> Preview | None:
        """The preview to send; None if there is none."""
        found, self._newest = self._newest, None
        self._news.clear()
        self._left -= found is not None
        return found


async def picture_events(
    working: asyncio.Task[list[Picture]],
    previews: Previews,
    deliverer: Deliverer,
    *,
    kind: ModelKind,
    convert: ImageConversion | None,
    created: int,
    keep_alive_s: float,
) -> AsyncGenerator[bytes, None]:
    """The events as they come, a comment when there are none for `keep_alive_s`, and at last the pictures or the error.

    Args:
        working: makes the pictures. Its creator cancels it.

    Raises:
        ComfyUIError: a picture broke off after its first piece.
    """
    index = 0
    async with aclosing(moments(working, previews.news, keep_alive_s)) as each:
        async for has_news in each:
            if not has_news:
                yield KEEP_ALIVE
            elif (preview := previews.take()) is not None:
                name = f"{_PREFIX[kind]}.partial_image"
                told = {
                    "type": name,
                    "b64_json": pybase64.b64encode(preview.image).decode("ascii"),
                    "partial_image_index": index,
                    "created_at": created,
                    "output_format": preview.content_type.partition("/")[2],
                }
                yield b"event: %s\ndata: %s\n\n" % (name.encode(), jsonio.dumps(told))
                index += 1
    try:
        for picture in working.result():
            async with aclosing(_completed(picture, deliverer, kind, convert, created)) as pieces:
                async for piece in pieces:
                    yield piece
    except ComfyUIError as error:
        _log.info("request.failed", type=error.code, status=error.status, detail=error.detail)
        yield b"event: error\ndata: " + jsonio.dumps(envelope_of(error)[1]) + b"\n\n"


async def _completed(
    picture: Picture, deliverer: Deliverer, kind: ModelKind, convert: ImageConversion | None, created: int
) -> AsyncGenerator[bytes, None]:
    name, facts = f"{_PREFIX[kind]}.completed", Facts()
    opening = b"event: %s\ndata: " % name.encode()
    opening += jsonio.dumps({"type": name, "created_at": created})[:-1] + b',"b64_json":"'
    async with aclosing(base64_of(deliverer, picture, convert, facts)) as pieces:
        async for piece in pieces:
            yield opening + piece
            opening = b""
    members = jsonio.dumps(facts.members())[1:-1]
    yield b'"' + (b"," + members if members else b"") + b"}\n\n"
