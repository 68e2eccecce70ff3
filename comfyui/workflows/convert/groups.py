"""Group nodes of old files: the editor turns each into a subgraph when it loads the file, and so do we.

``extra.groupNodes`` has the contents of a group node: nodes without ids, links by their position, and the names that
the group shows for inner inputs and outputs. The group itself looks like a node of a class that is made of these.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from comfyui.exceptions import ComfyUIValidationError, UncertainLayoutError
from comfyui.limits import DEFAULT_LIMITS, Limits, over
from comfyui.workflows.convert.graph import (
    SUBGRAPH_INPUT_NODE,
    SUBGRAPH_OUTPUT_NODE,
    BoundarySlot,
    Graph,
    InputSlot,
    Link,
    Node,
    Workflow,
    objects_of,
    parse_node,
    slot_type,
)
from comfyui.workflows.convert.values import set_value
from comfyui.workflows.convert.widgets import complete_node, editor_inputs, has_widget
from comfyui.workflows.node_definitions import InputSpec, ObjectInfo, as_mapping, as_sequence, declared_outputs

_PREFIXES = ("workflow/", "workflow>")
_WHAT_TO_DO = (
    "open the workflow in the editor, which turns group nodes into subgraphs, and save it again, or export it with "
    '"Workflow > Export (API)"'
)


def unfold_groups(
    workflow: Workflow, file: Mapping[str, Any], object_info: ObjectInfo, limits: Limits = DEFAULT_LIMITS
) -> list[str]:
    """Replace each group node at the top by an instance of a subgraph of its own; returns warnings.

    Raises:
        ComfyUILimitError: the workflow would have too many nodes; none is unfolded then.
        ComfyUIValidationError: the contents of a group node cannot be unfolded with certainty.
    """
    definitions = as_mapping(as_mapping(file.get("extra")).get("groupNodes"))
    names = {
        node_id: name
        for node_id, node in workflow.root.nodes.items()
        if node.type.startswith(_PREFIXES) and (name := node.type[len(_PREFIXES[0]) :]) in definitions
    }
    total = len(workflow.root.nodes) + sum(
        len(as_sequence(as_mapping(definitions[name]).get("nodes"))) for name in names.values()
    )
    if total > limits.max_workflow_nodes:
        what = f"With its group nodes unfolded, the workflow would have {total} nodes, more than {{limit}}"
        raise over(what, limits.max_workflow_nodes)
    warnings = []
    for node_id, name in names.items():
        node = workflow.root.nodes[node_id]
        group = _Group(name, as_mapping(definitions[name]), object_info)
        old_id = node.id
        group.unfold(node, workflow)
        if not node.runs:
            warnings.append(
                f"node {old_id} ({name}): the editor turns this group node into a subgraph that runs, although the "
                "group node is muted or bypassed"
            )
            node.mode = 0
    return warnings


class _Group:
    """One definition of a group node, read again for each instance."""

    def __init__(self, name: str, data: Mapping[str, Any], object_info: ObjectInfo) -> None:
        self._name = name
        self._nodes = list(objects_of(data.get("nodes")))
        self._config = as_mapping(data.get("config"))
        self._info = object_info
        self._links = [link for entry in as_sequence(data.get("links")) if (link := _link(entry, len(self._nodes)))]
        self._external = {
            (str(entry[0]), str(entry[1]))
            for entry in as_sequence(data.get("external"))
            if isinstance(entry, list) and len(entry) > 2 and entry[2] is not None
        }
        self._seen: dict[str, int] = {}
        self._outer: dict[str, InputSpec] = {}
        """The group's own inputs, by the name under which it shows them."""
        self._widgets: list[tuple[int, str, str]] = []
        """Inner node, widget inside, and its name outside."""
        self._sockets: list[tuple[int, str, str]] = []
        """Inner node, input inside, and its name outside."""
        self._outputs: list[tuple[int, int, str]] = []
        """Inner node, output inside, and its type."""

    def unfold(self, group_node: Node, workflow: Workflow) -> None:
        if not self._nodes:
            raise ComfyUIValidationError(f"The group node {self._name} has no nodes: {_WHAT_TO_DO}.")
        later: list[tuple[int, InputSpec]] = []
        for index in range(len(self._nodes)):
            self._read_node(index, later)
        for index, spec in later:
            if not self._is_fed(index, spec.name):
                name = self._show(index, spec)
                self._widgets.append((index, spec.name, name))
                self._sockets.append((index, spec.name, name))
        overrides = self._values_of(group_node)
        inner = [parse_node(data, workflow.ids.next()) for data in self._nodes]
        for index, node in enumerate(inner):
            node.overrides = overrides.get(index, {})
            node.output_links = [[] for _ in node.output_types]
            for slot in node.inputs:
                slot.link = None
        graph = Graph({node.id: node for node in inner}, {}, name=self._name)
        self._link_inside(inner, graph)
        self._link_outside(group_node, inner, graph)
        self._replace(group_node, graph, workflow)

    # The slots of the group

    def _read_node(self, index: int, later: list[tuple[int, InputSpec]]) -> None:
        data = self._nodes[index]
        kind = str(data.get("type"))
        if kind == "Reroute" and self._is_fed(index, "", 0) and self._feeds(index, 0):
            return
        definition = self._info.get(kind)
        if definition is None:
            if kind in ("Note", "MarkdownNote"):
                return
            raise ComfyUIValidationError(
                f"The group node {self._name} holds the node {kind}, "
                + (
                    "which the editor shows in a special way"
                    if kind in ("PrimitiveNode", "Reroute")
                    else "not installed"
                )
                + f": {_WHAT_TO_DO}."
            )
        listed = {
            str(slot.get("name")): as_mapping(slot.get("widget")).get("name") for slot in objects_of(data.get("inputs"))
        }
        sockets = []
        for spec in editor_inputs(kind, definition):
            if not has_widget(spec):
                sockets.append(spec)
            elif listed.get(spec.name) == spec.name:
                later.append((index, spec))
            else:
                self._widgets.append((index, spec.name, self._show(index, spec)))
        for spec in sockets:
            position = sockets.index(spec)
            if self._is_fed(index, spec.name, position):
                continue
            hidden = self._custom(index, "input", spec.name).get("visible") is False
            name = self._show(index, spec, hidden=hidden)
            if not hidden:
                self._sockets.append((index, spec.name, name))
        for number, output in enumerate(declared_outputs(definition)):
            custom = self._custom(index, "output", str(number))
            hidden = self._feeds(index, number) and (str(index), str(number)) not in self._external
            if custom.get("visible", not hidden):
                self._outputs.append((index, number, slot_type(output)))

    def _custom(self, index: int, side: str, name: str) -> Mapping[str, Any]:
        return as_mapping(as_mapping(as_mapping(self._config.get(str(index))).get(side)).get(name))

    def _show(self, index: int, spec: InputSpec, *, hidden: bool = False) -> str:
        """The name under which the group shows an input: its own, or with the node's title if that name is taken."""
        data = self._nodes[index]
        labels = {str(slot.get("name")): slot.get("label") for slot in objects_of(data.get("inputs"))}
        name = str(self._custom(index, "input", spec.name).get("name") or labels.get(spec.name) or spec.name)
        key = name
        if name in self._seen:
            prefix = f"{data.get('title') or data.get('type')} "
            key = name = f"{prefix}{spec.name}"
            if name in self._seen:
                name = f"{prefix}{self._seen[name]} {spec.name}"
        self._seen[key] = self._seen.get(key, 1) + 1
        if not hidden:
            self._outer[name] = spec
        return name

    def _is_fed(self, index: int, name: str, position: int | None = None) -> bool:
        names = [slot.get("name") for slot in objects_of(self._nodes[index].get("inputs"))]
        slot = names.index(name) if name in names else position
        return any(target == index and target_slot == slot for _, _, target, target_slot in self._links)

    def _feeds(self, index: int, output: int) -> bool:
        return any(origin == index and slot == output for origin, slot, _, _ in self._links)

    def _values_of(self, group_node: Node) -> dict[int, dict[str, Any]]:
        """The values that this group node stores, by the position of the inner node and its widget."""
        definition = {"input": {"required": {name: _declared(spec) for name, spec in self._outer.items()}}}
        outer = Node("", group_node.type, 0, "", [], [], [], group_node.widget_values, {})
        try:
            complete_node(outer, definition, ())
        except UncertainLayoutError as error:
            raise ComfyUIValidationError(f"The group node {self._name}: {error}; {_WHAT_TO_DO}.") from None
        free = list(outer.widgets)
        found: dict[int, dict[str, Any]] = {}
        for index, inner_name, name in self._widgets:
            widget = next((widget for widget in free if widget.name == name), None)
            if widget:
                free.remove(widget)
                found.setdefault(index, {})[inner_name] = widget.value
        return found

    # The subgraph

    def _link_inside(self, inner: list[Node], graph: Graph) -> None:
        for number, (origin, origin_slot, target, target_slot) in enumerate(self._links):
            slots = inner[target].inputs
            if target_slot >= len(slots):
                continue
            link_id = f"inside-{number}"
            graph.links[link_id] = Link(link_id, inner[origin].id, origin_slot, inner[target].id, target_slot)
            slots[target_slot].link = link_id
            outputs = inner[origin].output_links
            if origin_slot < len(outputs):
                outputs[origin_slot].append(link_id)

    def _link_outside(self, group_node: Node, inner: list[Node], graph: Graph) -> None:
        linked = {slot.name for slot in group_node.inputs if slot.link is not None}
        for index, inner_name, name in self._sockets:
            if name not in linked:
                continue
            node = inner[index]
            slot = next((slot for slot in node.inputs if slot.name == inner_name), None)
            if slot is None:
                spec = self._outer[name]
                slot = InputSlot(inner_name, spec.type, widget=inner_name if has_widget(spec) else None)
                node.inputs.append(slot)
            slot.link = f"in-{len(graph.inputs)}"
            graph.links[slot.link] = Link(slot.link, SUBGRAPH_INPUT_NODE, len(graph.inputs), node.id, 0)
            graph.inputs.append(BoundarySlot(name, slot.type, (slot.link,)))
        for number, (index, output, kind) in enumerate(self._outputs):
            link_id = f"out-{number}"
            graph.links[link_id] = Link(link_id, inner[index].id, output, SUBGRAPH_OUTPUT_NODE, number)
            graph.outputs.append(BoundarySlot(str(number), kind, (link_id,)))

    def _replace(self, group_node: Node, graph: Graph, workflow: Workflow) -> None:
        root = workflow.root
        old, new = group_node.id, workflow.ids.next()
        group_node.id, group_node.type, group_node.widget_values = new, f"{self._name} {new}", ()
        workflow.subgraphs[group_node.type] = graph
        root.nodes = {node.id: node for node in root.nodes.values()}
        for link in list(root.links.values()):
            if old in (link.origin_id, link.target_id):
                origin, target = (new if end == old else end for end in (link.origin_id, link.target_id))
                root.links[link.id] = Link(link.id, origin, link.origin_slot, target, link.target_slot)


def apply_overrides(node: Node) -> None:
    """Give the widgets the values that a group node around them stored."""
    for widget in node.widgets:
        if widget.name in node.overrides:
            set_value(widget, node.overrides[widget.name])


def _link(entry: Any, count: int) -> tuple[int, int, int, int] | None:
    """``[origin, its output, target, its input, …]`` by position; None for a link from outside the group."""
    numbers = entry[:4] if isinstance(entry, list) else []
    if len(numbers) < 4 or not all(isinstance(number, int) and number >= 0 for number in numbers):
        return None
    origin, origin_slot, target, target_slot = numbers
    return (origin, origin_slot, target, target_slot) if origin < count and target < count else None


def _declared(spec: InputSpec) -> list[Any]:
    return [list(spec.choices) if spec.old_style and spec.choices is not None else spec.type, dict(spec.options)]
