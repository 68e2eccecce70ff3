"""Reads large JSON texts without blocking other threads.

A parser keeps Python's lock from its first byte to its last: 100 MB took 0.2 s as one string and 5 s as many small
objects, while no other thread ran, not even the event loop's. So a large text is first scanned in short pieces. The
scan counts its values and its depth, and refuses a text over a limit before any object is made of it. Long strings
(mostly base64 of pictures) are cut out, decoded in pieces, and put in again.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from comfyui.exceptions import ComfyUIDepthError, ComfyUILimitError
from comfyui.jsonio import loads
from comfyui.limits import Limits, over
from comfyui.offload import ON_LOOP_BYTES

# A longer name of a member is refused, because names are not cut out.
_LONGEST_NAME = 128 * 1024
# A number that fills a whole piece is refused too.
_LONGEST_NUMBER = 64 * 1024
_STRING = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_whole_string = re.compile(_STRING, re.DOTALL)
# Matches as many whole tokens as possible: it ends at the end, or at the quote of a string that does not end there.
_tokens = re.compile(rb'(?:[^"]++|' + _STRING + rb")*+", re.DOTALL)
# Matches the inside of a string: it ends at the end, at the closing quote, or at a character that no string may
# contain.
_inside = re.compile(rb'[^"\\\x00-\x1f]*+(?:\\(?:u[0-9a-fA-F]{4}|[^u\x00-\x1f])[^"\\\x00-\x1f]*+)*+', re.DOTALL)
_space = re.compile(rb"[ \t\r\n]*+")
_string_or_blanks = re.compile(rb"(" + _STRING + rb")|[ \t\r\n]{2,}+", re.DOTALL)
_OF_NUMBERS = b"0123456789+-.eE"
_NO_BLANKS = bytes(set(range(256)) - set(b" \t\r\n"))
_low_surrogate = re.compile(rb"\\u[dD][c-fC-F]")

_OPEN = b"[{"
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


@dataclass(frozen=True, slots=True)
class Steps:
    """How much is done in one step, in bytes. Other values are for tests: they change the time, never the result."""

    whole: int = ON_LOOP_BYTES
    """A text up to this size is parsed as it is."""
    scanned: int = 128 * 1024
    parsed: int = 2 << 20
    """A parser reads this much in some milliseconds. All strings are cut out of a longer text, except those up to
    `short`.
    """
    short: int = 64
    decoded: int = 1 << 20


_STEPS = Steps()


class _NotJsonError(Exception):
    """The text is not JSON; the parser says better why."""


def load(text: bytes | bytearray, limits: Limits, steps: Steps = _STEPS) -> Any:
    """Reads a JSON text as `jsonio.loads` does.

    Raises:
        ComfyUILimitError: more values or more depth than `limits` allows. Values are not counted in a short text.
        JSONError: from `jsonio.loads`.
    """
    # The depth of a text is at most the number of its brackets.
    if len(text) <= steps.whole and text.count(b"[") + text.count(b"{") <= limits.max_json_depth:
        return loads(text)
    try:
        scan = _Scan(text, limits, steps)
        strings = scan.long_strings()
        if scan.blanks > steps.parsed:
            text = _without_blanks(text, steps)
            strings = _Scan(text, limits, steps).long_strings()
        if not strings:
            return loads(text)
        return _put_in(*_skeleton(text, strings, steps))
    except _NotJsonError:
        return loads(text)


class _Scan:
    """One pass over a text, which counts and makes nothing.

    Attributes:
        blanks: bytes between the tokens that mean nothing.
    """

    def __init__(self, text: bytes | bytearray, limits: Limits, steps: Steps) -> None:
        self._text = text
        self._limits = limits
        self._steps = steps
        self._values = 1
        self._depth = 0
        self.blanks = 0

    def long_strings(self) -> list[tuple[int, int]]:
        """Each long string as its positions from quote to quote. Raises `ComfyUILimitError`."""
        found: list[tuple[int, int]] = []
        text, steps, position = self._text, self._steps, 0
        cuts = len(text) > steps.parsed
        while position < len(text):
            match = _tokens.match(text, position, position + steps.scanned)
            end = match.end() if match else position
            self._count(_whole_string.sub(b"", text[position:end]))
            if cuts:
                strings = (match.span() for match in _whole_string.finditer(text, position, end))
                found += [(start, stop) for start, stop in strings if stop - start > steps.short]
            position = end
            if end < len(text) and text[end : end + 1] == b'"':
                position = _end_of_string(text, end, steps)
                found.append((end, position))
        return found if cuts else []

    def _count(self, outside: bytes) -> None:
        """Count the text between strings."""
        self.blanks += len(outside.translate(None, _NO_BLANKS))
        if len(outside) >= _LONGEST_NUMBER and not outside.translate(None, _OF_NUMBERS):
            raise ComfyUILimitError(f"a number in the JSON has more than {_LONGEST_NUMBER} characters")
        # Every value but the first of each list or object comes after a comma.
        self._values += outside.count(b",") + outside.count(b"[") + outside.count(b"{")
        if self._values > self._limits.max_json_values:
            raise over("the JSON has more than {limit} values", self._limits.max_json_values, "MAX_JSON_VALUES")
        for bracket in outside.translate(None, _NO_BRACKETS):
            self._depth += 1 if bracket in _OPEN else -1
            if self._depth > self._limits.max_json_depth:
                raise ComfyUIDepthError(f"the JSON is nested more than {self._limits.max_json_depth} levels deep")


def _without_blanks(text: bytes | bytearray, steps: Steps) -> bytes:
    """The same JSON with one blank for many: a parser passes over 100 MB of them in one step."""
    parts: list[bytes | bytearray] = []
    position = 0
    while position < len(text):
        match = _tokens.match(text, position, position + steps.scanned)
        end = match.end() if match else position
        parts.append(_string_or_blanks.sub(lambda found: found[1] or b" ", text[position:end]))
        position = end
        if end < len(text) and text[end : end + 1] == b'"':
            position = _end_of_string(text, end, steps)
            parts.append(text[end:position])
    return b"".join(parts)


def _end_of_string(text: bytes | bytearray, start: int, steps: Steps) -> int:
    """The position after the closing quote."""
    position = start + 1
    while True:
        end = _boundary(text, position, steps)
        if text[end : end + 1] == b'"':
            return end + 1
        if end == position:
            raise _NotJsonError
        position = end


def _boundary(text: bytes | bytearray, position: int, steps: Steps) -> int:
    """The end of the next piece of a string: never within an escape."""
    match = _inside.match(text, position, position + steps.decoded)
    return match.end() if match else position


def _skeleton(text: bytes | bytearray, strings: list[tuple[int, int]], steps: Steps) -> tuple[bytes, dict[str, str]]:
    """The text with a mark for each long string, and the strings by their marks."""
    secret = secrets.token_hex(16)  # which no text of a caller contains by chance or on purpose
    parts: list[bytes | bytearray] = []
    by_mark: dict[str, str] = {}
    position = 0
    for start, end in strings:
        space = _space.match(text, end)
        after = space.end() if space else end
        if text[after : after + 1] == b":":
            if end - start > _LONGEST_NAME:
                raise ComfyUILimitError(f"a name in the JSON has more than {_LONGEST_NAME} bytes")
            continue
        mark = f"{secret}{len(by_mark)}"
        by_mark[mark] = "".join(_decoded(text, start + 1, end - 1, steps))
        parts += (text[position:start], b'"%b"' % mark.encode())
        position = end
    parts.append(text[position:])
    return b"".join(parts), by_mark


def _decoded(text: bytes | bytearray, position: int, stop: int, steps: Steps) -> Iterator[str]:
    """The inside of a string in pieces."""
    while position < stop:
        end = _boundary(text, position, steps)
        # A cut must not fall within a character of several bytes, nor between the two halves of a surrogate pair.
        while end < stop and text[end] & 0xC0 == 0x80:
            end += 1
        if _low_surrogate.match(text, end, stop):
            end += 6
        piece: str = loads(b'"%b"' % bytes(text[position:end]))
        yield piece
        position = end


def _put_in(skeleton: bytes, by_mark: dict[str, str]) -> Any:
    root = [loads(skeleton)]
    pending: list[Any] = [root]
    while pending:
        container = pending.pop()
        for key, value in list(container.items() if isinstance(container, dict) else enumerate(container)):
            if isinstance(value, dict | list):
                pending.append(value)
            elif isinstance(value, str) and value in by_mark:
                container[key] = by_mark[value]
    return root[0]
