"""The body of a request to `/mcp`, read once by our own reader: within its limits, with every value as ComfyUI has it.

The package reads the text again by itself: its readers make other numbers of NaN, and know no limits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from starlette.types import Message, Receive, Scope

from comfyui import big_json
from comfyui.exceptions import BeyondLimitsError, BodyTooLargeError, JSONError
from comfyui.limits import Limits
from comfyui.offload import offloaded

_KEY = "comfyui_gateway.mcp"


@dataclass(frozen=True, slots=True)
class Posted:
    """The contents of a posted body.

    Attributes:
        arguments: of a tool call, if they are an object; otherwise empty.
        wants_progress: the client has said under which token it wants to be told.
    """

    size: int
    arguments: Mapping[str, Any]
    wants_progress: bool


_NOTHING = Posted(0, {}, wants_progress=True)


async def receive_posted(scope: Scope, receive: Receive, max_bytes: int, limits: Limits) -> Receive:
    """Reads the body, and keeps its contents for `posted_in`. Returns a `receive` that gives the body again.

    Raises:
        BodyTooLargeError, ComfyUILimitError, BeyondLimitsError: it is more than is read here.
    """
    body, more = bytearray(), True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            return _again(message, receive)
        body += message.get("body", b"")
        if len(body) > max_bytes:
            raise BodyTooLargeError(
                f"the body is larger than {max_bytes / 1e6:.1f} MB; pass large inputs by URL, or post to /prompt_sync"
            )
        more = message.get("more_body", False)
    try:
        params = _object_in(await offloaded(len(body), big_json.load, body, limits), "params")
    except JSONError as error:
        if error.beyond_limits:
            raise BeyondLimitsError(f"the body cannot be read: {error}") from None
        params = {}  # the package reports the fault in the form of its protocol
    wants_progress = "progressToken" in _object_in(params, "_meta")
    scope["state"][_KEY] = Posted(len(body), _object_in(params, "arguments"), wants_progress)
    return _again({"type": "http.request", "body": bytes(body), "more_body": False}, receive)


def posted_in(scope: Scope) -> Posted:
    """The contents that `receive_posted` has read; empty for an incomplete body."""
    posted: Posted = scope["state"].get(_KEY, _NOTHING)
    return posted


def _object_in(whole: Any, name: str) -> Mapping[str, Any]:
    found = whole.get(name) if isinstance(whole, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def _again(message: Message, receive: Receive) -> Receive:
    waiting = [message]

    async def given() -> Message:
        return waiting.pop() if waiting else await receive()

    return given
