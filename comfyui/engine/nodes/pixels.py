"""Pixel work of the image nodes on lists of Pillow images (ComfyUI's IMAGE is a batch).

ComfyUI computes with floats and cuts to 8 bits when it saves. Here each step is 8 bits, cut the same way, so a pixel
may differ from ComfyUI's by one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from PIL import Image, ImageMath

Images = list[Image.Image]

_ROUNDING_SLACK = 1e-3  # keeps 154.99999 from being cut to 154


def scale(image: Image.Image, width: int, height: int, method: str, crop: str = "disabled") -> Image.Image:
    """Both sides are known. `bilinear` and `bicubic` sample without smoothing, as torch does.

    The pixels are ComfyUI's but for `bicubic`, whose curve is another, and `area` by a factor that is not whole.
    """
    if crop == "center":
        image = _crop_to_aspect(image, width / height)
    size = (width, height)
    match method:
        case "nearest-exact":
            return image.resize(size, Image.Resampling.NEAREST)
        case "area":
            return image.resize(size, Image.Resampling.BOX)
        case "lanczos":
            return image.resize(size, Image.Resampling.LANCZOS)
        case "bilinear" | "bicubic":
            matrix = (image.width / width, 0, 0, 0, image.height / height, 0)
            resample = Image.Resampling.BILINEAR if method == "bilinear" else Image.Resampling.BICUBIC
            return image.transform(size, Image.Transform.AFFINE, matrix, resample)
    raise ValueError(f"unknown upscale method: {method}")


def _crop_to_aspect(image: Image.Image, aspect: float) -> Image.Image:
    width, height = image.size
    x = y = 0
    if width / height > aspect:
        x = round((width - height * aspect) / 2)
    elif width / height < aspect:
        y = round((height - width / aspect) / 2)
    return image.crop((x, y, width - x, height - y))


def blend(first: Image.Image, second: Image.Image, factor: float, mode: str) -> Image.Image:
    second = second.convert(first.mode)
    if second.size != first.size:
        second = scale(second, first.width, first.height, "bicubic", "center")
    mix = _BLEND_MODES[mode]

    def bands(args: dict[str, Any]) -> Any:
        a, b = args["float"](args["a"]) / 255.0, args["float"](args["b"]) / 255.0
        return (a * (1.0 - factor) + mix(args, a, b) * factor) * 255.0 + _ROUNDING_SLACK

    return _per_band(lambda a, b: ImageMath.lambda_eval(bands, a=a, b=b), first, second)


def _where(condition: Any, then: Any, otherwise: Any) -> Any:
    return condition * then + (1.0 - condition) * otherwise


def _soft_light(args: dict[str, Any], a: Any, b: Any) -> Any:
    # min() keeps the square root's branch and the polynomial's apart without a conditional operator.
    low = ((16.0 * a - 12.0) * a + 4.0) * a
    lifted = _where(args["float"](a <= 0.25), low, a**0.5)
    return _where(args["float"](b <= 0.5), a - (1.0 - 2.0 * b) * a * (1.0 - a), a + (2.0 * b - 1.0) * (lifted - a))


_BLEND_MODES: dict[str, Callable[[dict[str, Any], Any, Any], Any]] = {
    "normal": lambda _, _a, b: b,
    "multiply": lambda _, a, b: a * b,
    "screen": lambda _, a, b: 1.0 - (1.0 - a) * (1.0 - b),
    "overlay": lambda args, a, b: _where(args["float"](a <= 0.5), 2.0 * a * b, 1.0 - 2.0 * (1.0 - a) * (1.0 - b)),
    "soft_light": _soft_light,
    "difference": lambda _, a, b: a - b,
}


def blur(image: Image.Image, radius: int, sigma: float) -> Image.Image:
    """A Gaussian over 2·radius + 1 pixels, `sigma` in units of the radius; edges are mirrored."""
    if radius >= min(image.size):
        raise RuntimeError(
            "Padding size should be less than the corresponding input dimension, "
            f"but got: padding ({radius}, {radius}) for an image of {image.width}x{image.height}"
        )
    weights = [math.exp(-((i / radius) ** 2) / (2.0 * sigma * sigma)) for i in range(-radius, radius + 1)]
    weights = [weight / sum(weights) for weight in weights]

    def smooth(band: Image.Image) -> Image.Image:
        upright = _smooth_rows(band.convert("F"), radius, weights)
        turned = _smooth_rows(upright.transpose(Image.Transpose.TRANSPOSE), radius, weights)
        return turned.transpose(Image.Transpose.TRANSPOSE).point(lambda value: value * 1.0 + _ROUNDING_SLACK)

    return _per_band(smooth, image)


def _smooth_rows(band: Image.Image, radius: int, weights: list[float]) -> Image.Image:
    width, height = band.size
    padded = Image.new("F", (width + 2 * radius, height))
    mirrored = band.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    padded.paste(band, (radius, 0))
    padded.paste(mirrored.crop((width - 1 - radius, 0, width - 1, height)), (0, 0))
    padded.paste(mirrored.crop((1, 0, 1 + radius, height)), (radius + width, 0))
    total = Image.new("F", band.size)
    for offset, weight in enumerate(weights):
        window = padded.crop((offset, 0, offset + width, height))
        total = ImageMath.lambda_eval(_weighted(weight), total=total, window=window)
    return total


def _weighted(weight: float) -> Callable[[dict[str, Any]], Any]:
    return lambda args: args["total"] + args["window"] * weight


def _per_band(function: Callable[..., Image.Image], *images: Image.Image) -> Image.Image:
    bands = zip(*(image.split() for image in images), strict=True)
    return Image.merge(images[0].mode, [function(*band).convert("L") for band in bands])
