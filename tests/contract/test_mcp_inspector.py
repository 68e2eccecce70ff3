"""`/mcp` with the official inspector's command line, in both eras of the protocol."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from comfyui.engine import Engine, EngineOptions
from tests.support.commands import printed_by
from tests.support.keys import ALICE, KEYS, bearer, write_keys
from tests.support.named_folder import named_folder, run
from tests.support.node import NODE, SOURCES, needs_package
from tests.support.running import RunningGateway, running_gateway

_PACKAGE = "@modelcontextprotocol/inspector"
_PROGRAM = SOURCES / "node_modules/.bin/mcp-inspector"

pytestmark = [pytest.mark.timeout(180), needs_package(_PACKAGE)]


async def inspected(url: str, era: str, method: str, *more: str, key: str = "", home: Path) -> Any:
    """The JSON that the inspector prints for one call."""
    assert NODE is not None
    shown = ["--header", f"Authorization: {bearer(key)['Authorization']}"] if key else []
    command: list[str | Path] = [
        NODE,
        _PROGRAM,
        "--cli",
        f"{url}/mcp",
        "--transport",
        "http",
        "--stored-auth-only",
        "-q",
    ]
    asked = ["--format", "json", "--protocol-era", era, "--method", method]
    printed = await printed_by(home, *command, *shown, *asked, *more, HOME=str(home))
    return json.loads(printed)


@pytest.mark.parametrize("era", ["legacy", "modern"])
async def test_the_inspector_lists_and_calls_the_tools(tmp_path: Path, era: str) -> None:
    """A tool call returns the same picture as HTTP does."""
    async with (
        Engine(EngineOptions()) as engine,
        running_gateway(
            engine.url,
            workflows_dir=named_folder(tmp_path / "workflows"),
            keys_file=write_keys(tmp_path / "keys.toml", KEYS),
            mcp=True,
        ) as gateway,
    ):
        await _same_by_both(gateway, era, tmp_path)


async def _same_by_both(gateway: RunningGateway, era: str, tmp_path: Path) -> None:
    url = gateway.url
    listed = await inspected(url, era, "tools/list", "--strict", key=ALICE, home=tmp_path)
    names = [tool["name"] for tool in _in(listed, "tools")]
    assert names == ["run_named", "run_workflow", "validate_workflow", "job", "flat", "inverted"]
    arguments = json.dumps({"seed": 4711, "width": 7})
    call = ("--tool-name", "flat", "--tool-args-json", arguments)
    content = _in(await inspected(url, era, "tools/call", *call, key=ALICE, home=tmp_path), "content")
    assert [part["type"] for part in content] == ["text", "image", "resource_link"]
    told = json.loads(content[0]["text"])
    _, by_http = await run(gateway.http, "flat", {"seed": 4711, "width": 7}, headers=bearer(ALICE))
    assert told["workflow"] == by_http["workflow"]
    async with gateway.http.get(content[2]["uri"]) as response:
        first = await response.read()
    async with gateway.http.get(by_http["images"][0]["url"], headers=bearer(ALICE)) as response:
        assert await response.read() == first


def _in(answer: Any, name: str) -> Any:
    """The member of the answer, or of its `result`."""
    return answer[name] if name in answer else answer["result"][name]
