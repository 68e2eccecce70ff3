"""The callers that wait for a prompt: cancelling, joining, attaching again, and the limit on their number."""

from __future__ import annotations

import asyncio
import itertools
import json
from uuid import UUID, uuid4

import aiohttp
import pytest

from comfyui.engine import OLD_VERSION, Engine
from tests.support.relaying import eventually, raw_client
from tests.support.running import (
    RunningGateway,
    executions,
    invert_workflow,
    prompts_are_queued,
    queue_of,
    queued_elsewhere,
    requests,
    running_gateway,
    sleep_workflow,
    until,
)

# Cancelling


async def test_delete_takes_a_pending_prompt_out_of_the_queue(
    either_gateway: RunningGateway, either_engine: Engine
) -> None:
    (others,) = await queued_elsewhere(either_engine.url, sleep_workflow(5))
    prompt_id = str(uuid4())
    waiting = asyncio.create_task(either_gateway.prompt_sync(sleep_workflow(5, tag=1), prompt_id=prompt_id))
    await until(lambda: queue_of(either_engine), lambda queue: prompt_id in queue[1])
    async with either_gateway.http.delete(f"/prompt_sync/{prompt_id}") as response:
        assert (response.status, await response.json()) == (200, {"prompt_id": prompt_id, "status": "cancelled"})
    status, body = await waiting
    assert (status, body["type"], body["prompt_id"]) == (409, "task_cancelled", prompt_id)
    assert await queue_of(either_engine) == ([others], [])


async def test_delete_interrupts_the_running_prompt(either_gateway: RunningGateway, either_engine: Engine) -> None:
    prompt_id = str(uuid4())
    waiting = asyncio.create_task(either_gateway.prompt_sync(sleep_workflow(30), prompt_id=prompt_id))
    await until(lambda: queue_of(either_engine), lambda queue: queue == ([prompt_id], []))
    async with either_gateway.http.delete(f"/prompt_sync/{prompt_id}") as response:
        assert response.status == 200
    assert (await waiting)[0] == 409
    await until(lambda: queue_of(either_engine), lambda queue: queue == ([], []))


async def test_a_timeout_cancels_only_its_own_prompt(either_gateway: RunningGateway, either_engine: Engine) -> None:
    (others,) = await queued_elsewhere(either_engine.url, sleep_workflow(5))
    status, body = await either_gateway.prompt_sync(sleep_workflow(5, tag=1), timeout=0.3)
    assert (status, body["type"]) == (504, "timeout")
    assert body["prompt_id"]
    await until(lambda: queue_of(either_engine), lambda queue: queue == ([others], []))


async def test_a_timeout_leaves_the_prompt_running_without_cancel_on_timeout(either_engine: Engine) -> None:
    async with running_gateway(either_engine.url, cancel_on_timeout=False) as gateway:
        status, body = await gateway.prompt_sync(sleep_workflow(1), timeout=0.2)
        assert status == 504
        async with gateway.http.get(f"/prompt_sync/{body['prompt_id']}") as response:
            assert response.status == 200
    assert executions(either_engine) == {body["prompt_id"]: 1}


async def test_a_prompt_is_cancelled_when_its_client_disconnects(
    either_gateway: RunningGateway, either_engine: Engine
) -> None:
    waiting = asyncio.create_task(either_gateway.prompt_sync(sleep_workflow(30)))
    await until(lambda: queue_of(either_engine), lambda queue: len(queue[0]) == 1)
    waiting.cancel()
    await until(lambda: queue_of(either_engine), lambda queue: queue == ([], []))


async def test_a_client_that_closes_its_sending_side_counts_as_disconnected(
    either_gateway: RunningGateway, either_engine: Engine
) -> None:
    """A close and a half close look the same before something is written, and no prompt may run on without a caller."""
    body = json.dumps({"prompt": sleep_workflow(30)}).encode()
    head = b"POST /prompt_sync HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n\r\n" % len(body)
    async with raw_client(str(either_gateway.http._base_url)) as (reader, writer):
        writer.write(head + body)
        await until(lambda: queue_of(either_engine), lambda queue: len(queue[0]) == 1)
        writer.write_eof()
        assert await reader.read() == b""
        await until(lambda: queue_of(either_engine), lambda queue: queue == ([], []))


async def test_a_prompt_goes_on_while_another_request_waits_for_it(
    either_gateway: RunningGateway, either_engine: Engine
) -> None:
    prompt_id = str(uuid4())
    stays = asyncio.create_task(either_gateway.prompt_sync(sleep_workflow(600), prompt_id=prompt_id))
    await prompts_are_queued(either_engine, 1)
    status, _ = await either_gateway.prompt_sync(sleep_workflow(600), prompt_id=prompt_id, timeout=0.2)
    assert status == 504
    leaves = asyncio.create_task(either_gateway.prompt_sync(sleep_workflow(600), prompt_id=prompt_id))
    await eventually(lambda: either_gateway.handler.waiting == 2)
    leaves.cancel()
    await eventually(lambda: either_gateway.handler.waiting == 1)
    either_engine.wake(prompt_id)
    assert (await stays)[0] == 200
    assert executions(either_engine) == {prompt_id: 1}


async def test_attaching_to_another_clients_prompt_never_cancels_it(
    either_gateway: RunningGateway, either_engine: Engine
) -> None:
    (others,) = await queued_elsewhere(either_engine.url, sleep_workflow(600))
    async with either_gateway.http.get(f"/prompt_sync/{others}?timeout=0.1") as response:
        assert response.status == 504
    either_engine.wake(others)
    async with either_gateway.http.get(f"/prompt_sync/{others}") as response:
        assert response.status == 200
        assert (await response.json())["images"]


@pytest.mark.parametrize("how", ["deleted", "interrupted"])
async def test_a_prompt_that_another_client_cancels_is_reported_as_cancelled(
    either_gateway: RunningGateway, either_engine: Engine, how: str
) -> None:
    (blocker,) = await queued_elsewhere(either_engine.url, sleep_workflow(600 if how == "deleted" else 0, tag=9))
    prompt_id = str(uuid4())
    waiting = asyncio.create_task(either_gateway.prompt_sync(sleep_workflow(20, tag=1), prompt_id=prompt_id))
    async with aiohttp.ClientSession(either_engine.url) as http:
        if how == "deleted":
            await until(lambda: queue_of(either_engine), lambda queue: prompt_id in queue[1])
            await http.post("/queue", json={"delete": [prompt_id]})
            # While the blocker runs, ComfyUI's count of its queue is as high as with our prompt in it.
            either_engine.wake(blocker)
        else:
            await until(lambda: queue_of(either_engine), lambda queue: queue[0] == [prompt_id])
            await http.post("/interrupt", json={"prompt_id": prompt_id})
    status, body = await waiting
    assert (status, body["type"]) == (409, "task_cancelled")
    assert blocker in executions(either_engine)


# Idempotency


async def test_requests_with_the_same_prompt_id_share_one_run_and_its_result(
    either_gateway: RunningGateway, either_engine: Engine
) -> None:
    prompt_id = str(uuid4())
    both = await asyncio.gather(
        *(either_gateway.prompt_sync(sleep_workflow(0.3), prompt_id=prompt_id) for _ in range(2))
    )
    again = await either_gateway.prompt_sync(sleep_workflow(0.3), prompt_id=prompt_id, return_image_base64=True)
    assert [status for status, _ in (*both, again)] == [200] * 3
    assert again[1]["images"][0]["base64"]
    assert both[0][1]["outputs"] == both[1][1]["outputs"] == again[1]["outputs"]
    assert executions(either_engine) == {prompt_id: 1}


async def test_an_idempotency_key_gives_the_same_prompt_after_a_restart(either_engine: Engine) -> None:
    answers = []
    for _ in range(2):
        async with running_gateway(either_engine.url) as gateway:
            body, headers = {"prompt": sleep_workflow(0.1)}, {"Idempotency-Key": "order 4711"}
            async with gateway.http.post("/prompt_sync", json=body, headers=headers) as response:
                assert response.status == 200
                answers.append(await response.json())
    assert answers[0]["prompt_id"] == answers[1]["prompt_id"]
    assert UUID(answers[0]["prompt_id"]).version == 5
    assert answers[0]["outputs"] == answers[1]["outputs"]
    assert executions(either_engine) == {answers[0]["prompt_id"]: 1}


@pytest.mark.parametrize("when", ["in flight", "finished", "after a restart"])
async def test_another_body_under_the_same_id_is_refused(either_engine: Engine, when: str) -> None:
    prompt_id = str(uuid4())
    async with (
        running_gateway(either_engine.url) as gateway,
        running_gateway(either_engine.url) as restarted,
    ):
        first = asyncio.create_task(gateway.prompt_sync(sleep_workflow(600), prompt_id=prompt_id))
        await prompts_are_queued(either_engine, 1)
        if when != "in flight":
            either_engine.wake(prompt_id)
            await first
        asked = restarted if when == "after a restart" else gateway
        status, body = await asked.prompt_sync(sleep_workflow(600, tag=1), prompt_id=prompt_id)
        assert (status, body["type"]) == (409, "conflict")
        either_engine.wake(prompt_id)
        assert (await first)[0] == 200


async def test_a_failed_prompt_returns_its_error_again_without_running_again(
    either_gateway: RunningGateway, either_engine: Engine
) -> None:
    workflow = invert_workflow()
    workflow["2"] = {"class_type": "SimulatedError", "inputs": {"exception_type": "ValueError", "message": "no"}}
    workflow["2"]["inputs"]["value"] = ["1", 0]
    prompt_id = str(uuid4())
    for _ in range(2):
        status, body = await either_gateway.prompt_sync(workflow, prompt_id=prompt_id)
        assert (status, body["type"]) == (500, "task_failed")
    assert executions(either_engine) == {prompt_id: 1}


async def test_a_cancelled_prompt_can_be_submitted_again(either_gateway: RunningGateway, either_engine: Engine) -> None:
    prompt_id = str(uuid4())
    status, _ = await either_gateway.prompt_sync(sleep_workflow(600), prompt_id=prompt_id, timeout=0.2)
    assert status == 504
    await until(lambda: queue_of(either_engine), lambda queue: queue == ([], []))
    either_engine.wake(prompt_id)
    status, _ = await either_gateway.prompt_sync(sleep_workflow(600), prompt_id=prompt_id)
    assert status == 200


async def test_an_idempotency_key_together_with_a_prompt_id_is_refused(either_gateway: RunningGateway) -> None:
    body = {"prompt": invert_workflow(), "prompt_id": str(uuid4())}
    async with either_gateway.http.post("/prompt_sync", json=body, headers={"Idempotency-Key": "k"}) as response:
        assert response.status == 422


# Attaching again


async def test_get_attaches_to_a_prompt_in_flight_after_a_restart(either_engine: Engine) -> None:
    prompt_id = str(uuid4())
    async with running_gateway(either_engine.url) as before:
        waiting = asyncio.create_task(before.prompt_sync(sleep_workflow(600), prompt_id=prompt_id))
        await prompts_are_queued(either_engine, 1)
        await before.handler.drain(0)
        status, body = await waiting
        assert (status, body["type"], body["prompt_id"]) == (503, "shutting_down", prompt_id)
    either_engine.wake(prompt_id)
    async with (
        running_gateway(either_engine.url) as after,
        after.http.get(f"/prompt_sync/{prompt_id}?return_image_base64=true") as response,
    ):
        assert response.status == 200
        assert (await response.json())["images"][0]["base64"]
    assert executions(either_engine) == {prompt_id: 1}


async def test_messages_go_to_the_websocket_of_the_given_client_id(
    either_gateway: RunningGateway, either_engine: Engine
) -> None:
    async with (
        aiohttp.ClientSession(either_engine.url) as http,
        http.ws_connect("/ws?clientId=mine") as socket,
    ):
        status, body = await either_gateway.prompt_sync(sleep_workflow(0.1), client_id="mine")
        assert status == 200
        async with asyncio.timeout(30):
            async for message in socket:
                event = message.json()
                if event["type"] == "executing" and event["data"]["node"] is None:
                    assert event["data"]["prompt_id"] == body["prompt_id"]
                    break


# Limits


async def test_requests_over_the_concurrency_limit_are_refused_at_once(either_engine: Engine) -> None:
    async with running_gateway(either_engine.url, max_concurrent_requests=2) as gateway:
        waiting = [asyncio.create_task(gateway.prompt_sync(sleep_workflow(600, tag=tag))) for tag in range(2)]
        await eventually(lambda: gateway.handler.waiting == 2)
        async with gateway.http.get("/health/ready") as response:
            assert response.status == 503
            assert "limit" in (await response.json())["reason"]
        async with gateway.http.post("/prompt_sync", json={"prompt": invert_workflow()}) as response:
            assert response.status == 429
            assert int(response.headers["Retry-After"]) > 0
            assert (await response.json())["type"] == "overloaded"
        await prompts_are_queued(either_engine, 2)
        either_engine.wake(*itertools.chain(*await queue_of(either_engine)))
        assert [status for status, _ in await asyncio.gather(*waiting)] == [200, 200]
        assert (await gateway.prompt_sync(invert_workflow()))[0] == 200


async def test_a_new_comfyui_is_not_asked_for_its_whole_queue_to_find_one_id(
    either_gateway: RunningGateway, either_engine: Engine
) -> None:
    """`GET /queue` carries every workflow that waits."""
    await queued_elsewhere(either_engine.url, sleep_workflow(5))
    prompt_id = str(uuid4())
    waiting = asyncio.create_task(either_gateway.prompt_sync(sleep_workflow(0.01, tag=1), prompt_id=prompt_id))
    await until(lambda: remaining(either_engine), lambda count: count == 2)
    old = either_engine.options.comfyui_version == OLD_VERSION
    assert requests(either_engine, "GET /queue") == (1 if old else 0)
    async with either_gateway.http.delete(f"/prompt_sync/{prompt_id}") as response:
        assert response.status == 200
    assert (await waiting)[0] == 409


async def remaining(engine: Engine) -> int:
    """The length of ComfyUI's queue, without a `GET /queue`, which the test counts."""
    async with aiohttp.ClientSession() as http, http.get(f"{engine.url}/prompt") as reply:
        count: int = (await reply.json())["exec_info"]["queue_remaining"]
        return count
