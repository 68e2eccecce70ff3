"""`BackendPool`: all ComfyUI servers behind us. Which of them gets a prompt is the scheduler's to say."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Annotated, Literal, Self

from pydantic import Field
from typing_extensions import TypedDict

from comfyui.address import ServerAccess
from comfyui.client import ComfyUIClient
from comfyui.exceptions import ComfyUIConnectionError, ComfyUINotFoundError
from comfyui.feed import Feed
from comfyui.metrics import Metrics
from comfyui.models import OutputFile, PromptResult
from comfyui.servers.backend import Backend, Health
from comfyui.servers.frame_listener import FrameListener
from comfyui.servers.options import DEFAULT_SERVERS, ServerOptions
from comfyui.servers.prompt_worker import PromptWorker
from comfyui.servers.watcher import CompletionWatcher
from comfyui.tasks import end_tasks
from comfyui.transport.body import OpenBody

_NO_ACCESS: Mapping[str, ServerAccess] = {}
CHOICE_PATIENCE_S = 2.0
"""How long a new prompt waits for a server to come up: a moment, since its caller can try again."""
# A server that does not say sooner that it frees its memory keeps nobody waiting.
_FREE_S = 5.0


class SilentPrompt(TypedDict):
    """The prompt that runs on a server without any event."""

    prompt_id: str
    seconds: float


class OtherDefinitions(TypedDict):
    """How a server's node definitions differ from those of the first server: names of classes, of each the first 20."""

    lacks: Annotated[list[str], Field(description="Only the first server has them.")]
    adds: Annotated[list[str], Field(description="The first server does not have them.")]
    differs: Annotated[list[str], Field(description="They have other inputs or outputs. Lists of files do not count.")]
    count: Annotated[int, Field(description="How many classes there are of all three kinds.")]


class ServerDetail(TypedDict, total=False):
    """What a server's report has only for callers who may be told of addresses and reasons."""

    server: str
    reason: str | None
    silent: SilentPrompt | None
    definitions: Annotated[OtherDefinitions, Field(description="Missing where they do not differ, or are not known.")]


class ServerReport(ServerDetail):
    """One ComfyUI server, as `/health` has it."""

    state: str
    websocket: Literal["connected", "silent", "disconnected"]
    queue_remaining: int
    in_flight: int
    drained: Annotated[bool, Field(description="It gets no more prompts until `POST /servers/{name}/resume`.")]
    simulation: bool


class BackendPool:
    """All ComfyUI servers of a gateway or worker. Open it with ``async with``; it owns them.

    Args:
        news: what the servers set when one comes up or goes down, or has more or fewer prompts of others.
        frames: tells of the frames of all servers.
    """

    def __init__(
        self,
        backends: Sequence[Backend],
        news: asyncio.Event | None = None,
        frames: Feed[FrameListener] | None = None,
    ) -> None:
        if not backends:
            raise ValueError("at least one ComfyUI server is needed")
        self.backends = tuple(backends)
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
        name: str = "",
        access: Mapping[str, ServerAccess] = _NO_ACCESS,
    ) -> Self:
        """A pool over these addresses (``host:port`` or URLs). Nothing is sent before it is opened.

        `name`: by which people know the server, where there is one that is not its address and runs prompts elsewhere.
        `access`: by address, what is needed beside it.
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
                name=name,
                access=access.get(address),
                answers=options.answers,
            )
            worker = PromptWorker(
                stalled_after_s=options.stalled_after_s,
                silent_after_s=options.silent_after_s,
                dead_after_s=options.dead_after_s,
            )
            watcher = CompletionWatcher(client, options, worker=worker, metrics=metrics, news=news, listeners=frames)
            backends.append(Backend(client, watcher, metrics, options, runs_elsewhere=bool(name), news=news))
        return cls(backends, news, frames)

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

    def named(self, name: str) -> Backend | None:
        return next((backend for backend in self.backends if backend.name == name), None)

    async def free(self, *, unload_models: bool, free_memory: bool) -> None:
        """Have all servers that are up drop models and caches before their next prompts.

        Raises:
            ComfyUIError: none has taken it.
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
        backend = self.named(result.server)
        if backend is None:
            raise ComfyUINotFoundError(f"the server that has {file.filename!r} is not configured any more")
        return backend.client.view(file.filename, file.subfolder, file.type)

    async def choose(self, *, patience_s: float) -> Backend:
        """The first server that is in rotation, for what any of them can do.

        Waits up to `patience_s` for one to come up, then raises `ComfyUIConnectionError` with each one's reason.
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
        """Returns when a server came up or went down, or after so long."""
        tasks = [asyncio.create_task(backend.wait_for_change()) for backend in self.backends]
        try:
            await asyncio.wait(tasks, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await end_tasks(*tasks)

    def why_not_ready(self, *, in_detail: bool = True) -> str:
        """One sentence for each server that is not in rotation; not `in_detail`: how many are in which state."""
        if not in_detail:
            counts = Counter(_state(backend) for backend in self.backends if not backend.takes_prompts)
            return f"ComfyUI servers: {', '.join(f'{count} {state}' for state, count in counts.items())}"
        return "; ".join(
            reason if backend.name in (reason := _reason(backend)) else f"{backend.name}: {reason or 'not ready'}"
            for backend in self.backends
            if not backend.takes_prompts
        )

    def look_again(self) -> None:
        """Servers without a working websocket are asked anew."""
        for backend in self.backends:
            if not backend.watcher.connected:
                backend.look_again()

    def report(self, *, in_detail: bool = True) -> list[ServerReport]:
        """Per-server state for `/health`, from what is known: it asks nobody. Not `in_detail`: no names, no reasons."""
        return [_report(backend, _detail(backend) if in_detail else {}) for backend in self.backends]


def _report(backend: Backend, detail: ServerDetail) -> ServerReport:
    watcher = backend.watcher
    return {
        **detail,
        "state": backend.health.value,
        "websocket": "connected" if watcher.connected else "silent" if watcher.silent else "disconnected",
        "queue_remaining": watcher.queue_remaining,
        "in_flight": backend.in_flight,
        "drained": backend.drained,
        "simulation": backend.simulated,
    }


def _state(backend: Backend) -> str:
    if backend.health is not Health.READY:
        return str(backend.health.value)
    # One that is connected and takes nothing is drained, or our own watcher of it has failed.
    return "drained" if backend.ready else "failed"


def _reason(backend: Backend) -> str:
    """Why it gets no prompts; "" where it gets some."""
    if backend.ready and backend.drained:
        return f"drained: POST /servers/{backend.name}/resume lets it have prompts again"
    return backend.reason


def _detail(backend: Backend) -> ServerDetail:
    silence = backend.watcher.worker.silence
    return {
        "server": backend.name,
        "reason": _reason(backend) or None,
        "silent": None if silence is None else {"prompt_id": silence.prompt_id, "seconds": round(silence.seconds, 1)},
    }
