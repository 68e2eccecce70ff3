"""Settings and user data live on the first server; while it is down they are read from a copy and cannot be written."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from comfyui.engine import Engine
from comfyui.web.comfyui.home_copy import MOST_OF_ONE, HomeCopy, Kept
from tests.support.keys import ALICE, KEYS, ROOT, bearer, write_keys
from tests.support.running import RunningGateway, requests, running_gateway, until


@asynccontextmanager
async def behind(**settings: Any) -> AsyncIterator[tuple[Engine, Engine, RunningGateway]]:
    """Starts home, another server, and a gateway for both. The test itself stops home."""
    home = await Engine().__aenter__()
    async with Engine() as other, running_gateway(f"home={home.url}", f"other={other.url}", **settings) as gateway:
        yield home, other, gateway


async def ended(home: Engine, gateway: RunningGateway) -> None:
    await home.__aexit__(None, None, None)

    async def health() -> str:
        return gateway.handler.pool.backends[0].health.value

    await until(health, lambda state: state == "unreachable")


async def asked(gateway: RunningGateway, method: str, path: str, key: str = "", **options: Any) -> tuple[int, Any]:
    headers = bearer(key) if key else {}
    async with gateway.http.request(method, path, headers=headers, **options) as response:
        is_json = response.content_type == "application/json"
        return response.status, await (response.json() if is_json else response.text())


async def test_settings_and_user_data_can_be_read_while_home_is_down() -> None:
    async with behind() as (home, other, gateway):
        for path, body in (("/settings", {"a": 1, "b": 2}), ("/settings/b", 3)):
            assert (await asked(gateway, "POST", path, json=body))[0] == 200
        assert (await asked(gateway, "GET", "/settings"))[1] == {"a": 1, "b": 3}
        assert (await asked(gateway, "POST", "/settings/c", json=[4]))[0] == 200
        for name in ("one", "two", "gone"):
            assert (await asked(gateway, "POST", f"/api/userdata/w%2F{name}.json", json={"name": name}))[0] == 200
        assert (await asked(gateway, "POST", "/userdata/w%2Ftwo.json/move/w%2Fthree.json"))[0] == 200
        assert (await asked(gateway, "DELETE", "/userdata/w%2Fgone.json"))[0] == 204
        listed = (await asked(gateway, "GET", "/userdata?dir=w"))[1]
        users = (await asked(gateway, "GET", "/users"))[1]
        await ended(home, gateway)
        assert (await asked(gateway, "GET", "/api/settings")) == (200, {"a": 1, "b": 3, "c": [4]})
        assert (await asked(gateway, "GET", "/settings/b")) == (200, 3)
        assert (await asked(gateway, "GET", "/settings/unknown")) == (200, None)
        assert (await asked(gateway, "GET", "/userdata/w%2Fone.json")) == (200, {"name": "one"})
        assert (await asked(gateway, "GET", "/userdata/w%2Fthree.json")) == (200, {"name": "two"})
        assert (await asked(gateway, "GET", "/userdata?dir=w")) == (200, listed)
        assert (await asked(gateway, "GET", "/users")) == (200, users)
        for path in ("/userdata/w%2Fgone.json", "/userdata/w%2Ftwo.json", "/userdata/never.json", "/v2/userdata"):
            status, answer = await asked(gateway, "GET", path)
            assert (status, answer["type"]) == (503, "connection_failed"), path
        for method, path in (("POST", "/settings"), ("POST", "/userdata/x"), ("DELETE", "/userdata/w%2Fone.json")):
            status, answer = await asked(gateway, method, path, json={})
            assert status == 503
            assert "settings and user data are stored on the first server" in answer["detail"]
        assert not any("userdata" in route or "settings" in route for route in other.stats.show()["requests"])


async def test_while_home_is_down_another_server_gives_static_files_but_no_custom_routes() -> None:
    async with behind() as (home, other, gateway):
        assert (await asked(gateway, "GET", "/a/custom/route"))[0] == 404
        await ended(home, gateway)
        assert (await asked(gateway, "GET", "/"))[0] == 200
        assert (await asked(gateway, "GET", "/extensions"))[0] == 200
        for method in ("GET", "POST"):
            assert (await asked(gateway, method, "/a/custom/route"))[0] == 503
    assert requests(other, "GET /extensions") + requests(other, "GET /api/extensions") == 1


async def test_the_copy_survives_a_restart_and_each_user_has_its_own(tmp_path: Path) -> None:
    home = await Engine().__aenter__()
    settings: dict[str, Any] = {"keys_file": write_keys(tmp_path / "keys.toml", KEYS), "state_dir": tmp_path / "state"}
    async with Engine() as other:
        async with running_gateway(f"home={home.url}", f"other={other.url}", **settings) as gateway:
            for key, value in ((ALICE, "alice's"), (ROOT, "root's")):
                assert (await asked(gateway, "POST", "/settings", key, json={"x": value}))[0] == 200
                assert (await asked(gateway, "GET", "/settings", key))[1]["x"] == value
        await home.__aexit__(None, None, None)
        async with running_gateway(f"home={home.url}", f"other={other.url}", **settings) as gateway:
            for key, value in ((ALICE, "alice's"), (ROOT, "root's")):
                assert (await asked(gateway, "GET", "/settings", key)) == (200, {"x": value})
            assert (await asked(gateway, "POST", "/settings", ALICE, json={"x": 1}))[0] == 503
    for file in (tmp_path / "state" / "home").iterdir():
        assert file.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("is_on_disk", [False, True])
async def test_the_copy_has_a_limited_size(tmp_path: Path, is_on_disk: bool) -> None:
    folder = tmp_path / "home" if is_on_disk else None
    copy = HomeCopy(folder, most_bytes=250)
    for name in "abc":
        await copy.keep(name, Kept("text/plain", name.encode() * 80))
        assert await copy.get("a") == (Kept("text/plain", b"a" * 80))
    assert await copy.get("b") is None  # it was unused for the longest time
    assert await copy.get("c") == Kept("text/plain", b"c" * 80)
    await copy.keep("c", Kept("text/plain", b"c" * MOST_OF_ONE))
    assert await copy.get("c") is None
