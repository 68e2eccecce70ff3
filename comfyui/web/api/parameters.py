"""The parameters of a call besides its body: path, query and headers, read into one model for each endpoint.

FastAPI's own way would read a name that it does not know as nothing, and would take a third of a prompt's CPU time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from typing import Any, TypeVar
from urllib.parse import parse_qsl

from fastapi import Request
from pydantic import BaseModel, ConfigDict, ValidationError

from comfyui.exceptions import QueryError, RequestError
from comfyui.web.front.errors import describe_validation
from comfyui.web.front.openapi import given

IN_PATH: dict[str, Any] = {"in": "path"}
IN_HEADER: dict[str, Any] = {"in": "header"}
IN_HEADER_LIST: dict[str, Any] = {"in": "header", "is_list": True}
"""A header that may be given several times, with the same meaning as once with commas."""
_LABEL = "label."
IN_QUERY_LABELS: dict[str, Any] = {
    "style": "form",
    "explode": True,
    "propertyNames": {"pattern": r"^label\."},
}
"""A field with all names of the query that begin with `label.`, by what follows."""

# A query with more pairs is refused unread.
_MOST_PAIRS = 100
# How many refused names are shown, and how many characters of each.
_MOST_NAMED = 3
_SHOWN_NAME = 60
# How alike a known name must be to be offered: node_id is for "node", store is not for "token".
_ALIKE = 0.7


class Parameters(BaseModel):
    """Base of the models: every field is a query parameter, but those that ``json_schema_extra`` puts elsewhere.

    Places are `IN_PATH`, `IN_HEADER`, `IN_HEADER_LIST` and `IN_QUERY_LABELS`; a header's name is its field's alias.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")


class NoParameters(Parameters):
    """The model of an endpoint that reads only its body."""


ParametersT = TypeVar("ParametersT", bound=Parameters)


def read(model: type[ParametersT], request: Request, in_body: Collection[str] = ()) -> ParametersT:
    """The parameters of a request.

    Args:
        in_body: names of the body's fields, so that a client that puts one of them into the query is told.

    Raises:
        QueryError: a name is not known or is given more than once.
        RequestError: a value cannot be used; the text names its parameter.
    """
    scope = request.scope
    places = _places(model)
    values: dict[str, Any] = dict(request.path_params)
    for raw_name, value in scope["headers"] if places.headers else ():
        if (name := places.headers.get(raw_name)) is not None:
            text = value.decode("latin-1")
            if name in values and name not in places.lists:
                raise QueryError(f"{name}: this header must be given only once")
            values[name] = f"{values[name]}, {text}" if name in values else text
    if scope["query_string"]:
        values |= _query(scope["query_string"], places, in_body)
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise RequestError(describe_validation(error.errors(include_url=False, include_input=False))) from None


def described(model: type[Parameters]) -> list[dict[str, Any]]:
    """The ``parameters`` of an operation, as OpenAPI writes them."""
    schema = model.model_json_schema()
    required = schema.get("required", ())
    return [_described(name, field, required=name in required) for name, field in schema["properties"].items()]


def _described(name: str, field: Mapping[str, Any], *, required: bool) -> dict[str, Any]:
    of_parameter = {"in", "is_list", "description", "style", "explode"}
    schema = {key: value for key, value in given(field).items() if key not in of_parameter}
    parameter = {"name": name, "in": field.get("in", "query"), "required": required, "schema": schema}
    parameter |= {key: field[key] for key in ("style", "explode") if key in field}
    return {**parameter, "description": field["description"]} if "description" in field else parameter


@dataclass(frozen=True, slots=True)
class _Places:
    """The sources of a model's fields.

    Attributes:
        query: names in the query.
        headers: by the lower-case bytes that stand there.
        lists: headers that may be given several times.
        labels: the field for the query's labels, if there is one.
    """

    query: tuple[str, ...]
    headers: Mapping[bytes, str]
    lists: frozenset[str]
    labels: str | None


@lru_cache
def _places(model: type[Parameters]) -> _Places:
    names: dict[str, list[str]] = {"path": [], "header": [], "query": []}
    labels = None
    for parameter in described(model):
        if parameter.get("explode"):
            labels = parameter["name"]
        else:
            names[parameter["in"]].append(parameter["name"])
    fields = model.model_json_schema()["properties"].items()
    lists = frozenset(name for name, field in fields if "is_list" in field)
    return _Places(tuple(names["query"]), {name.lower().encode(): name for name in names["header"]}, lists, labels)


def _query(query: bytes, places: _Places, in_body: Collection[str]) -> dict[str, Any]:
    known: Collection[str] = places.query
    try:
        pairs = parse_qsl(query.decode("latin-1"), keep_blank_values=True, max_num_fields=_MOST_PAIRS)
    except ValueError:
        raise QueryError(f"the query has more than {_MOST_PAIRS} parameters") from None
    values: dict[str, Any] = dict(pairs)
    labels = [name for name in values if places.labels is not None and name.startswith(_LABEL)]
    known = [*known, *labels] if labels else known
    # A label may be empty, and may be looked for.
    if len(values) == len(pairs) and all(name in known and (value or name in labels) for name, value in pairs):
        return values if places.labels is None else _with_labels(values, labels, places.labels)
    counts = Counter(name for name, _ in pairs)
    wrong = [_unknown(name, known, in_body) for name in counts if name not in known]
    wrong += [f"{name}: this parameter must be given only once" for name in known if counts[name] > 1]
    if wrong:
        more = f"; and {len(wrong) - _MOST_NAMED} more" if len(wrong) > _MOST_NAMED else ""
        raise QueryError("; ".join(wrong[:_MOST_NAMED]) + more)
    empty = [name for name, value in pairs if not value and name not in labels]
    raise RequestError("; ".join(f"{name} must not be empty; give a value, or leave {name} out" for name in empty))


def _with_labels(values: dict[str, Any], labels: Collection[str], field: str) -> dict[str, Any]:
    found = {name.removeprefix(_LABEL): values.pop(name) for name in labels}
    return {**values, field: found}


def _unknown(name: str, known: Collection[str], in_body: Collection[str]) -> str:
    shown = name[:_SHOWN_NAME]
    shown = shown if shown.isprintable() and shown else repr(shown)
    told = f"{shown}: there is no such query parameter"
    if name in in_body:
        return f"{told}; send it as a field of the body"
    if closest := get_close_matches(shown.casefold(), known, 1, _ALIKE):
        return f"{told}; did you mean {closest[0]}?"
    return (
        f"{told}; the parameters are {', '.join(known)}" if known else f"{told}; this endpoint has no query parameters"
    )
