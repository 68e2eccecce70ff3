"""The servers' node definitions of a workflow's inputs; each class and each list of choices is read once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from comfyui.named.made_definitions import DEFINITIONS
from comfyui.named.parameters import Medium
from comfyui.workflows.api_format import is_link
from comfyui.workflows.loaders import LOADERS
from comfyui.workflows.node_definitions import (
    DYNAMIC_COMBO,
    InputSpec,
    ObjectInfo,
    declared_inputs,
    has_dynamic_inputs,
    input_specs,
    live_specs,
    parse_input,
)

_PLAIN = frozenset({"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", DYNAMIC_COMBO})
_MEDIA: Mapping[str, Medium] = {
    "image_upload": "image",
    "animated_image_upload": "image",
    "video_upload": "video",
    "audio_upload": "audio",
}
_MEDIA_OF_TYPES: Mapping[str, Medium] = {"WEBCAM": "image", "AUDIO_RECORD": "audio"}
_MEDIA_OF_NAMES: Mapping[str, Medium] = {
    **dict.fromkeys(("image", "images", "mask", "gif"), "image"),
    "video": "video",
    "audio": "audio",
    "model_file": "3d",
}
# Older editors export these beside a file's name: they are not a value.
_NO_VALUES = frozenset({"upload"})


class Nodes:
    """The node definitions of all servers, as one. `object_info` None: no server has said anything yet."""

    def __init__(self, object_info: ObjectInfo | None) -> None:
        # A node pack may have a server tell anything of a class.
        self.object_info: ObjectInfo = {
            name: definition for name, definition in (object_info or {}).items() if isinstance(definition, Mapping)
        }
        self.known = object_info is not None
        # The editor's own format is read with the definitions of nodes that no server needs, too.
        self.with_packs: ObjectInfo = {**DEFINITIONS, **self.object_info}
        # None for a class whose inputs depend on the workflow.
        self._specs: dict[str, dict[str, InputSpec] | None] = {}
        self._offered: dict[int, tuple[Sequence[Any], list[Any], Mapping[Any, Any]]] = {}

    def definition(self, class_type: str) -> Mapping[str, Any] | None:
        return self.object_info.get(class_type)

    def specs(self, node: Mapping[str, Any]) -> Mapping[str, InputSpec] | None:
        """The inputs of a workflow's node by their names; None if its class is not known."""
        class_type = str(node["class_type"])
        definition = self.definition(class_type)
        if definition is None:
            return None
        if class_type not in self._specs:
            is_fixed = not has_dynamic_inputs(definition)
            self._specs[class_type] = {spec.name: spec for spec in input_specs(definition)} if is_fixed else None
        fixed = self._specs[class_type]
        return {spec.name: spec for spec in live_specs(definition, node["inputs"])} if fixed is None else fixed

    def widgets(self, node: Mapping[str, Any]) -> list[str]:
        """The inputs of a node that a value can be put into: those that are no links and no sockets."""
        inputs = node["inputs"]
        specs = self.specs(node)
        names = [name for name, value in inputs.items() if not is_link(value) and name not in _NO_VALUES]
        if specs is None:
            return names
        more = [spec.name for spec in specs.values() if spec.name not in inputs and is_widget(spec)]
        return [name for name in names if name in specs] + more

    def is_output(self, node: Mapping[str, Any]) -> bool | None:
        """Whether the node's files are a prompt's result; None if its class is not known."""
        definition = self.definition(str(node["class_type"]))
        return None if definition is None else bool(definition.get("output_node"))

    def well_known(self, node: Mapping[str, Any], name: str) -> InputSpec | None:
        """An input of a node of ComfyUI's own that loads a file, also while no server has said anything."""
        definition = LOADERS.get(str(node["class_type"]))
        return next((spec for spec in input_specs(definition or {}) if spec.name == name), None)

    def offered(self, choices: Sequence[Any]) -> tuple[list[Any], Mapping[Any, Any]]:
        """Choices as a list, and `spellings_of` them.

        All parameters with the same choices share both: thousands of models times hundreds of workflows fill a memory.
        """
        known = self._offered.get(id(choices))
        if known is None or known[0] is not choices:
            known = self._offered[id(choices)] = choices, list(choices), spellings_of(choices)
        return known[1], known[2]

    def changed(self, before: Nodes) -> frozenset[str]:
        """The classes that are declared otherwise than `before`. Files that clients upload are no difference."""
        now, then = self.object_info, before.object_info
        return frozenset(
            name
            for name in now.keys() | then.keys()
            if (one := now.get(name)) != (other := then.get(name)) and _without_uploads(one) != _without_uploads(other)
        )


def is_widget(spec: InputSpec) -> bool:
    """Whether an input has a widget in the editor, as far as its own declaration says."""
    if spec.options.get("forceInput"):
        return False
    return spec.type in _PLAIN or spec.is_upload or "default" in spec.options


def medium_of(spec: InputSpec) -> Medium:
    """The kind of file that an upload widget takes."""
    for option, medium in _MEDIA.items():
        if spec.options.get(option):
            return medium
    return _MEDIA_OF_TYPES.get(spec.type) or _MEDIA_OF_NAMES.get(spec.name.lower()) or "file"


def spelling(value: Any) -> Any:
    """The key of a value in `spellings_of`: JSON's 1 and 1.0 are one value, and true is another."""
    return ("is", value) if isinstance(value, bool) else value


def folded(text: str) -> tuple[str, str]:
    """The key of a text whose folders may be written as on Windows."""
    return "folded", text.replace("\\", "/")


def spellings_of(choices: Iterable[Any]) -> Mapping[Any, Any]:
    """The choice for each text that a caller may write. A text that could mean two choices means the first."""
    found: dict[Any, Any] = {}
    for choice in choices:
        found.setdefault(spelling(choice), choice)
        if isinstance(choice, str) and ("\\" in choice or "/" in choice):
            found.setdefault(folded(choice), choice)
    for choice in choices:
        if not isinstance(choice, str):
            found.setdefault(_as_text(choice), choice)
    return found


def _as_text(choice: Any) -> str:
    return ("true" if choice else "false") if isinstance(choice, bool) else str(choice)


def _without_uploads(definition: Mapping[str, Any] | None) -> Any:
    """A definition without the choices of inputs that are uploaded files: these are other ones after each upload."""
    if definition is None:
        return None
    inputs = {
        section: {
            name: None if parse_input(name, declared, required=True).is_upload else declared
            for name, declared in declared_inputs(definition, section).items()
        }
        for section in ("required", "optional")
    }
    return {**definition, "input": inputs}
