"""The lists of several servers are merged, so a workflow may need models that no single server has."""

from __future__ import annotations

from comfyui.engine import Engine, EngineOptions
from tests.support.engine_workflows import txt2img
from tests.support.relaying import eventually
from tests.support.running import running_gateway
from tests.support.target import Prompt, node

_FIRST = {"checkpoints": ("one.safetensors",), "loras": ()}
_SECOND = {"checkpoints": (), "loras": ("two.safetensors",)}


def split() -> Prompt:
    """A workflow whose checkpoint is on gpu-1, and whose LoRA is on gpu-2."""
    workflow = txt2img(checkpoint="one.safetensors")
    strengths = {"strength_model": 1.0, "strength_clip": 1.0}
    workflow["10"] = node("LoraLoader", model=["4", 0], clip=["4", 1], lora_name="two.safetensors", **strengths)
    workflow["3"]["inputs"]["model"] = ["10", 0]
    return workflow


async def test_a_refusal_names_what_each_server_lacks() -> None:
    async with (
        Engine(EngineOptions(models=_FIRST)) as first,
        Engine(EngineOptions(models=_SECOND)) as second,
        running_gateway(f"gpu-1={first.url}", f"gpu-2={second.url}") as gateway,
    ):
        await eventually(lambda: len(gateway.handler.pool.ready) == 2)
        async with gateway.http.post("/prompt", json={"prompt": split()}) as response:
            status, answer = response.status, await response.json()
        assert status == 400
        assert answer["error"]["extra_info"]["servers"] == {
            "gpu-1": ["two.safetensors (for LoraLoader)"],
            "gpu-2": ["one.safetensors (for CheckpointLoaderSimple)"],
        }
        status, answer = await gateway.prompt_sync(split())
    assert status == 400
    for said in ("gpu-1", "two.safetensors", "gpu-2", "one.safetensors"):
        assert said in answer["detail"], answer
