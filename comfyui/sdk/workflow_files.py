"""The files and arguments of the command line: a workflow, changes to it, input files."""

from __future__ import annotations

import codecs
import difflib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from comfyui.sdk.models import InputFile

_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class UsageError(Exception):
    """The command cannot be meant: exit code 2."""


def read_workflow(name: str) -> dict[str, Any]:
    try:
        content = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
        if content.startswith(_UTF_16):
            raise UsageError(f"{name} is in UTF-16; save it in UTF-8")
        workflow = json.loads(content.decode("utf-8-sig"))
    except OSError as error:
        raise UsageError(f"{name}: {error.strerror or error}") from error
    except ValueError as error:
        raise UsageError(f"{name} is not JSON: {error}") from error
    if not isinstance(workflow, dict):
        raise UsageError(f"{name} has no workflow in API format, which has class_type and inputs for each node id")
    if isinstance(workflow.get("nodes"), list):
        raise UsageError(f"{name} is in the editor's format; export the workflow in ComfyUI with 'Export (API)'")
    return workflow


def with_changes(workflow: dict[str, Any], changes: Sequence[str]) -> dict[str, Any]:
    """`workflow` with each ``node.input=value`` put in; raises UsageError with the closest names there are."""
    for change in changes:
        target, equals, text = change.partition("=")
        node_id, dot, name = target.partition(".")
        if not (equals and dot and node_id and name):
            raise UsageError(f"--set {change}: expected NODE.INPUT=VALUE, such as 6.text='a red fox'")
        node = workflow.get(node_id)
        if not isinstance(node, dict):
            named = {key: f"{key} ({node_title(node)})" for key, node in workflow.items()}
            raise UsageError(f"--set {target}: there is no node {node_id!r}; {_closest(node_id, named)}")
        inputs = node.get("inputs", {})
        if name not in inputs:
            where = f"node {node_id} ({node_title(node)})"
            raise UsageError(f"--set {target}: {where} has no input {name!r}; {_closest(name, dict.fromkeys(inputs))}")
        inputs[name] = _value(text)
    return workflow


def _closest(wanted: str, there: Mapping[str, str | None]) -> str:
    """The names that `wanted` may have been meant for, most likely first; all of them when none is near."""
    near = difflib.get_close_matches(wanted, there, n=3, cutoff=0.5)
    names = [there[name] or name for name in near or there]
    return f"{'did you mean' if near else 'the choices are'} {', '.join(names) or 'none'}{'?' if near else ''}"


def _value(text: str) -> Any:
    def refuse(constant: str) -> NoReturn:
        raise ValueError(constant)

    try:
        return json.loads(text, parse_constant=refuse)  # Python reads NaN and Infinity, which no JSON has
    except ValueError:
        return text


def node_title(node: Any) -> str:
    """The title of a node in the editor; "" if it has none."""
    if not isinstance(node, dict):
        return ""
    meta = node.get("_meta")
    return str((meta.get("title") if isinstance(meta, dict) else None) or node.get("class_type", ""))


def input_file(text: str) -> InputFile:
    name, equals, path = text.partition("=")
    subfolder, _, base = name.rpartition("/")
    if not (equals and base and path):
        raise UsageError(f"--input {text}: expected NAME=FILE, such as photo.png=~/photo.png")
    try:
        return InputFile(base, Path(path).expanduser().read_bytes(), subfolder)
    except OSError as error:
        raise UsageError(f"--input {name}: {path}: {error.strerror or error}") from error
