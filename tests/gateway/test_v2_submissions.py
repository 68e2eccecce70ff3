"""Comfy API v2: submissions, with their keys, labels and secrets, and ComfyUI's verdict on them."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import comfy_sdk
import pytest
from structlog.testing import capture_logs

from comfyui.engine import NEW_VERSION, OLD_VERSION, Engine
from comfyui.web.front.gateway_state import WebOptions
from tests.support.keys import ALICE, BOB
from tests.support.processes import gateway_process
from tests.support.relaying import eventually
from tests.support.running import (
    RunningGateway,
    engines,
    executions,
    invert_workflow,
    queue_of,
    requests,
    running_gateway,
    sleep_workflow,
    until,
    web_options,
)
from tests.support.v2 import JOBS, ask, code_of, comfy, submit, until_ended

KEY = "Idempotency-Key"


async def test_an_idempotency_key_makes_one_job(gateway: RunningGateway, engine: Engine) -> None:
    body = {"workflow": invert_workflow(1)}
    status, job = await ask(gateway, JOBS, "POST", json=body, headers={KEY: "k"})
    assert status == 201
    for again in (body, {"workflow": invert_workflow(2)}):
        status, refused = await ask(gateway, JOBS, "POST", json=again, headers={KEY: "k"})
        assert (status, code_of(refused)) == (422, "idempotency_key_reuse")
        assert refused["error"]["details"] == {"job_id": job["id"]}
    await until(lambda: ask(gateway, f"{JOBS}/{job['id']}"), lambda found: bool(found[1]["status"] == "succeeded"))
    assert sum(executions(engine).values()) == 1


async def test_only_one_of_many_concurrent_submissions_with_one_key_is_accepted(
    gateway: RunningGateway, engine: Engine
) -> None:
    asked = [
        ask(gateway, JOBS, "POST", json={"workflow": invert_workflow(tag)}, headers={KEY: "k"}) for tag in range(20)
    ]
    answers = await asyncio.gather(*asked)
    assert sorted(status for status, _ in answers) == [201, *[422] * 19]
    assert requests(engine, "POST /prompt") == 1


async def test_an_idempotency_key_is_free_again_after_a_refused_submission(gateway: RunningGateway) -> None:
    bodies: list[dict[str, Any]] = [{"workflow": {}}, {"workflow": {"1": {"class_type": "Nope"}}}, {"workflow": 1}]
    for body in bodies:
        assert (await ask(gateway, JOBS, "POST", json=body, headers={KEY: "k"}))[0] == 422
    assert (await ask(gateway, JOBS, "POST", json={"workflow": invert_workflow()}, headers={KEY: "k"}))[0] == 201


async def test_the_sdk_retries_with_the_same_key_after_a_full_queue(engine: Engine) -> None:
    async with (
        running_gateway(engine.url, max_queued_jobs=1, queue="gateway") as gateway,
        comfy(gateway.url) as client,
    ):
        running = [await submit(gateway, sleep_workflow(600, tag=tag)) for tag in range(3)]
        status, body = await ask(gateway, JOBS, "POST", json={"workflow": invert_workflow()}, headers={KEY: "k"})
        assert (status, code_of(body)) == (429, "queue_full")
        waiting = asyncio.create_task(
            client.submit(client.workflows.from_json(invert_workflow(9)), idempotency_key="k")
        )
        for job in running:
            await ask(gateway, f"{JOBS}/{job['id']}/cancel", "POST")
        async with asyncio.timeout(30):
            assert (await (await waiting).result()).status == "succeeded"


async def test_a_submission_to_a_full_queue_gets_429_with_retry_after(engine: Engine) -> None:
    async with running_gateway(engine.url, max_queued_jobs=1, queue="gateway") as gateway:
        for tag in range(3):
            await submit(gateway, sleep_workflow(600, tag=tag))
        async with gateway.http.post(JOBS, json={"workflow": invert_workflow()}) as response:
            assert response.status == 429
            assert int(response.headers["Retry-After"]) >= 1


@pytest.mark.parametrize("key", ["", "a" * 256, "é", "a\tb"])
async def test_an_invalid_idempotency_key_is_refused(gateway: RunningGateway, key: str) -> None:
    status, body = await ask(gateway, JOBS, "POST", json={"workflow": invert_workflow()}, headers={KEY: key})
    assert (status, code_of(body)) == (400, "invalid_request")


async def test_idempotency_keys_belong_to_a_caller_and_survive_a_restart(
    tmp_path: Path, engine: Engine, keys_path: Path
) -> None:
    settings = {"STATE_DIR": str(tmp_path / "state"), "KEYS_FILE": str(keys_path)}
    body = {"workflow": invert_workflow()}

    async def post(gateway: object, key: str) -> int:
        http = gateway.http  # type: ignore[attr-defined]
        headers = {KEY: "same", "Authorization": f"Bearer {key}"}
        async with http.post(JOBS, json=body, headers=headers) as response:
            return int(response.status)

    async with gateway_process(engine.url, **settings) as gateway:
        assert [await post(gateway, ALICE), await post(gateway, BOB), await post(gateway, ALICE)] == [201, 201, 422]
        await gateway.kill()
    async with gateway_process(engine.url, **settings) as gateway:
        assert [await post(gateway, ALICE), await post(gateway, BOB)] == [422, 422]


async def test_a_server_that_runs_jobs_quickly_gets_more_of_them_at_once(
    gateway: RunningGateway, engine: Engine
) -> None:
    """The number depends on measured times, so a slow machine may need a second round."""

    async def taken() -> int:
        for tag in range(16):
            await until_ended(gateway, await submit(gateway, invert_workflow(tag)))
        jobs = [await submit(gateway, sleep_workflow(600, tag=tag)) for tag in range(8)]
        running, pending = await queue_of(engine)
        for job in reversed(jobs):
            await ask(gateway, f"{JOBS}/{job['id']}/cancel", "POST")
            await until_ended(gateway, job)
        return len(running) + len(pending)

    assert await until(taken, lambda count: count > 4) == 8


async def test_quick_jobs_reach_comfyui_in_order_even_if_it_accepts_one_slowly(
    gateway: RunningGateway, engine: Engine
) -> None:
    for tag in range(16):  # after these, the server may get many at once
        await until_ended(gateway, await submit(gateway, invert_workflow(tag)))
    await engine.set_faults({"hang": {"route": "/prompt", "method": "POST", "times": 1, "seconds": 1}})
    submitting = []
    for tag in range(10):
        submitting.append(asyncio.create_task(submit(gateway, invert_workflow(100 + tag))))
        await eventually(lambda tag=tag: gateway.handler.standing.count(lambda _: True) > tag)  # type: ignore[misc]
    jobs = [(await task)["id"] for task in submitting]
    for job in jobs:
        assert (await until_ended(gateway, {"id": job}))["status"] == "succeeded"
    async with gateway.http.get("/history") as response:
        history = await response.json()
    assert sorted(jobs, key=lambda job: history[job]["prompt"][0]) == jobs
    assert [executions(engine)[job] for job in jobs] == [1] * 10


async def test_a_job_runs_once_when_comfyuis_reply_is_lost(gateway: RunningGateway, engine: Engine) -> None:
    for fault in ("prompt_reply_lost_before_queue", "prompt_reply_lost_after_queue"):
        await engine.set_faults({fault: {"times": 1}})
        async with comfy(gateway.url) as client:
            job = await client.submit(client.workflows.from_json(invert_workflow(len(fault))))
            assert (await job.result()).status == "succeeded"
        assert executions(engine)[job.id] == 1


async def test_a_submission_is_answered_while_comfyui_hangs(engine: Engine) -> None:
    """SDKs wait for 30 s. The answer comes earlier, because the job is in the journal."""
    assert WebOptions().verdict_s <= 25
    changed = web_options(verdict_s=0.3)
    async with running_gateway(engine.url, changed=changed) as gateway:
        await engine.set_faults({"hang": {"route": "/prompt", "method": "POST", "times": 1, "seconds": 4}})
        job = await submit(gateway, invert_workflow())
        assert executions(engine) == {}, "ComfyUI still hangs"
        found = await until(
            lambda: ask(gateway, f"{JOBS}/{job['id']}"),
            lambda found: bool(found[1]["status"] in {"succeeded", "failed"}),
            timeout_s=30,
        )
        assert found[1]["status"] == "succeeded"


@pytest.mark.parametrize(("version", "kind"), [(NEW_VERSION, "missing_node_type"), (OLD_VERSION, "invalid_prompt")])
@pytest.mark.parametrize("count", [1, 3])
async def test_an_unknown_node_class_is_reported_by_its_node(version: str, kind: str, count: int) -> None:
    workflow = invert_workflow() | {"9": {"class_type": "Nope", "inputs": {}}}
    async with (
        engines(count, comfyui_version=version) as servers,
        running_gateway(*(one.url for one in servers)) as gateway,
    ):
        status, body = await ask(gateway, JOBS, "POST", json={"workflow": workflow})
    assert (status, code_of(body)) == (422, "invalid_workflow")
    node_errors = body["error"]["details"]["node_errors"]
    assert list(node_errors) == ["9"]
    assert [error["type"] for error in node_errors["9"]["errors"]] == [kind]


async def test_an_invalid_value_is_reported_in_comfyuis_words(gateway: RunningGateway) -> None:
    workflow = invert_workflow()
    workflow["1"]["inputs"]["width"] = -5
    async with comfy(gateway.url) as client:
        with pytest.raises(comfy_sdk.InvalidWorkflow) as refused:
            await client.submit(client.workflows.from_json(workflow))
    assert refused.value.details is not None
    found = refused.value.details["node_errors"]["1"]
    assert (found["class_type"], found["dependent_outputs"]) == ("EmptyImage", ["3"])
    assert found["errors"][0]["type"] == "value_smaller_than_min"


async def test_outputs_that_comfyui_skips_are_reported(gateway: RunningGateway) -> None:
    workflow = invert_workflow()
    workflow["5"] = {"class_type": "SaveImage", "inputs": {"filename_prefix": "no picture"}}
    job = await submit(gateway, workflow)
    assert list(job["node_errors"]) == ["5"]
    _, ended = await until(
        lambda: ask(gateway, f"{JOBS}/{job['id']}"), lambda found: bool(found[1]["status"] == "succeeded")
    )
    assert list(ended["node_errors"]) == ["5"]
    assert [output["node_id"] for output in ended["outputs"]] == ["3"]


async def test_metadata_is_shown_as_it_was_sent(gateway: RunningGateway) -> None:
    labelled = await submit(gateway, invert_workflow(), metadata={"order": "1", "é".encode().hex(): "ü"}, priority=-3)
    noted = await submit(gateway, invert_workflow(), metadata="any text: 1 \n é")
    for job, metadata, priority in (
        (labelled, {"order": "1", "c3a9": "ü"}, -3),
        (noted, "any text: 1 \n é", 0),
    ):
        _, shown = await ask(gateway, f"{JOBS}/{job['id']}")
        assert (shown["metadata"], shown["priority"]) == (metadata, priority)
    async with comfy(gateway.url) as client:
        assert (await client.jobs.get(noted["id"])).metadata == {}


async def test_metadata_that_is_too_long_is_refused(gateway: RunningGateway) -> None:
    status, body = await ask(gateway, JOBS, "POST", json={"workflow": invert_workflow(), "metadata": "é" * 513})
    assert (status, code_of(body)) == (422, "metadata_invalid")


async def test_a_secret_is_neither_shown_nor_logged_nor_stored(tmp_path: Path, engine: Engine) -> None:
    secret = "comfyui-12345-secret"
    with capture_logs() as lines:
        async with running_gateway(engine.url, state_dir=tmp_path / "state") as gateway:
            job = await submit(gateway, sleep_workflow(0.5), extra_data={"api_key_comfy_org": secret})
            await until(
                lambda: ask(gateway, f"{JOBS}/{job['id']}"), lambda found: bool(found[1]["status"] == "succeeded")
            )
            shown = [await ask(gateway, path) for path in (JOBS, f"{JOBS}/{job['id']}", f"{JOBS}/{job['id']}/workflow")]
    assert secret not in f"{shown}{lines}"
    logging.shutdown()
    for path in (tmp_path / "state").iterdir():
        if path.is_file():
            assert secret.encode() not in path.read_bytes()


async def test_a_job_is_accepted_while_no_server_is_up(engine: Engine) -> None:
    await engine.set_faults({"cut": {}})
    async with running_gateway(engine.url, ready=False) as gateway:
        job = await submit(gateway, invert_workflow())
        assert job["status"] == "queued"
        engine.faults.clear()
        found = await until(
            lambda: ask(gateway, f"{JOBS}/{job['id']}"), lambda found: bool(found[1]["status"] == "succeeded")
        )
        assert len(found[1]["outputs"]) == 1
