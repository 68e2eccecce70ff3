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
