"""The definition of a node, and the table of all nodes.

A node is a plain function with a description: `@node(...)` puts it into `NODES` under its class name. The function
takes a `NodeRun` (what the executor gives a running node) and its inputs by name, and returns the tuple of its outputs,
or a `Shown` when it is an output node. The description becomes the node's entry in `/object_info`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from PIL import Image

from comfyui.engine.files import Folders

MAX_RESOLUTION = 16384

InputTypes = dict[str, dict[str, list[Any]]]
"""Category (`required`, `optional`, `hidden`) → input name → `[type, options]`, as in /object_info."""

Values = tuple[Any, ...]


class Interrupted(Exception):  # noqa: N818 (an order, not an error)
    """The prompt that runs was interrupted; raised inside the node that runs."""


@dataclass(frozen=True, slots=True)
class Shown:
    """The report of an output node: `ui` is its entry in the history's `outputs`."""

    ui: dict[str, list[Any]]
    values: Values = ()


class NodeRun(Protocol):
    """The interface of a running node. `progress` and `sleep` raise `Interrupted`."""

    node_id: str
    prompt: Mapping[str, Any]
    extra_pnginfo: Mapping[str, Any] | None
    folders: Folders
    step_seconds: float

    def progress(
        self, value: int, maximum: int, preview: Image.Image | None = None, image_format: str = "JPEG"
    ) -> None: ...

    def sleep(self, seconds: float) -> None: ...

    def crash(self, how: str) -> None:
        """Ends this process, by "segfault" or "exit". Raises if it is not the engine's own."""
        ...

    def hang(self, seconds: float | None = None) -> None:
        """Stay for so long, or until the engine stops, whatever is interrupted."""
        ...


NodeFunction = Callable[..., Values | Shown]


@dataclass(frozen=True, slots=True)
class NodeType:
    name: str
    function: NodeFunction
    inputs: Callable[[Folders], InputTypes]
    outputs: tuple[str, ...]
    category: str
    display_name: str | None
    description: str
    module: str
    output_node: bool
    v3: bool  # declared the newer way: its /object_info entry has a few more keys
    newer: bool  # not in the old version
    experimental: bool
    output_names: tuple[str, ...]
    fingerprint: Callable[..., str] | None  # beyond the inputs, the facts on which a cached result depends
    validate: Callable[..., bool | str] | None
    validated_inputs: frozenset[str] = field(default=frozenset())

    def info(self, folders: Folders) -> dict[str, Any]:
        """The entry in /object_info."""
        inputs = self.inputs(folders)
        info: dict[str, Any] = {
            "input": inputs,
            "input_order": {category: list(named) for category, named in inputs.items()},
            "output": self.outputs,
            "output_is_list": [False] * len(self.outputs),
            "output_name": self.output_names,
            "name": self.name,
            "display_name": self.display_name,
            "description": self.description,
            "python_module": self.module,
            "category": self.category,
            "output_node": self.output_node,
        }
        if self.v3:
            info |= {
                "output_tooltips": [None] * len(self.outputs),
                "deprecated": False,
                "experimental": self.experimental,
                "api_node": False,
            }
        return info


NODES: dict[str, NodeType] = {}

PNG_INFO: dict[str, list[Any] | str] = {"prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO"}


def node(
    name: str,
    *,
    category: str,
    outputs: tuple[str, ...] = (),
    required: Mapping[str, list[Any]] | Callable[[Folders], Mapping[str, list[Any]]],
    optional: Mapping[str, list[Any]] | None = None,
    hidden: Mapping[str, Any] | None = None,
    display_name: str | None = "",
    description: str = "",
    module: str = "nodes",
    output_node: bool = False,
    v3: bool = False,
    newer: bool = False,
    experimental: bool = False,
    output_names: tuple[str, ...] = (),
    fingerprint: Callable[..., str] | None = None,
    validate: Callable[..., bool | str] | None = None,
    validated_inputs: frozenset[str] = frozenset(),
) -> Callable[[NodeFunction], NodeFunction]:
    """Registers the decorated function. `required` is a function where choices depend on the folders."""

    def inputs(folders: Folders) -> InputTypes:
        named: InputTypes = {"required": dict(required(folders) if callable(required) else required)}
        if optional:
            named["optional"] = dict(optional)
        if hidden:
            named["hidden"] = dict(hidden)
        return named

    def register(function: NodeFunction) -> NodeFunction:
        NODES[name] = NodeType(
            name=name,
            function=function,
            inputs=inputs,
            outputs=outputs,
            category=category,
            display_name=name if display_name == "" else display_name,
            description=description,
            module=module,
            output_node=output_node,
            v3=v3,
            newer=newer,
            experimental=experimental,
            output_names=output_names or outputs,
            fingerprint=fingerprint,
            validate=validate,
            validated_inputs=validated_inputs,
        )
        return function

    return register
