"""Removes nodes whose value a call gives from a workflow: the value goes to the nodes that they fed, or to a node of
ComfyUI.

Node packs for services have nodes that mean "here goes a value of the caller". A server needs no such pack, and fetches
no URL itself, if the gateway puts the value, or the name of the file that it has placed, in its place.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeGuard

from comfyui.named.naming import unique
from comfyui.named.parameters import Cast, Fallback, Found, NamedOutput, Parameter, Target
from comfyui.workflows.api_format import is_link


@dataclass(frozen=True, slots=True)
class Consumer:
    """An input that is linked to an output of a node."""

    node_id: str
    input: str
    output: int


def fallbacks_of(parameters: Sequence[Parameter], fallbacks: Sequence[Fallback]) -> tuple[Fallback, ...]:
    """The same fallbacks for the final parameters: a sidecar may have renamed one."""
    names = {target.node_id: one.name for one in parameters for target in one.targets}
    return tuple(
        replace(one, parameter=next((names[node_id] for node_id in one.unused if node_id in names), ""))
        for one in fallbacks
    )


def with_fallbacks(
    prompt: Mapping[str, Any], fallbacks: Sequence[Fallback], given: Collection[str]
) -> Mapping[str, Any]:
    """The workflow without the files that a call does not give; `given`: the parameters that have a value."""
    for fallback in fallbacks:
        if fallback.parameter not in given:
            prompt = _without(prompt, fallback)
    return prompt


def _without(prompt: Mapping[str, Any], fallback: Fallback) -> dict[str, Any]:
    return {
        node_id: {**node, "inputs": _linked_anew(node["inputs"], fallback)}
        if any(is_link(value) and value[0] == fallback.node_id for value in node["inputs"].values())
        else node
        for node_id, node in prompt.items()
        if node_id not in fallback.unused
    }


def _linked_anew(inputs: Mapping[str, Any], fallback: Fallback) -> dict[str, Any]:
    return {
        name: list(fallback.link) if is_link(value) and value[0] == fallback.node_id else value
        for name, value in inputs.items()
    }


class Replacing:
    """A copy of a workflow in API format from which nodes are removed, and the parameters found on the way.

    `merged`: the sources in which a name that stands there several times is one parameter.
    """

    def __init__(self, prompt: Mapping[str, Any], merged: Collection[str] = ()) -> None:
        self._merged = merged
        self.prompt: dict[str, Any] = {
            node_id: {**node, "inputs": dict(node["inputs"])} for node_id, node in prompt.items()
        }
        self.found: list[Found] = []
        self.outputs: list[NamedOutput] = []
        self.fallbacks: list[Fallback] = []
        self.warnings: list[str] = []

    def consumers(self, node_id: str) -> list[Consumer]:
        """The inputs that are linked to the node."""
        return [
            Consumer(other, name, int(value[1]))
            for other, node in self.prompt.items()
            for name, value in node["inputs"].items()
            if is_link(value) and value[0] == node_id
        ]

    def warn(self, node_id: str, text: str) -> None:
        self.warnings.append(f"node {node_id} ({self.prompt[node_id]['class_type']}): {text}")

    def replace(self, node_id: str, class_type: str, inputs: Mapping[str, Any]) -> None:
        """Put a node of another class in a node's place, under its id and title."""
        node = self.prompt[node_id]
        self.prompt[node_id] = {**node, "class_type": class_type, "inputs": dict(inputs)}

    def add(self, near: str, class_type: str, inputs: Mapping[str, Any]) -> str:
        """Adds a node beside another one; returns its id."""
        node_id = unique(f"{near}-{class_type}", self.prompt)
        self.prompt[node_id] = {
            "class_type": class_type,
            "inputs": dict(inputs),
            "_meta": {"title": class_type},
        }
        return node_id

    def remove(self, node_id: str) -> None:
        """Take a node out, with the links that led from it."""
        for one in self.consumers(node_id):
            del self.prompt[one.node_id]["inputs"][one.input]
        del self.prompt[node_id]

    def feed(self, node_id: str, found: Found, value: Any, casts: Mapping[int, Cast] | None = None) -> None:
        """Puts a node's value into everything that it feeds, which the parameter sets from now on; the node is removed.

        Args:
            value: the workflow's own value.
            casts: for each output, the type of the value there; None: unchanged.
        """
        places = self.consumers(node_id)
        if is_link(value) and value[0] == node_id:
            self.warn(node_id, f"its value is linked to itself, so {found.name} is not a parameter")
            self.remove(node_id)
            return
        if is_link(value):
            self.warn(
                node_id, f"its value is linked, and a value cannot replace a link, so {found.name} is not a parameter"
            )
        elif not places:
            self.warn(node_id, f"no node uses its value, so {found.name} is not a parameter")
        targets = []
        for one in places:
            cast = casts.get(one.output, "") if casts else ""
            self.prompt[one.node_id]["inputs"][one.input] = value if is_link(value) else as_cast(value, cast)
            targets.append(Target(one.node_id, one.input, cast))
        if targets and not is_link(value):
            self._add(replace(found, targets=tuple(targets)))
        del self.prompt[node_id]

    def load(self, node_id: str, found: Found, class_type: str, input_name: str) -> None:
        """Put a node of ComfyUI in a node's place that loads the file which a call gives."""
        self.replace(node_id, class_type, {input_name: ""})
        self.set_by(found, node_id, input_name)

    def set_by(self, found: Found, node_id: str, input_name: str) -> None:
        """Note a parameter that sets this input."""
        self._add(replace(found, targets=(Target(node_id, input_name),)))

    def fall_back(self, parameter: str, node_id: str, default: Any, *unused: str) -> bool:
        """Records the link that counts if no file is given; false if `default` is no link."""
        if not is_link(default) or default[0] == node_id:
            return False
        self.fallbacks.append(Fallback(parameter, node_id, (default[0], int(default[1])), (node_id, *unused)))
        return True

    def forget_removed(self) -> None:
        """Forgets what was recorded about nodes that are removed by now."""
        lost = {one.parameter for one in self.fallbacks if one.link[0] not in self.prompt}
        kept = []
        for one in self.found:
            targets = tuple(target for target in one.targets if target.node_id in self.prompt)
            if targets:
                kept.append(replace(one, targets=targets, required=None if one.name in lost else one.required))
            else:
                self.warnings.append(f"{one.name} is not a parameter, because the node that uses it was removed")
        self.found = kept
        self.outputs = [one for one in self.outputs if one.node_id in self.prompt]
        self.fallbacks = [one for one in self.fallbacks if one.link[0] in self.prompt]

    def output(self, name: str, node_id: str) -> None:
        """Names an output. A name that is taken gets the node's id too, because packs give all outputs the same name at
        first.
        """
        taken = {one.name for one in self.outputs}
        self.outputs.append(NamedOutput(unique(name, taken, node_id), node_id))

    def _add(self, found: Found) -> None:
        for index, other in enumerate(self.found):
            if found.source in self._merged and (other.name, other.source) == (found.name, found.source):
                required = other.required if other.required == found.required else None
                self.found[index] = replace(other, targets=(*other.targets, *found.targets), required=required)
                return
        self.found.append(found)


def as_cast(value: Any, cast: Cast) -> Any:
    """A value as an input of another type takes it."""
    if cast == "text":
        return value if isinstance(value, str) else str(value)
    if not cast or not is_number(value):
        return value
    return round(value) if cast == "integer" else float(value)


def is_number(value: Any) -> TypeGuard[float]:
    """Whether JSON has the value as a number; ComfyUI's own reader also accepts others, such as NaN."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


# Shared by the nodes of several packs

Handler = Callable[[Replacing, str, Mapping[str, Any]], None]
"""Takes one node out of the workflow, of which it gets the id and the inputs."""
# These packs' values for "no limit".
_NO_LIMIT = 999_999


def optional(work: Replacing, found: Found, node_id: str, default: Any, *unused: str) -> Found:
    """A file that may be left out, if the node has a link for that case."""
    if not work.fall_back(found.name, node_id, default, *unused):
        return found
    return replace(found, required=False)


def saved(class_type: str, source: str, target: str, name_of: Callable[[Replacing, str], str]) -> Handler:
    """A node that saves the input `source`, for which ComfyUI has its own node with the input `target`."""

    def handle(work: Replacing, node_id: str, inputs: Mapping[str, Any]) -> None:
        name = name_of(work, node_id)
        kept = {key: inputs[key] for key in ("filename_prefix", "format", "codec") if key in inputs}
        if class_type == "PreviewAny":
            kept = {}
        elif "filename_prefix" not in kept:
            kept["filename_prefix"] = "ComfyUI"
        linked = {target: inputs[source]} if source in inputs else {}
        work.replace(node_id, class_type, {**linked, **kept})
        if name:
            work.output(name, node_id)

    return handle


def named(name_of: Callable[[Replacing, str], str]) -> Handler:
    def handle(work: Replacing, node_id: str, _: Mapping[str, Any]) -> None:
        if name := name_of(work, node_id):
            work.output(name, node_id)

    return handle


def limit_of(inputs: Mapping[str, Any], name: str) -> float | None:
    value = inputs.get(name)
    return value if is_number(value) and abs(value) < _NO_LIMIT else None


def left_out(work: Replacing, node_id: str, _: Mapping[str, Any]) -> None:
    work.remove(node_id)
