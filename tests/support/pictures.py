"""Pictures as the bytes of a file."""

from __future__ import annotations

import io
from typing import Any

from PIL import Image


def encoded(image: Image.Image, format_name: str = "PNG", **options: Any) -> bytes:
    """The picture in a format of Pillow, with options of its writer."""
    buffer = io.BytesIO()
    image.save(buffer, format_name, **options)
    return buffer.getvalue()


def picture(color: str | tuple[int, ...] = "red", mode: str = "RGB", size: tuple[int, int] = (8, 6)) -> bytes:
    """A PNG of one colour."""
    return encoded(Image.new(mode, size, color))


RED, GREEN, BLUE = picture((255, 0, 0)), picture((0, 255, 0)), picture((0, 0, 255))


def color_of(content: bytes) -> Any:
    """Red, green and blue of the first pixel."""
    with Image.open(io.BytesIO(content)) as image:
        return image.convert("RGB").getpixel((0, 0))
