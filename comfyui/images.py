"""Still images in another format, by Pillow in threads: what is too large, animated or no image passes unchanged.

ComfyUI writes the workflow into its files, in PNG as text and in WebP as EXIF (tags 0x0110 ``prompt:…`` and 0x010f
``workflow:…``), which its editor reads again. Kept metadata goes from the one into the other form.
"""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from comfyui.models import ImageConversion, content_type_of
from comfyui.outputs import OutputContent

_QUALITY = 90
_CHUNK = 1 << 18
_NO_ALPHA = frozenset({"jpeg"})
_EXTENSIONS = {"webp": ".webp", "jpeg": ".jpg", "png": ".png", "avif": ".avif"}
# EXIF: 0x0110 Model and 0x010f Make downwards, as ComfyUI's SaveAnimatedWEBP numbers them.
_EXIF_PROMPT, _EXIF_FIRST_OTHER = 0x0110, 0x010F
_EXIF_TEXTS = range(0x0100, 0x0110)
_LONGEST_EXIF = 65_533 - 8  # of a JPEG's segment


class _NotConvertedError(Exception):
    """The text is the reason that the client is told."""


@dataclass(frozen=True, slots=True)
class ConversionLimits:
    """What is larger passes unchanged: a small file can be an image that fills the memory.

    Attributes:
        at_once: conversions at the same time; the others wait. Each takes up to some 8 bytes per pixel.
    """

    max_bytes: int = 100_000_000
    max_pixels: int = 80_000_000
    at_once: int = 2


class ImageConverter:
    """One per gateway."""

    def __init__(self, limits: ConversionLimits | None = None) -> None:
        self._limits = limits or ConversionLimits()
        self._slots = asyncio.Semaphore(self._limits.at_once)

    @asynccontextmanager
    async def converted(self, content: OutputContent, conversion: ImageConversion) -> AsyncIterator[OutputContent]:
        """`content` in the other format, or as it is with the reason in its ``notes``."""
        if not content.content_type.startswith("image/"):
            yield _unchanged(content, "not an image")
            return
        async with self._slots:  # not while the client takes it: a slow one would hold up the others
            data, beginning = await self._read(content)
            try:
                if data is None:
                    raise _NotConvertedError(f"larger than {self._limits.max_bytes / 1e6:g} MB")
                converted = await asyncio.to_thread(convert, data, conversion, self._limits.max_pixels)
            except _NotConvertedError as error:
                converted, reason = None, str(error)
        if converted is None:
            pieces = _all(beginning, content.chunks) if data is None else _pieces(data)
            yield replace(_unchanged(content, reason), pieces=pieces)
            return
        del data
        name = str(PurePosixPath(content.filename).with_suffix(_EXTENSIONS[conversion.format]))
        yield OutputContent(name, content_type_of(name), len(converted), _pieces(converted), {"converted": True})

    async def _read(self, content: OutputContent) -> tuple[bytes | None, bytes]:
        """The whole file; or None, and what was read of one that is too large."""
        limit = self._limits.max_bytes
        if content.length is not None and content.length > limit:
            return None, b""
        data = bytearray()
        async for chunk in content.chunks:
            data += chunk
            if len(data) > limit:
                return None, bytes(data)
        return bytes(data), b""


def _unchanged(content: OutputContent, reason: str) -> OutputContent:
    return replace(content, notes={**content.notes, "converted": False, "reason": reason})


async def _all(start: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield start
    async for chunk in rest:
        yield chunk


async def _pieces(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), _CHUNK):
        yield data[start : start + _CHUNK]


def convert(data: bytes, conversion: ImageConversion, max_pixels: int) -> bytes:
    """Blocks for as long as it takes. Raises an error of this module whose text says why it was not converted."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            if getattr(image, "is_animated", False):
                raise _NotConvertedError("animated")
            if image.width * image.height > max_pixels:
                raise _NotConvertedError(f"more than {max_pixels / 1e6:g} megapixels")
            if _is_so_already(image, conversion):
                raise _NotConvertedError(f"{conversion.format} already")
            return _encoded(image, conversion)
    except UnidentifiedImageError:
        raise _NotConvertedError("not an image format that can be read here") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _NotConvertedError(f"more than {max_pixels / 1e6:g} megapixels") from None
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise _NotConvertedError(f"the image could not be converted: {type(error).__name__}") from error


def _is_so_already(image: Image.Image, conversion: ImageConversion) -> bool:
    wants_more = conversion.metadata == "strip" or (conversion.quality is not None and conversion.format != "png")
    return (image.format or "").lower() == conversion.format and not wants_more


def _encoded(image: Image.Image, conversion: ImageConversion) -> bytes:
    options: dict[str, Any] = {}
    if icc_profile := image.info.get("icc_profile"):
        options["icc_profile"] = icc_profile  # no metadata: without it the colours are others
    texts = dict(getattr(image, "text", {}))
    exif = image.getexif()
    picture = image
    if conversion.metadata == "strip":
        picture = ImageOps.exif_transpose(image)  # what EXIF only said must now be so
        # Some of Pillow's writers take comments and more from here.
        picture.info = {key: value for key, value in picture.info.items() if key == "transparency"}
    elif conversion.format == "png":
        options["pnginfo"] = _png_texts(texts or _texts_of(exif))
        options["exif"] = exif
    else:
        options["exif"] = _with_texts(exif, texts, conversion.format)
    if conversion.format != "png":
        options["quality"] = _QUALITY if conversion.quality is None else conversion.quality
    buffer = io.BytesIO()
    _in_mode_of(picture, conversion.format).save(buffer, conversion.format.upper(), **options)
    return buffer.getvalue()


def _in_mode_of(image: Image.Image, target: str) -> Image.Image:
    """In a mode that the format can hold; jpeg knows no transparency, so what shows through is white."""
    if image.mode.startswith("I;16") or image.mode in {"I", "F"}:
        if target == "png" and image.mode != "F":
            return image.convert("I;16")
        # 16 bits a pixel; Pillow would cut what is above 255 off instead of scaling it.
        scale = 1 / 257 if image.mode != "F" else 1.0
        return image.convert("F").point(lambda value: value * scale).convert("L")
    see_through = image.has_transparency_data
    if target in _NO_ALPHA and see_through:
        layer = image.convert("RGBA")
        background = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(background, layer).convert("RGB")
    if target == "png" and image.mode in {"1", "L", "LA", "P", "RGB", "RGBA"}:
        return image
    if target == "jpeg" and image.mode in {"L", "CMYK"}:
        return image
    wanted = "RGBA" if see_through else "RGB"
    return image if image.mode == wanted else image.convert(wanted)


def _png_texts(texts: dict[str, str]) -> PngInfo:
    info = PngInfo()
    for key, value in texts.items():
        info.add_text(key, str(value))
    return info


def _with_texts(exif: Image.Exif, texts: dict[str, str], target: str) -> Image.Exif:
    """PNG's texts as EXIF, the way ComfyUI writes them; as many as the format can hold."""
    others = iter(sorted(_EXIF_TEXTS, reverse=True))
    for key, value in texts.items():
        tag = _EXIF_PROMPT if key == "prompt" else next(others, None)
        if tag is None:
            break
        previous = exif.get(tag)
        exif[tag] = f"{key}:{_ascii(value)}"
        if target == "jpeg" and len(exif.tobytes()) > _LONGEST_EXIF:
            del exif[tag]
            if previous is not None:
                exif[tag] = previous
    return exif


def _ascii(text: str) -> str:
    """EXIF's texts are ASCII; these are JSON, which can say every letter with that."""
    return text if text.isascii() else "".join(c if c.isascii() else json.dumps(c)[1:-1] for c in text)


def _texts_of(exif: Image.Exif) -> dict[str, str]:
    """And back: only what looks like a workflow is text, the rest stays EXIF."""
    texts = {}
    for tag in (_EXIF_PROMPT, *sorted(_EXIF_TEXTS, reverse=True)):
        key, colon, value = str(exif.get(tag, "")).partition(":")
        if colon and value.startswith(("{", "[")):
            texts[key] = value
            del exif[tag]
    return texts
