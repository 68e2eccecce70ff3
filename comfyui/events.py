"""ComfyUI's websocket frames as frozen event types. An unknown frame is kept, never fatal.

The shapes are those of ComfyUI's ``server.py`` and ``execution.py``; docs/comfyui.md lists who gets which.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from comfyui import big_json, jsonio
from comfyui.exceptions import ComfyUILimitError, JSONError
from comfyui.limits import JSON_OF_COMFYUI

_PREVIEW_IMAGE = 1
_TEXT = 3
_PREVIEW_IMAGE_WITH_METADATA = 4
_IMAGE_FORMATS = {1: "image/jpeg", 2: "image/png"}


@dataclass(frozen=True, slots=True)
class Status:
    """The queue changed; ``queue_remaining`` counts pending and running prompts. ``sid`` only on connect."""

    queue_remaining: int
    sid: str | None = None


@dataclass(frozen=True, slots=True)
class ExecutionStart:
    prompt_id: str


@dataclass(frozen=True, slots=True)
class ExecutionCached:
    prompt_id: str
    nodes: Sequence[str]


@dataclass(frozen=True, slots=True)
class Executing:
    """``node`` is None when the prompt is done and its history entry is written (docs/comfyui.md, trap 1)."""

    prompt_id: str
    node: str | None


@dataclass(frozen=True, slots=True)
class Progress:
    """``value`` of ``max`` steps of one node."""

    prompt_id: str
    node: str | None
    value: float
    max: float


@dataclass(frozen=True, slots=True)
class ProgressState:
    """All started nodes of the prompt with ``state``, ``value`` and ``max``."""

    prompt_id: str
    nodes: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Executed:
    prompt_id: str
    node: str
    output: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ExecutionSuccess:
    """Comes before the history is written, so it is not yet the end."""

    prompt_id: str


@dataclass(frozen=True, slots=True)
class ExecutionFailed:
    """``interrupted`` tells ``execution_interrupted`` from ``execution_error``; ``data`` is ComfyUI's own."""

    prompt_id: str
    interrupted: bool
    data: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Preview:
    """A picture of the work in progress. ``prompt_id`` and ``node`` are None in frames without metadata."""

    content_type: str
    image: bytes
    prompt_id: str | None = None
    node: str | None = None


@dataclass(frozen=True, slots=True)
class QueuePosition:
    """Not from ComfyUI: the watcher computes it. ``position`` prompts come before this one; 0 is the next or the
    running one.
    """

    prompt_id: str
    position: int


@dataclass(frozen=True, slots=True)
class Unknown:
    type: str
    data: Any


Event = (
    Status
    | ExecutionStart
    | ExecutionCached
    | Executing
    | Progress
    | ProgressState
    | Executed
    | ExecutionSuccess
    | ExecutionFailed
    | Preview
    | QueuePosition
    | Unknown
)


def parse_text(frame: bytes) -> Event:
    """Parses one text frame. Never raises: unreadable text becomes `Unknown`."""
    try:
        message = big_json.load(frame, JSON_OF_COMFYUI)
        kind, data = message["type"], message["data"]
    except (ComfyUILimitError, JSONError, KeyError, TypeError):
        return Unknown("unreadable", frame)
    return event_of(kind, data)


def event_of(kind: Any, data: Any) -> Event:
    """The event of a type and data, as a text frame has them. Never raises."""
    try:
        return _known(kind, data)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        return Unknown(str(kind), data)


def _known(kind: Any, data: Any) -> Event:
    match kind:
        case "status":
            sid = data.get("sid")
            return Status(int(data["status"]["exec_info"]["queue_remaining"]), None if sid is None else _text(sid))
        case "execution_start":
            return ExecutionStart(_text(data["prompt_id"]))
        case "execution_cached":
            return ExecutionCached(_text(data["prompt_id"]), tuple(_text(node) for node in data["nodes"]))
        case "executing":
            return Executing(_text(data["prompt_id"]), _node(data["node"]))
        case "progress":
            value, maximum = float(data["value"]), float(data["max"])
            return Progress(_text(data["prompt_id"]), _node(data.get("node")), value, maximum)
        case "progress_state":
            return ProgressState(_text(data["prompt_id"]), _object(data["nodes"]))
        case "executed":
            return Executed(_text(data["prompt_id"]), _text(data["node"]), _object(data.get("output") or {}))
        case "execution_success":
            return ExecutionSuccess(_text(data["prompt_id"]))
        case "execution_error" | "execution_interrupted":
            return ExecutionFailed(_text(data["prompt_id"]), kind == "execution_interrupted", data)
        case _:
            return Unknown(str(kind), data)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("not a string")
    return value


def _node(value: Any) -> str | None:
    return None if value is None else _text(value)


def _object(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise TypeError("not an object")
    return value


def parse_binary(frame: bytes) -> Event:
    """Parses one binary frame: 4 bytes big-endian type, then the payload. Never raises."""
    kind = int.from_bytes(frame[:4], "big")
    try:
        if kind == _PREVIEW_IMAGE:
            content_type = _IMAGE_FORMATS[int.from_bytes(frame[4:8], "big")]
            return Preview(content_type, frame[8:])
        if kind == _PREVIEW_IMAGE_WITH_METADATA:
            length = int.from_bytes(frame[4:8], "big")
            metadata = jsonio.loads(frame[8 : 8 + length])
            prompt_id, node = _node(metadata.get("prompt_id")), _node(metadata.get("node_id"))
            return Preview(_text(metadata["image_type"]), frame[8 + length :], prompt_id, node)
    except (KeyError, TypeError, AttributeError, JSONError):
        pass
    return Unknown("text" if kind == _TEXT else f"binary-{kind}", frame)


def prompt_id_of(event: Event) -> str | None:
    """The prompt of an event; None for events about no prompt."""
    return getattr(event, "prompt_id", None)
