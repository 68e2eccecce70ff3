"""The feed of the console: its cost, what each visitor gets, and that a slow reader gets no backlog."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from comfyui import jsonio
from comfyui.engine import Engine
from comfyui.events import Progress
from comfyui.jobs.journal.records import JobFilter
from comfyui.jobs.origin import Origin
from comfyui.web.console.feed import Consoles
from comfyui.web.console.viewer import Visitor
from comfyui.web.front.streams import MOST_STREAMS
from tests.support.keys import ALICE, BOB, KEYS, WATCHER, bearer, write_keys
from tests.support.running import RunningGateway, running_gateway, sleep_workflow, until, web_options

ADMIN = Visitor(None, "admin", Origin("console"), JobFilter())
ALL = "servers,queue,progress,previews,ended,changes"


class Feed:
    """An open feed of the console, read as a page reads it."""

    def __init__(self, answer: aiohttp.ClientResponse) -> None:
        self.answer = answer
        self.received: list[tuple[str, str]] = []

    async def next(self) -> tuple[str, str]:
        """Returns the kind and the data of the next event."""
        kind, data = "message", list[str]()
        async with asyncio.timeout(30):
            async for raw in self.answer.content:
                line = raw.decode().rstrip("\n")
                name, _, value = line.partition(": ")
                if name == "event":
                    kind = value
                elif name == "data":
                    data.append(value)
                elif not line and data:
                    self.received.append((kind, "\n".join(data)))
                    return self.received[-1]
        raise EOFError

    async def until(self, kind: str, text: str = "", *, also_before: bool = True) -> str:
        """Returns the data of an event of this kind that contains the text: the last one received, or the next one."""
        for found, data in reversed(self.received) if also_before else ():
            if found == kind and text in data:
                return data
        while True:
            found, data = await self.next()
            if found == kind and text in data:
                return data

    async def until_gone(self, kind: str, text: str) -> None:
        """Waits until the last event of this kind no longer contains the text."""
        while text in await self.until(kind):
            await self.next()


@asynccontextmanager
async def feed(gateway: RunningGateway, want: str = ALL, key: str | None = None, **query: str) -> AsyncIterator[Feed]:
    headers = {} if key is None else bearer(key)
    async with gateway.http.get("/console/feed", params={"want": want, **query}, headers=headers) as answer:
        assert answer.status == 200, await answer.text()
        yield Feed(answer)


def consoles(gateway: RunningGateway) -> Consoles:
    found: Consoles = gateway.app.state.open_consoles
    return found


async def start_job(gateway: RunningGateway, key: str | None = None, seconds: float = 30, tag: int = 0) -> str:
    """Submits an async job and returns its id once it runs."""
    headers = {"Prefer": "respond-async", **({} if key is None else bearer(key))}
    body = {"prompt": sleep_workflow(seconds, tag=tag)}
    async with gateway.http.post("/prompt_sync", json=body, headers=headers) as answer:
        assert answer.status == 202, await answer.text()
        prompt_id: str = (await answer.json())["prompt_id"]

    async def has_begun() -> bool:
        job = gateway.handler.standing.job(prompt_id)
        return job is not None and job.began_at is not None

    await until(has_begun, bool)
    return prompt_id


async def test_without_readers_the_console_subscribes_to_nothing_and_computes_nothing(engine: Engine) -> None:
    async with running_gateway(engine.url) as gateway:
        frames, writes = gateway.handler.pool.frames, gateway.handler.journal.writes
        before = len(list(frames)), len(list(writes))
        async with feed(gateway) as open_feed:
            await open_feed.until("servers")
            assert (len(list(frames)), len(list(writes))) == (before[0] + 1, before[1] + 1)

        async def tasks() -> set[str]:
            return {task.get_name() for task in asyncio.all_tasks()}

        await until(tasks, lambda names: "consoles look" not in names and "consoles alive" not in names)
        assert (len(list(frames)), len(list(writes))) == before
        assert consoles(gateway).audiences == []


async def test_the_feed_follows_a_job_from_its_start_to_its_end(engine: Engine) -> None:
    async with running_gateway(engine.url) as gateway, feed(gateway) as open_feed:
        await open_feed.until("hello")
        await open_feed.until("servers", "Nothing runs.")
        prompt_id = await start_job(gateway)
        assert "SimulatedSleep" in await open_feed.until("progress", prompt_id)
        assert f'data-job="{prompt_id}"' in await open_feed.until("servers", prompt_id)
        async with gateway.http.delete(f"/prompt_sync/{prompt_id}") as answer:
            assert answer.status == 200
        ended = jsonio.loads(await open_feed.until("ended"))
        assert ended == {"id": prompt_id, "state": "canceled"}
        await open_feed.until_gone("servers", prompt_id)


async def test_a_feed_that_reconnects_gets_the_current_state(engine: Engine) -> None:
    async with running_gateway(engine.url) as gateway:
        async with feed(gateway) as first:
            await first.until("servers")
        prompt_id = await start_job(gateway)
        async with feed(gateway) as again:
            assert prompt_id in await again.until("servers")
            progress = jsonio.loads(await again.until("progress"))
            assert progress[prompt_id]["title"] == "SimulatedSleep"


async def test_the_feed_of_a_user_names_only_own_jobs_and_no_server(engine: Engine, tmp_path: Path) -> None:
    async with _with_keys(engine, tmp_path) as gateway:
        alices = await start_job(gateway, ALICE)
        async with feed(gateway, key=BOB) as bobs, feed(gateway, key=ALICE) as own, feed(gateway, key=WATCHER) as all_:
            shown = await own.until("servers", alices)
            assert "127.0.0.1" not in shown
            assert alices in await own.until("progress")
            watched = await all_.until("servers", alices)
            assert "127.0.0.1" in watched
            assert "alice" in watched
            async with gateway.http.delete(f"/prompt_sync/{alices}", headers=bearer(ALICE)) as answer:
                assert answer.status == 200
            await own.until("ended", alices)
            bob = await start_job(gateway, BOB, tag=1)
            await bobs.until("servers", bob)
            assert not any(alices in data for _, data in bobs.received)


async def test_the_page_of_a_user_names_no_server_and_no_job_of_another_user(engine: Engine, tmp_path: Path) -> None:
    async with _with_keys(engine, tmp_path) as gateway:
        alices = await start_job(gateway, ALICE)
        body, headers = {"prompt": sleep_workflow(30, tag=1)}, {"Prefer": "respond-async", **bearer(ALICE)}
        async with gateway.http.post("/prompt_sync", json=body, headers=headers) as answer:
            assert answer.status == 202
        for key, sees in ((ALICE, True), (BOB, False), (WATCHER, True)):
            async with gateway.http.get("/console", headers=bearer(key)) as answer:
                text = await answer.text()
            assert (alices in text) is sees
            assert ("127.0.0.1:" in text) is (key == WATCHER)


async def test_feeds_with_the_same_content_share_one_message(engine: Engine, tmp_path: Path) -> None:
    async with (
        _with_keys(engine, tmp_path) as gateway,
        feed(gateway, key=ALICE) as one,
        feed(gateway, key=ALICE) as two,
        feed(gateway, key=BOB) as other,
    ):
        for each in (one, two, other):
            await each.until("servers")
        audiences = consoles(gateway).audiences
        assert sorted(len(audience.consoles) for audience in audiences) == [1, 2]
        shared = next(audience for audience in audiences if len(audience.consoles) == 2)
        messages = [shared.news(0, console.wants) for console in shared.consoles]
        assert messages[0] is messages[1]


@asynccontextmanager
async def _with_keys(engine: Engine, tmp_path: Path) -> AsyncIterator[RunningGateway]:
    keys = write_keys(tmp_path / "keys.toml", KEYS)
    async with running_gateway(engine.url, keys_file=keys, queue="gateway") as gateway:
        yield gateway


async def test_the_feed_of_one_job_contains_no_other_job(engine: Engine) -> None:
    async with running_gateway(engine.url) as gateway:
        prompt_id = await start_job(gateway)
        async with feed(gateway, "progress,ended", job=prompt_id) as of_it:
            assert list(jsonio.loads(await of_it.until("progress"))) == [prompt_id]
            async with gateway.http.delete(f"/prompt_sync/{prompt_id}") as answer:
                assert answer.status == 200
            await of_it.until("ended", prompt_id)
        async with feed(gateway, "ended", job=prompt_id) as late:
            assert jsonio.loads(await late.until("ended"))["state"] == "canceled"
        async with gateway.http.get("/console/feed", params={"want": "ended", "job": "none"}) as answer:
            assert answer.status == 404
        # Otherwise the servers and the queue would be looked up once for each job.
        for want in ("queue", "ended,servers"):
            async with gateway.http.get("/console/feed", params={"want": want, "job": prompt_id}) as answer:
                assert (answer.status, "job must be left out" in await answer.text()) == (422, True)


async def test_an_unknown_kind_of_event_in_want_is_refused(engine: Engine) -> None:
    async with (
        running_gateway(engine.url) as gateway,
        gateway.http.get("/console/feed", params={"want": "all"}) as answer,
    ):
        assert answer.status == 422
        assert "want must be" in await answer.text()


async def test_a_quiet_feed_sends_signs_of_life(engine: Engine) -> None:
    changed = web_options(keep_alive_s=0.05)
    async with running_gateway(engine.url, changed=changed) as gateway, feed(gateway, "ended") as open_feed:
        assert await open_feed.until("alive") == "1"


async def test_a_draining_gateway_ends_its_feeds_and_opens_no_new_ones(engine: Engine) -> None:
    async with running_gateway(engine.url) as gateway, feed(gateway) as open_feed:
        await open_feed.until("servers")
        await gateway.handler.drain(0)
        with pytest.raises(EOFError):
            await open_feed.until("never")
        async with gateway.http.get("/console/feed", params={"want": ALL}) as answer:
            assert answer.status == 503


async def test_a_key_has_a_limit_of_open_feeds(engine: Engine) -> None:
    async with running_gateway(engine.url) as gateway:
        async with AsyncExitStack() as stack:
            for _ in range(MOST_STREAMS):
                stack.enter_context(gateway.app.running.streams.opened(None))
            async with gateway.http.get("/console/feed", params={"want": ALL}) as answer:
                assert answer.status == 429
        async with feed(gateway) as open_feed:
            await open_feed.until("servers")


async def test_the_feed_says_why_a_server_gets_no_prompts(engine: Engine) -> None:
    async with running_gateway(engine.url, queue="gateway") as gateway, feed(gateway, "servers") as open_feed:
        await open_feed.until("servers")
        name = gateway.handler.pool.backends[0].name
        async with gateway.http.post(f"/servers/{name}/drain") as answer:
            assert answer.status == 200
        assert "no more prompts until it is resumed" in await open_feed.until("servers", ">drained<")


async def test_a_slow_reader_gets_the_latest_progress_and_no_backlog(engine: Engine) -> None:
    async with running_gateway(engine.url) as gateway:
        found = consoles(gateway)
        with found.opened(ADMIN, frozenset({"progress"})) as console:
            prompt_id = await start_job(gateway)
            async with aclosing(found.messages(console)) as messages:
                assert prompt_id.encode() in await anext(messages)
                for step in range(1000):
                    found.heard("", prompt_id, Progress(prompt_id, "4", step, 1000), b"")
                    console.look()
                received = await anext(messages)
        assert received.count(b"event:") == 1
        assert b'"value":999' in received


async def test_a_client_that_reads_nothing_is_disconnected(engine: Engine) -> None:
    async with running_gateway(engine.url, client_idle_seconds=0.5) as gateway:
        port = int(gateway.url.rpartition(":")[2])
        _reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1)
        writer.write(f"GET /console/feed?want=servers HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode())

        async def looking() -> int:
            for audience in consoles(gateway).audiences:
                audience.tell("servers", b"event: servers\ndata: " + bytes(1_000_000).replace(b"\0", b"x") + b"\n\n")
                audience.wake()
            return len(consoles(gateway).audiences)

        await until(looking, bool)
        await until(looking, lambda count: count == 0)
        writer.close()
