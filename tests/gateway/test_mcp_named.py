"""`/mcp` and named workflows: a tool for each, and `run_named` for all."""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from mcp.shared.exceptions import MCPError
from mcp_types import ImageContent

from comfyui.engine import Engine
from comfyui.web.mcp.catalogue import tool_names
from tests.support.keys import ALICE, BOB, ROOT, WATCHER, table, write_keys
from tests.support.mcp_clients import MODES, Mode, json_of, mcp_client
from tests.support.named import write
from tests.support.named_folder import FLAT, FLAT_PARAMETERS, named_folder, png, run
from tests.support.running import RunningGateway, executions, running_gateway, until

_OWN = ["run_named", "run_workflow", "validate_workflow", "job"]


@pytest.mark.parametrize("mode", MODES)
async def test_each_usable_workflow_is_a_tool_with_its_schema(mcp_named: RunningGateway, mode: Mode) -> None:
    async with mcp_named.http.get("/workflows/flat") as response:
        shown = await response.json()
    async with mcp_client(mcp_named, mode) as client:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
    assert list(tools) == [*_OWN, "flat", "inverted"]
    flat = tools["flat"]
    assert (flat.title, flat.description) == ("Flat", "A picture of one colour.")
    width = flat.input_schema["properties"]["width"]
    assert (width["type"], width["minimum"], width["maximum"], width["default"]) == ("integer", 1, 64, 16)
    assert flat.input_schema == shown["parameters"]
    assert tools["inverted"].input_schema["required"] == ["image"]


@pytest.mark.parametrize("mode", MODES)
async def test_a_tool_gives_the_same_result_as_http(mcp_named: RunningGateway, mode: Mode) -> None:
    values = {"seed": 255, "width": 9}
    async with mcp_client(mcp_named, mode) as client:
        tool = await client.call_tool("flat", {**values, "prompt": None})
        named = await client.call_tool("run_named", {"name": "flat", "parameters": values})
    _, http = await run(mcp_named.http, "flat", values)
    for result in (tool, named):
        told = json_of(result)
        assert told["workflow"] == http["workflow"]
        assert [file["output"] for file in told["images"]] == [file["output"] for file in http["images"]] == ["picture"]
        assert [part.type for part in result.content] == ["text", "image", "resource_link"]


async def test_a_file_may_be_given_as_base64(mcp_named: RunningGateway) -> None:
    picture = base64.b64encode(png("black")).decode()
    async with mcp_client(mcp_named) as client:
        result = await client.call_tool("inverted", {"image": picture})
    assert not result.is_error, json_of(result)
    assert [part for part in result.content if isinstance(part, ImageContent)]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("tool", ["flat", "run_named"])
async def test_an_error_names_every_wrong_argument(
    mcp_named: RunningGateway, engine: Engine, mode: Mode, tool: str
) -> None:
    """The `mcp` package itself checks no arguments."""
    values = {"width": 900, "seed": "seven", "colour": 1, "prompt": ["1", 0]}
    arguments: dict[str, Any] = values if tool == "flat" else {"name": "flat", "parameters": values}
    async with mcp_client(mcp_named, mode) as client:
        result = await client.call_tool(tool, arguments)
    assert result.is_error
    told = json_of(result)
    assert told["type"] == "invalid_parameters"
    assert set(told["parameters"]) == {"width", "seed", "colour", "prompt"}
    assert executions(engine) == {}


@pytest.mark.parametrize("tool", ["picture", "run_named"])
async def test_the_first_call_after_a_start_knows_a_file_of_the_editor(
    engine: Engine, tmp_path: Path, tool: str
) -> None:
    """The gateway needs node definitions to read such a file, and has not read any at this time."""
    nodes: list[dict[str, Any]] = [
        {"id": 1, "type": "EmptyImage", "title": "$width", "widgets_values": [8, 8, 1, 0]},
        {"id": 2, "type": "SaveImage", "widgets_values": ["picture"]},
    ]
    nodes[0]["outputs"] = [{"name": "IMAGE", "type": "IMAGE", "links": [1]}]
    nodes[1]["inputs"] = [{"name": "images", "type": "IMAGE", "link": 1}]
    write(tmp_path, "picture", {"nodes": nodes, "links": [[1, 1, 0, 2, 0, "IMAGE"]], "version": 0.4})
    arguments: dict[str, Any] = {"width": 5}
    if tool == "run_named":
        arguments = {"name": "picture", "parameters": arguments}
    async with running_gateway(engine.url, workflows_dir=tmp_path, mcp=True) as gateway, mcp_client(gateway) as client:
        result = await client.call_tool(tool, arguments)
    assert not result.is_error, json_of(result)
    assert json_of(result)["workflow"]["parameters"] == {"width": 5}


async def test_run_named_lists_describes_and_runs_workflows_once_per_prompt_id(
    mcp_named: RunningGateway, engine: Engine
) -> None:
    async with mcp_client(mcp_named) as client:
        listed = json_of(await client.call_tool("run_named", {}))
        described = json_of(await client.call_tool("run_named", {"name": "flat"}))
        unknown = await client.call_tool("run_named", {"name": "flatt", "parameters": {}})
        broken = await client.call_tool("run_named", {"name": "broken", "parameters": {}})
        assert executions(engine) == {}
        prompt_id = str(uuid4())
        call = {"name": "flat", "parameters": {"width": 5}, "prompt_id": prompt_id, "labels": {"order": "7"}}
        first, second = [json_of(await client.call_tool("run_named", call)) for _ in range(2)]
        (job,) = json_of(await client.call_tool("job", {"action": "list"}))["jobs"]
    assert [one["name"] for one in listed["workflows"]] == ["flat", "inverted"]
    assert described["parameters"]["properties"]["width"]["maximum"] == 64
    assert described["outputs"] == ["picture"]
    assert json_of(unknown)["type"] == "not_found"
    assert "flat" in json_of(unknown)["detail"]
    assert json_of(broken)["type"] == "workflow_unusable"
    assert first["workflow"] == second["workflow"]
    assert executions(engine) == {prompt_id: 1}
    assert (job["workflow"], job["labels"]) == ("flat", {"order": "7"})


@pytest.mark.parametrize("mode", MODES)
async def test_a_tool_whose_workflow_became_unusable_gives_the_reason(mcp_named: RunningGateway, mode: Mode) -> None:
    async with mcp_client(mcp_named, mode) as client:
        assert "broken" not in [tool.name for tool in (await client.list_tools()).tools]
        result = await client.call_tool("broken", {})
    assert result.is_error
    told = json_of(result)
    assert (told["type"], "'77'" in told["detail"]) == ("workflow_unusable", True)


async def test_a_workflow_added_to_the_folder_becomes_a_tool(mcp_named: RunningGateway, tmp_path: Path) -> None:
    async with mcp_client(mcp_named) as client:

        async def names() -> list[str]:
            return [tool.name for tool in (await client.list_tools(cache_mode="bypass")).tools]

        assert "later" not in await names()
        write(tmp_path / "workflows", "later", FLAT, FLAT_PARAMETERS)
        await until(names, lambda found: "later" in found)
        assert not (await client.call_tool("later", {})).is_error


@pytest.mark.parametrize("mode", MODES)
async def test_mcp_max_tools_limits_the_tools_while_run_named_runs_every_workflow(
    engine: Engine, tmp_path: Path, mode: Mode
) -> None:
    folder = tmp_path / "workflows"
    for number in range(6):
        write(folder, f"w{number}", FLAT, FLAT_PARAMETERS)
    async with (
        running_gateway(engine.url, workflows_dir=folder, mcp=True, mcp_max_tools=2) as gateway,
        mcp_client(gateway, mode) as client,
    ):
        names = [tool.name for tool in (await client.list_tools()).tools]
        assert names == [*_OWN, "w0", "w1"]
        with pytest.raises(MCPError, match="Unknown tool: w5"):
            await client.call_tool("w5", {})
        result = await client.call_tool("run_named", {"name": "w5", "parameters": {}})
        assert json_of(result)["workflow"]["name"] == "w5"


async def test_many_tools_are_listed_in_pages(engine: Engine, tmp_path: Path) -> None:
    folder = tmp_path / "workflows"
    for number in range(200):
        write(folder, f"w{number:03}", FLAT, FLAT_PARAMETERS)
    async with (
        running_gateway(engine.url, workflows_dir=folder, mcp=True, mcp_max_tools=500) as gateway,
        mcp_client(gateway) as client,
    ):
        first = await client.list_tools()
        assert len(first.tools) == 128
        second = await client.list_tools(cursor=first.next_cursor)
        assert second.next_cursor is None
        names = [tool.name for tool in (*first.tools, *second.tools)]
        assert names == [*_OWN, *(f"w{number:03}" for number in range(200))]
        for cursor in ("x", "-1", "9" * 30, "205"):
            with pytest.raises(MCPError, match="not a page of the tools"):
                await client.list_tools(cursor=cursor)


@pytest.mark.parametrize("mode", MODES)
async def test_a_key_limited_to_workflows_has_their_tools_and_no_graph_tools(
    engine: Engine, tmp_path: Path, mode: Mode
) -> None:
    keys = [table("alice", ALICE, workflows=["flat"]), table("bob", BOB, workflows=["nothing"])]
    path = write_keys(
        tmp_path / "keys.toml", "\n".join([*keys, table("watcher", WATCHER, "read"), table("r", ROOT, "admin")])
    )
    folder = named_folder(tmp_path / "workflows")
    async with running_gateway(engine.url, workflows_dir=folder, keys_file=path, mcp=True) as gateway:
        for key, names in (
            (ALICE, ["run_named", "job", "flat"]),
            (BOB, ["job"]),
            (WATCHER, ["job"]),
            (ROOT, [*_OWN, "flat", "inverted"]),
        ):
            async with mcp_client(gateway, mode, key) as client:
                assert [tool.name for tool in (await client.list_tools()).tools] == names
        async with mcp_client(gateway, mode, ALICE) as client:
            assert not (await client.call_tool("flat", {})).is_error
            with pytest.raises(MCPError, match="Unknown tool"):
                await client.call_tool("inverted", {})
            refused = await client.call_tool("run_named", {"name": "inverted", "parameters": {}})
            assert json_of(refused)["type"] == "forbidden"
            listed = json_of(await client.call_tool("run_named", {}))
            assert [one["name"] for one in listed["workflows"]] == ["flat"]
        async with mcp_client(gateway, mode, WATCHER) as client:
            refused = await client.call_tool("run_named", {"name": "flat", "parameters": {}})
            assert json_of(refused)["type"] == "forbidden"


async def test_many_calls_at_once_each_get_their_own_result(mcp_named: RunningGateway, engine: Engine) -> None:
    async with mcp_client(mcp_named) as client:
        calls = (client.call_tool("flat", {"width": width}) for width in range(1, 17))
        results = [json_of(result) for result in await asyncio.gather(*calls)]
    assert [told["workflow"]["parameters"]["width"] for told in results] == list(range(1, 17))
    assert set(executions(engine).values()) == {1}


def test_tool_names_are_plain_and_distinct() -> None:
    names = tool_names(["portrait", "Up-Scale", "up.scale", "job", "a_b", "a-b", "x" * 64, "X" * 60 + ".y.z"], {"job"})
    assert names["portrait"] == "portrait"
    assert names["a_b"] == "a_b"
    assert names["x" * 64] == "x" * 64
    assert len(set(names.values())) == len(names)
    for name in names.values():
        assert 1 <= len(name) <= 64
        assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789_")
    assert names["job"] != "job"
    assert names["Up-Scale"].startswith("up_scale_")
    assert names["a-b"].startswith("a_b_")
    # A name does not depend on the other workflows.
    assert tool_names(["up.scale", "Up-Scale"], ())["up.scale"] == names["up.scale"]
