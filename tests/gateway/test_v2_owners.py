"""Comfy API v2 with keys: callers see only their own jobs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import comfy_sdk
import pytest

from comfyui.engine import Engine
from tests.support.keys import ALICE, BOB, KEY, KEYS, ROOT, WATCHER, bearer, table, write_keys
from tests.support.receivers import SECRET, Receiver
from tests.support.running import RunningGateway, invert_workflow, running_gateway, sleep_workflow, until
from tests.support.stripping import PUBLIC
from tests.support.v2 import JOBS, ask, code_of, comfy, submit, until_ended


@asynccontextmanager
async def with_keys(engine: Engine, folder: Path, keys: str = KEYS) -> AsyncIterator[RunningGateway]:
    async with running_gateway(engine.url, keys_file=write_keys(folder / "keys.toml", keys)) as gateway:
        yield gateway


async def test_another_users_job_looks_like_one_that_does_not_exist(engine: Engine, keys_path: Path) -> None:
    async with running_gateway(engine.url, keys_file=keys_path) as gateway:
        job = await submit(gateway, sleep_workflow(600), key=ALICE)
        unknown = "00000000-0000-4000-8000-000000000000"
        for method, path in (
            ("GET", ""),
            ("GET", "/workflow"),
            ("GET", "/events"),
            ("GET", "/logs"),
            ("POST", "/cancel"),
        ):
            foreign = await ask(gateway, f"{JOBS}/{job['id']}{path}", method, key=BOB)
            assert foreign == await ask(gateway, f"{JOBS}/{unknown}{path}", method, key=BOB)
            assert (foreign[0], code_of(foreign[1])) == (404, "not_found")
        assert (await ask(gateway, f"{JOBS}/{job['id']}", key=ALICE))[1]["status"] in {"queued", "running"}
        listed = {
            key: [item["id"] for item in (await ask(gateway, JOBS, key=key))[1]["jobs"]]
            for key in (ALICE, BOB, WATCHER, ROOT)
        }
        assert listed == {ALICE: [job["id"]], BOB: [], WATCHER: [job["id"]], ROOT: [job["id"]]}
        assert (await ask(gateway, f"{JOBS}/{job['id']}/cancel", "POST", key=WATCHER))[0] == 403
        assert (await ask(gateway, f"{JOBS}/{job['id']}/cancel", "POST", key=ROOT))[1]["status"] == "canceled"


async def test_the_sdk_works_with_its_key_and_gets_an_error_for_a_wrong_one(engine: Engine, keys_path: Path) -> None:
    async with running_gateway(engine.url, keys_file=keys_path) as gateway:
        async with comfy(gateway.url, ALICE) as client:
            job = await client.submit(client.workflows.from_json(invert_workflow()))
            assert (await job.result()).status == "succeeded"
        for key in (None, "wrong"):
            async with comfy(gateway.url, key) as client:
                with pytest.raises(comfy_sdk.Unauthorized):
                    await client.jobs.get(job.id)
        async with comfy(gateway.url, WATCHER) as client:
            with pytest.raises(comfy_sdk.Forbidden):
                await client.submit(client.workflows.from_json(invert_workflow()))


async def test_the_limits_of_a_key_apply(engine: Engine, tmp_path: Path) -> None:
    keys = table("alice", ALICE, max_queued=1, per_minute=4, max_priority=5)
    async with with_keys(engine, tmp_path, keys) as gateway:
        status, body = await ask(gateway, JOBS, "POST", key=ALICE, json={"workflow": invert_workflow(), "priority": 6})
        assert (status, code_of(body)) == (422, "invalid_request")
        assert "max_priority" in body["error"]["message"]
        running = await submit(gateway, sleep_workflow(600, tag=1), key=ALICE)
        await until(
            lambda: ask(gateway, f"{JOBS}/{running['id']}", key=ALICE),
            lambda found: bool(found[1]["status"] == "running"),
        )
        waiting = [await submit(gateway, sleep_workflow(600, tag=2), key=ALICE)]
        async with gateway.http.post(JOBS, json={"workflow": invert_workflow()}, headers=bearer(ALICE)) as response:
            assert (response.status, code_of(await response.json())) == (429, "queue_full")
            assert int(response.headers["Retry-After"]) >= 1
        async with gateway.http.post(JOBS, json={"workflow": invert_workflow()}, headers=bearer(ALICE)) as response:
            assert (response.status, code_of(await response.json())) == (429, "rate_limited")
            assert int(response.headers["Retry-After"]) >= 1
        for job in (*waiting, running):
            assert (await ask(gateway, f"{JOBS}/{job['id']}/cancel", "POST", key=ALICE))[0] == 200


async def test_each_answer_has_a_request_id(locked: RunningGateway) -> None:
    headers = {"X-Request-ID": "mine-1"}
    async with locked.http.get(JOBS, headers=headers) as response:
        assert (response.status, response.headers["X-Comfy-Request-Id"]) == (401, "mine-1")
        assert code_of(await response.json()) == "unauthorized"
    async with locked.http.get("/queue", headers=headers) as response:
        assert "X-Comfy-Request-Id" not in response.headers


async def test_refusals_of_large_or_encoded_bodies_have_the_envelope(small_bodies: RunningGateway) -> None:
    status, body = await ask(small_bodies, JOBS, "POST", data="x" * 20_000)
    assert (status, code_of(body)) == (413, "payload_too_large")
    status, body = await ask(small_bodies, JOBS, "POST", data=b"{}", headers={"Content-Encoding": "snappy"})
    assert (status, code_of(body)) == (415, "unsupported_encoding")


async def test_a_page_of_another_origin_is_refused_with_the_envelope(gateway: RunningGateway) -> None:
    headers = {"Origin": "https://evil.example"}
    status, body = await ask(gateway, JOBS, "POST", json={"workflow": invert_workflow()}, headers=headers)
    assert (status, code_of(body)) == (403, "forbidden")


async def test_links_use_the_address_that_the_client_uses(engine: Engine) -> None:
    forwarded = {"X-Forwarded-Proto": "https", "X-Forwarded-Host": "gpu.example", "X-Forwarded-Prefix": "/comfy"}
    async with running_gateway(engine.url, api_keys=KEY) as gateway:
        job = await until_ended(gateway, await submit(gateway, invert_workflow(), key=KEY), key=KEY)
        _, shown = await ask(gateway, f"{JOBS}/{job['id']}", key=KEY, headers=forwarded)
        assert shown["urls"]["self"] == f"/comfy{JOBS}/{job['id']}"
        assert shown["outputs"][0]["url"].startswith("https://gpu.example/comfy/api/v2/assets/")
    async with running_gateway(engine.url, public_url="https://a.example/x") as gateway:
        job = await until_ended(gateway, await submit(gateway, invert_workflow()))
        assert job["urls"]["cancel"] == f"https://a.example/x{JOBS}/{job['id']}/cancel"
        assert job["outputs"][0]["url"].startswith("https://a.example/x/api/v2/assets/")


async def test_a_job_sends_its_webhook(engine: Engine, webhook_receiver: Receiver) -> None:
    settings: dict[str, Any] = {"webhook_secret": SECRET, "public_url": PUBLIC, "webhook_url_allow": "127.0.0.1"}
    async with running_gateway(engine.url, **settings) as gateway:
        job = await submit(gateway, invert_workflow(), gateway_webhook={"url": webhook_receiver.url()})
        (received,) = await webhook_receiver.got(1, timeout_s=30)
        assert received.json["data"]["prompt_id"] == job["id"]


async def test_an_unusable_webhook_is_refused_by_name(engine: Engine) -> None:
    async with running_gateway(engine.url) as gateway:
        hook = {"url": "https://a.example/hook"}
        status, body = await ask(gateway, JOBS, "POST", json={"workflow": invert_workflow(), "gateway_webhook": hook})
        assert (status, code_of(body)) == (422, "invalid_request")
        assert "WEBHOOK_SECRET" in body["error"]["message"]
        status, body = await ask(gateway, JOBS, "POST", json={"workflow": invert_workflow(), "gateway_webhook": {}})
        assert "gateway_webhook: url" in body["error"]["message"]
