"""`/mcp` with keys: a key has the same rights as over HTTP, and links in its results open without it."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from uuid import uuid4

import aiohttp
import pytest
from mcp_types import ResourceLink

from comfyui.engine import Engine
from tests.support.engine_workflows import sleeping
from tests.support.keys import ALICE, BOB, CAROL, DAVE, ROOT, WATCHER, bearer
from tests.support.mcp_clients import MODES, NEW, OLD, Mode, called, headers_of, json_of, mcp_client, message
from tests.support.processes import engine_process, gateway_process
from tests.support.running import RunningGateway, executions, invert_workflow, queue_of, running_gateway, until

_ALL = ["run_workflow", "validate_workflow", "job"]


@pytest.mark.parametrize("version", [NEW, OLD])
@pytest.mark.parametrize("headers", [{}, bearer("wrong")], ids=["no key", "wrong key"])
async def test_requests_without_a_valid_key_get_401(
    mcp_keyed: RunningGateway, version: str, headers: dict[str, str]
) -> None:
    sent = {**headers_of(version, "tools/list"), **headers}
    async with (
        aiohttp.ClientSession(mcp_keyed.url) as http,
        http.post("/mcp", json=message(version, "tools/list", {}), headers=sent) as response,
    ):
        assert response.status == 401
        assert response.headers["WWW-Authenticate"].startswith("Bearer")


@pytest.mark.parametrize(
    ("key", "names"),
    [(ALICE, _ALL), (ROOT, _ALL), (DAVE, _ALL), (WATCHER, ["job"]), (CAROL, ["job"])],
    ids=["user", "admin", "per_minute", "read", "workflows"],
)
@pytest.mark.parametrize("mode", MODES)
async def test_a_key_sees_only_the_tools_that_it_may_use(
    mcp_keyed: RunningGateway, engine: Engine, mode: Mode, key: str, names: list[str]
) -> None:
    async with mcp_client(mcp_keyed, mode, key) as client:
        assert [tool.name for tool in (await client.list_tools()).tools] == names
        for name in set(_ALL).difference(names):
            result = await client.call_tool(name, {"workflow": invert_workflow()})
            assert result.is_error
            assert json_of(result)["type"] == "forbidden"
    assert executions(engine) == {}


@pytest.mark.parametrize("mode", MODES)
async def test_a_job_of_another_key_looks_like_an_unknown_job(mcp_keyed: RunningGateway, mode: Mode) -> None:
    async with mcp_client(mcp_keyed, mode, ALICE) as alice, mcp_client(mcp_keyed, mode, BOB) as bob:
        job = json_of(await alice.call_tool("run_workflow", {"workflow": sleeping(), "wait": 0.05}))["prompt_id"]
        for action in ("status", "wait", "result", "cancel"):
            told = []
            for prompt_id in (job, str(uuid4())):
                answer = await bob.call_tool("job", {"action": action, "prompt_id": prompt_id})
                assert answer.is_error
                body = json_of(answer)
                del body["prompt_id"], body["timestamp"], body["request_id"]
                told.append(body)
            assert told[0] == told[1]
            assert told[0]["type"] == "not_found"
        assert json_of(await bob.call_tool("job", {"action": "list"}))["jobs"] == []
        taken = await bob.call_tool("run_workflow", {"workflow": sleeping(), "prompt_id": job})
        assert json_of(taken)["type"] == "conflict"
        (listed,) = json_of(await alice.call_tool("job", {"action": "list"}))["jobs"]
        assert listed["prompt_id"] == job
        await alice.call_tool("job", {"action": "cancel", "prompt_id": job})


async def test_a_key_of_role_read_sees_jobs_but_cannot_cancel_them(mcp_keyed: RunningGateway) -> None:
    async with mcp_client(mcp_keyed, key=ALICE) as alice, mcp_client(mcp_keyed, key=WATCHER) as watcher:
        job = json_of(await alice.call_tool("run_workflow", {"workflow": invert_workflow()}))["prompt_id"]
        result = await watcher.call_tool("job", {"action": "result", "prompt_id": job})
        assert json_of(result)["status"] == "success"
        refused = await watcher.call_tool("job", {"action": "cancel", "prompt_id": job})
        assert json_of(refused)["type"] == "forbidden"


async def test_only_runs_count_against_per_minute(mcp_keyed: RunningGateway) -> None:
    async with mcp_client(mcp_keyed, key=DAVE) as client:
        for color in range(2):
            assert not (await client.call_tool("run_workflow", {"workflow": invert_workflow(color)})).is_error
            await client.list_tools()
        refused = await client.call_tool("run_workflow", {"workflow": invert_workflow(2)})
        assert json_of(refused)["type"] == "overloaded"
        assert 1 <= json_of(refused)["retry_after_seconds"] <= 60
        assert json_of(await client.call_tool("job", {"action": "list"}))["jobs"]
    async with mcp_keyed.http.post(
        "/prompt_sync", json={"prompt": invert_workflow()}, headers=bearer(DAVE)
    ) as response:
        assert response.status == 429


async def test_a_link_opens_only_its_file_without_the_key(mcp_keyed: RunningGateway) -> None:
    async with mcp_client(mcp_keyed, key=ALICE) as client:
        result = await client.call_tool("run_workflow", {"workflow": invert_workflow(9)})
    (link,) = [part for part in result.content if isinstance(part, ResourceLink)]
    async with aiohttp.ClientSession() as http:
        async with http.get(link.uri) as response:
            assert (response.status, response.content_type) == (200, "image/png")
        async with http.get(link.uri.replace("filename=", "filename=x")) as response:
            assert response.status == 401


async def test_links_begin_with_the_public_url(engine: Engine) -> None:
    public = "https://gateway.example/comfy"
    async with running_gateway(engine.url, mcp=True, public_url=public) as gateway, mcp_client(gateway) as client:
        result = await client.call_tool("run_workflow", {"workflow": invert_workflow(9)})
    (link,) = [part for part in result.content if isinstance(part, ResourceLink)]
    assert link.uri.startswith(f"{public}/view?filename=")
    assert json_of(result)["images"][0]["url"] == link.uri


async def test_a_user_gets_404_from_mcp_when_it_is_off(engine: Engine, keys_path: Path) -> None:
    """A node pack may serve that path, but no key has a right to it."""
    async with running_gateway(engine.url, keys_file=keys_path) as gateway:
        engine.stats.reset()
        for key in (ALICE, WATCHER):
            for method in ("GET", "POST", "DELETE"):
                async with (
                    aiohttp.ClientSession(gateway.url, headers=bearer(key)) as http,
                    http.request(method, "/mcp") as response,
                ):
                    assert response.status == 404
        assert not [route for route in engine.stats.show()["requests"] if "mcp" in route]


async def running_on(engine_url: str) -> list[object]:
    async with aiohttp.ClientSession() as http, http.get(f"{engine_url}/queue") as response:
        return list((await response.json())["queue_running"])


@pytest.mark.parametrize("version", [NEW, OLD])
async def test_a_call_gets_its_result_while_the_gateway_shuts_down(version: str) -> None:
    async with (
        engine_process() as engine_url,
        gateway_process(engine_url, MCP="true") as gateway,
        aiohttp.ClientSession(gateway.url) as http,
    ):
        call = asyncio.create_task(called(http, version, {"workflow": sleeping(1.5)}))
        await until(lambda: running_on(engine_url), bool)
        gateway.signal(signal.SIGTERM)
        await gateway.logged("shutdown.draining")
        text = await call
        assert '\\"status\\":\\"success\\"' in text
        assert await gateway.exit_status() == 0
        assert not gateway.lines_of("error", "critical")


async def test_a_call_that_waits_at_shutdown_gets_shutting_down_and_its_prompt_id(engine: Engine) -> None:
    async with running_gateway(engine.url, mcp=True) as gateway, mcp_client(gateway, "legacy") as client:
        await client.list_tools()
        call = asyncio.create_task(client.call_tool("run_workflow", {"workflow": sleeping()}))
        await until(lambda: queue_of(engine), lambda queue: bool(queue[0]))
        await gateway.handler.drain(0)
        told = json_of(await call)
    assert told["type"] == "shutting_down"
    assert told["prompt_id"]
