"""`/workflows`: named workflows, their parameters, and their runs.

The endpoints take the request alone: `comfyui.web.api.door` calls them, and FastAPI only describes them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from pydantic import Field
from typing_extensions import TypedDict

from comfyui.exceptions import (
    ComfyUIConnectionError,
    ComfyUIError,
    ComfyUIServerError,
    NamedWorkflowForbiddenError,
    NamedWorkflowNotFoundError,
    NamedWorkflowUnusableError,
    RequestError,
)
from comfyui.models import PromptRequest
from comfyui.named.parameters import MISSING, NamedWorkflow, Unusable
from comfyui.web.api.answers import result_answer
from comfyui.web.api.bodies import Submission
from comfyui.web.api.jobs import pending_answer
from comfyui.web.api.named_bodies import named_submission
from comfyui.web.api.named_runs import OPTIONS, RunOptions, know_nodes, named_of, seen_files
from comfyui.web.api.parameters import IN_PATH, NoParameters, Parameters, described, read
from comfyui.web.api.submitting import SubmitCall, Submitting
from comfyui.web.api.workflows import ServerValidation, validation_reports
from comfyui.web.front.errors import json_response
from comfyui.web.front.gateway_state import gateway_of
from comfyui.web.front.openapi import PROMPT_STATUS, Answer, json_of, operation
from comfyui.web.front.openapi import named as named_type

router = APIRouter(default_response_class=Response)
_TAG = "named workflows"

Name = Annotated[str, Field(max_length=64, json_schema_extra=IN_PATH)]


class NamedSubmitCall(SubmitCall):
    """The parameters of a POST, besides its body."""

    name: Name


class NamedCallOf(Parameters):
    """The workflow in the path."""

    name: Name


class WorkflowSummary(TypedDict):
    """A named workflow in a list."""

    name: str
    title: str
    description: str
    version: Annotated[str, Field(description="The SHA-256 of the workflow's files; empty if they cannot be read.")]
    parameters: list[str]
    outputs: Annotated[
        list[str],
        Field(description="The names of its outputs; if empty, a result has the files of all output nodes."),
    ]
    problem: Annotated[str | None, Field(description="Why the workflow cannot be called; null if it can.")]


class WorkflowList(TypedDict):
    """The named workflows that the caller may run."""

    workflows: list[WorkflowSummary]


class WorkflowOutput(TypedDict):
    """An output by its name."""

    name: str
    node_id: str


class WorkflowDetails(TypedDict):
    """A named workflow with all that it takes."""

    name: str
    title: str
    description: str
    version: Annotated[str, Field(description="The SHA-256 of the workflow's files.")]
    parameters: Annotated[Mapping[str, Any], Field(description="The JSON Schema (2020-12) of a body for POST.")]
    outputs: Annotated[
        list[WorkflowOutput],
        Field(description="The outputs; if empty, a result has the files of all output nodes."),
    ]
    example: Annotated[Mapping[str, Any], Field(description="An example of a body for POST.")]
    warnings: Annotated[list[str], Field(description="Warnings about the workflow's files.")]
    servers: Annotated[
        list[ServerValidation],
        Field(description="What each server lacks to run the workflow with its default values."),
    ]


@router.get(
    "/workflows",
    summary="List named workflows",
    openapi_extra=operation(
        "list_workflows",
        {200: Answer("The workflows that the caller may run, sorted by name.", json_of(WorkflowList))},
        (RequestError,),
        tag=_TAG,
    ),
)
async def list_workflows(request: Request) -> Response:
    """The files of WORKFLOWS_DIR. One that cannot be used is listed with its reason."""
    read(NoParameters, request)
    await know_nodes(gateway_of(request))
    return json_response(200, WorkflowList(workflows=[_summary(one) for one in seen_files(request)]))


@router.get(
    "/workflows/{name}",
    summary="The parameters of a named workflow",
    openapi_extra=operation(
        "show_workflow",
        {200: Answer("Its parameters, its outputs, and the servers that can run it.", json_of(WorkflowDetails))},
        (
            RequestError,
            NamedWorkflowForbiddenError,
            NamedWorkflowNotFoundError,
            NamedWorkflowUnusableError,
            ComfyUIConnectionError,
        ),
        parameters=described(NamedCallOf),
        tag=_TAG,
    ),
)
async def show_workflow(request: Request) -> Response:
    """Parameters as JSON Schema, an example of a body, and what each server lacks."""
    name = read(NamedCallOf, request).name
    await know_nodes(gateway_of(request))
    workflow = named_of(request, name)
    details = WorkflowDetails(
        name=workflow.name,
        title=workflow.title,
        description=workflow.description,
        version=workflow.version,
        parameters=workflow.schema,
        outputs=[WorkflowOutput(name=one.name, node_id=one.node_id) for one in workflow.outputs],
        example=workflow.example,
        warnings=list(workflow.warnings),
        servers=await _servers(request, workflow),
    )
    return json_response(200, details)


@router.post(
    "/workflows/{name}",
    summary="Run a named workflow and wait for its files",
    openapi_extra=operation(
        "run_workflow",
        {200: result_answer(), 202: pending_answer()},
        (ComfyUIError,),
        headers=(PROMPT_STATUS,),
        parameters=described(NamedSubmitCall),
        body={
            "application/json": {
                "type": "object",
                "properties": {OPTIONS: named_type(RunOptions)},
                "additionalProperties": True,
            },
            "multipart/form-data": {"type": "object", "additionalProperties": True},
        },
        tag=_TAG,
    ),
)
async def run_workflow(request: Request) -> Response:
    """The body has the parameters by their names; `$options` has further fields of the body of `/prompt_sync`.

    Query, headers and answers are those of `POST /prompt_sync`.
    """
    asked = read(NamedSubmitCall, request)
    await know_nodes(gateway_of(request))
    workflow = named_of(request, asked.name)
    submitting = Submitting.of(request, asked)
    with await named_submission(request, submitting, workflow) as submitted:
        return await submitting.answer(submitted)


def _summary(one: NamedWorkflow | Unusable) -> WorkflowSummary:
    if isinstance(one, Unusable):
        return WorkflowSummary(
            name=one.name,
            title=one.name,
            description="",
            version=one.version,
            parameters=[],
            outputs=[],
            problem=one.problem,
        )
    return WorkflowSummary(
        name=one.name,
        title=one.title,
        description=one.description,
        version=one.version,
        parameters=[parameter.name for parameter in one.parameters],
        outputs=[output.name for output in one.outputs],
        problem=None,
    )


async def _servers(request: Request, workflow: NamedWorkflow) -> list[ServerValidation]:
    """The problems of the workflow's own file on each server that answers; none if no server answers."""
    try:
        reports = await validation_reports(request, Submission(PromptRequest(prompt=dict(workflow.prompt))))
    except (ComfyUIConnectionError, ComfyUIServerError):
        return []
    # Values that a call must bring are missing on no server.
    brought = {
        (target.node_id, target.input)
        for parameter in workflow.parameters
        if parameter.kind == "file" or (parameter.required and parameter.default is MISSING)
        for target in parameter.targets
    }
    return [_without(report, brought) for report in reports]


def _without(report: ServerValidation, brought: set[tuple[str, str]]) -> ServerValidation:
    problems = [one for one in report["problems"] if (one["node_id"], one["input_name"] or "") not in brought]
    refused = any(one["severity"] == "error" for one in problems)
    return {"server": report["server"], "valid": not refused, "problems": problems}
