"""Thumbnails of outputs: which files have them, the limits for hostile files, and the cache."""

from __future__ import annotations

import asyncio
import io
import os
import stat
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest
from PIL import Image

from comfyui.exceptions import ComfyUIError, ComfyUINotFoundError, ComfyUIUndeliverableError
from comfyui.outputs.images import ConversionLimits, ImageConverter
from comfyui.outputs.posters import PosterLimits, Posters
from comfyui.outputs.thumbnail_cache import ThumbnailCache
from comfyui.outputs.thumbnails import ThumbnailOptions, Thumbnails
from comfyui.transport.body import IteratedBody, OpenBody
from tests.support.pictures import encoded
from tests.support.videos import ffmpeg, make_video

Opening = Callable[[], AbstractAsyncContextManager[OpenBody | None]]


def opening(data: bytes | None, *, opened: list[str] | None = None, gate: asyncio.Event | None = None) -> Opening:
    """Opens `data`, or a missing file if it is None. `opened` records each opening, and `gate` delays it."""

    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(data or b""), 65_536):
            yield (data or b"")[start : start + 65_536]

    @asynccontextmanager
    async def open_output() -> AsyncIterator[OpenBody | None]:
        if opened is not None:
            opened.append("opened")
        if gate is not None:
            await gate.wait()
        yield None if data is None else IteratedBody(chunks(), len(data))

    return open_output


def shown(thumbnail: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(thumbnail))
    assert image.format == "WEBP"
    return image


H264 = ("-c:v", "libx264", "-pix_fmt", "yuv420p")
RED = encoded(Image.new("RGB", (1024, 512), "red"))


def is_red(image: Image.Image) -> bool:
    pixel = image.convert("RGB").getpixel((2, 2))
    assert isinstance(pixel, tuple)
    return pixel[0] > 200 > 60 > max(pixel[1:])


# Files that have thumbnails


@pytest.mark.parametrize("name", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
async def test_a_picture_becomes_a_small_picture(name: str) -> None:
    data = encoded(Image.new("RGB", (1024, 512), "red"), name)
    async with Thumbnails(ImageConverter()) as thumbnails:
        image = shown(await thumbnails.of("a", f"image/{name.lower()}", opening(data)))
    assert image.size == (320, 160)
    assert is_red(image)


@pytest.mark.parametrize(("name", "kind"), [("GIF", "image/gif"), ("WEBP", "image/webp"), ("PNG", "image/png")])
async def test_the_thumbnail_of_an_animation_is_its_first_frame(name: str, kind: str) -> None:
    frames = [Image.new("RGB", (64, 64), color) for color in ("red", "green", "blue")]
    data = encoded(frames[0], name, save_all=True, append_images=frames[1:])
    async with Thumbnails(ImageConverter()) as thumbnails:
        image = shown(await thumbnails.of("a", kind, opening(data)))
    assert is_red(image)
    assert image.size == (64, 64), "a small picture is not enlarged"


async def test_the_size_of_a_thumbnail_is_limited() -> None:
    noise = encoded(Image.effect_noise((800, 800), 100).convert("RGB"))
    async with Thumbnails(ImageConverter(), options=ThumbnailOptions(max_bytes=9000)) as thumbnails:
        assert len(await thumbnails.of("a", "image/png", opening(noise))) <= 9000


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("a.mp4", ("-c:v", "libx264", "-pix_fmt", "yuv420p")),
        ("a.webm", ("-c:v", "libvpx")),
        ("a.mkv", ("-c:v", "ffv1")),
    ],
)
async def test_the_thumbnail_of_a_video_is_its_first_picture(tmp_path: Path, name: str, codec: tuple[str, ...]) -> None:
    data = (await make_video(tmp_path / name, *codec, source="color=red:size=640x360")).read_bytes()
    folder = tmp_path / "thumbnails"
    async with Thumbnails(ImageConverter(), folder) as thumbnails:
        image = shown(await thumbnails.of("a", "video/mp4", opening(data)))
    assert image.size == (320, 180)
    assert is_red(image)
    assert [path.suffix for path in folder.iterdir()] == [".webp"], "the copy of the video is removed"


async def test_without_ffmpeg_videos_have_no_thumbnails() -> None:
    async with Thumbnails(ImageConverter(), posters=Posters(None)) as thumbnails:
        assert not thumbnails.are_made_of("video/mp4")
        with pytest.raises(ComfyUIUndeliverableError, match="no small pictures of video/mp4"):
            await thumbnails.of("a", "video/mp4", opening(b"x"))


@pytest.mark.parametrize("kind", ["image/svg+xml", "text/html", "model/gltf-binary", "audio/flac", "application/pdf"])
async def test_a_file_of_a_type_without_thumbnails_is_not_opened(kind: str) -> None:
    opened: list[str] = []
    async with Thumbnails(ImageConverter()) as thumbnails:
        assert not thumbnails.are_made_of(kind)
        with pytest.raises(ComfyUIUndeliverableError):
            await thumbnails.of("a", kind, opening(RED, opened=opened))
    assert opened == []


# Limits for hostile files


async def test_a_broken_picture_is_opened_only_once() -> None:
    opened: list[str] = []
    async with Thumbnails(ImageConverter()) as thumbnails:
        for _ in range(3):
            with pytest.raises(ComfyUIUndeliverableError, match="cannot read this image format"):
                await thumbnails.of("a", "image/png", opening(b"<script>", opened=opened))
    assert opened == ["opened"]


async def test_a_file_that_its_server_could_not_send_is_tried_again() -> None:
    async with Thumbnails(ImageConverter()) as thumbnails:
        with pytest.raises(ComfyUINotFoundError):
            await thumbnails.of("a", "image/png", opening(None))
        assert await thumbnails.of("a", "image/png", opening(RED))


async def test_a_picture_of_too_many_pixels_is_refused() -> None:
    async with Thumbnails(ImageConverter(ConversionLimits(max_pixels=1000))) as thumbnails:
        with pytest.raises(ComfyUIUndeliverableError, match="megapixels"):
            await thumbnails.of("a", "image/png", opening(RED))


@pytest.mark.parametrize("known", [True, False])
async def test_a_video_that_is_too_large_is_refused(tmp_path: Path, known: bool) -> None:
    ffmpeg()
    options = ThumbnailOptions(max_video=100_000)

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b"x" * 10_000

    @asynccontextmanager
    async def open_output() -> AsyncIterator[OpenBody]:
        yield IteratedBody(chunks(), 1_000_000 if known else None)

    async with Thumbnails(ImageConverter(), tmp_path, options) as thumbnails:
        with pytest.raises(ComfyUIUndeliverableError, match=r"larger than 0\.1 MB"):
            await thumbnails.of("a", "video/mp4", open_output)
    assert list(tmp_path.iterdir()) == []


async def test_a_playlist_that_claims_to_be_a_video_opens_no_other_file(tmp_path: Path) -> None:
    secret = await make_video(tmp_path / "secret.mp4", *H264, source="color=red:size=640x360")
    lists = [
        f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile://{secret}\n#EXT-X-ENDLIST\n",
        f"ffconcat version 1.0\nfile {secret}\n",
        f"ffconcat version 1.0\nfile file://{secret}\n",
        f"v=0\nc=IN IP4 127.0.0.1\nm=video 1 RTP/AVP 96\na=control:{secret}\n",
    ]
    posters = Posters.of_host()
    for number, text in enumerate(lists):
        path = tmp_path / f"{number}.mp4"
        path.write_text(text)
        async with Thumbnails(ImageConverter(), posters=posters) as thumbnails:
            with pytest.raises(ComfyUIUndeliverableError, match="ffmpeg found no picture in it"):
                await thumbnails.of("a", "video/mp4", opening(path.read_bytes()))


async def test_a_playlist_that_claims_to_be_a_video_opens_no_connection(tmp_path: Path) -> None:
    ffmpeg()
    asked: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.read(100))
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        path = tmp_path / "a.mp4"
        path.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://127.0.0.1:{port}/a.ts\n#EXT-X-ENDLIST\n")
        with pytest.raises(Exception, match="ffmpeg found no picture in it"):
            await Posters.of_host().first_picture(path)
    assert asked == []


async def test_a_file_name_that_looks_like_an_option_is_used_as_a_file(tmp_path: Path) -> None:
    made = await make_video(tmp_path / "-f lavfi.mp4", "-c:v", "mjpeg")
    assert (await Posters.of_host().first_picture(made)).startswith(b"\x89PNG")


async def test_ffmpeg_is_killed_when_a_video_takes_too_long(tmp_path: Path) -> None:
    slow = tmp_path / "slow"
    slow.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\nexec sleep 600\n")
    slow.chmod(0o755)
    posters = Posters(str(slow), PosterLimits(seconds=1.0))
    with pytest.raises(Exception, match="took more than 1 s"):
        await posters.first_picture(tmp_path / "a.mp4")
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


@pytest.mark.parametrize(
    ("does", "reason"),
    [
        ("echo 'a.mp4: Invalid data' >&2; exit 1", "ffmpeg found no picture in it: Invalid data"),
        ("exit 0", "ffmpeg found no picture in it: it ended with 0"),
        ("exec head -c 9000000 /dev/zero", "too large"),
        ("env", "ffmpeg found"),
    ],
)
async def test_every_failure_of_ffmpeg_gives_an_error_and_ffmpeg_sees_no_secrets(
    tmp_path: Path, does: str, reason: str
) -> None:
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\n{does} {'> ' + str(tmp_path / 'environment') if does == 'env' else ''}\n")
    program.chmod(0o755)
    os.environ["A_SECRET_OF_OURS"] = "x"
    try:
        with pytest.raises(Exception, match=reason):
            await Posters(str(program)).first_picture(tmp_path / "a.mp4")
    finally:
        del os.environ["A_SECRET_OF_OURS"]
    if does == "env":
        assert "A_SECRET_OF_OURS" not in (tmp_path / "environment").read_text()


# Work at the same time


async def test_callers_of_the_same_thumbnail_share_the_work() -> None:
    opened: list[str] = []
    gate = asyncio.Event()
    async with Thumbnails(ImageConverter()) as thumbnails:
        open_output = opening(RED, opened=opened, gate=gate)
        waiting = [asyncio.ensure_future(thumbnails.of("a", "image/png", open_output)) for _ in range(5)]
        while not opened:
            await asyncio.sleep(0)
        waiting[0].cancel()
        gate.set()
        found = await asyncio.gather(*waiting[1:])
    assert opened == ["opened"]
    assert len(set(found)) == 1


async def test_a_thumbnail_whose_caller_left_is_not_made() -> None:
    opened: list[str] = []
    gate = asyncio.Event()
    async with Thumbnails(ImageConverter(), options=ThumbnailOptions(at_once=1)) as thumbnails:
        first = asyncio.ensure_future(thumbnails.of("first", "image/png", opening(RED, opened=opened, gate=gate)))
        while not opened:
            await asyncio.sleep(0)
        left = asyncio.ensure_future(thumbnails.of("left", "image/png", opening(RED, opened=opened)))
        last = asyncio.ensure_future(thumbnails.of("last", "image/png", opening(RED, opened=opened)))
        await asyncio.sleep(0)
        assert opened == ["opened"], "only one thumbnail is made at a time"
        left.cancel()
        gate.set()
        await asyncio.gather(first, last)
        assert len(opened) == 2
        assert await thumbnails.of("left", "image/png", opening(RED, opened=opened))


async def test_a_silent_server_is_given_up_after_the_set_time() -> None:
    async with Thumbnails(ImageConverter(), options=ThumbnailOptions(within_s=0.05)) as thumbnails:
        with pytest.raises(ComfyUIUndeliverableError, match=r"more than 0\.05 s"):
            await thumbnails.of("a", "image/png", opening(RED, gate=asyncio.Event()))


# The cache


@pytest.mark.parametrize("kind", ["folder", "memory"])
async def test_a_thumbnail_is_made_once_and_the_last_used_are_kept(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "thumbnails" if kind == "folder" else None
    size = 0
    async with Thumbnails(ImageConverter(), None) as thumbnails:
        size = len(await thumbnails.of("a", "image/png", opening(RED)))
    bound = int(2.5 * size)
    options = ThumbnailOptions(on_disk=bound, in_memory=bound)
    opened: list[str] = []
    async with Thumbnails(ImageConverter(), folder, options) as thumbnails:
        for name in ("a", "b", "a", "c", "a"):
            assert len(await thumbnails.of(name, "image/png", opening(RED, opened=opened))) == size
        assert len(opened) == 3
        await thumbnails.of("b", "image/png", opening(RED, opened=opened))
        assert len(opened) == 4
    if folder is not None:
        assert sum(path.stat().st_size for path in folder.iterdir()) <= bound
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


async def test_a_restart_finds_thumbnails_and_removes_half_written_files(tmp_path: Path) -> None:
    first = ThumbnailCache(tmp_path, 100)
    await first.open()
    for name in ("a", "b"):
        await first.put(name, name.encode() * 30)
    (tmp_path / ".part-x").write_bytes(b"x" * 1000)
    (tmp_path / "video-x").write_bytes(b"x" * 1000)
    os.utime(
        next(path for path in tmp_path.iterdir() if path.suffix == ".webp" and path.read_bytes()[:1] == b"b"), (1, 1)
    )
    again = ThumbnailCache(tmp_path, 100)
    await again.open()
    assert again.size == 60
    assert {path.suffix for path in tmp_path.iterdir()} == {".webp"}
    smaller = ThumbnailCache(tmp_path, 40)
    await smaller.open()
    assert (await smaller.get("a"), await smaller.get("b")) == (b"a" * 30, None)
    next(tmp_path.iterdir()).unlink()
    assert await smaller.get("a") is None
    assert smaller.size == 0


async def test_a_thumbnail_is_answered_although_the_cache_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    async with Thumbnails(ImageConverter(), tmp_path / "file") as thumbnails:
        try:
            made = await thumbnails.of("a", "image/png", opening(RED))
        except ComfyUIError as error:
            pytest.fail(str(error))
        assert shown(made).size == (320, 160)
