"""A UI export as typed records: nodes with slots and widgets, links in one form, subgraph definitions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from comfyui.exceptions import ComfyUIValidationError
from comfyui.workflows.node_definitions import as_mapping, as_sequence

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
    label: str | None = None


@dataclass(slots=True)
class Widget:
    """One control of a node, in the order in which the editor lays them out.

    Attributes:
        kind: the widget type: ``INT``, ``COMBO``, ``BUTTON``, …
        in_prompt: false for buttons and for the control that says how a seed changes.
        stored: false for those that take no place in ``widgets_values``.
        options: the declared options of the input, such as ``min`` or ``dynamicPrompts``.
        children: gives the widgets that appear after this one while it has the given value; None: it never has any.
        left_behind: widgets of the first option that the editor forgets to remove when the stored value is put in.
    """

    name: str
    kind: str
    value: Any = MISSING
    in_prompt: bool = True
    stored: bool = True
    options: Mapping[str, Any] = field(default_factory=dict)
    children: Callable[[Any], list[Widget]] | None = None
    left_behind: Sequence[Widget] = ()


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
    overrides: Mapping[str, Any] = field(default_factory=dict)
    """Values of widgets that count before those that the file stores with the node, by widget name."""
    file_slots: tuple[str, ...] = ()
    """The names of its inputs in the order of the file."""

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
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Data that editor extensions keep in the file, such as their own links."""
    named_links: frozenset[str] = frozenset()
    """The links that some input of the file names."""
    links_into: Mapping[str, Sequence[Link]] = field(default_factory=dict)
    """By node id: the links of the file's list that end at the node."""
    left_out: dict[str, Node] = field(default_factory=dict)
    """Nodes that were taken out of `nodes`, for they act in the editor only."""


@dataclass(frozen=True, slots=True)
class BoundarySlot:
    """A slot of a subgraph, and the links inside the subgraph that start or end at it."""

    name: str
    type: str
    links: tuple[str, ...]
    label: str | None = None


@dataclass(slots=True)
class Workflow:
    """A file's graphs. ``warnings`` say what reading it left out."""

    root: Graph
    subgraphs: dict[str, Graph]
    ids: NodeIds
    renamed: Mapping[str, Mapping[str, str]]
    """By subgraph: the old ids of inner nodes that the editor changes when it loads the file, to the new ids."""
    warnings: list[str]

    def graphs(self) -> Iterator[Graph]:
        yield self.root
        yield from self.subgraphs.values()


def parse_workflow(file: Mapping[str, Any]) -> Workflow:
    """Reads a UI export of any version; links may be arrays or objects.

    Raises:
        ComfyUIValidationError: the file is damaged.
    """
    warnings: list[str] = []
    definitions: dict[str, Mapping[str, Any]] = {}
    for definition in _definitions(file):
        name = id_text(definition.get("id"))
        if definitions.setdefault(name, definition) != definition:
            warnings.append(f"two different subgraphs have the id {name}; the first one is used")
    ids = NodeIds(file)
    renamed = {name: ids.of_subgraph(definition) for name, definition in definitions.items()}
    subgraphs = {name: _parse_graph(definition, renamed[name], warnings) for name, definition in definitions.items()}
    root = _parse_graph(file, {}, warnings, ids)
    return Workflow(root, subgraphs, ids, renamed, warnings)


def _definitions(holder: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """All subgraph definitions, each before those inside of it, which is the order in which the editor reads them."""
    for definition in objects_of(as_mapping(holder.get("definitions")).get("subgraphs")):
        yield definition
        yield from _definitions(definition)


class NodeIds:
    """Ids as the editor gives them: one that is taken, anywhere in the file, is replaced by the next free one."""

    def __init__(self, file: Mapping[str, Any]) -> None:
        state = as_mapping(file.get("state"))
        self._used = {id_text(node.get("id")) for node in objects_of(file.get("nodes"))}
        counted = (file.get("last_node_id"), state.get("lastNodeId"), *self._used)
        self.last = max((_whole(value) for value in counted), default=0)

    def next(self) -> str:
        self.last += 1
        while str(self.last) in self._used:
            self.last += 1
        self._used.add(str(self.last))
        return str(self.last)

    def of_subgraph(self, definition: Mapping[str, Any]) -> dict[str, str]:
        """The new ids of those nodes of a subgraph whose id the file has already used elsewhere."""
        changed: dict[str, str] = {}
        for old in dict.fromkeys(id_text(node.get("id")) for node in objects_of(definition.get("nodes"))):
            if old in self._used:
                changed[old] = self.next()
                continue
            self._used.add(old)
            self.last = max(self.last, _whole(old))
        return changed


def _whole(value: Any) -> int:
    """A node id as a number; 0 if it is not one."""
    text = id_text(value)
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 16 else 0


def _parse_graph(
    data: Mapping[str, Any], renamed: Mapping[str, str], warnings: list[str], ids: NodeIds | None = None
) -> Graph:
    """`ids` gives new ids to nodes of the root with the id of another; in a subgraph the editor drops such nodes."""
    nodes: dict[str, Node] = {}
    for entry in objects_of(data.get("nodes")):
        node = _parse_node(entry)
        node.id = renamed.get(node.id, node.id)
        if node.id in nodes:
            first, old = nodes[node.id].type, node.id
            fate = f"the second ({node.type}) is left out"
            if ids:
                node.id = ids.next()
                fate = f"the second ({node.type}) is node {node.id} in the result, and no link leads to it"
                node.inputs = [InputSlot(slot.name, slot.type, None, slot.widget) for slot in node.inputs]
            warnings.append(f"node {old}: two nodes have this id; the first ({first}) keeps it, {fate}")
            if not ids:
                continue
        nodes[node.id] = node
    links = [link for entry in as_sequence(data.get("links")) if (link := _parse_link(entry, renamed))]
    links_into: dict[str, list[Link]] = {}
    for link in links:
        links_into.setdefault(link.target_id, []).append(link)
    return Graph(
        nodes=nodes,
        named_links=frozenset(slot.link for node in nodes.values() for slot in node.inputs if slot.link is not None),
        links_into=links_into,
        links={link.id: link for link in reversed(links)},
        name=str(data.get("name") or ""),
        inputs=[_parse_boundary(slot) for slot in objects_of(data.get("inputs"))],
        outputs=[_parse_boundary(slot) for slot in objects_of(data.get("outputs"))],
        extra=as_mapping(data.get("extra")),
    )


def _parse_node(data: Mapping[str, Any]) -> Node:
    if data.get("id") is None or not isinstance(data.get("type"), str):
        raise ComfyUIValidationError("The workflow is damaged: a node has no id or no type.")
    return parse_node(data, id_text(data["id"]))


def parse_node(data: Mapping[str, Any], node_id: str) -> Node:
    """One node of a file, under the given id."""
    kind = str(data.get("type"))
    outputs = list(objects_of(data.get("outputs")))
    values = data.get("widgets_values")
    return Node(
        id=node_id,
        type=_RENAMED_CLASSES.get(kind, kind),
        mode=_mode(data.get("mode")),
        title=str(data.get("title") or ""),
        inputs=[_parse_input(slot) for slot in objects_of(data.get("inputs"))],
        output_types=[slot_type(slot.get("type")) for slot in outputs],
        output_links=[[id_text(link) for link in as_sequence(slot.get("links"))] for slot in outputs],
        widget_values=values if isinstance(values, Mapping) else as_sequence(values),
        properties=as_mapping(data.get("properties")),
        file_slots=tuple(str(slot.get("name", "")) for slot in objects_of(data.get("inputs"))),
    )


def _parse_input(data: Mapping[str, Any]) -> InputSlot:
    link, widget = data.get("link"), as_mapping(data.get("widget")).get("name")
    return InputSlot(
        name=str(data.get("name", "")),
        type=slot_type(data.get("type")),
        link=None if link is None else id_text(link),
        widget=None if widget is None else str(widget),
        label=_label(data),
    )


def _label(slot: Mapping[str, Any]) -> str | None:
    """The editor's label for a renamed slot."""
    return str(slot["label"]) if slot.get("label") else None


def _parse_link(entry: Any, renamed: Mapping[str, str]) -> Link | None:
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
            raise ComfyUIValidationError(f"The workflow is damaged: {entry!r:.80} is not a link.")
    try:
        origin, target = id_text(origin_id), id_text(target_id)
        link = Link(
            id_text(link_id),
            renamed.get(origin, origin),
            int(origin_slot),
            renamed.get(target, target),
            int(target_slot),
        )
    except (TypeError, ValueError, OverflowError):
        link = None
    if link is None or link.origin_slot < 0:
        raise ComfyUIValidationError(f"The workflow is damaged: {entry!r:.80} is not a link.")
    return link


def _parse_boundary(data: Mapping[str, Any]) -> BoundarySlot:
    links = tuple(id_text(link) for link in as_sequence(data.get("linkIds")))
    return BoundarySlot(str(data.get("name", "")), slot_type(data.get("type")), links, _label(data))


def id_text(value: Any) -> str:
    """An id as the editor writes it, for which 1.0 and 1 are one number: other programs write files, too."""
    return str(int(value) if isinstance(value, float) and value.is_integer() else value)


def _mode(value: Any) -> int:
    return int(value) if isinstance(value, int | float) and value in (NEVER, BYPASS) else 0


def slot_type(declared: Any) -> str:
    """A slot's type as text; a list of choices is ``COMBO``, and 0 or nothing means any type."""
    if isinstance(declared, list | tuple):
        return "COMBO"
    return "*" if declared in (None, 0, "", "0") else str(declared)


def types_connect(one: str, other: str) -> bool:
    """The editor's rule: any type fits ``*``, a list of types by commas fits when one of them does; case is ignored."""
    ones, others = one.lower().split(","), other.lower().split(",")
    return any(a == b or a in ("*", "") or b in ("*", "") for a in ones for b in others)


def objects_of(value: Any) -> Iterator[Mapping[str, Any]]:
    return (entry for entry in as_sequence(value) if isinstance(entry, Mapping))
