"""The inputs in ComfyUI's ``/object_info``, in one shape for old and new node definitions.

An input is declared as ``[type, options]``. Choices come in two forms: in the old one the type is the list itself, in
the new one (V3) the type is ``COMBO`` and the list is in ``options``. These functions read nothing but their arguments.

New nodes can also declare inputs that take shape only in a workflow. The inputs that such a declaration stands for have
dotted names:

* ``COMFY_DYNAMICCOMBO_V3``  a choice with inputs of its own behind each option: ``mode``, ``mode.strength``;
* ``COMFY_DYNAMICSLOT_V3``   a socket with inputs that exist while it is linked: ``image``, ``image.strength``;
* ``COMFY_AUTOGROW_V3``      as many like inputs as are linked: ``images.image0``, ``images.image1``, …;
* ``COMFY_DYNAMICGROUP_V3``  as many rows of inputs as the user adds: ``points.0.x``, ``points.0.y``, ``points.1.x``, …
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

ObjectInfo = Mapping[str, Any]

DYNAMIC_COMBO, DYNAMIC_SLOT = "COMFY_DYNAMICCOMBO_V3", "COMFY_DYNAMICSLOT_V3"
AUTOGROW, DYNAMIC_GROUP, MATCH_TYPE = "COMFY_AUTOGROW_V3", "COMFY_DYNAMICGROUP_V3", "COMFY_MATCHTYPE_V3"
_DYNAMIC_TYPES = frozenset({DYNAMIC_COMBO, DYNAMIC_SLOT, AUTOGROW, DYNAMIC_GROUP})
# ComfyUI allows no more names of an autogrow input, and the editor no more rows of a group.
_MAX_GROWN, _MAX_ROWS = 100, 20
# How many classes' inputs are kept, and the most choices of one: definitions that are out of date are among them.
_MOST_MADE, _MOST_CHOICES = 128, 1000

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
        choices: the allowed values, None if the input has no choices or they are not known (a remote list).
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


_made: dict[int, tuple[Mapping[str, Any], tuple[InputSpec, ...]]] = {}
"""By the identity of the definition."""


def parse_input(name: str, declared: Any, *, required: bool) -> InputSpec:
    """One entry of ``input.required`` or ``input.optional``; a malformed one becomes an input of type ``*``."""
    parts = declared if isinstance(declared, list | tuple) and declared else ["*"]
    kind, options = parts[0], parts[1] if len(parts) > 1 and isinstance(parts[1], Mapping) else {}
    if isinstance(kind, list | tuple):
        return InputSpec(name, "COMBO", required, options, tuple(kind), old_style=True)
    if kind == DYNAMIC_COMBO:
        return InputSpec(name, kind, required, options, tuple(_combo_options(options)))
    listed = options.get("options") if kind == "COMBO" else None
    choices = tuple(listed) if isinstance(listed, list | tuple) and not options.get("remote") else None
    return InputSpec(name, str(kind), required, options, choices)


def input_specs(definition: Mapping[str, Any]) -> Sequence[InputSpec]:
    """The inputs of one node class, required ones first, in the order in which the frontend shows them.

    The definition must not be changed later. The inputs of one definition, which a check of a workflow requests four
    times, are computed once: that took half of the time of a check.
    """
    kept = _made.get(id(definition))
    if kept is not None and kept[0] is definition:
        return kept[1]
    specs = tuple(_parsed(definition))
    if sum(len(spec.choices or ()) for spec in specs) <= _MOST_CHOICES:
        if len(_made) >= _MOST_MADE:
            _made.clear()
        _made[id(definition)] = definition, specs  # the definition is kept, so that no other has its identity
    return specs


def _parsed(definition: Mapping[str, Any]) -> Iterator[InputSpec]:
    for section in ("required", "optional"):
        inputs = declared_inputs(definition, section)
        names = [name for name in declared_order(definition, section) if name in inputs]
        for name in [*names, *(name for name in inputs if name not in names)]:
            yield parse_input(name, inputs[name], required=section == "required")


def nested_specs(declared: Any, prefix: str) -> list[InputSpec]:
    """The inputs of a ``{"required": …, "optional": …}`` inside a dynamic input, named with its prefix."""
    sections = declared if isinstance(declared, Mapping) else {}
    return [
        parse_input(f"{prefix}.{name}", entry, required=section == "required")
        for section in ("required", "optional")
        for name, entry in as_mapping(sections.get(section)).items()
    ]


def option_specs(spec: InputSpec, chosen: Any) -> list[InputSpec]:
    """The inputs behind one option of a dynamic combo; none for a value that is no option."""
    options = _combo_options(spec.options)
    return nested_specs(options[chosen], spec.name) if isinstance(chosen, str) and chosen in options else []


def _combo_options(options: Mapping[str, Any]) -> dict[str, Any]:
    listed = options.get("options")
    entries = listed if isinstance(listed, list | tuple) else ()
    return {
        str(entry["key"]): entry.get("inputs") for entry in entries if isinstance(entry, Mapping) and "key" in entry
    }


@dataclass(frozen=True, slots=True)
class Grown:
    """An autogrow input: the inputs that it may stand for, in rows; the first `minimum` rows are always there."""

    rows: Sequence[Sequence[InputSpec]]
    minimum: int


def grown_specs(spec: InputSpec) -> Grown:
    """The inputs that an autogrow input may stand for. Each row repeats the inputs of its template under other
    names.
    """
    template = as_mapping(spec.options.get("template"))
    inputs = nested_specs(template.get("input"), spec.name)
    names = template.get("names")
    listed = [str(name) for name in names] if isinstance(names, list | tuple) else None
    minimum, maximum = _count(template.get("min"), 1), _count(template.get("max"), _MAX_GROWN)
    rows = []
    for row in range(min(len(listed) if listed is not None else maximum, _MAX_GROWN)):
        row_specs = []
        for entry in inputs:
            stem = str(template.get("prefix") or "") if len(inputs) == 1 else entry.name.rsplit(".", 1)[-1]
            name = listed[row] if listed is not None else f"{stem}{row}"
            needed = entry.required and row < minimum
            row_specs.append(replace(entry, name=f"{spec.name}.{name}", required=needed))
        rows.append(row_specs)
    return Grown(rows, minimum)


def group_rows(spec: InputSpec, count: Any) -> list[list[InputSpec]]:
    """The rows of a dynamic group of which `count` were added; at least as many as it always has."""
    wanted = int(count) if isinstance(count, int | float) and not isinstance(count, bool) and abs(count) < 1e6 else 0
    rows = min(max(_count(spec.options.get("min"), 0), wanted), _MAX_ROWS)
    return [nested_specs(spec.options.get("template"), f"{spec.name}.{row}") for row in range(rows)]


def live_specs(definition: Mapping[str, Any], names: Mapping[str, Any]) -> Iterator[InputSpec]:
    """The inputs of a node in a workflow where its inputs are `names`, each name with its value or link.

    A dynamic input stands for what ComfyUI makes of it: a dynamic combo that is not given, or has no such option, and a
    dynamic slot that is not given, stand for themselves only.
    """
    for spec in input_specs(definition):
        yield from _live(spec, names)


def has_dynamic_inputs(definition: Mapping[str, Any]) -> bool:
    """Whether the node's inputs depend on the workflow."""
    return any(spec.type in _DYNAMIC_TYPES for spec in input_specs(definition))


def possible_names(definition: Mapping[str, Any]) -> set[str]:
    """The names of all inputs that a node may have in some workflow, those behind every option included."""
    names: set[str] = set()
    pending = list(input_specs(definition))
    while pending:
        spec = pending.pop()
        names.add(spec.name)
        match spec.type:
            case "COMFY_DYNAMICCOMBO_V3":
                pending += [entry for option in spec.choices or () for entry in option_specs(spec, option)]
            case "COMFY_DYNAMICSLOT_V3":
                pending += nested_specs(spec.options.get("inputs"), spec.name)
            case "COMFY_AUTOGROW_V3":
                pending += [entry for row in grown_specs(spec).rows for entry in row]
    return names


def _live(spec: InputSpec, names: Mapping[str, Any]) -> Iterator[InputSpec]:
    match spec.type:
        case "COMFY_DYNAMICCOMBO_V3":
            yield spec
            inner = option_specs(spec, names.get(spec.name))
        case "COMFY_DYNAMICSLOT_V3":
            yield replace(spec, required=False)
            inner = nested_specs(spec.options.get("inputs"), spec.name) if spec.name in names else []
        case "COMFY_AUTOGROW_V3":
            inner = [entry for row in grown_specs(spec).rows for entry in row if entry.required or entry.name in names]
        case "COMFY_DYNAMICGROUP_V3":
            inner = [entry for row in group_rows(spec, _rows_named(spec.name, names)) for entry in row]
        case _:
            yield spec
            return
    for entry in inner:
        yield from _live(entry, names)


def _rows_named(name: str, names: Collection[str]) -> int:
    """How many rows of a dynamic group the given input names reach."""
    starts = [other[len(name) + 1 :].split(".", 1)[0] for other in names if other.startswith(f"{name}.")]
    return max(
        (int(start) + 1 for start in starts if start.isascii() and start.isdecimal() and len(start) < 4), default=0
    )


def declared_inputs(definition: Mapping[str, Any], section: str) -> Mapping[str, Any]:
    """The inputs of ``required``, ``optional`` or ``hidden``; node packs leave sections out, or fill them oddly."""
    return as_mapping(as_mapping(definition.get("input")).get(section))


def declared_order(definition: Mapping[str, Any], section: str) -> list[str]:
    order = as_sequence(as_mapping(definition.get("input_order")).get(section))
    return [name for name in order if isinstance(name, str)]


def declared_outputs(definition: Mapping[str, Any]) -> Sequence[Any]:
    return as_sequence(definition.get("output"))


def as_mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def as_sequence(value: Any) -> Sequence[Any]:
    """A list as it is; nothing for anything else."""
    return value if isinstance(value, list | tuple) else ()


def _count(value: Any, default: int) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else default
