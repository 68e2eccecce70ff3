"""`Elsewhere`: runs prompts on a platform that has servers of its own and knows no ids of ours, such as RunPod."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from comfyui.executors.assignment import Assignment
from comfyui.jobs.journal.attempts import Attempt
from comfyui.models import PromptRequest, PromptResult
from comfyui.servers.server import Server


class Elsewhere(Protocol):
    """The executor of one such platform. It is a server to the queue: `server`.

    A job is submitted at most once. How far it is stands in the job's `AttemptLog`, so that a gateway after this one
    goes on with it.
    """

    @property
    def server(self) -> Server: ...

    async def submit(
        self, job: Assignment, request: PromptRequest, prompt: Mapping[str, Any], *, key: str | None, staging_s: float
    ) -> bool:
        """Whether the platform has the job now. Else it surely does not, and the job may be submitted again.

        Args:
            prompt: the request's workflow with its inputs placed.
            key: the name of the key whose files alone may go with it; None: any file that it names.

        Raises:
            ComfyUIValidationError: it cannot be a job there.
            JournalError: it cannot be written down, and was not sent.
            ComfyUIError: it is refused, or it is not known whether the platform has it: it must not be sent again.
        """

    async def rejoin(self, job: Assignment, attempt: Attempt) -> None:
        """Goes on with what a gateway before this one submitted. Raises where it is not known whether it did."""

    async def result(self, job: Assignment) -> PromptResult:
        """Waits for the job that was submitted or rejoined. Raises what it ended with."""
