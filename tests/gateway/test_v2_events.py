"""Comfy API v2: a job as server-sent events, in the order in which the SDKs read them."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

from comfy_low.models import Output, PreviewEvent, Progress, StatusEvent
from comfy_sdk import AsyncComfy
from comfy_sdk.events import OutputReady, Preview, StatusChange

from comfyui.engine import Engine
from config import GatewayOptions
from tests.support.engine_workflows import txt2img
from tests.support.running import RunningGateway, invert_workflow, running_gateway, sleep_workflow
from tests.support.sse import Sent, data_of, events_of
from tests.support.v2 import JOBS, ask, code_of, comfy, submit
from tests.support.v2_contract import EVENTS, check

_MODELS: dict[str, Any] = {"status": StatusEvent, "progress": Progress, "output": Output, "preview": PreviewEvent}


async def stream(gateway: RunningGateway, job: str) -> list[Sent]:
    """Returns all events up to the end; the SDK's models and the contract accept each of them."""
    async with asyncio.timeout(30), gateway.http.get(f"{JOBS}/{job}/events") as response:
        assert response.headers["Cache-Control"] == "no-cache"
        assert response.headers["X-Accel-Buffering"] == "no"
        events = [event async for event in events_of(response)]
    for event in events:
        if event.name:
            _MODELS[event.name].model_validate(event.data)
            check(EVENTS[event.name], event.data)
    return events


async def test_all_outputs_come_before_the_terminal_status(gateway: RunningGateway) -> None:
    workflow = sleep_workflow(0.3)
    workflow["5"] = {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "first"}}
    events = await stream(gateway, (await submit(gateway, workflow))["id"])
    assert events[0].name == "status"
    assert events[-1] == Sent("status", {"status": "succeeded"})
    assert {output["node_id"] for output in data_of(events, "output")} == {"3", "5"}
    assert len({output["id"] for output in data_of(events, "output")}) == len(data_of(events, "output"))


async def test_progress_never_decreases_and_counts_nodes(gateway: RunningGateway) -> None:
    workflow = invert_workflow(1)
    workflow["4"] = {"class_type": "SimulatedSleep", "inputs": {"value": ["2", 0], "seconds": 1.5, "steps": 30}}
    workflow["3"]["inputs"]["images"] = ["4", 0]
    events = data_of(await stream(gateway, (await submit(gateway, workflow))["id"]), "progress")
    values = [progress["value"] for progress in events]
    assert values == sorted(values)
    assert any(0 < value < 1 for value in values)
    assert values[-1] == 1.0
    assert {progress["nodes_total"] for progress in events} == {4}
    assert any(
        progress.get("steps") == 30 and progress["current_node_class"] == "SimulatedSleep" for progress in events
    )


async def test_a_stream_that_opens_after_the_end_lists_all_outputs(gateway: RunningGateway) -> None:
    job = (await submit(gateway, invert_workflow(2)))["id"]
    first = await stream(gateway, job)
    again = await stream(gateway, job)
    assert [event.name for event in again] == ["output", "status"]
    assert again[-1] == first[-1]


async def test_two_streams_of_one_job_have_the_same_outputs(gateway: RunningGateway) -> None:
    job = (await submit(gateway, sleep_workflow(0.5)))["id"]
    both = await asyncio.gather(stream(gateway, job), stream(gateway, job))
    assert [data_of(events, "output")[0]["id"] for events in both] == [data_of(both[0], "output")[0]["id"]] * 2


async def test_the_sdk_gets_previews(gateway: RunningGateway) -> None:
    async with comfy(gateway.url) as client:
        job = await client.submit(client.workflows.from_json(txt2img(steps=20)))
        events = [event async for event in job.events()]
    previews = [event for event in events if isinstance(event, Preview)]
    assert previews
    assert {preview.node_id for preview in previews} == {"3"}
    assert previews[0].to_pil().format == previews[0].content_type.removeprefix("image/").upper()
    assert [event.output.node_id for event in events if isinstance(event, OutputReady)] == ["9"]
    assert events[-1] == StatusChange("succeeded")


async def test_a_waiting_job_gets_its_queue_position(gateway: RunningGateway) -> None:
    blocker = await submit(gateway, sleep_workflow(600))
    waiting = [(await submit(gateway, sleep_workflow(600, tag=tag)))["id"] for tag in (1, 2)]

    async def place(job: str, wanted: int) -> None:
        async with gateway.http.get(f"{JOBS}/{job}/events") as response:
            async for event in events_of(response):
                if event.data == {"status": "queued", "queue_position": wanted}:
                    return

    async with asyncio.timeout(30):
        await asyncio.gather(place(waiting[0], 1), place(waiting[1], 2))
        await ask(gateway, f"{JOBS}/{waiting[0]}/cancel", "POST")
        await place(waiting[1], 1)
    for job in (*waiting, blocker["id"]):
        assert (await ask(gateway, f"{JOBS}/{job}/cancel", "POST"))[0] == 200


async def test_a_cancelled_job_ends_its_stream(gateway: RunningGateway) -> None:
    async with comfy(gateway.url) as client:
        job = await client.submit(client.workflows.from_json(sleep_workflow(600)))
        async with asyncio.timeout(30):
            async for event in job.events():
                if event == StatusChange("running"):
                    await job.cancel()
        assert event == StatusChange("canceled")


async def test_the_stream_of_a_failed_job_has_its_earlier_outputs(gateway: RunningGateway) -> None:
    workflow = sleep_workflow(0.2)
    workflow["5"] = {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "kept"}}
    failing = {"value": ["4", 0], "exception_type": "ValueError", "message": "boom"}
    workflow["6"] = {"class_type": "SimulatedError", "inputs": failing}
    workflow["3"]["inputs"]["images"] = ["6", 0]
    events = await stream(gateway, (await submit(gateway, workflow))["id"])
    assert events[-1] == Sent("status", {"status": "failed"})
    assert [output["node_id"] for output in data_of(events, "output")] == ["5"]


async def test_a_quiet_stream_sends_comments(engine: Engine) -> None:
    def often(options: GatewayOptions) -> GatewayOptions:
        return replace(options, app=replace(options.app, web=replace(options.app.web, keep_alive_s=0.2)))

    async with running_gateway(engine.url, changed=often) as gateway:
        job = (await submit(gateway, sleep_workflow(600)))["id"]
        comments = 0
        async with asyncio.timeout(30), gateway.http.get(f"{JOBS}/{job}/events") as response:
            async for event in events_of(response):
                comments += not event.name
                if comments == 3:
                    break


async def test_a_stream_beyond_the_limit_gets_429_with_retry_after(engine: Engine) -> None:
    async with running_gateway(engine.url) as gateway:
        job = (await submit(gateway, sleep_workflow(600)))["id"]
        async with AsyncExitStack() as stack:
            for _ in range(256):
                stack.enter_context(gateway.app.running.streams.opened(None))
            async with gateway.http.get(f"{JOBS}/{job}/events") as response:
                assert (response.status, response.headers["Retry-After"]) == (429, "5")
                assert code_of(await response.json()) == "too_many_streams"
        async with gateway.http.get(f"{JOBS}/{job}/events") as response:
            assert response.status == 200


async def test_a_head_request_for_events_does_not_wait_for_the_job(gateway: RunningGateway) -> None:
    job = (await submit(gateway, sleep_workflow(600)))["id"]
    assert (await ask(gateway, f"{JOBS}/{job}/events", "HEAD"))[0] == 200


async def test_an_unknown_job_has_no_stream(gateway: RunningGateway) -> None:
    status, body = await ask(gateway, f"{JOBS}/00000000-0000-4000-8000-000000000000/events")
    assert (status, code_of(body)) == (404, "not_found")


async def test_the_sdk_can_follow_a_job_after_its_first_stream_was_cut(gateway: RunningGateway) -> None:
    async def last(client: AsyncComfy, job: str) -> Any:
        return [event async for event in (await client.jobs.get(job)).events()][-1]

    job = (await submit(gateway, sleep_workflow(1.0)))["id"]
    async with gateway.http.get(f"{JOBS}/{job}/events") as response:
        await response.content.readany()
        response.close()
    async with comfy(gateway.url) as client, asyncio.timeout(30):
        assert await last(client, job) == StatusChange("succeeded")
