"""`Numbers`: the order in which jobs come, those that the journal has numbered and those that it has not yet."""

from __future__ import annotations

from comfyui.models import PromptRequest


class Numbers:
    """No two jobs get the same number. A *turn* is what orders the jobs of one owner: the journal's number, or the one
    that the caller asked for; of a job that is not in the journal yet it is the number that it is about to get.

    Attributes:
        last_turn: of the last job that came, where it did not ask for another one.
    """

    def __init__(self) -> None:
        self._last = self.last_turn = 0

    def next(self) -> int:
        """Later than all before it."""
        self._last += 1
        return self._last

    def seen(self, number: int) -> None:
        """The journal has given this number to a job: the turns of those that come later are after it."""
        self.last_turn = max(self.last_turn, number)

    def order_of(self, request: PromptRequest) -> tuple[float, int]:
        """Turn and number of a job that is not in the journal yet."""
        number = self.next()
        self.last_turn += 1
        if request.number is not None:
            return request.number, number
        return (-self.last_turn if request.front else self.last_turn), number
