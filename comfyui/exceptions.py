"""Every error that this package raises, and the one body in which a client sees it.

::

    ComfyUIError                            500  internal_error
    ├── ComfyUIValidationError              400  validation_failed
    │   └── ComfyUILimitError               413  limit_exceeded
    │       └── ComfyUIDepthError           400  limit_exceeded
    ├── ComfyUIInputError                   400  input_failed
    │   └── ComfyUIInputUnavailableError    400  input_unavailable     retryable
    │       └── ComfyUIJobInputError        400  input_failed          retryable
    ├── RequestError                        422  invalid_request
    │   ├── QueryError                      400  bad_request
    │   ├── BeyondLimitsError               400  bad_request
    │   ├── BodyEncodingError               400  bad_request
    │   ├── BodyTooLargeError               413  body_too_large
    │   ├── SlowRequestError                408  request_timeout
    │   ├── ContractError                   422  invalid_request
    │   ├── ParametersError                 422  invalid_parameters
    │   ├── ImageCallError                  422  invalid_request
    │   └── RequestHeadError                400  bad_request
    │       └── HeadTooLargeError           431  head_too_large
    ├── NotAcceptableError                  406  not_acceptable
    ├── ComfyUIConnectionError              503  connection_failed     retryable
    │   ├── ComfyUIShutdownError            503  shutting_down         retryable
    │   └── ComfyUIDescriptorsError         503  descriptors_exhausted retryable
    ├── ComfyUIDiskError                    503  disk_failed           retryable
    │   └── JournalError                    503  disk_failed           retryable
    ├── ComfyUIServerError                  502  server_error          retryable
    │   ├── ComfyUIUnreadableError          502  server_error          retryable
    │   ├── ComfyUISubmissionError          502  submission_unknown    retryable
    │   ├── ComfyUICredentialsError         502  credentials_refused
    │   └── RunPodRefusedError              502  server_error
    ├── ComfyUIPromptLostError              502  prompt_lost           retryable
    ├── ComfyUIPromptQuarantinedError       500  prompt_quarantined
    ├── ComfyUIDeliveryError                502  delivery_failed       retryable
    ├── ComfyUIUndeliverableError           502  undeliverable
    ├── StorageError                        502  storage_failed        retryable
    │   └── StorageRefusedError             400  storage_refused
    ├── ResultTooLargeError                 500  result_too_large
    ├── ComfyUITimeoutError                 504  timeout               retryable
    ├── ComfyUITaskError                    500  task_failed
    ├── ComfyUITaskCancelledError           409  task_cancelled
    ├── ComfyUIConflictError                409  conflict
    ├── ComfyUINotFoundError                404  not_found
    │   └── NamedWorkflowNotFoundError      404  not_found
    ├── NamedWorkflowForbiddenError         403  forbidden
    ├── NamedWorkflowUnusableError          409  workflow_unusable
    └── ComfyUIOverloadedError              429  overloaded            retryable
        ├── TooManyConnectionsError         503  overloaded            retryable
        ├── TooManySubmissionsError         429  overloaded            retryable
        └── TooManyStreamsError             429  overloaded            retryable

The status is fixed by the class, never guessed from a message. ``retryable`` says whether the same request may succeed
when it is simply sent again; job platforms map it to their own retries. `comfyui.web.front.errors` makes HTTP answers
of these classes.

The classes below the tree have no HTTP status, because clients never see them: they carry a reason from one of our
modules to another, which raises an error of the tree for it, or they end a connection or a process. `comfyui.engine`
and `comfyui.sdk` import nothing of ours and have their own errors.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Collection, Mapping, Sequence
from copy import copy
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal, NotRequired, Self

from pydantic import Field
from typing_extensions import TypedDict

NodeErrors = Mapping[str, Sequence[str]]
# How many servers an error names, and how many missing things of each.
_MAX_LACKS = 5
# How many parameters an error's text names; its body has all of them.
_MAX_SHOWN = 20


class ComfyUIError(Exception):
    """Base of all. ``detail`` is shown to clients: it names no path, key, header or traceback of the server.

    Attributes:
        detail: what went wrong and, if something can be done, what to do.
        prompt_id: ComfyUI's id of the prompt, when it is known; callers can attach to the prompt again.
        node_errors: node id to messages.
        saved: a `models.PromptResult` of a prompt that failed or was interrupted: the outputs that other nodes had
            saved before, from ComfyUI's history; None if it has none.
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

    def __copy__(self) -> Self:
        """The same error without its traceback, cause and context, which keep everything in their frames alive."""
        error = type(self).__new__(type(self), *self.args)
        vars(error).update(vars(self))
        return error


class ComfyUIValidationError(ComfyUIError):
    """The workflow was refused, by us or by ComfyUI.

    Attributes:
        upstream: ComfyUI's own body, if ComfyUI refused it.
        lacks: the name of each server to what it lacks, if no server has all that the workflow needs.
        answer: what ComfyUI would answer, if it was not asked.
        codes: the problems, named as in `comfyui.workflows.preflight.Problem`; empty if they were not looked for.
    """

    title = "Workflow validation failed"
    code = "validation_failed"
    status = 400
    upstream: Mapping[str, Any] | None = None
    answer: Mapping[str, Any] | None = None
    lacks: Mapping[str, Sequence[str]] = {}

    def __init__(
        self,
        detail: str,
        *,
        prompt_id: str | None = None,
        node_errors: NodeErrors | None = None,
        upstream: Mapping[str, Any] | None = None,
        answer: Mapping[str, Any] | None = None,
        codes: Collection[str] = (),
    ) -> None:
        super().__init__(detail, prompt_id=prompt_id, node_errors=node_errors)
        self.upstream, self.answer = upstream, answer
        self.codes = frozenset(codes)

    def lacked_by(self, servers: Mapping[str, Sequence[str]]) -> Self:
        """Adds what each server lacks to the error, which no server can run."""
        self.lacks = servers
        if servers:
            said = [f"{name} lacks {', '.join(lacks[:_MAX_LACKS])}" for name, lacks in servers.items()]
            self.detail = f"{self.detail}; no server has all that the workflow needs: {'; '.join(said[:_MAX_LACKS])}"
        return self


class ComfyUILimitError(ComfyUIValidationError):
    """The request is over a limit that a setting sets; ``detail`` says of what, and names the setting."""

    title = "Limit exceeded"
    code = "limit_exceeded"
    status = 413


class ComfyUIDepthError(ComfyUILimitError):
    """The JSON is nested more deeply than a setting allows, or than Python (and so ComfyUI) can read."""

    status = 400


class ComfyUIInputError(ComfyUIError):
    """An input could not be staged: bad base64, a refused or failing URL, too large.

    Attributes:
        field: where the caller gave the input, such as ``images[1].image``; empty if that is not known yet.
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
        """The same error for the caller's field `field`."""
        error = copy(self)
        error.args = (f"{field}: {self.reason}",)
        error.field, error.detail = field, error.args[0]
        return error


class ComfyUIInputUnavailableError(ComfyUIInputError):
    """An input could not be fetched for a reason that may pass: its server fails, or cannot be reached.

    The fetch was already retried. The status is 400 nevertheless: the gateway did not fail, and another gateway would
    not do better.

    Attributes:
        server: the name of the ComfyUI server that has the input; empty if it is none of ours.
    """

    title = "Input could not be fetched"
    code = "input_unavailable"
    retryable = True

    def __init__(
        self,
        reason: str,
        *,
        field: str = "",
        prompt_id: str | None = None,
        retry_after_s: float = 0.0,
        server: str = "",
    ) -> None:
        super().__init__(reason, field=field, prompt_id=prompt_id)
        self.server = server
        self.retry_after_s = max(5, math.ceil(retry_after_s))


class ComfyUIJobInputError(ComfyUIInputUnavailableError):
    """An input of an async job could not be fetched; such a job ends with this one code, whatever the reason."""

    code = "input_failed"


class RequestError(ComfyUIError):
    """The request itself cannot be used: its query, headers or body."""

    title = "Invalid request"
    code = "invalid_request"
    status = 422


class QueryError(RequestError):
    """A query parameter has a name that the endpoint does not know, or is given more than once."""

    code = "bad_request"
    status = 400


class BeyondLimitsError(RequestError):
    """The body is nested too deeply, or a number in it has too many digits."""

    code = "bad_request"
    status = 400


class BodyEncodingError(RequestError):
    """The body is not in the coding that its Content-Encoding names."""

    code = "bad_request"
    status = 400


class BodyTooLargeError(RequestError):
    """The body is larger than a setting allows; ``detail`` names the setting."""

    title = "Body too large"
    code = "body_too_large"
    status = 413


class SlowRequestError(RequestError):
    """The head or the body of the request did not go on in time."""

    title = "Request timeout"
    code = "request_timeout"
    status = 408


class Breach(enum.Enum):
    """The cause of a `ContractError`, with its code and status in Comfy API v2."""

    NOT_READABLE = ("invalid_request", 400)
    INVALID_REQUEST = ("invalid_request", 422)
    INVALID_METADATA_FILTER = ("invalid_metadata_filter", 400)
    INVALID_CURSOR = ("invalid_cursor", 400)
    INVALID_WORKFLOW = ("invalid_workflow", 422)
    WORKFLOW_FORMAT_UI = ("workflow_format_ui", 422)
    METADATA_INVALID = ("metadata_invalid", 422)
    IDEMPOTENCY_KEY_REUSE = ("idempotency_key_reuse", 422)
    MISSING_ASSET = ("missing_asset", 422)
    BLOB_NOT_FOUND = ("blob_not_found", 404)
    OUTPUT_UNAVAILABLE = ("output_unavailable", 404)
    HASH_MISMATCH = ("hash_mismatch", 409)
    ASSET_IN_USE = ("asset_in_use", 409)


class ContractError(RequestError):
    """A request of Comfy API v2 that its contract does not allow.

    Attributes:
        breach: has the code and the status of the answer.
        details: further members for programs, such as ``missing_ids``.
    """

    def __init__(self, breach: Breach, detail: str, details: Mapping[str, Any] | None = None) -> None:
        super().__init__(detail)
        self.breach, self.details = breach, details


class BadParameter(TypedDict):
    """The problem of one parameter of a named workflow."""

    message: Annotated[str, Field(description="What is wrong with the value, and which values are allowed.")]
    allowed: NotRequired[
        Annotated[
            Any,
            Field(
                description="The allowed values or names, up to 100 of them; if they cannot be listed, a JSON Schema."
            ),
        ]
    ]
    closest: NotRequired[
        Annotated[Any, Field(description="The allowed value or name that is most similar to the wrong one.")]
    ]


class ParametersError(RequestError):
    """Parameters of a named workflow that are not known, are missing, or have values that do not fit.

    Attributes:
        parameters: every wrong parameter by its name.
    """

    title = "Invalid parameters"
    code = "invalid_parameters"

    def __init__(self, parameters: Mapping[str, BadParameter]) -> None:
        shown = [f"{name}: {problem['message']}" for name, problem in list(parameters.items())[:_MAX_SHOWN]]
        if len(parameters) > _MAX_SHOWN:
            shown.append(f"and {len(parameters) - _MAX_SHOWN} more")
        super().__init__("; ".join(shown))
        self.parameters = parameters


class ImageCallError(RequestError):
    """A call of OpenAI's image API cannot be run.

    Attributes:
        param: the field that is wrong.
        reason: OpenAI's name for the cause.
    """

    def __init__(
        self, detail: str, param: str, reason: Literal["invalid_value", "model_not_found"] = "invalid_value"
    ) -> None:
        super().__init__(detail)
        self.param, self.reason = param, reason


class RequestHeadError(RequestError):
    """The head of a request is refused before anything else looks at it: two servers could read it in two ways."""

    title = "Bad request"
    code = "bad_request"
    status = 400


class HeadTooLargeError(RequestHeadError):
    """The head has more bytes or fields than a setting allows."""

    title = "Request head too large"
    code = "head_too_large"
    status = 431


class NotAcceptableError(ComfyUIError):
    """The gateway cannot return anything that the request's ``Accept`` allows."""

    title = "Not acceptable"
    code = "not_acceptable"
    status = 406


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
    """This process has as many open files as it may have. No server is to blame, and none is taken out of rotation."""

    title = "Too many open files"
    code = "descriptors_exhausted"


class ComfyUIDiskError(ComfyUIError):
    """A folder of the gateway cannot be used; nothing was accepted or sent. ``detail`` names the setting of the folder.

    Attributes:
        path: the file, for the log; None if it does not matter.
    """

    title = "The gateway's disk cannot be used"
    code = "disk_failed"
    status = 503
    retryable = True
    retry_after_s = 30
    path: Path | None = None


class JournalError(ComfyUIDiskError):
    """The journal, or a file beside it, cannot be read or written, because the disk is full, for example. It is
    unchanged.
    """


class ComfyUIServerError(ComfyUIError):
    """ComfyUI answered with an unexpected status, or with something that is not the JSON it should be.

    ``upstream_status`` is the HTTP status that ComfyUI sent; it is 200 if only the body was wrong.
    """

    title = "ComfyUI answered unexpectedly"
    code = "server_error"
    status = 502
    retryable = True

    def __init__(self, detail: str, *, prompt_id: str | None = None, upstream_status: int = 200) -> None:
        super().__init__(detail, prompt_id=prompt_id)
        self.upstream_status = upstream_status


class ComfyUIUnreadableError(ComfyUIServerError):
    """ComfyUI's answer is complete and cannot be read; the same request would bring the same answer."""


class ComfyUICredentialsError(ComfyUIServerError):
    """ComfyUI, or a proxy in front of it, answered 401 or 403 to the gateway's own request and did nothing."""

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
    """The reply to a submission was lost, and the gateway could not find out whether ComfyUI accepted the prompt."""

    title = "Submission could not be confirmed"
    code = "submission_unknown"


class RunPodRefusedError(ComfyUIServerError):
    """RunPod refuses the gateway: the key, the endpoint's id or its URL is wrong. ``detail`` names the setting."""

    retryable = False


class ComfyUIPromptLostError(ComfyUIError):
    """ComfyUI forgot the prompt, after a restart for example, and no retries are left."""

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
    """The prompt is rendered, and none of its files could be stored or read. The same request again delivers the
    result.
    """

    title = "Files could not be delivered"
    code = "delivery_failed"
    status = 502
    retryable = True


class ComfyUIUndeliverableError(ComfyUIError):
    """The prompt is rendered, and its files cannot be read or stored, however often it is tried."""

    title = "Files cannot be delivered"
    code = "undeliverable"
    status = 502


class StorageError(ComfyUIError):
    """A file could not be stored. ``detail`` names the bucket at most: no endpoint, key id, path or signature."""

    title = "File could not be stored"
    code = "storage_failed"
    status = 502
    retryable = True


class StorageRefusedError(StorageError):
    """The request asks for a place that it may not use: another bucket, or a link that lives too long."""

    title = "Storage location refused"
    code = "storage_refused"
    status = 400
    retryable = False


class ResultTooLargeError(ComfyUIError):
    """The files do not fit into a platform's reply, and there is no other place for them."""

    title = "Result too large"
    code = "result_too_large"


class ComfyUITimeoutError(ComfyUIError):
    """The prompt did not finish within the caller's timeout."""

    title = "Timed out"
    code = "timeout"
    status = 504
    retryable = True


class ComfyUITaskError(ComfyUIError):
    """A node raised while it ran.

    Attributes:
        node_id, node_type: the node; None when ComfyUI did not name it.
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


TAKEN: Final = "this prompt_id is already in use; choose another one, or leave it out"
"""The text for an id of another owner, about whom it tells nothing."""


class ComfyUINotFoundError(ComfyUIError):
    """Neither we nor ComfyUI know the prompt."""

    title = "Not found"
    code = "not_found"
    status = 404


class NamedWorkflowNotFoundError(ComfyUINotFoundError):
    """No named workflow has this name."""


class NamedWorkflowForbiddenError(ComfyUIError):
    """The caller's key may run only other workflows."""

    title = "Forbidden"
    code = "forbidden"
    status = 403


class NamedWorkflowUnusableError(ComfyUIError):
    """The file of a named workflow cannot be used; ``detail`` tells its author why."""

    title = "Workflow unusable"
    code = "workflow_unusable"
    status = 409


class ComfyUIOverloadedError(ComfyUIError):
    """The gateway has as many waiting requests as it allows."""

    title = "Too many requests are waiting"
    code = "overloaded"
    status = 429
    retryable = True

    def __init__(self, detail: str, *, prompt_id: str | None = None, retry_after_s: int = 5) -> None:
        super().__init__(detail, prompt_id=prompt_id)
        self.retry_after_s = retry_after_s


class TooManySubmissionsError(ComfyUIOverloadedError):
    """The key submits more often than it may (`per_minute`)."""


class TooManyStreamsError(ComfyUIOverloadedError):
    """The caller has as many open streams of events as it may have."""

    title = "Too many streams"


class TooManyConnectionsError(ComfyUIOverloadedError):
    """The gateway has as many connections as its limit of open files allows."""

    title = "Too many connections"
    status = 503


# Errors of our settings, and of the job platforms.


class SettingsError(Exception):
    """One or more settings cannot be used; the message names each with its problem and what is allowed."""


class QueueError(Exception):
    """The queue of tasks could not be reached; a retry may succeed. The text has no address and no key."""


class QueueSetupError(QueueError):
    """The queue cannot work until someone changes something; the text says what."""


class TaskFailedError(Exception):
    """A task failed, and a retry may succeed: LittleHorse retries when its task function raises this."""


# Errors of a client's connection, which leave no client to answer.


class ClientGoneError(Exception):
    """The client closed its connection."""


class StalledClientError(ConnectionAbortedError):
    """A client was given up in the middle of its answer; the server closes the connection."""


# Errors of our HTTP to ComfyUI; `comfyui.transport.drivers` and the relay translate them.


class InvalidRequestError(ValueError):
    """The request cannot be written as HTTP/1.1."""


class FramingError(Exception):
    """An answer is not valid HTTP/1.1; the text says why."""


class Http1Error(Exception):
    """Base of the errors of a request to ComfyUI."""


class ConnectError(Http1Error):
    """No connection could be made; nothing was sent."""


class NoAnswerError(Http1Error):
    """The connection ended before the headers of the answer arrived."""


class InvalidAnswerError(NoAnswerError):
    """The answer is not HTTP/1.1; the text says why."""


class AnswerTimeoutError(NoAnswerError):
    """The answer did not begin in time."""


class CutShortError(Http1Error):
    """The connection ended within the answer's body, or the body broke the rules of its framing."""


class AnswerTooLongError(Http1Error):
    """The answer has more bytes than its reader takes; the rest was not read."""


class NotPermittedError(OSError):
    """A name has addresses, but none that may be connected to. An `OSError`, as aiohttp expects of a resolver."""


class NoSuchNameError(OSError):
    """No name server could know this name."""


# Errors of contents that cannot be read; clients may see their text.


class JSONError(ValueError):
    """A text that is not JSON, or not readable.

    Attributes:
        beyond_limits: the text may be JSON, but it is nested too deeply or has an integer with too many digits.
    """

    def __init__(self, reason: str, *, beyond_limits: bool = False) -> None:
        super().__init__(reason)
        self.beyond_limits = beyond_limits


class InflateError(ValueError):
    """A body does not match its coding, or is not complete."""


class UncertainLayoutError(Exception):
    """The values that a node has stored cannot be assigned to its widgets."""


WITH_RETRY_AFTER: Final = (
    ComfyUIConnectionError,
    ComfyUIDiskError,
    ComfyUIInputUnavailableError,
    ComfyUIOverloadedError,
)
"""The errors that say when the same request may succeed."""


def retry_after_s(error: ComfyUIError) -> int | None:
    """The seconds that a client is asked to wait, as ``Retry-After``; None if it is not asked to wait."""
    return error.retry_after_s if isinstance(error, WITH_RETRY_AFTER) else None


class ErrorBody(TypedDict):
    """The body of every error of the gateway's own."""

    error: Annotated[str, Field(description="A short title of the error, for people.")]
    type: Annotated[str, Field(description="The stable name of the error; docs/api.md lists all of them.")]
    detail: Annotated[str, Field(description="What went wrong and, if the caller can mend it, how.")]
    prompt_id: Annotated[
        str | None,
        Field(description="The prompt's id, if it is known; with it, callers can attach to the prompt again."),
    ]
    node_errors: Annotated[dict[str, list[str]], Field(description="The messages about each node, by the node's id.")]
    timestamp: Annotated[
        str,
        Field(description="When the error occurred, in UTC, to the second.", json_schema_extra={"format": "date-time"}),
    ]
    request_id: Annotated[
        str | None, Field(description="The request's id, as in the header X-Request-ID and in every line of the log.")
    ]
    parameters: NotRequired[
        Annotated[
            dict[str, BadParameter],
            Field(description="Only for `invalid_parameters`: what is wrong with each parameter of a named workflow."),
        ]
    ]


def error_body(
    *,
    title: str,
    code: str,
    detail: str,
    request_id: str | None = None,
    prompt_id: str | None = None,
    node_errors: NodeErrors | None = None,
) -> ErrorBody:
    return {
        "error": title,
        "type": code,
        "detail": detail,
        "prompt_id": prompt_id,
        "node_errors": {node_id: list(messages) for node_id, messages in (node_errors or {}).items()},
        "timestamp": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "request_id": request_id,
    }


def error_body_of(error: ComfyUIError, *, request_id: str | None = None) -> ErrorBody:
    """`error` as the body that a client sees."""
    body = error_body(
        title=error.title,
        code=error.code,
        detail=error.detail,
        request_id=request_id,
        prompt_id=error.prompt_id,
        node_errors=error.node_errors,
    )
    if isinstance(error, ParametersError):
        body["parameters"] = dict(error.parameters)
    return body
