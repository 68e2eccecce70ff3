"""Query and headers of the gateway's own endpoints: misspelt, repeated and empty parameters are refused by name."""

from __future__ import annotations

import json
from typing import Any

import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from comfyui.web.api.door import Door
from tests.support.relaying import Exchange, fetch, relayed
from tests.support.running import RunningGateway, invert_workflow

BODY = json.dumps({"prompt": invert_workflow()}).encode()
ATTACH = "/prompt_sync/7d0b5c39-0000-4000-8000-00000000000a"
IDEMPOTENCY = "Idempotency-Key"


async def call(gateway: RunningGateway, method: str, target: str, *headers: tuple[str, str]) -> tuple[int, Any]:
    data = BODY if method == "POST" else None
    async with gateway.http.request(method, target, data=data, headers=headers) as response:
        return response.status, await response.json()


@pytest.mark.parametrize(
    ("method", "target", "detail"),
    [
        ("POST", "/prompt_sync?tiemout=9", "tiemout: there is no such query parameter; did you mean timeout?"),
        ("POST", "/prompt_sync?Timeout=9", "Timeout: there is no such query parameter; did you mean timeout?"),
        (
            "POST",
            "/prompt_sync?timeout=9&node-id=3",
            "node-id: there is no such query parameter; did you mean node_id?",
        ),
        (
            "POST",
            "/prompt_sync?token=a",
            "token: there is no such query parameter; the parameters are timeout, node_id, previews",
        ),
        (
            "POST",
            "/prompt_sync?return_image_base64=true",
            "return_image_base64: there is no such query parameter; send it as a field of the body",
        ),
        (
            "POST",
            "/prompt_sync?a%0Ab=1",
            "'a\\nb': there is no such query parameter; the parameters are timeout, node_id, previews",
        ),
        ("POST", "/prompt_sync?timeout=1&timeout=2", "timeout: this parameter must be given only once"),
        ("GET", f"{ATTACH}?store=s3&bukcet=a", "bukcet: there is no such query parameter; did you mean bucket?"),
        ("GET", f"{ATTACH}?prompt_id=a", "prompt_id: there is no such query parameter; the parameters are"),
        ("GET", f"{ATTACH}?quality=1&quality=1", "quality: this parameter must be given only once"),
        (
            "DELETE",
            f"{ATTACH}?timeout=9",
            "timeout: there is no such query parameter; this endpoint has no query parameters",
        ),
        (
            "POST",
            "/validate?timeout=9",
            "timeout: there is no such query parameter; this endpoint has no query parameters",
        ),
        ("POST", "/convert?strict", "strict: there is no such query parameter; this endpoint has no query parameters"),
    ],
)
async def test_a_misspelt_or_repeated_query_parameter_is_refused_by_name(
    gateway: RunningGateway, method: str, target: str, detail: str
) -> None:
    status, body = await call(gateway, method, target)
    assert (status, body["type"]) == (400, "bad_request")
    assert body["detail"].startswith(detail)


@pytest.mark.parametrize(
    ("target", "detail"),
    [
        ("/prompt_sync?timeout=", "timeout must not be empty; give a value, or leave timeout out"),
        ("/prompt_sync?previews", "previews must not be empty; give a value, or leave previews out"),
        ("/prompt_sync?previews=perhaps", "previews: Input should be a valid boolean"),
        (f"/prompt_sync?node_id={'9' * 257}", "node_id: String should have at most 256 characters"),
    ],
)
async def test_an_unusable_value_is_refused_by_name(gateway: RunningGateway, target: str, detail: str) -> None:
    status, body = await call(gateway, "POST", target)
    assert (status, body["type"]) == (422, "invalid_request")
    assert body["detail"].startswith(detail)


async def test_the_error_of_a_query_with_many_parameters_is_short(gateway: RunningGateway) -> None:
    status, body = await call(gateway, "POST", "/prompt_sync?" + "&".join(f"name{n}=1" for n in range(50)))
    assert (status, body["detail"].count(";"), body["detail"][-13:]) == (400, 6, "; and 47 more")
    status, body = await call(gateway, "POST", "/prompt_sync?" + "a=1&" * 5_000)
    assert (status, body["detail"]) == (400, "the query has more than 100 parameters")
    status, body = await call(gateway, "POST", f"/prompt_sync?{'x' * 50_000}=1")
    assert status == 400
    assert len(body["detail"]) < 200


async def test_a_query_is_refused_before_the_body_is_read(gateway: RunningGateway) -> None:
    async with gateway.http.post("/prompt_sync?tiemout=9", data=b"no JSON") as response:
        assert "tiemout" in (await response.json())["detail"]


@pytest.mark.parametrize(
    ("keys", "status", "detail"),
    [
        (["a", "b"], 400, "Idempotency-Key: this header must be given only once"),
        ([""], 422, "Idempotency-Key: String should have at least 1 character"),
        (["k" * 256], 422, "Idempotency-Key: String should have at most 255 characters"),
    ],
)
async def test_an_unusable_idempotency_key_is_refused_by_name(
    gateway: RunningGateway, keys: list[str], status: int, detail: str
) -> None:
    found, body = await call(gateway, "POST", "/prompt_sync", *((IDEMPOTENCY, key) for key in keys))
    assert (found, body["detail"]) == (status, detail)


async def _queued(exchange: Exchange) -> None:
    await exchange.body()
    body = b'{"prompt_id": "a", "number": 1, "node_errors": {}}'
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    await exchange.send(head % len(body) + body)


@pytest.mark.parametrize("path", ["/prompt", "/api/prompt", "/queue", "/view", "/history/a"])
async def test_queries_of_comfyuis_own_paths_are_not_checked(path: str) -> None:
    method = "POST" if path.endswith("prompt") else "GET"
    async with relayed(_queued) as (comfyui, gateway):
        answer = await fetch(gateway, f"{path}?tiemout=1&tiemout=2&x", method=method, data=BODY)
        assert answer.status == 200
    assert any(exchange.line.startswith(f"{method} ") for exchange in comfyui.seen)


@pytest.mark.parametrize("path", ["/health", "/health/live", "/health/ready", "/metrics", "/openapi.json", "/docs"])
async def test_other_endpoints_ignore_unknown_query_parameters(gateway: RunningGateway, path: str) -> None:
    async with gateway.http.get(f"{path}?_=123&_=4") as response:
        assert response.status == 200


CALLS = [
    ("POST", "/prompt_sync"),
    ("POST", "/prompt_sync?timeout=9.5&node_id=3&previews=true"),
    ("POST", "/prompt_sync?timeout=-1"),
    ("POST", "/prompt_sync?tiemout=1"),
    ("PATCH", "/prompt_sync"),
    ("GET", "/prompt_sync/"),
    ("GET", "/prompt_sync/a/b"),
    ("GET", "/prompt_sync/no-uuid"),
    ("GET", ATTACH),
    ("GET", f"{ATTACH}?store=s3"),
    ("HEAD", ATTACH),
    ("DELETE", ATTACH),
    ("POST", "/prompt"),
    ("POST", "/api/prompt?tiemout=1"),
]


async def test_without_the_door_fastapi_gives_the_same_answers(
    gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answers_of(status: int, body: Any) -> Any:
        changing = {"timestamp", "request_id", "prompt_id", "execution_time", "timings", "outputs", "images", "number"}
        return status, {name: value for name, value in body.items() if name not in changing}

    async def answers() -> list[Any]:
        found = []
        for method, target in CALLS:
            data = BODY if method == "POST" else None
            async with gateway.http.request(method, target, data=data) as response:
                body = json.loads(await response.read() or b"{}")
                found.append((answers_of(response.status, body), response.headers.get("Allow")))
        return found

    async def past(door: Door, scope: Scope, receive: Receive, send: Send) -> None:
        app: ASGIApp = door._app
        await app(scope, receive, send)

    direct = await answers()
    monkeypatch.setattr(Door, "__call__", past)
    assert await answers() == direct


async def test_openapi_describes_the_parameters(gateway: RunningGateway) -> None:
    async with gateway.http.get("/openapi.json") as response:
        paths = (await response.json())["paths"]

    def named(path: str, method: str) -> dict[str, Any]:
        return {parameter["name"]: parameter for parameter in paths[path][method]["parameters"]}

    posted = named("/prompt_sync", "post")
    assert set(posted) == {"timeout", "node_id", "previews", "prefer", "Prefer", IDEMPOTENCY, "X-Request-ID"}
    assert posted["timeout"]["schema"] == {"type": "number", "exclusiveMinimum": 0}
    assert (posted["timeout"]["in"], posted["timeout"]["required"]) == ("query", False)
    assert posted[IDEMPOTENCY]["in"] == "header"
    attached = named("/prompt_sync/{prompt_id}", "get")
    assert attached["prompt_id"] == {
        "name": "prompt_id",
        "in": "path",
        "required": True,
        "schema": {"type": "string", "format": "uuid"},
    }
    assert attached["convert"]["schema"]["enum"] == ["webp", "jpeg", "png", "avif"]
    assert set(named("/prompt_sync/{prompt_id}", "delete")) == {"prompt_id", "X-Request-ID"}
