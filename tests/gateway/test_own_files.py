"""A user's workflow reads files of its request and of its key, but no other files in ComfyUI's folders."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest

from comfyui.engine import Engine
from comfyui.jobs.queue_options import QueueOptions
from tests.support.calls import Calls
from tests.support.keys import ALICE, BOB, ROOT, bearer
from tests.support.relaying import eventually
from tests.support.running import executions, handler_options, running_gateway, sleep_workflow, until

_PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
_ASYNC = {"Prefer": "respond-async"}


def _load(name: Any, class_type: str = "LoadImage", widget: str = "image") -> dict[str, Any]:
    return {
        "1": {"class_type": class_type, "inputs": {widget: name}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "test"}},
    }


def _put(engine: Engine, path: str) -> None:
    """Puts a file into ComfyUI's input folder, past the gateway."""
    file = engine.folders.input / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(_PNG)


@pytest.mark.parametrize(
    "name",
    [
        *(
            "secret.png",
            "secret.png [input]",
            " secret.png",
            "secret.png[input]",
            "keys/bob/x.png",
            "keys/alice/../bob/x.png",
        ),
        *("keys/alice/../../secret.png", "keys\\alice\\..\\bob\\x.png", "keys/alice", "keys/alicex/a.png"),
        *(
            "test_00001_.png [output]",
            "x.png [temp]",
            "keys/alice/x.png [output]",
            "/etc/passwd",
            "nothing.png",
            ["secret.png"],
        ),
    ],
)
async def test_a_file_of_another_key_is_refused_like_a_missing_file(calls: Calls, engine: Engine, name: Any) -> None:
    _put(engine, "secret.png")
    _put(engine, "keys/bob/x.png")
    status, told = await calls.submit(ALICE, _load(name))
    _, unknown = await calls.submit(ALICE, _load("nowhere.png"))
    assert (status, told["type"]) == (400, "validation_failed")
    assert (told["detail"], told["node_errors"]) == (unknown["detail"], unknown["node_errors"])
    assert "secret" not in str(told)
    assert executions(engine) == {}
    status, told = await calls.call(ALICE, "POST", "/validate", {"prompt": _load(name)})
    assert (status, told["valid"]) == (200, False)
    assert [problem["code"] for problem in told["problems"]] == ["file_not_own"]
    assert "secret" not in str(told["problems"][0]["closest"])


@pytest.mark.parametrize("brought", ["secret.pngX", "keys/bob/x.pngX"])
async def test_a_suffix_cannot_turn_an_uploaded_name_into_another_keys_file(
    calls: Calls, engine: Engine, brought: str
) -> None:
    """ComfyUI removes `[input]` and the character before it, and would read a file that is not of the request."""
    _put(engine, "secret.png")
    _put(engine, "keys/bob/x.png")
    subfolder, _, name = brought.rpartition("/")
    picture = {"name": name, "subfolder": subfolder, "image": base64.b64encode(_PNG).decode()}
    status, told = await calls.submit(ALICE, _load(f"{brought}[input]"), images=[picture])
    assert (status, told["type"]) == (400, "validation_failed")
    assert executions(engine) == {}


async def test_files_of_the_request_and_files_of_the_key_are_read(calls: Calls, engine: Engine) -> None:
    _put(engine, "keys/alice/x.png")
    picture = base64.b64encode(_PNG).decode()
    for fields in (
        {"workflow": _load("mine.png"), "images": [{"name": "mine.png", "image": picture}]},
        {"workflow": _load("sub/mine.png"), "images": [{"name": "mine.png", "image": picture, "subfolder": "sub"}]},
        {"workflow": _load(f"data:image/png;base64,{picture}")},
        {"workflow": _load("keys/alice/x.png")},
    ):
        workflow = fields.pop("workflow")
        status, told = await calls.submit(ALICE, workflow, **fields)
        assert status == 200, told
        status, told = await calls.call(ALICE, "POST", "/validate", {"prompt": workflow, **fields})
        assert told["valid"], told
    # An admin's workflow may read every file.
    assert (await calls.submit(ROOT, _load("keys/alice/x.png")))[0] == 200


async def test_a_file_with_a_plain_name_is_stored_in_the_keys_own_folder(calls: Calls, engine: Engine) -> None:
    """Some nodes look for a file by its plain name, so the name is kept. It must not replace another key's file."""
    _put(engine, "plain.png")
    before = (engine.folders.input / "plain.png").read_bytes()
    picture = {"name": "plain.png", "image": base64.b64encode(_PNG + b"other").decode()}
    assert (await calls.submit(ALICE, sleep_workflow(0), images=[picture]))[0] == 200
    assert (engine.folders.input / "plain.png").read_bytes() == before
    assert (engine.folders.input / "keys/alice/plain.png").read_bytes() == _PNG + b"other"
    shows = {"1": {"class_type": "PreviewAny", "inputs": {"source": "plain.png"}}}
    status, told = await calls.submit(ALICE, shows, images=[picture])
    assert (status, told["outputs"]["1"]["text"]) == (200, ["keys/alice/plain.png"])


async def test_a_job_that_waited_during_a_restart_cannot_read_foreign_files(
    engine: Engine, keys_path: Path, tmp_path: Path
) -> None:
    held = handler_options(queue=QueueOptions(ahead=0))
    settings: dict[str, Any] = {"keys_file": keys_path, "state_dir": tmp_path / "state"}
    async with running_gateway(engine.url, changed=held, **settings) as gateway:
        calls = Calls(gateway)
        _put(engine, "secret.png")
        job = (await calls.submit(ALICE, _load("secret.png"), _ASYNC))[1]["prompt_id"]
    async with running_gateway(engine.url, **settings) as gateway:
        calls = Calls(gateway)
        status, told = await until(
            lambda: calls.call(ALICE, "GET", f"/prompt_sync/{job}?timeout=0"), lambda answer: answer[0] != 202
        )
    assert (status, told["type"]) == (400, "validation_failed")
    assert executions(engine) == {}


@pytest.mark.parametrize("fields", [{"front": True}, {"number": -5}], ids=["front", "number"])
async def test_number_and_front_of_prompt_sync_pass_only_the_users_own_jobs(
    calls: Calls, engine: Engine, fields: dict[str, Any]
) -> None:
    assert (await calls.call(ROOT, "POST", "/queue/pause"))[0] == 200
    bobs = (await calls.submit(BOB, sleep_workflow(0, tag=1), _ASYNC))[1]["prompt_id"]
    second = (await calls.submit(ALICE, sleep_workflow(0, tag=2), _ASYNC))[1]["prompt_id"]
    first = (await calls.submit(ALICE, sleep_workflow(0, tag=3), _ASYNC, **fields))[1]["prompt_id"]
    assert (await calls.call(ROOT, "POST", "/queue/resume"))[0] == 200
    await eventually(lambda: len(executions(engine)) == 3)
    assert list(executions(engine)) == [bobs, first, second]


async def test_a_users_events_never_go_to_another_users_websocket(calls: Calls) -> None:
    """With the client id of another user, a prompt's events would appear in that user's browser."""
    async with calls.gateway.http.ws_connect("/ws?clientId=roots", headers=bearer(ROOT)) as websocket:
        for extra in ({"client_id": "roots"}, {"extra_data": {"client_id": "roots"}}):
            assert (await calls.submit(BOB, sleep_workflow(0, tag=len(extra)), **extra))[0] == 200
        mine = (await calls.submit(ROOT, sleep_workflow(0, tag=9), client_id="roots"))[1]["prompt_id"]
        seen: set[tuple[str, str]] = set()
        while "execution_success" not in str(seen):
            message = await websocket.receive_json(timeout=30)
            if "prompt_id" in message["data"]:
                seen.add((message["data"]["prompt_id"], message["type"]))
        assert {prompt_id for prompt_id, _ in seen} == {mine}
