"""RUNPOD_DATA_DAYS: what has become old is removed, and nothing else."""

from __future__ import annotations

import asyncio
import base64
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from pydantic import SecretStr

from comfyui.exceptions import SettingsError
from comfyui.runpod.bridge import RunPodBridge
from comfyui.runpod.options import RunPodOptions, RunPodTimes
from comfyui.settings import load
from config import Settings
from tests.support.log_lines import Lines
from tests.support.running import Workflow, invert_workflow, running_gateway, until
from tests.support.runpod_endpoint import (
    DATA,
    KEY,
    NOWHERE,
    PICTURE,
    QUICK,
    FakeEndpoint,
    base64_image,
    loading_workflow,
)

DAY_S = 86_400
AWAY = f"http://{NOWHERE}"
CLEANS_OFTEN = replace(QUICK, clean_every_s=0.01)


@asynccontextmanager
async def bridge(
    folder: Path, url: str, days: float = 0, times: RunPodTimes = QUICK
) -> AsyncIterator[aiohttp.ClientSession]:
    """A session with the bridge, whose data is in this folder."""
    options = RunPodOptions("endpoint1", SecretStr(KEY), folder, NOWHERE, url, data_days=days, times=times)
    async with RunPodBridge(options) as running, aiohttp.ClientSession(base_url=running.address) as http:
        yield http


async def submit(http: aiohttp.ClientSession, workflow: Workflow) -> str:
    async with http.post("/prompt", json={"prompt": workflow}) as response:
        assert response.status == 200, await response.text()
        return str((await response.json())["prompt_id"])


async def upload(http: aiohttp.ClientSession, name: str) -> None:
    form = aiohttp.FormData()
    form.add_field("image", PICTURE, filename=name)
    async with http.post("/upload/image", data=form) as response:
        assert response.status == 200


async def cleaned(lines: Lines) -> dict[str, Any]:
    """What the log says of a pass that removed something, as soon as there was one."""

    async def ask() -> list[dict[str, Any]]:
        return [dict(line) for line in lines if line["event"] == "runpod.cleaned"]

    return (await until(ask, bool))[0]


def write(path: Path, *, age_days: float) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(PICTURE)
    age(path, age_days)
    return path


def age(path: Path, days: float) -> None:
    written = time.time() - days * DAY_S
    os.utime(path, (written, written))


def files(folder: Path) -> set[str]:
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
    return {name for name in found if not name.startswith("journal")}


async def test_old_results_and_inputs_are_removed_and_young_ones_stay(tmp_path: Path, log_lines: Lines) -> None:
    for name in ("outputs/one/a.png", "outputs/one/sub/b.png", "inputs/a.png", "inputs/gateway/b.png"):
        write(tmp_path / name, age_days=8)
    write(tmp_path / "outputs/two/old.png", age_days=8)
    write(tmp_path / "outputs/two/young.png", age_days=6)
    write(tmp_path / "inputs/young.png", age_days=6)
    async with bridge(tmp_path, AWAY, days=7) as http:
        line = await cleaned(log_lines)
        async with http.get("/queue") as response:
            assert response.status == 200
    assert files(tmp_path) == {"outputs/two/young.png", "inputs/young.png"}
    assert [path.name for path in (tmp_path / "outputs").iterdir()] == ["two"]
    assert line["removed"] == 5
    assert (tmp_path / "journal.sqlite3").exists()


async def test_nothing_is_removed_unless_it_is_asked_for(
    tmp_path: Path, endpoint: FakeEndpoint, log_lines: Lines
) -> None:
    write(tmp_path / "outputs/one/a.png", age_days=10_000)
    write(tmp_path / "inputs/a.png", age_days=10_000)
    async with bridge(tmp_path, endpoint.url) as http:
        await submit(http, invert_workflow())
        await endpoint.job()
    assert files(tmp_path) == {"outputs/one/a.png", "inputs/a.png"}
    assert not [line for line in log_lines if line["event"].startswith("runpod.clean")]


async def test_links_are_neither_followed_nor_removed(tmp_path: Path, log_lines: Lines) -> None:
    data, outside = tmp_path / "data", tmp_path / "outside"
    for name in ("a.png", "folder/b.png"):
        write(outside / name, age_days=8)
    write(data / "outputs/one/old.png", age_days=8)
    (data / "outputs/one/link.png").symlink_to(outside / "a.png")
    (data / "outputs/link").symlink_to(outside / "folder")
    (data / "inputs").symlink_to(outside)
    os.utime(data / "outputs/one/link.png", (0, 0), follow_symlinks=False)
    async with bridge(data, AWAY, days=7):
        assert (await cleaned(log_lines))["removed"] == 1
    assert files(outside) == {"a.png", "folder/b.png"}
    assert (data / "outputs/one/link.png").is_symlink()
    assert (data / "outputs/link").is_symlink()
    [line] = [line for line in log_lines if line["event"] == "runpod.cleanup_failed"]
    assert line["reason"] == "inputs is a symbolic link"


async def test_what_unfinished_prompts_name_or_have_written_stays(tmp_path: Path, log_lines: Lines) -> None:
    write(tmp_path / "outputs/other/result.png", age_days=0)
    async with bridge(tmp_path, AWAY) as http:
        await upload(http, "photo.png")
        by_input = await submit(http, loading_workflow("photo.png"))
        await submit(http, loading_workflow("other/result.png [output]"))
    age(tmp_path / "inputs/photo.png", 8)
    age(tmp_path / "outputs/other/result.png", 8)
    write(tmp_path / f"outputs/{by_input}/first.png", age_days=8)
    write(tmp_path / "outputs/other/unused.png", age_days=8)
    write(tmp_path / "inputs/unused.png", age_days=8)
    async with bridge(tmp_path, AWAY, days=7):
        await cleaned(log_lines)
    assert files(tmp_path) == {"inputs/photo.png", "outputs/other/result.png", f"outputs/{by_input}/first.png"}


async def test_the_age_of_an_input_counts_from_its_last_use(
    tmp_path: Path, endpoint: FakeEndpoint, log_lines: Lines
) -> None:
    async with bridge(tmp_path, endpoint.url) as http:
        await upload(http, "photo.png")
        age(tmp_path / "inputs/photo.png", 8)
        prompt_id = await submit(http, loading_workflow("photo.png"))
        endpoint.complete(await endpoint.job(), base64_image(DATA))

        async def ended() -> bool:
            async with http.get(f"/history/{prompt_id}") as response:
                return prompt_id in await response.json()

        await until(ended, bool)
    write(tmp_path / "inputs/unused.png", age_days=8)
    async with bridge(tmp_path, endpoint.url, days=7):
        await cleaned(log_lines)
    assert files(tmp_path / "inputs") == {"photo.png"}


async def test_it_goes_on_after_the_start_and_has_the_gateway_forget_what_it_uploaded(tmp_path: Path) -> None:
    async with (
        bridge(tmp_path, AWAY, days=7, times=CLEANS_OFTEN) as http,
        http.ws_connect("/ws?clientId=gateway") as websocket,
    ):
        assert (await websocket.receive_json())["type"] == "status"
        await upload(http, "photo.png")
        age(tmp_path / "inputs/photo.png", 8)
        # The gateway remembers what it has uploaded until it is connected anew.
        async with asyncio.timeout(30):
            while (await websocket.receive()).type is aiohttp.WSMsgType.TEXT:
                pass
    assert files(tmp_path) == set()


async def test_a_gateway_uploads_again_what_was_removed(tmp_path: Path, endpoint: FakeEndpoint) -> None:
    images = [{"name": "photo.png", "image": base64.b64encode(PICTURE).decode()}]
    settings = endpoint.settings(tmp_path, times=CLEANS_OFTEN, runpod_data_days=7)
    async with running_gateway(NOWHERE, **settings) as gateway:
        for number in (1, 2):
            asking = asyncio.create_task(gateway.prompt_sync(loading_workflow("photo.png"), images=images))
            job = await endpoint.job(number)
            assert endpoint.inputs[job]["images"][0]["image"] == images[0]["image"]
            endpoint.complete(job, base64_image(DATA))
            assert (await asking)[0] == 200
            [uploaded] = (tmp_path / "inputs/gateway").iterdir()
            connection = gateway.handler.pool.backends[0].watcher.client_id
            age(uploaded, 8)

            async def connected_anew(before: str | None = connection) -> bool:
                watcher = gateway.handler.pool.backends[0].watcher
                return watcher.connected and watcher.client_id != before

            await until(connected_anew, bool)
            assert not uploaded.exists()
        async with gateway.http.get("/metrics") as response:
            assert 'comfyui_gateway_runpod_requests_total{status="200",verb="run"} 2.0' in await response.text()


@pytest.mark.parametrize("value", ["-1", "a week", "inf"])
def test_a_number_of_days_that_is_none_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("RUNPOD_DATA_DAYS", value)
    with pytest.raises(SettingsError, match="RUNPOD_DATA_DAYS: "):
        load(Settings)
