"""A graph as a person reads it: nodes in the order in which they run, with the values that they were given. Pure."""

from __future__ import annotations

import math
import re
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from comfyui import jsonio
from comfyui.exceptions import RequestError
from comfyui.limits import short
from comfyui.workflows.api_format import CACHE_TOKEN_INPUT, Prompt, is_link, node_order, node_title

MOST_NODES = 500
"""Nodes of a graph that a page shows."""
_MOST_VALUES = 1000
_LONGEST_SHOWN = 20_000
# Characters of values of a whole page: to write them takes the event loop 10 ms for each MB of the page.
_MOST_SHOWN = 300_000
# Characters that a table shows without being asked.
_LONGEST_PLAIN = 160
_SEEDS = frozenset({"seed", "noise_seed"})
# The largest integer up to which every program that reads JSON agrees on the value.
_LARGEST_SEED = 2**53 - 1

_INTEGER = re.compile(r"[+-]?[0-9]+")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?", re.IGNORECASE)
_NONE: Any = object()

Kind = Literal["text", "integer", "number", "boolean", "json"]
_WANTED: Mapping[Kind, str] = {
    "integer": "a number",
    "number": "a number",
    "boolean": "true or false",
    "json": "JSON",
}


@dataclass(frozen=True, slots=True)
class Value:
    """One value that stands in a graph, and comes from no other node.

    Attributes:
        field: its name in the form.
        text: as it is shown and typed, at most 20,000 characters; fewer where much is shown before it.
        is_cut: it is longer than that, so that it cannot be changed on a page.
    """

    field: str
    node_id: str
    name: str
    kind: Kind
    text: str
    is_cut: bool

    @property
    def is_long(self) -> bool:
        """Whether it is folded in a table, and has several lines in a form."""
        return len(self.text) > _LONGEST_PLAIN or "\n" in self.text


@dataclass(frozen=True, slots=True)
class Node:
    """One node with its values."""

    node_id: str
    title: str
    class_type: str
    values: tuple[Value, ...]


def in_order(prompt: Prompt) -> list[str]:
    """The ids of all nodes: each behind those that feed it, otherwise by their ids. What is on a cycle comes last."""
    left = {node_id: {one for one in _sources(prompt[node_id]) if one in prompt} for node_id in node_order(prompt)}
    followers: dict[str, list[str]] = {node_id: [] for node_id in left}
    for node_id, sources in left.items():
        for source in sources:
            followers[source].append(node_id)
    ready = [node_id for node_id, sources in left.items() if not sources][::-1]
    found: list[str] = []
    while ready:
        node_id = ready.pop()
        found.append(node_id)
        free = []
        for follower in followers[node_id]:
            left[follower].discard(node_id)
            if not left[follower]:
                free.append(follower)
        ready += free[::-1]
    done = set(found)
    return found + [node_id for node_id in left if node_id not in done]


def nodes_of(prompt: Prompt) -> list[Node]:
    """The first `MOST_NODES` nodes of a graph in the order in which they run."""
    nodes: list[Node] = []
    count, left = 0, _MOST_SHOWN
    for position, node_id in enumerate(in_order(prompt)[:MOST_NODES]):
        node, values = prompt[node_id], []
        for index, (name, value) in enumerate(_values(node)):
            if count >= _MOST_VALUES:
                break
            count += 1
            longest = min(_LONGEST_SHOWN, max(_LONGEST_PLAIN, left))
            values.append(shown := _shown(f"v{position}-{index}", node_id, name, value, longest))
            left -= len(shown.text)
        class_type = node.get("class_type") if isinstance(node, Mapping) else None
        nodes.append(Node(node_id, node_title(prompt, node_id), short(str(class_type)), tuple(values)))
    return nodes


def changed(prompt: Prompt, shown: Prompt, fields: Mapping[str, str]) -> tuple[dict[str, Any], int]:
    """A copy of the graph with what a form says, and how many values differ from before.

    A value that the visitor did not change stays as it is in the graph.

    Args:
        shown: the graph as the form has it.
        fields: of the form.

    Raises:
        RequestError: a value is none of its kind, with the node and the input.
    """
    found, count = dict(prompt), 0
    for node in nodes_of(shown):
        for value in node.values:
            given = fields.get(value.field)
            if given is None or value.is_cut:
                continue
            # A browser sends the end of a line as two characters.
            given = given.replace("\r\n", "\n")
            if given == value.text.replace("\r\n", "\n"):
                continue
            _put(found, prompt, value, _parsed(node, value, given))
            count += 1
    return found, count


def with_new_seeds(prompt: Prompt) -> tuple[dict[str, Any], int]:
    """A copy of the graph with other seeds, and how many there are."""
    found, count = dict(prompt), 0
    for node_id, node in prompt.items():
        for name, value in _values(node):
            if _is_seed(name, value):
                count += 1
                _put(found, prompt, _shown("", node_id, name, value), secrets.randbelow(_LARGEST_SEED + 1))
    return found, count


def has_seeds(prompt: Prompt) -> bool:
    """Whether `with_new_seeds` would change anything."""
    return any(_is_seed(name, value) for node in prompt.values() for name, value in _values(node))


def _put(found: dict[str, Any], prompt: Prompt, value: Value, new: Any) -> None:
    node = found[value.node_id]
    if node is prompt[value.node_id]:
        found[value.node_id] = node = {**node, "inputs": dict(node["inputs"])}
    node["inputs"][value.name] = new


def _inputs(node: Any) -> Mapping[str, Any]:
    inputs = node.get("inputs") if isinstance(node, Mapping) else None
    return inputs if isinstance(inputs, Mapping) else {}


def _sources(node: Any) -> Iterator[str]:
    return (value[0] for value in _inputs(node).values() if is_link(value))


def _values(node: Any) -> Iterator[tuple[str, Any]]:
    found = _inputs(node).items()
    return ((name, value) for name, value in found if not is_link(value) and name != CACHE_TOKEN_INPUT)


def _is_seed(name: str, value: Any) -> bool:
    """Whether another value gives another result of the same kind."""
    return name in _SEEDS and _kind_of(value) == "integer"


def _kind_of(value: Any) -> Kind:
    if isinstance(value, str):
        return "text"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int):
        return "integer"
    return "number" if isinstance(value, float) else "json"


def _shown(field: str, node_id: str, name: str, value: Any, longest: int = _LONGEST_SHOWN) -> Value:
    kind = _kind_of(value)
    text = value if kind == "text" else jsonio.dumps_for_comfyui(value).decode()
    shown = jsonio.without_surrogates(text[:longest])
    return Value(field, node_id, name, kind, shown, len(text) > longest)


def _parsed(node: Node, value: Value, text: str) -> Any:
    if value.kind == "text":
        return text
    try:
        found = _number(text.strip()) if value.kind in {"integer", "number"} else jsonio.loads(text)
    except ValueError:
        found = _NONE
    if found is _NONE or (value.kind == "boolean" and not isinstance(found, bool)):
        where = f"{short(node.title)} (node {short(node.node_id)}), {short(value.name)}"
        raise RequestError(f"{where} must be {_WANTED[value.kind]}")
    return found


def _number(text: str) -> float:
    """Raises ValueError."""
    if _INTEGER.fullmatch(text):
        return int(text)
    found = float(text) if _NUMBER.fullmatch(text) else math.nan
    if not math.isfinite(found):
        raise ValueError("no number")
    return found
