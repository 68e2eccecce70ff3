"""The lists of several servers are merged, so a workflow may need models that no single server has."""

from __future__ import annotations

import asyncio
from typing import Any

from comfyui.engine import Engine, EngineOptions
from tests.support.running import running_gateway
from tests.support.target import node

_FIRST = {"checkpoints": ("one.safetensors",), "loras": ()}
_SECOND = {"checkpoints": (), "loras": ("two.safetensors",)}


def split() -> dict[str, Any]:
    """The checkpoint is on gpu-1, the LoRA on gpu-2."""
    return {
        "1": node("CheckpointLoaderSimple", ckpt_name="one.safetensors"),
        "2": node(
            "LoraLoader",
            model=["1", 0],
            clip=["1", 1],
            lora_name="two.safetensors",
            strength_model=1.0,
            strength_clip=1.0,
        ),
        "3": node("EmptyLatentImage", width=64, height=64, batch_size=1),
        "4": node("CLIPTextEncode", text="x", clip=["2", 1]),
        "5": node(
            "KSampler",
            model=["2", 0],
            positive=["4", 0],
            negative=["4", 0],
            latent_image=["3", 0],
            seed=1,
            steps=1,
            cfg=1.0,
            sampler_name="euler",
            scheduler="normal",
            denoise=1.0,
        ),
        "6": node("VAEDecode", samples=["5", 0], vae=["1", 2]),
        "7": node("SaveImage", images=["6", 0], filename_prefix="x"),
    }


async def test_a_refusal_names_what_each_server_lacks() -> None:
    async with (
        Engine(EngineOptions(models=_FIRST)) as first,
        Engine(EngineOptions(models=_SECOND)) as second,
        running_gateway(f"gpu-1={first.url}", f"gpu-2={second.url}") as gateway,
    ):
        async with asyncio.timeout(30):
            while len(gateway.handler.pool.ready) < 2:
                await asyncio.sleep(0.01)
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
