"""File names in ``multipart/form-data``: written so that ComfyUI keeps them, and read as every client means them.

Clients put a part's name into one header, ``Content-Disposition``, but disagree about its escapes. Browsers, Node and
Java write ``"`` as ``%22`` and leave a percent sign as it is; curl, Go and .NET write ``\\"``; aiohttp percent-encodes
everything; some write only ``filename*=UTF-8''…``, which RFC 7578 forbids. So a written name is unambiguous for
ComfyUI's aiohttp (measured on 0.3.64), and a name that is read stays open until the workflow's name for it is known.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection
from dataclasses import dataclass
from email.errors import HeaderParseError
from email.header import decode_header
from urllib.parse import quote, unquote, unquote_to_bytes

# aiohttp ends a quoted name at a semicolon when there are two, and drops a slash or a backslash at its start.
_NOT_PLAIN = re.compile(r'["\\;\x00-\x1f\x7f]|^/')
# A quoted value ends at a quote before ';' or the end: some clients write quotes within it without an escape. A value
# without an end takes the rest, so that no header is read more than once.
_PARAMETER = re.compile(
    rb';[ \t]*([^\s=;"]+)[ \t]*=[ \t]*(?:"((?:\\.|[^"\\]|"(?![ \t]*(?:;|\Z)))*)"|(".*|[^;]*))', re.DOTALL
)
_QUOTED_PAIR = re.compile(rb'\\(["\\])')
_EXTENDED = re.compile(rb"([^']*)'[^']*'(.*)", re.DOTALL)
_ENCODED_WORD = re.compile(r"=\?[^?\s]+\?[bBqQ]\?[^?\s]*\?=")
_BROWSER_ESCAPE = re.compile(r"%(?:22|0[AaDd])")
_DRIVE = re.compile(r"[A-Za-z]:/|//")
_INPUT_SUFFIX = " [input]"


def file_disposition(field: str, filename: str) -> str:
    """The ``Content-Disposition`` of a file part, from which ComfyUI reads exactly `filename`.

    If ComfyUI would read the quoted form as another name, ``filename*`` has it, too; ComfyUI prefers that.
    """
    plain = _NOT_PLAIN.sub(lambda match: quote(match[0], safe=""), filename)
    written = f'form-data; name="{field}"; filename="{plain}"'
    return written if plain == filename else f"{written}; filename*=UTF-8''{quote(filename, safe='')}"


@dataclass(frozen=True, slots=True)
class Disposition:
    """The contents of a part's ``Content-Disposition``.

    Attributes:
        name: of the field; None if it has none.
        filenames: the possible names of the file, the likeliest first; none for a text, ``("",)`` for a file without a
            name.
    """

    name: str | None
    filenames: tuple[str, ...]


def parse_disposition(header: bytes) -> Disposition:
    """Never raises: parts that cannot be understood are left out. Folders in names are separated by ``/``."""
    values: dict[str, bytes] = {}
    for match in _PARAMETER.finditer(header):
        key, quoted, token = match[1].decode("latin-1").lower(), match[2], match[3]
        value = _QUOTED_PAIR.sub(rb"\1", quoted) if quoted is not None else token.strip().strip(b'"')
        values.setdefault(key, value)
    name = _extended(values.get("name*")) or _text(values.get("name"))
    return Disposition(name, _filenames(_extended(values.get("filename*")), _text(values.get("filename"))))


def _filenames(extended: str | None, literal: str | None) -> tuple[str, ...]:
    given = [text for text in (extended, literal) if text is not None]
    decoded = [] if literal is None else [_browser_escapes(literal), unquote(literal), _encoded_words(literal)]
    names = [_relative(text) for text in (*given, *decoded)]
    return tuple(dict.fromkeys([name for name in names if name] or names[:1]))


def _relative(path: str) -> str:
    """The path with ``/`` between folders, and without the folders of a caller's disk (as Internet Explorer sent
    them).
    """
    path = path.replace("\\", "/")
    return path.rpartition("/")[2] if _DRIVE.match(path) else path


def _browser_escapes(text: str) -> str:
    return _BROWSER_ESCAPE.sub(lambda match: unquote(match[0]), text)


def _extended(value: bytes | None) -> str | None:
    """RFC 5987's ``charset'language'percent-encoded``; None for another form."""
    match = _EXTENDED.fullmatch(value) if value is not None else None
    if match is None:
        return None
    try:
        return unquote_to_bytes(match[2]).decode(match[1].decode("ascii") or "utf-8")
    except (LookupError, UnicodeDecodeError):
        return None


def _text(value: bytes | None) -> str | None:
    """UTF-8, which all present clients write; otherwise Latin-1, in which any bytes are a text."""
    if value is None:
        return None
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")


def _encoded_words(text: str) -> str:
    """RFC 2047's ``=?utf-8?B?…?=``, which .NET writes; a text without it is unchanged."""
    if not _ENCODED_WORD.search(text):
        return text
    try:
        parts = decode_header(text)
        return "".join(part.decode(charset or "ascii") if isinstance(part, bytes) else part for part, charset in parts)
    except (HeaderParseError, LookupError, UnicodeDecodeError, ValueError):
        return text


def settle(files: Collection[tuple[str, ...]], references: Collection[str]) -> list[str]:
    """One name for each file: the first of its possible names that the workflow refers to, or its likeliest one.

    Args:
        files: the possible names of each file, as in `Disposition.filenames`.
        references: the texts of the workflow's inputs. A name in another Unicode form (macOS decomposes letters with
            accents) or with ComfyUI's suffix ``[input]`` is the same name.

    A name that is the likeliest one of a file is never given to another file.
    """
    spelled = {_comparable(reference): _reference(reference) for reference in references}
    spelled |= {reference: reference for reference in map(_reference, references)}
    likeliest = {_spelled(names[0], spelled) or names[0] for names in files}
    settled = []
    for names in files:
        first, *others = names
        alternatives = [found for name in others if (found := _spelled(name, spelled)) and found not in likeliest]
        settled.append(_spelled(first, spelled) or (alternatives[0] if alternatives else first))
    return settled


def _spelled(name: str, spelled: dict[str, str]) -> str | None:
    """The workflow's spelling of the name; None if the workflow does not refer to it."""
    return spelled.get(name) or spelled.get(_comparable(name))


def _reference(text: str) -> str:
    return text.removesuffix(_INPUT_SUFFIX).replace("\\", "/")


def _comparable(text: str) -> str:
    return unicodedata.normalize("NFC", _reference(text))
