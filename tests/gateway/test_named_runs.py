"""`/workflows`: named workflows are listed and described, and run as `/prompt_sync` runs a graph."""

from __future__ import annotations

import base64
import io
import json
import zipfile
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiohttp
import pytest

from comfyui.engine import Engine
from tests.support.jobs import ASYNC, fetch, listed, look
from tests.support.named import write
from tests.support.named_folder import FLAT, FLAT_PARAMETERS, named_folder, png, run
from tests.support.running import RunningGateway, engines, executions, running_gateway
from tests.support.sse import events_of


async def test_the_list_has_each_workflow_and_the_problem_of_an_unusable_one(named: RunningGateway) -> None:
    async with named.http.get("/workflows") as response:
        found = {one["name"]: one for one in (await response.json())["workflows"]}
    assert list(found) == ["broken", "flat", "inverted"]
    assert "77" in found["broken"]["problem"]
    assert found["flat"]["problem"] is None
    assert (found["flat"]["title"], found["flat"]["parameters"]) == ("Flat", ["seed", "width", "prompt"])
    assert (found["flat"]["outputs"], found["inverted"]["outputs"]) == (["picture"], [])


async def test_a_workflow_shows_its_schema_and_its_example_runs(named: RunningGateway) -> None:
    async with named.http.get("/workflows/flat") as response:
        shown = await response.json()
    width = shown["parameters"]["properties"]["width"]
    assert {name: width[name] for name in ("type", "minimum", "maximum", "default")} == {
        "type": "integer",
        "minimum": 1,
        "maximum": 64,
        "default": 16,
    }
    assert shown["outputs"] == [{"name": "picture", "node_id": "2"}]
    assert [(server["valid"], server["problems"]) for server in shown["servers"]] == [(True, [])]
    status, body = await run(named.http, "flat", shown["example"])
    assert (status, body["workflow"]["version"]) == (200, shown["version"])


async def test_missing_nodes_are_listed_for_each_server(tmp_path: Path) -> None:
    loader = {**FLAT, "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "nowhere.safetensors"}}}
    loader["5"] = {"class_type": "SaveImage", "inputs": {"images": ["6", 0], "filename_prefix": "x"}}
    loader["6"] = {"class_type": "NoSuchNode", "inputs": {}}
    write(tmp_path, "needs-much", loader, FLAT_PARAMETERS)
    async with engines(2) as two, running_gateway(*(one.url for one in two), workflows_dir=tmp_path) as gateway:
        async with gateway.http.get("/workflows/needs-much") as response:
            shown = await response.json()
        assert [server["valid"] for server in shown["servers"]] == [False, False]
        for server in shown["servers"]:
            assert "NoSuchNode" in {problem["class_type"] for problem in server["problems"]}


async def test_a_run_returns_its_parameters_and_only_the_named_outputs(named: RunningGateway) -> None:
    status, body = await run(named.http, "flat", {"width": "8", "seed": 255})
    assert status == 200
    assert body["workflow"]["parameters"] == {"width": 8, "seed": 255, "prompt": "flat"}
    assert [(file["node_id"], file["output"]) for file in body["images"]] == [("2", "picture")]
    assert set(body["outputs"]) == {"2"}
    status, whole = await run(named.http, "inverted", {"image": base64.b64encode(png()).decode()})
    assert status == 200
    assert ["output" in file for file in whole["images"]] == [False]


async def test_every_form_of_answer_has_only_the_named_output(named: RunningGateway) -> None:
    async with named.http.post("/workflows/flat", json={}, headers={"Accept": "image/png"}) as response:
        assert (response.status, (await response.read())[:4]) == (200, b"\x89PNG")
    async with named.http.post("/workflows/flat", json={}, headers={"Accept": "application/zip"}) as response:
        with zipfile.ZipFile(io.BytesIO(await response.read())) as archive:
            assert len(archive.namelist()) == 1
    async with named.http.post(
        "/workflows/flat", json={"seed": 3}, headers={"Accept": "text/event-stream"}
    ) as response:
        events = [event async for event in events_of(response)]
    assert (events[0].name, events[-1].name) == ("queued", "result")
    assert events[-1].data["workflow"]["parameters"]["seed"] == 3
    assert [file["output"] for file in events[-1].data["images"]] == ["picture"]
    status, body = await run(named.http, "flat", {"$options": {"return_image_base64": True}})
    assert status == 200
    assert base64.b64decode(body["images"][0]["base64"])[:4] == b"\x89PNG"


async def test_a_call_without_a_body_uses_the_defaults(named: RunningGateway) -> None:
    async with named.http.post("/workflows/flat") as response:
        body = await response.json()
    assert (response.status, body["workflow"]["ignored"]) == (200, [])


async def test_an_idempotency_key_joins_a_run_with_a_random_seed(named: RunningGateway, engine: Engine) -> None:
    key = {"Idempotency-Key": "order-1"}
    _, first = await run(named.http, "flat", {"width": 9}, headers=key)
    status, second = await run(named.http, "flat", {"width": 9}, headers=key)
    assert (status, second["prompt_id"]) == (200, first["prompt_id"])
    assert second["workflow"] == first["workflow"]
    status, other = await run(named.http, "flat", {"width": 10}, headers=key)
    assert (status, other["type"]) == (409, "conflict")
    _, fresh = await run(named.http, "flat", {"width": 9})
    assert fresh["workflow"]["parameters"]["seed"] != first["workflow"]["parameters"]["seed"]
    assert executions(engine)[first["prompt_id"]] == 1


@pytest.mark.parametrize("stored", [True, False], ids=["journal on disk", "journal in memory"])
async def test_an_async_run_keeps_its_workflow_in_lists_and_after_a_restart(
    engine: Engine, tmp_path: Path, stored: bool
) -> None:
    state: dict[str, Any] = {"workflows_dir": named_folder(tmp_path / "workflows")}
    state |= {"state_dir": tmp_path / "state"} if stored else {}
    prompt_id = str(uuid4())
    body = {"width": 5, "$options": {"prompt_id": prompt_id, "labels": {"order": "1"}}}
    async with running_gateway(engine.url, **state) as gateway:
        status, taken = await run(gateway.http, "flat", body, headers=ASYNC)
        assert (status, taken["prompt_id"], taken["workflow"]["name"]) == (202, prompt_id, "flat")
        _, result = await fetch(gateway.http, prompt_id)
        assert result["workflow"] == taken["workflow"]
        assert [file["output"] for file in result["images"]] == ["picture"]
        [job] = (await listed(gateway.http, "?label.order=1&workflow=flat"))["jobs"]
        assert (job["prompt_id"], job["workflow"], job["status"]) == (prompt_id, "flat", "succeeded")
        assert (await listed(gateway.http, "?workflow=inverted"))["jobs"] == []
    if not stored:
        return
    async with running_gateway(engine.url, **state) as gateway:
        _, kept = await look(gateway.http, prompt_id)
        assert kept["workflow"] == taken["workflow"]
        assert [file["output"] for file in kept["images"]] == ["picture"]


async def test_a_form_with_a_file_gives_the_same_result_as_json(named: RunningGateway) -> None:
    form = aiohttp.FormData()
    form.add_field("image", png("black"), filename="Käse.PNG", content_type="image/png")
    form.add_field("$options", json.dumps({"return_image_base64": True}))
    async with named.http.post("/workflows/inverted", data=form) as response:
        body = await response.json()
    assert response.status == 200, body
    assert body["workflow"]["parameters"]["image"].startswith("file:image-sha256-")
    as_json = {"image": base64.b64encode(png("black")).decode(), "$options": {"return_image_base64": True}}
    _, same = await run(named.http, "inverted", as_json)
    assert same["images"][0]["base64"] == body["images"][0]["base64"]


async def test_an_empty_form_field_is_ignored_and_a_text_may_come_as_a_file(
    named: RunningGateway,
) -> None:
    form = aiohttp.FormData()
    form.add_field("width", "")
    form.add_field("seed", "7")
    form.add_field("prompt", b"from-a-file", filename="prompt.txt", content_type="text/plain")
    async with named.http.post("/workflows/flat", data=form) as response:
        body = await response.json()
    assert response.status == 200, body
    assert body["workflow"]["parameters"] == {"seed": 7, "prompt": "from-a-file"}


async def test_a_misplaced_file_and_a_second_file_are_refused_by_their_field(named: RunningGateway) -> None:
    for fields, named_field in ((["width"], "width"), (["nothing"], "nothing")):
        form = aiohttp.FormData()
        for field in fields:
            form.add_field(field, png(), filename="a.png")
        async with named.http.post("/workflows/flat", data=form) as response:
            body = await response.json()
        assert (response.status, list(body["parameters"])) == (422, [named_field])
    form = aiohttp.FormData()
    for _ in range(2):
        form.add_field("image", png(), filename="a.png")
    async with named.http.post("/workflows/inverted", data=form) as response:
        body = await response.json()
    assert (response.status, body["detail"]) == (422, "image must be one file, but two are given")


async def test_the_error_names_each_wrong_parameter_with_its_allowed_values(named: RunningGateway) -> None:
    status, body = await run(named.http, "flat", {"widht": 3, "width": 65, "seed": "x", "prompt": ["1", 0]})
    assert (status, body["type"], set(body["parameters"])) == (
        422,
        "invalid_parameters",
        {"widht", "width", "seed", "prompt"},
    )
    assert body["parameters"]["widht"]["closest"] == "width"
    assert body["parameters"]["width"]["allowed"]["maximum"] == 64
    status, body = await run(named.http, "inverted", {})
    assert (status, list(body["parameters"])) == (422, ["image"])


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        ({"$options": {"number": 1}}, "$options: there is no option number"),
        ({"$options": {"priority": "high"}}, "$options.priority: "),
        ({"$options": []}, "$options must be an object"),
        ([], "the body is not a JSON object"),
        ({f"p{index}": 1 for index in range(21)}, "the workflow has no parameters"),
        ({"$options": {"webhook": {"url": "http://a.example"}}}, "webhook: the gateway sends no webhooks"),
    ],
    ids=["unknown option", "option of another type", "options no object", "no object", "many unknown", "webhook"],
)
async def test_the_error_of_a_wrong_body_gives_the_reason(named: RunningGateway, body: Any, detail: str) -> None:
    status, said = await run(named.http, "flat", body)
    assert status == 422
    assert detail in said["detail"]


async def test_an_unknown_workflow_or_query_is_refused_with_the_closest_name(named: RunningGateway) -> None:
    status, said = await run(named.http, "flatt", {})
    assert (status, said["type"]) == (404, "not_found")
    assert "did you mean flat?" in said["detail"]
    status, said = await run(named.http, "broken", {})
    assert (status, said["type"]) == (409, "workflow_unusable")
    status, said = await run(named.http, "flat?tiemout=3", {})
    assert (status, "did you mean timeout?" in said["detail"]) == (400, True)


@pytest.mark.parametrize("prefer", [{}, ASYNC], ids=["sync", "async"])
async def test_a_value_that_is_no_image_is_refused_by_its_parameter(
    named: RunningGateway, prefer: dict[str, str]
) -> None:
    status, body = await run(named.http, "inverted", {"image": "!no base64!"}, headers=prefer)
    assert (status, body["type"], body["detail"].partition(":")[0]) == (400, "input_failed", "image")
    form = aiohttp.FormData()
    form.add_field("image", b"<html>an error page</html>", filename="a.png")
    async with named.http.post("/workflows/inverted", data=form, headers=prefer) as response:
        body = await response.json()
    assert (response.status, body["type"], body["detail"].partition(":")[0]) == (400, "input_failed", "image")


async def test_a_text_that_looks_like_a_link_stays_a_text(named: RunningGateway) -> None:
    status, body = await run(named.http, "flat", {"prompt": '["1", 0]'})
    assert (status, body["workflow"]["parameters"]["prompt"]) == (200, '["1", 0]')


async def test_a_caller_of_prompt_sync_cannot_claim_to_run_a_named_workflow(named: RunningGateway) -> None:
    for name in ("workflow", "call", "_call", "workflow_name"):
        async with named.http.post("/prompt_sync", json={"prompt": FLAT, name: {"name": "flat"}}) as response:
            status, body = response.status, await response.json()
        assert (status, name in body["detail"]) == (422, True)
    status, body = await named.prompt_sync(FLAT)
    assert (status, "workflow" in body, len(body["images"])) == (200, False, 2)
