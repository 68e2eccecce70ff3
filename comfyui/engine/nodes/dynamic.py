"""Image nodes of newer versions, whose inputs take shape in the prompt."""

from __future__ import annotations

from typing import Any

from comfyui.engine.dynamic import AUTOGROW, DYNAMIC_COMBO, MATCH_TYPE
from comfyui.engine.nodes import pixels
from comfyui.engine.nodes.pixels import Images
from comfyui.engine.nodes.registry import MAX_RESOLUTION, NodeRun, Values, node

_UPSCALE_METHODS = ["nearest-exact", "bilinear", "area", "bicubic", "lanczos"]


def _side() -> list[Any]:
    return ["INT", {"default": 512, "min": 0, "max": MAX_RESOLUTION, "step": 1}]


@node(
    "BatchImagesNode",
    category="image/batch",
    display_name="Batch Images",
    module="comfy_extras.nodes_post_processing",
    v3=True,
    newer=True,
    required={
        "images": [
            AUTOGROW,
            {"template": {"input": {"required": {"image": ["IMAGE", {}]}}, "prefix": "image", "min": 1, "max": 50}},
        ]
    },
    outputs=("IMAGE",),
)
def batch_images(_run: NodeRun, images: dict[str, Images]) -> Values:
    width, height = images["image0"][0].size
    return (
        [
            picture if picture.size == (width, height) else pixels.scale(picture, width, height, "bilinear", "center")
            for batch in images.values()
            for picture in batch
        ],
    )


@node(
    "ResizeImageMaskNode",
    category="transform",
    display_name="Resize Image/Mask",
    module="comfy_extras.nodes_post_processing",
    v3=True,
    newer=True,
    required={
        "input": [MATCH_TYPE, {"template": {"template_id": "input_type", "allowed_types": "IMAGE,MASK"}}],
        "resize_type": [
            DYNAMIC_COMBO,
            {
                "options": [
                    {
                        "key": "scale dimensions",
                        "inputs": {
                            "required": {
                                "width": _side(),
                                "height": _side(),
                                "crop": ["COMBO", {"default": "center", "options": ["disabled", "center"]}],
                            }
                        },
                    },
                    {
                        "key": "scale by multiplier",
                        "inputs": {
                            "required": {
                                "multiplier": ["FLOAT", {"default": 1.0, "min": 0.01, "max": 8.0, "step": 0.01}]
                            }
                        },
                    },
                ]
            },
        ],
        "scale_method": ["COMBO", {"default": "area", "options": _UPSCALE_METHODS}],
    },
    outputs=(MATCH_TYPE,),
)
def resize(_run: NodeRun, input: Images, resize_type: dict[str, Any], scale_method: str) -> Values:  # noqa: A002
    first = input[0]
    if resize_type["resize_type"] == "scale by multiplier":
        width, height = (max(1, round(side * resize_type["multiplier"])) for side in first.size)
        crop = "disabled"
    else:
        width, height, crop = resize_type["width"], resize_type["height"], resize_type["crop"]
        width = width or max(1, round(first.width * height / first.height))
        height = height or max(1, round(first.height * width / first.width))
    return ([pixels.scale(picture, width, height, scale_method, crop) for picture in input],)
