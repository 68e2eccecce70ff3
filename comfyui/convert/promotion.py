"""Instances of subgraphs: their slots follow the definition, and an input that leads to a widget has one itself."""

from __future__ import annotations

from collections.abc import Mapping

from comfyui.convert.graph import BoundarySlot, Graph, InputSlot, Node, Widget, Workflow
from comfyui.exceptions import ComfyUIValidationError

_OWN = "-1"


def promote_widgets(workflow: Workflow) -> None:
    """Complete every instance of a subgraph, innermost first, so that a widget reaches through several walls."""
    done: set[str] = set()
    for subgraph_id in workflow.subgraphs:
        _promote_inside(subgraph_id, workflow, done)
    _promote_in(workflow.root, workflow.subgraphs)


def _promote_inside(subgraph_id: str, workflow: Workflow, done: set[str]) -> None:
    if subgraph_id in done:
        return
    done.add(subgraph_id)
    graph = workflow.subgraphs[subgraph_id]
    for node in graph.nodes.values():
        if node.type in workflow.subgraphs:
            _promote_inside(node.type, workflow, done)
    _promote_in(graph, workflow.subgraphs)


def _promote_in(graph: Graph, subgraphs: Mapping[str, Graph]) -> None:
    for node in graph.nodes.values():
        if inside := subgraphs.get(node.type):
            _complete_instance(node, inside)


def _complete_instance(node: Node, inside: Graph) -> None:
    in_file = {slot.name: slot for slot in node.inputs}
    names = {boundary.name for boundary in inside.inputs}
    slots = [
        InputSlot(boundary.name, boundary.type, in_file[boundary.name].link if boundary.name in in_file else None)
        for boundary in inside.inputs
    ]
    for slot, boundary in zip(slots, inside.inputs, strict=True):
        if inner := _inner_widget(boundary, inside):
            slot.widget = boundary.name
            node.widgets.append(Widget(boundary.name, inner.kind, inner.value, options=inner.options))
    node.inputs = slots + [slot for slot in node.inputs if slot.name not in names]
    node.output_types = [boundary.type for boundary in inside.outputs]
    if isinstance(node.widget_values, Mapping):
        return
    shown = _shown_widgets(node)
    if shown and len(node.widget_values) == len(shown) and (not node.widgets or any(i == _OWN for i, _ in shown)):
        _store_by_name(node, inside, shown)
        return
    for widget, value in zip(node.widgets, node.widget_values, strict=False):
        widget.value = value


def _shown_widgets(node: Node) -> list[tuple[str, str]]:
    """The property ``proxyWidgets``: (node id inside, widget name); -1 for a widget of an own input."""
    entries = node.properties.get("proxyWidgets")
    pairs = entries if isinstance(entries, list) else []
    return [(str(pair[0]), str(pair[1])) for pair in pairs if isinstance(pair, list) and len(pair) >= 2]


def _store_by_name(node: Node, inside: Graph, shown: list[tuple[str, str]]) -> None:
    """Editors between 1.28 and the newest store a value for each widget that an instance shows, in that order.

    A widget that is merely shown keeps its value inside, where it is the same for all instances.
    """
    for (inner_id, name), value in zip(shown, node.widget_values, strict=True):
        inner = inside.nodes.get(inner_id)
        widget = node.widget(name) if inner_id == _OWN else inner.widget(name) if inner else None
        if inner_id == _OWN and widget:
            widget.value = value
        elif widget and widget.value != value:
            raise ComfyUIValidationError(
                f"Node {node.id} shows {name} of node {inner_id} in its subgraph {inside.name!r} with another value "
                "than is stored there, so that it is not certain which one counts."
            )


def _inner_widget(boundary: BoundarySlot, inside: Graph) -> Widget | None:
    """The first widget that the subgraph's input is linked to."""
    for link_id in boundary.links:
        link = inside.links.get(link_id)
        target = inside.nodes.get(link.target_id) if link else None
        slot = next((slot for slot in target.inputs if slot.link == link_id), None) if target else None
        if target and slot and (widget := target.widget(slot.widget)):
            return widget
    return None
