"""Names of output files where many servers are one ComfyUI: the subfolder begins with the id of the file's prompt.

Two servers may each have a file `ComfyUI_00001_.png`. The id says which prompt made the one that is meant, and the
journal on which server that prompt ran. Pure; what ComfyUI itself is asked for has its own subfolder.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

# As the gateway writes each id: a canonical UUID in lower case.
_PROMPT_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
# Some nodes tell the model that they made as a plain path below the output folder, under this key.
_PATHS = "result"
_MODELS = (".obj", ".fbx", ".gltf", ".glb", ".usdz", ".stl", ".ply", ".splat", ".spz", ".ksplat")
# Levels of lists and objects below the outputs of a prompt. ComfyUI's own files are on the third one.
_DEEPEST = 16


class OfPrompt(NamedTuple):
    """What a merged subfolder says: whose file it is, and ComfyUI's own subfolder."""

    prompt_id: str
    subfolder: str


def is_prompt_id(text: str) -> bool:
    """Whether it is spelt as the gateway spells ids. ComfyUI takes any text, and most of it could be a folder."""
    return _PROMPT_ID.fullmatch(text) is not None


def merged_subfolder(prompt_id: str, subfolder: str) -> str:
    """ComfyUI's subfolder of a file of that prompt, as clients are told it."""
    return f"{prompt_id}/{subfolder}" if subfolder else prompt_id


def from_merged(subfolder: str) -> OfPrompt | None:
    """What was merged; None for a subfolder that does not begin with an id. The rest is as it came, unchecked."""
    prompt_id, slash, rest = subfolder.partition("/")
    # Nothing that `merged_subfolder` makes ends there.
    if not is_prompt_id(prompt_id) or (slash and not rest):
        return None
    return OfPrompt(prompt_id, rest)


def to_merged(prompt_id: str, file: Mapping[str, Any]) -> dict[str, Any]:
    """An object that names a file, with its merged subfolder. All other fields stay, in their order."""
    return {**file, "subfolder": merged_subfolder(prompt_id, file.get("subfolder") or "")}


def merged_outputs(prompt_id: str, outputs: Any) -> Any:
    """The outputs of a prompt, or of one node, with merged subfolders. What has no files is the same object.

    Whatever is no file of ComfyUI's stays as it is: outputs of custom nodes may be any JSON.
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
