"""Assigns stored values to widgets, with a warning if they do not fit."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from comfyui.workflows.convert.graph import MISSING, Node, Widget
from comfyui.workflows.node_definitions import DYNAMIC_GROUP, InputSpec

# The text that a preview showed when the file was saved; the editor does not read it back.
_PREVIEW_CLASSES = frozenset({"PreviewAny", "SaveText"})
# Widgets that take a place among the stored values, and do not read it back.
_UNREAD = frozenset({"PREVIEW_3D", "COMFY_BRANCH_INPUT_NAMES"})
_PLAYER_NAME = "videopreview"
_SHOWN = 80


def store_values(node: Node, specs: Sequence[InputSpec], linked: Collection[str]) -> list[str]:
    """Put the stored values into the widgets; widgets that a value brings with it join the list. Returns warnings.

    Args:
        specs: the inputs of the node's class, in declaration order.
        linked: names of inputs with a link, whose widget's value does not matter.
    """
    if isinstance(node.widget_values, Mapping):
        warnings = _by_name(node, node.widget_values, linked)
    else:
        warnings = _by_position(node, _without_converted(specs, node), linked)
    _choose_for_null(node)
    return warnings + [
        f"{widget.name} got {_shown(widget.value)}, which is not of the type {widget.kind}; the node may have"
        " changed since then"
        for widget in node.widgets
        if widget.in_prompt and widget.name not in linked and not _plausible(widget)
    ]


def _by_name(node: Node, values: Mapping[str, Any], linked: Collection[str]) -> list[str]:
    """Node packs that store by name (VideoHelperSuite) also restore by name."""
    unset: list[str] = []
    index = 0
    while index < len(node.widgets):
        widget = node.widgets[index]
        index += 1
        if widget.name in values:
            set_value(widget, values[widget.name])
        elif widget.stored and widget.in_prompt and widget.name not in linked:
            unset.append(widget.name)
        node.widgets[index:index] = _children(widget)
    known = {widget.name for widget in node.widgets}
    unknown = [str(name) for name in values if name not in known and name != _PLAYER_NAME]
    warnings = [f"the file stores no value for {', '.join(unset)}, which kept the default"] if unset else []
    return [*warnings, f"it has no widget for the stored {', '.join(unknown)}"] if unknown else warnings


def _by_position(node: Node, values: Sequence[Any], linked: Collection[str]) -> list[str]:
    index = position = 0
    unset: list[str] = []
    while index < len(node.widgets):
        widget = node.widgets[index]
        index += 1
        left_behind: Sequence[Widget] = ()
        if widget.stored:
            if position < len(values):
                set_value(widget, values[position])
                left_behind = widget.left_behind
            elif widget.in_prompt and widget.name not in linked:
                unset.append(widget.name)
            position += 1
        node.widgets[index:index] = [*_children(widget), *left_behind]
    stored = f"the file stores {len(values)} values for {position} widgets"
    warnings = [f"{stored}, so {', '.join(unset)} kept the default"] if unset else []
    left = [value for value in values[position:] if value is not None]
    if left and node.type not in _PREVIEW_CLASSES:
        warnings.append(f"{stored}, so {', '.join(_shown(value) for value in left[:3])} was left out")
    return warnings


def _children(widget: Widget) -> list[Widget]:
    return widget.children(widget.value) if widget.children else []


def _choose_for_null(node: Node) -> None:
    """A list of choices that got null takes its first one when the editor has loaded the file."""
    for widget in list(node.widgets):
        choices = widget.options.get("options") if widget.kind == "COMBO" else None
        if widget.value is None and isinstance(choices, list) and choices:
            widget.value = choices[0]
            index = next(index for index, entry in enumerate(node.widgets) if entry is widget)
            node.widgets[index : index + 1] = with_defaults(widget)


def _without_converted(specs: Sequence[InputSpec], node: Node) -> Sequence[Any]:
    """The stored values without those of inputs that have since become sockets only.

    Done when, and only when, the count says that the file has such values.
    """
    values: Sequence[Any] = node.widget_values if not isinstance(node.widget_values, Mapping) else ()
    if any(spec.type == DYNAMIC_GROUP for spec in specs):
        return values
    widgets = [entry for widget in node.widgets for entry in with_defaults(widget)]
    stored = {widget.name: widget.stored for widget in widgets}
    once_widgets = [spec for spec in specs if spec.name in stored or spec.options.get("forceInput")]
    gone: list[bool] = []
    for spec in once_widgets:
        if stored.get(spec.name, True):
            forced = bool(spec.options.get("forceInput"))
            gone += [forced, False] if spec.options.get("control_after_generate") else [forced]
    if True not in gone and len(values) == sum(widget.stored for widget in widgets):
        return values
    # Old files kept a place for widgets that are only shown; a node's widgets say where.
    kept = [value for index, value in enumerate(values) if index >= len(widgets) or widgets[index].stored]
    aligned = kept if len(kept) == len(gone) else values if len(values) == len(gone) else None
    if aligned is None:
        return values
    return [value for value, forced in zip(aligned, gone, strict=True) if not forced]


def with_defaults(widget: Widget) -> list[Widget]:
    """A widget with its child widgets, before a stored value is put in."""
    return [widget, *(entry for child in _children(widget) for entry in with_defaults(child))]


def set_value(widget: Widget, value: Any) -> None:
    """Store a value as the editor's widget would hold it."""
    if widget.kind not in _UNREAD:
        widget.value = _text_area(value) if widget.kind in ("TEXT", "MARKDOWN") else value


def _text_area(value: Any) -> Any:
    """The editor's text area shows nothing for null, and any other value as text."""
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else str(value)


def _plausible(widget: Widget) -> bool:
    value = widget.value
    match widget.kind:
        case "INT" | "FLOAT":
            return isinstance(value, int | float) and not isinstance(value, bool)
        case "BOOLEAN":
            return isinstance(value, bool | int)
        case "COMBO":
            return value is MISSING or isinstance(value, str | int | float | list)
        case "STRING" | "TEXTAREA" | "MARKDOWN" | "COLOR":
            return isinstance(value, str | int | float)
        case _:
            return True


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
