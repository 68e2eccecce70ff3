"""From a linked input to what finally feeds it: through reroutes, bypassed nodes and the walls of subgraphs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from comfyui.convert.graph import (
    BYPASS,
    SUBGRAPH_INPUT_NODE,
    Graph,
    InputSlot,
    Link,
    Node,
    Workflow,
)
from comfyui.exceptions import ComfyUIValidationError

VIRTUAL_TYPES = frozenset({"Note", "MarkdownNote", "Reroute", "PrimitiveNode"})
_MAX_DEPTH = 64
# Subgraphs in subgraphs multiply: a small file could be a workflow of any size.
_MAX_NODES = 50_000
_MAX_HOPS = 200


@dataclass(frozen=True, slots=True)
class Placed:
    """A node at its place in the flattened workflow.

    Attributes:
        id: the ids of the subgraph instances around it and its own, joined by colons: ComfyUI's node id.
        around: the subgraph instance that it is inside of; None at the top.
        inputs: its slots; those of a subgraph instance follow the subgraph's definition.
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
    """The value of a widget that a subgraph instance shows in place of a linked input."""

    value: Any


Source = NodeOutput | PromotedValue


def flatten(workflow: Workflow) -> dict[str, Placed]:
    """Every node of the workflow, those inside subgraphs once for each instance.

    Raises:
        ComfyUIValidationError: a subgraph contains itself, or the whole is larger than any ComfyUI could run.
    """
    found: dict[str, Placed] = {}
    for placed in _flatten(workflow.root, workflow.subgraphs, None, 0):
        found[placed.id] = placed
        if len(found) > _MAX_NODES:
            raise ComfyUIValidationError(f"Written out, the workflow has more than {_MAX_NODES} nodes.")
    return found


def _flatten(graph: Graph, subgraphs: Mapping[str, Graph], around: Placed | None, depth: int) -> Iterator[Placed]:
    if depth > _MAX_DEPTH:
        raise ComfyUIValidationError(f"The subgraph {graph.name!r} contains itself.")
    for node in graph.nodes.values():
        placed = Placed(f"{around.id}:{node.id}" if around else node.id, node, graph, around, subgraphs.get(node.type))
        yield placed
        if placed.inside:
            yield from _flatten(placed.inside, subgraphs, placed, depth + 1)


class LinkResolver:
    """Follows links through a flattened workflow. ``dropped`` collects what had to be left out, as warnings."""

    def __init__(self, placed: Mapping[str, Placed]) -> None:
        self._placed = placed
        self.dropped: list[str] = []

    def source_of(self, placed: Placed, slot: int) -> Source | None:
        """What feeds an input: None when nothing does.

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
            self.dropped.append(
                f"node {placed.id}: {entry.name} is linked to node {link.origin_id}, which does not exist"
            )
            return None
        return self._out_of(origin, link.origin_slot, wanted or entry.type, seen)

    def _through_wall(
        self, instance: Placed, inner: Placed, link: Link, seen: set[tuple[str, str, int]]
    ) -> Source | None:
        """From inside a subgraph to what feeds its instance: a link, or where that ends the instance's widget."""
        inputs = instance.node.inputs
        if link.origin_slot >= len(inputs):
            self.dropped.append(f"node {inner.id}: its subgraph has no input {link.origin_slot}")
            return None
        outer = inputs[link.origin_slot]
        source = self._into(instance, link.origin_slot, None, seen)
        if source is None and (widget := instance.node.widget(outer.widget)):
            return PromotedValue(widget.value)
        return source

    def _out_of(self, placed: Placed, slot: int, wanted: str, seen: set[tuple[str, str, int]]) -> Source | None:
        self._visit(placed, "output", slot, seen)
        if placed.node.mode == BYPASS:
            matching = _bypass_input(placed.node, slot, wanted)
            return None if matching is None else self._into(placed, matching, None, seen)
        if placed.inside:
            return self._out_of_subgraph(placed, placed.inside, slot, wanted, seen)
        if placed.node.type in VIRTUAL_TYPES:
            return self._into(placed, slot, wanted, seen)
        return NodeOutput(placed.id, slot)

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
                f"The subgraph {inside.name!r} (node {instance.id}) links an input straight to an output, "
                "which the editor cannot export either."
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
    """Which input a bypassed node passes on as its output `slot`: the one beside it, else the first that fits."""
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


def types_connect(one: str, other: str) -> bool:
    """The editor's rule: any type fits ``*``, a list of types by commas fits when one of them does; case is ignored."""
    ones, others = one.lower().split(","), other.lower().split(",")
    return any(a == b or a in ("*", "") or b in ("*", "") for a in ones for b in others)
