"""A workflow as the editor saves it (UI format) → the API format that ComfyUI runs. Pure: no I/O.

The result is meant to equal the editor's own ``Export (API)``, and is compared with it for all stock templates in
``tests/contract/test_convert_real.py``. What happens, in order:

1. ``graph``       the file → nodes, links, subgraph definitions;
2. ``widgets``     each node gets its class's slots and widgets, and the stored values by position;
3. ``promotion``   instances of subgraphs get the widgets of their linked inputs;
4. ``primitives``  values of primitive nodes go into the widgets that they are linked to;
5. ``links``       subgraphs are flattened, and each linked input is followed to the node that feeds it;
6. here            widget values and links become the API format's inputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from random import Random
from typing import Any

from comfyui.convert.graph import MISSING, Graph, Node, Widget, Workflow, parse_workflow, slot_type
from comfyui.convert.links import VIRTUAL_TYPES, LinkResolver, NodeOutput, Placed, PromotedValue, flatten
from comfyui.convert.primitives import apply_primitives
from comfyui.convert.promotion import promote_widgets
from comfyui.convert.text import choose_dynamic_prompt, fill_placeholders, has_choices
from comfyui.convert.widgets import BROWSER_ONLY_TYPES, UncertainLayoutError, complete_node
from comfyui.exceptions import ComfyUIValidationError
from comfyui.nodedefs import ObjectInfo
from comfyui.workflow import is_ui_format

__all__ = ["ConvertedWorkflow", "to_api_format"]

# Classes whose file name prefix may hold placeholders that only the editor fills in.
_SAVING_CLASSES = frozenset(
    {
        *("SaveImage", "SaveAnimatedWEBP", "SaveWEBM", "SaveAudio", "SaveGLB", "SaveAnimatedPNG", "CLIPSave"),
        *("VAESave", "ModelSave", "LoraSave", "SaveLatent"),
    }
)
# The same node under its old name for a sampler, in files of early versions.
_OLD_SAMPLER_PREFIX = "sample_"


@dataclass(frozen=True, slots=True)
class ConvertedWorkflow:
    """``prompt`` is in API format; ``warnings`` say what was left out or looked odd, each with its node."""

    prompt: dict[str, Any]
    warnings: tuple[str, ...]


def to_api_format(
    ui_workflow: Mapping[str, Any],
    object_info: ObjectInfo,
    *,
    now: datetime | None = None,
    rng: Random | None = None,
) -> ConvertedWorkflow:
    """Convert a UI export, with the node definitions of the ComfyUI that is to run it.

    Args:
        now: for ``%date:…%`` in file names; default: the local time.
        rng: chooses in dynamic prompts (``{a|b}``), which the editor does at random too.

    Raises:
        ComfyUIValidationError: the file is no UI export or damaged, a node's class is not known, or a value can only
            be made by a browser (camera, 3D view); ``node_errors`` names each node.
    """
    if not is_ui_format(ui_workflow):
        raise ComfyUIValidationError("This is no UI-format workflow: it has no list of nodes.")
    workflow = parse_workflow(ui_workflow)
    warnings = _complete(workflow, object_info)
    promote_widgets(workflow)
    for graph in workflow.graphs():
        warnings += apply_primitives(graph)
    placed = flatten(workflow)
    export = _Export(workflow, placed, now or datetime.now().astimezone(), rng or Random())  # noqa: S311
    prompt = {entry.id: export.node(entry) for entry in placed.values() if _is_exported(entry)}
    for node in prompt.values():
        node["inputs"] = {
            name: value
            for name, value in node["inputs"].items()
            if not (isinstance(value, list) and value[0] not in prompt)
        }
    if not prompt:
        raise ComfyUIValidationError("Nothing is left to run: every node is muted, bypassed or a note.")
    return ConvertedWorkflow(prompt, tuple(dict.fromkeys(warnings + export.warnings)))


def _is_exported(entry: Placed) -> bool:
    return entry.node.runs and entry.inside is None and entry.node.type not in VIRTUAL_TYPES


def _complete(workflow: Workflow, object_info: ObjectInfo) -> list[str]:
    """Lay out every node by its class; returns warnings."""
    warnings: list[str] = []
    errors: dict[str, list[str]] = {}
    socket_types = {slot_type(kind) for found in object_info.values() for kind in found.get("output") or ()}
    for graph in workflow.graphs():
        for node in list(graph.nodes.values()):
            if node.type in VIRTUAL_TYPES or node.type in workflow.subgraphs:
                continue
            definition = object_info.get(node.type)
            if definition is None:
                _without_definition(node, graph, warnings, errors)
                continue
            try:
                found = complete_node(node, definition, socket_types)
            except UncertainLayoutError as error:
                errors.setdefault(node.id, []).append(f"{node.type}: {error}")
                continue
            warnings += [f"node {node.id} ({node.type}): {warning}" for warning in found]
            node.title = node.title or str(definition.get("display_name") or node.type)
            if node.runs and (made := [w.name for w in node.widgets if w.kind in BROWSER_ONLY_TYPES]):
                errors.setdefault(node.id, []).append(f"{node.type}: only a browser can make the value of {made[0]}")
            if graph is workflow.root:
                _modernise_sampler(node)
    if errors:
        reasons = "; ".join(f"node {node_id}: {' '.join(why)}" for node_id, why in errors.items())
        raise ComfyUIValidationError(f"The workflow cannot be converted with certainty: {reasons}", node_errors=errors)
    return warnings


def _without_definition(node: Node, graph: Graph, warnings: list[str], errors: dict[str, list[str]]) -> None:
    """A class that ComfyUI does not have matters only where the node would run and is connected to something."""
    if not node.runs:
        return
    if node.linked:
        errors.setdefault(node.id, []).append(f"the node class {node.type} is not installed")
        return
    del graph.nodes[node.id]
    warnings.append(f"node {node.id} ({node.type}): left out, its class is not installed and nothing is linked to it")


def _modernise_sampler(node: Node) -> None:
    if node.type in ("KSampler", "KSamplerAdvanced"):
        widget = node.widget("sampler_name")
        if widget and isinstance(widget.value, str):
            widget.value = widget.value.removeprefix(_OLD_SAMPLER_PREFIX)


class _Export:
    """Writes one node after the other in API format."""

    def __init__(self, workflow: Workflow, placed: Mapping[str, Placed], now: datetime, rng: Random) -> None:
        self._workflow = workflow
        self._links = LinkResolver(placed)
        self._now = now
        self._rng = rng
        self._warnings: list[str] = []

    @property
    def warnings(self) -> list[str]:
        return self._warnings + self._links.dropped

    def node(self, placed: Placed) -> dict[str, Any]:
        node = placed.node
        inputs: dict[str, Any] = {}
        for widget in node.widgets:
            value = self._value(placed, widget) if widget.in_prompt else MISSING
            if value is not MISSING:
                inputs[widget.name] = _wrapped(value)
        for index, slot in enumerate(node.inputs):
            match self._links.source_of(placed, index):
                case NodeOutput(node_id, output):
                    inputs[slot.name] = [node_id, output]
                case PromotedValue(value):
                    inputs[slot.name] = _wrapped(value)
        return {"inputs": inputs, "class_type": node.type, "_meta": {"title": node.title}}

    def _value(self, placed: Placed, widget: Widget) -> Any:
        value = widget.value
        if not isinstance(value, str):
            return value
        if widget.options.get("dynamicPrompts") is True:
            if has_choices(value):
                self._warnings.append(f"node {placed.id}: one of the choices in {widget.name} was taken at random")
            try:
                return choose_dynamic_prompt(value, self._rng)
            except ValueError as error:
                raise ComfyUIValidationError(f"node {placed.id}: in {widget.name}, {error}") from None
        if widget.name == "filename_prefix" and placed.node.type in _SAVING_CLASSES:
            nodes = [node for graph in self._workflow.graphs() for node in graph.nodes.values()]
            return fill_placeholders(value, nodes, self._now)
        return value


def _wrapped(value: Any) -> Any:
    """A list in the API format is a link, so a list that is a value is boxed; ComfyUI takes it out again."""
    return {"__value__": value} if isinstance(value, list) else value
