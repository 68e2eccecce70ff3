"""Bodies that carry a workflow: JSON of any Content-Type, or a form with files."""

from __future__ import annotations

import codecs
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, NotRequired, Self

from fastapi import Depends, Request
from pydantic import RootModel, ValidationError
from typing_extensions import TypedDict

from comfyui import big_json
from comfyui.exceptions import (
    BeyondLimitsError,
    ComfyUIDiskError,
    ComfyUIInputError,
    ComfyUILimitError,
    JSONError,
    RequestError,
)
from comfyui.inputs.content import SpooledFiles
from comfyui.limits import Limits, named, over, short
from comfyui.models import PromptRequest
from comfyui.offload import ON_LOOP_BYTES, offloaded
from comfyui.web.api.multipart import WORKFLOW_FIELDS, FormLimits, read_form
from comfyui.web.front.errors import describe_validation
from comfyui.web.front.gateway_state import gateway_of
from comfyui.web.front.middleware import is_form
from comfyui.web.front.openapi import BYTES, Schema, given, json_of
from comfyui.web.front.request_state import state_of
from comfyui.workflows.api_format import input_texts, is_ui_format

# Fields of a form that are JSON; the others are plain text.
_JSON_FIELDS = frozenset(
    {"images", "extra_data", "partial_execution_targets", "convert", "output", "labels", "webhook"}
)
FIELDS = frozenset(PromptRequest.model_fields)
"""The media type of a body."""
JSON_ERRORS: Final = (RequestError, ComfyUILimitError)
"""The possible errors of a JSON body."""
SUBMISSION_ERRORS: Final = (*JSON_ERRORS, ComfyUIInputError, ComfyUIDiskError)
"""The possible errors of a body with a workflow, or of keeping its files."""
# How many unknown fields are each named by themselves.
_MOST_UNKNOWN = 20
# pydantic copies a text that it checks in one step, and names each unknown member. Besides the workflow, `extra_data`
# and the content of images, no text is longer and no object larger.
_LONGEST_TEXT = 4096
_ITS_OWN = frozenset({"prompt", "extra_data"})
_CODED_AT_ONCE = 1 << 20


class Node(TypedDict):
    """One node of a workflow in API format."""

    class_type: str
    inputs: NotRequired[dict[str, Any]]


class Workflow(RootModel[dict[str, Node]]):
    """A workflow in API format: nodes by their id."""


@dataclass(frozen=True, slots=True)
class Submission:
    """A request, and the files that came with it. Its block holds these; others may hold them longer."""

    request: PromptRequest
    files: SpooledFiles | None = None

    def __enter__(self) -> Self:
        if self.files is not None:
            self.files.hold()
        return self

    def __exit__(self, *_exc: object) -> None:
        if self.files is not None:
            self.files.release()


async def submission(request: Request, *, waits: bool = True) -> Submission:
    """The posted workflow to run. `waits`: the caller waits for the end, and counts as a waiting request.

    Raises:
        RequestError: not JSON and no form, or a field that cannot be used, by name.
        ComfyUILimitError: more of something than a setting allows.
        ComfyUIInputError: a file of the form is too large.
        ComfyUIOverloadedError, ComfyUIShutdownError: before the body is read.
    """
    handler = gateway_of(request).handler
    if waits:
        handler.refuse_when_full()
    else:
        handler.refuse_when_draining()
    return await _submission(request, bare=False)


async def get_workflow(request: Request) -> AsyncIterator[Submission]:
    """The posted workflow to check: as in `submission`, and a bare workflow is one, too."""
    with await _submission(request, bare=True) as posted:
        yield posted


Posted = Annotated[Submission, Depends(get_workflow)]


def looks_like_workflow(body: Mapping[str, Any]) -> bool:
    """A workflow without anything around it: a UI export, or all of its members are nodes."""
    return is_ui_format(body) or (
        bool(body) and all(isinstance(node, Mapping) and "class_type" in node for node in body.values())
    )


def submission_body(*, bare: bool) -> dict[str, Schema]:
    """The description of these bodies in OpenAPI. `bare`: whether the workflow may be a body by itself."""
    models = (PromptRequest, Workflow) if bare else (PromptRequest,)
    return {**json_of(*models), "multipart/form-data": _form_schema()}


def _form_schema() -> Schema:
    """The fields of `PromptRequest`, of which a form has objects and lists as JSON text, and the files."""
    text = {"type": "string", "contentMediaType": "application/json"}
    fields = {
        name: text | {"description": field["description"]} if name in _JSON_FIELDS else given(field)
        for name, field in PromptRequest.model_json_schema()["properties"].items()
        if name != "prompt"
    }
    files = {
        "type": "array",
        "items": BYTES,
        "description": "Files under any field name; the workflow refers to them by their file names.",
    }
    workflow = text | {"description": "The workflow alone, or a whole JSON body with it."}
    return {"type": "object", "required": ["workflow"], "properties": {"workflow": workflow, **fields, "images": files}}


async def pieces_of(request: Request) -> list[bytes]:
    """The body. `request.body()` is not used: it keeps the text beside its parsed form, while the request waits."""
    return [chunk async for chunk in request.stream()]


async def _submission(request: Request, *, bare: bool) -> Submission:
    """The files have no holder yet."""
    options = gateway_of(request).options
    if not is_form(request.scope):
        pieces = await pieces_of(request)
        size = sum(map(len, pieces))
        return Submission(await offloaded(size, _of_json, pieces, size, options.limits, bare=bare))
    limits = FormLimits(
        options.max_input_bytes,
        options.max_body_bytes,
        state_of(request.scope).hold,
        max_parts=options.limits.max_inputs + len(FIELDS),
    )
    texts, files = await read_form(request.stream(), request.headers["content-type"], limits)
    size = sum(map(len, texts.values()))
    try:
        posted = await offloaded(size, _of_form, texts, size, options.limits, bare=bare)
        if files is None:
            return Submission(posted)
        return Submission(posted, files.named(await offloaded(size, _texts_of, posted)))
    except BaseException:
        if files is not None:
            await files.remove()
        raise


def _of_json(pieces: list[bytes], size: int, limits: Limits, *, bare: bool) -> PromptRequest:
    return _parsed(json_object(b"".join(pieces), "the body", limits), size, limits, bare=bare)


def _of_form(texts: dict[str, bytes | bytearray], size: int, limits: Limits, *, bare: bool) -> PromptRequest:
    return _parsed(_body_of_form(texts, limits), size, limits, bare=bare)


def _texts_of(posted: PromptRequest) -> set[str]:
    return set(input_texts(posted.prompt))


def _parsed(fields: dict[str, Any], size: int, limits: Limits, *, bare: bool) -> PromptRequest:
    """A body as a request. `bare`: whether the body may be the workflow itself."""
    if "prompt" not in fields and looks_like_workflow(fields):
        if not bare and not is_ui_format(fields):
            raise RequestError('the body is a workflow alone; wrap it in an object: {"prompt": {…}}')
        fields = {"prompt": fields}  # a UI format is refused by its name, with what to do
    return request_of(fields, size, limits)


def request_of(fields: Mapping[str, Any], size: int, limits: Limits, within: str = "") -> PromptRequest:
    """The fields of a body as a request.

    Args:
        size: of the whole body, in bytes.
        within: the member of the body that has them, for errors; "": the body itself.

    Raises:
        RequestError, ComfyUILimitError: a field cannot be used, by name.
    """
    _check_counts(fields, limits)
    if size > ON_LOOP_BYTES:
        for name in fields.keys() - _ITS_OWN:
            _check_sizes(name, fields[name])
    try:
        return PromptRequest.model_validate(fields).of_size(size)
    except ValidationError as error:
        errors = error.errors(include_url=False, include_input=False)
        if within:
            errors = [{**one, "loc": (within, *one["loc"])} for one in errors]
        raise RequestError(describe_validation(errors, FIELDS)) from None


def _check_counts(fields: Mapping[str, Any], limits: Limits) -> None:
    """Refuse what would take long to be looked at one by one."""
    unknown = [name for name in fields if name not in FIELDS]
    if len(unknown) > _MOST_UNKNOWN:
        raise RequestError(f"{named(unknown, len(unknown))}: there are no such fields")
    for name, limit in (("images", limits.max_inputs), ("partial_execution_targets", limits.max_workflow_nodes)):
        value = fields.get(name)
        if isinstance(value, list) and len(value) > limit:
            raise over(f"{name} must have at most {{limit}} entries", limit)


def _check_sizes(name: str, value: Any) -> None:
    """Checks a field, and its contents; no valid field contains more than two levels."""
    pending = [(name, value)]
    for _ in range(3):
        inside: list[tuple[str, Any]] = []
        for where, held in pending:
            if isinstance(held, str) and len(held) > _LONGEST_TEXT and not where.endswith("].image"):
                raise RequestError(f"{where} must have at most {_LONGEST_TEXT} characters")
            if isinstance(held, dict):
                if len(held) > _MOST_UNKNOWN:
                    raise RequestError(f"{where} must have at most {_MOST_UNKNOWN} fields")
                inside += [(f"{where}.{short(key)}", item) for key, item in held.items()]
            elif isinstance(held, list):
                inside += [(f"{where}[{index}]", item) for index, item in enumerate(held)]
        pending = inside


def json_object(
    text: bytes | bytearray | str, what: str, limits: Limits, wanted: str = '{"prompt": {…}}'
) -> dict[str, Any]:
    """Raises `RequestError`, which shows the expected form, for any other value, and `ComfyUILimitError`."""
    body = json_value(text, limits, what, f"{what} is not JSON")
    if not isinstance(body, dict):
        raise RequestError(f"{what} is not a JSON object; send {wanted}")
    return body


def json_value(text: bytes | bytearray | str, limits: Limits, what: str, is_not_json: str) -> Any:
    """Raises `RequestError` if it is not JSON, and `ComfyUILimitError`."""
    try:
        return big_json.load(_encoded(text) if isinstance(text, str) else text, limits)
    except JSONError as error:
        if error.beyond_limits:
            raise BeyondLimitsError(f"{what}: {error}") from None
        raise RequestError(f"{is_not_json}: {error}") from None


def _encoded(text: str) -> bytes:
    pieces = (text[start : start + _CODED_AT_ONCE] for start in range(0, len(text), _CODED_AT_ONCE))
    return b"".join(piece.encode("utf-8", "surrogatepass") for piece in pieces)


def _body_of_form(texts: dict[str, bytes | bytearray], limits: Limits) -> dict[str, Any]:
    """The fields of a form as the JSON body that says the same."""
    given = [name for name in WORKFLOW_FIELDS if name in texts]
    if len(given) != 1:
        raise RequestError("the form must have one part 'workflow' (or 'prompt') with the workflow as JSON")
    workflow = json_object(texts[given[0]], given[0], limits)
    wrapped = "prompt" in workflow and not looks_like_workflow(workflow)
    body: dict[str, Any] = workflow if wrapped else {"prompt": workflow}
    for name, text in texts.items():
        if name in _JSON_FIELDS:
            body[name] = json_value(text, limits, name, f"{name}: not JSON")
        elif name not in WORKFLOW_FIELDS:
            body[name] = plain_text(name, text)
    return body


def plain_text(name: str, text: bytes | bytearray) -> str:
    """A field that is not JSON. Decoded in pieces, because other threads stand still meanwhile."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    pieces = (text[start : start + _CODED_AT_ONCE] for start in range(0, len(text), _CODED_AT_ONCE))
    try:
        return "".join([*map(decoder.decode, pieces), decoder.decode(b"", final=True)])
    except UnicodeDecodeError:
        utf16 = text.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        raise RequestError(f"{name}: not text in UTF-8{'; it is UTF-16' if utf16 else ''}") from None
