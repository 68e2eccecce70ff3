"""The answers of OpenAI's image API: pictures as base64 that streams, or as addresses."""

from __future__ import annotations

import io
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass

import imagesize

from comfyui import jsonio
from comfyui.models import ImageConversion, OutputFile, PromptResult
from comfyui.outputs.base64_pieces import Base64Pieces
from comfyui.outputs.delivery import Deliverer, Order
from comfyui.outputs.history import OutputContent

_ENDINGS = {"image/png": "png", "image/jpeg": "jpg", "image/webp": "webp", "image/gif": "gif", "image/avif": "avif"}


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture that a call made: the file, and its number among the pictures of its prompt."""

    result: PromptResult
    file: OutputFile
    index: int


@dataclass(slots=True)
class Facts:
    """The facts about the first picture, read while it is sent: its format by OpenAI's name, and WIDTHxHEIGHT."""

    output_format: str = ""
    size: str = ""

    def look(self, content: OutputContent, head: bytes) -> None:
        """Take them from the picture's first bytes, unless they are known."""
        if self.output_format:
            return
        self.output_format = _format_of(content.content_type)
        width, height = imagesize.get(io.BytesIO(head))
        if width > 0 and height > 0:
            self.size = f"{width}x{height}"

    def members(self) -> dict[str, str]:
        known = {"output_format": self.output_format, "size": self.size}
        return {name: value for name, value in known.items() if value}


def pictures_of(result: PromptResult) -> list[Picture]:
    """The pictures of a result, without previews if there are others."""
    pictures = [file for file in result.files if file.content_type.startswith("image/")]
    kept = [file for file in pictures if file.type == "output"]
    return [Picture(result, file, index) for index, file in enumerate(kept or pictures)]


def ending_of(picture: Picture, convert: ImageConversion | None) -> str:
    """The ending of the picture's address, by the format that it has there."""
    if convert is not None:
        return _ENDINGS[f"image/{convert.format}"]
    return _ENDINGS.get(picture.file.content_type, "png")


async def base64_answer(
    deliverer: Deliverer, pictures: Sequence[Picture], convert: ImageConversion | None, created: int
) -> AsyncGenerator[bytes, None]:
    """The JSON with the bytes of each picture, in pieces.

    Raises:
        ComfyUIError: a picture cannot be read; if it is the first one, before the first piece.
    """
    facts = Facts()
    opening = b'{"created":%d,"data":[' % created
    for picture in pictures:
        async with aclosing(base64_of(deliverer, picture, convert, facts)) as pieces:
            opening += b'{"b64_json":"'
            async for piece in pieces:
                yield opening + piece
                opening = b""
        opening += b'"},'
    yield opening.removesuffix(b",") + b"]," + jsonio.dumps(facts.members())[1:]


async def base64_of(
    deliverer: Deliverer, picture: Picture, convert: ImageConversion | None, facts: Facts
) -> AsyncGenerator[bytes, None]:
    """The base64 text of one picture in pieces; `facts` learns from its first bytes. Raises `ComfyUIError`."""
    async with deliverer.open(picture.result, picture.file, Order(convert=convert)) as content:
        text = Base64Pieces()
        async for chunk in content.body:
            facts.look(content, chunk)
            if piece := text.feed(chunk):
                yield piece
        yield text.end()


def url_answer(
    pictures: Sequence[Picture], convert: ImageConversion | None, created: int, link: Callable[[str], str]
) -> dict[str, object]:
    """The JSON with an address for each picture.

    Args:
        pictures: one at least.
        link: makes an address that needs no key of a path of ours.
    """
    quality = "" if convert is None or convert.quality is None else f"?quality={convert.quality}"
    paths = [
        f"/v1/images/{picture.result.prompt_id}/{picture.index}.{ending_of(picture, convert)}{quality}"
        for picture in pictures
    ]
    output_format = _format_of(pictures[0].file.content_type) if convert is None else convert.format
    return {"created": created, "output_format": output_format, "data": [{"url": link(path)} for path in paths]}


def _format_of(content_type: str) -> str:
    """OpenAI's name of a picture's format: ``png`` for ``image/png``."""
    return content_type.partition("/")[2]
