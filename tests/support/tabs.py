"""A websocket of a client of ComfyUI, and the frames that it got."""

from __future__ import annotations

import asyncio
import json
import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import aiohttp

ENDED = "executing None"
_VARIES = frozenset({"timestamp", "subfolder", "traceback", "current_inputs"})
_IDS = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


@dataclass
class Tab:
    """Reads the websocket only when a method is called.

    Attributes:
        frames: all frames in order, as JSON or bytes.
    """

    websocket: aiohttp.ClientWebSocketResponse[bool]
    frames: list[Any] = field(default_factory=list)

    @property
    def texts(self) -> list[Any]:
        return [frame for frame in self.frames if not isinstance(frame, bytes)]

    @property
    def pictures(self) -> list[bytes]:
        return [frame for frame in self.frames if isinstance(frame, bytes)]

    @property
    def prompts(self) -> set[str]:
        return {told["data"]["prompt_id"] for told in self.texts if "prompt_id" in told["data"]}

    async def declare(self) -> Any:
        """Declares support for previews with metadata; returns the server's features."""
        await self.websocket.send_json({"type": "feature_flags", "data": {"supports_preview_metadata": True}})
        return await self.read_until("feature_flags")

    async def read(self) -> Any:
        message = await self.websocket.receive()
        assert message.type in {aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY}, message
        told = message.data if message.type is aiohttp.WSMsgType.BINARY else json.loads(message.data)
        self.frames.append(told)
        return told

    async def read_until(self, kind: str, prompt_id: str | None = None) -> Any:
        """The data of the next such message; `ENDED` is the last one of a prompt."""
        async with asyncio.timeout(30):
            while True:
                told = await self.read()
                if isinstance(told, bytes) or kind_of(told) != kind:
                    continue
                if prompt_id in {None, told["data"].get("prompt_id")}:
                    return told["data"]

    async def ended(self, prompt_ids: Iterable[str]) -> list[str]:
        """Reads until all these prompts have ended. Returns their ids in the order of their ends."""
        waiting, ended = set(prompt_ids), list[str]()
        while waiting:
            ended.append((await self.read_until(ENDED))["prompt_id"])
            waiting.discard(ended[-1])
        return ended

    def told_of(self, *names: str) -> list[str]:
        """All frames except `status` as texts; the prompts are called `names`, in the order in which they appear."""
        return in_words(self.frames, names)


def kind_of(told: Any) -> str:
    is_end = told["type"] == "executing" and told["data"].get("node") is None
    return ENDED if is_end else str(told["type"])


def in_words(frames: Iterable[Any], names: Iterable[str] = "abcdefgh") -> list[str]:
    """Each frame except `status` and `feature_flags` as a text, without the parts that differ between runs."""
    left, known = iter(names), dict[str, str]()

    def named(found: re.Match[str]) -> str:
        return known.setdefault(found[0], next(left, "?"))

    words = []
    for frame in frames:
        if isinstance(frame, bytes):
            words.append(_picture_in_words(frame))
        elif frame["type"] not in {"status", "feature_flags"}:
            words.append(_IDS.sub(named, f"{kind_of(frame)}: {json.dumps(_steady(frame['data']), sort_keys=True)}"))
    return words


def in_short(frames: Iterable[Any], prompt_ids: list[str]) -> list[str]:
    """Texts like ``execution_start 0``: type, the prompt's index and the node of each frame. Without `status`."""
    short = []
    for frame in frames:
        if isinstance(frame, bytes):
            short.append("picture")
        elif frame["type"] not in {"status", "feature_flags"}:
            number = prompt_ids.index(frame["data"]["prompt_id"])
            node = frame["data"].get("node") if frame["type"] in {"executing", "executed"} else None
            short.append(f"{kind_of(frame)} {number}" + (f" {node}" if node else ""))
    return short


def _steady(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _steady(one) for name, one in value.items() if name not in _VARIES}
    return [_steady(one) for one in value] if isinstance(value, list) else value


def _picture_in_words(frame: bytes) -> str:
    kind, length = struct.unpack(">II", frame[:8])
    if kind != 4:
        return f"picture of kind {kind}, format {length}"
    metadata = json.loads(frame[8 : 8 + length])
    return f"picture of node {metadata['node_id']}: {metadata['image_type']}"
