"""`/mcp` through the SDK's own client: the tools, what they answer, and how long they wait."""

from __future__ import annotations

import asyncio
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiohttp
import pybase64
import pytest
from mcp.shared.exceptions import MCPError
from mcp_types import ImageContent, ResourceLink, TextContent
from PIL import Image

from comfyui.engine import Engine
from comfyui.web.mcp.instructions import INSTRUCTIONS
from tests.support.engine_workflows import sleeping, txt2img, writing
from tests.support.mcp_clients import MODES, NEW, OLD, Mode, called, headers_of, json_of, mcp_client, message
from tests.support.relaying import eventually
from tests.support.running import (
    RunningGateway,
    executions,
    handler_options,
    invert_workflow,
    queue_of,
    running_gateway,
    until,
)

_ENDED = "succeeded", "failed", "canceled", "lost"


async def status_of(gateway: RunningGateway, prompt_id: str) -> str:
    async with gateway.http.get("/prompt_sync") as response:
        page = await response.json()
    return next((job["status"] for job in page["jobs"] if job["prompt_id"] == prompt_id), "")


async def only_job(gateway: RunningGateway) -> dict[str, Any]:
    async with gateway.http.get("/prompt_sync") as response:
        (job,) = (await response.json())["jobs"]
        return dict(job)


@pytest.mark.parametrize("mode", MODES)
async def test_tools_have_names_and_schemas_that_every_client_accepts(mcp_gateway: RunningGateway, mode: Mode) -> None:
    async with mcp_client(mcp_gateway, mode) as client:
        listed = await client.list_tools()
        assert client.instructions == INSTRUCTIONS
    assert [tool.name for tool in listed.tools] == ["run_workflow", "validate_workflow", "job"]
    for tool in listed.tools:
        assert tool.description
        assert tool.input_schema["type"] == "object"
        assert tool.input_schema["additionalProperties"] is False
        for field in tool.input_schema["properties"].values():
            assert field["type"] in {"object", "array", "string", "integer", "number"}
            assert field["description"]


def test_instructions_are_short() -> None:
    assert len(INSTRUCTIONS.encode()) <= 1024


@pytest.mark.parametrize("mode", MODES)
async def test_a_result_has_json_then_small_pictures_then_links(mcp_gateway: RunningGateway, mode: Mode) -> None:
    workflow = invert_workflow(65280, width=900, height=600)
    async with mcp_client(mcp_gateway, mode) as client:
        result = await client.call_tool("run_workflow", {"workflow": workflow})
    assert not result.is_error
    assert result.structured_content is None
    text, picture, link = result.content
    assert isinstance(text, TextContent)
    assert isinstance(picture, ImageContent)
    assert isinstance(link, ResourceLink)
    told = json_of(result)
    assert told["status"] == "success"
    assert [(file["node_id"], file["content_type"]) for file in told["images"]] == [("3", "image/png")]
    assert picture.mime_type == "image/webp"
    with Image.open(io.BytesIO(pybase64.b64decode(picture.data))) as image:
        assert (image.format, image.size) == ("WEBP", (512, 341))
        assert image.getpixel((0, 0)) == pytest.approx((255, 0, 255), abs=8)
    assert link.uri == told["images"][0]["url"]
    async with aiohttp.ClientSession() as http, http.get(link.uri) as response:
        assert response.status == 200
        with Image.open(io.BytesIO(await response.read())) as original:
            assert original.size == (900, 600)


@pytest.mark.parametrize("mode", MODES)
async def test_a_job_goes_on_after_the_wait_of_its_call_has_ended(
    mcp_gateway: RunningGateway, engine: Engine, mode: Mode
) -> None:
    async with mcp_client(mcp_gateway, mode) as client:
        begun = await client.call_tool("run_workflow", {"workflow": txt2img(steps=60), "wait": 0.05})
        assert not begun.is_error
        told = json_of(begun)
        assert told["timed_out"] is True
        assert told["status"] in {"queued", "running"}
        prompt_id = told["prompt_id"]
        status = json_of(await client.call_tool("job", {"action": "status", "prompt_id": prompt_id}))
        assert status["prompt_id"] == prompt_id
        result = json_of(await client.call_tool("job", {"action": "result", "prompt_id": prompt_id}))
        assert result["status"] in {"queued", "running", "succeeded", "success"}
        ended = await client.call_tool("job", {"action": "wait", "prompt_id": prompt_id})
        again = await client.call_tool("job", {"action": "result", "prompt_id": prompt_id})
        listed = json_of(await client.call_tool("job", {"action": "list", "status": "succeeded"}))
    assert json_of(ended)["status"] == json_of(again)["status"] == "success"
    assert [part.type for part in ended.content] == ["text", "image", "resource_link"]
    assert [job["prompt_id"] for job in listed["jobs"]] == [prompt_id]
    assert executions(engine) == {prompt_id: 1}


async def test_a_job_queued_in_the_gateway_goes_on_after_the_wait_too(engine: Engine, tmp_path: Path) -> None:
    """It waits behind another job; the journal is on the disk, and the call has an input file."""
    async with (
        running_gateway(engine.url, mcp=True, queue="gateway", state_dir=str(tmp_path)) as gateway,
        mcp_client(gateway) as client,
    ):
        first = json_of(await client.call_tool("run_workflow", {"workflow": sleeping(), "wait": 0.05}))
        loaded = {
            "1": {"class_type": "LoadImage", "inputs": {"image": "brought.png"}},
            "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "kept"}},
        }
        buffer = io.BytesIO()
        Image.new("RGB", (8, 8), "red").save(buffer, "PNG")
        brought = [{"name": "brought.png", "image": pybase64.b64encode_as_string(buffer.getvalue())}]
        second = json_of(await client.call_tool("run_workflow", {"workflow": loaded, "images": brought, "wait": 0.05}))
        assert second["timed_out"] is True
        assert second["status"] == "queued"
        await client.call_tool("job", {"action": "cancel", "prompt_id": first["prompt_id"]})
        ended = await client.call_tool("job", {"action": "wait", "prompt_id": second["prompt_id"]})
    assert json_of(ended)["status"] == "success"
    assert executions(engine)[second["prompt_id"]] == 1


@pytest.mark.parametrize(
    ("version", "meta"),
    [(NEW, None), (OLD, None), (OLD, {"progressToken": 1})],
    ids=["new protocol", "old protocol", "old protocol with progress"],
)
async def test_a_closed_connection_cancels_the_job_of_its_call(
    mcp_gateway: RunningGateway, engine: Engine, version: str, meta: dict[str, Any] | None
) -> None:
    """The answer is a stream, or for the older protocol without a progress token plain JSON."""
    async with aiohttp.ClientSession(mcp_gateway.url) as http:
        call = asyncio.create_task(called(http, version, {"workflow": sleeping()}, meta))
        await until(lambda: queue_of(engine), lambda queue: bool(queue[0]))
        call.cancel()
        await asyncio.wait([call])
    await until(lambda: queue_of(engine), lambda queue: queue == ([], []))
    assert (await only_job(mcp_gateway))["status"] == "canceled"


@pytest.mark.parametrize("version", [NEW, OLD])
async def test_a_closed_connection_leaves_a_job_that_another_request_waits_for(
    mcp_gateway: RunningGateway, engine: Engine, version: str
) -> None:
    prompt_id, workflow = str(uuid4()), sleeping(1.0)
    async with aiohttp.ClientSession(mcp_gateway.url) as http:
        call = asyncio.create_task(called(http, version, {"workflow": workflow, "prompt_id": prompt_id}))
        await until(lambda: queue_of(engine), lambda queue: bool(queue[0]))
        other = asyncio.create_task(mcp_gateway.prompt_sync(workflow, prompt_id=prompt_id))
        await eventually(lambda: mcp_gateway.handler.waiting == 2)
        call.cancel()
        await asyncio.wait([call])
        status, _ = await other
    assert status == 200
    assert executions(engine) == {prompt_id: 1}


async def test_a_connection_that_closes_after_the_wait_does_not_cancel_the_job(mcp_gateway: RunningGateway) -> None:
    async with mcp_client(mcp_gateway) as client:
        told = json_of(await client.call_tool("run_workflow", {"workflow": sleeping(0.3), "wait": 0.05}))
    await until(lambda: status_of(mcp_gateway, told["prompt_id"]), lambda status: status in _ENDED)
    assert await status_of(mcp_gateway, told["prompt_id"]) == "succeeded"


async def test_mcp_wait_limits_the_wait_of_a_call(engine: Engine) -> None:
    async with running_gateway(engine.url, mcp=True, mcp_wait=0.05) as gateway, mcp_client(gateway) as client:
        for more in ({}, {"wait": 600}):
            told = json_of(await client.call_tool("run_workflow", {"workflow": sleeping(), **more}))
            assert told["timed_out"] is True
            gone = json_of(await client.call_tool("job", {"action": "cancel", "prompt_id": told["prompt_id"]}))
            assert gone == {"prompt_id": told["prompt_id"], "status": "cancelled"}


@pytest.mark.parametrize("mode", MODES)
async def test_progress_rises_with_every_message(mcp_gateway: RunningGateway, mode: Mode) -> None:
    told: list[tuple[float, float | None, str | None]] = []

    async def tell(progress: float, total: float | None, message: str | None) -> None:
        told.append((progress, total, message))

    async with mcp_client(mcp_gateway, mode) as client:
        result = await client.call_tool("run_workflow", {"workflow": txt2img(steps=300)}, progress_callback=tell)
    assert not result.is_error
    figures = [progress for progress, _, _ in told]
    assert figures == sorted(set(figures))
    assert figures
    assert figures[-1] <= 1.0
    assert {total for _, total, _ in told} == {1.0}
    assert "KSampler" in {words for _, _, words in told}


async def test_a_second_call_with_the_same_prompt_id_does_not_run_again(
    mcp_gateway: RunningGateway, engine: Engine
) -> None:
    arguments = {"workflow": invert_workflow(3), "prompt_id": str(uuid4())}
    async with mcp_client(mcp_gateway) as client:
        first = json_of(await client.call_tool("run_workflow", arguments))
        second = json_of(await client.call_tool("run_workflow", arguments))
        other = await client.call_tool("run_workflow", {**arguments, "workflow": invert_workflow(4)})
    assert first["images"] == second["images"]
    assert executions(engine) == {arguments["prompt_id"]: 1}
    assert other.is_error
    assert json_of(other)["type"] == "conflict"


async def test_a_result_shows_eight_pictures_and_lists_all_files(mcp_gateway: RunningGateway) -> None:
    workflow = {
        "1": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 11, "color": 7}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "many"}},
    }
    async with mcp_client(mcp_gateway) as client:
        result = await client.call_tool("run_workflow", {"workflow": workflow})
    kinds = [part.type for part in result.content]
    assert kinds == ["text", *["image"] * 8, *["resource_link"] * 11]
    assert len(json_of(result)["images"]) == 11


async def test_a_noisy_picture_is_shrunk_to_fit_the_size_limit(mcp_gateway: RunningGateway) -> None:
    """No compression makes this picture small, so it is shown with fewer pixels."""
    workflow = txt2img(steps=1)
    workflow["5"]["inputs"] |= {"width": 1024, "height": 1024}
    async with mcp_client(mcp_gateway) as client:
        result = await client.call_tool("run_workflow", {"workflow": workflow})
    (picture,) = [part for part in result.content if isinstance(part, ImageContent)]
    assert 1000 < len(picture.data) <= 100_000


async def test_files_that_are_no_pictures_are_links_only(mcp_gateway: RunningGateway) -> None:
    async with mcp_client(mcp_gateway) as client:
        result = await client.call_tool("run_workflow", {"workflow": writing(2, extension="bin")})
        broken = await client.call_tool("run_workflow", {"workflow": writing(1, extension="png")})
    assert [part.type for part in result.content] == ["text", "resource_link", "resource_link"]
    assert [part.type for part in broken.content] == ["text", "resource_link"]


async def test_validate_workflow_names_the_problem_and_runs_nothing(
    mcp_gateway: RunningGateway, engine: Engine
) -> None:
    wrong = txt2img()
    wrong["3"]["inputs"]["sampler_name"] = "eular"
    async with mcp_client(mcp_gateway) as client:
        found = json_of(await client.call_tool("validate_workflow", {"workflow": wrong}))
        good = json_of(await client.call_tool("validate_workflow", {"workflow": txt2img()}))
    assert not found["valid"]
    assert found["problems"][0]["input_name"] == "sampler_name"
    assert good["valid"]
    assert executions(engine) == {}


@pytest.mark.parametrize(
    ("tool", "arguments", "named"),
    [
        ("run_workflow", {}, "workflow"),
        ("run_workflow", {"workflow": 5}, "workflow"),
        ("run_workflow", {"workflow": "{"}, "workflow"),
        ("run_workflow", {"workflow": {}, "imges": []}, "imges"),
        ("run_workflow", {"workflow": {}, "wait": -1}, "wait"),
        ("run_workflow", {"workflow": {}, "labels": {"a": 1}}, "labels"),
        ("run_workflow", {"workflow": {}, "images": [{"name": "../a"}]}, "images[0]"),
        ("run_workflow", {"workflow": {}, "prompt_id": "7"}, "prompt_id"),
        ("validate_workflow", {"workflow": []}, "workflow"),
        ("job", {}, "action"),
        ("job", {"action": "run"}, "action"),
        ("job", {"action": "status"}, "prompt_id"),
        ("job", {"action": "list", "status": "ready"}, "status"),
        ("job", {"action": "list", "limit": 1000}, "limit"),
    ],
)
@pytest.mark.parametrize("mode", MODES)
async def test_a_wrong_argument_is_an_error_that_names_it(
    mcp_gateway: RunningGateway, engine: Engine, mode: Mode, tool: str, arguments: dict[str, Any], named: str
) -> None:
    async with mcp_client(mcp_gateway, mode) as client:
        result = await client.call_tool(tool, arguments)
    assert result.is_error
    told = json_of(result)
    assert told["type"] == "invalid_request"
    assert named in told["detail"]
    assert executions(engine) == {}


async def test_a_workflow_may_be_given_as_json_text(mcp_gateway: RunningGateway) -> None:
    async with mcp_client(mcp_gateway) as client:
        found = json_of(await client.call_tool("validate_workflow", {"workflow": json.dumps(invert_workflow())}))
    assert found == {"valid": True, "problems": []}


@pytest.mark.parametrize("mode", MODES)
async def test_an_error_of_comfyui_names_its_node(mcp_gateway: RunningGateway, mode: Mode) -> None:
    async with mcp_client(mcp_gateway, mode) as client:
        result = await client.call_tool("run_workflow", {"workflow": {"1": {"class_type": "Nope", "inputs": {}}}})
    assert result.is_error
    assert json_of(result)["type"] == "validation_failed"
    assert "Nope" in json_of(result)["detail"]


@pytest.mark.parametrize("mode", MODES)
async def test_an_unknown_tool_is_an_error_of_the_protocol(mcp_gateway: RunningGateway, mode: Mode) -> None:
    async with mcp_client(mcp_gateway, mode) as client:
        with pytest.raises(MCPError, match="Unknown tool: nope"):
            await client.call_tool("nope", {})


@pytest.mark.parametrize("mode", MODES)
async def test_the_text_of_a_crash_is_not_sent_to_the_client(
    mcp_gateway: RunningGateway, mode: Mode, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: object) -> None:
        raise RuntimeError("a secret")

    monkeypatch.setattr(mcp_gateway.app.running.deliverer, "check", crash)
    async with mcp_client(mcp_gateway, mode) as client:
        result = await client.call_tool("run_workflow", {"workflow": invert_workflow()})
    assert result.is_error
    told = json_of(result)
    assert (told["type"], told["detail"]) == (
        "internal_error",
        "the gateway failed; its log has the reason with this request_id",
    )
    assert told["request_id"]
    assert "secret" not in str(result)


async def test_a_full_gateway_refuses_a_call_and_says_when_to_retry(engine: Engine) -> None:
    few = handler_options(max_concurrent_requests=1)
    async with running_gateway(engine.url, mcp=True, changed=few) as gateway, mcp_client(gateway) as client:
        first = asyncio.create_task(client.call_tool("run_workflow", {"workflow": sleeping()}))
        await until(lambda: queue_of(engine), lambda queue: bool(queue[0]))
        told = json_of(await client.call_tool("run_workflow", {"workflow": invert_workflow()}))
        assert told["type"] == "overloaded"
        assert told["retry_after_seconds"] > 0
        first.cancel()
        await asyncio.wait([first])


# The endpoint


@pytest.mark.parametrize("method", ["GET", "DELETE", "PUT"])
async def test_methods_other_than_post_get_405(mcp_gateway: RunningGateway, method: str) -> None:
    async with aiohttp.ClientSession(mcp_gateway.url) as http, http.request(method, "/mcp") as response:
        assert (response.status, response.headers["Allow"]) == (405, "POST")


@pytest.mark.parametrize("version", [NEW, OLD])
@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b"[]", 400),
        (b"null", 400),
        (
            b'{"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {"x": ' + b"[" * 950 + b"]" * 950 + b"}}",
            400,
        ),
        (b'{"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {"x": [' + b"1," * 300_000 + b"1]}}", 413),
        (b'{"x": "' + b"y" * 5_000_000 + b'"}', 413),
    ],
    ids=["broken", "batch", "null", "deep", "many", "long"],
)
async def test_an_unusable_body_is_refused(mcp_gateway: RunningGateway, version: str, body: bytes, status: int) -> None:
    headers = {**headers_of(version, "tools/list"), "Content-Type": "application/json"}
    async with (
        aiohttp.ClientSession(mcp_gateway.url) as http,
        http.post("/mcp", data=io.BytesIO(body), headers=headers) as response,
    ):
        assert response.status == status
        assert len(await response.read()) < 3000
    async with mcp_client(mcp_gateway) as client:
        assert (await client.list_tools()).tools


@pytest.mark.parametrize("version", [NEW, OLD])
@pytest.mark.parametrize(
    "headers",
    [{"Host": "evil.example"}, {"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "cross-site"}],
    ids=["Host", "Origin", "Sec-Fetch-Site"],
)
async def test_a_page_of_another_site_is_refused(
    mcp_gateway: RunningGateway, version: str, headers: dict[str, str]
) -> None:
    """The first case is DNS rebinding: the other site's name has the gateway's address."""
    async with (
        aiohttp.ClientSession(mcp_gateway.url) as http,
        http.post(
            "/mcp",
            json=message(version, "tools/list", {}),
            headers={**headers_of(version, "tools/list"), **headers},
        ) as response,
    ):
        assert response.status == 403


async def test_without_mcp_the_path_is_relayed_to_comfyui(gateway: RunningGateway) -> None:
    async with aiohttp.ClientSession(gateway.url) as http, http.post("/mcp", json={}) as response:
        assert response.status in {404, 405}
        assert response.headers.get("Server", "").startswith("Python")


def test_without_mcp_the_package_is_not_imported() -> None:
    program = (
        "import sys; from config import Settings; from server import create_app; create_app(Settings(mcp={}));"
        "print([name for name in sys.modules if name.split('.')[0] in ('mcp', 'mcp_types', 'sse_starlette')])"
    )
    for enabled, expected in ((False, True), (True, False)):
        done = subprocess.run(
            [sys.executable, "-c", program.format(enabled)], capture_output=True, text=True, check=True
        )
        assert (done.stdout.strip() == "[]") is expected
