"""The parameters and outputs that a workflow and its sidecar name, before their types are known. Pure.

The first that names a parameter wins: the sidecar, then nodes made for it, then titles, then promoted widgets and
primitives. Titles begin with ``$`` or ``input:``, and with ``output:`` for an output.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from comfyui.exceptions import NamedWorkflowUnusableError
from comfyui.limits import short
from comfyui.named.nodes import Nodes
from comfyui.named.parameters import NAME, NAME_IS, Fallback, Found, NamedOutput, Target
from comfyui.named.sidecar import OutputTable, ParameterTable, Sidecar
from comfyui.workflows.api_format import is_link, node_order

_PARAMETER_TITLE = re.compile(r"(?:\$|input:)\s*([^.\s]*)(?:\.(.+))?\s*", re.IGNORECASE)
_BEGINS_PARAMETER = re.compile(r"\$|input:", re.IGNORECASE)
_OUTPUT_TITLE = re.compile(r"output:\s*(.*?)\s*", re.IGNORECASE)
_SEEDS = ("seed", "noise_seed")


@dataclass(frozen=True, slots=True)
class Template:
    """A workflow as a file has it.

    Attributes:
        prompt: in API format, checked.
        found: parameters found by conventions of other modules, in the order of their precedence.
        outputs: the same for outputs.
        warnings: from the code that made it.
        fallbacks: what stands in for files that a call does not give.
    """

    prompt: Mapping[str, Any]
    found: Sequence[Found] = ()
    outputs: Sequence[NamedOutput] = ()
    warnings: Sequence[str] = ()
    fallbacks: Sequence[Fallback] = ()


@dataclass(frozen=True, slots=True)
class Findings:
    """Each parameter and output once; `warnings` say which titles are none, and why."""

    found: tuple[Found, ...]
    outputs: tuple[NamedOutput, ...]
    warnings: tuple[str, ...]


def find(template: Template, sidecar: Sidecar | None, nodes: Nodes) -> Findings:
    """The parameters and outputs that the workflow and its sidecar name.

    Raises:
        NamedWorkflowUnusableError: the sidecar names something that does not exist, or has a name twice.
    """
    prompt = template.prompt
    warnings: list[str] = [*template.warnings]
    titled, titled_outputs = _titled(prompt, nodes, warnings)
    made = [one for one in template.found if one.source not in _LATER]
    # Subgraphs and primitives, which are not nodes of the API format.
    more_titled = [one for one in template.found if one.source == "title"]
    rest = [one for one in template.found if one.source in _LATER - {"title"}]
    own = _first_of_each([made, [*titled, *more_titled], rest])
    outputs = _outputs([*template.outputs, *titled_outputs])
    if sidecar is None:
        return _checked(own.values(), outputs.values(), prompt, nodes, warnings)
    ours = {
        name: _of_sidecar(name, table, own.get(name), prompt, nodes, warnings)
        for name, table in sidecar.parameters.items()
    }
    own = {**ours, **{name: one for name, one in own.items() if name not in ours}}
    outputs |= {name: _output_of_sidecar(name, table, prompt) for name, table in sidecar.outputs.items()}
    return _checked(own.values(), outputs.values(), prompt, nodes, warnings)


_LATER = frozenset({"title", "promoted", "primitive"})


def choose_input(node: Mapping[str, Any], name: str, nodes: Nodes) -> str | None:
    """The input that a parameter of this name means if only the node is given; None if that is not certain."""
    widgets = nodes.widgets(node)
    named = [widget for widget in widgets if widget.lower() == name.lower()]
    if not named and name.lower() in _SEEDS:
        named = [widget for widget in widgets if widget in _SEEDS]
    if not named:
        named = widgets
    if len(named) > 1:
        specs = nodes.specs(node) or {}
        named = [widget for widget in named if widget in specs and specs[widget].is_upload]
    return named[0] if len(named) == 1 else None


def title_of(node: Mapping[str, Any]) -> str:
    """The title of a node in the editor; "" if it has none."""
    meta = node.get("_meta")
    title = meta.get("title") if isinstance(meta, Mapping) else None
    return title.strip() if isinstance(title, str) else ""


def _titled(prompt: Mapping[str, Any], nodes: Nodes, warnings: list[str]) -> tuple[list[Found], list[NamedOutput]]:
    found: list[Found] = []
    outputs: list[NamedOutput] = []
    for node_id in node_order(prompt):
        title = title_of(prompt[node_id])
        if match := _OUTPUT_TITLE.fullmatch(title):
            if NAME.fullmatch(match[1]):
                outputs.append(NamedOutput(match[1], node_id))
            else:
                warnings.append(f"node {node_id}: its title {short(title)!r} makes no output: {NAME_IS}")
        elif _BEGINS_PARAMETER.match(title):
            one = _of_title(node_id, prompt[node_id], title, nodes)
            if isinstance(one, Found):
                found.append(one)
            else:
                warnings.append(f"node {node_id}: its title {short(title)!r} makes no parameter: {one}")
    return found, outputs


def _of_title(node_id: str, node: Mapping[str, Any], title: str, nodes: Nodes) -> Found | str:
    """The parameter, or the reason for which the title names none."""
    match = _PARAMETER_TITLE.fullmatch(title)
    if match is None or not NAME.fullmatch(match[1]):
        return NAME_IS
    name, wanted = match[1], match[2]
    widgets = nodes.widgets(node)
    chosen = wanted if wanted is not None else choose_input(node, name, nodes)
    if chosen is None:
        if not widgets:
            return f"{node['class_type']} has no input for a value, or all of them are linked"
        return f"{node['class_type']} has several inputs; write one of ${name}.{f', ${name}.'.join(widgets[:10])}"
    if chosen not in widgets:
        return _why_not(node, chosen, nodes)
    return Found(name, (Target(node_id, chosen),), "title")


def _why_not(node: Mapping[str, Any], name: str, nodes: Nodes) -> str:
    """Why no value can be put into an input of a node."""
    class_type = node["class_type"]
    if is_link(node["inputs"].get(name)):
        return f"the input {short(name)} of {class_type} is linked, and a value cannot replace a link"
    specs = nodes.specs(node)
    if specs is not None and name in specs:
        return f"the input {short(name)} of {class_type} takes only links, of type {specs[name].type}"
    widgets = nodes.widgets(node)
    return f"{class_type} has no input {short(name)!r}; its inputs are: {', '.join(widgets[:20]) or 'none for values'}"


def _first_of_each(sources: Iterable[Sequence[Found]]) -> dict[str, Found]:
    """Each parameter by its name, from the first that names it. Raises for a name that one source has twice."""
    found: dict[str, Found] = {}
    for listed in sources:
        new: dict[str, Found] = {}
        for one in listed:
            other = new.setdefault(one.name, one)
            if other is not one and other.source == one.source:
                raise NamedWorkflowUnusableError(
                    f"two parameters have the name {one.name}: that of {_shown(other)} and that of {_shown(one)}"
                )
        found = {**new, **found}
    return found


def _shown(found: Found) -> str:
    return "node " + ", ".join(dict.fromkeys(target.node_id for target in found.targets))


def _outputs(listed: Iterable[NamedOutput]) -> dict[str, NamedOutput]:
    found: dict[str, NamedOutput] = {}
    for one in listed:
        other = found.setdefault(one.name, one)
        if other.node_id != one.node_id:
            raise NamedWorkflowUnusableError(
                f"two outputs have the name {one.name}: that of node {other.node_id} and that of node {one.node_id}"
            )
    return found


def _of_sidecar(
    name: str,
    table: ParameterTable,
    own: Found | None,
    prompt: Mapping[str, Any],
    nodes: Nodes,
    warnings: Sequence[str],
) -> Found:
    """The parameter of a table; `own`: the workflow's own parameter of this name.

    Raises:
        NamedWorkflowUnusableError: the table means no input; the reason has `warnings`, which may say why.
    """
    where = f"[parameters.{name}]"
    if table.node is None:
        if own is None:
            no_parameter = f"{where} must name a node, because the workflow itself has no parameter of this name"
            raise NamedWorkflowUnusableError("; ".join((no_parameter, *warnings)))
        if table.input is not None:
            raise NamedWorkflowUnusableError(f"{where} must name a node if it names an input")
        targets = own.targets
    else:
        targets = (_target(where, name, table.node, table.input, prompt, nodes),)
        own = None
    also = tuple(_target(f"{where} also", name, place.node, place.input, prompt, nodes) for place in table.also)
    base = own or Found(name, targets, "sidecar")
    return replace(
        base,
        targets=(*targets, *also),
        source="sidecar",
        title=table.title or base.title,
        description=table.description or base.description,
        default=base.default if table.default is None else table.default,
        minimum=base.minimum if table.minimum is None else table.minimum,
        maximum=base.maximum if table.maximum is None else table.maximum,
        choices=base.choices if table.choices is None else tuple(table.choices),
        required=base.required if table.required is None else table.required,
        role=table.role or base.role,
        advanced=table.advanced or base.advanced,
    )


def _target(
    where: str, name: str, wanted: str, input_name: str | None, prompt: Mapping[str, Any], nodes: Nodes
) -> Target:
    node_id = _node_id(where, wanted, prompt)
    node = prompt[node_id]
    widgets = nodes.widgets(node)
    chosen = input_name or choose_input(node, name, nodes)
    if chosen is None:
        shown = ", ".join(widgets[:20]) or "none for values"
        raise NamedWorkflowUnusableError(
            f"{where} must name an input of node {node_id} ({node['class_type']}); its inputs are: {shown}"
        )
    if chosen not in widgets:
        raise NamedWorkflowUnusableError(f"{where}: node {node_id}: {_why_not(node, chosen, nodes)}")
    return Target(node_id, chosen)


def _node_id(where: str, wanted: str, prompt: Mapping[str, Any]) -> str:
    """A node by its id, else by its title."""
    if wanted in prompt:
        return wanted
    titled = [node_id for node_id in node_order(prompt) if title_of(prompt[node_id]) == wanted.strip()]
    if len(titled) == 1:
        return titled[0]
    if titled:
        raise NamedWorkflowUnusableError(
            f"{where}: nodes {', '.join(titled[:20])} all have the title {short(wanted)!r}; give the id of one instead"
        )
    raise NamedWorkflowUnusableError(f"{where}: no node has the id or the title {short(wanted)!r}")


def _output_of_sidecar(name: str, table: OutputTable, prompt: Mapping[str, Any]) -> NamedOutput:
    return NamedOutput(name, _node_id(f"[outputs.{name}]", table.node, prompt))


def _checked(
    found: Iterable[Found],
    outputs: Iterable[NamedOutput],
    prompt: Mapping[str, Any],
    nodes: Nodes,
    warnings: list[str],
) -> Findings:
    """The findings, in which each input belongs to the first parameter that names it, and each output is a different
    node.
    """
    taken: dict[tuple[str, str], Found] = {}
    kept = []
    for one in found:
        free = []
        for target in one.targets:
            other = taken.setdefault((target.node_id, target.input), one)
            if other is one:
                free.append(target)
            elif other.source == one.source:
                raise NamedWorkflowUnusableError(
                    f"the parameters {other.name} and {one.name} must not both be the input {target.input} of node"
                    f" {target.node_id}"
                )
        if free:
            kept.append(replace(one, targets=tuple(free)))
        else:
            warnings.append(f"{one.name} is not a parameter, because another one sets its inputs")
    named: dict[str, str] = {}
    for output in outputs:
        first = named.setdefault(output.node_id, output.name)
        if first != output.name:
            raise NamedWorkflowUnusableError(
                f"the outputs {first} and {output.name} must not both be node {output.node_id}"
            )
        if nodes.is_output(prompt[output.node_id]) is False:
            warnings.append(
                f"node {output.node_id}: {prompt[output.node_id]['class_type']}, which is the output {output.name},"
                " makes no files"
            )
    return Findings(tuple(kept), tuple(outputs), tuple(dict.fromkeys(warnings)))
