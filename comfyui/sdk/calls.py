"""The HTTP requests to the gateway that are about one prompt."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from comfyui.sdk.models import InputFile


@dataclass(frozen=True, slots=True)
class Call:
    """One HTTP request. ``prompt_id`` is empty where the gateway makes it of an idempotency key."""

    method: str
    path: str
    prompt_id: str
    query: Mapping[str, str] = field(default_factory=dict)
    body: Mapping[str, Any] | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


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
    return Call("POST", "/prompt_sync", prompt_id, {"previews": "true"} if previews else {}, body)


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
    if idempotency_key is None:
        prompt_id = body["prompt_id"] = prompt_id or str(uuid.uuid4())
    elif prompt_id is None:
        headers["Idempotency-Key"] = idempotency_key
    else:
        raise ValueError("give either prompt_id or idempotency_key, not both")
    return Call("POST", "/prompt_sync", prompt_id or "", {}, body, headers)


def attachment(prompt_id: str, return_base64: bool = False, previews: bool = False) -> Call:
    query = {"return_image_base64": "true"} if return_base64 else {}
    if previews:
        query["previews"] = "true"
    return Call("GET", path_of(prompt_id), prompt_id, query)


def reattachment(call: Call) -> Call:
    """The request that goes on waiting for what `call` started."""
    if call.body is None:
        return call
    return attachment(call.prompt_id, call.body["return_image_base64"], "previews" in call.query)


def path_of(prompt_id: str) -> str:
    return f"/prompt_sync/{quote(prompt_id, safe='')}"
