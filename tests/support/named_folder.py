"""A folder of named workflows that the embedded engine runs quickly, and calls of them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import aiohttp
from PIL import Image

from tests.support.named import node, write

FLAT = {
    "1": node("EmptyImage", width=16, height=12, batch_size=1, color=0),
    "2": node("SaveImage", "output:picture", images=["1", 0], filename_prefix="flat"),
    "3": node("PreviewImage", "beside", images=["1", 0]),
}
"""Makes a flat picture, and a preview that is not among the named outputs."""
FLAT_PARAMETERS = """
title = "Flat"
description = "A picture of one colour."
[parameters.seed]
node = "1"
input = "color"
maximum = 16777215
[parameters.width]
node = "1"
input = "width"
minimum = 1
maximum = 64
[parameters.prompt]
node = "2"
input = "filename_prefix"
default = "flat"
"""
INVERTED = {
    "1": node("LoadImage", "$image", image="none.png"),
    "2": node("ImageInvert", image=["1", 0]),
    "3": node("SaveImage", images=["2", 0], filename_prefix="inverted"),
}
"""Makes the negative of a picture."""


def named_folder(folder: Path) -> Path:
    """Writes the workflows `flat` and `inverted`, and `broken`, which cannot be used; returns the folder."""
    write(folder, "flat", FLAT, FLAT_PARAMETERS)
    write(folder, "inverted", INVERTED, "[parameters.image]\nrequired = true\n")
    write(folder, "broken", FLAT, '[parameters.colour]\nnode = "77"\ninput = "color"\n')
    return folder


def png(color: str = "white") -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (8, 6), color).save(content, "PNG")
    return content.getvalue()


async def run(http: aiohttp.ClientSession, name: str, values: Any, **asked: Any) -> tuple[int, Any]:
    """Status and JSON of one run."""
    async with http.post(f"/workflows/{name}", json=values, **asked) as response:
        return response.status, await response.json()
