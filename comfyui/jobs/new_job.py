"""A job as it is written down at first, made of its request."""

from __future__ import annotations

from collections.abc import Mapping

from comfyui.jobs.journal.records import Kind, NewJob, WebhookOrder
from comfyui.jobs.origin import Origin
from comfyui.jobs.stored import body_of, secrets_of
from comfyui.models import PromptRequest

# For a sync call whose caller knows the id, and sends the request again when it returns; or for a user's, who sees it
# in the queue and the history.
KEPT_OF_SYNC = 256 * 1024
_NO_INPUTS: Mapping[str, str] = {}


def new_job(
    request: PromptRequest,
    prompt_id: str,
    origin: Origin,
    fingerprint: str | None,
    *,
    kind: Kind,
    callers_id: bool,
    now: float,
    inputs: Mapping[str, str] = _NO_INPUTS,
) -> NewJob:
    """The job as it is written at first. `inputs`: see `comfyui.jobs.inputs`."""
    call = request.call
    kept = kind == "async" or ((callers_id or origin.is_confined) and request.size <= KEPT_OF_SYNC)
    return NewJob(
        prompt_id=prompt_id,
        kind=kind,
        callers_id=callers_id,
        created_at=now,
        fingerprint=fingerprint,
        owner=origin.owner,
        face=origin.face,
        workflow_name=None if call is None else call.name,
        client_id=request.client_id,
        labels=request.labels,
        inputs=inputs,
        needs_secrets=bool(secrets_of(request)),
        priority=request.priority,
        webhook=order_of(request),
        body=body_of(request) if kept else None,
        turn=request.number,
        front=request.front,
        idempotency_key=origin.idempotency_key,
        note=origin.note,
        call=call,
    )


def order_of(request: PromptRequest) -> WebhookOrder | None:
    """The caller's order for webhooks."""
    wanted = request.webhook
    return None if wanted is None else WebhookOrder(wanted.url, tuple(dict.fromkeys(wanted.events or ())))
