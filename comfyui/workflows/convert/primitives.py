"""Primitive nodes: a value of the editor's own, which it copies into the widgets that the node is linked to."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime
from typing import Any, TypeGuard

from comfyui.workflows.convert.graph import Graph, Node, Widget, Workflow
from comfyui.workflows.convert.text import fill_placeholders
from comfyui.workflows.convert.values import set_value

# A property of primitives: their text has placeholders for other widgets.
_FILLS_IN = "Run widget replace on values"
# Beyond this a float is no longer every integer, and neither the editor nor we can round.
_EXACT = 2**53


def apply_primitives(workflow: Workflow, now: datetime) -> list[str]:
    """Copy the value of each primitive into its targets; returns warnings. `now` is for ``%date:…%`` in texts."""
    warnings = []
    for graph in workflow.graphs():
        for node in graph.nodes.values():
            if node.type == "PrimitiveNode":
                warnings += _apply(node, graph, workflow, now)
    return warnings


def targets_of(primitive: Node, graph: Graph) -> list[tuple[Node, Widget]]:
    """The widgets that a primitive node is linked to, each with its node."""
    return [
        (owner, widget)
        for link in _outgoing(primitive, graph)
        if (owner := graph.nodes.get(graph.links[link].target_id))
        for slot in owner.inputs
        if slot.link == link and (widget := owner.widget(slot.widget))
    ]


def _apply(primitive: Node, graph: Graph, workflow: Workflow, now: datetime) -> list[str]:
    widgets = [widget for _, widget in targets_of(primitive, graph)]
    values = primitive.widget_values
    if not widgets or isinstance(values, Mapping):
        return []
    # One that has no value of its own takes over that of its first target.
    value = values[0] if values else widgets[0].value
    kinds = {widget.kind for widget in widgets}
    if len(kinds) > 1:
        return [f"primitive {primitive.id} feeds widgets of different types: {', '.join(sorted(kinds))}"]
    if isinstance(value, str) and primitive.properties.get(_FILLS_IN) is True:
        inner = [node for found in workflow.subgraphs.values() for node in found.nodes.values()]
        value = fill_placeholders(value, [*graph.nodes.values(), *inner], now)
    if value is None and kinds <= {"INT", "FLOAT"}:
        value = 0
    if _is_number(value) and kinds <= {"INT", "FLOAT"}:
        value = _limited(value, widgets)
    for widget in widgets:
        set_value(widget, _rounded(value, widget) if _is_number(value) else value)
    return []


def _outgoing(primitive: Node, graph: Graph) -> list[str]:
    return [link for links in primitive.output_links[:1] for link in links if link in graph.links]


def _is_number(value: Any) -> TypeGuard[float]:
    return not isinstance(value, bool) and (
        isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))
    )


def _limited(value: float, widgets: list[Widget]) -> float:
    """Within the range that all targets share, as the primitive's own widget is when it is made."""
    low = max(_number(widget.options, "min", -math.inf) for widget in widgets)
    high = min(_number(widget.options, "max", math.inf) for widget in widgets)
    return value if low > high else max(low, min(high, value))


def _rounded(value: float, widget: Widget) -> float:
    """The value as a number widget rounds an entry: an INT to its steps from the minimum, a FLOAT to its precision."""
    options = widget.options
    step = _number(options, "step", 0)
    if widget.kind not in ("INT", "FLOAT") or abs(value) > _EXACT or step < 0:
        return value
    if widget.kind == "INT":
        step = step or 1
        offset = 0 if step == 1 else math.fmod(_number(options, "min", 0), step)
        return _as_int(_half_up((value - offset) / step) * step + offset)
    precision = max(0, -math.floor(math.log10(step or 0.5)))
    unit = _number(options, "round", 0) or (10**-precision if precision else 0)
    if not unit:
        return value
    nearest = round(_half_up(value / unit) * unit, precision)
    return max(_number(options, "min", 0), min(_number(options, "max", 2048), nearest))


def _number(options: Mapping[str, Any], name: str, default: float) -> float:
    value = options.get(name)
    return value if _is_number(value) else default


def _half_up(value: float) -> int:
    """Halves go up, as in a browser; integers pass unchanged, however large."""
    return value if isinstance(value, int) else math.floor(value + 0.5)


def _as_int(value: float) -> float:
    return int(value) if float(value).is_integer() else value
