"""Webhooks as callers and receivers see them: the field, the events, lists, sending again, restarts."""

from __future__ import annotations

import asyncio
import functools
import json
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiohttp
import pytest
from pydantic import ValidationError
from standardwebhooks.webhooks import Webhook
from yarl import URL

from comfyui.engine import Engine
from comfyui.jobs.queue_options import QueueOptions
from comfyui.jobs.runs import RunLimits
from config import Settings
from server import create_app
from tests.support.described import Description
from tests.support.jobs import ASYNC, fetch, listed, look, status_is, submit
from tests.support.log_lines import Lines
from tests.support.named_folder import named_folder
from tests.support.processes import gateway_process
from tests.support.receivers import SECRET, Receiver, hang, receiver, with_status
from tests.support.running import (
    RunningGateway,
    handler_options,
    invert_workflow,
    running_gateway,
    sleep_workflow,
    until,
)

PUBLIC = "https://comfy.example/gw"
SET: dict[str, Any] = {"webhook_secret": SECRET, "public_url": PUBLIC, "webhook_url_allow": "127.0.0.1"}
VARIABLES = {name.upper(): value for name, value in SET.items()}
ALL = ["prompt.started", "prompt.succeeded", "prompt.failed", "prompt.canceled", "prompt.lost"]


@functools.cache
def _messages() -> tuple[Description, Any]:
    document = create_app(Settings()).openapi()
    return Description(document), document["webhooks"]["jobChanged"]["post"]["requestBody"]


def verified(came: Any) -> Any:
    """Reads a webhook with the package of Standard Webhooks, and checks it against `/openapi.json`."""
    description, said = _messages()
    description.check(said, came.body)
    return Webhook(SECRET).verify(came.body, came.headers)


async def messages_of(webhook_receiver: Receiver, count: int = 1) -> list[Any]:
    return [verified(came) for came in await webhook_receiver.got(count)]


async def webhook_of(gateway: RunningGateway, prompt_id: str) -> Any:
    jobs = (await listed(gateway.http))["jobs"]
    return next(job for job in jobs if job["prompt_id"] == prompt_id).get("webhook")


async def webhook_in_state(gateway: RunningGateway, prompt_id: str, state: str) -> Any:
    """Returns the job's webhook from the list, once its last delivery has this state."""
    return await until(
        lambda: webhook_of(gateway, prompt_id),
        lambda shown: bool(shown and shown["deliveries"]) and shown["deliveries"][-1]["state"] == state,
    )


async def test_the_webhook_of_an_async_job_has_the_result_that_get_returns(
    engine: Engine, webhook_receiver: Receiver
) -> None:
    async with running_gateway(engine.url, **SET) as gateway:
        webhook = {"url": webhook_receiver.url("/hook?token=geheim")}
        prompt_id = await submit(gateway.http, invert_workflow(1), webhook=webhook)
        (message,) = await messages_of(webhook_receiver)
        _, result = await fetch(gateway.http, prompt_id)
        assert message["type"] == "prompt.succeeded"
        assert message["timestamp"].endswith("Z")
        data = message["data"]
        assert data.keys() == result.keys()
        for name in ("prompt_id", "status", "outputs", "node_errors"):
            assert data[name] == result[name]
        assert data["images"][0]["url"].startswith(f"{PUBLIC}/view?filename=")
        shown = await webhook_in_state(gateway, prompt_id, "delivered")
    assert webhook_receiver.received[0].path == "/hook?token=geheim"
    assert shown["url"] == webhook_receiver.url("/hook")
    (delivery,) = shown["deliveries"]
    assert (delivery["event"], delivery["audience"]) == ("prompt.succeeded", "caller")
    assert (delivery["tries"], delivery["answer"], delivery["run"]) == (1, "HTTP 204", 1)
    assert delivery["id"] == webhook_receiver.received[0].id


async def test_the_webhooks_of_a_named_workflow_name_it_at_its_start_and_end(
    engine: Engine, webhook_receiver: Receiver, tmp_path: Path
) -> None:
    async with running_gateway(engine.url, **SET, workflows_dir=named_folder(tmp_path)) as gateway:
        options = {"webhook": {"url": webhook_receiver.url(), "events": ALL}}
        async with gateway.http.post("/workflows/flat", json={"width": 5, "$options": options}, headers=ASYNC) as taken:
            workflow = (await taken.json())["workflow"]
        started, ended = await messages_of(webhook_receiver, 2)
    assert (started["type"], started["data"]["workflow"]) == ("prompt.started", workflow)
    assert (ended["type"], ended["data"]["workflow"]) == ("prompt.succeeded", workflow)
    assert [file["output"] for file in ended["data"]["images"]] == ["picture"]


async def test_a_sync_call_sends_webhooks_for_its_start_and_end(engine: Engine, webhook_receiver: Receiver) -> None:
    async with running_gateway(engine.url, **SET) as gateway:
        webhook = {"url": webhook_receiver.url(), "events": ALL}
        status, result = await gateway.prompt_sync(sleep_workflow(0.1), webhook=webhook)
        assert status == 200
        started, ended = await messages_of(webhook_receiver, 2)
    assert (started["type"], started["data"]["status"]) == ("prompt.started", "running")
    assert started["data"]["prompt_id"] == ended["data"]["prompt_id"] == result["prompt_id"]
    assert started["timestamp"] == started["data"]["started_at"]
    assert (ended["type"], ended["data"]["outputs"]) == ("prompt.succeeded", result["outputs"])


async def test_a_form_may_have_the_webhook_field(engine: Engine, webhook_receiver: Receiver) -> None:
    async with running_gateway(engine.url, **SET) as gateway:
        form = aiohttp.FormData({"workflow": json.dumps(invert_workflow(2))}, default_to_multipart=True)
        form.add_field("webhook", json.dumps({"url": webhook_receiver.url()}))
        async with gateway.http.post("/prompt_sync", data=form) as response:
            assert response.status == 200
        (message,) = await messages_of(webhook_receiver)
    assert message["type"] == "prompt.succeeded"


async def test_the_links_in_a_webhook_open_without_a_key(engine: Engine, webhook_receiver: Receiver) -> None:
    async with running_gateway(engine.url, api_keys="key-of-the-test", **SET) as gateway:
        gateway.http.headers["Authorization"] = "Bearer key-of-the-test"
        await submit(gateway.http, invert_workflow(1), webhook={"url": webhook_receiver.url()})
        (message,) = await messages_of(webhook_receiver)
        link = message["data"]["images"][0]["url"].removeprefix(PUBLIC)
        async with aiohttp.ClientSession(gateway.url) as stranger, stranger.get(URL(link, encoded=True)) as response:
            assert (response.status, response.content_type) == (200, "image/png")


async def test_the_webhook_of_a_failure_has_the_error_body(engine: Engine, webhook_receiver: Receiver) -> None:
    workflow = invert_workflow()
    workflow["2"]["class_type"] = "NoSuchNode"
    async with running_gateway(engine.url, **SET) as gateway:
        status, body = await gateway.prompt_sync(workflow, webhook={"url": webhook_receiver.url()})
        (message,) = await messages_of(webhook_receiver)
    assert status == 400
    assert message["type"] == "prompt.failed"
    assert message["data"] == {**body, "request_id": None, "timestamp": message["data"]["timestamp"]}


async def test_a_call_that_finds_no_server_sends_its_webhook(webhook_receiver: Receiver) -> None:
    """Its job is kept only because a webhook has to be sent for it."""
    async with Engine() as gone:
        address = gone.url
    async with running_gateway(address, ready=False, **SET) as gateway:
        status, body = await gateway.prompt_sync(invert_workflow(), timeout=1)
        assert (await listed(gateway.http))["jobs"] == []
        status, body = await gateway.prompt_sync(invert_workflow(), webhook={"url": webhook_receiver.url()}, timeout=20)
        (message,) = await messages_of(webhook_receiver)
        assert (await listed(gateway.http))["jobs"][0]["status"] == "failed"
    assert (status, body["type"]) == (503, "connection_failed")
    assert (message["type"], message["data"]["type"]) == ("prompt.failed", "connection_failed")


@pytest.mark.parametrize("where", ["waiting", "running", "sync"])
async def test_a_cancel_sends_a_webhook(engine: Engine, webhook_receiver: Receiver, where: str) -> None:
    async with running_gateway(engine.url, changed=handler_options(queue=QueueOptions(ahead=1)), **SET) as gateway:
        webhook, prompt_id = {"url": webhook_receiver.url()}, str(uuid4())
        blocker = await submit(gateway.http, sleep_workflow(20), webhook=webhook) if where != "sync" else ""
        call = None
        if where == "sync":
            call = asyncio.create_task(
                gateway.prompt_sync(sleep_workflow(20), prompt_id=prompt_id, webhook=webhook), name="sync"
            )
        elif where == "running":
            prompt_id = blocker
        else:
            await submit(gateway.http, invert_workflow(3), prompt_id=prompt_id, webhook=webhook)
        await status_is(gateway.http, prompt_id if where == "sync" else blocker, "running")
        async with gateway.http.delete(f"/prompt_sync/{prompt_id}") as response:
            assert response.status == 200
        (message,) = await messages_of(webhook_receiver)
        if call is not None:
            assert (await call)[0] == 409
        if where == "waiting":
            async with gateway.http.delete(f"/prompt_sync/{blocker}") as response:
                assert response.status == 200
    assert (message["type"], message["data"]["prompt_id"]) == ("prompt.canceled", prompt_id)
    assert message["data"]["type"] == "task_cancelled"


async def test_a_job_that_waits_too_long_sends_a_webhook(engine: Engine, webhook_receiver: Receiver) -> None:
    options = handler_options(queue=QueueOptions(ahead=0, max_queued_s=0.05), run_limits=RunLimits(max_queued_s=0.05))
    async with running_gateway(engine.url, changed=options, **SET) as gateway:
        await submit(gateway.http, invert_workflow(), webhook={"url": webhook_receiver.url()})
        (message,) = await messages_of(webhook_receiver)
    assert (message["type"], message["data"]["type"]) == ("prompt.failed", "timeout")


async def test_the_operator_gets_a_webhook_for_every_job_and_callers_never_see_its_url(
    engine: Engine, webhook_receiver: Receiver
) -> None:
    url = webhook_receiver.url("/ops?token=geheim")
    async with running_gateway(engine.url, **{**SET, "webhook_url": url, "webhook_url_allow": ""}) as gateway:
        assert (await gateway.prompt_sync(invert_workflow(1)))[0] == 200
        prompt_id = await submit(gateway.http, invert_workflow(2))
        messages = await messages_of(webhook_receiver, 2)
        shown = await webhook_in_state(gateway, prompt_id, "delivered")
        assert (shown["url"], shown["deliveries"][0]["audience"]) == (None, "operator")
        assert "ops" not in json.dumps(await listed(gateway.http))
    assert [message["type"] for message in messages] == ["prompt.succeeded"] * 2


async def test_a_failing_receiver_fails_no_job_and_is_shown_in_lists(
    engine: Engine, webhook_receiver: Receiver, log_lines: Lines
) -> None:
    webhook_receiver.replies = [with_status(503)]
    async with running_gateway(engine.url, **SET) as gateway:
        webhook = {"url": webhook_receiver.url("/geheim-path?token=geheim"), "events": ALL}
        prompt_id = await submit(gateway.http, sleep_workflow(1), webhook=webhook)
        await status_is(gateway.http, prompt_id, "running")
        looked = await until(
            lambda: look(gateway.http, prompt_id), lambda found: found[1]["webhook"]["deliveries"][0]["tries"] == 1
        )
        assert looked[1]["webhook"]["url"] == webhook_receiver.url("/geheim-path")
        assert looked[1]["webhook"]["deliveries"][0]["answer"] == "HTTP 503"
        assert (await fetch(gateway.http, prompt_id))[0] == 200
        shown = await webhook_of(gateway, prompt_id)
        assert [one["state"] for one in shown["deliveries"]] == ["waiting", "waiting"]
        async with gateway.http.get("/metrics") as response:
            assert 'comfyui_gateway_webhooks_total{outcome="retried"} 1.0' in await response.text()
    assert "token" not in json.dumps(list(log_lines), default=str)


async def test_webhooks_are_sent_again_on_request(engine: Engine, webhook_receiver: Receiver) -> None:
    webhook_receiver.replies = [with_status(410), with_status(200)]
    async with running_gateway(engine.url, **SET) as gateway:
        prompt_id = await submit(gateway.http, invert_workflow(), webhook={"url": webhook_receiver.url()})
        await webhook_in_state(gateway, prompt_id, "given_up")
        async with gateway.http.post(f"/prompt_sync/{prompt_id}/webhook") as response:
            body = await response.json()
            assert response.status == 202
        assert (body["prompt_id"], body["webhook"]["url"]) == (prompt_id, webhook_receiver.url())
        assert [one["event"] for one in body["webhook"]["deliveries"]] == ["prompt.succeeded"]
        first, second = await webhook_receiver.got(2)
        await webhook_in_state(gateway, prompt_id, "delivered")
    assert first.id == second.id
    assert verified(second)["data"]["prompt_id"] == prompt_id


async def test_a_webhook_that_cannot_be_sent_again_gets_the_reason(engine: Engine, webhook_receiver: Receiver) -> None:
    async def again(prompt_id: str, gateway: RunningGateway) -> tuple[int, str]:
        async with gateway.http.post(f"/prompt_sync/{prompt_id}/webhook") as response:
            body = await response.json()
            return response.status, body["detail"]

    async with running_gateway(engine.url, **SET) as gateway:
        assert (await again(str(uuid4()), gateway))[0] == 404
        status, detail = await again("nonsense", gateway)
        assert (status, "prompt_id" in detail) == (422, True)
        running = await submit(gateway.http, sleep_workflow(5), webhook={"url": webhook_receiver.url()})
        assert await again(running, gateway) == (409, "the job has not ended yet; its webhook is sent when it ends")
        async with gateway.http.delete(f"/prompt_sync/{running}") as response:
            assert response.status == 200
        plain = await submit(gateway.http, invert_workflow())
        assert (await fetch(gateway.http, plain))[0] == 200
        assert await again(plain, gateway) == (409, "this job has no webhook for its end")
    async with running_gateway(engine.url) as gateway:
        status, detail = await again(str(uuid4()), gateway)
        assert (status, "WEBHOOK_SECRET and PUBLIC_URL" in detail) == (422, True)


@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize(
    ("webhook", "named"),
    [
        ("https://example.org", "webhook"),
        ([], "webhook"),
        ({}, "webhook.url"),
        ({"url": None}, "webhook.url"),
        ({"url": 1}, "webhook.url"),
        ({"url": "https://example.org", "secret": "x"}, "webhook.secret"),
        ({"url": "https://example.org", "events": []}, "webhook.events"),
        ({"url": "https://example.org", "events": "prompt.failed"}, "webhook.events"),
        ({"url": "https://example.org", "events": ["prompt.done"]}, "webhook.events"),
        ({"url": "https://example.org", "events": ["prompt.lost"] * 6}, "webhook.events"),
        ({"url": "https://example.org/" + "a" * 2048}, "webhook.url"),
        ({"url": "https://user:geheim@example.org"}, "webhook.url"),
        ({"url": "javascript:alert(1)"}, "webhook.url"),
        ({"url": "https://example.org/\r\nX-Injected: geheim"}, "webhook.url"),
        ({"url": "http://127.0.0.9/"}, "webhook.url"),
        ({"url": "http://[::ffff:127.0.0.9]/?geheim"}, "webhook.url"),
    ],
)
async def test_an_invalid_webhook_is_refused_by_name(
    webhook_gateway: RunningGateway, webhook: Any, named: str, kind: str
) -> None:
    headers = ASYNC if kind == "async" else {}
    body = {"prompt": invert_workflow(), "webhook": webhook}
    async with webhook_gateway.http.post("/prompt_sync", json=body, headers=headers) as response:
        said = await response.json()
        assert (response.status, said["type"]) == (422, "invalid_request")
    assert named in said["detail"]
    assert "geheim" not in said["detail"]
    assert (await listed(webhook_gateway.http))["jobs"] == []


async def test_the_webhook_field_is_refused_without_its_settings(gateway: RunningGateway) -> None:
    status, body = await gateway.prompt_sync(invert_workflow(), webhook={"url": "https://example.org"})
    assert (status, body["type"]) == (422, "invalid_request")
    assert "webhook" in body["detail"]
    assert "WEBHOOK_SECRET and PUBLIC_URL are not set" in body["detail"]


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"webhook_secret": "short", "public_url": PUBLIC}, "webhook_secret"),
        ({"webhook_secret": f"{SECRET},not base64 at all!", "public_url": PUBLIC}, "webhook_secret"),
        (
            {"webhook_url": "https://ops.example"},
            "WEBHOOK_URL requires WEBHOOK_SECRET and PUBLIC_URL, which are not set",
        ),
        (
            {"webhook_url": "https://ops.example", "webhook_secret": SECRET},
            "WEBHOOK_URL requires PUBLIC_URL, which is not set",
        ),
        ({**SET, "webhook_url": "ftp://ops.example"}, "webhook_url"),
        ({**SET, "webhook_url": "https://:geheim@ops.example"}, "webhook_url"),
        ({**SET, "webhook_url_allow": "10.0.0.0/99"}, "webhook_url_allow"),
    ],
)
def test_an_unusable_webhook_setting_stops_the_start_by_name(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Settings(**settings)
    assert named in str(caught.value)
    for secret in ("geheim", "not base64 at all", SECRET):
        assert secret not in str(caught.value)


async def test_the_webhook_of_the_first_call_with_an_id_is_kept(engine: Engine, webhook_receiver: Receiver) -> None:
    async with running_gateway(engine.url, **SET) as gateway, receiver() as other:
        prompt_id = str(uuid4())
        await submit(gateway.http, sleep_workflow(0.5), prompt_id=prompt_id, webhook={"url": webhook_receiver.url()})
        status, _ = await gateway.prompt_sync(
            sleep_workflow(0.5), prompt_id=prompt_id, webhook={"url": other.url(), "events": ["prompt.failed"]}
        )
        assert status == 200
        await messages_of(webhook_receiver)
        assert other.received == []


async def test_a_prompt_without_webhooks_needs_no_statements_about_them(engine: Engine, tmp_path: Path) -> None:
    """The journal runs no statement about webhooks, although the settings allow them."""
    async with running_gateway(engine.url, **SET, state_dir=tmp_path) as gateway:
        statements: list[str] = []
        await gateway.handler.journal.get(str(uuid4()))
        thread = gateway.handler.journal._thread  # type: ignore[attr-defined]
        await gateway.handler.journal._ask(lambda sql: sql.database.set_trace_callback(statements.append))  # type: ignore[attr-defined]
        assert thread is not None
        for number in range(3):
            assert (await gateway.prompt_sync(invert_workflow(number)))[0] == 200
        await gateway.handler.journal.get(str(uuid4()))
        await gateway.handler.journal._ask(lambda sql: sql.database.set_trace_callback(None))  # type: ignore[attr-defined]
    assert any("INSERT INTO jobs" in one for one in statements)
    assert not [one for one in statements if "deliveries" in one]


async def test_a_webhook_omits_outputs_that_are_too_long(engine: Engine, webhook_receiver: Receiver) -> None:
    """A thousand pictures with long names."""
    async with running_gateway(engine.url, **SET) as gateway:
        workflow = invert_workflow(prefix="a" * 200)
        workflow["1"]["inputs"]["batch_size"] = 1000
        workflow["1"]["inputs"]["width"] = workflow["1"]["inputs"]["height"] = 16
        prompt_id = await submit(gateway.http, workflow, webhook={"url": webhook_receiver.url()})
        (message,) = await messages_of(webhook_receiver)
        _, result = await fetch(gateway.http, prompt_id)
    assert len(json.dumps(result["outputs"])) > 256_000
    assert message["data"]["outputs_omitted"] is True
    assert "outputs" not in message["data"]
    assert len(message["data"]["images"]) == len(result["images"]) == 1000


async def test_a_waiting_webhook_is_kept_while_the_secret_is_removed(
    engine: Engine, webhook_receiver: Receiver, tmp_path: Path, log_lines: Lines
) -> None:
    webhook_receiver.replies = [with_status(500), with_status(204)]
    async with running_gateway(engine.url, **SET, state_dir=tmp_path) as gateway:
        prompt_id = await submit(gateway.http, invert_workflow(), webhook={"url": webhook_receiver.url()})
        await webhook_in_state(gateway, prompt_id, "waiting")
        await until(lambda: webhook_of(gateway, prompt_id), lambda shown: shown["deliveries"][0]["tries"] == 1)
    async with running_gateway(engine.url, state_dir=tmp_path) as gateway:
        assert (await webhook_of(gateway, prompt_id))["deliveries"][0]["state"] == "waiting"
    assert [line["event"] for line in log_lines].count("webhooks.wait") == 1
    async with running_gateway(engine.url, **SET, state_dir=tmp_path) as gateway:
        async with gateway.http.post(f"/prompt_sync/{prompt_id}/webhook") as response:
            assert response.status == 202
        await webhook_in_state(gateway, prompt_id, "delivered")


# Restarts


async def test_a_webhook_that_a_kill_interrupted_is_sent_after_the_restart(
    tmp_path: Path, engine: Engine, webhook_receiver: Receiver
) -> None:
    webhook_receiver.replies = [hang, with_status(204)]
    settings = {**VARIABLES, "STATE_DIR": str(tmp_path), "SHUTDOWN_GRACE_SECONDS": "5"}
    async with gateway_process(engine.url, **settings) as gateway:
        prompt_id = await submit(gateway.http, invert_workflow(), webhook={"url": webhook_receiver.url()})
        assert (await fetch(gateway.http, prompt_id))[0] == 200
        await webhook_receiver.got(1)
        await gateway.kill()
    async with gateway_process(engine.url, **settings) as gateway:
        first, second = await webhook_receiver.got(2)
        await until(lambda: listed(gateway.http), lambda found: "delivered" in json.dumps(found))
    assert first.id == second.id
    assert verified(second)["data"]["prompt_id"] == prompt_id


async def test_a_job_that_a_restart_canceled_sends_its_webhook(
    tmp_path: Path, engine: Engine, webhook_receiver: Receiver
) -> None:
    settings = {**VARIABLES, "STATE_DIR": str(tmp_path), "SHUTDOWN_GRACE_SECONDS": "5"}
    async with gateway_process(engine.url, **settings) as gateway:
        body = {"prompt": sleep_workflow(30), "webhook": {"url": webhook_receiver.url(), "events": ALL}}
        call = asyncio.create_task(gateway.http.post("/prompt_sync", json=body).__aenter__())
        await webhook_receiver.got(1)
        await gateway.kill()
        with pytest.raises(aiohttp.ClientError):
            await call
    async with gateway_process(engine.url, **settings):
        # The first message may come twice, because its delivery may not have been recorded.
        messages = await until(
            lambda: messages_of(webhook_receiver), lambda found: found[-1]["type"] != "prompt.started"
        )
    assert messages[-1]["type"] == "prompt.canceled"
    assert {message["data"]["prompt_id"] for message in messages} == {messages[0]["data"]["prompt_id"]}
