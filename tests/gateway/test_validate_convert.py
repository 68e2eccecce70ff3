"""Checks before a workflow runs: `/validate`, `/convert`, and refusals that name similar classes and values."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import aiohttp
import pytest

from comfyui.engine import Engine
from tests.support.editor_files import UI
from tests.support.running import RunningGateway, invert_workflow, requests, running_gateway


async def post(gateway: RunningGateway, path: str, body: Any) -> tuple[int, Any]:
    async with gateway.http.post(path, json=body) as response:
        return response.status, await response.json()


async def validate(gateway: RunningGateway, workflow: dict[str, Any], **fields: Any) -> Any:
    status, body = await post(gateway, "/validate", {"prompt": workflow, **fields})
    assert status == 200, body
    return body


def misspelt() -> dict[str, Any]:
    workflow = invert_workflow()
    workflow["2"]["class_type"] = "ImageInvret"
    return workflow


async def test_a_workflow_that_would_run_is_valid(gateway: RunningGateway, engine: Engine) -> None:
    assert await validate(gateway, invert_workflow()) == {"valid": True, "problems": []}
    assert await post(gateway, "/validate", invert_workflow()) == (200, {"valid": True, "problems": []})
    assert requests(engine, "POST /prompt") == 0


async def test_a_problem_names_the_node_and_similar_classes(gateway: RunningGateway, engine: Engine) -> None:
    body = await validate(gateway, misspelt())
    assert body["valid"] is False
    (problem,) = body["problems"]
    assert (problem["node_id"], problem["class_type"]) == ("2", "ImageInvret")
    assert problem["code"] == "missing_node_type"
    assert problem["closest"][0] == "ImageInvert"
    assert requests(engine, "POST /prompt") == 0


async def test_definitions_are_fetched_once(gateway: RunningGateway, engine: Engine) -> None:
    for _ in range(3):
        await validate(gateway, invert_workflow())
    assert requests(engine, "GET /object_info") == 1
    await asyncio.gather(*(validate(gateway, misspelt()) for _ in range(20)))
    assert requests(engine, "GET /object_info") == 1  # definitions as fresh as these are not fetched again


async def test_inputs_that_are_sent_with_the_request_count_as_present(gateway: RunningGateway) -> None:
    workflow = invert_workflow()
    workflow["1"] = {"class_type": "LoadImage", "inputs": {"image": "new.png"}}
    assert (await validate(gateway, workflow))["valid"] is False
    images = [{"name": "new.png", "image": "aGFsbG8="}]
    assert (await validate(gateway, workflow, images=images))["valid"] is True
    workflow["1"]["inputs"]["image"] = "https://example.org/new.png"
    assert (await validate(gateway, workflow))["valid"] is True
    form = aiohttp.FormData()
    workflow["1"]["inputs"]["image"] = "form.png"
    form.add_field("workflow", json.dumps(workflow))
    form.add_field("images", b"x", filename="form.png")
    async with gateway.http.post("/validate", data=form) as response:
        assert (await response.json())["valid"] is True


@pytest.mark.parametrize(
    ("workflow", "code", "node_id"),
    [
        ({}, "not_api_format", ""),
        ({"nodes": [], "links": []}, "not_api_format", ""),
        ({"1": {"class_type": "EmptyImage"}}, "malformed_node", "1"),
        ({"1": {"class_type": "PreviewAny", "inputs": {"source": ["7", 0]}}}, "malformed_node", "1"),
        ({"1": {"class_type": "EmptyImage", "inputs": {}}}, "prompt_no_outputs", ""),
    ],
)
async def test_an_invalid_workflow_is_reported_as_a_problem(
    gateway: RunningGateway, workflow: dict[str, Any], code: str, node_id: str
) -> None:
    body = await validate(gateway, workflow)
    assert body["valid"] is False
    assert (code, node_id) in [(problem["code"], problem["node_id"]) for problem in body["problems"]]


async def test_each_server_has_its_own_verdict(engine: Engine) -> None:
    async with Engine() as other, running_gateway(engine.url, other.url) as gateway:
        body = await validate(gateway, misspelt())
        assert [server["valid"] for server in body["servers"]] == [False, False]
        assert len({server["server"] for server in body["servers"]}) == 2
        assert body["problems"] == body["servers"][0]["problems"]
        assert (await validate(gateway, invert_workflow()))["valid"] is True


async def test_validate_and_convert_get_503_without_a_comfyui() -> None:
    async with running_gateway("127.0.0.1:9", ready=False) as gateway:
        for path in ("/validate", "/convert"):
            status, body = await post(gateway, path, UI if path == "/convert" else invert_workflow())
            assert (status, body["type"]) == (503, "connection_failed")


async def test_validate_refuses_an_unknown_field(gateway: RunningGateway) -> None:
    status, body = await post(gateway, "/validate", {"prompt": invert_workflow(), "promt": 1})
    assert (status, body["type"]) == (422, "invalid_request")


# Refusals of /prompt_sync


async def test_a_refusal_of_comfyui_gets_the_closest_names(gateway: RunningGateway) -> None:
    status, body = await gateway.prompt_sync(misspelt())
    assert (status, body["type"]) == (400, "validation_failed")
    assert any("ImageInvert" in message for message in body["node_errors"]["2"])


async def test_a_refused_list_value_gets_the_closest_values(gateway: RunningGateway) -> None:
    workflow = invert_workflow()
    scale = {"image": ["1", 0], "upscale_method": "bilinaer", "width": 8, "height": 8, "crop": "disabled"}
    workflow["2"] = {"class_type": "ImageScale", "inputs": scale}
    status, body = await gateway.prompt_sync(workflow)
    assert status == 400
    errors = " ".join(body["node_errors"]["2"])
    assert "Value not in list" in errors
    assert "closest to it: bilinear" in errors


async def test_preflight_refuses_a_workflow_before_it_is_submitted(engine: Engine) -> None:
    async with running_gateway(engine.url, preflight=True) as gateway:
        status, body = await gateway.prompt_sync(misspelt())
        assert (status, body["type"]) == (400, "validation_failed")
        assert "ImageInvert" in body["detail"]
        assert body["prompt_id"]
        assert requests(engine, "POST /prompt") == 0
        assert (await gateway.prompt_sync(invert_workflow()))[0] == 200
        assert (await gateway.prompt_sync(invert_workflow(2)))[0] == 200
        assert requests(engine, "GET /object_info") == 1


async def test_a_prompt_needs_no_definitions_without_preflight(gateway: RunningGateway, engine: Engine) -> None:
    await gateway.prompt_sync(invert_workflow())
    assert requests(engine, "GET /object_info") == 0


async def test_a_link_to_a_missing_node_never_reaches_comfyui(gateway: RunningGateway, engine: Engine) -> None:
    workflow = invert_workflow()
    workflow["2"]["inputs"]["undeclared"] = ["77", 0]
    status, body = await gateway.prompt_sync(workflow)
    assert (status, body["type"]) == (400, "validation_failed")
    assert "77" in body["node_errors"]["2"][0]
    assert requests(engine, "POST /prompt") == 0


# UI format


@pytest.mark.parametrize("body", [UI, {"workflow": UI}, {"prompt": UI}], ids=["bare", "workflow", "prompt"])
async def test_a_ui_export_becomes_a_prompt_that_runs(gateway: RunningGateway, body: Any) -> None:
    status, converted = await post(gateway, "/convert", body)
    assert status == 200, converted
    assert converted["warnings"] == []
    assert converted["prompt"]["1"]["inputs"] == {"width": 16, "height": 12, "batch_size": 1, "color": 255}
    assert converted["prompt"]["3"]["inputs"] == {"images": ["2", 0], "filename_prefix": "converted"}
    status, result = await gateway.prompt_sync(converted["prompt"])
    assert (status, result["images"][0]["filename"]) == (200, "converted_00001_.png")


async def test_a_ui_export_with_an_unknown_node_is_refused_with_its_name(gateway: RunningGateway) -> None:
    unknown = {**UI, "nodes": [UI["nodes"][0], {**UI["nodes"][1], "type": "NotInstalled"}, UI["nodes"][2]]}
    status, body = await post(gateway, "/convert", unknown)
    assert (status, body["type"]) == (400, "validation_failed")
    assert "NotInstalled" in body["node_errors"]["2"][0]


@pytest.mark.parametrize(
    "body",
    [
        {"workflow": json.dumps(UI)},
        {"prompt": json.dumps(UI)},
        {"prompt": invert_workflow(), "workflow": json.dumps(UI)},
        {"prompt": invert_workflow(), "extra_data": {"extra_pnginfo": {"workflow": UI}}},
        {"extra_pnginfo": {"workflow": json.dumps(UI)}},
    ],
    ids=["text", "text as prompt", "a picture's texts", "a request", "extra_pnginfo"],
)
async def test_convert_finds_a_ui_export_inside_other_json(gateway: RunningGateway, body: dict[str, Any]) -> None:
    expected = await post(gateway, "/convert", UI)
    assert expected[0] == 200
    assert await post(gateway, "/convert", body) == expected


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({}, "no list of nodes"),
        ([], "not a JSON object"),
        (1, "not a JSON"),
        ({"workflow": "x"}, "workflow is not JSON"),
        (invert_workflow(), "already in API format"),
        ({"prompt": invert_workflow()}, "already in API format"),
    ],
)
async def test_convert_refuses_other_content(gateway: RunningGateway, body: Any, named: str) -> None:
    status, answer = await post(gateway, "/convert", body)
    assert (status, answer["type"]) == (422, "invalid_request")
    assert named in answer["detail"]


@pytest.mark.parametrize("body", [UI, {"prompt": UI}], ids=["bare", "wrapped"])
async def test_prompt_sync_refuses_a_ui_export_and_names_convert(gateway: RunningGateway, body: Any) -> None:
    status, answer = await post(gateway, "/prompt_sync", body)
    assert (status, answer["type"]) == (400, "validation_failed")
    assert "POST /convert" in answer["detail"]
