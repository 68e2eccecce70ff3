"""Workflows of nodes that only the engine can run."""

from __future__ import annotations

from tests.support.target import Prompt, node

_CHECKPOINT = "v1-5-pruned-emaonly.safetensors"


def txt2img(
    prefix: str = "txt2img", *, text: str = "a red fox", seed: int = 1, steps: int = 3, checkpoint: str = _CHECKPOINT
) -> Prompt:
    sampling = {"steps": steps, "cfg": 8.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}
    links = {"model": ["4", 0], "positive": ["6", 0], "negative": ["7", 0], "latent_image": ["5", 0]}
    return {
        "3": node("KSampler", seed=seed, **sampling, **links),
        "4": node("CheckpointLoaderSimple", ckpt_name=checkpoint),
        "5": node("EmptyLatentImage", width=128, height=96, batch_size=1),
        "6": node("CLIPTextEncode", text=text, clip=["4", 1]),
        "7": node("CLIPTextEncode", text="ugly", clip=["4", 1]),
        "8": node("VAEDecode", samples=["3", 0], vae=["4", 2]),
        "9": node("SaveImage", images=["8", 0], filename_prefix=prefix),
    }


def sleeping(seconds: float = 60.0, steps: int = 1) -> Prompt:
    """Runs for `seconds`: with the default, in a test, until it is interrupted."""
    return {
        "1": node("SimulatedSleep", seconds=seconds, steps=steps),
        "2": node("PreviewAny", source=["1", 0]),
    }


def writing(count: int = 1, size: int = 1000, extension: str = "bin", key: str = "images") -> Prompt:
    files = {"count": count, "size": size, "extension": extension, "output_key": key}
    return {"1": node("SimulatedOutput", filename_prefix="written", **files)}
