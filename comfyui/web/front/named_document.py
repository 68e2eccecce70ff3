"""``/openapi.json`` with a path for each named workflow, so that generated clients have its parameters as types.

The parts that all share (headers, every answer, errors) are in the document once, and each operation refers to them. A
document is made once for each change of the workflows and for each set of them that keys may run.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Final

from comfyui import jsonio
from comfyui.named.library import NamedWorkflows
from comfyui.named.parameters import NamedWorkflow
from comfyui.offload import in_thread
from comfyui.web.front.openapi import BYTES, TEXT, Document, Schema

PATH: Final = "/workflows/{name}"
# Sets of workflows that keys may run, of one generation.
_MOST_KEPT = 32
_LONGEST_DEFAULT = 200
_WORD = re.compile(r"[A-Za-z0-9]+")
_OPTIONS: Final[Schema] = {"$ref": "#/components/schemas/RunOptions"}
_OPTIONS_TEXT: Final[Schema] = {
    **TEXT,
    "contentMediaType": "application/json",
    "description": "Options that are not parameters, as a JSON object; see RunOptions.",
}


class NamedDocuments:
    """The documents of one gateway."""

    def __init__(self) -> None:
        self._made: dict[frozenset[str] | None, bytes] = {}
        self._generation: int | None = None
        self._making = asyncio.Lock()

    async def of(
        self, document: Callable[[], Document], named: NamedWorkflows, allowed: frozenset[str] | None
    ) -> bytes:
        """The document as JSON.

        Args:
            document: gives the one without named workflows; it may take a while.
            allowed: names of the workflows that the caller may run; None: all.
        """
        async with self._making:
            listed, generation = named.all(), named.generation
            if generation != self._generation or len(self._made) >= _MOST_KEPT:
                self._made, self._generation = {}, generation
            if (made := self._made.get(allowed)) is None:
                usable = [
                    one for one in listed if isinstance(one, NamedWorkflow) and (allowed is None or one.name in allowed)
                ]
                made = self._made[allowed] = await in_thread(_made, document, usable)
            return made


def _made(document: Callable[[], Document], workflows: Sequence[NamedWorkflow]) -> bytes:
    return jsonio.dumps(with_workflows(document(), workflows))


def with_workflows(document: Document, workflows: Sequence[NamedWorkflow]) -> Document:
    """A document with a path for each workflow; the given one stays as it is."""
    if not workflows:
        return document
    run = document["paths"][PATH]["post"]
    components = document["components"]
    parameters = {
        f"Run-{one['name']}-{one['in']}": one
        for one in run["parameters"]
        if (one["in"], one["name"]) != ("path", "name")
    }
    responses = {f"Run{status}": response for status, response in run["responses"].items()}
    shared = {
        **{
            name: one
            for name, one in run.items()
            if name not in {"operationId", "summary", "description", "requestBody"}
        },
        "parameters": [{"$ref": f"#/components/parameters/{name}"} for name in parameters],
        "responses": {status: {"$ref": f"#/components/responses/Run{status}"} for status in run["responses"]},
    }
    paths, schemas = dict(document["paths"]), dict(components["schemas"])
    for workflow in workflows:
        name = _unused_name(workflow.name, schemas)
        schemas[name] = _of_json(workflow)
        # Without an example, Swagger UI invents a value for every field, with a seed that JavaScript cannot hold.
        as_json = {"schema": {"$ref": f"#/components/schemas/{name}"}, "example": workflow.example}
        content: dict[str, Any] = {"application/json": as_json}
        if any(one.kind == "file" for one in workflow.parameters):
            schemas[f"{name}Form"] = _of_form(workflow)
            content["multipart/form-data"] = {"schema": {"$ref": f"#/components/schemas/{name}Form"}}
        paths[f"/workflows/{workflow.name}"] = {
            "post": {
                **shared,
                "operationId": f"run_{'_'.join(_WORD.findall(name.removeprefix('Run')))}",
                "summary": workflow.title,
                **({"description": workflow.description} if workflow.description else {}),
                "requestBody": {"required": True, "content": content},
            }
        }
    more = {"schemas": schemas, "parameters": parameters, "responses": responses}
    return {**document, "paths": paths, "components": {**components, **more}}


def _unused_name(workflow: str, schemas: Mapping[str, Any]) -> str:
    """The name of a schema, in the form of a class name: two workflows never have the same."""
    words = _WORD.findall(workflow)
    name = "Run" + "".join(word[:1].upper() + word[1:] for word in words)
    taken = {known.lower() for known in schemas} if name in schemas or f"{name}Form" in schemas else ()
    if name.lower() in taken or f"{name}Form".lower() in taken:
        name += hashlib.sha256(workflow.encode()).hexdigest()[:8].capitalize()
    return name


def _of_json(workflow: NamedWorkflow) -> dict[str, Any]:
    properties = {name: _typed(schema) for name, schema in workflow.schema["properties"].items()}
    return {**_object_of(workflow), "properties": {**properties, "$options": _OPTIONS}}


def _of_form(workflow: NamedWorkflow) -> dict[str, Any]:
    """The same as JSON, except that a file is its bytes. A URL is sent as JSON."""
    properties: dict[str, Any] = {}
    for name, schema in workflow.schema["properties"].items():
        is_file = workflow.by_name[name].kind == "file"
        told = {key: schema[key] for key in ("title", "description") if key in schema}
        properties[name] = {**told, **BYTES} if is_file else _typed(schema)
    return {**_object_of(workflow), "properties": {**properties, "$options": _OPTIONS_TEXT}}


def _object_of(workflow: NamedWorkflow) -> dict[str, Any]:
    """All but the properties. Its title would be the name of a class, which two workflows may share."""
    return {
        "type": "object",
        **({"description": workflow.description} if workflow.description else {}),
        **({"required": required} if (required := workflow.schema["required"]) else {}),
        "additionalProperties": False,
    }


def _typed(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of a parameter as generators of clients can read it.

    Its default is told in words: clients would send it, also when the workflow has another one by then.
    """
    typed = dict(schema)
    if "default" in typed:
        default = jsonio.dumps(typed.pop("default")).decode()
        shown = default if len(default) <= _LONGEST_DEFAULT else f"{default[:_LONGEST_DEFAULT]}…"
        typed["description"] = f"{typed.get('description', '')} Default: {shown}".lstrip()
    if typed.get("type") == "array":
        typed["items"] = _typed(typed["items"]) if "items" in typed else {}
    choices = typed.get("enum")
    if choices is None:
        return typed
    if not choices or (not _are_of(choices, str) and not _are_of(choices, int)):
        # No generator has types for none, or for numbers with a fraction.
        del typed["enum"]
        return typed
    names = [_word_of(choice) for choice in choices]
    if len({name.upper() for name in names}) < len(names):
        typed["x-enum-varnames"] = _apart(names)
    return typed


def _are_of(choices: Collection[Any], kind: type) -> bool:
    return all(type(choice) is kind for choice in choices)


def _word_of(choice: Any) -> str:
    """A generator's name for a choice."""
    return "_".join(_WORD.findall(str(choice))) or "EMPTY"


def _apart(names: Sequence[str]) -> list[str]:
    """The same names, of which no two are alike."""
    seen: set[str] = set()
    apart = []
    for index, name in enumerate(names):
        own = name if name.upper() not in seen else f"{name}_{index}"
        while own.upper() in seen:
            own = f"{own}_{index}"
        seen.add(own.upper())
        apart.append(own if own[0].isalpha() else f"VALUE_{own}")
    return apart
