"""Which widgets the editor gives a node, in which order, and which stored value belongs to which of them.

``widgets_values`` is a bare list: a value's meaning is its position. So the layout has to be exactly the editor's,
with every button and control that takes a place without being an input of the node.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from comfyui.convert.graph import MISSING, InputSlot, Node, Widget, slot_type
from comfyui.nodedefs import InputSpec, parse_input

# Types for which the editor itself has a widget; any other type is a socket, unless a node pack's script adds one.
_WIDGET_TYPES = frozenset(
    {
        *("INT", "FLOAT", "BOOLEAN", "STRING", "MARKDOWN", "COMBO", "COLOR", "TEXTAREA", "TREESELECT", "MULTISELECT"),
        *("SELECTBUTTON", "CHART", "GALLERIA", "IMAGECOMPARE", "FILEUPLOAD", "IMAGEUPLOAD", "AUDIOUPLOAD", "AUDIO_UI"),
        *("PREVIEW_3D", "PREVIEW_3D_ANIMATION"),
    }
)
# Widgets whose value the browser makes at the moment of the export: a camera picture, a recording, a rendered view.
BROWSER_ONLY_TYPES = frozenset({"WEBCAM", "AUDIO_RECORD", "LOAD_3D", "LOAD_3D_ANIMATION"})

_AUDIO_PLAYER_CLASSES = frozenset({"LoadAudio", "SaveAudio", "PreviewAudio", "SaveAudioMP3", "SaveAudioOpus"})
_PREVIEW_3D_CLASSES = {
    "SaveGLB": "PREVIEW_3D",
    "Preview3D": "PREVIEW_3D",
    "Preview3DAnimation": "PREVIEW_3D_ANIMATION",
}
_SEED_NAMES = frozenset({"seed", "noise_seed"})
_ANNOTATED = re.compile(r"\[(input|output|temp)\]", re.IGNORECASE)


class UncertainLayoutError(Exception):
    """Why a node's stored values cannot be converted."""


def editor_inputs(class_type: str, definition: Mapping[str, Any]) -> list[InputSpec]:
    """The declared inputs of a class with those that the editor's own extensions add, in declaration order."""
    declared = definition.get("input") or {}
    required = dict(declared.get("required") or {})
    if class_type in _AUDIO_PLAYER_CLASSES:
        required["audioUI"] = ["AUDIO_UI", {}]
    if class_type in _PREVIEW_3D_CLASSES:
        required["image"] = [_PREVIEW_3D_CLASSES[class_type], {}]
    specs = [parse_input(name, entry, required=True) for name, entry in required.items()]
    if upload := _upload_button(specs):
        specs = [spec for spec in specs if spec.name != "upload"] + [upload]
    optional = declared.get("optional") or {}
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
    order = definition.get("input_order")
    if not order:
        return list(specs)
    by_name = {spec.name: spec for spec in specs}
    ordered = [
        by_name[name]
        for section, required in (("required", True), ("optional", False))
        for name in order.get(section) or ()
        if name in by_name and by_name[name].required is required
    ]
    return ordered + [spec for spec in specs if spec not in ordered]


def _widget_type(spec: InputSpec) -> str:
    return str(spec.options.get("widgetType") or spec.type)


def _has_widget(spec: InputSpec) -> bool:
    kind = _widget_type(spec)
    return (kind in _WIDGET_TYPES or kind in BROWSER_ONLY_TYPES) and not spec.options.get("forceInput")


def complete_node(node: Node, definition: Mapping[str, Any], socket_types: Collection[str]) -> list[str]:
    """Give `node` the slots and widgets that its class has in the editor, with the stored values; returns warnings.

    Slots are matched by name. Slots of the file that the class does not have stay at the end, as the editor keeps them,
    except those that belonged to a widget that is gone. `socket_types` are those that some node gives as an output.

    Raises:
        UncertainLayoutError: which stored value belongs to which input cannot be known.
    """
    specs = editor_inputs(node.type, definition)
    ordered = _in_layout_order(specs, definition)
    node.widgets = [widget for spec in ordered if _has_widget(spec) for widget in _widgets_of(spec)]
    if node.type == "PreviewAny":
        node.widgets.append(Widget("preview", "TEXT", "", stored=False))
    slots = [InputSlot(spec.name, spec.type) for spec in ordered if not _has_widget(spec)]
    slots += [InputSlot(spec.name, spec.type, widget=spec.name) for spec in ordered if _has_widget(spec)]
    names = {slot.name for slot in slots}
    in_file = {slot.name: slot for slot in node.inputs}
    for slot in slots:
        slot.link = in_file[slot.name].link if slot.name in in_file else None
    extra = [slot for slot in node.inputs if slot.name not in names and (not slot.widget or node.widget(slot.widget))]
    scripted = [
        spec.name for spec in ordered if not _has_widget(spec) and _is_scripted(spec, node, in_file, socket_types)
    ]
    if scripted:
        raise UncertainLayoutError(
            f"a node pack's script adds the widget {', '.join(scripted)}: which value is whose cannot be known"
        )
    node.inputs = slots + extra
    _complete_outputs(node, definition)
    return _store_values(node, specs)


def _is_scripted(spec: InputSpec, node: Node, in_file: Mapping[str, InputSlot], socket_types: Collection[str]) -> bool:
    """True when the editor that saved the file had a widget for an input that looks like a socket to us.

    A file names all sockets of a node: so an input that it names as a widget is one, and so is an input that it does
    not name while it stores more values than there are widgets.
    """
    slot = in_file.get(spec.name)
    if spec.options.get("forceInput") or not spec.required:
        return False
    if slot:
        return slot.widget is not None
    return spec.type not in socket_types and len(node.widget_values) > sum(widget.stored for widget in node.widgets)


def _complete_outputs(node: Node, definition: Mapping[str, Any]) -> None:
    declared = [slot_type(kind) for kind in definition.get("output") or ()]
    node.output_types = declared + node.output_types[len(declared) :]


def _widgets_of(spec: InputSpec) -> Iterator[Widget]:
    kind, options = _widget_type(spec), spec.options
    match kind:
        case "IMAGEUPLOAD" | "AUDIOUPLOAD":
            yield Widget(spec.name, "BUTTON", in_prompt=False)
        case "AUDIO_UI":
            yield Widget(spec.name, kind, "", stored=False)
        case "PREVIEW_3D" | "PREVIEW_3D_ANIMATION":
            yield Widget(spec.name, kind, "")
        case "STRING":
            yield Widget(
                spec.name, "TEXT" if options.get("multiline") else kind, options.get("default", ""), options=options
            )
        case "COMBO":
            yield from _combo_widgets(spec)
        case "INT":
            yield Widget(spec.name, kind, options.get("default", 0), options=options)
            if options.get("control_after_generate", spec.name in _SEED_NAMES):
                yield Widget("control_after_generate", "CONTROL", in_prompt=False)
        case "FLOAT" | "BOOLEAN":
            yield Widget(spec.name, kind, options.get("default", 0 if kind == "FLOAT" else False), options=options)
        case _:
            yield Widget(spec.name, kind, options.get("default", MISSING), options=options)


def _combo_widgets(spec: InputSpec) -> Iterator[Widget]:
    options = spec.options
    first: Any = spec.choices[0] if spec.choices else "Loading..." if options.get("remote") else MISSING
    if options.get("multi_select"):
        yield Widget(spec.name, "COMBO", [], options=options)
        return
    yield Widget(spec.name, "COMBO", options.get("default") or first, options=options)
    if options.get("remote"):
        yield Widget("Auto-refresh after generation", "CONTROL", in_prompt=False)
        if options["remote"].get("refresh_button"):
            # The editor's own oversight: this button is part of the prompt. ComfyUI ignores it.
            yield Widget("refresh", "BUTTON", "refresh")
    if options.get("control_after_generate"):
        yield Widget("control_after_generate", "CONTROL", in_prompt=False)
        yield Widget("control_filter_list", "CONTROL", in_prompt=False)


def _store_values(node: Node, specs: Sequence[InputSpec]) -> list[str]:
    if isinstance(node.widget_values, Mapping):
        # Node packs that store by name (VideoHelperSuite) also restore by name.
        for widget in node.widgets:
            if widget.name in node.widget_values:
                set_value(widget, node.widget_values[widget.name])
        return []
    values = _without_converted(specs, node)
    stored = [widget for widget in node.widgets if widget.stored]
    for widget, value in zip(stored, values, strict=False):
        set_value(widget, value)
    return [
        f"{widget.name} got {widget.value!r:.60}, which is no {widget.kind}: the node may have changed since then"
        for widget in stored
        if not _plausible(widget)
    ]


def _without_converted(specs: Sequence[InputSpec], node: Node) -> list[Any]:
    """The stored values without those of inputs that have since become sockets only.

    Done when, and only when, the count says that the file has such values; as in the editor, a control widget in front
    of one shifts the cut.
    """
    values = list(node.widget_values)
    names = {widget.name for widget in node.widgets}
    once_widgets = [spec for spec in specs if spec.name in names or spec.options.get("forceInput")]
    count = sum(
        2 if spec.options.get("control_after_generate") or spec.name in _SEED_NAMES else 1 for spec in once_widgets
    )
    if count != len(values):
        return values
    gone = {index for index, spec in enumerate(once_widgets) if spec.options.get("forceInput")}
    return [value for index, value in enumerate(values) if index not in gone]


def set_value(widget: Widget, value: Any) -> None:
    """Store a value as the editor's widget would hold it."""
    if widget.kind == "TEXT":
        widget.value = _text_area(value)
    elif widget.kind == "COMBO" and any(
        widget.options.get(option) for option in ("image_upload", "video_upload", "animated_image_upload")
    ):
        if value:
            widget.value = _annotated(value, widget.options)
    else:
        widget.value = value


def _text_area(value: Any) -> str:
    """A browser's text area holds text only, and its line ends are always single line feeds."""
    if value is None:
        return ""
    text = {True: "true", False: "false"}[value] if isinstance(value, bool) else str(value)
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _annotated(value: Any, options: Mapping[str, Any]) -> Any:
    if isinstance(value, list):
        paths = [_annotated(entry, options) for entry in value]
        return paths if options.get("allow_batch") else paths[0]
    if isinstance(value, Mapping):
        subfolder, name = value.get("subfolder"), str(value.get("filename") or "")
        return _annotated(f"{subfolder}/{name}" if subfolder else name, {"image_folder": value.get("type") or "input"})
    folder = options.get("image_folder") or "input"
    return value if folder == "input" or _ANNOTATED.search(str(value)) else f"{value} [{folder}]"


def _plausible(widget: Widget) -> bool:
    value = widget.value
    match widget.kind:
        case "INT" | "FLOAT":
            return isinstance(value, int | float) and not isinstance(value, bool)
        case "BOOLEAN":
            return isinstance(value, bool | int)
        case "COMBO":
            return value is MISSING or isinstance(value, str | int | float | list)
        case _:
            return True
