"""Instances of subgraphs: their slots follow the definition, and an input that leads to a widget has one itself."""

from __future__ import annotations

from collections.abc import Mapping

from comfyui.convert.graph import BoundarySlot, Graph, InputSlot, Node, Widget, Workflow


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
    if not isinstance(node.widget_values, Mapping):
        for widget, value in zip(node.widgets, node.widget_values, strict=False):
            widget.value = value


def _inner_widget(boundary: BoundarySlot, inside: Graph) -> Widget | None:
    """The first widget that the subgraph's input is linked to."""
    for link_id in boundary.links:
        link = inside.links.get(link_id)
        target = inside.nodes.get(link.target_id) if link else None
        slot = next((slot for slot in target.inputs if slot.link == link_id), None) if target else None
        if target and slot and (widget := target.widget(slot.widget)):
            return widget
    return None
