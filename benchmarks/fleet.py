"""Several servers and one gateway: six prompts at once, cancels, and the shares of two owners."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import orjson

from benchmarks.callers import GatewayClient, Pool, pool_of, submitted, workflow
from benchmarks.processes import BenchError, Server, running_engine, running_gateway
from benchmarks.stage import Row, Stage

_LOOK_S = 0.005
_GIVE_UP_S = 60.0


@dataclass(frozen=True, slots=True)
class Fleet:
    """A gateway and its servers."""

    gateway: Server
    pool: Pool
    engines: tuple[Pool, ...]


@asynccontextmanager
async def fleet(on: Stage, servers: int, **settings: str) -> AsyncIterator[Fleet]:
    async with AsyncExitStack() as stack:
        engines = [
            await stack.enter_async_context(running_engine(on.logs, f"engine-{number}")) for number in range(servers)
        ]
        addresses = ",".join(engine.address for engine in engines)
        gateway = await stack.enter_async_context(
            running_gateway(engines[0], on.logs, COMFYUI_SERVER_ADDRESS=addresses, **settings)
        )
        pools = [await stack.enter_async_context(pool_of(server)) for server in (gateway, *engines)]
        await all_are_up(pools[0], servers)
        yield Fleet(gateway, pools[0], tuple(pools[1:]))


async def all_are_up(pool: Pool, servers: int) -> None:
    """Returns when the gateway is connected to all its servers."""

    async def are_up() -> bool:
        states = [one["state"] for one in orjson.loads((await pool.request("GET", "/health")).body)["servers"]]
        return states == ["connected"] * servers

    await until(are_up, "all servers are up")


async def until(holds: Callable[[], Awaitable[bool]], what: str) -> float:
    """Waits until `holds` is true and returns the seconds. Raises `BenchError` if that takes very long."""
    began = time.perf_counter()
    while not await holds():
        if time.perf_counter() - began > _GIVE_UP_S:
            raise BenchError(f"after {_GIVE_UP_S:.0f} s this was still not true: {what}")
        await asyncio.sleep(_LOOK_S)
    return time.perf_counter() - began


# Six prompts of one caller


async def six_prompts(on: Stage) -> list[Row]:
    """Six concurrent prompts of one second on three servers: by `POST /prompt_sync`, and by ComfyUI's own call."""
    async with fleet(on, 3) as servers:
        for way in (_six_sync, _six_queued):
            await way(servers, 0.0)  # warms up
        sync_s = await _six_sync(servers, 1.0)
        queued_s = await _six_queued(servers, 1.0)
    return [_six_row("POST /prompt_sync", sync_s), _six_row("POST /prompt", queued_s)]


def _six_row(path: str, seconds: float) -> Row:
    return Row(f"6 prompts of 1 s on 3 servers, {path}", f"{seconds:.2f} s", "< 3 s", seconds < 3)


async def _six_sync(servers: Fleet, seconds: float) -> float:
    call = GatewayClient(servers.pool)
    began = time.perf_counter()
    await asyncio.gather(*(call(workflow(seconds)) for _ in range(6)))
    return time.perf_counter() - began


async def _six_queued(servers: Fleet, seconds: float) -> float:
    """Seconds until the history has all of them."""

    async def post() -> str:
        reply = await servers.pool.request("POST", "/prompt", orjson.dumps({"prompt": workflow(seconds)}))
        prompt_id: str = orjson.loads(reply.body)["prompt_id"]
        return prompt_id

    began = time.perf_counter()
    for prompt_id in await asyncio.gather(*(post() for _ in range(6))):

        async def is_done(prompt_id: str = prompt_id) -> bool:
            return bool(orjson.loads((await servers.pool.request("GET", f"/history/{prompt_id}")).body))

        await until(is_done, f"the history has {prompt_id}")
    return time.perf_counter() - began


# A cancel


async def cancels(on: Stage) -> list[Row]:
    """The time from the caller's cancel until the server does not run the prompt, for each of three servers."""
    rounds = 2 if on.quick else 10
    rows = []
    async with fleet(on, 3) as servers:
        for waiting in (0, 1000):
            for _ in range(waiting):
                await submitted(servers.pool, workflow(3600.0))
            for way in (_delete, _interrupt):
                took = [await _cancelled(servers, way) for _ in range(rounds)]
                slowest = [max(each) for each in zip(*took, strict=True)]
                each_text = ", ".join(f"{seconds:.3f}" for seconds in slowest)
                rows.append(
                    Row(
                        f"a cancel reaches the server, {waiting:,} waiting, {way.__doc__}",
                        f"{max(slowest):.3f} s at most",
                        "≤ 0.5 s",
                        max(slowest) <= 0.5,
                        f"{rounds} times on each server, which took at most {each_text} s",
                    )
                )
    return rows


async def _cancelled(servers: Fleet, cancel: Callable[[Pool, str], Coroutine[Any, Any, None]]) -> list[float]:
    """Cancels the prompt on each server; first gives each idle server a prompt."""
    for engine in servers.engines:
        if not await _running(engine):
            await submitted(servers.pool, workflow(3600.0))

    async def all_run() -> bool:
        return all([await _running(engine) for engine in servers.engines])

    await until(all_run, "each server runs a prompt")
    took = []
    for engine in servers.engines:
        prompt_id = await _running(engine)

        async def is_over(engine: Pool = engine, prompt_id: str = prompt_id) -> bool:
            return await _running(engine) != prompt_id

        async with asyncio.TaskGroup() as group:
            over = group.create_task(until(is_over, f"{prompt_id} has stopped"))
            group.create_task(cancel(servers.pool, prompt_id))
        took.append(over.result())
    return took


async def _running(engine: Pool) -> str:
    """The prompt that a server runs, or ""."""
    running = orjson.loads((await engine.request("GET", "/queue")).body)["queue_running"]
    return running[0][1] if running else ""


async def _delete(pool: Pool, prompt_id: str) -> None:
    """DELETE /prompt_sync/{id}"""
    await pool.request("DELETE", f"/prompt_sync/{prompt_id}")


async def _interrupt(pool: Pool, prompt_id: str) -> None:
    """POST /interrupt with the id"""
    await pool.request("POST", "/interrupt", orjson.dumps({"prompt_id": prompt_id}))


# Two owners


async def fairness(on: Stage) -> list[Row]:
    """1,000 jobs of one key, then 10 of another, on four servers; start times come from the servers' own histories.

    Counts the first key's prompts that began between the second key's first submission and its last job's end.
    """
    many, few, seconds = (200 if on.quick else 1000), 10, 0.1
    keys = on.logs / "keys.toml"
    keys.write_text("".join(_key(name) for name in ("first", "second")))
    async with fleet(on, 4, KEYS_FILE=str(keys)) as servers:
        first = {await submitted(servers.pool, workflow(seconds), _as("first")) for _ in range(many)}
        submitted_at = time.time() * 1000
        second = {await submitted(servers.pool, workflow(seconds), _as("second")) for _ in range(few)}

        async def second_has_ended() -> bool:
            return second <= (await _times(servers)).keys()

        lasted_s = await until(second_has_ended, "the second key's jobs have ended")
        times = await _times(servers)
    ended_at = max(times[prompt_id][1] for prompt_id in second)
    began = [began_at for prompt_id, (began_at, _) in times.items() if prompt_id in first]
    between = sum(submitted_at <= began_at < ended_at for began_at in began)
    before = sum(began_at < submitted_at for began_at in began)
    return [
        Row(
            f"{many:,} jobs of one key, then {few} of another, 4 servers",
            f"{between} of the first began before the second's were done",
            "< 30",
            between < 30,
            f"the second's {few} took {lasted_s:.1f} s; {before} of the first had begun before they came",
        )
    ]


def _key(name: str) -> str:
    return f'[keys.{name}]\nsha256 = "{hashlib.sha256(name.encode()).hexdigest()}"\nrole = "user"\n'


def _as(name: str) -> str:
    return f"Authorization: Bearer {name}\r\n"


async def _times(servers: Fleet) -> dict[str, tuple[float, float]]:
    """The start and end of each prompt in milliseconds of Unix time, by its id."""
    times = {}
    for engine in servers.engines:
        history = orjson.loads((await engine.request("GET", "/history")).body)
        for prompt_id, entry in history.items():
            at = {name: data["timestamp"] for name, data in entry["status"]["messages"]}
            times[prompt_id] = (at["execution_start"], at["execution_success"])
    return times
