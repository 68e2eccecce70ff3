"""Jobs of Comfy API v2: async jobs of the gateway, as every other face has them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any
from uuid import uuid4

import structlog
from starlette.requests import Request
from starlette.responses import Response

from comfyui import jsonio
from comfyui.assets.fresh_jobs import FRESH_S
from comfyui.assets.references import restore
from comfyui.exceptions import (
    Breach,
    ComfyUIError,
    ComfyUINotFoundError,
    ComfyUIValidationError,
    ContractError,
    QueryError,
)
from comfyui.jobs.admission import Look
from comfyui.jobs.following import following, in_hand
from comfyui.jobs.inputs import names_in
from comfyui.jobs.job import Job
from comfyui.jobs.journal.records import State
from comfyui.jobs.origin import Origin
from comfyui.jobs.snapshots import record_of
from comfyui.jobs.stored import request_of
from comfyui.offload import offloaded
from comfyui.replies import node_errors_of
from comfyui.web.api.jobs import link_to, origin_of, seen_by
from comfyui.web.comfyui.prompt import hide_files_of_others
from comfyui.web.front.errors import json_response
from comfyui.web.front.gateway_state import GatewayState, gateway_of
from comfyui.web.front.headers import public_address
from comfyui.web.v2.bodies import idempotency_key_of, posted_job
from comfyui.web.v2.listing import listing_of
from comfyui.web.v2.outputs import End, made_by, outputs_of_all
from comfyui.web.v2.positions import queue_position
from comfyui.web.v2.shapes import JSON, Address, job_json, listed_json

FACE = "v2"
_UNKNOWN = "there is no such job"
_CANCEL_S = 10.0
_NO_STORE = {"Cache-Control": "no-store"}

_log = structlog.get_logger(__name__)


async def submit(request: Request) -> Response:
    """Takes a workflow: 201 once a server has taken it, or it is written down and waits."""
    gateway, origin = gateway_of(request), caller_of(request)
    gateway.handler.refuse_when_draining()
    key = idempotency_key_of(request)
    posted = await posted_job(request)
    if posted.request.webhook is not None:
        gateway.options.webhooks.check(posted.request.webhook.url, origin.rules)
    prompt_id = str(uuid4())
    structlog.contextvars.bind_contextvars(prompt_id=prompt_id)
    origin = replace(origin, idempotency_key=key, note=posted.note)
    async with (
        gateway.handler.claims.claimed(origin.owner, key),
        gateway.assets.references.resolved(posted.request, origin) as resolved,
    ):
        try:
            verdict = await gateway.handler.verdicts.on(
                resolved.request,
                fresh_id=prompt_id,
                origin=origin,
                files=resolved.files,
                patience_s=gateway.options.verdict_s,
            )
        except ComfyUIValidationError as error:
            await hide_files_of_others(error, gateway, origin)
            raise
    admission, look, taken = gateway.handler.admission, verdict.look, verdict.job
    if taken is not None:
        look = _look_when_taken(taken)
    elif look is not None and look.record is not None:
        taken = await in_hand(admission, look.record)
    if taken is not None:
        gateway.assets.fresh.add(taken)
    look = look or await admission.look(prompt_id, origin)
    return json_response(201, await shown(request, look), _NO_STORE)


async def jobs(request: Request) -> Response:
    """A page of the caller's jobs, newest first."""
    gateway = gateway_of(request)
    asked = listing_of(request)
    narrowed = seen_by(request, asked.narrowed)
    try:
        page = await gateway.handler.journal.page(narrowed, asked.limit, asked.cursor)
    except QueryError as error:
        raise ContractError(Breach.INVALID_CURSOR, error.detail) from None
    address = address_of(request, gateway)
    made = await outputs_of_all(gateway, page.records, address)
    listed = [listed_json(record, outputs, address) for record, outputs in zip(page.records, made, strict=True)]
    found: JSON = {"jobs": listed, "truncated": False}
    if page.next_cursor is not None:
        found["next_cursor"] = page.next_cursor
    return json_response(200, found, _NO_STORE)


async def job(request: Request) -> Response:
    """A job as it is now; of one that was submitted a moment ago, as it is when that moment is over, or at its end.

    SDKs ask at once after the submission, and then half a second later: a quick job has its result at the first time.
    """
    gateway, prompt_id = gateway_of(request), request.path_params["prompt_id"]
    look = None
    fresh = gateway.assets.fresh.get(prompt_id)
    quick = gateway.handler.standing.job(prompt_id) if fresh is None else fresh.job
    if quick is None:
        look = await look_at(request)
        quick = await _quick_row(request, look)
    elif not await _is_quick(request, quick):
        quick = None
    if quick is not None or look is None:
        look = _look_in_hand(quick) or await look_at(request)
    end = None
    if quick is not None and look.state is State.SUCCEEDED:
        end = End(quick.result(), {} if fresh is None else await fresh.facts())
        gateway.assets.fresh.drop(prompt_id)
    return json_response(200, await shown(request, look, end), _NO_STORE)


async def _is_quick(request: Request, job: Job) -> bool:
    """Whether a running job ends within that moment, or has ended."""
    if job.entry is None or not (job.stays and caller_of(request).sees(job.owner)):
        return False
    if job.ended:
        return True
    left_s = job.entry.queued_at + FRESH_S - time.time()
    return left_s > 0 and await job.wait(left_s)


async def _quick_row(request: Request, look: Look) -> Job | None:
    """A job that waits for its turn, but ends within that moment."""
    record = look.record
    if record is None or not record.waits or record.created_at + FRESH_S <= time.time():
        return None
    async with following(gateway_of(request).handler.admission, record, None) as job:
        return job if job is not None and await _is_quick(request, job) else None


def _look_in_hand(job: Job | None) -> Look | None:
    """A job that need not be read, though the journal may be about to write it."""
    record = None if job is None else record_of(job)
    return None if job is None or record is None else Look(job.prompt_id, job.state, record, workflow=job.workflow)


def _look_when_taken(job: Job) -> Look | None:
    """A job that a server has accepted at this moment; its first outputs are shown when the job is requested."""
    look = _look_in_hand(job)
    if look is None or look.record is None or not job.ended:
        return look
    return replace(look, state=State.RUNNING, record=replace(look.record, state=State.RUNNING, ended_at=None))


async def workflow(request: Request) -> Response:
    """The workflow that was submitted."""
    look = await look_at(request)
    graph, files = look.workflow, names_in(look.record.inputs) if look.record is not None else []
    if graph is None or files:
        body = await gateway_of(request).handler.journal.body_of(look.prompt_id)
        if body is not None:
            graph = await offloaded(len(body), _kept_workflow, body, files)
    if graph is None:
        raise ComfyUINotFoundError("the workflow of this job is not kept")
    text = await offloaded(len(graph) * 1000, jsonio.dumps, {"workflow": graph, "format": "api"})
    return Response(text, 200, _NO_STORE, media_type="application/json")


def _kept_workflow(body: bytes, files: Collection[str]) -> Mapping[str, Any]:
    graph = request_of(body).prompt
    restore(graph, files)
    return graph


async def logs(request: Request) -> Response:
    """No log is kept of any job."""
    await look_at(request)
    return Response(status_code=204)


async def cancel(request: Request) -> Response:
    """Asks for the end of a job; one that has ended stays as it is."""
    gateway, origin = gateway_of(request), caller_of(request)
    look = await look_at(request)
    if not look.state.is_end:
        try:
            async with asyncio.timeout(_CANCEL_S):
                await gateway.handler.cancel(look.prompt_id, origin)
        except (ComfyUINotFoundError, TimeoutError):
            pass  # it ended at this moment; or its server is slow to answer, and the cancel goes on
        except ComfyUIError as error:
            # For us it is over, and its server is told again when it answers.
            _log.warning("prompt.cancel_failed", prompt_id=look.prompt_id, reason="request", detail=error.detail)
        look = await look_at(request)
    return json_response(200, await shown(request, look), _NO_STORE)


async def health(_request: Request) -> Response:
    """The gateway answers. ``/health/ready`` says whether it takes prompts."""
    return json_response(200, {"status": "healthy"}, _NO_STORE)


def caller_of(request: Request) -> Origin:
    """The caller as an origin of jobs."""
    return replace(origin_of(request), face=FACE)


async def look_at(request: Request) -> Look:
    """The job of the request's path. Raises `ComfyUINotFoundError`, also for one that the caller may not see."""
    prompt_id = request.path_params["prompt_id"]
    structlog.contextvars.bind_contextvars(prompt_id=prompt_id)
    try:
        look = await gateway_of(request).handler.admission.look(prompt_id, caller_of(request))
    except ComfyUINotFoundError:
        raise ComfyUINotFoundError(_UNKNOWN) from None
    if look.record is None:
        raise ComfyUINotFoundError(_UNKNOWN)
    return look


async def shown(request: Request, look: Look, end: End | None = None) -> JSON:
    """A Job with its outputs so far. `end`: if it is known already."""
    gateway, record = gateway_of(request), look.record
    if record is None:
        raise ComfyUINotFoundError(_UNKNOWN)
    address = address_of(request, gateway)
    position = queue_position(gateway.handler, look.prompt_id, look.position)
    outputs, node_errors = await made_by(gateway, record, look, address, end)
    found = job_json(look, record, position, outputs, address)
    running = gateway.handler.standing.job(look.prompt_id)
    if (
        left_out := running.node_errors
        if running is not None and not look.state.is_end
        else node_errors_of(node_errors)
    ):
        found["node_errors"] = left_out
    return found


def address_of(request: Request, gateway: GatewayState) -> Address:
    """How this client writes our addresses."""
    options = gateway.options
    return Address(link_to("", request), public_address(request.scope, options.public_url), options.jobs_keep_s)
