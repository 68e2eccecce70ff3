"""The values of a call, put into the workflow that it names. Pure: nothing is read or sent.

The security of it: a value goes into an input that holds a value in the workflow, never into one that is linked, and
ComfyUI can take no value for a link.
"""

from __future__ import annotations

import hashlib
import mimetypes
import re
from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from typing import Any
from urllib.parse import urlsplit

from comfyui import jsonio
from comfyui.exceptions import BadParameter, ParametersError
from comfyui.models import InputFile
from comfyui.named.custom_combo import renumber
from comfyui.named.parameters import MISSING, RANDOM, Medium, Missing, NamedWorkflow, Parameter
from comfyui.named.replacing import as_cast, with_fallbacks
from comfyui.named.values import boxed, fitted, missing, problem_of, unknown
from comfyui.named_call import NamedCall, file_name

_NO_FILES: Mapping[str, str] = {}
# The largest integer up to which every program that reads JSON agrees on the value.
_MOST_CHOSEN = 2**53 - 1
# How much of a file's text is hashed in one step: see `comfyui.offload`.
_PIECE = 1 << 20
_ENDING = re.compile(r"(?<=[^/.])\.[A-Za-z0-9]{1,8}$")
_DATA_URI = re.compile(r"\s{0,1000}data:([a-z0-9.+-]{1,100}/[a-z0-9.+-]{1,100})", re.IGNORECASE)
_ENDINGS: Mapping[Medium | None, str] = {"image": ".png", "video": ".mp4", "audio": ".wav", "3d": ".glb"}


@dataclass(frozen=True, slots=True)
class Bound:
    """A call, ready to be run: `prompt` in API format, with the files that its inputs name."""

    prompt: dict[str, Any]
    images: tuple[InputFile, ...]
    call: NamedCall


def bind(
    workflow: NamedWorkflow, values: Mapping[str, Any], *, files: Mapping[str, str] = _NO_FILES, rng: Random
) -> Bound:
    """The workflow with these values. Large values may take a while: see `comfyui.offload.offloaded`.

    Args:
        values: by the names of parameters; null counts as not given.
        files: by parameter the name of a form's file that is kept already, under which the workflow refers to it.
        rng: chooses seeds.

    Raises:
        ParametersError: with every parameter that is wrong.
    """
    given = {name: value for name, value in values.items() if value is not None}
    chosen, problems = _fitted(workflow, given, files)
    if problems:
        raise ParametersError(problems)
    images, bound, used = [], {}, {}
    hashes = {name: _sha256(given[name]) for name in chosen if name in given and workflow.by_name[name].kind == "file"}
    for parameter in workflow.parameters:
        name = parameter.name
        value = chosen.get(name, MISSING)
        if isinstance(value, Missing):
            value = RANDOM if parameter.seed and parameter.default is MISSING else parameter.default
            if isinstance(value, Missing):
                continue
        if parameter.seed and value == RANDOM:
            value = rng.randint(*seeds_of(parameter))
        used[name] = value
        if name in files:
            used[name] = f"file:{files[name]}"
        elif parameter.kind == "file" and (name in chosen or _is_content(value)):
            digest = hashes.get(name) or _sha256(value)
            used[name] = _shown(value, digest)
            image = InputFile(name=file_name(name, digest, _ending(parameter, value)), image=value)
            images.append(image)
            value = image.name
        bound[name] = value
    call = NamedCall(
        name=workflow.name,
        version=workflow.version,
        parameters=_as_given(given, files, hashes),
        used=used,
        ignored=tuple(name for name, value in values.items() if value is None),
        outputs={output.node_id: output.name for output in workflow.outputs},
        digest=_digest(workflow.name, given, files, hashes),
    )
    return Bound(_filled(workflow, bound), tuple(images), call)


def _is_content(default: str) -> bool:
    """Whether the workflow's own default must be fetched or decoded; otherwise it is a file that servers have."""
    return default[:8].lower().startswith(("http://", "https://", "data:"))


def _is_url(text: str) -> bool:
    return text.lstrip()[:8].lower().startswith(("http://", "https://"))


def _shown(value: str, digest: str) -> str:
    """A file's value as records show it: its address without possible secrets, or the hash of its text."""
    if not _is_url(value):
        return f"sha256:{digest}"
    try:
        parts = urlsplit(value.strip())
    except ValueError:
        return "a URL that cannot be read"
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _ending(parameter: Parameter, value: str) -> str:
    """The ending of a file's name, for nodes that use it; the bytes decide if they tell more."""
    if _is_url(value):
        match = _ENDING.search(value.strip().partition("?")[0].partition("#")[0])
        found = match[0].lower() if match else ""
    else:
        match = _DATA_URI.match(value)
        found = mimetypes.guess_extension(match[1].lower()) or "" if match else ""
    return found or _ENDINGS.get(parameter.medium or "file", "")


def _fitted(
    workflow: NamedWorkflow, given: Mapping[str, Any], files: Mapping[str, str]
) -> tuple[dict[str, Any], dict[str, BadParameter]]:
    """The fitting value of each parameter, and the problems of the others."""
    chosen: dict[str, Any] = {}
    problems: dict[str, BadParameter] = {}
    by_name, properties = workflow.by_name, workflow.schema["properties"]
    for name, value in given.items():
        parameter = by_name.get(name)
        if parameter is None:
            problems[name] = unknown(name, list(by_name))
            continue
        fit = fitted(parameter, value)
        if isinstance(fit, Missing):
            problems[name] = problem_of(parameter, value, properties[name])
        else:
            chosen[name] = fit
    for name, file in files.items():
        parameter = by_name.get(name)
        if parameter is None:
            problems[name] = unknown(name, list(by_name))
        elif parameter.kind != "file":
            described = problem_of(parameter, None, properties[name])
            problems[name] = {**described, "message": described["message"].replace("not null", "not a file")}
        elif name in given:
            problems[name] = {"message": "must not be given twice, as a file and as a value"}
        else:
            chosen[name] = file
    for parameter in workflow.parameters:
        name = parameter.name
        if parameter.required and name not in chosen and name not in problems:
            problems[name] = missing(parameter, properties[name])
    return chosen, problems


def seeds_of(parameter: Parameter) -> tuple[int, int]:
    """The lowest and the highest seed that is chosen if none is given."""
    lowest = max(int(parameter.minimum or 0), 0)
    highest = _MOST_CHOSEN if parameter.maximum is None else min(int(parameter.maximum), _MOST_CHOSEN)
    if highest < lowest:
        # All that is allowed is below zero, or beyond what every program reads.
        lowest = int(parameter.minimum or 0)
        highest = lowest if parameter.maximum is None else int(parameter.maximum)
    return lowest, highest


def _filled(workflow: NamedWorkflow, bound: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of the workflow with the values; only nodes that get one are copied."""
    prompt = dict(with_fallbacks(workflow.prompt, workflow.fallbacks, bound))
    copied: dict[str, dict[str, Any]] = {}
    for name, value in bound.items():
        parameter = workflow.by_name[name]
        boxed_value = boxed(parameter, value)
        for target in parameter.targets:
            inputs = copied.get(target.node_id)
            if inputs is None:
                node = prompt[target.node_id]
                inputs = copied[target.node_id] = dict(node["inputs"])
                prompt[target.node_id] = {**node, "inputs": inputs}
            inputs[target.input] = as_cast(boxed_value, target.cast) if target.cast else boxed_value
    for node_id, inputs in copied.items():
        renumber(prompt[node_id]["class_type"], inputs)
    return prompt


def _as_given(given: Mapping[str, Any], files: Mapping[str, str], hashes: Mapping[str, str]) -> dict[str, Any]:
    shown = {name: _shown(value, hashes[name]) if name in hashes else value for name, value in given.items()}
    return {**shown, **{name: f"file:{file}" for name, file in files.items()}}


def _digest(name: str, given: Mapping[str, Any], files: Mapping[str, str], hashes: Mapping[str, str]) -> str:
    """Hash of the name and the given values. The content of a form's file has its own hash elsewhere."""
    values = {**given, **{one: f"sha256:{digest}" for one, digest in hashes.items()}}
    return hashlib.sha256(jsonio.canonical([name, values, sorted(files)])).hexdigest()


def _sha256(text: str) -> str:
    digest = hashlib.sha256()
    for start in range(0, len(text), _PIECE):
        digest.update(text[start : start + _PIECE].encode("utf-8", "surrogatepass"))
    return digest.hexdigest()
