"""Newer models in parts, and additions to them; `diffusion` paints the picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from comfyui.engine.files import Folders
from comfyui.engine.nodes.diffusion import SAMPLERS, SCHEDULERS, Conditioning, Latent, Model, sampled
from comfyui.engine.nodes.registry import MAX_RESOLUTION, NodeRun, Values, node

_CLIP_TYPES = [
    "stable_diffusion", "stable_cascade", "sd3", "stable_audio", "mochi", "ltxv", "pixart", "cosmos", "lumina2", "wan",
    "hidream", "chroma", "ace", "omnigen2", "qwen_image", "hunyuan_image",
]  # fmt: skip
_DUAL_CLIP_TYPES = ["sdxl", "sd3", "flux", "hunyuan_video", "hidream", "hunyuan_image"]
_DEVICE: Mapping[str, list[Any]] = {"device": [["default", "cpu"], {"advanced": True}]}
_STRENGTH: list[Any] = ["FLOAT", {"default": 1.0, "min": -100.0, "max": 100.0, "step": 0.01}]
_GUIDANCE: list[Any] = ["FLOAT", {"default": 3.5, "min": 0.0, "max": 100.0, "step": 0.1}]
_TEXT: list[Any] = ["STRING", {"multiline": True, "dynamicPrompts": True}]
_SIDE: list[Any] = ["INT", {"default": 1024, "min": 16, "max": MAX_RESOLUTION, "step": 16}]


def _shift(default: float) -> dict[str, list[Any]]:
    return {
        "model": ["MODEL"],
        "shift": ["FLOAT", {"default": default, "min": 0.0, "max": 100.0, "step": 0.01}],
    }


def _encoders(folders: Folders) -> list[str]:
    return list(folders.models["text_encoders"])


def _together(names: Sequence[str]) -> Model:
    return Model(" ".join(names))


@node(
    "UNETLoader",
    category="advanced/loaders",
    display_name="Load Diffusion Model",
    required=lambda folders: {
        "unet_name": [list(folders.models["diffusion_models"])],
        "weight_dtype": [["default", "fp8_e4m3fn", "fp8_e4m3fn_fast", "fp8_e5m2"]],
    },
    outputs=("MODEL",),
)
def unet_loader(_run: NodeRun, unet_name: str, weight_dtype: str) -> Values:  # noqa: ARG001
    return (Model(unet_name),)


@node(
    "VAELoader",
    category="loaders",
    display_name="Load VAE",
    required=lambda folders: {"vae_name": [[*folders.models["vae"], "pixel_space"]]},
    outputs=("VAE",),
)
def vae_loader(_run: NodeRun, vae_name: str) -> Values:
    return (Model(vae_name),)


@node(
    "CLIPLoader",
    category="advanced/loaders",
    display_name="Load CLIP",
    required=lambda folders: {"clip_name": [_encoders(folders)], "type": [_CLIP_TYPES]},
    optional=_DEVICE,
    outputs=("CLIP",),
)
def clip_loader(_run: NodeRun, clip_name: str, type: str, device: str = "default") -> Values:  # noqa: A002, ARG001
    return (Model(clip_name),)


@node(
    "DualCLIPLoader",
    category="advanced/loaders",
    required=lambda folders: {
        "clip_name1": [_encoders(folders)],
        "clip_name2": [_encoders(folders)],
        "type": [_DUAL_CLIP_TYPES],
    },
    optional=_DEVICE,
    outputs=("CLIP",),
)
def dual_clip_loader(
    _run: NodeRun,
    clip_name1: str,
    clip_name2: str,
    type: str,  # noqa: A002, ARG001
    device: str = "default",  # noqa: ARG001
) -> Values:
    return (_together([clip_name1, clip_name2]),)


@node(
    "QuadrupleCLIPLoader",
    category="advanced/loaders",
    display_name=None,
    module="comfy_extras.nodes_hidream",
    v3=True,
    required=lambda folders: {
        f"clip_name{number}": ["COMBO", {"multiselect": False, "options": _encoders(folders)}] for number in range(1, 5)
    },
    outputs=("CLIP",),
)
def quadruple_clip_loader(_run: NodeRun, clip_name1: str, clip_name2: str, clip_name3: str, clip_name4: str) -> Values:
    return (_together([clip_name1, clip_name2, clip_name3, clip_name4]),)


@node(
    "LoraLoaderModelOnly",
    category="loaders",
    required=lambda folders: {
        "model": ["MODEL"],
        "lora_name": [list(folders.models["loras"])],
        "strength_model": _STRENGTH,
    },
    outputs=("MODEL",),
)
def lora_loader_model_only(_run: NodeRun, model: Model, lora_name: str, strength_model: float) -> Values:
    return (replace(model, loras=(*model.loras, (lora_name, strength_model))),)


@node(
    "ModelSamplingSD3",
    category="advanced/model",
    module="comfy_extras.nodes_model_advanced",
    required=_shift(3.0),
    outputs=("MODEL",),
)
def model_sampling_sd3(_run: NodeRun, model: Model, shift: float) -> Values:  # noqa: ARG001
    return (model,)


@node(
    "ModelSamplingAuraFlow",
    category="advanced/model",
    module="comfy_extras.nodes_model_advanced",
    required=_shift(1.73),
    outputs=("MODEL",),
)
def model_sampling_aura_flow(_run: NodeRun, model: Model, shift: float) -> Values:  # noqa: ARG001
    return (model,)


@node(
    "ConditioningZeroOut",
    category="advanced/conditioning",
    required={"conditioning": ["CONDITIONING"]},
    outputs=("CONDITIONING",),
)
def conditioning_zero_out(_run: NodeRun, conditioning: Conditioning) -> Values:
    return (replace(conditioning, text=""),)


@node(
    "FluxGuidance",
    category="advanced/conditioning/flux",
    display_name=None,
    module="comfy_extras.nodes_flux",
    v3=True,
    required={"conditioning": ["CONDITIONING", {}], "guidance": _GUIDANCE},
    outputs=("CONDITIONING",),
)
def flux_guidance(_run: NodeRun, conditioning: Conditioning, guidance: float) -> Values:  # noqa: ARG001
    return (conditioning,)


@node(
    "CLIPTextEncodeFlux",
    category="advanced/conditioning/flux",
    display_name=None,
    module="comfy_extras.nodes_flux",
    v3=True,
    required={"clip": ["CLIP", {}], "clip_l": _TEXT, "t5xxl": _TEXT, "guidance": _GUIDANCE},
    outputs=("CONDITIONING",),
)
def clip_text_encode_flux(
    _run: NodeRun,
    clip: Model,
    clip_l: str,
    t5xxl: str,
    guidance: float,  # noqa: ARG001
) -> Values:
    return (Conditioning(f"{clip_l} {t5xxl}", clip),)


@node(
    "EmptySD3LatentImage",
    category="latent/sd3",
    display_name=None,
    module="comfy_extras.nodes_sd3",
    v3=True,
    required={
        "width": _SIDE,
        "height": _SIDE,
        "batch_size": ["INT", {"default": 1, "min": 1, "max": 4096}],
    },
    outputs=("LATENT",),
)
def empty_sd3_latent_image(_run: NodeRun, width: int, height: int, batch_size: int = 1) -> Values:
    return (Latent(width // 8 * 8, height // 8 * 8, batch_size),)


@node(
    "KSamplerAdvanced",
    category="sampling",
    display_name="KSampler (Advanced)",
    required={
        "model": ["MODEL"],
        "add_noise": [["enable", "disable"]],
        "noise_seed": ["INT", {"default": 0, "min": 0, "max": 0xFFFFFFFFFFFFFFFF, "control_after_generate": True}],
        "steps": ["INT", {"default": 20, "min": 1, "max": 10000}],
        "cfg": ["FLOAT", {"default": 8.0, "min": 0.0, "max": 100.0, "step": 0.1, "round": 0.01}],
        "sampler_name": [SAMPLERS],
        "scheduler": [SCHEDULERS],
        "positive": ["CONDITIONING"],
        "negative": ["CONDITIONING"],
        "latent_image": ["LATENT"],
        "start_at_step": ["INT", {"default": 0, "min": 0, "max": 10000}],
        "end_at_step": ["INT", {"default": 10000, "min": 0, "max": 10000}],
        "return_with_leftover_noise": [["disable", "enable"]],
    },
    outputs=("LATENT",),
)
def k_sampler_advanced(
    run: NodeRun,
    noise_seed: int,
    steps: int,
    start_at_step: int,
    end_at_step: int,
    add_noise: str,
    return_with_leftover_noise: str,  # noqa: ARG001
    model: Model,
    positive: Conditioning,
    latent_image: Latent,
    **_: Any,
) -> Values:
    """The steps from one to another; without noise the picture that comes in goes on, as from a first sampler."""
    done = max(0, min(steps, end_at_step) - start_at_step)
    if not done:
        return (latent_image,)
    share = done / steps if add_noise == "disable" else 1.0
    return (sampled(run, model, noise_seed, done, positive, latent_image, share),)
