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
        description="Up to 16 pairs of text by which the job can be found again.",
        json_schema_extra={"additionalProperties": {"type": "string"}},
    ),
]
OwnId = Annotated[
    UUID | None, Field(description="An id of your choice: the same call with the same id does not run again.")
]
Wait = Annotated[
    float | None,
    Field(ge=0, allow_inf_nan=False, description="Seconds to wait for the end at most; the gateway has a limit, too."),
]


class Arguments(Given):
    """Base of the models. An argument that is not listed is refused by name."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class WorkflowArguments(Arguments):
    """A workflow to look at."""

    workflow: JsonObject = Field(
        description="In ComfyUI's API format: an object with a member for each node, by its id: class_type and inputs."
    )
    images: Annotated[list[JsonObject], BeforeValidator(_object_in_text)] = Field(
        default_factory=list,
        description="Input files of any medium: `name`, by which the workflow refers to it, and `image`, its http(s)"
        " URL, data URI or base64.",
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
        description="The workflow's parameters by their names; {} if it needs none. Without them, they are described"
        " and nothing runs.",
    )
    labels: Labels
    prompt_id: OwnId = None
    wait: Wait = None


class JobArguments(Arguments):
    """An action on a job."""

    action: Literal["status", "wait", "result", "cancel", "list"] = Field(
        description="status: how it is now. wait: until it has ended, then its result. result: of a job that has ended."
        " cancel: ends it. list: your jobs, newest first."
    )
    prompt_id: UUID | None = Field(default=None, description="The job's id; for all actions but list.")
    wait: Wait = None
    status: str | None = Field(
        default=None, max_length=100, description="For list: states with commas, such as queued,running."
    )
    limit: int = Field(default=20, ge=1, le=100, description="For list: jobs at most.")
    cursor: str | None = Field(default=None, max_length=512, description="For list: next_cursor of the page before.")


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
