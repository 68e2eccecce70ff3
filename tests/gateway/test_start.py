"""How the gateway starts when the journal of its jobs is locked or cannot be used."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from comfyui.engine import Engine
from comfyui.jobs.journal.sqlite import FILE_NAME
from tests.support.forking import forked, serve_gateway
from tests.support.jobs import ASYNC, fetch, submit
from tests.support.processes import GatewayProcess, gateway_process
from tests.support.running import executions, invert_workflow, until

UNUSABLE = 74


@contextmanager
def locked_by_another_process(folder: Path) -> Iterator[None]:
    folder.mkdir(exist_ok=True)
    with closing(sqlite3.connect(folder / FILE_NAME, isolation_level=None)) as database:
        database.execute("PRAGMA locking_mode = EXCLUSIVE")
        database.execute("BEGIN EXCLUSIVE")
        yield


async def ready(gateway: GatewayProcess) -> tuple[int, Any]:
    async with gateway.http.get("/health/ready") as response:
        return response.status, await response.json()


async def test_the_gateway_answers_while_it_waits_for_a_locked_journal(tmp_path: Path, engine: Engine) -> None:
    with locked_by_another_process(tmp_path / "state"):
        settings = {"STATE_DIR": str(tmp_path / "state"), "SHUTDOWN_GRACE_SECONDS": "60"}
        context = gateway_process(engine.url, **settings)
        gateway = await context.__aenter__()
        try:
            async with gateway.http.get("/health/live") as response:
                assert (response.status, await response.json()) == (200, {"status": "alive"})
            status, body = await ready(gateway)
            assert (status, body["status"]) == (503, "not ready")
            assert "another process already uses the journal in STATE_DIR" in body["reason"]
            async with gateway.http.get("/health") as response:
                assert response.status == 503
                assert "STATE_DIR" in (await response.json())["error"]
            for path, headers in (("/prompt_sync", {}), ("/prompt_sync", ASYNC), ("/prompt", {})):
                async with gateway.http.post(
                    path, json={"prompt": invert_workflow()}, headers={"X-Request-ID": "r-1", **headers}
                ) as response:
                    body = await response.json()
                    assert (response.status, body["type"], body["request_id"]) == (503, "disk_failed", "r-1")
                    assert int(response.headers["Retry-After"]) > 0
                    assert "STATE_DIR" in body["detail"]
            with pytest.raises(aiohttp.WSServerHandshakeError):
                await gateway.http.ws_connect("/ws")
        except BaseException:
            await context.__aexit__(None, None, None)
            raise
    try:
        await until(lambda: ready(gateway), lambda found: found[0] == 200)
        job = await submit(gateway.http, invert_workflow(1))
        assert (await fetch(gateway.http, job))[0] == 200
        assert executions(engine) == {job: 1}
        gateway.signal(signal.SIGTERM)
        assert await gateway.exit_status() == 0
    finally:
        await context.__aexit__(None, None, None)


async def test_a_journal_that_stays_locked_ends_the_start(tmp_path: Path, engine: Engine) -> None:
    with locked_by_another_process(tmp_path):
        async with gateway_process(engine.url, STATE_DIR=str(tmp_path), SHUTDOWN_GRACE_SECONDS="3") as gateway:
            assert (await ready(gateway))[0] == 503
            assert await gateway.exit_status() == UNUSABLE
        (line,) = gateway.lines_of("critical")
        assert line["event"] == "gateway.cannot_start"
        assert "another process already uses the journal" in line["detail"]
        assert line["file"] == str(tmp_path / FILE_NAME)
        assert_no_traceback(gateway.lines)


async def test_a_signal_ends_a_waiting_start(tmp_path: Path, engine: Engine) -> None:
    with locked_by_another_process(tmp_path):
        async with gateway_process(engine.url, STATE_DIR=str(tmp_path), SHUTDOWN_GRACE_SECONDS="60") as gateway:
            gateway.signal(signal.SIGTERM)
            assert await gateway.exit_status() == 0
        assert_no_traceback(gateway.lines)


def assert_no_traceback(lines: list[dict[str, Any]]) -> None:
    assert [line for line in lines if "Traceback" in str(line) or "exception" in line] == []


async def started(comfyui: str, state_dir: Path) -> tuple[int, list[dict[str, Any]]]:
    """Exit status and log of a gateway that ends by itself."""
    environ = {
        "PATH": os.environ["PATH"],
        "COMFYUI_SERVER_ADDRESS": comfyui,
        "SERVER_HOST": "127.0.0.1",
        "SERVER_PORT": "0",
        "LOG_OUTPUT": "json",
        "STATE_DIR": str(state_dir),
    }
    async with asyncio.timeout(20), forked(serve_gateway, environ=environ, descriptor=2) as process:
        log = await process.output.read()
        return await process.wait(), [json.loads(line) for line in log.splitlines()]


def _newer(folder: Path) -> None:
    with closing(sqlite3.connect(folder / FILE_NAME)) as database:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA user_version = 999")


def _other_file(folder: Path) -> None:
    (folder / FILE_NAME).write_bytes(b"-- a dump, and no database\n" * 1000)


@pytest.mark.parametrize(
    ("make", "below", "named"),
    [
        (_newer, "", ("newer version", "another folder")),
        (_other_file, "", ("not a database", "Move jobs.sqlite3 away", "backup")),
        (_other_file, FILE_NAME, ("is a file", "must be a folder")),
        (_other_file, f"{FILE_NAME}/state", ("below one", "must be a folder")),
    ],
)
async def test_an_unusable_journal_ends_the_start_with_the_reason(
    tmp_path: Path, make: Callable[[Path], None], below: str, named: tuple[str, ...]
) -> None:
    make(tmp_path)
    content = (tmp_path / FILE_NAME).read_bytes()
    status, lines = await started("127.0.0.1:9", tmp_path / below)
    assert status == UNUSABLE
    (line,) = [line for line in lines if line["level"] == "critical"]
    assert line["event"] == "gateway.cannot_start"
    assert line["file"] == str(tmp_path / below / FILE_NAME)
    assert all(words in line["detail"] for words in ("STATE_DIR", *named)), line["detail"]
    assert_no_traceback(lines)
    assert not [line for line in lines if "Uvicorn running" in line["event"]]
    assert (tmp_path / FILE_NAME).read_bytes() == content
    assert [path.name for path in tmp_path.iterdir()] == [FILE_NAME]


@pytest.mark.parametrize("made", ["file", "link"])
async def test_an_unusable_folder_of_inputs_ends_the_start_with_the_reason(tmp_path: Path, made: str) -> None:
    inputs, elsewhere = tmp_path / "state" / "inputs", tmp_path / "elsewhere"
    inputs.parent.mkdir()
    elsewhere.mkdir()
    if made == "file":
        inputs.write_text("")
    else:
        inputs.symlink_to(elsewhere)
    status, lines = await started("127.0.0.1:9", tmp_path / "state")
    assert status == UNUSABLE
    (line,) = [line for line in lines if line["level"] == "critical"]
    assert (line["event"], line["file"]) == ("gateway.cannot_start", str(inputs))
    assert "the folder of the jobs' inputs (STATE_DIR)" in line["detail"]
    assert_no_traceback(lines)
    assert list(elsewhere.iterdir()) == []
