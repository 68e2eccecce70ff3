"""Uploads to a gateway before three engines, which have folders of their own and look like one ComfyUI."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import json
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import aiohttp
import pytest
from PIL import Image

from comfyui.engine import Engine
from tests.support.calls import Calls
from tests.support.jobs import submit
from tests.support.keys import ALICE, BOB, ROOT, WATCHER, bearer
from tests.support.pictures import BLUE, GREEN, RED, color_of, picture
from tests.support.relaying import Fetched, fetch
from tests.support.running import (
    RunningGateway,
    executions,
    loading_workflow,
    running_gateway,
    sleep_workflow,
    until,
)
from tests.support.uploads import upload


async def view(gateway: RunningGateway, key: str | None = None, **query: str) -> Fetched:
    return await fetch(gateway, f"/view?{urlencode(query)}", headers=bearer(key) if key else {})


async def result_color(gateway: RunningGateway, result: Any) -> Any:
    found = await fetch(gateway, result["images"][0]["url"])
    assert found.status == 200
    return color_of(found.body)


def inputs_of(engine: Engine) -> dict[str, bytes]:
    root = engine.folders.input
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


async def test_an_upload_reaches_a_server_only_with_a_prompt_that_names_it(
    fleet: RunningGateway, three_engines: list[Engine]
) -> None:
    assert await upload(fleet, "a.png", RED) == (200, {"name": "a.png", "subfolder": "", "type": "input"})
    assert [inputs_of(one) for one in three_engines] == [{}, {}, {}]
    busy = [await fleet.http.post("/prompt", json={"prompt": sleep_workflow(600, tag=n)}) for n in range(2)]
    assert [one.status for one in busy] == [200, 200]
    status, result = await fleet.prompt_sync(loading_workflow("a.png"))
    assert status == 200, result
    assert await result_color(fleet, result) == (255, 0, 0)
    (ran,) = (one for one in three_engines if result["prompt_id"] in executions(one))
    assert [inputs_of(one) for one in three_engines if one is not ran] == [{}, {}]
    # The workflow runs with the name that the client knows.
    assert inputs_of(ran) == {"a.png": RED}
    assert (await fleet.prompt_sync(loading_workflow("a.png [input]", "again")))[0] == 200
    assert ran.stats.show()["requests"]["POST /upload/image"] == 1


@pytest.mark.parametrize("prefix", ["", "/api"])
async def test_uploads_are_named_by_comfyuis_rules(fleet: RunningGateway, prefix: str) -> None:
    async def named(content: bytes, **fields: str) -> str:
        status, answer = await upload(fleet, "a.b.png", content, path=f"{prefix}/upload/image", **fields)
        assert status == 200
        return str(answer["name"])

    assert [await named(RED), await named(BLUE), await named(RED), await named(BLUE), await named(GREEN)] == [
        *("a.b.png", "a.b (1).png", "a.b.png", "a.b (1).png", "a.b (2).png")
    ]
    assert await named(GREEN, overwrite="true") == "a.b.png"
    assert await named(RED, overwrite="1") == "a.b.png"
    assert await named(GREEN, overwrite="yes") == "a.b (2).png"
    # Each folder has its own names.
    assert await named(GREEN, subfolder="x/y") == "a.b.png"
    assert await named(GREEN, type="temp") == "a.b.png"
    found = await view(fleet, filename="a.b.png", subfolder="x/y", type="input")
    assert (found.status, found.body, found.headers["Content-Type"]) == (200, GREEN, "image/png")
    assert found.headers["Content-Disposition"] == 'filename="a.b.png"'
    assert (await view(fleet, filename="a.b.png", type="input")).body == RED
    assert (await view(fleet, filename="a.b.png", type="temp")).body == GREEN
    assert (await view(fleet, filename="a.b.png", type="output")).status == 404
    part = await fetch(fleet, "/view?filename=a.b.png&type=input", headers={"Range": "bytes=1-3"})
    assert (part.status, part.body) == (206, b"PNG")
    shown = await view(fleet, filename="a.b.png", subfolder="x/y", type="input", preview="webp;90")
    assert (shown.status, shown.headers["Content-Type"], color_of(shown.body)[1] > 200) == (200, "image/webp", True)
    assert await (await fleet.http.get(f"{prefix}/internal/files/input")).json() == [
        "a.b.png",
        "a.b (2).png",
        "a.b (1).png",
    ]


@pytest.mark.parametrize(
    ("name", "numbered"),
    [
        ("a" * 251 + ".png", "a" * 247 + " (1).png"),
        ("é" * 125 + "x.png", "é" * 123 + " (1).png"),
        ("a." + "b" * 253, "a." + "b" * 249 + " (1)"),
    ],
    ids=["ascii", "two bytes per character", "no short extension"],
)
async def test_numbering_keeps_the_longest_allowed_name_within_the_limit(
    fleet: RunningGateway, name: str, numbered: str
) -> None:
    assert len(name.encode()) == 255
    assert (await upload(fleet, name, RED))[1]["name"] == name
    assert (await upload(fleet, name, GREEN))[1]["name"] == numbered
    _, result = await fleet.prompt_sync(loading_workflow(numbered))
    assert await result_color(fleet, result) == (0, 255, 0)


async def test_a_servers_own_file_of_the_same_name_is_not_used(
    fleet: RunningGateway, three_engines: list[Engine]
) -> None:
    """A server has other bytes under the name: the upload is placed elsewhere there, for this run only."""
    for one in three_engines[1:]:
        (one.folders.input / "a.png").write_bytes(BLUE)
    assert (await upload(fleet, "a.png", RED))[1]["name"] == "a.png"
    digest = hashlib.sha256(RED).hexdigest()
    results = await asyncio.gather(*(fleet.prompt_sync(loading_workflow("a.png", f"p{number}")) for number in range(6)))
    for status, result in results:
        assert status == 200
        assert await result_color(fleet, result) == (255, 0, 0)
    async with fleet.http.post("/prompt", json={"prompt": loading_workflow("a.png", "another")}) as response:
        prompt_id = (await response.json())["prompt_id"]
    entry = await until(lambda: _history(fleet, prompt_id), bool)
    assert entry["prompt"][2]["1"]["inputs"]["image"] == "a.png"
    for one in three_engines:
        files = inputs_of(one)
        if one in three_engines[1:]:
            assert files["a.png"] == BLUE
        assert set(files) <= {"a.png", f"gateway/{digest}/a.png"}
        assert files.get(f"gateway/{digest}/a.png", RED) == RED


async def _history(gateway: RunningGateway, prompt_id: str) -> dict[str, Any]:
    async with gateway.http.get(f"/history/{prompt_id}") as response:
        found: dict[str, Any] = (await response.json()).get(prompt_id, {})
        return found


async def test_a_file_of_the_first_server_already_has_its_name(
    fleet: RunningGateway, three_engines: list[Engine]
) -> None:
    (three_engines[0].folders.input / "example.png").write_bytes(BLUE)
    assert (await upload(fleet, "example.png", RED))[1]["name"] == "example (1).png"
    assert (await upload(fleet, "example.png", BLUE))[1]["name"] == "example.png"
    assert (await upload(fleet, "example.png", GREEN, overwrite="true"))[1]["name"] == "example.png"
    _, result = await fleet.prompt_sync(loading_workflow("example.png"))
    assert await result_color(fleet, result) == (0, 255, 0)


async def test_a_queued_prompt_reads_the_file_that_has_the_name_when_it_runs(three_engines: list[Engine]) -> None:
    """ComfyUI does the same: it reads a file when it executes the node."""
    async with running_gateway(three_engines[0].url, three_engines[1].url) as gateway:
        await upload(gateway, "a.png", RED)
        async with gateway.http.post("/queue/pause") as response:
            assert response.status == 200
        prompt_id = await submit(gateway.http, loading_workflow("a.png"))
        await upload(gateway, "a.png", BLUE, overwrite="true")
        async with gateway.http.post("/queue/resume") as response:
            assert response.status == 200
        async with gateway.http.get(f"/prompt_sync/{prompt_id}") as response:
            assert await result_color(gateway, await response.json()) == (0, 0, 255)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("../a.png", {}),
        ("..", {}),
        ("a.png", {"subfolder": "../x"}),
        ("a.png", {"subfolder": "/etc"}),
        ("a.png", {"subfolder": "a/../../x"}),
        ("a.png", {"subfolder": "..\\x"}),
        ("a.png", {"subfolder": "a\0b"}),
        ("a" * 256, {}),
        ("a.png", {"type": "models"}),
    ],
)
async def test_an_unusable_name_for_an_upload_is_refused(
    fleet: RunningGateway, name: str, fields: dict[str, str]
) -> None:
    status, answer = await upload(fleet, name, RED, **fields)
    assert status == 400, answer
    assert "image" in answer or "type" in answer
    assert fleet.handler.uploads.catalogue.names("") == []


async def test_an_invalid_form_gets_comfyuis_status(fleet: RunningGateway) -> None:
    assert (await fetch(fleet, "/upload/image", "POST", json={})).status == 400
    form = aiohttp.FormData()
    form.add_field("other", RED, filename="a.png")
    assert (await fetch(fleet, "/upload/image", "POST", data=form)).status == 400
    assert (await upload(fleet, "", RED))[0] == 400


async def test_a_name_that_was_never_uploaded_is_refused(fleet: RunningGateway) -> None:
    await upload(fleet, "a.png", RED)
    async with fleet.http.post("/prompt", json={"prompt": loading_workflow("b.png")}) as response:
        assert response.status == 400
        answer = await response.json()
    assert answer["node_errors"]["1"]["errors"][0]["type"] == "custom_validation_failed"
    async with fleet.http.post("/prompt", json={"prompt": loading_workflow("a.png")}) as response:
        assert response.status == 200, await response.text()
    async with fleet.http.post("/validate", json={"prompt": loading_workflow("a.png")}) as response:
        assert (await response.json())["valid"] is True


@pytest.mark.parametrize(("name", "subfolder"), [("a...b.png", ""), ("a.png", "windows\\folder")])
async def test_a_prompt_can_use_an_upload_with_an_odd_name(fleet: RunningGateway, name: str, subfolder: str) -> None:
    """ComfyUI stores and reads a file whose name has two dots in a row, but does not show it."""
    status, answer = await upload(fleet, name, RED, subfolder=subfolder)
    assert (status, answer["name"]) == (200, name)
    status, result = await fleet.prompt_sync(loading_workflow("/".join(filter(None, (answer["subfolder"], name)))))
    assert status == 200, result
    assert await result_color(fleet, result) == (255, 0, 0)


@pytest.mark.parametrize(("name", "subfolder"), [(f"{'ä' * 126}.png", ""), ("a.png", f"b/{'c' * 256}")])
async def test_a_name_that_is_too_long_for_a_disk_is_refused_at_once(
    fleet: RunningGateway, name: str, subfolder: str
) -> None:
    status, answer = await upload(fleet, name, RED, subfolder=subfolder)
    assert status == 400
    assert "255 bytes" in answer


# Owners


async def test_each_key_has_its_own_file_of_the_same_name(owned_fleet: Calls, three_engines: list[Engine]) -> None:
    for key, content in ((ALICE, RED), (BOB, BLUE), (ROOT, GREEN)):
        assert (await upload(owned_fleet.gateway, "a.png", content, key))[1] == {
            "name": "a.png",
            "subfolder": "",
            "type": "input",
        }
    for key, color in ((ALICE, (255, 0, 0)), (BOB, (0, 0, 255)), (ROOT, (0, 255, 0))):
        status, result = await owned_fleet.submit(key, loading_workflow("a.png"), return_image_base64=True)
        assert status == 200, result
        found = await fetch(owned_fleet.gateway, result["images"][0]["url"], headers=bearer(key))
        assert color_of(found.body) == color
        assert color_of((await view(owned_fleet.gateway, key, filename="a.png", type="input")).body) == color
    # On the servers, a key's private file has no name that a workflow of another key could use.
    assert all(files.get("a.png", GREEN) == GREEN for files in map(inputs_of, three_engines))
    theirs = await view(owned_fleet.gateway, ROOT, filename="a.png", subfolder="keys/alice", type="input")
    assert theirs.body == RED
    assert (await view(owned_fleet.gateway, BOB, filename="a.png", subfolder="keys/alice", type="input")).status == 404
    assert (await upload(owned_fleet.gateway, "a.png", RED, WATCHER))[0] == 403


async def test_no_caller_can_read_another_keys_upload(owned_fleet: Calls, three_engines: list[Engine]) -> None:
    await upload(owned_fleet.gateway, "secret.png", RED, ALICE)
    await owned_fleet.submit(ALICE, loading_workflow("secret.png"))
    placed = f"gateway/{hashlib.sha256(RED).hexdigest()}/secret.png"
    assert any(placed in inputs_of(one) for one in three_engines)
    for name in ("secret.png", "keys/alice/secret.png", placed, f"{placed} [input]", "./secret.png", "x/../secret.png"):
        status, answer = await owned_fleet.submit(BOB, loading_workflow(name))
        assert (status, answer["type"]) == (400, "validation_failed"), name
        assert "missing" not in str(answer["node_errors"])
        assert (await view(owned_fleet.gateway, BOB, filename=name, type="input")).status == 404, name
    ref = json.dumps({"filename": "secret.png", "subfolder": "", "type": "input"})
    status, _ = await upload(owned_fleet.gateway, "m.png", RED, BOB, path="/upload/mask", original_ref=ref)
    assert status == 400
    assert await (await owned_fleet.gateway.http.get("/internal/files/input", headers=bearer(BOB))).json() == []
    assert await (await owned_fleet.gateway.http.get("/internal/files/input", headers=bearer(ALICE))).json() == [
        "secret.png"
    ]
    for folder in ("output", "temp"):
        answer = await owned_fleet.gateway.http.get(f"/internal/files/{folder}", headers=bearer(BOB))
        assert await answer.json() == []


async def test_a_text_that_names_an_upload_means_the_callers_own(
    owned_fleet: Calls, three_engines: list[Engine]
) -> None:
    """A node may take a file name as plain text, and the server may have another file with that name."""
    for engine in three_engines:
        (engine.folders.input / "a.png").write_bytes(GREEN)
    await upload(owned_fleet.gateway, "a.png", RED, ALICE)
    shows = {"1": {"class_type": "PreviewAny", "inputs": {"source": "a.png [input]"}}}
    status, answer = await owned_fleet.submit(ALICE, shows)
    assert status == 200, answer
    placed = f"gateway/{hashlib.sha256(RED).hexdigest()}/a.png"
    assert answer["outputs"]["1"]["text"] == [placed]
    assert any(inputs_of(engine).get(placed) == RED for engine in three_engines)
    status, answer = await owned_fleet.submit(BOB, shows)
    assert (status, answer["type"]) == (400, "validation_failed")


async def test_a_wrapped_name_of_an_upload_does_not_reach_a_servers_file(
    owned_fleet: Calls, three_engines: list[Engine]
) -> None:
    """ComfyUI unwraps `__value__`, and would read its own file with that name."""
    for engine in three_engines:
        (engine.folders.input / "a.png").write_bytes(GREEN)
    await upload(owned_fleet.gateway, "a.png", RED, ALICE)
    workflow = loading_workflow("a.png") | {
        "5": {"class_type": "LoadImage", "inputs": {"image": {"__value__": "a.png"}}},
        "6": {"class_type": "SaveImage", "inputs": {"images": ["5", 0], "filename_prefix": "wrapped"}},
    }
    status, answer = await owned_fleet.submit(ALICE, workflow)
    assert (status, answer["type"], list(answer["node_errors"])) == (400, "validation_failed", ["5"])


@pytest.mark.parametrize("path", ["/object_info", "/api/object_info/LoadImage"])
async def test_object_info_lists_the_callers_own_uploads(owned_fleet: Calls, path: str) -> None:
    await upload(owned_fleet.gateway, "mine.png", RED, ALICE)
    await upload(owned_fleet.gateway, "shared.png", RED, ROOT)
    for key, names in ((ALICE, ["mine.png"]), (BOB, []), (ROOT, ["shared.png"]), (WATCHER, ["shared.png"])):
        _, found = await owned_fleet.call(key, "GET", path)
        assert found["LoadImage"]["input"]["required"]["image"][0] == names
    await upload(owned_fleet.gateway, "newer.png", RED, ALICE)
    _, found = await owned_fleet.call(ALICE, "GET", path)
    assert found["LoadImage"]["input"]["required"]["image"][0] == ["mine.png", "newer.png"]


async def test_a_single_server_with_keys_lists_uploads_too(engine: Engine, keys_path: Path) -> None:
    async with running_gateway(engine.url, keys_file=keys_path) as gateway:
        (engine.folders.input / "there.png").write_bytes(BLUE)
        await upload(gateway, "a.png", RED, ROOT)
        _, found = await Calls(gateway).call(ROOT, "GET", "/object_info/LoadImage")
        assert found["LoadImage"]["input"]["required"]["image"][0] == ["a.png", "there.png"]
        answer = await gateway.http.get("/internal/files/input", headers=bearer(ROOT))
        assert await answer.json() == ["a.png", "there.png"]


# Masks


async def _masked(
    gateway: RunningGateway, ref: Any, mask: bytes, name: str = "m.png", **fields: str
) -> tuple[int, Any]:
    answer = ref if isinstance(ref, str) else json.dumps(ref)
    return await upload(gateway, name, mask, path="/upload/mask", original_ref=answer, **fields)


async def test_a_mask_is_applied_to_its_original_wherever_that_is(
    fleet: RunningGateway, three_engines: list[Engine]
) -> None:
    mask = picture((0, 0, 0, 77), "RGBA")
    await upload(fleet, "a.png", RED)
    _, result = await fleet.prompt_sync(loading_workflow("a.png", "sub/made"))
    merged = {name: result["images"][0][name] for name in ("filename", "subfolder", "type")}
    assert merged["subfolder"] == f"{result['prompt_id']}/sub"
    refs = [{"filename": "a.png", "subfolder": "", "type": "input"}, {"filename": "a.png [input]"}, merged]
    for number, ref in enumerate([*refs, {**merged, "subfolder": "sub"}]):
        status, answer = await _masked(fleet, ref, mask, f"m{number}.png", subfolder="clipspace")
        assert (status, answer) == (200, {"name": f"m{number}.png", "subfolder": "clipspace", "type": "input"}), ref
        found = await view(fleet, filename=f"m{number}.png", subfolder="clipspace", type="input")
        with Image.open(io.BytesIO(found.body)) as image:
            assert (image.mode, image.getpixel((0, 0))) == ("RGBA", (255, 0, 0, 77))
    status, result = await fleet.prompt_sync(loading_workflow("clipspace/m0.png [input]", "with mask"))
    assert status == 200, result
    # ComfyUI compares the stored picture with the mask alone; they always differ, so the new name gets a number.
    assert (await _masked(fleet, refs[0], mask, "m0.png", subfolder="clipspace"))[1]["name"] == "m0 (1).png"
    assert (await _masked(fleet, refs[0], mask, "m0.png", subfolder="clipspace", overwrite="true"))[1][
        "name"
    ] == "m0.png"
    others = {path for one in three_engines for path in inputs_of(one) if not path.startswith("gateway/")}
    assert others == {"a.png", "clipspace/m0.png"}, "only files that a prompt named"


@pytest.mark.parametrize(
    "ref",
    [
        {"filename": "nothing.png", "type": "input"},
        {"filename": "../a.png", "type": "input"},
        {"filename": "a.png", "subfolder": "00000000-0000-4000-8000-000000000000", "type": "output"},
        {"filename": ""},
        {"filename": 5, "type": "input"},
        {"filename": "a.png", "subfolder": 7, "type": ["input"]},
        {"type": "input"},
        "no JSON",
        "[]",
    ],
)
async def test_a_mask_of_an_unknown_original_is_refused(fleet: RunningGateway, ref: Any) -> None:
    status, answer = await _masked(fleet, ref, picture((0, 0, 0, 1), "RGBA"))
    assert status == 400
    assert "original_ref" in answer
    assert (await view(fleet, filename="m.png", type="input")).status == 404


async def test_a_mask_that_is_no_picture_is_refused(fleet: RunningGateway) -> None:
    await upload(fleet, "a.png", RED)
    status, answer = await _masked(fleet, {"filename": "a.png", "type": "input"}, b"no picture")
    assert (status, "picture" in answer) == (400, True)


# Limits and restarts


async def test_old_uploads_make_room_unless_a_job_needs_them(three_engines: list[Engine]) -> None:
    async with running_gateway(three_engines[0].url, three_engines[1].url, max_stored_inputs_mb=0.01) as gateway:
        async with gateway.http.post("/queue/pause") as response:
            assert response.status == 200
        needed = picture((1, 2, 3)) + b"x" * 3000
        await upload(gateway, "needed.png", needed)
        prompt_id = await submit(gateway.http, loading_workflow("needed.png"))
        for number in range(8):
            status, answer = await upload(gateway, f"{number}.png", picture((number, 9, 9)) + bytes([number]) * 3000)
            assert status == 200, answer
        names = gateway.handler.uploads.catalogue.names("")
        assert "needed.png" in names
        assert "7.png" in names
        assert "0.png" not in names
        async with gateway.http.post("/queue/resume") as response:
            assert response.status == 200
        async with gateway.http.get(f"/prompt_sync/{prompt_id}") as response:
            assert await result_color(gateway, await response.json()) == (1, 2, 3)
        status, answer = await upload(gateway, "large.png", bytes(20_000))
        assert (status, answer["type"]) == (413, "limit_exceeded"), answer


async def test_the_upload_limit_counts_the_whole_form(three_engines: list[Engine]) -> None:
    async with running_gateway(three_engines[0].url, three_engines[1].url, max_upload_mb=0.01) as gateway:
        assert (await upload(gateway, "a.png", bytes(9_000)))[0] == 200
        status, answer = await upload(gateway, "a.png", bytes(11_000))
        assert (status, answer["type"]) == (413, "body_too_large")
        assert "MAX_UPLOAD_MB" in answer["detail"]


async def test_a_restart_keeps_the_names_of_uploads_whose_bytes_still_exist(
    three_engines: list[Engine], tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"state_dir": tmp_path / "state"}
    async with running_gateway(three_engines[0].url, three_engines[1].url, **settings) as gateway:
        for name, content in (("a.png", RED), ("b.png", BLUE)):
            assert (await upload(gateway, name, content))[0] == 200
    (tmp_path / "state/inputs" / hashlib.sha256(BLUE).hexdigest()).unlink()
    async with running_gateway(three_engines[0].url, three_engines[1].url, **settings) as gateway:
        _, result = await gateway.prompt_sync(loading_workflow("a.png"))
        assert await result_color(gateway, result) == (255, 0, 0)
        assert (await gateway.prompt_sync(loading_workflow("b.png")))[0] == 400
        assert (await upload(gateway, "a.png", GREEN))[1]["name"] == "a (1).png"
        assert (await upload(gateway, "b.png", GREEN))[1]["name"] == "b.png"
        await until(lambda: _swept(gateway), lambda swept: swept)


async def _swept(gateway: RunningGateway) -> bool:
    await gateway.handler.uploads.sweep()
    return {"a.png", "a (1).png", "b.png"} <= set(gateway.handler.uploads.catalogue.names(""))


async def test_a_file_that_a_server_lost_is_placed_there_again(engine: Engine) -> None:
    """The input folder of a running ComfyUI may be cleaned: the gateway still has the bytes."""
    async with running_gateway(engine.url, queue="gateway") as gateway:
        assert (await upload(gateway, "kept.png", RED))[0] == 200
        images = [{"name": "given.png", "image": base64.b64encode(RED).decode()}]
        for run in ("first", "second"):
            status, result = await gateway.prompt_sync(loading_workflow("kept.png", run))
            assert status == 200, result
            status, result = await gateway.prompt_sync(loading_workflow("given.png", run), images=images)
            assert status == 200, result
            for file in inputs_of(engine):
                (engine.folders.input / file).unlink()
        assert (await gateway.prompt_sync(loading_workflow("unknown.png")))[0] == 400
