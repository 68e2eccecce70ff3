"""The body of `POST /api/v2/jobs`, and the names of the files that come with it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from starlette.requests import Request

from comfyui import big_json
from comfyui.exceptions import BeyondLimitsError, Breach, ContractError, JSONError
from comfyui.labels import check_labels
from comfyui.limits import Limits
from comfyui.models import PromptRequest, Webhook
from comfyui.offload import offloaded
from comfyui.web.front.errors import describe_validation
from comfyui.web.front.gateway_state import gateway_of
from comfyui.workflows.api_format import is_ui_format

_KEY_NAME = "api_key_comfy_org"
_RESERVED = ("webhook_url", "inputs")
WEBHOOK = "gateway_webhook"
"""Our own member, beside the contract's."""
_MOST_PRIORITY = 1_000_000
_LONGEST_NOTE = 1024
_IDEMPOTENCY_KEY = re.compile(r"[\x20-\x7e]{1,255}")


@dataclass(frozen=True, slots=True)
class Posted:
    """A requested job. `note`: `metadata` if it is a text."""

    request: PromptRequest
    note: str | None


async def posted_job(request: Request) -> Posted:
    """The posted job.

    Raises:
        ContractError: it breaks the contract; the text names the member.
        RequestError: it is beyond the limits.
    """
    pieces = [chunk async for chunk in request.stream()]
    size = sum(map(len, pieces))
    return await offloaded(size, _of_json, pieces, size, gateway_of(request).options.limits)


def idempotency_key_of(request: Request) -> str | None:
    """The caller's key; None if it sent none. Raises `ContractError`."""
    keys = request.headers.getlist("idempotency-key")
    if not keys:
        return None
    if len(keys) > 1 or not _IDEMPOTENCY_KEY.fullmatch(keys[0]):
        raise ContractError(
            Breach.NOT_READABLE, "Idempotency-Key must be one key of 1 to 255 printable ASCII characters"
        )
    return keys[0]


def object_of(pieces: list[bytes], limits: Limits) -> dict[str, Any]:
    """The body as a JSON object. Raises `ContractError` and `BeyondLimitsError`."""
    try:
        body = big_json.load(b"".join(pieces), limits)
    except JSONError as error:
        if error.beyond_limits:
            raise BeyondLimitsError(f"the body: {error}") from None
        raise ContractError(Breach.NOT_READABLE, f"the body is not JSON: {error}") from None
    if not isinstance(body, dict):
        raise ContractError(Breach.NOT_READABLE, "the body is not a JSON object")
    return body


def _of_json(pieces: list[bytes], size: int, limits: Limits) -> Posted:
    body = object_of(pieces, limits)
    workflow = _workflow(body)
    for name in _RESERVED:
        if body.get(name) is not None:
            more = f"; use {WEBHOOK}, a field of this gateway, instead" if name == "webhook_url" else ""
            raise ContractError(Breach.INVALID_WORKFLOW, f"{name} is reserved for later; leave it out{more}")
    labels, note = _metadata(body.get("metadata"))
    request = PromptRequest(
        prompt=workflow,
        extra_data=_extra_data(body.get("extra_data")),
        labels=labels,
        priority=_priority(body.get("priority")),
        webhook=_webhook(body.get(WEBHOOK)),
    )
    return Posted(request.of_size(size), note)


def _workflow(body: Mapping[str, Any]) -> dict[str, Any]:
    workflow = body.get("workflow")
    if not isinstance(workflow, dict):
        what = "it is missing" if workflow is None else "it is not an object"
        raise ContractError(Breach.INVALID_WORKFLOW, f"workflow must be a workflow in API format, but {what}")
    if is_ui_format(workflow):
        raise ContractError(
            Breach.WORKFLOW_FORMAT_UI,
            'workflow has the format of the editor, but only the API format can be run; use "Export (API)", or let'
            " POST /convert convert it",
        )
    return workflow


def _extra_data(value: Any) -> dict[str, Any] | None:
    if value is None:
        return None
    if not isinstance(value, dict):
        raise ContractError(Breach.NOT_READABLE, "extra_data must be an object")
    if others := sorted(value.keys() - {_KEY_NAME}):
        raise ContractError(Breach.NOT_READABLE, f"extra_data may have only {_KEY_NAME}, not {others[0][:60]!r}")
    key = value.get(_KEY_NAME)
    if key is not None and not isinstance(key, str):
        raise ContractError(Breach.NOT_READABLE, f"extra_data.{_KEY_NAME} must be a text")
    return {_KEY_NAME: key} if key else None


def _metadata(value: Any) -> tuple[dict[str, str], str | None]:
    """Labels, or a text that is shown again."""
    if value is None:
        return {}, None
    if isinstance(value, str):
        if len(value) > _LONGEST_NOTE or len(value.encode("utf-8", "surrogatepass")) > _LONGEST_NOTE:
            raise ContractError(Breach.METADATA_INVALID, f"metadata must be a text of at most {_LONGEST_NOTE} bytes")
        return {}, value
    if not isinstance(value, dict):
        raise ContractError(Breach.METADATA_INVALID, "metadata must be an object whose values are texts")
    try:
        check_labels(value)
    except ValueError as error:
        raise ContractError(Breach.METADATA_INVALID, f"metadata: {error}") from None
    return value, None


def _priority(value: Any) -> int:
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) > _MOST_PRIORITY:
        raise ContractError(
            Breach.INVALID_REQUEST, f"priority must be a whole number from -{_MOST_PRIORITY} to {_MOST_PRIORITY}"
        )
    return value


def _webhook(value: Any) -> Webhook | None:
    if value is None:
        return None
    try:
        return Webhook.model_validate(value)
    except ValidationError as error:
        told = describe_validation(error.errors(include_url=False, include_input=False))
        raise ContractError(Breach.INVALID_REQUEST, f"{WEBHOOK}: {told}") from None
