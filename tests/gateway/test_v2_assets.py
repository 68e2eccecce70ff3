"""Assets of Comfy API v2, with the official SDK: uploads, outputs of jobs, and both as inputs."""

from __future__ import annotations

import asyncio
import io
import os
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import comfy_sdk
import pytest
from blake3 import blake3
from PIL import Image
from yarl import URL

from comfyui.engine import Engine, EngineOptions
from tests.support.engine_workflows import sleeping, writing
from tests.support.jobs import fetch
from tests.support.jobs import submit as submit_async
from tests.support.keys import ALICE, BOB
from tests.support.pictures import color_of, picture
from tests.support.running import RunningGateway, engines, executions, invert_workflow, requests, running_gateway, until
from tests.support.sse import events_of
from tests.support.target import node
from tests.support.v2 import (
    ASSETS,
    JOBS,
    ask,
    asset_reference,
    code_of,
    comfy,
    form,
    reading,
    submit,
    until_ended,
    upload,
)


async def test_the_sdk_uploads_a_file_once_and_jobs_read_it(gateway: RunningGateway, tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(picture((0xAA, 0xBB, 0xCC)))
    async with comfy(gateway.url) as client:
        asset = client.assets.from_file(tmp_path / "photo.png")
        job = await client.submit(client.workflows.from_json(reading(asset)))
        assert (asset.created_new, asset.hash) == (True, f"blake3:{blake3(picture((0xAA, 0xBB, 0xCC))).hexdigest()}")
        await job.result()
        (output,) = job.outputs
        assert color_of(await output.to_bytes()) == (0xAA, 0xBB, 0xCC)
        graph = (await job.get_workflow()).graph
        assert graph == reading(asset_reference(asset.id))
        repeated = await until_ended(gateway, await submit(gateway, graph))
        assert repeated["status"] == "succeeded", "a fetched workflow can be submitted again"
        again = client.assets.from_bytes(picture((0xAA, 0xBB, 0xCC)), filename="other.png")
        await again.commit()
        assert (again.created_new, again.id == asset.id) == (False, False)
        found = await client.assets.get(again.id or "")
        assert (found.id, found.hash) == (again.id, asset.hash)


async def test_outputs_have_sizes_and_hashes_and_can_be_read_in_ranges(gateway: RunningGateway) -> None:
    async with comfy(gateway.url) as client:
        job = await client.submit(client.workflows.from_json(writing(size=100_000)))
        await job.result()
        (output,) = job.outputs
        assert output.size_bytes == 100_000
        assert (await shown(gateway, output.id))["hash"] is None, "its bytes have not passed the gateway yet"
        part = await output.to_bytes(range=(10, 19))
        stream = io.BytesIO()
        assert await output.to_stream(stream) == 100_000
        assert stream.getvalue()[10:20] == part
        digest = f"blake3:{blake3(stream.getvalue()).hexdigest()}"
        assert (await shown(gateway, output.id))["hash"] == digest
        await job.refresh()
        assert job.outputs[0].size_bytes == 100_000
        url = await output.get_download_url()
        assert url.url == f"{gateway.url}{ASSETS}/{output.id}/content"


async def test_a_job_shows_sizes_at_once_and_hashes_once_its_bytes_have_passed(
    gateway: RunningGateway, engine: Engine
) -> None:
    """The bytes may pass before the first request for the job."""
    job = await submit(gateway, writing(size=1000))
    async with asyncio.timeout(30), gateway.http.get(f"{JOBS}/{job['id']}/events") as response:
        output = next(event.data for event in [one async for one in events_of(response)] if event.name == "output")
    async with gateway.http.get(f"{ASSETS}/{output['id']}/content") as response:
        digest = f"blake3:{blake3(await response.read()).hexdigest()}"
    ended = await until_ended(gateway, job)
    assert [(one["size_bytes"], one["hash"]) for one in ended["outputs"]] == [(1000, digest)]
    assert requests(engine, "HEAD /view") <= 2, "once by the stream, and once by a lookup before it"


async def shown(gateway: RunningGateway, asset_id: str, key: str | None = None) -> Any:
    status, body = await ask(gateway, f"{ASSETS}/{asset_id}", key=key)
    assert status == 200, body
    return body


async def test_no_output_of_a_node_is_dropped(gateway: RunningGateway) -> None:
    workflow = {
        **writing(key="3d", extension="glb"),
        "2": node("PreviewAny", source="hällo"),
        "3": node("SimulatedOutput", filename_prefix="a", count=1, size=10, extension="latent", output_key="latents"),
        "4": node("SimulatedOutput", filename_prefix="b", count=1, size=10, extension="mp4", output_key="images"),
    }
    job = await until_ended(gateway, await submit(gateway, workflow))
    assert [(one["node_id"], one["type"], one["content_type"], one["size_bytes"]) for one in job["outputs"]] == [
        ("1", "file", "model/gltf-binary", 1000),
        ("2", "text", "text/plain; charset=utf-8", 6),
        ("3", "latent", "application/octet-stream", 10),
        ("4", "video", "video/mp4", 10),
    ]
    text = job["outputs"][1]
    assert (text["name"], text["hash"]) == ("2_1.txt", f"blake3:{blake3('hällo'.encode()).hexdigest()}")
    assert (await fetched(gateway, text["id"]))[2] == "hällo".encode()
    assert (await fetched(gateway, text["id"], Range="bytes=-2"))[2] == b"lo"


async def fetched(
    gateway: RunningGateway, asset_id: str, method: str = "GET", **headers: str
) -> tuple[int, Any, bytes]:
    url = f"{ASSETS}/{asset_id}/content"
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    async with gateway.http.request(method, url, headers=given) as response:
        return response.status, response.headers, await response.read()


@pytest.mark.parametrize("made_by", ["upload", "job"])
async def test_content_answers_range_requests(gateway: RunningGateway, made_by: str) -> None:
    if made_by == "upload":
        whole = bytes(range(256)) * 40
        asset_id = (await upload(gateway, whole, "a.bin"))[1]["id"]
    else:
        job = await until_ended(gateway, await submit(gateway, writing(size=10_240)))
        asset_id = job["outputs"][0]["id"]
        whole = (await fetched(gateway, asset_id))[2]
    size, etag = len(whole), f'"{blake3(whole).hexdigest()}"'
    assert size == 10_240
    for asked, expected in {
        "bytes=0-3": (206, "bytes 0-3/10240", whole[:4]),
        "bytes=10000-": (206, "bytes 10000-10239/10240", whole[10_000:]),
        "bytes=-5": (206, "bytes 10235-10239/10240", whole[-5:]),
        "bytes=10200-99999": (206, "bytes 10200-10239/10240", whole[10_200:]),
        "bytes=0-1,4-5": (200, None, whole),
        "bytes=5-3": (200, None, whole),
        "lines=1-2": (200, None, whole),
        "bytes=-": (200, None, whole),
    }.items():
        status, headers, body = await fetched(gateway, asset_id, Range=asked)
        assert (status, headers.get("Content-Range"), body) == expected, asked
        assert (headers["Content-Length"], headers["Accept-Ranges"]) == (str(len(body)), "bytes")
        assert (headers["ETag"], headers["X-Content-Type-Options"]) == (etag, "nosniff")
        assert headers["Content-Disposition"].startswith("attachment")
    status, headers, _ = await fetched(gateway, asset_id, "HEAD")
    assert (status, headers["Content-Length"], headers["ETag"]) == (200, "10240", etag)
    assert (await fetched(gateway, asset_id, Range="bytes=0-3", If_Range=etag))[0] == 206
    assert (await fetched(gateway, asset_id, Range="bytes=0-3", If_Range='"other"'))[0] == 200
    assert (await fetched(gateway, asset_id, If_None_Match=f'W/"x", {etag}'))[0] == 304
    async with gateway.http.get(f"{ASSETS}/{asset_id}/content", headers={"Range": "bytes=10240-"}) as response:
        assert (response.status, response.headers["Content-Range"]) == (416, "bytes */10240")
        assert (await response.json())["error"]["code"] == "invalid_range"


async def test_an_output_can_be_the_input_of_a_job_on_any_server() -> None:
    async with engines(3) as servers:
        for number, one in enumerate(servers):
            # The prompt runs on the only server that has its file.
            Image.new("RGB", (8, 8)).save(one.folders.input / f"only {number}.png")
        async with running_gateway(*(one.url for one in servers)) as gateway, comfy(gateway.url) as client:
            first = await client.submit(client.workflows.from_json(invert_workflow(0x10_20_30)))
            await first.result()
            reference = asset_reference(first.outputs[0].id)
            _, asset = await upload(gateway, picture((0x12, 0x34, 0x56)), "photo.png")
            uploaded = asset_reference(asset["id"])
            for number in range(3):
                pin = {"8": node("LoadImage", image=f"only {number}.png"), "9": node("PreviewImage", images=["8", 0])}
                for asked, color in ((reference, (0xEF, 0xDF, 0xCF)), (uploaded, (0x12, 0x34, 0x56))):
                    job = await client.submit(client.workflows.from_json({**reading(asked), **pin}))
                    await job.result()
                    output = next(one for one in job.outputs if one.node_id == "2")
                    assert color_of(await output.to_bytes()) == color
                    assert executions(servers[number])[job.id] == 1
        assert all(requests(one, "POST /upload/image") for one in servers)


async def test_a_text_output_can_be_the_input_of_the_next_job(gateway: RunningGateway, engine: Engine) -> None:
    first = await until_ended(gateway, await submit(gateway, {"1": node("PreviewAny", source="a story")}))
    reference = asset_reference(first["outputs"][0]["id"])
    job = await until_ended(gateway, await submit(gateway, {"1": node("PreviewAny", source=reference)}))
    assert job["status"] == "succeeded"
    (output,) = job["outputs"]
    path = (await fetched(gateway, output["id"]))[2].decode()
    assert (engine.folders.input / path).read_text() == "a story"
    empty = await until_ended(gateway, await submit(gateway, {"1": node("PreviewAny", source="")}))
    made = empty["outputs"][0]["id"]
    workflow = {"1": node("PreviewAny", source=asset_reference(made))}
    status, body = await ask(gateway, JOBS, "POST", json={"workflow": workflow})
    assert (status, code_of(body)) == (422, "invalid_request")
    assert body["error"]["message"] == f"asset {made}: the content is empty"


async def test_the_refusal_of_a_workflow_names_all_its_missing_assets(gateway: RunningGateway) -> None:
    workflow = {
        "1": node("LoadImage", image=asset_reference("zzz")),
        "2": node("LoadImage", image={"__type": "core/ASSET", "info": {"hash": "blake3:" + "0" * 64}}),
        "3": node("SaveImage", images=["1", 0], filename_prefix="a"),
    }
    async with comfy(gateway.url) as client:
        with pytest.raises(comfy_sdk.MissingAsset) as refused:
            await client.submit(client.workflows.from_json(workflow))
    assert refused.value.details == {"missing_ids": ["zzz", "blake3:" + "0" * 64]}
    for info in (None, {}, {"id": ""}, {"id": 1}, "x"):
        wrong = {"1": node("LoadImage", image={"__type": "core/ASSET", "info": info})}
        status, body = await ask(gateway, "/api/v2/jobs", "POST", json={"workflow": wrong})
        assert (status, code_of(body)) == (422, "invalid_workflow"), info


async def test_an_asset_is_found_by_its_hash_when_its_id_is_unknown(gateway: RunningGateway) -> None:
    _, asset = await upload(gateway, picture((0x01, 0x02, 0x03)), "a/b.png")
    info = {"id": "gone", "hash": asset["hash"], "file_path": "a/b.png"}
    job = await submit(gateway, reading({"__type": "core/ASSET", "info": info}))
    job = await until_ended(gateway, job)
    assert color_of((await fetched(gateway, job["outputs"][0]["id"]))[2]) == (0x01, 0x02, 0x03)


async def test_assets_with_the_same_bytes_are_deleted_singly_and_the_bytes_with_the_last(
    gateway: RunningGateway,
) -> None:
    first = await upload(gateway, b"same", "a.txt", tags=["x", "y"])
    second = await upload(gateway, b"same", "b.txt")
    assert (first[0], first[1]["created_new"], first[1]["tags"]) == (201, True, ["x", "y"])
    assert (second[0], second[1]["created_new"], second[1]["file_path"]) == (200, False, "b.txt")
    assert first[1]["id"] != second[1]["id"]
    status, third = await ask(gateway, f"{ASSETS}/from-hash", "POST", json={"hash": first[1]["hash"]})
    assert (status, third["created_new"], third["content_type"]) == (201, False, "text/plain")
    same = await ask(gateway, f"{ASSETS}/from-hash", "POST", json={"hash": first[1]["hash"]})
    assert (same[0], same[1]["id"]) == (200, third["id"])
    for asset in (first[1], second[1], third):
        async with gateway.http.head(f"{ASSETS}/by-hash/{asset['hash']}") as response:
            assert response.status == 200
        assert (await fetched(gateway, asset["id"]))[2] == b"same"
        assert (await ask(gateway, f"{ASSETS}/{asset['id']}", "DELETE"))[0] == 204
        status, body = await ask(gateway, f"{ASSETS}/{asset['id']}", "DELETE")
        assert (status, code_of(body)) == (404, "not_found")
    for spelled in (first[1]["hash"], first[1]["hash"].replace(":", "%3A"), "nonsense"):
        async with gateway.http.head(f"{ASSETS}/by-hash/{spelled}") as response:
            assert response.status == 404
    status, body = await ask(gateway, f"{ASSETS}/from-hash", "POST", json={"hash": first[1]["hash"]})
    assert (status, code_of(body)) == (404, "blob_not_found")


async def test_a_file_removed_from_comfyuis_input_folder_is_placed_again(
    gateway: RunningGateway, engine: Engine
) -> None:
    """The SDK finds the bytes by their hash and does not send them again, so the gateway has to."""
    async with comfy(gateway.url) as client:
        for number in range(3):
            asset = client.assets.from_bytes(picture((0x0A, 0x0B, 0x0C)), filename="a.png")
            workflow = reading(asset)
            workflow["2"]["inputs"]["filename_prefix"] = f"run {number}"  # keeps ComfyUI's cache out of the test
            job = await client.submit(client.workflows.from_json(workflow))
            await job.result()
            assert asset.created_new == (number == 0)
            assert color_of(await job.outputs[0].to_bytes()) == (0x0A, 0x0B, 0x0C)
            assert requests(engine, "POST /upload/image") == number + 1
            (placed,) = engine.folders.input.rglob("*.png")
            placed.unlink()


async def is_here(gateway: RunningGateway, digest: str, key: str | None = None) -> bool:
    """Whether the caller can have an asset by this hash."""
    status, _ = await ask(gateway, f"{ASSETS}/by-hash/{digest}", "HEAD", key=key)
    assert status in {200, 404}
    return status == 200


async def test_an_output_is_found_by_its_hash_once_its_bytes_have_passed(
    gateway: RunningGateway, engine: Engine
) -> None:
    async with comfy(gateway.url) as client:
        job = await client.submit(client.workflows.from_json(invert_workflow(0x10_20_30)))
        await job.result()
        (made,) = engine.folders.output.rglob("*.png")
        digest = f"blake3:{blake3(made.read_bytes()).hexdigest()}"
        assert not await is_here(gateway, digest)
        content = await job.outputs[0].to_bytes()
        assert await is_here(gateway, digest)
        # A workflow may also name it by its hash alone.
        reference = asset_reference("unknown", hash=digest)
        assert (await until_ended(gateway, await submit(gateway, reading(reference))))["status"] == "succeeded"
        asset = client.assets.from_bytes(content, filename="mine.png")
        await asset.commit()
        assert (asset.created_new, asset.hash) == (False, digest)
        made.unlink()
        loaded = await client.run(client.workflows.from_json(reading(asset)))
        assert color_of(await loaded.outputs[0].to_bytes()) == (0xEF, 0xDF, 0xCF)
        await asset.delete()
        assert not await is_here(gateway, digest), "neither the gateway nor ComfyUI still has it"
    status, body = await ask(gateway, f"{ASSETS}/from-hash", "POST", json={"hash": digest})
    assert (status, code_of(body)) == (404, "blob_not_found")


async def test_a_text_output_is_found_by_its_hash(gateway: RunningGateway) -> None:
    job = await until_ended(gateway, await submit(gateway, {"1": node("PreviewAny", source="a story")}))
    digest = job["outputs"][0]["hash"]
    assert await is_here(gateway, digest)
    status, asset = await ask(gateway, f"{ASSETS}/from-hash", "POST", json={"hash": digest, "file_path": "story.txt"})
    assert (status, asset["created_new"], asset["hash"]) == (201, False, digest)
    assert asset["content_type"] == "text/plain; charset=utf-8"
    assert (await fetched(gateway, asset["id"]))[2] == b"a story"


async def test_another_keys_output_is_not_found_by_its_hash(engine: Engine, keys_path: Path) -> None:
    async with running_gateway(engine.url, keys_file=keys_path) as gateway:
        job = await until_ended(gateway, await submit(gateway, invert_workflow(), key=ALICE), key=ALICE)
        status, content = await ask(gateway, f"{ASSETS}/{job['outputs'][0]['id']}/content", key=ALICE)
        assert status == 200
        digest = f"blake3:{blake3(content).hexdigest()}"
        assert await is_here(gateway, digest, ALICE)
        assert not await is_here(gateway, digest, BOB)
        status, body = await ask(gateway, f"{ASSETS}/from-hash", "POST", key=BOB, json={"hash": digest})
        assert (status, code_of(body)) == (404, "blob_not_found")


async def test_an_output_cannot_be_deleted(gateway: RunningGateway) -> None:
    job = await until_ended(gateway, await submit(gateway, invert_workflow()))
    status, body = await ask(gateway, f"{ASSETS}/{job['outputs'][0]['id']}", "DELETE")
    assert (status, code_of(body)) == (409, "asset_in_use")


@pytest.mark.parametrize(
    "name", ["x", "by-hash", "%ff", "%ED%A0%80", "a%00b", "%22", f"{'0' * 8}-0000-4000-8000-{'0' * 12}.{'0' * 16}"]
)
async def test_an_invalid_asset_id_is_not_found(gateway: RunningGateway, name: str) -> None:
    for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/content")):
        async with gateway.http.request(method, URL(f"{gateway.url}{ASSETS}/{name}{path}", encoded=True)) as response:
            assert (response.status, code_of(await response.json())) == (404, "not_found")


async def test_an_output_that_its_server_lost_gets_404(gateway: RunningGateway, engine: Engine) -> None:
    job = await until_ended(gateway, await submit(gateway, invert_workflow()))
    for file in engine.folders.output.rglob("*.png"):
        file.unlink()
    for headers in ({}, {"Range": "bytes=0-3"}):
        status, body = await ask(gateway, f"{ASSETS}/{job['outputs'][0]['id']}/content", headers=headers)
        assert (status, code_of(body)) == (404, "output_unavailable")


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"file_path": "../a.png"}, "invalid_request"),
        ({"file_path": "/a.png"}, "invalid_request"),
        ({"file_path": "a\\b.png"}, "invalid_request"),
        ({"file_path": "a//b.png"}, "invalid_request"),
        ({"file_path": ""}, "invalid_request"),
        ({"file_path": "output/a.png"}, "invalid_request"),
        ({"file_path": "models/loras/a.safetensors"}, "invalid_request"),
        ({"file_path": "loras/a.safetensors"}, "invalid_request"),
        ({"file_path": None}, "invalid_request"),
        ({"content_type": None}, "invalid_request"),
        ({"content_type": "a\r\nb: c"}, "invalid_request"),
        ({"expires_in": "59"}, "invalid_request"),
        ({"expires_in": "604801"}, "invalid_request"),
        ({"expires_in": "soon"}, "invalid_request"),
        ({"expected_hash": "blake3:" + "0" * 64}, "hash_mismatch"),
        ({"expected_hash": "sha256:x"}, "hash_mismatch"),
    ],
)
async def test_an_upload_that_breaks_the_contract_is_refused(
    gateway: RunningGateway, fields: dict[str, str | None], code: str
) -> None:
    status, body = await upload(gateway, b"a", **{"file_path": "a.png", **fields})
    assert (status, code_of(body)) == (409 if code == "hash_mismatch" else 422, code)


@pytest.mark.parametrize("path", ["photo.png", "input/photo.png", "sub/dir/a.txt", 'a"b é.png', "input"])
async def test_a_file_may_have_any_name_below_the_input_folder(gateway: RunningGateway, path: str) -> None:
    status, asset = await upload(gateway, picture(), path)
    assert (status, asset["file_path"]) == (201, path.removeprefix("input/"))


async def test_the_parts_of_a_form_may_come_in_any_order(gateway: RunningGateway) -> None:
    data = form(b"late", "a.txt", file_first=True, tags=["one"])
    async with gateway.http.post(ASSETS, data=data) as response:
        assert response.status == 201
        assert (await response.json())["tags"] == ["one"]
    status, body = await ask(gateway, ASSETS, "POST", json={"file": "x"})
    assert (status, code_of(body)) == (422, "invalid_request")


async def test_a_key_sees_its_own_assets_only(engine: Engine, keys_path: Path) -> None:
    async with running_gateway(engine.url, keys_file=keys_path) as gateway:
        status, mine = await upload(gateway, picture(), "a.png", key=ALICE)
        assert status == 201
        status, theirs = await upload(gateway, picture(), "a.png", key=BOB)
        assert (status, theirs["created_new"]) == (201, True), (
            "the answer does not show that another key has the same bytes"
        )
        for path in ("", "/content"):
            status, body = await ask(gateway, f"{ASSETS}/{mine['id']}{path}", key=BOB)
            assert (status, code_of(body)) == (404, "not_found")
        assert (await ask(gateway, f"{ASSETS}/{mine['id']}", "DELETE", key=BOB))[0] == 404
        reference = asset_reference(mine["id"])
        status, body = await ask(gateway, "/api/v2/jobs", "POST", key=BOB, json={"workflow": reading(reference)})
        assert (status, body["error"]["details"]) == (422, {"missing_ids": [mine["id"]]})
        job = await until_ended(gateway, await submit(gateway, reading(reference), key=ALICE), key=ALICE)
        assert job["status"] == "succeeded"
        (output,) = job["outputs"]
        assert (await ask(gateway, f"{ASSETS}/{output['id']}", key=BOB))[0] == 404
        assert (await shown(gateway, output["id"], ALICE))["job_id"] == job["id"]
        assert (await ask(gateway, f"{ASSETS}/{mine['id']}", "DELETE", key=ALICE))[0] == 204
        assert (await shown(gateway, theirs["id"], BOB))["id"] == theirs["id"]


async def test_a_waiting_job_keeps_the_bytes_of_a_deleted_asset(gateway: RunningGateway) -> None:
    blocker = await submit(gateway, sleeping())
    _, asset = await upload(gateway, picture((0x33, 0x44, 0x55)), "a.png")
    reference = asset_reference(asset["id"])
    job = await submit(gateway, reading(reference))
    assert (await ask(gateway, f"{ASSETS}/{asset['id']}", "DELETE"))[0] == 204
    await gateway.handler.uploads.sweep()
    assert (await ask(gateway, f"/api/v2/jobs/{blocker['id']}/cancel", "POST"))[0] == 200
    job = await until_ended(gateway, job)
    assert color_of((await fetched(gateway, job["outputs"][0]["id"]))[2]) == (0x33, 0x44, 0x55)
    await gateway.handler.uploads.sweep()
    assert not gateway.handler.uploads.catalogue.digests()


async def test_an_upload_without_room_is_refused_by_its_code(engine: Engine) -> None:
    async with running_gateway(engine.url, max_stored_inputs_mb=2) as gateway:
        status, body = await upload(gateway, bytes(1_000_001), "large.bin")
        assert (status, code_of(body)) == (413, "payload_too_large")
        status, _ = await upload(gateway, bytes(600_000), "a.bin")
        assert status == 201
        async with gateway.http.post(ASSETS, data=form(b"x" * 600_000, "b.bin")) as response:
            assert (response.status, int(response.headers["Retry-After"])) == (429, 5)
            assert code_of(await response.json()) == "queue_full"
        assert (await upload(gateway, bytes(600_000), "again.bin"))[0] == 200
    async with running_gateway(engine.url, max_multipart_mb=1) as gateway:
        status, body = await upload(gateway, bytes(1_100_000), "large.bin")
        assert (status, code_of(body)) == (413, "payload_too_large")


async def test_an_idempotency_key_is_used_once_and_is_free_again_after_a_failed_upload(
    gateway: RunningGateway,
) -> None:
    headers = {"Idempotency-Key": "one"}
    status, body = await ask(gateway, ASSETS, "POST", headers=headers, data=form(b"a", "../a"))
    assert (status, code_of(body)) == (422, "invalid_request")
    status, asset = await ask(gateway, ASSETS, "POST", headers=headers, data=form(b"a", "a.txt"))
    assert status == 201
    status, body = await ask(gateway, ASSETS, "POST", headers=headers, data=form(b"b", "b.txt"))
    assert (status, code_of(body)) == (422, "idempotency_key_reuse")
    assert body["error"]["details"] == {"asset_id": asset["id"]}
    status, body = await ask(gateway, ASSETS, "POST", headers={"Idempotency-Key": ""}, data=form(b"b", "b.txt"))
    assert (status, code_of(body)) == (400, "invalid_request")


async def test_the_list_of_jobs_has_their_outputs_without_asking_a_server(
    gateway: RunningGateway, engine: Engine
) -> None:
    workflow = {**writing(size=100), "2": node("PreviewAny", source="told")}
    first = await until_ended(gateway, await submit(gateway, workflow))
    running = await submit(gateway, sleeping())
    engine.stats.reset()
    status, body = await ask(gateway, JOBS)
    assert status == 200
    assert [one["id"] for one in body["jobs"]] == [running["id"], first["id"]]
    assert body["jobs"][1]["outputs"] == first["outputs"]
    assert not requests(engine, "HEAD /view")
    await ask(gateway, f"{JOBS}/{running['id']}/cancel", "POST")


async def test_a_later_list_has_the_sizes_that_the_first_list_lacked(gateway: RunningGateway, engine: Engine) -> None:
    assert (await fetch(gateway.http, await submit_async(gateway.http, writing(size=100))))[0] == 200

    async def sizes() -> list[int]:
        (job,) = (await ask(gateway, JOBS))[1]["jobs"]
        return [one["size_bytes"] for one in job["outputs"]]

    assert await sizes() == [0]
    assert await until(sizes, lambda found: found != [0], timeout_s=30) == [100]
    engine.stats.reset()
    assert await sizes() == [100]
    assert not requests(engine, "HEAD /view")


async def test_stored_outputs_are_served_from_the_object_store(engine: Engine, s3_variables: dict[str, Any]) -> None:
    async with running_gateway(engine.url, **s3_variables, output_store="s3") as gateway, comfy(gateway.url) as client:
        job = await client.submit(
            client.workflows.from_json({**writing(size=1000), "2": node("PreviewAny", source="a")})
        )
        await job.result()
        file, text = job.outputs
        assert file.size_bytes == 1000
        digest = f"blake3:{blake3(await file.to_bytes()).hexdigest()}"
        assert (await client.assets.get(file.id)).hash == digest, "its bytes passed on their way to the store"
        assert await is_here(gateway, digest)
        url = (await file.get_download_url()).url
        assert url.startswith(s3_variables["s3_endpoint_url"])
        for made in engine.folders.output.iterdir():
            made.unlink()
        assert len(await file.to_bytes()) == 1000
        assert await text.to_bytes() == b"a"
        async with gateway.http.get(url, headers={"Range": "bytes=0-9"}) as response:
            assert (response.status, len(await response.read())) == (206, 10)


async def test_outputs_of_a_running_job_can_be_read(engine: Engine, keys_path: Path) -> None:
    async with running_gateway(engine.url, keys_file=keys_path) as gateway:
        workflow = {
            **writing(size=0),
            "2": node("SimulatedSleep", seconds=600.0, steps=600),
            "3": node("PreviewAny", source=["2", 0]),
        }
        job = await submit(gateway, workflow, key=ALICE)
        job = await until(lambda: job_of(gateway, job["id"], ALICE), lambda seen: bool(seen["outputs"]), timeout_s=30)
        assert (job["status"], job["outputs"][0]["size_bytes"]) == ("running", 0)
        made = job["outputs"][0]["id"]
        status, content = await ask(gateway, f"{ASSETS}/{made}/content", key=ALICE)
        assert (status, content) == (200, b"")
        assert (await shown(gateway, made, ALICE))["hash"] == f"blake3:{blake3(b'').hexdigest()}"
        assert (await ask(gateway, f"{ASSETS}/{made}/content", key=BOB))[0] == 404
        assert (await ask(gateway, f"{JOBS}/{job['id']}/cancel", "POST", key=ALICE))[0] == 200
        ended = await until_ended(gateway, job, key=ALICE)
        assert (ended["status"], [one["id"] for one in ended["outputs"]]) == ("canceled", [made])


async def job_of(gateway: RunningGateway, job_id: str, key: str | None = None) -> Any:
    return (await ask(gateway, f"{JOBS}/{job_id}", key=key))[1]


async def test_a_user_can_read_outputs_that_comfyui_took_from_its_cache(engine: Engine, keys_path: Path) -> None:
    async with running_gateway(engine.url, keys_file=keys_path) as gateway:
        contents = []
        for _ in range(2):
            job = await until_ended(gateway, await submit(gateway, writing(size=10), key=ALICE), key=ALICE)
            contents.append(await ask(gateway, f"{ASSETS}/{job['outputs'][0]['id']}/content", key=ALICE))
        assert [status for status, _ in contents] == [200, 200]
        assert contents[0] == contents[1]


async def test_an_output_of_an_unreachable_server_gets_503_instead_of_404() -> None:
    async with AsyncExitStack() as stack:
        engine = await stack.enter_async_context(Engine(EngineOptions()))
        async with running_gateway(engine.url) as gateway:
            job = await until_ended(gateway, await submit(gateway, invert_workflow()))
            _, asset = await upload(gateway, b"here", "a.txt")
            await stack.aclose()
            made = f"{ASSETS}/{job['outputs'][0]['id']}"
            for headers in ({}, {"Range": "bytes=0-3"}):
                status, body = await ask(gateway, f"{made}/content", headers=headers)
                assert (status, code_of(body)) == (503, "upstream_unreachable")
            assert (await ask(gateway, made))[1]["size_bytes"] == job["outputs"][0]["size_bytes"], (
                "the size was known before"
            )
            assert (await ask(gateway, f"{ASSETS}/{asset['id']}/content"))[1] == b"here"


async def test_an_upload_that_breaks_off_leaves_no_file_and_frees_its_key(
    gateway: RunningGateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    address = URL(gateway.url)
    _, writer = await asyncio.open_connection(address.host, address.port)
    part = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
    head = b"POST /api/v2/assets HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9000000\r\nIdempotency-Key: k\r\n"
    writer.write(head + b"Content-Type: multipart/form-data; boundary=b\r\n\r\n" + part + b"x" * 3_000_000)
    await until(lambda: entries(tmp_path), bool, timeout_s=30)
    status, body = await ask(gateway, ASSETS, "POST", headers={"Idempotency-Key": "k"}, data=form(b"a", "a.txt"))
    assert (status, code_of(body)) == (422, "idempotency_key_reuse"), "the first upload still runs"
    writer.close()
    await writer.wait_closed()
    await until(lambda: entries(tmp_path), lambda found: not found, timeout_s=30)

    async def again() -> int:
        data = form(b"a", "a.txt")
        return (await ask(gateway, ASSETS, "POST", headers={"Idempotency-Key": "k"}, data=data))[0]

    assert await until(again, lambda answered: answered != 422, timeout_s=30) == 201


async def entries(folder: Path) -> list[str]:
    return await asyncio.to_thread(os.listdir, folder)
