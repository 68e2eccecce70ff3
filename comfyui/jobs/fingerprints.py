"""Two requests with the same id must be the same request."""

from __future__ import annotations

import hashlib

from comfyui.exceptions import ComfyUIConflictError
from comfyui.inputs.content import SpooledFiles
from comfyui.models import PromptRequest


def check_same(prompt_id: str, known: str | None, fingerprint: str | None) -> None:
    """Raise `ComfyUIConflictError` for two fingerprints that differ, where both are known."""
    if known is not None and fingerprint is not None and known != fingerprint:
        raise ComfyUIConflictError(
            "this prompt_id or Idempotency-Key was already used with a different body; use another one",
            prompt_id=prompt_id,
        )


def fingerprint_of(request: PromptRequest, files: SpooledFiles | None) -> str:
    """A hash of all that decides the result."""
    if files is None:
        return request.fingerprint()
    named = "".join(f"\n{name}\0{digest}" for name, digest in sorted(files.digests.items()))
    return hashlib.sha256((request.fingerprint() + named).encode()).hexdigest()
