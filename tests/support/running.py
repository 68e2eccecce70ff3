"""A real gateway on a real port, in the loop of the test."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import aiohttp
import pytest
import uvicorn
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from comfyui.engine import Engine, EngineOptions
from comfyui.handler import ComfyUIHandler
from comfyui.metrics import Metrics
from comfyui.retrying import Backoff
from comfyui.web.app import Gateway
from comfyui.web.server.connections import Connections
from comfyui.web.server.serving import protocols
from config import GatewayOptions, Settings
from server import create_app
from tests.support.described import described

Workflow = dict[str, Any]
T = TypeVar("T")
Change = Callable[[GatewayOptions], GatewayOptions]


def _has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


needs_ipv6 = pytest.mark.skipif(not _has_ipv6(), reason="this machine has no IPv6")


class _Given(Settings):
    """Settings from the test and the defaults only: reading the environment would take half of the start's time."""

    model_config = SettingsConfigDict(extra="forbid")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers and its sleeps. The test's process keeps its own handlers; without sleeps, a
    stop does not take 0.2 s, which matters because the suite starts and stops many times a minute."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._stopping = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def stop(self) -> None:
        self.should_exit = True
        self._stopping.set()

    async def main_loop(self) -> None:
        while not await self.on_tick(0):  # it sets the Date header
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1):
                    await self._stopping.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        state = self.server_state
        for connection in list(state.connections):
            connection.shutdown()
        await asyncio.sleep(0)  # their resources are released in the loop's next turn
        if state.connections or state.tasks:
            await super().shutdown(sockets)
        else:
            await self.lifespan.shutdown()


@dataclass(frozen=True)
class RunningGateway:
    """A running gateway; `http` is a session whose relative URLs go to it."""

    app: Gateway
    settings: Settings
    url: str
    http: aiohttp.ClientSession

    @property
    def handler(self) -> ComfyUIHandler:
        return self.app.running.handler

    async def prompt_sync(self, workflow: Workflow, *, timeout: float | None = None, **fields: Any) -> tuple[int, Any]:
        """Status and JSON of one `POST /prompt_sync`."""
        params = {} if timeout is None else {"timeout": str(timeout)}
        async with self.http.post("/prompt_sync", json={"prompt": workflow, **fields}, params=params) as response:
            return response.status, await response.json()


def _unchanged(options: GatewayOptions) -> GatewayOptions:
    return options


def server_options(**changes: Any) -> Change:
    """For `running_gateway`: changes fields of `ServerOptions`."""
    return lambda made: replace(made, servers=replace(made.servers, **changes))


def handler_options(**changes: Any) -> Change:
    """For `running_gateway`: changes fields of `HandlerOptions`."""
    return lambda made: replace(made, handler=replace(made.handler, **changes))


def web_options(**changes: Any) -> Change:
    """For `running_gateway`: changes fields of `WebOptions`."""
    return lambda made: replace(made, app=replace(made.app, web=replace(made.app.web, **changes)))


def head_limits(**changes: Any) -> Change:
    """For `running_gateway`: fields of `HeadLimits`."""
    return lambda made: replace(made, serving=replace(made.serving, heads=replace(made.serving.heads, **changes)))


def request_limits(**changes: Any) -> Change:
    """For `running_gateway`: fields of `Limits`, wherever the gateway checks them."""

    def changed(made: GatewayOptions) -> GatewayOptions:
        limits = replace(made.handler.limits, **changes)
        runner = replace(made.handler.runner, limits=limits)
        return replace(
            made,
            app=replace(made.app, web=replace(made.app.web, limits=limits)),
            handler=replace(made.handler, limits=limits, runner=runner),
            named=replace(made.named, limits=limits),
        )

    return changed


def watching_closely() -> Change:
    """For `running_gateway`: it checks many times a second whether a lost server is back."""
    soon = Backoff(start_s=0.05, max_s=0.2)
    return server_options(probe_backoff=soon, reconnect=soon)


def moving_after(seconds: float) -> Change:
    """For `running_gateway`: the jobs of a lost server go to another one after `seconds`."""
    return lambda made: replace(
        made, handler=replace(made.handler, queue=replace(made.handler.queue, move_after_s=seconds))
    )


@asynccontextmanager
async def running_gateway(
    *comfyui: str,
    ready: bool = True,
    changed: Change = _unchanged,
    connections: Connections | None = None,
    **settings: Any,
) -> AsyncIterator[RunningGateway]:
    """Serves in front of these ComfyUI addresses; yields when it can take prompts, or at once without `ready`.

    Args:
        changed: changes the options that the gateway gets from its settings.
        connections: the limit of its server's connections, or None.
    """
    settings.setdefault("state_dir", "")  # in memory, so that tests share nothing
    chosen, metrics = _Given(comfyui_server_address=comfyui, **settings), Metrics()
    options = changed(chosen.options())
    app = create_app(chosen, options=options, metrics=metrics)
    config = uvicorn.Config(
        app,
        host="127.0.0.1",
        port=0,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=2,
        **protocols(options.serving, metrics, connections),
    )
    server = _Server(config)
    serving = asyncio.create_task(server.serve(), name="gateway")
    try:
        while not server.started:
            if serving.done():
                await serving
                raise RuntimeError("the gateway did not start")
            await asyncio.sleep(0.005)
        port = server.servers[0].sockets[0].getsockname()[1]
        url = f"http://127.0.0.1:{port}"
        answers = described(with_keys=bool(app.app_options.keys))
        async with aiohttp.ClientSession(base_url=url, response_class=answers) as http:
            gateway = RunningGateway(app, chosen, url, http)
            if ready:
                pool = gateway.handler.pool
                if chosen.runs_on_comfyui:
                    await pool.choose(patience_s=10)
                for backend in pool.backends if chosen.runs_on_comfyui else ():
                    await websocket_settled(backend)
            yield gateway
    finally:
        server.stop()
        await serving


@asynccontextmanager
async def engines(count: int, **options: Any) -> AsyncIterator[list[Engine]]:
    """Starts `count` embedded engines with the same options."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(Engine(EngineOptions(**options))) for _ in range(count)]


def executions(engine: Engine) -> dict[str, int]:
    """How often the engine ran each prompt."""
    counts: dict[str, int] = engine.stats.show()["executed"]
    return counts


def requests(engine: Engine, route: str) -> int:
    """How many requests for ``METHOD /route`` the engine got."""
    count: int = engine.stats.show()["requests"].get(route, 0)
    return count


async def queued_elsewhere(url: str, *workflows: Workflow) -> list[str]:
    """Queues prompts as a client that uses ComfyUI without the gateway; returns their ids."""
    ids = []
    async with aiohttp.ClientSession(url) as http:
        for workflow in workflows:
            async with http.post("/prompt", json={"prompt": workflow}) as response:
                assert response.status == 200, await response.text()
                ids.append(str((await response.json())["prompt_id"]))
    return ids


async def prompts_are_queued(engine: Engine, count: int) -> None:
    """Waits until `count` prompts run or wait on the engine."""
    await until(lambda: queue_of(engine), lambda queue: len(queue[0]) + len(queue[1]) >= count)


async def queue_of(engine: Engine) -> tuple[list[str], list[str]]:
    """Ids of the running and of the pending prompts."""
    async with aiohttp.ClientSession() as http, http.get(f"{engine.url}/queue") as response:
        queue = await response.json()
    return [item[1] for item in queue["queue_running"]], [item[1] for item in queue["queue_pending"]]


async def until_running(engine: Engine, prompt_id: str) -> None:
    """Waits until the engine runs this prompt."""
    await until(lambda: queue_of(engine), lambda queue: prompt_id in queue[0], timeout_s=30)


async def graphs_of(engine: Engine) -> list[Workflow]:
    """The graphs in the engine's history, the oldest first."""
    async with aiohttp.ClientSession() as http, http.get(f"{engine.url}/history") as response:
        history = await response.json()
    return [entry["prompt"][2] for entry in history.values()]


async def until(ask: Callable[[], Awaitable[T]], accept: Callable[[T], bool], *, timeout_s: float = 25) -> T:
    """Repeats `ask` until its answer is accepted, and returns that answer."""
    async with asyncio.timeout(timeout_s):
        while not accept(answer := await ask()):
            await asyncio.sleep(0.01)
        return answer


async def websocket_settled(backend: Any) -> None:
    """Waits until the shared websocket is connected and the server gets prompts, or a moment if it is refused."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(1):
            while not (backend.watcher.connected and backend.is_cleared):
                await asyncio.sleep(0.005)


def invert_workflow(color: int = 0, *, width: int = 16, height: int = 12, prefix: str = "test") -> Workflow:
    """EmptyImage → ImageInvert → SaveImage: needs no models, runs on the engine and on a real ComfyUI."""
    return {
        "1": {
            "class_type": "EmptyImage",
            "inputs": {"width": width, "height": height, "batch_size": 1, "color": color},
        },
        "2": {"class_type": "ImageInvert", "inputs": {"image": ["1", 0]}},
        "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": prefix}},
    }


def sleep_workflow(seconds: float, *, tag: int = 0, steps: int = 1) -> Workflow:
    """Runs for `seconds` on the engine; another `tag` keeps it out of the engine's cache."""
    return _with_node_4("SimulatedSleep", tag, seconds=seconds, steps=steps)


def crash_workflow(how: str = "segfault", *, tag: int = 0, after: float = 0.0) -> Workflow:
    """Ends the engine's process, or hangs it; `how` and `after` are inputs of the engine's SimulatedCrash."""
    return _with_node_4("SimulatedCrash", tag, how=how, after=after)


def _with_node_4(class_type: str, tag: int, **inputs: Any) -> Workflow:
    workflow = invert_workflow(tag)
    workflow["4"] = {"class_type": class_type, "inputs": {"value": ["2", 0], **inputs}}
    workflow["3"]["inputs"]["images"] = ["4", 0]
    return workflow


def loading_workflow(image: Any, prefix: str = "test") -> Workflow:
    """LoadImage → SaveImage."""
    return {
        "1": {"class_type": "LoadImage", "inputs": {"image": image}},
        "3": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": prefix}},
    }
