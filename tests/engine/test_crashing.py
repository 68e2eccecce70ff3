"""The engine as a process of its own: faults that end it. Also its nodes that write and read video."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from comfyui.engine import Engine, EngineOptions, FaultError
from tests.support.ports import free_port
from tests.support.target import Target, node


@asynccontextmanager
async def engine_process(*arguments: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """Yields the process and its URL when it serves, or when it has ended."""
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "comfyui.engine", "--port", str(port), *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        assert process.stdout is not None
        await process.stdout.readline()
        yield process, f"http://127.0.0.1:{port}"
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def queue(url: str, prompt: dict[str, Any]) -> None:
    """Submits the prompt; its node may end the process before the reply is sent."""
    with contextlib.suppress(aiohttp.ClientError):
        async with aiohttp.ClientSession(url) as http, http.post("/prompt", json={"prompt": prompt}) as response:
            assert response.status == 200, await response.text()


async def exit_status(process: asyncio.subprocess.Process) -> int:
    async with asyncio.timeout(20):
        return await process.wait()


@pytest.mark.parametrize(("how", "status"), [("segfault", -signal.SIGSEGV), ("exit", 1)])
async def test_a_crash_node_ends_the_process(how: str, status: int) -> None:
    async with engine_process() as (process, url):
        await queue(url, {"1": node("SimulatedCrash", how=how, after=0.0), "2": node("PreviewAny", source=["1", 0])})
        assert await exit_status(process) == status


async def test_a_fault_at_a_node_ends_the_process_and_is_counted_across_restarts(tmp_path: Path) -> None:
    kept = tmp_path / "faults.json"
    fault = json.dumps({"class_type": "PreviewAny", "times": 2, "message": "GPU has fallen off the bus"})
    arguments = ("--faults-file", str(kept), "--fault", f"segfault={fault}")
    prompt = {"1": node("PrimitiveString", value="a"), "2": node("PreviewAny", source=["1", 0])}
    for _ in range(2):
        async with engine_process(*arguments) as (process, url):
            await queue(url, prompt)
            assert await exit_status(process) == -signal.SIGSEGV
            assert process.stdout is not None
            assert b"GPU has fallen off the bus" in await process.stdout.read()
    async with engine_process(*arguments) as (process, url):
        await queue(url, prompt)
        async with aiohttp.ClientSession(url) as http, asyncio.timeout(20):
            while not await (await http.get("/history")).json():
                await asyncio.sleep(0.01)
        assert process.returncode is None


async def test_a_fault_can_end_the_process_at_its_start_or_at_a_request(tmp_path: Path) -> None:
    faults: list[dict[str, Any]] = [{"at": "start", "times": 1, "status": 7}, {"route": "/queue", "times": 1}]
    arguments = ("--faults-file", str(tmp_path / "faults.json"), "--fault", f"exit={json.dumps(faults)}")
    async with engine_process(*arguments) as (process, _):
        assert await exit_status(process) == 7
    async with engine_process(*arguments) as (process, url):
        async with aiohttp.ClientSession(url) as http:
            assert (await http.get("/history")).status == 200
            with pytest.raises(aiohttp.ClientError):
                await http.post("/queue", json={})
        assert await exit_status(process) == 1


async def test_a_fault_ends_the_process_when_a_prompt_with_its_node_is_validated(tmp_path: Path) -> None:
    """The prompt that runs meanwhile ends with the process; a prompt without that node is queued."""
    fault = json.dumps({"at": "validation", "class_type": "ImageInvert"})
    executed = tmp_path / "executions"
    async with engine_process("--executions-file", str(executed), "--fault", f"segfault={fault}") as (process, url):
        await queue(url, {"1": node("SimulatedSleep", seconds=60.0, steps=1), "2": node("PreviewAny", source=["1", 0])})
        async with asyncio.timeout(20):
            while not executed.exists():
                await asyncio.sleep(0.01)
        picture = node("EmptyImage", width=8, height=8, batch_size=1, color=0)
        await queue(
            url, {"1": picture, "2": node("ImageInvert", image=["1", 0]), "3": node("PreviewImage", images=["2", 0])}
        )
        assert await exit_status(process) == -signal.SIGSEGV
    assert len(executed.read_text().split()) == 1


async def test_a_node_that_hangs_ignores_interrupts_but_the_engine_stops(target: Target, engine: Engine) -> None:
    await engine.set_faults({"hang": {"class_type": "PrimitiveString", "seconds": 0.3}})
    prompt_id = await submitted(
        target, {"1": node("PrimitiveString", value="a"), "2": node("PreviewAny", source=["1", 0])}
    )
    async with asyncio.timeout(30):
        while not (await target.get_json("/queue"))["queue_running"]:
            await asyncio.sleep(0.005)
        assert (await target.session.post("/interrupt", json={})).status == 200
        while not (entry := await target.history(prompt_id)):
            await asyncio.sleep(0.01)
    # It was interrupted only at its next node.
    assert entry[prompt_id]["status"]["messages"][-1][1]["node_id"] == "2"
    await submitted(
        target, {"1": node("SimulatedCrash", how="hang", after=0.0), "2": node("PreviewAny", source=["1", 0])}
    )


async def test_an_engine_inside_another_process_refuses_to_end_it(engine: Engine, target: Target) -> None:
    with pytest.raises(FaultError, match="its own process"):
        await engine.set_faults({"segfault": {}})
    crash = {"1": node("SimulatedCrash", how="exit", after=0.0), "2": node("PreviewAny", source=["1", 0])}
    prompt_id = await submitted(target, crash)
    async with asyncio.timeout(30):
        while not (entry := await target.history(prompt_id)):
            await asyncio.sleep(0.01)
    assert entry[prompt_id]["status"]["status_str"] == "error"


async def test_a_saved_video_is_listed_under_gifs_and_can_be_loaded_again(tmp_path: Path) -> None:
    frames = {
        "1": node("EmptyImage", width=32, height=16, batch_size=4, color=0x208040),
        "2": node(
            "VHS_VideoCombine",
            images=["1", 0],
            frame_rate=8,
            loop_count=0,
            filename_prefix="clips/one",
            format="video/h264-mp4",
            pingpong=False,
            save_output=True,
        ),
    }
    async with Engine(EngineOptions(base_directory=tmp_path)) as engine, aiohttp.ClientSession(engine.url) as http:
        target = Target(engine.url, http, engine.options.comfyui_version, is_real=False)
        [saved] = (await outputs(target, frames))["2"]["gifs"]
        assert (saved["filename"], saved["subfolder"], saved["type"]) == ("one_00001.mp4", "clips", "output")
        assert (saved["format"], saved["workflow"]) == ("video/h264-mp4", "one_00001.png")
        video = (tmp_path / "output" / "clips" / "one_00001.mp4").read_bytes()
        assert video[4:8] == b"ftyp"
        (tmp_path / "input" / "clip.mp4").write_bytes(video)
        loaded = {
            "1": node(
                "VHS_LoadVideo",
                video="clip.mp4",
                force_rate=0,
                custom_width=0,
                custom_height=0,
                frame_load_cap=0,
                skip_first_frames=1,
                select_every_nth=1,
            ),
            "2": node("PreviewAny", source=["1", 1]),
        }
        assert (await outputs(target, loaded))["2"]["text"] == ["3"]
        info = (await target.get_json("/object_info/VHS_LoadVideo"))["VHS_LoadVideo"]
        assert info["input"]["required"]["video"] == [["clip.mp4"], {"video_upload": True}]


async def submitted(target: Target, prompt: dict[str, Any]) -> str:
    status, body = await target.submit(prompt)
    assert status == 200, body
    return str(body["prompt_id"])


async def outputs(target: Target, prompt: dict[str, Any]) -> dict[str, Any]:
    prompt_id = await submitted(target, prompt)
    async with asyncio.timeout(30):
        while not (entry := await target.history(prompt_id)):
            await asyncio.sleep(0.01)
    assert entry[prompt_id]["status"]["status_str"] == "success", entry
    found: dict[str, Any] = entry[prompt_id]["outputs"]
    return found
