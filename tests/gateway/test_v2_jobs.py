"""Comfy API v2: jobs from their submission to their end, with the official SDK."""

from __future__ import annotations

import uuid

import pytest

from comfyui.engine import Engine
from tests.support.running import RunningGateway, executions, invert_workflow
from tests.support.v2 import JOBS, ask, code_of, comfy, submit


async def test_the_sdk_submits_a_workflow_and_gets_its_result(gateway: RunningGateway, engine: Engine) -> None:
    async with comfy(gateway.url) as client:
        job = await client.submit(client.workflows.from_json(invert_workflow(3)), metadata={"order": "1"})
        assert str(uuid.UUID(job.id)) == job.id
        assert await job.result() is job
        assert job.status == "succeeded"
        assert [(output.node_id, output.type) for output in job.outputs] == [("3", "image")]
        assert job.metadata == {"order": "1"}
        assert (await job.get_workflow()).graph == invert_workflow(3)
        assert executions(engine)[job.id] == 1


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ("[]", 400, "invalid_request"),
        ("{", 400, "invalid_request"),
        ("{}", 422, "invalid_workflow"),
        ('{"workflow": []}', 422, "invalid_workflow"),
        ('{"workflow": {"nodes": [], "links": []}}', 422, "workflow_format_ui"),
        ('{"workflow": {}, "webhook_url": "http://x"}', 422, "invalid_workflow"),
        ('{"workflow": {}, "inputs": {}}', 422, "invalid_workflow"),
        ('{"workflow": {}, "extra_data": {"other": 1}}', 400, "invalid_request"),
        ('{"workflow": {}, "extra_data": {"api_key_comfy_org": 1}}', 400, "invalid_request"),
        ('{"workflow": {}, "metadata": 1}', 422, "metadata_invalid"),
        ('{"workflow": {}, "metadata": {"a b": "c"}}', 422, "metadata_invalid"),
        ('{"workflow": {}, "metadata": {"a": 1}}', 422, "metadata_invalid"),
        ('{"workflow": {}, "priority": true}', 422, "invalid_request"),
        ('{"workflow": {}, "priority": 1000001}', 422, "invalid_request"),
        ('{"workflow": {}}', 422, "invalid_workflow"),
    ],
)
async def test_a_body_that_breaks_the_contract_gets_its_error_code(
    gateway: RunningGateway, body: str, status: int, code: str
) -> None:
    found, refused = await ask(gateway, JOBS, "POST", data=body)
    assert (found, code_of(refused)) == (status, code)


async def test_unknown_members_of_a_body_are_ignored(gateway: RunningGateway) -> None:
    job = await submit(gateway, invert_workflow(), something_newer={"a": 1}, webhook_url=None)
    assert job["status"] in {"queued", "running", "succeeded"}


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", f"{JOBS}/zzz", 404, "not_found"),
        ("GET", f"{JOBS}/00000000-0000-4000-8000-000000000000/workflow", 404, "not_found"),
        ("GET", f"{JOBS}/00000000-0000-4000-8000-000000000000/logs", 404, "not_found"),
        ("POST", f"{JOBS}/00000000-0000-4000-8000-000000000000/cancel", 404, "not_found"),
        ("GET", f"{JOBS}/a/b/c", 404, "not_found"),
        ("DELETE", f"{JOBS}/zzz", 405, "method_not_allowed"),
        ("PUT", "/api/v2/health", 405, "method_not_allowed"),
    ],
)
async def test_every_error_has_the_envelope(
    gateway: RunningGateway, method: str, path: str, status: int, code: str
) -> None:
    found, body = await ask(gateway, path, method)
    assert (found, code_of(body)) == (status, code)


async def test_other_paths_below_api_v2_are_relayed(gateway: RunningGateway, engine: Engine) -> None:
    """ComfyUI has its own paths below `/api/v2`, which its frontend needs."""
    engine.stats.reset()
    for path in ("/api/v2/userdata", "/api/v2/nothing", "/v2/jobs"):
        async with gateway.http.get(path) as response:
            await response.read()
    asked = engine.stats.show()["requests"]
    assert sum(asked.values()) >= 3, asked
    assert "GET /v2/userdata" in {name.replace("/api/", "/") for name in asked}


async def test_the_logs_of_a_job_are_empty(gateway: RunningGateway) -> None:
    job = await submit(gateway, invert_workflow())
    assert await ask(gateway, f"{JOBS}/{job['id']}/logs") == (204, b"")


async def test_health_needs_no_key(locked: RunningGateway) -> None:
    assert await ask(locked, "/api/v2/health") == (200, {"status": "healthy"})
    status, body = await ask(locked, JOBS)
    assert (status, code_of(body)) == (401, "unauthorized")
