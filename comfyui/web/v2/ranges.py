"""The bytes of a content that a request asks for: RFC 9110, at most one range of bytes. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

# A longer text is not a number of bytes of any file.
_RANGE = re.compile(r"\s*bytes\s*=\s*([0-9]{0,18})\s*-\s*([0-9]{0,18})\s*", re.IGNORECASE | re.ASCII)


@dataclass(frozen=True, slots=True)
class Part:
    """From byte `start` up to and including byte `end`. `is_whole`: no part was requested."""

    start: int
    end: int
    is_whole: bool = False

    @property
    def size(self) -> int:
        return self.end - self.start + 1


def part_of(range_header: str | None, size: int) -> Part | Literal["none"] | None:
    """The part of a content of `size` bytes; None for all of it, and "none" if it has no such part (416).

    A header that asks for several parts, or for something else than bytes, is as if it were not there.
    """
    match = _RANGE.fullmatch(range_header) if range_header else None
    if match is None or match[1] == match[2] == "":
        return None
    if match[1] == "":
        last = int(match[2])
        return Part(max(0, size - last), size - 1) if last and size else "none"
    start = int(match[1])
    end = int(match[2]) if match[2] else size - 1
    if match[2] and end < start:
        return None
    return Part(start, min(end, size - 1)) if start < size else "none"


def is_one_part(range_header: str) -> bool:
    """Whether it asks for one part of some content."""
    return part_of(range_header, 1) is not None
