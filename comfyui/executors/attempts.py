"""`AttemptLog`: how an executor writes down how far it is with a job, each step before what it announces."""

from __future__ import annotations

from typing import Protocol

from comfyui.jobs.journal.attempts import Attempt


class AttemptLog(Protocol):
    """Of the present attempt of one job. `comfyui.jobs.attempt_log.JobAttempts` writes it into the journal.

    What it writes is committed when the method returns. All methods raise `JournalError`.
    """

    async def found(self) -> Attempt | None:
        """How far the attempt was in a gateway before this one; None where it was not sent."""

    async def reply(self) -> bytes:
        """What was `delivered`."""

    async def sending(self) -> None:
        """The platform may have the attempt from now on. Raises `ComfyUITaskCancelledError` where it is not wanted."""

    async def accepted(self, ref: str) -> None:
        """The platform has it under this id."""

    async def delivered(self, ref: str, reply: bytes) -> None:
        """The platform has given its reply, and need not keep it."""

    async def taken_back(self) -> None:
        """The platform surely does not have the attempt."""
