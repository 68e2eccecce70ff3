"""The gateway as one ASGI application: the layers that a request passes, in order, and the endpoints behind them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.routing import iter_route_contexts
from starlette.middleware import Middleware
from starlette.routing import Mount
from starlette.types import ASGIApp, Receive, Scope, Send

from comfyui.handler import ComfyUIHandler
from comfyui.metrics import Metrics
from comfyui.outputs.delivery import Deliverer
from comfyui.web.api import ops, prompt_sync, tickets, workflows
from comfyui.web.api.door import Door
from comfyui.web.comfyui import prompt
from comfyui.web.comfyui.proxy import Relay, RelayOptions
from comfyui.web.comfyui.upstreams import Upstreams
from comfyui.web.front.auth import Guard
from comfyui.web.front.entry import Entry
from comfyui.web.front.errors import install_error_handlers
from comfyui.web.front.forwarded import TrustedProxies
from comfyui.web.front.gateway_state import GatewayState, WebOptions
from comfyui.web.front.guesses import Guesses, GuessLimits
from comfyui.web.front.hosts import KnownHosts
from comfyui.web.front.keys import KeyRing
from comfyui.web.front.middleware import BodyLimit, BodyLimits, RequestContext, SlowClients
from comfyui.web.front.openapi import completed
from comfyui.web.front.origins import Origins
from comfyui.web.front.paths import OwnPaths
from comfyui.web.front.tickets import Tickets

_ROUTERS = (prompt_sync.router, workflows.router, ops.router)
# ComfyUI has the same paths, or may come to have them: only these routes' own methods do not reach it.
_SHARED_ROUTERS = (prompt.router, tickets.router)


@dataclass(frozen=True, slots=True)
class AppOptions:
    """What the layers and endpoints need of the settings.

    Attributes:
        keys: who may call the gateway; empty: everybody.
        link_s: how long a signed link opens.
        trusted_proxies: addresses and CIDRs whose ``X-Forwarded-*`` is believed.
        allowed_origins: of pages that may call the gateway beside its own.
        hosts: names by which it may be called where there are no keys.
        client_idle_s: how long a client may keep a body or an answer from moving.
        min_body_rate: the slowest body in bytes a second, see `SlowClients`.
        guesses: how slowly wrong keys are answered.
    """

    keys: KeyRing
    link_s: int
    trusted_proxies: tuple[str, ...]
    allowed_origins: frozenset[str]
    hosts: KnownHosts
    client_idle_s: float
    min_body_rate: float
    bodies: BodyLimits
    relay: RelayOptions
    web: WebOptions
    guesses: GuessLimits = field(default_factory=GuessLimits)


@dataclass(frozen=True, slots=True)
class Opened:
    """What the endpoints and the relay work with, open."""

    handler: ComfyUIHandler
    deliverer: Deliverer
    tickets: Tickets


class Gateway(FastAPI):
    """The application. What is relayed to ComfyUI passes its layers, and not FastAPI.

    Args:
        opening: opens what requests need, for as long as the application runs.

    Attributes:
        app_options: what the settings say.
        running: what its endpoints work with; there once the application has started.
    """

    running: GatewayState
    _front: ASGIApp

    def __init__(
        self, options: AppOptions, metrics: Metrics, opening: Callable[[], AbstractAsyncContextManager[Opened]]
    ) -> None:
        super().__init__(
            title="comfyui-gateway",
            summary="Post a ComfyUI workflow, get the finished files in the reply.",
            version=ops.VERSION,
            lifespan=self._run,
            redoc_url=None,
            # What is below /docs/ is ComfyUI's.
            swagger_ui_oauth2_redirect_url=None,
            redirect_slashes=False,
            openapi_url=None,  # `ops` has both: the links of the page must be right below a path, too
            docs_url=None,
            servers=[{"url": options.web.public_url or "."}],
        )
        self.app_options = options
        self._metrics = metrics
        self._opening = opening
        for router in (*_ROUTERS, *_SHARED_ROUTERS):
            self.include_router(router)
        install_error_handlers(self)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await super().__call__(scope, receive, send)
        else:
            await self._front(scope, receive, send)

    def openapi(self) -> dict[str, Any]:
        """The document of ``/openapi.json``, made when it is first asked for."""
        if self.openapi_schema is None:
            self.openapi_schema = completed(super().openapi(), with_keys=bool(self.app_options.keys))
        return self.openapi_schema

    @asynccontextmanager
    async def _run(self, _app: FastAPI) -> AsyncIterator[None]:
        async with self._opening() as opened, Upstreams(opened.handler.pool) as upstreams:
            self.running = GatewayState(
                options=self.app_options.web,
                handler=opened.handler,
                deliverer=opened.deliverer,
                sockets=upstreams,
                tickets=opened.tickets,
                metrics=self._metrics,
            )
            app: ASGIApp = super().__call__
            for layer in reversed(self._layers(self.running, upstreams)):
                app = layer.cls(app, *layer.args, **layer.kwargs)
            self._front = app
            yield

    def _layers(self, running: GatewayState, upstreams: Upstreams) -> list[Middleware]:
        """What a request passes on its way to FastAPI, the outermost layer first; the order is part of the security."""
        options, metrics = self.app_options, self._metrics
        origins = Origins(options.allowed_origins)
        return [
            # The state of the request; the way to splice its answer, and to cut it off.
            Middleware(Entry, running),
            # Who the client is and how it calls the gateway: what a trusted proxy says, and nobody else.
            Middleware(TrustedProxies, options.trusted_proxies),
            # Its id, in every line of the log, and the access log.
            Middleware(RequestContext),
            # From here on a client that does not move ends.
            Middleware(SlowClients, options.client_idle_s, options.min_body_rate, metrics),
            # From here on the caller may call: page, name, key or ticket have been checked.
            Middleware(
                Guard,
                options.keys,
                origins,
                options.hosts,
                metrics,
                tickets=running.tickets,
                guesses=Guesses(options.guesses),
            ),
            # From here on it is for the gateway: all else, and every websocket, goes to ComfyUI.
            Middleware(Relay, self.own_paths(), upstreams, options.relay, metrics),
            # From here on a body is unpacked and bounded.
            Middleware(BodyLimit, options.bodies, metrics),
            # `/prompt_sync` is answered here, and only described in FastAPI.
            Middleware(Door, prompt_sync.router),
        ]

    def own_paths(self) -> OwnPaths:
        """What the gateway answers itself: every route that the application has."""
        shared = {path for router in _SHARED_ROUTERS for path, _ in _paths_of(router)}
        return OwnPaths(_paths_of(self.router), shared)


def _paths_of(router: APIRouter) -> Iterator[tuple[str, str]]:
    """Path and method of every route; a mounted application has all methods and all that is below its path."""
    for route in iter_route_contexts(router.routes):
        if isinstance(route.original_route, Mount):
            yield f"{route.path}/{{path}}", "*"
        for method in route.methods or ():
            yield route.path or "/", method
