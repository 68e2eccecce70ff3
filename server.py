"""The FastAPI application (``uvicorn server:app``) and its entry point, ``python server.py``."""

from __future__ import annotations

import gc

from comfyui.exceptions import SettingsError, StalledClientError

# Nothing that the imports make becomes garbage: looking for some was a tenth of the start.
_collecting = gc.isenabled()
gc.disable()

import argparse
import asyncio
import contextlib
import functools
import logging
import math
import re
import signal
import socket
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from types import FrameType
from typing import Any

import structlog
import uvicorn
from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

from comfyui.address import ServerAccess
from comfyui.client import ComfyUIClient
from comfyui.exceptions import ComfyUICredentialsError, ComfyUIError
from comfyui.executors.quarantine import Quarantine
from comfyui.handler import ComfyUIHandler
from comfyui.inputs.staging import InputStager
from comfyui.logs import configure_logging
from comfyui.metrics import Metrics
from comfyui.outputs.delivery import Deliverer
from comfyui.outputs.images import ImageConverter
from comfyui.outputs.stores.s3 import S3Store
from comfyui.servers.idle import freeing_when_idle
from comfyui.servers.pool import BackendPool
from comfyui.settings import ENV_FILE, load
from comfyui.warmup import warming_up
from comfyui.web.api import ops, tickets, workflows
from comfyui.web.api import prompt_sync as api
from comfyui.web.api.door import Door
from comfyui.web.comfyui import prompt
from comfyui.web.comfyui.proxy import Relay
from comfyui.web.comfyui.upstreams import Upstreams
from comfyui.web.front.auth import Guard
from comfyui.web.front.errors import install_error_handlers
from comfyui.web.front.forwarded import TrustedProxies
from comfyui.web.front.keys import KeyRing
from comfyui.web.front.middleware import BodyLimit, RequestContext, SlowClients
from comfyui.web.front.origins import Origins
from comfyui.web.front.tickets import Tickets
from comfyui.web.server.client_side import cut_off, taking_splices
from comfyui.web.server.connections import Connections, connections_within, raise_descriptor_limit
from comfyui.web.server.http import ServerHttp
from comfyui.web.server.listening import bind, is_loopback, url_of
from comfyui.web.server.socket import ServerSocket
from config import Settings

if _collecting and __name__ != "__main__":  # there `_relieve_the_collector` does it
    gc.enable()

_log = structlog.get_logger("gateway")
# Objects made and not freed by themselves, about 30 requests' worth; Python's own figure is a few hundred.
_COLLECT_AFTER = 10_000
# After the grace, for answers that are on their way to slow clients.
_LAST_CONNECTIONS_S = 5


def create_app(settings: Settings | None = None, *, metrics: Metrics | None = None) -> FastAPI:
    """The application; everything that owns I/O is opened by its lifespan and closed in reverse order."""
    settings = settings or load(Settings, env_file=ENV_FILE)
    metrics = metrics or Metrics()
    app = _Gateway(
        title="comfyui-gateway",
        summary="Post a ComfyUI workflow, get the finished files in the reply.",
        version=ops.VERSION,
        lifespan=_lifespan,
        redoc_url=None,
        # What is below /docs/ is ComfyUI's.
        swagger_ui_oauth2_redirect_url=None,
        redirect_slashes=False,
        docs_url=None,  # `ops` has the page: its links must be right below a path, too
        servers=[{"url": settings.public_url or "."}],
    )
    app.state.settings = settings
    app.state.metrics = metrics
    app.state.accesses = settings.accesses()
    app.state.warmup = settings.warmup_prompt()
    app.state.store = settings.object_store()
    app.state.web_options = settings.web_options()
    app.include_router(api.router)
    app.include_router(prompt.router)
    app.include_router(workflows.router)
    app.include_router(tickets.router)
    app.include_router(ops.router)
    install_error_handlers(app)
    endpoints = BodyLimit(
        Door(app.endpoints, api.router),
        max_bytes=settings.max_request_body_bytes,
        max_total_bytes=settings.max_buffered_bytes,
        max_form_bytes=settings.max_multipart_bytes,
        metrics=metrics,
    )
    relay = Relay(endpoints, lambda: app.state.upstreams, settings.relay_options(), metrics)
    keys = KeyRing([key.get_secret_value() for key in settings.api_keys], session_s=settings.login_hours * 3600)
    app.state.keys = keys
    app.state.tickets = Tickets(keys, public_url=settings.public_url)
    guarded = Guard(
        relay,
        keys,
        Origins(frozenset(settings.cors_allow_origins)),
        settings.known_hosts(),
        metrics,
        tickets=app.state.tickets,
    )
    app.proxies = TrustedProxies(settings.forwarded_allow_ips)
    app.front = RequestContext(SlowClients(guarded, settings.client_idle_seconds, metrics))
    return app


class _Gateway(FastAPI):
    """FastAPI behind a front that decides what reaches it: what is relayed does not pass through its layers."""

    front: ASGIApp
    proxies: TrustedProxies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["app"] = self  # what goes past FastAPI finds the application's state, too
        if scope["type"] != "lifespan":
            self.proxies.apply(scope)
        try:
            await self.front(scope, receive, taking_splices(scope, send))
        except StalledClientError as error:
            _log.info("client.slow", path=scope["path"], detail=str(error))
            cut_off(send)

    async def endpoints(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The gateway's own paths."""
        await super().__call__(scope, receive, send)


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    settings: Settings = app.state.settings
    metrics: Metrics = app.state.metrics
    async with AsyncExitStack() as stack:
        pool = await stack.enter_async_context(_backends(settings, metrics, app.state.accesses))
        stager = await stack.enter_async_context(
            InputStager(
                max_bytes=settings.max_input_bytes,
                limits=settings.limits(),
                url_allow=settings.input_url_allow,
                url_timeout_s=settings.input_url_timeout,
            )
        )
        handler = await stack.enter_async_context(
            ComfyUIHandler(
                pool,
                stager,
                settings.handler_options(),
                metrics=metrics,
                quarantine=Quarantine(settings.quarantine_after, settings.quarantine_seconds),
            )
        )
        if settings.backend != "runpod":
            await stack.enter_async_context(freeing_when_idle(pool, settings.free_after_idle))
        app.state.handler = handler
        store: S3Store | None = app.state.store
        if store is not None:
            await stack.enter_async_context(store)
        app.state.deliverer = Deliverer(
            handler.open_file,
            ImageConverter(settings.conversion_limits()),
            store,
            store_by_default=settings.output_store == "s3",
            public_url=settings.public_url,
        )
        stack.push_async_callback(app.state.deliverer.close)
        app.state.upstreams = await stack.enter_async_context(Upstreams(pool))
        if app.state.warmup is not None:
            await stack.enter_async_context(warming_up(handler, app.state.warmup, timeout_s=settings.max_timeout))
        with _drain_on_signal(handler, settings.shutdown_grace_seconds, functools.partial(_leave_for_connections, app)):
            yield


def _backends(
    settings: Settings, metrics: Metrics, access: Mapping[str, ServerAccess]
) -> AbstractAsyncContextManager[BackendPool]:
    connect = functools.partial(
        BackendPool.connect,
        access=access,
        http_timeout_s=settings.http_timeout,
        http_retries=settings.http_retries,
        poll_interval_s=settings.poll_interval,
        metrics=metrics,
    )
    if (options := settings.runpod_options()) is not None:
        # Its server and database are nothing that other gateways should load.
        from comfyui.runpod.pool import runpod_pool

        return runpod_pool(options, connect, metrics)
    return connect(
        settings.comfyui_server_address,
        stalled_after_s=settings.stalled_after,
        silent_after_s=settings.silent_after,
        dead_after_s=settings.dead_after,
    )


def _leave_for_connections(app: FastAPI, left_s: float) -> None:
    """The connections that are open after the drain have what is left of the grace, and a moment."""
    config: uvicorn.Config | None = getattr(app.state, "server_config", None)
    if config is not None:
        config.timeout_graceful_shutdown = math.ceil(left_s) + _LAST_CONNECTIONS_S


@contextmanager
def _drain_on_signal(handler: ComfyUIHandler, grace_s: float, on_drained: Callable[[float], None]) -> Iterator[None]:
    """The first SIGTERM or SIGINT begins to drain, a second one answers all that wait at once.

    uvicorn stops listening and closes idle connections as soon as it learns of a signal: it learns of it when the drain
    has ended. Until then new requests are answered on every connection, with 503 where they would start work.

    Args:
        on_drained: is told how many seconds of the grace are left.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # an embedded server (a test, say): whoever runs it calls `drain`
        return
    loop = asyncio.get_running_loop()
    drains: set[asyncio.Task[None]] = set()
    previous = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    signals = 0
    stopped = False

    def stop(number: int) -> None:
        nonlocal stopped
        stopped = True
        before = previous[signal.Signals(number)]
        if callable(before):
            before(number, None)

    async def drain(number: int, patience_s: float) -> None:
        ends = loop.time() + patience_s
        await handler.drain(patience_s)
        if not stopped:
            on_drained(max(0.0, ends - loop.time()))
            stop(number)

    def begin(number: int) -> None:
        nonlocal signals
        signals += 1
        if signals > 2:
            stop(number)  # uvicorn knows a way that is quicker still
            return
        again = signals > 1
        _log.info("shutdown.now" if again else "shutdown.draining", waiting=handler.waiting, grace_s=grace_s)
        drains.add(loop.create_task(drain(number, 0 if again else grace_s)))

    def on_signal(number: int, _frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(begin, number)

    for number in previous:
        signal.signal(number, on_signal)
    try:
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, before)
        for task in drains:
            task.cancel()


# What a relay needs of uvicorn; each is what ComfyUI's own server does.
RELAYING: dict[str, Any] = {
    # ComfyUI's Server header comes through; a second one would not be HTTP.
    "server_header": False,
    # `TrustedProxies` reads them: uvicorn knows no host and no path, and leaves what it does not believe.
    "proxy_headers": False,
    "timeout_keep_alive": 75,
    "http": ServerHttp,
    "ws": ServerSocket,
    # A ping keeps the path open. A client that does not answer it may be busy with its picture.
    "ws_ping_interval": 20.0,
    "ws_ping_timeout": None,
}


def relaying(
    settings: Settings, metrics: Metrics | None = None, connections: Connections | None = None
) -> dict[str, Any]:
    """`RELAYING` with what the settings say of connections, and what counts them."""
    limits = settings.head_limits()
    return RELAYING | {
        "http": functools.partial(ServerHttp, head_limits=limits, connections=connections, metrics=metrics)
    }


class _Server(uvicorn.Server):
    """Says where it listens, on which uvicorn is silent for sockets that it is given."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for sock in sockets or ():
            logging.getLogger("uvicorn.error").info("Uvicorn running on %s (Press CTRL+C to quit)", url_of(sock))


async def _serve(settings: Settings) -> None:
    app = create_app(settings)
    most = connections_within(raise_descriptor_limit())
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        # No more are accepted at once than there are descriptors for; the others wait in the system's queue.
        backlog=min(2048, most),
        **relaying(settings, app.state.metrics, Connections(most, app.state.metrics)),
        # What still hangs then is cut: a client that does not read its answer, a websocket.
        timeout_graceful_shutdown=int(settings.shutdown_grace_seconds) + _LAST_CONNECTIONS_S,
    )
    app.state.server_config = config
    open_to_others = [host for host in settings.server_host if not is_loopback(host)]
    if not settings.api_keys and open_to_others:
        _log.warning(
            "gateway.open",
            detail=f"anyone who reaches {', '.join(open_to_others)} (port {settings.server_port}) can run workflows and"
            " read all files of ComfyUI. To close it, set API_KEYS to a long random text (openssl rand -hex 24 makes"
            " one; callers send it as 'Authorization: Bearer KEY'), or set SERVER_HOST=127.0.0.1 to serve this machine"
            " only",
        )
    runpod = settings.runpod_endpoint_id if settings.backend == "runpod" else None
    _log.info(
        "gateway.starting",
        comfyui=settings.shown_addresses,
        runpod=runpod,
        keys=app.state.keys.shown_names() or None,
        version=ops.VERSION,
    )
    _relieve_the_collector()
    try:
        sockets = bind(settings.server_host, settings.server_port)
    except ValueError as error:
        raise SettingsError(f"SERVER_HOST, SERVER_PORT: {error}") from error
    await _Server(config).serve(sockets)


def _relieve_the_collector() -> None:
    """What is here now stays for good: the garbage collector need not look at it again and again.

    As it comes, it took a seventh of all time, in pauses of 20 ms and more.
    """
    gc.freeze()
    gc.set_threshold(_COLLECT_AFTER, 20, 20)
    gc.enable()


@asynccontextmanager
async def _fallback_engine(settings: Settings) -> AsyncIterator[Settings]:
    """`settings` as they are where a ComfyUI answers; else pointed at an embedded engine that is started for them."""
    accesses = settings.accesses()
    for address in settings.comfyui_server_address:
        async with ComfyUIClient(address, timeout_s=3, retries=0, access=accesses[address]) as client:
            with contextlib.suppress(ComfyUIError):
                with contextlib.suppress(ComfyUICredentialsError):  # it is there, and the log says what it wants
                    await client.get_queue_remaining()
                yield settings
                return
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "comfyui.engine", "--port", "0", stdout=asyncio.subprocess.PIPE
    )
    try:
        line = (await process.stdout.readline()).decode().strip() if process.stdout else ""
        match = re.search(r"https?://\S+", line)
        if match is None:
            raise SettingsError("the embedded engine did not start; its output stands above")
        _log.warning(
            "engine.embedded",
            detail=f"no ComfyUI answers at {', '.join(settings.shown_addresses)}: using {line}",
        )
        yield settings.model_copy(
            update={"comfyui_server_address": (match[0],), "comfyui_headers": None, "comfyui_tls_verify": "true"}
        )
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def _main(*, fallback_engine: bool) -> None:
    settings = load(Settings, env_file=ENV_FILE)
    configure_logging(settings.log_level, settings.log_output)
    if not fallback_engine:
        await _serve(settings)
        return
    async with _fallback_engine(settings) as chosen:
        await _serve(chosen)


def main() -> int:
    """Serve until a signal comes. Exit status 2 when a setting cannot be used."""
    parser = argparse.ArgumentParser(prog="comfyui-gateway", description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument(
        "--fallback-engine",
        action="store_true",
        help="where no ComfyUI answers, start the embedded engine (a simulation) and use that",
    )
    arguments = parser.parse_args()
    # uvicorn raises the signal again once it has shut down in order; what is open here must still be closed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        with asyncio.Runner(loop_factory=uvicorn.Config("", log_config=None).get_loop_factory()) as runner:
            runner.run(_main(fallback_engine=arguments.fallback_engine))
    except SettingsError as error:
        print(f"comfyui-gateway cannot start:\n{error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def __getattr__(name: str) -> Any:
    """``app`` for ``uvicorn server:app``, made when it is asked for: an import alone reads no environment."""
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    settings = load(Settings, env_file=ENV_FILE)
    configure_logging(settings.log_level, settings.log_output)
    return create_app(settings)


if __name__ == "__main__":
    sys.exit(main())
