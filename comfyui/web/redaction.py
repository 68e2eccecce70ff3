"""Callers' secrets out of ComfyUI's queue and history, which 0.3.64 tells to everyone.

A prompt for ComfyUI's paid nodes carries its caller's key in ``extra_data``. The filter works on bytes as they
stream: a history of 500 MB is never held or parsed, and a body without a secret leaves as it came.
"""

from __future__ import annotations

import re

_KEYS = rb'"(?:api_key_comfy_org|auth_token_comfy_org)"'
# What both names end with: one search of a chunk, at the speed of memory, settles nearly all of them.
_HINT = b'_comfy_org"'
_VALUE = rb'(?:"(?:[^"\\]|\\.)*"|[^\s,\]}"{\[]+|\{[^{}]*\}|\[[^\[\]]*\])'
_MEMBER = _KEYS + rb"\s*:\s*" + _VALUE
_RUN = rb"(?:" + _MEMBER + rb"\s*,\s*)*" + _MEMBER
# With the comma after it or, when it is the last of its object, the one before it.
_SECRET = re.compile(_RUN + rb"\s*,\s*|(?:,\s*)?" + _RUN + rb"(?=\s*[}\]])", re.DOTALL)
# How much may hang over the end of a chunk: a key, a token (some KB for a JWT) and what decides about its comma.
_HELD = 64 * 1024

_ROUTES = frozenset({"/queue", "/history", "/history/*", "/history_v2", "/history_v2/*", "/jobs", "/jobs/*"})


def may_hold_secrets(method: str, route: str) -> bool:
    """Does the answer to this route (of `comfyui.web.paths.route_of`) carry callers' ``extra_data``?"""
    return method == "GET" and route in _ROUTES


def without_secrets(body: bytes) -> bytes:
    """A whole body; the same object when there is nothing to remove."""
    return _SECRET.sub(b"", body) if _HINT in body else body


class SecretFilter:
    """The same for a body in chunks of any size."""

    def __init__(self) -> None:
        self._held = b""

    def feed(self, chunk: bytes) -> bytes:
        """What may leave now."""
        held = without_secrets(self._held + chunk)
        cut = max(0, len(held) - _HELD)
        self._held = held[cut:]
        return held[:cut]

    def end(self) -> bytes:
        """The rest."""
        rest, self._held = without_secrets(self._held), b""
        return rest
