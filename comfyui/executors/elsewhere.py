"""`Elsewhere`: runs prompts on a platform that has its own servers and does not know our ids, such as RunPod."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from comfyui.executors.assignment import Assignment
from comfyui.jobs.journal.attempts import Attempt
from comfyui.models import PromptRequest, PromptResult
from comfyui.servers.server import Server


class Elsewhere(Protocol):
    """The executor of one such platform. The queue treats it as a server: `server`.

    A job is submitted at most once. Its progress is in the job's `AttemptLog`, so that a later gateway continues it.
    """

    @property
    def server(self) -> Server: ...

    async def submit(
        self, job: Assignment, request: PromptRequest, prompt: Mapping[str, Any], *, key: str | None, staging_s: float
    ) -> bool:
        """Whether the platform has the job now. If not, it certainly does not, and the job may be submitted again.

        Args:
            prompt: the request's workflow with its inputs placed.
            key: the name of the only key whose files may go with it; None: any file that it names.

        Raises:
            ComfyUIValidationError: it cannot run as a job there.
            JournalError: it cannot be recorded, and was not sent.
            ComfyUIError: it is refused, or the platform may have it: it must not be sent again.
        """

    async def rejoin(self, job: Assignment, attempt: Attempt) -> None:
        """Continues a job that an earlier gateway submitted. Raises if it is not known whether it was submitted."""

    async def result(self, job: Assignment) -> PromptResult:
        """Waits for the job that was submitted or rejoined. Raises the job's error."""
