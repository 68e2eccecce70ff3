"""Bodies that carry a workflow: JSON of any Content-Type, or a form with files."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, Request
from pydantic import ValidationError

from comfyui import jsonio
from comfyui.content import SpooledFiles
from comfyui.models import PromptRequest
from comfyui.web.deps import get_handler, get_options
from comfyui.web.errors import BeyondLimitsError, RequestError, describe_validation
from comfyui.web.middleware import HOLD
from comfyui.web.multipart import WORKFLOW_FIELDS, FormLimits, is_form, read_form
from comfyui.workflow import input_texts, is_ui_format

# Fields of a form that are JSON; the others are plain text.
_JSON_FIELDS = frozenset({"images", "extra_data", "partial_execution_targets", "convert", "output"})


@dataclass(frozen=True, slots=True)
class Submission:
    """A request, and the files that came with it: they are there until it is answered, longer for who holds them."""

    request: PromptRequest
    files: SpooledFiles | None = None


async def get_submission(request: Request) -> AsyncIterator[Submission]:
    """What is posted to be run.

    Raises:
        RequestError: not JSON and no form, or a field that cannot be used, by name.
        ComfyUIInputError: a file of the form is too large.
        ComfyUIOverloadedError, ComfyUIShutdownError: before the body is read.
    """
    (await get_handler(request)).refuse_when_full()
    body, files = await _read(request)
    if files is not None:
        files.hold()
    try:
        if "prompt" not in body and looks_like_workflow(body):
            if not is_ui_format(body):
                raise RequestError('this is a bare workflow; wrap it in an object: {"prompt": {…}}')
            body = {"prompt": body}  # refused by its name, with what to do
        yield Submission(_prompt_request(body), files)
    finally:
        if files is not None:
            files.release()


async def get_workflow(request: Request) -> AsyncIterator[Submission]:
    """What is posted to be looked at: as `get_submission`, and a bare workflow is one, too."""
    body, files = await _read(request)
    if files is not None:
        files.hold()
    try:
        bare = "prompt" not in body and looks_like_workflow(body)
        yield Submission(_prompt_request({"prompt": body} if bare else body), files)
    finally:
        if files is not None:
            files.release()


Submitted = Annotated[Submission, Depends(get_submission)]
Posted = Annotated[Submission, Depends(get_workflow)]


def looks_like_workflow(body: Mapping[str, Any]) -> bool:
    """A workflow without anything around it: a UI export, or all of its members are nodes."""
    return is_ui_format(body) or (
        bool(body) and all(isinstance(node, Mapping) and "class_type" in node for node in body.values())
    )


def body_schema() -> dict[str, Any]:
    """What OpenAPI says of these bodies, which FastAPI does not read itself: definitions stand inline."""
    schema = PromptRequest.model_json_schema()
    definitions = schema.pop("$defs", {})
    text = jsonio.dumps(schema).decode()
    for name, definition in definitions.items():
        text = text.replace(f'{{"$ref":"#/$defs/{name}"}}', jsonio.dumps(definition).decode())
    form = {
        "type": "object",
        "required": ["workflow"],
        "properties": {
            "workflow": {"type": "string", "description": "The workflow as JSON, bare or as a whole body."},
            "images": {
                "type": "array",
                "items": {"type": "string", "format": "binary"},
                "description": "Files, referred to by their names; the fields of the JSON body may stand beside them.",
            },
        },
    }
    content = {"application/json": {"schema": jsonio.loads(text)}, "multipart/form-data": {"schema": form}}
    return {"requestBody": {"required": True, "content": content}}


async def _read(request: Request) -> tuple[dict[str, Any], SpooledFiles | None]:
    if is_form(request.scope):
        options = await get_options(request)
        limits = FormLimits(options.max_input_bytes, options.max_body_bytes, request.scope["state"][HOLD])
        texts, files = await read_form(request.stream(), request.headers["content-type"], limits)
        if files is None:
            return _body_of_form(texts), None
        try:
            body = _body_of_form(texts)
            return body, files.named(set(input_texts(body.get("prompt"))))
        except BaseException:
            await files.remove()
            raise
    # Not `request.body()`: that one keeps the text beside what is made of it, for as long as the request waits.
    return json_object(b"".join([chunk async for chunk in request.stream()]), "the body"), None


def json_object(text: bytes | str, what: str) -> dict[str, Any]:
    """Raises `RequestError` when it is none."""
    try:
        body = jsonio.loads(text)
    except jsonio.JSONError as error:
        raise _unreadable(error, what, f"{what} is not JSON") from None
    if not isinstance(body, dict):
        raise RequestError(f'{what} is not a JSON object: {{"prompt": {{…}}}} is wanted')
    return body


def _unreadable(error: jsonio.JSONError, what: str, is_not_json: str) -> RequestError:
    return BeyondLimitsError(f"{what}: {error}") if error.beyond_limits else RequestError(f"{is_not_json}: {error}")


def _body_of_form(texts: dict[str, str]) -> dict[str, Any]:
    """The fields of a form as the JSON body that says the same."""
    given = [name for name in WORKFLOW_FIELDS if name in texts]
    if len(given) != 1:
        raise RequestError("the form needs one part 'workflow' (or 'prompt') with the workflow as JSON")
    workflow = json_object(texts[given[0]], given[0])
    wrapped = "prompt" in workflow and not looks_like_workflow(workflow)
    body: dict[str, Any] = workflow if wrapped else {"prompt": workflow}
    for name, text in texts.items():
        if name in _JSON_FIELDS:
            try:
                body[name] = jsonio.loads(text)
            except jsonio.JSONError as error:
                raise _unreadable(error, name, f"{name}: not JSON") from None
        elif name not in WORKFLOW_FIELDS:
            body[name] = text
    return body


def _prompt_request(body: dict[str, Any]) -> PromptRequest:
    try:
        return PromptRequest.model_validate(body)
    except ValidationError as error:
        raise RequestError(describe_validation(error.errors(include_url=False, include_input=False))) from None
