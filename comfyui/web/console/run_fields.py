"""The fields of a named workflow's form: what each parameter looks like to people. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from comfyui.exceptions import BadParameter
from comfyui.inputs.content import Content
from comfyui.named.binding import seeds_of
from comfyui.named.parameters import RANDOM, Medium, Missing, NamedWorkflow, Parameter
from comfyui.named.values import fitted
from comfyui.web.console.pages import size
from comfyui.web.console.run_values import default_of, exact, written
from comfyui.web.console.texts import TEXTS

Control = Literal["line", "text", "number", "seed", "tick", "choice", "search", "several", "file"]

# A list of more choices is searched by typing.
_MOST_IN_A_LIST = 60
# A slider with more steps than that is of no use.
_MOST_STEPS = 100_000
# Browsers count in doubles: a slider would change whole numbers beyond that.
_MOST_EXACT = 2**53
_STEPS_OF_FRACTIONS = 100
_ACCEPTED: Mapping[Medium, str] = {
    "image": "image/*",
    "video": "video/*",
    "audio": "audio/*",
    "3d": ".glb,.gltf,.obj,.fbx,.stl,.ply,.usdz,.splat,.ksplat,.spz",
}


@dataclass(frozen=True, slots=True)
class Slider:
    """The ends and the step of a slider, as its attributes have them."""

    low: str
    high: str
    step: str


@dataclass(frozen=True, slots=True)
class Choice:
    """One of several choices."""

    value: str
    chosen: bool


@dataclass(frozen=True, slots=True)
class Field:
    """One parameter as a field.

    Attributes:
        label: its title, else the words of its name.
        value: as the field has it; of a tick "true" where it is ticked.
        default: what holds where the field is left empty, "" where nothing does.
        limits: what it takes, in words; "" where that goes without saying.
        choices: of a choice, a search and several.
        accept: of a file, which ones a browser offers.
        seeds: of a seed, the lowest and the highest one that is chosen by chance.
        whole: of a number: it has no fraction.
        kept: of a file: one that another job had, in words; it is used where no other is chosen.
        error: what is wrong with the value.
    """

    name: str
    label: str
    description: str
    control: Control
    value: str
    default: str
    limits: str
    required: bool
    advanced: bool
    slider: Slider | None = None
    choices: Sequence[Choice] = ()
    accept: str = ""
    whole: bool = False
    seeds: tuple[int, int] | None = None
    kept: str = ""
    error: str = ""

    @property
    def id(self) -> str:
        """The id of its element."""
        return f"field-{self.name}"


def fields_of(
    workflow: NamedWorkflow,
    given: Mapping[str, Any],
    errors: Mapping[str, BadParameter],
    kept: Mapping[str, Content],
) -> list[Field]:
    """The form of a workflow, in the order of its parameters.

    Args:
        given: values in place of the defaults.
        errors: what was wrong with them.
        kept: by the parameter of a file, what another job had.
    """
    return [_field(workflow, one, given, errors, kept.get(one.name)) for one in workflow.parameters]


def _field(
    workflow: NamedWorkflow,
    parameter: Parameter,
    given: Mapping[str, Any],
    errors: Mapping[str, BadParameter],
    kept: Content | None,
) -> Field:
    name = parameter.name
    default = default_of(parameter, workflow)
    value = given.get(name, default)
    if isinstance(value, Missing):
        value = ""
    control = _control(parameter)
    return Field(
        name=name,
        label=parameter.title or _words(name),
        description=parameter.description,
        control=control,
        value="" if control in ("file", "several") else written(exact(parameter, value)),
        default="" if isinstance(default, Missing) else written(default),
        limits=_limits(parameter),
        required=parameter.required,
        advanced=parameter.advanced,
        slider=_slider(parameter),
        choices=_choices(parameter, value),
        accept=_ACCEPTED.get(parameter.medium or "file", "") if control == "file" else "",
        whole=parameter.kind == "integer",
        seeds=seeds_of(parameter) if parameter.seed else None,
        kept=f"{name}{kept.extension} ({size(kept.size)})" if kept is not None else "",
        error=errors[name]["message"] if name in errors else "",
    )


def _words(name: str) -> str:
    words = name.replace("_", " ").replace("-", " ").strip() or name
    return words[0].upper() + words[1:]


def _control(parameter: Parameter) -> Control:
    match parameter.kind:
        case "text":
            return "text" if parameter.multiline or parameter.role in ("prompt", "negative_prompt") else "line"
        case "integer" | "number":
            return "seed" if parameter.seed else "number"
        case "boolean":
            return "tick"
        case "file":
            return "file"
        case "choice" if parameter.choices is not None:
            if parameter.many:
                return "several"
            return "search" if len(parameter.choices) > _MOST_IN_A_LIST else "choice"
    return "line"


def _choices(parameter: Parameter, value: Any) -> Sequence[Choice]:
    """With the value itself where it is none of them, so that it is seen; the gateway says what is wrong with it."""
    if parameter.choices is None:
        return ()
    if parameter.many:
        found = fitted(parameter, value)
        chosen = {written(one) for one in (() if isinstance(found, Missing) else found)}
    else:
        chosen = {written(exact(parameter, value))} - {""}
    texts = [written(one) for one in parameter.choices]
    if not parameter.many:
        texts += [one for one in chosen if one not in texts]
    return [Choice(text, text in chosen) for text in texts]


def _slider(parameter: Parameter) -> Slider | None:
    low, high, step = parameter.minimum, parameter.maximum, parameter.step
    if parameter.seed or parameter.kind not in ("integer", "number") or low is None or high is None:
        return None
    if parameter.kind == "integer":
        step = max(1, math.floor(step or 1))
    elif not step or step <= 0:
        step = (high - low) / _STEPS_OF_FRACTIONS
    if max(abs(low), abs(high)) > _MOST_EXACT or not step or not 0 < (high - low) / step <= _MOST_STEPS:
        return None
    return Slider(written(low), written(high), written(step))


def _limits(parameter: Parameter) -> str:
    if parameter.kind in ("integer", "number"):
        low, high = parameter.minimum, parameter.maximum
        whole = parameter.kind == "integer"
        said: str
        if low is not None and high is not None:
            said = TEXTS.run.from_to.format(low=written(low), high=written(high))
        elif low is not None:
            said = TEXTS.run.at_least.format(low=written(low))
        elif high is not None:
            said = TEXTS.run.at_most.format(high=written(high))
        else:
            said = ""
        if said:
            said = (TEXTS.run.whole_number if whole else TEXTS.run.number).format(limits=said)
        else:
            said = TEXTS.run.any_whole_number if whole else TEXTS.run.any_number
        return TEXTS.run.or_random.format(limits=said, random=RANDOM) if parameter.seed else said
    if parameter.kind == "file":
        media: Mapping[str, str] = TEXTS.run.media
        return media[parameter.medium or "file"]
    return TEXTS.run.any_value if parameter.kind == "any" else ""
