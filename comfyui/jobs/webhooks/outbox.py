"""`Outbox`: sends the webhooks that wait in the journal, until each is delivered or given up.

The journal says what is due; it has only committed records, so that no reported end can be taken back by a power cut.
Only this module knows what is being sent: a gateway that is killed sends it again after its start, with the same id.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol, Self, TypeVar

import structlog

from comfyui.exceptions import JournalError
from comfyui.jobs.journal.protocol import Journal
from comfyui.jobs.journal.records import Delivery, DeliveryState, Due
from comfyui.jobs.journal.writes import Tried
from comfyui.jobs.webhooks.announcements import Announcements
from comfyui.jobs.webhooks.plan import Jitter, wait_s
from comfyui.jobs.webhooks.sending import Answer, WebhookSender
from comfyui.jobs.webhooks.signers import Signers
from comfyui.metrics import Metrics
from comfyui.retrying import Backoff, retry
from comfyui.tasks import SideTasks, happens_within

_T = TypeVar("_T")
# While the journal cannot be read or written.
_JOURNAL_BACKOFF = Backoff(start_s=1.0, max_s=30.0)
# The clock of the machine may be changed while webhooks wait.
_LOOK_S = 60.0


class Render(Protocol):
    """Makes the body of a webhook, which is another at each try: its links end."""

    def __call__(self, delivery: Delivery) -> Awaitable[bytes]:
        """Raises `JournalError` when the journal cannot be read."""


@dataclass(frozen=True, slots=True)
class OutboxOptions:
    """How much is sent at once.

    Attributes:
        at_once: tries under way, each with a body of up to 256 KB.
        each: of these to one receiver, so that one that does not answer leaves places for the others.
        bodies_at_once: that are being made; for each a whole result is in memory.
        render_s: for making one body.
        last_s: at the end, for tries that are under way: a try that is cut off may have arrived, and is sent again.
    """

    at_once: int = 64
    each: int = 4
    bodies_at_once: int = 2
    render_s: float = 60.0
    last_s: float = 5.0


async def some_wait(journal: Journal) -> bool:
    """Whether the journal has webhooks to send. Raises `JournalError`."""
    due = await journal.due(0.0, 1, 1)
    return due.next_at is not None


class Outbox:
    """Open it with ``async with``: webhooks are sent from then on. Sender and journal belong to their openers.

    Args:
        clock: Unix time, by which webhooks are due and signed.
        jitter: chooses a number between two.
    """

    def __init__(
        self,
        journal: Journal,
        announcements: Announcements,
        render: Render,
        signers: Signers,
        sender: WebhookSender,
        metrics: Metrics,
        options: OutboxOptions | None = None,
        *,
        clock: Callable[[], float] = time.time,
        jitter: Jitter = random.uniform,
    ) -> None:
        self._journal = journal
        self._news = announcements.news
        self._render = render
        self._signers = signers
        self._sender = sender
        self._metrics = metrics
        self._options = options = options or OutboxOptions()
        self._clock = clock
        self._jitter = jitter
        self._under_way: dict[str, Delivery] = {}
        self._bodies = asyncio.Semaphore(options.bodies_at_once)
        self._loop, self._tasks = SideTasks(), SideTasks()
        self._log = structlog.get_logger(__name__)

    async def __aenter__(self) -> Self:
        self._loop.start(self._send_all(), "webhooks")
        return self

    async def __aexit__(self, *_exc: object) -> None:
        """Begins no more tries. Tries that are cut off after a moment are sent again by the next gateway."""
        await self._loop.close()
        await self._tasks.close(patience_s=self._options.last_s)

    async def _send_all(self) -> None:
        while True:
            self._news.clear()
            due = await self._insist(self._due)
            for delivery in due.deliveries:
                self._under_way[delivery.id] = delivery
                self._tasks.start(self._send(delivery), f"webhook {delivery.id}")
            await happens_within(self._news, self._until(due.next_at))

    async def _due(self) -> Due:
        under_way = self._under_way.values()
        free = self._options.at_once - len(under_way)
        return await self._journal.due(self._clock(), free, self._options.each, under_way)

    async def _insist(self, work: Callable[[], Awaitable[_T]]) -> _T:
        """The journal's answer, as soon as it can give one."""
        return await retry(work, JournalError, _JOURNAL_BACKOFF, told=self._tell_journal)

    def _tell_journal(self, error: JournalError, _failures: int) -> None:
        self._log.error("webhooks.stand", reason=error.detail)

    def _until(self, next_at: float | None) -> float | None:
        return None if next_at is None else min(_LOOK_S, max(0.0, next_at - self._clock()))

    async def _send(self, delivery: Delivery) -> None:
        answer = await self._try(delivery)
        tried = self._followed(delivery, answer)
        # It stays under way until that is written: else it would be sent again at once.
        await self._insist(lambda: self._journal.write(tried))
        del self._under_way[delivery.id]
        self._news.set()

    async def _try(self, delivery: Delivery) -> Answer:
        try:
            body = await self._insist(lambda: self._rendered(delivery))
            record = await self._insist(lambda: self._journal.get(delivery.prompt_id))
            signer = self._signers.of(record.owner if record else None, delivery.audience)
            if signer is None:
                return Answer("the job's key has no webhook_secret", refused=True)
            headers = signer.headers(delivery.id, self._clock(), body)
            return await self._sender.post(delivery.url, headers, body, guarded=delivery.audience == "caller")
        except Exception:
            self._log.exception("webhook.failed", prompt_id=delivery.prompt_id, webhook_event=delivery.event)
            return Answer("the gateway failed while it made or sent the webhook; its log has the reason")

    async def _rendered(self, delivery: Delivery) -> bytes:
        async with self._bodies, asyncio.timeout(self._options.render_s):
            return await self._render(delivery)

    def _followed(self, delivery: Delivery, answer: Answer) -> Tried:
        """The next state after the answer; counted and logged."""
        now = self._clock()
        tries = delivery.tries + 1
        pause_s = None if answer.gone else wait_s(tries, answer.retry_after_s, self._jitter)
        told = {
            "prompt_id": delivery.prompt_id,
            "webhook_id": delivery.id,
            "webhook_event": delivery.event,
            "receiver": delivery.receiver,
            "answer": answer.text,
            "tries": tries,
        }
        if answer.delivered:
            state, outcome = DeliveryState.DELIVERED, "delivered"
            self._log.info("webhook.delivered", **told)
        else:
            state = DeliveryState.GIVEN_UP if pause_s is None else DeliveryState.WAITING
            outcome = failed = "given_up" if pause_s is None else "refused" if answer.refused else "retried"
            self._log.warning(f"webhook.{failed}", **told)
        self._metrics.webhooks.labels(outcome).inc()
        return Tried(id=delivery.id, at=now, answer=answer.text, state=state, due_at=now + (pause_s or 0.0))
