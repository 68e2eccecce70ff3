"""An input that came as text: base64 or a data URI, as its content.

All of it is done in pieces: a step over the whole of a long text would let no other thread run.
"""

from __future__ import annotations

import base64
import binascii
import mimetypes
import re
from collections.abc import Iterator
from urllib.parse import unquote_to_bytes

from comfyui.exceptions import ComfyUIInputError
from comfyui.inputs.content import Content, too_large

# Including blanks and line ends before it, if it was pasted.
_DATA_URI = re.compile(r"\s{0,1000}data:([^,]{0,1000}),", re.IGNORECASE)
_WHITESPACE = b" \t\r\n\f\v"
_URL_SAFE = bytes.maketrans(b"-_", b"+/")
_ALPHABET = re.compile(rb"[A-Za-z0-9+/]*+")
_END = re.compile(rb"[A-Za-z0-9+/]++={0,2}")
_ESCAPE = re.compile(r"%[0-9A-Fa-f]{2}")
_GROUP = re.compile(rb"[^ ]+")
_GROUPS_LOOKED_AT = 1000
_NOT_AN_INPUT = "must be base64, a data URI or an http(s) URL"
# A multiple of four: what base64 makes of it begins and ends with a byte.
_PIECE = 1 << 20
_LONGEST_PADDING = 1024
# Characters by which is judged whether blanks stand for a lost '+'.
_BLANKS_JUDGED = 1 << 20


def is_data_uri(text: str) -> bool:
    return _DATA_URI.match(text) is not None


def head_of_data_uri(text: str) -> str:
    """The head of a data URI, before its base64."""
    match = _DATA_URI.match(text)
    if match is None:
        raise ValueError("must be a data URI")
    said = match[1] if _says_base64(match[1]) else f"{match[1]};base64"
    return f"data:{said},"


def plain_data_uri(text: str) -> Content | None:
    """The content of a data URI that can be written again, letter by letter, of its head and content; else None."""
    try:
        content = decode(text, max_bytes=len(text))
    except ComfyUIInputError:
        return None
    return content if head_of_data_uri(text) + base64_of(bytes(content.source)) == text else None


def base64_of(data: bytes) -> str:
    """Encodes in pieces, because the data may be long."""
    size = 3 * _PIECE // 4
    return "".join(base64.b64encode(data[start : start + size]).decode() for start in range(0, len(data), size))


def _says_base64(media_type: str) -> bool:
    return "base64" in (part.strip().lower() for part in media_type.split(";"))


def decode(text: str, *, max_bytes: int, hint: str = "", piece: int = _PIECE) -> Content:
    """A data URI or base64 (standard or URL-safe alphabet, white space ignored) as its content.

    A data URI says itself that it is base64, so there it may come without its padding.

    Args:
        hint: the extension if the bytes do not tell one.
        piece: how much is decoded in one step; a multiple of four.

    Raises:
        ComfyUIInputError: without naming the field.
    """
    if match := _DATA_URI.match(text):
        media_type, *parameters = (part.strip().lower() for part in match[1].split(";"))
        payload = text[match.end() :]
        hint = mimetypes.guess_extension(media_type) or hint
        if "base64" not in parameters:
            if len(payload) > 3 * max_bytes:
                raise too_large(max_bytes)
            return _of_bytes(b"".join(_unquoted(payload, piece)), max_bytes, hint)
        encoded = b"".join(_unquoted(payload, piece)) if "%" in payload else payload
        return _of_bytes(_base64(encoded, max_bytes, piece, unpadded=True), max_bytes, hint)
    return _of_bytes(_base64(text, max_bytes, piece, unpadded=False), max_bytes, hint)


def _of_bytes(data: bytes, max_bytes: int, hint: str) -> Content:
    if len(data) > max_bytes:
        raise too_large(max_bytes)
    return Content.of_bytes(data, hint)


def _unquoted(text: str, size: int) -> Iterator[bytes]:
    position = 0
    while position < len(text):
        end = position + size
        for inside in (1, 2):  # characters of an escape before the cut
            if _ESCAPE.match(text, end - inside):
                end += 3 - inside
                break
        yield unquote_to_bytes(text[position:end])
        position = end


def _base64(text: str | bytes, max_bytes: int, piece: int, *, unpadded: bool) -> bytes:
    parts: list[bytes] = []
    size = 0
    url_safe = blanks = lines = False
    for start in range(0, len(text), piece):
        raw = _ascii(text[start : start + piece])
        url_safe = url_safe or b"-" in raw or b"_" in raw
        blanks, lines = blanks or b" " in raw, lines or b"\n" in raw
        parts.append(raw.translate(_URL_SAFE, _WHITESPACE))
        size += len(parts[-1])
        # Checked before decoding, so that a text that is too large costs no more memory.
        if size * 3 // 4 > max_bytes + 2:
            raise too_large(max_bytes)
    packed = b"".join(parts)
    # Only the URL-safe alphabet is written without padding; otherwise a path such as /etc/passwd would pass for base64.
    unpadded = unpadded or url_safe
    missing = -size % 4
    if blanks and not lines and _is_base64(packed, piece) and _lost_plus(_ascii(text[:_BLANKS_JUDGED])):
        raise ComfyUIInputError(
            f"{_NOT_AN_INPUT}; its blanks may be '+' characters of base64 that were lost on the way"
        )
    if missing in {1, 2} and not unpadded and _is_base64(packed, piece):
        raise ComfyUIInputError(f"{_NOT_AN_INPUT}; if it is base64, its end is missing: the padding ('='), or more")
    return b"".join(_decoded(_without_idle_padding(packed + b"=" * missing if unpadded else packed), piece))


def _without_idle_padding(packed: bytes) -> bytes:
    """Python accepts needless padding, but only if it does not begin a piece."""
    end = packed[-_LONGEST_PADDING:]
    padding = len(end) - len(end.rstrip(b"="))
    return packed[:-padding] if padding and (len(packed) - padding) % 4 == 0 else packed


def _ascii(text: str | bytes) -> bytes:
    try:
        return text.encode("ascii") if isinstance(text, str) else text
    except UnicodeEncodeError as error:
        raise ComfyUIInputError(_NOT_AN_INPUT) from error


def _decoded(packed: bytes, size: int) -> Iterator[bytes]:
    for start in range(0, len(packed), size):
        piece = packed[start : start + size]
        try:
            if b"=" in piece and start + size < len(packed):
                raise binascii.Error("it has padding ('=') before its end")
            yield base64.b64decode(piece, validate=True)
        except binascii.Error as error:
            spoilt = _spoilt(packed)
            raise ComfyUIInputError(
                f"{_NOT_AN_INPUT}; if it is base64, {spoilt}" if spoilt else _NOT_AN_INPUT
            ) from error


def _spoilt(packed: bytes) -> str:
    """A known fault that a client made in its base64, for the error's text; empty if it is none of these."""
    start = packed[:200].lower()
    if start[:1] in (b'"', b"'"):
        return "it has quotes around it"
    if b"base64," in start:
        return (
            "it begins with 'base64,' but is not a data URI: put 'data:' and the media type before that, or remove it"
        )
    if b"\\n" in start or b"\\r" in start:
        return "its lines end in a backslash and a letter"
    return "it ends with too many '='" if packed.endswith(b"===") else ""


def _is_base64(packed: bytes, size: int) -> bool:
    last = max(0, (len(packed) - 1) // size * size)
    for start in range(0, last, size):
        match = _ALPHABET.match(packed, start, start + size)
        if match is None or match.end() != start + size:
            return False
    return _END.fullmatch(packed, last) is not None or (last > 0 and packed[last:] in {b"=", b"=="})


def _lost_plus(raw: bytes) -> bool:
    """Whether blanks in a base64 text come from a form decoder that read '+', and not from wrapped lines."""
    groups = [match[0] for match, _ in zip(_GROUP.finditer(raw.strip()), range(_GROUPS_LOOKED_AT), strict=False)]
    return len(groups) > 1 and (len(groups[0]) % 4 != 0 or any(len(group) != len(groups[0]) for group in groups[1:-1]))
