"""The endpoint `/mcp`: Streamable HTTP without sessions, in the protocol of 2026-07-28 and in the one with a handshake.

`comfyui.web.front.auth.Guard` has checked the page, the name and the key before: the package's own guard against pages
that make their name lead here (DNS rebinding) would know less of proxies, and is not used.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from mcp.server.lowlevel.server import Server
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.shared.inbound import MCP_PROTOCOL_VERSION_HEADER
from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS
from sse_starlette.sse import AppStatus
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from comfyui.exceptions import ClientGoneError, ComfyUIError
from comfyui.limits import Limits
from comfyui.web.front.errors import error_response
from comfyui.web.front.headers import header
from comfyui.web.mcp.instructions import INSTRUCTIONS
from comfyui.web.mcp.options import McpOptions
from comfyui.web.mcp.posted import posted_in, receive_posted
from comfyui.web.mcp.tools import Tools
from comfyui.web.server.disconnect import ClientWatch

PATH = "/mcp"


class McpEndpoint:
    """One for each application.

    Attributes:
        route: of the endpoint. It answers only POST: without sessions, a stream of GET would never have a message, and
            there is none to DELETE. Clients accept 405 for that.
    """

    def __init__(self, options: McpOptions, limits: Limits, version: str) -> None:
        tools = Tools(options)
        self._server = Server(
            "comfyui-gateway",
            version=version,
            title="ComfyUI",
            instructions=INSTRUCTIONS,
            on_list_tools=tools.list,
            on_call_tool=tools.call,
            # Our schemas need no headers. Without an answer, the package would list all tools at each call.
            get_tool_input_schema=lambda _name: None,
        )
        # Spans for a package that is not installed with us.
        self._server.middleware.clear()
        self._options = options
        self._limits = limits
        self._streams: StreamableHTTPSessionManager | None = None
        self._plain: StreamableHTTPSessionManager | None = None
        self.route = Route(PATH, self, methods=["POST"], include_in_schema=False)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Requests are served within the block."""
        # It would cut answers as soon as the server stops: ours end by themselves, and the server ensures that.
        AppStatus.enable_automatic_graceful_drain = False
        self._streams, self._plain = self._manager(json_response=False), self._manager(json_response=True)
        async with self._streams.run(), self._plain.run():
            yield

    def _manager(self, *, json_response: bool) -> StreamableHTTPSessionManager:
        return StreamableHTTPSessionManager(
            self._server,
            json_response=json_response,
            stateless=True,
            max_request_body_size=self._options.max_body_bytes,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._streams is None or self._plain is None:
            raise RuntimeError("the MCP endpoint is not running")
        try:
            posted = await receive_posted(scope, receive, self._options.max_body_bytes, self._limits)
        except ComfyUIError as error:
            await error_response(error, scope)(scope, receive, send)
            return
        if posted_in(scope).wants_progress or not _is_older(scope):
            await self._streams.handle_request(scope, posted, send)
            return
        # The older protocol takes 0.9 ms less without a stream. The package goes on with a call whose client has left,
        # unless it is a stream: here our own watch ends it.
        with suppress(ClientGoneError), ClientWatch(receive):
            await self._plain.handle_request(scope, posted, send)


def _is_older(scope: Scope) -> bool:
    """Whether the request uses a protocol version with a handshake."""
    version = header(scope, MCP_PROTOCOL_VERSION_HEADER.encode("ascii"))
    return version is None or version.decode("latin-1") in HANDSHAKE_PROTOCOL_VERSIONS
