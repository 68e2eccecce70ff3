"""Clients of `/mcp`: the SDK's own in both modes, and bare requests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Literal

import aiohttp
import httpx2
from mcp.client import Client
from mcp.client.streamable_http import streamable_http_client
from mcp_types import CallToolResult, TextContent

from comfyui import jsonio
from tests.support.keys import bearer
from tests.support.running import RunningGateway

Mode = Literal["auto", "legacy"]
MODES: tuple[Mode, ...] = ("auto", "legacy")
NEW, OLD = "2026-07-28", "2025-06-18"
"""Protocol versions: with an envelope for each request, and with a handshake."""
# The runner of the tests may suspend all processes for a while.
_PATIENCE_S = 60.0


@asynccontextmanager
async def mcp_client(gateway: RunningGateway, mode: Mode = "auto", key: str = "") -> AsyncIterator[Client]:
    headers = bearer(key) if key else {}
    async with (
        httpx2.AsyncClient(headers=headers, timeout=_PATIENCE_S) as http,
        Client(streamable_http_client(f"{gateway.url}/mcp", http_client=http), mode=mode) as client,
    ):
        yield client


def json_of(result: CallToolResult) -> Any:
    """The JSON in the first part of a result."""
    first = result.content[0]
    assert isinstance(first, TextContent)
    return jsonio.loads(first.text)


def message(version: str, method: str, params: Mapping[str, Any]) -> dict[str, Any]:
    """A request as JSON."""
    meta: dict[str, Any] = {**params.get("_meta", {})}
    if version == NEW:
        meta |= {
            "io.modelcontextprotocol/protocolVersion": version,
            "io.modelcontextprotocol/clientCapabilities": {},
        }
    return {"jsonrpc": "2.0", "id": 1, "method": method, "params": {**params, "_meta": meta}}


def headers_of(version: str, method: str, name: str | None = None) -> dict[str, str]:
    """The headers of such a request."""
    named = {} if name is None else {"Mcp-Name": name}
    return {
        "Accept": "application/json, text/event-stream",
        "MCP-Protocol-Version": version,
        "Mcp-Method": method,
        **named,
    }


async def called(
    http: aiohttp.ClientSession, version: str, arguments: Mapping[str, Any], meta: Mapping[str, Any] | None = None
) -> str:
    """The whole answer to a bare call of `run_workflow`."""
    params: dict[str, Any] = {"name": "run_workflow", "arguments": arguments}
    if meta is not None:
        params["_meta"] = meta
    async with http.post(
        "/mcp",
        json=message(version, "tools/call", params),
        headers=headers_of(version, "tools/call", "run_workflow"),
    ) as response:
        return await response.text()
