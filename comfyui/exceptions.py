"""Every error that this package raises, and the one body in which a client sees it.

::

    ComfyUIError                        500  internal_error
    ├── ComfyUIValidationError          400  validation_failed
    │   └── ComfyUILimitError           413  limit_exceeded
    ├── ComfyUIInputError               400  input_failed
    │   └── ComfyUIInputUnavailableError 400  input_unavailable    retryable
    ├── ComfyUIConnectionError          503  connection_failed     retryable
    │   ├── ComfyUIShutdownError        503  shutting_down         retryable
    │   └── ComfyUIDescriptorsError     503  descriptors_exhausted retryable
    ├── ComfyUIDiskError                503  disk_failed           retryable
    ├── ComfyUIServerError              502  server_error          retryable
    │   ├── ComfyUISubmissionError      502  submission_unknown    retryable
    │   └── ComfyUICredentialsError     502  credentials_refused
    ├── ComfyUIPromptLostError          502  prompt_lost           retryable
    ├── ComfyUIPromptQuarantinedError   500  prompt_quarantined
    ├── ComfyUIDeliveryError            502  delivery_failed       retryable
    ├── ComfyUIUndeliverableError       502  undeliverable
    ├── ComfyUITimeoutError             504  timeout               retryable
    ├── ComfyUITaskError                500  task_failed
    ├── ComfyUITaskCancelledError       409  task_cancelled
    ├── ComfyUIConflictError            409  conflict
    ├── ComfyUINotFoundError            404  not_found
    └── ComfyUIOverloadedError          429  overloaded            retryable

The status is fixed by the class, never guessed from a message. ``retryable`` says whether the same request may succeed
when it is simply sent again; job platforms map it to their own retries.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from copy import copy
from datetime import UTC, datetime
from typing import Any, ClassVar, Self

NodeErrors = Mapping[str, Sequence[str]]


class ComfyUIError(Exception):
    """Base of all. ``detail`` is shown to clients: it names no path, key, header or traceback of the server.

    Attributes:
        detail: what went wrong and, where there is something to do, what to do.
        prompt_id: ComfyUI's id of the prompt, when one is known; callers can attach to it again.
        node_errors: node id to messages.
        saved: a `models.PromptResult` with what other nodes had saved before this one failed; None when nothing.
    """

    title: ClassVar[str] = "Internal error"
    code: ClassVar[str] = "internal_error"
    status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False

    def __init__(self, detail: str, *, prompt_id: str | None = None, node_errors: NodeErrors | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.prompt_id = prompt_id
        self.node_errors: NodeErrors = node_errors or {}
        self.saved: Any = None


class ComfyUIValidationError(ComfyUIError):
    """The workflow was refused, by us or by ComfyUI; ``upstream`` is ComfyUI's own body where it was ComfyUI."""

    title = "Workflow validation failed"
    code = "validation_failed"
    status = 400

    def __init__(
        self,
        detail: str,
        *,
        prompt_id: str | None = None,
        node_errors: NodeErrors | None = None,
        upstream: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(detail, prompt_id=prompt_id, node_errors=node_errors)
        self.upstream = upstream


class ComfyUILimitError(ComfyUIValidationError):
    """The request has more of something than a setting allows; ``detail`` says of what, and names the setting."""

    title = "Over a limit"
    code = "limit_exceeded"
    status = 413


class ComfyUIDepthError(ComfyUILimitError):
    """The JSON is nested more deeply than a setting allows, or than Python, and so ComfyUI, can read."""

    status = 400


class ComfyUIInputError(ComfyUIError):
    """An input could not be staged: bad base64, a refused or failing URL, too large.

    Attributes:
        field: where the caller gave it, ``images[1].image``; empty where that is not known yet.
        reason: ``detail`` without the field.
    """

    title = "Input could not be staged"
    code = "input_failed"
    status = 400

    def __init__(self, reason: str, *, field: str = "", prompt_id: str | None = None) -> None:
        super().__init__(f"{field}: {reason}" if field else reason, prompt_id=prompt_id)
        self.field = field
        self.reason = reason

    def in_field(self, field: str) -> Self:
        """The same error, about what the caller gave as `field`."""
        error = copy(self)
        error.args = (f"{field}: {self.reason}",)
        error.field, error.detail = field, error.args[0]
        return error


class ComfyUIInputUnavailableError(ComfyUIInputError):
    """An input's URL could not be fetched for a reason that may pass: its server fails, or cannot be reached.

    It was tried again already. The status is still 400: what failed is not the gateway, and another gateway would not
    do better.
    """

    title = "Input could not be fetched"
    code = "input_unavailable"
    retryable = True

    def __init__(
        self, reason: str, *, field: str = "", prompt_id: str | None = None, retry_after_s: float = 0.0
    ) -> None:
        super().__init__(reason, field=field, prompt_id=prompt_id)
        self.retry_after_s = max(5, math.ceil(retry_after_s))


class ComfyUIConnectionError(ComfyUIError):
    """No ComfyUI can be reached. ``sent`` is true when the request may have arrived before the connection broke."""

    title = "ComfyUI is unreachable"
    code = "connection_failed"
    status = 503
    retryable = True

    def __init__(
        self, detail: str, *, prompt_id: str | None = None, sent: bool = False, retry_after_s: int = 5
    ) -> None:
        super().__init__(detail, prompt_id=prompt_id)
        self.sent = sent
        self.retry_after_s = retry_after_s


class ComfyUIShutdownError(ComfyUIConnectionError):
    """This process is stopping; a prompt with an id goes on in ComfyUI and can be attached to again."""

    title = "The gateway is shutting down"
    code = "shutting_down"


class ComfyUIDescriptorsError(ComfyUIConnectionError):
    """This process has as many files open as it may: no server is to blame, and none is taken out of rotation."""

    title = "Too many open files"
    code = "descriptors_exhausted"


class ComfyUIDiskError(ComfyUIError):
    """A folder of the gateway cannot be used: nothing was taken or sent. ``detail`` names the setting of the folder."""

    title = "The gateway's disk cannot be used"
    code = "disk_failed"
    status = 503
    retryable = True


class ComfyUIServerError(ComfyUIError):
    """ComfyUI answered with an unexpected status, or with something that is not the JSON it should be.

    ``upstream_status`` is the HTTP status that ComfyUI sent, 200 when only the body was wrong.
    """

    title = "ComfyUI answered unexpectedly"
    code = "server_error"
    status = 502
    retryable = True

    def __init__(self, detail: str, *, prompt_id: str | None = None, upstream_status: int = 200) -> None:
        super().__init__(detail, prompt_id=prompt_id)
        self.upstream_status = upstream_status


class ComfyUIUnreadableError(ComfyUIServerError):
    """ComfyUI's answer came whole and cannot be read: to ask again would bring the same."""


class ComfyUICredentialsError(ComfyUIServerError):
    """ComfyUI, or a proxy before it, answered 401 or 403 to the gateway's own request: it did nothing."""

    title = "ComfyUI refuses the gateway"
    code = "credentials_refused"
    retryable = False

    def __init__(self, what: str, *, upstream_status: int) -> None:
        super().__init__(
            f"{what}: ComfyUI refuses the gateway's credentials (HTTP {upstream_status}); set COMFYUI_HEADERS, or user"
            " and password in COMFYUI_SERVER_ADDRESS",
            upstream_status=upstream_status,
        )


class ComfyUISubmissionError(ComfyUIServerError):
    """The reply to a submission was lost, and whether ComfyUI took the prompt could not be found out."""

    title = "Submission could not be confirmed"
    code = "submission_unknown"


class ComfyUIPromptLostError(ComfyUIError):
    """ComfyUI forgot the prompt (it restarted, say) and the retries are used up."""

    title = "Prompt was lost"
    code = "prompt_lost"
    status = 502
    retryable = True


class ComfyUIPromptQuarantinedError(ComfyUIError):
    """The workflow ended ComfyUI's process more than once, and is refused for a time.

    Attributes:
        log_tail: the last lines that ComfyUI wrote before it ended; file paths are cut to their names.
    """

    title = "Workflow is quarantined"
    code = "prompt_quarantined"

    def __init__(self, detail: str, *, prompt_id: str | None = None, log_tail: Sequence[str] = ()) -> None:
        super().__init__(detail, prompt_id=prompt_id)
        self.log_tail = tuple(log_tail)


class ComfyUIDeliveryError(ComfyUIError):
    """The prompt is rendered, and none of its files could be stored or read. The same again delivers what is there."""

    title = "Files could not be delivered"
    code = "delivery_failed"
    status = 502
    retryable = True


class ComfyUIUndeliverableError(ComfyUIError):
    """The prompt is rendered, and its files cannot be had or stored, however often it is tried."""

    title = "Files cannot be delivered"
    code = "undeliverable"
    status = 502


class ComfyUITimeoutError(ComfyUIError):
    """Not finished within the caller's timeout."""

    title = "Timed out"
    code = "timeout"
    status = 504
    retryable = True


class ComfyUITaskError(ComfyUIError):
    """A node raised while it ran.

    Attributes:
        node_id, node_type: where; None when ComfyUI did not say.
        exception_type: the class name as ComfyUI reports it, such as ``torch.OutOfMemoryError``.
        traceback_tail: the last lines of the node's traceback, for logs and workers; file paths are cut to their names.
    """

    title = "Task execution failed"
    code = "task_failed"

    def __init__(
        self,
        detail: str,
        *,
        prompt_id: str | None = None,
        node_errors: NodeErrors | None = None,
        node_id: str | None = None,
        node_type: str | None = None,
        exception_type: str | None = None,
        traceback_tail: Sequence[str] = (),
    ) -> None:
        super().__init__(detail, prompt_id=prompt_id, node_errors=node_errors)
        self.node_id = node_id
        self.node_type = node_type
        self.exception_type = exception_type
        self.traceback_tail = tuple(traceback_tail)


class ComfyUITaskCancelledError(ComfyUIError):
    """Interrupted, or removed from ComfyUI's queue, by someone."""

    title = "Task was cancelled"
    code = "task_cancelled"
    status = 409


class ComfyUIConflictError(ComfyUIError):
    """The same prompt_id or Idempotency-Key was used before with a different body."""

    title = "Conflicting request"
    code = "conflict"
    status = 409


class ComfyUINotFoundError(ComfyUIError):
    """Neither we nor ComfyUI know the prompt."""

    title = "Not found"
    code = "not_found"
    status = 404


class ComfyUIOverloadedError(ComfyUIError):
    """The gateway is at its limit of waiting requests."""

    title = "Too many requests are waiting"
    code = "overloaded"
    status = 429
    retryable = True

    def __init__(self, detail: str, *, prompt_id: str | None = None, retry_after_s: int = 5) -> None:
        super().__init__(detail, prompt_id=prompt_id)
        self.retry_after_s = retry_after_s


def error_body(
    *,
    title: str,
    code: str,
    detail: str,
    request_id: str | None = None,
    prompt_id: str | None = None,
    node_errors: NodeErrors | None = None,
) -> dict[str, Any]:
    """The body of every error answer: docs/api.md. ``timestamp`` is UTC, to the second."""
    return {
        "error": title,
        "type": code,
        "detail": detail,
        "prompt_id": prompt_id,
        "node_errors": {node_id: list(messages) for node_id, messages in (node_errors or {}).items()},
        "timestamp": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "request_id": request_id,
    }


def error_body_of(error: ComfyUIError, *, request_id: str | None = None) -> dict[str, Any]:
    """`error` as the body that a client sees."""
    return error_body(
        title=error.title,
        code=error.code,
        detail=error.detail,
        request_id=request_id,
        prompt_id=error.prompt_id,
        node_errors=error.node_errors,
    )


class InvalidRequestError(ValueError):
    """The request cannot be written as HTTP/1.1."""
