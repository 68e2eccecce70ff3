"""What a `user` key's websocket is told: the frames of its own prompts, and the length of its own queue.

ComfyUI tells some things to every socket: the length of its queue, interrupts, and all of a prompt that was queued
without a client id. What is not known to be the key's own is not passed on.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from typing import Any
from urllib.parse import quote
from uuid import uuid4

from comfyui import jsonio
from comfyui.exceptions import JournalError
from comfyui.jobs.journal.protocol import Journal
from comfyui.owners import client_id_of
from comfyui.web.comfyui.job_reads import JobReads
from comfyui.web.comfyui.viewer import Viewer

# Each says in its data which prompt it is about.
_OF_A_PROMPT = frozenset(
    {
        "execution_start",
        "execution_cached",
        "executing",
        "progress",
        "progress_state",
        "executed",
        "execution_success",
        "execution_error",
        "execution_interrupted",
    }
)
_ENDS = frozenset({"execution_success", "execution_error", "execution_interrupted"})
# A binary frame begins with its type; the last one has the prompt in its metadata.
_HEAD, _WITH_METADATA = 4, 4
_REMEMBERED = 1000
_LONGEST_SENT = 64 * 1024


class OwnFrames:
    """One websocket of a key.

    Args:
        client_id: as the client calls itself; "" where it leaves that to ComfyUI.

    Attributes:
        upstream_id: its id at ComfyUI.
    """

    def __init__(self, viewer: Viewer, journal: Journal, jobs: JobReads, client_id: str) -> None:
        self._viewer = viewer
        self._journal = journal
        self._jobs = jobs
        self._client_id = client_id or uuid4().hex
        self.upstream_id = client_id_of(viewer.rules.name, self._client_id)
        self._own: OrderedDict[str, bool] = OrderedDict()
        self._running: str | None = None
        """The key's prompt whose frames came last; None where another's did, or it has ended."""
        self._has_news = False
        """Whether the length of the queue may have changed for the key since it was told."""

    @property
    def target(self) -> str:
        """What ComfyUI is asked for."""
        return f"/ws?clientId={quote(self.upstream_id, safe='')}"

    def may_send(self, text: str | None) -> bool:
        """Whether a message of the client goes on to ComfyUI: what it can do, and nothing for custom nodes."""
        message = _parsed(text) if text is not None and len(text) <= _LONGEST_SENT else None
        return isinstance(message, dict) and message.get("type") == "feature_flags"

    async def shown(self, data: str | bytes) -> str | bytes | None:
        """The frame as the client gets it; None where it gets none."""
        try:
            return await (self._text(data) if isinstance(data, str) else self._binary(bytes(data)))
        except JournalError:
            return None  # whose it is cannot be said

    async def _text(self, text: str) -> str | None:
        message = _parsed(text)
        kind, data = (message.get("type"), message.get("data")) if isinstance(message, dict) else (None, None)
        if not isinstance(data, dict):
            return None
        if kind == "status":
            return self._status(data)
        if kind == "feature_flags":
            return text
        if kind not in _OF_A_PROMPT or not await self._is_own(data.get("prompt_id")):
            self._running = None
            return None
        ended = kind in _ENDS or (kind == "executing" and data.get("node") is None)
        self._has_news = True
        self._running = None if ended else data["prompt_id"]
        return text

    def _status(self, data: dict[str, Any]) -> str | None:
        remaining = self._jobs.count(self._viewer)
        if "sid" not in data and not (remaining or self._has_news):
            return None  # it is about others: when they work is not the key's to know
        self._has_news = remaining > 0
        told: dict[str, Any] = {"status": {"exec_info": {"queue_remaining": remaining}}}
        if "sid" in data:
            told["sid"] = self._client_id
        return jsonio.dumps({"type": "status", "data": told}).decode()

    async def _binary(self, data: bytes) -> bytes | None:
        if len(data) < 2 * _HEAD:
            return None
        kind, length = struct.unpack(">II", data[: 2 * _HEAD])
        if kind == _WITH_METADATA:
            metadata = _parsed(data[2 * _HEAD : 2 * _HEAD + length])
            prompt_id = metadata.get("prompt_id") if isinstance(metadata, dict) else None
            return data if await self._is_own(prompt_id) else None
        # ComfyUI runs one prompt at a time.
        return data if self._running is not None else None

    async def _is_own(self, prompt_id: Any) -> bool:
        if not isinstance(prompt_id, str):
            return False
        known = self._own.get(prompt_id)
        if known is None:
            record = await self._journal.get(prompt_id)
            known = self._own[prompt_id] = record is not None and self._viewer.sees(record.owner)
            if len(self._own) > _REMEMBERED:
                self._own.popitem(last=False)
        return known


def _parsed(text: str | bytes) -> Any:
    try:
        return jsonio.loads(text)
    except ValueError:
        return None
