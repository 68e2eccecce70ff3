"""Labels: up to 16 pairs of text that a caller gives a job, so that lists can be filtered by them.

The limits are those of `metadata` in Comfy API v2, so that every face accepts the same labels.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

MAX_LABELS = 16
MAX_KEY = 40
MAX_VALUE_BYTES = 256

_KEY = re.compile(rf"[A-Za-z0-9_.-]{{1,{MAX_KEY}}}")
# Control characters, marks that turn the direction of text, and surrogates, which UTF-8 cannot carry.
_UNFIT = re.compile("[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def check_labels(labels: Mapping[str, str]) -> Mapping[str, str]:
    """Returns the same labels. Raises ValueError, which names the key that breaks a rule, or the number of labels."""
    if len(labels) > MAX_LABELS:
        raise ValueError(f"at most {MAX_LABELS} labels are allowed, but {len(labels)} are given")
    for key, value in labels.items():
        check_label(key, value)
    return labels


def check_label(key: str, value: str) -> None:
    """Raises ValueError, which names the key, if key or value breaks a rule."""
    if not _KEY.fullmatch(key):
        shown = ascii(key if len(key) <= MAX_KEY else key[:MAX_KEY] + "…")
        raise ValueError(f"the key {shown} must be 1 to {MAX_KEY} characters of A-Z a-z 0-9 _ - .")
    if not isinstance(value, str):
        raise ValueError(f"the value of {key!r} must be text")
    if _UNFIT.search(value):
        raise ValueError(f"the value of {key!r} must have no control characters and no marks of text direction")
    if len(value.encode()) > MAX_VALUE_BYTES:
        raise ValueError(f"the value of {key!r} must have at most {MAX_VALUE_BYTES} bytes in UTF-8")
