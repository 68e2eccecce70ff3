"""Faults of ComfyUI and of the network, and what the caller still gets (docs/reliability.md)."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from typing import Any

import pytest
from structlog.testing import capture_logs

from comfyui.client import ComfyUIClient
from comfyui.engine import Engine, EngineOptions
from tests.support.running import (
    RunningGateway,
    executions,
    invert_workflow,
    prompts_are_queued,
    queue_of,
    requests,
    running_gateway,
    server_options,
    sleep_workflow,
    until,
)

DEAD = "00000000-0000-4000-8000-00000000dead"
POLLS_SOON = server_options(poll_interval_s=0.1, tick_s=0.1)


@pytest.mark.parametrize("fault", ["prompt_reply_lost_before_queue", "prompt_reply_lost_after_queue"])
async def test_a_lost_reply_to_the_submission_leads_to_one_execution(
    gateway: RunningGateway, engine: Engine, fault: str
) -> None:
    await engine.set_faults({fault: {"times": 1}})
    status, body = await gateway.prompt_sync(invert_workflow())
    assert status == 200
    assert executions(engine) == {body["prompt_id"]: 1}


async def test_a_truncated_reply_to_the_submission_leads_to_one_execution(
    gateway: RunningGateway, engine: Engine
) -> None:
    await engine.set_faults({"half_json": {"route": "/prompt", "method": "POST", "times": 1}})
    status, body = await gateway.prompt_sync(invert_workflow())
    assert status == 200
    assert executions(engine) == {body["prompt_id"]: 1}


async def test_an_empty_reply_to_the_submission_leads_to_one_execution(gateway: RunningGateway, engine: Engine) -> None:
    await engine.set_faults({"wrong_value": {"route": "/prompt", "method": "POST", "raw": "", "times": 1}})
    status, body = await gateway.prompt_sync(invert_workflow())
    assert status == 200
    assert executions(engine) == {body["prompt_id"]: 1}


async def test_a_bad_gateway_reply_to_the_submission_leads_to_one_execution(
    gateway: RunningGateway, engine: Engine
) -> None:
    await engine.set_faults({"status": {"route": "/prompt", "method": "POST", "status": 502, "times": 1}})
    status, body = await gateway.prompt_sync(invert_workflow())
    assert status == 200
    assert executions(engine) == {body["prompt_id"]: 1}


async def test_a_submission_without_any_reply_fails_with_the_prompt_id(engine: Engine) -> None:
    await engine.set_faults({"prompt_reply_lost_before_queue": {}})
    async with running_gateway(engine.url, http_retries=1) as gateway:
        status, body = await gateway.prompt_sync(invert_workflow())
    assert status == 502
    assert body["type"] == "submission_unknown"
    assert body["prompt_id"]
    assert executions(engine) == {}


async def test_prompts_survive_a_dropped_websocket(gateway: RunningGateway, engine: Engine) -> None:
    waiting = [asyncio.create_task(gateway.prompt_sync(sleep_workflow(0.2, tag=tag))) for tag in range(4)]
    await prompts_are_queued(engine, 4)
    await engine.set_faults({"ws_drop": {"abrupt": True}})
    assert [status for status, _ in await asyncio.gather(*waiting)] == [200] * 4
    assert set(executions(engine).values()) == {1}


async def test_prompts_run_by_polling_when_websockets_are_refused(engine: Engine) -> None:
    await engine.set_faults({"ws_refuse": {}})
    async with running_gateway(engine.url) as gateway:
        started = time.monotonic()
        results = await asyncio.gather(*(gateway.prompt_sync(sleep_workflow(0.1, tag=tag)) for tag in range(5)))
        took_s = time.monotonic() - started
        async with gateway.http.get("/health") as response:
            health = await response.json()
    assert [status for status, _ in results] == [200] * 5
    assert took_s < 20
    assert health["servers"][0]["websocket"] == "disconnected"
    assert health["status"] == "healthy"


async def test_a_silent_websocket_is_detected_while_comfyui_stays_healthy(
    gateway: RunningGateway, engine: Engine
) -> None:
    waiting = [asyncio.create_task(gateway.prompt_sync(sleep_workflow(0.2, tag=tag))) for tag in range(3)]
    await prompts_are_queued(engine, 3)
    await engine.set_faults({"ws_silent": {}})
    started = time.monotonic()
    assert [status for status, _ in await asyncio.gather(*waiting)] == [200] * 3
    assert time.monotonic() - started < 30
    async with gateway.http.get("/health") as response:
        health = await response.json()
    assert health["status"] == "healthy"
    assert health["servers"][0]["websocket"] == "silent"
    assert reconnects(gateway, "silent") >= 1


async def test_a_new_websocket_never_reuses_a_client_id(gateway: RunningGateway, engine: Engine) -> None:
    await engine.set_faults({"ws_deaf_reconnect": {}})
    watcher = gateway.handler.pool.backends[0].watcher
    seen = {watcher.client_id}
    for _ in range(3):
        await engine.set_faults({"ws_drop": {}})
        async with asyncio.timeout(30):
            while watcher.client_id in seen or not watcher.connected:
                await asyncio.sleep(0.01)
        seen.add(watcher.client_id)
        status, _ = await gateway.prompt_sync(invert_workflow(len(seen)))
        assert status == 200
    assert len(seen) == 4


@pytest.mark.parametrize(
    "fault",
    [
        {"status": {"route": "/history/*", "status": 500, "times": 3}},
        {"half_json": {"route": "/history/*", "times": 3}},
        {"hang": {"route": "/history/*", "seconds": 60, "times": 2}},
        {"cut": {"route": "/history/*", "times": 6}},
    ],
    ids=["500", "truncated JSON", "hangs", "cut"],
)
async def test_a_history_that_fails_for_a_while_delays_the_result_only(engine: Engine, fault: dict[str, Any]) -> None:
    async with running_gateway(engine.url, http_timeout=0.5) as gateway:
        await engine.set_faults(fault)
        status, body = await gateway.prompt_sync(invert_workflow())
    assert status == 200
    assert executions(engine) == {body["prompt_id"]: 1}


async def test_a_history_that_stays_away_ends_in_a_timeout(gateway: RunningGateway, engine: Engine) -> None:
    await engine.set_faults({"status": {"route": "/history/*", "status": 500}})
    status, body = await gateway.prompt_sync(invert_workflow(), timeout=1.5)
    assert status == 504
    assert body["prompt_id"]
    assert requests(engine, "GET /history/{prompt_id}") < 15, "without back-off"


@pytest.mark.parametrize(
    "fault",
    [
        {"status": {"route": "/queue", "status": 500, "times": 2}},
        {"half_json": {"route": "/queue", "times": 2}},
        {"hang": {"route": "/queue", "seconds": 60, "times": 1}},
    ],
    ids=["500", "truncated JSON", "hangs"],
)
async def test_forgotten_prompts_are_submitted_again_although_the_queue_fails_for_a_while(
    engine: Engine, fault: dict[str, Any]
) -> None:
    async with running_gateway(engine.url, http_timeout=0.5) as gateway:
        first = asyncio.create_task(gateway.prompt_sync(sleep_workflow(0.5)))
        second = asyncio.create_task(gateway.prompt_sync(sleep_workflow(0.1, tag=1)))
        await prompts_are_queued(engine, 2)
        await engine.set_faults(fault)
        await engine.set_faults({"forget": {}})
        assert [status for status, _ in await asyncio.gather(first, second)] == [200, 200]


async def test_forgotten_prompts_are_submitted_again(gateway: RunningGateway, engine: Engine) -> None:
    waiting = [asyncio.create_task(gateway.prompt_sync(sleep_workflow(0.3, tag=tag))) for tag in range(4)]
    await prompts_are_queued(engine, 4)
    started = time.monotonic()
    await engine.set_faults({"forget": {}})
    assert [status for status, _ in await asyncio.gather(*waiting)] == [200] * 4
    assert time.monotonic() - started < 30


async def test_a_forgotten_prompt_is_lost_without_retries(engine: Engine) -> None:
    async with running_gateway(engine.url, lost_prompt_retries=0) as gateway:
        waiting = asyncio.create_task(gateway.prompt_sync(sleep_workflow(30)))
        await prompts_are_queued(engine, 1)
        await engine.set_faults({"forget": {}})
        status, body = await waiting
    assert status == 502
    assert body["type"] == "prompt_lost"
    assert body["prompt_id"]


@pytest.mark.parametrize("comes_back", [True, False], ids=["websocket returns", "websocket stays away"])
async def test_prompts_forgotten_while_the_websocket_is_down_are_submitted_again(
    engine: Engine, comes_back: bool
) -> None:
    """The gateway cannot see the restart, because it has no websocket before or after it."""
    async with running_gateway(engine.url, changed=POLLS_SOON) as gateway:
        await gateway.prompt_sync(invert_workflow())
        await without_websocket(gateway, engine)
        waiting = asyncio.create_task(gateway.prompt_sync(sleep_workflow(0.5)))
        await prompts_are_queued(engine, 1)
        await engine.set_faults({"forget": {}})
        if comes_back:
            engine.faults.switch_off("ws_refuse")
        assert (await waiting)[0] == 200
        assert resubmissions(gateway, "prompt_lost") == 1


async def test_a_prompt_forgotten_before_its_reply_is_read_is_submitted_again(
    gateway: RunningGateway, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The websocket broke and reconnected before the reply was read, so nothing shows the loss afterwards."""
    backend = gateway.handler.pool.backends[0]
    queue_prompt = backend.client.queue_prompt

    async def read_late(*args: Any, **kwargs: Any) -> Any:
        monkeypatch.undo()
        queued = await queue_prompt(*args, **kwargs)
        before = backend.watcher.epoch
        await engine.set_faults({"forget": {}})
        await until(lambda: connections(gateway), lambda seen: seen[0] >= before + 2 and seen[1])
        return queued

    monkeypatch.setattr(backend.client, "queue_prompt", read_late)
    status, body = await gateway.prompt_sync(sleep_workflow(0.3))
    assert (status, body.get("detail")) == (200, None)
    assert resubmissions(gateway, "prompt_lost") == 1


async def test_a_prompt_removed_while_the_websocket_is_down_is_not_submitted_again(engine: Engine) -> None:
    async with running_gateway(engine.url, changed=POLLS_SOON) as gateway, ComfyUIClient(engine.url) as other:
        await gateway.prompt_sync(invert_workflow())
        await without_websocket(gateway, engine)
        await other.queue_prompt({"prompt": sleep_workflow(0.3), "client_id": "another's"})
        waiting = asyncio.create_task(gateway.prompt_sync(sleep_workflow(30, tag=1)))
        await prompts_are_queued(engine, 2)
        (prompt_id,) = (item.prompt_id for item in (await other.get_queue()).values() if not item.running)
        await other.delete_from_queue(prompt_id)
        status, body = await waiting
    assert (status, body["type"]) == (409, "task_cancelled")
    assert prompt_id not in executions(engine)


async def test_an_executed_and_forgotten_prompt_counts_as_lost_and_not_as_never_submitted(engine: Engine) -> None:
    """The reply to the submission is lost, and ComfyUI forgets the prompt before the gateway asks for it."""
    async with running_gateway(engine.url, lost_prompt_retries=0, http_timeout=10) as gateway:
        await gateway.prompt_sync(invert_workflow())
        hang = {"route": "/history/*", "seconds": 2.0, "times": 1}
        await engine.set_faults({"prompt_reply_lost_after_queue": {"times": 1}, "hang": hang})
        before = await signs(gateway)
        waiting = asyncio.create_task(gateway.prompt_sync(sleep_workflow(0.05)))
        await until(lambda: executed(engine), lambda count: count == 2)
        # The first frames may concern the queue only; the later ones show the gateway that the prompt runs.
        await until(lambda: signs(gateway), lambda now: now >= before + 4)
        await engine.set_faults({"forget": {}})
        status, body = await waiting
    assert (status, body["type"]) == (502, "prompt_lost")
    assert list(executions(engine).values()) == [1, 1]


async def test_a_prompt_that_may_have_run_unnoticed_counts_as_lost(engine: Engine) -> None:
    """The websocket is silent; only its loss shows the gateway that ComfyUI may have restarted."""
    async with running_gateway(engine.url, http_timeout=10) as gateway:
        hang = {"route": "/history/*", "seconds": 2.0, "times": 1}
        lost = {"prompt_reply_lost_after_queue": {"times": 1}}
        await engine.set_faults({"ws_silent": {}, "hang": hang, **lost})
        waiting = asyncio.create_task(gateway.prompt_sync(sleep_workflow(0.05)))
        await until(lambda: executed(engine), lambda count: count == 1)
        await until(lambda: queue_of(engine), lambda queue: queue == ([], []))
        engine.faults.switch_off("ws_silent")
        await engine.set_faults({"forget": {}})
        assert (await waiting)[0] == 200
        assert (resubmissions(gateway, "prompt_lost"), resubmissions(gateway, "reply_lost")) == (1, 0)
    assert list(executions(engine).values()) == [2]


async def executed(engine: Engine) -> int:
    return len(executions(engine))


async def connections(gateway: RunningGateway) -> tuple[int, bool]:
    watcher = gateway.handler.pool.backends[0].watcher
    return watcher.epoch, watcher.connected


async def signs(gateway: RunningGateway) -> int:
    return gateway.handler.pool.backends[0].watcher.signs


async def without_websocket(gateway: RunningGateway, engine: Engine) -> None:
    """Drops the websocket of the gateway and refuses new ones."""
    await engine.set_faults({"ws_refuse": {}, "ws_drop": {}})
    watcher = gateway.handler.pool.backends[0].watcher
    async with asyncio.timeout(30):
        while watcher.connected:
            await asyncio.sleep(0.005)


def reconnects(gateway: RunningGateway, reason: str) -> float:
    server = gateway.handler.pool.backends[0].name
    metrics = gateway.handler.metrics
    return (
        metrics.registry.get_sample_value(
            "comfyui_gateway_websocket_reconnects_total", {"server": server, "reason": reason}
        )
        or 0.0
    )


# Faults of the GPU and of ComfyUI itself


async def test_a_missing_file_of_a_cached_result_is_rendered_again(gateway: RunningGateway, engine: Engine) -> None:
    _, first = await gateway.prompt_sync(invert_workflow(), return_image_base64=True)
    (engine.folders.output / first["images"][0]["filename"]).unlink()
    status, second = await gateway.prompt_sync(invert_workflow(), return_image_base64=True)
    assert status == 200
    assert second["images"][0]["base64"]
    assert executions(engine)[second["prompt_id"]] == 2, "once from the cache, once for real"
    assert resubmissions(gateway, "output_gone") == 1


async def test_an_empty_cached_result_is_rendered_again(gateway: RunningGateway, engine: Engine) -> None:
    await gateway.prompt_sync(invert_workflow())
    await engine.set_faults({"cached_empty": {"times": 1}})
    status, body = await gateway.prompt_sync(invert_workflow())
    assert status == 200
    assert len(body["images"]) == 1


async def test_a_complete_cached_result_is_not_rendered_again(gateway: RunningGateway, engine: Engine) -> None:
    await gateway.prompt_sync(invert_workflow())
    status, body = await gateway.prompt_sync(invert_workflow())
    assert status == 200
    assert executions(engine)[body["prompt_id"]] == 1


async def test_after_out_of_memory_the_next_prompt_runs(gateway: RunningGateway, engine: Engine) -> None:
    await engine.set_faults({"out_of_memory": {"class_type": "ImageInvert"}})
    status, body = await gateway.prompt_sync(invert_workflow())
    assert (status, body["type"]) == (500, "task_failed")
    assert "OutOfMemoryError" in body["detail"]
    assert requests(engine, "POST /free") == 1
    assert (await gateway.prompt_sync(invert_workflow()))[0] == 200


async def test_oom_retries_repeat_a_prompt_that_ran_out_of_memory(engine: Engine) -> None:
    await engine.set_faults({"out_of_memory": {"class_type": "ImageInvert"}})
    async with running_gateway(engine.url, oom_retries=1) as gateway:
        status, _ = await gateway.prompt_sync(invert_workflow())
    assert status == 200


async def test_after_a_gpu_fault_the_server_is_not_ready_until_its_restart(
    gateway: RunningGateway, engine: Engine
) -> None:
    await engine.set_faults({"cuda_fault": {}})
    status, body = await gateway.prompt_sync(invert_workflow())
    assert (status, body["type"]) == (500, "task_failed")
    async with gateway.http.get("/health/ready") as response:
        assert response.status == 503
        assert "GPU fault" in (await response.json())["reason"]
    status, body = await gateway.prompt_sync(invert_workflow())
    assert (status, body["type"]) == (503, "connection_failed")
    assert "GPU fault" in body["detail"]

    engine.faults.clear()
    await engine.set_faults({"forget": {}})  # the restart
    async with asyncio.timeout(30):
        while (await ready_status(gateway)) != 200:
            await asyncio.sleep(0.02)
    assert (await gateway.prompt_sync(invert_workflow()))[0] == 200


async def test_a_dead_prompt_worker_is_detected_although_http_works(engine: Engine) -> None:
    await engine.set_faults({"prompt_thread_dead": {}})
    async with running_gateway(engine.url, changed=server_options(stalled_after_s=0.5)) as gateway:
        waiting = asyncio.create_task(gateway.prompt_sync(invert_workflow()))
        async with asyncio.timeout(30):
            while (await ready_status(gateway)) != 503:
                await asyncio.sleep(0.02)
        async with gateway.http.get("/health") as response:
            health = await response.json()
        assert health["status"] == "unhealthy"
        assert "prompt worker" in health["error"]

        engine.faults.clear()
        assert (await waiting)[0] == 200
        assert await ready_status(gateway) == 200


async def test_a_refusal_does_not_wait_for_its_explanation(engine: Engine) -> None:
    workflow = invert_workflow()
    workflow["2"]["class_type"] = "ImageInvrt"
    async with running_gateway(engine.url, changed=server_options(definitions_within_s=0.3)) as gateway:
        await engine.set_faults({"hang": {"route": "/object_info"}})
        async with asyncio.timeout(30):
            status, body = await gateway.prompt_sync(workflow)
    engine.faults.clear()
    assert (status, body["type"]) == (400, "validation_failed")


async def test_a_reconnect_or_a_failed_probe_does_not_clear_a_gpu_fault(
    gateway: RunningGateway, engine: Engine
) -> None:
    """Neither is a restart: ComfyUI still knows the failed prompt."""
    await engine.set_faults({"cuda_fault": {}})
    await gateway.prompt_sync(invert_workflow())
    assert await ready_status(gateway) == 503

    await reconnected(gateway, engine)
    assert "GPU fault" in await reason_not_ready(gateway)

    await engine.set_faults({"ws_refuse": {}, "status": {"route": "/prompt", "method": "GET"}, "ws_drop": {}})
    await until(lambda: reason_not_ready(gateway), lambda reason: "HTTP 500" in reason)
    engine.faults.clear()
    await until(lambda: reason_not_ready(gateway), lambda reason: "HTTP 500" not in reason)
    assert "GPU fault" in await reason_not_ready(gateway)

    await engine.set_faults({"forget": {}})  # the restart
    await until(lambda: ready_status(gateway), lambda status: status == 200)
    assert (await gateway.prompt_sync(invert_workflow()))[0] == 200


async def test_a_restart_after_a_gpu_fault_is_detected_without_a_websocket(engine: Engine) -> None:
    await engine.set_faults({"ws_refuse": {}, "cuda_fault": {}})
    async with running_gateway(engine.url, changed=server_options(probe_unwatched_s=0.1)) as gateway:
        await gateway.prompt_sync(invert_workflow())
        await asyncio.sleep(0.5)
        assert await ready_status(gateway) == 503
        engine.faults.switch_off("cuda_fault")
        await engine.set_faults({"forget": {}})
        await until(lambda: ready_status(gateway), lambda status: status == 200)


async def test_a_cached_result_does_not_clear_a_gpu_fault(gateway: RunningGateway, engine: Engine) -> None:
    cached = invert_workflow()
    assert (await gateway.prompt_sync(cached))[0] == 200
    failing = {**sleep_workflow(0.2), "3": cached["3"], "5": sleep_workflow(0.2)["3"]}
    message = "CUDA error: an illegal memory access was encountered"
    await engine.set_faults({"node_error": {"node_id": "5", "message": message}})
    first = asyncio.create_task(gateway.prompt_sync(failing))
    await prompts_are_queued(engine, 1)
    assert (await gateway.prompt_sync(cached))[0] == 200
    assert (await first)[0] == 500
    assert "GPU fault" in await reason_not_ready(gateway)


async def test_a_dead_prompt_worker_is_cleared_by_a_restart_but_not_by_a_reconnect(engine: Engine) -> None:
    await engine.set_faults({"prompt_thread_dead": {}})
    async with running_gateway(engine.url, changed=server_options(stalled_after_s=0.5)) as gateway:
        waiting = asyncio.create_task(gateway.prompt_sync(invert_workflow()))
        await until(lambda: ready_status(gateway), lambda status: status == 503)
        await reconnected(gateway, engine)
        assert "prompt worker" in await reason_not_ready(gateway)

        await engine.set_faults({"forget": {}})  # the restart
        engine.faults.clear()
        await until(lambda: ready_status(gateway), lambda status: status == 200)
        assert (await waiting)[0] == 200


async def reconnected(gateway: RunningGateway, engine: Engine) -> None:
    """Drops the websocket of the gateway; returns after the reconnect and the reactions to it."""
    watcher = gateway.handler.pool.backends[0].watcher
    before = watcher.client_id
    await engine.set_faults({"ws_drop": {}})
    async with asyncio.timeout(30):
        while watcher.client_id == before:
            await asyncio.sleep(0.005)
    await asyncio.sleep(0.2)


async def reason_not_ready(gateway: RunningGateway) -> str:
    """Returns the reason, or "" when the gateway is ready."""
    async with gateway.http.get("/health/ready") as response:
        reason: str = (await response.json()).get("reason", "")
        return reason


async def ready_status(gateway: RunningGateway) -> int:
    async with gateway.http.get("/health/ready") as response:
        return response.status


def resubmissions(gateway: RunningGateway, reason: str) -> float:
    name = "comfyui_gateway_resubmissions_total"
    return gateway.handler.metrics.registry.get_sample_value(name, {"reason": reason}) or 0.0


async def test_a_worker_that_died_during_a_prompt_is_reported_as_silent(engine: Engine) -> None:
    await engine.set_faults({"prompt_thread_dies": {}})
    async with running_gateway(
        engine.url, silent_after=0.6, changed=server_options(poll_interval_s=0.1, tick_s=0.1, stalled_after_s=0.3)
    ) as gateway:
        with capture_logs() as lines:
            dead = asyncio.create_task(gateway.prompt_sync(invert_workflow(), timeout=6, prompt_id=DEAD))
            await prompts_are_queued(engine, 1)
            status, behind = await gateway.prompt_sync(invert_workflow(1), timeout=5)
            assert (await dead)[0] == 504
        assert (status, behind["type"]) == (504, "timeout")
        assert re.search(rf"ComfyUI has run prompt {DEAD} for \d+ s without any event", behind["detail"]), behind
        assert [line["prompt_id"] for line in lines if line["event"] == "comfyui.silent"] == [DEAD]

        async with gateway.http.get("/health") as response:
            server = (await response.json())["servers"][0]
        assert response.status == 200
        assert server["silent"]["prompt_id"] == DEAD
        assert server["silent"]["seconds"] > 1
        assert await ready_status(gateway) == 200, "a node may run for two hours"
        async with gateway.http.get("/metrics") as response:
            text = await response.text()
        assert float(re.findall(r"comfyui_gateway_silent_seconds\{.*\} (\S+)", text)[0]) > 1

        # The waits of several short requests add up.
        before = server["silent"]["seconds"]
        for color in range(3):
            await gateway.prompt_sync(invert_workflow(color + 2), timeout=0.2)
        async with gateway.http.get("/health") as response:
            assert (await response.json())["servers"][0]["silent"]["seconds"] > before

        await engine.set_faults({"forget": {}})  # the restart
        await until(lambda: silent(gateway), lambda told: told is None)


async def test_a_server_with_a_dead_worker_is_not_ready_until_it_restarts(engine: Engine) -> None:
    await engine.set_faults({"prompt_thread_dies": {}})
    async with running_gateway(engine.url, dead_after=0.6, changed=server_options(stalled_after_s=0.3)) as gateway:
        waiting = asyncio.create_task(gateway.prompt_sync(invert_workflow(), timeout=20))
        await until(lambda: ready_status(gateway), lambda status: status == 503)
        assert "prompt worker counts as dead" in await reason_not_ready(gateway)
        await reconnected(gateway, engine)
        assert "prompt worker counts as dead" in await reason_not_ready(gateway)
        await engine.set_faults({"forget": {}})  # the restart
        await until(lambda: ready_status(gateway), lambda status: status == 200)
        waiting.cancel()


async def test_one_long_node_with_events_is_not_silent(engine: Engine) -> None:
    async with running_gateway(
        engine.url, silent_after=0.2, dead_after=5, changed=server_options(stalled_after_s=0.1)
    ) as gateway:
        workflow = sleep_workflow(1)
        workflow["4"]["inputs"]["steps"] = 40
        with capture_logs() as lines:
            assert (await gateway.prompt_sync(workflow))[0] == 200
        assert not [line for line in lines if line["event"] in {"comfyui.silent", "comfyui.stalled"}]
        assert await silent(gateway) is None


async def silent(gateway: RunningGateway) -> Any:
    async with gateway.http.get("/health") as response:
        return (await response.json())["servers"][0]["silent"]


async def test_the_error_of_a_timeout_says_that_the_server_is_unreachable() -> None:
    async with contextlib.AsyncExitStack() as stack:
        engine = await stack.enter_async_context(Engine(EngineOptions()))
        async with running_gateway(engine.url, cancel_on_timeout=False) as gateway:
            waiting = asyncio.create_task(gateway.prompt_sync(sleep_workflow(60), timeout=4))
            await prompts_are_queued(engine, 1)
            await stack.aclose()
            status, body = await waiting
    assert (status, body["type"]) == (504, "timeout")
    assert body["detail"].startswith("the prompt did not finish within 4 s; 127.0.0.1:")
    assert "cannot be reached" in body["detail"]
