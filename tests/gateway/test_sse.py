"""`Accept: text/event-stream`: the events of a prompt while it waits and runs."""

from __future__ import annotations

import asyncio
import base64
import io
import socket
from dataclasses import replace
from typing import Any
from uuid import uuid4

import pytest
from PIL import Image

from comfyui.engine import Engine
from comfyui.events import Event, ExecutionCached, ExecutionStart, Preview, ProgressState, QueuePosition
from comfyui.events import Executing as NodeExecuting
from comfyui.events import Progress as Steps
from comfyui.sdk import Executing, Finished, GatewayClient, Progress, Queued
from comfyui.web.api.sse import EventFeed
from comfyui.workflows.progress import NodeProgress, NodeStarted, ProgressTracker
from config import GatewayOptions
from tests.support.engine_workflows import txt2img
from tests.support.outputs import simulated_bytes, simulated_output
from tests.support.running import (
    RunningGateway,
    invert_workflow,
    prompts_are_queued,
    queue_of,
    requests,
    running_gateway,
    sleep_workflow,
    until,
)
from tests.support.sse import Sent, data_of, events_of

SSE = {"Accept": "text/event-stream"}


async def stream(gateway: RunningGateway, workflow: dict[str, Any], query: str = "", **fields: Any) -> list[Sent]:
    url = f"/prompt_sync{query}"
    async with gateway.http.post(url, json={"prompt": workflow, **fields}, headers=SSE) as response:
        return [event async for event in events_of(response)]


def titled_sleep(seconds: float = 0.2, steps: int = 4) -> dict[str, Any]:
    workflow = sleep_workflow(seconds)
    workflow["4"]["inputs"]["steps"] = steps
    workflow["4"]["_meta"] = {"title": "A long wait"}
    return workflow


async def test_events_follow_a_prompt_from_the_queue_to_its_result(gateway: RunningGateway) -> None:
    prompt_id = str(uuid4())
    events = await stream(gateway, titled_sleep(), prompt_id=prompt_id)

    assert events[0] == Sent("queued", {"prompt_id": prompt_id, "position": None})
    assert all(event.data["prompt_id"] == prompt_id for event in events)
    started = data_of(events, "executing")
    assert [event["node"] for event in started] == ["1", "2", "4", "3"]
    assert started[2] == {
        "prompt_id": prompt_id,
        "node": "4",
        "title": "A long wait",
        "class_type": "SimulatedSleep",
    }
    steps = [event for event in data_of(events, "progress") if event["node"] == "4"]
    assert [(event["value"], event["max"]) for event in steps] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    overall = [event["overall"] for event in data_of(events, "progress")]
    assert overall == sorted(overall)
    assert 0 < overall[0] < overall[-1] <= 1
    assert [event.name for event in events[-1:]] == ["result"]
    assert len(data_of(events, "result")) == 1
    assert events[-1].data["images"][0]["filename"] == "test_00001_.png"


async def test_the_result_event_equals_the_json_answer(gateway: RunningGateway) -> None:
    prompt_id = str(uuid4())
    events = await stream(gateway, invert_workflow(1), prompt_id=prompt_id, return_image_base64=True)
    _, body = await gateway.prompt_sync(invert_workflow(1), prompt_id=prompt_id, return_image_base64=True)
    result = events[-1].data
    assert {**result, "timings": None, "execution_time": None} == {**body, "timings": None, "execution_time": None}


async def test_a_large_result_streams_in_one_event(gateway: RunningGateway) -> None:
    size = 3_000_000
    events = await stream(gateway, {"1": simulated_output(size)}, return_image_base64=True)
    content = base64.b64decode(events[-1].data["images"][0]["base64"], validate=True)
    assert content == simulated_bytes(size)


async def test_the_gateway_client_reads_the_events(gateway: RunningGateway) -> None:
    async with GatewayClient(gateway.url) as client:
        events = [event async for event in client.stream(titled_sleep())]
    kinds = {type(event) for event in events}
    assert kinds == {Queued, Executing, Progress, Finished}
    assert isinstance(events[-1], Finished)
    assert events[-1].result.files[0].filename == "test_00001_.png"


async def test_queue_positions_count_down(gateway: RunningGateway, engine: Engine) -> None:
    before = [asyncio.create_task(gateway.prompt_sync(sleep_workflow(600, tag=1)))]
    await prompts_are_queued(engine, 1)
    before.append(asyncio.create_task(gateway.prompt_sync(sleep_workflow(600, tag=2))))
    await prompts_are_queued(engine, 2)
    (first,), (second,) = await queue_of(engine)
    engine.stats.reset()
    events: list[Sent] = []
    async with gateway.http.post("/prompt_sync", json={"prompt": invert_workflow(3)}, headers=SSE) as response:
        async for event in events_of(response):
            events.append(event)
            position = data_of(events, "queued")[-1]["position"]
            if event.name == "queued" and position in {2, 1}:
                engine.wake(first if position == 2 else second)
    await asyncio.gather(*before)

    positions = [data["position"] for data in data_of(events, "queued")]
    assert positions == [None, 2, 1]
    assert requests(engine, "GET /queue") == 0


async def test_queue_positions_count_prompts_of_other_clients(gateway: RunningGateway, engine: Engine) -> None:
    for tag in (1, 2, 3):
        async with gateway.http.post(f"{engine.url}/prompt", json={"prompt": sleep_workflow(600, tag=tag)}):
            pass
    (running,), pending = await queue_of(engine)
    events: list[Sent] = []
    async with gateway.http.post("/prompt_sync", json={"prompt": invert_workflow(4)}, headers=SSE) as response:
        async for event in events_of(response):
            events.append(event)
            if data_of(events, "queued")[-1]["position"] == 3:
                engine.wake(running, *pending)
    positions = [data["position"] for data in data_of(events, "queued")]
    assert positions[:2] == [None, 3]
    assert positions[1:] == sorted(positions[1:], reverse=True)


async def test_previews_are_sent_only_on_request(gateway: RunningGateway) -> None:
    assert not data_of(await stream(gateway, txt2img(steps=20)), "preview")
    previews = data_of(await stream(gateway, txt2img(seed=7, steps=20), "?previews=true"), "preview")
    assert previews
    assert set(previews[0]) == {"prompt_id", "content_type", "image"}
    with Image.open(io.BytesIO(base64.b64decode(previews[0]["image"], validate=True))) as image:
        assert image.format == previews[0]["content_type"].removeprefix("image/").upper()


async def test_a_failing_node_sends_an_error_event(gateway: RunningGateway, engine: Engine) -> None:
    await engine.set_faults({"node_error": {"class_type": "SimulatedSleep", "message": "no such luck"}})
    events = await stream(gateway, titled_sleep())
    assert events[-1].name == "error"
    assert events[-1].data["type"] == "task_failed"
    assert "no such luck" in events[-1].data["detail"]
    assert events[-1].data["request_id"]
    assert not data_of(events, "result")


async def test_an_error_before_the_first_event_keeps_its_http_status(engine: Engine) -> None:
    async with running_gateway(engine.url, max_concurrent_requests=1) as gateway:
        refused = invert_workflow()
        refused["1"]["inputs"]["width"] = 0
        for body, status, kind in [
            ({"prompt": refused}, 400, "validation_failed"),
            ({"prompt": {}}, 400, "validation_failed"),
            ({"promt": {}}, 422, "invalid_request"),
        ]:
            async with gateway.http.post("/prompt_sync", json=body, headers=SSE) as response:
                assert (response.status, (await response.json())["type"]) == (status, kind)
        waiting = asyncio.create_task(gateway.prompt_sync(sleep_workflow(600)))
        await prompts_are_queued(engine, 1)
        async with gateway.http.post("/prompt_sync", json={"prompt": invert_workflow()}, headers=SSE) as response:
            assert response.status == 429
            assert response.headers["Retry-After"]
        waiting.cancel()


async def test_a_quiet_stream_sends_keep_alive_comments(engine: Engine) -> None:
    def changed(made: GatewayOptions) -> GatewayOptions:
        return replace(made, app=replace(made.app, web=replace(made.app.web, keep_alive_s=0.05)))

    async with running_gateway(engine.url, changed=changed) as gateway:
        events = await stream(gateway, sleep_workflow(0.5))
    assert Sent("", "keep-alive") in events
    assert events[-1].name == "result"


async def test_a_client_that_disconnects_cancels_its_prompt(gateway: RunningGateway, engine: Engine) -> None:
    async with gateway.http.post("/prompt_sync", json={"prompt": sleep_workflow(600)}, headers=SSE) as response:
        async for event in events_of(response):
            if event.name == "executing":
                break
        response.close()
    running, _ = await until(lambda: queue_of(engine), lambda queue: not queue[0])
    assert running == []


async def test_an_attached_client_gets_the_events_that_it_missed(gateway: RunningGateway, engine: Engine) -> None:
    prompt_id = str(uuid4())
    first = asyncio.create_task(gateway.prompt_sync(sleep_workflow(1), prompt_id=prompt_id))
    await until(lambda: queue_of(engine), lambda queue: queue[0] == [prompt_id])
    async with gateway.http.get(f"/prompt_sync/{prompt_id}", headers=SSE) as response:
        events = [event async for event in events_of(response)]
    await first
    assert data_of(events, "executing")[0]["class_type"]
    assert events[-1].name == "result"
    async with gateway.http.get(f"/prompt_sync/{prompt_id}", headers=SSE) as response:
        assert [event.name async for event in events_of(response)] == ["queued", "result"]


async def test_a_prompt_of_another_client_can_be_followed(gateway: RunningGateway, engine: Engine) -> None:
    prompt_id = str(uuid4())
    body = {"prompt": sleep_workflow(0.3), "prompt_id": prompt_id, "client_id": "another"}
    async with gateway.http.post(f"{engine.url}/prompt", json=body) as response:
        assert response.status == 200
    async with gateway.http.get(f"/prompt_sync/{prompt_id}", headers=SSE) as response:
        assert [event async for event in events_of(response)][-1].name == "result"


async def test_a_request_for_events_of_an_unknown_prompt_gets_404(gateway: RunningGateway) -> None:
    async with gateway.http.get(f"/prompt_sync/{uuid4()}", headers=SSE) as response:
        assert response.status == 404


async def test_a_client_that_does_not_read_delays_no_other_client(gateway: RunningGateway) -> None:
    """Its events wait, and other prompts run meanwhile."""
    host, port = gateway.url.removeprefix("http://").split(":")
    silent = socket.create_connection((host, int(port)))
    body = b'{"prompt": ' + repr(titled_sleep()).replace("'", '"').encode() + b"}"
    head = f"POST /prompt_sync HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\nContent-Length: {len(body)}\r\n\r\n"
    silent.sendall(head.encode() + body)
    status, _ = await gateway.prompt_sync(invert_workflow(9))
    assert status == 200
    silent.close()


# The feed of events and the tracker of progress, without a gateway


def feed(*, previews: bool = True) -> EventFeed:
    return EventFeed("p", lambda: {"1": {"class_type": "A", "inputs": {}}, "2": {}}, previews=previews)


def test_an_unread_feed_stays_small() -> None:
    silent = feed()
    for step in range(2_000):
        silent(Steps("p", "1", step + 1, 2_000))
        silent(Preview("image/png", bytes(100_000)))
        silent(NodeExecuting("p", str(step)))
    unread = silent.take()
    assert len(unread) < 300_000
    assert unread.count(b"event: preview") == 1
    assert silent.take() == b""


def test_a_running_prompt_gets_no_queue_position() -> None:
    running = feed()
    running(NodeExecuting("p", "1"))
    running.take()
    running(QueuePosition("p", 3))
    assert running.take() == b""


def observed(*events: Event) -> list[NodeStarted | NodeProgress]:
    tracker = ProgressTracker(lambda: {str(number): {"class_type": "A"} for number in range(4)})
    return [step for event in events for step in tracker.observe(event)]


def test_overall_progress_weighs_nodes_by_steps_and_skips_cached_nodes() -> None:
    steps = observed(
        ExecutionStart("p"),
        ExecutionCached("p", ["0"]),
        NodeExecuting("p", "1"),
        Steps("p", "1", 1, 2),
        NodeExecuting("p", "2"),
        Steps("p", "2", 5, 5),
        NodeExecuting("p", None),
    )
    assert [step.overall for step in steps if isinstance(step, NodeProgress)] == [0.25, 0.875]


def test_states_and_steps_of_the_same_moment_are_reported_once() -> None:
    running = {"1": {"state": "running", "value": 1, "max": 2}}
    finished = {"1": {"state": "finished", "value": 2, "max": 2}}
    steps = observed(
        NodeExecuting("p", "1"), ProgressState("p", running), Steps("p", "1", 1, 2), ProgressState("p", finished)
    )
    assert steps == [
        NodeStarted("1", "A", "A"),
        NodeProgress("1", 1, 2, 0.2),
        NodeProgress("1", 2, 2, 0.4),
    ]


def test_progress_starts_from_the_beginning_with_a_second_run() -> None:
    steps = observed(Steps("p", "1", 2, 2), ExecutionStart("p"), Steps("p", "1", 1, 2))
    assert [step.overall for step in steps if isinstance(step, NodeProgress)] == [0.4, 0.2]


async def test_a_failing_event_reader_does_not_fail_the_prompt(
    gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(_self: ProgressTracker, _event: Event) -> list[NodeStarted]:
        raise RuntimeError("an event of an unknown shape")

    monkeypatch.setattr(ProgressTracker, "observe", failing)
    events = await stream(gateway, invert_workflow(5))
    assert events[-1].name == "result"
    assert (await gateway.prompt_sync(invert_workflow(6)))[0] == 200
