"""The engine as a whole: its parts wired together behind one aiohttp application."""

from __future__ import annotations

import asyncio
import logging
import shutil
import ssl
import tempfile
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from aiohttp import web

# Imported because they register themselves.
import comfyui.engine.nodes.diffusion
import comfyui.engine.nodes.dynamic
import comfyui.engine.nodes.guided
import comfyui.engine.nodes.guides
import comfyui.engine.nodes.image
import comfyui.engine.nodes.loaders
import comfyui.engine.nodes.media
import comfyui.engine.nodes.primitive
import comfyui.engine.nodes.simulated
import comfyui.engine.nodes.video  # noqa: F401
from comfyui.engine.crashing import CRASHES, crash
from comfyui.engine.execution import Executor, PromptThread
from comfyui.engine.faults import INSTANT, Config, Faults, parse_config
from comfyui.engine.files import Folders
from comfyui.engine.frontend import frontend_routes
from comfyui.engine.logs import LogBook, LogRoutes
from comfyui.engine.middleware import asking, counting, failing, same_origin
from comfyui.engine.options import EngineOptions
from comfyui.engine.queue import PromptQueue
from comfyui.engine.routes.control import ControlRoutes, home_page
from comfyui.engine.routes.jobs import JobRoutes
from comfyui.engine.routes.prompts import InfoRoutes, PromptRoutes
from comfyui.engine.routes.userdata import UserRoutes
from comfyui.engine.routes.view import FileRoutes
from comfyui.engine.stats import Stats
from comfyui.engine.websocket import FEATURES, MAX_UPLOAD_BYTES, Hub

_log = logging.getLogger(__name__)

_SHUTDOWN_SECONDS = 0.5  # for connections that still send; what hangs on purpose ends at once


class Engine:
    """`async with Engine(EngineOptions()) as engine:` serves at `engine.url` until the block ends.

    Runs in the caller's event loop, with one thread of its own for prompts.
    """

    def __init__(self, options: EngineOptions | None = None) -> None:
        self.options = options or EngineOptions()
        self.url = ""
        self.faults = Faults(self.options.faults_file, may_crash=self.options.own_process)
        self.stats = Stats()
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            await self._start(stack)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    @property
    def folders(self) -> Folders:
        """The folders of its files; usable while it runs."""
        return self._folders

    async def set_faults(self, faults: dict[str, Any]) -> None:
        """The same as POST /engine/faults; raises FaultError if one is unknown, and then switches none on."""
        instant = {name: parse_config(name, faults[name])[0] for name in faults if name in INSTANT}
        self.faults.merge(faults)
        if "forget" in instant:
            await self._forget()
        if "ws_drop" in instant:
            await self._drop_websockets(instant["ws_drop"])
        if "ws_flood" in instant:
            self._hub.flood(instant["ws_flood"])

    def wake(self, *prompt_ids: str) -> None:
        """Nodes of these prompts sleep no longer, neither now nor later: a test says when a prompt ends."""
        self._executor.wake(*prompt_ids)

    async def _start(self, stack: AsyncExitStack) -> None:
        self._folders = Folders(
            await stack.enter_async_context(_base_directory(self.options.base_directory)), self.options.models
        )
        await asyncio.to_thread(self._folders.create)
        self._queue = PromptQueue(self._tell_status)
        self._prompts = PromptRoutes(self._queue, self._folders, self.options, self.faults)
        self._hub = Hub(
            asyncio.get_running_loop(), self.faults, self._prompts.queue_info, {**FEATURES, **self.options.features}
        )
        self._executor = Executor(
            self._queue,
            self._hub,
            self.faults,
            self._folders,
            self.options.step_seconds,
            may_crash=self.options.own_process,
        )
        self.faults.on_change(lambda: self._queue.stall(self.faults.is_on("prompt_thread_dead")))
        stack.push_async_callback(_cancel, asyncio.create_task(self._hub.publish(), name="engine-publisher"))
        thread = PromptThread(
            self._queue,
            self._executor,
            on_start=self._count_execution,
            on_free=lambda: self.faults.switch_off("out_of_memory"),
        )
        thread.start()
        stack.push_async_callback(asyncio.to_thread, thread.join)
        stack.callback(self._queue.close)
        # A small file, before anything is served.
        if not await asyncio.to_thread(self.faults.restore):
            await self.set_faults(dict(self.options.faults))
        for how in CRASHES:
            if (config := self.faults.take(how, "start")) is not None:
                crash(how, config)
        await self._listen(stack)

    def _count_execution(self, prompt_id: str) -> None:
        self.stats.count_execution(prompt_id)
        if self.options.executions_file is not None:
            with self.options.executions_file.open("a") as file:
                file.write(f"{prompt_id}\n")

    def _tell_status(self) -> None:
        self._hub.send_status()

    async def _listen(self, stack: AsyncExitStack) -> None:
        stopping = asyncio.Event()
        runner = web.AppRunner(self._application(stopping, stack), access_log=None, shutdown_timeout=_SHUTDOWN_SECONDS)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        tls = None
        if self.options.certificate is not None:
            tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            tls.load_cert_chain(self.options.certificate)
        site = web.TCPSite(runner, self.options.host, self.options.port, ssl_context=tls)
        await site.start()
        host, port = runner.addresses[0][:2]
        self.url = f"{'https' if tls else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"

        async def hang_up() -> None:
            stopping.set()
            await self._hub.drop_all(abrupt=False)

        stack.push_async_callback(hang_up)

    def _application(self, stopping: asyncio.Event, stack: AsyncExitStack) -> web.Application:
        app = web.Application(
            client_max_size=MAX_UPLOAD_BYTES,
            middlewares=[
                counting(self.stats),
                asking(self.options.required_headers),
                failing(self.faults, stopping),
                same_origin,
            ],
        )
        log_book = stack.enter_context(LogBook())
        routes = [
            *self._prompts.routes(),
            *InfoRoutes(self._folders, self.options).routes(),
            *FileRoutes(self._folders, self.faults).routes(),
            *UserRoutes(self._folders).routes(),
            *LogRoutes(log_book, self._folders).routes(),
            web.get("/ws", self._hub.handle),
        ]
        app.add_routes(_twins(routes))
        app.add_routes(routes)
        if self.options.is_modern:
            app.add_routes(JobRoutes(self._queue).routes())
        app.add_routes(ControlRoutes(self.faults, self.stats, self._hub, self.set_faults).routes())
        frontend = self.options.front_end_root
        if frontend is None:
            app.add_routes([web.get("/", home_page), web.get("/api/", home_page), web.get("/{path:.*}", _not_found)])
        else:
            app.add_routes(frontend_routes(frontend))
        return app

    async def _forget(self) -> None:
        self._queue.forget()
        self._executor.forget_cache()
        self._prompts.forget()
        await self._hub.drop_all(abrupt=True)

    async def _drop_websockets(self, config: Config) -> None:
        dropped = await self._hub.drop_all(abrupt=bool(config.get("abrupt", False)))
        _log.info("dropped %d websockets", dropped)


def _twins(routes: Iterable[web.RouteDef]) -> list[web.RouteDef]:
    return [web.RouteDef(route.method, f"/api{route.path}", route.handler, route.kwargs) for route in routes]


async def _not_found(_request: web.Request) -> web.Response:
    """GET of anything else: ComfyUI looks for a file of its web frontend, which is not here."""
    return web.Response(status=404)


@asynccontextmanager
async def _base_directory(chosen: Path | None) -> AsyncIterator[Path]:
    if chosen is not None:
        yield await asyncio.to_thread(chosen.absolute)
        return
    made = await asyncio.to_thread(tempfile.mkdtemp, prefix="comfyui-engine-")
    try:
        yield Path(made)
    finally:
        await asyncio.to_thread(shutil.rmtree, made, ignore_errors=True)


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
