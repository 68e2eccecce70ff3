"""A call of OpenAI's image API as the parameters of a named workflow. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from comfyui.exceptions import ImageCallError
from comfyui.named.model_names import ModelKind
from comfyui.named.parameters import NamedWorkflow
from comfyui.web.openai.calls import ImageCall
from comfyui.web.openai.models import with_role

# Fields that OpenAI's clients send to any model. A workflow with such a parameter gets the value if it fits.
_OPENAI_S: Final = frozenset(
    {
        *("quality", "style", "background", "moderation", "input_fidelity", "output_compression", "partial_images"),
        *("response_format", "output_format", "size", "stream", "user", "safety_identifier"),
    }
)


@dataclass(frozen=True, slots=True)
class Values:
    """The parameters for a workflow.

    Attributes:
        parameters: values by parameter.
        files: names of the form's files by parameter.
        ignored: fields of the call that this workflow has no use for.
        batch: the workflow makes all the pictures in one run.
        seed: the parameter for a seed; None if there is none.
        fields: the call's field by the parameter that it became.
    """

    parameters: Mapping[str, Any]
    files: Mapping[str, str]
    ignored: tuple[str, ...]
    batch: bool
    seed: str | None
    fields: Mapping[str, str]


def values_of(workflow: NamedWorkflow, call: ImageCall, kind: ModelKind) -> Values:
    """Raises `ImageCallError` for more pictures than the workflow takes, and for a missing prompt."""
    parameters: dict[str, Any] = {}
    files: dict[str, str] = {}
    fields: dict[str, str] = {}
    ignored: list[str] = []

    def give(role: str, value: Any, field: str) -> bool:
        found = with_role(workflow, role)
        if not found:
            return False
        parameters[found[0].name], fields[found[0].name] = value, field
        return True

    if call.prompt is None and kind == "generations":
        raise ImageCallError("prompt is required", "prompt")
    if call.prompt is not None and not give("prompt", call.prompt, "prompt"):
        ignored.append("prompt")
    if call.size is not None:
        width, height = give("width", call.size[0], "size"), give("height", call.size[1], "size")
        if not (width or height):
            ignored.append("size")
    batch = give("n", call.n, "n")
    _give_pictures(workflow, call, kind, parameters, files, ignored)
    pictures = {**parameters, **files}.keys() - fields.keys()
    masks = {found.name for found in with_role(workflow, "mask")}
    fields |= {name: "mask" if name in masks else "image" for name in pictures}
    names = {parameter.name: parameter for parameter in workflow.parameters}
    for name, value in call.further.items():
        parameter = names.get(name)
        if parameter is None or name in parameters or (name in _OPENAI_S and not _may_fit(parameter.choices, value)):
            ignored.append(name)
        else:
            parameters[name] = value
    seeds = with_role(workflow, "seed") or [parameter for parameter in workflow.parameters if parameter.seed]
    return Values(parameters, files, tuple(ignored), batch, seeds[0].name if seeds else None, fields)


def _give_pictures(
    workflow: NamedWorkflow,
    call: ImageCall,
    kind: ModelKind,
    parameters: dict[str, Any],
    files: dict[str, str],
    ignored: list[str],
) -> None:
    if kind == "generations":
        if call.images or call.mask != "":
            raise ImageCallError("image must be sent to /v1/images/edits", "image")
        return
    if not call.images:
        raise ImageCallError("image is required", "image")
    places = with_role(workflow, "image")
    if len(call.images) > len(places):
        raise ImageCallError(f"image: {workflow.name} takes {len(places)} at most", "image")
    names = iter(call.image_files)
    for place, image in zip(places, call.images, strict=False):
        if image is None:
            files[place.name] = next(names)
        else:
            parameters[place.name] = image
    if call.mask == "":
        return
    mask = next(iter(with_role(workflow, "mask")), None)
    if mask is None:
        ignored.append("mask")
    elif call.mask_file is not None:
        files[mask.name] = call.mask_file
    else:
        parameters[mask.name] = call.mask


def _may_fit(choices: Sequence[Any] | None, value: Any) -> bool:
    return choices is None or value in choices
