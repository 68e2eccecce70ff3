"""Follows a linked input to its real source: through reroutes, bypassed nodes and the walls of subgraphs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from comfyui.exceptions import ComfyUIValidationError
from comfyui.limits import Limits, over
from comfyui.workflows.convert.graph import (
    BYPASS,
    NEVER,
    SUBGRAPH_INPUT_NODE,
    Graph,
    InputSlot,
    Link,
    Node,
    Workflow,
    types_connect,
)
from comfyui.workflows.convert.virtual import GETTERS, find_setter, is_virtual, variable

_MAX_DEPTH = 64
_MAX_HOPS = 200


@dataclass(frozen=True, slots=True)
class Placed:
    """A node at its place in the flattened workflow.

    Attributes:
        id: the ids of the subgraph instances around it and its own, joined by colons: ComfyUI's node id.
        around: the subgraph instance that contains it; None at the top.
        inside: the graph of a subgraph instance; None for any other node.
    """

    id: str
    node: Node
    graph: Graph
    around: Placed | None
    inside: Graph | None


@dataclass(frozen=True, slots=True)
class NodeOutput:
    node_id: str
    index: int


@dataclass(frozen=True, slots=True)
class PromotedValue:
    """The value of a widget that a subgraph instance shows in place of a linked input.

    `instance` and `name`: the id of the outermost instance that shows it, and the widget's name there.
    """

    value: Any
    instance: str
    name: str


Source = NodeOutput | PromotedValue


def check_size(workflow: Workflow, limits: Limits) -> None:
    """Refuse a workflow that would be too large when its subgraphs are written out, before any is written out.

    Subgraphs in subgraphs multiply, so a small file can be a workflow of any size. The time that this takes depends on
    the file's size only.

    Raises:
        ComfyUILimitError: more nodes than the limit.
        ComfyUIValidationError: a subgraph that contains itself.
    """
    sizes: dict[str, tuple[int, int]] = {}

    def measure(graph: Graph, around: tuple[str, ...]) -> tuple[int, int]:
        total, deepest = 0, 0
        for node in graph.nodes.values():
            total += 1
            inside = workflow.subgraphs.get(node.type)
            if inside is None:
                continue
            if node.type in around:
                raise ComfyUIValidationError(f"The subgraph {inside.name!r} contains itself.")
            if node.type not in sizes:
                sizes[node.type] = measure(inside, (*around, node.type)) if len(around) < _MAX_DEPTH else (0, 1)
            size, depth = sizes[node.type]
            total += size if around or node.runs else 0
            deepest = max(deepest, depth + 1)
        if len(around) + deepest > _MAX_DEPTH:
            raise ComfyUIValidationError(f"Subgraphs are nested more than {_MAX_DEPTH} deep in {graph.name!r}.")
        return total, deepest

    total, _ = measure(workflow.root, ())
    for unused in workflow.subgraphs.keys() - sizes.keys():
        del workflow.subgraphs[unused]
    if total > limits.max_workflow_nodes:
        what = f"With its subgraphs written out, the workflow would have {_readable(total)} nodes, more than {{limit}}"
        raise over(what, limits.max_workflow_nodes)


def _readable(number: int) -> str:
    return str(number) if number < 10**12 else "more than 10^12"


def adopt_links(node: Node, graph: Graph) -> list[str]:
    """Connect links that only the file's list of links knows, as the editor does; returns warnings."""
    named = {slot.link for slot in node.inputs}
    warnings = []
    for link in graph.links_into.get(node.id, ()):
        slot = node.inputs[link.target_slot] if 0 <= link.target_slot < len(node.inputs) else None
        if link.id in named or link.id in graph.named_links or slot is None or slot.link is not None:
            continue
        slot.link = link.id
        warnings.append(f"no input names the link from node {link.origin_id}; it is taken for {slot.name}")
    return warnings


def flatten(workflow: Workflow) -> dict[str, Placed]:
    """Every node of the workflow, those inside subgraphs once for each instance that runs."""
    return {placed.id: placed for placed in _flatten(workflow.root, workflow.subgraphs, None)}


def _flatten(graph: Graph, subgraphs: Mapping[str, Graph], around: Placed | None) -> Iterator[Placed]:
    for node in graph.nodes.values():
        placed = Placed(f"{around.id}:{node.id}" if around else node.id, node, graph, around, subgraphs.get(node.type))
        yield placed
        # Only at the top does the editor leave out the nodes in a muted or bypassed subgraph.
        if placed.inside and (around or node.runs):
            yield from _flatten(placed.inside, subgraphs, placed)


class LinkResolver:
    """Follows links through a flattened workflow. ``dropped`` collects what had to be left out, as warnings."""

    def __init__(self, placed: Mapping[str, Placed]) -> None:
        self._placed = placed
        self.dropped: list[str] = []

    def source_of(self, placed: Placed, slot: int) -> Source | None:
        """The source of an input: None if it has none.

        Raises:
            ComfyUIValidationError: the links run in a circle.
        """
        return self._into(placed, slot, None, set())

    def _into(self, placed: Placed, slot: int, wanted: str | None, seen: set[tuple[str, str, int]]) -> Source | None:
        self._visit(placed, "input", slot, seen)
        if slot >= len(placed.node.inputs):
            return None
        entry = placed.node.inputs[slot]
        if entry.link is None:
            return None
        link = placed.graph.links.get(entry.link)
        if link is None:
            self.dropped.append(f"node {placed.id}: the link to {entry.name} does not exist")
            return None
        if placed.around and link.origin_id == SUBGRAPH_INPUT_NODE:
            return self._through_wall(placed.around, placed, link, seen)
        origin = self._sibling(placed, link.origin_id)
        if origin is None:
            if link.origin_id not in placed.graph.left_out:
                self.dropped.append(
                    f"node {placed.id}: {entry.name} is linked to node {link.origin_id}, which does not exist"
                )
            return None
        return self._out_of(origin, link.origin_slot, wanted or entry.type, seen)

    def _through_wall(
        self, instance: Placed, inner: Placed, link: Link, seen: set[tuple[str, str, int]]
    ) -> Source | None:
        """From inside a subgraph to the source of its instance's input: a link, or the instance's widget if there is
        none.
        """
        inputs = instance.node.inputs
        if link.origin_slot >= len(inputs):
            self.dropped.append(f"node {inner.id}: its subgraph has no input {link.origin_slot}")
            return None
        outer = inputs[link.origin_slot]
        if outer.link is None or outer.link not in instance.graph.links:
            widget = instance.node.widget(outer.widget) if outer.widget else None
            return PromotedValue(widget.value, instance.id, widget.name) if widget else None
        return self._into(instance, link.origin_slot, None, seen)

    def _out_of(self, placed: Placed, slot: int, wanted: str, seen: set[tuple[str, str, int]]) -> Source | None:
        self._visit(placed, "output", slot, seen)
        if placed.node.mode == NEVER:
            return None
        if placed.node.mode == BYPASS:
            matching = _bypass_input(placed.node, slot, wanted)
            return None if matching is None else self._into(placed, matching, None, seen)
        if placed.inside:
            return self._out_of_subgraph(placed, placed.inside, slot, wanted, seen)
        if placed.node.type in GETTERS:
            return self._out_of_getter(placed, wanted, seen)
        if is_virtual(placed.node):
            return self._into(placed, slot, wanted, seen)
        return NodeOutput(placed.id, slot)

    def _out_of_getter(self, getter: Placed, wanted: str, seen: set[tuple[str, str, int]]) -> Source | None:
        """From a getter to the source of its setter: in the same graph, or otherwise in one around it."""
        name = variable(getter.node)
        here: Placed | None = getter
        while here:
            if setter := find_setter(here.graph, name):
                if not setter.runs:
                    self.dropped.append(f"node {getter.id}: the node {setter.id} that sets {name!r} does not run")
                    return None
                found = self._sibling(here, setter.id)
                return self._into(found, 0, wanted, seen) if found else None
            here = here.around
        self.dropped.append(f"node {getter.id}: no node sets the name {name!r} that it asks for")
        return None

    def _out_of_subgraph(
        self, instance: Placed, inside: Graph, slot: int, wanted: str, seen: set[tuple[str, str, int]]
    ) -> Source | None:
        outputs = inside.outputs
        links = (
            [inside.links[link] for link in outputs[slot].links if link in inside.links] if slot < len(outputs) else []
        )
        if not links:
            return None
        if links[0].origin_id == SUBGRAPH_INPUT_NODE:
            raise ComfyUIValidationError(
                f"The subgraph {inside.name!r} (node {instance.id}) links an input straight to an output, which the "
                "editor cannot export either: link around the subgraph, or put a node between its input and its output."
            )
        inner = self._placed.get(f"{instance.id}:{links[0].origin_id}")
        return self._out_of(inner, links[0].origin_slot, wanted, seen) if inner else None

    def _sibling(self, placed: Placed, node_id: str) -> Placed | None:
        return self._placed.get(f"{placed.around.id}:{node_id}" if placed.around else node_id)

    @staticmethod
    def _visit(placed: Placed, side: str, slot: int, seen: set[tuple[str, str, int]]) -> None:
        if (placed.id, side, slot) in seen:
            raise ComfyUIValidationError(f"The links through node {placed.id} run in a circle.")
        seen.add((placed.id, side, slot))
        if len(seen) > _MAX_HOPS:
            raise ComfyUIValidationError(
                f"A link passes through more than {_MAX_HOPS // 2} nodes before node {placed.id}."
            )


def _bypass_input(node: Node, slot: int, wanted: str) -> int | None:
    """The input that a bypassed node passes on as its output `slot`: the one beside it, or otherwise the first that
    fits.
    """
    inputs: list[InputSlot] = node.inputs
    if wanted == "*":
        return slot if slot < len(inputs) else 0
    offered = node.output_types[slot] if slot < len(node.output_types) else "*"

    def fits(entry: InputSlot) -> bool:
        return types_connect(entry.type, offered) and types_connect(entry.type, wanted)

    if slot < len(inputs) and fits(inputs[slot]):
        return slot
    exact = (index for index, entry in enumerate(inputs) if entry.type == wanted)
    fitting = (index for index, entry in enumerate(inputs) if fits(entry))
    return next(exact, next(fitting, None))
