"""Values of parameters: which ones fit, what is wrong with the others, and their form for ComfyUI. Pure.

A value fits if the JSON Schema of its parameter accepts it. Also accepted: a number, true, false, or a choice that is
not text, each written as text; and a choice whose folders are written as on Windows.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from comfyui.exceptions import BadParameter
from comfyui.limits import short
from comfyui.named.nodes import folded, spelling
from comfyui.named.parameters import MISSING, RANDOM, Missing, Parameter
from comfyui.workflows.api_format import is_link

_WHOLE = re.compile(r"-?[0-9]{1,400}")
_NUMBER = re.compile(r"-?[0-9]{1,400}(?:\.[0-9]{1,400})?(?:[eE][+-]?[0-9]{1,3})?")
_TRUTHS = {"true": True, "false": False}
_MOST_ALLOWED = 100
# A comparison with thousands of long names takes a while; a caller's text may be as long as its body.
_COMPARED = 2000
_LONGEST_COMPARED = 200
_KIND_IS = {
    "text": "a text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "choice": "one of the choices",
    "file": "a file: a URL, a data URI, or base64",
    "any": "a text, a number, true, false, a list or an object",
}


def fitted(parameter: Parameter, value: Any) -> Any | Missing:
    """The value for the workflow, unboxed; `MISSING` if it does not fit.

    A seed to be chosen stays "random". A file is any text that is not empty.
    """
    match parameter.kind:
        case "text":
            return value if isinstance(value, str) else MISSING
        case "integer" | "number":
            return _number(parameter, value)
        case "boolean":
            return value if isinstance(value, bool) else _TRUTHS.get(_lower(value), MISSING)
        case "choice":
            return _choices(parameter, value) if parameter.many else _choice(parameter, value)
        case "file":
            return value if isinstance(value, str) and value else MISSING
    return MISSING if value is None or _is_linkish(value) else value


def accepted(parameter: Parameter, value: Any) -> bool:
    """Whether the JSON Schema accepts the value unchanged, and not as a text that stands for it."""
    found = fitted(parameter, value)
    if isinstance(found, Missing):
        return False
    if parameter.kind in ("integer", "number"):
        return not isinstance(value, str) or (parameter.seed and value == RANDOM)
    if parameter.kind == "boolean":
        return isinstance(value, bool)
    if parameter.kind == "choice":
        pairs = zip(value, found, strict=True) if parameter.many else [(value, found)]
        return all(spelling(one) == spelling(meant) for one, meant in pairs)
    return True


def boxed(parameter: Parameter, value: Any) -> Any:
    """The value as an input of the API format: there a list is a link, so ComfyUI takes one out of a box."""
    if not isinstance(value, list):
        return value
    return {"__type__": "CURVE", "__value__": value} if parameter.boxed_as == "CURVE" else {"__value__": value}


def problem_of(parameter: Parameter, value: Any, schema: Mapping[str, Any]) -> BadParameter:
    """The problem of a value that does not fit; `schema`: of the parameter."""
    if parameter.kind == "choice" and parameter.choices is not None:
        return _no_choice(parameter, value)
    allowed = {name: schema[name] for name in ("type", "minimum", "maximum", "anyOf", "not") if name in schema}
    if parameter.kind == "any" and value is not None:
        return {
            "message": "must not look like a link to a node, because ComfyUI would take it for one",
            "allowed": allowed,
        }
    return {"message": wanted_of(parameter, value), "allowed": allowed}


def wanted_of(parameter: Parameter, value: Any) -> str:
    """``must be a whole number from 1 to 40, not 500``, for a value that does not fit."""
    number = _read_number(parameter, value)
    if parameter.kind in ("integer", "number") and not isinstance(number, Missing):
        return f"must be {_range(parameter)}, not {number}"
    return f"must be {_described(parameter)}, not {_shown(value)}"


def missing(parameter: Parameter, schema: Mapping[str, Any]) -> BadParameter:
    """The problem of a parameter that has to be given."""
    problem: BadParameter = {"message": f"is required and must be {_described(parameter)}"}
    if parameter.choices is not None:
        problem["allowed"] = list(parameter.choices[:_MOST_ALLOWED])
    else:
        problem["allowed"] = {name: schema[name] for name in ("type", "minimum", "maximum") if name in schema}
    return problem


def unknown(name: str, names: Sequence[str]) -> BadParameter:
    """The problem of a name that is no parameter's."""
    listed = ", ".join(names[:_MOST_ALLOWED]) or "none"
    problem: BadParameter = {
        "message": f"there is no such parameter; the parameters are: {listed}",
        "allowed": list(names),
    }
    if (near := closest(name, names)) is not None:
        problem["closest"] = near
        problem["message"] += f"; the closest is {near}"
    return problem


def closest(text: str, among: Iterable[Any]) -> Any | None:
    """The value that is most similar to a text; None if none is similar enough."""
    by_text = {str(one)[:_LONGEST_COMPARED].lower(): one for one, _ in zip(among, range(_COMPARED), strict=False)}
    wanted = text[:_LONGEST_COMPARED].replace("\\", "/").lower()
    if near := difflib.get_close_matches(wanted, by_text, n=1, cutoff=0.5):
        return by_text[near[0]]
    # People write the name of a model without its folder and ending.
    return next((one for shown, one in by_text.items() if wanted and wanted in shown), None)


def _number(parameter: Parameter, value: Any) -> Any | Missing:
    if value == RANDOM and parameter.seed:
        return RANDOM
    number = _read_number(parameter, value)
    if isinstance(number, Missing):
        return MISSING
    if parameter.minimum is not None and number < parameter.minimum:
        return MISSING
    if parameter.maximum is not None and number > parameter.maximum:
        return MISSING
    return number


def _read_number(parameter: Parameter, value: Any) -> Any | Missing:
    """The value, or the number that a text says, as a number of the parameter's kind."""
    if isinstance(value, bool):
        return MISSING
    if isinstance(value, str):
        text = value.strip() if len(value) < 1000 else ""
        if _WHOLE.fullmatch(text):
            return int(text)
        value = float(text) if _NUMBER.fullmatch(text) else None
    if isinstance(value, int):
        return value
    if not isinstance(value, float) or not math.isfinite(value):
        return MISSING
    if parameter.kind == "number":
        return value
    return int(value) if value.is_integer() else MISSING


def _lower(value: Any) -> str:
    return value.strip().lower() if isinstance(value, str) and len(value) < 20 else ""


def _choice(parameter: Parameter, value: Any) -> Any | Missing:
    if parameter.choices is None:
        # No server has said what there is; ComfyUI will.
        return value if isinstance(value, str) else MISSING
    return meant_by(parameter.spellings, value)


def _choices(parameter: Parameter, value: Any) -> Any | Missing:
    if not isinstance(value, list):
        return MISSING
    found = [_choice(parameter, one) for one in value]
    return MISSING if any(isinstance(one, Missing) for one in found) or is_link(found) else found


def meant_by(spellings: Mapping[Any, Any], value: Any) -> Any | Missing:
    """The choice that a caller means; `MISSING` if there is none."""
    if not isinstance(value, str | int | float):
        return MISSING
    found = spellings.get(spelling(value), MISSING)
    if isinstance(found, Missing) and isinstance(value, str) and len(value) <= _COMPARED:
        return spellings.get(folded(value), MISSING)
    return found


def _is_linkish(value: Any) -> bool:
    """True for what ComfyUI would take for a link, or make one of when it opens its box."""
    return is_link(value) or (isinstance(value, Mapping) and "__value__" in value)


def _no_choice(parameter: Parameter, value: Any) -> BadParameter:
    choices = parameter.choices or ()
    wrong = value
    if parameter.many and isinstance(value, list):
        wrong = next((one for one in value if isinstance(_choice(parameter, one), Missing)), value)
    few = ", ".join(short(str(one)) for one in choices[:5])
    more = f" and {len(choices) - 5} more" if len(choices) > 5 else ""
    problem: BadParameter = {
        "message": f"{_shown(wrong)} is not one of the choices: {few}{more}",
        "allowed": list(choices[:_MOST_ALLOWED]),
    }
    if isinstance(wrong, str | int | float) and (near := closest(str(wrong), choices)) is not None:
        problem["closest"] = near
        problem["message"] += f"; the closest is {short(str(near))}"
    return problem


def _described(parameter: Parameter) -> str:
    if parameter.kind in ("integer", "number"):
        return _range(parameter)
    if parameter.kind == "file" and parameter.medium not in (None, "file"):
        return f"a file ({parameter.medium}): a URL, a data URI, or base64"
    return f"a list of {_KIND_IS['choice']}" if parameter.many else _KIND_IS[parameter.kind]


def _range(parameter: Parameter) -> str:
    kind, low, high = _KIND_IS[parameter.kind], parameter.minimum, parameter.maximum
    limits = f" from {low} to {high}" if low is not None and high is not None else ""
    if not limits and (low is not None or high is not None):
        limits = f" of at least {low}" if low is not None else f" of at most {high}"
    return f'{kind}{limits} or "random"' if parameter.seed else f"{kind}{limits}"


def _shown(value: Any) -> str:
    """A value in an error: in short, and never the content of a file."""
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case int() | float():
            return short(str(value))
        case str():
            return repr(short(value))
        case list():
            return "a list"
    return "an object"
