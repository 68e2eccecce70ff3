"""API keys, and the sessions of browsers that have shown one. Pure; nothing here is ever logged.

A session is not the key but a signed statement: "someone had this key, until then". So it survives a restart, and ends
when its key is removed. A key in API_KEYS signs itself, so a session is valid on every gateway that has the key. Of a
key in KEYS_FILE only the hash is known: a secret of the gateway signs for it, so that a reader of the file cannot make
sessions.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from uuid import UUID

from comfyui.owners import KeyRules, key_of, owner_of

COOKIE = "comfyui_gateway_session"
_PURPOSE = b"comfyui-gateway session\0"
_CALLER_PURPOSE = b"comfyui-gateway caller"
_NAMED_PURPOSE = b"comfyui-gateway named key\0"
# The digest of a caller's name is visible in ComfyUI's queue, where others could try keys against it: some 15 ms each.
_CALLER_ROUNDS = 50_000


@dataclass(frozen=True, slots=True)
class NamedKey:
    """A key of KEYS_FILE.

    Attributes:
        digest: the SHA-256 of the key.
        old_digest: that of the key before it, which is also valid until its customer has changed over; None: there is
            none.
    """

    digest: bytes = field(repr=False)
    rules: KeyRules
    old_digest: bytes | None = field(default=None, repr=False)

    @property
    def digests(self) -> list[bytes]:
        """The SHA-256 of each valid key, the present one first."""
        return [self.digest] if self.old_digest is None else [self.digest, self.old_digest]


@dataclass(frozen=True, slots=True)
class Caller:
    """The caller, by the key that was shown.

    Attributes:
        namespace: for the names of the caller's Idempotency-Keys; the key cannot be derived from it.
        person: the person behind a shared key, by the key's `user_header`; "" if none is named.
        named: whether the key stands in KEYS_FILE.
    """

    rules: KeyRules
    namespace: UUID
    signer: bytes = field(repr=False)
    named: bool = False
    person: str = ""

    @property
    def owner(self) -> str:
        """The owner of the jobs that this caller submits."""
        return owner_of(self.rules.name, self.person)

    def acting_for(self, person: str) -> Caller:
        """The same key with a person behind it."""
        return replace(self, person=person)


class KeyRing:
    """The keys of API_KEYS, each an admin's, and those of KEYS_FILE.

    Args:
        named: the keys of KEYS_FILE; None without such a file. Without keys of either kind, no key is needed.
        secret: signs for the keys of KEYS_FILE; when not given, one that ends with the process.
    """

    def __init__(
        self,
        keys: Sequence[str],
        *,
        session_s: float,
        named: Sequence[NamedKey] | None = None,
        secret: bytes | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.session_s = session_s
        self._clock = clock
        self._secret = secret or secrets.token_bytes(32)
        self._lookup = secrets.token_bytes(32)
        self._own = {self._place(hashlib.sha256(key.encode()).digest()): _admin(key) for key in keys}
        self._by_place: dict[bytes, Caller] = dict(self._own)
        self._by_name: dict[str, Caller] = {}
        self._by_namespace: dict[str, list[Caller]] = {}
        self._asks = bool(keys) or named is not None
        self._version = 0
        self.set_named(named or ())

    def __bool__(self) -> bool:
        return self._asks

    def check_named(self, named: Sequence[NamedKey]) -> None:
        """Raises ValueError if one of these keys is in API_KEYS, too, or has the name of one."""
        names = {caller.rules.name for caller in self._own.values()}
        for key in named:
            if any(self._place(digest) in self._own for digest in key.digests):
                raise ValueError(
                    f"[keys.{key.rules.name}]: the same key is also in API_KEYS; remove it from one of the two"
                )
            if key.rules.name in names:
                raise ValueError(
                    f"[keys.{key.rules.name}]: a key of API_KEYS already has this name; choose another one"
                )

    def set_named(self, named: Sequence[NamedKey]) -> None:
        """The keys of KEYS_FILE are these from now on. Raises as `check_named` does."""
        self.check_named(named)
        self._by_place = dict(self._own)
        self._by_name = {caller.rules.name: caller for caller in self._own.values()}
        self._by_namespace = {}
        for key in named:
            callers = {self._place(digest): self._caller_of(key.rules, digest) for digest in key.digests}
            present = callers[self._place(key.digest)]
            self._by_place |= callers
            self._by_name[key.rules.name] = present
            self._by_namespace[present.namespace.hex] = list(callers.values())
        self._version += 1

    def _caller_of(self, rules: KeyRules, digest: bytes) -> Caller:
        name = rules.name.encode()
        # By the name, not by the key: a caller with a new key still finds jobs of the old one.
        namespace = UUID(bytes=self._mac(b"caller\0" + name)[:16])
        return Caller(rules, namespace, self._mac(b"signer\0" + name + b"\0" + digest), named=True)

    def _place(self, digest: bytes) -> bytes:
        """The place of a key in the table. It cannot be predicted, so the time of a comparison says nothing about the
        keys.
        """
        return hashlib.blake2b(digest, key=self._lookup, digest_size=16).digest()

    def _mac(self, text: bytes) -> bytes:
        return hmac.new(self._secret, _NAMED_PURPOSE + text, hashlib.sha256).digest()

    def shown_names(self) -> list[str]:
        """The names that stand in the log: those of API_KEYS in their order, then those of KEYS_FILE."""
        return list(self._by_name)

    def named(self) -> list[str]:
        """The names of KEYS_FILE, in the order of the file."""
        return [name for name, caller in self._by_name.items() if caller.named]

    def callers(self) -> list[Caller]:
        """One for each name, in the order of `shown_names`."""
        return list(self._by_name.values())

    @property
    def version(self) -> int:
        """See `comfyui.owners.OwnerRules`."""
        return self._version

    def rules_of(self, owner: str | None) -> KeyRules | None:
        """See `comfyui.owners.OwnerRules`."""
        caller = None if owner is None else self.caller_named(owner)
        return None if caller is None else caller.rules

    def holds(self, key: bytes) -> bool:
        """Whether the key is one of ours."""
        return self.caller(key) is not None

    def caller(self, key: bytes) -> Caller | None:
        """The caller with `key`; None if it is not ours."""
        return self._by_place.get(self._place(hashlib.sha256(key).digest()))

    def caller_named(self, owner: str) -> Caller | None:
        """The caller with the key of this owner; None if the key was removed."""
        return self._by_name.get(key_of(owner))

    def open_session(self, key: bytes) -> str | None:
        """A session for the caller with `key`; None if it is not ours."""
        caller = self.caller(key)
        if caller is None:
            return None
        expiry = str(int(self._clock() + self.session_s))
        return f"{expiry}.{self.sign(caller, expiry)}"

    def session_caller(self, token: str) -> Caller | None:
        """The caller who opened the session; None if it is invalid or over."""
        expiry, _, signature = token.partition(".")
        caller = self.signer_of(expiry, signature)
        # Only a signed text is certainly a number that can be read.
        return caller if caller is not None and int(expiry) > self._clock() else None

    def sign(self, caller: Caller, statement: str) -> str:
        """A signature under `statement` for this caller. It must not be one that a session could have."""
        signature = _signature(caller.signer, statement)
        return f"{caller.namespace.hex}.{signature}" if caller.named else signature

    def signer_of(self, statement: str, signature: str) -> Caller | None:
        """The caller for whom this signature was made; None if it was for none of ours."""
        namespace, dot, mac = signature.partition(".")
        if dot:
            callers, signature = self._by_namespace.get(namespace, []), mac
        else:
            callers = list(self._own.values())
        return next((caller for caller in callers if _is_signed(caller, statement, signature)), None)


def _is_signed(caller: Caller, statement: str, signature: str) -> bool:
    return hmac.compare_digest(_signature(caller.signer, statement).encode(), signature.encode())


def _signature(signer: bytes, statement: str) -> str:
    return hmac.new(signer, statement.encode(), hashlib.sha256).hexdigest()


def _admin(key: str) -> Caller:
    namespace = UUID(bytes=hashlib.pbkdf2_hmac("sha256", key.encode(), _CALLER_PURPOSE, _CALLER_ROUNDS, dklen=16))
    # For logs: trying keys against it is as slow as with the namespace.
    name = f"key-{namespace.hex[:8]}"
    return Caller(KeyRules(name=name), namespace, hashlib.sha256(_PURPOSE + key.encode()).digest())


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
