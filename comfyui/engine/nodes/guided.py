"""Sampling in parts: noise, sampler, steps and guidance are nodes of their own; the picture is that of `diffusion`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from comfyui.engine.nodes.diffusion import SAMPLERS, SCHEDULERS, Conditioning, Latent, Model, sampled
from comfyui.engine.nodes.registry import NodeRun, Values, node

_MODULE = "comfy_extras.nodes_custom_sampler"
_CATEGORY = "sampling/custom_sampling"
_SEED: list[Any] = ["INT", {"default": 0, "min": 0, "max": 0xFFFFFFFFFFFFFFFF, "control_after_generate": True}]
_CFG: list[Any] = ["FLOAT", {"default": 8.0, "min": 0.0, "max": 100.0, "step": 0.1, "round": 0.01}]
_LATENTS: dict[str, Any] = {"outputs": ("LATENT", "LATENT"), "output_names": ("output", "denoised_output")}


@dataclass(frozen=True, slots=True)
class Sigmas:
    steps: int
    denoise: float


@dataclass(frozen=True, slots=True)
class Guider:
    model: Model
    positive: Conditioning


@node(
    "KSamplerSelect",
    category=f"{_CATEGORY}/samplers",
    module=_MODULE,
    required={"sampler_name": [SAMPLERS]},
    outputs=("SAMPLER",),
)
def k_sampler_select(_run: NodeRun, sampler_name: str) -> Values:
    return (sampler_name,)


@node(
    "RandomNoise",
    category=f"{_CATEGORY}/noise",
    module=_MODULE,
    required={"noise_seed": _SEED},
    outputs=("NOISE",),
)
def random_noise(_run: NodeRun, noise_seed: int) -> Values:
    return (noise_seed,)


@node(
    "BasicScheduler",
    category=f"{_CATEGORY}/schedulers",
    module=_MODULE,
    required={
        "model": ["MODEL"],
        "scheduler": [SCHEDULERS],
        "steps": ["INT", {"default": 20, "min": 1, "max": 10000}],
        "denoise": ["FLOAT", {"default": 1.0, "min": 0.0, "max": 1.0, "step": 0.01}],
    },
    outputs=("SIGMAS",),
)
def basic_scheduler(_run: NodeRun, model: Model, scheduler: str, steps: int, denoise: float) -> Values:  # noqa: ARG001
    return (Sigmas(steps, denoise),)


@node(
    "SDTurboScheduler",
    category=f"{_CATEGORY}/schedulers",
    module=_MODULE,
    required={
        "model": ["MODEL"],
        "steps": ["INT", {"default": 1, "min": 1, "max": 10}],
        "denoise": ["FLOAT", {"default": 1.0, "min": 0, "max": 1.0, "step": 0.01}],
    },
    outputs=("SIGMAS",),
)
def sd_turbo_scheduler(_run: NodeRun, model: Model, steps: int, denoise: float) -> Values:  # noqa: ARG001
    return (Sigmas(steps, denoise),)


@node(
    "CFGGuider",
    category=f"{_CATEGORY}/guiders",
    module=_MODULE,
    required={"model": ["MODEL"], "positive": ["CONDITIONING"], "negative": ["CONDITIONING"], "cfg": _CFG},
    outputs=("GUIDER",),
)
def cfg_guider(
    _run: NodeRun,
    model: Model,
    positive: Conditioning,
    negative: Conditioning,  # noqa: ARG001
    cfg: float,  # noqa: ARG001
) -> Values:
    return (Guider(model, positive),)


@node(
    "DualCFGGuider",
    category=f"{_CATEGORY}/guiders",
    module=_MODULE,
    required={
        "model": ["MODEL"],
        "cond1": ["CONDITIONING"],
        "cond2": ["CONDITIONING"],
        "negative": ["CONDITIONING"],
        "cfg_conds": _CFG,
        "cfg_cond2_negative": _CFG,
        "style": [["regular", "nested"]],
    },
    outputs=("GUIDER",),
)
def dual_cfg_guider(_run: NodeRun, model: Model, cond1: Conditioning, **_: Any) -> Values:
    return (Guider(model, cond1),)


@node(
    "SamplerCustom",
    category=_CATEGORY,
    module=_MODULE,
    required={
        "model": ["MODEL"],
        "add_noise": ["BOOLEAN", {"default": True}],
        "noise_seed": _SEED,
        "cfg": _CFG,
        "positive": ["CONDITIONING"],
        "negative": ["CONDITIONING"],
        "sampler": ["SAMPLER"],
        "sigmas": ["SIGMAS"],
        "latent_image": ["LATENT"],
    },
    **_LATENTS,
)
def sampler_custom(
    run: NodeRun,
    model: Model,
    noise_seed: int,
    positive: Conditioning,
    sigmas: Sigmas,
    latent_image: Latent,
    **_: Any,
) -> Values:
    return _sampled(run, Guider(model, positive), noise_seed, sigmas, latent_image)


@node(
    "SamplerCustomAdvanced",
    category=_CATEGORY,
    module=_MODULE,
    required={
        "noise": ["NOISE"],
        "guider": ["GUIDER"],
        "sampler": ["SAMPLER"],
        "sigmas": ["SIGMAS"],
        "latent_image": ["LATENT"],
    },
    **_LATENTS,
)
def sampler_custom_advanced(
    run: NodeRun,
    noise: int,
    guider: Guider,
    sampler: str,  # noqa: ARG001
    sigmas: Sigmas,
    latent_image: Latent,
) -> Values:
    return _sampled(run, guider, noise, sigmas, latent_image)


def _sampled(run: NodeRun, guider: Guider, seed: int, sigmas: Sigmas, latent: Latent) -> Values:
    made = sampled(run, guider.model, seed, sigmas.steps, guider.positive, latent, sigmas.denoise)
    return made, made
