"""The one JSON reader, and the two JSON writers: one for our own answers, one for requests to ComfyUI.

ComfyUI reads and writes JSON as Python does: with NaN and infinities, lone surrogates and integers of any size. orjson
does most of the work; whatever it refuses, or would change, is read and written here as Python would do it. `dumps`
writes strict JSON, for everyone; `dumps_for_comfyui` changes no value.
"""

from __future__ import annotations

import codecs
import json
import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import orjson

from comfyui.exceptions import JSONError

# orjson makes a float of an integer that has more than 64 bits. Such an integer has at least 20 characters of these,
# which a translation shows in a fraction of the parser's time; only then is it looked for with a regular expression.
_LONG = b"0" * 20
_PIECE = 64 * 1024
_TO_DIGIT_RUNS = bytes(ord("0") if byte in b"-0123456789" else ord(".") for byte in range(256))
_BEYOND_64_BITS = re.compile(rb"-[0-9]{19}|[0-9]{21}|(?:1[89]|[2-9][0-9])[0-9]{18}")
_SURROGATES = re.compile("[\ud800-\udfff]")
_BYTE_ORDER_MARKS = (
    # The longer marks first: that of UTF-32 begins like that of UTF-16.
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)


MAX_DEPTH_FOR_COMFYUI = 450
"""ComfyUI copies each prompt that it takes out of its queue, with two of Python's 1000 frames for each level.

Measured on 0.3.64: at 490 levels all is well, at 495 it cannot show its history any more, and at 500 its prompt worker
dies, for all callers. Some levels are left for node packs that look at requests.
"""


class NonFinite(float):
    """NaN or an infinity that was read. orjson writes a plain float of this kind as null without a call; for this type
    it makes a call.

    Code that makes values for ComfyUI must not make plain NaN or infinities.
    """

    __slots__ = ()


def loads(text: bytes | bytearray | str) -> Any:
    """The value of a JSON text, as `json.loads` reads it; a UTF-8 byte order mark is skipped.

    Raises:
        JSONError: it is not JSON, is encoded in another encoding than UTF-8, is nested deeper than Python's recursion
            limit allows, or has an integer of more than `sys.get_int_max_str_digits` digits.
    """
    data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError:
        return _loads_as_python(data)
    if _has_long_run(data) and _BEYOND_64_BITS.search(data):
        return _loads_as_python(data)
    return value


def dumps(value: Any, *, indent: bool = False) -> bytes:
    """Strict JSON for our own answers and records: NaN and infinities become null, lone surrogates U+FFFD.

    Integers stay exact. Raises TypeError for a value that JSON cannot express.

    Args:
        indent: two blanks for each level, if orjson can write the value.
    """
    try:
        return orjson.dumps(value, default=_null, option=orjson.OPT_INDENT_2 if indent else None)
    except TypeError:
        return _written(value, _strict)


def dumps_for_comfyui(value: Any) -> bytes:
    """JSON as Python writes it, so that ComfyUI reads the same values.

    Raises:
        JSONError: it is nested more deeply than `MAX_DEPTH_FOR_COMFYUI`.
        TypeError: as `dumps`.
    """
    try:
        return orjson.dumps(value, default=_constant)
    except TypeError:
        return _written(value, _as_python, max_depth=MAX_DEPTH_FOR_COMFYUI)


def canonical(value: Any) -> bytes:
    """The same text for the same values, whatever the order of members, for a fingerprint. Otherwise as
    `dumps_for_comfyui`.
    """
    try:
        return orjson.dumps(value, default=_constant, option=orjson.OPT_SORT_KEYS)
    except TypeError:
        return _written(value, _as_python, sort_keys=True)


def without_surrogates(text: str) -> str:
    """The text with U+FFFD for each lone surrogate, which UTF-8 cannot carry."""
    return text if text.isascii() else _SURROGATES.sub("\ufffd", text)


# Reading


def _has_long_run(data: bytes | bytearray) -> bool:
    if len(data) <= _PIECE:
        return _LONG in data.translate(_TO_DIGIT_RUNS)
    starts = range(0, len(data), _PIECE - len(_LONG))
    return any(_LONG in data[start : start + _PIECE].translate(_TO_DIGIT_RUNS) for start in starts)


def _loads_as_python(data: bytes | bytearray) -> Any:
    try:
        return json.loads(_decoded(data), parse_constant=NonFinite, parse_float=_float)
    except RecursionError:
        raise JSONError("it is nested too deeply to be read", beyond_limits=True) from None
    except json.JSONDecodeError as error:
        raise JSONError(str(error)) from None
    except ValueError as error:
        if isinstance(error, JSONError):
            raise
        limit = sys.get_int_max_str_digits()
        raise JSONError(f"it has an integer of more than {limit} digits", beyond_limits=True) from None


def _decoded(data: bytes | bytearray) -> str:
    for mark, encoding in _BYTE_ORDER_MARKS:
        if data.startswith(mark):
            raise JSONError(f"it is encoded in {encoding}; send it in UTF-8")
    data = data.removeprefix(codecs.BOM_UTF8)
    # JSON begins with ASCII characters, which other encodings write with zero bytes.
    if b"\0" in data[:4]:
        raise JSONError("it is not encoded in UTF-8, but perhaps in UTF-16; send it in UTF-8")
    try:
        return data.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError as error:
        raise JSONError(f"it is not encoded in UTF-8: byte {error.start} cannot be read") from None


def _float(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else NonFinite(value)


# Writing


def _null(value: Any) -> None:
    """orjson calls this for a type that it does not know."""
    if not isinstance(value, NonFinite):
        raise TypeError(f"{type(value).__name__} has no form in JSON")


def _constant(value: Any) -> orjson.Fragment:
    if isinstance(value, NonFinite):
        return orjson.Fragment(_name(value).encode())
    raise TypeError(f"{type(value).__name__} has no form in JSON")


def _name(value: float) -> str:
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _strict(value: Any) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return "null"
    return json.dumps(without_surrogates(value), ensure_ascii=False) if isinstance(value, str) else _scalar(value)


def _as_python(value: Any) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return _name(value)
    return json.dumps(value) if isinstance(value, str) else _scalar(value)


def _scalar(value: Any) -> str:
    """A number, true, false, null, or a type that only orjson can write (a UUID, a date)."""
    if type(value) is int:
        return str(value)
    return orjson.dumps(value, default=_null).decode()


def _written(
    value: Any, scalar: Callable[[Any], str], *, sort_keys: bool = False, max_depth: float = math.inf
) -> bytes:
    """Written without recursion, so that every value that could be read can be written, however deeply it is nested."""
    texts: list[str] = []
    open_values = [_parts(value, scalar, sort_keys=sort_keys)]
    while open_values:
        for part in open_values[-1]:
            if isinstance(part, str):
                texts.append(part)
            else:
                open_values.append(part)
                if len(open_values) > max_depth:
                    raise JSONError(f"it is nested more than {max_depth} levels deep", beyond_limits=True)
                break
        else:
            open_values.pop()
    return "".join(texts).encode()


# The text of a value in pieces; a value with members is replaced by its own parts.
_Parts = Iterator["str | _Parts"]


def _parts(value: Any, scalar: Callable[[Any], str], *, sort_keys: bool) -> _Parts:
    if isinstance(value, Mapping):
        lead = "{"
        for key, member in sorted(value.items(), key=_key) if sort_keys else value.items():
            yield f"{lead}{scalar(key if isinstance(key, str) else _scalar(key))}:"
            yield _parts(member, scalar, sort_keys=sort_keys)
            lead = ","
        yield "{}" if lead == "{" else "}"
    elif isinstance(value, list | tuple):
        lead = "["
        for member in value:
            yield lead
            yield _parts(member, scalar, sort_keys=sort_keys)
            lead = ","
        yield "[]" if lead == "[" else "]"
    else:
        yield scalar(value)


def _key(item: tuple[Any, Any]) -> str:
    return str(item[0])
