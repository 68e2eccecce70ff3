"""`BackendPool`: all ComfyUI servers behind us. The scheduler decides which of them gets a prompt."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Self

from comfyui.address import ServerAccess
from comfyui.client import ComfyUIClient
from comfyui.exceptions import ComfyUIConnectionError, ComfyUINotFoundError
from comfyui.feed import Feed
from comfyui.metrics import Metrics
from comfyui.models import OutputFile, PromptResult
from comfyui.servers.backend import Backend
from comfyui.servers.frame_listener import FrameListener
from comfyui.servers.options import DEFAULT_SERVERS, ServerOptions
from comfyui.servers.prompt_worker import PromptWorker
from comfyui.servers.server import Health, Server, ServerReport
from comfyui.servers.watcher import CompletionWatcher
from comfyui.tasks import end_tasks
from comfyui.transport.body import OpenBody

_NO_ACCESS: Mapping[str, ServerAccess] = {}
CHOICE_PATIENCE_S = 2.0
"""How long a new prompt waits for a server to come up: only a moment, because its caller can retry."""
# A server that takes longer than this to free its memory blocks no caller.
_FREE_S = 5.0


class BackendPool:
    """All ComfyUI servers of a gateway or worker. Open it with ``async with``; it owns them.

    Args:
        news: what the servers set when one comes up or goes down, or has more or fewer prompts of others.
        frames: tells of the frames of all servers.
        runs_prompts: whether these servers run prompts. Else they have everything but prompts.

    Attributes:
        backends: the ComfyUI servers.
        servers: all that run prompts; `join` adds one that is not a ComfyUI.
    """

    def __init__(
        self,
        backends: Sequence[Backend],
        news: asyncio.Event | None = None,
        frames: Feed[FrameListener] | None = None,
        *,
        runs_prompts: bool = True,
    ) -> None:
        if not backends:
            raise ValueError("at least one ComfyUI server must be given")
        self.backends = tuple(backends)
        self.servers: tuple[Server, ...] = self.backends if runs_prompts else ()
        self.news = news or asyncio.Event()
        self.frames = frames or Feed()
        self._stack = AsyncExitStack()

    @classmethod
    def connect(
        cls,
        addresses: Sequence[str],
        options: ServerOptions = DEFAULT_SERVERS,
        *,
        metrics: Metrics | None = None,
        access: Mapping[str, ServerAccess] = _NO_ACCESS,
        runs_prompts: bool = True,
    ) -> Self:
        """A pool over these addresses (``host:port`` or URLs). Nothing is sent before it is opened.

        `access`: by address, the headers and certificates. `runs_prompts`: see `BackendPool`.
        """
        metrics, news = metrics or Metrics(), asyncio.Event()
        frames: Feed[FrameListener] = Feed()
        backends: list[Backend] = []
        for address in addresses:
            client = ComfyUIClient(
                address,
                timeout_s=options.http_timeout_s,
                retries=options.http_retries,
                metrics=metrics,
                lean=True,
                access=access.get(address),
                answers=options.answers,
            )
            worker = PromptWorker(
                stalled_after_s=options.stalled_after_s,
                silent_after_s=options.silent_after_s,
                dead_after_s=options.dead_after_s,
            )
            watcher = CompletionWatcher(client, options, worker=worker, metrics=metrics, news=news, listeners=frames)
            backends.append(Backend(client, watcher, metrics, options, news=news, runs_prompts=runs_prompts))
        return cls(backends, news, frames, runs_prompts=runs_prompts)

    def join(self, server: Server) -> None:
        """Adds a server that runs prompts and is not a ComfyUI. It belongs to its opener; call this before any
        prompt.
        """
        self.servers = (*self.servers, server)

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            for backend in self.backends:
                await stack.enter_async_context(backend)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self._stack.aclose()

    @property
    def ready(self) -> list[Backend]:
        return [backend for backend in self.backends if backend.ready]

    @property
    def ready_servers(self) -> list[Server]:
        """The servers that run prompts and can do so now."""
        return [server for server in self.servers if server.ready]

    def backend(self, name: str) -> Backend | None:
        """The ComfyUI server of this name."""
        return next((backend for backend in self.backends if backend.name == name), None)

    def named(self, name: str) -> Server | None:
        """The server that runs prompts under this name."""
        for server in self.servers:
            if server.name == name:
                return server
        return None

    async def free(self, *, unload_models: bool, free_memory: bool) -> None:
        """Tells all servers that are up to drop models and caches before their next prompts.

        Raises:
            ComfyUIError: no server accepted it.
        """
        asked = [
            asyncio.create_task(server.client.free(unload_models=unload_models, free_memory=free_memory))
            for server in self.ready or self.backends
        ]
        try:
            done, _ = await asyncio.wait(asked, timeout=_FREE_S)
        finally:
            await end_tasks(*asked)
        failures = [error for task in done if (error := task.exception()) is not None]
        if len(failures) == len(done):
            raise failures[0] if failures else ComfyUIConnectionError(f"no server has answered within {_FREE_S:g} s")

    def open_file(self, result: PromptResult, file: OutputFile) -> AbstractAsyncContextManager[OpenBody]:
        """One file of a result, streamed from the server that made it; see `ComfyUIClient.view`."""
        server = self.named(result.server)
        if server is None:
            raise ComfyUINotFoundError(f"the server that has {file.filename!r} is no longer configured")
        return server.open_file(result.prompt_id, file)

    async def choose(self, *, patience_s: float) -> Backend:
        """The first server that is in rotation, for requests that any of them can answer.

        Waits up to `patience_s` for a server to come up, then raises `ComfyUIConnectionError` with the reason of each.
        """
        deadline = time.monotonic() + patience_s
        while True:
            if ready := self.ready:
                return ready[0]
            left_s = deadline - time.monotonic()
            if left_s <= 0 or all(backend.abandoned for backend in self.backends):
                raise ComfyUIConnectionError(self.why_not_ready())
            await self.wait_for_change(left_s)

    async def wait_for_change(self, timeout_s: float) -> None:
        """Returns when a server came up or went down, or after `timeout_s`."""
        servers = {*self.backends, *self.servers}
        tasks = [asyncio.create_task(server.wait_for_change()) for server in servers]
        try:
            await asyncio.wait(tasks, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await end_tasks(*tasks)

    def why_not_ready(self, *, in_detail: bool = True) -> str:
        """One sentence for each server that is not in rotation. Without `in_detail`, only the number of servers in each
        state.
        """
        if not in_detail:
            counts = Counter(_state(server) for server in self.servers if not server.takes_prompts)
            return f"ComfyUI servers: {', '.join(f'{count} {state}' for state, count in counts.items())}"
        return "; ".join(
            server.why_not if server.name in server.why_not else f"{server.name}: {server.why_not or 'not ready'}"
            for server in self.servers
            if not server.takes_prompts
        )

    def look_again(self) -> None:
        """Servers without a working websocket are probed again."""
        for backend in self.backends:
            if not backend.watcher.connected:
                backend.look_again()

    def report(self, *, in_detail: bool = True) -> list[ServerReport]:
        """The state of each server for `/health`, from present knowledge without a request. Without `in_detail`, no
        names and no reasons.
        """
        return [server.report(in_detail=in_detail) for server in self.servers]


def _state(server: Server) -> str:
    if server.health is not Health.READY:
        return str(server.health.value)
    # A connected server that takes no prompts is drained, or our own watcher of it has failed.
    return "drained" if server.ready else "failed"
