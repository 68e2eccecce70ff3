"""`Finished`: how the last jobs ended, so that the same id with the same body is not run again."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from copy import copy

from comfyui.exceptions import ComfyUIConflictError, ComfyUITaskError
from comfyui.inputs.content import SpooledFiles
from comfyui.jobs.job import Job
from comfyui.models import PromptRequest, PromptResult

_REMEMBERED = 1000


class Finished:
    """In memory only, and the last ones only. What a restart of ComfyUI could change is not kept."""

    def __init__(self) -> None:
        self._outcomes: OrderedDict[str, tuple[str | None, PromptResult | ComfyUITaskError]] = OrderedDict()

    def __contains__(self, prompt_id: str) -> bool:
        return prompt_id in self._outcomes

    def remember(self, job: Job, outcome: PromptResult | ComfyUITaskError) -> None:
        # An error's traceback has the request with all its inputs in it.
        kept = copy(outcome) if isinstance(outcome, ComfyUITaskError) else outcome
        self._outcomes[job.prompt_id] = (job.fingerprint, kept)
        while len(self._outcomes) > _REMEMBERED:
            self._outcomes.popitem(last=False)

    def recall(self, prompt_id: str, fingerprint: str | None = None) -> PromptResult:
        """The result of a job that is remembered, or the error that it ended with, raised.

        Args:
            fingerprint: of the request that asks, where it has a body.

        Raises:
            ComfyUIConflictError: the job was another request's.
            ComfyUITaskError: it failed.
        """
        known, outcome = self._outcomes[prompt_id]
        check_same(prompt_id, known, fingerprint)
        if isinstance(outcome, ComfyUITaskError):
            raise copy(outcome)
        return outcome


def check_same(prompt_id: str, known: str | None, fingerprint: str | None) -> None:
    """Raise `ComfyUIConflictError` for two fingerprints that differ, where both are known."""
    if known is not None and fingerprint is not None and known != fingerprint:
        raise ComfyUIConflictError("this prompt_id was used with another body", prompt_id=prompt_id)


def fingerprint_of(request: PromptRequest, files: SpooledFiles | None) -> str:
    """A hash of all that decides the result."""
    if files is None:
        return request.fingerprint()
    named = "".join(f"\n{name}\0{digest}" for name, digest in sorted(files.digests.items()))
    return hashlib.sha256((request.fingerprint() + named).encode()).hexdigest()
