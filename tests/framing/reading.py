"""Compares what our reader and the judges read from an answer's bytes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from comfyui.exceptions import FramingError
from comfyui.transport.framing import AnswerReader
from tests.framing.judges import Reading, RefusedError, answer_by_h11, answer_by_h11r


@dataclass
class Tally:
    """The counts of a run; `differences` has to be empty."""

    examples: int = 0
    readings: int = 0
    bytes_read: int = 0
    bytes_sent: int = 0
    complete: int = 0
    refused: int = 0
    by_rule: dict[str, int] = field(default_factory=dict)
    differences: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        rules = "".join(f"\n    {count:7,}  {rule}" for rule, count in sorted(self.by_rule.items()))
        return (
            f"{self.examples:,} examples, {self.readings:,} answers read ({self.complete:,} whole, {self.refused:,} "
            f"refused or failed), {self.bytes_read:,} bytes of answers and {self.bytes_sent:,} bytes of requests "
            f"judged, {len(self.differences)} differences"
        ) + (f"\n  taken by h11r, refused by us:{rules}" if rules else "")


# We are stricter than h11r on purpose: it repairs or overlooks these.
_RULES = {
    "a line that ends in a bare LF": re.compile(rb"(?<!\r)\n"),
    "a header on several lines": re.compile(rb"\r\n[ \t]"),
    "an empty line before the status line": re.compile(rb"(?:\A|\r\n\r\n)\r?\n(?:HTTP/)?"),
    "two Content-Length headers": re.compile(rb"(?is)\ncontent-length[ \t]*:.*\ncontent-length[ \t]*:"),
    "a Content-Length that is no number": re.compile(rb"(?i)\ncontent-length:[ \t]*(?![0-9]{1,18}[ \t]*\r\n)"),
    "a Transfer-Encoding that is not 'chunked' alone": re.compile(
        rb"(?is)\ntransfer-encoding:[ \t]*(?!chunked[ \t]*\r\n)"
        rb"|\ntransfer-encoding:.*\n(?:content-length|transfer-encoding):|\ncontent-length:.*\ntransfer-encoding:"
        rb"|HTTP/1\.0.*\ntransfer-encoding:"
    ),
    "spaces around a chunk's extension, or a size of many digits": re.compile(
        rb"(?i)\r\n[0-9a-f]+(?:[ \t]+(?:;|\r)|;[^\r\n]*[ \t])|\r\n[0-9a-f]{17}"
    ),
    "a status above 599": re.compile(rb"HTTP/1\.[01] [6-9]"),
}


def rule_of(data: bytes) -> str | None:
    """The rule of ours that these bytes break, or None."""
    return next((rule for rule, pattern in _RULES.items() if pattern.search(data)), None)


def read_by_us(method: str, pieces: list[bytes], *, ended: bool) -> Reading:
    """Reads an answer with our reader. Raises `RefusedError`."""
    reader = AnswerReader(method)
    body = b""
    try:
        for piece in pieces:
            body += reader.feed(piece)
    except FramingError as error:
        raise RefusedError(str(error)) from error
    if ended:
        reader.end()
    return normal(Reading(reader.status, tuple(reader.headers), body, reader.complete, reader.excess))


def judged(method: str, data: bytes, *, ended: bool) -> dict[str, Reading | str]:
    """Each judge's reading, or why it refuses."""
    readings: dict[str, Reading | str] = {}
    for name, judge in (("h11r", answer_by_h11r), ("h11", answer_by_h11)):
        try:
            readings[name] = normal(judge(method, data, ended=ended))
        except RefusedError as error:
            readings[name] = f"refused: {error}"
    return readings


def normal(reading: Reading) -> Reading:
    """The reading with Transfer-Encoding in lower case, as h11 has it."""
    reading.headers = tuple(
        (name, value.lower() if name == b"transfer-encoding" else value) for name, value in reading.headers
    )
    return reading


def check_reading(tally: Tally, method: str, pieces: list[bytes], *, ended: bool, valid: bool) -> None:
    """Reads these bytes in these pieces and in others, and adds differences from the judges to the tally."""
    data = b"".join(pieces)
    theirs = judged(method, data, ended=ended)
    tally.examples += 1
    for cut in _cuts(pieces, data):
        tally.readings += 1
        tally.bytes_read += len(data)
        difference = _difference(tally, method, cut, theirs, ended=ended, valid=valid)
        if difference is not None:
            tally.differences.append(f"{method} {data[:600]!r} ({ended=}): {difference}")
            return


def _cuts(pieces: list[bytes], data: bytes) -> Iterator[list[bytes]]:
    yield pieces
    yield [data]
    if len(data) < 1500:
        yield [data[at : at + 1] for at in range(len(data))]
        yield [data[at : at + 7] for at in range(0, len(data), 7)]


def _difference(
    tally: Tally, method: str, pieces: list[bytes], theirs: dict[str, Reading | str], *, ended: bool, valid: bool
) -> str | None:
    try:
        ours = read_by_us(method, pieces, ended=ended)
    except RefusedError as error:
        tally.refused += 1
        if valid:
            return f"valid, and we refuse: {error}"
        strict = theirs["h11r"]
        if isinstance(strict, Reading) and strict.complete:
            rule = rule_of(b"".join(pieces))
            if rule is None:
                return f"we refuse ({error}), h11r reads {strict!r}"
            tally.by_rule[rule] = tally.by_rule.get(rule, 0) + 1
        return None
    tally.complete += ours.complete
    for name, judgement in theirs.items():
        reading = judgement
        if ours.excess and isinstance(reading, str):
            # h11r reads a blank behind the trailers as a folded trailer. We close the connection instead.
            rest = judged(method, b"".join(pieces).rstrip(b" \t"), ended=ended)[name]
            reading = replace(rest, excess=True) if isinstance(rest, Reading) else rest
        if ours.complete and ours != reading:
            return f"we read {ours!r}, {name} {reading!r}"
        if not ours.complete and isinstance(reading, Reading) and reading.complete:
            return f"we wait for more, {name} reads {reading!r}"
    return None
