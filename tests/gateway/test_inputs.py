"""Staging against the embedded engine: the files in ComfyUI's input folder and the names in the workflow afterwards."""

from __future__ import annotations

import asyncio
import base64
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from comfyui.client import ComfyUIClient
from comfyui.engine import Engine
from comfyui.exceptions import ComfyUIConnectionError, ComfyUIInputError
from comfyui.inputs.content import SpooledFiles
from comfyui.inputs.staging import InputStager
from comfyui.models import InputFile, PromptRequest
from comfyui.servers.backend import Backend
from tests.support.servers import server_of

UPLOAD = "POST /upload/image"


def picture(shade: int, size: int = 8) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (size, size), (shade, 0, 0)).save(file, "PNG")
    return file.getvalue()


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def load(value: Any) -> dict[str, Any]:
    return {"class_type": "LoadImage", "inputs": {"image": value}}


def request_for(prompt: Mapping[str, Any], **images: bytes) -> PromptRequest:
    return PromptRequest(
        prompt=dict(prompt), images=tuple(InputFile(name=name, image=b64(data)) for name, data in images.items())
    )


def uploads(engine: Engine) -> int:
    return int(engine.stats.show()["requests"].get(UPLOAD, 0))


def stored(engine: Engine, value: str) -> bytes:
    return (Path(engine.folders.input) / value).read_bytes()


async def test_a_workflow_without_inputs_is_returned_unchanged(
    stager: InputStager, plain_server: Backend, plain_engine: Engine
) -> None:
    request = request_for({"1": load("old.png")})
    assert await stager.stage(plain_server, request, [("1", "image")]) is request.prompt
    assert uploads(plain_engine) == 0


async def test_a_referenced_input_is_stored_by_content_and_the_request_stays_unchanged(
    stager: InputStager, plain_server: Backend, plain_engine: Engine
) -> None:
    prompt = {"1": load("a.png"), "2": load("a.png [input]"), "3": {"class_type": "X", "inputs": {"images": ["1", 0]}}}
    request = request_for(prompt, **{"a.png": picture(1)})
    staged = await stager.stage(plain_server, request, [("1", "image"), ("2", "image")])
    value = staged["1"]["inputs"]["image"]
    assert value.startswith("gateway/")
    assert value.endswith(".png")
    assert staged["2"]["inputs"]["image"] == value
    assert staged["3"] is request.prompt["3"]
    assert request.prompt == prompt
    assert stored(plain_engine, value) == picture(1)
    assert not (Path(plain_engine.folders.input) / "a.png").exists()


async def test_callers_with_one_name_and_different_pictures_each_render_their_own(
    stager: InputStager, plain_server: Backend, plain_engine: Engine
) -> None:
    async def stage(shade: int) -> bytes:
        request = request_for({"1": load("input.png")}, **{"input.png": picture(shade)})
        staged = await stager.stage(plain_server, request, [("1", "image")])
        return stored(plain_engine, staged["1"]["inputs"]["image"])

    assert await asyncio.gather(*(stage(shade) for shade in range(20))) == [picture(shade) for shade in range(20)]


async def test_a_text_that_equals_a_name_stays_and_the_file_is_also_stored_under_its_name(
    stager: InputStager, plain_server: Backend, plain_engine: Engine
) -> None:
    text = {"class_type": "CLIPTextEncode", "inputs": {"text": "portrait", "clip": ["4", 1]}}
    request = request_for({"1": load("portrait"), "2": text}, portrait=picture(3))
    staged = await stager.stage(plain_server, request, [("1", "image")])
    assert staged["2"]["inputs"]["text"] == "portrait"
    assert staged["1"]["inputs"]["image"].startswith("gateway/")
    assert stored(plain_engine, "portrait") == picture(3)


async def test_an_input_without_an_upload_widget_overwrites_the_file_of_its_name(
    stager: InputStager, plain_server: Backend, plain_engine: Engine
) -> None:
    for shade in (1, 2):
        image = InputFile(name="m.png", subfolder="masks", image=b64(picture(shade)))
        request = PromptRequest(prompt={"1": {"class_type": "Own", "inputs": {"file": "masks/m.png"}}}, images=(image,))
        assert await stager.stage(plain_server, request) is request.prompt
        assert stored(plain_engine, "masks/m.png") == picture(shade)


async def test_a_reference_to_an_input_includes_its_subfolder(
    stager: InputStager, plain_server: Backend, plain_engine: Engine
) -> None:
    images = tuple(InputFile(name="x.png", subfolder=f"s{n}", image=b64(picture(n))) for n in (1, 2))
    prompt = {"1": load("s1/x.png"), "2": load("s2/x.png"), "3": load("x.png")}
    staged = await stager.stage(
        plain_server, PromptRequest(prompt=prompt, images=images), [(node_id, "image") for node_id in prompt]
    )
    assert [stored(plain_engine, staged[n]["inputs"]["image"]) for n in "12"] == [picture(1), picture(2)]
    assert staged["3"]["inputs"]["image"] == "x.png"


@pytest.mark.parametrize(
    "name",
    ["my photo.png", "фото.png", "a+b&c.png", "100%.png", "a%20b.png", 'say "hi".png', "a;b;c.png", "a\r\nb.png"],
)
async def test_a_file_name_arrives_unchanged(
    name: str, stager: InputStager, plain_server: Backend, plain_engine: Engine
) -> None:
    image = InputFile(name=name, subfolder="ein Ordner/ü", image=b64(picture(1)))
    prompt = {"1": {"class_type": "Own", "inputs": {"path": f"ein Ordner/ü/{name}"}}}
    assert await stager.stage(plain_server, PromptRequest(prompt=prompt, images=(image,))) == prompt
    assert stored(plain_engine, f"ein Ordner/ü/{name}") == picture(1)


async def test_the_workflow_gets_the_name_that_comfyui_chose(
    stager: InputStager, plain_server: Backend, plain_engine: Engine
) -> None:
    await plain_engine.set_faults({"upload_renamed": {"name": "other 1.png", "subfolder": "kept"}})
    own = {"class_type": "Own", "inputs": {"files": [{"path": "a.png"}, "a.png [input]"], "text": "a.png of mine"}}
    request = request_for({"1": own}, **{"a.png": picture(1)})
    staged = await stager.stage(plain_server, request)
    value = {"files": [{"path": "kept/other 1.png"}, "kept/other 1.png"], "text": "a.png of mine"}
    assert staged["1"]["inputs"] == value
    assert stored(plain_engine, "kept/other 1.png") == picture(1)
    assert request.prompt["1"] == own


async def test_a_reference_with_windows_folders_finds_its_file(
    stager: InputStager, plain_server: Backend, plain_engine: Engine
) -> None:
    image = InputFile(name="x.png", subfolder="sub\\deep", image=b64(picture(4)))
    request = PromptRequest(prompt={"1": load("sub\\deep\\x.png")}, images=(image,))
    staged = await stager.stage(plain_server, request, [("1", "image")])
    assert stored(plain_engine, staged["1"]["inputs"]["image"]) == picture(4)


async def test_inline_data_may_have_surrounding_blanks_and_line_ends(
    stager: InputStager, plain_server: Backend, plain_engine: Engine
) -> None:
    request = request_for({"1": load(f"\n data:image/png;base64,{b64(picture(7))} \n")})
    staged = await stager.stage(plain_server, request, [("1", "image")])
    assert stored(plain_engine, staged["1"]["inputs"]["image"]) == picture(7)


async def test_inline_data_is_staged_only_in_upload_inputs(
    stager: InputStager, plain_server: Backend, plain_engine: Engine
) -> None:
    uri = f"data:image/png;base64,{b64(picture(7))}"
    request = request_for({"1": load(uri), "2": {"class_type": "Note", "inputs": {"text": uri}}, "3": load(["1", 0])})
    staged = await stager.stage(plain_server, request, [("1", "image"), ("3", "image"), ("9", "image"), ("1", "mask")])
    assert stored(plain_engine, staged["1"]["inputs"]["image"]) == picture(7)
    assert staged["2"]["inputs"]["text"] == uri
    assert staged["3"]["inputs"]["image"] == ["1", 0]


async def test_a_3d_model_is_stored_in_the_folder_of_the_3d_loaders(stager: InputStager, plain_server: Backend) -> None:
    request = PromptRequest(
        prompt={"1": {"class_type": "Load3D", "inputs": {"model_file": "duck.glb"}}},
        images=(InputFile(name="duck.glb", image=b64(b"glTF\2\0\0\0")),),
    )
    staged = await stager.stage(plain_server, request, [("1", "model_file")])
    assert staged["1"]["inputs"]["model_file"].startswith("3d/gateway/")


async def test_concurrent_callers_upload_the_same_content_once(
    stager: InputStager, plain_server: Backend, plain_engine: Engine
) -> None:
    request = request_for({"1": load("a.png")}, **{"a.png": picture(5)})
    again = request_for({"1": load("b.png")}, **{"b.png": picture(5)})
    staged = await asyncio.gather(*(stager.stage(plain_server, request, [("1", "image")]) for _ in range(30)))
    assert len({result["1"]["inputs"]["image"] for result in staged}) == 1
    assert await stager.stage(plain_server, again, [("1", "image")]) == staged[0]
    assert uploads(plain_engine) == 1


async def test_after_forget_an_input_is_uploaded_again_under_the_same_name(
    stager: InputStager, plain_server: Backend, plain_engine: Engine
) -> None:
    request = request_for({"1": load("a.png")}, **{"a.png": picture(5)})
    before = await stager.stage(plain_server, request, [("1", "image")])
    (Path(plain_engine.folders.input) / before["1"]["inputs"]["image"]).unlink()
    stager.forget(plain_server)
    after = await stager.stage(plain_server, request, [("1", "image")])
    assert after == before
    assert stored(plain_engine, after["1"]["inputs"]["image"]) == picture(5)


async def test_after_a_reconnect_an_input_is_uploaded_again(
    stager: InputStager, plain_server: Backend, plain_engine: Engine
) -> None:
    request = request_for({"1": load("a.png")}, **{"a.png": picture(5)})
    await stager.stage(plain_server, request, [("1", "image")])
    await stager.stage(plain_server, request, [("1", "image")])
    assert uploads(plain_engine) == 1
    epoch = plain_server.epoch
    async with asyncio.timeout(30), plain_server.watcher:
        while plain_server.epoch == epoch:
            await asyncio.sleep(0.01)
        await stager.stage(plain_server, request, [("1", "image")])
    assert uploads(plain_engine) == 2


async def test_an_upload_of_the_same_content_does_not_rewrite_the_file(
    stager: InputStager, plain_server: Backend, plain_engine: Engine
) -> None:
    request = request_for({"1": load("a.png")}, **{"a.png": picture(5)})
    value = (await stager.stage(plain_server, request, [("1", "image")]))["1"]["inputs"]["image"]
    file = Path(plain_engine.folders.input) / value
    os.utime(file, ns=(1, 1))
    stager.forget(plain_server)
    assert (await stager.stage(plain_server, request, [("1", "image")]))["1"]["inputs"]["image"] == value
    assert uploads(plain_engine) == 2
    assert file.stat().st_mtime_ns == 1


async def test_a_truncated_file_under_its_hash_is_not_used(
    stager: InputStager, plain_server: Backend, plain_engine: Engine
) -> None:
    request = request_for({"1": load("a.png")}, **{"a.png": picture(5)})
    value = (await stager.stage(plain_server, request, [("1", "image")]))["1"]["inputs"]["image"]
    (Path(plain_engine.folders.input) / value).write_bytes(picture(5)[:20])
    stager.forget(plain_server)
    value = (await stager.stage(plain_server, request, [("1", "image")]))["1"]["inputs"]["image"]
    assert stored(plain_engine, value) == picture(5)


async def test_when_the_uploading_caller_is_cancelled_the_next_one_uploads(
    stager: InputStager, plain_server: Backend, plain_engine: Engine
) -> None:
    await plain_engine.set_faults({"hang": {"route": "/upload/image", "times": 1}})
    request = request_for({"1": load("a.png")}, **{"a.png": picture(6)})
    first = asyncio.create_task(stager.stage(plain_server, request, [("1", "image")]))
    while not uploads(plain_engine):
        await asyncio.sleep(0)
    second = asyncio.create_task(stager.stage(plain_server, request, [("1", "image")]))
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert stored(plain_engine, (await second)["1"]["inputs"]["image"]) == picture(6)


async def test_a_broken_upload_is_repeated_from_the_first_byte(
    stager: InputStager, plain_server: Backend, plain_engine: Engine
) -> None:
    await plain_engine.set_faults(
        {"cut": {"route": "/upload/image", "times": 1}, "status": {"status": 503, "times": 1}}
    )
    request = request_for({"1": load("a.png")}, **{"a.png": picture(6)})
    staged = await stager.stage(plain_server, request, [("1", "image")])
    assert stored(plain_engine, staged["1"]["inputs"]["image"]) == picture(6)


async def test_a_stopped_comfyui_is_a_connection_error_and_no_input_error(stager: InputStager) -> None:
    async with Engine() as engine:
        url = engine.url
    async with ComfyUIClient(url, retries=0) as client:
        with pytest.raises(ComfyUIConnectionError):
            await stager.stage(
                server_of(client), request_for({"1": load("a.png")}, **{"a.png": picture(1)}), [("1", "image")]
            )


async def test_a_large_input_arrives_completely(
    plain_server: Backend, stager: InputStager, plain_engine: Engine
) -> None:
    data = picture(9) + bytes(range(256)) * 10_000  # 2.5 MB are decoded in a thread and sent in parts
    staged = await stager.stage(plain_server, request_for({"1": load("a.png")}, **{"a.png": data}), [("1", "image")])
    assert stored(plain_engine, staged["1"]["inputs"]["image"]) == data


async def test_spooled_files_are_staged_like_images(
    plain_server: Backend, stager: InputStager, plain_engine: Engine, tmp_path: Path
) -> None:
    (tmp_path / "part").write_bytes(picture(4))
    paths = {"photo.png": tmp_path / "part", "sub/loose.png": tmp_path / "part"}
    files = SpooledFiles(tmp_path, paths, {})
    staged = await stager.stage(plain_server, request_for({"1": load("photo.png")}), [("1", "image")], files)
    assert stored(plain_engine, staged["1"]["inputs"]["image"]) == picture(4)
    assert stored(plain_engine, "sub/loose.png") == picture(4)
    assert (tmp_path / "part").exists()


@pytest.mark.parametrize("name", ["../up.png", "/etc/x.png", "", "a/../../b.png"])
async def test_the_name_of_a_spooled_file_cannot_leave_the_folder(
    name: str, plain_server: Backend, stager: InputStager, plain_engine: Engine, tmp_path: Path
) -> None:
    (tmp_path / "part").write_bytes(picture(4))
    with pytest.raises(ComfyUIInputError, match="relative path"):
        await stager.stage(plain_server, request_for({}), (), SpooledFiles(tmp_path, {name: tmp_path / "part"}, {}))
    assert uploads(plain_engine) == 0


async def test_an_error_names_the_field(stager: InputStager, plain_server: Backend) -> None:
    good = InputFile(name="a.png", image=b64(picture(1)))
    bad = InputFile(name="b.png", image="***")
    with pytest.raises(ComfyUIInputError, match=r"^images\[1\]\.image: must be base64"):
        await stager.stage(plain_server, PromptRequest(prompt={}, images=(good, bad)))
    with pytest.raises(ComfyUIInputError, match=r"^prompt\.10\.inputs\.image: the content is empty"):
        await stager.stage(plain_server, request_for({"10": load("data:image/png;base64,")}), [("10", "image")])


async def test_two_contents_under_one_name_in_one_request_are_refused(
    stager: InputStager, plain_server: Backend, plain_engine: Engine
) -> None:
    images = tuple(InputFile(name="a.png", image=b64(picture(n))) for n in (1, 2))
    with pytest.raises(ComfyUIInputError, match=r"^images\[1\]\.image: images\[0\]\.image has the same name 'a\.png'"):
        await stager.stage(plain_server, PromptRequest(prompt={}, images=images))
    same = (images[0], images[0])
    await stager.stage(plain_server, PromptRequest(prompt={}, images=same))
    assert uploads(plain_engine) == 1
