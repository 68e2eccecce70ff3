"""The description of each endpoint in ``/openapi.json``: its input, every possible answer, and who may call it.

Nothing is written twice: schemas are made of the types that the code itself sends and reads, and the errors of an
endpoint are classes, which have their status and code.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

from pydantic import TypeAdapter

from comfyui.exceptions import (
    WITH_RETRY_AFTER,
    BodyEncodingError,
    BodyTooLargeError,
    ComfyUIDeliveryError,
    ComfyUIError,
    ComfyUIOverloadedError,
    ComfyUIUndeliverableError,
    ErrorBody,
    HeadTooLargeError,
    RequestHeadError,
    ResultTooLargeError,
    SlowRequestError,
    TooManyConnectionsError,
)
from comfyui.web.front.errors import CODES
from comfyui.web.front.keys import COOKIE
from comfyui.web.front.paths import PROBES

Schema = Mapping[str, Any]
Document = dict[str, Any]

TEXT: Final[Schema] = {"type": "string"}
BYTES: Final[Schema] = {"type": "string", "format": "binary"}
_JSON: Final = "application/json"

PROMPT_STATUS: Final = "X-Prompt-Status"
_HEADERS: Final[dict[str, tuple[str, Schema]]] = {
    "X-Request-ID": ("The request's id, which every line of the log has: the caller's own, or a new one.", TEXT),
    "X-Prompt-Id": ("ComfyUI's id of the prompt.", TEXT),
    PROMPT_STATUS: (
        "The status of the job that this answer is about. It is missing if an error concerns only the request.",
        {"type": "string", "enum": ["queued", "running", "canceling", "succeeded", "failed", "canceled", "lost"]},
    ),
    "X-Simulation": ("No real ComfyUI ran the prompt.", {"type": "string", "enum": ["true"]}),
    "Content-Disposition": ("The name of the file.", TEXT),
    "Retry-After": ("Seconds after which the same request may succeed.", {"type": "string", "pattern": "^[0-9]+$"}),
    "WWW-Authenticate": ("The schemes by which a key can be sent.", TEXT),
    "Location": ("The address of the login page or of the job.", TEXT),
    "Preference-Applied": ("The preferences of the header `Prefer` that were applied.", TEXT),
}
_REQUEST_ID: Final[Schema] = {
    "name": "X-Request-ID",
    "in": "header",
    "required": False,
    "schema": TEXT,
    "description": "Your own id of the request for logs and answers: up to 128 letters, digits and ._:/+=@-",
}
_SECURITY: Final[dict[str, Schema]] = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "A key of the gateway."},
    "header": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "A key of the gateway."},
    "basic": {
        "type": "http",
        "scheme": "basic",
        "description": "The password is a key of the gateway; the user name may be anything.",
    },
    "session": {
        "type": "apiKey",
        "in": "cookie",
        "name": COOKIE,
        "description": "The cookie that a browser gets at /login.",
    },
}
# Errors that may refuse any request before it reaches its endpoint, and a request with a body.
_BEFORE: Final = (ComfyUIError, RequestHeadError, HeadTooLargeError, SlowRequestError, TooManyConnectionsError)
_WITH_BODY: Final = (BodyEncodingError, BodyTooLargeError, ComfyUIOverloadedError)
_OF_WORKERS: Final = (ComfyUIDeliveryError, ComfyUIUndeliverableError, ResultTooLargeError)

_models: dict[str, Any] = {}
"""The named types of all endpoints. Schemas are made of them when the document is requested."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer with one status.

    Attributes:
        content: schemas by media type or range; empty if there is no body.
        headers: further ones that may come: names that `openapi` knows.
    """

    description: str
    content: Mapping[str, Schema]
    headers: Sequence[str] = ()


def named(model: Any) -> Schema:
    """The schema of a type, as a reference to its place in the document under the type's name."""
    if _models.setdefault(model.__name__, model) is not model:
        raise TypeError(f"two types of the API are named {model.__name__}")
    return {"$ref": f"#/components/schemas/{model.__name__}"}


def json_of(*models: Any) -> dict[str, Schema]:
    """The content of a body that is one of these types as JSON."""
    schemas = [named(model) for model in models]
    return {_JSON: schemas[0] if len(schemas) == 1 else {"anyOf": schemas}}


def given(field: Schema) -> dict[str, Any]:
    """The schema of a field in a query, a header or a form, in which there is no way to write null."""
    schema = {key: value for key, value in field.items() if key not in {"title", "anyOf"}}
    if schema.get("default", "") is None:
        del schema["default"]
    return schema | next((kind for kind in field.get("anyOf", ()) if kind != {"type": "null"}), {})


def operation(
    name: str,
    answers: Mapping[int, Answer],
    errors: Iterable[type[ComfyUIError]] = (),
    *,
    headers: Sequence[str] = (),
    parameters: Sequence[Schema] = (),
    body: Mapping[str, Schema] | None = None,
    relayed: Answer | None = None,
    is_probe: bool = False,
    tag: str = "prompts",
) -> dict[str, Any]:
    """The description of one endpoint, for FastAPI's ``openapi_extra``.

    Args:
        name: of the function in generated clients.
        answers: by status.
        errors: the classes that it may raise; all that are derived from them are meant, too.
        headers: those that any of its answers may have.
        parameters: in path, query and headers.
        body: schemas by media type; empty if a body means nothing.
        relayed: what may come with any status, since ComfyUI's own answers are passed on.
        is_probe: no caller is refused.
    """
    raised: set[type[ComfyUIError]] = {*_BEFORE, *(kind for error in errors for kind in _below(error))}
    described: dict[str, Any] = {"operationId": name, "tags": [tag], "parameters": [*parameters, _REQUEST_ID]}
    if body is not None:
        raised |= {*_WITH_BODY}
        described["requestBody"] = {"required": True, "content": _content(body)}
    codes = defaultdict(set, {} if is_probe else {403: {CODES[403]}})
    for kind in raised:
        codes[kind.status].add(kind.code)
    if body is not None:
        codes[415].add(CODES[415])
    responses = {str(status): _response(answer) for status, answer in answers.items()}
    responses |= {
        str(status): _refusal(status, codes[status], answers.get(status, relayed)) for status in sorted(codes)
    }
    for response in responses.values():
        response["headers"] |= {header: _header(header) for header in headers}
    described["responses"] = {**responses, "default": _response(relayed)} if relayed else responses
    return described


def completed(document: Document, *, with_keys: bool) -> Document:
    """FastAPI's document, with the parts that all endpoints share. `with_keys`: whether the gateway requires keys."""
    components = document.setdefault("components", {})
    components["schemas"] = _schemas()
    components["headers"] = {
        name: {"description": description, "schema": schema} for name, (description, schema) in _HEADERS.items()
    }
    if with_keys:
        components["securitySchemes"] = _SECURITY
        for path, operations in document["paths"].items():
            for method, described in operations.items():
                _guard(described, is_probe=path in PROBES, is_page=method == "get")
    return document


def _guard(described: dict[str, Any], *, is_probe: bool, is_page: bool) -> None:
    """Adds to an operation the answers of a gateway with keys. `is_page`: whether a person's browser may open it."""
    keys: list[Schema] = [{name: []} for name in _SECURITY]
    responses = described["responses"]
    responses.setdefault("429", _refusal(429, {CODES[429]}))
    described["security"] = [{}, *keys] if is_probe else keys
    if not is_probe:
        responses["401"] = _refusal(401, {CODES[401]})
        if is_page:
            responses["303"] = _response(
                Answer("A browser without a key is redirected to the login page.", {}, ["Location"])
            )


def _below(error: type[ComfyUIError]) -> Iterator[type[ComfyUIError]]:
    """The class and all its subclasses, except those that only job platforms see."""
    if error in _OF_WORKERS:
        return
    yield error
    for kind in error.__subclasses__():
        yield from _below(kind)


def _schemas() -> Mapping[str, Schema]:
    models = {name: TypeAdapter(model) for name, model in _models.items()}
    _, schemas = TypeAdapter.json_schemas(
        [(name, "validation", model) for name, model in models.items()], ref_template="#/components/schemas/{model}"
    )
    found: Mapping[str, Schema] = schemas["$defs"]
    return found


def _refusal(status: int, codes: Collection[str], beside: Answer | None = None) -> dict[str, Any]:
    """The error body with one of these codes, if it does not come `beside` another answer with this status."""
    text = f"An error: {', '.join(f'`{code}`' for code in sorted(codes))}."
    later = {kind.code for error in WITH_RETRY_AFTER for kind in _below(error)}
    headers = ["Retry-After"] if later.intersection(codes) else []
    headers += ["WWW-Authenticate"] if status == HTTPStatus.UNAUTHORIZED else []
    if beside is None:
        return _response(Answer(text, json_of(ErrorBody), headers))
    own = {"anyOf": [beside.content[_JSON], named(ErrorBody)]} if _JSON in beside.content else named(ErrorBody)
    content = {**beside.content, _JSON: own}
    return _response(Answer(f"{beside.description} {text}", content, [*beside.headers, *headers]))


def _response(answer: Answer) -> dict[str, Any]:
    headers = {name: _header(name) for name in ("X-Request-ID", *answer.headers)}
    response: dict[str, Any] = {"description": answer.description, "headers": headers}
    return {**response, "content": _content(answer.content)} if answer.content else response


def _header(name: str) -> Schema:
    return {"$ref": f"#/components/headers/{name}"}


def _content(schemas: Mapping[str, Schema]) -> dict[str, Any]:
    return {kind: {"schema": schema} for kind, schema in schemas.items()}
