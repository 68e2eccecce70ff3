"""Sockets whose type follows from their links, and outputs that take the same type.

The editor settles these types when it has loaded a file, node after node. They decide which input a bypassed node
passes on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from comfyui.workflows.convert.graph import SUBGRAPH_INPUT_NODE, Graph, InputSlot, Node, Workflow
from comfyui.workflows.node_definitions import (
    AUTOGROW,
    DYNAMIC_COMBO,
    MATCH_TYPE,
    InputSpec,
    ObjectInfo,
    as_sequence,
    grown_specs,
    input_specs,
)
from comfyui.workflows.node_definitions import option_specs as specs_behind

ANY = "*"


def settle_types(workflow: Workflow, object_info: ObjectInfo) -> None:
    """Give the slots of every node of such a class the types that they have in the editor."""
    for graph in (*workflow.subgraphs.values(), workflow.root):
        for node in graph.nodes.values():
            definition = object_info.get(node.type)
            if definition is not None and node.type not in workflow.subgraphs:
                _settle(node, graph, definition)


def _settle(node: Node, graph: Graph, definition: Mapping[str, Any]) -> None:
    groups: dict[str, list[tuple[InputSlot, str]]] = {}
    by_name = {slot.name: slot for slot in node.inputs}
    for spec in input_specs(definition):
        for entry in _matching(spec, node):
            template = entry.options.get("template")
            if isinstance(template, Mapping) and entry.name in by_name:
                group = groups.setdefault(str(template.get("template_id")), [])
                group.append((by_name[entry.name], str(template.get("allowed_types") or ANY)))
    for template_id, group in groups.items():
        given = [_given_type(slot, graph) for slot, _ in group]
        for position, (slot, allowed) in enumerate(group):
            slot.type = _common([*given[:position], *given[position + 1 :], allowed]) or slot.type
        settled = _common(given)
        for index, of_template in enumerate(as_sequence(definition.get("output_matchtypes"))):
            if of_template == template_id and settled and index < len(node.output_types):
                node.output_types[index] = settled


def _matching(spec: InputSpec, node: Node) -> Iterator[InputSpec]:
    if spec.type == MATCH_TYPE:
        yield spec
    elif spec.type == AUTOGROW:
        yield from (entry for row in grown_specs(spec).rows for entry in row if entry.type == MATCH_TYPE)
    elif spec.type == DYNAMIC_COMBO and (widget := node.widget(spec.name)):
        for entry in specs_behind(spec, widget.value):
            yield from _matching(entry, node)


def _given_type(slot: InputSlot, graph: Graph) -> str:
    link = graph.links.get(slot.link) if slot.link is not None else None
    if link is None:
        return ANY
    if link.origin_id == SUBGRAPH_INPUT_NODE:
        return graph.inputs[link.origin_slot].type if link.origin_slot < len(graph.inputs) else ANY
    origin = graph.nodes.get(link.origin_id)
    return origin.output_types[link.origin_slot] if origin and link.origin_slot < len(origin.output_types) else ANY


def _common(types: list[str]) -> str | None:
    """The types that all of them share; None if they share none."""
    shared: list[str] | None = None
    for listed in types:
        parts = listed.split(",")
        if ANY not in parts:
            shared = parts if shared is None else [part for part in shared if part in parts]
    return ANY if shared is None else ",".join(shared) or None
