"""Jobs whose output files have a name and content chosen by a test."""

from __future__ import annotations

import asyncio
import io
from typing import Any

from PIL import Image

from comfyui.engine import Engine
from tests.support.engine_workflows import writing
from tests.support.keys import bearer
from tests.support.running import RunningGateway
from tests.support.target import node

Node = dict[str, Any]
SCRIPTED_SVG = (
    b'<svg xmlns="http://www.w3.org/2000/svg" width="40" height="40"><script>'
    b"top.ran = 1; fetch('/prompt_sync')</script><rect width='40' height='40' fill='red' onclick='top.ran = 2'/></svg>"
)
SCRIPTED_PAGE = b"<!doctype html><script>top.ran = 1; window.ran = 1; fetch('/prompt_sync')</script><p>a page</p>"


def png(color: str = "red", width: int = 640, height: int = 400) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), color).save(buffer, "PNG")
    return buffer.getvalue()


def simulated_output(
    size: int = 1000, *, count: int = 1, extension: str = "mp4", key: str = "video", prefix: str = "big"
) -> Node:
    """A node that writes `count` files of `size` bytes each; `simulated_bytes` gives their content."""
    return node("SimulatedOutput", size=size, count=count, extension=extension, output_key=key, filename_prefix=prefix)


def simulated_bytes(size: int) -> bytes:
    return (bytes(range(256)) * (size // 256 + 1))[:size]


async def made_file(
    gateway: RunningGateway, engine: Engine, extension: str, content: bytes, *, key: str | None = None
) -> str:
    """Runs a job that writes one file with this content; returns the job's id."""
    before = set(engine.folders.output.rglob("*"))
    body = {"prompt": writing(extension=extension, size=len(before) + 1)}
    async with gateway.http.post("/prompt_sync", json=body, headers=bearer(key) if key else {}) as response:
        answer = await response.json()
        assert response.status == 200, answer
    (written,) = [path for path in set(engine.folders.output.rglob("*")) - before if path.suffix == f".{extension}"]
    await asyncio.to_thread(written.write_bytes, content)
    prompt_id: str = answer["prompt_id"]
    return prompt_id
