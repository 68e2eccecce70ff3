"""The changes that visitors make: to a job that waits or runs, to several jobs, to a server, and to the whole queue."""

from __future__ import annotations

import re
from collections.abc import Mapping

from fastapi import APIRouter, Request, Response

from comfyui.exceptions import ComfyUIConflictError, ComfyUINotFoundError, RequestError
from comfyui.handler import ComfyUIHandler
from comfyui.jobs.webhooks.again import UNKNOWN_JOB
from comfyui.web.console.actions import Done, all_fields_of, changes, fields_of
from comfyui.web.console.errors import ConsoleRoute
from comfyui.web.console.texts import TEXTS
from comfyui.web.console.viewer import Visitor
from comfyui.web.front.gateway_state import gateway_of

router = APIRouter(route_class=ConsoleRoute, include_in_schema=False, default_response_class=Response)

# The pages with the forms: a browser without JavaScript goes back to the page from which it came.
_BACK = re.compile(r"console(/queue(\?[\w=&%.+-]{0,600})?|/jobs/[\w-]{1,100})?")
_MOST_AT_ONCE = 1000


@router.post("/console/jobs/{prompt_id}/cancel")
@changes
async def cancel_job(request: Request, visitor: Visitor) -> Done:
    """Cancels a job, whether it waits or runs."""
    prompt_id, handler = request.path_params["prompt_id"], gateway_of(request).handler
    await _check_seen(handler, visitor, prompt_id)
    if not await handler.removal.cancel_all([prompt_id], visitor.origin):
        if await handler.journal.get(prompt_id) is None:
            raise ComfyUINotFoundError(UNKNOWN_JOB, prompt_id=prompt_id)
        raise ComfyUIConflictError(TEXTS.queue.has_ended, prompt_id=prompt_id)
    return Done(TEXTS.queue.cancelled, _back_to(await fields_of(request)))


@router.post("/console/jobs/{prompt_id}/first")
@changes
async def put_first(request: Request, visitor: Visitor) -> Done:
    """Puts a job that waits before all others of its owner that have its priority."""
    prompt_id, handler = request.path_params["prompt_id"], gateway_of(request).handler
    await _check_seen(handler, visitor, prompt_id)
    await handler.moving.move(prompt_id, visitor.origin, first=True)
    return Done(TEXTS.queue.is_first, _back_to(await fields_of(request)))


@router.post("/console/jobs/{prompt_id}/priority")
@changes
async def set_priority(request: Request, visitor: Visitor) -> Done:
    """Gives a job that waits the priority of the field `priority`."""
    prompt_id, handler = request.path_params["prompt_id"], gateway_of(request).handler
    fields = await fields_of(request)
    try:
        priority = int(fields.get("priority", "").strip())
    except ValueError:
        raise RequestError("priority must be a whole number") from None
    await _check_seen(handler, visitor, prompt_id)
    await handler.moving.move(prompt_id, visitor.origin, priority=priority)
    return Done(TEXTS.queue.has_priority.format(priority=priority), _back_to(fields))


@router.post("/console/queue/cancel")
@changes
async def cancel_several(request: Request, visitor: Visitor) -> Done:
    """Cancels the jobs of the fields `job` that the visitor sees, and that have not ended."""
    handler, fields = gateway_of(request).handler, await all_fields_of(request)
    named = list(dict.fromkeys(value for name, value in fields if name == "job"))
    if not named:
        raise RequestError(TEXTS.queue.none_selected)
    if len(named) > _MOST_AT_ONCE:
        raise RequestError(f"at most {_MOST_AT_ONCE} jobs can be cancelled at once")
    seen = [one for one in named if await _is_seen(handler, visitor, one)]
    if not seen or not await handler.removal.cancel_all(seen, visitor.origin):
        raise ComfyUIConflictError(TEXTS.queue.all_have_ended)
    return Done(TEXTS.queue.several_cancelled.format(count=len(seen)), _back_to(dict(fields)))


@router.post("/console/queue/pause")
@changes
async def pause(request: Request, _visitor: Visitor) -> Done:
    """No job gets its turn until `resume`."""
    await gateway_of(request).handler.queue.pause(True)
    return Done(TEXTS.queue.is_paused, _back_to(await fields_of(request)))


@router.post("/console/queue/resume")
@changes
async def resume(request: Request, _visitor: Visitor) -> Done:
    """Jobs get their turns again."""
    await gateway_of(request).handler.queue.pause(False)
    return Done(TEXTS.queue.goes_on, _back_to(await fields_of(request)))


@router.post("/console/servers/{name:path}/drain")
@changes
async def drain_server(request: Request, _visitor: Visitor) -> Done:
    """Lets a server have no more prompts."""
    return await _drain(request, drained=True)


@router.post("/console/servers/{name:path}/resume")
@changes
async def resume_server(request: Request, _visitor: Visitor) -> Done:
    """Lets a server have prompts again."""
    return await _drain(request, drained=False)


@router.post("/console/servers/{name:path}/free")
@changes
async def free_server(request: Request, _visitor: Visitor) -> Done:
    """Has a server drop its models and caches before its next prompt."""
    name = request.path_params["name"]
    await gateway_of(request).handler.fleet.free(name)
    return Done(TEXTS.queue.is_freed.format(server=name), "console")


async def _drain(request: Request, *, drained: bool) -> Done:
    name, handler = request.path_params["name"], gateway_of(request).handler
    if not handler.queue.are_all_here:
        raise ComfyUIConflictError("the server cannot be drained, because prompts wait in its own queue (QUEUE)")
    await handler.fleet.drain(name, drained)
    text = TEXTS.queue.is_drained if drained else TEXTS.queue.is_resumed
    return Done(text.format(server=name), "console")


async def _is_seen(handler: ComfyUIHandler, visitor: Visitor, prompt_id: str) -> bool:
    """Whether the visitor sees the job: a person behind a shared key sees its own, an admin also what came to a server
    past the gateway."""
    if (job := handler.standing.job(prompt_id)) is not None:
        return visitor.sees(job.owner)
    record = await handler.journal.get(prompt_id)
    return visitor.operates if record is None else visitor.sees(record.owner)


async def _check_seen(handler: ComfyUIHandler, visitor: Visitor, prompt_id: str) -> None:
    if not await _is_seen(handler, visitor, prompt_id):
        raise ComfyUINotFoundError(UNKNOWN_JOB, prompt_id=prompt_id)


def _back_to(fields: Mapping[str, str]) -> str:
    """The page that the form stands on, by its field `back`."""
    back = fields.get("back", "")
    return back if _BACK.fullmatch(back) else "console/queue"
