"""A receiver of webhooks on a real port, whose replies a test chooses, and an outbox with a test's clock."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from comfyui.jobs.journal.protocol import Journal
from comfyui.jobs.journal.records import Delivery, Fence, State, WebhookOrder
from comfyui.jobs.journal.writes import Add, Finish
from comfyui.jobs.webhooks.announcements import Announcements
from comfyui.jobs.webhooks.outbox import Outbox, OutboxOptions
from comfyui.jobs.webhooks.sending import SenderOptions, WebhookSender
from comfyui.jobs.webhooks.signers import Signers
from comfyui.jobs.webhooks.signing import Signer
from comfyui.metrics import Metrics
from tests.support.clock import Clock
from tests.support.journals import new_job, prompt_id
from tests.support.running import until

SECRET = "whsec_" + base64.b64encode(b"s" * 32).decode()
OTHER_SECRET = base64.b64encode(b"o" * 24).decode()

Reply = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True)
class Received:
    """One request as it came."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Receiver:
    """Keeps the requests, oldest first. It gives `replies` in turn and repeats the last one."""

    port: int = 0
    received: list[Received] = field(default_factory=list)
    replies: list[Reply] = field(default_factory=list)
    news: asyncio.Event = field(default_factory=asyncio.Event)

    def url(self, path: str = "/hook", host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}{path}"

    async def got(self, count: int, timeout_s: float = 15) -> list[Received]:
        """Waits until `count` requests have come and returns them."""
        async with asyncio.timeout(timeout_s):
            while len(self.received) < count:
                self.news.clear()
                await self.news.wait()
        return self.received

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.received.append(Received(request.path_qs, dict(request.headers.items()), await request.read()))
        self.news.set()
        if not self.replies:
            return web.Response(status=204)
        reply = self.replies[0] if len(self.replies) == 1 else self.replies.pop(0)
        return await reply(request)


def with_status(status: int, **headers: str) -> Reply:
    async def reply(_request: web.Request) -> web.Response:
        return web.Response(status=status, headers={name.replace("_", "-"): value for name, value in headers.items()})

    return reply


async def hang(_request: web.Request) -> web.Response:
    await asyncio.Event().wait()
    raise AssertionError


async def close(request: web.Request) -> web.Response:
    """Ends the connection without an answer."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response()


@asynccontextmanager
async def receiver(host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[Receiver]:
    made = Receiver()
    app = web.Application(client_max_size=1 << 30)
    app.router.add_route("*", "/{path:.*}", made._answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
        made.port = runner.addresses[0][1]
        yield made
    finally:
        await runner.cleanup()


@dataclass
class Sending:
    """A running outbox with its journal, clock and metrics."""

    journal: Journal
    announcements: Announcements
    metrics: Metrics
    clock: Clock
    made: list[str]

    async def job(self, number: int, url: str, *, events: tuple[str, ...] = (), state: State = State.SUCCEEDED) -> str:
        """Adds a job that has ended; returns its id."""
        order, fence, now = WebhookOrder(url, events), Fence(prompt_id(number), 1, 0), self.clock()
        await self.journal.write(Add(new_job(number, webhook=order)))
        told = self.announcements.of_end(fence, order, state, now)
        await self.journal.write(Finish(fence=fence, state=state, at=now, result=b"{}", deliveries=told))
        self.announcements.news.set()
        return fence.prompt_id

    def pass_time(self, seconds: float) -> None:
        self.clock.now += seconds
        self.announcements.news.set()

    async def tried(self, number: int, times: int) -> Delivery:
        """Waits until the job's webhook was tried `times` times and returns its delivery."""
        found = await until(lambda: self.journal.deliveries(prompt_id(number)), lambda all_: all_[0].tries >= times)
        return found[0]

    def counted(self, outcome: str) -> float:
        return self.metrics.registry.get_sample_value("comfyui_gateway_webhooks_total", {"outcome": outcome}) or 0.0


def _longest(_low: float, high: float) -> float:
    return high


@asynccontextmanager
async def sending(
    journal: Journal,
    *,
    operator_url: str | None = None,
    secrets: tuple[str, ...] = (SECRET,),
    sender: SenderOptions | None = None,
    clock: Clock | None = None,
    not_made: int = 0,
    padding: int = 0,
    **options: Any,
) -> AsyncIterator[Sending]:
    """An outbox for receivers on loopback; each body names its webhook.

    `not_made`: number of first bodies whose rendering fails. `padding`: number of additional bytes in each body.
    """
    clock, metrics, announcements = clock or Clock(), Metrics(), Announcements(operator_url)
    made: list[str] = []

    async def render(delivery: Delivery) -> bytes:
        made.append(delivery.id)
        if len(made) <= not_made:
            raise LookupError("a body that cannot be made")
        return (
            json.dumps({"type": delivery.event, "prompt_id": delivery.prompt_id, "made": len(made)}).encode()
            + b" " * padding
        )

    chosen = sender or SenderOptions(allow=("127.0.0.1",), timeout_s=5)
    async with (
        WebhookSender(chosen, clock=clock) as opened,
        Outbox(
            journal,
            announcements,
            render,
            Signers(Signer(secrets)),
            opened,
            metrics,
            OutboxOptions(**options),
            clock=clock,
            jitter=_longest,
        ),
    ):
        yield Sending(journal, announcements, metrics, clock, made)
