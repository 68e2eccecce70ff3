"""Uploaded files in the lists of nodes: there a user finds what no server has before a prompt names it. Pure."""

from __future__ import annotations

import mimetypes
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from comfyui.workflows.node_definitions import InputSpec, ObjectInfo, declared_inputs, parse_input

# By the option that asks for an upload button: the kinds of media that ComfyUI lists.
_KINDS: Mapping[str, tuple[str, ...]] = {
    "image_upload": ("image",),
    "animated_image_upload": ("image",),
    "video_upload": ("video",),
    "audio_upload": ("audio", "video"),
}
# Its 3D loaders list what lies anywhere below this folder; all others what lies right in the input folder.
_MODELS_BELOW = "3d/"
_MODELS = (".gltf", ".glb", ".obj", ".fbx", ".stl", ".ply", ".spz", ".splat", ".ksplat")
_LATENTS = ".latent"


def with_uploads(object_info: ObjectInfo, names: Sequence[str]) -> dict[str, Any]:
    """The node definitions with uploads as choices of the inputs that take files of their kind.

    Args:
        names: of files of the input folder, with their subfolders.
    """
    if not names:
        return dict(object_info)
    found = dict(object_info)
    for class_type, definition in object_info.items():
        changed: dict[str, dict[str, Any]] = {}
        for section in ("required", "optional"):
            for name, declared in declared_inputs(definition, section).items():
                spec = parse_input(name, declared, required=section == "required")
                more = _missing(spec, names)
                if more:
                    changed.setdefault(section, {})[name] = _with_choices(declared, more)
        if changed:
            inputs = {**definition["input"]}
            for section, ours in changed.items():
                inputs[section] = {**inputs[section], **ours}
            found[class_type] = {**definition, "input": inputs}
    return found


def _missing(spec: InputSpec, names: Sequence[str]) -> list[str]:
    if not spec.is_upload or spec.choices is None or spec.options.get("image_folder", "input") != "input":
        return []
    known: Collection[Any] = {choice for choice in spec.choices if isinstance(choice, str)}
    return [name for name in names if name not in known and _fits(spec, name)]


def _fits(spec: InputSpec, name: str) -> bool:
    ending = f".{name.rpartition('.')[2].lower()}"
    if name.startswith(_MODELS_BELOW):
        return ending in _MODELS and bool(spec.options.get("file_upload"))
    if "/" in name:
        return False
    kinds = [kind for option, listed in _KINDS.items() if spec.options.get(option) for kind in listed]
    if kinds:
        guessed = mimetypes.guess_type(f"file{ending}")[0] or ("image/webp" if ending == ".webp" else "")
        return guessed.partition("/")[0] in kinds
    if ending == _LATENTS or spec.name.lower() == "latent":
        return ending == _LATENTS and spec.name.lower() == "latent"
    # A node pack's own button: the present entries show which files it lists.
    return any(isinstance(choice, str) and choice.lower().endswith(ending) for choice in spec.choices or ())


def _with_choices(declared: Any, more: Sequence[str]) -> list[Any]:
    kind, *rest = declared
    if isinstance(kind, list | tuple):
        return [_joined(kind, more), *rest]
    options = rest[0]
    return [kind, {**options, "options": _joined(options["options"], more)}, *rest[1:]]


def _joined(listed: Sequence[Any], more: Sequence[str]) -> list[Any]:
    """In order, if the list is in order, as in ComfyUI's own nodes."""
    texts = [choice for choice in listed if isinstance(choice, str)]
    is_sorted = len(texts) == len(listed) and texts == sorted(texts)
    return sorted([*texts, *more]) if is_sorted else [*listed, *more]
