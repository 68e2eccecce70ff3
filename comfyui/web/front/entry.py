"""The entry of a request from the server, and the end of a client that no answer can end."""

from __future__ import annotations

import structlog
from starlette.types import ASGIApp, Receive, Scope, Send

from comfyui.exceptions import StalledClientError
from comfyui.web.front.gateway_state import GatewayState, set_gateway
from comfyui.web.front.request_state import begin_request
from comfyui.web.server.client_side import cut_off, taking_splices

_log = structlog.get_logger("gateway")


class Entry:
    """Middleware, the outermost: gives a request its state, and answers the way to splice and to be cut off.

    Only here is ``send`` the server's own, which both need.
    """

    def __init__(self, app: ASGIApp, gateway: GatewayState) -> None:
        self._app = app
        self._gateway = gateway

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begin_request(scope)
        set_gateway(scope, self._gateway)
        try:
            await self._app(scope, receive, taking_splices(scope, send))
        except StalledClientError as error:
            _log.info("client.slow", path=scope["path"], detail=str(error))
            cut_off(send)
