"""multipart/form-data on `/prompt_sync`: a workflow and files, as curl sends them."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import shutil
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiohttp
import pytest
from PIL import Image

from comfyui.engine import Engine
from tests.support.job_inputs import loading
from tests.support.relaying import eventually
from tests.support.running import RunningGateway, invert_workflow, queue_of, requests, running_gateway, until

pytestmark = pytest.mark.usefixtures("form_folder")


async def forms_are_gone(folder: Path) -> None:
    async def left() -> list[Path]:
        return await asyncio.to_thread(lambda: list(folder.glob("comfyui-form-*")))

    await until(left, lambda paths: not paths)


def picture(color: str = "red", size: tuple[int, int] = (16, 12)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, color).save(buffer, "PNG")
    return buffer.getvalue()


def form(workflow: Any, *files: tuple[str, bytes], field: str = "workflow", **fields: str) -> aiohttp.FormData:
    data = aiohttp.FormData()
    data.add_field(field, json.dumps(workflow), content_type="application/json")
    for name, content in files:
        data.add_field("images", io.BytesIO(content), filename=name, content_type="application/octet-stream")
    for name, value in fields.items():
        data.add_field(name, value)
    return data


async def post(gateway: RunningGateway, data: Any, **headers: str) -> tuple[int, Any]:
    async with gateway.http.post("/prompt_sync", data=data, headers=headers) as response:
        return response.status, await response.json()


async def test_a_file_in_the_form_becomes_the_input(gateway: RunningGateway, form_folder: Path) -> None:
    status, body = await post(gateway, form(loading(), ("photo.png", picture()), return_image_base64="true"))
    assert status == 200, body
    with Image.open(io.BytesIO(base64.b64decode(body["images"][0]["base64"]))) as image:
        assert image.getpixel((0, 0)) == (0, 255, 255)
    await forms_are_gone(form_folder)


@pytest.mark.parametrize("field", ["workflow", "prompt"])
async def test_the_workflow_field_may_be_a_graph_or_a_whole_body(gateway: RunningGateway, field: str) -> None:
    prompt_id = str(uuid4())
    whole = {"prompt": loading(), "prompt_id": prompt_id, "return_image_base64": True}
    status, body = await post(gateway, form(whole, ("photo.png", picture()), field=field))
    assert (status, body["prompt_id"]) == (200, prompt_id)
    assert body["images"][0]["base64"]
    status, _ = await post(gateway, form(loading(), ("photo.png", picture()), field=field, output='{"store": "none"}'))
    assert status == 200


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl")
async def test_the_curl_command_of_the_docs_works(gateway: RunningGateway, tmp_path: Path) -> None:
    (tmp_path / "workflow.json").write_text(json.dumps(loading()))
    (tmp_path / "photo.png").write_bytes(picture())
    curl = await asyncio.create_subprocess_exec(
        *("curl", "-sS", "-F", "workflow=@workflow.json", "-F", "images=@photo.png", "-H", "Accept: image/*"),
        *("-o", "out.png", "-w", "%{http_code} %{content_type}", f"{gateway.url}/prompt_sync"),
        cwd=tmp_path,
        stdout=asyncio.subprocess.PIPE,
    )
    said, _ = await curl.communicate()
    assert said == b"200 image/png"
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")


async def test_several_large_files_become_inputs(gateway: RunningGateway, engine: Engine, form_folder: Path) -> None:
    noise = Image.effect_noise((1500, 1500), 90).convert("RGB")
    buffer = io.BytesIO()
    noise.save(buffer, "PNG", compress_level=0)
    workflow = {
        **loading("big.png"),
        "5": {"class_type": "LoadImage", "inputs": {"image": "sub/small.png"}},
        "6": {"class_type": "SaveImage", "inputs": {"images": ["5", 0], "filename_prefix": "second"}},
    }
    files = (("big.png", buffer.getvalue()), ("sub/small.png", picture(size=(5, 4))))
    data = aiohttp.FormData(quote_fields=False)
    data.add_field("workflow", json.dumps(workflow))
    for name, content in files:
        data.add_field("file", io.BytesIO(content), filename=name)
    status, body = await post(gateway, data)
    assert status == 200, body
    sizes = {}
    for image in body["images"]:
        with Image.open(Path(engine.folders.output) / image["filename"]) as opened:
            sizes[image["node_id"]] = opened.size
    assert sizes == {"3": (1500, 1500), "6": (5, 4)}
    await forms_are_gone(form_folder)


async def test_the_same_prompt_id_with_another_file_is_a_conflict(gateway: RunningGateway, form_folder: Path) -> None:
    prompt_id = str(uuid4())
    first = await post(gateway, form(loading(), ("photo.png", picture("red")), prompt_id=prompt_id))
    again = await post(gateway, form(loading(), ("photo.png", picture("red")), prompt_id=prompt_id))
    other = await post(gateway, form(loading(), ("photo.png", picture("blue")), prompt_id=prompt_id))
    assert [status for status, _ in (first, again, other)] == [200, 200, 409]
    await forms_are_gone(form_folder)


async def test_files_of_a_form_are_kept_while_the_prompt_runs_without_its_client(
    engine: Engine, form_folder: Path
) -> None:
    """The prompt may have to be submitted again with the same files. They are deleted when it ends."""
    async with running_gateway(engine.url, cancel_on_disconnect=False) as gateway:
        workflow = loading()
        workflow["4"] = {"class_type": "SimulatedSleep", "inputs": {"value": ["2", 0], "seconds": 600, "steps": 1}}
        workflow["3"]["inputs"]["images"] = ["4", 0]
        request = asyncio.create_task(post(gateway, form(workflow, ("photo.png", picture()))))
        running, _ = await until(lambda: queue_of(engine), lambda queue: bool(queue[0]))
        request.cancel()
        await eventually(lambda: gateway.handler.waiting == 0)
        assert len(list(form_folder.glob("comfyui-form-*"))) == 1
        async with gateway.http.delete(f"/prompt_sync/{running[0]}") as response:
            assert response.status == 200
        await forms_are_gone(form_folder)


async def test_forms_of_aiohttp_and_node_are_read(gateway: RunningGateway, tmp_path: Path) -> None:
    """aiohttp percent-encodes the whole file name, and Node only its quotes, as browsers do."""
    name = 'фото "1".png'
    assert (await post(gateway, form(loading(name), (name, picture()))))[0] == 200
    if shutil.which("node") is None:
        return
    (tmp_path / "photo").write_bytes(picture())
    script = """
      const [url, name, file, workflow] = process.argv.slice(1);
      const form = new FormData();
      form.append("workflow", workflow);
      form.append("images", new Blob([require("fs").readFileSync(file)]), name);
      fetch(url, {method: "POST", body: form}).then(async r => console.log(r.status, await r.text()));
    """
    node = await asyncio.create_subprocess_exec(
        *("node", "-e", script, f"{gateway.url}/prompt_sync", name, str(tmp_path / "photo"), json.dumps(loading(name))),
        stdout=asyncio.subprocess.PIPE,
    )
    said, _ = await node.communicate()
    assert said.startswith(b"200 "), said


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl")
@pytest.mark.parametrize("name", ['фото "1".png', "a;b;c.png", "100%.png"])
async def test_forms_of_curl_are_read(gateway: RunningGateway, tmp_path: Path, name: str) -> None:
    (tmp_path / "photo").write_bytes(picture())
    (tmp_path / "workflow.json").write_text(json.dumps(loading(name)))
    escaped = name.replace('"', '\\"')
    curl = await asyncio.create_subprocess_exec(
        *("curl", "-sS", "-F", "workflow=<workflow.json", "-F", f'images=@photo;filename="{escaped}"'),
        f"{gateway.url}/prompt_sync",
        cwd=tmp_path,
        stdout=asyncio.subprocess.PIPE,
    )
    said, _ = await curl.communicate()
    assert json.loads(said)["status"] == "success", said


async def test_two_files_with_the_same_name_are_refused_and_deleted(gateway: RunningGateway, form_folder: Path) -> None:
    data = form(loading("a b.png"), ("a b.png", picture()), ("a b.png", picture("blue")))
    status, body = await post(gateway, data)
    assert (status, body["detail"]) == (422, "images: two files have the name 'a b.png'; rename one")
    await forms_are_gone(form_folder)


async def test_a_file_field_without_a_chosen_file_is_ignored(gateway: RunningGateway, form_folder: Path) -> None:
    file = 'Content-Disposition: form-data; name="images"; filename=""'
    kind = "Content-Type: application/octet-stream"
    data = raw("--b", PART, "", json.dumps(invert_workflow()), "--b", file, kind, "", "", "--b--", "")
    assert (await post(gateway, data, **{"Content-Type": MULTIPART}))[0] == 200
    await forms_are_gone(form_folder)


async def test_a_byte_order_mark_is_skipped_and_utf16_is_refused_by_name(gateway: RunningGateway) -> None:
    workflow = json.dumps(invert_workflow())
    data = raw(
        "--b", PART, "", f"\ufeff{workflow}", "--b", PART.replace("workflow", "client_id"), "", "\ufeffme", "--b--"
    )
    assert (await post(gateway, data + b"\r\n", **{"Content-Type": MULTIPART}))[0] == 200
    data = b"--b\r\n" + PART.encode() + b"\r\n\r\n" + workflow.encode("utf-16") + b"\r\n--b--\r\n"
    status, body = await post(gateway, data, **{"Content-Type": MULTIPART})
    assert (status, body["detail"]) == (422, "workflow is not JSON: it is encoded in UTF-16; send it in UTF-8")


def raw(*lines: str) -> bytes:
    return "\r\n".join(lines).encode()


MULTIPART = "multipart/form-data; boundary=b"
PART = 'Content-Disposition: form-data; name="workflow"'


@pytest.mark.parametrize(
    ("data", "content_type", "says"),
    [
        (b"x", "multipart/form-data", "must have the boundary"),
        (b"no form at all", MULTIPART, "not multipart/form-data"),
        (raw("--b", PART, "", "{}"), MULTIPART, "ends before its last boundary"),
        (raw("--b", "X: y", "", "{}", "--b--", ""), MULTIPART, "must have a name"),
        (raw("--b", PART, "", "{", "--b--", ""), MULTIPART, "workflow is not JSON"),
        (raw("--b", PART, "", "[1]", "--b--", ""), MULTIPART, "not a JSON object"),
        (
            raw("--b", PART, "", "{}", "--b", PART, "", "{}", "--b--", ""),
            MULTIPART,
            "workflow must not be given twice",
        ),
        (
            raw("--b", PART.replace("workflow", "other"), "", "x", "--b--", ""),
            MULTIPART,
            "must have one part 'workflow'",
        ),
        (raw("--b", PART, "X-Long: " + "x" * 20_000, "", "{}", "--b--", ""), MULTIPART, "header size"),
        (b"--b\r\n" + PART.encode() + b"\r\n\r\n\xff\r\n--b--\r\n", MULTIPART, "not encoded in UTF-8"),
        (
            b"--b\r\n"
            + PART.encode()
            + b"\r\n\r\n{}\r\n--b\r\n"
            + PART.replace("workflow", "client_id").encode()
            + b"\r\n\r\n\xff\xfea\0\r\n--b--\r\n",
            MULTIPART,
            "client_id: not text in UTF-8; it is UTF-16",
        ),
    ],
)
async def test_an_unreadable_form_gets_422_with_the_reason(
    gateway: RunningGateway, form_folder: Path, data: bytes, content_type: str, says: str
) -> None:
    status, body = await post(gateway, data, **{"Content-Type": content_type})
    assert (status, body["type"]) == (422, "invalid_request")
    assert says in body["detail"]
    await forms_are_gone(form_folder)


@pytest.mark.parametrize(
    ("files", "fields", "status", "says"),
    [
        ((("a.png", b"1"), ("a.png", b"2")), {}, 422, "two files have the name 'a.png'"),
        ((("", b"1"),), {}, 422, "the file must have a file name"),
        ((("../a.png", b"1"),), {}, 400, r"files['../a.png']"),
        ((("a.bin", b"1"),), {"convert": "webp"}, 422, "convert: not JSON"),
        ((("a.bin", b"1"),), {"colour": "red"}, 422, "colour: there is no such field"),
        ((("a.bin", b"1"),), {"number": "soon"}, 422, "number: "),
    ],
)
async def test_an_unusable_part_is_refused_by_its_name(
    gateway: RunningGateway, form_folder: Path, files: Any, fields: dict[str, str], status: int, says: str
) -> None:
    data = aiohttp.FormData(quote_fields=False)
    data.add_field("workflow", json.dumps(invert_workflow()))
    for name, content in files:
        data.add_field("images", content, filename=name)
    for name, value in fields.items():
        data.add_field(name, value)
    answered, body = await post(gateway, data)
    assert answered == status, body
    assert says in body["detail"]
    await forms_are_gone(form_folder)


async def test_the_sizes_of_forms_files_and_fields_are_limited(engine: Engine, form_folder: Path) -> None:
    caps: dict[str, Any] = {"max_input_mb": 1, "max_multipart_mb": 3, "max_request_body_mb": 0.1}
    async with running_gateway(engine.url, **caps) as gateway:
        small = ("a.bin", bytes(900_000))
        assert (await post(gateway, form(loading("a.bin"), small)))[0] != 413  # larger than a JSON body may be
        status, body = await post(gateway, form(invert_workflow(), ("a.bin", bytes(1_100_000))))
        assert (status, body["type"]) == (400, "input_failed")
        assert "larger than the 1 MB" in body["detail"]
        status, body = await post(gateway, form(invert_workflow(), *[(f"{n}.bin", bytes(900_000)) for n in range(4)]))
        assert status == 413
        assert "MAX_MULTIPART_MB" in body["detail"]
        status, body = await post(gateway, form(invert_workflow(), client_id="x" * 200_000))
        assert status == 422
        assert "MAX_REQUEST_BODY_MB" in body["detail"]
        # A body for another path is not kept on disk, so the smaller limit applies despite its content type.
        headers = {"Content-Type": MULTIPART}
        async with gateway.http.post("/prompt", data=bytes(200_000), headers=headers) as response:
            assert response.status == 413
        assert requests(engine, "POST /prompt") <= 1
    await forms_are_gone(form_folder)


async def test_the_error_of_a_bare_workflow_says_how_to_wrap_it(gateway: RunningGateway) -> None:
    async with gateway.http.post("/prompt_sync", json=invert_workflow()) as response:
        assert response.status == 422
        assert 'wrap it in an object: {"prompt": ' in (await response.json())["detail"]
