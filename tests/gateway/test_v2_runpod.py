"""Comfy API v2 where jobs run on RunPod: their files are on the gateway's own disk."""

from __future__ import annotations

import base64
import io
from typing import Any

from blake3 import blake3
from PIL import Image

from comfyui.engine import Engine
from tests.support.running import RunningGateway, invert_workflow, prompts_are_queued, sleep_workflow
from tests.support.runpod_endpoint import DATA, PICTURE, FakeEndpoint, base64_image, loading_workflow, outputs_of
from tests.support.v2 import ASSETS, JOBS, ask, submit, until_ended, upload


async def test_what_a_job_on_runpod_has_made_is_measured_and_sent_whole_and_in_part(
    endpoint: FakeEndpoint, runpod_gateway: RunningGateway
) -> None:
    job = await submit(runpod_gateway, invert_workflow(7))
    sent = await endpoint.job()
    assert endpoint.inputs[sent] == {"workflow": invert_workflow(7)}
    endpoint.complete(sent, base64_image(DATA, node_id="3"), outputs=outputs_of("a_00001_.png"))
    ended = await until_ended(runpod_gateway, job)
    assert ended["status"] == "succeeded", ended
    [output] = ended["outputs"]
    assert (output["name"], output["size_bytes"]) == ("a_00001_.png", len(PICTURE))

    path = f"{ASSETS}/{output['id']}/content"
    async with runpod_gateway.http.get(path, headers={"Range": "bytes=1-3"}) as response:
        assert (response.status, await response.read()) == (206, b"PNG")
        assert response.headers["Content-Range"] == f"bytes 1-3/{len(PICTURE)}"
    async with runpod_gateway.http.get(path, headers={"Range": "bytes=1000-"}) as response:
        assert (response.status, response.headers["Content-Range"]) == (416, f"bytes */{len(PICTURE)}")
    async with runpod_gateway.http.get(path) as response:
        assert (response.status, await response.read()) == (200, PICTURE)
    status, asset = await ask(runpod_gateway, f"{ASSETS}/{output['id']}")
    assert (status, asset["hash"]) == (200, f"blake3:{blake3(PICTURE).hexdigest()}")


async def test_what_a_job_on_runpod_has_made_and_an_upload_go_along_with_the_next_job(
    endpoint: FakeEndpoint, runpod_gateway: RunningGateway
) -> None:
    job = await submit(runpod_gateway, invert_workflow(7))
    endpoint.complete(await endpoint.job(), base64_image(DATA, node_id="3"), outputs=outputs_of("a_00001_.png"))
    [output] = (await until_ended(runpod_gateway, job))["outputs"]
    _, asset = await upload(runpod_gateway, b"\x89PNG\r\n\x1a\nmine", "photo.png")
    for number, (made, content) in enumerate(((output["id"], PICTURE), (asset["id"], b"\x89PNG\r\n\x1a\nmine")), 2):
        reference = reference_to({"id": made})
        job = await submit(runpod_gateway, loading_workflow(reference))
        given = endpoint.inputs[sent := await endpoint.job(number)]
        [image] = given["images"]
        assert base64.b64decode(image["image"]) == content
        assert given["workflow"]["1"]["inputs"]["image"] == image["name"]
        endpoint.complete(sent, base64_image(DATA, node_id="3"), outputs=outputs_of("b_00001_.png"))
        assert (await until_ended(runpod_gateway, job))["status"] == "succeeded"


async def test_what_runpod_has_made_is_the_input_of_a_comfyui_and_the_other_way_round(
    endpoint: FakeEndpoint, engine: Engine, runpod_and_engine: RunningGateway
) -> None:
    gateway, picture = runpod_and_engine, png(0x12_34_56)
    long = await submit(gateway, sleep_workflow(600))
    await prompts_are_queued(engine, 1)
    first = await submit(gateway, invert_workflow(7))
    data = base64.b64encode(picture).decode()
    endpoint.complete(await endpoint.job(), base64_image(data, node_id="3"), outputs=outputs_of("a_00001_.png"))
    [made] = (await until_ended(gateway, first))["outputs"]
    assert (await ask(gateway, f"{JOBS}/{long['id']}/cancel", "POST"))[0] == 200
    # On the ComfyUI, which is free again.
    there = await until_ended(gateway, await submit(gateway, loading_workflow(reference_to(made))))
    assert (there["status"], endpoint.runs) == ("succeeded", 1)
    _, content = await ask(gateway, f"{ASSETS}/{there['outputs'][0]['id']}/content")
    with Image.open(io.BytesIO(content)) as image:
        assert image.convert("RGB").getpixel((0, 0)) == (0x12, 0x34, 0x56)
    # And back: what it made goes to RunPod.
    await submit(gateway, sleep_workflow(600, tag=2))
    await prompts_are_queued(engine, 1)
    back = await submit(gateway, loading_workflow(reference_to(there["outputs"][0])))
    sent = await endpoint.job(2)
    [image_sent] = endpoint.inputs[sent]["images"]
    assert base64.b64decode(image_sent["image"]) == content
    endpoint.complete(sent, base64_image(data, node_id="3"), outputs=outputs_of("c_00001_.png"))
    assert (await until_ended(gateway, back))["status"] == "succeeded"


def reference_to(made: dict[str, Any]) -> dict[str, Any]:
    """What stands for an asset in a workflow."""
    return {"__type": "core/ASSET", "info": {"id": made["id"]}}


def png(color: int) -> bytes:
    """A picture of one colour."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), f"#{color:06x}").save(buffer, "PNG")
    return buffer.getvalue()


async def test_a_file_on_runpods_folder_that_was_removed_is_gone_for_whole_and_part(
    endpoint: FakeEndpoint, runpod_gateway: RunningGateway
) -> None:
    job = await submit(runpod_gateway, invert_workflow(7))
    sent = await endpoint.job()
    endpoint.complete(sent, base64_image(DATA, node_id="3"), outputs=outputs_of("a_00001_.png"))
    [output] = (await until_ended(runpod_gateway, job))["outputs"]
    server = runpod_gateway.handler.pool.servers[-1]
    kept = await server.path_of(job["id"], "", "a_00001_.png")
    assert kept is not None
    kept.unlink()
    for headers in ({}, {"Range": "bytes=1-3"}):
        status, body = await ask(runpod_gateway, f"{ASSETS}/{output['id']}/content", headers=headers)
        assert (status, body["error"]["code"]) == (404, "output_unavailable"), body
