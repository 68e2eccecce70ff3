"""The slots and widgets that the editor gives a node, in its order.

``widgets_values`` is a bare list: a value's meaning is its position. The layout therefore has to be exactly the
editor's (1.58.1), with every button and control that takes a place without being an input of the node.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from comfyui.exceptions import UncertainLayoutError
from comfyui.workflows.convert.graph import MISSING, InputSlot, Node, Widget, slot_type
from comfyui.workflows.convert.values import store_values, with_defaults
from comfyui.workflows.node_definitions import (
    AUTOGROW,
    DYNAMIC_COMBO,
    DYNAMIC_GROUP,
    MATCH_TYPE,
    InputSpec,
    declared_inputs,
    declared_order,
    declared_outputs,
    group_rows,
    grown_specs,
    option_specs,
    parse_input,
)

# Widgets whose value the browser makes at the moment of the export: a camera picture, a recording, a rendered view.
BROWSER_ONLY_TYPES = frozenset({"WEBCAM", "AUDIO_RECORD", "LOAD_3D", "LOAD_3D_ADVANCED", "LOAD_3D_ANIMATION"})

_SIMPLE_DEFAULTS: dict[str, Any] = {
    "INT": 0,
    "FLOAT": 0,
    "BOOLEAN": False,
    "STRING": "",
    "MARKDOWN": "",
    "TEXTAREA": "",
    "COLOR": "#000000",
    "COLORS": [],
    "CURVE": {"points": [[0, 0], [1, 1]], "interpolation": "monotone_cubic"},
    "RANGE": {"min": 0.0, "max": 1.0},
    "BOUNDING_BOX": {"x": 0, "y": 0, "width": 512, "height": 512},
    "BOUNDING_BOXES": [],
    "PAINTER": MISSING,
    "COMPOSITOR": {},
    "LIGHT_INFO_PREVIEW": [],
    "PREVIEW_3D": "",
    "COMFY_BRANCH_INPUT_NAMES": [],
    "COMFY_BRANCH_SELECTOR": "",
}
# Types for which the editor itself has a widget; any other type is a socket, unless a node pack's script adds one.
_WIDGET_TYPES = frozenset(_SIMPLE_DEFAULTS) | {
    *("COMBO", DYNAMIC_COMBO, DYNAMIC_GROUP, "VIDEO_EDIT", "CHART", "GALLERIA", "IMAGECOMPARE", "RESOLUTION_PREVIEW"),
    *("IMAGEUPLOAD", "AUDIOUPLOAD", "AUDIO_UI", "CAMERA_INFO_STATE", "CAMERA_ANGLE_VIEW", *BROWSER_ONLY_TYPES),
}
# Shown, but neither saved with the workflow nor sent.
_DISPLAY_TYPES = frozenset({"AUDIO_UI", "RESOLUTION_PREVIEW", "CAMERA_INFO_STATE"})

_AUDIO_PLAYER_CLASSES = frozenset(
    {"LoadAudio", "SaveAudio", "PreviewAudio", "SaveAudioMP3", "SaveAudioOpus", "SaveAudioAdvanced"}
)
_PREVIEW_3D_CLASSES = frozenset({"SaveGLB", "Preview3D"})
# How many links of inputs that grow inside an option survive when the editor loads the file.
_KEPT_BY_EDITOR = 2
_SEED_NAMES = frozenset({"seed", "noise_seed"})
# Node definitions of ComfyUI itself: the editor has all their widgets, no script adds one.
_OWN_MODULES = ("nodes", "comfy_extras.", "comfy_api_nodes.")


def editor_inputs(class_type: str, definition: Mapping[str, Any]) -> list[InputSpec]:
    """The declared inputs of a class with those that the editor's own extensions add, in declaration order."""
    required = dict(declared_inputs(definition, "required"))
    if class_type in _AUDIO_PLAYER_CLASSES:
        required["audioUI"] = ["AUDIO_UI", {}]
    if class_type in _PREVIEW_3D_CLASSES:
        required["image"] = ["PREVIEW_3D", {}]
    specs = [parse_input(name, entry, required=True) for name, entry in required.items()]
    if upload := _upload_button(specs):
        specs = [spec for spec in specs if spec.name != "upload"] + [upload]
    optional = declared_inputs(definition, "optional")
    return specs + [parse_input(name, entry, required=False) for name, entry in optional.items()]


def _upload_button(required: Sequence[InputSpec]) -> InputSpec | None:
    upload: InputSpec | None = None
    for spec in required:
        options = spec.options
        media = options.get("image_upload") or options.get("video_upload") or options.get("animated_image_upload")
        if spec.type == "COMBO" and media and upload is None:
            upload = InputSpec("upload", "IMAGEUPLOAD", True, options)
        if spec.name == "audio" and options.get("audio_upload"):
            return InputSpec("upload", "AUDIOUPLOAD", True, {})
    return upload


def _in_layout_order(specs: Sequence[InputSpec], definition: Mapping[str, Any]) -> list[InputSpec]:
    if not definition.get("input_order"):
        return list(specs)
    by_name = {spec.name: spec for spec in specs}
    ordered = [
        by_name[name]
        for section, required in (("required", True), ("optional", False))
        for name in declared_order(definition, section)
        if name in by_name and by_name[name].required is required
    ]
    return ordered + [spec for spec in specs if spec not in ordered]


def _widget_type(spec: InputSpec) -> str:
    return str(spec.options.get("widgetType") or spec.type)


def has_widget(spec: InputSpec) -> bool:
    """True when the editor shows the input as a widget; a socket that can replace it does not count."""
    return _widget_type(spec) in _WIDGET_TYPES and not spec.options.get("forceInput")


def complete_node(node: Node, definition: Mapping[str, Any], socket_types: Collection[str]) -> list[str]:
    """Give `node` the slots and widgets that its class has in the editor, with the stored values; returns warnings.

    Slots are matched by name. Slots of the file that the class does not have stay at the end, as the editor keeps them,
    except those that belonged to a widget that is gone. `socket_types` are those that some node gives as an output.

    Raises:
        UncertainLayoutError: which stored value belongs to which input cannot be known.
    """
    specs = editor_inputs(node.type, definition)
    ordered = _in_layout_order(specs, definition)
    # The editor makes all sockets before all widgets, and a socket that grows may have widgets of its own.
    first = [widget for spec in ordered if not has_widget(spec) for widget in _widgets_of(spec)]
    node.widgets = first + [widget for spec in ordered if has_widget(spec) for widget in _widgets_of(spec)]
    if node.type == "CustomCombo":
        node.widgets += [Widget("index", "INDEX"), _choice_option(1)]
    in_file = {slot.name: slot for slot in reversed(node.inputs)}
    _refuse_scripted(node, ordered, in_file, definition, socket_types)
    warnings = store_values(node, specs, {name for name, slot in in_file.items() if slot.link is not None})
    if node.type == "CustomCombo" and node.widgets[0].value is None:
        node.widgets[0].value = next((w.value for w in node.widgets[2:] if w.value), None)
    values = {widget.name: widget.value for widget in node.widgets}
    warnings += _unknown_options(node, misplaced=bool(warnings))
    slots = [slot for spec in ordered if not has_widget(spec) for slot in _slots_of(spec, values)]
    slots += [slot for spec in ordered if has_widget(spec) for slot in _slots_of(spec, values)]
    for slot in slots:
        slot.link = in_file[slot.name].link if slot.name in in_file else None
    further = _further_slots(node, ordered, slots, values)
    kept = {slot.name for slot in slots + further}
    warnings += [
        f"the link to {slot.name} is left out, because the node has no such input in this ComfyUI"
        for slot in node.inputs
        if slot.link is not None and slot.name not in kept
    ]
    node.inputs = slots + further
    warnings += _editor_faults(node, ordered, values)
    _complete_outputs(node, definition)
    return warnings


def _editor_faults(node: Node, specs: Sequence[InputSpec], values: Mapping[str, Any]) -> list[str]:
    """Cases in which the editor (1.58.1) itself loses or misplaces links that the file names, and we do not."""
    linked = {slot.name for slot in node.inputs if slot.link is not None}
    warnings = []
    for spec in specs:
        if spec.type != DYNAMIC_COMBO:
            continue
        many = [entry.name for entry in _grown(spec, values) if entry.name in linked]
        deep = [
            name for name in linked if name.startswith(f"{spec.name}.") and name.count(".") > 1 and name not in many
        ]
        if len(many) > _KEPT_BY_EDITOR or deep:
            names = ", ".join(many[_KEPT_BY_EDITOR:] + sorted(deep))
            warnings.append(f"the editor loses the links to {names} when it loads the file; here they are kept")
    return warnings


def _further_slots(
    node: Node, specs: Sequence[InputSpec], slots: Sequence[InputSlot], values: Mapping[str, Any]
) -> list[InputSlot]:
    """The slots of the file that the class does not have at first, and that the editor keeps."""
    names = {slot.name for slot in slots}
    changing = tuple(f"{spec.name}." for spec in specs if spec.type in (DYNAMIC_COMBO, DYNAMIC_GROUP))
    grown = {entry.name for spec in specs for entry in _grown(spec, values)}
    return [
        slot
        for slot in node.inputs
        if slot.name not in names
        and (not slot.widget or node.widget(slot.widget))
        and (slot.name in grown or not (changing and slot.name.startswith(changing)))
    ]


def _grown(spec: InputSpec, values: Mapping[str, Any]) -> Iterator[InputSpec]:
    """All that an autogrow input may stand for, in options that are chosen too."""
    if spec.type == AUTOGROW:
        yield from (entry for row in grown_specs(spec).rows for entry in row)
    elif spec.type == DYNAMIC_COMBO:
        for entry in option_specs(spec, values.get(spec.name)):
            yield from _grown(entry, values)


def _refuse_scripted(
    node: Node,
    specs: Sequence[InputSpec],
    in_file: Mapping[str, InputSlot],
    definition: Mapping[str, Any],
    socket_types: Collection[str],
) -> None:
    """Refuses an input that looks like a socket to us and had a widget in the editor that saved the file.

    A file names all sockets of a node: so an input that it names as a widget is one, and so is an input that it does
    not name while it stores more values than there are widgets.
    """
    module = str(definition.get("python_module") or "")
    if module.startswith(_OWN_MODULES):
        return
    places = sum(widget.stored for widget in node.widgets)
    scripted = []
    for spec in specs:
        if has_widget(spec) or spec.options.get("forceInput") or not spec.required or spec.type == AUTOGROW:
            continue
        slot = in_file.get(spec.name)
        unnamed = slot is None and spec.type not in socket_types and len(node.widget_values) > places
        if unnamed or (slot and slot.widget is not None):
            scripted.append(spec.name)
    if scripted:
        raise UncertainLayoutError(
            f"a script of its node pack adds the widget {', '.join(scripted)}, so that it cannot be known which stored "
            'value belongs to which input: export it with "Workflow > Export (API)" in the editor that has the pack'
        )


def _unknown_options(node: Node, *, misplaced: bool) -> list[str]:
    """Options that a dynamic combo does not have; they may bring inputs whose values stand before those of others.

    Raises:
        UncertainLayoutError: stored values do not fit (`misplaced`), so the option did bring inputs.
    """
    warnings = []
    for widget in node.widgets:
        options = widget.options.get("options")
        if widget.kind != "COMBO" or widget.children is None or not isinstance(options, list):
            continue
        if options and widget.value not in options:
            offered = (
                f"{widget.name} is {widget.value!r:.80}, which this ComfyUI does not offer ({', '.join(options[:5])})"
            )
            if misplaced:
                raise UncertainLayoutError(
                    f"{offered}, so that it cannot be known which stored value belongs to which input: update ComfyUI, "
                    "or choose one of its options"
                )
            warnings.append(f"{offered}; the node most likely fails")
    return warnings


def _complete_outputs(node: Node, definition: Mapping[str, Any]) -> None:
    declared = [slot_type(kind) for kind in declared_outputs(definition)]
    declared = ["*" if kind == MATCH_TYPE else kind for kind in declared]
    node.output_types = declared + node.output_types[len(declared) :]


def _slots_of(spec: InputSpec, values: Mapping[str, Any]) -> Iterator[InputSlot]:
    """The slots that the editor makes for an input, those of the inputs behind it included."""
    if spec.options.get("forceInput"):
        yield InputSlot(spec.name, spec.type)
        return
    match spec.type:
        case "COMFY_DYNAMICCOMBO_V3":
            yield InputSlot(spec.name, spec.type, widget=spec.name)
            inner = option_specs(spec, values.get(spec.name))
        case "COMFY_DYNAMICGROUP_V3":
            inner = [entry for row in group_rows(spec, values.get(spec.name)) for entry in row]
        case "COMFY_AUTOGROW_V3":
            inner = _first_rows(spec)
        case "COMFY_MATCHTYPE_V3":
            template = spec.options.get("template")
            allowed = template.get("allowed_types") if isinstance(template, Mapping) else None
            yield InputSlot(spec.name, slot_type(allowed))
            return
        case _:
            yield InputSlot(spec.name, spec.type, widget=spec.name if has_widget(spec) else None)
            return
    for entry in inner:
        yield from _slots_of(entry, values)


def _first_rows(spec: InputSpec) -> list[InputSpec]:
    """The inputs that an autogrow input has before anything is linked: always one row more than it needs."""
    grown = grown_specs(spec)
    return [entry for row in grown.rows[: grown.minimum + 1] for entry in row]


def _widgets_of(spec: InputSpec) -> Iterator[Widget]:
    if spec.type == AUTOGROW:
        for entry in _first_rows(spec):
            yield from _widgets_of(entry)
        return
    if not has_widget(spec):
        return
    kind, options = _widget_type(spec), spec.options
    default = options.get("default")
    match kind:
        case "IMAGEUPLOAD" | "AUDIOUPLOAD":
            yield Widget(spec.name, "BUTTON", in_prompt=False)
        case "CAMERA_ANGLE_VIEW":
            yield Widget(spec.name, kind, in_prompt=False)
        case "IMAGECOMPARE":
            yield Widget(spec.name, kind, ["", ""], stored=False)
        case "COMBO":
            yield from _combo_widgets(spec)
        case "COMFY_DYNAMICCOMBO_V3":
            yield _dynamic_combo(spec)
        case "COMFY_DYNAMICGROUP_V3":
            yield Widget(spec.name, kind, options.get("min", 0), in_prompt=False, children=_row_widgets(spec))
        case "INT" | "FLOAT":
            yield Widget(spec.name, kind, 0 if default is None else default, options=options)
            control = options.get("control_after_generate")
            if control or (control is None and kind == "INT" and spec.name in _SEED_NAMES):
                yield Widget("control_after_generate", "CONTROL", in_prompt=False)
        case "BOUNDING_BOX":
            yield Widget(spec.name, kind, default or _SIMPLE_DEFAULTS[kind], options=options)
            for side in ("x", "y", "width", "height"):
                yield Widget(side, "CONTROL", in_prompt=False)
        case _ if kind in _DISPLAY_TYPES:
            yield Widget(spec.name, kind, in_prompt=False, stored=False)
        case _:
            shown = "TEXT" if kind == "STRING" and options.get("multiline") else kind
            yield Widget(spec.name, shown, _default(spec, kind), options=options)


def _default(spec: InputSpec, kind: str) -> Any:
    """The value of a widget of which the file stores none."""
    options = spec.options
    listed = options.get("options")
    inner = listed if isinstance(listed, Mapping) else {}
    match kind:
        case "CHART":
            return options.get("data", inner.get("data", {}))
        case "GALLERIA":
            return options.get("images", inner.get("images", []))
        case "VIDEO_EDIT" if not options.get("default"):
            features = options.get("features") or ("trim", "crop")
            parts = {
                "trim": {"start_time": 0, "duration": 0},
                "crop": {"x": 0, "y": 0, "width": 0, "height": 0},
            }
            return {name: value for name, value in parts.items() if name in features}
    default = options.get("default", inner.get("default"))
    return _SIMPLE_DEFAULTS.get(kind, MISSING) if default is None else default


def _listed(spec: InputSpec) -> Mapping[str, Any]:
    return {"options": list(spec.choices or ())}


def _dynamic_combo(spec: InputSpec) -> Widget:
    def behind(chosen: Any) -> list[Widget]:
        return _inner_widgets(option_specs(spec, chosen))

    first = spec.choices[0] if spec.choices else MISSING
    at_first = [entry for widget in behind(first) for entry in with_defaults(widget)]
    left_behind = [widget for widget in at_first if not widget.name.startswith(f"{spec.name}.")]
    return Widget(spec.name, "COMBO", first, options=_listed(spec), children=behind, left_behind=left_behind)


def _row_widgets(spec: InputSpec) -> Callable[[Any], list[Widget]]:
    def behind(count: Any) -> list[Widget]:
        return _inner_widgets([entry for row in group_rows(spec, count) for entry in row])

    return behind


def _inner_widgets(specs: Sequence[InputSpec]) -> list[Widget]:
    """Widgets behind another one; the editor does not choose in their dynamic prompts, for it makes them too late."""
    widgets = [widget for spec in specs for widget in _widgets_of(spec)]
    for widget in widgets:
        widget.options = {name: value for name, value in widget.options.items() if name != "dynamicPrompts"}
    return widgets


def _choice_option(number: int) -> Widget:
    """One of the texts among which a CustomCombo chooses; a filled one is followed by a next."""

    def following(value: Any) -> list[Widget]:
        return [_choice_option(number + 1)] if value else []

    return Widget(f"option{number}", "STRING", "", children=following)


def _combo_widgets(spec: InputSpec) -> Iterator[Widget]:
    options = spec.options
    first: Any = spec.choices[0] if spec.choices else "Loading..." if options.get("remote") else MISSING
    if options.get("multi_select"):
        yield Widget(spec.name, "COMBO", [], options=options)
        if options.get("control_after_generate"):
            yield Widget("control_after_generate", "CONTROL", in_prompt=False)
        return
    yield Widget(spec.name, "COMBO", options.get("default") or first, options={**options, **_listed(spec)})
    if options.get("remote"):
        yield Widget("Auto-refresh after generation", "CONTROL", in_prompt=False)
        if options["remote"].get("refresh_button"):
            # The editor's own oversight: this button is part of the prompt. ComfyUI ignores it.
            yield Widget("refresh", "BUTTON", "refresh")
    if options.get("control_after_generate"):
        yield Widget("control_after_generate", "CONTROL", in_prompt=False)
        yield Widget("control_filter_list", "CONTROL", in_prompt=False)
