"""The messages for receivers of webhooks in ``/openapi.json``; docs/webhooks.md describes them in words."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from comfyui.answer_json import AnswerTail, FileEntry, HeadWithoutOutputs, PromptAnswer, WorkflowEntry
from comfyui.exceptions import ErrorBody
from comfyui.web.front.openapi import json_of

_Time = Annotated[str, Field(description="When the event occurred, in UTC.", json_schema_extra={"format": "date-time"})]


class ShortAnswer(HeadWithoutOutputs, AnswerTail):
    """The result of a prompt whose `outputs` are too long for a message."""

    images: Annotated[list[FileEntry], Field(description="The files in the order of their nodes.")]


class StartedJob(TypedDict):
    """A job that runs."""

    prompt_id: Annotated[str, Field(json_schema_extra={"format": "uuid"})]
    status: Literal["running"]
    created_at: _Time
    started_at: _Time
    workflow: NotRequired[Annotated[WorkflowEntry, Field(description="Only if a named workflow was called.")]]


class StartMessage(TypedDict):
    """ComfyUI has begun to execute a job."""

    type: Literal["prompt.started"]
    timestamp: _Time
    data: StartedJob


class ResultMessage(TypedDict):
    """A job has a result."""

    type: Literal["prompt.succeeded"]
    timestamp: _Time
    data: PromptAnswer | ShortAnswer


class FailureMessage(TypedDict):
    """A job has ended without a result."""

    type: Literal["prompt.failed", "prompt.canceled", "prompt.lost"]
    timestamp: _Time
    data: ErrorBody


def _header(name: str, description: str) -> dict[str, Any]:
    return {"name": name, "in": "header", "required": True, "schema": {"type": "string"}, "description": description}


WEBHOOKS: Final[dict[str, Any]] = {
    "jobChanged": {
        "post": {
            "operationId": "job_changed",
            "tags": ["prompts"],
            "summary": "A job has begun or ended",
            "description": "Sent to `webhook.url` of a request, and to WEBHOOK_URL, as Standard Webhooks has it.",
            "parameters": [
                _header("webhook-id", "The same at each attempt, so that a receiver can ignore repetitions."),
                _header("webhook-timestamp", "The time of this attempt, in seconds since 1970."),
                _header(
                    "webhook-signature", "`v1,` and the base64 of an HMAC-SHA256; several are separated by spaces."
                ),
            ],
            "requestBody": {
                "required": True,
                "content": {
                    media_type: {"schema": schema}
                    for media_type, schema in json_of(StartMessage, ResultMessage, FailureMessage).items()
                },
            },
            "responses": {
                "2XX": {"description": "The message was received."},
                "410": {"description": "The receiver refuses the message; no further attempt follows."},
                "default": {"description": "The attempt failed; another one follows."},
            },
        }
    }
}
"""The section ``webhooks`` of the document."""
