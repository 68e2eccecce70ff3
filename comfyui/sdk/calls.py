"""The HTTP requests to the gateway that are about one prompt."""

from __future__ import annotations

import base64
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from comfyui.sdk.models import InputFile


@dataclass(frozen=True, slots=True)
class Call:
    """One HTTP request.

    Attributes:
        prompt_id: empty if the gateway makes it of an idempotency key.
        return_base64: whether files' bytes are wanted in the answer, for requests that go on waiting for it.
    """

    method: str
    path: str
    prompt_id: str
    query: Mapping[str, str] = field(default_factory=dict)
    body: Mapping[str, Any] | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    return_base64: bool = False


def submission(
    workflow: Mapping[str, Any],
    images: Sequence[InputFile],
    prompt_id: str | None,
    return_base64: bool,
    previews: bool = False,
) -> Call:
    prompt_id = prompt_id or str(uuid.uuid4())
    body: dict[str, Any] = {"prompt": workflow, "prompt_id": prompt_id, "return_image_base64": return_base64}
    if images:
        body["images"] = [image.to_json() for image in images]
    query = {"previews": "true"} if previews else {}
    return Call("POST", "/prompt_sync", prompt_id, query, body, return_base64=return_base64)


def named_submission(
    name: str, parameters: Mapping[str, Any], prompt_id: str | None, return_base64: bool, previews: bool = False
) -> Call:
    """The request that runs a named workflow."""
    prompt_id = prompt_id or str(uuid.uuid4())
    options = {"prompt_id": prompt_id, "return_image_base64": return_base64}
    query = {"previews": "true"} if previews else {}
    body = {**_as_json(parameters), "$options": options}
    return Call("POST", workflow_path(name), prompt_id, query, body, return_base64=return_base64)


def job_submission(
    workflow: Mapping[str, Any],
    images: Sequence[InputFile],
    prompt_id: str | None,
    idempotency_key: str | None,
    wait_s: float,
    more: Mapping[str, Any],
) -> Call:
    """The request that takes a job in. `more`: further fields of the body; those that are empty are left out.

    Raises:
        ValueError: `prompt_id` and `idempotency_key` are both given.
    """
    headers = {"Prefer": f"respond-async, wait={wait_s:g}" if wait_s else "respond-async"}
    body: dict[str, Any] = {"prompt": workflow, **{name: value for name, value in more.items() if value}}
    if images:
        body["images"] = [image.to_json() for image in images]
    prompt_id = _identified(body, headers, prompt_id, idempotency_key)
    return Call("POST", "/prompt_sync", prompt_id, {}, body, headers)


def named_job_submission(
    name: str,
    parameters: Mapping[str, Any],
    prompt_id: str | None,
    idempotency_key: str | None,
    wait_s: float,
    more: Mapping[str, Any],
) -> Call:
    """The same as `job_submission`, for a named workflow."""
    headers = {"Prefer": f"respond-async, wait={wait_s:g}" if wait_s else "respond-async"}
    options = {option: value for option, value in more.items() if value}
    prompt_id = _identified(options, headers, prompt_id, idempotency_key)
    return Call("POST", workflow_path(name), prompt_id, {}, {**_as_json(parameters), "$options": options}, headers)


def _identified(
    fields: dict[str, Any], headers: dict[str, str], prompt_id: str | None, idempotency_key: str | None
) -> str:
    """Puts the job's id, or the key that gives it, into its place for the gateway; "" if only the gateway knows the
    id.
    """
    if idempotency_key is None:
        prompt_id = fields["prompt_id"] = prompt_id or str(uuid.uuid4())
    elif prompt_id is None:
        headers["Idempotency-Key"] = idempotency_key
    else:
        raise ValueError("give either prompt_id or idempotency_key, not both")
    return prompt_id or ""


def _as_json(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters with bytes, which are files, as base64."""
    return {
        name: base64.b64encode(value).decode("ascii") if isinstance(value, bytes) else value
        for name, value in parameters.items()
    }


def workflow_path(name: str) -> str:
    return f"/workflows/{quote(name, safe='')}"


def attachment(prompt_id: str, return_base64: bool = False, previews: bool = False) -> Call:
    query = {"return_image_base64": "true"} if return_base64 else {}
    if previews:
        query["previews"] = "true"
    return Call("GET", path_of(prompt_id), prompt_id, query, return_base64=return_base64)


def reattachment(call: Call) -> Call:
    """The request that goes on waiting for what `call` started."""
    if call.body is None:
        return call
    return attachment(call.prompt_id, call.return_base64, "previews" in call.query)


def path_of(prompt_id: str) -> str:
    return f"/prompt_sync/{quote(prompt_id, safe='')}"
