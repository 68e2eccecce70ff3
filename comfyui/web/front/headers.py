"""Reads a request's headers from its scope, and makes those for ComfyUI by the rules of `comfyui.headers`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from yarl import URL

from comfyui.headers import Sender, text_of, to_comfyui
from comfyui.web.front.forwarded import peer_of, prefix_of


def request_headers(scope: Any, upstream: URL, credentials: Mapping[bytes, bytes]) -> list[tuple[bytes, bytes]]:
    """The headers of this request for ComfyUI at `upstream`, see `to_comfyui`."""
    sender = Sender(peer_of(scope), secure=scope["scheme"] in {"https", "wss"})
    return to_comfyui(scope["headers"], upstream, credentials, sender=sender, handshake=scope["type"] == "websocket")


def public_address(scope: Any, configured: str = "") -> str:
    """The gateway's own address, without a slash at its end: the configured one, else as this client wrote it."""
    if configured:
        return configured
    host = header(scope, b"x-forwarded-host") or header(scope, b"host") or b""
    scheme = "https" if scope["scheme"] in {"https", "wss"} else "http"
    return f"{scheme}://{text_of(host)}{prefix_of(scope)}"


def header(scope: Any, name: bytes) -> bytes | None:
    """The first header of that lower-case name."""
    for found, value in scope["headers"]:
        if found == name:
            return bytes(value)
    return None
