"""Async jobs that bring pictures, and their results."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import sqlite3
from pathlib import Path
from typing import Any

import aiohttp
from PIL import Image

from comfyui.jobs.journal.rows import unpacked
from tests.support.jobs import ASYNC
from tests.support.running import invert_workflow, sleep_workflow

Color = tuple[int, int, int]
JOURNAL_FILES = ("jobs.sqlite3", "jobs.sqlite3-wal")


def picture(color: Color, size: int = 16) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (size, size), color).save(buffer, "PNG")
    return buffer.getvalue()


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def data_uri(data: bytes, media_type: str = "image/png") -> str:
    return f"data:{media_type};base64,{b64(data)}"


def loading(value: str = "photo.png") -> dict[str, Any]:
    """A workflow that inverts the image of its loader."""
    workflow = invert_workflow()
    workflow["1"] = {"class_type": "LoadImage", "inputs": {"image": value}}
    return workflow


def by_image(content: str, name: str = "photo.png") -> dict[str, Any]:
    """A body with one input in `images`."""
    return {"prompt": loading(name), "images": [{"name": name, "image": content}]}


def form_of(workflow: dict[str, Any], files: dict[str, bytes], **fields: str) -> aiohttp.FormData:
    data = aiohttp.FormData()
    data.add_field("workflow", json.dumps(workflow), content_type="application/json")
    for name, content in files.items():
        data.add_field("images", io.BytesIO(content), filename=name, content_type="image/png")
    for name, value in fields.items():
        data.add_field(name, value)
    return data


async def post(http: aiohttp.ClientSession, body: Any) -> tuple[int, Any]:
    """Posts a body or a form as an async call; returns status and JSON."""
    # aiohttp warns of a long body that is not a file.
    data = body if isinstance(body, aiohttp.FormData) else io.BytesIO(json.dumps(body).encode())
    async with http.post("/prompt_sync", headers=ASYNC, data=data) as response:
        return response.status, await response.json()


async def taken(http: aiohttp.ClientSession, body: Any) -> str:
    """Submits a job and returns its id."""
    status, answer = await post(http, body)
    assert status == 202, answer
    return str(answer["prompt_id"])


async def blocked(http: aiohttp.ClientSession, seconds: float = 3) -> list[str]:
    """Submits as many jobs as one server takes, so that later jobs wait in the gateway; returns their ids."""
    return [await taken(http, {"prompt": sleep_workflow(seconds if tag == 0 else 0.01, tag=tag)}) for tag in range(4)]


async def inverted(http: aiohttp.ClientSession, prompt_id: str, timeout_s: float = 30) -> Color:
    """The color of the job's input, computed from its result."""
    async with http.get(f"/prompt_sync/{prompt_id}?timeout={timeout_s}&return_image_base64=true") as response:
        body = await response.json()
        assert response.status == 200, body
    with Image.open(io.BytesIO(base64.b64decode(body["images"][0]["base64"]))) as image:
        red, green, blue = image.convert("RGB").getpixel((0, 0))  # type: ignore[misc]
        return 255 - red, 255 - green, 255 - blue


def files_of(state: Path) -> dict[str, bytes]:
    """The content of the input store by path."""
    found = {}
    for path in sorted((state / "inputs").glob("*")):
        with contextlib.suppress(FileNotFoundError):  # the gateway removed it meanwhile
            found[path.name] = path.read_bytes()
    return found


def journal_has(state: Path, *texts: str) -> bool:
    """Whether the bodies in the journal contain any of the texts."""
    with sqlite3.connect(f"file:{state / JOURNAL_FILES[0]}?mode=ro", uri=True) as database:
        bodies = [unpacked(data) or b"" for (data,) in database.execute("SELECT data FROM bodies")]
    database.close()
    return any(text.encode() in body for text in texts for body in bodies)
