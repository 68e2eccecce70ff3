"""`convert`: still images come in another format; all other files come unchanged, with the reason."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from comfyui.models import ImageConversion
from comfyui.outputs.history import OutputContent
from comfyui.outputs.images import ConversionLimits, ImageConverter
from comfyui.transport.body import IteratedBody
from tests.support.outputs import simulated_output
from tests.support.pictures import encoded
from tests.support.running import RunningGateway, invert_workflow


async def converted(gateway: RunningGateway, workflow: Any, convert: dict[str, Any]) -> dict[str, Any]:
    status, body = await gateway.prompt_sync(workflow, convert=convert, return_image_base64=True)
    assert status == 200, body
    entry: dict[str, Any] = body["images"][0]
    return entry


def opened(entry: dict[str, Any]) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(entry["base64"], validate=True)))


@pytest.mark.parametrize(
    ("name", "extension", "content_type"),
    [("webp", "webp", "image/webp"), ("jpeg", "jpg", "image/jpeg"), ("avif", "avif", "image/avif")],
)
async def test_base64_is_in_the_requested_format(
    gateway: RunningGateway, name: str, extension: str, content_type: str
) -> None:
    entry = await converted(gateway, invert_workflow(255), {"format": name, "quality": 80})
    assert entry["filename"] == f"test_00001_.{extension}"
    assert entry["content_type"] == content_type
    assert entry["converted"] is True
    assert entry["url"] == "/view?filename=test_00001_.png&subfolder=&type=output"  # the original
    with opened(entry) as image:
        assert (image.format, image.size) == (name.upper(), (16, 12))
        red, green, blue = image.convert("RGB").getpixel((8, 6))  # type: ignore[misc]
        assert min(red, green) > 240
        assert blue < 15


async def test_raw_and_zip_answers_are_converted(gateway: RunningGateway) -> None:
    body = {"prompt": invert_workflow(), "convert": {"format": "webp"}}
    async with gateway.http.post("/prompt_sync", json=body, headers={"Accept": "image/webp"}) as response:
        assert (response.status, response.content_type) == (200, "image/webp")
        assert "test_00001_.webp" in response.headers["Content-Disposition"]
        assert (await response.read())[8:12] == b"WEBP"
    async with gateway.http.post("/prompt_sync", json=body, headers={"Accept": "application/zip"}) as response:
        with zipfile.ZipFile(io.BytesIO(await response.read())) as archive:
            assert [Path(name).suffix for name in archive.namelist()] == [".webp"]


async def test_an_attached_client_may_convert(gateway: RunningGateway) -> None:
    prompt_id = str(uuid4())
    await gateway.prompt_sync(invert_workflow(), prompt_id=prompt_id)
    url = f"/prompt_sync/{prompt_id}?convert=jpeg&quality=50&return_image_base64=true"
    async with gateway.http.get(url) as response:
        assert (await response.json())["images"][0]["content_type"] == "image/jpeg"


async def test_other_media_pass_unchanged_with_the_reason(gateway: RunningGateway) -> None:
    entry = await converted(gateway, {"1": simulated_output(100)}, {"format": "webp"})
    assert (entry["converted"], entry["reason"]) == (False, "not an image")
    assert entry["filename"] == "big_00001_.mp4"
    assert len(base64.b64decode(entry["base64"])) == 100


async def test_a_file_that_is_no_image_despite_its_name_passes_unchanged(gateway: RunningGateway) -> None:
    entry = await converted(gateway, {"1": simulated_output(100, extension="png")}, {"format": "webp"})
    assert entry["converted"] is False
    assert "cannot" in entry["reason"] or "not an image" in entry["reason"]
    assert entry["content_type"] == "image/png"


async def test_an_entry_without_bytes_says_why_nothing_was_converted(gateway: RunningGateway) -> None:
    _, body = await gateway.prompt_sync(invert_workflow(), convert={"format": "webp"})
    assert body["images"][0]["converted"] is False
    assert "return_image_base64" in body["images"][0]["reason"]


@pytest.mark.parametrize(
    ("convert", "says"),
    [
        ({"format": "gif"}, "convert.format"),
        ({"format": "webp", "quality": 0}, "convert.quality"),
        ({"format": "webp", "size": 3}, "convert.size: there is no such field"),
        ("webp", "convert"),
    ],
)
async def test_a_wrong_conversion_is_422(gateway: RunningGateway, convert: Any, says: str) -> None:
    status, body = await gateway.prompt_sync(invert_workflow(), convert=convert)
    assert (status, body["type"]) == (422, "invalid_request")
    assert says in body["detail"]


async def test_the_workflow_stays_in_the_metadata_as_comfyui_writes_it(gateway: RunningGateway) -> None:
    workflow = invert_workflow()
    entry = await converted(gateway, workflow, {"format": "webp"})
    with opened(entry) as image:
        kept = image.getexif()[0x0110]
    assert kept.startswith("prompt:")
    assert json.loads(kept.removeprefix("prompt:")) == workflow
    entry = await converted(gateway, workflow, {"format": "webp", "metadata": "strip"})
    with opened(entry) as image:
        assert not image.getexif()
    assert b"class_type" not in base64.b64decode(entry["base64"])


# The converter itself: no gateway needed.


async def convert(data: bytes, name: str = "a.png", *, limits: ConversionLimits | None = None, **wanted: Any) -> Any:
    """The content after conversion: its bytes, and the notes of its entry."""

    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(data), 1000):
            yield data[start : start + 1000]

    suffix = Path(name).suffix.removeprefix(".")
    content = OutputContent(name, f"image/{suffix}", IteratedBody(chunks()))
    async with ImageConverter(limits).converted(content, ImageConversion(**wanted)) as given:
        return b"".join([chunk async for chunk in given.body]), given.notes


RED = (255, 0, 0)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F"])
@pytest.mark.parametrize("target", ["webp", "jpeg", "png", "avif"])
async def test_every_image_mode_converts_to_every_format(mode: str, target: str) -> None:
    image = (
        Image.new("L", (4, 4), 200).convert(mode) if mode not in {"I;16", "I", "F"} else Image.new(mode, (4, 4), 200)
    )
    data = encoded(image, "TIFF")
    body, notes = await convert(data, "a.tiff", format=target)
    assert notes == {"converted": True}
    with Image.open(io.BytesIO(body)) as result:
        assert result.format == target.upper()


async def test_sixteen_bits_are_scaled_and_not_cut_off() -> None:
    body, _ = await convert(encoded(Image.new("I;16", (4, 4), 32768), "PNG"), format="jpeg")
    with Image.open(io.BytesIO(body)) as result:
        assert abs(result.convert("L").getpixel((0, 0)) - 127) <= 2  # type: ignore[operator]


async def test_transparency_becomes_white_in_jpeg_and_stays_in_webp() -> None:
    data = encoded(Image.new("RGBA", (8, 8), (255, 0, 0, 0)), "PNG")
    body, _ = await convert(data, format="jpeg")
    with Image.open(io.BytesIO(body)) as result:
        assert min(result.getpixel((4, 4))) > 250  # type: ignore[arg-type]
    body, _ = await convert(data, format="webp")
    with Image.open(io.BytesIO(body)) as result:
        assert result.convert("RGBA").getchannel("A").getextrema() == (0, 0)


async def test_an_animation_is_never_cut_to_its_first_frame() -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "green", "blue")]
    for name in ("GIF", "WEBP", "PNG"):
        data = encoded(frames[0], name, save_all=True, append_images=frames[1:])
        assert await convert(data, format="jpeg") == (data, {"converted": False, "reason": "animated"})


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        (ConversionLimits(max_pixels=99), "more than 9.9e-05 megapixels"),
        (ConversionLimits(max_bytes=50), "larger than 5e-05 MB"),
    ],
)
async def test_an_image_that_is_too_large_passes_unchanged(limits: ConversionLimits, reason: str) -> None:
    data = encoded(Image.effect_noise((10, 10), 50), "PNG")
    assert await convert(data, format="webp", limits=limits) == (data, {"converted": False, "reason": reason})


async def test_a_decompression_bomb_is_not_opened() -> None:
    """A file of some kilobytes with 400 megapixels."""
    data = encoded(Image.new("1", (20_000, 20_000)), "PNG")
    assert len(data) < 100_000
    body, notes = await convert(data, format="webp")
    assert body == data
    assert "megapixels" in notes["reason"]


async def test_a_broken_image_passes_unchanged() -> None:
    data = encoded(Image.effect_noise((64, 64), 50), "PNG")[:2000]
    body, notes = await convert(data, format="webp")
    assert body == data
    assert notes["converted"] is False


async def test_an_image_that_already_has_the_format_passes_unchanged() -> None:
    data = encoded(Image.new("RGB", (4, 4)), "PNG")
    assert await convert(data, format="png") == (data, {"converted": False, "reason": "png already"})


async def test_metadata_survives_conversion_to_webp_and_back() -> None:
    texts = PngInfo()
    texts.add_text("prompt", '{"1": "ä"}')
    texts.add_text("workflow", '{"nodes": []}')
    data = encoded(Image.new("RGB", (4, 4)), "PNG", pnginfo=texts)
    webp, _ = await convert(data, format="webp")
    png, _ = await convert(webp, "a.webp", format="png")
    with Image.open(io.BytesIO(png)) as result:
        assert json.loads(result.text["prompt"]) == {"1": "ä"}  # type: ignore[attr-defined]
        assert result.text["workflow"] == '{"nodes": []}'  # type: ignore[attr-defined]


async def test_a_workflow_too_long_for_jpeg_is_left_out() -> None:
    texts = PngInfo()
    texts.add_text("prompt", "x" * 100_000)
    texts.add_text("workflow", '{"nodes": []}')
    body, notes = await convert(encoded(Image.new("RGB", (4, 4)), "PNG", pnginfo=texts), format="jpeg")
    assert notes["converted"] is True
    with Image.open(io.BytesIO(body)) as result:
        assert dict(result.getexif()) == {0x010F: 'workflow:{"nodes": []}'}


async def test_an_image_stays_upright_when_its_exif_is_stripped() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    data = encoded(Image.new("RGB", (8, 4)), "JPEG", exif=exif, comment=b"secret")
    body, _ = await convert(data, "a.jpeg", format="jpeg", metadata="strip")
    with Image.open(io.BytesIO(body)) as result:
        assert result.size == (4, 8)
        assert not result.getexif()
    assert b"secret" not in body


async def test_a_limited_number_of_images_are_converted_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    running = most = 0
    to_thread = asyncio.to_thread

    async def counted(*arguments: Any) -> Any:
        nonlocal running, most
        running += 1
        most = max(most, running)
        try:
            return await to_thread(*arguments)
        finally:
            running -= 1

    monkeypatch.setattr(asyncio, "to_thread", counted)
    data = encoded(Image.effect_noise((200, 200), 50), "PNG")
    converter = ImageConverter(ConversionLimits(at_once=2))

    async def one() -> None:
        async def chunks() -> AsyncIterator[bytes]:
            yield data

        content = OutputContent("a.png", "image/png", IteratedBody(chunks()))
        async with converter.converted(content, ImageConversion(format="webp")) as given:
            assert given.notes == {"converted": True}

    await asyncio.gather(*(one() for _ in range(6)))
    assert most == 2
