"""The named workflows of a gateway that runs."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from random import Random

from PIL import Image

from comfyui.engine import Engine, EngineOptions
from comfyui.named.binding import bind
from comfyui.named.parameters import NamedWorkflow
from tests.support.running import running_gateway, until

EXAMPLES = Path(__file__).parents[2] / "examples" / "workflows"


def picture() -> str:
    """A small PNG, base64."""
    content = io.BytesIO()
    Image.new("RGB", (64, 48), "teal").save(content, "PNG")
    return base64.b64encode(content.getvalue()).decode()


async def test_every_example_runs() -> None:
    async with Engine(EngineOptions()) as engine, running_gateway(engine.url, workflows_dir=EXAMPLES) as gateway:
        named = gateway.app.running.named

        async def image_kind() -> str:
            return named.get("upscale").by_name["image"].kind

        await until(image_kind, lambda kind: kind == "file")
        for one in named.all():
            assert isinstance(one, NamedWorkflow), one
            assert one.warnings == ()
            values = {**one.example, **({"image": picture()} if "image" in one.by_name else {})}
            found = bind(one, values, rng=Random(1))  # noqa: S311
            images = [image.model_dump() for image in found.images]
            status, body = await gateway.prompt_sync(found.prompt, images=images)
            assert (status, body.get("detail")) == (200, None)
            assert [file["node_id"] for file in body["images"]] == list(found.call.outputs)
