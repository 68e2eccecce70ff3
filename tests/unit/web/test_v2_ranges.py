"""Byte ranges of contents by RFC 9110."""

from __future__ import annotations

import pytest

from comfyui.web.v2.ranges import Part, is_one_part, part_of


@pytest.mark.parametrize(
    ("header", "size", "part"),
    [
        ("bytes=0-3", 10, Part(0, 3)),
        ("bytes=0-", 10, Part(0, 9)),
        ("bytes=9-9", 10, Part(9, 9)),
        ("bytes=9-99", 10, Part(9, 9)),
        ("bytes=-3", 10, Part(7, 9)),
        ("bytes=-99", 10, Part(0, 9)),
        (" Bytes = 1 - 2 ", 10, Part(1, 2)),
        ("bytes=10-", 10, "none"),
        ("bytes=10-12", 10, "none"),
        ("bytes=-0", 10, "none"),
        ("bytes=0-", 0, "none"),
        ("bytes=-1", 0, "none"),
        (None, 10, None),
        ("", 10, None),
        ("bytes=-", 10, None),
        ("bytes=3-2", 10, None),
        ("bytes=0-1,3-4", 10, None),
        ("items=0-1", 10, None),
        ("bytes=٣-٤", 10, None),
        (f"bytes={'9' * 19}-", 10, None),
    ],
)
def test_a_range_is_one_part_or_unsatisfiable_or_ignored(
    header: str | None, size: int, part: Part | str | None
) -> None:
    assert part_of(header, size) == part
    if isinstance(part, Part):
        assert part.size == part.end - part.start + 1
    if header and part is None:
        assert not is_one_part(header)
