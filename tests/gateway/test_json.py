"""Python's JSON, with values such as NaN and lone surrogates, and answers of ComfyUI with an unexpected shape."""

from __future__ import annotations

import asyncio
import json
import math
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

from comfyui.engine import Engine, EngineOptions
from comfyui.retrying import Backoff
from tests.support.running import (
    RunningGateway,
    executions,
    invert_workflow,
    prompts_are_queued,
    queue_of,
    request_limits,
    running_gateway,
    server_options,
    sleep_workflow,
    until,
)
from tests.support.sse import events_of

DEEP = "[" * 300 + "]" * 300
ODD = f'{{"nan": [NaN, Infinity, -Infinity], "alone": "a\\ud800b", "big": 123456789012345678901234567890, "d": {DEEP}}}'


@asynccontextmanager
async def both(version: str = "0.38.0", **settings: Any) -> AsyncIterator[tuple[Engine, RunningGateway]]:
    options = EngineOptions(comfyui_version=version, step_seconds=0.001)
    async with Engine(options) as engine, running_gateway(engine.url, **settings) as gateway:
        yield engine, gateway


def wrong(route: str, *path: str | int, method: str = "GET", **config: Any) -> dict[str, Any]:
    return {"wrong_value": {"route": route, "method": method, "path": list(path), **config}}


async def prompts_are_running(engine: Engine) -> None:
    async with aiohttp.ClientSession() as http:
        while True:
            async with http.get(f"{engine.url}/queue") as response:
                if json.loads(await response.text())["queue_running"]:
                    return
            await asyncio.sleep(0.01)


async def in_engine(engine: Engine, path: str) -> Any:
    """Returns the answer of the engine, read by Python's own JSON parser."""
    async with aiohttp.ClientSession() as http, http.get(engine.url + path) as response:
        return json.loads(await response.text())


async def test_a_result_is_delivered_although_its_history_has_python_json() -> None:
    async with both() as (engine, gateway):
        await engine.set_faults(wrong("/history/*", "*", "outputs", "3", "odd", text=ODD))
        status, answer = await gateway.prompt_sync(invert_workflow())
    assert status == 200
    odd = answer["outputs"]["3"]["odd"]
    assert (odd["nan"], odd["alone"]) == ([None, None, None], "a\ufffdb")
    assert odd["big"] == 123456789012345678901234567890
    assert answer["images"][0]["filename"].startswith("test_")


@pytest.mark.parametrize(
    "fault",
    [
        {"raw": "<html>bad gateway</html>"},
        {"raw": ""},
        {"raw": "[" * 100_000},
        {"value": None},
        {"value": []},
        {"path": ["*"], "value": None},
        {"path": ["*"], "value": "x"},
        {"path": ["*", "outputs"], "value": 5},
        {"path": ["*", "outputs"], "value": []},
        {"path": ["*", "status"], "value": "ok"},
    ],
    ids=str,
)
async def test_an_unreadable_history_ends_the_wait_at_once(fault: dict[str, Any]) -> None:
    async with both() as (engine, gateway):
        await engine.set_faults({"wrong_value": {"route": "/history/*", **fault}})
        async with asyncio.timeout(30):
            status, answer = await gateway.prompt_sync(invert_workflow(), timeout=60)
    assert (status, answer["type"]) == (502, "server_error")
    assert "GET /history/" in answer["detail"]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("status",), None),
        (("status", "messages"), "abc"),
        (("status", "messages"), 5),
        (("status", "messages"), [[], [[]], [["a"], 1], [{"x": 1}, 2], 7, ["execution_cached", 5]]),
        (("status", "messages"), [["execution_cached", {"nodes": [[], {}]}], ["x", {"timestamp": "now"}]]),
        (("outputs", "3"), None),
        (("outputs", "3", "images"), 5),
        (("outputs", "3", "images"), ["x", None, 5, [], {"filename": 5}]),
        (("outputs", "3", "images"), [{"filename": "a\ud800.png", "subfolder": 5, "type": 7}]),
        (("outputs", "9" * 5000), {"images": []}),
        (("prompt",), 5),
        (("prompt", 4), 5),
        (("prompt", 3), []),
        (("meta",), 5),
    ],
    ids=str,
)
async def test_odd_values_in_optional_parts_of_a_history_do_no_harm(path: tuple[str | int, ...], value: Any) -> None:
    async with both() as (engine, gateway):
        await engine.set_faults(wrong("/history/*", "*", *path, text=json.dumps(value)))
        status, answer = await gateway.prompt_sync(invert_workflow(), timeout=20, return_image_base64=True)
    assert status == 200, answer


@pytest.mark.parametrize("data", [None, "boom", [], {"node_id": [1], "node_type": {}, "traceback": 5}])
async def test_an_execution_error_of_any_shape_fails_the_task(data: Any) -> None:
    async with both() as (engine, gateway):
        messages = {"status_str": "error", "messages": [["execution_error", data]]}
        await engine.set_faults(wrong("/history/*", "*", "status", value=messages))
        status, answer = await gateway.prompt_sync(invert_workflow(), timeout=20)
    assert (status, answer["type"]) == (500, "task_failed")


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"number": "one"}, 200),
        ({"prompt_id": 5}, 200),
        ({"node_errors": {"9": {"errors": [5, None, "x", {}]}, "8": {"errors": 5}, "7": None}}, 200),
        ({"node_errors": "x"}, 200),
    ],
    ids=str,
)
async def test_odd_values_in_the_reply_to_a_submission_do_no_harm(body: dict[str, Any], status: int) -> None:
    async with both() as (engine, gateway):
        for name, value in body.items():
            await engine.set_faults(wrong("/prompt", name, method="POST", value=value))
        assert (await gateway.prompt_sync(invert_workflow(), timeout=20))[0] == status


@pytest.mark.parametrize("version", ["0.3.64", "0.38.0"])
async def test_node_definitions_with_infinities_and_surrogates_do_no_harm(version: str) -> None:
    async with both(version) as (engine, gateway):
        bounds = {"required": {"f": ["FLOAT", {"default": math.nan, "min": -math.inf, "max": math.inf}]}}
        odd = {"input": bounds, "output": ["\udcff"], "display_name": "\ud800"}
        await engine.set_faults(wrong("/object_info", "Odd", text=json.dumps(odd)))
        async with gateway.http.post("/validate", json=invert_workflow()) as response:
            assert (await response.json())["valid"] is True
        ui = {"nodes": [{"id": 1, "type": "EmptyImage", "widgets_values": [8, 8, 1, 255]}], "links": []}
        async with gateway.http.post("/convert", json=ui) as response:
            assert response.status == 200
        workflow = {
            "1": {"class_type": "LoadImage", "inputs": {"image": "photo.png"}},
            "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "x"}},
        }
        assert (await gateway.prompt_sync(workflow, images=[{"name": "photo.png", "image": PIXEL}]))[0] == 200


PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR4nGP4z8DwHwAFAAH/iZk9HQAAAABJRU5ErkJggg=="

WRONG_DEFINITIONS = [
    ((), 5),
    ((), []),
    (("input",), 5),
    (("input", "required"), []),
    (("input", "required", "images"), 5),
    (("input", "required", "images"), []),
    (("input", "required", "images"), ["IMAGE", "x"]),
    (("input", "required", "filename_prefix"), [[1, None, [], {}]]),
    (("input_order",), 5),
    (("input_order", "required"), [[], "images"]),
    (("output",), 5),
    (("display_name",), []),
    (("python_module",), {}),
]


@pytest.mark.parametrize(("path", "value"), WRONG_DEFINITIONS, ids=str)
async def test_a_malformed_node_definition_causes_no_internal_error(path: tuple[str, ...], value: Any) -> None:
    async with both() as (engine, gateway):
        await engine.set_faults(wrong("/object_info", "SaveImage", *path, value=value))
        async with gateway.http.post("/validate", json=invert_workflow()) as response:
            assert response.status == 200
        workflow = {**invert_workflow(), "9": {"class_type": "NotThere", "inputs": {}}}
        async with gateway.http.post("/validate", json=workflow) as response:
            assert response.status == 200
        link = [[1, 1, 0, 2, 0, "IMAGE"]]
        nodes = [
            {"id": 1, "type": "EmptyImage", "outputs": [{"name": "IMAGE", "type": "IMAGE", "links": [1]}]},
            {"id": 2, "type": "SaveImage", "inputs": [{"name": "images", "type": "IMAGE", "link": 1}]},
        ]
        async with gateway.http.post("/convert", json={"nodes": nodes, "links": link}) as response:
            assert response.status in {200, 400}


async def test_unreadable_node_definitions_are_reported_with_the_reason() -> None:
    async with both() as (engine, gateway):
        await engine.set_faults({"wrong_value": {"route": "/object_info", "raw": "<html>"}})
        async with gateway.http.post("/validate", json=invert_workflow()) as response:
            answer = await response.json()
    assert (response.status, answer["type"]) == (502, "server_error")
    assert "GET /object_info: the answer is not JSON" in answer["detail"]


@pytest.mark.parametrize("version", ["0.3.64", "0.38.0"])
async def test_a_queue_with_python_json_hides_no_prompt(version: str) -> None:
    async with both(version) as (engine, gateway):
        odd = sleep_workflow(60)
        odd["1"]["is_changed"] = [math.nan]
        odd["1"]["inputs"]["note"] = "\ud800"
        blocker, waiting = str(uuid.uuid4()), str(uuid.uuid4())
        async with gateway.http.post("/prompt", data=json.dumps({"prompt": odd, "prompt_id": blocker})) as response:
            assert response.status == 200
        mine = asyncio.create_task(gateway.prompt_sync(invert_workflow(7), prompt_id=waiting))
        await prompts_are_queued(engine, 2)
        async with gateway.http.get(f"/prompt_sync/{uuid.uuid4()}") as response:
            assert response.status == 404
        async with gateway.http.delete(f"/prompt_sync/{waiting}") as response:
            assert response.status == 200
        assert (await mine)[0] == 409
        async with gateway.http.delete(f"/prompt_sync/{blocker}") as response:
            assert response.status == 200


async def test_malformed_queue_items_are_skipped() -> None:
    async with both("0.3.64") as (engine, gateway):
        await engine.set_faults(wrong("/queue", "queue_pending", value=[5, [], [1], [1, 2], ["x", "y"], {"a": 1}]))
        running = asyncio.create_task(gateway.prompt_sync(sleep_workflow(60), prompt_id=str(uuid.uuid4())))
        await prompts_are_running(engine)
        async with gateway.http.get(f"/prompt_sync/{uuid.uuid4()}") as response:
            assert response.status == 404
        running.cancel()


async def test_a_body_with_python_json_reaches_comfyui_unchanged() -> None:
    async with both() as (engine, gateway):
        workflow = invert_workflow()
        workflow["1"]["is_changed"] = [math.nan]
        workflow["1"]["inputs"] |= {"note": "\ud800", "more": [math.inf, -math.inf, 2**80, -(2**63) - 1]}
        prompt_id = str(uuid.uuid4())
        body = json.dumps({"prompt": workflow, "prompt_id": prompt_id, "extra_data": {"nan": math.nan}})
        for _ in range(2):  # the second request joins the first run
            async with gateway.http.post("/prompt_sync", data=body) as response:
                assert response.status == 200, await response.text()
        _, _, prompt, extra_data, _ = (await in_engine(engine, f"/history/{prompt_id}"))[prompt_id]["prompt"]
    assert repr(prompt["1"]["is_changed"]) == "[nan]"
    assert repr(extra_data["nan"]) == "nan"
    assert prompt["1"]["inputs"]["note"] == "\ud800"
    assert prompt["1"]["inputs"]["more"] == [math.inf, -math.inf, 2**80, -(2**63) - 1]


def deep_extra_data(levels: int) -> str:
    """Returns a body with this number of levels, which include the body itself and `extra_data`."""
    deep = '{"a": ' * (levels - 1) + "1" + "}" * (levels - 1)
    return f'{{"prompt": {json.dumps(invert_workflow())}, "prompt_id": "{uuid.uuid4()}", "extra_data": {deep}}}'


@pytest.mark.parametrize("levels", [300, 449])
async def test_deeply_nested_extra_data_reaches_comfyui(levels: int) -> None:
    async with both() as (_, gateway), gateway.http.post("/prompt_sync", data=deep_extra_data(levels)) as response:
        assert response.status == 200, await response.text()


async def test_a_prompt_that_would_kill_the_prompt_worker_is_refused() -> None:
    async with both() as (_, gateway):
        async with gateway.http.post("/prompt_sync", data=deep_extra_data(600)) as response:
            answer = await response.json()
        assert (response.status, answer["type"]) == (400, "validation_failed")
        assert "more than 450 levels deep" in answer["detail"]
        assert (await gateway.prompt_sync(invert_workflow()))[0] == 200


async def test_the_prompt_thread_of_the_engine_dies_on_a_prompt_it_cannot_copy() -> None:
    async with Engine(EngineOptions()) as engine, aiohttp.ClientSession(engine.url) as http:
        async with http.post("/prompt", data=deep_extra_data(600)) as response:
            assert response.status == 200
        await until(lambda: queue_of(engine), lambda queue: queue == ([], []))
        async with http.post("/prompt", json={"prompt": invert_workflow()}) as response:
            prompt_id = (await response.json())["prompt_id"]
        assert await queue_of(engine) == ([], [prompt_id])
        assert not executions(engine)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            '{"prompt": {}, "extra_data": ' + '{"a": ' * 100_000 + "1" + "}" * 100_001,
            "more than 900 levels deep",
        ),
        ('{"prompt": {}, "number": ' + "9" * 5000 + "}", "4300 digits"),
    ],
    ids=["depth", "digits"],
)
@pytest.mark.parametrize("path", ["/prompt_sync", "/validate", "/convert"])
async def test_an_unreadable_body_gets_400_with_the_reason(text: str, says: str, path: str) -> None:
    async with both() as (_, gateway), gateway.http.post(path, data=text) as response:
        answer = await response.json()
    assert response.status == 400
    assert says in answer["detail"]


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999", "9" * 4000])
async def test_the_error_names_a_number_that_is_not_finite_or_too_large(number: str) -> None:
    text = f'{{"prompt": {json.dumps(invert_workflow())}, "number": {number}}}'
    async with both() as (_, gateway), gateway.http.post("/prompt_sync", data=text) as response:
        answer = await response.json()
    assert (response.status, answer["type"]) == (422, "invalid_request")
    assert answer["detail"].startswith("number: ")


async def test_an_invalid_number_in_a_form_is_refused_as_in_a_body() -> None:
    data = {"workflow": json.dumps(invert_workflow()), "number": "nan"}
    async with both() as (_, gateway):
        form = aiohttp.FormData(data)
        form.add_field("images", b"1", filename="a.bin")
        async with gateway.http.post("/prompt_sync", data=form) as response:
            answer = await response.json()
    assert (response.status, answer["detail"][:8]) == (422, "number: ")


async def test_a_node_id_with_thousands_of_digits_works() -> None:
    workflow = invert_workflow()
    long = "7" * 3900
    workflow[long] = workflow.pop("3")
    async with both(changed=request_limits(max_name_length=4000)) as (_, gateway):
        async with gateway.http.post("/validate", json=workflow) as response:
            assert (await response.json())["valid"] is True
        status, answer = await gateway.prompt_sync(workflow)
    assert status == 200
    assert answer["images"][0]["node_id"] == long


async def test_malformed_events_do_not_stop_the_watcher() -> None:
    async with both(changed=server_options(tick_s=0.1)) as (engine, gateway):
        for path, text in (
            (("data", "prompt_id"), "[]"),
            (("data", "prompt_id"), "{}"),
            (("data",), "5"),
            (("type",), "[]"),
            (("data", "nodes"), "5"),
            (("data", "status"), '{"exec_info": {"queue_remaining": Infinity}}'),
            (("data", "node"), "{}"),
            (("data", "value"), "NaN"),
            ((), "[NaN]"),
        ):
            await engine.set_faults({"ws_wrong_value": {"path": list(path), "text": text}})
            status, _ = await gateway.prompt_sync(sleep_workflow(0.02, tag=hash(text) % 1000), timeout=30)
            assert status == 200, (path, text)
        assert gateway.handler.pool.backends[0].watcher.crashed is None


async def test_an_event_with_python_json_reaches_an_event_stream() -> None:
    async with both() as (engine, gateway):
        await engine.set_faults({"ws_wrong_value": {"type": "progress", "path": ["data", "odd"], "text": ODD}})
        headers = {"Accept": "text/event-stream"}
        body = {"prompt": sleep_workflow(0.05)}
        async with gateway.http.post("/prompt_sync", json=body, headers=headers) as response:
            events = [event async for event in events_of(response)]
    assert [event.name for event in events][-1] == "result"
    assert any(event.name == "progress" for event in events)


async def test_a_history_that_always_fails_with_500_ends_the_wait() -> None:
    """ComfyUI answers 500 every time, because a custom node's output is nested too deeply to be copied."""
    async with both(changed=server_options(history_backoff=Backoff(0.02, 0.02))) as (engine, gateway):
        await engine.set_faults({"status": {"route": "/history/*", "status": 500, "body": "500 Internal Server Error"}})
        status, answer = await gateway.prompt_sync(invert_workflow(), timeout=60)
        assert (status, answer["type"]) == (502, "server_error")
        assert answer["detail"].startswith("the prompt is done, but ComfyUI cannot show its result: GET /history/")


async def test_a_few_answers_with_500_do_not_end_the_wait() -> None:
    async with both(changed=server_options(history_backoff=Backoff(0.02, 0.02))) as (engine, gateway):
        await engine.set_faults({"status": {"route": "/history/*", "status": 500, "times": 7}})
        assert (await gateway.prompt_sync(invert_workflow(), timeout=60))[0] == 200
