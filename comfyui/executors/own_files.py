"""Which files a user's workflow may read: those that come with it, and those that its key has uploaded.

ComfyUI's nodes accept any name of a file in its folders, and so would give one customer another's pictures. So a
workflow is compared with the node definitions of its server. Files that a custom node reads by itself are not checked.
"""

from __future__ import annotations

import posixpath
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from comfyui.exceptions import ComfyUIValidationError
from comfyui.inputs.plan import brought_names, is_inline, path_in
from comfyui.models import PromptRequest
from comfyui.owners import folder_of
from comfyui.workflows.api_format import LONGEST_PATH, node_title, texts_in, upload_inputs
from comfyui.workflows.needs import FOLDER_INPUTS
from comfyui.workflows.node_definitions import input_specs
from comfyui.workflows.preflight import Problem

_FOLDERS = ("[input]", "[output]", "[temp]")
# Inputs of ComfyUI's own nodes that name files or folders of its input folder without an upload widget.
_UNMARKED: Mapping[str, tuple[str, ...]] = {
    "LoadLatent": ("latent",),
    **{class_type: (name,) for class_type, name in FOLDER_INPUTS.items()},
}
_HOW = "this key has uploaded no file with this name; send the file with the workflow"
_DETAIL = "the workflow names a file that this key has not uploaded and that the request does not contain"


def check_own_files(request: PromptRequest, object_info: Mapping[str, Any], key: str, files: Collection[str]) -> None:
    """Raises the same `ComfyUIValidationError` for a workflow that names another's file and for a file that does not
    exist.

    Args:
        key: the name of the key that submits it.
        files: names of further inputs that come with it.
    """
    messages: dict[str, list[str]] = {}
    for node_id, input_name in _foreign(request, object_info, key, files):
        messages.setdefault(node_id, []).append(f"{input_name}: {_HOW}")
    if messages:
        raise ComfyUIValidationError(_DETAIL, node_errors=messages, codes={"file_not_own"})


def unmarked_files(prompt: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The ``(node id, input name)`` of inputs without an upload widget that name a file of the input folder.

    Any text that ends like ComfyUI's names of such files counts, whatever node has it.
    """
    found = []
    for node_id, node in prompt.items():
        inputs = node.get("inputs") or {}
        unmarked = _UNMARKED.get(node["class_type"], ())
        found += [(node_id, name) for name, value in inputs.items() if name in unmarked or _is_input(value)]
    return found


def _is_input(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= LONGEST_PATH and value.endswith(" [input]")


def _foreign(
    request: PromptRequest, object_info: Mapping[str, Any], key: str, files: Collection[str]
) -> Iterator[tuple[str, str]]:
    prompt = request.prompt
    everything, images = brought_names(request, files), brought_names(request, ())
    named = {*upload_inputs(prompt, object_info), *unmarked_files(prompt)}
    for node_id, node in prompt.items():
        for name, value in (node.get("inputs") or {}).items():
            texts = [text for text in texts_in(value) if text]
            # An upload does not replace a name within a list or an object, such as `__value__`.
            brought = everything if isinstance(value, str) else images
            if (node_id, name) in named:
                wrong = any(not _is_own(text, key, brought) for text in texts)
            else:
                # A node that takes its file's name as plain text also knows ComfyUI's suffixes.
                wrong = any(
                    len(text) <= LONGEST_PATH and text.rstrip().endswith(_FOLDERS) and not _is_own(text, key, brought)
                    for text in texts
                )
            if wrong:
                yield node_id, name


def without_files(object_info: Mapping[str, Any]) -> dict[str, Any]:
    """The node definitions without the names of uploaded files in any list of choices."""
    files = _uploaded(object_info)
    return {class_type: _without(definition, files) for class_type, definition in object_info.items()}


def answer_without_files(answer: Mapping[str, Any], known: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """ComfyUI's refusal for a user: a list of choices that names uploaded files is replaced by its length.

    ComfyUI itself does so with long lists. `known`: the node definitions of the servers.
    """
    files = set[str]().union(*(_uploaded(object_info) for object_info in known))
    error, node_errors = answer.get("error"), answer.get("node_errors")
    if not isinstance(node_errors, dict):
        return dict(answer)
    details = error.get("details") if isinstance(error, dict) else None
    told = {}
    for node_id, node in node_errors.items():
        shown = [_without_choices(one, files) for one in node.get("errors", ())]
        told[node_id] = {**node, "errors": shown}
        for before, after in zip(node.get("errors", ()), shown, strict=True):
            if before is not after and isinstance(details, str):
                details = details.replace(before["details"], after["details"])
    whole = {**error, "details": details} if isinstance(error, dict) else error
    return {**answer, "error": whole, "node_errors": told}


def _without_choices(error: Any, files: Collection[str]) -> Any:
    extra_info = error.get("extra_info") if isinstance(error, dict) else None
    config = extra_info.get("input_config") if isinstance(extra_info, dict) else None
    if not isinstance(extra_info, dict) or not isinstance(config, list) or _without(config, files) == config:
        return error
    choices = config[0] if isinstance(config[0], list) else config[1].get("options", ())
    value = extra_info.get("received_value")
    details = f"{extra_info.get('input_name')}: {value!r} not in (list of length {len(choices)})"
    return {**error, "details": details, "extra_info": {**extra_info, "input_config": None}}


def _uploaded(object_info: Mapping[str, Any]) -> set[str]:
    """Names of uploaded files, as far as upload widgets list them."""
    names: set[str] = set()
    for class_type, definition in object_info.items():
        unmarked = _UNMARKED.get(class_type, ())
        for spec in input_specs(definition):
            if spec.is_upload or spec.name in unmarked:
                names |= {choice for choice in spec.choices or () if isinstance(choice, str)}
    # "None" and similar texts are not files, and also occur in lists of models.
    return {name for name in names if "." in name or "/" in name}


def _without(value: Any, files: Collection[str]) -> Any:
    if isinstance(value, dict):
        return {
            name: "" if name == "default" and isinstance(inner, str) and inner in files else _without(inner, files)
            for name, inner in value.items()
        }
    if isinstance(value, list):
        return [_without(inner, files) for inner in value if not (isinstance(inner, str) and inner in files)]
    return value


def _is_own(text: str, key: str, brought: Collection[str]) -> bool:
    if is_inline(text):
        return True
    # ComfyUI drops the character before the suffix, whatever it is.
    name = text[: -len("?[input]")] if text.endswith("[input]") else text
    # Brought files replace exactly these texts; all others go to ComfyUI unchanged.
    return path_in(text) in brought or (is_below(folder_of(key), name) and not name.endswith(_FOLDERS))


def is_below(folder: str, name: str) -> bool:
    """Whether a path, as ComfyUI may read it, is below a folder."""
    plain = name.replace("\\", "/")
    return posixpath.normpath(plain) == plain and plain.startswith(f"{folder}/") and "\0" not in plain


def as_seen_by(
    key: str,
    problems: Sequence[Problem],
    request: PromptRequest,
    object_info: Mapping[str, Any],
    files: Collection[str],
) -> list[Problem]:
    """The problems of a user's workflow, without names of other callers' files."""
    named = set(upload_inputs(request.prompt, object_info))
    foreign = set(_foreign(request, object_info, key, files))
    kept = [problem for problem in problems if (problem.node_id, problem.input_name) not in named | foreign]
    return [*kept, *(_not_own(request.prompt, *where) for where in sorted(foreign))]


def _not_own(prompt: Mapping[str, Any], node_id: str, input_name: str) -> Problem:
    class_type = prompt[node_id]["class_type"]
    return Problem(node_id, node_title(prompt, node_id), class_type, input_name, "file_not_own", _HOW)
