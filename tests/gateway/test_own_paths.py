"""The gateway's routes decide which requests it answers itself; it relays all others to ComfyUI."""

from __future__ import annotations

import re
from typing import Any

import pytest
from fastapi import APIRouter, Request
from fastapi.routing import iter_route_contexts
from starlette.responses import PlainTextResponse
from starlette.routing import Mount

import server
from comfyui.web.app import Gateway
from comfyui.web.front.paths import PROBES, OwnPaths
from config import Settings
from tests.support.relaying import answer_ok, fetch, relayed


@pytest.mark.parametrize(
    ("method", "path", "own"),
    [
        ("POST", "/prompt_sync", True),
        ("PATCH", "/prompt_sync", True),
        ("GET", "/prompt_sync/a", True),
        ("GET", "/prompt_sync/a/b", True),
        ("POST", "/prompt_sync/", True),
        ("GET", "/prompt_syncs", False),
        ("POST", "/api/prompt_sync", False),
        ("POST", "/validate", True),
        ("POST", "/convert", True),
        ("GET", "/convert", True),
        ("POST", "/prompt", True),
        ("GET", "/prompt", False),
        ("POST", "/api/prompt", True),
        ("GET", "/api/prompt", False),
        ("POST", "/tickets", True),
        ("GET", "/tickets", False),
        ("GET", "/metrics", True),
        ("GET", "/openapi.json", True),
        ("POST", "/openapi.json", True),
        ("GET", "/docs", True),
        ("GET", "/docs/", False),
        ("GET", "/docs/KSampler/en.md", False),
        ("GET", "/redoc", False),
        ("GET", "/", False),
        ("GET", "/queue", False),
    ],
)
def test_a_path_is_the_gateways_own_if_a_route_has_it(method: str, path: str, own: bool) -> None:
    assert server.create_app(Settings()).own_paths().has(method, path) is own


def test_every_route_of_the_application_is_the_gateways_own() -> None:
    app = server.create_app(Settings())
    routes = list(iter_route_contexts(app.router.routes))
    assert len(routes) > 30
    for route in routes:
        path = re.sub(r"\{[^}]*\}", "1", route.path or "/") + ("/x" if isinstance(route.original_route, Mount) else "")
        assert all(app.own_paths().has(method, path) for method in route.methods or {"GET"}), path


@pytest.mark.parametrize("path", sorted(PROBES))
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "BREW"])
def test_paths_without_a_key_are_never_relayed(path: str, method: str) -> None:
    assert server.create_app(Settings()).own_paths().has(method, path)


def test_a_route_that_would_match_all_paths_is_refused() -> None:
    with pytest.raises(ValueError, match=r"/\{page\}"):
        OwnPaths([("/{page}", "GET")])


async def test_an_added_route_is_the_gateways_own(monkeypatch: pytest.MonkeyPatch) -> None:
    create_app = server.create_app

    async def answer(request: Request) -> PlainTextResponse:
        return PlainTextResponse(f"ours: {request.url.path}")

    def with_more(*args: Any, **options: Any) -> Gateway:
        app = create_app(*args, **options)
        app.add_route("/added", answer, methods=["GET"])
        router = APIRouter(prefix="/room")
        router.add_api_route("/{name}/state", answer, methods=["PUT"])
        app.include_router(router)
        app.mount("/mounted", answer_app)
        return app

    async def answer_app(scope: Any, receive: Any, send: Any) -> None:
        await PlainTextResponse("ours: mounted")(scope, receive, send)

    async with relayed(answer_ok) as (comfyui, gateway):
        for path in ("/added", "/room/a/state", "/mounted/a/b"):
            assert (await fetch(gateway, path)).body == b"ok"
        assert len(comfyui.seen) == 3

    monkeypatch.setattr("tests.support.running.create_app", with_more)
    async with relayed(answer_ok) as (comfyui, gateway):
        assert (await fetch(gateway, "/added")).body == b"ours: /added"
        assert (await fetch(gateway, "/added", method="DELETE")).status == 405
        assert (await fetch(gateway, "/room/a/state", method="PUT")).body == b"ours: /room/a/state"
        assert (await fetch(gateway, "/mounted/a/b", method="POST")).body == b"ours: mounted"
        assert (await fetch(gateway, "/adde")).body == b"ok"
        assert [exchange.line for exchange in comfyui.seen] == ["GET /adde HTTP/1.1"]


async def test_the_document_answers_head_requests() -> None:
    async with relayed(answer_ok) as (comfyui, gateway):
        head = await fetch(gateway, "/openapi.json", method="HEAD")
        assert (head.status, head.body) == (200, b"")
        assert not comfyui.seen
