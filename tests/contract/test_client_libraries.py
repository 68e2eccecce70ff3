"""Published client libraries of ComfyUI, unchanged: they only get the gateway's address."""

from __future__ import annotations

import asyncio
import io
import json
import shutil
import uuid
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from comfyui.engine import NEW_VERSION
from tests.support.running import RunningGateway
from tests.support.target import Target, any_color, inverted

_NODE_CLIENT = Path(__file__).parent / "node_client"


def _workflow() -> dict[str, Any]:
    return inverted("library", color=any_color(), width=40, height=24)


def _size(picture: bytes) -> tuple[int, int]:
    with Image.open(io.BytesIO(picture)) as image:
        return image.size


async def test_comfy_api_simplified_works_through_the_gateway(gateway: RunningGateway, tmp_path: Path) -> None:
    """The library uses requests and websockets."""
    await _comfy_api_simplified(gateway.url, "", tmp_path)


async def test_comfy_api_simplified_works_with_a_users_key_or_three_servers(
    merged: tuple[RunningGateway, str], tmp_path: Path
) -> None:
    gateway, key = merged
    await _comfy_api_simplified(gateway.url, key, tmp_path)


async def _comfy_api_simplified(url: str, key: str, tmp_path: Path) -> None:
    library = pytest.importorskip("comfy_api_simplified")
    picture = tmp_path / f"{uuid.uuid4().hex}.png"
    Image.new("RGB", (8, 8), any_color()).save(picture)

    def use() -> None:
        api = library.ComfyApiWrapper(url, user="any" if key else "", password=key)
        workflow = library.ComfyWorkflowWrapper.__new__(library.ComfyWorkflowWrapper)
        workflow.update(_workflow())
        for node in workflow.values():
            node["_meta"] = {"title": node["class_type"]}
        workflow.set_node_param("EmptyImage", "width", 56)
        results = api.queue_and_wait_images(workflow, "SaveImage")
        assert [_size(image) for image in results.values()] == [(56, 24)]
        assert api.upload_image(str(picture))["name"] == picture.name
        assert "EmptyImage" in api.get_object_info()
        assert "system" in api.get_system_stats()
        bad = _workflow()
        bad["3"]["inputs"]["images"] = ["9", 0]
        with pytest.raises(library.exceptions.ComfyApiError, match="400"):
            api.queue_prompt(bad)

    # The library blocks, so it runs in a thread.
    await asyncio.to_thread(use)


async def test_comfyui_utils_works_through_the_gateway(gateway: RunningGateway) -> None:
    """The library uses aiohttp: it posts, then opens its websocket, and reads the whole queue and history."""
    await _comfyui_utils(gateway.url.removeprefix("http://"))


async def test_comfyui_utils_works_with_a_users_key_or_three_servers(merged: tuple[RunningGateway, str]) -> None:
    gateway, key = merged
    await _comfyui_utils(f"{f'any:{key}@' if key else ''}{gateway.url.removeprefix('http://')}")


async def _comfyui_utils(address: str) -> None:
    library = pytest.importorskip("comfyui_utils.comfy")
    outputs: list[dict[str, Any]] = []
    pictures: list[bytes] = []

    class Callbacks(library.Callbacks):  # type: ignore[misc, name-defined]
        async def queue_position(self, position: str) -> None: ...

        async def in_progress(self, node_id: int, progress: int, total: int) -> None: ...

        async def completed(self, found: dict[str, Any], cached: bool) -> None:
            outputs.append(found)

    async def keep(file: io.BytesIO) -> None:
        pictures.append(file.read())

    api = library.ComfyAPI(address)
    await asyncio.wait_for(api.submit(_workflow(), Callbacks()), 20)
    await api.fetch(outputs[0]["images"][0], keep)

    assert [_size(picture) for picture in pictures] == [(40, 24)]


async def test_stable_canvas_comfyui_client_works_through_the_gateway(gateway: RunningGateway, target: Target) -> None:
    """The library runs on Node and uses fetch and ws."""
    await _stable_canvas_comfyui_client(gateway, target.version)


async def test_stable_canvas_comfyui_client_works_with_three_servers(three_servers: RunningGateway) -> None:
    await _stable_canvas_comfyui_client(three_servers, NEW_VERSION)


async def _stable_canvas_comfyui_client(gateway: RunningGateway, version: str) -> None:
    node = shutil.which("node")
    if node is None or not (_NODE_CLIENT / "node_modules").is_dir():
        pytest.skip(f"no Node or no packages: npm install --no-package-lock in {_NODE_CLIENT.name}/")
    host = gateway.url.removeprefix("http://")
    process = await asyncio.create_subprocess_exec(
        node,
        str(_NODE_CLIENT / "run.cjs"),
        host,
        json.dumps(_workflow()),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, errors = await asyncio.wait_for(process.communicate(), 30)

    assert process.returncode == 0, errors.decode()
    seen = json.loads(out.decode().splitlines()[-1])
    assert seen["version"] == version
    assert seen["nodes"] > 10
    assert seen["history"] > 0
    assert f"http://{host}" in seen["images"][0]["data"]
