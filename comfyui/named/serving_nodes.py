"""ComfyUI-Serving-Toolkit's nodes: ``argument`` names the parameter; pictures have no name there, and are all one.

The nodes that wait for orders from elsewhere are left out: they hold secrets, and the gateway takes the orders.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from comfyui.named.naming import as_name
from comfyui.named.parameters import Found
from comfyui.named.replacing import Handler, Replacing, left_out, limit_of, optional, saved

SOURCE = "serving"


def _serving_name(work: Replacing, node_id: str, inputs: Mapping[str, Any]) -> str:
    given = inputs.get("argument")
    name = as_name(given) if isinstance(given, str) else ""
    if not name:
        work.warn(node_id, "its argument is not a parameter's name")
    return name


def _serving_text(work: Replacing, node_id: str, inputs: Mapping[str, Any]) -> None:
    if name := _serving_name(work, node_id, inputs):
        work.feed(node_id, Found(name, (), SOURCE, kind="text"), inputs.get("default", ""))


def _serving_number(work: Replacing, node_id: str, inputs: Mapping[str, Any]) -> None:
    if name := _serving_name(work, node_id, inputs):
        whole = {one.output for one in work.consumers(node_id)} == {1}
        found = Found(
            name,
            (),
            SOURCE,
            kind="integer" if whole else "number",
            minimum=limit_of(inputs, "min_value"),
            maximum=limit_of(inputs, "max_value"),
        )
        work.feed(node_id, found, inputs.get("default", 0), {1: "integer", 2: "text"})


def _serving_picture(work: Replacing, node_id: str, inputs: Mapping[str, Any]) -> None:
    work.load(node_id, optional(work, _SERVED_PICTURE, node_id, inputs.get("default_image")), "LoadImage", "image")


def _serving_latent(work: Replacing, node_id: str, inputs: Mapping[str, Any]) -> None:
    loader = work.add(node_id, "LoadImage", {})
    found = optional(work, _SERVED_PICTURE, node_id, inputs.get("default_latent"), loader)
    work.replace(node_id, "VAEEncode", {**inputs, "pixels": [loader, 0]})
    work.load(loader, found, "LoadImage", "image")


def _serving_text_and_picture(work: Replacing, node_id: str, inputs: Mapping[str, Any]) -> None:
    """Two nodes in one: each gets the consumers of its own output."""
    text = work.add(
        node_id, "ServingInputText", {"argument": inputs.get("argument"), "default": inputs.get("default_prompt", "")}
    )
    for one in work.consumers(node_id):
        work.prompt[one.node_id]["inputs"][one.input] = [node_id if one.output else text, 0]
    _serving_text(work, text, work.prompt[text]["inputs"])
    _serving_picture(work, node_id, inputs)


_SERVED_PICTURE = Found("image", (), SOURCE, kind="file")


def _no_name(_: Replacing, __: str) -> str:
    return ""


INPUTS: Mapping[str, Handler] = {
    "ServingInputText": _serving_text,
    "ServingInputNumber": _serving_number,
    "ServingInputTextImage": _serving_text_and_picture,
    "ServingInputImage": _serving_picture,
    "ServingInputImageAsLatent": _serving_latent,
}
OUTPUTS: Mapping[str, Handler] = {
    "ServingOutput": saved("SaveImage", "image", "images", _no_name),
    "ServingMultiImageOutput": saved("SaveImage", "images", "images", _no_name),
    "ServingTextOutput": saved("PreviewAny", "text", "source", _no_name),
    **dict.fromkeys(("DiscordServing", "WebSocketServing", "HTTPServing", "TelegramServing"), left_out),
    **dict.fromkeys(("CommandPickerServing", "AlwaysExecute"), left_out),
}
