"""The gateway in front of the engine and of a real ComfyUI keeps the same promises."""

from __future__ import annotations

import asyncio
import base64
import io
import secrets
from typing import Any
from uuid import uuid4

import aiohttp
import pytest
from PIL import Image

from comfyui.client import ComfyUIClient
from tests.support.running import RunningGateway, invert_workflow
from tests.support.target import Target


def fresh(color: int | None = None) -> dict[str, Any]:
    """A workflow that no server has in its cache."""
    return invert_workflow(secrets.randbelow(0xFFFFFF) if color is None else color, prefix=f"gw_{uuid4().hex[:8]}")


def slow() -> dict[str, Any]:
    """Seconds of work without a model, in many short nodes, because an interruption takes effect between nodes."""
    workflow = invert_workflow(secrets.randbelow(0xFFFFFF), width=256, height=256, prefix="gw_slow")
    last = "2"
    for index in range(10, 160):
        workflow[str(index)] = {
            "class_type": "ImageBlur",
            "inputs": {"image": [last, 0], "blur_radius": 31, "sigma": 9.0},
        }
        last = str(index)
    workflow["3"]["inputs"]["images"] = [last, 0]
    return workflow


async def test_the_picture_is_the_file_that_comfyui_saved(gateway: RunningGateway, target: Target) -> None:
    status, body = await gateway.prompt_sync(fresh(0x2040FF), return_image_base64=True)
    assert status == 200
    file = body["images"][0]
    content = base64.b64decode(file["base64"], validate=True)
    async with aiohttp.ClientSession(target.url) as http, http.get(file["url"]) as response:
        assert content == await response.read()
    with Image.open(io.BytesIO(content)) as image:
        assert (image.size, image.mode) == ((16, 12), "RGB")
        assert image.getpixel((0, 0)) == (0xFF - 0x20, 0xFF - 0x40, 0)
    assert set(body["outputs"]) == {"3"}
    assert body["execution_time"] > 0


@pytest.mark.parametrize(
    "name",
    ["my photo.png", "фото ü.png", "a+b&c.png", "100%.png", 'say "hi".png', "a;b;c.png", "a%20b.png", "a\\b.png"],
)
async def test_an_upload_is_stored_under_the_requested_name(target: Target, name: str) -> None:
    folder = f"names {uuid4().hex[:8]} ü"
    async with ComfyUIClient(target.url) as client:
        answer = await client.upload_image(name, b"content", subfolder=folder)
        assert answer == {"name": name, "subfolder": folder, "type": "input"}
        async with client.view(name, folder, "input") as view:
            assert b"".join([chunk async for chunk in view]) == b"content"


async def test_an_uploaded_picture_can_be_loaded_by_its_plain_name(gateway: RunningGateway) -> None:
    """The workflow names the file itself, as for a custom loader; an upload widget's value would be rewritten."""
    name = f"my photo ü {uuid4().hex[:8]}.png"
    file = io.BytesIO()
    Image.new("RGB", (5, 4), (9, 8, 7)).save(file, "PNG")
    image = {"name": name, "image": base64.b64encode(file.getvalue()).decode(), "subfolder": "h1 dir"}
    assert (await gateway.prompt_sync(fresh(), images=[image]))[0] == 200
    workflow = fresh()
    workflow["1"] = {"class_type": "LoadImage", "inputs": {"image": f"h1 dir/{name}"}}
    status, body = await gateway.prompt_sync(workflow)
    assert status == 200, body


async def test_many_callers_each_get_their_own_picture(gateway: RunningGateway) -> None:
    colors = [0x010101 * n for n in range(12)]
    results = await asyncio.gather(*(gateway.prompt_sync(fresh(color), return_image_base64=True) for color in colors))
    for color, (status, body) in zip(colors, results, strict=True):
        assert status == 200
        with Image.open(io.BytesIO(base64.b64decode(body["images"][0]["base64"]))) as image:
            assert image.getpixel((0, 0)) == tuple(255 - (color >> shift & 0xFF) for shift in (16, 8, 0))


async def test_a_request_can_bring_its_input_image(gateway: RunningGateway) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (20, 10), (secrets.randbelow(256), 100, 50)).save(buffer, "PNG")
    workflow = {
        "1": {"class_type": "LoadImage", "inputs": {"image": "photo.png"}},
        "2": {"class_type": "ImageInvert", "inputs": {"image": ["1", 0]}},
        "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": f"gw_{uuid4().hex[:8]}"}},
    }
    images = [{"name": "photo.png", "image": base64.b64encode(buffer.getvalue()).decode()}]
    status, body = await gateway.prompt_sync(workflow, images=images, return_image_base64=True)
    assert status == 200, body
    with Image.open(io.BytesIO(base64.b64decode(body["images"][0]["base64"]))) as image:
        assert image.size == (20, 10)
        assert image.getpixel((0, 0))[1:] == (155, 205)  # type: ignore[index]


async def test_a_refused_workflow_names_the_node(gateway: RunningGateway) -> None:
    workflow = fresh()
    workflow["1"]["inputs"]["width"] = 0
    status, body = await gateway.prompt_sync(workflow)
    assert (status, body["type"], list(body["node_errors"])) == (400, "validation_failed", ["1"])


async def test_a_timeout_interrupts_the_running_prompt(gateway: RunningGateway, target: Target) -> None:
    status, body = await gateway.prompt_sync(slow(), timeout=0.3)
    assert (status, body["type"]) == (504, "timeout")
    async with asyncio.timeout(20), aiohttp.ClientSession(target.url) as http:
        while True:
            async with http.get("/prompt") as response:
                if (await response.json())["exec_info"]["queue_remaining"] == 0:
                    break
            await asyncio.sleep(0.05)
        async with http.get(f"/history/{body['prompt_id']}") as response:
            entry = (await response.json()).get(body["prompt_id"])
    assert entry is None or entry["status"]["status_str"] == "error"


async def test_requests_with_the_same_idempotency_key_run_once(gateway: RunningGateway) -> None:
    workflow, headers = fresh(), {"Idempotency-Key": uuid4().hex}
    answers = []
    for _ in range(2):
        async with gateway.http.post("/prompt_sync", json={"prompt": workflow}, headers=headers) as response:
            answers.append(await response.json())
    assert answers[0]["outputs"] == answers[1]["outputs"]
    assert answers[0]["prompt_id"] == answers[1]["prompt_id"]


async def test_a_caller_can_attach_to_a_prompt_from_comfyuis_own_endpoint(gateway: RunningGateway) -> None:
    async with gateway.http.post("/prompt", json={"prompt": fresh()}) as response:
        prompt_id = (await response.json())["prompt_id"]
    async with gateway.http.get(f"/prompt_sync/{prompt_id}") as response:
        assert response.status == 200
        assert (await response.json())["images"]
