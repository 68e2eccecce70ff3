"""Video and sound through the gateway: whole workflows, on the engine and on a real ComfyUI."""

from __future__ import annotations

import io
import json
import wave
import zipfile
from typing import Any

import aiohttp
import pytest

from comfyui.inputs.content import sniff
from tests.support.running import RunningGateway
from tests.support.target import Target, any_color, empty, node


def video(prefix: str) -> dict[str, Any]:
    save = {"filename_prefix": f"{prefix}/video", "format": "auto", "codec": "auto"}
    return {
        "1": empty(color=any_color(), batch_size=6),
        "2": node("CreateVideo", images=["1", 0], fps=6.0),
        "3": node("SaveVideo", video=["2", 0], **save),
    }


def sound(seconds: float = 0.5) -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(8000)
        writer.writeframes(bytes(range(256)) * int(seconds * 8000 * 2 / 256))
    return buffer.getvalue()


async def test_a_video_is_sent_as_its_bytes(gateway: RunningGateway, target: Target) -> None:
    body = {"prompt": video(target.prefix)}
    accept = {"Accept": "video/*" if target.is_real else "image/webp"}  # the engine has no encoder for MP4
    async with gateway.http.post("/prompt_sync", json=body, headers=accept) as response:
        content = await response.read()
        assert response.status == 200, content
        assert response.content_type == ("video/mp4" if target.is_real else "image/webp")
        assert int(response.headers["Content-Length"]) == len(content)
    assert sniff(content[:4096]) == (".mp4" if target.is_real else ".webp")


async def test_a_video_is_listed_and_never_converted(gateway: RunningGateway, target: Target) -> None:
    if not target.is_real:
        pytest.skip("the engine's video of a single colour is a still image")
    status, body = await gateway.prompt_sync(video(target.prefix), return_image_base64=True, convert={"format": "jpeg"})
    (entry,) = body["images"]
    assert (status, entry["node_id"], entry["converted"]) == (200, "3", False)
    assert entry["reason"] == "not an image"
    assert entry["base64"]


async def test_a_webm_and_a_sound_are_sent_in_one_archive(gateway: RunningGateway, target: Target) -> None:
    if not target.is_real:
        pytest.skip("the engine has no SaveWEBM")
    workflow = {
        "1": empty(color=any_color(), batch_size=4),
        "2": node("SaveWEBM", images=["1", 0], filename_prefix=f"{target.prefix}/a", codec="vp9", fps=4.0, crf=32.0),
        "3": node("EmptyAudio", duration=0.5, sample_rate=44100, channels=1),
        "4": node("SaveAudio", audio=["3", 0], filename_prefix=f"{target.prefix}/b"),
    }
    accept = {"Accept": "application/zip"}
    async with gateway.http.post("/prompt_sync", json={"prompt": workflow}, headers=accept) as response:
        content = await response.read()
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert archive.testzip() is None
        kinds = [sniff(archive.read(name)[:4096]) for name in archive.namelist()]
    assert kinds == [".webm", ".flac"]


async def test_an_uploaded_sound_can_be_loaded_and_saved(gateway: RunningGateway, target: Target) -> None:
    """The form brings a WAV file for LoadAudio and SaveAudio; the answer is the sound itself."""
    if not target.is_real:
        pytest.skip("the engine has no LoadAudio")
    workflow = {
        "1": node("LoadAudio", audio="voice.wav"),
        "2": node("SaveAudio", audio=["1", 0], filename_prefix=f"{target.prefix}/sound"),
    }
    form = aiohttp.FormData()
    form.add_field("workflow", json.dumps(workflow))
    form.add_field("audio", io.BytesIO(sound()), filename="voice.wav")
    async with gateway.http.post("/prompt_sync", data=form, headers={"Accept": "audio/*"}) as response:
        content = await response.read()
        assert response.status == 200, content
        assert response.content_type == "audio/flac"
    assert content.startswith(b"fLaC")


async def test_a_sound_is_listed_under_its_key(gateway: RunningGateway, target: Target) -> None:
    workflow = {
        "1": node("EmptyAudio", duration=0.25, sample_rate=44100, channels=1),
        "2": node("SaveAudio", audio=["1", 0], filename_prefix=f"{target.prefix}/silence"),
    }
    status, body = await gateway.prompt_sync(workflow)
    assert (status, list(body["outputs"]["2"])) == (200, ["audio"])
    assert body["images"][0]["content_type"].startswith("audio/")


async def test_events_name_the_executed_nodes_in_order(gateway: RunningGateway, target: Target) -> None:
    headers = {"Accept": "text/event-stream"}
    async with gateway.http.post("/prompt_sync", json={"prompt": video(target.prefix)}, headers=headers) as response:
        text = (await response.read()).decode()
    events = [block.split("\n")[0].removeprefix("event: ") for block in text.strip().split("\n\n")]
    assert events[0] == "queued"
    assert events[-1] == "result"
    started = [json.loads(block.split("data: ")[1]) for block in text.split("\n\n") if block.startswith("event: exec")]
    assert [event["class_type"] for event in started] == ["EmptyImage", "CreateVideo", "SaveVideo"]
