"""API keys, and the sessions of browsers that have shown one. Pure; nothing here is ever logged.

A session is not the key but a statement signed with it: "somebody had this key, until then". So it survives a restart,
holds on every gateway with the same keys, and ends when its key is taken off the list.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Callable, Sequence

COOKIE = "comfyui_gateway_session"
_PURPOSE = b"comfyui-gateway session\0"


class KeyRing:
    """The keys of API_KEYS; empty means that none is needed."""

    def __init__(self, keys: Sequence[str], *, session_s: float, clock: Callable[[], float] = time.time) -> None:
        # Digests are compared, so that not even a key's length shows in the time that it takes.
        self._digests = [hashlib.sha256(key.encode()).digest() for key in keys]
        self._signers = [hashlib.sha256(_PURPOSE + key.encode()).digest() for key in keys]
        self.session_s = session_s
        self._clock = clock

    def __bool__(self) -> bool:
        return bool(self._digests)

    def holds(self, key: bytes) -> bool:
        """Is it one of ours? All are compared, whichever it is."""
        return self._index(key) is not None

    def open_session(self, key: bytes) -> str | None:
        """A session for somebody who shows `key`; None when it is not ours."""
        index = self._index(key)
        if index is None:
            return None
        expiry = str(int(self._clock() + self.session_s))
        return f"{expiry}.{_signature(self._signers[index], expiry)}"

    def is_session(self, token: str) -> bool:
        """Signed with one of our keys and not over."""
        expiry, _, signature = token.partition(".")
        genuine = False
        for signer in self._signers:
            genuine |= hmac.compare_digest(_signature(signer, expiry).encode(), signature.encode())
        return genuine and expiry.isascii() and expiry.isdigit() and int(expiry) > self._clock()

    def _index(self, key: bytes) -> int | None:
        digest = hashlib.sha256(key).digest()
        found = None
        for index, own in enumerate(self._digests):
            if hmac.compare_digest(own, digest):
                found = index
        return found


def _signature(signer: bytes, expiry: str) -> str:
    return hmac.new(signer, expiry.encode(), hashlib.sha256).hexdigest()


def session_in(cookies: bytes) -> str | None:
    """The session's token in a Cookie header."""
    for pair in cookies.decode("latin-1").split(";"):
        name, _, value = pair.strip().partition("=")
        if name == COOKIE:
            return value
    return None


def without_session(cookies: bytes) -> bytes:
    """A Cookie header without the gateway's own cookie, which is not ComfyUI's to know."""
    own = f"{COOKIE}=".encode()
    return b"; ".join(pair.strip() for pair in cookies.split(b";") if not pair.strip().startswith(own))
