"""Parameters with their types, from the file's description and the node definitions of their inputs. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from comfyui.exceptions import NamedWorkflowUnusableError
from comfyui.named.custom_combo import choices_in
from comfyui.named.nodes import Nodes, medium_of, spelling, spellings_of
from comfyui.named.parameters import MISSING, Found, Kind, Medium, Missing, Parameter, Target
from comfyui.named.values import accepted, meant_by, wanted_of
from comfyui.workflows.needs import FOLDER_INPUTS
from comfyui.workflows.node_definitions import DYNAMIC_COMBO, InputSpec

_KINDS: Mapping[str, Kind] = {"INT": "integer", "FLOAT": "number", "BOOLEAN": "boolean", "STRING": "text"}
_NUMBERS = ("integer", "number")
_SEEDS = frozenset({"seed", "noise_seed"})


@dataclass(frozen=True, slots=True)
class _Type:
    """The type of one input."""

    kind: Kind
    minimum: float | None = None
    maximum: float | None = None
    step: float | None = None
    choices: Sequence[Any] | None = None
    many: bool = False
    medium: Medium | None = None
    seed: bool = False
    multiline: bool = False
    boxed_as: str = ""
    default: Any = MISSING


def typed(found: Found, prompt: Mapping[str, Any], nodes: Nodes) -> Parameter:
    """The parameter that a file names, with the type of the inputs that it goes into.

    Raises:
        NamedWorkflowUnusableError: its inputs have no common type, or the file's description does not fit them.
    """
    kind, *others = [_type_of(found, target, prompt, nodes) for target in found.targets]
    for other in others:
        kind = _both(found, kind, other)
    kind = _narrowed(found, kind)
    own = prompt[found.targets[0].node_id]["inputs"].get(found.targets[0].input, MISSING)
    seed = kind.seed if found.seed is None else found.seed
    role = found.role or (found.name if _fits_role(found.name, kind.kind) else None)
    choices, spellings = (None, {}) if kind.choices is None else nodes.offered(kind.choices)
    parameter = Parameter(
        name=found.name,
        kind=kind.kind,
        targets=found.targets,
        title=found.title,
        description=found.description,
        default=found.default,
        own=kind.default if own is MISSING else own,
        minimum=kind.minimum,
        maximum=kind.maximum,
        step=kind.step,
        choices=choices,
        spellings=spellings,
        many=kind.many,
        medium=kind.medium,
        role=role,
        seed=(seed or role == "seed") and kind.kind == "integer",
        multiline=kind.multiline,
        advanced=found.advanced,
        boxed_as=kind.boxed_as,
    )
    return replace(parameter, required=_is_required(found, parameter), default=_default(found, parameter))


def with_roles(parameters: Sequence[Parameter], found: Sequence[Found]) -> tuple[Parameter, ...]:
    """A name gives a role only if no parameter has that role by its description.

    Raises:
        NamedWorkflowUnusableError: two parameters have one role; only pictures may be several.
    """
    said: dict[str, str] = {}
    for one in found:
        if one.role is not None and one.role != "image":
            other = said.setdefault(one.role, one.name)
            if other != one.name:
                raise NamedWorkflowUnusableError(
                    f"the parameters {other} and {one.name} must not both have the role {one.role}"
                )
    by_name = {one.name: one for one in found}
    return tuple(
        replace(one, role=None)
        if by_name[one.name].role is None and said.get(one.role or "", one.name) != one.name
        else one
        for one in parameters
    )


def _is_required(found: Found, parameter: Parameter) -> bool:
    if found.required is not None:
        return found.required
    if parameter.default is not MISSING or parameter.seed:
        return False
    # A file of the one who wrote the workflow is on no server of ours.
    return parameter.kind == "file" or parameter.own is MISSING


def _default(found: Found, parameter: Parameter) -> Any:
    """The file's default, if it fits."""
    if found.default is MISSING:
        return MISSING
    if parameter.kind == "choice" and parameter.choices is not None and not parameter.many:
        # A model that no server has now may exist tomorrow.
        return parameter.spellings.get(spelling(found.default), found.default)
    if not accepted(parameter, found.default):
        raise NamedWorkflowUnusableError(
            f"the default of the parameter {found.name} {wanted_of(parameter, found.default)}"
        )
    return found.default


def _fits_role(name: str, kind: Kind) -> bool:
    match name:
        case "prompt" | "negative_prompt":
            return kind == "text"
        case "image" | "mask":
            return kind == "file"
        case "width" | "height" | "seed" | "n":
            return kind in _NUMBERS
    return False


def _type_of(found: Found, target: Target, prompt: Mapping[str, Any], nodes: Nodes) -> _Type:
    node = prompt[target.node_id]
    if (choices := choices_in(node, target.input)) is not None:
        return _Type("choice", choices=choices)
    if FOLDER_INPUTS.get(str(node["class_type"])) == target.input:
        # The folders of the servers' inputs, including those of other keys: callers must not see them.
        return _Type("choice")
    own = node["inputs"].get(target.input, MISSING)
    spec = (nodes.specs(node) or {}).get(target.input)
    if spec is None and not nodes.known:
        spec = nodes.well_known(node, target.input)
    kind = _of_literal(own, target.input) if spec is None else _of_spec(spec)
    if target.cast and found.kind is not None:
        # The value is adapted: the input's type does not limit it.
        return _Type(found.kind, default=kind.default)
    is_known = spec is not None and kind.kind != "any"
    return kind if found.kind is None or is_known else replace(kind, kind=found.kind)


def _of_spec(spec: InputSpec) -> _Type:
    options = spec.options
    default = options.get("default", MISSING)
    if spec.is_upload:
        return _Type("file", medium=medium_of(spec))
    if spec.type in ("COMBO", DYNAMIC_COMBO):
        choices = _scalars(spec.choices)
        many = bool(options.get("multiselect") or options.get("multi_select"))
        if default is MISSING and choices:
            default = choices[0]
        return _Type("choice", choices=choices, many=many, default=default)
    kinds = {_KINDS[part] for part in spec.type.split(",") if part in _KINDS}
    if kinds == {"integer", "number"}:
        kinds = {"number"}
    kind: Kind = kinds.pop() if len(kinds) == 1 and all(part in _KINDS for part in spec.type.split(",")) else "any"
    if kind not in ("integer", "number"):
        return _Type(kind, multiline=bool(options.get("multiline")), boxed_as=spec.type, default=default)
    whole = kind == "integer"
    return _Type(
        kind,
        minimum=_limit(options.get("min"), math.ceil if whole else None),
        maximum=_limit(options.get("max"), math.floor if whole else None),
        step=_limit(options.get("step"), None),
        seed=whole and (spec.name in _SEEDS or bool(options.get("control_after_generate"))),
        default=default,
    )


def _scalars(choices: Sequence[Any] | None) -> Sequence[Any] | None:
    """The choices that JSON writes as one value; None if none is known, so that only ComfyUI can check."""
    if not choices:
        return None
    if all(isinstance(choice, str) for choice in choices):
        return choices
    return tuple(choice for choice in choices if _is_scalar(choice)) or None


def _is_scalar(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, str | bool | int)


def _limit(value: Any, rounded: Callable[[float], int] | None) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return value if rounded is None or isinstance(value, int) else rounded(value)


def _of_literal(value: Any, name: str) -> _Type:
    """The type of a workflow's own value, if no server has told the node's definition.

    The editor writes 7.0 as 7, so a whole number may be of either type.
    """
    match value:
        case bool():
            return _Type("boolean")
        case int() if name in _SEEDS:
            return _Type("integer", minimum=0, maximum=2**64 - 1, seed=True)
        case int() | float():
            return _Type("number")
        case str():
            return _Type("text", multiline="\n" in value)
    return _Type("any")


def _both(found: Found, one: _Type, other: _Type) -> _Type:
    """The common type of two inputs that get the same value."""
    kind = one.kind
    if one.kind != other.kind:
        pair = {one.kind, other.kind}
        if "any" in pair:
            return other if one.kind == "any" else one
        if pair == {"integer", "number"}:
            kind = "integer"
        elif "choice" in pair and not (one.many or other.many):
            kind = "choice"
        else:
            raise NamedWorkflowUnusableError(
                f"the parameter {found.name} sets inputs of different types: {one.kind} and {other.kind}"
            )
    choices = one.choices if other.choices is None else other.choices
    if one.choices is not None and other.choices is not None and one.choices is not other.choices:
        shared = {spelling(choice) for choice in other.choices}
        choices = tuple(choice for choice in one.choices if spelling(choice) in shared)
        if not choices:
            raise NamedWorkflowUnusableError(f"the parameter {found.name} sets inputs that have no choice in common")
    return replace(
        one,
        kind=kind,
        minimum=_first(max, one.minimum, other.minimum),
        maximum=_first(min, one.maximum, other.maximum),
        choices=choices,
        seed=one.seed or other.seed,
        multiline=one.multiline or other.multiline,
        medium=one.medium if one.medium == other.medium else "file" if one.medium else None,
    )


def _narrowed(found: Found, kind: _Type) -> _Type:
    """The type with the limits and choices that the file sets within those of the node."""
    if kind.kind in _NUMBERS:
        kind = _within(kind, found.minimum, found.maximum)
    elif found.minimum is not None or found.maximum is not None:
        raise NamedWorkflowUnusableError(
            f"the parameter {found.name} must have no minimum and maximum, because it is not a number"
        )
    if kind.minimum is not None and kind.maximum is not None and kind.minimum > kind.maximum:
        raise NamedWorkflowUnusableError(
            f"the minimum {kind.minimum} of the parameter {found.name} must not be above its maximum {kind.maximum}"
        )
    if found.choices is None:
        return kind
    if kind.kind in ("file", "any"):
        raise NamedWorkflowUnusableError(
            f"the parameter {found.name} must have no choices, because its type is {kind.kind}"
        )
    return _chosen_among(found, kind, found.choices)


def _within(kind: _Type, minimum: float | None, maximum: float | None) -> _Type:
    """The type with these limits, too; those of whole numbers are whole."""
    if kind.kind == "integer":
        minimum = None if minimum is None else math.ceil(minimum)
        maximum = None if maximum is None else math.floor(maximum)
    return replace(kind, minimum=_first(max, kind.minimum, minimum), maximum=_first(min, kind.maximum, maximum))


def _first(better: Callable[[list[float]], float], *limits: float | None) -> float | None:
    """The tighter one of the given limits."""
    known = [limit for limit in limits if limit is not None]
    return better(known) if known else None


def _chosen_among(found: Found, kind: _Type, wanted: Sequence[Any]) -> _Type:
    """The choices of a file as the servers spell them, without those that no server has, unless none would be left."""
    if kind.choices is not None:
        known = spellings_of(kind.choices)
        has = [meant_by(known, one) for one in wanted]
        left = tuple(dict.fromkeys(one for one in has if not isinstance(one, Missing)))
        return replace(kind, choices=left or tuple(wanted))
    plain = Parameter(found.name, kind.kind, found.targets, minimum=kind.minimum, maximum=kind.maximum)
    if bad := [one for one in wanted if not accepted(plain, one)]:
        raise NamedWorkflowUnusableError(f"each choice of the parameter {found.name} {wanted_of(plain, bad[0])}")
    return replace(kind, kind="choice", choices=tuple(wanted), seed=False)
