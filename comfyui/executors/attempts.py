"""`AttemptLog`: how an executor records its progress with a job, each step before it is announced."""

from __future__ import annotations

from typing import Protocol

from comfyui.jobs.journal.attempts import Attempt


class AttemptLog(Protocol):
    """The log of a job's present attempt. `comfyui.jobs.attempt_log.JobAttempts` writes it into the journal.

    A method returns when its record is committed. All methods raise `JournalError`.
    """

    async def found(self) -> Attempt | None:
        """How far the attempt was in an earlier gateway; None if it was not sent."""

    async def reply(self) -> bytes:
        """The reply that was `delivered`."""

    async def sending(self) -> None:
        """The platform may have the attempt from now on. Raises `ComfyUITaskCancelledError` if it is no longer
        wanted.
        """

    async def accepted(self, ref: str) -> None:
        """The platform has the attempt under this id."""

    async def delivered(self, ref: str, reply: bytes) -> None:
        """The platform has given its reply, and need not keep it."""

    async def taken_back(self) -> None:
        """The platform certainly does not have the attempt."""
