"""`/openapi.json` describes every answer.

Every answer that any test gets through `RunningGateway.http` is checked against it, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import jsonschema_rs
import pytest
from fastapi.routing import iter_route_contexts

from comfyui.engine import Engine
from comfyui.exceptions import ComfyUIError
from comfyui.web.front.openapi import operation
from config import Settings
from server import create_app
from tests.support.described import Description, Document
from tests.support.jobs import ASYNC
from tests.support.running import invert_workflow, running_gateway, sleep_workflow

JOB = "0b1c0000-0000-4000-8000-00000000000a"


def operations(document: Document) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every operation with its name, such as ``GET /health``."""
    for path, methods in document["paths"].items():
        for method, described in methods.items():
            yield f"{method.upper()} {path}", described


def test_every_route_is_described_except_the_document_and_its_page(document: Document) -> None:
    """The routes of Comfy API v2 (which `tests.support.v2_contract` checks), of OpenAI's API and of the console
    are not in it, either."""
    routes = {
        f"{method} {route.path_format}"
        for route in iter_route_contexts(create_app(Settings()).routes)
        if not (route.path_format or "").startswith(("/api/v2/", "/v1/", "/console"))
        for method in route.methods or ()
    }
    assert routes - {name for name, _ in operations(document)} == {
        "GET /docs",
        "GET /openapi.json",
        "HEAD /openapi.json",
    }


def test_every_error_has_the_same_body(document: Document) -> None:
    error = {"$ref": "#/components/schemas/ErrorBody"}
    for name, described in operations(document):
        for status, response in described["responses"].items():
            if status[0] in "45":
                schema = response["content"]["application/json"]["schema"]
                assert error in schema.get("anyOf", [schema]), (name, status)
    assert not [schema for schema in document["components"]["schemas"] if "HTTPValidation" in schema]


def test_a_status_that_never_occurs_is_not_described(document: Document) -> None:
    statuses = {name: set(described["responses"]) for name, described in operations(document)}
    assert {"200", "400", "403", "404", "406", "409", "413", "415", "422", "429", "502", "503", "504"} <= statuses[
        "POST /prompt_sync"
    ]
    assert "415" not in statuses["GET /prompt_sync/{prompt_id}"]
    assert not statuses["GET /health"] & {"401", "403", "404", "413", "422", "502"}
    assert not any("401" in found for found in statuses.values()), "no key is asked for"


def test_the_document_has_security_schemes_if_keys_are_set() -> None:
    document = create_app(Settings.model_validate({"api_keys": "first,second"})).openapi()
    assert set(document["components"]["securitySchemes"]) == {"bearer", "header", "basic", "session"}
    for name, described in operations(document):
        is_probe = name.startswith("GET /health")
        assert {"bearer": []} in described["security"]
        assert ({} in described["security"]) is is_probe
        assert ("401" in described["responses"]) is not is_probe
        assert "429" in described["responses"]
    assert "securitySchemes" not in create_app(Settings()).openapi()["components"]


def test_a_new_error_class_appears_in_the_document() -> None:
    class TeapotError(ComfyUIError):
        code: ClassVar[str] = "teapot"
        status: ClassVar[int] = 418

    assert "`teapot`" in operation("brew", {}, [ComfyUIError])["responses"]["418"]["description"]
    assert "418" not in operation("brew", {}, [])["responses"]


def test_the_document_says_that_execution_time_includes_the_queue(document: Document) -> None:
    answer = document["components"]["schemas"]["PromptAnswer"]
    assert "queue included" in answer["properties"]["execution_time"]["description"]


def test_the_examples_of_jobs_fit_their_schemas(document: Document) -> None:
    schemas = document["components"]["schemas"]
    for name in ("PendingJob", "ListedJob"):
        validator = jsonschema_rs.Draft202012Validator({**schemas[name], "components": {"schemas": schemas}})
        for example in schemas[name]["examples"]:
            validator.validate(example)


def test_the_query_describes_how_labels_are_written(document: Document) -> None:
    [labels] = [
        parameter
        for parameter in document["paths"]["/prompt_sync"]["get"]["parameters"]
        if parameter["name"] == "labels"
    ]
    assert (labels["in"], labels["style"], labels["explode"]) == ("query", "form", True)
    validator = jsonschema_rs.Draft202012Validator(labels["schema"])
    assert validator.is_valid({"label.order": "1234"})
    assert not validator.is_valid({"order": "1234"})
    assert not validator.is_valid({"label.order": 1234})
    assert all(validator.is_valid(example) for example in labels["schema"]["examples"])


async def test_an_answer_that_is_not_described_fails_a_test(document: Document) -> None:
    description = Description(document)
    with pytest.raises(AssertionError, match="418 is not among 200"):
        description.response("GET", "/health", 418)
    response = description.response("GET", "/health/live", 200)
    assert response is not None
    description.check(response, b'{"status":"alive"}')
    for wrong in (b'{"status":"alive","more":1}', b'{"status":"dead"}', b"{}"):
        with pytest.raises(AssertionError):
            description.check(response, wrong)
    assert description.response("GET", "/view", 418) is None


async def test_answers_of_every_kind_match_the_document(engine: Engine) -> None:
    """`gateway.http` checks status, media type and JSON of each answer; this test causes the rare ones."""
    bad_node = {"1": {"class_type": "NoSuchNode", "inputs": {}}}
    asked: list[tuple[int, str, str, dict[str, Any]]] = [
        (200, "POST", "/prompt_sync", {"json": {"prompt": invert_workflow(), "return_image_base64": True}}),
        (200, "POST", "/prompt_sync", {"json": {"prompt": invert_workflow()}, "headers": {"Accept": "image/*"}}),
        (
            200,
            "POST",
            "/prompt_sync",
            {"json": {"prompt": invert_workflow()}, "headers": {"Accept": "application/zip"}},
        ),
        (
            200,
            "POST",
            "/prompt_sync",
            {"json": {"prompt": invert_workflow()}, "headers": {"Accept": "text/event-stream"}},
        ),
        (400, "POST", "/prompt_sync", {"json": {"prompt": bad_node}}),
        (400, "POST", "/prompt_sync?tiemout=3", {"json": {"prompt": invert_workflow()}}),
        (404, "GET", "/prompt_sync/0b1c0000-0000-4000-8000-000000000000", {}),
        (404, "DELETE", "/prompt_sync/0b1c0000-0000-4000-8000-000000000000", {}),
        (406, "POST", "/prompt_sync", {"json": {"prompt": invert_workflow()}, "headers": {"Accept": "text/html"}}),
        (413, "POST", "/prompt_sync", {"data": b" " * 200_000}),
        (415, "POST", "/prompt_sync", {"data": b"{}", "headers": {"Content-Encoding": "br"}}),
        (422, "GET", "/prompt_sync/not-an-id", {}),
        (422, "POST", "/prompt_sync", {"json": {"prompt": invert_workflow(), "colour": "red"}}),
        (504, "POST", "/prompt_sync?timeout=0.2", {"json": {"prompt": sleep_workflow(3)}}),
        (202, "POST", "/prompt_sync", {"json": {"prompt": sleep_workflow(20), "prompt_id": JOB}, "headers": ASYNC}),
        (202, "POST", "/prompt_sync?prefer=respond-async,wait%3D0.1", {"json": {"prompt": sleep_workflow(3, tag=1)}}),
        (202, "GET", f"/prompt_sync/{JOB}?timeout=0", {}),
        (202, "GET", f"/prompt_sync/{JOB}", {"headers": {"Prefer": "respond-async, wait=0.5"}}),
        (409, "POST", "/prompt_sync", {"json": {"prompt": invert_workflow(), "prompt_id": JOB}, "headers": ASYNC}),
        (200, "DELETE", f"/prompt_sync/{JOB}", {}),
        (409, "GET", f"/prompt_sync/{JOB}?timeout=0", {}),
        (200, "POST", "/prompt_sync?prefer=respond-async,wait%3D20", {"json": {"prompt": invert_workflow(5)}}),
        (
            422,
            "POST",
            "/prompt_sync",
            {"json": {"prompt": invert_workflow()}, "headers": {"Prefer": "respond-async, wait"}},
        ),
        (200, "GET", "/prompt_sync?status=canceled,succeeded&label.a=&limit=1", {}),
        (200, "GET", "/prompt_sync?limit=1", {}),
        (400, "GET", "/prompt_sync?cursor=abc", {}),
        (422, "GET", "/prompt_sync?limit=0", {}),
        (200, "POST", "/validate", {"json": bad_node}),
        (422, "POST", "/validate", {"json": []}),
        (200, "POST", "/prompt", {"json": {"prompt": invert_workflow(7)}}),
        (400, "POST", "/prompt", {"json": {"prompt": bad_node}}),
        (500, "POST", "/prompt", {"data": b"not JSON"}),
        (422, "POST", "/convert", {"json": {"prompt": invert_workflow()}}),
        (404, "POST", "/tickets", {"json": {"url": "/view"}}),
        (200, "GET", "/metrics", {}),
        (200, "GET", "/health", {}),
    ]
    async with running_gateway(engine.url, max_request_body_mb=0.1) as gateway:
        for expected, method, path, options in asked:
            async with gateway.http.request(method, path, **options) as response:
                await response.read()
                assert response.status == expected, (method, path, await response.text())


async def test_answers_without_a_comfyui_match_the_document() -> None:
    async with running_gateway("127.0.0.1:9", ready=False) as gateway:
        for method, path, options in (
            ("POST", "/prompt_sync", {"json": {"prompt": invert_workflow()}}),
            ("POST", "/validate", {"json": invert_workflow()}),
            ("POST", "/prompt", {"json": {"prompt": invert_workflow()}}),
            ("GET", "/health", {}),
            ("GET", "/health/ready", {}),
        ):
            async with gateway.http.request(method, path, **options) as response:
                await response.read()
                assert response.status == 503, path


async def test_answers_of_a_gateway_with_keys_match_the_document(engine: Engine) -> None:
    async with running_gateway(engine.url, api_keys=("a key",)) as gateway:
        key = {"Authorization": "Bearer a key"}
        browser = {"Accept": "text/html"}
        for expected, method, path, options in (
            (401, "POST", "/prompt_sync", {"json": {"prompt": invert_workflow()}}),
            (401, "GET", "/metrics", {}),
            (303, "GET", "/metrics", {"headers": browser, "allow_redirects": False}),
            (200, "GET", "/health", {}),
            (200, "GET", "/health", {"headers": key}),
            (200, "POST", "/tickets", {"json": {"url": "/view?filename=a.png"}, "headers": key}),
        ):
            async with gateway.http.request(method, path, **options) as response:
                await response.read()
                assert response.status == expected, (method, path)
