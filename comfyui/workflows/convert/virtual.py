"""Nodes that exist only in the editor: the known ones are replaced, the others get a warning.

ComfyUI has no class for these nodes. The editor itself has a few (`VIRTUAL_TYPES`); node packs add more by script.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from comfyui.workflows.convert.graph import BYPASS, NEVER, Graph, Link, Node, Workflow, types_connect
from comfyui.workflows.node_definitions import ObjectInfo

# The editor's own.
NOTE_TYPES = frozenset({"Note", "MarkdownNote"})
VIRTUAL_TYPES = NOTE_TYPES | {"Reroute", "PrimitiveNode"}
# Nodes of packs that pass on their input, under a name (KJNodes, Easy-Use) or along a line (rgthree).
SETTERS = frozenset({"SetNode", "easy setNode"})
GETTERS = frozenset({"GetNode", "easy getNode"})
REROUTES = frozenset({"Reroute", "Reroute (rgthree)"})
# cg-use-everywhere: nodes that make links in the editor, which the file keeps under ``extra.ue_links``.
_BROADCASTERS = frozenset(
    {
        *("Anything Everywhere", "Anything Everywhere?", "Anything Everywhere3", "Prompts Everywhere"),
        "Seed Everywhere",
    }
)
# Nodes that act on the editor itself: they mute, label, jump or collect.
_EDITOR_ONLY = frozenset(
    {
        *("Fast Groups Muter (rgthree)", "Fast Groups Bypasser (rgthree)", "Fast Muter (rgthree)"),
        *("Fast Bypasser (rgthree)", "Fast Actions Button (rgthree)", "Mute / Bypass Repeater (rgthree)"),
        *("Mute / Bypass Relay (rgthree)", "Random Unmuter (rgthree)", "Node Collector (rgthree)"),
        *("Bookmark (rgthree)", "Label (rgthree)", "Note Plus (mtb)", "LabelNode", "Bookmark"),
        *SETTERS,
        *GETTERS,
        *_BROADCASTERS,
    }
)
# An instance of a subgraph has the definition's id as its type.
_SUBGRAPH_ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_WHAT_TO_DO = (
    'export the workflow with "Workflow > Export (API)" in the editor that has its node pack, or link around the node'
)


def is_virtual(node: Node) -> bool:
    """Whether a node only passes on its links, or shows something; such a node is never in the prompt."""
    return node.type in VIRTUAL_TYPES or node.type in REROUTES or node.type in SETTERS or node.type in GETTERS


def variable(node: Node) -> str:
    """The name under which a setter keeps its input, and a getter asks for it."""
    values = node.widget_values
    found: Any = next(iter(values.values()), "") if isinstance(values, Mapping) else values[0] if values else ""
    return str(found if found is not None else "")


def find_setter(graph: Graph, name: str) -> Node | None:
    """The first active setter of a name; without one, the first that is not active."""
    found = [node for node in graph.nodes.values() if node.type in SETTERS and variable(node) == name]
    return next((node for node in found if node.runs), found[0] if found else None)


def setter_warnings(workflow: Workflow) -> list[str]:
    """Names that several setters have in one graph: the editor's packs take the first, and so do we."""
    warnings = []
    for graph in workflow.graphs():
        seen: dict[str, str] = {}
        for node in graph.nodes.values():
            if node.type in SETTERS and node.runs:
                first = seen.setdefault(variable(node), node.id)
                if first != node.id:
                    warnings.append(
                        f"node {node.id} ({node.type}): node {first} sets the name {variable(node)!r} too, and is used"
                    )
    return warnings


def remove_editor_only(workflow: Workflow, object_info: ObjectInfo) -> tuple[list[str], dict[str, list[str]]]:
    """Removes the nodes that ComfyUI does not have, if nothing depends on them.

    Returns warnings, and the errors by node id for those that something depends on, or that may make files.
    """
    warnings: list[str] = []
    errors: dict[str, list[str]] = {}
    for graph in workflow.graphs():
        unknown = {
            node.id: node
            for node in graph.nodes.values()
            if node.runs
            and not is_virtual(node)
            and node.type not in workflow.subgraphs
            and node.type not in object_info
        }
        for node in _independent(graph, unknown):
            warnings.append(f"node {node.id} ({node.type}): left out, {_why_left_out(node)}")
            graph.left_out[node.id] = graph.nodes.pop(node.id)
            del unknown[node.id]
        for node in unknown.values():
            errors.setdefault(node.id, []).append(_why_refused(node))
    return warnings, errors


def _independent(graph: Graph, unknown: Mapping[str, Node]) -> list[Node]:
    """The unknown nodes that feed only each other, and that take nothing or act only on the editor."""
    candidates = {
        node_id
        for node_id, node in unknown.items()
        if node.type in _EDITOR_ONLY or all(slot.link is None for slot in node.inputs)
    }
    while True:
        feeding = {node_id for node_id in candidates if _feeds_other(unknown[node_id], graph, candidates)}
        if not feeding:
            return [node for node_id, node in unknown.items() if node_id in candidates]
        candidates -= feeding


def _feeds_other(node: Node, graph: Graph, candidates: Collection[str]) -> bool:
    for link_id in (link_id for links in node.output_links for link_id in links):
        link = graph.links.get(link_id)
        target = graph.nodes.get(link.target_id) if link else None
        if link and link.target_id not in candidates and (target is None or target.mode not in (NEVER, BYPASS)):
            return True
    return False


def _why_left_out(node: Node) -> str:
    if node.type in _EDITOR_ONLY:
        return "it works only in the editor"
    return "its class is not installed and nothing depends on it"


def _why_refused(node: Node) -> str:
    if node.type in _EDITOR_ONLY or (node.type.endswith("(rgthree)") and "Context" not in node.type):
        return f"{node.type} exists only in the editor, so ComfyUI cannot run it: {_WHAT_TO_DO}"
    if node.type.startswith(("workflow/", "workflow>")):
        return (
            f"the group node {node.type} has no definition in the file: open the workflow in the editor, where group "
            "nodes become subgraphs, and save it again"
        )
    if _SUBGRAPH_ID.fullmatch(node.type):
        return (
            f"it is an instance of the subgraph {node.type}, which the file does not define: take the whole file as "
            "the editor saves it, with definitions.subgraphs"
        )
    return (
        f"the node class {node.type} is not installed: install its node pack, or, if it is a node that a script of the "
        f"editor adds, {_WHAT_TO_DO}"
    )


def apply_everywhere_links(workflow: Workflow) -> list[str]:
    """Makes the links that cg-use-everywhere keeps in its own list; returns warnings for uncertain ones."""
    warnings = []
    for name, graph in (("", workflow.root), *workflow.subgraphs.items()):
        nodes = {**graph.nodes, **graph.left_out}
        entries = list(_entries(graph, workflow.renamed.get(name, {})))
        for entry in entries:
            controller = nodes.get(str(entry.get("controller")))
            if (controller is None or controller.runs) and (problem := _apply_entry(entry, graph)):
                made_by = f"that node {entry.get('controller')} makes in the editor is left out"
                warnings.append(f"node {entry.get('downstream')}: the link {made_by}: {problem}")
        told = {str(entry.get("controller")) for entry in entries}
        warnings += [
            f"node {node.id} ({node.type}): the links that it makes in the editor are not in the file; what it should "
            "feed may be without a link"
            for node in nodes.values()
            if node.type in _BROADCASTERS and node.runs and node.id not in told
        ]
    return warnings


def _entries(graph: Graph, renamed: Mapping[str, str]) -> Iterator[Mapping[str, Any]]:
    """The links that a graph keeps apart, by the ids that its nodes have now."""
    entries = graph.extra.get("ue_links")
    for entry in entries if isinstance(entries, list) else ():
        if isinstance(entry, Mapping):
            ends = {end: str(entry.get(end)) for end in ("upstream", "downstream", "controller")}
            yield {**entry, **{end: renamed.get(node_id, node_id) for end, node_id in ends.items()}}


def _apply_entry(entry: Mapping[str, Any], graph: Graph) -> str | None:
    """Returns why the link cannot be made; None if it is made, or the input already has a link."""
    upstream, downstream = str(entry.get("upstream")), str(entry.get("downstream"))
    origin, target = graph.nodes.get(upstream), graph.nodes.get(downstream)
    number, out = entry.get("downstream_slot"), entry.get("upstream_slot")
    if origin is None or target is None:
        return f"node {upstream if origin is None else downstream} does not exist"
    if not isinstance(number, int) or not isinstance(out, int):
        return "it names no slots"
    if not 0 <= out < len(origin.output_types):
        return f"node {upstream} has no output {out}"
    kind = str(entry.get("type") or "*")
    if not types_connect(kind, origin.output_types[out]):
        return f"output {out} of node {upstream} does not give {kind}"
    # The number counts the slots of the editor, of which the file may leave some out.
    shown = {slot.name for slot in target.inputs[number : number + 1]} if number >= 0 else set()
    names = shown | set(target.file_slots[number : number + 1] if number >= 0 else ())
    fitting = [slot for slot in target.inputs if slot.name in names and types_connect(kind, slot.type)]
    if any(slot.link is not None for slot in fitting):
        return None
    if len(fitting) != 1:
        return f"it is not certain which input takes {kind}" if fitting else f"input {number} does not take {kind}"
    link_id = f"everywhere-{len(graph.links)}"
    graph.links[link_id] = Link(link_id, origin.id, out, target.id, target.inputs.index(fitting[0]))
    fitting[0].link = link_id
    return None
