"""The parameters that a workflow has by the conventions of other projects, as existing files use them. Pure.

Besides the nodes of three packs (`made_for_it`) these are: texts ``PARAM_PROMPT``, ``PARAM_INT_SEED``, … as values
(comfyui-mcp-server); titles that begin with ``VC_BASIC`` or ``VC_ADV`` (ViewComfy); and in the editor itself, widgets
that an outer subgraph shows, primitive nodes, and ComfyUI's own nodes that hold one value.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from comfyui.named.made_for_it import MERGED, resolve_made_for_it
from comfyui.named.naming import as_name, unique
from comfyui.named.nodes import Nodes
from comfyui.named.parameters import NAME, NAME_IS, Fallback, Found, Kind, NamedOutput, Target
from comfyui.named.replacing import Replacing
from comfyui.workflows.api_format import is_link, node_order
from comfyui.workflows.convert import ShownWidget

TEXT, VIEWCOMFY, TITLE, PROMOTED, PRIMITIVE = "text", "vc", "title", "promoted", "primitive"
_PLACEHOLDER = re.compile(r"PARAM_(?:(STR|STRING|TEXT|INT|FLOAT|BOOL)_)?([A-Za-z0-9_]+)")
_PLACEHOLDER_KINDS: Mapping[str | None, Kind] = {"INT": "integer", "FLOAT": "number", "BOOL": "boolean"}
# Values that comfyui-mcp-server lets a caller leave out.
_OPTIONAL_PLACEHOLDERS = frozenset(
    {
        *("seed", "width", "height", "model", "steps", "cfg", "sampler_name", "scheduler", "denoise"),
        *("negative_prompt", "seconds", "lyrics_strength", "duration", "fps"),
    }
)
_VIEWCOMFY = re.compile(r"VC_(BASIC|ADV(?:ANCED)?)[\s:_-]*(.*)", re.DOTALL)
_TITLED = re.compile(r"(?:\$|input:)\s*([^.\s]*)(?:\.(.+))?\s*", re.IGNORECASE)
_OUTPUT = re.compile(r"output:\s*(.*)", re.IGNORECASE)
_NO_TITLES: Mapping[str, str] = {}
# ComfyUI's nodes that hold one value, with their default titles.
_VALUE_NODES: Mapping[str, frozenset[str]] = {
    "PrimitiveInt": frozenset({"Int", "PrimitiveInt"}),
    "PrimitiveFloat": frozenset({"Float", "PrimitiveFloat"}),
    "PrimitiveBoolean": frozenset({"Boolean", "PrimitiveBoolean"}),
    "PrimitiveString": frozenset({"String", "PrimitiveString", "Text String"}),
    "PrimitiveStringMultiline": frozenset(
        {"String (Multiline)", "PrimitiveStringMultiline", "Text String (Multiline)"}
    ),
}


@dataclass(frozen=True, slots=True)
class Conventions:
    """A workflow without what stood in it for its caller's values.

    Attributes:
        prompt: in API format; the inputs of all parameters are in it and hold values.
        found: in the order of precedence.
        fallbacks: see `with_fallbacks`.
    """

    prompt: Mapping[str, Any]
    found: tuple[Found, ...]
    outputs: tuple[NamedOutput, ...]
    fallbacks: tuple[Fallback, ...]
    warnings: tuple[str, ...]


def resolved(
    prompt: Mapping[str, Any],
    nodes: Nodes,
    shown: Sequence[ShownWidget] = (),
    titles: Mapping[str, str] = _NO_TITLES,
) -> Conventions:
    """The workflow with what these conventions name in it.

    Args:
        shown: the promoted widgets and primitives, placed by the conversion of the editor's own format.
        titles: of nodes of that format that are no nodes of `prompt`.
    """
    work = Replacing(prompt, MERGED)
    resolve_made_for_it(work)
    found = [
        *work.found,
        *_placeholders(work),
        *_viewcomfy(work, nodes),
        *_titled(work, shown, titles),
        *_of_editor(work.prompt, shown),
    ]
    _titled_outputs(work, nodes, titles)
    return Conventions(
        work.prompt, tuple(found), tuple(work.outputs), tuple(work.fallbacks), tuple(dict.fromkeys(work.warnings))
    )


def _placeholders(work: Replacing) -> list[Found]:
    """Values such as ``PARAM_INT_STEPS``, which are taken out: no value of a workflow is meant by them."""
    found: dict[str, Found] = {}
    for node_id in node_order(work.prompt):
        inputs = work.prompt[node_id]["inputs"]
        for name, value in list(inputs.items()):
            match = _PLACEHOLDER.fullmatch(value) if isinstance(value, str) else None
            parameter = as_name(match[2].lower().strip("_")) if match else ""
            if match is None or not parameter:
                continue
            del inputs[name]
            kind = _PLACEHOLDER_KINDS.get(match[1], "text")
            required = None if parameter in _OPTIONAL_PLACEHOLDERS else True
            one = found.setdefault(parameter, Found(parameter, (), TEXT, required=required, kind=kind))
            found[parameter] = replace(one, targets=(*one.targets, Target(node_id, name)))
    return list(found.values())


def _viewcomfy(work: Replacing, nodes: Nodes) -> Iterator[Found]:
    """All values of a node whose title says so; of a node that loads a file only the file."""
    taken: set[str] = set()
    for node_id in node_order(work.prompt):
        node = work.prompt[node_id]
        match = _VIEWCOMFY.match(_title(node))
        if match is None:
            continue
        names = [name for name in nodes.widgets(node) if isinstance(node["inputs"].get(name), str | int | float)]
        names = names[:1] if node["class_type"] in _LOADERS else names
        for name in names:
            stem = as_name(match[2].lower())
            wanted = stem if stem and len(names) == 1 else as_name(f"{stem}_{name}" if stem else name)
            parameter = unique(wanted, taken, node_id)
            taken.add(parameter)
            title = match[2].strip() if len(names) == 1 else f"{match[2].strip()} {name}".strip()
            yield Found(parameter, (Target(node_id, name),), VIEWCOMFY, title=title, advanced=match[1] != "BASIC")


_LOADERS = frozenset({"LoadImage", "LoadImageMask", "loadImage_ViewComfy", "LoadVideo", "LoadAudio"})


def _titled(work: Replacing, shown: Sequence[ShownWidget], titles: Mapping[str, str]) -> Iterator[Found]:
    """Subgraph instances and primitives whose title begins with ``$`` or ``input:``; the API format has no such
    nodes.
    """
    owners: dict[str, list[ShownWidget]] = {}
    for one in shown:
        owners.setdefault(one.owner, []).append(one)
    for owner, title in titles.items():
        match = _TITLED.fullmatch(title.strip())
        listed = owners.get(owner, [])
        if match is None:
            continue
        if not listed:
            work.warnings.append(
                f"node {owner}: its title {title[:100]!r} makes no parameter, because the node does not run or shows"
                " no value"
            )
            continue
        wanted = (match[2] or match[1]).strip().lower()
        named = [one for one in listed if wanted in {one.name.lower(), one.label.lower(), as_name(one.label).lower()}]
        chosen = named[:1] or ([] if match[2] else listed if len(listed) == 1 else [])
        if chosen and NAME.fullmatch(match[1]):
            yield Found(match[1], _targets(chosen[0]), TITLE)
            continue
        names = ", ".join(f"${match[1]}.{one.label or one.name}" for one in listed[:20])
        work.warnings.append(
            f"node {owner}: its title {title[:100]!r} makes no parameter; write one of {names} instead"
        )


def _titled_outputs(work: Replacing, nodes: Nodes, titles: Mapping[str, str]) -> None:
    """Subgraph instances whose title begins with ``output:``: the one node inside that makes files is meant."""
    for owner, title in titles.items():
        match = _OUTPUT.fullmatch(title.strip())
        if match is None:
            continue
        inside = [
            node_id
            for node_id, node in work.prompt.items()
            if node_id.startswith(f"{owner}:") and nodes.is_output(node)
        ]
        if len(inside) == 1 and NAME.fullmatch(match[1]):
            work.outputs.append(NamedOutput(match[1], inside[0]))
            continue
        why = NAME_IS if len(inside) == 1 else f"{len(inside) or 'no'} nodes in it make files, but exactly one must"
        work.warnings.append(f"node {owner}: its title {title[:100]!r} makes no output: {why}")


def _of_editor(prompt: Mapping[str, Any], shown: Sequence[ShownWidget]) -> Iterator[Found]:
    """The widgets that the editor shows at the top of the workflow; those of one name are told apart by their
    owners.
    """
    entries = [*_shown_entries(shown), *_value_nodes(prompt)]
    counts = Counter(name for name, *_ in entries)
    taken = {name for name, count in counts.items() if count == 1}
    for name, owner, owner_title, found in entries:
        unambiguous = name
        if counts[name] > 1:
            stem = as_name(owner_title.lower()) if found.source == PROMOTED else ""
            unambiguous = unique(as_name(f"{stem}_{name}" if stem else f"{name}_{owner}".lower()), taken, owner)
            taken.add(unambiguous)
        yield replace(found, name=unambiguous)


def _shown_entries(shown: Sequence[ShownWidget]) -> Iterator[tuple[str, str, str, Found]]:
    for one in shown:
        if not one.top or _TITLED.fullmatch(one.owner_title.strip()):
            continue
        text = (one.label or one.name) if one.kind == PROMOTED else (one.owner_title or one.name)
        name = as_name(text.lower()) or as_name(one.name.lower()) or f"node_{as_name(f'x{one.owner}')}"
        title = text if text != name else ""
        yield name, one.owner, one.owner_title, Found(name, _targets(one), one.kind, title=title)


def _value_nodes(prompt: Mapping[str, Any]) -> Iterator[tuple[str, str, str, Found]]:
    """ComfyUI's own nodes of one value, at the top of the workflow and with a title given by a user."""
    for node_id in node_order(prompt):
        node = prompt[node_id]
        unnamed = _VALUE_NODES.get(node["class_type"])
        value = node["inputs"].get("value")
        title = _title(node)
        name = as_name(title.lower())
        if unnamed is None or title in unnamed or not name or ":" in node_id or value is None or is_link(value):
            continue
        if not _TITLED.fullmatch(title) and not _VIEWCOMFY.match(title):
            yield name, node_id, title, Found(name, (Target(node_id, "value"),), PRIMITIVE, title=title)


def _targets(shown: ShownWidget) -> tuple[Target, ...]:
    return tuple(Target(node_id, name) for node_id, name in shown.targets)


def _title(node: Mapping[str, Any]) -> str:
    meta = node.get("_meta")
    title = meta.get("title") if isinstance(meta, Mapping) else None
    return title.strip() if isinstance(title, str) else ""
