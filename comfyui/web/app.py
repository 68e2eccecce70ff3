"""The gateway as one ASGI application: the layers that a request passes, in order, and the endpoints behind them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import structlog
from fastapi import FastAPI
from fastapi.routing import iter_route_contexts
from starlette.middleware import Middleware
from starlette.routing import BaseRoute, Mount
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from comfyui.assets.rooms import Assets
from comfyui.exceptions import ComfyUIDiskError
from comfyui.handler import ComfyUIHandler
from comfyui.jobs.journal.protocol import Journal
from comfyui.jobs.usage import SentBytes
from comfyui.metrics import Metrics
from comfyui.named.library import NamedWorkflows
from comfyui.outputs.delivery import Deliverer
from comfyui.outputs.thumbnails import Thumbnails
from comfyui.tasks import end_tasks
from comfyui.web.api import named, ops, prompt_sync, queue, servers, tickets, usage, workflows
from comfyui.web.api.door import Door
from comfyui.web.api.starting import Starting
from comfyui.web.api.uploads import UploadForms
from comfyui.web.api.webhook_messages import WEBHOOKS
from comfyui.web.comfyui import prompt
from comfyui.web.comfyui.face import Face
from comfyui.web.comfyui.hub.hub import Hub, HubOptions
from comfyui.web.comfyui.proxy import Relay, RelayOptions
from comfyui.web.comfyui.upstreams import Upstreams
from comfyui.web.console import routes as console
from comfyui.web.console.feed import Consoles, keep_consoles
from comfyui.web.console.static_files import static_folder
from comfyui.web.front.auth import Guard
from comfyui.web.front.entry import Entry
from comfyui.web.front.errors import install_error_handlers
from comfyui.web.front.forwarded import TrustedProxies
from comfyui.web.front.gateway_state import GatewayState, WebOptions
from comfyui.web.front.guesses import Guesses, GuessLimits
from comfyui.web.front.hosts import KnownHosts
from comfyui.web.front.keys import KeyRing
from comfyui.web.front.keys_file import KeysFile
from comfyui.web.front.middleware import BodyLimit, BodyLimits, RequestContext, SlowClients
from comfyui.web.front.openapi import completed
from comfyui.web.front.origins import Origins
from comfyui.web.front.paths import OwnPaths
from comfyui.web.front.tickets import Tickets
from comfyui.web.mcp.options import McpOptions
from comfyui.web.openai import routes as openai
from comfyui.web.v2 import routes as v2

if TYPE_CHECKING:
    from comfyui.web.mcp.endpoint import McpEndpoint

# How long the start may take before the port is opened, unless the journal says that it waits.
_START_PATIENCE_S = 10.0
_LOOK_EVERY_S = 0.2
_log = structlog.get_logger("gateway")

_ROUTERS = (
    prompt_sync.router,
    workflows.router,
    named.router,
    queue.router,
    usage.router,
    ops.router,
    v2.router,
    openai.router,
    *console.ROUTERS,
)
# ComfyUI has the same paths, or may come to have them: only these routes' own methods do not reach it.
_SHARED_ROUTERS = (prompt.router, tickets.router, servers.router)


@dataclass(frozen=True, slots=True)
class AppOptions:
    """The settings of the layers and endpoints.

    Attributes:
        keys: who may call the gateway; empty: everybody.
        keys_file: the source of some of the keys; None if all are settings.
        link_s: how long a signed link opens.
        trusted_proxies: addresses and CIDRs whose ``X-Forwarded-*`` is believed.
        allowed_origins: of pages that may call the gateway, besides its own.
        hosts: names by which it may be called if there are no keys.
        client_idle_s: how long a client may keep a body or an answer from moving.
        mcp: options of `/mcp`; None if it is not served.
        guesses: how slowly wrong keys are answered.
    """

    keys: KeyRing
    keys_file: KeysFile | None
    link_s: int
    trusted_proxies: tuple[str, ...]
    allowed_origins: frozenset[str]
    hosts: KnownHosts
    client_idle_s: float
    bodies: BodyLimits
    relay: RelayOptions
    hub: HubOptions
    web: WebOptions
    mcp: McpOptions | None = None
    guesses: GuessLimits = field(default_factory=GuessLimits)


@dataclass(frozen=True, slots=True)
class Opened:
    """The open objects that the endpoints and the relay use."""

    handler: ComfyUIHandler
    assets: Assets
    deliverer: Deliverer
    thumbnails: Thumbnails
    tickets: Tickets
    named: NamedWorkflows


class Gateway(FastAPI):
    """The application. Relayed requests pass its layers, but not FastAPI.

    Args:
        opening: opens the objects that requests need, as long as the application runs.
        journal: what `opening` may have to wait for; it says why.
        on_failed: ends the server, which already serves while the application may still wait for its journal. If it is
            None, the server waits, too.

    Attributes:
        app_options: from the settings.
        running: what its endpoints work with; there once the application has started.
        failure: why it cannot go on; None while it can.
    """

    running: GatewayState
    _front: ASGIApp

    def __init__(
        self,
        options: AppOptions,
        metrics: Metrics,
        opening: Callable[[], AbstractAsyncContextManager[Opened]],
        *,
        journal: Journal,
        on_failed: Callable[[], None] | None = None,
    ) -> None:
        super().__init__(
            title="comfyui-gateway",
            summary="Post a ComfyUI workflow and get the finished files in the reply.",
            version=ops.VERSION,
            lifespan=self._run,
            redoc_url=None,
            # Paths below /docs/ are ComfyUI's.
            swagger_ui_oauth2_redirect_url=None,
            redirect_slashes=False,
            openapi_url=None,  # `ops` has both: the links of the page must be right below a path, too
            docs_url=None,
            servers=[{"url": options.web.public_url or "."}],
        )
        self.app_options = options
        self._metrics = metrics
        self._opening = opening
        self._journal = journal
        self._on_failed = on_failed
        self.failure: Exception | None = None
        for router in (*_ROUTERS, *_SHARED_ROUTERS):
            self.include_router(router)
        self._ours = len(self.router.routes)
        self._mcp = _mcp_endpoint(options)
        if self._mcp is not None:
            self.router.routes.append(self._mcp.route)
        install_error_handlers(self)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            await self._front(scope, receive, send)
            return

        async def say(message: Message) -> None:
            if message["type"] == "lifespan.startup.failed" and isinstance(self.failure, ComfyUIDiskError):
                message = {**message, "message": ""}  # a traceback; the log has the reason already
            await send(message)

        await super().__call__(scope, receive, say)

    def openapi(self) -> dict[str, Any]:
        """The document of ``/openapi.json``, made on the first request."""
        if self.openapi_schema is None:
            document = completed(super().openapi(), with_keys=bool(self.app_options.keys))
            self.openapi_schema = {**document, "webhooks": WEBHOOKS}
        return self.openapi_schema

    @asynccontextmanager
    async def _run(self, _app: FastAPI) -> AsyncIterator[None]:
        opened, stop = asyncio.Event(), asyncio.Event()
        life = asyncio.create_task(self._live(opened, stop), name="gateway")
        waiting = asyncio.create_task(opened.wait(), name="gateway opens")
        try:
            await self._opened_or_waits(life, waiting)
            if life.done():
                life.result()
            if not opened.is_set():
                self._front = Starting(self._why_not_open)
                life.add_done_callback(self._ended_early)
            yield
        finally:
            stop.set()
            if not opened.is_set():
                life.cancel()
            await end_tasks(waiting)
            await asyncio.wait([life])
        if not life.cancelled() and not isinstance(self.failure, ComfyUIDiskError):
            life.result()

    async def _opened_or_waits(self, *ends: asyncio.Task[Any]) -> None:
        """Returns when one of the tasks has ended, or when the port should be opened before that."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _START_PATIENCE_S
        while True:
            done, _ = await asyncio.wait(ends, timeout=_LOOK_EVERY_S, return_when=asyncio.FIRST_COMPLETED)
            waits = self._journal.problem is not None or loop.time() >= deadline
            if done or (waits and self._on_failed is not None):
                return

    async def _live(self, opened: asyncio.Event, stop: asyncio.Event) -> None:
        """Everything is open from `opened` to `stop`."""
        try:
            async with (
                self._opening() as found,
                Upstreams(found.handler.pool) as upstreams,
                Hub(found.handler, self._metrics, self.app_options.hub) as hub,
                _following(self.app_options),
                nullcontext() if self._mcp is None else self._mcp.running(),
                SentBytes(found.handler.journal).writing() as sent,
                Consoles(found.handler, self.app_options.keys, self.app_options.web.keep_alive_s) as consoles,
            ):
                keep_consoles(self, consoles)
                self._serve_requests(found, upstreams, hub, sent)
                opened.set()
                await stop.wait()
        except Exception as error:
            self.failure = error
            if isinstance(error, ComfyUIDiskError):
                _log.critical("gateway.cannot_start", detail=error.detail, file=str(error.path or ""))
            raise

    def _why_not_open(self) -> str:
        return self._journal.problem or "it restores its jobs"

    def _ended_early(self, life: asyncio.Task[None]) -> None:
        if not life.cancelled() and life.exception() is not None and self._on_failed is not None:
            self._on_failed()

    def _serve_requests(self, opened: Opened, upstreams: Upstreams, hub: Hub, sent: SentBytes) -> None:
        self.running = GatewayState(
            options=self.app_options.web,
            handler=opened.handler,
            assets=opened.assets,
            deliverer=opened.deliverer,
            thumbnails=opened.thumbnails,
            tickets=opened.tickets,
            named=opened.named,
            metrics=self._metrics,
            sent=sent,
            keys=self.app_options.keys,
            keys_file=self.app_options.keys_file,
        )
        app: ASGIApp = super().__call__
        for layer in reversed(self._layers(self.running, upstreams, hub)):
            app = layer.cls(app, *layer.args, **layer.kwargs)
        self._front = app

    def _layers(self, running: GatewayState, upstreams: Upstreams, hub: Hub) -> list[Middleware]:
        """The layers that a request passes on its way to FastAPI, outermost first; the order is part of the
        security.
        """
        options, metrics = self.app_options, self._metrics
        origins = Origins(options.allowed_origins)
        return [
            # The state of the request; the way to splice its answer, and to cut it off.
            Middleware(Entry, running),
            # The client, and the name by which it calls the gateway: only a trusted proxy may tell them.
            Middleware(TrustedProxies, options.trusted_proxies),
            # Its id, in every line of the log, and the access log.
            Middleware(RequestContext, running.sent),
            # Further in, a client without progress is ended.
            Middleware(SlowClients, options.client_idle_s, metrics),
            # Further in, the caller may call: page, name, key or ticket have been checked.
            Middleware(
                Guard,
                options.keys,
                origins,
                options.hosts,
                metrics,
                tickets=running.tickets,
                guesses=Guesses(options.guesses),
                rates=running.rates,
                login_files=static_folder(),
            ),
            # Further in, the request is for the gateway: all others, and every websocket, go to ComfyUI.
            Middleware(
                Relay,
                self.own_paths(),
                upstreams,
                options.relay,
                metrics,
                face=Face(
                    running.handler, UploadForms(options.relay.max_upload_bytes), upstreams, options.relay.home_folder
                ),
                hub=hub,
            ),
            # Further in, a body is unpacked and bounded.
            Middleware(BodyLimit, options.bodies, metrics),
            # Jobs are answered here; `/prompt_sync` and `/prompt` are only described in FastAPI.
            Middleware(Door, prompt_sync.router, prompt.router, named.router, v2.router, openai.router),
        ]

    def own_paths(self) -> OwnPaths:
        """The paths that the gateway answers itself: every route of the application."""
        # Our routes are read from their definitions: FastAPI makes each route a second time when it is asked for those
        # of an application, which takes longer than the rest of the start. The others were added to this application.
        routes = [route for router in (*_ROUTERS, *_SHARED_ROUTERS) for route in router.routes]
        routes += self.router.routes[self._ours :]
        return OwnPaths(_paths_of(routes), {path for router in _SHARED_ROUTERS for path, _ in _paths_of(router.routes)})


def _mcp_endpoint(options: AppOptions) -> McpEndpoint | None:
    if options.mcp is None:
        return None
    # It takes a second and 24 MB: gateways without it need not load it.
    from comfyui.web.mcp.endpoint import McpEndpoint

    return McpEndpoint(options.mcp, options.web.limits, ops.VERSION)


def _following(options: AppOptions) -> AbstractAsyncContextManager[None]:
    """Keeps the keys as KEYS_FILE has them."""
    return nullcontext() if options.keys_file is None else options.keys_file.following(options.keys)


def _paths_of(routes: Sequence[BaseRoute]) -> Iterator[tuple[str, str]]:
    """Path and method of every route; a mounted application has all methods and all that is below its path."""
    for route in iter_route_contexts(routes):
        if isinstance(route.original_route, Mount):
            yield f"{route.path}/{{path}}", "*"
        for method in route.methods or ():
            yield route.path or "/", method
