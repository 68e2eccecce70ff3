"""Files of a user's key: `/view` and the node definitions show the key's own files only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from comfyui.engine import Engine
from tests.support.calls import Calls
from tests.support.jobs import ASYNC
from tests.support.keys import ALICE, BOB, ROOT, WATCHER, bearer
from tests.support.relaying import fetch
from tests.support.running import engines, invert_workflow, queue_of, running_gateway, sleep_workflow, until


async def _view(calls: Calls, key: str, query: str, **headers: str) -> Any:
    return await fetch(calls.gateway, f"/view?{query}", headers={**bearer(key), **headers})


@pytest.mark.parametrize("prefer", [{}, {"Prefer": "respond-async"}], ids=["sync", "async"])
async def test_a_key_opens_the_files_of_its_own_jobs(calls: Calls, prefer: dict[str, str]) -> None:
    prompt_id = (await calls.submit(ALICE, invert_workflow(1, prefix="a/b"), prefer))[1]["prompt_id"]
    _, job = await calls.call(ALICE, "GET", f"/prompt_sync/{prompt_id}")
    query = job["images"][0]["url"].partition("?")[2]
    found = await _view(calls, ALICE, query)
    assert (found.status, found.body[:4]) == (200, b"\x89PNG")
    assert (await _view(calls, ALICE, query, Range="bytes=0-3")).body == b"\x89PNG"
    assert (await fetch(calls.gateway, f"/api/view?{query}", headers=bearer(ALICE))).status == 200
    assert (await _view(calls, ALICE, f"{query}&preview=webp;90")).headers["Content-Type"] == "image/webp"
    assert [(await _view(calls, key, query)).status for key in (BOB, ROOT, WATCHER)] == [404, 200, 200]


async def test_two_keys_with_the_same_cached_picture_both_open_it(calls: Calls) -> None:
    for key in (ALICE, BOB):
        _, job = await calls.submit(key, invert_workflow(1))
        assert (await _view(calls, key, job["images"][0]["url"].partition("?")[2])).status == 200


async def test_a_file_is_read_only_from_the_server_that_made_it(keys_path: Path) -> None:
    async with engines(2) as servers, running_gateway(*(one.url for one in servers), keys_file=keys_path) as gateway:
        calls = Calls(gateway)
        await calls.submit(ROOT, sleep_workflow(600), ASYNC)
        busy = await until(lambda: _busy_servers(*servers), lambda found: len(found) == 1)
        (free,) = (one for one in servers if one not in busy)
        _, job = await calls.submit(ALICE, invert_workflow(1, prefix="same"))
        name, query = job["images"][0]["filename"], job["images"][0]["url"].partition("?")[2]
        assert (free.folders.output / name).exists()
        (busy[0].folders.output / name).write_bytes(b"another's")
        assert (await _view(calls, ALICE, query)).body == (free.folders.output / name).read_bytes()
        assert (await _view(calls, BOB, query)).status == 404
        # When the file is deleted there, it is not read from the other server, either.
        (free.folders.output / name).unlink()
        assert (await _view(calls, ALICE, query)).status == 404


async def _busy_servers(*servers: Engine) -> list[Engine]:
    """The servers that run a prompt: the first prompt goes to the server whose node definitions came first."""
    return [server for server in servers if (await queue_of(server))[0]]


async def test_a_reused_file_name_belongs_to_the_key_whose_job_made_the_file_last(calls: Calls, engine: Engine) -> None:
    _, first = await calls.submit(ALICE, invert_workflow(1, prefix="same"))
    (engine.folders.output / first["images"][0]["filename"]).unlink()
    _, second = await calls.submit(BOB, invert_workflow(2, prefix="same"))
    assert first["images"][0]["filename"] == second["images"][0]["filename"]
    query = second["images"][0]["url"].partition("?")[2]
    assert [(await _view(calls, key, query)).status for key in (ALICE, BOB)] == [404, 200]


async def test_no_spelling_of_a_name_opens_another_keys_file(calls: Calls, engine: Engine) -> None:
    _, theirs = await calls.submit(BOB, invert_workflow(1))
    _, mine = await calls.submit(ALICE, invert_workflow(2))
    name, own = theirs["images"][0]["filename"], mine["images"][0]["filename"]
    for folder in ("keys/bob", "keys/alice"):
        path = engine.folders.input / folder
        path.mkdir(parents=True)
        (path / "photo.png").write_bytes(folder.encode())
    for query in (
        {"filename": name},
        {"filename": f"{name} [output]", "type": "input", "subfolder": "keys/alice"},
        {"filename": f"{own} [output]"},
        {"filename": f"x/../{name}"},
        {"filename": f"keys/alice/{name}"},
        {"filename": "photo.png", "type": "input", "subfolder": "keys/bob"},
        {"filename": "photo.png", "type": "input", "subfolder": "keys/alice/../bob"},
        {"filename": "photo.png", "type": "input", "subfolder": "keys//alice"},
        {"filename": "../bob/photo.png", "type": "input", "subfolder": "keys/alice"},
        {"filename": "..\\bob\\photo.png", "type": "input", "subfolder": "keys/alice"},
        {"filename": "photo.png", "type": "input", "subfolder": "keys/alicex"},
        {"filename": "photo.png", "type": "output", "subfolder": "keys/alice"},
        {"filename": own, "type": "temp"},
        {"type": "input", "subfolder": "keys/alice"},
        {},
    ):
        assert (await _view(calls, ALICE, urlencode(query))).status == 404, query
    # If a parameter is given twice, the same value is checked and sent to ComfyUI.
    assert (await _view(calls, ALICE, f"filename={name}&filename={own}")).status == 404
    twice = await _view(calls, ALICE, f"filename={own}&filename={name}")
    assert twice.body == (await _view(calls, ALICE, f"filename={own}")).body
    opened = await _view(calls, ALICE, urlencode({"filename": "photo.png", "type": "input", "subfolder": "keys/alice"}))
    assert opened.body == b"keys/alice"


async def test_folders_in_a_name_never_lead_to_another_keys_file(calls: Calls, engine: Engine) -> None:
    """ComfyUI reads the last part of the name: `theirs` + `x/same.png` is `theirs/same.png`, and not `theirs/x/…`."""
    _, theirs = await calls.submit(BOB, invert_workflow(1, prefix="theirs/same"))
    _, mine = await calls.submit(ALICE, invert_workflow(2, prefix="theirs/x/same"))
    name = theirs["images"][0]["filename"]
    assert mine["images"][0]["filename"] == name
    (engine.folders.input / "keys").mkdir(exist_ok=True)
    (engine.folders.input / "keys" / "photo.png").write_bytes(b"of no key")
    for query in (
        {"filename": f"x/{name}", "subfolder": "theirs"},
        {"filename": f"x/{name}", "subfolder": f"{mine['prompt_id']}/theirs"},
        {"filename": "alice/photo.png", "subfolder": "keys", "type": "input"},
    ):
        assert (await _view(calls, ALICE, urlencode(query))).status == 404, query
    own = (engine.folders.output / "theirs" / "x" / name).read_bytes()
    for folder in ("theirs/x", f"{mine['prompt_id']}/theirs/x"):
        # If the last part names a file of the key, it is opened, as in ComfyUI.
        for given in (name, f"any/{name}"):
            query = {"filename": given, "subfolder": folder}
            found = await _view(calls, ALICE, urlencode(query))
            # With one server, the id is taken as a folder, which ComfyUI does not have.
            assert (found.status, found.body) == (200, own), query


# Node definitions


@pytest.mark.parametrize("prefix", ["", "/api"])
async def test_node_definitions_hide_files_that_are_not_the_keys_own(calls: Calls, engine: Engine, prefix: str) -> None:
    (engine.folders.input / "secret-plan.png").write_bytes(b"x")
    for path in (f"{prefix}/object_info", f"{prefix}/object_info/LoadImage"):
        status, seen = await calls.call(ROOT, "GET", path)
        assert "secret-plan.png" in json.dumps(seen)
        status, mine = await calls.call(ALICE, "GET", path)
        assert status == 200
        assert "secret-plan" not in json.dumps(mine)
        assert mine.keys() == seen.keys()
        assert mine["LoadImage"]["input"]["required"]["image"][0] == []
        assert mine["LoadImage"]["output"] == seen["LoadImage"]["output"]
    assert (await calls.call(ALICE, "GET", "/object_info/NoSuchNode"))[1] == {}
    _, all_of_it = await calls.call(ALICE, "GET", "/object_info")
    _, of_admin = await calls.call(ROOT, "GET", "/object_info")
    assert all_of_it["KSampler"] == of_admin["KSampler"]
    assert all_of_it["CheckpointLoaderSimple"] == of_admin["CheckpointLoaderSimple"]
