"""Our errors as answers of ComfyUI's own paths: in the shape that its clients read, and its web frontend shows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from starlette.responses import Response

from comfyui.exceptions import ComfyUIError, ComfyUIValidationError, RequestError, retry_after_s
from comfyui.replies import node_errors_of
from comfyui.web.front.errors import json_response

PATHS: Final = frozenset({"/prompt", "/api/prompt"})
"""The paths whose errors have this shape."""
# ComfyUI knows no other status for a body that it does not like.
_REFUSED = 400


def comfyui_error(error: ComfyUIError, headers: Mapping[str, str] | None = None) -> Response:
    """The answer. A refusal of ComfyUI's is given as ComfyUI has worded it."""
    found = {**(headers or {})}
    if (seconds := retry_after_s(error)) is not None:
        found["Retry-After"] = str(seconds)
    status = _REFUSED if isinstance(error, RequestError) else error.status
    return json_response(status, _body(error), found)


def error_of(kind: str, message: str, details: str = "") -> dict[str, Any]:
    """The body of an error that is about no node."""
    return {"error": {"type": kind, "message": message, "details": details, "extra_info": {}}, "node_errors": {}}


def _body(error: ComfyUIError) -> dict[str, Any]:
    said = (error.upstream or error.answer) if isinstance(error, ComfyUIValidationError) else None
    if said is not None:
        body = dict(said)
    elif error.node_errors:
        body = error_of("prompt_outputs_failed_validation", "Prompt outputs failed validation", error.detail)
        body["node_errors"] = node_errors_of(error.node_errors)
    else:
        body = error_of(error.code, error.detail)
    whole = body.get("error")
    if isinstance(error, ComfyUIValidationError) and error.lacks and isinstance(whole, dict):
        lacks = {name: list(lacking) for name, lacking in error.lacks.items()}
        body["error"] = {**whole, "extra_info": {**(whole.get("extra_info") or {}), "servers": lacks}}
    return body
