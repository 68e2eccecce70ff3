"""Plans which parts of a request are placed in ComfyUI, and where its workflow refers to them. Pure: nothing is read or
sent.

`comfyui.inputs.staging` places the planned items, and returns their names.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from comfyui.exceptions import ComfyUIInputError
from comfyui.inputs.content import Content
from comfyui.inputs.decoding import is_data_uri
from comfyui.limits import DEFAULT_LIMITS, Limits, over
from comfyui.models import InputFile, PromptRequest
from comfyui.named_call import parameter_of
from comfyui.workflows.api_format import LONGEST_PATH, texts_in

# Including blanks and line ends before it, if it was pasted.
_URL = re.compile(r"\s{0,1000}https?://", re.IGNORECASE)
_NONE: Mapping[str, Content] = {}
_NO_UPLOADS: Mapping[str, Upload] = {}


@dataclass(frozen=True, slots=True)
class Upload:
    """A file that a client has uploaded before, to be placed.

    Attributes:
        path: its subfolder and name.
        plain: it may stand under this path in ComfyUI's input folder.
    """

    content: Content
    path: str
    plain: bool


@dataclass(slots=True)
class Item:
    """One input to place: its source, and the places in the workflow that refer to it.

    Attributes:
        where: the field that the caller gave it in, as errors name it.
        references: the ``(node id, input name)`` of upload widgets whose value it is.
        mentions: further inputs that have its name in a text; whether they mean the file is not known.
        plain: to be stored under its own name, too.
        upload: the earlier upload, if it is one.
        parameter: of a named workflow, whose value it is.
    """

    where: str
    source: str | Path | Content
    name: str = ""
    subfolder: str = ""
    references: list[tuple[str, str]] = field(default_factory=list)
    mentions: list[tuple[str, str]] = field(default_factory=list)
    plain: bool = False
    upload: Upload | None = None
    parameter: str = ""

    @property
    def told(self) -> str:
        """Its source, as the caller knows it."""
        return self.parameter or self.where

    @property
    def path(self) -> str:
        return f"{self.subfolder}/{self.name}" if self.subfolder else self.name

    @property
    def is_of_use(self) -> bool:
        """Whether any node can find it: one key's upload has no plain name on a server."""
        return self.upload is None or self.upload.plain or bool(self.references)

    @property
    def fields(self) -> Sequence[str]:
        """All fields that have it: of an input that stands in the workflow itself, one for each reference."""
        return [self.where] if self.name else [field_of(*reference) for reference in self.references]


@dataclass(frozen=True, slots=True)
class Placed:
    """ComfyUI's names of an item: by its content, and its own; empty if it was not stored under that.

    For an upload, `by_content` may be its own name, and its only one.
    """

    by_content: str = ""
    plain: str = ""


def field_of(node_id: str, input_name: str) -> str:
    """An input of the workflow, as errors and jobs name it."""
    return f"prompt.{node_id}.inputs.{input_name}"


def image_field(index: int) -> str:
    """The content of an entry of `images`."""
    return f"images[{index}].image"


def named_by_hash(digest: str) -> str:
    """A text for a content that we keep. Base64 has no colon, so no caller's text looks like it."""
    return f"sha256:{digest}"


def is_url(text: str) -> bool:
    return _URL.match(text) is not None


def is_inline(value: object) -> bool:
    """Whether a value in a workflow is itself an input, if its widget uploads files: a data URI or http(s) URL."""
    return isinstance(value, str) and (is_url(value) or is_data_uri(value))


def has_inline_values(prompt: Mapping[str, Any]) -> bool:
    """Whether any value may be an input to place: only then are the node definitions needed."""
    for node in prompt.values():
        for value in _inputs(node).values():
            if isinstance(value, str) and is_inline(value):
                return True
    return False


def inline_values(prompt: Mapping[str, Any]) -> dict[str, str]:
    """The texts of the workflow that may themselves be inputs, by their field: see `is_inline`.

    Raises:
        ComfyUIInputError: two inputs have one field, by dots in their names.
    """
    found: dict[str, str] = {}
    for node_id, node in prompt.items():
        for input_name, value in _inputs(node).items():
            if is_inline(value):
                where = field_of(node_id, input_name)
                if where in found:
                    raise ComfyUIInputError(
                        "another input has the same path; remove the dots from the names", field=where
                    )
                found[where] = value
    return found


def brought_inputs(
    request: PromptRequest,
    upload_inputs: Sequence[tuple[str, str]],
    files: Collection[str] = (),
    limits: Limits = DEFAULT_LIMITS,
) -> set[tuple[str, str]]:
    """The ``(node id, input name)`` whose file comes with the request; `files`: names of further ones.

    Raises `ComfyUIInputError` and `ComfyUILimitError` as `InputStager.stage` does.
    """
    items = plan(request, upload_inputs, {name: Path(name) for name in files}, limits)
    return {reference for item in items for reference in item.references}


def brought_names(request: PromptRequest, files: Collection[str]) -> set[str]:
    """The names by which a workflow may refer to files that come with it; `files`: those of further inputs."""
    names = set(files)
    for image in request.images:
        names |= {image.name, f"{image.subfolder}/{image.name}"}
    return names


def texts_naming(prompt: Mapping[str, Any], names: Collection[str]) -> set[str]:
    """The texts in a workflow's inputs that mean one of these names."""
    if not names:
        return set()
    values = (value for node in prompt.values() for value in _inputs(node).values())
    return {
        value for value in values if isinstance(value, str) and len(value) <= LONGEST_PATH and path_in(value) in names
    }


def plan(
    request: PromptRequest,
    upload_inputs: Sequence[tuple[str, str]],
    files: Mapping[str, Path | Content],
    limits: Limits,
    kept: Mapping[str, Content] = _NONE,
    uploads: Mapping[str, Upload] = _NO_UPLOADS,
) -> Sequence[Item]:
    """The items to place, each with its references.

    Args:
        files: further inputs by ``name`` or ``subfolder/name``.
        kept: contents that we already have, by their field; they replace the field's value.
        uploads: earlier uploads, by `path_in` of the workflow's text. An input of that name takes precedence.

    Raises:
        ComfyUIInputError: two entries claim one name.
        ComfyUILimitError: there are too many.
    """
    named: dict[str, Item] = {}
    for item in _entries(request, files, kept):
        first = named.setdefault(item.path, item)
        if first.source != item.source:
            reason = f"{first.where} has the same name {item.path!r} but different content"
            raise ComfyUIInputError(reason, field=item.where)
    brought = len(named)
    for text, upload in uploads.items():
        folder, _, name = text.rpartition("/")
        named.setdefault(text, Item(f"upload {text!r}", upload.content, name, folder, upload=upload))
    inline: dict[object, Item] = {}
    for reference in dict.fromkeys(upload_inputs):
        node_id, input_name = reference
        value = _inputs(request.prompt.get(node_id)).get(input_name)
        if not isinstance(value, str):
            continue
        entry = _named(named, value)
        if entry is not None:
            entry.references.append(reference)
        elif is_inline(value):
            where = field_of(node_id, input_name)
            # The same URL is fetched once; a long data URI is not worth its hash, its content is compared later.
            key = value.strip() if is_url(value) else reference
            item = inline.setdefault(key, Item(where, kept.get(where) or value.strip()))
            item.references.append(reference)
    if brought + len(inline) > limits.max_inputs:
        raise over("the request has more than {limit} inputs", limits.max_inputs)
    _mark_plain(request.prompt, named)
    return [*(item for item in named.values() if item.is_of_use), *inline.values()]


def _entries(
    request: PromptRequest, files: Mapping[str, Path | Content], kept: Mapping[str, Content]
) -> Iterator[Item]:
    for index, image in enumerate(request.images):
        where = image_field(index)
        source, parameter = kept.get(where) or image.image.strip(), file_parameter(request, image.name)
        yield Item(where, source, image.name, image.subfolder, parameter=parameter)
    for path, file in files.items():
        folder, _, name = path.rpartition("/")
        try:
            checked = InputFile(name=name, subfolder=folder, image="-")
        except ValidationError as error:
            reason = "the name must be a relative path without '..'"
            raise ComfyUIInputError(reason, field=f"files[{path!r}]") from error
        parameter = file_parameter(request, checked.name)
        yield Item(f"files[{path!r}]", file, checked.name, checked.subfolder, parameter=parameter)


def file_parameter(request: PromptRequest, name: str) -> str:
    """The parameter of a named workflow whose file has this name; "" if a graph was sent."""
    return "" if request.call is None else parameter_of(name)


def _mark_plain(prompt: Mapping[str, Any], named: Mapping[str, Item]) -> None:
    """If a name is (also) used in a way that cannot be rewritten with certainty, the file must be stored under it."""
    for item in named.values():
        item.plain = not item.references
    for node_id, node in prompt.items():
        for input_name, value in _inputs(node).items():
            for text in texts_in(value):
                entry = _named(named, text)
                if entry is not None and (node_id, input_name) not in entry.references:
                    entry.plain = True
                    entry.mentions.append((node_id, input_name))


def _named(named: Mapping[str, Item], value: str) -> Item | None:
    """The entry that `value` refers to. The length is looked at first: hashing an inline video would take a while."""
    return named.get(path_in(value)) if len(value) <= LONGEST_PATH else None


def path_in(value: str) -> str:
    """The path of a file as a loader reads it: without ComfyUI's suffix, and with ``/`` for the folders of Windows.

    For a file outside ComfyUI's input folder, the suffix, such as `` [temp]``, is part of it.
    """
    return value.removesuffix(" [input]").replace("\\", "/")


def _inputs(node: Any) -> Mapping[str, Any]:
    """A node's inputs; empty for a value that is not a node, which the validation will report."""
    inputs = node.get("inputs") if isinstance(node, dict) else None
    return inputs if isinstance(inputs, dict) else {}


def rewritten(prompt: Mapping[str, Any], placed: Sequence[tuple[Item, Placed]]) -> Mapping[str, Any]:
    changed = dict(prompt)

    def change(reference: tuple[str, str], value: Any) -> None:
        node_id, input_name = reference
        node = changed[node_id]
        changed[node_id] = {**node, "inputs": {**node["inputs"], input_name: value}}

    for item, names in placed:
        for node_id, input_name in item.references:
            # A folder of Windows is one of ours by now.
            if names.by_content != item.path or "\\" in changed[node_id]["inputs"][input_name]:
                change((node_id, input_name), names.by_content)
        if names.plain and names.plain != item.path:
            for node_id, input_name in item.mentions:
                value = changed[node_id]["inputs"][input_name]
                change((node_id, input_name), _renamed(value, item.path, names.plain))
    return changed if any(changed[node_id] is not prompt[node_id] for node_id in changed) else prompt


def _renamed(value: Any, old: str, new: str) -> Any:
    """`value` with every text that is the path `old` as `new`, however deep it stands."""
    if isinstance(value, str):
        return new if path_in(value) == old else value
    if isinstance(value, Mapping):
        return {key: _renamed(part, old, new) for key, part in value.items()}
    return [_renamed(part, old, new) for part in value] if isinstance(value, list) else value
