"""API keys, and the sessions of browsers that have shown one. Pure; nothing here is ever logged.

A session is not the key but a statement signed with it: "somebody had this key, until then". So it survives a restart,
holds on every gateway with the same keys, and ends when its key is taken off the list.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Callable, Sequence
from uuid import UUID

COOKIE = "comfyui_gateway_session"
_PURPOSE = b"comfyui-gateway session\0"
_CALLER_PURPOSE = b"comfyui-gateway caller"
# What is made of a caller's name stands in ComfyUI's queue, where others could try keys against it: some 15 ms each.
_CALLER_ROUNDS = 50_000


class KeyRing:
    """The keys of API_KEYS; empty means that none is needed."""

    def __init__(self, keys: Sequence[str], *, session_s: float, clock: Callable[[], float] = time.time) -> None:
        # Digests are compared, so that not even a key's length shows in the time that it takes.
        self._digests = [hashlib.sha256(key.encode()).digest() for key in keys]
        self._signers = [hashlib.sha256(_PURPOSE + key.encode()).digest() for key in keys]
        self._callers = [_caller(key) for key in keys]
        self.session_s = session_s
        self._clock = clock

    def __bool__(self) -> bool:
        return bool(self._digests)

    def shown_names(self) -> list[str]:
        """The names that stand in the log, in the order of the keys."""
        return [shown_name(caller) for caller in self._callers]

    def holds(self, key: bytes) -> bool:
        """Is it one of ours? All are compared, whichever it is."""
        return self._index(key) is not None

    def caller(self, key: bytes) -> UUID | None:
        """The name of whoever shows `key`, None when it is not ours: the same in every process that has this key,
        wherever in the list, and the key cannot be had from it."""
        index = self._index(key)
        return None if index is None else self._callers[index]

    def caller_named(self, name: str) -> UUID | None:
        """The caller whose key the log calls `name`, see `shown_name`; None when it is not ours."""
        return next((caller for caller in self._callers if shown_name(caller) == name), None)

    def open_session(self, key: bytes) -> str | None:
        """A session for somebody who shows `key`; None when it is not ours."""
        index = self._index(key)
        if index is None:
            return None
        expiry = str(int(self._clock() + self.session_s))
        return f"{expiry}.{_signature(self._signers[index], expiry)}"

    def is_session(self, token: str) -> bool:
        """Signed with one of our keys and not over."""
        return self.session_caller(token) is not None

    def session_caller(self, token: str) -> UUID | None:
        """The name of whoever opened the session, as `caller` gives it for the key; None when it is none, or over."""
        expiry, _, signature = token.partition(".")
        caller = self.signer_of(expiry, signature)
        # Only what we signed is sure to be a number that can be read.
        return caller if caller is not None and int(expiry) > self._clock() else None

    def sign(self, caller: UUID, statement: str) -> str:
        """A signature under `statement` with the key of this caller. It must not be one that a session could have."""
        return _signature(self._signers[self._callers.index(caller)], statement)

    def signer_of(self, statement: str, signature: str) -> UUID | None:
        """The name of the caller whose key made this signature; None where none of ours did."""
        caller = None
        for signer, name in zip(self._signers, self._callers, strict=True):
            if hmac.compare_digest(_signature(signer, statement).encode(), signature.encode()):
                caller = name
        return caller

    def _index(self, key: bytes) -> int | None:
        digest = hashlib.sha256(key).digest()
        found = None
        for index, own in enumerate(self._digests):
            if hmac.compare_digest(own, digest):
                found = index
        return found


def _signature(signer: bytes, statement: str) -> str:
    return hmac.new(signer, statement.encode(), hashlib.sha256).hexdigest()


def _caller(key: str) -> UUID:
    return UUID(bytes=hashlib.pbkdf2_hmac("sha256", key.encode(), _CALLER_PURPOSE, _CALLER_ROUNDS, dklen=16))


def shown_name(caller: UUID) -> str:
    """The name of a key for logs, from what `KeyRing.caller` gives: as slow to try keys against as that."""
    return f"key-{caller.hex[:8]}"


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
