"""The table of rights over real sockets: each route of ComfyUI and of ours, by each method, role and spelling."""

from __future__ import annotations

import itertools
from pathlib import Path

import aiohttp
import pytest

from comfyui.engine import NEW_VERSION, Engine, EngineOptions
from comfyui.web.front.paths import PROBES
from comfyui.web.front.rights import NO, TABLE, row_of
from tests.support.keys import ALICE, ROOT, WATCHER, bearer
from tests.support.relaying import raw_request
from tests.support.rights_page import asked, page_of
from tests.support.running import RunningGateway, running_gateway
from tests.unit.web.test_rights import COMFYUI_PATHS, OUR_PATHS

_SPELLINGS = ("/api{0}", "/{0}", "{0}/", "/x/..{0}", "/%2e{0}", "/api/api{0}", "{0}%00")
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


def _requests(paths: list[str]) -> list[tuple[str, str]]:
    """Gives each path with each method, and each spelling of a path with two methods: GET and the others in turn.

    All methods read a path in the same way (`tests/unit/web/test_rights.py` tests each method with each spelling).
    """
    others = itertools.cycle(_METHODS[1:])
    return [
        *itertools.product(_METHODS, paths),
        *(
            (method, spelling.format(path))
            for path in paths
            for spelling in _SPELLINGS
            for method in ("GET", next(others))
        ),
    ]


async def _answer(gateway: RunningGateway, method: str, path: str, key: str) -> int:
    head = f"{method} {path} HTTP/1.1\r\nHost: g\r\nAuthorization: Bearer {key}\r\nConnection: close\r\n"
    answer = await raw_request(gateway.url, f"{head}Content-Length: 2\r\n\r\n{{}}".encode())
    return int(answer.split(b" ", 2)[1])


@pytest.mark.parametrize(("role", "key"), [("user", ALICE), ("read", WATCHER)])
async def test_requests_that_the_table_does_not_allow_get_403_and_reach_no_comfyui(
    keys_path: Path, role: str, key: str
) -> None:
    async with (
        Engine(EngineOptions(comfyui_version=NEW_VERSION)) as engine,
        running_gateway(engine.url, keys_file=keys_path) as gateway,
    ):
        paths = [path.replace("{prompt_id}", "1") for path in (*COMFYUI_PATHS, *OUR_PATHS) if "health" not in path]
        engine.stats.reset()
        allowed = 0
        for method, asked in _requests(paths):
            row = row_of(method, asked)
            if row is None or (row.user if role == "user" else row.read) is NO:
                assert await _answer(gateway, method, asked, key) == 403, (method, asked)
            else:
                allowed += 1
        assert allowed > 20
        of_the_gateway = {"GET /prompt", "GET /system_stats"}
        assert set(engine.stats.show()["requests"]) <= of_the_gateway


@pytest.mark.parametrize("path", ["/ws/", "/ws%00", "/%2577s", "/health", "/x", "/prompt_sync", "/servers/gpu-1/ws"])
@pytest.mark.parametrize("key", [ALICE, WATCHER])
async def test_users_and_readers_cannot_open_websockets_on_other_paths(
    engine: Engine, keys_path: Path, path: str, key: str
) -> None:
    async with running_gateway(engine.url, keys_file=keys_path) as gateway:
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await gateway.http.ws_connect(path, headers=bearer(key))
        assert refused.value.status == 403
        async with gateway.http.ws_connect("/ws", headers=bearer(ROOT)) as websocket:
            assert "status" in await websocket.receive_str()


async def test_the_page_of_rights_matches_the_answers_of_a_gateway() -> None:
    """`make rights` writes the page."""
    lines = await asked()
    assert [line.row for line in lines if line.row is not None] == list(TABLE)
    for line in lines:
        if line.example.target in PROBES:
            continue
        rights = (NO, NO) if line.row is None else (line.row.user, line.row.read)
        assert line.no_key == 401, line
        assert [status == 403 for status in (line.user, line.another, line.read)] == [
            right is NO for right in (rights[0], *rights)
        ], line
        assert line.admin not in {401, 403} or "/internal/" in line.example.target, line  # PROXY_DENY
    written = Path(__file__).parents[2] / "docs" / "rights.md"
    assert written.read_text() == page_of(lines), "make rights"
