"""A job as far as the gateway, or ComfyUI alone, knows it: what its page shows, and what runs again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import Request

from comfyui.exceptions import ComfyUIError, ComfyUINotFoundError, ComfyUITaskCancelledError, ComfyUITaskError
from comfyui.jobs.admission import Look
from comfyui.jobs.journal.records import JobRecord, KeptJob, State
from comfyui.jobs.snapshots import record_of
from comfyui.jobs.stored import error_to_fields, result_from_bytes
from comfyui.merged_files import is_prompt_id
from comfyui.models import PromptResult
from comfyui.offload import offloaded
from comfyui.web.comfyui.job_items import shown
from comfyui.web.console.viewer import Visitor
from comfyui.web.front.gateway_state import GatewayState, gateway_of

UNKNOWN = "The gateway knows no such job."
# For ComfyUI to give the result of a prompt that it has in its history.
_LOOK_S = 10.0


@dataclass(frozen=True, slots=True)
class Found:
    """One job.

    Attributes:
        look: how it is now.
        record: as the journal has it; None for a sync job that is not written down, and for ComfyUI's own.
        queued_at: Unix time; 0 where that is not known.
        is_known: the gateway took it; else it is only ComfyUI that has it.
        has_body: its request is kept, so that it can be run again.
        prompt: the graph as a page may show it: without contents and secrets. Empty where it is not known.
        editor: the workflow that ComfyUI's editor sent with it; None where none did.
        result: of one that failed, what its nodes had made before.
        error: as `comfyui.jobs.stored.error_to_fields` writes it.
    """

    prompt_id: str
    look: Look
    state: State
    owner: str | None
    record: JobRecord | None
    queued_at: float
    is_known: bool
    has_body: bool
    prompt: Mapping[str, Any]
    editor: Mapping[str, Any] | None
    result: PromptResult | None
    error: Mapping[str, Any] | None


async def found_job(request: Request, visitor: Visitor) -> Found:
    """The job of the request's path.

    Raises:
        ComfyUINotFoundError: there is none that this visitor may see.
        ComfyUIError: the journal, or a server that may have it, cannot be asked.
    """
    handler, prompt_id = gateway_of(request).handler, request.path_params["prompt_id"]
    if not is_prompt_id(prompt_id):
        raise ComfyUINotFoundError(UNKNOWN)
    try:
        look = await handler.look(prompt_id, visitor.origin)
    except ComfyUINotFoundError:
        raise ComfyUINotFoundError(UNKNOWN) from None
    (kept,) = await handler.journal.kept([prompt_id], 1, results=True)
    job = handler.standing.job(prompt_id)
    if kept is None and (job is None or job.entry is None):
        return await _of_comfyui(gateway_of(request), visitor, look)
    body = None if kept is None else kept.body
    known = await offloaded(len(body or b""), shown, kept, job, prompt_id)
    if known is None or not visitor.sees(known.owner):
        raise ComfyUINotFoundError(UNKNOWN)
    record = look.record or known.record or (None if job is None else record_of(job))
    item = await offloaded(len(body or b""), known.item, with_owner=True)
    return Found(
        prompt_id,
        look,
        look.state,
        known.owner,
        record,
        known.queued_at,
        is_known=True,
        has_body=body is not None,
        prompt=item[2],
        editor=_editor_of(item[3]),
        result=await _result_of(prompt_id, kept),
        error=None if record is None else record.error,
    )


def _editor_of(extra_data: Mapping[str, Any]) -> Mapping[str, Any] | None:
    info = extra_data.get("extra_pnginfo")
    found = info.get("workflow") if isinstance(info, Mapping) else None
    return found if isinstance(found, Mapping) and isinstance(found.get("nodes"), list) else None


async def _result_of(prompt_id: str, kept: KeptJob | None) -> PromptResult | None:
    if kept is None or kept.result is None:
        return None
    return await offloaded(len(kept.result), result_from_bytes, prompt_id, kept.result)


async def _of_comfyui(gateway: GatewayState, visitor: Visitor, look: Look) -> Found:
    """A prompt that was sent to a server past the gateway, or whose job the gateway has forgotten."""
    state, result, error = look.state, None, None
    if not visitor.sees(None):
        raise ComfyUINotFoundError(UNKNOWN)
    if state.is_end:
        try:
            result = await gateway.handler.attach(look.prompt_id, timeout_s=_LOOK_S, origin=visitor.origin)
        except (ComfyUITaskError, ComfyUITaskCancelledError) as failure:
            state = State.CANCELED if isinstance(failure, ComfyUITaskCancelledError) else State.FAILED
            error, result = error_to_fields(failure), _saved(failure)
    return Found(
        look.prompt_id,
        look,
        state,
        None,
        None,
        0.0,
        is_known=False,
        has_body=False,
        prompt=look.workflow or {},
        editor=None,
        result=result,
        error=error,
    )


def _saved(failure: ComfyUIError) -> PromptResult | None:
    saved: PromptResult | None = failure.saved
    return saved
