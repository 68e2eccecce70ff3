"""Output files in the console: which types are shown inline, to which keys, in ranges, and as thumbnails."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from multidict import CIMultiDict
from PIL import Image

from comfyui.engine import Engine
from tests.support.engine_workflows import sleeping
from tests.support.jobs import fetch
from tests.support.jobs import submit as submit_async
from tests.support.keys import ALICE, BOB, KEYS, ROOT, WATCHER, bearer, write_keys
from tests.support.outputs import SCRIPTED_PAGE, SCRIPTED_SVG, made_file, png
from tests.support.running import RunningGateway, invert_workflow, running_gateway, until
from tests.support.runpod_endpoint import DATA, PICTURE, FakeEndpoint, base64_image, history, submit
from tests.support.videos import make_video


async def got(
    gateway: RunningGateway, path: str, *, key: str | None = None, method: str = "GET", **headers: str
) -> tuple[int, CIMultiDict[str], bytes]:
    """Status, headers and body; redirects are not followed."""
    given = {name.replace("_", "-"): value for name, value in headers.items()} | (bearer(key) if key else {})
    async with gateway.http.request(method, path, headers=given, allow_redirects=False) as response:
        return response.status, CIMultiDict(response.headers), await response.read()


@pytest.mark.parametrize(
    ("extension", "kind", "is_shown"),
    [
        ("png", "image/png", True),
        ("webp", "image/webp", True),
        ("mp4", "video/mp4", True),
        ("flac", "audio/flac", True),
        ("txt", "text/plain; charset=utf-8", True),
        ("json", "text/plain; charset=utf-8", True),
        ("svg", "application/octet-stream", False),
        ("html", "application/octet-stream", False),
        ("xhtml", "application/octet-stream", False),
        ("xml", "application/octet-stream", False),
        ("js", "application/octet-stream", False),
        ("css", "application/octet-stream", False),
        ("pdf", "application/octet-stream", False),
        ("glb", "application/octet-stream", False),
        ("swf", "application/octet-stream", False),
        ("unknown", "application/octet-stream", False),
    ],
)
async def test_only_types_that_run_no_code_are_shown_inline(
    gateway: RunningGateway, engine: Engine, extension: str, kind: str, is_shown: bool
) -> None:
    prompt_id = await made_file(gateway, engine, extension, SCRIPTED_PAGE)
    status, headers, body = await got(gateway, f"/console/files/{prompt_id}/0")
    assert (status, headers["Content-Type"], body) == (200, kind, SCRIPTED_PAGE)
    disposition = headers["Content-Disposition"]
    assert disposition.startswith("inline; " if is_shown else "attachment; ")
    assert f".{extension}" in disposition
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Content-Security-Policy"].endswith("; sandbox")
    assert "script-src" not in headers["Content-Security-Policy"]


async def test_a_text_output_of_a_node_is_served_as_a_file(gateway: RunningGateway) -> None:
    _, answer = await gateway.prompt_sync(
        {"1": {"class_type": "PreviewAny", "inputs": {"source": "<script>"}}}  # a literal, which is served unchanged
    )
    status, headers, body = await got(gateway, f"/console/files/{answer['prompt_id']}/0")
    assert (status, headers["Content-Type"], body) == (200, "text/plain; charset=utf-8", b"<script>")


async def test_files_are_served_by_range_and_by_etag(gateway: RunningGateway, engine: Engine) -> None:
    content = bytes(range(256)) * 40
    path = f"/console/files/{await made_file(gateway, engine, 'mp4', content)}/0"
    _, whole, _ = await got(gateway, path)
    assert whole["Accept-Ranges"] == "bytes"
    status, headers, body = await got(gateway, path, Range="bytes=100-199")
    assert (status, headers["Content-Range"], body) == (206, f"bytes 100-199/{len(content)}", content[100:200])
    assert (await got(gateway, path, Range="bytes=100-199", If_Range=whole["ETag"]))[0] == 206
    assert (await got(gateway, path, Range="bytes=100-199", If_Range='"other"'))[0] == 200
    assert (await got(gateway, path, Range="bytes=999999-"))[0] == 416
    status, headers, body = await got(gateway, path, If_None_Match=whole["ETag"])
    assert (status, body, headers["ETag"]) == (304, b"", whole["ETag"])
    status, headers, body = await got(gateway, path, method="HEAD")
    assert (status, headers["Content-Length"], body) == (200, str(len(content)), b"")


async def test_a_thumbnail_is_small_and_cacheable(gateway: RunningGateway, engine: Engine) -> None:
    path = f"/console/thumbs/{await made_file(gateway, engine, 'png', png())}/0"
    status, headers, body = await got(gateway, path)
    assert (status, headers["Content-Type"]) == (200, "image/webp")
    assert Image.open(io.BytesIO(body)).size == (320, 200)
    assert headers["Cache-Control"].startswith("private, max-age=")
    status, _, body = await got(gateway, path, If_None_Match=headers["ETag"])
    assert (status, body) == (304, b"")


async def test_a_video_has_a_thumbnail(gateway: RunningGateway, engine: Engine, tmp_path: Path) -> None:
    video = await make_video(tmp_path / "a.mp4", "-c:v", "libx264", "-pix_fmt", "yuv420p")
    prompt_id = await made_file(gateway, engine, "mp4", video.read_bytes())
    status, _, body = await got(gateway, f"/console/thumbs/{prompt_id}/0")
    assert status == 200
    assert Image.open(io.BytesIO(body)).size == (320, 180)


@pytest.mark.parametrize(("extension", "content"), [("svg", SCRIPTED_SVG), ("png", SCRIPTED_SVG), ("flac", b"x")])
async def test_a_file_without_a_thumbnail_gives_404(
    gateway: RunningGateway, engine: Engine, extension: str, content: bytes
) -> None:
    prompt_id = await made_file(gateway, engine, extension, content)
    assert (await got(gateway, f"/console/thumbs/{prompt_id}/0"))[0] == 404


@pytest.mark.parametrize("index", ["1", "-1", "00000000", "x", "٣", "0.0", "0x0"])
async def test_an_unknown_index_or_job_gives_404(gateway: RunningGateway, engine: Engine, index: str) -> None:
    prompt_id = await made_file(gateway, engine, "png", png())
    for kind in ("files", "thumbs"):
        assert (await got(gateway, f"/console/{kind}/{prompt_id}/{index}"))[0] == 404
        assert (await got(gateway, f"/console/{kind}/5f0c1a2e-7d0b-4c39-9a36-0e3b6f0f8a11/0"))[0] == 404


async def test_a_deleted_file_gives_404(gateway: RunningGateway, engine: Engine) -> None:
    prompt_id = await made_file(gateway, engine, "png", png())
    for path in engine.folders.output.rglob("*.png"):
        path.unlink()
    for kind in ("files", "thumbs"):
        status, _, body = await got(gateway, f"/console/{kind}/{prompt_id}/0")
        assert status == 404
        assert b"the file no longer exists" in body or b"the file is no longer on its server" in body


async def test_each_key_gets_only_the_files_it_may_see(engine: Engine, tmp_path: Path) -> None:
    keys = write_keys(tmp_path / "keys.toml", KEYS)
    async with running_gateway(engine.url, keys_file=keys) as gateway:
        prompt_id = await made_file(gateway, engine, "png", png(), key=ALICE)
        for kind in ("files", "thumbs"):
            path = f"/console/{kind}/{prompt_id}/0"
            statuses = {key: (await got(gateway, path, key=key))[0] for key in (ALICE, BOB, WATCHER, ROOT)}
            assert statuses == {ALICE: 200, BOB: 404, WATCHER: 200, ROOT: 200}
            _, headers, _ = await got(gateway, path, key=ALICE)
            assert (await got(gateway, path, key=BOB, If_None_Match=headers["ETag"]))[0] == 404
            assert (await got(gateway, path))[0] in {303, 401}


async def test_outputs_of_a_running_job_are_served(gateway: RunningGateway) -> None:
    workflow = {
        "1": {"class_type": "PreviewAny", "inputs": {"source": "so far"}},
        **{f"1{name}": part for name, part in sleeping(60).items()},
    }
    workflow["12"]["inputs"]["source"] = ["11", 0]
    async with gateway.http.post(
        "/prompt_sync", json={"prompt": workflow}, headers={"Prefer": "respond-async"}
    ) as taken:
        prompt_id = (await taken.json())["prompt_id"]
    path = f"/console/files/{prompt_id}/0"
    _, _, body = await until(lambda: got(gateway, path), lambda answer: answer[0] == 200)
    assert body == b"so far"
    await gateway.http.delete(f"/prompt_sync/{prompt_id}")


async def test_files_of_a_runpod_job_are_served(endpoint: FakeEndpoint, runpod_gateway: RunningGateway) -> None:
    prompt_id = await submit(runpod_gateway)
    endpoint.complete(await endpoint.job(), base64_image(DATA))
    await history(runpod_gateway, prompt_id)
    status, headers, body = await got(runpod_gateway, f"/console/files/{prompt_id}/0")
    assert (status, headers["Content-Type"], body) == (200, "image/png", PICTURE)
    assert (await got(runpod_gateway, f"/console/files/{prompt_id}/0", Range="bytes=1-3"))[2] == PICTURE[1:4]


async def test_a_file_that_only_the_store_has_is_served_by_a_redirect(
    engine: Engine, s3_variables: dict[str, Any]
) -> None:
    async with running_gateway(engine.url, **s3_variables, output_store="s3") as gateway:
        prompt_id = await submit_async(gateway.http, invert_workflow(prefix="stored"))
        await fetch(gateway.http, prompt_id)
        path = f"/console/files/{prompt_id}/0"
        assert (await got(gateway, path))[0] == 200
        for file in engine.folders.output.rglob("stored*.png"):
            file.unlink()
        status, headers, _ = await got(gateway, path)
        assert status == 302
        async with gateway.http.get(headers["Location"]) as response:
            assert (await response.read()).startswith(b"\x89PNG")
