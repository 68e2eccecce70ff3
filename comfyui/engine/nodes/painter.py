"""Draws the picture that stands in for a diffusion model's: decided by text and seed alone, and made to look at.

A sky of blended colours, a glowing disc, drifting haze and ridges that darken towards the viewer; words for colours in
the text choose the colours. `stamp` puts a mark on it that says that it is simulated.
"""

from __future__ import annotations

import colorsys
import hashlib
import itertools
import random
import re

from PIL import Image, ImageChops, ImageDraw, ImageEnhance, ImageFilter, ImageFont

MARK = "SIMULATION"

Colour = tuple[int, int, int]

_HUES = {
    "red": 0.0, "fox": 0.05, "fire": 0.03, "autumn": 0.07, "orange": 0.08, "sunset": 0.04, "desert": 0.1, "gold": 0.12,
    "yellow": 0.14, "sun": 0.12, "green": 0.33, "forest": 0.36, "spring": 0.28, "teal": 0.48, "sea": 0.53,
    "ocean": 0.56, "water": 0.55, "ice": 0.52, "winter": 0.56, "sky": 0.57, "blue": 0.6, "galaxy": 0.72,
    "night": 0.66, "space": 0.7, "purple": 0.76, "violet": 0.77, "pink": 0.9, "rose": 0.94, "bottle": 0.75,
}  # fmt: skip
_DARK_WORDS = frozenset({"night", "galaxy", "space", "dark", "black", "midnight", "cave"})
_LARGEST_SKETCH = 1024  # the drawn size; larger pictures are scaled up from it


def paint(text: str, seed: int, width: int, height: int) -> Image.Image:
    """The same picture for the same arguments, on every machine with the same Pillow."""
    source = random.Random(hashlib.sha256(f"{seed}|{text}".encode("utf-8", "surrogatepass")).digest())  # noqa: S311 (a picture, no secret)
    words = re.findall(r"[a-z]+", text.lower())
    hue = next((_HUES[word] for word in words if word in _HUES), source.random())
    hue = (hue + source.uniform(-0.03, 0.03)) % 1.0
    dark = not _DARK_WORDS.isdisjoint(words)
    shrink = min(1.0, _LARGEST_SKETCH / max(width, height))
    size = (max(1, round(width * shrink)), max(1, round(height * shrink)))
    picture = _sky(source, hue, dark, size)
    picture = _haze(source, picture, hue)
    horizon = source.uniform(0.45, 0.7)
    picture = _disc(source, picture, hue, horizon)
    picture = _ridges(source, picture, hue, horizon, dark)
    picture = ImageEnhance.Color(_grain(source, picture)).enhance(1.15)
    return picture if picture.size == (width, height) else picture.resize((width, height), Image.Resampling.BICUBIC)


def _colour(hue: float, saturation: float, value: float) -> Colour:
    red, green, blue = colorsys.hsv_to_rgb(hue % 1.0, min(1.0, saturation), min(1.0, value))
    return round(red * 255), round(green * 255), round(blue * 255)


def _sky(source: random.Random, hue: float, dark: bool, size: tuple[int, int]) -> Image.Image:
    """A coarse grid of colours, blended smoothly; lighter towards the horizon."""
    columns, rows = 4, 5
    grid = Image.new("RGB", (columns, rows))
    for row in range(rows):
        depth = row / (rows - 1)
        for column in range(columns):
            shift = source.uniform(-0.06, 0.06) + 0.12 * (1 - depth)
            value = (0.18 + 0.45 * depth) if dark else (0.5 + 0.5 * depth)
            grid.putpixel((column, row), _colour(hue + shift, 0.75 - 0.45 * depth, value * source.uniform(0.9, 1.05)))
    return grid.resize(size, Image.Resampling.BICUBIC)


def _noise(source: random.Random, cells: int, size: tuple[int, int]) -> Image.Image:
    """Smooth grey noise of about `cells` blobs across, three times as many down: clouds lie flat."""
    coarse = Image.frombytes("L", (cells, cells * 3), source.randbytes(cells * cells * 3))
    return coarse.resize(size, Image.Resampling.BICUBIC)


def _haze(source: random.Random, picture: Image.Image, hue: float) -> Image.Image:
    clouds = Image.blend(_noise(source, 5, picture.size), _noise(source, 14, picture.size), 0.35)
    mask = clouds.point([max(0, min(150, (level - 120) * 2)) for level in range(256)])
    return Image.composite(Image.new("RGB", picture.size, _colour(hue + 0.03, 0.12, 1.0)), picture, mask)


def _disc(source: random.Random, picture: Image.Image, hue: float, horizon: float) -> Image.Image:
    """A sun or moon, with its glow."""
    width, height = picture.size
    radius = max(2, round(min(width, height) * source.uniform(0.06, 0.12)))
    x, y = round(width * source.uniform(0.2, 0.8)), round(height * horizon * source.uniform(0.35, 0.8))
    glow = ImageChops.invert(Image.radial_gradient("L")).resize((radius * 8, radius * 8), Image.Resampling.BICUBIC)
    light = Image.new("L", picture.size)
    light.paste(
        glow.point([round(140 * max(0.0, (level - 75) / 180) ** 1.6) for level in range(256)]),
        (x - radius * 4, y - radius * 4),
    )
    ImageDraw.Draw(light).ellipse((x - radius, y - radius, x + radius, y + radius), fill=235)
    light = light.filter(ImageFilter.GaussianBlur(max(1, radius / 24)))
    return Image.composite(Image.new("RGB", picture.size, _colour(hue - 0.04, 0.18, 1.0)), picture, light)


def _ridges(source: random.Random, picture: Image.Image, hue: float, horizon: float, dark: bool) -> Image.Image:
    layers = source.randint(4, 6)
    for layer in range(layers):
        nearness = (layer + 1) / layers
        base = horizon + (1.0 - horizon) * 0.8 * layer / layers
        value = (0.45 if dark else 0.75) * (1.0 - 0.8 * nearness)
        colour = _colour(hue + 0.05 * nearness, 0.35 + 0.4 * nearness, value)
        shape = Image.new("L", picture.size)
        ImageDraw.Draw(shape).polygon(_ridge(source, picture.size, base, 0.16 * (1.1 - 0.5 * nearness)), fill=255)
        shape = shape.filter(ImageFilter.GaussianBlur(0.8))
        picture = Image.composite(Image.new("RGB", picture.size, colour), picture, shape)
    return picture


def _ridge(source: random.Random, size: tuple[int, int], base: float, roughness: float) -> list[tuple[float, float]]:
    """A skyline by midpoint displacement, closed along the lower edge."""
    width, height = size
    heights = [source.uniform(-1, 1), source.uniform(-1, 1)]
    spread = 1.0
    while len(heights) < 130:
        between = [(a + b) / 2 + source.uniform(-spread, spread) for a, b in itertools.pairwise(heights)]
        spread *= 0.52
        woven = [point for pair in zip(heights, between, strict=False) for point in pair]
        heights = [*woven, heights[-1]]
    step = width / (len(heights) - 1)
    skyline = [(step * i, height * (base - roughness * 0.5 * level)) for i, level in enumerate(heights)]
    return [(0, height), *skyline, (width, height)]


def _grain(source: random.Random, picture: Image.Image) -> Image.Image:
    tile = Image.frombytes("L", (128, 128), source.randbytes(128 * 128))
    grain = Image.new("L", picture.size)
    for x in range(0, picture.width, 128):
        for y in range(0, picture.height, 128):
            grain.paste(tile, (x, y))
    return Image.blend(picture, Image.merge("RGB", [grain] * 3), 0.025)


def stamp(picture: Image.Image) -> Image.Image:
    """A copy with the mark in its lower right corner, sized to be read."""
    marked = picture.convert("RGB")
    if marked is picture:
        marked = picture.copy()
    font = ImageFont.load_default(size=max(8, min(marked.size) // 24))
    left, top, right, bottom = font.getbbox(MARK)
    pad = max(2, round(bottom - top) // 2)
    box_width, box_height = round(right - left) + 2 * pad, round(bottom - top) + 2 * pad
    x, y = marked.width - box_width - pad, marked.height - box_height - pad
    shade = Image.new("L", marked.size)
    ImageDraw.Draw(shade).rounded_rectangle((x, y, x + box_width, y + box_height), radius=pad, fill=120)
    marked = Image.composite(Image.new("RGB", marked.size), marked, shade)
    ImageDraw.Draw(marked).text((x + pad - left, y + pad - top), MARK, font=font, fill=(255, 255, 255))
    return marked
