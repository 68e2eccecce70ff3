"""Outputs that nodes have reported, each with an id: files under any key, and texts. Pure.

An id is made of the job's and of what tells its outputs apart, so that it is the same in any process.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from comfyui import jsonio
from comfyui.merged_files import is_model, is_prompt_id
from comfyui.models import OutputFile
from comfyui.workflows.api_format import node_order

Kind = Literal["image", "video", "audio", "text", "file", "latent"]
"""The contract's closed set."""

_MEDIA: tuple[Kind, ...] = ("image", "video", "audio", "text")
_TEXT = "text/plain; charset=utf-8"
_TEXTS = "text"
_MODELS = "result"
_ID_LENGTH = 16


@dataclass(frozen=True, slots=True)
class JobOutput:
    """A file of a server, or a text, for which `file` is None.

    Attributes:
        name: of the file, without its folders.
        text: the node's text; "" for a file.
    """

    id: str
    node_id: str
    name: str
    content_type: str
    file: OutputFile | None
    text: str = ""

    @property
    def kind(self) -> Kind:
        """Its medium, by the type of its content and not by the key under which the node lists it."""
        if self.name.lower().endswith(".latent"):
            return "latent"
        medium = self.content_type.partition("/")[0]
        return next((kind for kind in _MEDIA if kind == medium), "file")

    def content(self) -> bytes:
        """The bytes of a text, which takes a while for a long one."""
        return self.text.encode("utf-8", "replace")


def outputs_of(prompt_id: str, outputs: Mapping[str, Any]) -> list[JobOutput]:
    """All outputs of a prompt, by node and in their order, each once.

    Args:
        outputs: as ComfyUI's history has them, or of the nodes that have ended so far.
    """
    found: dict[str, JobOutput] = {}
    for node_id in node_order(outputs):
        of_node = outputs[node_id]
        if isinstance(of_node, dict):
            for output in _of_node(prompt_id, node_id, of_node):
                found.setdefault(output.id, output)
    return list(found.values())


def job_of(asset_id: str) -> str | None:
    """The job whose output the id may be; None for an id of an upload."""
    prompt_id, dot, rest = asset_id.partition(".")
    return prompt_id if dot and is_prompt_id(prompt_id) and len(rest) == _ID_LENGTH else None


def _of_node(prompt_id: str, node_id: str, outputs: Mapping[str, Any]) -> Iterator[JobOutput]:
    texts = 0
    for key, items in outputs.items():
        for item in items if isinstance(items, list) else ():
            if (file := _file_of(node_id, key, item)) is not None:
                named = [node_id, file.type, file.subfolder, file.filename]
                name = file.filename.rpartition("/")[2]
                yield JobOutput(_id(prompt_id, named), node_id, name, file.content_type, file)
            elif (text := _text_of(key, item)) is not None:
                texts += 1
                name = f"{node_id.replace(':', '_').replace('/', '_')}_{texts}.txt"
                yield JobOutput(_id(prompt_id, [node_id, texts]), node_id, name, _TEXT, None, text)


def _file_of(node_id: str, key: str, item: Any) -> OutputFile | None:
    if isinstance(item, dict):
        filename = item.get("filename")
        if not isinstance(filename, str) or not filename:
            return None
        return OutputFile(node_id, key, filename, str(item.get("subfolder") or ""), str(item.get("type") or "output"))
    if key == _MODELS and isinstance(item, str) and is_model(item):
        # Nodes that show a model tell its path below the output folder.
        subfolder, _, filename = item.rpartition("/")
        return OutputFile(node_id, key, filename, subfolder, "output")
    return None


def _text_of(key: str, item: Any) -> str | None:
    """A text under any key; under the key for texts a number, too."""
    if isinstance(item, str):
        return item
    if key == _TEXTS and isinstance(item, int | float):
        return jsonio.dumps(item).decode()
    return None


def _id(prompt_id: str, named: list[Any]) -> str:
    return f"{prompt_id}.{hashlib.sha256(jsonio.canonical(named)).hexdigest()[:_ID_LENGTH]}"
