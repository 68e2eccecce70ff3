"""The outbox against receivers on real sockets that are slow, down, gone or hostile. The test controls the clock."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from standardwebhooks.webhooks import Webhook

from comfyui.exceptions import JournalError
from comfyui.jobs.journal.memory import MemoryJournal
from comfyui.jobs.journal.records import DeliveryState, Fence, State, WebhookOrder
from comfyui.jobs.journal.sqlite import SqliteJournal
from comfyui.jobs.journal.writes import Add, Again, Finish, SendAgain, Start, Write
from comfyui.jobs.webhooks.names import OwnThreadsResolver
from comfyui.jobs.webhooks.plan import DELAYS_S, LONGEST_WAIT_S
from comfyui.jobs.webhooks.sending import SenderOptions
from tests.support.clock import Clock
from tests.support.journals import new_job, prompt_id
from tests.support.names import Names
from tests.support.receivers import (
    OTHER_SECRET,
    SECRET,
    Receiver,
    Reply,
    close,
    hang,
    receiver,
    sending,
    with_status,
)
from tests.support.relaying import eventually
from tests.support.running import until

_HOUR = 3600.0
_DELIVERED, _WAITING, _GIVEN_UP = DeliveryState.DELIVERED, DeliveryState.WAITING, DeliveryState.GIVEN_UP


async def test_a_webhook_is_delivered_once_with_a_valid_signature(webhook_receiver: Receiver) -> None:
    async with sending(MemoryJournal(), clock=now_clock()) as outbox:
        job = await outbox.job(1, webhook_receiver.url("/hook?token=1"))
        (came,) = await webhook_receiver.got(1)
        tried = await outbox.tried(1, 1)
    assert Webhook(SECRET).verify(came.body, came.headers) == {"type": "prompt.succeeded", "prompt_id": job, "made": 1}
    assert came.headers["Content-Type"] == "application/json"
    assert came.path == "/hook?token=1"
    assert (tried.state, tried.answer, tried.tries) == (_DELIVERED, "HTTP 204", 1)
    assert outbox.counted("delivered") == 1
    assert len(webhook_receiver.received) == 1


def now_clock() -> Clock:
    """A clock with the machine's time, which verifiers compare."""
    clock = Clock()
    clock.now = time.time()
    return clock


async def test_both_secrets_verify_during_a_rotation(webhook_receiver: Receiver) -> None:
    async with sending(MemoryJournal(), clock=now_clock(), secrets=(OTHER_SECRET, SECRET)) as outbox:
        await outbox.job(1, webhook_receiver.url())
        (came,) = await webhook_receiver.got(1)
    for secret in (OTHER_SECRET, SECRET):
        Webhook(secret).verify(came.body, came.headers)


async def test_a_receiver_that_was_down_for_hours_gets_its_webhook_with_the_same_id() -> None:
    async with receiver() as reserved:
        port = reserved.port
    clock = now_clock()
    began = clock.now
    async with sending(MemoryJournal(), clock=clock) as outbox:
        await outbox.job(1, f"http://127.0.0.1:{port}/")
        for times, delay_s in enumerate(DELAYS_S[:5], 1):
            tried = await outbox.tried(1, times)
            assert (tried.state, tried.answer) == (_WAITING, "no connection could be made")
            assert tried.due_at == clock.now + delay_s
            outbox.pass_time(delay_s - 1)
            outbox.pass_time(1)
        await outbox.tried(1, 6)
        async with receiver(port=port) as back:
            outbox.pass_time(2 * _HOUR)
            (came,) = await back.got(1)
            assert (await outbox.tried(1, 7)).state is _DELIVERED
    assert float(came.headers["webhook-timestamp"]) == pytest.approx(clock.now, abs=1)
    assert clock.now - began > 2 * _HOUR
    assert set(outbox.made) == {came.id}
    assert came.json["made"] == 7, "each try makes the body again"
    assert (outbox.counted("retried"), outbox.counted("delivered")) == (6, 1)


async def test_a_webhook_is_given_up_after_ten_tries_and_can_be_requested_again(webhook_receiver: Receiver) -> None:
    webhook_receiver.replies = [with_status(500)]
    async with sending(MemoryJournal()) as outbox:
        job = await outbox.job(1, webhook_receiver.url())
        for times, delay_s in enumerate(DELAYS_S, 1):
            assert (await outbox.tried(1, times)).state is _WAITING
            outbox.pass_time(delay_s)
        tried = await outbox.tried(1, 10)
        assert (tried.state, tried.answer) == (_GIVEN_UP, "HTTP 500")
        outbox.pass_time(100 * _HOUR)
        webhook_receiver.replies = [with_status(200)]
        assert await outbox.journal.write(SendAgain(job, outbox.clock()))
        outbox.announcements.news.set()
        await webhook_receiver.got(11)
        await until(lambda: outbox.tried(1, 1), lambda one: one.state is _DELIVERED)
    assert len({came.id for came in webhook_receiver.received}) == 1
    assert (outbox.counted("retried"), outbox.counted("given_up"), outbox.counted("delivered")) == (9, 1, 1)


@pytest.mark.parametrize(
    ("asked", "wait_s"), [("600", 600.0), ("1", DELAYS_S[0]), ("99999999999", LONGEST_WAIT_S), ("soon", DELAYS_S[0])]
)
async def test_retry_after_is_honoured_within_bounds(webhook_receiver: Receiver, asked: str, wait_s: float) -> None:
    webhook_receiver.replies = [with_status(503, Retry_After=asked)]
    async with sending(MemoryJournal()) as outbox:
        await outbox.job(1, webhook_receiver.url())
        tried = await outbox.tried(1, 1)
        assert (tried.state, tried.due_at) == (_WAITING, outbox.clock() + wait_s)


async def test_a_410_ends_the_delivery_at_once(webhook_receiver: Receiver) -> None:
    webhook_receiver.replies = [with_status(410)]
    async with sending(MemoryJournal()) as outbox:
        await outbox.job(1, webhook_receiver.url())
        tried = await outbox.tried(1, 1)
        assert (tried.state, tried.answer, tried.tries) == (_GIVEN_UP, "HTTP 410", 1)
    assert outbox.counted("given_up") == 1


async def test_a_redirect_is_not_followed(webhook_receiver: Receiver) -> None:
    async with receiver("127.0.0.9") as inside:
        webhook_receiver.replies = [with_status(307, Location=inside.url(host="127.0.0.9"))]
        async with sending(MemoryJournal()) as outbox:
            await outbox.job(1, webhook_receiver.url())
            tried = await outbox.tried(1, 1)
        assert inside.received == []
    assert (tried.state, tried.answer) == (_WAITING, "HTTP 307; redirects are not followed")


async def drip(request: web.Request) -> web.StreamResponse:
    """Sends a status at once, and then an endless body."""
    response = web.StreamResponse(status=200)
    await response.prepare(request)
    while True:
        await response.write(b"x" * 65536)
        await asyncio.sleep(0)


async def drip_head(request: web.Request) -> web.StreamResponse:
    """Sends an endless head."""
    assert request.transport is not None
    request.transport.write(b"HTTP/1.1 200 OK\r\n")
    number = 0
    while not request.transport.is_closing():
        number += 1
        request.transport.write(f"X-{number}: 1\r\n".encode())
        await asyncio.sleep(0.02)
    return web.Response()


async def no_http(request: web.Request) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.write(b"SSH-2.0-OpenSSH_9.6\r\n")
    request.transport.close()
    return web.Response()


@pytest.mark.parametrize(
    ("reply", "state", "answer"),
    [
        (drip, _DELIVERED, "HTTP 200"),
        (drip_head, _WAITING, "no answer within 0.5 s"),
        (hang, _WAITING, "no answer within 0.5 s"),
        (close, _WAITING, "the connection was closed without an answer"),
        (no_http, _WAITING, "the answer is not valid HTTP"),
    ],
)
async def test_a_misbehaving_receiver_costs_a_bounded_time(
    webhook_receiver: Receiver, reply: Reply, state: DeliveryState, answer: str
) -> None:
    webhook_receiver.replies = [reply]
    async with sending(MemoryJournal(), sender=SenderOptions(allow=("127.0.0.1",), timeout_s=0.5)) as outbox:
        await outbox.job(1, webhook_receiver.url())
        tried = await outbox.tried(1, 1)
    assert (tried.state, tried.answer) == (state, answer)


async def test_a_hanging_receiver_delays_no_other_receiver(
    webhook_receiver: Receiver, file_journal: SqliteJournal
) -> None:
    async with receiver() as slow:
        slow.replies = [hang]
        async with sending(file_journal, sender=SenderOptions(allow=("127.0.0.1",), timeout_s=60), each=3) as outbox:
            for number in range(1, 31):
                await outbox.job(number, slow.url())
            for number in range(31, 61):
                await outbox.job(number, webhook_receiver.url())
            await webhook_receiver.got(30)
            await slow.got(3)
            for number in range(31, 61):
                assert (await outbox.tried(number, 1)).state is _DELIVERED
            assert len(slow.received) == 3, "no more than three at once"


async def test_the_webhooks_of_a_job_arrive_in_order(webhook_receiver: Receiver) -> None:
    webhook_receiver.replies = [with_status(500), with_status(200)]
    async with sending(MemoryJournal()) as outbox:
        order = WebhookOrder(webhook_receiver.url(), ("prompt.started", "prompt.succeeded"))
        fence, now = Fence(prompt_id(1), 1, 1), outbox.clock()
        await outbox.journal.write(Add(new_job(1, webhook=order), "gpu-1"))
        started = outbox.announcements.of_start(fence, order, now)
        assert await outbox.journal.write(Start(fence, now, started))
        ended = outbox.announcements.of_end(fence, order, State.SUCCEEDED, now)
        await outbox.journal.write(Finish(fence=fence, state=State.SUCCEEDED, at=now, result=b"{}", deliveries=ended))
        outbox.announcements.news.set()
        await outbox.tried(1, 1)
        assert [came.json["type"] for came in webhook_receiver.received] == ["prompt.started"]
        outbox.pass_time(DELAYS_S[0])
        await webhook_receiver.got(3)
    assert [came.json["type"] for came in webhook_receiver.received] == ["prompt.started"] * 2 + ["prompt.succeeded"]
    assert len({came.id for came in webhook_receiver.received}) == 2


async def test_each_run_has_its_own_webhook_ids_for_caller_and_operator(webhook_receiver: Receiver) -> None:
    async with (
        receiver() as operator,
        sending(
            MemoryJournal(), operator_url=operator.url("/ops"), sender=SenderOptions(allow=("127.0.0.1",))
        ) as outbox,
    ):
        job = await outbox.job(1, webhook_receiver.url(), state=State.CANCELED)
        await outbox.journal.write(Again(job, 1, "async", 0.0))
        order, fence = WebhookOrder(webhook_receiver.url()), Fence(job, 2, 0)
        ended = outbox.announcements.of_end(fence, order, State.LOST, 0.0)
        await outbox.journal.write(Finish(fence=fence, state=State.LOST, at=0.0, deliveries=ended))
        outbox.announcements.news.set()
        ids = {came.id for came in (*await webhook_receiver.got(2), *await operator.got(2))}
    assert len(ids) == 4
    assert not any("." in name for name in ids), "the signed text is divided by dots"
    assert [came.json["type"] for came in operator.received] == ["prompt.canceled", "prompt.lost"]


async def test_only_listed_events_are_sent(webhook_receiver: Receiver) -> None:
    async with sending(MemoryJournal()) as outbox:
        await outbox.job(1, webhook_receiver.url(), events=("prompt.failed",))
        await outbox.job(2, webhook_receiver.url(), events=("prompt.failed",), state=State.FAILED)
        await outbox.tried(2, 1)
        assert await outbox.journal.deliveries(prompt_id(1)) == []
    assert [came.json["type"] for came in webhook_receiver.received] == ["prompt.failed"]


# Addresses


async def test_a_host_is_checked_at_each_try_and_only_the_checked_address_is_used(webhook_receiver: Receiver) -> None:
    """The name resolves to a permitted address first, and to internal ones later."""
    names = Names(hook_example=[["127.0.0.1"], ["127.0.0.9"], ["10.0.0.1"], ["127.0.0.9", "127.0.0.1"]])
    webhook_receiver.replies = [with_status(500), with_status(200)]
    async with receiver("127.0.0.9", webhook_receiver.port) as inside:
        options = SenderOptions(allow=("127.0.0.1",), timeout_s=5, resolver=names)
        async with sending(MemoryJournal(), sender=options) as outbox:
            await outbox.job(1, webhook_receiver.url(host="hook.example"))
            assert (await outbox.tried(1, 1)).answer == "HTTP 500"
            for times, delay_s in enumerate(DELAYS_S[:2], 2):
                outbox.pass_time(delay_s)
                tried = await outbox.tried(1, times)
                assert (tried.state, tried.answer) == (_WAITING, "the gateway may not connect to this address")
            outbox.pass_time(DELAYS_S[2])
            assert (await outbox.tried(1, 4)).state is _DELIVERED
        assert inside.received == []
    assert names.lookups == ["hook.example"] * 4
    assert outbox.counted("refused") == 2


@pytest.mark.parametrize(
    "host",
    ["127.0.0.9", "127.9", "0x7f.9", "0177.0.0.9", "2130706441", "127.0.0.9.", "[::ffff:127.0.0.9]", "①②⑦.0.0.9"],
)
async def test_the_gateway_never_connects_to_an_address_that_is_not_permitted(host: str) -> None:
    """The journal may have such an address from before a change of the settings."""
    async with receiver("127.0.0.9") as inside:
        async with sending(MemoryJournal()) as outbox:
            await outbox.job(1, f"http://{host}:{inside.port}/")
            tried = await outbox.tried(1, 1)
        assert inside.received == []
    assert (tried.state, tried.answer) == (_WAITING, "the gateway may not connect to this address")


@pytest.mark.parametrize("url", ["http://user:pw@127.0.0.1/", "ftp://127.0.0.1/", "http://[", "nothing"])
async def test_an_unusable_url_is_recorded_as_a_failed_try(url: str) -> None:
    async with sending(MemoryJournal()) as outbox:
        await outbox.job(1, url)
        assert (await outbox.tried(1, 1)).answer == "the URL cannot be used"


async def test_the_operators_url_may_be_internal(webhook_receiver: Receiver) -> None:
    options = SenderOptions(allow=())
    async with sending(MemoryJournal(), operator_url=webhook_receiver.url(), sender=options) as outbox:
        await outbox.job(1, "http://127.0.0.9/")
        (came,) = await webhook_receiver.got(1)
    assert came.id.endswith("_operator")


async def test_slow_name_lookups_do_not_block_other_lookups() -> None:
    silent = threading.Event()

    def look_up(host: str, port: int, **_options: object) -> list[Any]:
        if host == "silent.example":
            silent.wait(30)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    resolver = OwnThreadsResolver(40, lookup=look_up)
    waiting = [asyncio.create_task(resolver.resolve("silent.example", 80)) for _ in range(39)]
    try:
        async with asyncio.timeout(30):
            await asyncio.sleep(0)
            (found,) = await resolver.resolve("other.example", 8080)
            assert (found["host"], found["port"], found["hostname"]) == ("127.0.0.1", 8080, "other.example")
            assert await asyncio.to_thread(lambda: "free") == "free"
    finally:
        silent.set()
        await asyncio.gather(*waiting)
        await resolver.close()


async def test_host_names_are_looked_up_and_failures_are_named(webhook_receiver: Receiver) -> None:
    options = SenderOptions(allow=("127.0.0.1", "::1"), timeout_s=5)
    async with sending(MemoryJournal(), sender=options) as outbox:
        await outbox.job(1, webhook_receiver.url(host="localhost"))
        assert (await outbox.tried(1, 1)).state is _DELIVERED
        await outbox.job(2, "http://no-such-name.invalid/")
        assert (await outbox.tried(2, 1)).answer == "the host's name could not be looked up"
        await outbox.job(3, f"http://{'a' * 64}.example/")
        assert (await outbox.tried(3, 1)).answer == "the host name is not valid"


# The journal


class Failing(MemoryJournal):
    """A journal that cannot be written while `full`."""

    full = False

    async def write(self, write: Write) -> int:
        if self.full:
            raise JournalError("STATE_DIR: the disk is full")
        return await super().write(write)


async def test_a_delivered_webhook_is_not_repeated_while_the_journal_cannot_be_written(
    webhook_receiver: Receiver,
) -> None:
    journal = Failing()

    async def then_full(_request: web.Request) -> web.Response:
        journal.full = True
        return web.Response()

    webhook_receiver.replies = [then_full]
    async with sending(journal) as outbox:
        await outbox.job(1, webhook_receiver.url())
        await webhook_receiver.got(1)
        outbox.pass_time(100 * _HOUR)
        await asyncio.sleep(0)
        journal.full = False
        assert (await outbox.tried(1, 1)).state is _DELIVERED
    assert len(webhook_receiver.received) == 1


async def test_the_next_gateway_sends_an_interrupted_webhook_again(webhook_receiver: Receiver, tmp_path: Path) -> None:
    webhook_receiver.replies = [hang, with_status(200)]
    async with SqliteJournal(tmp_path) as first, sending(first) as outbox:
        await outbox.job(1, webhook_receiver.url())
        await webhook_receiver.got(1)
    async with SqliteJournal(tmp_path) as second, sending(second) as outbox:
        await webhook_receiver.got(2)
        assert (await outbox.tried(1, 1)).state is _DELIVERED
    assert len({came.id for came in webhook_receiver.received}) == 1


async def test_a_webhook_is_not_sent_before_the_end_of_its_job_is_committed(
    webhook_receiver: Receiver, tmp_path: Path
) -> None:
    """The write of the end fails, so the receiver is not told of it."""
    async with SqliteJournal(tmp_path) as journal, sending(journal) as outbox:
        order = WebhookOrder(webhook_receiver.url())
        await journal.write(Add(new_job(1, webhook=order)))
        fence = Fence(prompt_id(1), 1, 0)
        refused = outbox.announcements.of_end(fence, order, State.FAILED, 0.0)
        # This error is not JSON: the write fails, and is rolled back with its webhook.
        journal.write_behind(Finish(fence=fence, state=State.FAILED, at=0.0, error={"a": object()}, deliveries=refused))
        outbox.announcements.news.set()
        assert await journal.deliveries(prompt_id(1)) == []
        await outbox.job(2, webhook_receiver.url())
        assert (await outbox.tried(2, 1)).state is _DELIVERED
    assert [came.json["prompt_id"] for came in webhook_receiver.received] == [prompt_id(2)]


async def test_a_body_that_cannot_be_made_counts_as_a_try(webhook_receiver: Receiver) -> None:
    async with sending(MemoryJournal(), not_made=1) as outbox:
        await outbox.job(1, webhook_receiver.url())
        tried = await outbox.tried(1, 1)
        assert (tried.state, tried.answer) == (
            _WAITING,
            "the gateway failed while it made or sent the webhook; its log has the reason",
        )
        assert webhook_receiver.received == []
        outbox.pass_time(DELAYS_S[0])
        assert (await outbox.tried(1, 2)).state is _DELIVERED


async def test_the_journal_is_not_polled_while_no_webhook_is_due(webhook_receiver: Receiver) -> None:
    journal = Asked()
    async with sending(journal) as outbox:
        await eventually(lambda: journal.asked == 1)
        await outbox.job(1, webhook_receiver.url())
        await outbox.tried(1, 1)
        asked = journal.asked
        await asyncio.sleep(0.05)
        assert journal.asked == asked <= 3


class Asked(MemoryJournal):
    asked = 0

    async def due(self, *arguments: object, **options: object):  # type: ignore[no-untyped-def]
        self.asked += 1
        return await super().due(*arguments, **options)  # type: ignore[arg-type]


async def test_a_stop_waits_for_deliveries_in_progress(webhook_receiver: Receiver, tmp_path: Path) -> None:
    """A webhook that is cut off may have arrived, so each deployment would send it twice."""
    answer = asyncio.Event()

    async def later(_request: web.Request) -> web.Response:
        await answer.wait()
        return web.Response()

    webhook_receiver.replies = [later]
    async with SqliteJournal(tmp_path) as journal:
        async with sending(journal) as outbox:
            await outbox.job(1, webhook_receiver.url())
            await webhook_receiver.got(1)
            asyncio.get_running_loop().call_later(0.1, answer.set)
        (delivery,) = await journal.deliveries(prompt_id(1))
    assert delivery.state is _DELIVERED


async def test_a_stop_waits_only_briefly_for_a_hanging_receiver(webhook_receiver: Receiver) -> None:
    webhook_receiver.replies = [hang]
    async with asyncio.timeout(30):
        async with sending(MemoryJournal(), last_s=0.1) as outbox:
            await outbox.job(1, webhook_receiver.url())
            await webhook_receiver.got(1)


async def test_a_receiver_that_does_not_read_costs_a_bounded_time() -> None:
    # The test holds the event, because Python collects a task whose event only the task itself refers to.
    over, closed = asyncio.Event(), asyncio.Event()

    async def ignore(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        reader._transport.pause_reading()  # type: ignore[attr-defined]
        await over.wait()
        writer.close()
        closed.set()

    server = await asyncio.start_server(ignore, "127.0.0.1", 0, limit=1)
    port = server.sockets[0].getsockname()[1]
    async with (
        server,
        sending(
            MemoryJournal(), padding=30_000_000, sender=SenderOptions(allow=("127.0.0.1",), timeout_s=0.5)
        ) as outbox,
    ):
        await outbox.job(1, f"http://127.0.0.1:{port}/")
        assert (await outbox.tried(1, 1)).answer == "no answer within 0.5 s"
        over.set()
        await closed.wait()
