"""A workflow as the editor saves it (UI format) → the API format that ComfyUI runs. Pure: no I/O.

The result should equal the editor's own ``Export (API)``; ``tests/contract/test_convert_real.py`` compares the two for
all stock templates. The steps, in order:

1. ``graph``       the file → nodes, links, subgraph definitions;
2. ``groups``      group nodes become subgraphs;
3. ``virtual``     nodes that live in the editor only are left out or refused;
4. ``widgets``     each node gets its class's slots and widgets, and ``values`` puts the stored values into them;
5. ``promotion``   instances of subgraphs get the widgets of their linked inputs;
6. ``primitives``  values of primitive nodes go into the widgets that they are linked to;
7. ``links``       subgraphs are flattened, and each linked input is followed to the node that feeds it;
8. here            widget values and links become the API format's inputs.

If the result differs from the editor's export on purpose, or may differ, a warning names the node.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from random import Random
from typing import Any

from comfyui.exceptions import ComfyUIValidationError, UncertainLayoutError
from comfyui.limits import DEFAULT_LIMITS, Limits
from comfyui.workflows.api_format import is_ui_format
from comfyui.workflows.convert.graph import BYPASS, MISSING, Node, Widget, Workflow, parse_workflow, slot_type
from comfyui.workflows.convert.groups import apply_overrides, unfold_groups
from comfyui.workflows.convert.links import (
    LinkResolver,
    NodeOutput,
    Placed,
    PromotedValue,
    adopt_links,
    check_size,
    flatten,
)
from comfyui.workflows.convert.matching import settle_types
from comfyui.workflows.convert.primitives import apply_primitives
from comfyui.workflows.convert.promotion import promote_widgets
from comfyui.workflows.convert.shown import Shown, ShownWidget
from comfyui.workflows.convert.text import choose_dynamic_prompt, fill_placeholders, has_choices
from comfyui.workflows.convert.virtual import apply_everywhere_links, is_virtual, remove_editor_only, setter_warnings
from comfyui.workflows.convert.widgets import BROWSER_ONLY_TYPES, complete_node
from comfyui.workflows.node_definitions import ObjectInfo, declared_outputs

__all__ = ["ConvertedWorkflow", "ShownWidget", "to_api_format"]

# Classes whose file name prefix may hold placeholders that only the editor fills in.
_SAVING_CLASSES = frozenset(
    {
        *("SaveImage", "SaveImageAdvanced", "SaveSVGNode", "SaveVideo", "SaveAnimatedWEBP", "SaveWEBM"),
        *("SaveAudio", "SaveAudioMP3", "SaveAudioOpus", "SaveAudioAdvanced", "SaveGLB", "Save3DAdvanced"),
        *("SaveGaussianSplat", "SavePointCloud", "SaveAnimatedPNG", "CLIPSave", "VAESave", "ModelSave"),
        *("LoraSave", "SaveLatent"),
    }
)
# The same node under its old name for a sampler, in files of early versions.
_OLD_SAMPLER_PREFIX = "sample_"


@dataclass(frozen=True, slots=True)
class ConvertedWorkflow:
    """``prompt`` is in API format; ``warnings`` name nodes that were left out or looked odd.

    ``shown`` has the final places of the values of promoted widgets and of primitive nodes, in the order of the file.
    ``titles`` are those of nodes of the file that are not nodes of the prompt, by their ids.
    """

    prompt: dict[str, Any]
    warnings: tuple[str, ...]
    shown: tuple[ShownWidget, ...] = ()
    titles: Mapping[str, str] = field(default_factory=dict)


def to_api_format(
    ui_workflow: Mapping[str, Any],
    object_info: ObjectInfo,
    *,
    now: datetime | None = None,
    rng: Random | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> ConvertedWorkflow:
    """Convert a UI export, with the node definitions of the ComfyUI that is to run it.

    Args:
        now: for ``%date:…%`` in file names; default: the local time.
        rng: chooses in dynamic prompts (``{a|b}``), which the editor does at random too.
        limits: how many nodes the workflow may have with its subgraphs written out.

    Raises:
        ComfyUILimitError: it has more, which is found without writing them out.
        ComfyUIValidationError: the file is no UI export or damaged, a node's class is not known, or a
            value can only be made by a browser (camera, 3D view); ``node_errors`` names each node.
    """
    if not is_ui_format(ui_workflow):
        raise ComfyUIValidationError("This is not a UI-format workflow, because it has no list of nodes.")
    workflow = parse_workflow(ui_workflow)
    check_size(workflow, limits)
    workflow.warnings += unfold_groups(workflow, ui_workflow, object_info, limits)
    _complete(workflow, object_info)
    workflow.warnings += apply_everywhere_links(workflow) + setter_warnings(workflow)
    promote_widgets(workflow)
    settle_types(workflow, object_info)
    now = now or datetime.now().astimezone()
    workflow.warnings += apply_primitives(workflow, now)
    placed = flatten(workflow)
    workflow.warnings += _inactive_warnings(placed)
    export = _Export(workflow, placed, now, rng or Random())  # noqa: S311
    prompt = {entry.id: export.node(entry) for entry in placed.values() if _is_exported(entry)}
    for node in prompt.values():
        node["inputs"] = {
            name: value
            for name, value in node["inputs"].items()
            if not (isinstance(value, list) and value[0] not in prompt)
        }
    if not prompt:
        raise ComfyUIValidationError("Nothing is left to run: every node is muted, bypassed or a note.")
    warnings = tuple(dict.fromkeys(workflow.warnings + export.warnings))
    titles = {entry.id: entry.node.title for entry in placed.values() if entry.id not in prompt and entry.node.title}
    return ConvertedWorkflow(prompt, warnings, export.shown.all(prompt), titles)


def _is_exported(entry: Placed) -> bool:
    return entry.node.runs and entry.inside is None and not is_virtual(entry.node)


def _inactive_warnings(placed: Mapping[str, Placed]) -> list[str]:
    """Subgraphs inside of a subgraph that run although they are muted or bypassed, as the editor exports them."""
    return [
        f"node {entry.id} ({entry.inside.name or 'subgraph'}): it is {'bypassed' if bypassed else 'muted'}, but the "
        "editor exports what is inside of it, because it is itself inside of a subgraph; mute the nodes in it instead"
        for entry in placed.values()
        if entry.inside and entry.around and not entry.node.runs
        for bypassed in (entry.node.mode == BYPASS,)
    ]


def _complete(workflow: Workflow, object_info: ObjectInfo) -> None:
    """Lay out every node by its class, and take out those that ComfyUI does not have and does not need."""
    warnings, errors = remove_editor_only(workflow, object_info)
    workflow.warnings += warnings
    socket_types = {slot_type(kind) for found in object_info.values() for kind in declared_outputs(found)}
    for graph in workflow.graphs():
        for node in graph.nodes.values():
            definition = object_info.get(node.type)
            if definition is None or is_virtual(node) or node.type in workflow.subgraphs:
                continue
            try:
                found = complete_node(node, definition, socket_types)
            except UncertainLayoutError as error:
                if node.runs:
                    errors.setdefault(node.id, []).append(f"{node.type}: {error}")
                continue
            apply_overrides(node)
            found += adopt_links(node, graph)
            if node.runs:
                workflow.warnings += [f"node {node.id} ({node.type}): {warning}" for warning in found]
                if made := [w.name for w in node.widgets if w.kind in BROWSER_ONLY_TYPES]:
                    errors.setdefault(node.id, []).append(_browser_only(node, made[0]))
            node.title = node.title or str(definition.get("display_name") or node.type)
            _modernise_sampler(node)
    if errors:
        reasons = "; ".join(f"node {node_id}: {' '.join(why)}" for node_id, why in errors.items())
        raise ComfyUIValidationError(f"The workflow cannot be converted with certainty: {reasons}", node_errors=errors)


def _browser_only(node: Node, name: str) -> str:
    return (
        f"{node.type}: only a browser can make the value of {name} (a camera picture, a recording or a rendered view): "
        "run the workflow in the editor, or use a node that loads a file instead"
    )


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
        self.shown = Shown(workflow, placed)
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
                inputs[widget.name] = _boxed(widget, value)
        for index, slot in enumerate(node.inputs):
            match self._links.source_of(placed, index):
                case NodeOutput(node_id, output):
                    inputs[slot.name] = [node_id, output]
                case PromotedValue(value) as promoted if value is not MISSING:
                    inputs[slot.name] = {"__value__": value} if isinstance(value, list) else value
                    self.shown.note(promoted, placed.id, slot.name)
        if node.type == "CustomCombo":
            inputs["index"] = _chosen_index(node, inputs)
        for widget in node.widgets:
            if widget.kind == "COMFY_BRANCH_INPUT_NAMES":
                inputs[widget.name] = {"__value__": _linked_branches(node)}
        return {"inputs": inputs, "class_type": node.type, "_meta": {"title": node.title}}

    def _value(self, placed: Placed, widget: Widget) -> Any:
        value = widget.value
        if not isinstance(value, str):
            return value
        if widget.options.get("dynamicPrompts") is True:
            if has_choices(value):
                self._warnings.append(f"node {placed.id}: one of the choices in {widget.name} was chosen at random")
            try:
                return choose_dynamic_prompt(value, self._rng)
            except ValueError as error:
                raise ComfyUIValidationError(f"node {placed.id}: in {widget.name}, {error}") from None
        if widget.name == "filename_prefix" and placed.node.type in _SAVING_CLASSES:
            nodes = [node for graph in self._workflow.graphs() for node in graph.nodes.values()]
            return fill_placeholders(value, nodes, self._now)
        return value


def _boxed(widget: Widget, value: Any) -> Any:
    """A list in the API format is a link, so a list that is a value is boxed; ComfyUI takes it out again."""
    if widget.kind == "CURVE" and value is not None:
        return {"__type__": "CURVE", "__value__": value}
    return {"__value__": value} if isinstance(value, list) else value


def _linked_branches(node: Node) -> list[str]:
    """The inputs between which a node branches, by the names that the editor shows."""
    linked = [slot for slot in node.inputs if slot.name.startswith("autogrow.") and slot.link is not None]
    return [slot.label or slot.name.split(".", 1)[1] for slot in linked]


def _chosen_index(node: Node, inputs: Mapping[str, Any]) -> int:
    """The index of a CustomCombo's chosen option; a choice that comes through a link counts as the widget shows it."""
    choice = inputs.get("choice")
    chosen = node.widgets[0].value if isinstance(choice, list) else choice
    options = [widget.value for widget in node.widgets[2:]]
    return options.index(chosen) if chosen in options else -1
