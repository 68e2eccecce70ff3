"""ComfyUI's image and mask nodes, on real pixels. IMAGE is a list of RGB(A) images, MASK a list of L images."""

from __future__ import annotations

import hashlib
import json
import random
import string
import time
from pathlib import Path
from typing import Any

from PIL import Image, ImageChops, ImageOps, ImageSequence
from PIL.PngImagePlugin import PngInfo

from comfyui.engine.files import Folders
from comfyui.engine.nodes import pixels
from comfyui.engine.nodes.pixels import Images
from comfyui.engine.nodes.registry import MAX_RESOLUTION, PNG_INFO, NodeRun, Shown, Values, node

_UPSCALE_METHODS = ["nearest-exact", "bilinear", "area", "bicubic", "lanczos"]
_BLEND_MODES = ["normal", "multiply", "screen", "overlay", "soft_light", "difference"]
_WEBP_METHODS = {"default": 4, "fastest": 0, "slowest": 6}
_NO_MASK_SIZE = (64, 64)  # what ComfyUI gives as the mask of an image without transparency


def _side(default: int = 512, minimum: int = 1) -> list[Any]:
    return ["INT", {"default": default, "min": minimum, "max": MAX_RESOLUTION, "step": 1}]


def _content_hash(folders: Folders, image: str, **_: Any) -> str:
    return hashlib.sha256(folders.annotated_path(image).read_bytes()).hexdigest()


def _file_exists(folders: Folders, image: str) -> bool | str:
    return folders.annotated_path(image).exists() or f"Invalid image file: {image}"


@node(
    "LoadImage",
    category="image",
    display_name="Load Image",
    required=lambda folders: {"image": [folders.input_files(images_only=True), {"image_upload": True}]},
    outputs=("IMAGE", "MASK"),
    fingerprint=_content_hash,
    validate=_file_exists,
    validated_inputs=frozenset({"image"}),
)
def load_image(run: NodeRun, image: str) -> Values:
    frames: Images = []
    masks: Images = []
    with Image.open(run.folders.annotated_path(image)) as opened:
        for frame in ImageSequence.Iterator(opened):
            upright = _upright(frame)
            rgb = upright.convert("RGB")
            if frames and rgb.size != frames[0].size:
                continue
            frames.append(rgb)
            masks.append(_transparency(upright))
        if opened.format == "MPO":
            del frames[1:], masks[1:]
    return frames, masks


def _upright(frame: Image.Image) -> Image.Image:
    upright = ImageOps.exif_transpose(frame)
    return upright.point(lambda value: value * (1 / 255)) if upright.mode == "I" else upright


def _transparency(image: Image.Image) -> Image.Image:
    if "A" in image.getbands():
        return ImageChops.invert(image.getchannel("A"))
    if image.mode == "P" and "transparency" in image.info:
        return ImageChops.invert(image.convert("RGBA").getchannel("A"))
    return Image.new("L", _NO_MASK_SIZE)


@node(
    "LoadImageMask",
    category="mask",
    display_name="Load Image (as Mask)",
    required=lambda folders: {
        "image": [folders.input_files(images_only=False), {"image_upload": True}],
        "channel": [["alpha", "red", "green", "blue"]],
    },
    outputs=("MASK",),
    fingerprint=_content_hash,
    validate=_file_exists,
    validated_inputs=frozenset({"image"}),
)
def load_image_mask(run: NodeRun, image: str, channel: str) -> Values:
    with Image.open(run.folders.annotated_path(image)) as opened:
        band = _upright(opened).convert("RGBA").getchannel(channel[0].upper())
    return ([ImageChops.invert(band) if channel == "alpha" else band],)


@node(
    "EmptyImage",
    category="image",
    required={
        "width": _side(),
        "height": _side(),
        "batch_size": ["INT", {"default": 1, "min": 1, "max": 4096}],
        "color": ["INT", {"default": 0, "min": 0, "max": 0xFFFFFF, "step": 1, "display": "color"}],
    },
    outputs=("IMAGE",),
)
def empty_image(_run: NodeRun, width: int, height: int, batch_size: int = 1, color: int = 0) -> Values:
    picture = Image.new("RGB", (width, height), (color >> 16 & 255, color >> 8 & 255, color & 255))
    return ([picture] * batch_size,)


@node(
    "SolidMask",
    category="mask",
    module="comfy_extras.nodes_mask",
    required={
        "value": ["FLOAT", {"default": 1.0, "min": 0.0, "max": 1.0, "step": 0.01}],
        "width": _side(),
        "height": _side(),
    },
    outputs=("MASK",),
)
def solid_mask(_run: NodeRun, value: float, width: int, height: int) -> Values:
    return ([Image.new("L", (width, height), int(value * 255))],)


@node(
    "MaskToImage",
    category="mask",
    display_name="Convert Mask to Image",
    module="comfy_extras.nodes_mask",
    required={"mask": ["MASK"]},
    outputs=("IMAGE",),
)
def mask_to_image(_run: NodeRun, mask: Images) -> Values:
    return ([band.convert("RGB") for band in mask],)


@node(
    "ImageScale",
    category="image/upscaling",
    display_name="Upscale Image",
    required={
        "image": ["IMAGE"],
        "upscale_method": [_UPSCALE_METHODS],
        "width": _side(minimum=0),
        "height": _side(minimum=0),
        "crop": [["disabled", "center"]],
    },
    outputs=("IMAGE",),
)
def image_scale(_run: NodeRun, image: Images, upscale_method: str, width: int, height: int, crop: str) -> Values:
    if width == 0 and height == 0:
        return (image,)
    source = image[0]
    width = width or max(1, round(source.width * height / source.height))
    height = height or max(1, round(source.height * width / source.width))
    return ([pixels.scale(picture, width, height, upscale_method, crop) for picture in image],)


@node(
    "ImageScaleBy",
    category="image/upscaling",
    display_name="Upscale Image By",
    required={
        "image": ["IMAGE"],
        "upscale_method": [_UPSCALE_METHODS],
        "scale_by": ["FLOAT", {"default": 1.0, "min": 0.01, "max": 8.0, "step": 0.01}],
    },
    outputs=("IMAGE",),
)
def image_scale_by(_run: NodeRun, image: Images, upscale_method: str, scale_by: float) -> Values:
    width, height = round(image[0].width * scale_by), round(image[0].height * scale_by)
    return ([pixels.scale(picture, width, height, upscale_method) for picture in image],)


@node(
    "ImageInvert",
    category="image",
    display_name="Invert Image",
    required={"image": ["IMAGE"]},
    outputs=("IMAGE",),
)
def image_invert(_run: NodeRun, image: Images) -> Values:
    return ([ImageChops.invert(picture) for picture in image],)


@node(
    "ImageBlend",
    category="image/postprocessing",
    display_name=None,
    module="comfy_extras.nodes_post_processing",
    v3=True,
    required={
        "image1": ["IMAGE", {}],
        "image2": ["IMAGE", {}],
        "blend_factor": ["FLOAT", {"default": 0.5, "min": 0.0, "max": 1.0, "step": 0.01}],
        "blend_mode": ["COMBO", {"multiselect": False, "options": _BLEND_MODES}],
    },
    outputs=("IMAGE",),
)
def image_blend(_run: NodeRun, image1: Images, image2: Images, blend_factor: float, blend_mode: str) -> Values:
    pairs = zip(image1, image2 * (len(image1) if len(image2) == 1 else 1), strict=True)
    return ([pixels.blend(first, second, blend_factor, blend_mode) for first, second in pairs],)


@node(
    "ImageCrop",
    category="image/transform",
    display_name="Image Crop",
    module="comfy_extras.nodes_images",
    required={
        "image": ["IMAGE"],
        "width": _side(),
        "height": _side(),
        "x": _side(default=0, minimum=0),
        "y": _side(default=0, minimum=0),
    },
    outputs=("IMAGE",),
)
def image_crop(_run: NodeRun, image: Images, width: int, height: int, x: int, y: int) -> Values:
    full_width, full_height = image[0].size
    x, y = min(x, full_width - 1), min(y, full_height - 1)
    box = (x, y, min(x + width, full_width), min(y + height, full_height))
    return ([picture.crop(box) for picture in image],)


@node(
    "ImageBatch",
    category="image",
    display_name="Batch Images",
    required={"image1": ["IMAGE"], "image2": ["IMAGE"]},
    outputs=("IMAGE",),
)
def image_batch(_run: NodeRun, image1: Images, image2: Images) -> Values:
    width, height = image1[0].size
    fitted = [
        picture if picture.size == (width, height) else pixels.scale(picture, width, height, "bilinear", "center")
        for picture in image2
    ]
    return (image1 + fitted,)


@node(
    "ImageBlur",
    category="image/postprocessing",
    display_name=None,
    module="comfy_extras.nodes_post_processing",
    v3=True,
    required={
        "image": ["IMAGE", {}],
        "blur_radius": ["INT", {"default": 1, "min": 1, "max": 31, "step": 1}],
        "sigma": ["FLOAT", {"default": 1.0, "min": 0.1, "max": 10.0, "step": 0.1}],
    },
    outputs=("IMAGE",),
)
def image_blur(_run: NodeRun, image: Images, blur_radius: int, sigma: float) -> Values:
    return ([pixels.blur(picture, blur_radius, sigma) for picture in image],)


def png_info(run: NodeRun) -> PngInfo:
    """The workflow, as ComfyUI writes it into a picture."""
    metadata = PngInfo()
    metadata.add_text("prompt", json.dumps(run.prompt))
    for key, value in (run.extra_pnginfo or {}).items():
        metadata.add_text(key, json.dumps(value))
    return metadata


def save_pngs(run: NodeRun, images: Images, prefix: str, folder_type: str, compress_level: int) -> Shown:
    folder: Path = run.folders.temp if folder_type == "temp" else run.folders.output
    target = run.folders.save_path(prefix, folder, *images[0].size)
    metadata = png_info(run)
    saved = []
    for number, image in enumerate(images):
        name = target.file("png", number)
        image.save(target.folder / name, pnginfo=metadata, compress_level=compress_level)
        saved.append({"filename": name, "subfolder": target.subfolder, "type": folder_type})
    return Shown({"images": saved})


@node(
    "SaveImage",
    category="image",
    display_name="Save Image",
    description="Saves the input images to your ComfyUI output directory.",
    required={"images": ["IMAGE", {}], "filename_prefix": ["STRING", {"default": "ComfyUI"}]},
    hidden=PNG_INFO,
    output_node=True,
)
def save_image(run: NodeRun, images: Images, filename_prefix: str = "ComfyUI") -> Shown:
    return save_pngs(run, images, filename_prefix, "output", compress_level=4)


@node(
    "PreviewImage",
    category="image",
    display_name="Preview Image",
    description="Saves the input images to your ComfyUI output directory.",
    required={"images": ["IMAGE"]},
    hidden=PNG_INFO,
    output_node=True,
)
def preview_image(run: NodeRun, images: Images) -> Shown:
    suffix = "".join(random.choices(string.ascii_lowercase, k=5))  # noqa: S311 (a file name, no secret)
    return save_pngs(run, images, f"ComfyUI_temp_{suffix}", "temp", compress_level=1)


@node(
    "SaveAnimatedWEBP",
    category="image/animation",
    module="comfy_extras.nodes_images",
    required={
        "images": ["IMAGE"],
        "filename_prefix": ["STRING", {"default": "ComfyUI"}],
        "fps": ["FLOAT", {"default": 6.0, "min": 0.01, "max": 1000.0, "step": 0.01}],
        "lossless": ["BOOLEAN", {"default": True}],
        "quality": ["INT", {"default": 80, "min": 0, "max": 100}],
        "method": [list(_WEBP_METHODS)],
    },
    hidden=PNG_INFO,
    output_node=True,
)
def save_animated_webp(
    run: NodeRun, images: Images, filename_prefix: str, fps: float, lossless: bool, quality: int, method: str
) -> Shown:
    target = run.folders.save_path(filename_prefix, run.folders.output, *images[0].size)
    name = target.file("webp")
    images[0].save(
        target.folder / name,
        save_all=True,
        append_images=images[1:],
        duration=int(1000 / fps),
        lossless=lossless,
        quality=quality,
        method=_WEBP_METHODS[method],
        exif=_exif(images[0], run),
    )
    saved = {"filename": name, "subfolder": target.subfolder, "type": "output"}
    return Shown({"images": [saved], "animated": [len(images) != 1]})


def _exif(image: Image.Image, run: NodeRun) -> Image.Exif:
    """ComfyUI puts the prompt under the Model tag and each entry of extra_pnginfo under the tags below Make."""
    exif = image.getexif()
    model_tag, make_tag = 0x0110, 0x010F
    exif[model_tag] = f"prompt:{json.dumps(run.prompt)}"
    for offset, (key, value) in enumerate((run.extra_pnginfo or {}).items()):
        exif[make_tag - offset] = f"{key}:{json.dumps(value)}"
    return exif


@node(
    "SaveImageWebsocket",
    category="api/image",
    module="custom_nodes.websocket_image_save",
    required={"images": ["IMAGE"]},
    output_node=True,
    fingerprint=lambda _folders, **_: str(time.monotonic_ns()),
)
def save_image_websocket(run: NodeRun, images: Images) -> Values:
    """The pictures go to the websocket, whole, and nowhere else."""
    for number, image in enumerate(images):
        run.progress(number, len(images), image, "PNG")
    return ()
