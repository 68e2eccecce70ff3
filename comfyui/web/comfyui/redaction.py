"""Callers' secrets out of ComfyUI's queue and history, which 0.3.64 tells to everyone.

A prompt for ComfyUI's paid nodes carries its caller's key in ``extra_data``. The filter works on bytes as they
stream: a history of 500 MB is never held or parsed, and a body without a secret leaves as it came.
"""

from __future__ import annotations

import re

# Both names end like this: this search at the speed of memory settles nearly every chunk.
_HINT = b'_comfy_org"'
_KEY = rb'"(?:api_key_comfy_org|auth_token_comfy_org)"'
_VALUE = rb'(?:"(?:[^"\\]|\\.)*"|[^\s,\]}"{\[]+|\{[^{}]*\}|\[[^\[\]]*\])'
_MEMBER = _KEY + rb"\s*:\s*" + _VALUE
_MEMBERS = rb"(?:" + _MEMBER + rb"\s*,\s*)*" + _MEMBER
_LAST = re.compile(_MEMBERS + rb"(?=\s*\})", re.DOTALL)
_FOLLOWED = re.compile(_MEMBERS + rb"\s*,\s*", re.DOTALL)
# How much may hang over the end of a chunk: a key, a token (some KB for a JWT) and what decides about its comma.
_HELD = 64 * 1024

_ROUTES = frozenset({"/queue", "/history", "/history/*", "/history_v2", "/history_v2/*", "/jobs", "/jobs/*"})


def may_hold_secrets(method: str, route: str) -> bool:
    """Does the answer to this route (of `comfyui.web.front.paths.route_of`) carry callers' ``extra_data``?"""
    return method == "GET" and route in _ROUTES


def without_secrets(body: bytes) -> bytes:
    """A whole body; the same object when there is nothing to remove."""
    hint = body.find(_HINT)
    if hint < 0:
        return body
    kept = []
    done = 0
    while hint >= 0:
        start = body.rfind(b'"', done, hint)
        last = _LAST.match(body, start) if start >= 0 else None
        found = last or (_FOLLOWED.match(body, start) if start >= 0 else None)
        if found is not None:
            before = body[done:start]
            # One comma goes with it: the one after it, or the one before it if it is the last of its object.
            if last is not None and (stripped := before.rstrip()).endswith(b","):
                before = stripped[:-1]
            kept.append(before)
            done = found.end()
        hint = body.find(_HINT, max(done, hint + len(_HINT)))
    kept.append(body[done:])
    return b"".join(kept) if done else body


class SecretFilter:
    """The same for a body in chunks of any size."""

    def __init__(self) -> None:
        self._held = b""

    def feed(self, chunk: bytes) -> bytes:
        """The bytes that may leave now."""
        held = without_secrets(self._held + chunk)
        cut = max(0, len(held) - _HELD)
        self._held = held[cut:]
        return held[:cut]

    def end(self) -> bytes:
        """The rest."""
        rest, self._held = without_secrets(self._held), b""
        return rest
