"""The text-to-image chain: ComfyUI's nodes and inputs, with a procedural picture instead of a diffusion model."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image, ImageFilter

from comfyui.engine.files import Folders
from comfyui.engine.nodes.painter import paint, stamp
from comfyui.engine.nodes.pixels import Images
from comfyui.engine.nodes.registry import MAX_RESOLUTION, NodeRun, Values, node

SAMPLERS = [
    "euler", "euler_cfg_pp", "euler_ancestral", "euler_ancestral_cfg_pp", "heun", "heunpp2", "dpm_2",
    "dpm_2_ancestral", "lms", "dpm_fast", "dpm_adaptive", "dpmpp_2s_ancestral", "dpmpp_2s_ancestral_cfg_pp",
    "dpmpp_sde", "dpmpp_sde_gpu", "dpmpp_2m", "dpmpp_2m_cfg_pp", "dpmpp_2m_sde", "dpmpp_2m_sde_gpu",
    "dpmpp_2m_sde_heun", "dpmpp_2m_sde_heun_gpu", "dpmpp_3m_sde", "dpmpp_3m_sde_gpu", "ddpm", "lcm", "ipndm",
    "ipndm_v", "deis", "res_multistep", "res_multistep_cfg_pp", "res_multistep_ancestral",
    "res_multistep_ancestral_cfg_pp", "gradient_estimation", "gradient_estimation_cfg_pp", "er_sde", "seeds_2",
    "seeds_3", "sa_solver", "sa_solver_pece", "ddim", "uni_pc", "uni_pc_bh2",
]  # fmt: skip
SCHEDULERS = [
    "simple", "sgm_uniform", "karras", "exponential", "ddim_uniform", "beta", "normal", "linear_quadratic",
    "kl_optimal",
]  # fmt: skip
_PREVIEW_SIDE = 256


@dataclass(frozen=True, slots=True)
class Model:
    """MODEL, CLIP or VAE: only the name and the additions matter."""

    name: str
    loras: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Conditioning:
    text: str
    clip: Model


@dataclass(frozen=True, slots=True)
class Latent:
    """LATENT: the size in pixels, and the pictures once there are any (an empty one has none)."""

    width: int
    height: int
    batch_size: int
    pictures: Images | None = None


def _latent_side() -> list[Any]:
    return ["INT", {"default": 512, "min": 16, "max": MAX_RESOLUTION, "step": 8}]


@node(
    "CheckpointLoaderSimple",
    category="loaders",
    display_name="Load Checkpoint",
    required=lambda folders: {"ckpt_name": [list(folders.models["checkpoints"]), {}]},
    outputs=("MODEL", "CLIP", "VAE"),
)
def checkpoint_loader_simple(_run: NodeRun, ckpt_name: str) -> Values:
    model = Model(ckpt_name)
    return model, model, model


def _lora_inputs(folders: Folders) -> dict[str, list[Any]]:
    return {
        "model": ["MODEL", {}],
        "clip": ["CLIP", {}],
        "lora_name": [list(folders.models["loras"]), {}],
        "strength_model": ["FLOAT", {"default": 1.0, "min": -100.0, "max": 100.0, "step": 0.01}],
        "strength_clip": ["FLOAT", {"default": 1.0, "min": -100.0, "max": 100.0, "step": 0.01}],
    }


@node(
    "LoraLoader",
    category="loaders",
    display_name="Load LoRA",
    required=_lora_inputs,
    outputs=("MODEL", "CLIP"),
)
def lora_loader(
    _run: NodeRun, model: Model, clip: Model, lora_name: str, strength_model: float, strength_clip: float
) -> Values:
    return (
        replace(model, loras=(*model.loras, (lora_name, strength_model))),
        replace(clip, loras=(*clip.loras, (lora_name, strength_clip))),
    )


@node(
    "CLIPTextEncode",
    category="conditioning",
    display_name="CLIP Text Encode (Prompt)",
    required={"text": ["STRING", {"multiline": True, "dynamicPrompts": True}], "clip": ["CLIP", {}]},
    outputs=("CONDITIONING",),
)
def clip_text_encode(_run: NodeRun, text: str, clip: Model) -> Values:
    return (Conditioning(text, clip),)


@node(
    "EmptyLatentImage",
    category="latent",
    display_name="Empty Latent Image",
    required={
        "width": _latent_side(),
        "height": _latent_side(),
        "batch_size": ["INT", {"default": 1, "min": 1, "max": 4096}],
    },
    outputs=("LATENT",),
)
def empty_latent_image(_run: NodeRun, width: int, height: int, batch_size: int = 1) -> Values:
    return (Latent(width // 8 * 8, height // 8 * 8, batch_size),)


@node(
    "KSampler",
    category="sampling",
    required={
        "model": ["MODEL", {}],
        "seed": ["INT", {"default": 0, "min": 0, "max": 0xFFFFFFFFFFFFFFFF, "control_after_generate": True}],
        "steps": ["INT", {"default": 20, "min": 1, "max": 10000}],
        "cfg": ["FLOAT", {"default": 8.0, "min": 0.0, "max": 100.0, "step": 0.1, "round": 0.01}],
        "sampler_name": [SAMPLERS, {}],
        "scheduler": [SCHEDULERS, {}],
        "positive": ["CONDITIONING", {}],
        "negative": ["CONDITIONING", {}],
        "latent_image": ["LATENT", {}],
        "denoise": ["FLOAT", {"default": 1.0, "min": 0.0, "max": 1.0, "step": 0.01}],
    },
    outputs=("LATENT",),
)
def k_sampler(
    run: NodeRun,
    model: Model,
    seed: int,
    steps: int,
    cfg: float,  # noqa: ARG001
    sampler_name: str,  # noqa: ARG001
    scheduler: str,  # noqa: ARG001
    positive: Conditioning,
    negative: Conditioning,  # noqa: ARG001
    latent_image: Latent,
    denoise: float = 1.0,
) -> Values:
    return (sampled(run, model, seed, steps, positive, latent_image, denoise),)


def sampled(
    run: NodeRun, model: Model, seed: int, steps: int, positive: Conditioning, latent: Latent, denoise: float
) -> Latent:
    """`step_seconds` for each step, with a preview that clears up; `denoise`: how much of a given picture goes."""
    # The model and its LoRAs change the picture as they would; sampler, cfg and the negative text do not.
    text = " ".join([positive.text, *(name for name, _ in model.loras), model.name])
    pictures = []
    for number in range(latent.batch_size):
        picture = paint(text, seed + number, latent.width, latent.height)
        if latent.pictures is not None:
            picture = Image.blend(latent.pictures[number].convert("RGB"), picture, denoise)
        pictures.append(picture)
    preview = _Preview(pictures[0], seed)
    for step in range(1, steps + 1):
        run.sleep(run.step_seconds)
        run.progress(step, steps, preview.at(step / steps))
    return replace(latent, pictures=pictures)


class _Preview:
    """The picture in the making: first noise, then blurred, then itself."""

    def __init__(self, picture: Image.Image, seed: int) -> None:
        self._clear = picture.copy()
        self._clear.thumbnail((_PREVIEW_SIDE, _PREVIEW_SIDE))
        pixels = random.Random(seed).randbytes(self._clear.width * self._clear.height * 3)  # noqa: S311
        self._noise = Image.frombytes("RGB", self._clear.size, pixels)

    def at(self, fraction: float) -> Image.Image:
        blurred = self._clear.filter(ImageFilter.GaussianBlur(8 * (1 - fraction)))
        return Image.blend(self._noise, blurred, fraction**0.5)


@node(
    "VAEDecode",
    category="latent",
    display_name="VAE Decode",
    required={"samples": ["LATENT", {}], "vae": ["VAE", {}]},
    outputs=("IMAGE",),
)
def vae_decode(_run: NodeRun, samples: Latent, vae: Model) -> Values:  # noqa: ARG001
    grey = Image.new("RGB", (samples.width, samples.height), (128, 128, 128))
    pictures = [grey] * samples.batch_size if samples.pictures is None else samples.pictures
    return ([stamp(picture) for picture in pictures],)


@node(
    "VAEEncode",
    category="latent",
    display_name="VAE Encode",
    required={"pixels": ["IMAGE"], "vae": ["VAE"]},
    outputs=("LATENT",),
)
def vae_encode(_run: NodeRun, pixels: Images, vae: Model) -> Values:  # noqa: ARG001
    return (encoded(pixels),)


def encoded(pixels: Images) -> Latent:
    # A latent has an eighth of the pixels' size: the rest is cut off around the middle.
    width, height = (side // 8 * 8 for side in pixels[0].size)
    x, y = (pixels[0].width - width) // 2, (pixels[0].height - height) // 2
    cut = [picture.crop((x, y, x + width, y + height)) for picture in pixels]
    return Latent(width, height, len(cut), cut)
