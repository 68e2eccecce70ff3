"""Signatures of webhooks as Standard Webhooks has them (https://www.standardwebhooks.com), in its symmetric form."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Sequence

_PREFIX = "whsec_"
# The specification's minimum: 192 bits.
_SHORTEST = 24


class Signer:
    """Signs with every one of the secrets, so that receivers may change from one to the next at their own time.

    Args:
        secrets: base64, with or without ``whsec_`` before it.

    Raises:
        ValueError: a secret is no base64, or too short. The text does not show it.
    """

    def __init__(self, secrets: Sequence[str]) -> None:
        if not secrets:
            raise ValueError("a secret must be given")
        self._keys = tuple(key_of(secret) for secret in secrets)

    def headers(self, message_id: str, at: float, body: bytes) -> dict[str, str]:
        """The headers of this body. `at`: when it is sent; receivers refuse a message that is 5 minutes old."""
        timestamp = str(int(at))
        signed = b".".join((message_id.encode(), timestamp.encode(), body))
        signatures = (base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode() for key in self._keys)
        return {
            "webhook-id": message_id,
            "webhook-timestamp": timestamp,
            "webhook-signature": " ".join(f"v1,{signature}" for signature in signatures),
        }


def key_of(secret: str) -> bytes:
    """The key that a secret stands for. Raises ValueError for one that receivers could not use; it is not shown."""
    text = secret.removeprefix(_PREFIX)
    try:
        # Padding is optional for the receivers' libraries, too; base64 for URLs is not understood there.
        key = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("a secret must be base64; make one with: echo whsec_$(openssl rand -base64 32)") from None
    if len(key) < _SHORTEST:
        raise ValueError(
            f"a secret must have at least {_SHORTEST} bytes, but one has {len(key)}; make one with:"
            " echo whsec_$(openssl rand -base64 32)"
        )
    return key
