"""The errors between a caller and the gateway: one exception for each kind of error body."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

JobStatus = Literal["queued", "running", "canceling", "succeeded", "failed", "canceled", "lost"]


class GatewayError(Exception):
    """Base of all errors of this client: the server's error body, or the client's own finding.

    ::

        GatewayError                     any other status
        ├── GatewayRefusedError          400 401 403 404 406 409 413 415 422: the same request will be refused again,
        │                                but for ``input_unavailable``, which may pass (see ``retry_after_s``)
        ├── GatewayTaskError             500 502: it was accepted and failed
        │   └── GatewayCancelledError    409 task_cancelled
        ├── GatewayTimeoutError          504, or no answer long after the timeout
        ├── GatewayNotFinishedError      its result was asked for, and the job has not ended
        ├── GatewayConnectionError       503, no connection, or one that was lost
        ├── GatewayOverloadedError       429
        └── GatewayProtocolError         something answered that is not the gateway

    Attributes:
        detail: what went wrong, in a sentence.
        type: the stable code of the kind of error, such as ``validation_failed``.
        status: the HTTP status; None if there was no answer.
        node_errors: node id to messages.
        prompt_id: the prompt, if there is one; a caller may attach to it again.
        request_id: the gateway's id of the request, for its logs.
        retry_after_s: when the server asks to come back.
        parameters: those of a named workflow that were refused, each with ``message``, ``allowed`` and ``closest``.
        job_status: how the job ended, if this is the job's own error: ``failed``, ``canceled`` or ``lost``. None if it
            concerns only the request: the job, if there is one, may go on.
    """

    def __init__(
        self,
        detail: str,
        *,
        title: str = "Request failed",
        code: str = "unexpected",
        status: int | None = None,
        node_errors: Mapping[str, Sequence[str]] | None = None,
        prompt_id: str | None = None,
        request_id: str | None = None,
        retry_after_s: float | None = None,
        job_status: JobStatus | None = None,
        parameters: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(detail)
        self.parameters = parameters or {}
        self.detail = detail
        self.title = title
        self.type = code
        self.status = status
        self.node_errors = node_errors or {}
        self.prompt_id = prompt_id
        self.request_id = request_id
        self.retry_after_s = retry_after_s
        self.job_status = job_status

    def to_json(self) -> dict[str, Any]:
        """The shape of the server's error body, with the status and the values of headers."""
        return {
            "error": self.title,
            "type": self.type,
            "detail": self.detail,
            "prompt_id": self.prompt_id,
            "node_errors": {node: list(messages) for node, messages in self.node_errors.items()},
            "request_id": self.request_id,
            "http_status": self.status,
            "retry_after_s": self.retry_after_s,
            "job_status": self.job_status,
            **({"parameters": dict(self.parameters)} if self.parameters else {}),
        }


class GatewayRefusedError(GatewayError):
    """The request was refused and will be again; nothing runs because of it."""


class GatewayTaskError(GatewayError):
    """The prompt was accepted and failed."""


class GatewayCancelledError(GatewayTaskError):
    """The prompt was interrupted or taken out of the queue by someone."""


class GatewayTimeoutError(GatewayError):
    """The prompt did not finish within the timeout."""


class GatewayNotFinishedError(GatewayError):
    """The result of an unfinished job was requested. ``job_status`` is None: the job goes on."""


class GatewayConnectionError(GatewayError):
    """No gateway that can do the work answers. ``sent`` is true if the request may have arrived nevertheless."""

    def __init__(self, detail: str, *, sent: bool = False, **fields: Any) -> None:
        super().__init__(detail, **fields)
        self.sent = sent


class GatewayOverloadedError(GatewayError):
    """The gateway is at its limit; see ``retry_after_s``."""


class GatewayProtocolError(GatewayError):
    """The program that answers at this address is not the gateway."""


# In an event stream, the error body comes without an HTTP status: this is the server's own table of the two.
_STATUS_OF_TYPE = {
    "bad_request": 400,
    "input_failed": 400,
    "input_unavailable": 400,
    "storage_refused": 400,
    "validation_failed": 400,
    "forbidden": 403,
    "not_found": 404,
    "not_acceptable": 406,
    "request_timeout": 408,
    "conflict": 409,
    "task_cancelled": 409,
    "workflow_unusable": 409,
    "body_too_large": 413,
    "limit_exceeded": 413,
    "invalid_parameters": 422,
    "invalid_request": 422,
    "overloaded": 429,
    "head_too_large": 431,
    "internal_error": 500,
    "prompt_quarantined": 500,
    "result_too_large": 500,
    "task_failed": 500,
    "credentials_refused": 502,
    "delivery_failed": 502,
    "prompt_lost": 502,
    "server_error": 502,
    "storage_failed": 502,
    "submission_unknown": 502,
    "undeliverable": 502,
    "connection_failed": 503,
    "descriptors_exhausted": 503,
    "disk_failed": 503,
    "shutting_down": 503,
    "timeout": 504,
}


def is_error_body(body: object) -> bool:
    return isinstance(body, dict) and all(isinstance(body.get(key), str) for key in ("error", "type", "detail"))


def error_from(
    body: Mapping[str, Any],
    status: int | None = None,
    retry_after_s: float | None = None,
    job_status: str | None = None,
) -> GatewayError:
    """The exception for one of the gateway's error bodies. `job_status`: what `X-Prompt-Status` said."""
    kind = body["type"]
    status = status or _STATUS_OF_TYPE.get(kind)
    fields = {
        "title": body["error"],
        "code": kind,
        "status": status,
        "node_errors": body.get("node_errors"),
        "prompt_id": body.get("prompt_id"),
        "parameters": body.get("parameters"),
        "request_id": body.get("request_id"),
        "retry_after_s": retry_after_s,
        "job_status": cast("JobStatus", job_status) if job_status in {"failed", "canceled", "lost"} else None,
    }
    if status == 503:
        # A gateway that stops leaves its prompts to ComfyUI: they can be attached to when it is back.
        return GatewayConnectionError(body["detail"], sent=kind == "shutting_down", **fields)
    return error_class(status, kind)(body["detail"], **fields)


def error_of_job(prompt_id: str, job_status: JobStatus, kind: str, detail: str) -> GatewayError:
    """The exception for a listed job without a result."""
    title = (
        "Cancelled" if job_status == "canceled" else f"The job {'is' if job_status == 'lost' else 'has'} {job_status}"
    )
    return error_from({"error": title, "type": kind, "detail": detail, "prompt_id": prompt_id}, job_status=job_status)


def error_class(status: int | None, kind: str) -> type[GatewayError]:
    match status:
        case 409 if kind == "task_cancelled":
            return GatewayCancelledError
        case 429:
            return GatewayOverloadedError
        case 504:
            return GatewayTimeoutError
        case 500 | 502:
            return GatewayTaskError
        case int() if 400 <= status < 500:
            return GatewayRefusedError
        case _:
            return GatewayError
