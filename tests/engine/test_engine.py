"""The engine by itself: start and stop, pictures, its own nodes and routes."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import struct
import sys
import threading
import uuid
from io import BytesIO
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from PIL import Image, ImageChops

from comfyui.engine import Engine, EngineOptions
from comfyui.engine.queue import PromptQueue, QueuedPrompt
from tests.support.engine_workflows import sleeping, txt2img, writing
from tests.support.target import Target, empty, inverted, node


async def test_two_engines_run_side_by_side_and_share_nothing() -> None:
    async with Engine() as one, Engine() as other, aiohttp.ClientSession() as session:
        assert one.url != other.url
        async with session.post(f"{one.url}/prompt", json={"prompt": sleeping()}) as response:
            assert response.status == 200
        async with session.get(f"{other.url}/prompt") as response:
            assert await response.json() == {"exec_info": {"queue_remaining": 0}}


async def test_the_engine_removes_its_temporary_folder_and_keeps_a_chosen_one(tmp_path: Path) -> None:
    async with Engine() as engine:
        temporary = engine.folders.base
        assert temporary.exists()
    assert not temporary.exists()
    async with Engine(EngineOptions(base_directory=tmp_path / "base")) as engine:
        (engine.folders.output / "kept.txt").write_text("x")
    assert (tmp_path / "base" / "output" / "kept.txt").exists()


async def test_the_engine_stops_without_waiting_for_running_prompts_or_hanging_requests() -> None:
    engine = Engine(EngineOptions(faults={"hang": {"route": "/features"}}))
    async with engine, aiohttp.ClientSession(engine.url) as session:
        async with session.post("/prompt", json={"prompt": sleeping()}) as response:
            assert response.status == 200
        hanging = asyncio.create_task(session.post("/features"))
        async with session.ws_connect("/ws") as websocket:
            await websocket.receive()
            before = asyncio.get_running_loop().time()
            await engine.__aexit__(None, None, None)
            assert asyncio.get_running_loop().time() - before < 20
        with pytest.raises(aiohttp.ClientError):
            await hanging


async def test_a_sleeping_prompt_that_is_woken_succeeds_at_once(engine: Engine, target: Target) -> None:
    async with target.session.post("/prompt", json={"prompt": sleeping()}) as response:
        prompt_id = (await response.json())["prompt_id"]
    engine.wake(prompt_id)
    async with asyncio.timeout(30):
        while not (entry := await target.history(prompt_id)):
            await asyncio.sleep(0.01)
    assert entry[prompt_id]["status"]["status_str"] == "success"


async def test_the_engine_says_that_it_is_a_simulation(target: Target) -> None:
    assert (await target.get_json("/system_stats"))["system"]["simulation"] is True
    async with target.session.get("/") as response:
        assert "simulation" in await response.text()


async def test_text_and_seed_decide_the_picture_and_it_carries_the_mark(target: Target) -> None:
    async def draw(**choices: Any) -> Image.Image:
        run = await target.run(txt2img(uuid.uuid4().hex, **choices))
        return await target.picture(run.entry["outputs"]["9"]["images"][0])

    async with target.session.post("/free", json={"free_memory": True}):
        first = await draw(text="a red fox", seed=5)
    await target.run(inverted("in between"))
    same = await draw(text="a red fox", seed=5)
    assert (first.size, first.mode) == ((128, 96), "RGB")
    assert first.tobytes() == same.tobytes()
    for other in (await draw(text="a red fox", seed=6), await draw(text="a blue fox", seed=5)):
        assert other.tobytes() != first.tobytes()
    # The mark is light text on a dark plate at the lower right.
    corner = first.crop((60, 80, 128, 96)).convert("L")
    low, high = corner.getextrema()
    assert isinstance(low, int | float)
    assert isinstance(high, int | float)
    assert high > 200
    assert low < 100


async def test_denoise_decides_how_much_of_the_input_image_is_redrawn(target: Target) -> None:
    async def draw(denoise: float) -> Image.Image:
        prompt = txt2img(uuid.uuid4().hex)
        prompt["1"] = empty(color=0x00FF00, width=130, height=97)
        prompt["2"] = node("VAEEncode", pixels=["1", 0], vae=["4", 2])
        prompt["3"]["inputs"] |= {"latent_image": ["2", 0], "denoise": denoise}
        run = await target.run(prompt)
        return await target.picture(run.entry["outputs"]["9"]["images"][0])

    kept, drawn = await draw(0.0), await draw(1.0)
    assert kept.size == (128, 96)
    assert kept.getpixel((3, 3)) == (0, 255, 0)
    assert ImageChops.difference(kept, drawn).getbbox() is not None


async def test_a_lora_changes_the_picture(target: Target) -> None:
    plain = await target.run(txt2img("plain"))
    prompt = txt2img("lora")
    lora = {"lora_name": "add_detail.safetensors", "strength_model": 0.5, "strength_clip": 0.5}
    prompt["10"] = node("LoraLoader", model=["4", 0], clip=["4", 1], **lora)
    prompt["3"]["inputs"]["model"] = ["10", 0]
    changed = await target.run(prompt)
    pictures = [await target.picture(run.entry["outputs"]["9"]["images"][0]) for run in (plain, changed)]
    assert pictures[0].tobytes() != pictures[1].tobytes()


async def sampling_frames(target: Target, flags: dict[str, bool] | None) -> tuple[list[bytes], list[dict[str, Any]]]:
    """The binary frames and the `progress` messages of one text-to-image prompt with three steps."""
    binary: list[bytes] = []
    progress: list[dict[str, Any]] = []
    async with target.socket() as socket:
        if flags is not None:
            await socket.websocket.send_json({"type": "feature_flags", "data": flags})
            await socket.until("feature_flags")
        await target.submit(txt2img(uuid.uuid4().hex), client_id=socket.client_id)
        async for frame in socket.websocket:
            if frame.type is aiohttp.WSMsgType.BINARY:
                binary.append(frame.data)
                continue
            message = json.loads(frame.data)
            if message["type"] == "progress":
                progress.append(message["data"])
            if message["type"] == "executing" and message["data"]["node"] is None:
                break
    return binary, progress


async def test_each_step_sends_progress_and_a_preview(target: Target) -> None:
    binary, progress = await sampling_frames(target, None)
    assert [(data["value"], data["max"], data["node"]) for data in progress] == [(1, 3, "3"), (2, 3, "3"), (3, 3, "3")]
    assert len(binary) == 3
    for frame in binary:
        assert struct.unpack(">II", frame[:8]) == (1, 1)
        assert Image.open(BytesIO(frame[8:])).format == "JPEG"


async def test_previews_carry_metadata_for_clients_that_declared_it(target: Target) -> None:
    binary, progress = await sampling_frames(target, {"supports_preview_metadata": True})
    kind, length = struct.unpack(">II", binary[0][:8])
    metadata = json.loads(binary[0][8 : 8 + length])
    assert kind == 4
    assert (metadata["node_id"], metadata["image_type"]) == ("3", "image/jpeg")
    assert metadata["prompt_id"] == progress[0]["prompt_id"]
    assert Image.open(BytesIO(binary[0][8 + length :])).format == "JPEG"


async def test_a_reconnecting_client_gets_the_node_that_runs_now(target: Target) -> None:
    client_id = uuid.uuid4().hex
    async with target.socket(client_id) as socket:
        await target.submit(sleeping(), client_id=client_id)
        await socket.until("executing", node="1")
    async with target.socket(client_id) as socket:
        await socket.until("executing", node="1")


async def test_front_and_number_decide_which_prompt_runs_next(target: Target) -> None:
    async with target.socket() as socket:
        _, first = await target.submit(sleeping(), client_id=socket.client_id)
        await socket.until("executing", node="1")
        submitted: dict[str, str] = {}
        bodies: dict[str, dict[str, Any]] = {"plain": {}, "front": {"front": True}, "number": {"number": -100.0}}
        for name, body in bodies.items():
            prompt = inverted(name, color=len(submitted))
            _, answer = await target.submit(prompt, client_id=socket.client_id, **body)
            submitted[answer["prompt_id"]] = name
        await target.session.post("/interrupt", json={"prompt_id": first["prompt_id"]})
        seen: list[str] = []
        while len(seen) < 3:
            message = await socket.next()
            if message["type"] == "execution_start" and message["data"]["prompt_id"] in submitted:
                seen.append(submitted[message["data"]["prompt_id"]])
    assert seen == ["number", "front", "plain"]


async def test_output_files_can_have_any_size_and_type(target: Target) -> None:
    run = await target.run(writing(count=2, size=3_000_001, extension="mp4", key="gifs"))
    files = run.entry["outputs"]["1"]["gifs"]
    assert [file["filename"] for file in files] == ["written_00001_.mp4", "written_00002_.mp4"]
    body = await target.view(files[1])
    assert len(body) == 3_000_001
    assert body[:300] == bytes(range(256)) + bytes(range(44))


async def test_sound_and_video_outputs_are_real_files_under_their_keys(target: Target) -> None:
    prompt = {
        "1": node("EmptyAudio", duration=0.1, sample_rate=8000, channels=2),
        "2": node("SaveAudio", audio=["1", 0], filename_prefix="audio/sound"),
        "3": empty(batch_size=3),
        "4": node("CreateVideo", images=["3", 0], fps=10.0),
        "5": node("SaveVideo", video=["4", 0], filename_prefix="video/clip", format="auto", codec="auto"),
    }
    outputs = (await target.run(prompt)).entry["outputs"]
    (sound,) = outputs["2"]["audio"]
    assert sound["subfolder"] == "audio"
    body = await target.view(sound)
    assert (body[:4], body[8:12], len(body)) == (b"RIFF", b"WAVE", 44 + 800 * 4)
    assert outputs["5"]["animated"] == [True]
    assert (await target.picture(outputs["5"]["images"][0])).format == "WEBP"


async def test_a_failing_node_reports_the_requested_exception(target: Target) -> None:
    prompt = {
        "1": node("SimulatedError", exception_type="torch.OutOfMemoryError", message="no memory"),
        "2": node("PreviewAny", source=["1", 0]),
    }
    run = await target.run(prompt)
    (error,) = run.of_type("execution_error")
    assert error["exception_type"] == "torch.OutOfMemoryError"
    assert error["exception_message"].startswith("no memory\nThis error means you ran out of memory on your GPU.")


async def test_stats_count_requests_by_route_and_executions_by_prompt(target: Target) -> None:
    run = await target.run(inverted("counted"))
    await target.get_json(f"/api/history/{run.prompt_id}")
    async with target.socket():
        stats = await target.get_json("/engine/stats")
    assert stats["requests"] == {"GET /ws": 2, "POST /prompt": 1, "GET /history/{prompt_id}": 2}
    assert stats["executed"] == {run.prompt_id: 1}
    assert stats["websockets"] == 1
    async with target.session.delete("/engine/stats") as response:
        assert response.status == 200
    stats = await target.get_json("/engine/stats")
    assert (stats["requests"], stats["executed"]) == ({}, {})


async def test_a_thousand_prompts_can_wait_and_be_deleted(target: Target) -> None:
    async with target.socket() as socket:
        await target.submit(sleeping(), client_id=socket.client_id)
        await socket.until("executing", node="1")
    ids = [str(uuid.uuid4()) for _ in range(1000)]
    for start in range(0, len(ids), 100):
        await asyncio.gather(*(target.submit(inverted("w"), prompt_id=one) for one in ids[start : start + 100]))
    assert (await target.get_json("/prompt"))["exec_info"]["queue_remaining"] == 1001
    await target.session.post("/queue", json={"delete": ids[:999]})
    queue = await target.get_json("/queue")
    assert [item[1] for item in queue["queue_pending"]] == ids[999:]


@pytest.mark.parametrize(
    "unseen",
    [
        pytest.param({"9": {"class_type": "EmptyImage"}}, id="no inputs, feeds nothing"),
        pytest.param({"2": node("ImageInvert", image=["1", 0], undeclared=["99", 0])}, id="undeclared link to nowhere"),
    ],
)
async def test_a_broken_prompt_that_passes_validation_kills_the_prompt_thread_as_in_comfyui(
    target: Target, unseen: dict[str, Any]
) -> None:
    broken = {**inverted("broken"), **unseen}
    async with target.socket() as socket:
        status, answer = await target.submit(broken, client_id=socket.client_id)
        assert status == 200
        await socket.until("execution_start")
        assert (await target.submit(inverted("never")))[0] == 200
    queue = await target.get_json("/queue")
    assert [item[1] for item in queue["queue_running"]] == [answer["prompt_id"]]
    assert len(queue["queue_pending"]) == 1


async def start(*arguments: str) -> tuple[asyncio.subprocess.Process, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "comfyui.engine", "--port", "0", *arguments, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    line = (await process.stdout.readline()).decode()
    found = re.search(r"http://\S+", line)
    assert found, line
    assert "simulat" in line
    return process, found.group()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_the_command_line_serves_until_it_gets_a_signal(number: signal.Signals, tmp_path: Path) -> None:
    process, url = await start("--base-directory", str(tmp_path), "--comfyui-version", "0.3.64", "--fault", "ws_refuse")
    async with aiohttp.ClientSession(url) as session:
        async with session.get("/system_stats") as response:
            assert (await response.json())["system"]["comfyui_version"] == "0.3.64"
        async with session.get("/engine/faults") as response:
            assert await response.json() == {"ws_refuse": [{}]}
        async with session.post("/prompt", json={"prompt": sleeping()}) as response:
            assert response.status == 200
    process.send_signal(number)
    assert await asyncio.wait_for(process.wait(), 30) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["input", "output", "temp", "user"]


async def test_the_command_line_refuses_an_unknown_fault() -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "comfyui.engine", "--fault", "no_such", stderr=asyncio.subprocess.PIPE
    )
    _, stderr = await process.communicate()
    assert process.returncode == 2
    assert b"there is no fault 'no_such'" in stderr


def test_a_starting_prompt_is_always_listed_as_pending_or_running() -> None:
    """Otherwise a gateway that asks at this moment would believe the prompt lost and submit it again."""
    queue = PromptQueue(lambda: None)
    seen: list[list[str]] = []

    def look() -> None:
        seen.append([item.prompt_id for items in queue.listed() for item in items])

    looking = threading.Thread(target=look)

    class Beginning(dict[str, Any]):
        def __deepcopy__(self, memo: dict[int, Any]) -> dict[str, Any]:
            looking.start()
            looking.join(0.2)
            return {}

    queue.put(QueuedPrompt(0, "it", Beginning(), {}, []))
    assert queue.get() is not None
    looking.join(30)
    assert seen == [["it"]]
