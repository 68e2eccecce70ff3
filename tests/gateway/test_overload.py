"""Slow clients, slow bodies, huge bodies and many callers cannot block the gateway."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from comfyui.engine import Engine
from tests.support.outputs import simulated_output
from tests.support.relaying import eventually
from tests.support.running import (
    RunningGateway,
    invert_workflow,
    prompts_are_queued,
    queue_of,
    requests,
    running_gateway,
    sleep_workflow,
)


async def raw_connection(gateway: RunningGateway) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, port = gateway.url.removeprefix("http://").split(":")
    return await asyncio.open_connection(host, int(port))


async def test_a_body_that_stops_coming_gets_408(engine: Engine) -> None:
    async with running_gateway(engine.url, client_idle_seconds=0.2) as gateway:
        reader, writer = await raw_connection(gateway)
        writer.write(b"POST /prompt_sync HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{")
        async with asyncio.timeout(30):
            answer = await reader.read()
        writer.close()
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"CLIENT_IDLE_SECONDS" in answer


@pytest.mark.parametrize(
    ("path", "kind"), [("/prompt_sync", "text/plain"), ("/upload/image", "multipart/form-data; boundary=b")]
)
async def test_a_body_that_trickles_gets_408(engine: Engine, path: str, kind: str) -> None:
    """Each byte restarts CLIENT_IDLE_SECONDS, so that only the minimum rate ends the request."""
    async with running_gateway(engine.url, client_idle_seconds=0.3) as gateway:
        reader, writer = await raw_connection(gateway)
        writer.write(b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n" % path.encode())
        writer.write(b"Content-Type: %b\r\n\r\n" % kind.encode())
        answer = asyncio.create_task(reader.read())
        async with asyncio.timeout(30):
            while not answer.done():
                writer.write(b" ")
                await asyncio.wait([answer], timeout=0.02)
        writer.close()
    assert (await answer).startswith(b"HTTP/1.1 408")
    assert b"at less than 1 KB a second" in await answer


async def test_a_slow_body_above_the_minimum_rate_is_read(engine: Engine) -> None:
    async with running_gateway(engine.url, client_idle_seconds=0.2) as gateway:
        reader, writer = await raw_connection(gateway)
        body = json.dumps({"prompt": invert_workflow()}).encode() + b" " * 2000
        writer.write(b"POST /prompt_sync HTTP/1.1\r\nHost: x\r\nConnection: close\r\n")
        writer.write(b"Content-Length: %d\r\n\r\n" % len(body))
        for start in range(0, len(body), 300):  # 6 KB a second
            writer.write(body[start : start + 300])
            await asyncio.sleep(0.05)
        async with asyncio.timeout(30):
            assert (await reader.read()).startswith(b"HTTP/1.1 200")
        writer.close()


async def test_a_client_that_does_not_read_is_cut_off(engine: Engine) -> None:
    workflow = {"1": simulated_output(30_000_000, extension="bin", key="files")}
    async with running_gateway(engine.url, client_idle_seconds=0.3) as gateway:
        reader, writer = await raw_connection(gateway)
        body = json.dumps({"prompt": workflow, "return_image_base64": True}).encode()
        writer.write(b"POST /prompt_sync HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        sample = {"reason": "slow_client"}
        name = "comfyui_gateway_rejected_requests_total"
        async with asyncio.timeout(30):
            while not gateway.handler.metrics.registry.get_sample_value(name, sample):
                await asyncio.sleep(0.02)
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await reader.readexactly(50_000_000)
        writer.close()


async def test_a_client_that_waits_for_its_answer_is_not_idle(engine: Engine) -> None:
    async with running_gateway(engine.url, client_idle_seconds=0.2) as gateway:
        status, _ = await gateway.prompt_sync(sleep_workflow(0.8))
    assert status == 200


async def test_all_bodies_together_have_a_limit(engine: Engine) -> None:
    async with running_gateway(engine.url, max_buffered_mb=0.05) as gateway:
        large = sleep_workflow(600)
        large["1"]["_meta"] = {"title": "x" * 30_000}
        first = asyncio.create_task(gateway.prompt_sync(large))
        await eventually(lambda: gateway.handler.waiting == 1)
        status, body = await gateway.prompt_sync(large)
        assert (status, body["type"]) == (429, "overloaded")
        assert "MAX_BUFFERED_MB" in body["detail"]
        await prompts_are_queued(engine, 1)
        running, pending = await queue_of(engine)
        engine.wake(*running, *pending)
        assert (await first)[0] == 200
        assert (await gateway.prompt_sync(invert_workflow()))[0] == 200


async def test_texts_of_forms_count_towards_the_limit_of_all_bodies(engine: Engine) -> None:
    def form(seconds: float, tag: int) -> aiohttp.FormData:
        workflow = sleep_workflow(seconds, tag=tag)
        workflow["1"]["_meta"] = {"title": "x" * 30_000}
        parts = aiohttp.FormData()
        parts.add_field("workflow", json.dumps(workflow))
        parts.add_field("images", b"\0" * 100_000, filename="a.bin")  # on disk
        return parts

    async with running_gateway(engine.url, max_buffered_mb=0.05) as gateway:
        first = asyncio.create_task(gateway.http.post("/prompt_sync", data=form(600, 1)))
        await eventually(lambda: gateway.handler.waiting == 1)
        async with gateway.http.post("/prompt_sync", data=form(0.1, 2)) as response:
            assert (response.status, (await response.json())["type"]) == (429, "overloaded")
        async with gateway.http.post("/prompt_sync?previews=true", data=form(0.1, 2)) as response:
            assert (response.status, (await response.json())["type"]) == (429, "overloaded")
        await prompts_are_queued(engine, 1)
        running, pending = await queue_of(engine)
        engine.wake(*running, *pending)
        assert (await first).status == 200
        async with gateway.http.post("/prompt_sync", data=form(0.1, 3)) as response:
            assert response.status == 200


@pytest.mark.parametrize("path", ["/prompt_sync", "/prompt_sync?previews=true", "/validate", "/convert", "/prompt"])
async def test_a_chunked_body_that_is_too_large_is_refused(engine: Engine, path: str) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(64):
            yield b" " * 1024

    async with (
        running_gateway(engine.url, max_request_body_mb=0.02) as gateway,
        gateway.http.post(path, data=endless()) as response,
    ):
        assert (response.status, (await response.json())["type"]) == (413, "body_too_large")


@pytest.mark.usefixtures("no_log")
async def test_a_thousand_waiting_callers_cost_little_memory_and_no_extra_requests(engine: Engine) -> None:
    count = 1000
    connector = aiohttp.TCPConnector(limit=0)
    async with (
        running_gateway(engine.url) as gateway,
        aiohttp.ClientSession(gateway.url, connector=connector) as http,
    ):
        await gateway.prompt_sync(invert_workflow())
        blocker = asyncio.create_task(gateway.prompt_sync(sleep_workflow(300)))
        await eventually(lambda: requests(engine, "POST /prompt") == 2)
        before = resident_bytes()

        async def call(tag: int) -> int:
            async with http.post("/prompt_sync", json={"prompt": invert_workflow(tag % 7)}) as response:
                return response.status

        waiting = [asyncio.create_task(call(tag)) for tag in range(count - 1)]
        async with asyncio.timeout(40):
            while gateway.handler.waiting < count or engine.stats.show()["requests"]["POST /prompt"] < count + 1:
                await asyncio.sleep(0.02)
        # Gateway, engine and callers share this process, so the limit is for all three together.
        assert (resident_bytes() - before) / count < 200_000
        engine.stats.reset()
        blocker.cancel()
        async with asyncio.timeout(30):
            assert set(await asyncio.gather(*waiting)) == {200}
    asked = engine.stats.show()["requests"]
    # One for each caller. The other reads of history and queue depend on the time, and not on the number of callers.
    assert count - 1 <= asked["GET /history/{prompt_id}"] <= count * 1.1
    assert asked.get("GET /queue", 0) <= count * 0.05


def resident_bytes() -> int:
    match = re.search(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match
    return int(match[1]) * 1024
