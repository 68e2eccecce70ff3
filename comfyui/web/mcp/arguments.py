"""The arguments of our own tools, and the JSON Schema of them for clients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar
from uuid import UUID

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from comfyui import jsonio
from comfyui.exceptions import JSONError, RequestError
from comfyui.models import Given
from comfyui.web.front.errors import describe_validation
from comfyui.web.front.openapi import given

_T = TypeVar("_T", bound=BaseModel)
# Longest text that may stand for an object: a longer one is refused unread.
_LONGEST_TEXT = 2_000_000


def _object_in_text(value: Any) -> Any:
    """Models write an object as its text now and then."""
    if isinstance(value, str) and len(value) <= _LONGEST_TEXT and value.lstrip()[:1] in {"{", "["}:
        try:
            return jsonio.loads(value)
        except JSONError:
            return value
    return value


JsonObject = Annotated[dict[str, Any], BeforeValidator(_object_in_text)]
Labels = Annotated[
    JsonObject,
    Field(
        default_factory=dict,
        description="Up to 16 pairs of texts, by which the job can be found again.",
        json_schema_extra={"additionalProperties": {"type": "string"}},
    ),
]
OwnId = Annotated[
    UUID | None, Field(description="An id of your choice: the same call with the same id does not run again.")
]
Wait = Annotated[
    float | None,
    Field(ge=0, allow_inf_nan=False, description="The most seconds to wait for the end; the gateway also has a limit."),
]


class Arguments(Given):
    """Base of the models. An argument that is not listed is refused by name."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class WorkflowArguments(Arguments):
    """A workflow to look at."""

    workflow: JsonObject = Field(
        description="The workflow in ComfyUI's API format: an object that has class_type and inputs for each node id."
    )
    images: Annotated[list[JsonObject], BeforeValidator(_object_in_text)] = Field(
        default_factory=list,
        description="Input files of any medium. `name` is the file's name in the workflow; `image` is its http(s) URL,"
        " data URI or base64.",
        json_schema_extra={
            "items": {
                "type": "object",
                "properties": {"name": {"type": "string"}, "image": {"type": "string"}},
                "required": ["name", "image"],
            }
        },
    )


class RunWorkflow(WorkflowArguments):
    """A workflow to run."""

    labels: Labels
    prompt_id: OwnId = None
    wait: Wait = None


class RunNamed(Arguments):
    """A named workflow to run, or to describe."""

    name: str | None = Field(
        default=None,
        max_length=64,
        description="The workflow's name. Without it, the tool lists all names and runs nothing.",
    )
    parameters: JsonObject | None = Field(
        default=None,
        description="The workflow's parameters by name; {} if it needs none. If they are left out, the tool describes"
        " them and runs nothing.",
    )
    labels: Labels
    prompt_id: OwnId = None
    wait: Wait = None


class JobArguments(Arguments):
    """An action on a job."""

    action: Literal["status", "wait", "result", "cancel", "list"] = Field(
        description="status: the job's status now. wait: wait for its end, then return its result. result: the result"
        " of an ended job. cancel: end the job. list: your jobs, newest first."
    )
    prompt_id: UUID | None = Field(default=None, description="The job's id, for all actions except list.")
    wait: Wait = None
    status: str | None = Field(
        default=None, max_length=100, description="For list: states, separated by commas, such as queued,running."
    )
    limit: int = Field(default=20, ge=1, le=100, description="For list: the most jobs to return.")
    cursor: str | None = Field(
        default=None, max_length=512, description="For list: the next_cursor of the previous page."
    )


def read(model: type[_T], arguments: Mapping[str, Any]) -> _T:
    """Raises `RequestError`, which names each argument that cannot be used."""
    try:
        return model.model_validate(dict(arguments))
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)
        raise RequestError(describe_validation(found)) from None


def schema_of(model: type[BaseModel]) -> dict[str, Any]:
    """The schema for clients: an object with plain members, because some clients know no `anyOf`."""
    made = model.model_json_schema()
    properties = {name: given(field) for name, field in made["properties"].items()}
    required = {"required": made["required"]} if "required" in made else {}
    return {"type": "object", "properties": properties, **required, "additionalProperties": False}
