"""What a job has made, as the contract's Outputs: the files of all nodes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

from comfyui import jsonio
from comfyui.models import OutputFile
from comfyui.web.v2.shapes import Address, time_of

JSON = dict[str, Any]

ASSETS = "/api/v2/assets"
_KINDS = ("image", "video", "audio", "text")


def output_id(prompt_id: str, file: OutputFile) -> str:
    """The same for the same file of the same job, in any process."""
    name = jsonio.canonical([file.node_id, file.type, file.subfolder, file.filename])
    return f"{prompt_id}.{hashlib.sha256(name).hexdigest()[:16]}"


def output_json(prompt_id: str, file: OutputFile, expires_at: float, address: Address) -> JSON:
    """An Output."""
    own = output_id(prompt_id, file)
    return {
        "node_id": file.node_id,
        "name": file.filename,
        "type": kind_of(file),
        "content_type": file.content_type,
        "size_bytes": 0,
        "id": own,
        "hash": None,
        "url": f"{address.public}{ASSETS}/{own}/content",
        "url_expires_at": time_of(expires_at),
        "job_id": prompt_id,
    }


def outputs_json(prompt_id: str, files: Iterable[OutputFile], expires_at: float, address: Address) -> list[JSON]:
    """All of them, each file once."""
    return list(
        {one["id"]: one for one in (output_json(prompt_id, file, expires_at, address) for file in files)}.values()
    )


def kind_of(file: OutputFile) -> str:
    """The contract's closed set: what is none of the others is a `file`."""
    if file.filename.lower().endswith(".latent"):
        return "latent"
    kind = file.content_type.partition("/")[0]
    return kind if kind in _KINDS else "file"
