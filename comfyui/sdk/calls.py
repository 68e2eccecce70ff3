"""The HTTP requests of the gateway that are answered when a prompt is done."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from comfyui.sdk.models import InputFile


@dataclass(frozen=True, slots=True)
class Call:
    """One HTTP request that is answered when the prompt is done."""

    method: str
    path: str
    prompt_id: str
    query: Mapping[str, str]
    body: Mapping[str, Any] | None = None


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
