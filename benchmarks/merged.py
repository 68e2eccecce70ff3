"""What a client of a gateway gets from three servers that look like one: re-addressed frames, and a large file."""

from __future__ import annotations

import asyncio
import re
import statistics
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import aiohttp
import orjson

from benchmarks.callers import Pool, checked, file_workflow, pool_of, view_path, workflow
from benchmarks.fleet import all_are_up, until
from benchmarks.http import Connection
from benchmarks.processes import BenchError, Server, running_engine, running_gateway
from benchmarks.stage import Row, Stage, percentile

_SERVERS = 3
_FRAMES_PER_S = 1000
# The engine sends two frames for each step of progress, and takes longer for a step than it is set to.
_STEP_S = 2 * _SERVERS / _FRAMES_PER_S * 0.85
_PROGRESS = re.compile(rb'"type": "progress", "data": \{"value": (\d+), [^}]*"prompt_id": "([^"]+)"')
_GB = 1_000_000_000

Step = tuple[str, int]
"""A prompt's id and its progress, which identify a frame of progress."""


async def frames(on: Stage) -> list[Row]:
    """The time from a server's sending of a frame until the client of its prompt has it."""
    steps = 400 if on.quick else 3000
    sent: dict[Step, float] = {}

    def heard(data: bytes) -> None:
        now = time.perf_counter()
        for found in _PROGRESS.finditer(data):
            sent[found[2].decode(), int(found[1])] = now

    async with AsyncExitStack() as stack:
        engines = await _engines(stack, on)
        taps = [await stack.enter_async_context(tap(engine, heard)) for engine in engines]
        addresses = ",".join(f"127.0.0.1:{port}" for port in taps)
        gateway = await stack.enter_async_context(
            running_gateway(engines[0], on.logs, COMFYUI_SERVER_ADDRESS=addresses)
        )
        await all_are_up(await stack.enter_async_context(pool_of(gateway)), _SERVERS)
        http = await stack.enter_async_context(aiohttp.ClientSession(f"http://{gateway.address}"))
        before = gateway.cpu_s()
        tabs = await asyncio.gather(*(_tab(http, f"tab-{number}", steps) for number in range(_SERVERS)))
        cpu_s = gateway.cpu_s() - before
    came = {step: at for arrivals, _ in tabs for step, at in arrivals.items()}
    if missing := _SERVERS * steps - len(came):
        raise BenchError(f"{missing} frames of progress did not arrive")
    # The tap does not see a frame that arrived in two pieces.
    took_ms = [(at - sent[step]) * 1000 for step, at in came.items() if step in sent]
    lasted_s = max(came.values()) - min(came.values())
    told = sum(count for _, count in tabs)
    p95 = percentile(took_ms, 95)
    return [
        Row(
            f"frames of {_SERVERS} servers re-addressed to {_SERVERS} clients, p95",
            f"{p95:.2f} ms",
            f"< 5 ms at {_FRAMES_PER_S:,}/s",
            p95 < 5,
            f"{told / lasted_s:.0f} frames/s; p50 {percentile(took_ms, 50):.2f} ms, p99 {percentile(took_ms, 99):.2f}"
            f" ms of {len(took_ms):,}; gateway {cpu_s / told * 1000:.2f} ms CPU per frame",
        )
    ]


async def _tab(http: aiohttp.ClientSession, client_id: str, steps: int) -> tuple[dict[Step, float], int]:
    """Runs one client with one prompt; returns the time of each frame of progress, and the number of frames."""
    came: dict[Step, float] = {}
    count = 0
    prompt: dict[str, Any] = workflow(steps * _STEP_S)
    prompt["2"]["inputs"]["steps"] = steps
    async with http.ws_connect(f"/ws?clientId={client_id}", max_msg_size=0) as socket:
        async with http.post("/prompt", json={"prompt": prompt, "client_id": client_id}) as reply:
            reply.raise_for_status()
        async for message in socket:
            now = time.perf_counter()
            count += 1
            event = orjson.loads(message.data)
            if event["type"] == "progress":
                came[event["data"]["prompt_id"], event["data"]["value"]] = now
            elif event["type"] == "executing" and event["data"]["node"] is None:
                break
    return came, count


@asynccontextmanager
async def tap(server: Server, heard: Callable[[bytes], None]) -> AsyncIterator[int]:
    """A port that leads to the server; `heard` gets everything that the server sends."""
    open_connections: set[asyncio.Task[None]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        open_connections.add(task)
        task.add_done_callback(open_connections.discard)
        there, back = await asyncio.open_connection("127.0.0.1", server.port)
        await asyncio.gather(_passed(reader, back, None), _passed(there, writer, heard))

    listening = await asyncio.start_server(connected, "127.0.0.1")
    try:
        yield listening.sockets[0].getsockname()[1]
    finally:
        listening.close()
        for task in open_connections:
            task.cancel()
        await asyncio.gather(*open_connections, return_exceptions=True)


async def _passed(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, heard: Callable[[bytes], None] | None
) -> None:
    try:
        while data := await reader.read(1 << 16):
            if heard is not None:
                heard(data)
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass  # closing the writer ends the other side
    finally:
        writer.close()


async def merged_file(on: Stage) -> list[Row]:
    """A prompt's file through the gateway with three servers, and through the relay in front of the file's server."""
    size, turns = (_GB // 4, 3) if on.quick else (_GB, 10)
    async with AsyncExitStack() as stack:
        engines = await _engines(stack, on)
        addresses = ",".join(engine.address for engine in engines)
        gateway = await stack.enter_async_context(
            running_gateway(engines[0], on.logs, COMFYUI_SERVER_ADDRESS=addresses)
        )
        pool = await stack.enter_async_context(pool_of(gateway))
        await all_are_up(pool, _SERVERS)
        reply = await pool.request("POST", "/prompt", orjson.dumps({"prompt": file_workflow(size)}))
        prompt_id = orjson.loads(reply.body)["prompt_id"]

        async def has_ended() -> bool:
            return await _file(pool, prompt_id) is not None

        await until(has_ended, "the file is made")
        merged_path = view_path(await _file(pool, prompt_id) or {})
        for owner in engines:
            file = await _file(await stack.enter_async_context(pool_of(owner)), prompt_id)
            if file is not None:
                break
        else:
            raise BenchError("no server has the file")
        relay = await stack.enter_async_context(running_gateway(owner, on.logs))
        ways = ((owner, view_path(file)), (relay, view_path(file)), (gateway, merged_path))
        rounds: list[list[float]] = []
        for turn in range(turns + 1):
            # Each way comes first in its turn, because a transfer after another long one is a little slower.
            order = [(turn + place) % len(ways) for place in range(len(ways))]
            took = {way: await _seconds(*ways[way], size) for way in order}
            if turn == 0:  # warms up
                before = [server.cpu_s() for server in (relay, gateway)]
            else:
                rounds.append([took[way] for way in range(len(ways))])
        cpu = [(server.cpu_s() - then) / turns for server, then in zip((relay, gateway), before, strict=True)]
    share = statistics.median(relayed / merged for _, relayed, merged in rounds)
    bare, relayed, merged = (size / statistics.median(each) / 1e6 for each in zip(*rounds, strict=True))
    return [
        Row(
            f"{size / _GB:.2g} GB through /view of {_SERVERS} servers",
            f"{share:.2f} of the relay's rate",
            "≥ 0.95",
            share >= 0.95,
            f"{merged:.0f} MB/s, through the relay {relayed:.0f} MB/s, bare {bare:.0f} MB/s;"
            f" gateway {cpu[1]:.2f} s CPU a file, relay {cpu[0]:.2f} s",
        )
    ]


async def _engines(stack: AsyncExitStack, on: Stage) -> list[Server]:
    return [await stack.enter_async_context(running_engine(on.logs, f"engine-{number}")) for number in range(_SERVERS)]


async def _file(pool: Pool, prompt_id: str) -> dict[str, Any] | None:
    """The one file of the prompt according to this history, or None if it does not have the prompt."""
    history = orjson.loads((await pool.request("GET", f"/history/{prompt_id}")).body)
    if prompt_id not in history:
        return None
    (file,) = history[prompt_id]["outputs"]["1"]["files"]
    return dict(file)


async def _seconds(server: Server, path: str, size: int) -> float:
    """The seconds of one download."""
    connection = await Connection.open(server.port)
    began = time.perf_counter()
    reply = checked(await connection.request("GET", path, keep=False), f"GET {path}")
    took_s = time.perf_counter() - began
    connection.close()
    if reply.size != size:
        raise BenchError(f"GET {path}: {reply.size} of {size} bytes")
    return took_s
