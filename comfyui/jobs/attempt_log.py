"""`JobAttempts`: writes into the journal how far a job's attempt is at a platform that knows no ids of ours."""

from __future__ import annotations

from comfyui.exceptions import ComfyUITaskCancelledError, JournalError
from comfyui.jobs.journal.attempts import Attempt
from comfyui.jobs.journal.protocol import Journal
from comfyui.jobs.journal.records import Fence
from comfyui.jobs.journal.writes import DropAttempt, NoteAttempt


class JobAttempts:
    """The `comfyui.executors.attempts.AttemptLog` of the attempt that has this fence."""

    def __init__(self, journal: Journal, fence: Fence, now: float) -> None:
        self._journal = journal
        self._fence = fence
        self._now = now

    async def found(self) -> Attempt | None:
        return await self._journal.attempt_of(self._fence.prompt_id)

    async def reply(self) -> bytes:
        return await self._journal.reply_of(self._fence.prompt_id) or b""

    async def sending(self) -> None:
        if await self._journal.write(NoteAttempt(self._fence, self._now)):
            return
        prompt_id = self._fence.prompt_id
        if await self._journal.get(prompt_id) is None:
            # The disk took the note, and had refused the job a moment ago.
            raise JournalError("STATE_DIR: the job is not in the journal, so it was not sent", prompt_id=prompt_id)
        raise ComfyUITaskCancelledError("cancelled before it was submitted", prompt_id=prompt_id)

    async def accepted(self, ref: str) -> None:
        await self._journal.write(NoteAttempt(self._fence, self._now, ref))

    async def delivered(self, ref: str, reply: bytes) -> None:
        await self._journal.write(NoteAttempt(self._fence, self._now, ref, reply))

    async def taken_back(self) -> None:
        await self._journal.write(DropAttempt(self._fence))


def over(fence: Fence) -> DropAttempt:
    """The write for the end of an attempt's run."""
    return DropAttempt(fence)
