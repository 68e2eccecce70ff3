"""The kinds of call whose jobs the matrix follows through a kill, and how each may end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import aiohttp

from tests.chaos.kills.world import Answer, World
from tests.support.running import Workflow, sleep_workflow, until

_PICTURE = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
_ASYNC = {"Prefer": "respond-async"}
_RUN_S = 0.4
_LONG_S = 2.5
_ENDLESS_S = 600.0


@dataclass(frozen=True)
class Call:
    """One kind of call.

    Attributes:
        play: makes the call and returns the last answer; points are counted from `world.points.begin()` on.
        may_end: allowed last answers: an HTTP status, followed by the error's type if there is one.
        runs: how often the prompt may run.
        ahead: number of async jobs that may be with ComfyUI at a time.
        losable: the call uses up its retries by itself, so ComfyUI's death may end the job.
        known: whether the caller knows an id by which it can ask again.
    """

    name: str
    play: Callable[[World], Awaitable[Answer]]
    may_end: tuple[str, ...] = ("200",)
    runs: int = 1
    ahead: int = 4
    losable: bool = False
    known: bool = True


def workflow(world: World, seconds: float = _RUN_S, *, tag: int = 1, picture: bool = False) -> Workflow:
    """A workflow whose file name has the world's prefix, so that the file's owner can be recognised."""
    made = sleep_workflow(seconds, tag=tag)
    made["3"]["inputs"]["filename_prefix"] = world.prefix
    if picture:
        made["1"] = {"class_type": "LoadImage", "inputs": {"image": f"data:image/png;base64,{_PICTURE}"}}
    return made


async def _sync(world: World, **fields: Any) -> Answer:
    world.points.begin()
    body = {"prompt": workflow(world, _LONG_S), **fields}
    return await world.call("POST", "/prompt_sync", json=body)


async def _sync_with_id(world: World) -> Answer:
    world.points.begin()
    body = {"prompt": workflow(world, picture=True), "prompt_id": str(uuid4())}
    return await world.insist("POST", "/prompt_sync", json=body)


async def _sync_with_key(world: World) -> Answer:
    world.points.begin()
    headers = {"Idempotency-Key": "order 1"}
    return await world.insist("POST", "/prompt_sync", json={"prompt": workflow(world)}, headers=headers)


async def _sync_left(world: World) -> Answer:
    """The caller leaves and does not come back."""
    world.points.begin()
    body = {"prompt": workflow(world, _ENDLESS_S), "prompt_id": str(uuid4())}
    calling = asyncio.create_task(world.call("POST", "/prompt_sync", json=body))
    await world.struck_or(_RUN_S * 2)
    calling.cancel()
    await asyncio.wait([calling])
    return 0, {"type": "left"}


async def _sync_with_events(world: World) -> Answer:
    """The response names the id before its events; the caller comes back with it."""
    world.points.begin()
    headers = {"Accept": "text/event-stream"}
    prompt_id = ""
    try:
        async with world.http.post(
            f"{world.gateway}/prompt_sync", json={"prompt": workflow(world)}, headers=headers
        ) as response:
            prompt_id = response.headers["X-Prompt-Id"]
            await response.read()
    except aiohttp.ClientError:
        pass
    return await world.insist("GET", f"/prompt_sync/{prompt_id}") if prompt_id else (0, {"type": "no answer"})


async def _stopped(world: World) -> Answer:
    """The gateway is stopped while a sync call waits; its answer names the id."""
    calling = asyncio.create_task(world.call("POST", "/prompt_sync", json={"prompt": workflow(world, _LONG_S)}))
    await until(world.queue, bool)
    world.points.begin()
    world.stop_gateway()
    _, body = await calling
    await world.restart_gateway()
    if not body.get("prompt_id"):
        return 0, {"type": "no answer"}
    return await world.insist("GET", f"/prompt_sync/{body['prompt_id']}")


async def _timed_out(world: World, **fields: Any) -> Answer:
    world.points.begin()
    body = {"prompt": workflow(world, _ENDLESS_S), **fields}
    ask = world.insist if fields else world.call
    return await ask("POST", "/prompt_sync?timeout=0.8", json=body)


async def _async(world: World, headers: dict[str, str], **fields: Any) -> Answer:
    """Submits, again if no 202 came, and fetches the result later."""
    world.points.begin()
    body = {"prompt": workflow(world, picture=True), **fields}
    status, taken = await world.insist("POST", "/prompt_sync", json=body, headers=_ASYNC | headers)
    if status != 202:
        return status, taken
    return await world.insist("GET", f"/prompt_sync/{taken['prompt_id']}")


async def _submit(world: World, seconds: float = _ENDLESS_S, *, tag: int = 1, **fields: Any) -> str:
    status, body = await world.call(
        "POST", "/prompt_sync", json={"prompt": workflow(world, seconds, tag=tag), **fields}, headers=_ASYNC
    )
    assert status == 202, body
    return str(body["prompt_id"])


async def _async_behind(world: World) -> Answer:
    """The job waits in ComfyUI behind a prompt of another client."""
    async with world.http.post(f"{world.engine}/prompt", json={"prompt": sleep_workflow(1.2, tag=7)}) as response:
        assert response.status == 200
    return await _async(world, {"Idempotency-Key": "order 1"})


async def _async_in_queue(world: World) -> Answer:
    """The job waits in the gateway behind another job."""
    await _submit(world, 1.2, tag=7)
    return await _async(world, {"Idempotency-Key": "order 1"})


async def _async_put_back(world: World) -> Answer:
    """ComfyUI breaks off the upload of the input, so the job waits again."""
    await world.fault(cut={"route": "/upload/image", "times": 5})
    return await _async(world, {"Idempotency-Key": "order 1"})


async def _async_forgotten(world: World) -> Answer:
    """ComfyUI forgets the job once while it runs."""
    world.points.begin()
    _, taken = await world.insist(
        "POST",
        "/prompt_sync",
        json={"prompt": workflow(world, _LONG_S / 2)},
        headers=_ASYNC | {"Idempotency-Key": "order 1"},
    )
    await world.struck_or(0.4)
    if not world.points.struck:
        await world.fault(forget={})
    return await world.insist("GET", f"/prompt_sync/{taken['prompt_id']}")


async def _delete(world: World, prompt_id: str) -> Answer:
    world.points.begin()
    status, body = await world.insist("DELETE", f"/prompt_sync/{prompt_id}")
    if status not in {200, 404}:
        return status, body
    return await world.insist("GET", f"/prompt_sync/{prompt_id}")


async def _delete_running(world: World) -> Answer:
    prompt_id = await _submit(world)
    await until(lambda: world.status_of(prompt_id), lambda status: status == "running")
    return await _delete(world, prompt_id)


async def _delete_waiting(world: World) -> Answer:
    await _submit(world, 1.5, tag=7)
    return await _delete(world, await _submit(world))


async def _delete_sync(world: World) -> Answer:
    prompt_id = str(uuid4())
    body = {"prompt": workflow(world, _ENDLESS_S), "prompt_id": prompt_id}
    calling = asyncio.create_task(world.call("POST", "/prompt_sync", json=body))
    await until(lambda: world.status_of(prompt_id), lambda status: status == "running")
    answer = await _delete(world, prompt_id)
    await calling
    return answer


async def _again(world: World) -> Answer:
    """A second run of a job that was canceled."""
    prompt_id = str(uuid4())
    body = {"prompt": workflow(world), "prompt_id": prompt_id}
    await _submit(world, 1.0, tag=7)
    assert (await world.call("POST", "/prompt_sync", json=body, headers=_ASYNC))[0] == 202
    assert (await world.call("DELETE", f"/prompt_sync/{prompt_id}"))[0] == 200
    world.points.begin()
    status, taken = await world.insist("POST", "/prompt_sync", json=body, headers=_ASYNC)
    return await world.insist("GET", f"/prompt_sync/{prompt_id}") if status == 202 else (status, taken)


async def _again_sync(world: World) -> Answer:
    """A second run of a sync call that ran when it was canceled."""
    prompt_id = str(uuid4())
    body = {"prompt": workflow(world, _LONG_S), "prompt_id": prompt_id}
    calling = asyncio.create_task(world.call("POST", "/prompt_sync", json=body))
    await until(lambda: world.status_of(prompt_id), lambda status: status == "running")
    assert (await world.call("DELETE", f"/prompt_sync/{prompt_id}"))[0] == 200
    await calling
    world.points.begin()
    return await world.insist("POST", "/prompt_sync", json=body)


_CANCELED = ("409 task_cancelled",)

CALLS = (
    Call("sync, no id", _sync, known=False),
    Call("sync, prompt_id", _sync_with_id),
    Call("sync, key", _sync_with_key),
    Call("sync, prompt_id, caller gone", _sync_left, known=False),
    Call("sync, events", _sync_with_events, known=False),
    Call("sync, gateway stopped", _stopped, known=False),
    Call("sync, no id, timeout", _timed_out, may_end=("504 timeout",), known=False),
    Call(
        "sync, prompt_id, timeout",
        lambda world: _timed_out(world, prompt_id=str(uuid4())),
        may_end=("504 timeout",),
        runs=2,
    ),
    Call("async, key", lambda world: _async(world, {"Idempotency-Key": "order 1"})),
    Call("async, prompt_id", lambda world: _async(world, {}, prompt_id=str(uuid4()))),
    Call("async, behind another's prompt", _async_behind),
    Call("async, in the gateway's queue", _async_in_queue, ahead=1),
    Call("async, put back once", _async_put_back),
    Call("async, forgotten once", _async_forgotten, may_end=("200", "502 prompt_lost"), losable=True),
    Call("DELETE, running", _delete_running, may_end=_CANCELED),
    Call("DELETE, in the gateway's queue", _delete_waiting, may_end=_CANCELED, ahead=1),
    Call("DELETE, sync, prompt_id", _delete_sync, may_end=_CANCELED),
    Call("second run, async", _again, runs=2, ahead=1),
    Call("second run, sync", _again_sync, runs=2),
)
