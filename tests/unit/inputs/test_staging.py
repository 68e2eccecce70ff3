"""The inline inputs that a caller may send, and the file types that their bytes mean."""

from __future__ import annotations

import asyncio
import base64
import gc
import hashlib
import io
import wave
import weakref
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from comfyui.exceptions import ComfyUIInputError
from comfyui.inputs.content import CHUNK, Content, Spool, sniff
from comfyui.inputs.decoding import decode
from comfyui.inputs.staging import InputStager
from comfyui.models import InputFile, PromptRequest
from tests.support.job_inputs import b64
from tests.support.pictures import encoded

MAX = 1_000_000


def picture(format_name: str) -> bytes:
    return encoded(Image.new("RGB", (8, 8), (200, 30, 30)), format_name)


# It has bytes that base64 writes as "+" and "/", and a length that needs padding.
PNG = picture("PNG") + b"\xfb\xff\xfe\xff\xfe"


def sound() -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as recording:
        recording.setnchannels(1)
        recording.setsampwidth(2)
        recording.setframerate(8000)
        recording.writeframes(b"\0\0" * 80)
    return file.getvalue()


def bytes_of(content: Content) -> bytes:
    assert isinstance(content.source, bytes)
    return content.source


@pytest.mark.parametrize(
    "text",
    [
        b64(PNG),
        "\n".join(b64(PNG)[i : i + 76] for i in range(0, len(b64(PNG)), 76)) + "\n",
        base64.urlsafe_b64encode(PNG).decode().rstrip("="),
        f"data:image/png;base64,{b64(PNG)}",
        f"DATA:image/png;charset=utf-8;BASE64, {b64(PNG)}",
        f"data:image/png;base64,{b64(PNG).rstrip('=')}",
        f" \n data:image/png;base64,{b64(PNG)}\n",
        f"data:;base64,{b64(PNG).replace('+', '%2B').replace('/', '%2F').replace('=', '%3D')}",
        "data:image/png," + "".join(f"%{byte:02x}" for byte in PNG),
    ],
    ids=[
        "plain",
        "wrapped lines",
        "url-safe, unpadded",
        "data URI",
        "upper case, spaced",
        "data URI, unpadded",
        "data URI with blanks around it",
        "percent-encoded",
        "no base64",
    ],
)
def test_every_notation_of_an_input_gives_the_same_bytes(text: str) -> None:
    content = decode(text, max_bytes=MAX)
    assert bytes_of(content) == PNG
    assert content.size == len(PNG)
    assert content.digest == hashlib.sha256(PNG).hexdigest()
    assert content.extension == ".png"


@given(st.binary(min_size=1, max_size=200))
def test_any_bytes_survive_both_base64_alphabets(data: bytes) -> None:
    try:
        plain = decode(base64.b64encode(data).decode(), max_bytes=MAX)
    except ComfyUIInputError as error:
        assert "HTML" in error.detail  # noqa: PT017 - the one reason that random bytes can give
        return
    assert bytes_of(plain) == data
    assert bytes_of(decode(base64.urlsafe_b64encode(data).decode(), max_bytes=MAX)) == data


@pytest.mark.parametrize(
    "text",
    ["input.png", "not base64!", "ftp://example.com/a.png", "/etc/passwd", "äöü", "data:image/png;base64,!!!", "AAAAA"],
)
def test_a_text_that_is_not_base64_is_refused(text: str) -> None:
    with pytest.raises(ComfyUIInputError, match=r"must be base64, a data URI or an http\(s\) URL"):
        decode(text, max_bytes=MAX)


@pytest.mark.parametrize("prefix", ["", "data:image/png;base64,"])
def test_base64_with_blanks_for_lost_plus_signs_is_refused_with_the_reason(prefix: str) -> None:
    text = b64(PNG + b"\0\xfb\xef\xbe" * 5 + b"\0").replace("+", " ")
    assert " " in text
    assert text.endswith("=")
    for broken in (text, text.rstrip("=")):
        with pytest.raises(ComfyUIInputError, match="its blanks may be '\\+' characters"):
            decode(prefix + broken, max_bytes=MAX)


def test_base64_whose_lines_were_joined_with_blanks_is_decoded() -> None:
    lines = " ".join(b64(PNG)[i : i + 76] for i in range(0, len(b64(PNG)), 76))
    assert bytes_of(decode(lines, max_bytes=MAX)) == PNG


def test_base64_without_padding_outside_a_data_uri_is_refused_with_the_reason() -> None:
    assert b64(PNG).endswith("=")
    with pytest.raises(ComfyUIInputError, match=r"its end is missing: the padding \('='\)"):
        decode(b64(PNG).rstrip("="), max_bytes=MAX)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (f'"{b64(PNG)}"', "it has quotes around it"),
        (f" '{b64(PNG)}'", "it has quotes around it"),
        (f"image/png;base64,{b64(PNG)}", "it begins with 'base64,' but is not a data URI"),
        (f"base64,{b64(PNG)}", "it begins with 'base64,' but is not a data URI"),
        ("\\n".join(b64(PNG)[i : i + 20] for i in range(0, len(b64(PNG)), 20)), "a backslash and a letter"),
        (f"{b64(PNG)}==", "it ends with too many '='"),
        (f"data:image/png;base64,{b64(PNG)}==", "it ends with too many '='"),
    ],
)
def test_the_refusal_names_the_characters_that_surround_the_base64(text: str, reason: str) -> None:
    with pytest.raises(
        ComfyUIInputError, match=r"must be base64, a data URI or an http\(s\) URL; if it is base64"
    ) as raised:
        decode(text, max_bytes=MAX)
    assert reason in raised.value.detail


@pytest.mark.parametrize("text", ["", "  \n", "data:image/png;base64,", "data:,"])
def test_an_empty_input_is_refused(text: str) -> None:
    with pytest.raises(ComfyUIInputError, match="the content is empty"):
        decode(text, max_bytes=MAX)


@pytest.mark.parametrize("page", ["<!DOCTYPE html><p>404", "\ufeff \n<html lang=en>", "<HEAD>"])
def test_an_error_page_is_not_taken_for_a_file(page: str) -> None:
    with pytest.raises(ComfyUIInputError, match="HTML page"):
        decode(b64(page.encode()), max_bytes=MAX)


@pytest.mark.parametrize("make", [b64, lambda data: f"data:,{data.decode()}", lambda data: f"data:;base64,{b64(data)}"])
def test_an_input_may_be_as_large_as_the_limit_and_no_byte_larger(make: object) -> None:
    assert callable(make)
    assert decode(make(b"x" * 100), max_bytes=100).size == 100
    with pytest.raises(ComfyUIInputError, match=r"larger than the 0\.0001 MB"):
        decode(make(b"x" * 101), max_bytes=100)


@pytest.mark.parametrize(
    ("head", "extension"),
    [
        (PNG, ".png"),
        (picture("JPEG"), ".jpg"),
        (picture("WEBP"), ".webp"),
        (picture("GIF"), ".gif"),
        (picture("AVIF"), ".avif"),
        (picture("TIFF"), ".tiff"),
        (picture("BMP"), ".bmp"),
        (sound(), ".wav"),
        (b"\0\0\0\x20ftypisom\0\0\2\0isomiso2", ".mp4"),
        (b"\0\0\0\x14ftypqt  \0\0\0\0", ".mov"),
        (b"\0\0\0\x1cftypM4A \0\0\0\0", ".m4a"),
        (b"\x1aE\xdf\xa3\x9fB\x86\x81\1B\xf7\x81\1B\xf2\x81\4B\xf3\x81\x08B\x82\x84webm", ".webm"),
        (b"\x1aE\xdf\xa3\xa3B\x86\x81\1B\xf7\x81\1B\xf2\x81\4B\xf3\x81\x08B\x82\x88matroska", ".mkv"),
        (b"fLaC\0\0\0\x22", ".flac"),
        (b"ID3\4\0\0\0\0", ".mp3"),
        (b"\xff\xfb\x90\x64", ".mp3"),
        (b"OggS\0\2" + b"\0" * 20 + b"\1\x1eOpusHead", ".ogg"),
        (b"glTF\2\0\0\0", ".glb"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_bytes_and_not_the_name_decide_the_type(head: bytes, extension: str) -> None:
    assert sniff(head) == extension
    assert Content.of_bytes(head, ".exe").extension == extension


@pytest.mark.parametrize(
    ("hint", "extension"),
    [(".SVG", ".svg"), ("", ".bin"), (".a/../b", ".bin"), (".tar gz", ".bin"), (".latent", ".latent")],
)
def test_unknown_bytes_keep_a_harmless_extension_of_their_name(hint: str, extension: str) -> None:
    assert Content.of_bytes(b"some text", hint).extension == extension


def test_the_media_type_of_a_data_uri_gives_the_extension_if_the_bytes_do_not() -> None:
    assert decode("data:image/svg+xml,%3Csvg/%3E", max_bytes=MAX, hint=".png").extension == ".svg"


async def test_a_spool_hashes_its_data_and_can_be_read_again_from_the_start() -> None:
    data = PNG + bytes(range(256)) * 8192  # more than two blocks
    async with Spool(10 * CHUNK) as spool:
        for start in range(0, len(data), 100_000):
            await spool.write(data[start : start + 100_000])
        content = await spool.finish()
        assert (content.size, content.digest) == (len(data), hashlib.sha256(data).hexdigest())
        assert content.extension == ".png"
        for _ in range(2):
            assert b"".join([chunk async for chunk in content.chunks()]) == data
    assert isinstance(content.source, Path)
    assert not content.source.exists()


async def test_a_spool_stops_at_its_limit_and_leaves_nothing_on_disk() -> None:
    async with Spool(10) as spool:
        await spool.write(b"12345678")
        content = await spool.finish()
        with pytest.raises(ComfyUIInputError, match="larger than"):
            await spool.write(b"9ab")
        path = content.source
        assert isinstance(path, Path)
        assert path.read_bytes() == b"12345678"
    assert not path.exists()


async def test_a_spooled_file_part_has_the_same_size_limit(tmp_path: Path) -> None:
    file = tmp_path / "part"
    file.write_bytes(PNG)
    assert (await Content.of_file(file, max_bytes=len(PNG))).digest == hashlib.sha256(PNG).hexdigest()
    with pytest.raises(ComfyUIInputError, match="larger than"):
        await Content.of_file(file, max_bytes=len(PNG) - 1)


async def test_a_cancelled_call_frees_its_request_without_the_garbage_collector() -> None:
    class Silent:
        client: Any = None
        epoch = 0

    reached = asyncio.Event()

    class Hanging(InputStager):
        async def _place(self, *_args: Any) -> Any:
            reached.set()
            await asyncio.Event().wait()

    async with Hanging(max_bytes=1000, url_allow=[], url_timeout_s=5) as stager:
        request = PromptRequest(prompt={}, images=(InputFile(name="a.png", image="QUJD"),))
        gone = weakref.ref(request)
        gc.disable()
        try:
            task = asyncio.create_task(stager.stage(cast("Any", Silent()), request))
            del request
            await reached.wait()
            task.cancel()
            await asyncio.wait([task])
            del task
            assert gone() is None
        finally:
            gc.enable()
