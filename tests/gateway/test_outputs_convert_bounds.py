"""Converting hostile and huge images: formats by name, Pillow's errors as ours, memory within a budget."""

from __future__ import annotations

import asyncio
import contextlib
import io
import struct
import subprocess
import sys
import zlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from comfyui.models import ImageConversion
from comfyui.outputs import images, pictures
from comfyui.outputs.history import OutputContent
from comfyui.outputs.images import ConversionLimits, ImageConverter
from comfyui.transport.body import IteratedBody

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n(/etc/passwd) (r) file\n%%EOF\n"


def content(data: bytes) -> OutputContent:
    async def chunks() -> AsyncIterator[bytes]:
        yield data

    return OutputContent("a.png", "image/png", IteratedBody(chunks()))


async def given(converter: ImageConverter, data: bytes, **wanted: Any) -> tuple[dict[str, Any], bytes]:
    conversion = ImageConversion(**{"format": "webp", **wanted})
    async with converter.converted(content(data), conversion) as converted:
        return dict(converted.notes), b"".join([piece async for piece in converted.body])


def encoded(image: Image.Image, name: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, name, **({"compress_level": 1} if name == "PNG" else {}))
    return buffer.getvalue()


def noise(mode: str, width: int, height: int) -> Image.Image:
    """A picture of noise, which takes an encoder the most memory."""
    image = Image.effect_noise((width, height), 80)
    return image if mode == "L" else image.convert(mode)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.mark.parametrize("size", [1, 3_000_000], ids=["in a thread", "in a process"])
async def test_no_external_program_is_started_for_an_image(ghostscript: Path, size: int) -> None:
    notes, data = await given(ImageConverter(), EPS + b"%" * size)
    assert notes == {"converted": False, "reason": "the gateway cannot read this image format"}
    assert data.startswith(EPS)
    assert not ghostscript.exists()


@pytest.mark.parametrize("name", ["ICO", "PPM", "TGA", "PCX", "SGI", "EPS", "PDF", "JPEG2000"])
async def test_formats_that_are_not_listed_are_not_read(name: str) -> None:
    notes, _ = await given(ImageConverter(), encoded(Image.new("RGB", (16, 16)), name))
    assert notes == {"converted": False, "reason": "the gateway cannot read this image format"}


@pytest.mark.parametrize("name", ["JPEG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "PNG"])
async def test_the_formats_that_comfyuis_nodes_write_are_read(name: str) -> None:
    notes, _ = await given(ImageConverter(), encoded(Image.new("RGB", (16, 16)), name), metadata="strip")
    assert notes == {"converted": True}


@pytest.mark.parametrize("name", ["PNG", "JPEG", "WEBP", "AVIF", "GIF", "BMP", "TIFF"])
async def test_damaged_files_raise_no_errors_of_pillow(name: str) -> None:
    whole = encoded(noise("RGB", 32, 32), name)
    read = 0
    for at in range(0, len(whole), max(1, len(whole) // 60)):
        for damaged in (whole[:at], whole[:at] + b"\xff\xff\xff\xff" + whole[at + 4 :]):
            with contextlib.suppress(pictures.NotConvertedError):
                pictures.convert(damaged, ImageConversion(format="webp", metadata="strip"), 80_000_000)
                read += 1
    assert read < 120


@pytest.mark.parametrize("error", [struct.error("x"), MemoryError(), IndexError(), OverflowError(), KeyError("x")])
def test_every_error_of_pillow_becomes_ours(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def raises(*_arguments: Any, **_options: Any) -> bytes:
        raise error

    picture = encoded(Image.new("RGB", (8, 8)))
    monkeypatch.setattr(Image.Image, "save", raises)
    with pytest.raises(pictures.NotConvertedError, match=f"could not be converted: {type(error).__name__}"):
        pictures.convert(picture, ImageConversion(format="webp"), 80_000_000)


# Prints the largest resident size. /proc counts it from the start of the program, without its parent's memory.
_MEASURED = """
import runpy, sys
program, *sys.argv[1:] = sys.argv[1:]
try:
    runpy.run_path(program, run_name="__main__")
except SystemExit as ended:
    assert ended.code == 0
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")), file=sys.stderr)
"""


def peak_bytes(data: bytes, wanted: ImageConversion) -> int:
    """The largest memory that the process of this conversion has."""
    quality = "" if wanted.quality is None else str(wanted.quality)
    arguments = [images._PROGRAM, wanted.format, quality, wanted.metadata, "80000000"]
    command = [sys.executable, "-I", "-c", _MEASURED, *arguments]
    return int(subprocess.run(command, input=data, capture_output=True, check=True).stderr) * 1024


@pytest.mark.parametrize("target", ["jpeg", "png", "webp", "avif"])
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "LA", "I;16"])
async def test_a_conversion_takes_no_more_memory_than_expected(mode: str, target: str) -> None:
    image = noise("I", 2000, 1500).point(lambda value: value * 200).convert("I;16") if mode == "I;16" else None
    data = encoded(image or noise(mode, 2000, 1500))
    # AVIF's memory depends on the frames, so a low quality saves time. Its own two modes use the default quality.
    quality = 10 if target == "avif" and mode not in {"RGB", "RGBA"} else None
    wanted = ImageConversion(format=target, quality=quality, metadata="strip")  # type: ignore[arg-type]
    expected = pictures.look(data, wanted, 80_000_000).memory
    assert await asyncio.to_thread(peak_bytes, data, wanted) <= expected


async def test_an_image_over_the_memory_budget_is_refused_with_the_setting() -> None:
    converter = ImageConverter(ConversionLimits(max_memory=60_000_000))
    notes, data = await given(converter, encoded(Image.new("RGB", (2000, 2000))), format="avif")
    assert notes["converted"] is False
    assert notes["reason"].endswith("MB, more than 60 MB (CONVERT_MEMORY_MB)")
    assert data.startswith(b"\x89PNG")


async def test_conversions_wait_for_free_memory_of_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(Image.new("RGB", (64, 64)))
    one = pictures.look(data, ImageConversion(format="webp"), 80_000_000).memory
    converter = ImageConverter(ConversionLimits(at_once=8, max_memory=2 * one + 1))
    running = most = 0
    to_thread = asyncio.to_thread

    async def counted(work: Any, *arguments: Any) -> Any:
        nonlocal running, most
        if work is pictures.look:
            return await to_thread(work, *arguments)
        running += 1
        most = max(most, running)
        try:
            return await to_thread(work, *arguments)
        finally:
            running -= 1

    monkeypatch.setattr(asyncio, "to_thread", counted)
    results = await asyncio.gather(*(given(converter, data) for _ in range(6)))
    assert [notes for notes, _ in results] == [{"converted": True}] * 6
    assert most == 2


async def test_a_cancelled_wait_for_memory_does_not_block_later_ones() -> None:
    budget = images._Budget(10)
    async with budget.taken(10):
        waiting = asyncio.create_task(_take(budget, 10))
        behind = asyncio.create_task(_take(budget, 5))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert not behind.done()
    async with asyncio.timeout(30):
        await behind
        await _take(budget, 10)


async def _take(budget: images._Budget, amount: int) -> None:
    async with budget.taken(amount):
        pass


async def test_a_large_image_is_converted_in_a_process_that_ends_with_its_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started: list[asyncio.subprocess.Process] = []
    start = asyncio.create_subprocess_exec

    async def noted(*arguments: Any, **options: Any) -> asyncio.subprocess.Process:
        started.append(await start(*arguments, **options))
        return started[-1]

    monkeypatch.setattr(asyncio, "create_subprocess_exec", noted)
    small, large = encoded(Image.new("RGB", (100, 100))), encoded(noise("RGB", 2000, 1500))
    assert (await given(ImageConverter(), small))[0] == {"converted": True}
    assert not started
    notes, data = await given(ImageConverter(), large, format="jpeg")
    assert notes == {"converted": True}
    assert Image.open(io.BytesIO(data)).size == (2000, 1500)
    assert [process.returncode for process in started] == [0]
    slow = asyncio.create_task(given(ImageConverter(), large, format="avif"))
    while len(started) < 2:
        await asyncio.sleep(0.01)
    slow.cancel()
    await asyncio.gather(slow, return_exceptions=True)
    assert started[1].returncode is not None


async def test_an_image_passes_unchanged_when_its_process_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    start = asyncio.create_subprocess_exec

    async def killed(*arguments: Any, **options: Any) -> asyncio.subprocess.Process:
        process = await start(*arguments, **options)
        process.kill()
        return process

    monkeypatch.setattr(asyncio, "create_subprocess_exec", killed)
    large = encoded(noise("RGB", 2000, 1500))
    notes, data = await given(ImageConverter(), large)
    assert notes["converted"] is False
    assert "the process that converted it was ended" in notes["reason"]
    assert data == large
