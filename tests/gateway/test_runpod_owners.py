"""BACKEND=runpod with keys: users see their own prompts, files and frames, and their jobs get their own files."""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path
from typing import Any

from tests.support.calls import Calls
from tests.support.keys import ALICE, BOB, ROOT, bearer
from tests.support.relaying import fetch
from tests.support.running import Workflow, invert_workflow, loading_workflow, until
from tests.support.runpod_endpoint import DATA, PICTURE, FakeEndpoint, base64_image
from tests.support.tabs import ENDED, Tab
from tests.support.uploads import upload

OF_BOB, OF_ALICE = b"\x89PNG\r\n\x1a\nof bob", b"\x89PNG\r\n\x1a\nof alice"


async def prompt(calls: Calls, key: str, workflow: Workflow, **fields: Any) -> str:
    status, answer = await calls.call(key, "POST", "/prompt", {"prompt": workflow, **fields})
    assert status == 200, answer
    return str(answer["prompt_id"])


async def ended(calls: Calls, key: str, prompt_id: str) -> Any:
    found = await until(lambda: calls.call(key, "GET", f"/history/{prompt_id}"), lambda answer: prompt_id in answer[1])
    return found[1][prompt_id]


async def sent_with(endpoint: FakeEndpoint, number: int) -> dict[str, bytes]:
    """The files of the job, by their names."""
    given = endpoint.inputs[await endpoint.job(number)]
    return {one["name"]: base64.b64decode(one["image"]) for one in given.get("images", ())}


async def test_users_see_and_cancel_only_their_own_prompts_and_files(
    over_runpod: Calls, endpoint: FakeEndpoint
) -> None:
    calls = over_runpod
    mine, theirs = await prompt(calls, ALICE, invert_workflow(1)), await prompt(calls, BOB, invert_workflow(2))
    job, _ = await endpoint.job(1), await endpoint.job(2)
    for key, own in ((ALICE, [mine]), (BOB, [theirs])):
        _, queue = await calls.call(key, "GET", "/queue")
        assert [item[1] for item in (*queue["queue_running"], *queue["queue_pending"])] == own
        assert await calls.listed(key) == own
    # Alice cannot cancel Bob's prompt.
    for path, body in (
        ("/interrupt", {"prompt_id": theirs}),
        ("/queue", {"delete": [theirs]}),
        ("/queue", {"clear": True}),
    ):
        async with calls.gateway.http.post(path, json=body, headers=bearer(ALICE)) as response:
            assert response.status == 200
    assert (await calls.call(ALICE, "DELETE", f"/prompt_sync/{theirs}"))[0] == 404
    await until(
        lambda: calls.call(ALICE, "GET", "/queue"),
        lambda answer: answer[1] == {"queue_running": [], "queue_pending": []},
    )
    assert endpoint.cancelled == [job], "clearing the queue cancels only the user's own jobs"
    endpoint.complete("job-2", base64_image(DATA))
    entry = await ended(calls, BOB, theirs)
    [image] = entry["outputs"]["3"]["images"]
    assert (await calls.call(ALICE, "GET", f"/history/{theirs}"))[1] == {}
    assert (await calls.call(ALICE, "GET", f"/prompt_sync/{theirs}"))[0] == 404
    assert (await calls.call(ALICE, "GET", f"/api/jobs/{theirs}"))[0] == 404
    query = f"filename={image['filename']}&subfolder={image['subfolder']}&type=output"
    answers = [await fetch(calls.gateway, f"/view?{query}", headers=bearer(key)) for key in (BOB, ROOT, ALICE)]
    assert [answer.status for answer in answers] == [200, 200, 404]
    assert answers[0].body == PICTURE
    for other in (
        f"filename={image['filename']}&type=output",
        f"filename={theirs}/{image['filename']}",
        f"{query}&x=1",
    ):
        assert (await fetch(calls.gateway, f"/view?{other}", headers=bearer(ALICE))).status == 404


async def test_frames_are_sent_only_to_tabs_with_the_same_key(over_runpod: Calls, endpoint: FakeEndpoint) -> None:
    ws = over_runpod.gateway.http.ws_connect
    async with (
        ws("/ws?clientId=tab", headers=bearer(ALICE)) as a,
        ws("/ws?clientId=tab", headers=bearer(BOB)) as b,
    ):
        alice, bob = Tab(a), Tab(b)
        await asyncio.gather(alice.read_until("status"), bob.read_until("status"))
        mine = await prompt(over_runpod, ALICE, invert_workflow(1), client_id="tab")
        theirs = await prompt(over_runpod, BOB, invert_workflow(2), client_id="tab")
        for number in (1, 2):
            job = await endpoint.job(number)
            endpoint.says(job, "IN_PROGRESS", output={"node_id": "2", "value": 1, "max": 2})
            await endpoint.looked(job)
            endpoint.complete(job, base64_image(DATA))
        await asyncio.gather(alice.read_until(ENDED, mine), bob.read_until(ENDED, theirs))
        assert (alice.prompts, bob.prompts) == ({mine}, {theirs})


async def test_a_job_is_sent_with_its_owners_upload_of_a_shared_name(
    over_runpod: Calls, endpoint: FakeEndpoint
) -> None:
    assert (await upload(over_runpod.gateway, "photo.png", OF_BOB, BOB))[0] == 200
    await prompt(over_runpod, BOB, loading_workflow("photo.png"))
    assert list((await sent_with(endpoint, 1)).values()) == [OF_BOB]
    assert (await upload(over_runpod.gateway, "photo.png", OF_ALICE, ALICE))[0] == 200
    await prompt(over_runpod, ALICE, loading_workflow("photo.png"))
    assert list((await sent_with(endpoint, 2)).values()) == [OF_ALICE]


def _names_of(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]


async def test_no_text_in_a_workflow_sends_another_users_file(
    over_runpod: Calls, endpoint: FakeEndpoint, tmp_path: Path
) -> None:
    calls = over_runpod
    assert (await upload(calls.gateway, "photo.png", OF_BOB, BOB))[0] == 200
    assert (await upload(calls.gateway, "all.png", OF_BOB, ROOT))[0] == 200
    theirs = await prompt(calls, BOB, loading_workflow("photo.png"))
    endpoint.complete(await endpoint.job(1), base64_image(base64.b64encode(OF_BOB).decode()))
    [made] = (await ended(calls, BOB, theirs))["outputs"]["3"]["images"]
    await prompt(calls, ROOT, loading_workflow("all.png"))
    await endpoint.job(2)
    images = [{"name": "brought.png", "image": base64.b64encode(OF_BOB).decode()}]
    asking = asyncio.create_task(calls.submit(BOB, loading_workflow("brought.png"), images=images))
    await endpoint.job(3)
    kept = _names_of(tmp_path / "inputs")
    assert kept
    sent = 3
    for name in (
        *kept,
        *(f"{name} [input]" for name in kept),
        f"{made['subfolder']}/{made['filename']} [output]",
        "photo.png",
        "all.png",
        "brought.png",
    ):
        workflow = invert_workflow(sent)
        # Only the worker knows the class of node 8, and node 9 takes a text that is no file name.
        workflow["8"] = {"class_type": "OnlyTheWorkerHasIt", "inputs": {"file": name, "image": ["1", 0]}}
        workflow["9"] = {"class_type": "CLIPTextEncode", "inputs": {"text": name}}
        status, answer = await calls.call(ALICE, "POST", "/prompt", {"prompt": workflow})
        if status != 200 or name.endswith("]"):
            continue
        sent += 1
        assert await sent_with(endpoint, sent) == {}, (name, answer)
    endpoint.complete("job-3", base64_image(DATA))
    assert (await asking)[0] == 200
