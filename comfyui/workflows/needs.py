"""The needs of a workflow on a server: node classes, and files that nodes let the user choose. Pure.

Workflows that differ only in texts, seeds or sizes have equal needs, so that a result for one holds for all. A server
without a needed class or file cannot run the workflow; only ComfyUI can check the rest.
"""

from __future__ import annotations

import re
import threading
import weakref
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from comfyui.workflows.node_definitions import InputSpec, ObjectInfo, parse_input
from comfyui.workflows.preflight import MODEL_ENDINGS, must_be_listed

_FILE = re.compile(r"[^\n\r\t<>|?*\"]{1,255}\.[A-Za-z0-9]{1,11}")
_URL = re.compile(r"\s*[a-z]{1,10}:", re.IGNORECASE)
_LONGEST = 256


# Inputs of ComfyUI's own nodes that name a folder below its input folder.
FOLDER_INPUTS: Mapping[str, str] = {
    "LoadImageSetFromFolderNode": "folder",
    "LoadImageTextSetFromFolderNode": "folder",
    "LoadImageDataSetFromFolder": "folder",
    "LoadImageTextDataSetFromFolder": "folder",
    "LoadTrainingDataset": "folder_name",
}


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Needs:
    """`files`: class, input and value of each input that names a file, or a folder of inputs. `models`: those that are
    models."""

    classes: frozenset[str]
    files: frozenset[tuple[str, str, str]]
    models: frozenset[str]


_known: weakref.WeakKeyDictionary[Needs, weakref.ref[Needs]] = weakref.WeakKeyDictionary()
_known_lock = threading.Lock()


def _shared(needs: Needs) -> Needs:
    """Equal needs as one object: thousands of jobs that wait are of few kinds, and needs take 0.7 KB each."""
    with _known_lock:
        known = _known.get(needs)
        found = None if known is None else known()
        if found is None:
            found = needs
            _known[needs] = weakref.ref(needs)
        return found


def needs_of(prompt: Mapping[str, Any], placed: Collection[str] = ()) -> Needs:
    """The needs of a workflow in API format. Equal needs in use share one object; thread-safe.

    Args:
        placed: texts that name files which are brought there.
    """
    classes: set[str] = set()
    files: set[tuple[str, str, str]] = set()
    models: set[str] = set()
    for node in prompt.values():
        kind = node["class_type"]
        classes.add(kind)
        for name, value in node.get("inputs", {}).items():
            if not isinstance(value, str) or len(value) > _LONGEST:
                continue
            if value.lower().endswith(MODEL_ENDINGS):
                models.add(folded(value))
            elif value in placed or _URL.match(value):
                continue
            if _FILE.fullmatch(value) or FOLDER_INPUTS.get(kind) == name:
                files.add((kind, name, value))
    return _shared(Needs(frozenset(classes), frozenset(files), frozenset(models)))


def names_folders(prompt: Mapping[str, Any]) -> bool:
    """Whether some input may name something in a folder, which servers of different systems spell differently."""
    return any(_in_folder(value) for node in prompt.values() for value in node.get("inputs", {}).values())


def _in_folder(value: Any) -> bool:
    return isinstance(value, str) and ("/" in value or "\\" in value) and len(value) <= _LONGEST


class Offer:
    """The offer of a server, from its node definitions. Files are compared with their separators folded."""

    def __init__(self, object_info: ObjectInfo) -> None:
        self.object_info = object_info
        self._listed: dict[tuple[str, str], tuple[InputSpec, dict[str, str]] | None] = {}

    def has(self, needs: Needs) -> bool:
        """Whether the server may run a workflow with these needs."""
        if not all(name in self.object_info for name in needs.classes):
            return False
        return not any(self._lacks(*file) for file in needs.files)

    def lacking(self, needs: Needs) -> list[str]:
        """What the server lacks, in words."""
        classes = [f"the node class {name}" for name in sorted(needs.classes) if name not in self.object_info]
        return [*classes, *(f"{file[2]} (for {file[0]})" for file in sorted(needs.files) if self._lacks(*file))]

    def spelled(self, prompt: Mapping[str, Any]) -> Mapping[str, Any]:
        """The workflow with its choices as this server spells them; the same object if nothing differs."""
        changed = {}
        for node_id, node in prompt.items():
            own = {}
            for name, value in node.get("inputs", {}).items():
                listed = self._choices(node["class_type"], name) if _in_folder(value) else None
                spelled = listed[1].get(value, listed[1].get(folded(value), value)) if listed else value
                if spelled != value:
                    own[name] = spelled
            if own:
                changed[node_id] = {**node, "inputs": {**node["inputs"], **own}}
        return {**prompt, **changed} if changed else prompt

    def _lacks(self, kind: str, name: str, value: str) -> bool:
        listed = self._choices(kind, name)
        if listed is None or folded(value) in listed[1]:
            return False
        return not listed[0].is_upload or must_be_listed(listed[0], value)

    def _choices(self, kind: str, name: str) -> tuple[InputSpec, dict[str, str]] | None:
        """The node's choices for that input, by folded names; None if it accepts any text."""
        if (kind, name) not in self._listed:
            spec = _spec_of(self.object_info.get(kind), name)
            if spec is None or spec.choices is None:
                self._listed[kind, name] = None
            else:
                choices = [choice for choice in spec.choices if isinstance(choice, str)]
                # If a server has both spellings, each stands for itself.
                names = {**{folded(choice): choice for choice in choices}, **{choice: choice for choice in choices}}
                self._listed[kind, name] = (spec, names)
        return self._listed[kind, name]


def folded(path: str) -> str:
    """A name as it is compared: servers of different systems write separators in their own way."""
    return path.replace("\\", "/")


def _spec_of(definition: Any, name: str) -> InputSpec | None:
    declared = definition.get("input") if isinstance(definition, Mapping) else None
    if not isinstance(declared, Mapping):
        return None
    for section in ("required", "optional"):
        inputs = declared.get(section)
        if isinstance(inputs, Mapping) and name in inputs:
            return parse_input(name, inputs[name], required=section == "required")
    return None
