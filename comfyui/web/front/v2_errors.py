"""Our errors as answers of Comfy API v2: the envelope and the codes that its SDKs read. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from starlette.types import Scope

from comfyui.exceptions import (
    BodyTooLargeError,
    ComfyUIConflictError,
    ComfyUIConnectionError,
    ComfyUIError,
    ComfyUIInputError,
    ComfyUILimitError,
    ComfyUINotFoundError,
    ComfyUIOverloadedError,
    ComfyUIShutdownError,
    ComfyUIValidationError,
    ContractError,
    RequestError,
    TooManyStreamsError,
    TooManySubmissionsError,
)
from comfyui.replies import node_errors_of

_ROOTS: Final = ("/api/v2/jobs", "/api/v2/assets", "/api/v2/health")
"""All that is ours below ``/api/v2``; the rest is ComfyUI's."""
_BELOW: Final = tuple(f"{root}/" for root in _ROOTS)
# By the status of a request that was refused before it reached an endpoint.
_CODES: Final = {
    400: "invalid_request",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    413: "payload_too_large",
    415: "unsupported_encoding",
    429: "rate_limited",
    503: "upstream_unreachable",
}
_UPSTREAM = "upstream_error"
_NODE_ID = re.compile(r"Node ID '#(.+)'")
_TOO_LARGE = 413

Envelope = dict[str, Any]


def is_v2(scope: Scope) -> bool:
    """Whether the answer to this request has Comfy API v2's shape."""
    path: str = scope["path"]
    return path.startswith("/api/v2/") and (path in _ROOTS or path.startswith(_BELOW))


def envelope(code: str, message: str, details: Mapping[str, Any] | None = None) -> Envelope:
    """The body of every error."""
    return {"error": {"code": code, "message": message, "details": details}}


def envelope_of_status(status: int, message: str) -> Envelope:
    """The body of a refusal by its status."""
    return envelope(_CODES.get(status, "invalid_request" if status < 500 else _UPSTREAM), message)


def envelope_of(error: ComfyUIError) -> tuple[int, Envelope]:
    """Status and body of an error. SDKs try 429 again by themselves, and nothing else."""
    match error:
        case ContractError():
            code, status = error.breach.value
            return status, envelope(code, error.detail, error.details)
        case BodyTooLargeError() | ComfyUILimitError() if error.status == _TOO_LARGE:
            return _TOO_LARGE, envelope("payload_too_large", error.detail)
        case ComfyUIValidationError():
            return 422, envelope("invalid_workflow", error.detail, {"node_errors": _node_errors(error)})
        case ComfyUIInputError():
            return 422, envelope("invalid_request", error.detail)
        case RequestError():
            return error.status, envelope("invalid_request", error.detail)
        case TooManySubmissionsError():
            return 429, envelope("rate_limited", error.detail)
        case TooManyStreamsError():
            return 429, envelope("too_many_streams", error.detail)
        case ComfyUIOverloadedError() | ComfyUIShutdownError():
            # While the gateway ends, another one may take the place: the SDK is to come again, not to give up.
            return 429, envelope("queue_full", error.detail)
        case ComfyUINotFoundError() | ComfyUIConflictError():
            return error.status, envelope(error.code, error.detail)
        case ComfyUIConnectionError():
            return error.status, envelope("upstream_unreachable", error.detail)
    return error.status, envelope(_UPSTREAM, error.detail)


def _node_errors(error: ComfyUIValidationError) -> Mapping[str, Any]:
    """ComfyUI's own, if it names their node; for a class that it does not have, it names the node elsewhere."""
    said = error.upstream or error.answer or {}
    found = said.get("node_errors")
    if isinstance(found, dict) and found:
        return found
    whole = said.get("error")
    if isinstance(whole, dict) and (where := _place_of(whole)):
        told = {name: whole.get(name) for name in ("type", "message", "details", "extra_info")}
        node = {"errors": [told], "dependent_outputs": [], "class_type": where.get("class_type") or ""}
        return {str(where["node_id"]): node}
    return node_errors_of(error.node_errors)


def _place_of(whole: Mapping[str, Any]) -> Mapping[str, Any]:
    """Node and class of an error about the whole workflow; empty if it names none."""
    where = whole.get("extra_info")
    if isinstance(where, dict) and isinstance(where.get("node_id"), str):
        return where
    # ComfyUI up to 0.3.64 has it in words only.
    match = _NODE_ID.fullmatch(str(whole.get("details") or ""))
    return {} if match is None else {"node_id": match[1]}
