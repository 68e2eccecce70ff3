"""Named workflows that are models of OpenAI's image API, and pictures for them."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

from PIL import Image

_PORTRAIT: dict[str, Any] = {
    "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "v1-5-pruned-emaonly.safetensors"}},
    "2": {"class_type": "CLIPTextEncode", "inputs": {"text": "a house", "clip": ["1", 1]}},
    "3": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 48, "batch_size": 1}},
    "4": {
        "class_type": "KSampler",
        "inputs": {
            "seed": 1,
            "steps": 2,
            "cfg": 8,
            "sampler_name": "euler",
            "scheduler": "normal",
            "denoise": 1,
            "model": ["1", 0],
            "positive": ["2", 0],
            "negative": ["2", 0],
            "latent_image": ["3", 0],
        },
    },
    "5": {"class_type": "VAEDecode", "inputs": {"samples": ["4", 0], "vae": ["1", 2]}},
    "6": {"class_type": "SaveImage", "inputs": {"images": ["5", 0], "filename_prefix": "portrait"}},
}
_PORTRAIT_PARAMETERS = """
[parameters.text]
node = "2"
input = "text"
role = "prompt"
required = true
[parameters.width]
node = "3"
input = "width"
[parameters.height]
node = "3"
input = "height"
[parameters.seed]
node = "4"
input = "seed"
[parameters.steps]
node = "4"
input = "steps"
maximum = 1000
"""
_BATCH_PARAMETER = """
[parameters.n]
node = "3"
input = "batch_size"
"""
_BROKEN: dict[str, Any] = {
    "1": {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 0}},
    "2": {
        "class_type": "SimulatedError",
        "inputs": {"exception_type": "RuntimeError", "message": "no", "value": ["1", 0]},
    },
    "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "broken"}},
}
_BROKEN_PARAMETERS = """
[parameters.prompt]
node = "2"
input = "message"
"""
_RETOUCH: dict[str, Any] = {
    "1": {"class_type": "LoadImage", "inputs": {"image": "photo.png"}},
    "2": {"class_type": "LoadImage", "inputs": {"image": "second.png"}},
    "3": {"class_type": "LoadImageMask", "inputs": {"image": "mask.png", "channel": "alpha"}},
    "4": {"class_type": "ImageInvert", "inputs": {"image": ["1", 0]}},
    "5": {"class_type": "SaveImage", "inputs": {"images": ["4", 0], "filename_prefix": "first"}},
    "6": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "second"}},
    "7": {"class_type": "MaskToImage", "inputs": {"mask": ["3", 0]}},
    "8": {"class_type": "SaveImage", "inputs": {"images": ["7", 0], "filename_prefix": "mask"}},
}
_RETOUCH_PARAMETERS = """
[parameters.image]
node = "1"
input = "image"
[parameters.other]
node = "2"
input = "image"
role = "image"
[parameters.mask]
node = "3"
input = "image"
"""


def write_models(folder: Path) -> Path:
    """A WORKFLOWS_DIR with `portrait` (one picture for each run), `sheet` (many pictures), `retouch` and `broken`."""
    folder.mkdir(exist_ok=True)
    for name, graph, parameters in (
        ("portrait", _PORTRAIT, _PORTRAIT_PARAMETERS),
        ("sheet", _PORTRAIT, _PORTRAIT_PARAMETERS + _BATCH_PARAMETER),
        ("broken", _BROKEN, _BROKEN_PARAMETERS),
        ("retouch", _RETOUCH, _RETOUCH_PARAMETERS),
    ):
        (folder / f"{name}.json").write_text(json.dumps(graph))
        (folder / f"{name}.toml").write_text(parameters)
    return folder


def png(color: tuple[int, ...] = (10, 20, 30), size: tuple[int, int] = (8, 6)) -> bytes:
    """A picture of one colour; with four numbers it has an alpha channel."""
    into = io.BytesIO()
    Image.new("RGBA" if len(color) == 4 else "RGB", size, color).save(into, "PNG")
    return into.getvalue()


def opened(data: bytes) -> Image.Image:
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        return image
