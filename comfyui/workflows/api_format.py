"""Reading a workflow in ComfyUI's API format, and the small changes that we make to one. Pure: no I/O, no mutation.

The API format is ``{node id: {"class_type": str, "inputs": {name: value or [node id, output index]}, "_meta": {…}}}``.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from comfyui.exceptions import ComfyUIValidationError
from comfyui.limits import DEFAULT_LIMITS, Limits, named, over, short
from comfyui.workflows.node_definitions import ObjectInfo, has_dynamic_inputs, input_specs, live_specs

Prompt = Mapping[str, Any]

# The longest path of a file in an input: subfolder and name, as models.py allows them, with ComfyUI's suffix.
LONGEST_PATH = 1024 + 1 + 255 + len(" [output]")

# ComfyUI ignores an input that a node does not declare, except in the key under which it caches the node's result.
CACHE_TOKEN_INPUT = "_comfyui_gateway_run"  # noqa: S105


_LONGEST_TITLE = 200


def is_ui_format(prompt: Mapping[str, Any]) -> bool:
    """True for what ComfyUI's editor saves (``Workflow > Save``, ``Export``), which ComfyUI itself cannot run."""
    return isinstance(prompt.get("nodes"), list)


def is_link(value: Any) -> bool:
    """True for ``[node id, output index]``. ComfyUI takes every list in an input for a link."""
    return (
        isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], int | float)
    )


def check_api_format(prompt: Mapping[str, Any], limits: Limits = DEFAULT_LIMITS) -> None:
    """Refuse what cannot be a workflow in API format, before ComfyUI sees it.

    This is more than politeness: a node without ``inputs`` that no output needs, and an undeclared input with a link to
    a node that does not exist, pass the validation of ComfyUI 0.3.64 and then end its prompt worker for good.

    Raises:
        ComfyUILimitError: more nodes or inputs, or longer names, than `limits` allows.
        ComfyUIValidationError: empty, a UI export, or malformed nodes (``node_errors`` names the first of them).
    """
    if not prompt:
        raise ComfyUIValidationError("The workflow is empty: it has no nodes.")
    if is_ui_format(prompt):
        raise ComfyUIValidationError(
            "This is a UI-format export of ComfyUI's editor (it has a list of nodes), but ComfyUI runs only the API "
            'format: export it with "Workflow > Export (API)", or let POST /convert convert it.'
        )
    if len(prompt) > limits.max_workflow_nodes:
        raise over("The workflow has more than {limit} nodes", limits.max_workflow_nodes)
    node_errors: dict[str, list[str]] = {}
    count = 0
    for node_id, node in prompt.items():
        _check_size(node_id, node, limits)
        if why := _malformed(node, prompt):
            count += 1
            if count <= limits.max_problems:
                node_errors[str(node_id)] = [why]
    if count:
        raise ComfyUIValidationError(
            f"Not a workflow in API format: see node {named(node_errors, count)}.", node_errors=node_errors
        )


def check_ui_nodes(workflow: Mapping[str, Any], limits: Limits = DEFAULT_LIMITS) -> None:
    """Raise `ComfyUILimitError` for a UI format with too many nodes, those of its subgraphs included."""
    count = 0
    graphs: list[Any] = [workflow]
    while graphs:
        graph = graphs.pop()
        if not isinstance(graph, Mapping):
            continue
        nodes, definitions = graph.get("nodes"), graph.get("definitions")
        count += len(nodes) if isinstance(nodes, list) else 0
        if count > limits.max_workflow_nodes:
            raise over("The workflow has more than {limit} nodes", limits.max_workflow_nodes)
        subgraphs = definitions.get("subgraphs") if isinstance(definitions, Mapping) else None
        graphs += subgraphs if isinstance(subgraphs, list) else []


def _check_size(node_id: str, node: Any, limits: Limits) -> None:
    """Raise `ComfyUILimitError` for a node that is larger than any that a node pack has."""
    longest = limits.max_name_length
    if len(node_id) > longest:
        raise over(f"The id of node {short(node_id)} has more than {{limit}} characters", longest)
    if not isinstance(node, dict):
        return
    class_type, inputs = node.get("class_type"), node.get("inputs")
    if isinstance(class_type, str) and len(class_type) > longest:
        what = f"The class_type of node {node_id}, {short(class_type)}, has more than {{limit}} characters"
        raise over(what, longest)
    if not isinstance(inputs, dict):
        return
    if len(inputs) > limits.max_node_inputs:
        raise over(f"Node {node_id} has more than {{limit}} inputs", limits.max_node_inputs)
    for name in inputs:
        if len(name) > longest:
            what = f"An input of node {node_id}, {short(name)}, has a name of more than {{limit}} characters"
            raise over(what, longest)


def _malformed(node: Any, prompt: Prompt) -> str | None:
    if not isinstance(node, dict):
        return f"A node must be an object with class_type and inputs, not {type(node).__name__}"
    class_type = node.get("class_type")
    if not isinstance(class_type, str) or not class_type:
        return "The node has no class_type"
    if not isinstance(node.get("inputs"), dict):
        return f"The inputs of {class_type} must be an object"
    for name, value in node["inputs"].items():
        if is_link(value) and value[0] not in prompt:
            return f"{name} of {class_type} is linked to node {short(value[0])}, which does not exist"
    return None


def input_texts(prompt: Any) -> Iterator[str]:
    """Every text in the inputs of the nodes, however deep it is, except texts too long for a file's path."""
    for node in prompt.values() if isinstance(prompt, Mapping) else ():
        inputs = node.get("inputs") if isinstance(node, Mapping) else None
        for text in texts_in(inputs):
            if len(text) <= LONGEST_PATH:
                yield text


def texts_in(value: Any) -> Iterator[str]:
    """Every text in a value of JSON, in no particular order."""
    waiting = [value]
    while waiting:
        part = waiting.pop()
        if isinstance(part, str):
            yield part
        elif isinstance(part, Mapping):
            waiting.extend(part.values())
        elif isinstance(part, list):
            waiting.extend(part)


def node_title(prompt: Prompt, node_id: str) -> str:
    """How a user knows the node: its title in the editor, else its class, else its id."""
    node = prompt.get(node_id)
    if not isinstance(node, Mapping):
        return node_id
    meta = node.get("_meta")
    title = meta.get("title") if isinstance(meta, Mapping) else None
    # A value that is not text may be large, and is not a title.
    return short(title, _LONGEST_TITLE) if isinstance(title, str) and title else str(node.get("class_type") or node_id)


def node_order(node_ids: Iterable[str]) -> list[str]:
    """The ids in ascending order, numbers by value: ``9`` before ``10``, and ``12:3`` of a subgraph after ``12``."""
    return sorted(node_ids, key=_natural)


def _natural(node_id: str) -> tuple[tuple[int, int, str], ...]:
    return tuple(_part(part) for part in re.split(r"[:.]", node_id))


def _part(text: str) -> tuple[int, int, str]:
    """Numbers by their lengths, then by their digits: an id may have more digits than Python makes a number of."""
    if not (text.isascii() and text.isdecimal()):
        return 1, 0, text
    digits = text.lstrip("0")
    return 0, len(digits), digits


def defeat_cache(prompt: Prompt, token: str, node_ids: Collection[str] | None = None) -> dict[str, Any]:
    """A copy that ComfyUI runs again although it ran the same workflow before, with the same result.

    Args:
        token: new for each run, such as the prompt id; the same token again is cached again.
        node_ids: the nodes that must run again, with all nodes that depend on them; the nodes before them may stay
            cached. None, or an id that the prompt does not have (a node that ComfyUI made while it ran): every last
            node.

    The token is put into an input that no node declares: measured on ComfyUI 0.3.64, ignored by validation and by the
    node, part of the cache key. It shows in the workflow that an output file carries, and nowhere else.
    """
    known = node_ids is not None and all(node_id in prompt for node_id in node_ids)
    chosen = set(node_ids or ()) if known else last_nodes(prompt)
    return {
        node_id: {**node, "inputs": {**node["inputs"], CACHE_TOKEN_INPUT: token}} if node_id in chosen else node
        for node_id, node in prompt.items()
    }


def last_nodes(prompt: Prompt) -> set[str]:
    """The nodes whose outputs nothing uses: in a workflow that makes sense, its output nodes."""
    used = {value[0] for node in prompt.values() for value in node["inputs"].values() if is_link(value)}
    return {node_id for node_id in prompt if node_id not in used}


def needed_by(prompt: Prompt, node_id: str) -> set[str]:
    """The node and all that feed it, near and far."""
    found, left = set[str](), [node_id]
    while left:
        one = left.pop()
        if one not in found and one in prompt:
            found.add(one)
            left += [value[0] for value in prompt[one]["inputs"].values() if is_link(value)]
    return found


def nodes_on_cycles(parents: Mapping[str, set[str]]) -> set[str]:
    """The nodes that are part of a cycle, or lie between two; `parents` is node id to the ids that it depends on."""
    entangled = _without_starts(parents)
    return set(_without_starts(_reversed(entangled)))


def _without_starts(parents: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """The nodes that remain after nodes without remaining parents have been removed again and again."""
    children = _reversed(parents)
    waiting = {node_id: len(others & parents.keys()) for node_id, others in parents.items()}
    free = [node_id for node_id, count in waiting.items() if count == 0]
    while free:
        node_id = free.pop()
        del waiting[node_id]
        for child in children[node_id]:
            waiting[child] -= 1
            if waiting[child] == 0:
                free.append(child)
    return {node_id: parents[node_id] & waiting.keys() for node_id in waiting}


def _reversed(edges: Mapping[str, set[str]]) -> dict[str, set[str]]:
    backwards: dict[str, set[str]] = {node_id: set() for node_id in edges}
    for node_id, others in edges.items():
        for other in others & edges.keys():
            backwards[other].add(node_id)
    return backwards


def media_widgets(object_info: ObjectInfo) -> dict[str, tuple[str, ...]]:
    """Node class to the names of those of its inputs that are uploaded files; classes without any are left out."""
    found = {
        class_type: tuple(spec.name for spec in input_specs(definition) if spec.is_upload)
        for class_type, definition in object_info.items()
    }
    return {class_type: names for class_type, names in found.items() if names}


def upload_inputs(prompt: Prompt, object_info: ObjectInfo) -> list[tuple[str, str]]:
    """The ``(node id, input name)`` of each input of this workflow that is an uploaded file and holds a value."""
    definitions = {node["class_type"]: object_info.get(node["class_type"]) or {} for node in prompt.values()}
    widgets = media_widgets(definitions)
    shaped = {class_type for class_type, definition in definitions.items() if has_dynamic_inputs(definition)}
    found = []
    for node_id, node in prompt.items():
        class_type, inputs = node["class_type"], node["inputs"]
        names: Iterable[str] = widgets.get(class_type, ())
        if class_type in shaped:
            names = (spec.name for spec in live_specs(definitions[class_type], inputs) if spec.is_upload)
        found += [(node_id, name) for name in names if name in inputs and not is_link(inputs[name])]
    return found
