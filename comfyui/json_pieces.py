"""Writes large values as JSON without blocking other threads.

The writer keeps Python's lock from its first byte to its last: 50 MB took up to 0.2 s. So a large value is written in
pieces. Its size is estimated from its contents, and only as far as needed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from comfyui.jsonio import dumps

# The size of a piece, which is written in about a millisecond.
PIECE = 256 * 1024
# About how many bytes a value takes besides its text.
_VALUE = 8
# How many levels of a value are divided; deeper ones are written as they are.
_DEEPEST = 50


def is_large(value: Any, size: int = PIECE) -> bool:
    """Whether the JSON has about `size` bytes or more. Only strings, lists, and dicts with strings as keys can be
    large.
    """
    return _size(value, size) >= size


def pieces(value: Any, size: int = PIECE) -> Iterator[bytes]:
    """The JSON of `jsonio.dumps` in pieces of about `size` bytes; a small value is one piece."""
    return _pieces(value, size, 0)


def _pieces(value: Any, size: int, depth: int) -> Iterator[bytes]:
    if depth > _DEEPEST or not is_large(value, size):
        yield dumps(value)
    elif isinstance(value, str):
        yield b'"'
        for start in range(0, len(value), size):
            yield dumps(value[start : start + size])[1:-1]
        yield b'"'
    elif isinstance(value, dict):
        # The text of a member without the braces; `{key: 0}` makes the text of the name alone.
        members = ((member, {key: member}, dumps({key: 0})[1:-2]) for key, member in value.items())
        yield from _members(b"{", members, b"}", size, depth)
    elif isinstance(value, list):
        yield from _members(b"[", ((member, [member], b"") for member in value), b"]", size, depth)
    else:
        raise AssertionError("only these can be large")


def _members(
    lead: bytes, members: Iterator[tuple[Any, Any, bytes]], closing: bytes, size: int, depth: int
) -> Iterator[bytes]:
    """`members`: each value, alone in a container, and the text before it."""
    batch = bytearray()
    for member, alone, name in members:
        if is_large(member, size):
            yield bytes(batch) + lead + name
            yield from _pieces(member, size, depth + 1)
            batch.clear()
        else:
            batch += lead + dumps(alone)[1:-1]
            if len(batch) >= size:
                yield bytes(batch)
                batch.clear()
        lead = b","
    yield bytes(batch) + closing


def _size(value: Any, most: int) -> int:
    """About how many bytes the JSON has, counted up to `most`."""
    size = 0
    pending = [value]
    while pending and size < most:
        found = pending.pop()
        size += _VALUE
        if isinstance(found, str):
            size += len(found)
        elif isinstance(found, dict):
            size += _VALUE * len(found)
            if size < most:
                size += len("".join(found))
                pending += found.values()
        elif isinstance(found, list):
            size += _VALUE * len(found)
            if size < most:
                pending += found
    return size
