"""Names of parameters and outputs, from what people have written for people."""

from __future__ import annotations

import re
from collections.abc import Container

from comfyui.named.parameters import NAME

_LONGEST = 64
_TYPED = re.compile(r"(?:int|integer|float|number|string|text|boolean)\s*\((.+)\)", re.IGNORECASE)


def as_name(text: str) -> str:
    """The text itself if it is a name, or a name made of it in lower case; empty if that is impossible."""
    if NAME.fullmatch(text):
        return text
    shown = _TYPED.fullmatch(text.strip())
    name = re.sub(r"[^a-z0-9]+", "_", (shown[1] if shown else text).lower()).strip("_")[:_LONGEST].rstrip("_")
    if not name:
        return ""
    return name if name[0].isalpha() else f"_{name}"[:_LONGEST]


def unique(name: str, taken: Container[str], suffix: str = "") -> str:
    """The name; if it is taken, the name with a suffix or a number."""
    if name not in taken:
        return name
    if suffix:
        name = _joined(name, re.sub(r"[^A-Za-z0-9]+", "_", suffix))
    number, tried = 1, name
    while tried in taken:
        number += 1
        tried = _joined(name, str(number))
    return tried


def _joined(name: str, end: str) -> str:
    return f"{name[: _LONGEST - len(end) - 1]}_{end}"
