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
    """What was posted. `arguments`: of a call of a tool, where they are an object; else empty."""

    size: int
    arguments: Mapping[str, Any]


async def receive_posted(scope: Scope, receive: Receive, max_bytes: int, limits: Limits) -> Receive:
    """Read the body, and keep what is in it for `posted_in`. Returns a `receive` that gives it again.

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
        arguments = _arguments_in(await offloaded(len(body), big_json.load, body, limits))
    except JSONError as error:
        if error.beyond_limits:
            raise BeyondLimitsError(f"the body: {error}") from None
        arguments = {}  # the package says what is wrong with it, as its protocol has it
    scope["state"][_KEY] = Posted(len(body), arguments)
    return _again({"type": "http.request", "body": bytes(body), "more_body": False}, receive)


def posted_in(scope: Scope) -> Posted:
    """What `receive_posted` has read."""
    posted: Posted = scope["state"][_KEY]
    return posted


def _arguments_in(body: Any) -> Mapping[str, Any]:
    params = body.get("params") if isinstance(body, Mapping) else None
    arguments = params.get("arguments") if isinstance(params, Mapping) else None
    return arguments if isinstance(arguments, Mapping) else {}


def _again(message: Message, receive: Receive) -> Receive:
    waiting = [message]

    async def given() -> Message:
        return waiting.pop() if waiting else await receive()

    return given
