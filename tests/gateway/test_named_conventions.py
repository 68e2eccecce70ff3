"""Workflow files that were made for other tools run as named workflows, without the node packs of these tools."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from PIL import Image

from comfyui.engine import Engine
from tests.support.named import node, write
from tests.support.named_folder import run
from tests.support.running import RunningGateway, graphs_of, running_gateway
from tests.support.url_server import Server

DEPLOY: dict[str, Any] = {
    "1": node("ComfyUIDeployExternalImage", input_id="photo", default_value=["2", 0], display_name="Your photo"),
    "2": node("EmptyImage", width=16, height=12, batch_size=1, color=255),
    "3": node("ImageScaleBy", image=["1", 0], upscale_method=["4", 0], scale_by=["5", 0]),
    "4": node("ComfyUIDeployExternalEnum", input_id="method", default_value="area", options='["area", "lanczos"]'),
    "5": node("ComfyUIDeployExternalNumberSlider", input_id="factor", default_value=2.0, min_value=1, max_value=4),
    "6": node("ComfyDeployOutputImage", images=["3", 0], filename_prefix="big", quality=80, output_id="large"),
    "7": node("PreviewImage", images=["1", 0]),
}


@asynccontextmanager
async def gateway_with(
    engine: Engine, folder: Path, prompt: dict[str, Any], **settings: Any
) -> AsyncIterator[RunningGateway]:
    write(folder, "tool", prompt)
    async with running_gateway(engine.url, workflows_dir=folder, **settings) as gateway:
        yield gateway


async def sizes(gateway: RunningGateway, answer: dict[str, Any]) -> list[tuple[int, int]]:
    """The sizes of the pictures of an answer."""
    found = []
    for image in answer["images"]:
        async with gateway.http.get(image["url"]) as response:
            found.append(Image.open(io.BytesIO(await response.read())).size)
    return found


async def test_a_file_of_comfyui_deploy_runs_without_its_pack(
    engine: Engine, tmp_path: Path, url_server: Server
) -> None:
    async with gateway_with(engine, tmp_path / "workflows", DEPLOY, input_url_allow=["127.0.0.1"]) as gateway:
        status, answer = await run(gateway.http, "tool", {"factor": "3", "method": "lanczos"})
        assert status == 200, answer
        assert await sizes(gateway, answer) == [(48, 36)]
        assert [image["output"] for image in answer["images"]] == ["large"]
        status, answer = await run(gateway.http, "tool", {"photo": url_server.url()})
        assert status == 200, answer
        assert await sizes(gateway, answer) == [(16, 16)]
        form = aiohttp.FormData()
        form.add_field("photo", url_picture(), filename="mine.png", content_type="image/png")
        form.add_field("factor", "1")
        async with gateway.http.post("/workflows/tool", data=form) as response:
            assert response.status == 200, await response.text()
            assert await sizes(gateway, await response.json()) == [(20, 10)]
    graphs = await graphs_of(engine)
    assert len(graphs) == 3
    assert "ComfyUIDeploy" not in str(graphs)
    assert url_server.url() not in str(graphs)


def url_picture() -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (20, 10), "red").save(content, "PNG")
    return content.getvalue()


async def test_wrong_values_for_a_tools_inputs_are_refused_by_name(engine: Engine, tmp_path: Path) -> None:
    async with gateway_with(engine, tmp_path / "workflows", DEPLOY) as gateway:
        status, answer = await run(gateway.http, "tool", {"factor": 9, "method": "bicubic", "photo": 3, "size": 1})
        assert status == 422
        assert sorted(answer["parameters"]) == ["factor", "method", "photo", "size"]
        assert answer["parameters"]["method"]["allowed"] == ["area", "lanczos"]
        async with gateway.http.get("/workflows/tool") as response:
            told = await response.json()
    assert [server["problems"] for server in told["servers"]] == [[]]


async def test_a_url_inside_a_workflow_is_fetched_by_the_gateway_only_if_allowed(
    engine: Engine, tmp_path: Path, url_server: Server
) -> None:
    """The server fetches nothing itself, and the gateway applies the same rules as to URLs of callers."""
    prompt = {
        "1": node("ComfyUIDeployExternalImage", input_id="photo", default_value_url=url_server.url()),
        "2": node("SaveImage", images=["1", 0], filename_prefix="x"),
    }
    async with gateway_with(engine, tmp_path / "workflows", prompt) as gateway:
        status, answer = await run(gateway.http, "tool", {})
        assert status == 400, answer
    assert url_server.requests == []
    async with gateway_with(engine, tmp_path / "workflows", prompt, input_url_allow=["127.0.0.1"]) as gateway:
        status, answer = await run(gateway.http, "tool", {})
        assert status == 200, answer
        assert await sizes(gateway, answer) == [(8, 8)]


@pytest.mark.parametrize(
    ("prompt", "values", "text"),
    [
        (
            {
                "1": node("CPackInputString", "words", value="own"),
                "2": node("PreviewAny", source=["1", 0]),
            },
            {"words": "given"},
            "given",
        ),
        (
            {
                "0": node("DiscordServing", discord_token="secret"),
                "1": node("ServingInputText", serving_config=["0", 0], argument="words", default="own"),
                "2": node("ServingTextOutput", serving_config=["0", 0], text=["1", 0]),
                "3": node("AlwaysExecute", serving_config=["0", 0], should_execute=["2", 0]),
            },
            {"words": "given"},
            "given",
        ),
        ({"2": node("PreviewAny", source="PARAM_WORDS")}, {"words": "given"}, "given"),
        (
            {"1": node("PrimitiveString", "VC_BASIC Words", value="own"), "2": node("PreviewAny", source=["1", 0])},
            {},
            "own",
        ),
    ],
    ids=["CPack", "Discord serving", "PARAM_", "VC_BASIC"],
)
async def test_files_of_other_tools_run_too(
    engine: Engine, tmp_path: Path, prompt: dict[str, Any], values: dict[str, Any], text: str
) -> None:
    async with gateway_with(engine, tmp_path / "workflows", prompt) as gateway:
        status, answer = await run(gateway.http, "tool", values)
        assert status == 200, answer
    assert text in str(answer["outputs"])
    assert "secret" not in str(await graphs_of(engine))
