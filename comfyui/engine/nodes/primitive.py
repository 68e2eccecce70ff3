"""Nodes of one value, and texts made of texts."""

from __future__ import annotations

from typing import Any

from comfyui.engine.nodes.registry import NodeRun, Values, node

_LARGEST = 2**63 - 1
_TEXT: list[Any] = ["STRING", {"multiline": True}]


@node(
    "PrimitiveString",
    category="utils/primitive",
    display_name="String",
    module="comfy_extras.nodes_primitive",
    v3=True,
    required={"value": ["STRING", {"multiline": False}]},
    outputs=("STRING",),
)
def primitive_string(_run: NodeRun, value: str) -> Values:
    return (value,)


@node(
    "PrimitiveStringMultiline",
    category="utils/primitive",
    display_name="String (Multiline)",
    module="comfy_extras.nodes_primitive",
    v3=True,
    required={"value": _TEXT},
    outputs=("STRING",),
)
def primitive_string_multiline(_run: NodeRun, value: str) -> Values:
    return (value,)


@node(
    "PrimitiveInt",
    category="utils/primitive",
    display_name="Int",
    module="comfy_extras.nodes_primitive",
    v3=True,
    required={"value": ["INT", {"min": -_LARGEST, "max": _LARGEST, "control_after_generate": True}]},
    outputs=("INT",),
)
def primitive_int(_run: NodeRun, value: int) -> Values:
    return (value,)


@node(
    "PrimitiveFloat",
    category="utils/primitive",
    display_name="Float",
    module="comfy_extras.nodes_primitive",
    v3=True,
    required={"value": ["FLOAT", {"min": -_LARGEST, "max": _LARGEST}]},
    outputs=("FLOAT",),
)
def primitive_float(_run: NodeRun, value: float) -> Values:
    return (value,)


@node(
    "PrimitiveBoolean",
    category="utils/primitive",
    display_name="Boolean",
    module="comfy_extras.nodes_primitive",
    v3=True,
    required={"value": ["BOOLEAN", {}]},
    outputs=("BOOLEAN",),
)
def primitive_boolean(_run: NodeRun, value: bool) -> Values:
    return (value,)


@node(
    "StringConcatenate",
    category="utils/string",
    display_name="Concatenate",
    module="comfy_extras.nodes_string",
    v3=True,
    required={
        "string_a": _TEXT,
        "string_b": _TEXT,
        "delimiter": ["STRING", {"default": "", "multiline": False}],
    },
    outputs=("STRING",),
)
def string_concatenate(_run: NodeRun, string_a: str, string_b: str, delimiter: str) -> Values:
    return (delimiter.join((string_a, string_b)),)


@node(
    "StringReplace",
    category="utils/string",
    display_name="Replace",
    module="comfy_extras.nodes_string",
    v3=True,
    required={"string": _TEXT, "find": _TEXT, "replace": _TEXT},
    outputs=("STRING",),
)
def string_replace(_run: NodeRun, string: str, find: str, replace: str) -> Values:
    return (string.replace(find, replace),)
