"""The events of a prompt while a caller waits, and their form in the gateway's event stream."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from comfyui.sdk.errors import error_from, is_error_body
from comfyui.sdk.models import PromptResult


@dataclass(frozen=True, slots=True)
class Queued:
    """``position`` in ComfyUI's queue; None if it is not known."""

    prompt_id: str
    position: int | None


@dataclass(frozen=True, slots=True)
class Executing:
    prompt_id: str
    node: str
    title: str
    class_type: str


@dataclass(frozen=True, slots=True)
class Progress:
    """``value`` of ``max`` steps of one node; ``overall`` of the whole prompt, 0 to 1."""

    prompt_id: str
    node: str
    value: float
    max: float
    overall: float


@dataclass(frozen=True, slots=True)
class Preview:
    prompt_id: str
    content_type: str
    image: bytes


@dataclass(frozen=True, slots=True)
class Reconnecting:
    """The connection was lost for ``reason``; the prompt goes on, and attempt number ``attempt`` to attach follows."""

    prompt_id: str
    attempt: int
    reason: str


@dataclass(frozen=True, slots=True)
class Finished:
    result: PromptResult


Event = Queued | Executing | Progress | Preview | Reconnecting | Finished


def event_of(name: str, data: str) -> Event | None:
    """The event of one server-sent event; None if it is unknown or unreadable. Raises on ``error``."""
    try:
        body = json.loads(data)
    except ValueError:
        body = None
    if name == "error" and is_error_body(body):
        raise error_from(body)
    if name in {"result", "error"}:
        return Finished(PromptResult.from_json(body))
    try:
        return _progress_of(name, body)
    except (KeyError, TypeError, ValueError):
        return None  # progress that cannot be shown is no reason to lose the result


def _progress_of(name: str, body: Any) -> Event | None:
    match name:
        case "queued":
            return Queued(body["prompt_id"], body.get("position"))
        case "executing":
            title = body.get("title") or body["class_type"]
            return Executing(body["prompt_id"], body["node"], title, body["class_type"])
        case "progress":
            value, maximum, overall = float(body["value"]), float(body["max"]), float(body["overall"])
            return Progress(body["prompt_id"], body["node"], value, maximum, overall)
        case "preview":
            return Preview(body["prompt_id"], body["content_type"], base64.b64decode(body["image"]))
        case _:
            return None


async def server_sent_events(chunks: AsyncIterator[bytes]) -> AsyncGenerator[tuple[str, str], None]:
    """Event name and data, by the rules of the HTML standard for lines that end in LF or CR LF.

    aiohttp's ``readline`` is not used: it refuses lines over its buffer's size, and a result with base64 is one line.
    """
    name, data = "message", list[str]()
    async with aclosing(_lines(chunks)) as lines:
        async for line in lines:
            key, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if not line:
                if data:
                    yield name, "\n".join(data)
                name, data = "message", []
            elif key == "event":
                name = value
            elif key == "data":
                data.append(value)


async def _lines(chunks: AsyncIterator[bytes]) -> AsyncGenerator[str, None]:
    pending: list[bytes] = []
    async for chunk in chunks:
        head, *rest = chunk.split(b"\n")
        pending.append(head)
        for piece in rest:
            yield b"".join(pending).removesuffix(b"\r").decode("utf-8", "replace")
            pending = [piece]
