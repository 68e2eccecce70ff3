"""`Everywhere`: one question to all servers at once, whose answers are given again for a moment."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any

from comfyui import big_json
from comfyui.exceptions import ComfyUIConnectionError, ComfyUIError, JSONError
from comfyui.limits import JSON_OF_COMFYUI
from comfyui.offload import offloaded
from comfyui.servers.backend import Backend
from comfyui.servers.pool import BackendPool
from comfyui.tasks import SideTasks, end_tasks
from comfyui.transport.drivers import RawReply
from comfyui.web.front.paths import route_of

# Seconds. Lists of files and free memory are shown again for so long, however many ask.
_FRESH_S = 1.0
# How long the others wait for a server that does not answer.
_PATIENCE_S = 5.0
_REMEMBERED = 100


@dataclass(frozen=True, slots=True)
class Said:
    """The answer of one server: `body` is its JSON, None if the status is not 200 or the body is not JSON."""

    server: str
    reply: RawReply
    body: Any


class Everywhere:
    """Asks the servers of a pool: those that are up, in the order of their configuration. `close` it."""

    def __init__(self, pool: BackendPool) -> None:
        self._pool = pool
        # The waiting callers get the error of a request; there may be none left.
        self._tasks = SideTasks(lambda _task: None)
        self._asked: dict[str, tuple[float, asyncio.Task[list[Said]]]] = {}

    async def close(self) -> None:
        await self._tasks.close()

    async def ask(self, target: str) -> list[Said]:
        """The answers to a GET of this path and query; at least one. A server that fails, or does not answer soon, is
        left out.

        Raises:
            ComfyUIError: no server has answered.
        """
        at, task = self._asked.get(target, (float("-inf"), None))
        if task is None or (task.done() and time.monotonic() - at >= _FRESH_S):
            self._forget_old()
            task = self._tasks.start(self._ask(target), "question to all servers")
            self._asked[target] = time.monotonic(), task
        # It goes on without a caller who leaves: others wait for it.
        return await asyncio.shield(task)

    async def first(self, target: str) -> RawReply:
        """The first good answer of a server; if there is none, the first answer.

        Raises:
            ComfyUIError: no server has answered.
        """
        failure: ComfyUIError | None = None
        refused: RawReply | None = None
        for backend in self._pool.ready or self._pool.backends:
            try:
                reply = await _get(backend, target)
            except ComfyUIError as error:
                failure = failure or error
                continue
            if reply.status == 200:
                return reply
            refused = refused or reply
        if refused is None:
            raise failure or ComfyUIConnectionError(self._pool.why_not_ready())
        return refused

    async def _ask(self, target: str) -> list[Said]:
        backends = self._pool.ready or self._pool.backends
        tasks = [asyncio.create_task(_said(backend, target)) for backend in backends]
        try:
            await asyncio.wait(tasks, timeout=_PATIENCE_S)
        finally:
            await end_tasks(*tasks)
        done = [task for task in tasks if not task.cancelled()]
        said = [task.result() for task in done if task.exception() is None]
        if said:
            return said
        failures = [error for task in done if (error := task.exception()) is not None]
        raise failures[0] if failures else ComfyUIConnectionError(f"no server has answered within {_PATIENCE_S:g} s")

    def _forget_old(self) -> None:
        if len(self._asked) >= _REMEMBERED:
            self._asked = {target: (at, task) for target, (at, task) in self._asked.items() if not task.done()}


async def _said(backend: Backend, target: str) -> Said:
    reply = await _get(backend, target)
    body = None
    if reply.status == 200:
        try:
            body = await offloaded(len(reply.body), big_json.load, reply.body, JSON_OF_COMFYUI)
        except JSONError:
            body = None
    return Said(backend.name, reply, body)


async def _get(backend: Backend, target: str) -> RawReply:
    try:
        return await backend.client.forward_get(target, route_of(target.partition("?")[0]))
    except ComfyUIConnectionError as error:
        backend.failed(error)
        raise
