"""The gateway's answers while it cannot work yet, though its port is open: another process may have its journal."""

from __future__ import annotations

from collections.abc import Callable

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from comfyui.exceptions import JournalError
from comfyui.web.api.ops import Liveness, Readiness, unhealthy
from comfyui.web.front.errors import error_response, json_response
from comfyui.web.front.middleware import RequestContext
from comfyui.web.front.request_state import begin_request

_TRY_AGAIN_LATER = 1013


class Starting:
    """The probes say why, and all else gets 503.

    Args:
        why: why the gateway cannot work yet.
    """

    def __init__(self, why: Callable[[], str]) -> None:
        self._why = why
        self._app = RequestContext(self._tell)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begin_request(scope)
        await self._app(scope, receive, send)

    async def _tell(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": _TRY_AGAIN_LATER})
            return
        await self._answer(scope)(scope, receive, send)

    def _answer(self, scope: Scope) -> Response:
        match scope["path"]:
            case "/health/live":
                return json_response(200, Liveness(status="alive"))
            case "/health/ready":
                return json_response(503, Readiness(status="not ready", reason=self._why()))
            case "/health":
                return json_response(503, unhealthy(self._why()))
        return error_response(JournalError(f"the gateway is starting: {self._why()}"), scope)
