"""Our errors as answers of OpenAI's API: the body that its clients read, and whether they may repeat the call. Pure.

OpenAI's SDKs repeat 408, 409, 429 and every 5xx twice by themselves, which would make a picture three times. They leave
it where `x-should-retry` says so: that is sent for every error but those that come before a job was taken.
"""

from __future__ import annotations

from typing import Any, Final

from starlette.types import Scope

from comfyui.exceptions import (
    ComfyUIError,
    ComfyUIInputError,
    ComfyUINotFoundError,
    ComfyUIOverloadedError,
    ComfyUIShutdownError,
    ImageCallError,
    RequestError,
    TooManySubmissionsError,
)
from comfyui.limits import short

NO_RETRY: Final = {"x-should-retry": "false"}
_ROOTS: Final = ("/v1/images", "/v1/models")
_BELOW: Final = tuple(f"{root}/" for root in _ROOTS)
# Nothing was accepted, so the same call may be sent again.
_BEFORE_A_JOB: Final = (ComfyUIOverloadedError, ComfyUIShutdownError, TooManySubmissionsError)
_INVALID: Final = "invalid_request_error"
_MOST_NODES: Final = 5
_LONGEST_OF_NODE: Final = 500
_BY_STATUS: Final = {
    401: (_INVALID, "invalid_api_key"),
    403: (_INVALID, "forbidden"),
    404: (_INVALID, "not_found"),
    429: ("rate_limit_error", "rate_limit_exceeded"),
}

Envelope = dict[str, Any]


def is_openai(scope: Scope) -> bool:
    """Whether the answer to this request has OpenAI's shape."""
    path: str = scope["path"]
    return path.startswith("/v1/") and (path in _ROOTS or path.startswith(_BELOW))


def envelope(message: str, kind: str, code: str | None, param: str | None = None) -> Envelope:
    """The body of every error."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def envelope_of_status(status: int, message: str) -> Envelope:
    """The body of a refusal by its status."""
    kind, code = _BY_STATUS.get(status, (_INVALID if status < 500 else "server_error", None))
    return envelope(message, kind, code)


def _with_nodes(error: ComfyUIError) -> str:
    """The detail, and what was said of the first nodes: this body has no other place for it."""
    nodes = [f"node {node_id}: {'; '.join(messages)}" for node_id, messages in error.node_errors.items()]
    return ". ".join([error.detail, *(short(text, _LONGEST_OF_NODE) for text in nodes[:_MOST_NODES])])


def envelope_of(error: ComfyUIError) -> tuple[int, Envelope, dict[str, str]]:
    """Status, body and headers of an error."""
    headers = {} if isinstance(error, _BEFORE_A_JOB) else dict(NO_RETRY)
    match error:
        case ImageCallError():
            status = 404 if error.reason == "model_not_found" else 400
            return status, envelope(error.detail, _INVALID, error.reason, error.param), headers
        case RequestError():
            return 400 if error.status == 422 else error.status, envelope(error.detail, _INVALID, error.code), headers
        case ComfyUIInputError():
            return error.status, envelope(error.detail, _INVALID, error.code, error.field or None), headers
        case ComfyUINotFoundError():
            return error.status, envelope(error.detail, _INVALID, error.code), headers
    body = envelope_of_status(error.status, _with_nodes(error))
    body["error"]["code"] = body["error"]["code"] or error.code
    return error.status, body, headers
