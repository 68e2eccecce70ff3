"""The server of the contract tests: the embedded engine or a real ComfyUI. Only their versions make a difference."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

import aiohttp
from PIL import Image

Prompt = dict[str, dict[str, Any]]


@dataclass(slots=True)
class Run:
    """One prompt from its submission to `executing` with node null, as its submitter saw it."""

    prompt_id: str
    messages: list[dict[str, Any]]
    entry: dict[str, Any]

    def of_type(self, *types: str) -> list[dict[str, Any]]:
        return [message["data"] for message in self.messages if message["type"] in types]


@dataclass(slots=True)
class Target:
    url: str
    session: aiohttp.ClientSession
    version: str
    is_real: bool
    prefix: str = field(default_factory=lambda: f"contract/{uuid.uuid4().hex[:12]}")

    @property
    def is_modern(self) -> bool:
        return tuple(int(part) for part in self.version.split(".")[:2]) >= (0, 38)

    async def get_json(self, path: str) -> Any:
        async with self.session.get(path) as response:
            assert response.status == 200, (path, response.status)
            return await response.json()

    async def submit(self, prompt: Prompt, **body: Any) -> tuple[int, dict[str, Any]]:
        async with self.session.post("/prompt", json={"prompt": prompt, **body}) as response:
            return response.status, await response.json()

    async def history(self, prompt_id: str) -> dict[str, Any]:
        found: dict[str, Any] = await self.get_json(f"/history/{prompt_id}")
        return found

    @asynccontextmanager
    async def socket(self, client_id: str | None = None) -> AsyncIterator[Socket]:
        client_id = client_id or uuid.uuid4().hex
        async with self.session.ws_connect(f"/ws?clientId={client_id}") as websocket:
            yield Socket(client_id, websocket)

    async def run(self, prompt: Prompt, **body: Any) -> Run:
        async with self.socket() as socket:
            return await self.run_on(socket, prompt, **body)

    async def run_on(self, socket: Socket, prompt: Prompt, **body: Any) -> Run:
        status, answer = await self.submit(prompt, client_id=socket.client_id, **body)
        assert status == 200, answer
        prompt_id = answer["prompt_id"]
        messages = await socket.until_done(prompt_id)
        return Run(prompt_id, messages, (await self.history(prompt_id))[prompt_id])

    async def view(self, file: dict[str, str], **query: str) -> bytes:
        async with self.session.get("/view", params={**file, **query}) as response:
            assert response.status == 200, response.status
            return await response.read()

    async def picture(self, file: dict[str, str]) -> Image.Image:
        image = Image.open(BytesIO(await self.view(file)))
        image.load()
        return image

    async def upload(self, image: Image.Image, name: str, **fields: str) -> dict[str, str]:
        buffer = BytesIO()
        image.save(buffer, "PNG")
        form = aiohttp.FormData()
        form.add_field("image", buffer.getvalue(), filename=name, content_type="image/png")
        for key, value in fields.items():
            form.add_field(key, value)
        async with self.session.post("/upload/image", data=form) as response:
            assert response.status == 200, response.status
            answer: dict[str, str] = await response.json()
            return answer


@dataclass(slots=True)
class Socket:
    client_id: str
    websocket: aiohttp.ClientWebSocketResponse

    async def next(self) -> dict[str, Any]:
        """The next text message; previews are skipped."""
        async for message in self.websocket:
            if message.type is aiohttp.WSMsgType.TEXT:
                parsed: dict[str, Any] = json.loads(message.data)
                return parsed
        raise AssertionError("the websocket was closed")

    async def until(self, kind: str, **data: Any) -> list[dict[str, Any]]:
        """All messages up to the first of that type whose data has these values."""
        seen = []
        while True:
            seen.append(await self.next())
            found = seen[-1]
            if found["type"] == kind and all(found["data"].get(key) == value for key, value in data.items()):
                return seen

    async def until_done(self, prompt_id: str) -> list[dict[str, Any]]:
        return await self.until("executing", node=None, prompt_id=prompt_id)


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def empty(color: int = 0x3366CC, width: int = 64, height: int = 48, batch_size: int = 1) -> dict[str, Any]:
    return node("EmptyImage", width=width, height=height, batch_size=batch_size, color=color)


def any_color() -> int:
    """A new color for each call, so that a long-lived server has no cached result for it."""
    return uuid.uuid4().int & 0xFFFFFF


def inverted(prefix: str, **image: int) -> Prompt:
    """The smallest workflow that works on every ComfyUI: no model, one file."""
    return {
        "1": empty(**image),
        "2": node("ImageInvert", image=["1", 0]),
        "3": node("SaveImage", images=["2", 0], filename_prefix=prefix),
    }


def slow(prefix: str) -> Prompt:
    """Seconds of work in several nodes; different each time, so never from the cache."""
    return {
        "1": empty(color=any_color(), width=512, height=512, batch_size=3),
        "2": node("ImageBlur", image=["1", 0], blur_radius=31, sigma=1.0),
        "3": node("ImageBlur", image=["2", 0], blur_radius=31, sigma=1.1),
        "4": node("SaveImage", images=["3", 0], filename_prefix=prefix),
    }
