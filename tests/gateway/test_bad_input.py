"""Every refusal of bad input has the same body, which names the field and the remedy (docs/api.md)."""

from __future__ import annotations

import re
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest

from comfyui.engine import Engine
from comfyui.models import PromptRequest
from tests.support.running import RunningGateway, invert_workflow, running_gateway

ERROR_FIELDS = {"error", "type", "detail", "prompt_id", "node_errors", "timestamp", "request_id"}


def assert_error(status: int, body: Any, *, expected: int, type_: str, says: str) -> None:
    assert status == expected, body
    assert set(body) == ERROR_FIELDS
    assert body["type"] == type_
    assert re.search(says, body["detail"]), body["detail"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", body["timestamp"])
    assert body["request_id"]


@pytest.mark.parametrize("content_type", ["application/json", "text/plain", "application/x-www-form-urlencoded"])
async def test_a_body_that_is_not_json_is_refused(gateway: RunningGateway, content_type: str) -> None:
    headers = {"Content-Type": content_type}
    async with gateway.http.post("/prompt_sync", data=b'{"prompt":', headers=headers) as response:
        assert_error(
            response.status, await response.json(), expected=422, type_="invalid_request", says="not JSON.*line 1"
        )


async def test_json_is_read_under_any_content_type(gateway: RunningGateway) -> None:
    async with gateway.http.post("/prompt_sync", data=b'{"prompt": {}}') as response:
        assert (await response.json())["type"] == "validation_failed"


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ([1], "not a JSON object"),
        ({}, "prompt: Field required"),
        ({"prompt": None}, "prompt: "),
        ({"prompt": [1]}, "prompt: "),
        ({"prompt": {"1": {}}, "promt": 1}, r"promt: there is no such field; did you mean prompt\?"),
        ({"prompt": {"1": {}}, "prompt_id": "x"}, "prompt_id: .*UUID"),
        ({"prompt": {"1": {}}, "images": [{"name": "a.png"}]}, r"images\[0\]\.image: Field required"),
        ({"prompt": {"1": {}}, "images": [{"name": "../a.png", "image": "aa"}]}, r"images\[0\]\.name: .*plain file"),
        ({"prompt": {"1": {}}, "images": [{"name": "a", "image": "a", "subfolder": "../x"}]}, r"subfolder: .*relative"),
        ({"prompt": {"1": {}}, "number": "soon"}, "number: "),
    ],
)
async def test_the_error_names_the_invalid_field(gateway: RunningGateway, body: Any, says: str) -> None:
    async with gateway.http.post("/prompt_sync", json=body) as response:
        assert_error(response.status, await response.json(), expected=422, type_="invalid_request", says=says)


async def test_an_empty_prompt_is_refused(gateway: RunningGateway) -> None:
    status, body = await gateway.prompt_sync({})
    assert_error(status, body, expected=400, type_="validation_failed", says="empty")


async def test_the_error_says_that_a_workflow_is_in_ui_format(gateway: RunningGateway) -> None:
    status, body = await gateway.prompt_sync({"nodes": [], "links": [], "version": 0.4})
    assert_error(status, body, expected=400, type_="validation_failed", says=r"UI-format.*Export \(API\)")


@pytest.mark.parametrize(
    ("timeout", "says"),
    [
        ("0", "greater than 0"),
        ("-1", "greater than 0"),
        ("soon", "number"),
        ("3601", "MAX_TIMEOUT"),
        ("nan", "timeout"),
    ],
)
async def test_an_invalid_timeout_is_refused(gateway: RunningGateway, timeout: str, says: str) -> None:
    url = f"/prompt_sync?timeout={timeout}"
    async with gateway.http.post(url, json={"prompt": invert_workflow()}) as response:
        assert_error(response.status, await response.json(), expected=422, type_="invalid_request", says=says)


async def test_validation_errors_of_comfyui_are_listed_by_node(gateway: RunningGateway) -> None:
    workflow = invert_workflow()
    workflow["1"]["inputs"]["width"] = 0
    status, body = await gateway.prompt_sync(workflow)
    assert_error(status, body, expected=400, type_="validation_failed", says="failed validation")
    assert list(body["node_errors"]) == ["1"]
    assert "Value 0 smaller than min" in body["node_errors"]["1"][0]


async def test_an_exception_in_a_node_is_reported_without_a_traceback(gateway: RunningGateway, engine: Engine) -> None:
    await engine.set_faults({"node_error": {"class_type": "ImageInvert", "message": "no such luck"}})
    status, body = await gateway.prompt_sync(invert_workflow())
    assert_error(
        status, body, expected=500, type_="task_failed", says=r"^ImageInvert \(node 2\): RuntimeError: no such luck"
    )
    assert body["node_errors"] == {"2": ["RuntimeError: no such luck"]}
    assert body["prompt_id"]
    assert "Traceback" not in str(body)


async def test_a_missing_output_file_leaves_the_other_files_in_the_result(
    gateway: RunningGateway, engine: Engine
) -> None:
    workflow = invert_workflow()
    workflow["5"] = {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "other"}}
    await engine.set_faults({"output_deleted": {"match": "test_*"}})
    status, body = await gateway.prompt_sync(workflow, return_image_base64=True)
    assert status == 200
    gone, there = body["images"]
    assert "base64" not in gone
    assert "test_00001_.png" in gone["error"]
    assert there["base64"]
    assert "error" not in there


async def test_a_truncated_output_file_is_reported_in_its_entry(gateway: RunningGateway, engine: Engine) -> None:
    await engine.set_faults({"view_cut": {}})
    status, body = await gateway.prompt_sync(invert_workflow(), return_image_base64=True)
    assert status == 200
    assert "base64" not in body["images"][0]
    assert "cut off" in body["images"][0]["error"]


async def test_a_body_over_the_limit_is_refused_by_its_content_length(small_bodies: RunningGateway) -> None:
    async with small_bodies.http.post("/prompt_sync", data=b"x" * 20_000) as response:
        assert_error(
            response.status, await response.json(), expected=413, type_="body_too_large", says="MAX_REQUEST_BODY_MB"
        )


async def test_a_body_over_the_limit_is_refused_without_a_content_length(small_bodies: RunningGateway) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b"x" * 1000

    async with small_bodies.http.post("/prompt_sync", data=chunks()) as response:
        assert_error(
            response.status, await response.json(), expected=413, type_="body_too_large", says="MAX_REQUEST_BODY_MB"
        )


@pytest.mark.parametrize(
    ("method", "path", "expected", "type_"),
    [
        ("PATCH", "/prompt_sync", 405, "method_not_allowed"),
        ("GET", "/prompt_sync/not-a-uuid", 422, "invalid_request"),
        ("GET", "/prompt_sync/0f0c1a2e-7d0b-5c39-9a36-0e3b6f0f8a11", 404, "not_found"),
        ("DELETE", "/prompt_sync/0f0c1a2e-7d0b-5c39-9a36-0e3b6f0f8a11", 404, "not_found"),
    ],
)
async def test_errors_of_the_web_framework_have_the_same_body(
    gateway: RunningGateway, method: str, path: str, expected: int, type_: str
) -> None:
    async with gateway.http.request(method, path) as response:
        assert_error(response.status, await response.json(), expected=expected, type_=type_, says=".")


async def test_the_request_id_of_the_caller_is_kept_unless_it_is_too_long(gateway: RunningGateway) -> None:
    async with gateway.http.get("/health/live", headers={"X-Request-ID": "order-4711"}) as response:
        assert response.headers["X-Request-ID"] == "order-4711"
    async with gateway.http.get("/health/live", headers={"X-Request-ID": "x" * 200}) as response:
        assert re.fullmatch("[0-9a-f]{32}", response.headers["X-Request-ID"])


async def test_without_a_reachable_comfyui_requests_and_readiness_get_503() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        async with running_gateway(address, ready=False) as gateway:
            async with gateway.http.post("/prompt_sync", json={"prompt": invert_workflow()}) as response:
                assert response.headers["Retry-After"]
                assert_error(
                    response.status, await response.json(), expected=503, type_="connection_failed", says=address
                )
            async with gateway.http.get("/health") as response:
                assert response.status == 503
                body = await response.json()
                assert body["status"] == "unhealthy"
                assert address in body["error"]
            async with gateway.http.get("/health/ready") as response:
                assert response.status == 503
            async with gateway.http.get("/health/live") as response:
                assert response.status == 200


async def test_an_optional_field_with_null_counts_as_absent(gateway: RunningGateway) -> None:
    """Many clients send null for a field that they do not set."""
    optional = [name for name, field in PromptRequest.model_fields.items() if not field.is_required()]
    status, body = await gateway.prompt_sync(invert_workflow(), **dict.fromkeys(optional))
    assert status == 200, body
    status, body = await gateway.prompt_sync(invert_workflow(), images=None, colour=None)
    assert (status, body["detail"]) == (422, "colour: there is no such field")
    async with gateway.http.post("/prompt_sync", json={"prompt": None}) as response:
        assert response.status == 422
        assert (await response.json())["detail"].startswith("prompt: ")
