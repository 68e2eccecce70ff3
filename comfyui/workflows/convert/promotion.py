"""Instances of subgraphs: their slots follow the definition, and an input that leads to a widget has one itself.

Editors before 1.58 could also show a widget of an inner node on the instance without an input (the property
``proxyWidgets``). Since then the editor gives such a widget an input when it loads the file, and so do we: the value
that an instance stores for it is that instance's own.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from comfyui.workflows.convert.graph import (
    SUBGRAPH_INPUT_NODE,
    BoundarySlot,
    Graph,
    InputSlot,
    Link,
    Node,
    Widget,
    Workflow,
)

_OWN = "-1"
_PREVIEW = "$$"
# Old files name the node again in front of the widget: ``12: 7: text``.
_PREFIX = re.compile(r"^\s*(\d+)\s*:\s*(.+)$")


@dataclass(frozen=True, slots=True)
class _Shown:
    """One entry of ``proxyWidgets``: a widget of a node inside, which may itself stand for one further inside."""

    node_id: str
    name: str
    deepest: str | None


def promote_widgets(workflow: Workflow) -> None:
    """Complete every instance of a subgraph, innermost first, so that a widget reaches through several walls."""
    _Promotion(workflow).run()


class _Promotion:
    def __init__(self, workflow: Workflow) -> None:
        self._workflow = workflow
        self._done: set[str] = set()
        self._instances: dict[str, list[Node]] = {}
        self._inputs_at_first: dict[int, int] = {}

    def run(self) -> None:
        for subgraph_id in self._workflow.subgraphs:
            self._inside(subgraph_id)
        self._graph(self._workflow.root)
        self._note_forgotten()

    def _inside(self, subgraph_id: str) -> None:
        if subgraph_id in self._done:
            return
        self._done.add(subgraph_id)
        graph = self._workflow.subgraphs[subgraph_id]
        for node in graph.nodes.values():
            if node.type in self._workflow.subgraphs:
                self._inside(node.type)
        self._graph(graph)

    def _graph(self, graph: Graph) -> None:
        instances = [node for node in graph.nodes.values() if node.type in self._workflow.subgraphs]
        for node in instances:
            self._complete(node, self._workflow.subgraphs[node.type])
        for node in instances:
            self._show(node, self._workflow.subgraphs[node.type])

    def _complete(self, node: Node, inside: Graph) -> None:
        in_file = {slot.name: slot for slot in reversed(node.inputs)}
        names = {boundary.name for boundary in inside.inputs}
        for slot in node.inputs:
            if slot.link is not None and slot.name not in names:
                self._warn(node, f"no longer has the input {slot.name}, so the link to it is left out")
        node.inputs, node.widgets = [], []
        for boundary in inside.inputs:
            self._add_input(node, inside, boundary, in_file.get(boundary.name))
        node.output_types = [boundary.type for boundary in inside.outputs]
        self._instances.setdefault(node.type, []).append(node)
        self._inputs_at_first[id(node)] = len(inside.inputs)
        values = _values(node)
        for widget, value in zip(node.widgets, values, strict=False):
            _set(widget, value)
        if not _entries(node):
            shown = zip(node.widgets, values, strict=False)
            self._note_nulls(node, [w.name for w, value in shown if value is None and w.value is not None])
        if not _entries(node) and any(value is not None for value in values[len(node.widgets) :]):
            self._warn(node, f"stores {len(values)} values for {len(node.widgets)} widgets; the last ones are left out")

    @staticmethod
    def _add_input(node: Node, inside: Graph, boundary: BoundarySlot, in_file: InputSlot | None = None) -> None:
        slot = InputSlot(boundary.name, boundary.type, in_file.link if in_file else None, label=boundary.label)
        slot.label = slot.label or (in_file.label if in_file else None)
        if inner := _inner_widget(boundary, inside):
            slot.widget = boundary.name
            node.widgets.append(Widget(boundary.name, inner.kind, inner.value, options=inner.options))
        node.inputs.append(slot)

    def _show(self, node: Node, inside: Graph) -> None:
        """Give each shown widget an input of its own, and the instance the value that it stores for it."""
        entries, values = _entries(node), _values(node)
        if not entries:
            return
        renamed = self._workflow.renamed.get(node.type, {})
        nulls = []
        for index, entry in enumerate(entries):
            value = values[index] if index < len(values) else None
            if entry.node_id == _OWN:
                widget = node.widget(entry.name)
            else:
                moved = replace(entry, node_id=renamed.get(entry.node_id, entry.node_id))
                widget = self._shown_widget(node, inside, moved)
            if widget:
                _set(widget, value)
                if value is None and index < len(values) and widget.value is not None:
                    nulls.append(entry.name)
            elif value is not None and not entry.name.startswith(_PREVIEW):
                self._warn(
                    node, f"stores {value!r:.60} for {entry.name} of node {entry.node_id}, which it does not have"
                )
        self._note_nulls(node, nulls)
        if len(values) > len(entries) and any(value is not None for value in values[len(entries) :]):
            self._warn(node, f"stores {len(values)} values for the {len(entries)} widgets that it shows")
        self._note_unlisted(node, inside, entries, values)

    def _note_forgotten(self) -> None:
        """Name the instances whose values the editor (1.58.1) forgets: those that it reads before their subgraph.

        The editor sorts subgraphs so that this does not happen, except if one holds two instances of another.
        """
        subgraphs = self._workflow.subgraphs
        inner = {
            name: [node for node in graph.nodes.values() if node.type in subgraphs] for name, graph in subgraphs.items()
        }
        if all(len({node.type for node in nodes}) == len(nodes) for nodes in inner.values()):
            return
        position = {name: number for number, name in enumerate(subgraphs)}
        for name, nodes in inner.items():
            for node in nodes:
                if position[node.type] > position[name] and node.widgets and any(v is not None for v in _values(node)):
                    self._warn(node, "has values that the editor forgets when it loads the file; here they are kept")

    def _note_nulls(self, node: Node, names: Sequence[str]) -> None:
        if names:
            self._warn(node, f"stores null for {', '.join(names)}, so the value inside the subgraph is used")

    def _note_unlisted(self, node: Node, inside: Graph, entries: Sequence[_Shown], values: Sequence[Any]) -> None:
        """Widgets of inputs that ``proxyWidgets`` does not list got a value by position, which may be another
        widget's.
        """
        listed = {(entry.node_id, entry.name) for entry in entries}
        with_widget = [
            boundary
            for boundary in inside.inputs[: self._inputs_at_first[id(node)]]
            if node.widget(boundary.name) is not None
        ]
        unlisted = [
            boundary.name
            for boundary in with_widget[: len(values)]
            if (_OWN, boundary.name) not in listed and _source(boundary, inside) not in listed
        ]
        if unlisted:
            self._warn(node, f"does not say which of its values is that of {', '.join(unlisted)}")

    def _shown_widget(self, node: Node, inside: Graph, entry: _Shown) -> Widget | None:
        name, deepest = _resolved_name(inside, entry)
        for boundary in inside.inputs:
            if _source(boundary, inside) == (entry.node_id, name):
                return node.widget(boundary.name)
        source = inside.nodes.get(entry.node_id)
        if source is None:
            return None
        if source.type == "PrimitiveNode":
            others = {other.name for other in _entries(node) if other.node_id == entry.node_id}
            boundary_name = self._replace_primitive(inside, source, name) if len(others) == 1 else None
        else:
            slot = _slot_showing(source, self._workflow.subgraphs.get(source.type), name, deepest)
            if slot and slot.link is not None:
                self._warn(node, f"shows {name} of node {source.id}, so the link to it inside the subgraph is ignored")
            boundary_name = self._new_input(inside, name, slot.type, [(source, slot)]) if slot else None
        return node.widget(boundary_name)

    def _replace_primitive(self, inside: Graph, primitive: Node, name: str) -> str | None:
        """A shown primitive becomes an input of the subgraph, linked to all that the primitive fed."""
        targets = [
            (target, slot)
            for links in primitive.output_links[:1]
            for link_id in links
            if (link := inside.links.get(link_id)) and (target := inside.nodes.get(link.target_id))
            for slot in target.inputs
            if slot.link == link_id
        ]
        if not targets:
            return None
        kind = primitive.output_types[0] if primitive.output_types else "*"
        title = primitive.title if primitive.title not in ("", "PrimitiveNode") else name
        created = self._new_input(inside, title, kind, targets)
        values = primitive.widget_values
        primitive.output_links = []
        if isinstance(values, Sequence) and values:
            for instance in self._instances.get(_name_of(self._workflow, inside), ()):
                if widget := instance.widget(created):
                    widget.value = values[0]
        return created

    def _new_input(self, inside: Graph, name: str, kind: str, targets: Sequence[tuple[Node, InputSlot]]) -> str:
        """Add an input to a subgraph, linked to `targets`, and a slot for it to each instance; returns its name."""
        taken = {boundary.name for boundary in inside.inputs}
        unique, number = name, 0
        while unique in taken:
            number += 1
            unique = f"{name}_{number}"
        ids = []
        for target, slot in targets:
            link_id = f"shown-{len(inside.links)}"
            slot.link = link_id
            inside.links[link_id] = Link(
                link_id, SUBGRAPH_INPUT_NODE, len(inside.inputs), target.id, target.inputs.index(slot)
            )
            ids.append(link_id)
        boundary = BoundarySlot(unique, kind, tuple(ids))
        inside.inputs.append(boundary)
        for instance in self._instances.get(_name_of(self._workflow, inside), ()):
            self._add_input(instance, inside, boundary)
        return unique

    def _warn(self, node: Node, text: str) -> None:
        self._workflow.warnings.append(f"node {node.id} ({_title(node, self._workflow)}): it {text}")


def _title(node: Node, workflow: Workflow) -> str:
    return node.title or workflow.subgraphs[node.type].name or "subgraph"


def _name_of(workflow: Workflow, graph: Graph) -> str:
    return next((name for name, found in workflow.subgraphs.items() if found is graph), "")


def _set(widget: Widget, value: Any) -> None:
    """An instance's own value for a widget that it shows. Null means that the value inside counts.

    The editor (1.58.1) exports the null itself here, which ComfyUI refuses.
    """
    if value is not None:
        widget.value = value


def _values(node: Node) -> Sequence[Any]:
    return node.widget_values if isinstance(node.widget_values, Sequence) else ()


def _entries(node: Node) -> list[_Shown]:
    entries = node.properties.get("proxyWidgets")
    return [
        _Shown(str(entry[0]), str(entry[1]), str(entry[2]) if len(entry) > 2 and entry[2] is not None else None)
        for entry in (entries if isinstance(entries, list) else [])
        if isinstance(entry, list) and len(entry) >= 2
    ]


def _resolved_name(inside: Graph, entry: _Shown) -> tuple[str, str | None]:
    """The widget's name without the node ids that old files put in front of it, and the deepest of those ids."""
    source = inside.nodes.get(entry.node_id)
    name, deepest = entry.name, entry.deepest
    while source and not source.widget(name) and (match := _PREFIX.match(name)):
        deepest, name = match[1], match[2]
    return name, deepest


def _source(boundary: BoundarySlot, inside: Graph) -> tuple[str, str] | None:
    """The node inside, and its widget, that an input of a subgraph stands for."""
    for target, slot in _targets(boundary, inside):
        if slot.widget and target.widget(slot.widget):
            return target.id, slot.widget
    return None


def _targets(boundary: BoundarySlot, inside: Graph) -> list[tuple[Node, InputSlot]]:
    return [
        (target, slot)
        for link_id in boundary.links
        if (link := inside.links.get(link_id)) and (target := inside.nodes.get(link.target_id))
        for slot in target.inputs
        if slot.link == link_id
    ]


def _inner_widget(boundary: BoundarySlot, inside: Graph) -> Widget | None:
    """The first widget that the subgraph's input is linked to."""
    for target, slot in _targets(boundary, inside):
        if widget := target.widget(slot.widget):
            return widget
    return None


def _slot_showing(source: Node, inner: Graph | None, name: str, deepest: str | None) -> InputSlot | None:
    """The slot of a node that belongs to the widget `name`; on a nested instance, also by the widget that the slot
    stands for.
    """
    for slot in source.inputs:
        if slot.widget is None:
            continue
        if inner is None:
            if slot.widget == name:
                return slot
            continue
        boundary = next((boundary for boundary in inner.inputs if boundary.name == slot.name), None)
        stands_for = _source(boundary, inner) if boundary else None
        if deepest is not None:
            if stands_for == (deepest, name):
                return slot
        elif slot.name == name or (stands_for and stands_for[1] == name):
            return slot
    return None
