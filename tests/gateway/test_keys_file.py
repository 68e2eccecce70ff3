"""KEYS_FILE with a running gateway: which keys are accepted, reloads of the file, and key names in logs."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from comfyui.engine import Engine
from tests.support.keys import ALICE, BOB, KEY, KEYS, ROOT, WATCHER, bearer, table, touch_keys, write_keys
from tests.support.log_lines import Lines
from tests.support.relaying import answer_ok, fetch, relayed
from tests.support.running import RunningGateway, invert_workflow, running_gateway, until

REPOSITORY = Path(__file__).parents[2]


async def _status(gateway: RunningGateway, key: str, path: str = "/prompt_sync") -> int:
    return (await fetch(gateway, path, headers=bearer(key))).status


async def _becomes(gateway: RunningGateway, key: str, status: int) -> None:
    await until(lambda: _status(gateway, key), lambda found: found == status)


async def test_only_keys_of_the_file_and_of_the_setting_are_accepted(engine: Engine, keys_path: Path) -> None:
    async with running_gateway(engine.url, keys_file=keys_path, api_keys=KEY) as gateway:
        for key, status in (
            (ALICE, 200),
            (BOB, 200),
            (WATCHER, 200),
            (ROOT, 200),
            (KEY, 200),
            ("other", 401),
            ("", 401),
        ):
            assert await _status(gateway, key) == status, key


@pytest.mark.parametrize("write", [write_keys, touch_keys], ids=["file replaced", "file changed in place"])
async def test_a_change_of_the_keys_file_applies_without_a_restart(engine: Engine, keys_path: Path, write: Any) -> None:
    async with running_gateway(engine.url, keys_file=keys_path) as gateway:
        assert (await _status(gateway, ALICE), await _status(gateway, "new")) == (200, 401)
        write(keys_path, table("bob", BOB) + table("carol", "new"))
        await _becomes(gateway, ALICE, 401)
        assert (await _status(gateway, BOB), await _status(gateway, "new")) == (200, 200)


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        ("[keys.alice]\nrole = 'user'\n", "line 1: [keys.alice] sha256: Field required"),
        (table("alice", ALICE, per_minute=-1), "line 4: [keys.alice] per_minute: Input should be"),
        ("", "the file cannot be read: No such file or directory"),
        (table("root", KEY), "the same key is also in API_KEYS"),
    ],
)
async def test_a_broken_keys_file_is_reported_and_the_former_keys_stay_valid(
    engine: Engine, keys_path: Path, log_lines: Lines, broken: str, told: str
) -> None:
    async with running_gateway(engine.url, keys_file=keys_path, api_keys=KEY) as gateway:
        if broken:
            write_keys(keys_path, broken)
        else:
            keys_path.unlink()

        async def ready(key: str) -> Any:
            async with gateway.http.get("/health/ready", headers=bearer(key)) as response:
                return response.status, await response.json()

        status, body = await until(lambda: ready(ROOT), lambda answer: "degraded" in answer[1])
        # The former keys stay valid, so the gateway still takes prompts.
        assert (status, body["status"]) == (200, "ready")
        assert told in body["degraded"]
        assert await _status(gateway, ALICE) == 200
        # Only the operator may see names of keys and fields.
        for key in ("none", ALICE):
            assert (await ready(key))[1]["degraded"] == "KEYS_FILE was changed but cannot be used"
        write_keys(keys_path, table("alice", "newer"))
        await _becomes(gateway, "newer", 200)
        assert "degraded" not in (await ready(KEY))[1]
    (line,) = [line for line in log_lines if line["event"] == "keys.not_reloaded"]
    assert told in line["reason"]
    assert line["log_level"] == "error"


async def test_a_new_key_cannot_take_the_name_of_a_removed_key(
    engine: Engine, keys_path: Path, log_lines: Lines, tmp_path: Path
) -> None:
    async with running_gateway(engine.url, keys_file=keys_path, state_dir=tmp_path / "state") as gateway:
        write_keys(keys_path, table("bob", BOB))
        await _becomes(gateway, ALICE, 401)
        write_keys(keys_path, table("bob", BOB) + table("alice", "another"))
        await until(_lines(log_lines, "keys.not_reloaded"), bool)
        assert await _status(gateway, "another") == 401


def _lines(lines: Lines, event: str) -> Any:
    async def found() -> list[Any]:
        return [line for line in lines if line["event"] == event]

    return found


async def test_logs_have_names_of_keys_but_no_key_hash_or_secret(
    engine: Engine,
    tmp_path: Path,
    log_lines: Lines,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = table("alice", ALICE, webhook_secret="whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", user_header="X-User")
    path = write_keys(tmp_path / "keys.toml", text)
    with caplog.at_level(logging.DEBUG):
        async with running_gateway(engine.url, keys_file=path) as gateway:
            await fetch(gateway, "/prompt_sync", headers=bearer(ALICE))
            await fetch(gateway, "/prompt_sync", headers={**bearer(ALICE), "X-User": "eve"})
            await fetch(gateway, "/queue", headers=bearer(ALICE))
            write_keys(path, f"{text}colour = 1\n")
            await until(_lines(log_lines, "keys.not_reloaded"), bool)
    out = capsys.readouterr()
    logged = "\n".join([caplog.text, out.out, out.err, *(str(line) for line in log_lines)])
    for secret in (ALICE, "MfKQ9r8GKYqr", text.split('"')[1] if '"' in text else text.split("'")[1]):
        assert secret not in logged
    assert [line["key"] for line in log_lines if line["event"] == "request"] == ["alice", "alice/eve", "alice"]


async def test_comfyui_never_sees_a_key_of_the_keys_file(keys_path: Path) -> None:
    async with relayed(answer_ok, keys_file=keys_path) as (comfyui, gateway):
        assert (await fetch(gateway, "/x", headers=bearer(ROOT))).status == 200
        assert (await fetch(gateway, "/x", headers={"X-API-Key": ROOT})).status == 200
        assert all(ROOT not in exchange.head.decode() for exchange in comfyui.seen)


async def test_a_browser_session_has_the_rights_of_its_key(engine: Engine, keys_path: Path) -> None:
    async with running_gateway(engine.url, keys_file=keys_path) as gateway:
        answer = await fetch(gateway, "/login", "POST", data={"key": ALICE}, headers={"Origin": gateway.url})
        cookie = {"Cookie": answer.headers["Set-Cookie"].split(";")[0]}
        assert ALICE not in str(cookie)
        assert (await fetch(gateway, "/prompt_sync", headers=cookie)).status == 200
        assert (await fetch(gateway, "/metrics", headers=cookie)).status == 403
        write_keys(keys_path, table("bob", BOB))
        await _becomes(gateway, ALICE, 401)
        assert (await fetch(gateway, "/prompt_sync", headers=cookie)).status == 401


async def test_a_ticket_has_the_rights_of_its_key_and_ends_with_it(engine: Engine, keys_path: Path) -> None:
    async with running_gateway(engine.url, keys_file=keys_path) as gateway:
        tickets = {}
        for url in ("/prompt_sync", "/metrics"):
            async with gateway.http.post("/tickets", json={"url": url}, headers=bearer(ALICE)) as response:
                tickets[url] = (await response.json())["url"]
        assert (await fetch(gateway, tickets["/prompt_sync"])).status == 200
        assert (await fetch(gateway, tickets["/metrics"])).status == 403
        write_keys(keys_path, table("bob", BOB))
        await _becomes(gateway, ALICE, 401)
        assert (await fetch(gateway, tickets["/prompt_sync"])).status == 401


async def test_a_reload_of_the_keys_does_not_close_websockets(engine: Engine, keys_path: Path) -> None:
    async with (
        running_gateway(engine.url, keys_file=keys_path) as gateway,
        gateway.http.ws_connect("/ws", headers=bearer(ROOT)) as websocket,
    ):
        assert "status" in await websocket.receive_str()
        write_keys(keys_path, KEYS + table("carol", "new"))
        await _becomes(gateway, "new", 200)
        answer = await fetch(gateway, "/prompt_sync", "POST", json={"prompt": invert_workflow()}, headers=bearer("new"))
        assert answer.status == 200
        assert (await websocket.receive(timeout=30)).type is aiohttp.WSMsgType.TEXT


# The keys command


def _run(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, REPOSITORY / "server.py", *arguments],
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", "STATE_DIR": str(folder / "state"), **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


async def test_a_running_gateway_accepts_a_key_that_the_command_added(
    engine: Engine, keys_path: Path, tmp_path: Path
) -> None:
    async with running_gateway(engine.url, keys_file=keys_path) as gateway:
        made = await asyncio.to_thread(
            _run, tmp_path, "keys", "add", "carol", "--role", "user", "--per-minute", "2", KEYS_FILE=str(keys_path)
        )
        assert (made.returncode, made.stderr) == (0, "")
        key = made.stdout.strip()
        await _becomes(gateway, key, 200)
        assert key not in keys_path.read_text()


def test_the_keys_command_names_a_missing_setting(tmp_path: Path) -> None:
    made = _run(tmp_path, "keys", "add", "carol", "--role", "user")
    assert (made.returncode, made.stdout) == (2, "")
    assert "KEYS_FILE is not set" in made.stderr
    assert _run(tmp_path, "keys", "add", "carol", "--role", "boss").returncode == 2


def test_a_broken_keys_file_stops_the_start_with_status_2(tmp_path: Path) -> None:
    path = write_keys(tmp_path / "keys.toml", table("alice", ALICE, role="boss"))
    started = _run(tmp_path, KEYS_FILE=str(path), SERVER_PORT="0")
    assert started.returncode == 2
    assert "line 3: [keys.alice] role: Input should be 'user', 'read' or 'admin'" in started.stderr
