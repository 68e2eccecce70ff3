"""Names of output files if many servers appear as one ComfyUI: the subfolder begins with the id of the file's prompt.

Two servers may each have a file `ComfyUI_00001_.png`. The id says which prompt made the file, and the journal says on
which server that prompt ran. Pure functions; ComfyUI itself is always asked with its own subfolder.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

# The form in which the gateway writes each id: a canonical UUID in lower case.
_PROMPT_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
# Some nodes report the model that they made as a plain path below the output folder, under this key.
_PATHS = "result"
_MODELS = (".obj", ".fbx", ".gltf", ".glb", ".usdz", ".stl", ".ply", ".splat", ".spz", ".ksplat")
# How many levels of lists and objects below a prompt's outputs are searched. ComfyUI's own files are on the third one.
_DEEPEST = 16


class OfPrompt(NamedTuple):
    """The contents of a merged subfolder: the prompt of the file, and ComfyUI's own subfolder."""

    prompt_id: str
    subfolder: str


def is_prompt_id(text: str) -> bool:
    """Whether the text is spelt as the gateway spells ids. ComfyUI takes any text, and most of it could be a folder."""
    return _PROMPT_ID.fullmatch(text) is not None


def merged_subfolder(prompt_id: str, subfolder: str) -> str:
    """ComfyUI's subfolder of a file of that prompt, as clients see it."""
    return f"{prompt_id}/{subfolder}" if subfolder else prompt_id


def from_merged(subfolder: str) -> OfPrompt | None:
    """The parts of a merged subfolder; None for one that does not begin with an id. The rest is unchecked."""
    prompt_id, slash, rest = subfolder.partition("/")
    # `merged_subfolder` makes nothing that ends like this.
    if not is_prompt_id(prompt_id) or (slash and not rest):
        return None
    return OfPrompt(prompt_id, rest)


def to_merged(prompt_id: str, file: Mapping[str, Any]) -> dict[str, Any]:
    """An object that names a file, with its merged subfolder. All other fields stay, in their order."""
    return {**file, "subfolder": merged_subfolder(prompt_id, file.get("subfolder") or "")}


def merged_outputs(prompt_id: str, outputs: Any) -> Any:
    """The outputs of a prompt, or of one node, with merged subfolders. An object without files is returned itself.

    Everything that is no file of ComfyUI's stays as it is: outputs of custom nodes may be any JSON.
    """
    return _merged(prompt_id, outputs, 0)


def _merged(prompt_id: str, value: Any, depth: int, key: str = "") -> Any:
    if depth > _DEEPEST:
        return value
    if isinstance(value, dict):
        inner = {name: _merged(prompt_id, one, depth + 1, name) for name, one in value.items()}
        if _is_file(value):
            return to_merged(prompt_id, inner)
        return inner if any(inner[name] is not value[name] for name in value) else value
    if isinstance(value, list):
        items = [_merged_item(prompt_id, one, depth + 1, key) for one in value]
        return items if any(after is not before for after, before in zip(items, value, strict=True)) else value
    return value


def _merged_item(prompt_id: str, item: Any, depth: int, key: str) -> Any:
    if isinstance(item, str):
        return f"{prompt_id}/{item}" if key == _PATHS and is_model(item) else item
    return _merged(prompt_id, item, depth)


def _is_file(value: Mapping[str, Any]) -> bool:
    filename, subfolder = value.get("filename"), value.get("subfolder")
    return isinstance(filename, str) and bool(filename) and (subfolder is None or isinstance(subfolder, str))


def is_model(path: str) -> bool:
    """Whether it is the path of a model below the output folder."""
    return path.lower().endswith(_MODELS) and not path.startswith(("/", "\\")) and ":" not in path
