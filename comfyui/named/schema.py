"""The JSON Schema (2020-12) of parameters, and an example that it takes. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from comfyui.named.parameters import MISSING, RANDOM, Medium, Parameter
from comfyui.named.values import accepted

DIALECT = "https://json-schema.org/draft/2020-12/schema"
NO_LINK: Mapping[str, Any] = {
    "anyOf": [
        {
            "type": "array",
            "minItems": 2,
            "maxItems": 2,
            "prefixItems": [{"type": "string"}, {"type": ["number", "boolean"]}],
        },
        {"type": "object", "required": ["__value__"]},
    ]
}
"""No value may look like this: ComfyUI would take it for a link, or make one of it."""
_EXAMPLE_URL = "https://example.org/"
EXAMPLE_ENDINGS: Mapping[Medium, str] = {
    "image": ".png",
    "video": ".mp4",
    "audio": ".wav",
    "3d": ".glb",
    "file": ".bin",
}


def schema_of(parameters: Sequence[Parameter], *, title: str, description: str = "") -> dict[str, Any]:
    """JSON Schema (2020-12) of an object with these parameters."""
    schema: dict[str, Any] = {"$schema": DIALECT, "title": title, "type": "object"}
    if description:
        schema["description"] = description
    schema["properties"] = {one.name: {**_texts(one), **value_schema(one), **_default_shown(one)} for one in parameters}
    schema["required"] = [one.name for one in parameters if one.required]
    schema["additionalProperties"] = False
    return schema


def value_schema(parameter: Parameter) -> dict[str, Any]:
    """JSON Schema of the values of one parameter."""
    if parameter.choices is not None and parameter.kind == "choice":
        choice = _choice_schema(parameter.choices)
        return {"type": "array", "items": choice, "not": NO_LINK} if parameter.many else choice
    match parameter.kind:
        case "text" | "choice":
            return {"type": "string"}
        case "boolean":
            return {"type": "boolean"}
        case "integer" | "number":
            return _number_schema(parameter)
        case "file":
            return {"type": "string", "minLength": 1, "x-medium": parameter.medium or "file"}
        case _:
            return {"type": ["string", "number", "boolean", "array", "object"], "not": NO_LINK}


def example_of(parameters: Sequence[Parameter]) -> dict[str, Any]:
    """A body that the schema accepts: with everything required, and no special cases."""
    return {one.name: _example(one) for one in parameters if one.required or _is_usual(one)}


def _is_usual(parameter: Parameter) -> bool:
    return not (parameter.advanced or parameter.seed or parameter.kind in ("file", "any"))


def _number_schema(parameter: Parameter) -> dict[str, Any]:
    number: dict[str, Any] = {"type": parameter.kind}
    if parameter.minimum is not None:
        number["minimum"] = parameter.minimum
    if parameter.maximum is not None:
        number["maximum"] = parameter.maximum
    if parameter.seed:
        return {"anyOf": [number, {"type": "string", "const": RANDOM}]}
    return number


def _choice_schema(choices: Sequence[Any]) -> dict[str, Any]:
    schema: dict[str, Any] = {"enum": choices if isinstance(choices, list) else list(choices)}
    return {"type": "string", **schema} if all(isinstance(choice, str) for choice in choices) else schema


def _texts(parameter: Parameter) -> dict[str, Any]:
    """Texts about a parameter for people and programs, besides its type."""
    told: dict[str, Any] = {}
    if parameter.title:
        told["title"] = parameter.title
    words = [parameter.description] if parameter.description else []
    if parameter.kind == "file":
        words.append("A file: a URL, a data URI, or base64.")
    if parameter.seed:
        words.append('Leave it out, or send "random", to have the gateway choose one.')
    if words:
        told["description"] = " ".join(words)
    if parameter.role:
        told["x-role"] = parameter.role
    if parameter.advanced:
        told["x-advanced"] = True
    if parameter.multiline:
        told["x-multiline"] = True
    if parameter.step is not None:
        told["x-step"] = parameter.step
    return told


def _default_shown(parameter: Parameter) -> dict[str, Any]:
    """The value that holds when none is given."""
    if parameter.required:
        return {}
    if parameter.default is not MISSING:
        return {"default": parameter.default}
    if parameter.seed:
        return {"default": RANDOM}
    return {} if parameter.own is MISSING or parameter.kind in ("file", "any") else {"default": parameter.own}


def _example(parameter: Parameter) -> Any:
    if parameter.kind == "file":
        medium = parameter.medium or "file"
        return f"{_EXAMPLE_URL}{parameter.name}{EXAMPLE_ENDINGS[medium]}"
    for value in (parameter.default, parameter.own, *_guesses(parameter)):
        if value is not MISSING and accepted(parameter, value):
            return value
    return "a value"  # of any kind, as text is


def _guesses(parameter: Parameter) -> Sequence[Any]:
    if parameter.choices is not None:
        return [list(parameter.choices[:1])] if parameter.many else parameter.choices[:1]
    if parameter.kind in ("integer", "number"):
        return [value for value in (parameter.minimum, parameter.maximum, 0) if value is not None]
    return (False,) if parameter.kind == "boolean" else ("a text",)
