"""RUNPOD_DATA_DAYS: old files are removed, and no others."""

from __future__ import annotations

import asyncio
import base64
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from comfyui.exceptions import SettingsError
from comfyui.settings import load
from config import Settings
from tests.support.log_lines import Lines
from tests.support.running import loading_workflow, running_gateway, until
from tests.support.runpod_endpoint import (
    DATA,
    NOWHERE,
    PICTURE,
    QUICK,
    FakeEndpoint,
    base64_image,
    get,
    history,
    submit,
)

DAY_S = 86_400
AWAY = f"http://{NOWHERE}"
CLEANS_OFTEN = replace(QUICK, clean_every_s=0.01)


def away(folder: Path, *, days: float = 0) -> dict[str, Any]:
    """The settings of a gateway that reaches no endpoint."""
    return FakeEndpoint().settings(folder, runpod_data_days=days) | {"runpod_endpoint_url": AWAY}


async def cleaned(lines: Lines) -> dict[str, Any]:
    """Returns the log line of the first pass that removed something."""

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
    return {name for name in found if not name.startswith("state/")}


async def test_old_results_and_inputs_are_removed_and_newer_ones_kept(tmp_path: Path, log_lines: Lines) -> None:
    for name in ("outputs/one/a.png", "outputs/one/sub/b.png", "inputs/a.png", "inputs/gateway/b.png"):
        write(tmp_path / name, age_days=8)
    write(tmp_path / "outputs/two/old.png", age_days=8)
    write(tmp_path / "outputs/two/newer.png", age_days=6)
    write(tmp_path / "inputs/newer.png", age_days=6)
    async with running_gateway(NOWHERE, **away(tmp_path, days=7)) as gateway:
        line = await cleaned(log_lines)
        assert (await get(gateway, "/queue"))[0] == 200
    assert files(tmp_path) == {"outputs/two/newer.png", "inputs/newer.png"}
    assert [path.name for path in (tmp_path / "outputs").iterdir()] == ["two"]
    assert line["removed"] == 5


async def test_nothing_is_removed_without_the_setting(tmp_path: Path, endpoint: FakeEndpoint, log_lines: Lines) -> None:
    write(tmp_path / "outputs/one/a.png", age_days=10_000)
    write(tmp_path / "inputs/a.png", age_days=10_000)
    async with running_gateway(NOWHERE, **endpoint.settings(tmp_path)) as gateway:
        await submit(gateway)
        await endpoint.job()
    assert files(tmp_path) == {"outputs/one/a.png", "inputs/a.png"}
    assert not [line for line in log_lines if line["event"].startswith("runpod.clean")]


async def test_symbolic_links_are_neither_followed_nor_removed(tmp_path: Path, log_lines: Lines) -> None:
    data, outside = tmp_path / "data", tmp_path / "outside"
    for name in ("a.png", "folder/b.png"):
        write(outside / name, age_days=8)
    write(data / "outputs/one/old.png", age_days=8)
    (data / "outputs/one/link.png").symlink_to(outside / "a.png")
    (data / "outputs/link").symlink_to(outside / "folder")
    (data / "inputs").symlink_to(outside)
    os.utime(data / "outputs/one/link.png", (0, 0), follow_symlinks=False)
    async with running_gateway(NOWHERE, **away(data, days=7)):
        assert (await cleaned(log_lines))["removed"] == 1
    assert files(outside) == {"a.png", "folder/b.png"}
    assert (data / "outputs/one/link.png").is_symlink()
    assert (data / "outputs/link").is_symlink()
    [line] = [line for line in log_lines if line["event"] == "runpod.cleanup_failed"]
    assert line["reason"] == "inputs is a symbolic link"


async def test_files_of_unfinished_prompts_are_kept(tmp_path: Path, log_lines: Lines) -> None:
    write(tmp_path / "outputs/other/result.png", age_days=8)
    write(tmp_path / "inputs/photo.png", age_days=8)
    async with running_gateway(NOWHERE, **away(tmp_path)) as gateway:
        by_input = await submit(gateway, loading_workflow("photo.png"))
        await submit(gateway, loading_workflow("other/result.png [output]"))
    for name in ("inputs/photo.png", "outputs/other/result.png"):
        age(tmp_path / name, 8)
    write(tmp_path / f"outputs/{by_input}/first.png", age_days=8)
    write(tmp_path / "outputs/other/unused.png", age_days=8)
    write(tmp_path / "inputs/unused.png", age_days=8)
    async with running_gateway(NOWHERE, **away(tmp_path, days=7)):
        await cleaned(log_lines)
    assert files(tmp_path) == {"inputs/photo.png", "outputs/other/result.png", f"outputs/{by_input}/first.png"}


async def test_the_age_of_an_input_counts_from_its_last_use(
    tmp_path: Path, endpoint: FakeEndpoint, log_lines: Lines
) -> None:
    write(tmp_path / "inputs/photo.png", age_days=8)
    async with running_gateway(NOWHERE, **endpoint.settings(tmp_path)) as gateway:
        prompt_id = await submit(gateway, loading_workflow("photo.png"))
        endpoint.complete(await endpoint.job(), base64_image(DATA))
        await history(gateway, prompt_id)
    write(tmp_path / "inputs/unused.png", age_days=8)
    async with running_gateway(NOWHERE, **endpoint.settings(tmp_path, runpod_data_days=7)):
        await cleaned(log_lines)
    assert files(tmp_path / "inputs") == {"photo.png"}


async def test_a_removed_input_is_stored_again_for_the_next_prompt(tmp_path: Path, endpoint: FakeEndpoint) -> None:
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
            age(uploaded, 8)
            await asyncio.to_thread(_wait_until_gone, uploaded)
        async with gateway.http.get("/metrics") as response:
            assert 'comfyui_gateway_runpod_requests_total{status="200",verb="run"} 2.0' in await response.text()


def _wait_until_gone(path: Path) -> None:
    deadline = time.monotonic() + 30
    while path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("value", ["-1", "a week", "inf"])
def test_an_invalid_number_of_days_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("RUNPOD_DATA_DAYS", value)
    with pytest.raises(SettingsError, match="RUNPOD_DATA_DAYS: "):
        load(Settings)
