"""What a server says about itself, and what it stores for its frontend."""

from __future__ import annotations

import asyncio
import os
import uuid
from typing import Any

import aiohttp
import pytest

from tests.support.target import Target, any_color, inverted, slow

_DEPENDS_ON_FILES = {
    *("image", "ckpt_name", "lora_name", "unet_name", "vae_name", "clip_name", "clip_name1", "clip_name2")
}
_SIMULATION_ONLY = {"SimulatedOutput", "SimulatedSleep", "SimulatedError", "SimulatedCrash"}
# Classes of a node pack that the real ComfyUI may lack.
_OF_A_PACK = {"VHS_LoadVideo", "VHS_VideoCombine"}


def without_prose(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_prose(one) for key, one in value.items() if key != "tooltip"}
    return [without_prose(one) for one in value] if isinstance(value, list) else value


def comparable(info: dict[str, Any]) -> dict[str, Any]:
    """An /object_info entry without prose and without choices that depend on the server's files."""
    kept = {key: value for key, value in info.items() if key not in ("description", "output_tooltips")}
    kept["input"] = without_prose(kept["input"])
    for spec in kept["input"].get("required", {}).items():
        if spec[0] in _DEPENDS_ON_FILES and isinstance(spec[1][0], list):
            spec[1][0] = "choices"
            del spec[1][2:]
            if spec[1][1:] == [{}]:
                del spec[1][1]
    return kept


@pytest.mark.real
async def test_the_engine_declares_its_nodes_as_a_real_comfyui_does(engine_info: dict[str, Any]) -> None:
    url = os.environ.get("COMFYUI_TEST_URL")
    if not url:
        pytest.skip("COMFYUI_TEST_URL does not name a real ComfyUI")
    async with aiohttp.ClientSession(url) as session, session.get("/object_info") as response:
        real = await response.json()
    assert set(engine_info) - set(real) - _OF_A_PACK == _SIMULATION_ONLY
    for name in set(engine_info) - _SIMULATION_ONLY - _OF_A_PACK:
        assert comparable(engine_info[name]) == comparable(real[name]), name


async def test_object_info_can_be_limited_to_one_class(target: Target) -> None:
    everything = await target.get_json("/object_info")
    assert await target.get_json("/object_info/SaveImage") == {"SaveImage": everything["SaveImage"]}
    assert await target.get_json("/api/object_info/NoSuchNode") == {}


async def test_an_uploaded_picture_is_among_the_choices(target: Target) -> None:
    from PIL import Image

    name = f"{uuid.uuid4().hex}.png"
    await target.upload(Image.new("RGB", (4, 4)), name)
    info = await target.get_json("/object_info/LoadImage")
    choices, options = info["LoadImage"]["input"]["required"]["image"]
    assert name in choices
    assert choices == sorted(choices)
    assert options["image_upload"] is True


async def test_system_stats_has_versions_and_devices(target: Target) -> None:
    stats = await target.get_json("/system_stats")
    assert stats["system"]["comfyui_version"] == target.version
    assert {"os", "ram_total", "ram_free", "python_version", "pytorch_version", "argv"} <= set(stats["system"])
    assert {"name", "type", "vram_total", "vram_free"} <= set(stats["devices"][0])
    assert target.is_real or stats["system"]["simulation"] is True


@pytest.mark.parametrize("path", ["/features", "/embeddings", "/models", "/extensions", "/i18n", "/workflow_templates"])
async def test_frontend_routes_answer_json_with_and_without_the_api_prefix(target: Target, path: str) -> None:
    assert type(await target.get_json(path)) is type(await target.get_json(f"/api{path}"))


async def test_models_are_listed_by_folder(target: Target) -> None:
    folders = await target.get_json("/models")
    assert {"checkpoints", "loras", "vae"} <= set(folders)
    assert isinstance(await target.get_json("/models/checkpoints"), list)
    async with target.session.get("/models/nothing") as response:
        assert response.status == 404


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing/here", 404),
        ("POST", "/nothing/here", 405),
        ("DELETE", "/queue", 405),
        ("GET", "/interrupt", 404),
        ("OPTIONS", "/queue", 200),
        ("GET", "/", 200),
    ],
)
async def test_unknown_paths_and_methods_have_comfyuis_status(
    target: Target, method: str, path: str, status: int
) -> None:
    async with target.session.request(method, path) as response:
        assert response.status == status


async def test_internal_routes_have_comfyuis_shapes(target: Target) -> None:
    assert isinstance(await target.get_json("/internal/logs"), str)
    raw = await target.get_json("/internal/logs/raw")
    assert set(raw) == {"entries", "size"}
    assert isinstance(await target.get_json("/internal/folder_paths"), dict)
    assert isinstance(await target.get_json("/internal/files/output"), list)
    async with target.session.get("/internal/files/elsewhere") as response:
        assert (response.status, await response.json()) == (400, {"error": "Invalid directory type"})


async def test_settings_can_be_stored_one_by_one_and_together(target: Target) -> None:
    key, other = f"contract.{uuid.uuid4().hex}", f"contract.{uuid.uuid4().hex}"
    assert await target.get_json(f"/settings/{key}") is None
    async with target.session.post(f"/settings/{key}", json={"deep": [1]}) as response:
        assert response.status == 200
    async with target.session.post("/settings", json={other: True}) as response:
        assert response.status == 200
    assert await target.get_json(f"/api/settings/{key}") == {"deep": [1]}
    settings = await target.get_json("/settings")
    assert (settings[key], settings[other]) == ({"deep": [1]}, True)


async def test_users_are_stored_on_the_server(target: Target) -> None:
    assert await target.get_json("/users") == {"storage": "server", "migrated": True}


async def test_user_files_are_written_listed_read_moved_and_deleted(target: Target) -> None:
    folder = f"contract-{uuid.uuid4().hex}"
    path = f"{folder}%2Fdeep%2Fone.json"
    async with target.session.post(f"/userdata/{path}", data=b"[1]") as response:
        assert (response.status, await response.json()) == (200, f"{folder}/deep/one.json")
    async with target.session.get(f"/api/userdata/{path}") as response:
        assert await response.read() == b"[1]"
    listed = await target.get_json(f"/userdata?dir={folder}&recurse=true&split=true")
    assert listed == [["deep/one.json", "deep", "one.json"]]
    assert await target.get_json(f"/userdata?dir={folder}") == []
    (info,) = await target.get_json(f"/userdata?dir={folder}&recurse=true&full_info=true")
    assert (info["path"], info["size"]) == ("deep/one.json", 3)
    assert {"modified", "created"} <= set(info)
    entries = await target.get_json(f"/v2/userdata?path={folder}")
    assert [(entry["path"], entry["type"]) for entry in entries] == [
        (f"{folder}/deep", "directory"),
        (f"{folder}/deep/one.json", "file"),
    ]
    target_path = f"{folder}%2Ftwo.json"
    async with target.session.post(f"/userdata/{path}/move/{target_path}?full_info=true") as response:
        assert (await response.json())["path"] == f"{folder}/two.json"
    async with target.session.post(f"/userdata/{target_path}?overwrite=false", data=b"2") as response:
        assert (response.status, await response.text()) == (409, "File already exists")
    async with target.session.delete(f"/userdata/{target_path}") as response:
        assert response.status == 204
    async with target.session.get(f"/userdata/{target_path}") as response:
        assert (response.status, await response.read()) == (404, b"")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/userdata", 400),
        ("GET", "/userdata?dir=..%2F..", 403),
        ("GET", "/userdata?dir=nothing-here", 404),
        ("GET", "/userdata/..%2F..%2Fmain.py", 403),
        ("GET", "/userdata/%252e%252e%252fusers.json", 403),
        ("POST", "/userdata/..%2Fx", 403),
        ("DELETE", "/userdata/nothing-here", 404),
        ("GET", "/v2/userdata?path=nothing-here", 404),
    ],
)
async def test_invalid_or_missing_user_files_are_refused(target: Target, method: str, path: str, status: int) -> None:
    from yarl import URL

    async with target.session.request(method, URL(path, encoded=True)) as response:
        assert response.status == status


async def test_only_a_modern_comfyui_has_jobs(target: Target) -> None:
    run = await target.run(inverted(target.prefix, color=any_color()))
    async with target.session.get(f"/api/jobs/{run.prompt_id}") as response:
        if not target.is_modern:
            assert response.status == 404
            return
        job = await response.json()
    assert (job["id"], job["status"], job["outputs_count"]) == (run.prompt_id, "completed", 1)
    assert job["outputs"] == run.entry["outputs"]
    assert job["preview_output"]["nodeId"] == "3"
    assert job["workflow"]["prompt"] == run.entry["prompt"][2]
    listed = await target.get_json("/api/jobs?status=completed&limit=1")
    assert [one["id"] for one in listed["jobs"]] == [run.prompt_id]
    assert listed["pagination"]["limit"] == 1
    async with target.session.get(f"/api/jobs/{uuid.uuid4()}") as response:
        assert (response.status, await response.json()) == (404, {"error": "Job not found"})
    async with target.session.get("/api/jobs?status=odd") as response:
        assert response.status == 400


async def test_cancelling_a_job_dequeues_or_interrupts_it(target: Target) -> None:
    if not target.is_modern:
        pytest.skip("a ComfyUI before 0.38 has no jobs")

    async def cancel(job_id: str) -> Any:
        async with target.session.post(f"/api/jobs/{job_id}/cancel") as response:
            assert response.status == 200
            return await response.json()

    async with target.socket() as socket:
        _, running = await target.submit(slow(target.prefix), client_id=socket.client_id)
        await socket.until("executing", node="2")
        _, pending = await target.submit(inverted(target.prefix))
        assert (await target.get_json(f"/api/jobs/{pending['prompt_id']}"))["status"] == "pending"
        assert (await target.get_json(f"/api/jobs/{running['prompt_id']}"))["status"] == "in_progress"
        assert await cancel(pending["prompt_id"]) == {"cancelled": True}
        assert await cancel(running["prompt_id"]) == {"cancelled": True}
        assert await cancel(str(uuid.uuid4())) == {"cancelled": False}
        await socket.until_done(running["prompt_id"])
    assert await cancel(running["prompt_id"]) == {"cancelled": False}
    assert (await target.get_json(f"/api/jobs/{running['prompt_id']}"))["status"] == "cancelled"
    assert await target.history(pending["prompt_id"]) == {}


async def test_many_requests_at_once_are_answered(target: Target) -> None:
    answers = await asyncio.gather(*(target.get_json("/prompt") for _ in range(50)))
    assert all("exec_info" in answer for answer in answers)


async def test_userdata_refuses_names_that_are_too_long(target: Target) -> None:
    path = f"/userdata/{'a' * 3000}"
    for method, status in (("GET", 404), ("DELETE", 404), ("POST", 400)):
        async with target.session.request(method, path, data=b"1" if method == "POST" else None) as response:
            assert response.status == status, method
