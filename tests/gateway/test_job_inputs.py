"""Inputs of async jobs: they are checked and stored before the 202, uploaded once, and removed at the end."""

from __future__ import annotations

import asyncio
import hashlib
import os
import resource
import stat
import subprocess
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from comfyui.engine import Engine
from comfyui.jobs.queue_options import QueueOptions
from tests.support.disks import mounted_disk
from tests.support.job_inputs import (
    b64,
    blocked,
    by_image,
    data_uri,
    files_of,
    form_of,
    inverted,
    journal_has,
    loading,
    picture,
    post,
    taken,
)
from tests.support.jobs import fetch, listed, status_is, submit
from tests.support.processes import gateway_process
from tests.support.running import (
    executions,
    handler_options,
    invert_workflow,
    request_limits,
    requests,
    running_gateway,
    sleep_workflow,
    until,
)

_COLOR = (10, 200, 30)
_DATA = picture(_COLOR)
_UPLOAD = "POST /upload/image"


async def store_is(state: Path, contents: list[bytes]) -> None:
    async def found() -> dict[str, bytes]:
        return await asyncio.to_thread(files_of, state)

    wanted = {hashlib.sha256(content).hexdigest(): content for content in contents}
    await until(found, lambda there: there == wanted, timeout_s=20)


# Comparison with sync calls


@pytest.mark.parametrize("state", ["stored", "in memory"])
async def test_an_async_job_stores_its_inputs_as_a_sync_call_does(engine: Engine, tmp_path: Path, state: str) -> None:
    async with running_gateway(engine.url, state_dir=tmp_path if state == "stored" else "") as gateway:
        status, _ = await gateway.prompt_sync(loading(), images=[{"name": "photo.png", "image": b64(_DATA)}])
        assert status == 200
        names = sorted(path.name for path in Path(engine.folders.input, "gateway").iterdir())
        for body in (by_image(b64(_DATA)), by_image(data_uri(_DATA)), {"prompt": loading(data_uri(_DATA))}):
            assert await inverted(gateway.http, await taken(gateway.http, body)) == _COLOR
        form = form_of(loading(), {"photo.png": _DATA})
        assert await inverted(gateway.http, await taken(gateway.http, form)) == _COLOR
        assert sorted(path.name for path in Path(engine.folders.input, "gateway").iterdir()) == names
        assert requests(engine, _UPLOAD) == 1, "ComfyUI has the file, so nothing is uploaded again"


async def test_a_file_of_unknown_type_has_the_same_name_in_sync_and_async_calls(engine: Engine, tmp_path: Path) -> None:
    """The bytes have no known type, so the extension comes from the name or from the data URI."""
    data = b"vertex" * 100
    workflow = {**invert_workflow(), "9": {"class_type": "LoadImage", "inputs": {"image": "other.png"}}}
    workflow["1"] = {"class_type": "LoadImage", "inputs": {"image": "photo.png"}}
    pictures = [{"name": "photo.png", "image": b64(_DATA)}]
    async with running_gateway(engine.url, state_dir=tmp_path) as gateway:
        for image in (b64(data), data_uri(data, "text/plain")):
            body: Any = {"prompt": workflow, "images": [*pictures, {"name": "other.png", "image": image}]}
            await gateway.prompt_sync(body["prompt"], images=body["images"])
            there = set(Path(engine.folders.input, "gateway").iterdir())
            await fetch(gateway.http, await taken(gateway.http, body))
            assert set(Path(engine.folders.input, "gateway").iterdir()) == there


async def test_a_sync_and_an_async_call_with_one_request_share_a_run(engine: Engine, tmp_path: Path) -> None:
    async with running_gateway(engine.url, state_dir=tmp_path) as gateway:
        for first_async in (True, False):
            for body in ("json", "form"):
                prompt_id = str(uuid4())

                def given(body: str = body, prompt_id: str = prompt_id) -> Any:
                    if body == "form":
                        return form_of(loading(), {"photo.png": _DATA}, prompt_id=prompt_id)
                    return {**by_image(b64(_DATA)), "prompt_id": prompt_id}

                async def sync(body: Any) -> int:
                    async with gateway.http.post("/prompt_sync", **_as_body(body)) as response:
                        return response.status

                if first_async:
                    assert await taken(gateway.http, given()) == prompt_id
                    assert await sync(given()) == 200
                else:
                    assert await sync(given()) == 200
                    assert (await post(gateway.http, given()))[0] == 200
                assert executions(engine)[prompt_id] == 1
                other = {**by_image(b64(picture((1, 1, 1)))), "prompt_id": prompt_id}
                assert (await post(gateway.http, other))[0] == 409


def _as_body(body: Any) -> dict[str, Any]:
    return {"json": body} if isinstance(body, dict) else {"data": body}


async def test_a_data_uri_that_is_not_an_input_reaches_its_node_unchanged(engine: Engine, tmp_path: Path) -> None:
    async with running_gateway(engine.url, state_dir=tmp_path) as gateway:
        texts = [data_uri(_DATA), "data:text/plain,a%20b", "data:image/png;base64,%%%", "sha256:" + "0" * 64]
        for tag, text in enumerate(texts):
            workflow = invert_workflow(tag)
            workflow["6"] = {"class_type": "PrimitiveString", "inputs": {"value": text}}
            workflow["7"] = {"class_type": "PreviewAny", "inputs": {"source": ["6", 0]}}
            prompt_id = await taken(gateway.http, {"prompt": workflow})
            status, result = await fetch(gateway.http, prompt_id)
            assert status == 200, result
            assert result["outputs"]["7"]["text"] == [text]
    assert not journal_has(tmp_path, b64(_DATA))


async def test_a_data_uri_submitted_without_a_server_is_stored_until_one_is_up(engine: Engine, tmp_path: Path) -> None:
    async with running_gateway("127.0.0.1:1", ready=False, state_dir=tmp_path) as gateway:
        prompt_id = await taken(gateway.http, {"prompt": loading(data_uri(_DATA))})
        await store_is(tmp_path, [_DATA])
    assert not journal_has(tmp_path, b64(_DATA))
    async with running_gateway(engine.url, state_dir=tmp_path) as gateway:
        assert await inverted(gateway.http, prompt_id) == _COLOR
        await store_is(tmp_path, [])


# Refused before the 202


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        (by_image("no base64!"), 400, "images[0].image: must be base64"),
        (by_image(""), 422, "images[0].image: must not be empty"),
        (by_image("sha256:" + hashlib.sha256(_DATA).hexdigest()), 400, "images[0].image: must be base64"),
        (by_image(data_uri(b"<html>")), 400, "images[0].image: the content is an HTML page"),
        (by_image(b64(bytes(200_000))), 400, "images[0].image: larger than the 0.1 MB"),
        ({"prompt": loading("data:image/png;base64,%%%")}, 400, "prompt.1.inputs.image: must be base64"),
        (
            {
                "prompt": loading(),
                "images": [{"name": "a.png", "image": b64(picture((tag, 0, 0)))} for tag in range(2)],
            },
            400,
            "images[1].image: images[0].image has the same name",
        ),
        (
            {
                "prompt": loading(),
                "images": [{"name": f"{tag}.png", "image": f"http://h/{tag}"} for tag in range(3)]
                + [{"name": "d.png", "image": b64(_DATA)}],
            },
            413,
            "images must have at most 3 entries",
        ),
    ],
    ids=["base64", "empty", "hash", "HTML", "large", "workflow", "names", "many"],
)
async def test_invalid_inputs_are_refused_as_in_a_sync_call(
    engine: Engine, tmp_path: Path, body: dict[str, Any], status: int, says: str
) -> None:
    settings: dict[str, Any] = {"state_dir": tmp_path, "max_input_mb": 0.1}
    async with running_gateway(engine.url, changed=request_limits(max_inputs=3), **settings) as gateway:
        blocker = await submit(gateway.http, sleep_workflow(20))
        await taken(gateway.http, by_image(b64(_DATA)))  # the gateway knows its hash
        answered, error = await post(gateway.http, body)
        assert (answered, says in error["detail"]) == (status, True), error
        assert len((await listed(gateway.http))["jobs"]) == 2
        async with gateway.http.post("/prompt_sync", json=body) as response:
            sync = await response.json()
            assert (response.status, sync["type"], sync["detail"]) == (status, error["type"], error["detail"])
        assert (await status_is(gateway.http, blocker, "running"))["status"] == "running"


async def test_the_refusal_of_an_invalid_form_file_names_the_file(engine: Engine, tmp_path: Path) -> None:
    async with running_gateway(engine.url, state_dir=tmp_path, max_input_mb=0.1) as gateway:
        for content, says in ((b"<html>", "HTML page"), (bytes(200_000), "larger than the 0.1 MB")):
            status, error = await post(gateway.http, form_of(loading(), {"photo.png": content}))
            assert (status, error["type"]) == (400, "input_failed")
            assert error["detail"].startswith("files['photo.png']: ")
            assert says in error["detail"]
    assert files_of(tmp_path) == {}


# Stored once, and only as long as needed


async def test_equal_inputs_are_stored_once_and_removed_with_the_last_job(engine: Engine, tmp_path: Path) -> None:
    options = handler_options(queue=QueueOptions(ahead=1))
    async with running_gateway(engine.url, changed=options, state_dir=tmp_path) as gateway:
        blocker = await submit(gateway.http, sleep_workflow(60))
        await status_is(gateway.http, blocker, "running")
        other = picture((1, 2, 3))
        ids = [await taken(gateway.http, by_image(b64(_DATA))) for _ in range(3)]
        ids.append(await taken(gateway.http, form_of(loading(), {"photo.png": _DATA})))
        ids.append(await taken(gateway.http, by_image(data_uri(other))))
        await store_is(tmp_path, [_DATA, other])
        file = tmp_path / "inputs" / hashlib.sha256(_DATA).hexdigest()
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
        for prompt_id in ids[:4]:
            await store_is(tmp_path, [_DATA, other])
            async with gateway.http.delete(f"/prompt_sync/{prompt_id}") as response:
                assert response.status == 200
        await store_is(tmp_path, [other])
        async with gateway.http.delete(f"/prompt_sync/{blocker}") as response:
            assert response.status == 200
        assert await inverted(gateway.http, ids[4]) == (1, 2, 3)
        await store_is(tmp_path, [])


async def test_the_inputs_of_a_failed_or_expired_job_are_removed(engine: Engine, tmp_path: Path) -> None:
    options = handler_options(queue=QueueOptions(ahead=1, max_queued_s=1.0))
    async with running_gateway(engine.url, changed=options, state_dir=tmp_path) as gateway:
        blocker = await submit(gateway.http, sleep_workflow(60))
        await status_is(gateway.http, blocker, "running")
        late = await taken(gateway.http, by_image(b64(_DATA)))
        assert (await fetch(gateway.http, late))[1]["type"] == "timeout"
        await store_is(tmp_path, [])
        async with gateway.http.delete(f"/prompt_sync/{blocker}") as response:
            assert response.status == 200
        failing = await taken(gateway.http, by_image(b64(b"no picture at all" * 10)))
        assert (await fetch(gateway.http, failing))[0] in {400, 500}
        await store_is(tmp_path, [])


async def test_a_new_run_stores_its_inputs_again(engine: Engine, tmp_path: Path) -> None:
    options = handler_options(queue=QueueOptions(ahead=1))
    async with running_gateway(engine.url, changed=options, state_dir=tmp_path) as gateway:
        blocker = await submit(gateway.http, sleep_workflow(60))
        await status_is(gateway.http, blocker, "running")
        waiting: list[bytes] = []
        for body, data in (("json", picture((0, 0, 1))), ("form", picture((0, 0, 2)))):
            prompt_id = str(uuid4())
            for last in (False, True):
                given: Any = {**by_image(b64(data)), "prompt_id": prompt_id}
                if body == "form":
                    given = form_of(loading(), {"photo.png": data}, prompt_id=prompt_id)
                await taken(gateway.http, given)
                await store_is(tmp_path, [*waiting, data])
                if not last:
                    async with gateway.http.delete(f"/prompt_sync/{prompt_id}") as response:
                        assert response.status == 200
                    await store_is(tmp_path, waiting)
            waiting.append(data)
        async with gateway.http.delete(f"/prompt_sync/{blocker}") as response:
            assert response.status == 200
        for job in (await listed(gateway.http, "?status=queued,running"))["jobs"]:
            assert (await inverted(gateway.http, job["prompt_id"]))[:2] == (0, 0)
            assert job["run"] == 2


async def test_an_async_run_after_a_large_sync_call_has_its_request(engine: Engine, tmp_path: Path) -> None:
    """The journal does not keep the large body of a sync call."""
    prompt_id, large = str(uuid4()), picture(_COLOR, 400)
    noise = os.urandom(300_000)
    body = {**by_image(b64(large)), "prompt_id": prompt_id}
    body["images"].append({"name": "noise.png", "image": b64(noise)})
    async with running_gateway(engine.url, state_dir=tmp_path) as gateway:
        blocker = await submit(gateway.http, sleep_workflow(60))
        await status_is(gateway.http, blocker, "running")
        sync = asyncio.create_task(gateway.prompt_sync(body["prompt"], images=body["images"], prompt_id=prompt_id))
        await until(lambda: listed(gateway.http), lambda found: len(found["jobs"]) == 2)
        async with gateway.http.delete(f"/prompt_sync/{prompt_id}") as response:
            assert response.status == 200
        assert (await sync)[0] == 409
        async with gateway.http.delete(f"/prompt_sync/{blocker}") as response:
            assert response.status == 200
        await taken(gateway.http, body)
        assert await inverted(gateway.http, prompt_id) == _COLOR


async def test_inputs_are_kept_for_the_configured_days(engine: Engine, tmp_path: Path) -> None:
    async with running_gateway(engine.url, state_dir=tmp_path, inputs_keep_days=1) as gateway:
        assert await inverted(gateway.http, await taken(gateway.http, by_image(b64(_DATA)))) == _COLOR
    (file,) = (tmp_path / "inputs").iterdir()
    assert file.read_bytes() == _DATA
    os.utime(file, (1, 1))
    async with running_gateway(engine.url, state_dir=tmp_path, inputs_keep_days=1):
        await store_is(tmp_path, [])


async def test_inputs_of_no_job_are_removed_at_the_start(engine: Engine, tmp_path: Path) -> None:
    folder = tmp_path / "inputs"
    folder.mkdir(parents=True)
    (folder / ("a" * 64)).write_bytes(b"left by a submission that was killed before its 202")
    (folder / "new-0123").write_bytes(b"half")
    async with running_gateway(engine.url, state_dir=tmp_path):
        await store_is(tmp_path, [])


# Limits


async def test_the_error_of_a_full_input_store_names_the_limit(engine: Engine, tmp_path: Path) -> None:
    options = handler_options(queue=QueueOptions(ahead=1))
    settings: dict[str, Any] = {"state_dir": tmp_path, "max_stored_inputs_mb": 0.01}
    noise = [os.urandom(6_000) for _ in range(2)]
    async with running_gateway(engine.url, changed=options, **settings) as gateway:
        blocker = await submit(gateway.http, sleep_workflow(60))
        await status_is(gateway.http, blocker, "running")
        first = await taken(gateway.http, by_image(b64(noise[0])))
        assert await taken(gateway.http, by_image(b64(noise[0])))
        status, error = await post(gateway.http, by_image(b64(noise[1])))
        assert (status, error["type"]) == (429, "overloaded")
        assert "MAX_STORED_INPUTS_MB" in error["detail"]
        status, error = await post(gateway.http, by_image(b64(os.urandom(20_000))))
        assert (status, error["type"]) == (413, "limit_exceeded")
        assert "MAX_STORED_INPUTS_MB" in error["detail"]
        await store_is(tmp_path, [noise[0]])
        for job in (await listed(gateway.http, "?status=queued"))["jobs"]:
            async with gateway.http.delete(f"/prompt_sync/{job['prompt_id']}") as response:
                assert response.status == 200
        assert await taken(gateway.http, by_image(b64(noise[1]))), "a job that ends frees its room"
        assert first


async def test_a_submission_on_a_full_disk_is_refused_and_leaves_nothing(engine: Engine, tmp_path: Path) -> None:
    with mounted_disk(tmp_path / "state", "3m") as state:
        async with running_gateway(engine.url, state_dir=state) as gateway:
            blocker = await submit(gateway.http, sleep_workflow(60))
            await status_is(gateway.http, blocker, "running")
            for body in (by_image(b64(os.urandom(8_000_000))), form_of(loading(), {"photo.png": bytes(8_000_000)})):
                status, error = await post(gateway.http, body)
                assert (status, error["type"]) == (503, "disk_failed")
                assert "STATE_DIR" in error["detail"]
                assert str(state) not in error["detail"]
            await store_is(state, [])
            assert len((await listed(gateway.http))["jobs"]) == 1
            async with gateway.http.delete(f"/prompt_sync/{blocker}") as response:
                assert response.status == 200
            assert await inverted(gateway.http, await taken(gateway.http, by_image(b64(_DATA)))) == _COLOR
            # A sync call needs no room on that disk.
            status, _ = await gateway.prompt_sync(loading(), images=[{"name": "photo.png", "image": b64(_DATA)}])
            assert status == 200


async def test_the_error_of_a_read_only_disk_names_the_setting(engine: Engine, tmp_path: Path) -> None:
    with mounted_disk(tmp_path / "disk", "1m") as disk:
        (tmp_path / "state").mkdir()
        (tmp_path / "state" / "inputs").mkdir(mode=0o700)
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        subprocess.run(["mount", "--bind", str(disk), str(tmp_path / "state" / "inputs")], check=True)
        try:
            async with running_gateway(engine.url, state_dir=tmp_path / "state") as gateway:
                for body in (by_image(b64(_DATA)), form_of(loading(), {"photo.png": _DATA})):
                    status, error = await post(gateway.http, body)
                    assert (status, error["type"]) == (503, "disk_failed")
                    assert "STATE_DIR" in error["detail"]
                status, _ = await gateway.prompt_sync(loading(), images=[{"name": "photo.png", "image": b64(_DATA)}])
                assert status == 200
        finally:
            subprocess.run(["umount", "-l", str(tmp_path / "state" / "inputs")], check=True)


async def test_a_limit_for_file_sizes_leaves_no_truncated_file(engine: Engine, tmp_path: Path) -> None:
    async with gateway_process(engine.url, STATE_DIR=str(tmp_path)) as gateway:
        resource.prlimit(gateway.process.pid, resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))
        status, error = await post(gateway.http, by_image(b64(os.urandom(4_000_000))))
        assert (status, error["type"]) == (503, "disk_failed")
        assert "STATE_DIR" in error["detail"]
        assert files_of(tmp_path) == {}
        assert await inverted(gateway.http, await taken(gateway.http, by_image(b64(_DATA)))) == _COLOR


async def test_memory_does_not_grow_with_the_inputs_of_waiting_jobs(engine: Engine, tmp_path: Path) -> None:
    async with gateway_process(engine.url, STATE_DIR=str(tmp_path)) as gateway:
        await blocked(gateway.http, 120)

        async def submit_many(count: int) -> int:
            for start in range(0, count, 4):
                await asyncio.gather(
                    *(taken(gateway.http, by_image(b64(_DATA + os.urandom(250_000)))) for _ in range(start, start + 4))
                )
            pages = Path(f"/proc/{gateway.process.pid}/statm").read_text().split()[1]
            return int(pages) * resource.getpagesize()

        before = await submit_many(40)
        after = await submit_many(120)
        assert after - before < 20_000_000, "30 MB of inputs came meanwhile"
        assert len(list((tmp_path / "inputs").iterdir())) == 160
