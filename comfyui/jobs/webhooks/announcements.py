"""`Announcements`: which webhooks the start and the end of a run cause."""

from __future__ import annotations

import asyncio
from uuid import UUID

from comfyui.jobs.journal.records import Audience, Fence, NewDelivery, State, WebhookOrder

STARTED = "prompt.started"
_OF_STATE = {
    State.SUCCEEDED: "prompt.succeeded",
    State.FAILED: "prompt.failed",
    State.CANCELED: "prompt.canceled",
    State.LOST: "prompt.lost",
}
EVENTS = (STARTED, *_OF_STATE.values())


class Announcements:
    """One instance for each journal. A delivery is in the journal together with the event that it reports.

    Args:
        operator_url: is told of the end of every run; None if there is none.

    Attributes:
        news: set when there may be something new to send; the outbox clears it.
    """

    def __init__(self, operator_url: str | None = None) -> None:
        self._operator_url = operator_url
        self.news = asyncio.Event()

    def of_start(self, fence: Fence, order: WebhookOrder | None, at: float) -> tuple[NewDelivery, ...]:
        """The deliveries that report the start of the run's execution."""
        if order is None or STARTED not in order.events:
            return ()
        return (_delivery(fence, STARTED, order.url, "caller", at),)

    def of_end(self, fence: Fence, order: WebhookOrder | None, state: State, at: float) -> tuple[NewDelivery, ...]:
        """The deliveries that report this end of the run."""
        event = _OF_STATE[state]
        made: list[NewDelivery] = []
        if order is not None and (not order.events or event in order.events):
            made.append(_delivery(fence, event, order.url, "caller", at))
        if self._operator_url is not None:
            made.append(_delivery(fence, event, self._operator_url, "operator", at))
        return tuple(made)


def _delivery(fence: Fence, event: str, url: str, audience: Audience, at: float) -> NewDelivery:
    # No dot: the text that is signed is divided by dots.
    name = f"msg_{UUID(fence.prompt_id).hex}_{fence.run}_{'start' if event == STARTED else 'end'}"
    suffix = "" if audience == "caller" else "_operator"
    return NewDelivery(id=name + suffix, event=event, url=url, due_at=at, audience=audience)
