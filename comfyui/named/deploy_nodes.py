"""ComfyUI-Deploy's nodes for values of a caller: ``input_id`` names the parameter, another input holds its value.

The pack's sources show the effect of these nodes on a server. If nodes of ComfyUI have the same effect, they replace
these, so that no server needs the pack. Nodes that give a path on the server's disk give a file's name instead.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from comfyui import jsonio
from comfyui.exceptions import JSONError
from comfyui.named.naming import as_name
from comfyui.named.parameters import MISSING, Found, Kind
from comfyui.named.replacing import Handler, Replacing, is_number, limit_of, named, optional, saved
from comfyui.workflows.api_format import is_link

SOURCE = "external"
INPUT_CLASS = re.compile(r"ComfyUIDeployExternal\w+")
_LARGEST_SEED = 999_999_999_999_999


def _external(work: Replacing, node_id: str, inputs: Mapping[str, Any], **more: Any) -> Found | None:
    """A node's parameter without its value; None if the node names none."""
    given = inputs.get("input_id")
    name = as_name(given) if isinstance(given, str) else ""
    if not name:
        work.warn(node_id, "its input_id is not a parameter's name")
        return None
    shown = inputs.get("display_name")
    title = shown if isinstance(shown, str) and shown else given if isinstance(given, str) and given != name else ""
    described = inputs.get("description")
    return Found(name, (), SOURCE, title=title, description=described if isinstance(described, str) else "", **more)


def _value(name: str, kind: Kind | None = None, default: Any = "") -> Handler:
    """A node whose value stands in this input."""

    def handle(work: Replacing, node_id: str, inputs: Mapping[str, Any]) -> None:
        if found := _external(work, node_id, inputs, kind=kind):
            work.feed(node_id, found, inputs.get(name, default))

    return handle


def _slider(kind: Kind) -> Handler:
    def handle(work: Replacing, node_id: str, inputs: Mapping[str, Any]) -> None:
        limits = {"minimum": limit_of(inputs, "min_value"), "maximum": limit_of(inputs, "max_value")}
        if found := _external(work, node_id, inputs, kind=kind, **limits):
            work.feed(node_id, found, inputs.get("default_value", 0))

    return handle


def _enum(work: Replacing, node_id: str, inputs: Mapping[str, Any]) -> None:
    choices = _listed(inputs.get("options"))
    if found := _external(work, node_id, inputs, choices=choices or None):
        value = inputs.get("default_value", "")
        if choices and not is_link(value) and value not in choices:
            value = choices[0]
        work.feed(node_id, found, value)


def _listed(options: Any) -> tuple[Any, ...]:
    """The choices of an enumeration: a JSON list, which the pack's own script writes, or one on each line."""
    if not isinstance(options, str):
        return ()
    try:
        parsed = jsonio.loads(options)
    except JSONError:
        parsed = None
    if isinstance(parsed, list):
        return tuple(one for one in parsed if isinstance(one, str | int | float))
    return tuple(line.strip() for line in options.splitlines() if line.strip())


def _seed(work: Replacing, node_id: str, inputs: Mapping[str, Any]) -> None:
    """A value within the limits is fixed, any other one means that a seed is chosen."""
    low, high = sorted(
        max(1, min(_LARGEST_SEED, _whole(inputs.get(name), default)))
        for name, default in (("min_value", 1), ("max_value", 2**32 - 1))
    )
    own = _whole(inputs.get("default_value"), -1)
    fixed = low <= own <= high
    found = _external(
        work,
        node_id,
        inputs,
        kind="integer",
        seed=True,
        minimum=low,
        maximum=high,
        default=own if fixed else MISSING,
    )
    if found:
        work.feed(node_id, found, own if fixed else low)


def _picture(work: Replacing, node_id: str, inputs: Mapping[str, Any]) -> None:
    found = _external(work, node_id, inputs, kind="file", **_file_default(inputs, "default_value_url"))
    if found:
        work.load(node_id, optional(work, found, node_id, inputs.get("default_value")), "LoadImage", "image")


def _picture_with_alpha(work: Replacing, node_id: str, inputs: Mapping[str, Any]) -> None:
    found = _external(work, node_id, inputs, kind="file")
    if found is None:
        return
    loader = work.add(node_id, "LoadImage", {})
    found = optional(work, found, node_id, inputs.get("default_value"), loader)
    work.replace(node_id, "JoinImageWithAlpha", {"image": [loader, 0], "alpha": [loader, 1]})
    work.load(loader, found, "LoadImage", "image")


def _audio(work: Replacing, node_id: str, inputs: Mapping[str, Any]) -> None:
    if found := _external(work, node_id, inputs, kind="file", **_file_default(inputs, "audio_file")):
        work.load(node_id, optional(work, found, node_id, inputs.get("default_value")), "LoadAudio", "audio")


# A film's frames and what VideoHelperSuite's loader calls these settings too.
_FILM_SETTINGS = ("force_rate", "custom_width", "custom_height", "frame_load_cap", "skip_first_frames")


def _film(work: Replacing, node_id: str, inputs: Mapping[str, Any]) -> None:
    """ComfyUI's own nodes where all frames and the sound are wanted as they are, else those of VideoHelperSuite."""
    found = _external(work, node_id, inputs, kind="file", **_file_default(inputs, "default_value_url"))
    if found is None:
        return
    used = {one.output for one in work.consumers(node_id)}
    plain = inputs.get("force_size", "Disabled") == "Disabled" and inputs.get("select_every_nth", 1) == 1
    plain = plain and not any(inputs.get(name) for name in ("force_rate", "frame_load_cap", "skip_first_frames"))
    if used <= {0, 2} and plain:
        loader = work.add(node_id, "LoadVideo", {})
        for one in work.consumers(node_id):
            work.prompt[one.node_id]["inputs"][one.input] = [node_id, 1 if one.output == 2 else 0]
        work.replace(node_id, "GetVideoComponents", {"video": [loader, 0]})
        work.load(loader, found, "LoadVideo", "file")
        return
    settings = {name: inputs[name] for name in (*_FILM_SETTINGS, "select_every_nth") if name in inputs}
    if inputs.get("force_size", "Disabled") == "Disabled":
        settings |= {"custom_width": 0, "custom_height": 0}
    linked = {name: inputs[name] for name in ("meta_batch", "vae") if is_link(inputs.get(name))}
    work.load(node_id, found, "VHS_LoadVideo", "video")
    work.prompt[node_id]["inputs"].update({**settings, **linked})


def _kept_file(input_name: str) -> Handler:
    """A node of the pack that stays: it reads a file by the name that the gateway gives it."""

    def handle(work: Replacing, node_id: str, inputs: Mapping[str, Any]) -> None:
        if found := _external(work, node_id, inputs, kind="file"):
            work.prompt[node_id]["inputs"][input_name] = ""
            work.set_by(found, node_id, input_name)
            work.warn(node_id, "ComfyUI has no node that does the same, so a server needs ComfyUI-Deploy's node pack")

    return handle


def _path(name: str) -> Handler:
    """A path on the server's disk; the nodes that it feeds get the file's name, as nodes that load files take it."""

    def handle(work: Replacing, node_id: str, inputs: Mapping[str, Any]) -> None:
        if found := _external(work, node_id, inputs, kind="file", **_file_default(inputs, name)):
            work.feed(node_id, found, inputs.get(name, ""))

    return handle


def _file_default(inputs: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The file of the workflow itself, which the gateway fetches: a server reads no URL by itself."""
    value = inputs.get(name)
    return {"default": value} if isinstance(value, str) and value.startswith(("http://", "https://", "data:")) else {}


def _output_id(work: Replacing, node_id: str) -> str:
    given = work.prompt[node_id]["inputs"].get("output_id")
    return as_name(given) if isinstance(given, str) else ""


def _whole(value: Any, default: int) -> int:
    return int(value) if is_number(value) else default


_PACK = "ComfyUIDeployExternal"
INPUTS: Mapping[str, Handler] = {
    f"{_PACK}Text": _value("default_value"),
    f"{_PACK}TextAny": _value("default_value"),
    f"{_PACK}Boolean": _value("default_value", kind="boolean", default=False),
    f"{_PACK}Number": _value("default_value", kind="number", default=0),
    f"{_PACK}NumberInt": _value("default_value", kind="integer", default=0),
    f"{_PACK}NumberSlider": _slider("number"),
    f"{_PACK}NumberSliderInt": _slider("integer"),
    f"{_PACK}Slider": _slider("number"),
    f"{_PACK}Checkpoint": _value("default_value"),
    f"{_PACK}Lora": _value("default_lora_name"),
    f"{_PACK}FaceModel": _value("default_face_model_name"),
    f"{_PACK}Enum": _enum,
    f"{_PACK}Seed": _seed,
    f"{_PACK}Image": _picture,
    f"{_PACK}ImageAlpha": _picture_with_alpha,
    f"{_PACK}ImageBatch": _picture,
    "ComfyDeployWebscoketImageInput": _picture,
    f"{_PACK}Audio": _audio,
    f"{_PACK}Video": _film,
    f"{_PACK}Vid": _path("default_value"),
    f"{_PACK}File": _path("file_url"),
    f"{_PACK}EXR": _kept_file("exr_file"),
}
OUTPUTS: Mapping[str, Handler] = {
    "ComfyDeployOutputImage": saved("SaveImage", "images", "images", _output_id),
    "ComfyDeployWebscoketImageOutput": saved("SaveImage", "images", "images", _output_id),
    "ComfyDeployOutputText": named(_output_id),
    "ComfyDeployOutputFile": named(_output_id),
    "ComfyDeployOutputEXR": named(_output_id),
}
