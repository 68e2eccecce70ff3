"""comfy-pack's nodes for values of a caller: the title names the parameter, or the node that it feeds does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from comfyui.named.naming import as_name, unique
from comfyui.named.parameters import Found, Kind
from comfyui.named.replacing import Handler, Replacing, left_out, limit_of, named, saved

SOURCE = "comfy-pack"


def _pack_name(work: Replacing, node_id: str, *, fed: bool) -> str:
    """The parameter's name as comfy-pack makes it: a title that is a name, or the first input that it feeds, or a name
    made of the title.
    """
    node = work.prompt[node_id]
    title = node.get("_meta", {}).get("title") if isinstance(node.get("_meta"), Mapping) else None
    title = title if isinstance(title, str) else ""
    if title.isidentifier() and as_name(title) == title:
        name = title
    else:
        inputs = [one.input for one in work.consumers(node_id) if one.output == 0] if fed else []
        name = as_name(inputs[0] if inputs else title.lower()) or as_name(node["class_type"].removeprefix("CPack"))
    return name if not fed else unique(name, {one.name for one in work.found if one.source == SOURCE}, node_id)


def _pack_picture(work: Replacing, node_id: str, _: Mapping[str, Any]) -> None:
    work.load(node_id, Found(_pack_name(work, node_id, fed=True), (), SOURCE, kind="file"), "LoadImage", "image")


def _pack_value(input_name: str, kind: Kind | None) -> Handler:
    def handle(work: Replacing, node_id: str, inputs: Mapping[str, Any]) -> None:
        # For an "Any" input, the pack's own script stores the options.
        meta = work.prompt[node_id].get("_meta")
        options = inputs if kind else meta.get("options") if isinstance(meta, Mapping) else None
        options = options if isinstance(options, Mapping) else {}
        listed = options.get("values")
        found = Found(
            _pack_name(work, node_id, fed=True),
            (),
            SOURCE,
            kind=kind,
            minimum=limit_of(options, "min"),
            maximum=limit_of(options, "max"),
            choices=tuple(listed) if isinstance(listed, list) and listed else None,
        )
        work.feed(node_id, found, inputs.get(input_name, ""))

    return handle


def _pack_file(work: Replacing, node_id: str, inputs: Mapping[str, Any]) -> None:
    found = Found(_pack_name(work, node_id, fed=True), (), SOURCE, kind="file")
    work.feed(node_id, found, inputs.get("path", ""))


def _pack_output(work: Replacing, node_id: str) -> str:
    return _pack_name(work, node_id, fed=False)


INPUTS: Mapping[str, Handler] = {
    "CPackInputImage": _pack_picture,
    "CPackInputString": _pack_value("value", "text"),
    "CPackInputInt": _pack_value("value", "integer"),
    "CPackInputAny": _pack_value("input", None),
    "CPackInputFile": _pack_file,
}
OUTPUTS: Mapping[str, Handler] = {
    "CPackOutputImage": saved("SaveImage", "images", "images", _pack_output),
    "CPackOutputAudio": saved("SaveAudio", "audio", "audio", _pack_output),
    "CPackOutputVideo": saved("SaveVideo", "video", "video", _pack_output),
    "CPackOutputFile": named(_pack_output),
    "CPackOutputTextFile": named(_pack_output),
    "CPackOutputZip": named(_pack_output),
    "CPackOutputZipSwitch": left_out,
}
