"""Files in and out: what nodes save, /view, uploads, and the pictures that the image nodes make."""

from __future__ import annotations

import json
import time
import uuid
from io import BytesIO
from typing import Any

import aiohttp
import pytest
from PIL import Image, ImageChops

from tests.support.target import Prompt, Target, any_color, empty, inverted, node


def files(entry: dict[str, Any], node_id: str = "3", key: str = "images") -> list[dict[str, str]]:
    found: list[dict[str, str]] = entry["outputs"][node_id][key]
    return found


def differ_by(first: Image.Image, second: Image.Image) -> int:
    """The largest difference of any pixel's channel."""
    extrema = ImageChops.difference(first, second).getextrema()
    return max(int(high) for _, high in extrema) if isinstance(extrema[0], tuple) else int(extrema[1])


def gradient(width: int = 40, height: int = 30) -> Image.Image:
    red = Image.linear_gradient("L").resize((width, height))
    green = Image.radial_gradient("L").resize((width, height))
    return Image.merge("RGB", (red, green, red.transpose(Image.Transpose.ROTATE_180)))


async def saved(target: Target, nodes: Prompt, source: Any) -> Image.Image:
    """Runs the nodes and returns the picture that a SaveImage behind them wrote."""
    save = node("SaveImage", images=source, filename_prefix=target.prefix)
    run = await target.run({**nodes, "9": save})
    return await target.picture(files(run.entry, "9")[0])


async def test_a_saved_picture_has_size_mode_pixels_and_metadata(target: Target) -> None:
    prompt = inverted(target.prefix, color=0x3366CC, width=33, height=21)
    run = await target.run(prompt, extra_data={"extra_pnginfo": {"workflow": {"nodes": [1]}, "more": "x"}})
    (file,) = files(run.entry)
    folder, _, stem = target.prefix.rpartition("/")
    assert file == {"filename": f"{stem}_00001_.png", "subfolder": folder, "type": "output"}
    picture = await target.picture(file)
    assert (picture.format, picture.size, picture.mode) == ("PNG", (33, 21), "RGB")
    assert differ_by(picture, Image.new("RGB", (33, 21), (0xCC, 0x99, 0x33))) <= 1
    assert json.loads(picture.info["prompt"]) == prompt
    assert json.loads(picture.info["workflow"]) == {"nodes": [1]}
    assert json.loads(picture.info["more"]) == "x"


async def test_file_names_are_numbered_on_and_each_picture_of_a_batch_has_a_file(target: Target) -> None:
    first = await target.run(inverted(target.prefix, color=any_color(), batch_size=2))
    second = await target.run(inverted(target.prefix, color=any_color()))
    stem = target.prefix.rpartition("/")[2]
    assert [file["filename"] for file in files(first.entry)] == [f"{stem}_00001_.png", f"{stem}_00002_.png"]
    assert [file["filename"] for file in files(second.entry)] == [f"{stem}_00003_.png"]


async def test_tokens_in_the_prefix_are_replaced(target: Target) -> None:
    run = await target.run(inverted(f"{target.prefix}/%year%-%width%x%height%-%batch_num%", width=12, height=34))
    (file,) = files(run.entry)
    assert file["filename"] == f"{time.localtime().tm_year}-12x34-0_00001_.png"
    assert file["subfolder"] == target.prefix


async def test_previews_go_to_the_temp_folder(target: Target) -> None:
    run = await target.run({"1": empty(color=any_color()), "3": node("PreviewImage", images=["1", 0])})
    (file,) = files(run.entry)
    assert file["type"] == "temp"
    assert file["filename"].startswith("ComfyUI_temp_")
    assert (await target.picture(file)).size == (64, 48)


async def test_only_a_real_animation_is_flagged_as_animated(target: Target) -> None:
    save = {"filename_prefix": target.prefix, "fps": 5.0, "lossless": True, "quality": 80, "method": "fastest"}
    nodes = {
        "1": empty(color=0xFF0000),
        "2": empty(color=0x00FF00),
        "4": node("ImageBatch", image1=["1", 0], image2=["2", 0]),
        "3": node("SaveAnimatedWEBP", images=["4", 0], **save),
    }
    run = await target.run(nodes)
    assert run.entry["outputs"]["3"]["animated"] == [True]
    picture = await target.picture(files(run.entry)[0])
    assert (picture.format, getattr(picture, "n_frames", 1)) == ("WEBP", 2)
    single = await target.run({**nodes, "3": node("SaveAnimatedWEBP", images=["1", 0], **save)})
    assert single.entry["outputs"]["3"]["animated"] == [False]


_METHODS = ["nearest-exact", "bilinear", "area", "lanczos"]


@pytest.mark.parametrize("method", _METHODS)
async def test_scaling_up_and_down_gives_comfyuis_pixels(target: Target, method: str) -> None:
    """Scales by whole factors, because otherwise rounding decides which pixel is the nearest."""
    uploaded = await target.upload(gradient(), f"{uuid.uuid4().hex}.png")
    load = node("LoadImage", image=uploaded["name"])
    for width, height in ((80, 60), (20, 15)):
        scale = node("ImageScale", image=["1", 0], upscale_method=method, width=width, height=height, crop="disabled")
        picture = await saved(target, {"1": load, "2": scale}, ["2", 0])
        assert picture.size == (width, height)
        assert differ_by(picture, _expected_scale(width, height, method)) <= 2


def _expected_scale(width: int, height: int, method: str) -> Image.Image:
    size, source = (width, height), gradient()
    match method:
        case "nearest-exact":
            return source.resize(size, Image.Resampling.NEAREST)
        case "area":
            return source.resize(size, Image.Resampling.BOX)
        case "lanczos":
            return source.resize(size, Image.Resampling.LANCZOS)
    matrix = (source.width / width, 0, 0, 0, source.height / height, 0)
    return source.transform(size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)


async def test_an_image_can_be_scaled_by_a_factor_or_by_one_side(target: Target) -> None:
    nodes = {
        "1": empty(width=40, height=30),
        "2": node("ImageScaleBy", image=["1", 0], upscale_method="bicubic", scale_by=1.5),
        "3": node("ImageScale", image=["2", 0], upscale_method="area", width=0, height=15, crop="disabled"),
    }
    assert (await saved(target, nodes, ["2", 0])).size == (60, 45)
    assert (await saved(target, nodes, ["3", 0])).size == (20, 15)


async def test_cropping_stays_within_the_picture(target: Target) -> None:
    uploaded = await target.upload(gradient(), f"{uuid.uuid4().hex}.png")
    nodes = {
        "1": node("LoadImage", image=uploaded["name"]),
        "2": node("ImageCrop", image=["1", 0], width=100, height=10, x=5, y=25),
    }
    picture = await saved(target, nodes, ["2", 0])
    assert picture.size == (35, 5)
    assert differ_by(picture, gradient().crop((5, 25, 40, 30))) <= 1


@pytest.mark.parametrize("mode", ["normal", "multiply", "screen", "overlay", "soft_light", "difference"])
async def test_blending_uses_the_formula_of_its_mode(target: Target, mode: str) -> None:
    """Blends two plain colours, so that the test can compute each mode's result."""
    nodes = {
        "1": empty(color=0x3366CC),
        "2": empty(color=0xB04090),
        "3": node("ImageBlend", image1=["1", 0], image2=["2", 0], blend_factor=0.75, blend_mode=mode),
    }
    picture = await saved(target, nodes, ["3", 0])
    pairs = zip((0x33 / 255, 0x66 / 255, 0xCC / 255), (0xB0 / 255, 0x40 / 255, 0x90 / 255), strict=True)
    colour = tuple(int(255 * max(0.0, min(1.0, a * 0.25 + _mixed(mode, a, b) * 0.75)) + 1e-3) for a, b in pairs)
    assert differ_by(picture, Image.new("RGB", picture.size, colour)) <= 1


def _mixed(mode: str, a: float, b: float) -> float:
    match mode:
        case "multiply":
            return a * b
        case "screen":
            return 1 - (1 - a) * (1 - b)
        case "overlay":
            return 2 * a * b if a <= 0.5 else 1 - 2 * (1 - a) * (1 - b)
        case "soft_light":
            lifted = ((16 * a - 12) * a + 4) * a if a <= 0.25 else a**0.5
            return a - (1 - 2 * b) * a * (1 - a) if b <= 0.5 else a + (2 * b - 1) * (lifted - a)
        case "difference":
            return a - b
    return b


async def test_blurring_spreads_a_point_by_the_kernel(target: Target) -> None:
    point = Image.new("RGB", (9, 9))
    point.putpixel((4, 4), (255, 255, 255))
    uploaded = await target.upload(point, f"{uuid.uuid4().hex}.png")
    nodes = {
        "1": node("LoadImage", image=uploaded["name"]),
        "2": node("ImageBlur", image=["1", 0], blur_radius=1, sigma=1.0),
    }
    picture = await saved(target, nodes, ["2", 0])
    side, corner = 2.718281828**-0.5, 2.718281828**-1
    total = 1 + 4 * side + 4 * corner
    expected = {(4, 4): 1.0, (3, 4): side, (3, 3): corner, (2, 4): 0.0}
    for place, weight in expected.items():
        pixel = picture.getpixel(place)
        assert isinstance(pixel, tuple)
        assert abs(pixel[0] - 255 * weight / total) <= 1


async def test_transparency_becomes_the_mask(target: Target) -> None:
    see_through = gradient().convert("RGBA")
    see_through.putalpha(Image.linear_gradient("L").resize(see_through.size))
    uploaded = await target.upload(see_through, f"{uuid.uuid4().hex}.png")
    nodes = {
        "1": node("LoadImage", image=uploaded["name"]),
        "2": node("MaskToImage", mask=["1", 1]),
        "3": node("LoadImageMask", image=uploaded["name"], channel="red"),
        "4": node("MaskToImage", mask=["3", 0]),
    }
    mask = ImageChops.invert(see_through.getchannel("A"))
    assert differ_by(await saved(target, nodes, ["1", 0]), gradient()) <= 1
    assert differ_by(await saved(target, nodes, ["2", 0]), mask.convert("RGB")) <= 1
    assert differ_by(await saved(target, nodes, ["4", 0]), gradient().getchannel("R").convert("RGB")) <= 1


async def test_a_solid_mask_has_its_value_everywhere(target: Target) -> None:
    nodes = {"1": node("SolidMask", value=0.5, width=16, height=8), "2": node("MaskToImage", mask=["1", 0])}
    picture = await saved(target, nodes, ["2", 0])
    assert differ_by(picture, Image.new("RGB", (16, 8), (127, 127, 127))) <= 1


async def test_a_changed_input_file_is_loaded_again(target: Target) -> None:
    name = f"{uuid.uuid4().hex}.png"
    nodes = {"1": node("LoadImage", image=name)}
    await target.upload(Image.new("RGB", (8, 8), (255, 0, 0)), name)
    first = await saved(target, nodes, ["1", 0])
    await target.upload(Image.new("RGB", (8, 8), (0, 255, 0)), name, overwrite="true")
    second = await saved(target, nodes, ["1", 0])
    assert (first.getpixel((0, 0)), second.getpixel((0, 0))) == ((255, 0, 0), (0, 255, 0))


async def test_uploads_do_not_overwrite_unless_asked_and_reuse_equal_files(target: Target) -> None:
    name = f"{uuid.uuid4().hex}.png"
    stem = name.removesuffix(".png")
    red, green = Image.new("RGB", (4, 4), (255, 0, 0)), Image.new("RGB", (4, 4), (0, 255, 0))
    assert await target.upload(red, name) == {"name": name, "subfolder": "", "type": "input"}
    assert (await target.upload(red, name))["name"] == name
    assert (await target.upload(green, name))["name"] == f"{stem} (1).png"
    assert (await target.upload(green, name, overwrite="1"))["name"] == name
    file = {"filename": name, "type": "input"}
    assert (await target.picture(file)).getpixel((0, 0)) == (0, 255, 0)


async def test_an_upload_into_a_subfolder_can_be_loaded_by_its_path(target: Target) -> None:
    name = f"{uuid.uuid4().hex}.png"
    answer = await target.upload(gradient(), name, subfolder="contract/in", type="input")
    assert answer == {"name": name, "subfolder": "contract/in", "type": "input"}
    picture = await saved(target, {"1": node("LoadImage", image=f"contract/in/{name}")}, ["1", 0])
    assert picture.size == (40, 30)


async def test_an_output_can_be_loaded_by_its_annotation(target: Target) -> None:
    run = await target.run(inverted(target.prefix, width=24, height=12))
    name = f"{target.prefix}_00001_.png [output]"
    assert files(run.entry)[0]["filename"] in name
    assert (await saved(target, {"1": node("LoadImage", image=name)}, ["1", 0])).size == (24, 12)


@pytest.mark.parametrize(("filename", "subfolder"), [("in.png", "../../.."), ("../../../out.png", "")])
async def test_uploads_outside_the_input_folder_are_refused(target: Target, filename: str, subfolder: str) -> None:
    form = aiohttp.FormData(quote_fields=False)
    form.add_field("image", b"data", filename=filename)
    form.add_field("subfolder", subfolder)
    async with target.session.post("/upload/image", data=form) as response:
        assert (response.status, await response.read()) == (400, b"")


async def test_an_upload_without_a_file_is_refused(target: Target) -> None:
    form = aiohttp.FormData()
    form.add_field("another", b"data", filename="x.png")
    async with target.session.post("/upload/image", data=form) as response:
        assert (response.status, await response.read()) == (400, b"")


async def test_a_mask_upload_copies_the_original_with_a_new_alpha(target: Target) -> None:
    original = f"{uuid.uuid4().hex}.png"
    await target.upload(gradient(), original)
    painted = Image.new("RGBA", (40, 30), (0, 0, 0, 99))
    buffer = BytesIO()
    painted.save(buffer, "PNG")
    form = aiohttp.FormData()
    form.add_field("image", buffer.getvalue(), filename=f"masked-{original}")
    form.add_field("original_ref", json.dumps({"filename": original, "subfolder": "", "type": "input"}))
    async with target.session.post("/upload/mask", data=form) as response:
        assert response.status == 200
        answer = await response.json()
    assert answer == {"name": f"masked-{original}", "subfolder": "", "type": "input"}
    picture = await target.picture({"filename": answer["name"], "type": "input"})
    assert picture.mode == "RGBA"
    assert picture.getchannel("A").getextrema() == (99, 99)
    assert differ_by(picture.convert("RGB"), gradient()) == 0


async def test_view_sends_content_type_file_name_and_length(target: Target) -> None:
    file = files((await target.run(inverted(target.prefix))).entry)[0]
    async with target.session.get("/api/view", params=file) as response:
        body = await response.read()
        assert response.headers["Content-Type"] == "image/png"
        assert response.headers["Content-Disposition"] == f'filename="{file["filename"]}"'
        assert int(response.headers["Content-Length"]) == len(body)


async def test_view_answers_ranges(target: Target) -> None:
    file = files((await target.run(inverted(target.prefix))).entry)[0]
    whole = await target.view(file)
    async with target.session.get("/view", params=file, headers={"Range": "bytes=10-19"}) as response:
        assert response.status == 206
        assert response.headers["Content-Range"] == f"bytes 10-19/{len(whole)}"
        assert await response.read() == whole[10:20]
    async with target.session.get("/view", params=file, headers={"Range": "bytes=-5"}) as response:
        assert await response.read() == whole[-5:]
    async with target.session.get("/view", params=file, headers={"Range": f"bytes={len(whole)}-"}) as response:
        assert response.status == 416


@pytest.mark.parametrize(
    ("preview", "channel", "kind"),
    [("webp;50", None, "WEBP"), ("jpeg;90", None, "JPEG"), ("jpeg", "a", "WEBP"), ("bmp", None, "WEBP")],
)
async def test_view_converts_to_previews(target: Target, preview: str, channel: str | None, kind: str) -> None:
    file = files((await target.run(inverted(target.prefix))).entry)[0]
    query = {"preview": preview} | ({"channel": channel} if channel else {})
    async with target.session.get("/view", params={**file, **query}) as response:
        assert response.headers["Content-Type"] == f"image/{kind.lower()}"
        picture = Image.open(BytesIO(await response.read()))
        assert (picture.format, picture.size) == (kind, (64, 48))


async def test_view_separates_channels(target: Target) -> None:
    see_through = Image.new("RGBA", (6, 6), (10, 20, 30, 77))
    file = {"filename": (await target.upload(see_through, f"{uuid.uuid4().hex}.png"))["name"], "type": "input"}
    colours = Image.open(BytesIO(await target.view(file, channel="rgb")))
    assert (colours.format, colours.mode, colours.getpixel((0, 0))) == ("PNG", "RGB", (10, 20, 30))
    alpha = Image.open(BytesIO(await target.view(file, channel="a")))
    assert (alpha.format, alpha.mode, alpha.getpixel((0, 0))) == ("PNG", "RGBA", (0, 0, 0, 77))


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ({}, 404),
        ({"filename": ""}, 400),
        ({"filename": "nothing.png"}, 404),
        ({"filename": "nothing.png", "subfolder": "no/such"}, 404),
        ({"filename": "/etc/passwd"}, 400),
        ({"filename": "../main.py"}, 400),
        ({"filename": "a.png", "subfolder": "../.."}, 403),
        ({"filename": "a.png", "subfolder": "/etc"}, 403),
        ({"filename": "a.png", "type": "elsewhere"}, 400),
    ],
)
async def test_view_refuses_missing_files_and_paths_outside_its_folders(
    target: Target, query: dict[str, str], status: int
) -> None:
    async with target.session.get("/view", params=query) as response:
        assert (response.status, await response.read()) == (status, b"")
