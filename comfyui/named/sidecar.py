"""The TOML file beside a workflow that describes its parameters and outputs."""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from comfyui.exceptions import NamedWorkflowUnusableError
from comfyui.named.parameters import NAME, NAME_IS, ROLES
from comfyui.settings import MB

MAX_BYTES = MB
_SHOWN = 5
# The time that the parser takes for a name with dots grows with the square of its parts: 40 KB of them take 20 s. No
# table here is deeper than three.
_MOST_PARTS = 100
_PART = r"""(?:(?<![\w-])[A-Za-z0-9_-]++|"(?:[^"\\\n]|\\.)*+"|'[^'\n]*+')"""
_DEEP_NAME = re.compile(rf"(?:{_PART}[ \t]*+\.[ \t]*+){{{_MOST_PARTS}}}")
_WANTED = "must be a text, a number, true, false, a list or a table"


def _is_name(name: str) -> str:
    if not NAME.fullmatch(name):
        raise ValueError(NAME_IS)
    return name


def _node(value: Any) -> Any:
    """A number as the text that it is in the API format."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _number(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError("must be a finite number")
    return value


def _is_json(value: Any) -> Any:
    """TOML has dates and times, and JSON has not."""
    waiting = [value]
    while waiting:
        part = waiting.pop()
        if isinstance(part, Mapping):
            waiting += part.values()
        elif isinstance(part, list):
            waiting += part
        elif not isinstance(part, str | int | float | bool):
            raise ValueError(f"{_WANTED}, not a {type(part).__name__}")
        elif isinstance(part, float):
            _number(part)
    return value


def _plain(value: Any) -> Any:
    if isinstance(value, list | Mapping):
        raise ValueError("must be a text, a number, true or false")
    return _is_json(value)


Text = Annotated[str, Field(max_length=10_000)]
Name = Annotated[str, AfterValidator(_is_name)]
NodeName = Annotated[str, BeforeValidator(_node), Field(min_length=1, max_length=512)]
Number = Annotated[Any, AfterValidator(_number)]
Value = Annotated[Any, AfterValidator(_is_json)]
Choices = Annotated[list[Annotated[Any, AfterValidator(_plain)]], Field(min_length=1, max_length=10_000)]


class Place(BaseModel):
    """An input of a node; the node by its id or by its title."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    node: NodeName
    input: Annotated[str, Field(min_length=1, max_length=512)] | None = None


class ParameterTable(BaseModel):
    """``[parameters.NAME]``. Without a `node`, it adds to the workflow's own parameter of that name."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    node: NodeName | None = None
    input: Annotated[str, Field(min_length=1, max_length=512)] | None = None
    also: Annotated[list[Place], Field(max_length=100)] = []
    title: Text = ""
    description: Text = ""
    default: Value = None
    minimum: Number | None = None
    maximum: Number | None = None
    choices: Choices | None = None
    required: bool | None = None
    role: Literal[ROLES] | None = None  # type: ignore[valid-type]
    advanced: bool = False


class OutputTable(BaseModel):
    """``[outputs.NAME]``."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    node: NodeName


class Sidecar(BaseModel):
    """The whole file."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    title: Text = ""
    description: Text = ""
    parameters: dict[Name, ParameterTable] = {}
    outputs: dict[Name, OutputTable] = {}


def parse_sidecar(content: bytes, name: str) -> Sidecar:
    """The sidecar in a file.

    Raises:
        NamedWorkflowUnusableError: with `name`, the table and the field that cannot be used.
    """
    try:
        text = content.decode()
    except UnicodeDecodeError:
        raise NamedWorkflowUnusableError(f"{name} must be text in UTF-8") from None
    if _DEEP_NAME.search(text):
        raise NamedWorkflowUnusableError(f"{name} has a dotted name with {_MOST_PARTS} or more parts")
    try:
        return Sidecar.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise NamedWorkflowUnusableError(f"{name} is not TOML: {error}") from None
    except RecursionError:
        raise NamedWorkflowUnusableError(f"{name} is nested too deeply") from None
    except ValidationError as error:
        raise NamedWorkflowUnusableError(f"{name}: {_shown(error)}") from None
    except ValueError:
        raise NamedWorkflowUnusableError(f"{name} has a number with too many digits") from None


def _shown(error: ValidationError) -> str:
    """``[parameters.prompt] minimum: Input should be a valid number``, for the first fields."""
    problems = error.errors(include_url=False, include_input=False)
    shown = []
    for problem in problems[:_SHOWN]:
        place = [str(part) for part in problem["loc"] if part != "[key]"]
        table = f"[{'.'.join(place[:2])}]" if len(place) > 1 else "".join(place)
        field = "".join(f"[{part}]" if part.isdecimal() else f".{part}" for part in place[2:]).lstrip(".")
        words = _no_field(place) if problem["type"] == "extra_forbidden" else problem["msg"]
        shown.append(f"{' '.join(filter(None, (table, field)))}: {words.removeprefix('Value error, ')}")
    return "; ".join(shown)


def _no_field(place: Sequence[str]) -> str:
    """The message for a field that a table does not have: it lists the fields that exist."""
    table: type[BaseModel] = Sidecar
    if len(place) > 1:
        tables: Mapping[str, type[BaseModel]] = {"parameters": ParameterTable, "outputs": OutputTable}
        table = Place if "also" in place[2:-1] else tables[place[0]]
    return f"there is no such field; the fields are {', '.join(table.model_fields)}"
