"""Still images in another format, by Pillow. Imports nothing of ours: a large image is converted in its own process.

``python -I pictures.py FORMAT QUALITY METADATA MAX_PIXELS`` reads the file from its input and writes the converted one;
with exit status `NOT_CONVERTED` it writes the reason instead.

ComfyUI writes the workflow into its files, in PNG as text and in WebP as EXIF (tags 0x0110 ``prompt:…`` and 0x010f
``workflow:…``), which its editor reads again. Kept metadata goes from the one into the other form.
"""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

# The formats that are read, by name. Pillow knows many more, and passes some of them (EPS, WMF) to other programs.
READABLE = ("PNG", "JPEG", "WEBP", "AVIF", "GIF", "BMP", "TIFF")
NOT_CONVERTED = 3
_QUALITY = 90
_NO_ALPHA = frozenset({"jpeg"})
# EXIF: 0x0110 Model and 0x010f Make downwards, as ComfyUI's SaveAnimatedWEBP numbers them.
_EXIF_PROMPT, _EXIF_FIRST_OTHER = 0x0110, 0x010F
_EXIF_TEXTS = range(0x0100, 0x0110)
_LONGEST_EXIF = 65_533 - 8  # of a JPEG's segment
# Bytes for each pixel while it is converted: of an opaque 8-bit picture, and of any other. Measured as the largest
# resident size of the process, and rounded up; `tests/gateway/test_outputs_convert_bounds.py` holds them.
_BYTES_PER_PIXEL = {"jpeg": (10, 22), "webp": (28, 32), "png": (10, 14), "avif": (32, 40)}
# Bytes of a process that has loaded Pillow.
_BYTES_AT_LEAST = 40_000_000
PREVIEW, THUMBNAIL = "preview", "thumbnail"
"""Two kinds of small pictures: for a model that looks at a result, and for a list of many.

Replaces a format, for the process: the quality is then the largest number of bytes.
"""
PREVIEWS = ((512, 70), (512, 55), (512, 40), (384, 40), (256, 40))
"""The longest side in pixels, and the quality of WebP."""
SIZES = {PREVIEW: PREVIEWS, THUMBNAIL: ((320, 72), (320, 50), (240, 40), (160, 40))}
# Most colour profiles are smaller, and one that is larger would be the most of a preview.
_LONGEST_PREVIEW_PROFILE = 4096
_PLAIN_MODES = frozenset({"RGB", "L", "1", "P", "YCbCr"})


class NotConvertedError(Exception):
    """The text is the reason that the client is told."""


class Wanted(Protocol):
    """`models.ImageConversion`."""

    @property
    def format(self) -> str: ...
    @property
    def quality(self) -> int | None: ...
    @property
    def metadata(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Look:
    """The work for a file, by its header: its pixels, and about how many bytes of memory the conversion takes."""

    pixels: int
    memory: int


def look(data: bytes, wanted: Wanted, max_pixels: int) -> Look:
    """Reads the header only. Raises `NotConvertedError`."""
    with _opened(data, wanted, max_pixels) as image:
        pixels = image.width * image.height
        plain, other = _BYTES_PER_PIXEL[wanted.format]
        is_plain = image.mode in _PLAIN_MODES and not image.has_transparency_data
        return Look(pixels, _BYTES_AT_LEAST + pixels * (plain if is_plain else other) + 2 * len(data))


def convert(data: bytes, wanted: Wanted, max_pixels: int) -> bytes:
    """Converts the image; blocks meanwhile. Raises `NotConvertedError`."""
    with _opened(data, wanted, max_pixels) as image:
        return _encoded(image, wanted)


def look_at_preview(data: bytes, max_pixels: int) -> Look:
    """The same as `look`, for `preview`."""
    with _opened(data, None, max_pixels) as image:
        pixels = image.width * image.height
        return Look(pixels, _BYTES_AT_LEAST + pixels * max(_BYTES_PER_PIXEL["webp"]) + 2 * len(data))


def preview(data: bytes, max_bytes: int, max_pixels: int, kind: str = PREVIEW) -> bytes:
    """A small WebP of a picture with at most `max_bytes`, in the first of the kind's `SIZES` that fits; for an
    animation, of the first frame. Blocks meanwhile. Raises `NotConvertedError`.
    """
    with _opened(data, None, max_pixels) as image:
        largest = SIZES[kind][0][0]
        image.draft(None, (largest, largest))  # a JPEG is read at the size that is wanted, or nearly
        picture = _in_mode_of(ImageOps.exif_transpose(image), "webp")
        profile = image.info.get("icc_profile") or b""
        profile = profile if len(profile) <= _LONGEST_PREVIEW_PROFILE else b""
        for side, quality in SIZES[kind]:
            picture.thumbnail((side, side))
            buffer = io.BytesIO()
            picture.save(buffer, "WEBP", quality=quality, icc_profile=profile)
            if buffer.tell() <= max_bytes:
                return buffer.getvalue()
    raise NotConvertedError(f"even {side} pixels of it take more than {max_bytes / 1000:g} KB")


@contextmanager
def _opened(data: bytes, wanted: Wanted | None, max_pixels: int) -> Iterator[Image.Image]:
    """The image; Pillow's errors about it become ours. `wanted`: None for a preview, which any picture has."""
    try:
        with Image.open(io.BytesIO(data), formats=READABLE) as image:
            if wanted is not None and getattr(image, "is_animated", False):
                raise NotConvertedError("animated")
            if image.width * image.height > max_pixels:
                raise NotConvertedError(_too_many(max_pixels))
            if wanted is not None and _is_so_already(image, wanted):
                raise NotConvertedError(f"{wanted.format} already")
            yield image
    except NotConvertedError:
        raise
    except UnidentifiedImageError:
        raise NotConvertedError("the gateway cannot read this image format") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise NotConvertedError(_too_many(max_pixels)) from None
    except Exception as error:
        # Damaged files make Pillow's readers raise nearly anything: struct.error, IndexError, zlib.error, MemoryError.
        raise NotConvertedError(f"the image could not be converted: {type(error).__name__}") from error


def _too_many(max_pixels: int) -> str:
    return f"more than {max_pixels / 1e6:g} megapixels"


def _is_so_already(image: Image.Image, wanted: Wanted) -> bool:
    wants_more = wanted.metadata == "strip" or (wanted.quality is not None and wanted.format != "png")
    return (image.format or "").lower() == wanted.format and not wants_more


def _encoded(image: Image.Image, wanted: Wanted) -> bytes:
    options: dict[str, Any] = {}
    if icc_profile := image.info.get("icc_profile"):
        options["icc_profile"] = icc_profile  # no metadata: without it the colours are others
    texts = dict(getattr(image, "text", {}))
    exif = image.getexif()
    picture = image
    if wanted.metadata == "strip":
        picture = ImageOps.exif_transpose(image)  # what EXIF only said must now be so
        # Some of Pillow's writers take comments and more from here.
        picture.info = {key: value for key, value in picture.info.items() if key == "transparency"}
    elif wanted.format == "png":
        options["pnginfo"] = _png_texts(texts or _texts_of(exif))
        options["exif"] = exif
    else:
        options["exif"] = _with_texts(exif, texts, wanted.format)
    if wanted.format != "png":
        options["quality"] = _QUALITY if wanted.quality is None else wanted.quality
    buffer = io.BytesIO()
    _in_mode_of(picture, wanted.format).save(buffer, wanted.format.upper(), **options)
    return buffer.getvalue()


def _in_mode_of(image: Image.Image, target: str) -> Image.Image:
    """The image in a mode that the format can hold; jpeg has no transparency, so transparent parts become white."""
    if image.mode.startswith("I;16") or image.mode in {"I", "F"}:
        if target == "png" and image.mode != "F":
            return image.convert("I;16")
        # 16 bits per pixel; Pillow would cut values above 255 off instead of scaling them.
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
    """The inverse: only texts that look like a workflow become text, the rest stays EXIF."""
    texts = {}
    for tag in (_EXIF_PROMPT, *sorted(_EXIF_TEXTS, reverse=True)):
        key, colon, value = str(exif.get(tag, "")).partition(":")
        if colon and value.startswith(("{", "[")):
            texts[key] = value
            del exif[tag]
    return texts


@dataclass(frozen=True, slots=True)
class _Arguments:
    format: str
    quality: int | None
    metadata: str


def main(arguments: list[str]) -> int:
    """The process of one conversion, or of one preview."""
    name, quality, metadata, max_pixels = arguments
    os.nice(5)  # smaller work goes first
    data = sys.stdin.buffer.read()
    try:
        if name in SIZES:
            result = preview(data, int(quality), int(max_pixels), name)
        else:
            wanted = _Arguments(name, int(quality) if quality else None, metadata)
            result = convert(data, wanted, int(max_pixels))
        status = 0
    except NotConvertedError as error:
        result, status = str(error).encode(), NOT_CONVERTED
    sys.stdout.buffer.write(result)
    sys.stdout.buffer.flush()
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
