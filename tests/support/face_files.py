"""Pictures of prompts, made and read through ComfyUI's face of a gateway."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from PIL import Image

from tests.support.faces import Face
from tests.support.keys import ROOT, bearer
from tests.support.running import engines, running_gateway
from tests.support.target import inverted, node


@asynccontextmanager
async def three(keys_path: Path | None = None, **settings: Any) -> AsyncIterator[Face]:
    """A gateway in front of three servers, with an admin's key if it needs keys."""
    if keys_path is not None:
        settings["keys_file"] = keys_path
    async with engines(3) as servers, running_gateway(*(one.url for one in servers), **settings) as gateway:
        yield Face(gateway, servers, {} if keys_path is None else bearer(ROOT))


def reading(name: str) -> dict[str, Any]:
    """A workflow that loads the picture `name` and saves it with the same colours."""
    return {"1": node("LoadImage", image=name), "2": node("SaveImage", images=["1", 0], filename_prefix="read")}


async def view(face: Face, query: str, key: str | None = None, **headers: str) -> tuple[int, bytes]:
    """Status and body of `/view` for the query, by default with the admin's key."""
    sent = {**(face.headers if key is None else bearer(key)), **headers}
    async with face.gateway.http.get(f"/view?{query}", headers=sent) as response:
        return response.status, await response.read()


def query_of(file: dict[str, str], **more: str) -> str:
    """The query of `/view` for a file of an answer."""
    named = {name: file[name] for name in ("filename", "subfolder", "type")}
    return urlencode({**named, **more})


def color_of(picture: bytes) -> int:
    """The `color` that was given to `inverted`, read from the first pixel of its picture."""
    with Image.open(io.BytesIO(picture)) as image:
        red, green, blue = image.convert("RGB").getpixel((0, 0))  # type: ignore[misc]
    return 0xFFFFFF - (red << 16 | green << 8 | blue)


def only_file(entry: dict[str, Any], node_id: str = "3") -> dict[str, str]:
    (file,) = entry["outputs"][node_id]["images"]
    found: dict[str, str] = file
    return found


async def sync(face: Face, color: int, key: str | None = None, **fields: Any) -> dict[str, Any]:
    """The answer of `/prompt_sync` for a picture of this colour; `color_of` reads the colour back."""
    headers = face.headers if key is None else bearer(key)
    body = {"prompt": inverted("ComfyUI", color=color), **fields}
    async with face.gateway.http.post("/prompt_sync", json=body, headers=headers) as response:
        assert response.status == 200, await response.text()
        answer: dict[str, Any] = await response.json()
        return answer
