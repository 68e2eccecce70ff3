"""`Frame`: one message for a client's websocket, with what `Focus` has to know of it."""

from __future__ import annotations

import enum
import struct
from collections.abc import Mapping
from typing import Any

from comfyui import jsonio
from comfyui.events import (
    Event,
    Executed,
    Executing,
    ExecutionCached,
    ExecutionFailed,
    ExecutionStart,
    ExecutionSuccess,
    Preview,
    Progress,
    ProgressState,
    Unknown,
)
from comfyui.exceptions import JSONError
from comfyui.merged_files import merged_outputs
from comfyui.outputs.history import without_paths

# A binary frame begins with its type, and the first kind of picture goes on with its format.
_PICTURE, _WITH_METADATA = 1, 4
_HEAD = struct.Struct(">II")
_JPEG, _PNG = 1, 2


class Kind(enum.Enum):
    """The meaning of a frame."""

    START = enum.auto()
    CACHED = enum.auto()
    EXECUTING = enum.auto()
    STATE = enum.auto()
    """`progress_state`: of all nodes."""
    PROGRESS = enum.auto()
    """`progress`, or text of the node that runs."""
    PREVIEW = enum.auto()
    PICTURE = enum.auto()
    """A picture of an output node: it is a result, and nowhere else."""
    EXECUTED = enum.auto()
    SUCCESS = enum.auto()
    FAILURE = enum.auto()
    """`execution_error` or `execution_interrupted`."""
    DONE = enum.auto()
    """`executing` with node null: the history can be read."""
    STATUS = enum.auto()
    OTHER = enum.auto()
    """Frames of custom nodes, and frames about no prompt."""


ENDS = frozenset({Kind.SUCCESS, Kind.FAILURE})
PASSING = frozenset({Kind.STATE, Kind.PROGRESS, Kind.PREVIEW, Kind.STATUS})
"""Each takes the place of the one before it."""

_KINDS: Mapping[type[Event], Kind] = {
    ExecutionStart: Kind.START,
    ExecutionCached: Kind.CACHED,
    Executing: Kind.EXECUTING,
    ProgressState: Kind.STATE,
    Progress: Kind.PROGRESS,
    Executed: Kind.EXECUTED,
    ExecutionSuccess: Kind.SUCCESS,
    ExecutionFailed: Kind.FAILURE,
}


class Frame:
    """One message for one websocket. Its bytes are in memory, or put away until it is sent.

    Attributes:
        data: as ComfyUI or the gateway wrote it; None while it is in the file.
        prompt_id: None if it is about no prompt.
        node: the node that it is about, if any.
        is_merged: names of files in it lead to its prompt, as in the history.
        size: bytes, wherever they are.
        place: its place in the file.
    """

    __slots__ = ("data", "is_merged", "is_text", "kind", "node", "place", "prompt_id", "size")

    def __init__(
        self,
        kind: Kind,
        data: bytes,
        prompt_id: str | None = None,
        node: str | None = None,
        *,
        is_text: bool = True,
        is_merged: bool = False,
    ) -> None:
        self.kind = kind
        self.data: bytes | None = data
        self.prompt_id = prompt_id
        self.node = node
        self.is_text = is_text
        self.is_merged = is_merged
        self.size = len(data)
        self.place = -1

    @property
    def held(self) -> int:
        """Bytes in memory."""
        return 0 if self.data is None else self.size

    def put_away(self, place: int) -> None:
        """Its bytes are at this place of the socket's shelf from now on."""
        self.data, self.place = None, place


def frame_of(prompt_id: str | None, event: Event, data: bytes, *, is_output: bool = False) -> Frame | None:
    """The frame for a server's event; None for an end, which is sent when the history can be read.

    Args:
        is_output: the node that runs is an output node, so that its pictures are results.
    """
    match event:
        case Executing(node=None):
            return None
        case Preview():
            kind = Kind.PICTURE if is_output else Kind.PREVIEW
            return Frame(kind, data, prompt_id, event.node, is_text=False)
        case Unknown():
            is_text = event.data is not data or event.type == "unreadable"
            return Frame(Kind.OTHER if is_text else Kind.PROGRESS, data, prompt_id, is_text=is_text)
    return Frame(_KINDS[type(event)], data, prompt_id, getattr(event, "node", None))


def message(
    kind: Kind, name: str, data: Mapping[str, Any], prompt_id: str | None = None, node: str | None = None
) -> Frame:
    """A frame of ours."""
    return Frame(kind, jsonio.dumps({"type": name, "data": data}), prompt_id, node, is_merged=True)


def done(prompt_id: str) -> Frame:
    """The end for all who wait for it."""
    return message(Kind.DONE, "executing", {"node": None, "prompt_id": prompt_id}, prompt_id)


def has_metadata(frame: Frame) -> bool:
    """Whether it is a picture in the form for clients that declare `supports_preview_metadata`."""
    return not frame.is_text and frame.data is not None and frame.data.startswith(_WITH_METADATA.to_bytes(4))


def is_progress_of(picture: Frame, frame: Frame) -> bool:
    """Whether the frame tells the progress of the picture's node."""
    return frame.kind is Kind.PROGRESS and frame.is_text and frame.prompt_id == picture.prompt_id


def without_metadata(data: bytes) -> bytes:
    """A preview as clients know it that have not declared `supports_preview_metadata`; other frames as they are."""
    if len(data) < _HEAD.size:
        return data
    kind, length = _HEAD.unpack_from(data)
    if kind != _WITH_METADATA:
        return data
    start = _HEAD.size + length
    try:
        metadata = jsonio.loads(data[_HEAD.size : start])
    except JSONError:
        metadata = None
    is_png = isinstance(metadata, dict) and metadata.get("image_type") == "image/png"
    return _HEAD.pack(_PICTURE, _PNG if is_png else _JPEG) + data[start:]


def with_merged_files(data: bytes, prompt_id: str) -> bytes:
    """An `executed` of a server, with the names of files by which clients ask for them."""
    try:
        told = jsonio.loads(data)
        output = merged_outputs(prompt_id, told["data"]["output"])
        if output is told["data"]["output"]:
            return data
        return jsonio.dumps({**told, "data": {**told["data"], "output": output}})
    except (JSONError, KeyError, TypeError):
        return data


def for_users(data: bytes) -> bytes:
    """An `execution_error` as the history shows it to users: without paths of the server."""
    try:
        told = jsonio.loads(data)
        return jsonio.dumps({**told, "data": without_paths(told["data"])})
    except (JSONError, KeyError, TypeError, AttributeError):
        return data
