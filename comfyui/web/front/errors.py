"""The only mapping of errors to HTTP: every error of the gateway's own endpoints has the one body (docs/api.md)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches
from http import HTTPStatus
from typing import Any, Final

import structlog
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Scope

from comfyui import jsonio
from comfyui.exceptions import (
    ComfyUIError,
    ComfyUITaskError,
    RequestError,
    error_body,
    error_body_of,
    retry_after_s,
)
from comfyui.web.front import openai_errors, v2_errors
from comfyui.web.front.openai_errors import is_openai
from comfyui.web.front.request_state import state_of
from comfyui.web.front.v2_errors import is_v2

_log = structlog.get_logger(__name__)

CODES: Final = {
    400: "bad_request",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    406: "not_acceptable",
    413: "body_too_large",
    415: "unsupported_encoding",
    422: "invalid_request",
    426: "upgrade_required",
    429: "overloaded",
}
"""The code of a refusal by its status."""


# pydantic's words for these are Python's.
_IN_WORDS_OF_JSON: Final = {
    "extra_forbidden": "there is no such field",
    "dict_type": "Input should be an object",
    "model_type": "Input should be an object",
    "model_attributes_type": "Input should be an object",
    "list_type": "Input should be a list",
    "tuple_type": "Input should be a list",
}


def error_response(error: ComfyUIError, scope: Scope, headers: Mapping[str, str] | None = None) -> Response:
    """`error` as the answer to a request, with `headers` added, in the shape for its path."""
    found = {**(headers or {})}
    if (seconds := retry_after_s(error)) is not None:
        found["Retry-After"] = str(seconds)
    if is_v2(scope):
        status, envelope = v2_errors.envelope_of(error)
        return json_response(status, envelope, found)
    if is_openai(scope):
        status, envelope, more = openai_errors.envelope_of(error)
        return json_response(status, envelope, found | more)
    return json_response(error.status, error_body_of(error, request_id=state_of(scope).request_id), found)


def json_response(status: int, body: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> Response:
    return Response(jsonio.dumps(body), status, headers, media_type="application/json")


def refusal(scope: Scope, status: int, detail: str, headers: Mapping[str, str] | None = None) -> Response:
    """The answer to a request or a websocket's handshake that is refused before it reaches an endpoint."""
    if is_v2(scope):
        return json_response(status, v2_errors.envelope_of_status(status, detail), headers)
    if is_openai(scope):
        return json_response(status, openai_errors.envelope_of_status(status, detail), headers)
    body = error_body(
        title=HTTPStatus(status).phrase,
        code=CODES.get(status, "http_error"),
        detail=detail,
        request_id=state_of(scope).request_id,
    )
    return json_response(status, body, headers)


async def answer_error(request: Request, error: Exception) -> Response:
    """The answer of an endpoint that raised a `ComfyUIError`, and its line in the log."""
    assert isinstance(error, ComfyUIError)  # noqa: S101 - what it is called for
    log_failure(error)
    return error_response(error, request.scope)


def log_failure(error: ComfyUIError) -> None:
    """The line of the log for a request that was answered with this error."""
    fields: dict[str, Any] = {"type": error.code, "status": error.status, "detail": error.detail}
    if isinstance(error, ComfyUITaskError) and error.traceback_tail:
        fields["traceback_tail"] = "\n".join(error.traceback_tail)
    _log.log(40 if error.status >= 500 else 20, "request.failed", prompt_id=error.prompt_id, **fields)


def install_error_handlers(app: FastAPI) -> None:
    """FastAPI's and Starlette's own errors included."""

    app.add_exception_handler(ComfyUIError, answer_error)

    @app.exception_handler(RequestValidationError)
    async def validation_error(request: Request, error: RequestValidationError) -> Response:
        return error_response(RequestError(describe_validation(error.errors())), request.scope)

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        detail = str(error.detail)
        if error.status_code == 404:
            detail = f"{request.method} {request.url.path}: there is no such endpoint"
        elif error.status_code == 405:
            allowed = (error.headers or {}).get("Allow", "")
            detail = f"{request.url.path} does not allow {request.method}; it allows {allowed}"
        return refusal(request.scope, error.status_code, detail, error.headers)

    @app.exception_handler(ClientDisconnect)
    async def client_gone(_request: Request, _error: Exception) -> Response:
        return answer_to_nobody()

    @app.exception_handler(Exception)
    async def crashed(request: Request, _error: Exception) -> Response:
        return unexpected(request)  # the server logs the traceback


def answer_to_nobody() -> Response:
    """The answer to a client that has gone away; its status, nginx's "client closed request", is for the access log."""
    return Response(status_code=499)


def unexpected(request: Request) -> Response:
    """The answer if the gateway itself failed: the log has the traceback under the same id."""
    detail = "the gateway failed; its log has the reason with this request_id"
    return error_response(ComfyUIError(detail), request.scope)


def describe_validation(errors: Sequence[Any], known: Collection[str] = ()) -> str:
    """pydantic's errors as one sentence each, with the field's name: ``prompt: Field required``.

    Args:
        known: the fields of the whole; a field that does not exist is compared with them.
    """
    return "; ".join(_describe(error, known) for error in errors if not _follows(error, errors))


def _follows(error: Mapping[str, Any], errors: Sequence[Any]) -> bool:
    """pydantic counts the members of a list without those that it refused, and then finds too few of them."""
    place = tuple(error["loc"])
    return error["type"] == "too_short" and any(
        len(other["loc"]) > len(place) and tuple(other["loc"][: len(place)]) == place for other in errors
    )


def _describe(error: Mapping[str, Any], known: Collection[str]) -> str:
    if error["type"] == "json_invalid":
        reason = (error.get("ctx") or {}).get("error", "")
        return f"the body is not JSON: {reason}"
    location = list(error["loc"])
    if len(location) > 1 and location[0] in {"body", "query", "header", "path"}:
        del location[0]
    name = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")
    message = str(error["msg"]).removeprefix("Value error, ")
    message = _IN_WORDS_OF_JSON.get(error["type"], message)
    if error["type"] == "extra_forbidden" and (closest := get_close_matches(name, known, 1)):
        message = f"{message}; did you mean {closest[0]}?"
    return f"{name or 'body'}: {message}"
