"""Changes that the editor makes to texts when it exports: dynamic prompts, and placeholders in file names."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import datetime
from random import Random

from comfyui.workflows.convert.graph import MISSING, Node

_LINE_END = re.compile(r"[\n\r\u2028\u2029]|\Z")
_MAX_NESTING = 100
_PLACEHOLDER = re.compile(r"%([^%]+)%")
_DATE_PART = re.compile(r"dd?|MM?|hh?|mm?|ss?|yyy?y?")
_NOT_IN_FILE_NAMES = re.compile(r'[/?<>\\:*|"\x00-\x1F\x7F]')


def _without_comments(text: str) -> str:
    """The text without ``/* … */`` and ``// …``. Not a pattern, which would take forever on many comments without an
    end.
    """
    kept, position, unfinished = [], 0, False
    while (start := text.find("/", position)) >= 0:
        kept.append(text[position:start])
        end = -1
        if text.startswith("//", start) and (found := _LINE_END.search(text, start)):
            end = found.start()
        elif text.startswith("/*", start) and not unfinished:
            end = text.find("*/", start + 2)
            unfinished = end < 0
            end = end + 2 if end >= 0 else end
        if end < 0:
            kept.append("/")
            end = start + 1
        position = end
    return "".join([*kept, text[position:]])


def choose_dynamic_prompt(text: str, rng: Random, nesting: int = 0) -> str:
    """Drop comments and replace each ``{a|b}`` by one of its choices; a backslash takes a sign's meaning away.

    Raises:
        ValueError: choices are nested deeper than anyone would by hand.
    """
    if nesting > _MAX_NESTING:
        raise ValueError("choices are nested too deeply")
    stripped = _without_comments(text)
    result, position = [], 0
    while position < len(stripped):
        char = stripped[position]
        position += 1
        if char == "\\":
            result.append(stripped[position - 1 : position + 1])
            position += 1
        elif char == "{":
            choices, position = _read_choices(stripped, position)
            result.append(choose_dynamic_prompt(rng.choice(choices), rng, nesting + 1))
        else:
            result.append(char)
    return re.sub(r"\\([{}|])", r"\1", "".join(result))


def _read_choices(text: str, position: int) -> tuple[list[str], int]:
    """The choices of a block whose ``{`` is just before `position`, and the position after its end."""
    choices, depth = [""], 0
    while position < len(text):
        char = text[position]
        position += 1
        if char == "\\":
            choices[-1] += text[position - 1 : position + 1]
            position += 1
            continue
        if char == "}" and depth == 0:
            break
        if char == "|" and depth == 0:
            choices.append("")
            continue
        depth += {"{": 1, "}": -1}.get(char, 0)
        choices[-1] += char
    return choices, position


def has_choices(text: str) -> bool:
    return re.search(r"(?<!\\)\{[^{}]*\|", _without_comments(text)) is not None


def fill_placeholders(text: str, nodes: Iterable[Node], now: datetime) -> str:
    """Replace ``%date:yyyy-MM-dd%`` and ``%Node title.widget%``; what names nothing stays, for ComfyUI to read."""
    known = list(nodes)

    def replacement(match: re.Match[str]) -> str:
        parts = match[1].split(".")
        if len(parts) != 2:
            is_date = parts[0].startswith("date:")
            return _DATE_PART.sub(lambda part: _date_part(part[0], now), parts[0][5:]) if is_date else match[0]
        named = [node for node in known if node.properties.get("Node name for S&R") == parts[0]]
        named = named or [node for node in known if node.title == parts[0]]
        widget = named[0].widget(parts[1]) if named else None
        if widget is None:
            return match[0]
        value = "" if widget.value is MISSING or widget.value is None else widget.value
        text = {True: "true", False: "false"}[value] if isinstance(value, bool) else str(value)
        return _NOT_IN_FILE_NAMES.sub("_", text)

    return _PLACEHOLDER.sub(replacement, text)


def _date_part(part: str, now: datetime) -> str:
    match part:
        case "yyyy":
            return str(now.year)
        case "yy":
            return str(now.year)[2:]
        case "yyy":
            return part
    # The editor writes hours of a 24-hour day for a small h.
    value = {"d": now.day, "M": now.month, "h": now.hour, "m": now.minute, "s": now.second}[part[0]]
    return str(value).zfill(len(part))
