"""Makes a callable workflow from the bytes of a file and its sidecar. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from random import Random
from typing import Any

from comfyui import big_json
from comfyui.exceptions import ComfyUIError, ComfyUIValidationError, JSONError, NamedWorkflowUnusableError
from comfyui.limits import Limits
from comfyui.named.conventions import resolved
from comfyui.named.finding import Template, find
from comfyui.named.nodes import Nodes
from comfyui.named.parameters import NamedWorkflow, Unusable
from comfyui.named.replacing import fallbacks_of
from comfyui.named.schema import example_of, schema_of
from comfyui.named.sidecar import Sidecar, parse_sidecar
from comfyui.named.types import typed, with_roles
from comfyui.workflows.api_format import check_api_format, check_ui_nodes, is_ui_format
from comfyui.workflows.convert import ConvertedWorkflow, to_api_format

WAITS = "its file is in the editor's format, which needs a server's node definitions, and no server has sent them yet"


def load(
    name: str, content: bytes, sidecar: bytes | None, nodes: Nodes, limits: Limits, *, sidecar_name: str = ""
) -> NamedWorkflow | Unusable:
    """The workflow of this name; `Unusable` with the reason if its files cannot be used."""
    version, classes = version_of(content, sidecar), frozenset[str]()
    try:
        parsed = _parsed(content, limits)
        classes = classes_in(parsed)
        beside = None if sidecar is None else parse_sidecar(sidecar, sidecar_name or f"{name}.toml")
        if is_ui_format(parsed) and not nodes.known:
            return Unusable(name, version, WAITS, waits=True, classes=classes)
        found = _workflow(name, version, _template(parsed, version, nodes, limits), beside, nodes)
        # Replacements of other packs' nodes are only in the prompt.
        return replace(found, classes=classes | classes_in(found.prompt))
    except ComfyUIError as error:
        return Unusable(name, version, error.detail, classes=classes)


def version_of(content: bytes, sidecar: bytes | None) -> str:
    """SHA-256 of both files: the length of the first is in it, so that no byte can move from one to the other."""
    digest = hashlib.sha256(content)
    if sidecar is not None:
        digest = hashlib.sha256(digest.digest() + sidecar)
    return digest.hexdigest()


def classes_in(workflow: Any) -> frozenset[str]:
    """The classes of all nodes of a workflow in either format, and other texts under the same names."""
    found: set[str] = set()
    waiting = [workflow]
    while waiting:
        part = waiting.pop()
        if isinstance(part, Mapping):
            found |= {text for name in ("class_type", "type") if isinstance(text := part.get(name), str)}
            waiting += [value for value in part.values() if isinstance(value, Mapping | list)]
        else:
            waiting += [value for value in part if isinstance(value, Mapping | list)]
    return frozenset(found)


def _parsed(content: bytes, limits: Limits) -> dict[str, Any]:
    try:
        parsed = big_json.load(content, limits)
    except JSONError as error:
        raise NamedWorkflowUnusableError(f"its file is not JSON: {error}") from None
    if not isinstance(parsed, dict):
        raise NamedWorkflowUnusableError("its file must hold a workflow, which is a JSON object")
    return parsed


def _template(parsed: Mapping[str, Any], version: str, nodes: Nodes, limits: Limits) -> Template:
    if not is_ui_format(parsed):
        _check(parsed, limits)
        return _without_conventions(ConvertedWorkflow(dict(parsed), ()), nodes)
    check_ui_nodes(parsed, limits)
    # The same choices in dynamic prompts each time that the file is loaded.
    converted = to_api_format(parsed, nodes.with_packs, rng=Random(version), limits=limits)  # noqa: S311
    return _without_conventions(converted, nodes)


def _without_conventions(converted: ConvertedWorkflow, nodes: Nodes) -> Template:
    """The template without what other people's conventions have put into it for a caller's values."""
    found = resolved(converted.prompt, nodes, converted.shown, converted.titles)
    return Template(found.prompt, found.found, found.outputs, (*converted.warnings, *found.warnings), found.fallbacks)


def _check(prompt: Mapping[str, Any], limits: Limits) -> None:
    try:
        check_api_format(prompt, limits)
    except ComfyUIValidationError as error:
        first = "; ".join(f"node {node}: {why[0]}" for node, why in list(error.node_errors.items())[:3])
        raise NamedWorkflowUnusableError(f"{error.detail} {first}".strip()) from None


def _workflow(name: str, version: str, template: Template, sidecar: Sidecar | None, nodes: Nodes) -> NamedWorkflow:
    findings = find(template, sidecar, nodes)
    found = tuple(typed(one, template.prompt, nodes) for one in findings.found)
    parameters = with_roles(found, findings.found)
    title = (sidecar.title if sidecar else "") or name
    description = sidecar.description if sidecar else ""
    return NamedWorkflow(
        name=name,
        version=version,
        title=title,
        description=description,
        parameters=parameters,
        outputs=findings.outputs,
        prompt=template.prompt,
        warnings=findings.warnings,
        schema=schema_of(parameters, title=title, description=description),
        example=example_of(parameters),
        by_name={one.name: one for one in parameters},
        fallbacks=fallbacks_of(parameters, template.fallbacks),
    )
