"""Order and identity of a workflow's nodes: which runs next, and what makes two of them the same for the cache."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from typing import Any, TypeGuard

from comfyui.engine.nodes.registry import NODES

Prompt = dict[str, dict[str, Any]]


def is_link(value: Any) -> TypeGuard[list[Any]]:
    """`[node id, output index]`; a list that is anything else is a plain value."""
    return (
        isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], int | float)
    )


def links(node: dict[str, Any]) -> list[list[Any]]:
    return [value for value in node["inputs"].values() if is_link(value)]


def is_output(prompt: Prompt, node_id: str) -> bool:
    return NODES[prompt[node_id]["class_type"]].output_node


class Schedule:
    """The nodes still to run for some outputs. `is_cached` says which need not, and so not what feeds them either."""

    def __init__(self, prompt: Prompt, outputs: Iterable[str], is_cached: Callable[[str], bool]) -> None:
        self._prompt = prompt
        self._waits_for: dict[str, set[str]] = {}
        self._feeds: dict[str, list[str]] = {}
        stack = list(outputs)
        while stack:
            node_id = stack.pop()
            if node_id in self._waits_for:
                continue
            sources = {link[0] for link in links(prompt[node_id]) if not is_cached(link[0])}
            self._waits_for[node_id] = sources
            for source in sources:
                self._feeds.setdefault(source, []).append(node_id)
            stack.extend(sources)

    def __bool__(self) -> bool:
        return bool(self._waits_for)

    def next(self) -> str:
        """Output nodes first, then the nodes nearest to one, so that a result shows early. ValueError on a cycle."""
        ready = [node_id for node_id, sources in self._waits_for.items() if not sources]
        if not ready:
            raise ValueError("Dependency cycle detected")
        return min(ready, key=self._distance_to_output)

    def _distance_to_output(self, node_id: str) -> int:
        level = [node_id]
        for distance in range(3):
            if any(is_output(self._prompt, one) for one in level):
                return distance
            level = [fed for one in level for fed in self._feeds.get(one, ()) if fed in self._waits_for]
        return 3

    def done(self, node_id: str) -> None:
        del self._waits_for[node_id]
        for fed in self._feeds.get(node_id, ()):
            if fed in self._waits_for:
                self._waits_for[fed].discard(node_id)

    def any_blocked(self) -> str:
        return next(iter(self._waits_for))


class Signatures:
    """The dependencies of a node's result: its class and inputs, and the same of all nodes before it, whatever their
    ids.
    """

    def __init__(self, prompt: Prompt, fingerprint: Callable[[str], str]) -> None:
        self._prompt = prompt
        self._fingerprint = fingerprint
        self._known: dict[str, str] = {}

    def of(self, node_id: str) -> str:
        if node_id not in self._known:
            node = self._prompt.get(node_id)
            # A link to a node that is not there never equals itself; neither does a node within its own cycle.
            self._known[node_id] = f"missing-{id(self)}-{node_id}"
            if node is not None:
                self._known[node_id] = self._describe(node_id, node)
        return self._known[node_id]

    def _describe(self, node_id: str, node: dict[str, Any]) -> str:
        inputs = [
            [name, "link", self.of(value[0]), value[1]] if is_link(value) else [name, "value", value]
            for name, value in sorted(node["inputs"].items())
        ]
        return digest([node["class_type"], self._fingerprint(node_id), inputs])


def digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
