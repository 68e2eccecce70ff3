"""A tool call at `/mcp` compared with the same run by HTTP with its picture, and the list of 500 named workflows."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from itertools import count
from pathlib import Path
from typing import Any

import aiohttp

from benchmarks.processes import Server, running_gateway
from benchmarks.stage import Row, Stage, percentile
from comfyui import jsonio

_WORKFLOWS = 500
_TARGET_MS = 3.0
_NEW, _OLD = "2026-07-28", "2025-06-18"
_FLAT = {
    "1": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": 0}},
    "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "flat"}},
}
_SIDECAR = '[parameters.color]\nnode = "1"\ninput = "color"\nmaximum = 16777215\n'
_colors = count(1)
_Call = Callable[[aiohttp.ClientSession], Awaitable[None]]


async def tools(on: Stage) -> list[Row]:
    """A run by `POST /workflows/NAME` and one by each protocol version, in turn; then the list of the tools."""
    calls: dict[str, _Call] = {"http": _by_http, _NEW: _by_tool(_NEW), _OLD: _by_tool(_OLD)}
    rounds = 20 if on.quick else 300
    with tempfile.TemporaryDirectory(prefix="comfyui-gateway-benchmark-") as name:
        settings = {"MCP": "true", "MCP_MAX_TOOLS": str(_WORKFLOWS), "WORKFLOWS_DIR": str(_written(Path(name)))}
        async with running_gateway(on.engine, on.logs, **settings) as gateway, _session(gateway) as http:
            took: dict[str, list[float]] = {each: [] for each in calls}
            for turn in range(rounds + 10):
                for each, call in calls.items():
                    began = time.perf_counter()
                    await call(http)
                    if turn >= 10:
                        took[each].append((time.perf_counter() - began) * 1000)
            page_ms = [await _page_ms(http) for _ in range(rounds // 4)]
    return [*(_row(version, took) for version in (_NEW, _OLD)), _page_row(page_ms)]


def _row(version: str, took: dict[str, list[float]]) -> Row:
    more = [tool - plain for tool, plain in zip(took[version], took["http"], strict=True)]
    added, plain = statistics.median(more), statistics.median(took["http"])
    return Row(
        f"tools/call of {version} beyond the same run by HTTP, {_WORKFLOWS} workflows, median of {len(more)} pairs",
        f"{added:.2f} ms",
        f"≤ {_TARGET_MS:g} ms",
        added <= _TARGET_MS,
        f"by HTTP {plain:.1f} ms; p95 of the difference {percentile(more, 95):.1f} ms",
    )


def _page_row(took: list[float]) -> Row:
    return Row("tools/list, a page of 128 of 500 tools, median", f"{statistics.median(took):.1f} ms")


def _session(gateway: Server) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(f"http://{gateway.address}")


async def _by_http(http: aiohttp.ClientSession) -> None:
    # A tool's answer contains its pictures, so this answer does, too.
    asked = {"color": next(_colors), "$options": {"return_image_base64": True}}
    async with http.post("/workflows/flat-250", json=asked) as response:
        found = jsonio.loads(await response.read())
        assert found["status"] == "success", found


def _by_tool(version: str) -> _Call:
    async def call(http: aiohttp.ClientSession) -> None:
        params = {"name": "flat_250", "arguments": {"color": next(_colors)}}
        text = await _asked(http, version, "tools/call", params)
        assert b'\\"status\\":\\"success\\"' in text, text

    return call


async def _page_ms(http: aiohttp.ClientSession) -> float:
    began = time.perf_counter()
    text = await _asked(http, _NEW, "tools/list", {})
    assert b'"flat_000"' in text, text[:200]
    return (time.perf_counter() - began) * 1000


async def _asked(http: aiohttp.ClientSession, version: str, method: str, params: dict[str, Any]) -> bytes:
    headers = {"Accept": "application/json, text/event-stream", "MCP-Protocol-Version": version, "Mcp-Method": method}
    if version == _NEW:
        headers |= {"Mcp-Name": params["name"]} if "name" in params else {}
        meta = {
            "io.modelcontextprotocol/protocolVersion": version,
            "io.modelcontextprotocol/clientCapabilities": {},
        }
        params = {**params, "_meta": meta}
    body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
    async with http.post("/mcp", json=body, headers=headers) as response:
        return await response.read()


def _written(folder: Path) -> Path:
    for number in range(_WORKFLOWS):
        (folder / f"flat-{number:03d}.json").write_bytes(jsonio.dumps(_FLAT))
        (folder / f"flat-{number:03d}.toml").write_text(_SIDECAR)
    return folder
