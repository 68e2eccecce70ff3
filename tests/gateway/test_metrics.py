"""`GET /metrics` counts requests, jobs and bytes; the dashboard queries only metrics that exist."""

from __future__ import annotations

import asyncio
import json
import math
import re
import time
from pathlib import Path
from typing import Any

from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from comfyui.engine import Engine
from comfyui.jobs.journal.memory import MemoryJournal
from comfyui.jobs.measures import measure_jobs
from comfyui.jobs.queue_options import QueueOptions
from comfyui.metrics import Metrics
from tests.support.jobs import fetch as fetch_job
from tests.support.jobs import status_is, submit
from tests.support.relaying import eventually, fetch
from tests.support.running import (
    RunningGateway,
    handler_options,
    invert_workflow,
    prompts_are_queued,
    queued_elsewhere,
    running_gateway,
    sleep_workflow,
    until,
)
from tests.support.runpod_endpoint import DATA, KEY, NOWHERE, FakeEndpoint, base64_image
from tests.support.runpod_endpoint import submit as post_prompt

ROOT = Path(__file__).parents[2]


async def _samples(gateway: RunningGateway, **headers: str) -> dict[str, float]:
    """Each sample by its name and labels, ``name{label=value,…}`` in the order of the labels' names."""
    answer = await fetch(gateway, "/metrics", headers=headers)
    assert answer.status == 200
    assert answer.headers["Content-Type"].startswith("text/plain; version=")
    found = {}
    for family in text_string_to_metric_families(answer.body.decode()):
        for sample in family.samples:
            labels = ",".join(f"{name}={sample.labels[name]}" for name in sorted(sample.labels) if name != "server")
            found[f"{sample.name}{{{labels}}}"] = sample.value
    return found


async def test_prompts_are_counted_by_outcome_and_their_stages_are_timed(gateway: RunningGateway) -> None:
    await gateway.prompt_sync(invert_workflow(1))
    await gateway.prompt_sync({"1": {"class_type": "NoSuchNode", "inputs": {}}})

    samples = await _samples(gateway)
    assert samples["comfyui_gateway_prompts_total{outcome=success}"] == 1
    assert samples["comfyui_gateway_prompts_total{outcome=validation_failed}"] == 1
    stages = [name for name in samples if name.startswith("comfyui_gateway_stage_seconds_count")]
    assert {name: samples[name] for name in stages} == {
        f"comfyui_gateway_stage_seconds_count{{stage={stage}}}": 1
        for stage in ("staging", "queued", "executing", "collecting")
    }, "no label for each node"
    assert samples["comfyui_gateway_waiting_requests{}"] == 0
    assert samples["comfyui_gateway_server_up{}"] == 1
    assert samples["comfyui_gateway_websocket_connected{}"] == 1


async def test_metrics_have_jobs_by_state_and_the_age_of_the_oldest_waiting_job(tmp_path: Path, engine: Engine) -> None:
    options = handler_options(queue=QueueOptions(ahead=1))
    async with running_gateway(engine.url, state_dir=tmp_path, changed=options) as gateway:
        done = await submit(gateway.http, invert_workflow(1))
        await fetch_job(gateway.http, done)
        running = await submit(gateway.http, sleep_workflow(30))
        await status_is(gateway.http, running, "running")
        before = time.time()
        waiting = [await submit(gateway.http, invert_workflow(tag)) for tag in (2, 3)]
        samples = await _samples(gateway)
        assert _by_state(samples) == {"queued": 2, "running": 1, "succeeded": 1}
        assert 0 <= samples["comfyui_gateway_oldest_waiting_job_seconds{}"] <= time.time() - before
        # Two writes for each job, a place and a start for each of the two that ran, and one end.
        kept = samples["comfyui_gateway_journal_writes_total{outcome=kept}"]
        assert kept >= 4 + 2 + 2 + 1
        assert 1 <= samples["comfyui_gateway_journal_commit_seconds_count{}"] <= kept
        assert samples["comfyui_gateway_journal_writes_total{outcome=failed}"] == 0

        for prompt_id in (*waiting, running):
            async with gateway.http.delete(f"/prompt_sync/{prompt_id}") as response:
                assert response.status == 200
        samples = await _samples(gateway)
        assert _by_state(samples) == {"canceled": 3, "succeeded": 1}
        assert samples["comfyui_gateway_oldest_waiting_job_seconds{}"] == 0


def _by_state(samples: dict[str, float]) -> dict[str, float]:
    start = "comfyui_gateway_jobs{state="
    found = {name.removeprefix(start).rstrip("}"): samples[name] for name in samples if name.startswith(start)}
    return {state: count for state, count in found.items() if count}


class _Stuck(MemoryJournal):
    """A journal on a disk that does not answer."""

    async def counts(self) -> Any:
        await asyncio.Event().wait()


async def test_a_stuck_journal_does_not_hold_up_the_metrics() -> None:
    metrics = Metrics()
    await measure_jobs(MemoryJournal(), metrics)
    assert metrics.registry.get_sample_value("comfyui_gateway_jobs", {"state": "queued"}) == 0
    await measure_jobs(_Stuck(), metrics, patience_s=0.05)
    assert metrics.registry.get_sample_value("comfyui_gateway_jobs", {"state": "queued"}) is None
    assert math.isnan(metrics.registry.get_sample_value("comfyui_gateway_oldest_waiting_job_seconds") or 0)


async def outcomes(gateway: RunningGateway, count: int) -> dict[str, float]:
    """Prompts by outcome, after at least `count` have ended."""

    async def counted() -> dict[str, float]:
        start = "comfyui_gateway_prompts_total{outcome="
        found = (await _samples(gateway)).items()
        return {name.removeprefix(start).rstrip("}"): value for name, value in found if name.startswith(start)}

    return await until(counted, lambda found: sum(found.values()) >= count)


async def test_timeouts_and_disconnects_are_counted_as_different_outcomes(
    gateway: RunningGateway, engine: Engine
) -> None:
    assert (await gateway.prompt_sync(sleep_workflow(30), timeout=0.2))[0] == 504
    assert await outcomes(gateway, 1) == {"timeout": 1}

    leaving = asyncio.create_task(gateway.prompt_sync(sleep_workflow(30, tag=1)))
    await prompts_are_queued(engine, 1)
    leaving.cancel()
    assert await outcomes(gateway, 2) == {"timeout": 1, "task_cancelled": 1}

    (foreign,) = await queued_elsewhere(engine.url, sleep_workflow(30, tag=2))
    async with gateway.http.get(f"/prompt_sync/{foreign}?timeout=0.2") as response:
        assert response.status == 504
    assert await outcomes(gateway, 3) == {"timeout": 2, "task_cancelled": 1}


async def test_relayed_requests_are_counted_by_route_and_in_bytes(gateway: RunningGateway) -> None:
    body = b'{"a": 1}'
    await fetch(gateway, "/api/userdata/x%2Fy.json", "POST", data=body)
    stored = await fetch(gateway, "/userdata/x%2Fy.json")
    await fetch(gateway, "/some/custom-node/route")
    async with gateway.http.ws_connect("/ws?clientId=a") as websocket:
        greeting = await websocket.receive_str()
        samples = await _samples(gateway)
        assert samples["comfyui_gateway_relayed_websockets{}"] == 1
    await eventually(lambda: gateway.app.running.metrics.relayed_websockets._value.get() == 0)

    route = "comfyui_gateway_upstream_requests_total{{method={},route={},status={}}}".format
    assert samples[route("POST", "/userdata/*", 200)] == 1
    assert samples[route("GET", "/userdata/*", 200)] == 1
    assert samples[route("GET", "other", 404)] == 1
    assert samples["comfyui_gateway_relayed_bytes_total{direction=to_comfyui}"] == len(body)
    assert samples["comfyui_gateway_relayed_bytes_total{direction=to_client}"] >= len(stored.body) + len(greeting)


async def test_callers_cannot_create_labels_of_metrics(gateway: RunningGateway) -> None:
    """Each new label value takes memory for ever, so an attacker could use up the memory with paths and methods."""
    for number in range(50):
        await fetch(gateway, f"/attack/{number}", "GET")
        await fetch(gateway, f"/view/{number}/{number}", "GET")
        await fetch(gateway, f"/x{number}", f"X{number}")
    labels = [name for name in await _samples(gateway) if name.startswith("comfyui_gateway_upstream_requests_total")]
    assert len(labels) < 10


async def test_refusals_are_counted_by_reason(engine: Engine) -> None:
    async with running_gateway(engine.url, api_keys="k", max_upload_mb=0.001) as gateway:
        key = {"X-API-Key": "k"}
        await fetch(gateway, "/queue")
        await fetch(gateway, "/queue", headers={**key, "Origin": "https://evil.example"})
        await fetch(gateway, "/internal/logs", headers=key)
        await fetch(gateway, "/upload/image", "POST", data=bytes(2000), headers=key)

        samples = await _samples(gateway, **key)
        for reason in ("unauthorized", "origin", "denied", "body_too_large"):
            assert samples[f"comfyui_gateway_rejected_requests_total{{reason={reason}}}"] == 1, reason


async def test_runpod_jobs_requests_and_result_bytes_are_counted(
    endpoint: FakeEndpoint, runpod_gateway: RunningGateway
) -> None:
    prefix = "comfyui_gateway_runpod_"

    async def jobs() -> tuple[float, ...]:
        samples = await _samples(runpod_gateway)
        return tuple(samples[f"{prefix}jobs{{state={state}}}"] for state in ("waiting", "pending", "running"))

    for number in (1, 2):
        await post_prompt(runpod_gateway, invert_workflow(number))
        await endpoint.job(number)
    endpoint.says("job-1", "IN_PROGRESS")
    await until(jobs, lambda counts: counts == (0, 1, 1))
    endpoint.refusals.append("late")
    await post_prompt(runpod_gateway, invert_workflow(3))
    await endpoint.job(3)
    assert await jobs() == (1, 1, 1)
    await until(jobs, lambda counts: counts == (0, 2, 1))
    endpoint.refusals.append(400)
    await post_prompt(runpod_gateway, invert_workflow(4))
    endpoint.complete("job-1", base64_image(DATA))
    await until(jobs, lambda counts: counts == (0, 2, 0))
    async with runpod_gateway.http.post("/queue", json={"clear": True}) as response:
        assert response.status == 200
    await until(jobs, lambda counts: counts == (0, 0, 0))

    samples = await _samples(runpod_gateway)
    assert samples[f"{prefix}result_bytes_total{{source=reply}}"] == len(json.dumps(endpoint.jobs["job-1"]))
    assert samples[f"{prefix}requests_total{{status=200,verb=run}}"] == 3
    assert samples[f"{prefix}requests_total{{status=400,verb=run}}"] == 1
    assert samples[f"{prefix}requests_total{{status=200,verb=cancel}}"] == 2
    # For each of the two cancelled jobs, the cancel may have cut off one status request.
    assert samples[f"{prefix}requests_total{{status=200,verb=status}}"] >= sum(endpoint.asked.values()) - 2
    async with runpod_gateway.http.get("/metrics") as response:
        text = await response.text()
    assert KEY not in text
    assert "job-" not in text


async def test_server_up_lists_only_servers_that_run_prompts(endpoint: FakeEndpoint, tmp_path: Path) -> None:
    async with running_gateway(NOWHERE, **endpoint.settings(tmp_path)) as gateway:
        text = (await fetch(gateway, "/metrics")).body.decode()
    found = [line for line in text.splitlines() if line.startswith("comfyui_gateway_server_up{")]
    assert found == ['comfyui_gateway_server_up{server="runpod:endpoint1"} 1.0']


def test_the_dashboard_queries_every_metric_and_no_unknown_one() -> None:
    dashboard = json.loads((ROOT / "deploy/grafana/dashboard.json").read_text())
    expressions = " ".join(target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ()))
    asked = {name.removesuffix("_bucket") for name in re.findall(r"\b(?:comfyui_gateway|process)_\w+", expressions)}
    metrics = Metrics()
    text = generate_latest(metrics.registry).decode()
    there = {name for name in re.findall(r"^# HELP (\S+)", text, re.MULTILINE) if not name.endswith("_created")}

    assert asked <= there
    assert {name for name in there if name.startswith("comfyui_gateway")} - asked == set()
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
