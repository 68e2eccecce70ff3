"""Comfy API v2 where jobs run on RunPod: their files are on the gateway's own disk."""

from __future__ import annotations

from blake3 import blake3

from tests.support.running import RunningGateway, invert_workflow
from tests.support.runpod_endpoint import DATA, PICTURE, FakeEndpoint, base64_image, outputs_of
from tests.support.v2 import ASSETS, ask, submit, until_ended


async def test_an_output_from_runpod_has_a_size_a_hash_and_ranges(
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


async def test_a_removed_output_from_runpod_gets_404_with_and_without_a_range(
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
