"""Workflows that are looked at and not run: `/validate` and `/convert`."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NotRequired

from fastapi import APIRouter, Depends, Request, Response
from typing_extensions import TypedDict

from comfyui.exceptions import (
    ComfyUIConnectionError,
    ComfyUILimitError,
    ComfyUIServerError,
    ComfyUIValidationError,
    RequestError,
)
from comfyui.executors.checking import problems_on
from comfyui.executors.own_files import as_seen_by
from comfyui.inputs.plan import brought_names
from comfyui.limits import Limits
from comfyui.offload import in_thread, offloaded
from comfyui.servers.backend import Backend
from comfyui.servers.pool import BackendPool
from comfyui.web.api.bodies import (
    JSON_ERRORS,
    SUBMISSION_ERRORS,
    Posted,
    Submission,
    json_object,
    looks_like_workflow,
    submission_body,
)
from comfyui.web.api.parameters import NoParameters, read
from comfyui.web.front.errors import json_response
from comfyui.web.front.gateway_state import gateway_of
from comfyui.web.front.openapi import Answer, json_of, operation
from comfyui.web.front.request_state import state_of
from comfyui.workflows.api_format import check_api_format, check_ui_nodes, is_ui_format, node_title
from comfyui.workflows.convert import ConvertedWorkflow, to_api_format
from comfyui.workflows.preflight import Problem, ProblemEntry


async def _without_query(request: Request) -> None:
    read(NoParameters, request)


# A query parameter that does nothing was meant for something.
router = APIRouter(dependencies=[Depends(_without_query)], default_response_class=Response)
_TAG = "workflows"
# Errors of a request for ComfyUI's node definitions.
_SERVER_ERRORS = (ComfyUIConnectionError, ComfyUIServerError)

_PATIENCE_S = 2.0
_FRESH_S = 5.0


class ServerValidation(TypedDict):
    """The problems of a workflow on one ComfyUI server."""

    server: str
    valid: bool
    problems: list[ProblemEntry]


class Validation(TypedDict):
    """The problems of a workflow; with several servers, on the one that suits it best."""

    valid: bool
    problems: list[ProblemEntry]
    servers: NotRequired[list[ServerValidation]]


class Conversion(TypedDict):
    """A workflow in API format; each warning names its node."""

    prompt: dict[str, Any]
    warnings: list[str]


@router.post(
    "/validate",
    summary="Check a workflow without queueing it",
    openapi_extra=operation(
        "validate",
        {200: Answer("The problems of the workflow, if it has any.", json_of(Validation))},
        (*SUBMISSION_ERRORS, *_SERVER_ERRORS),
        body=submission_body(bare=True),
        tag=_TAG,
    ),
)
async def validate(request: Request, posted: Posted) -> Response:
    """The body of `/prompt_sync`, or a bare workflow; 200 with `valid` and `problems`, whatever is wrong with it.

    `valid` is false if every ComfyUI would refuse it; `servers` has the result for each if there are several.
    """
    return json_response(200, await validation_of(request, posted))


async def validation_of(request: Request, posted: Submission) -> Validation:
    """The problems of a posted workflow, as far as the caller may know them. Raises as `validation_reports` does."""
    limits, prompt = gateway_of(request).options.limits, posted.request.prompt
    try:
        await offloaded(posted.request.size, check_api_format, prompt, limits)
    except ComfyUILimitError:
        raise
    except ComfyUIValidationError as error:
        return Validation(valid=False, problems=_shown(_of_format(error, prompt)))
    reports = await validation_reports(request, posted)
    best = max(reports, key=lambda report: (report["valid"], -len(report["problems"])))
    answer = Validation(valid=best["valid"], problems=best["problems"])
    if len(gateway_of(request).handler.pool.backends) > 1:
        answer["servers"] = reports
    return answer


async def validation_reports(request: Request, posted: Submission) -> list[ServerValidation]:
    """The problems of a workflow in API format on each server that answers, as far as the caller may know them.

    Raises:
        ComfyUIConnectionError, ComfyUIServerError: none answers.
    """
    gateway, prompt = gateway_of(request), posted.request.prompt
    caller = state_of(request.scope).caller
    key = caller.rules.name if caller is not None and caller.rules.role == "user" else None
    files, owner = posted.files.paths if posted.files else (), caller.owner if caller is not None else None
    uploads = gateway.handler.uploads.catalogue.named_in(prompt, owner, brought_names(posted.request, files))
    names = {*files, *uploads}
    if key is not None and (made := gateway.handler.made) is not None:
        names |= await made.texts_in(prompt, key)
    return await _reports(gateway.handler.pool, posted, gateway.options.limits, key, names)


@router.post(
    "/convert",
    summary="Convert a UI-format export to an API-format workflow",
    openapi_extra=operation(
        "convert",
        {200: Answer("The workflow in API format.", json_of(Conversion))},
        (*JSON_ERRORS, *_SERVER_ERRORS, ComfyUIValidationError),
        body={"application/json": {"type": "object", "additionalProperties": True}},
        tag=_TAG,
    ),
)
async def convert(request: Request) -> Response:
    """The file that ComfyUI's editor saves, bare or as `workflow`; 400 with the reason if it cannot be converted with
    certainty.

    The workflow may be JSON text, as in pictures, or in `extra_data.extra_pnginfo`.
    """
    gateway = gateway_of(request)
    limits = gateway.options.limits
    body: list[bytes] | None = [chunk async for chunk in request.stream()]
    workflow, body = await offloaded(sum(map(len, body or ())), _ui_format, body or [], limits), None
    backend = await gateway.handler.pool.choose(patience_s=_PATIENCE_S)
    try:
        converted = await _converted(workflow, await backend.object_info(), limits)
    except ComfyUILimitError:
        raise
    except ComfyUIValidationError:
        # An unknown class may have been installed meanwhile.
        converted = await _converted(workflow, await backend.object_info(max_age_s=_FRESH_S), limits)
    return json_response(200, Conversion(prompt=converted.prompt, warnings=list(converted.warnings)))


async def _converted(workflow: Mapping[str, Any], object_info: Mapping[str, Any], limits: Limits) -> ConvertedWorkflow:
    return await in_thread(to_api_format, workflow, object_info, limits=limits)


def _ui_format(body: list[bytes], limits: Limits) -> dict[str, Any]:
    """The workflow in a body of `/convert`. Raises `RequestError`, `ComfyUILimitError`."""
    whole = json_object(b"".join(body), "the body", limits)
    for name, held in (("the body", whole), *_held(whole)):
        workflow = json_object(held, name, limits) if isinstance(held, str) else held
        if isinstance(workflow, dict) and is_ui_format(workflow):
            check_ui_nodes(workflow, limits)
            return workflow
    if any(looks_like_workflow(held) for held in (whole, whole.get("prompt")) if isinstance(held, dict)):
        raise RequestError("the workflow is already in API format; /prompt_sync and /validate accept it as it is")
    raise RequestError("the body is not a UI-format workflow, because it has no list of nodes")


def _held(whole: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The places where other JSON has a UI-format workflow: requests, ComfyUI's metadata in pictures, and its
    history.
    """
    extra = whole
    for name in ("extra_data", "extra_pnginfo"):
        inner = extra.get(name)
        extra = inner if isinstance(inner, Mapping) else extra
    inside = [("extra_pnginfo.workflow", extra.get("workflow"))] if extra is not whole else []
    return [(name, whole.get(name)) for name in ("workflow", "prompt")] + inside


async def _reports(
    pool: BackendPool, posted: Submission, limits: Limits, key: str | None, names: Collection[str]
) -> list[ServerValidation]:
    """One for each server that answers. Raises the reason of the first one when none does."""
    await pool.choose(patience_s=_PATIENCE_S)
    asked = pool.ready
    report = _report if len(asked) < 2 else _report_soon
    found = await asyncio.gather(
        *(report(backend, posted, limits, key, names) for backend in asked), return_exceptions=True
    )
    reports = [report for report in found if isinstance(report, dict)]
    failures = [failure for failure in found if isinstance(failure, BaseException)]
    for failure in failures:
        # Errors of the request, or of the gateway, are not a server's fault for which others could stand in.
        if not isinstance(failure, ComfyUIConnectionError | ComfyUIServerError):
            raise failure
    if not reports:
        raise failures[0]
    return reports


async def _report_soon(
    backend: Backend, posted: Submission, limits: Limits, key: str | None, names: Collection[str]
) -> ServerValidation:
    """If other servers can be asked, one that hangs does not delay them."""
    try:
        async with backend.soon():
            return await _report(backend, posted, limits, key, names)
    except TimeoutError as error:
        raise ComfyUIConnectionError(f"{backend.name} does not send its node definitions") from error


async def _report(
    backend: Backend, posted: Submission, limits: Limits, key: str | None, names: Collection[str]
) -> ServerValidation:
    problems = await problems_on(backend, posted.request, names, limits=limits)
    if key is not None:
        known = await backend.object_info()
        problems = await offloaded(posted.request.size, as_seen_by, key, problems, posted.request, known, names)
    refused = any(problem.severity == "error" for problem in problems)
    return {"server": backend.name, "valid": not refused, "problems": _shown(problems)}


def _of_format(error: ComfyUIValidationError, prompt: Mapping[str, Any]) -> list[Problem]:
    """The problems of the format, in the form of the other problems."""
    problems = [
        Problem(node_id, node_title(prompt, node_id), _class_of(prompt.get(node_id)), None, "malformed_node", message)
        for node_id, messages in error.node_errors.items()
        for message in messages
    ]
    return problems or [Problem("", "", "", None, "not_api_format", error.detail)]


def _class_of(node: Any) -> str:
    return str(node.get("class_type") or "") if isinstance(node, Mapping) else ""


def _shown(problems: Sequence[Problem]) -> list[ProblemEntry]:
    return [problem.to_json() for problem in problems]
