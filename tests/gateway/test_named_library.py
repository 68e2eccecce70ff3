"""Named workflows in a running gateway: the examples, choices of several servers, and files of the editor."""

from __future__ import annotations

import base64
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

from comfyui import jsonio
from comfyui.engine import Engine, EngineOptions
from comfyui.named.binding import bind
from comfyui.named.parameters import NamedWorkflow
from config import GatewayOptions
from tests.support.named import write
from tests.support.named_folder import run
from tests.support.outputs import png
from tests.support.running import RunningGateway, executions, running_gateway, until

EXAMPLES = Path(__file__).parents[2] / "examples" / "workflows"
PICTURE = base64.b64encode(png("teal", 64, 48)).decode()


async def test_every_example_runs() -> None:
    async with Engine(EngineOptions()) as engine, running_gateway(engine.url, workflows_dir=EXAMPLES) as gateway:
        named = gateway.app.running.named

        async def image_kind() -> str:
            return named.get("upscale").by_name["image"].kind

        await until(image_kind, lambda kind: kind == "file")
        for one in named.all():
            assert isinstance(one, NamedWorkflow), one
            assert one.warnings == ()
            values = {**one.example, **({"image": PICTURE} if "image" in one.by_name else {})}
            found = bind(one, values, rng=Random(1))  # noqa: S311
            images = [image.model_dump() for image in found.images]
            status, body = await gateway.prompt_sync(found.prompt, images=images)
            assert (status, body.get("detail")) == (200, None)
            assert [file["node_id"] for file in body["images"]] == list(found.call.outputs)


async def test_the_error_of_a_url_that_cannot_be_fetched_names_its_parameter(named: RunningGateway) -> None:
    status, body = await run(named.http, "inverted", {"image": "http://127.0.0.1:9/a.png"})
    assert (status, body["type"], body["detail"].partition(": ")[0]) == (400, "input_failed", "image")


async def test_choices_are_those_of_all_servers_and_run_on_a_server_that_has_them(tmp_path: Path) -> None:
    example = jsonio.loads((EXAMPLES / "text-to-image.json").read_bytes())
    write(tmp_path, "picture", example)
    async with AsyncExitStack() as stack:
        models = (["one.safetensors"], ["two.safetensors"])
        first, second = [
            await stack.enter_async_context(Engine(EngineOptions(models={"checkpoints": each}))) for each in models
        ]
        gateway = await stack.enter_async_context(running_gateway(first.url, second.url, workflows_dir=tmp_path))
        library = gateway.app.running.named

        async def choices() -> Any:
            return library.get("picture").by_name["checkpoint"].choices

        await until(choices, lambda found: found == ["one.safetensors", "two.safetensors"])
        for name, engine in (("one.safetensors", first), ("two.safetensors", second)):
            status, body = await run(gateway.http, "picture", {"checkpoint": name})
            assert (status, body.get("detail")) == (200, None)
            assert len(executions(engine)) == 1
        status, body = await run(gateway.http, "picture", {"checkpoint": "tow.safetensors"})
        assert (status, body["parameters"]["checkpoint"]["closest"]) == (422, "two.safetensors")


async def test_a_model_that_was_just_installed_is_accepted(tmp_path: Path) -> None:
    write(tmp_path, "picture", jsonio.loads((EXAMPLES / "text-to-image.json").read_bytes()))
    models = {"checkpoints": ["one.safetensors"]}

    def changed(made: GatewayOptions) -> GatewayOptions:
        return replace(made, named=replace(made.named, renew_s=0.0))

    async with (
        Engine(EngineOptions(models=models)) as engine,
        running_gateway(engine.url, workflows_dir=tmp_path, changed=changed) as gateway,
    ):
        status, body = await run(gateway.http, "picture", {"checkpoint": "new.safetensors"})
        assert (status, body["parameters"]["checkpoint"]["allowed"]) == (422, ["one.safetensors"])
        models["checkpoints"].append("new.safetensors")

        async def picture() -> tuple[int, Any]:
            return await run(gateway.http, "picture", {"checkpoint": "new.safetensors"})

        # The gateway does not read the node definitions again within one second.
        status, body = await until(picture, lambda answer: answer[0] != 422)
        assert (status, body.get("detail")) == (200, None)


async def test_a_file_of_the_editor_takes_its_parameters_from_node_titles(engine: Engine, tmp_path: Path) -> None:
    nodes = [
        {"id": 1, "type": "LoadImage", "title": "$image", "widgets_values": ["none.png", "image"]},
        {"id": 2, "type": "ImageInvert", "inputs": [{"name": "image", "type": "IMAGE", "link": 1}]},
        {
            "id": 3,
            "type": "SaveImage",
            "title": "output:negative",
            "inputs": [{"name": "images", "type": "IMAGE", "link": 2}],
            "widgets_values": ["negative"],
        },
    ]
    nodes[0]["outputs"] = [{"name": "IMAGE", "type": "IMAGE", "links": [1]}]
    nodes[1]["outputs"] = [{"name": "IMAGE", "type": "IMAGE", "links": [2]}]
    links = [[1, 1, 0, 2, 0, "IMAGE"], [2, 2, 0, 3, 0, "IMAGE"]]
    write(tmp_path, "negative", {"nodes": nodes, "links": links, "version": 0.4})
    async with running_gateway(engine.url, workflows_dir=tmp_path) as gateway:

        async def negative() -> tuple[int, Any]:
            return await run(gateway.http, "negative", {"image": PICTURE})

        status, body = await until(negative, lambda answer: answer[0] != 503)
        assert (status, body.get("detail")) == (200, None)
        assert [file["output"] for file in body["images"]] == ["negative"]
