"""`/prompt_sync` on real sockets: the gateway in front of the embedded engine."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import pytest
from aiohttp import web
from PIL import Image

from comfyui.engine import Engine
from tests.support.running import RunningGateway, invert_workflow, requests, running_gateway, sleep_workflow


async def test_a_workflow_is_answered_with_its_files(gateway: RunningGateway) -> None:
    status, body = await gateway.prompt_sync(invert_workflow(255))

    assert status == 200
    assert body["status"] == "success"
    assert body["outputs"] == {"3": {"images": [{"filename": "test_00001_.png", "subfolder": "", "type": "output"}]}}
    assert body["images"] == [
        {
            "node_id": "3",
            "filename": "test_00001_.png",
            "subfolder": "",
            "type": "output",
            "content_type": "image/png",
            "url": "/view?filename=test_00001_.png&subfolder=&type=output",
        }
    ]
    assert body["node_errors"] == {}
    assert set(body["timings"]) == {"staging", "queued", "executing", "collecting", "nodes"}
    assert body["execution_time"] > 0


async def test_base64_is_the_saved_file(gateway: RunningGateway, engine: Engine) -> None:
    _, body = await gateway.prompt_sync(invert_workflow(255), return_image_base64=True)

    content = base64.b64decode(body["images"][0]["base64"], validate=True)
    assert content == (Path(engine.folders.output) / "test_00001_.png").read_bytes()
    with Image.open(io.BytesIO(content)) as image:
        assert image.size == (16, 12)
        assert image.getpixel((0, 0)) == (255, 255, 0)


async def test_one_call_costs_one_post_one_history_and_one_view(gateway: RunningGateway, engine: Engine) -> None:
    engine.stats.reset()
    await gateway.prompt_sync(sleep_workflow(0.3), return_image_base64=True)

    assert engine.stats.show()["requests"] == {"POST /prompt": 1, "GET /history/{prompt_id}": 1, "GET /view": 1}


@pytest.mark.parametrize("scheme", ["data:image/png;base64,", "DATA:Image/PNG;Base64,", "http://", "HTTP://"])
async def test_data_and_http_inputs_are_staged_in_any_spelling_of_the_scheme(engine: Engine, scheme: str) -> None:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(file, "PNG")
    (engine.folders.input / "there.png").write_bytes(file.getvalue())
    host = engine.url.removeprefix("http://")
    inline = scheme.lower().startswith("data:")
    rest = base64.b64encode(file.getvalue()).decode() if inline else f"{host}/view?filename=there.png&type=input"
    workflow = {
        "1": {"class_type": "LoadImage", "inputs": {"image": f"{scheme}{rest}"}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "placed"}},
    }
    async with running_gateway(engine.url, input_url_allow=host) as gateway:
        status, body = await gateway.prompt_sync(workflow)
    assert status == 200, body
    with Image.open(engine.folders.output / body["images"][0]["filename"]) as image:
        assert image.getpixel((0, 0)) == (255, 0, 0)


async def test_answers_and_health_report_a_simulation(gateway: RunningGateway, engine: Engine) -> None:
    asked = requests(engine, "GET /system_stats")
    status, body = await gateway.prompt_sync(invert_workflow())
    assert (status, body["simulation"]) == (200, True)
    for accept in ("image/png", "application/zip"):
        async with gateway.http.post(
            "/prompt_sync", json={"prompt": invert_workflow()}, headers={"Accept": accept}
        ) as response:
            assert (response.status, response.headers["X-Simulation"]) == (200, "true")
    async with gateway.http.get("/health") as response:
        health = await response.json()
    assert (health["simulation"], health["servers"][0]["simulation"]) == (True, True)
    assert requests(engine, "GET /system_stats") == asked, "read once for each connection, not for each prompt"


@pytest.mark.parametrize(
    "stats",
    [b'{"system": {"comfyui_version": "0.3.64"}}', b"[]", b"{", b'{"system": null}'],
    ids=["no flag", "a list", "no JSON", "no system"],
)
async def test_a_comfyui_without_a_simulation_flag_is_no_simulation(stats: bytes) -> None:
    async def answer(request: web.Request) -> web.Response:
        found = {"/system_stats": stats, "/prompt": b'{"exec_info": {"queue_remaining": 0}}'}.get(request.path)
        return web.Response(body=found, content_type="application/json") if found else web.Response(status=404)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        address = runner.addresses[0]
        async with running_gateway(f"{address[0]}:{address[1]}") as gateway, gateway.http.get("/health") as response:
            health = await response.json()
        assert (health["status"], health["simulation"]) == ("healthy", False)
    finally:
        await runner.cleanup()


async def test_an_answer_has_the_seconds_of_each_node(gateway: RunningGateway) -> None:
    workflow = sleep_workflow(0.4)
    _, body = await gateway.prompt_sync(workflow)
    nodes = body["timings"]["nodes"]
    assert set(nodes) == set(workflow)
    # The time between two frames, of which the first may have come late.
    assert 0.3 <= nodes["4"] <= body["timings"]["executing"] + 0.2
    assert all(nodes[node_id] < 0.3 for node_id in ("1", "2", "3"))

    workflow["5"] = {"class_type": "ImageInvert", "inputs": {"image": ["4", 0]}}
    workflow["3"]["inputs"]["images"] = ["5", 0]
    _, body = await gateway.prompt_sync(workflow)
    assert set(body["timings"]["nodes"]) == {"3", "5"}, "nodes that come from the cache did not run"


async def test_seconds_of_nodes_are_left_out_if_their_events_went_to_another_client(gateway: RunningGateway) -> None:
    async with gateway.http.ws_connect("/ws?clientId=mine"):
        _, body = await gateway.prompt_sync(invert_workflow(7), client_id="mine")
    assert "nodes" not in body["timings"]
