"""The state of one request: each layer of the front writes its own part, and later layers and endpoints read it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from starlette.types import Scope

from comfyui.web.front.keys import Caller
from comfyui.web.front.rights import Right

_KEY = "comfyui_gateway.request"


def _not_counted(size: int) -> None:
    raise RuntimeError(f"{size} bytes of a body were read before BodyLimit saw the request")


@dataclass(slots=True)
class RequestState:
    """One request or websocket.

    Attributes:
        request_id: the caller's own or a new one, for the answer and every line of the log. From `RequestContext`.
        prefix: the path below which the client sees the gateway (``/comfy``), from a trusted proxy, or "". From
            `TrustedProxies`.
        peer: the address of the trusted proxy that told the client's; "" if none did. From `TrustedProxies`.
        caller: by the API key that was shown; None if none is needed. From `Guard`.
        right: how much the caller may have of its request. From `Guard`.
        in_detail: whether a probe may show addresses, as to every caller that passes. From `Guard`.
        quiet: whether the access line is only for debugging, unless the request failed. From `Relay`.
        hold: counts the bytes of a form that are in memory, if its files are on disk. From `BodyLimit`.
    """

    request_id: str | None = None
    prefix: str = ""
    peer: str = ""
    caller: Caller | None = None
    right: Right = Right.ALL
    in_detail: bool = False
    quiet: bool = False
    hold: Callable[[int], None] = _not_counted


def begin_request(scope: Scope) -> None:
    """Gives the request its state."""
    scope.setdefault("state", {})[_KEY] = RequestState()


def state_of(scope: Scope) -> RequestState:
    """The state of a request that has passed `begin_request`."""
    state: RequestState = scope["state"][_KEY]
    return state
