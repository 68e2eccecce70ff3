"""Outputs as bytes and as an archive, and files that break off on the way."""

from __future__ import annotations

import asyncio
import io
import json
import shutil
import subprocess
import zipfile
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiohttp
import pytest

from comfyui.client import ComfyUIClient
from comfyui.engine import Engine
from comfyui.exceptions import ComfyUIConnectionError, ComfyUIServerError, NotAcceptableError
from comfyui.models import OutputFile
from comfyui.outputs.history import OutputContent
from comfyui.outputs.zipping import zip_pieces
from comfyui.transport.body import IteratedBody
from comfyui.web.api.accept import Accepted
from tests.support.outputs import simulated_bytes, simulated_output
from tests.support.running import RunningGateway, Workflow, invert_workflow, queue_of, sleep_workflow, until

MEDIA = "image/*, video/*, audio/*"


async def post(
    gateway: RunningGateway, workflow: Workflow, accept: str, query: str = "", **fields: Any
) -> tuple[aiohttp.ClientResponse, bytes]:
    url, body = f"/prompt_sync{query}", {"prompt": workflow, **fields}
    async with gateway.http.post(url, json=body, headers={"Accept": accept}) as response:
        return response, await response.read()


# Raw bytes


@pytest.mark.parametrize("accept", ["image/*", "image/png", "application/octet-stream", MEDIA, "image/png;q=0.5"])
async def test_a_raw_answer_is_the_file(gateway: RunningGateway, engine: Engine, accept: str) -> None:
    prompt_id = str(uuid4())
    response, body = await post(gateway, invert_workflow(7), accept, prompt_id=prompt_id)
    assert response.status == 200
    assert response.content_type == "image/png"
    assert response.headers["Content-Disposition"] == 'attachment; filename="test_00001_.png"'
    assert response.headers["X-Prompt-Id"] == prompt_id
    assert int(response.headers["Content-Length"]) == len(body)
    assert body == (Path(engine.folders.output) / "test_00001_.png").read_bytes()


async def test_a_raw_answer_costs_one_request_to_view(gateway: RunningGateway, engine: Engine) -> None:
    engine.stats.reset()
    await post(gateway, invert_workflow(8), "image/*")
    assert engine.stats.show()["requests"] == {"POST /prompt": 1, "GET /history/{prompt_id}": 1, "GET /view": 1}


async def test_a_large_video_is_sent_as_raw_bytes(gateway: RunningGateway) -> None:
    size = 3_000_001
    response, body = await post(gateway, {"1": simulated_output(size)}, "video/*")
    assert (response.content_type, body) == ("video/mp4", simulated_bytes(size))


async def test_an_attached_client_can_get_raw_bytes_too(gateway: RunningGateway) -> None:
    prompt_id = str(uuid4())
    await gateway.prompt_sync(invert_workflow(), prompt_id=prompt_id)
    async with gateway.http.get(f"/prompt_sync/{prompt_id}", headers={"Accept": "image/*"}) as response:
        assert response.status == 200
        assert (await response.read()).startswith(b"\x89PNG")


TWO = {"1": simulated_output(prefix="first"), "2": simulated_output(prefix="second", extension="wav", key="audio")}


async def test_node_id_chooses_among_several_files(gateway: RunningGateway) -> None:
    response, body = await post(gateway, TWO, MEDIA, "?node_id=2")
    assert (response.status, response.content_type) == (200, "audio/wav")
    assert body == simulated_bytes(1000)


async def test_accept_chooses_the_only_file_of_its_type(gateway: RunningGateway) -> None:
    response, _ = await post(gateway, TWO, "audio/*")
    assert (response.status, response.content_type) == (200, "audio/wav")


@pytest.mark.parametrize(
    ("workflow", "accept", "query", "says"),
    [
        (TWO, MEDIA, "", ["node_id", "node 1, video/mp4", "node 2, audio/wav"]),
        (TWO, MEDIA, "?node_id=7", ["node '7' has no output file", "node 1"]),
        (TWO, "image/*", "", ["no output file has a type", "video/mp4"]),
        ({"1": simulated_output(count=2)}, MEDIA, "?node_id=1", ["several", "application/zip"]),
        ({"1": simulated_output(count=0)}, MEDIA, "", ["no output file", "application/json"]),
        ({"1": simulated_output(count=0)}, "application/zip", "", ["no output file", "application/json"]),
    ],
    ids=["two files", "unknown node", "another type", "two of one node", "no file", "no file for a zip"],
)
async def test_a_raw_answer_without_exactly_one_file_is_a_helpful_406(
    gateway: RunningGateway, workflow: Workflow, accept: str, query: str, says: list[str]
) -> None:
    prompt_id = str(uuid4())
    response, body = await post(gateway, workflow, accept, query, prompt_id=prompt_id)
    error = json.loads(body)
    assert (response.status, error["type"], error["prompt_id"]) == (406, "not_acceptable", prompt_id)
    for words in says:
        assert words in error["detail"]


async def test_the_second_choice_of_accept_is_used_when_the_first_does_not_fit(gateway: RunningGateway) -> None:
    response, _ = await post(gateway, TWO, "image/webp, */*;q=0.1")
    assert (response.status, response.content_type) == (200, "application/json")


async def test_an_unsupported_accept_is_refused_before_the_prompt_runs(gateway: RunningGateway, engine: Engine) -> None:
    engine.stats.reset()
    response, body = await post(gateway, invert_workflow(), "text/html, application/xml")
    assert response.status == 406
    assert "application/zip" in json.loads(body)["detail"]
    assert "POST /prompt" not in engine.stats.show()["requests"]


async def test_a_deleted_file_is_404(gateway: RunningGateway, engine: Engine) -> None:
    await engine.set_faults({"output_deleted": {}})
    response, body = await post(gateway, invert_workflow(), "image/*")
    assert (response.status, json.loads(body)["type"]) == (404, "not_found")


async def test_a_disconnect_cancels_a_request_for_raw_bytes(gateway: RunningGateway, engine: Engine) -> None:
    waiting = asyncio.create_task(post(gateway, sleep_workflow(600), "image/*"))
    await until(lambda: queue_of(engine), lambda queue: bool(queue[0]))
    waiting.cancel()
    await until(lambda: queue_of(engine), lambda queue: not queue[0])


@pytest.mark.parametrize(
    ("header", "forms"),
    [
        ("", ["json"]),
        ("*/*", ["json"]),
        ("application/json, text/event-stream", ["json", "events"]),
        ("text/event-stream, application/json;q=0.9", ["events", "json"]),
        ("application/json;q=0.1, application/zip;q=0.2", ["zip", "json"]),
        ("text/html,image/avif,image/webp,*/*;q=0.8", ["raw", "json"]),
        ("IMAGE/PNG ; Q=0.5", ["raw"]),
        ("image/*;q=0, */*", ["json"]),
        ("application/json;q=0, */*, application/zip;q=0.1", ["zip"]),
        ("nonsense, application/zip;q=high, application/json", ["json"]),
    ],
)
def test_accept_is_read_by_weight(header: str, forms: list[str]) -> None:
    assert Accepted.parse(header).forms() == forms


def test_accept_without_a_supported_type_is_refused() -> None:
    with pytest.raises(NotAcceptableError, match="text/csv"):
        Accepted.parse("text/csv").forms()


# ZIP


async def test_zip_has_every_file_with_its_folder(gateway: RunningGateway) -> None:
    workflow = {"1": simulated_output(5000, count=2, prefix="shots/take"), "2": simulated_output(0, extension="bin")}
    prompt_id = str(uuid4())
    response, body = await post(gateway, workflow, "application/zip", prompt_id=prompt_id)
    assert (response.status, response.content_type) == (200, "application/zip")
    assert f"{prompt_id}.zip" in response.headers["Content-Disposition"]
    with zipfile.ZipFile(io.BytesIO(body)) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == ["shots/take_00001_.mp4", "shots/take_00002_.mp4", "big_00001_.bin"]
        assert archive.read("shots/take_00002_.mp4") == simulated_bytes(5000)
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}


@pytest.mark.skipif(shutil.which("unzip") is None, reason="no unzip")
async def test_unzip_accepts_the_archive(gateway: RunningGateway, tmp_path: Path) -> None:
    _, body = await post(gateway, TWO, "application/zip")
    path = tmp_path / "all.zip"
    path.write_bytes(body)
    unzip = await asyncio.create_subprocess_exec("unzip", "-t", path, stdout=subprocess.PIPE)
    said, _ = await unzip.communicate()
    assert b"No errors detected" in said


async def test_zip_leaves_out_a_deleted_file_and_says_so(gateway: RunningGateway, engine: Engine) -> None:
    await engine.set_faults({"output_deleted": {"match": "first*"}})
    response, body = await post(gateway, TWO, "application/zip")
    assert response.status == 200
    with zipfile.ZipFile(io.BytesIO(body)) as archive:
        assert archive.namelist() == ["second_00001_.wav", "errors.json"]
        assert "first_00001_.mp4" in json.loads(archive.read("errors.json"))


async def test_zip_of_only_deleted_files_is_404(gateway: RunningGateway, engine: Engine) -> None:
    await engine.set_faults({"output_deleted": {}})
    response, _ = await post(gateway, TWO, "application/zip")
    assert response.status == 404


class _Files:
    """Opens files that exist only here."""

    def __init__(self, content: bytes = b"x", length: int | None = None) -> None:
        self._content = content
        self._length = length

    def __call__(self, file: OutputFile) -> Any:
        @asynccontextmanager
        async def opened() -> Any:
            async def chunks() -> Any:
                yield self._content

            yield OutputContent(file.filename, file.content_type, IteratedBody(chunks(), self._length))

        return opened()


async def zipped(*names: tuple[str, str], files: _Files | None = None) -> zipfile.ZipFile:
    listed = [OutputFile("1", "images", filename, subfolder, "output") for subfolder, filename in names]
    pieces = [piece async for piece in zip_pieces(listed, files or _Files())]
    return zipfile.ZipFile(io.BytesIO(b"".join(pieces)))


@pytest.mark.parametrize(
    ("subfolder", "filename", "name"),
    [
        ("../../etc", "passwd", "etc/passwd"),
        ("/abs", "a.png", "abs/a.png"),
        ("C:\\Windows", "..\\a.png", "C_/Windows/a.png"),
        ("ok/./x", "a\0b.png", "ok/x/a_b.png"),
        ("..", "..", "file"),
        ("dots. ", "a.png.", "dots/a.png"),
        ("", "\ud800.png", "_.png"),
    ],
)
async def test_names_in_an_archive_never_lead_out_of_its_folder(subfolder: str, filename: str, name: str) -> None:
    assert (await zipped((subfolder, filename))).namelist() == [name]


async def test_names_in_an_archive_differ_in_more_than_case() -> None:
    archive = await zipped(("", "a.png"), ("", "A.png"), ("", "a.png"), ("", "a (2).png"), ("", "errors.json"))
    assert archive.namelist() == ["a.png", "A (2).png", "a (3).png", "a (2) (2).png", "errors (2).json"]


async def test_a_file_of_unknown_length_is_stored_as_zip64() -> None:
    archive = await zipped(("", "a.bin"), files=_Files(b"data", None))
    assert archive.read("a.bin") == b"data"
    assert archive.infolist()[0].extract_version == zipfile.ZIP64_VERSION


# Bodies that break off


async def test_a_file_that_breaks_off_is_resumed(gateway: RunningGateway, engine: Engine) -> None:
    size = 4_000_000
    await engine.set_faults({"view_cut": {"times": 1, "after_bytes": 1_500_000}})
    engine.stats.reset()
    response, body = await post(gateway, {"1": simulated_output(size)}, "video/*")
    assert response.status == 200
    assert body == simulated_bytes(size)
    assert engine.stats.show()["requests"]["GET /view"] == 2


@pytest.mark.parametrize("accept", ["video/*", "application/zip", "application/json", "text/event-stream"])
async def test_a_file_that_cannot_be_resumed_cuts_the_connection(
    gateway: RunningGateway, engine: Engine, accept: str
) -> None:
    await engine.set_faults({"view_cut": {"after_bytes": 3_000_000}})
    with pytest.raises(aiohttp.ClientPayloadError):
        await post(gateway, {"1": simulated_output(4_000_000)}, accept, return_image_base64=True)
    assert (await gateway.prompt_sync(invert_workflow()))[0] == 200


async def test_a_file_that_changed_is_not_resumed(engine: Engine) -> None:
    path = Path(engine.folders.output) / "changing.bin"
    path.write_bytes(simulated_bytes(2_000_000))
    await engine.set_faults({"view_cut": {"times": 1, "after_bytes": 1_000_000}})
    async with ComfyUIClient(engine.url) as client, client.view("changing.bin") as view:
        await anext(view)
        path.write_bytes(simulated_bytes(2_000_001))
        with pytest.raises(ComfyUIServerError, match="rest cannot be had"):
            [chunk async for chunk in view]


async def test_attempts_to_resume_are_limited(engine: Engine) -> None:
    (Path(engine.folders.output) / "a.bin").write_bytes(simulated_bytes(2_000_000))
    await engine.set_faults({"view_cut": {"after_bytes": 1000}})
    async with ComfyUIClient(engine.url, retries=0) as client, client.view("a.bin") as view:
        with pytest.raises(ComfyUIConnectionError, match="cut off"):
            [chunk async for chunk in view]
