"""`Numbers`: the order in which jobs come, those that the journal has numbered and those that it has not yet."""

from __future__ import annotations

from typing import NamedTuple

from comfyui.jobs.lines import Waiting
from comfyui.models import PromptRequest


class InLine(NamedTuple):
    """The values that decide a job's turn: see `Waiting`."""

    priority: int
    turn: float
    number: int

    def moved(self, priority: int | None, turn: float | None) -> InLine:
        """The order after a change; None: no change."""
        return InLine(self.priority if priority is None else priority, self.turn if turn is None else turn, self.number)


class Numbers:
    """No two jobs get the same number. A *turn* orders the jobs of one owner: the journal's number, or the one that the
    caller asked for; a job that is not in the journal yet has the number that it will get.

    It remembers the order of each job that waits, or has waited, until the job is forgotten: a job whose server is lost
    waits again in its old place.

    Attributes:
        last_turn: of the latest job that did not ask for another one.
    """

    def __init__(self) -> None:
        self._last = self.last_turn = 0
        self._known: dict[str, InLine] = {}

    def next(self) -> int:
        """Later than all before it."""
        self._last += 1
        return self._last

    def seen(self, number: int) -> None:
        """The journal has given this number to a job: the turns of those that come later are after it."""
        self.last_turn = max(self.last_turn, number)

    def remember(self, job: Waiting) -> None:
        """The job waits, or has its place already."""
        turn = job.number if job.turn is None else job.turn
        self._known[job.prompt_id] = InLine(job.priority, turn, job.number)

    def forget(self, prompt_id: str) -> None:
        """The job has ended, or is no longer wanted."""
        self._known.pop(prompt_id, None)

    def known(self, prompt_id: str) -> InLine | None:
        """The order of a job that is remembered."""
        return self._known.get(prompt_id)

    def move(self, prompt_id: str, priority: int | None, turn: float | None) -> None:
        """The job has another place in the order. None: no change."""
        if (before := self._known.get(prompt_id)) is not None:
            self._known[prompt_id] = before.moved(priority, turn)

    def of(self, prompt_id: str, request: PromptRequest) -> InLine:
        """The remembered order of a job, or that of a job that is not in the journal yet."""
        if (known := self._known.get(prompt_id)) is not None:
            return known
        number = self.next()
        self.last_turn += 1
        if request.number is not None:
            return InLine(request.priority, request.number, number)
        return InLine(request.priority, -self.last_turn if request.front else self.last_turn, number)
