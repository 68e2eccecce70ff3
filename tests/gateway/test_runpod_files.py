"""BACKEND=runpod: files in and out, and the local ComfyUI beside it."""

from __future__ import annotations

import asyncio
import base64
import errno
import io
import json
import math
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from PIL import Image
from structlog.testing import capture_logs

from comfyui.engine import Engine, EngineOptions
from comfyui.retrying import Backoff
from config import GatewayOptions
from tests.support.pictures import picture
from tests.support.ports import free_port
from tests.support.running import (
    RunningGateway,
    invert_workflow,
    loading_workflow,
    running_gateway,
    server_options,
    until,
)
from tests.support.runpod_endpoint import (
    DATA,
    NOWHERE,
    PICTURE,
    QUICK,
    FakeEndpoint,
    base64_image,
    error_of,
    get,
    history,
    outputs_of,
    submit,
)
from tests.support.uploads import upload


def text(content: bytes) -> str:
    return base64.b64encode(content).decode()


async def view(gateway: RunningGateway, **query: str) -> tuple[int, bytes]:
    async with gateway.http.get("/view", params=query) as response:
        return response.status, await response.read()


@asynccontextmanager
async def store(content: bytes, times: float = math.inf, **query: str) -> AsyncIterator[str]:
    """Gives the address of an object store that serves ``/a.png`` for this query, at most `times` times."""

    async def send(request: web.Request) -> web.Response:
        nonlocal times
        times -= 1
        return web.Response(body=content) if request.query == query and times >= 0 else web.Response(status=403)

    app = web.Application()
    app.router.add_get("/a.png", send)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


# Out


async def test_results_with_names_that_leave_the_folder_are_refused_and_others_kept(
    endpoint: FakeEndpoint, runpod_gateway: RunningGateway, tmp_path: Path
) -> None:
    names = ["../../evil.png", "/etc/evil", "..", "", "a\0b.png", "a\\b.png"]
    images = [base64_image(DATA, name) for name in names]
    images += [base64_image(DATA, "evil.png", subfolder=folder) for folder in ("../..", "/tmp", "a/../../b")]
    prompt_id = await submit(runpod_gateway)
    bad = {"3": {"images": [{"filename": "../../evil.png", "subfolder": "", "type": "output"}]}}
    endpoint.complete(await endpoint.job(), *images, base64_image(DATA, "good.png"), outputs=bad)
    entry = await history(runpod_gateway, prompt_id)
    saved = {"filename": "good.png", "subfolder": prompt_id, "type": "output"}
    assert entry["outputs"] == {"3": {"images": [saved]}}
    outputs = tmp_path / "data" / "outputs"
    written = [path.relative_to(outputs).as_posix() for path in outputs.rglob("*") if path.is_file()]
    assert written == [f"{prompt_id}/good.png"]
    assert not list(tmp_path.rglob("evil*"))
    for query in ({"filename": "../journal.sqlite3"}, {"filename": "journal.sqlite3", "subfolder": ".."}):
        assert (await view(runpod_gateway, **query))[0] != 200
    hidden = {"filename": "../good.png", "subfolder": f"{prompt_id}/x"}
    assert (await view(runpod_gateway, **hidden))[0] == 404


async def test_files_of_the_same_name_do_not_collide(endpoint: FakeEndpoint, runpod_gateway: RunningGateway) -> None:
    contents = [b"one", b"two", b"three"]
    prompt_ids = [await submit(runpod_gateway), await submit(runpod_gateway, invert_workflow(1))]
    endpoint.complete(await endpoint.job(1), base64_image(text(contents[0])), base64_image(text(contents[1])))
    endpoint.complete(await endpoint.job(2), base64_image(text(contents[2])))
    entries = [await history(runpod_gateway, prompt_id) for prompt_id in prompt_ids]
    files = [file for entry in entries for file in entry["outputs"]["3"]["images"]]
    assert [(await view(runpod_gateway, **file))[1] for file in files] == contents


async def test_a_reply_with_subfolders_previews_and_a_lost_file_is_delivered(
    endpoint: FakeEndpoint, runpod_gateway: RunningGateway
) -> None:
    asking = asyncio.create_task(runpod_gateway.prompt_sync(invert_workflow(), return_image_base64=True))
    outputs = outputs_of("a.png", "lost.png") | {"8": {"text": ["said"]}, "9": {"images": []}}
    outputs["3"]["images"][0]["subfolder"] = "sub"
    outputs["9"]["images"].append({"filename": "preview.png", "subfolder": "", "type": "temp"})
    lost = {"filename": "lost.png", "node_id": "3", "subfolder": "", "type": "error", "error": "disk full"}
    endpoint.complete(
        await endpoint.job(), base64_image(DATA, "a.png", node_id="3", subfolder="sub"), lost, outputs=outputs
    )
    status, answer = await asking
    assert status == 200
    assert answer["outputs"]["8"] == {"text": ["said"]}
    assert answer["outputs"]["9"] == {"images": []}
    found, missing = answer["images"]
    assert (found["subfolder"], found["base64"]) == (f"{answer['prompt_id']}/sub", DATA)
    assert "error" in missing


@pytest.mark.parametrize("data", ["not base64!", ""], ids=["bad", "empty"])
async def test_a_job_without_any_usable_file_fails(
    endpoint: FakeEndpoint, runpod_gateway: RunningGateway, data: str
) -> None:
    prompt_id = await submit(runpod_gateway)
    endpoint.complete(await endpoint.job(), base64_image(data) | ({} if data else {"type": "s3_url"}))
    assert "the job's files cannot be fetched: a_00001_.png: " in error_of(await history(runpod_gateway, prompt_id))


async def test_links_in_results_are_fetched_only_from_allowed_stores(endpoint: FakeEndpoint, tmp_path: Path) -> None:
    large = picture() + b"\0" * 5_000_000
    async with store(large, signature="s%2F1") as address:
        link = base64_image(f"http://{address}/a.png?signature=s%252F1", "a.png") | {"type": "s3_url"}
        for count, allowed in enumerate([(address,), ()], start=1):
            settings = endpoint.settings(tmp_path / str(count), input_url_allow=allowed)
            async with running_gateway(NOWHERE, **settings) as gateway:
                prompt_id = await submit(gateway)
                endpoint.complete(await endpoint.job(count), link)
                entry = await history(gateway, prompt_id)
                if allowed:
                    assert await view(gateway, **entry["outputs"]["3"]["images"][0]) == (200, large)
                else:
                    assert "INPUT_URL_ALLOW" in error_of(entry)


@pytest.mark.parametrize("name", ["x.html", "x.svg", "x.xml", "x.rdf"])
async def test_browsers_do_not_run_pages_in_results(
    name: str, endpoint: FakeEndpoint, runpod_gateway: RunningGateway
) -> None:
    prompt_id = await submit(runpod_gateway)
    endpoint.complete(await endpoint.job(), base64_image(text(b"<script>"), name))
    await history(runpod_gateway, prompt_id)
    async with runpod_gateway.http.get("/view", params={"filename": name, "subfolder": prompt_id}) as response:
        assert response.content_type == "application/octet-stream"


def fill_disk(monkeypatch: pytest.MonkeyPatch, prefix: str, *, times: float = math.inf) -> None:
    """Makes the first `times` writes to temporary files with this `prefix` fail, because the disk is full."""
    make, left = tempfile.NamedTemporaryFile, times

    def made(*arguments: Any, **options: Any) -> Any:
        file = make(*arguments, **options)
        write = file.write

        def write_if_there_is_room(data: bytes) -> int:
            nonlocal left
            left -= 1
            if left >= 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            return write(data)

        if options.get("prefix") == prefix:
            file.write = write_if_there_is_room  # type: ignore[assignment]
        return file

    monkeypatch.setattr(tempfile, "NamedTemporaryFile", made)


@pytest.mark.parametrize(
    ("kind", "prefix", "setting"),
    [
        ("base64", ".part-", "RUNPOD_DATA_DIR"),
        ("s3_url", ".part-", "RUNPOD_DATA_DIR"),
        ("s3_url", "comfyui-input-", "TMPDIR"),
    ],
)
async def test_a_result_is_written_once_the_full_disk_has_room(
    kind: str, prefix: str, setting: str, endpoint: FakeEndpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill_disk(monkeypatch, prefix, times=2)
    quick = replace(QUICK, rewrite_backoff=Backoff(0.02, 30.0))
    # A file is fetched again only if the folder for temporary files was full.
    async with store(PICTURE, times=1 if prefix == ".part-" else math.inf) as address:
        image = base64_image(DATA) if kind == "base64" else base64_image(f"http://{address}/a.png") | {"type": kind}
        settings = endpoint.settings(tmp_path, times=quick, input_url_allow=(address,))
        async with running_gateway(NOWHERE, **settings) as gateway:
            with capture_logs() as lines:
                prompt_id = await submit(gateway)
                endpoint.complete(await endpoint.job(), image)
                entry = await history(gateway, prompt_id)
            assert await view(gateway, **entry["outputs"]["3"]["images"][0]) == (200, PICTURE)
    [waits] = [line for line in lines if line["event"] == "runpod.file_waits"]
    assert waits["detail"].startswith(f"{setting}: it cannot be written: No space left on device.")


async def test_a_file_name_that_is_too_long_for_the_disk_fails_at_once(
    endpoint: FakeEndpoint, runpod_gateway: RunningGateway
) -> None:
    prompt_id = await submit(runpod_gateway)
    endpoint.complete(await endpoint.job(), base64_image(DATA, f"{'é' * 200}.png"))
    assert "it cannot be written: File name too long" in error_of(await history(runpod_gateway, prompt_id))


async def test_an_upload_to_a_full_disk_fails_and_names_the_setting(
    runpod_gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill_disk(monkeypatch, ".part-")
    images = [{"name": "photo.png", "image": text(picture())}]
    status, answer = await runpod_gateway.prompt_sync(loading_workflow("photo.png"), images=images)
    assert (status, answer["type"]) == (503, "disk_failed")
    assert answer["detail"].startswith("RUNPOD_DATA_DIR: the input cannot be stored: No space left on device.")


# In


async def test_inputs_are_sent_with_the_job_without_a_local_comfyui(
    endpoint: FakeEndpoint, runpod_gateway: RunningGateway
) -> None:
    asking = [
        asyncio.create_task(
            runpod_gateway.prompt_sync(
                loading_workflow("photo.png"), images=[{"name": "photo.png", "image": text(picture(color))}]
            )
        )
        for color in ("red", "blue")
    ]
    await endpoint.job(2)
    # Both callers use one name; each job gets its own picture.
    sent = set()
    for job_input in endpoint.inputs.values():
        [image] = job_input["images"]
        assert job_input["workflow"]["1"]["inputs"]["image"] == image["name"]
        sent.add(image["image"])
    assert sent == {text(picture("red")), text(picture("blue"))}
    for job in list(endpoint.inputs):
        endpoint.complete(job, base64_image(DATA))
    assert [(await one)[0] for one in asking] == [200, 200]


async def test_uploads_results_and_local_files_are_sent_with_the_job(
    endpoint: FakeEndpoint, engine: Engine, runpod_beside: RunningGateway
) -> None:
    uploaded = {"name": "up.png", "subfolder": "sub", "type": "input"}
    assert await upload(runpod_beside, "up.png", picture("red"), subfolder="sub") == (200, uploaded)
    (engine.folders.input / "local.png").write_bytes(picture("green"))
    await submit(runpod_beside, loading_workflow("sub/up.png"))
    await submit(runpod_beside, loading_workflow("local.png [input]"))
    first = await submit(runpod_beside, invert_workflow())
    endpoint.complete(await endpoint.job(3), base64_image(DATA, "result.png"))
    await history(runpod_beside, first)
    await submit(runpod_beside, loading_workflow(f"{first}/result.png [output]"))
    await submit(runpod_beside, loading_workflow("only-the-worker-has-it.png"))
    await endpoint.job(5)
    jobs = list(endpoint.inputs.values())
    assert jobs[0]["images"] == [{"name": "sub/up.png", "image": text(picture("red"))}]
    assert jobs[1]["images"] == [{"name": "local.png", "image": text(picture("green"))}]
    [image] = jobs[3]["images"]
    assert image["image"] == DATA
    assert jobs[3]["workflow"]["1"]["inputs"]["image"] == image["name"]
    assert image["name"].endswith("/result.png")
    assert "images" not in jobs[4]


async def test_the_local_comfyui_paints_a_mask(endpoint: FakeEndpoint, runpod_beside: RunningGateway) -> None:
    assert (await upload(runpod_beside, "photo.png", picture("red")))[0] == 200
    assert (await upload(runpod_beside, "masked.png", picture("white")))[0] == 200
    mask = picture((0, 0, 0, 7), "RGBA")
    original = json.dumps({"filename": "photo.png", "subfolder": "", "type": "input"})
    fields = {"overwrite": "true", "original_ref": original}
    _, answer = await upload(runpod_beside, "masked.png", mask, path="/upload/mask", **fields)
    assert answer["name"] == "masked.png"
    await submit(runpod_beside, loading_workflow("masked.png"))
    [image] = endpoint.inputs[await endpoint.job()]["images"]
    with Image.open(io.BytesIO(base64.b64decode(image["image"]))) as sent:
        assert sent.getpixel((0, 0)) == (255, 0, 0, 7)


async def test_an_upload_with_a_taken_name_and_other_content_is_renamed(runpod_gateway: RunningGateway) -> None:
    names = [(await upload(runpod_gateway, "a.png", picture(color)))[1]["name"] for color in ("red", "red", "blue")]
    assert names == ["a.png", "a.png", "a (1).png"]
    assert (await upload(runpod_gateway, "a.png", picture("green"), overwrite="true"))[0] == 200
    assert await view(runpod_gateway, filename="a.png", type="input") == (200, picture("green"))


@pytest.mark.parametrize("subfolder", ["../x", "/tmp", "a/../../b"])
async def test_an_upload_to_a_subfolder_outside_the_inputs_is_refused(
    runpod_gateway: RunningGateway, tmp_path: Path, subfolder: str
) -> None:
    assert (await upload(runpod_gateway, "a.png", b"x", subfolder=subfolder))[0] == 400
    assert not [path for path in (tmp_path / "data" / "inputs").rglob("*") if path.is_file()]


async def test_inputs_that_are_too_large_for_runpod_are_refused_by_name(
    endpoint: FakeEndpoint, runpod_gateway: RunningGateway
) -> None:
    assert (await upload(runpod_gateway, "large.bin", b"\1" * 8_000_000))[0] == 200
    async with runpod_gateway.http.post("/prompt", json={"prompt": loading_workflow("large.bin")}) as response:
        answer = await response.json()
    assert response.status == 400
    assert answer["error"]["type"] == "runpod_job_too_large"
    assert "10.7 MB with its inputs in base64, and RunPod takes 10 MB: large.bin 8.0 MB" in answer["error"]["details"]
    status, body = await runpod_gateway.prompt_sync(loading_workflow("large.bin"))
    assert status == 400
    assert "large.bin 8.0 MB. Make the inputs smaller; or give the file's http(s) URL" in body["detail"]
    assert endpoint.runs == 0


async def test_texts_that_are_not_file_names_are_not_changed(
    endpoint: FakeEndpoint, runpod_beside: RunningGateway
) -> None:
    workflow = invert_workflow()
    for index, text in enumerate(["a/" + "long " * 100, "/etc/passwd", "..", "../../x", "é" * 300, ""]):
        workflow["2"]["inputs"][f"text{index}"] = text
    await submit(runpod_beside, workflow)
    assert endpoint.inputs[await endpoint.job()] == {"workflow": workflow}


@pytest.mark.parametrize("size", [1_000, 8_000_000])
async def test_a_url_stays_in_the_workflow_when_its_file_is_too_large_to_send(
    size: int, endpoint: FakeEndpoint, tmp_path: Path
) -> None:
    content = picture() + b"\0" * size
    async with store(content) as address:
        settings = endpoint.settings(tmp_path, input_url_allow=(address,))
        async with running_gateway(NOWHERE, **settings) as gateway:
            workflow = loading_workflow(f"http://{address}/a.png")
            await submit(gateway, workflow)
            sent = endpoint.inputs[await endpoint.job()]
    if size > 1_000_000:
        assert sent == {"workflow": workflow}
    else:
        assert [image["image"] for image in sent["images"]] == [text(content)]


# The local ComfyUI


async def test_requests_that_do_not_concern_prompts_go_to_the_local_comfyui(
    endpoint: FakeEndpoint, engine: Engine, runpod_beside: RunningGateway
) -> None:
    async with aiohttp.ClientSession(base_url=engine.url) as direct:
        for path in ("/object_info", "/api/object_info/KSampler", "/", "/features", "/nothing", "/users"):
            async with direct.get(path) as expected, runpod_beside.http.get(path) as response:
                assert (response.status, await response.read()) == (expected.status, await expected.read()), path
    async with runpod_beside.http.post(
        "/userdata/a%2Fb.json", data=b'{"x": 1}', headers={"Origin": runpod_beside.url}
    ) as response:
        assert response.status == 200
    assert await get(runpod_beside, "/userdata/a%2Fb.json") == (200, {"x": 1})
    assert (await get(runpod_beside, "/system_stats"))[1]["system"]["simulation"] is True
    # Prompts do not go there.
    await submit(runpod_beside)
    await endpoint.job()
    assert engine.stats.show()["executed"] == {}


async def test_a_frontends_websocket_shows_the_gateways_queue_and_its_own_prompt(
    endpoint: FakeEndpoint, engine: Engine, runpod_beside: RunningGateway
) -> None:
    async with runpod_beside.http.ws_connect("/ws?clientId=front") as websocket, asyncio.timeout(30):
        first = await websocket.receive_json()
        assert (first["type"], first["data"]["sid"]) == ("status", "front")
        prompt_id = await submit(runpod_beside, client_id="front")
        while (frame := await websocket.receive_json())["type"] != "status":
            pass
        assert frame["data"]["status"]["exec_info"]["queue_remaining"] == 1
        # The queue of the local ComfyUI does not count.
        async with aiohttp.ClientSession() as direct:
            await direct.post(f"{engine.url}/queue", json={"clear": True})
        endpoint.complete(await endpoint.job(), base64_image(DATA))
        while (frame := await websocket.receive_json())["type"] != "executed":
            assert frame["type"] != "status" or frame["data"]["status"]["exec_info"]["queue_remaining"] == 1
        assert frame["data"]["prompt_id"] == prompt_id
        assert frame["data"]["output"]["images"][0]["subfolder"] == prompt_id


async def test_a_frontend_without_an_id_gets_events_for_the_id_that_it_is_given(
    endpoint: FakeEndpoint, runpod_beside: RunningGateway
) -> None:
    async with runpod_beside.http.ws_connect("/ws") as websocket:
        async with asyncio.timeout(30):
            sid = (await websocket.receive_json())["data"]["sid"]
            await submit(runpod_beside, client_id=sid)
            endpoint.says(await endpoint.job(), "IN_PROGRESS")
            while (await websocket.receive_json())["type"] != "execution_start":
                pass


async def test_paths_of_a_missing_local_comfyui_get_503(runpod_gateway: RunningGateway) -> None:
    for path in ("/object_info", "/api/settings", "/", "/userdata?dir=x"):
        status, answer = await get(runpod_gateway, path)
        assert status == 503, path
        assert "127.0.0.1:9" in answer["detail"]
    assert (await get(runpod_gateway, "/health/ready"))[0] == 200


async def test_a_hanging_local_comfyui_does_not_delay_prompts(endpoint: FakeEndpoint, tmp_path: Path) -> None:
    asked = 0

    async def hang(_request: web.Request) -> web.Response:
        nonlocal asked
        asked += 1
        await asyncio.sleep(60)
        return web.Response()

    app = web.Application()
    app.add_routes([web.get("/prompt", _empty), web.get("/object_info", hang)])
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        local = f"127.0.0.1:{runner.addresses[0][1]}"
        settings = endpoint.settings(tmp_path)
        runpod_times = settings.pop("changed")

        def changed(made: GatewayOptions) -> GatewayOptions:
            return server_options(definitions_within_s=0.3)(runpod_times(made))

        async with running_gateway(local, changed=changed, **settings) as gateway:
            await until(lambda: get(gateway, "/health"), lambda answer: bool(gateway.handler.pool.ready))
            await asyncio.gather(*(submit(gateway, loading_workflow("photo.png")) for _ in range(3)))
            await endpoint.job(3)
    finally:
        await runner.cleanup()
    assert asked > 0


async def _empty(_request: web.Request) -> web.Response:
    return web.json_response({"exec_info": {"queue_remaining": 0}})


async def test_a_local_comfyui_that_starts_later_is_noticed(endpoint: FakeEndpoint, tmp_path: Path) -> None:
    port = free_port()
    async with running_gateway(f"127.0.0.1:{port}", **endpoint.settings(tmp_path)) as gateway:
        [server] = gateway.handler.pool.servers
        assert "KSampler" not in await server.object_info()
        async with Engine(EngineOptions(port=port)):

            async def known() -> bool:
                return "KSampler" in await server.object_info()

            await until(known, bool)
        await until(lambda: get(gateway, "/object_info"), lambda answer: answer[0] == 503)


async def test_a_chunked_upload_of_40_mb_is_stored_in_full(runpod_gateway: RunningGateway) -> None:
    size = 40_000_000

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(size // 1_000_000):
            yield b"\0" * 1_000_000

    form = aiohttp.FormData()
    form.add_field("image", chunks(), filename="video.mp4")
    async with runpod_gateway.http.post("/upload/image", data=form) as response:
        assert json.loads(await response.text())["name"] == "video.mp4"
    async with runpod_gateway.http.head("/view?filename=video.mp4&type=input") as response:
        assert response.headers["Content-Length"] == str(size)
