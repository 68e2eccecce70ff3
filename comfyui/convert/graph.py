"""A UI export as typed records: nodes with slots and widgets, links in one form, subgraph definitions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from comfyui.exceptions import ComfyUIValidationError

# The two ends of a subgraph, as links inside its definition name them.
SUBGRAPH_INPUT_NODE = "-10"
SUBGRAPH_OUTPUT_NODE = "-20"

NEVER, BYPASS = 2, 4

# Classes that the editor renames in old files before it looks them up.
_RENAMED_CLASSES = {
    "T2IAdapterLoader": "ControlNetLoader",
    "ConditioningAverage ": "ConditioningAverage",
    "SDV_img2vid_Conditioning": "SVD_img2vid_Conditioning",
}


class _Missing:
    """A widget without a value: the editor leaves its input out."""

    def __repr__(self) -> str:
        return "MISSING"


MISSING = _Missing()


@dataclass(frozen=True, slots=True)
class Link:
    id: str
    origin_id: str
    origin_slot: int
    target_id: str
    target_slot: int


@dataclass(slots=True)
class InputSlot:
    """``widget`` is the name of the widget that the slot can replace; None for a plain socket."""

    name: str
    type: str
    link: str | None = None
    widget: str | None = None


@dataclass(slots=True)
class Widget:
    """One control of a node, in the order in which the editor lays them out.

    Attributes:
        kind: the widget type: ``INT``, ``COMBO``, ``BUTTON``, …
        in_prompt: false for buttons and for the control that says how a seed changes.
        stored: false for those that take no place in ``widgets_values``.
        options: the declared options of the input, such as ``min`` or ``dynamicPrompts``.
    """

    name: str
    kind: str
    value: Any = MISSING
    in_prompt: bool = True
    stored: bool = True
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Node:
    """A node of the file; ``inputs`` and ``widgets`` are completed from the node's definition."""

    id: str
    type: str
    mode: int
    title: str
    inputs: list[InputSlot]
    output_types: list[str]
    output_links: list[list[str]]
    widget_values: Sequence[Any] | Mapping[str, Any]
    properties: Mapping[str, Any]
    widgets: list[Widget] = field(default_factory=list)

    @property
    def runs(self) -> bool:
        return self.mode not in (NEVER, BYPASS)

    @property
    def linked(self) -> bool:
        return any(slot.link for slot in self.inputs) or any(self.output_links)

    def widget(self, name: str | None) -> Widget | None:
        return next((widget for widget in self.widgets if widget.name == name), None)


@dataclass(slots=True)
class Graph:
    """The whole workflow, or the inside of a subgraph; ``inputs`` and ``outputs`` are a subgraph's own slots."""

    nodes: dict[str, Node]
    links: dict[str, Link]
    name: str = ""
    inputs: list[BoundarySlot] = field(default_factory=list)
    outputs: list[BoundarySlot] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class BoundarySlot:
    """A slot of a subgraph, and the links inside the subgraph that start or end at it."""

    name: str
    type: str
    links: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Workflow:
    root: Graph
    subgraphs: Mapping[str, Graph]

    def graphs(self) -> Iterator[Graph]:
        yield self.root
        yield from self.subgraphs.values()


def parse_workflow(file: Mapping[str, Any]) -> Workflow:
    """Read a UI export of any version; links may be arrays or objects.

    Raises:
        ComfyUIValidationError: the file is damaged, or holds group nodes, whose inside is kept in a form of their own.
    """
    group_nodes = _mapping(_mapping(file.get("extra")).get("groupNodes"))
    used = sorted(
        {str(node.get("type")) for node in _objects(file.get("nodes"))} & {f"workflow/{n}" for n in group_nodes}
    )
    if used:
        raise ComfyUIValidationError(
            f"The workflow uses group nodes ({', '.join(used)}), which are not converted: turn them into subgraphs or "
            'ungroup them in the editor, or export with "Workflow > Export (API)".'
        )
    definitions: dict[str, Graph] = {}
    _collect_subgraphs(file, definitions)
    return Workflow(_parse_graph(file), definitions)


def _collect_subgraphs(holder: Mapping[str, Any], found: dict[str, Graph]) -> None:
    for definition in _objects(_mapping(holder.get("definitions")).get("subgraphs")):
        found[str(definition.get("id"))] = _parse_graph(definition)
        _collect_subgraphs(definition, found)


def _parse_graph(data: Mapping[str, Any]) -> Graph:
    nodes = [_parse_node(node) for node in _objects(data.get("nodes"))]
    links = [link for entry in _sequence(data.get("links")) if (link := _parse_link(entry))]
    return Graph(
        nodes={node.id: node for node in nodes},
        links={link.id: link for link in links},
        name=str(data.get("name") or ""),
        inputs=[_parse_boundary(slot) for slot in _objects(data.get("inputs"))],
        outputs=[_parse_boundary(slot) for slot in _objects(data.get("outputs"))],
    )


def _parse_node(data: Mapping[str, Any]) -> Node:
    if data.get("id") is None or not isinstance(data.get("type"), str):
        raise ComfyUIValidationError("The workflow is damaged: a node has no id or no type.")
    kind = data["type"]
    outputs = list(_objects(data.get("outputs")))
    values = data.get("widgets_values")
    return Node(
        id=str(data["id"]),
        type=_RENAMED_CLASSES.get(kind, kind),
        mode=data["mode"] if isinstance(data.get("mode"), int) else 0,
        title=str(data.get("title") or ""),
        inputs=[_parse_input(slot) for slot in _objects(data.get("inputs"))],
        output_types=[slot_type(slot.get("type")) for slot in outputs],
        output_links=[[str(link) for link in _sequence(slot.get("links"))] for slot in outputs],
        widget_values=values if isinstance(values, Mapping) else _sequence(values),
        properties=_mapping(data.get("properties")),
    )


def _parse_input(data: Mapping[str, Any]) -> InputSlot:
    link, widget = data.get("link"), _mapping(data.get("widget")).get("name")
    return InputSlot(
        name=str(data.get("name", "")),
        type=slot_type(data.get("type")),
        link=None if link is None else str(link),
        widget=None if widget is None else str(widget),
    )


def _parse_link(entry: Any) -> Link | None:
    match entry:
        case [link_id, origin_id, origin_slot, target_id, target_slot, *_]:
            pass
        case {
            "id": link_id,
            "origin_id": origin_id,
            "origin_slot": origin_slot,
            "target_id": target_id,
            "target_slot": target_slot,
        }:
            pass
        case None:
            return None
        case _:
            raise ComfyUIValidationError(f"The workflow is damaged: {entry!r:.80} is no link.")
    try:
        link = Link(str(link_id), str(origin_id), int(origin_slot), str(target_id), int(target_slot))
    except (TypeError, ValueError, OverflowError):
        link = None
    if link is None or link.origin_slot < 0:
        raise ComfyUIValidationError(f"The workflow is damaged: {entry!r:.80} is no link.")
    return link


def _parse_boundary(data: Mapping[str, Any]) -> BoundarySlot:
    links = tuple(str(link) for link in _sequence(data.get("linkIds")))
    return BoundarySlot(str(data.get("name", "")), slot_type(data.get("type")), links)


def slot_type(declared: Any) -> str:
    """A slot's type as text; a list of choices is ``COMBO``, and 0 or nothing means any type."""
    if isinstance(declared, list | tuple):
        return "COMBO"
    return "*" if declared in (None, 0, "", "0") else str(declared)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _sequence(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else ()


def _objects(value: Any) -> Iterator[Mapping[str, Any]]:
    return (entry for entry in _sequence(value) if isinstance(entry, Mapping))
