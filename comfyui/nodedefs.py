"""What ComfyUI's ``/object_info`` says of a node's inputs, in one shape for old and new node definitions.

An input is declared as ``[type, options]``. Choices come in two forms: the old one has the list itself as the type, the
new one (V3) has the type ``COMBO`` and the list under ``options``. Nothing here reads more than it is given.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

ObjectInfo = Mapping[str, Any]

# Options by which a node asks the frontend for an upload button; the value is then a file below ComfyUI's input folder.
_UPLOAD_OPTIONS = ("image_upload", "animated_image_upload", "video_upload", "audio_upload", "file_upload", "upload")
# Types whose widget records a file and sends its name.
_RECORDING_TYPES = frozenset({"WEBCAM", "AUDIO_RECORD"})
# Some node packs add their upload button by script and declare a bare list of the input folder's files.
_MEDIA_INPUT_NAMES = frozenset({"image", "images", "mask", "video", "audio", "gif", "file", "latent"})
_MEDIA_ENDINGS = (
    *(".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".exr"),
    *(".mp4", ".webm", ".mkv", ".mov", ".avi", ".m4v"),
    *(".wav", ".mp3", ".flac", ".ogg", ".opus", ".m4a", ".aac"),
    ".latent",
)


@dataclass(frozen=True, slots=True)
class InputSpec:
    """One declared input of a node class.

    Attributes:
        type: the type's name; ``COMBO`` for both forms of choices.
        choices: what may be chosen, None when the input is no choice or its choices are not known (a remote list).
        old_style: the choices were declared as a bare list, which ComfyUI checks in every version.
    """

    name: str
    type: str
    required: bool
    options: Mapping[str, Any]
    choices: tuple[Any, ...] | None = None
    old_style: bool = False

    @property
    def is_upload(self) -> bool:
        """True when the value names a file that a user uploads, whatever its medium."""
        if self.type in _RECORDING_TYPES or any(self.options.get(option) for option in _UPLOAD_OPTIONS):
            return True
        if self.choices is None or self.name.lower() not in _MEDIA_INPUT_NAMES:
            return False
        return all(isinstance(choice, str) and choice.lower().endswith(_MEDIA_ENDINGS) for choice in self.choices)


def parse_input(name: str, declared: Any, *, required: bool) -> InputSpec:
    """One entry of ``input.required`` or ``input.optional``; a malformed one becomes an input of type ``*``."""
    parts = declared if isinstance(declared, list | tuple) and declared else ["*"]
    kind, options = parts[0], parts[1] if len(parts) > 1 and isinstance(parts[1], Mapping) else {}
    if isinstance(kind, list | tuple):
        return InputSpec(name, "COMBO", required, options, tuple(kind), old_style=True)
    listed = options.get("options") if kind == "COMBO" else None
    choices = tuple(listed) if isinstance(listed, list | tuple) and not options.get("remote") else None
    return InputSpec(name, str(kind), required, options, choices)


def input_specs(definition: Mapping[str, Any]) -> Iterator[InputSpec]:
    """The inputs of one node class, required ones first, in the order in which the frontend shows them."""
    declared = definition.get("input") or {}
    order = definition.get("input_order") or {}
    for section in ("required", "optional"):
        inputs = declared.get(section) or {}
        names = [name for name in order.get(section) or () if name in inputs]
        for name in [*names, *(name for name in inputs if name not in names)]:
            yield parse_input(name, inputs[name], required=section == "required")
