"""Reads the form of a named workflow into values of its parameters, and writes values as a form shows them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from comfyui import jsonio
from comfyui.limits import Limits
from comfyui.named.parameters import MISSING, RANDOM, Missing, NamedWorkflow, Parameter
from comfyui.named.schema import EXAMPLE_ENDINGS
from comfyui.named.values import fitted
from comfyui.web.api.named_bodies import value_of_field

BASE: Final = "$base"
"""The field that has the address of the gateway, as the browser writes it. No parameter has such a name."""
FROM: Final = "$from"
"""The field that has the id of the job whose values the form began with."""
KEPT: Final = "$kept"
"""The field that names each parameter whose file is the one of that job."""
UNSET: Final = "$unset"
"""The field that names each parameter whose own field says nothing where nothing is chosen, as of a tick."""
_ABOUT_THE_FORM = frozenset({BASE, FROM, KEPT, UNSET})

# How a job's record names a file: by its hash, its address, or the name that it has with the job.
_RECORDED = ("sha256:", "http://", "https://", "file:")

# Characters of a text that a page shows again in its field; who sends longer ones has them elsewhere.
_LONGEST_SHOWN = 200_000


def shown_again(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values without very long texts, which would take the event loop long to be written."""
    return {name: value for name, value in values.items() if not isinstance(value, str) or len(value) <= _LONGEST_SHOWN}


def lists_of(workflow: NamedWorkflow) -> dict[str, list[bytes]]:
    """The fields of a form that may come several times, each with its list to be filled."""
    return {UNSET: [], KEPT: [], **{one.name: [] for one in workflow.parameters if one.many}}


def most_parts(workflow: NamedWorkflow) -> int:
    """How many fields a form may have beside one for each parameter."""
    return 1 + sum(1 + (len(one.choices or ()) if one.many else 0) for one in workflow.parameters)


def values_of(
    texts: Mapping[str, str], lists: Mapping[str, Sequence[str]], workflow: NamedWorkflow, limits: Limits
) -> dict[str, Any]:
    """The values by the names of parameters, as a body of `POST /workflows/{name}` has them.

    A field that was left empty is not given, unless it is a text's. A browser writes each end of a line in a text as
    CR LF; a text has LF.

    Args:
        lists: the fields of `lists_of`, as far as they came.
    """
    values: dict[str, Any] = {}
    for name, text in texts.items():
        if name in _ABOUT_THE_FORM:
            continue
        parameter = workflow.by_name.get(name)
        if parameter is not None and parameter.kind == "text":
            values[name] = text.replace("\r\n", "\n")
        elif text or parameter is None:
            values[name] = value_of_field(parameter, text, limits)
    unset = set(lists.get(UNSET, ()))
    for parameter in workflow.parameters:
        if parameter.many:
            if chosen := lists.get(parameter.name):
                values[parameter.name] = list(chosen)
            elif parameter.name in unset and not parameter.required:
                values[parameter.name] = []
        elif parameter.kind == "boolean" and parameter.name in unset:
            values.setdefault(parameter.name, False)
    return values


def values_of_pairs(pairs: Iterable[tuple[str, str]], workflow: NamedWorkflow, limits: Limits) -> dict[str, Any]:
    """As `values_of`, of fields in their order; of several with one name, which may come once, the last."""
    lists: dict[str, list[str]] = {name: [] for name in lists_of(workflow)}
    texts: dict[str, str] = {}
    for name, text in pairs:
        if name in lists:
            lists[name].append(text)
        else:
            texts[name] = text
    return values_of(texts, lists, workflow, limits)


def exact(parameter: Parameter, value: Any) -> Any:
    """The value as the workflow would get it, so that ``"5"`` becomes 5; as it is where it does not fit."""
    found = fitted(parameter, value)
    return value if isinstance(found, Missing) else found


def written(value: Any) -> str:
    """A value as the field of a form has it: a number exactly, a list or an object as JSON."""
    match value:
        case None:
            return ""
        case str():
            return value
        case bool():
            return "true" if value else "false"
        case float():
            return repr(value).removesuffix(".0")
        case int():
            return str(value)
    return jsonio.dumps(value).decode()


def default_of(parameter: Parameter, workflow: NamedWorkflow) -> Any:
    """The default of a parameter, as the schema shows it; `MISSING` if it has none."""
    return workflow.schema["properties"][parameter.name].get("default", MISSING)


def defaults_of(workflow: NamedWorkflow) -> dict[str, Any]:
    """The values of a form that is not filled in."""
    found = {one.name: default_of(one, workflow) for one in workflow.parameters if one.kind != "file"}
    return {name: value for name, value in found.items() if not isinstance(value, Missing)}


def values_and_files(workflow: NamedWorkflow, values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """The values that a program has to send for the same run, and by parameter the names of files.

    Args:
        values: of a file its name. What must be sent, and has no value, has that of an example.
    """
    named: dict[str, Any] = {}
    files: dict[str, str] = {}
    for parameter in workflow.parameters:
        name = parameter.name
        value = values.get(name)
        if value is None and parameter.required:
            value = None if parameter.kind == "file" else workflow.example.get(name)
        if parameter.kind == "file":
            if value and not str(value).startswith(_RECORDED):
                files[name] = str(value)
            elif value or parameter.required:
                files[name] = f"{name}{EXAMPLE_ENDINGS[parameter.medium or 'file']}"
        elif value is not None and not (parameter.seed and value == RANDOM and parameter.default is MISSING):
            named[name] = exact(parameter, value)
    return named, files
