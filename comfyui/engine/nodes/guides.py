"""Pictures as guides of a picture: inpainting, edits and ControlNets. Their effect in a real model is not painted."""

from __future__ import annotations

from typing import Any

from PIL import Image

from comfyui.engine.nodes.diffusion import Conditioning, Model, encoded
from comfyui.engine.nodes.pixels import Images
from comfyui.engine.nodes.registry import MAX_RESOLUTION, NodeRun, Values, node

_SIDE: list[Any] = ["INT", {"default": 0, "min": 0, "max": MAX_RESOLUTION, "step": 8}]
_SHARE: list[Any] = ["FLOAT", {"default": 0.0, "min": 0.0, "max": 1.0, "step": 0.001}]
_TWO_AND_LATENT: dict[str, Any] = {
    "outputs": ("CONDITIONING", "CONDITIONING", "LATENT"),
    "output_names": ("positive", "negative", "latent"),
}
# The sizes that FLUX Kontext was trained with.
_KONTEXT_SIZES = (
    *((672, 1568), (688, 1504), (720, 1456), (752, 1392), (800, 1328), (832, 1248), (880, 1184), (944, 1104)),
    *((1024, 1024), (1104, 944), (1184, 880), (1248, 832), (1328, 800), (1392, 752), (1456, 720), (1504, 688)),
    (1568, 672),
)


@node(
    "DifferentialDiffusion",
    category="_for_testing",
    display_name="Differential Diffusion",
    module="comfy_extras.nodes_differential_diffusion",
    v3=True,
    experimental=True,
    required={"model": ["MODEL", {}]},
    optional={"strength": ["FLOAT", {"default": 1.0, "min": 0.0, "max": 1.0, "step": 0.01}]},
    outputs=("MODEL",),
)
def differential_diffusion(_run: NodeRun, model: Model, strength: float = 1.0) -> Values:  # noqa: ARG001
    return (model,)


@node(
    "CFGNorm",
    category="advanced/guidance",
    display_name=None,
    module="comfy_extras.nodes_cfg",
    v3=True,
    experimental=True,
    required={
        "model": ["MODEL", {}],
        "strength": ["FLOAT", {"default": 1.0, "min": 0.0, "max": 100.0, "step": 0.01}],
    },
    outputs=("MODEL",),
    output_names=("patched_model",),
)
def cfg_norm(_run: NodeRun, model: Model, strength: float) -> Values:  # noqa: ARG001
    return (model,)


@node(
    "InpaintModelConditioning",
    category="conditioning/inpaint",
    required={
        "positive": ["CONDITIONING"],
        "negative": ["CONDITIONING"],
        "vae": ["VAE"],
        "pixels": ["IMAGE"],
        "mask": ["MASK"],
        "noise_mask": ["BOOLEAN", {"default": True}],
    },
    **_TWO_AND_LATENT,
)
def inpaint_model_conditioning(
    _run: NodeRun, positive: Conditioning, negative: Conditioning, pixels: Images, **_: Any
) -> Values:
    return positive, negative, encoded(pixels)


@node(
    "InstructPixToPixConditioning",
    category="conditioning/instructpix2pix",
    display_name=None,
    module="comfy_extras.nodes_ip2p",
    v3=True,
    required={
        "positive": ["CONDITIONING", {}],
        "negative": ["CONDITIONING", {}],
        "vae": ["VAE", {}],
        "pixels": ["IMAGE", {}],
    },
    **_TWO_AND_LATENT,
)
def instruct_pix_to_pix_conditioning(
    _run: NodeRun,
    positive: Conditioning,
    negative: Conditioning,
    vae: Model,  # noqa: ARG001
    pixels: Images,
) -> Values:
    return positive, negative, encoded(pixels)


@node(
    "ControlNetLoader",
    category="loaders",
    display_name="Load ControlNet Model",
    required=lambda folders: {"control_net_name": [list(folders.models["controlnet"])]},
    outputs=("CONTROL_NET",),
)
def control_net_loader(_run: NodeRun, control_net_name: str) -> Values:
    return (Model(control_net_name),)


@node(
    "ControlNetApplyAdvanced",
    category="conditioning/controlnet",
    display_name="Apply ControlNet",
    required={
        "positive": ["CONDITIONING"],
        "negative": ["CONDITIONING"],
        "control_net": ["CONTROL_NET"],
        "image": ["IMAGE"],
        "strength": ["FLOAT", {"default": 1.0, "min": 0.0, "max": 10.0, "step": 0.01}],
        "start_percent": _SHARE,
        "end_percent": ["FLOAT", {"default": 1.0, "min": 0.0, "max": 1.0, "step": 0.001}],
    },
    optional={"vae": ["VAE"]},
    outputs=("CONDITIONING", "CONDITIONING"),
    output_names=("positive", "negative"),
)
def control_net_apply_advanced(_run: NodeRun, positive: Conditioning, negative: Conditioning, **_: Any) -> Values:
    return positive, negative


@node(
    "TextEncodeQwenImageEditPlus",
    category="advanced/conditioning",
    display_name=None,
    module="comfy_extras.nodes_qwen",
    v3=True,
    required={"clip": ["CLIP", {}], "prompt": ["STRING", {"multiline": True, "dynamicPrompts": True}]},
    optional={"vae": ["VAE", {}], **{f"image{number}": ["IMAGE", {}] for number in (1, 2, 3)}},
    outputs=("CONDITIONING",),
)
def text_encode_qwen_image_edit_plus(_run: NodeRun, clip: Model, prompt: str, **_: Any) -> Values:
    return (Conditioning(prompt, clip),)


@node(
    "FluxKontextImageScale",
    category="advanced/conditioning/flux",
    display_name=None,
    module="comfy_extras.nodes_flux",
    v3=True,
    required={"image": ["IMAGE", {}]},
    outputs=("IMAGE",),
)
def flux_kontext_image_scale(_run: NodeRun, image: Images) -> Values:
    """Scales to the size with the most similar proportions; the rest is cut off around the middle."""
    ratio = image[0].width / image[0].height
    width, height = min(_KONTEXT_SIZES, key=lambda size: abs(size[0] / size[1] - ratio))
    return ([_filling(picture, width, height) for picture in image],)


def _filling(picture: Image.Image, width: int, height: int) -> Image.Image:
    scale = max(width / picture.width, height / picture.height)
    large = picture.resize((max(width, round(picture.width * scale)), max(height, round(picture.height * scale))))
    left, top = (large.width - width) // 2, (large.height - height) // 2
    return large.crop((left, top, left + width, top + height))


@node(
    "ImagePadForOutpaint",
    category="image",
    display_name="Pad Image for Outpainting",
    required={
        "image": ["IMAGE"],
        "left": _SIDE,
        "top": _SIDE,
        "right": _SIDE,
        "bottom": _SIDE,
        "feathering": ["INT", {"default": 40, "min": 0, "max": MAX_RESOLUTION, "step": 1}],
    },
    outputs=("IMAGE", "MASK"),
)
def image_pad_for_outpaint(
    _run: NodeRun,
    image: Images,
    left: int,
    top: int,
    right: int,
    bottom: int,
    feathering: int,  # noqa: ARG001
) -> Values:
    """The picture on grey, and a mask that is white around it. The edge of the mask is sharp here."""
    padded, masks = [], []
    for picture in image:
        size = (picture.width + left + right, picture.height + top + bottom)
        canvas, mask = Image.new("RGB", size, (128, 128, 128)), Image.new("L", size, 255)
        canvas.paste(picture.convert("RGB"), (left, top))
        mask.paste(0, (left, top, left + picture.width, top + picture.height))
        padded.append(canvas)
        masks.append(mask)
    return padded, masks
