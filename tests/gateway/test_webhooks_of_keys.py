"""Webhooks with keys: each key in KEYS_FILE signs with its own secret, and controls only its own webhooks."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from comfyui.engine import Engine
from tests.support.calls import Calls
from tests.support.keys import ALICE, BOB, KEY, ROOT, bearer, table, write_keys
from tests.support.receivers import SECRET, Receiver
from tests.support.relaying import fetch
from tests.support.running import invert_workflow, running_gateway, until

_OF_ALICE, _OF_BOB = (f"whsec_{base64.b64encode(letter * 32).decode()}" for letter in (b"a", b"b"))
_ASYNC = {"Prefer": "respond-async"}
_SET: dict[str, Any] = {"public_url": "https://comfy.example", "webhook_url_allow": "127.0.0.1"}


def _keys(tmp_path: Path) -> Path:
    text = table("alice", ALICE, webhook_secret=_OF_ALICE) + table("bob", BOB, webhook_secret=_OF_BOB)
    return write_keys(tmp_path / "keys.toml", text + table("root", ROOT, "admin"))


@pytest.mark.parametrize("settings", [{}, {"webhook_secret": SECRET}], ids=["only keys", "with WEBHOOK_SECRET"])
async def test_each_key_signs_with_its_own_secret(
    engine: Engine, tmp_path: Path, webhook_receiver: Receiver, settings: dict[str, Any]
) -> None:
    async with running_gateway(engine.url, keys_file=_keys(tmp_path), api_keys=KEY, **_SET, **settings) as gateway:
        calls = Calls(gateway)
        secrets = {}
        for number, (key, secret) in enumerate(((ALICE, _OF_ALICE), (BOB, _OF_BOB), (KEY, SECRET))):
            webhook = {"url": webhook_receiver.url()}
            status, job = await calls.submit(key, invert_workflow(number), _ASYNC, webhook=webhook)
            if key == KEY and not settings:
                assert (status, job["type"]) == (422, "invalid_request")
                assert "WEBHOOK_SECRET is not set" in job["detail"]
                continue
            assert status == 202
            secrets[job["prompt_id"]] = secret
        for came in await webhook_receiver.got(len(secrets)):
            message = Webhook(secrets[came.json["data"]["prompt_id"]]).verify(came.body, came.headers)
            assert message["type"] == "prompt.succeeded"
            for other in {_OF_ALICE, _OF_BOB, SECRET} - {secrets[message["data"]["prompt_id"]]}:
                with pytest.raises(WebhookVerificationError):
                    Webhook(other).verify(came.body, came.headers)


async def test_a_key_without_a_secret_cannot_request_webhooks(
    engine: Engine, tmp_path: Path, webhook_receiver: Receiver
) -> None:
    async with running_gateway(engine.url, keys_file=_keys(tmp_path), webhook_secret=SECRET, **_SET) as gateway:
        status, answer = await Calls(gateway).submit(ROOT, invert_workflow(), webhook={"url": webhook_receiver.url()})
    assert (status, answer["detail"]) == (422, "webhook: the key 'root' has no webhook_secret in KEYS_FILE")


async def test_another_keys_webhook_cannot_be_sent_again(
    engine: Engine, tmp_path: Path, webhook_receiver: Receiver
) -> None:
    async with running_gateway(engine.url, keys_file=_keys(tmp_path), **_SET) as gateway:
        calls = Calls(gateway)
        webhook = {"url": webhook_receiver.url()}
        job = (await calls.submit(ALICE, invert_workflow(), _ASYNC, webhook=webhook))[1]["prompt_id"]
        await webhook_receiver.got(1)
        path = f"/prompt_sync/{job}/webhook"
        assert (await calls.call(BOB, "POST", path))[0] == 404
        assert (await calls.call(ALICE, "POST", path))[0] == 202
        await webhook_receiver.got(2)
        assert (await calls.call(ROOT, "POST", path))[0] == 202
        for came in (await webhook_receiver.got(3))[1:]:
            Webhook(_OF_ALICE).verify(came.body, came.headers)


async def test_the_link_in_a_webhook_opens_its_file_without_a_key(
    engine: Engine, tmp_path: Path, webhook_receiver: Receiver
) -> None:
    async with running_gateway(engine.url, keys_file=_keys(tmp_path), **_SET) as gateway:
        await Calls(gateway).submit(ALICE, invert_workflow(), _ASYNC, webhook={"url": webhook_receiver.url()})
        (came,) = await webhook_receiver.got(1)
        link = came.json["data"]["images"][0]["url"].removeprefix("https://comfy.example")
        assert (await until(lambda: fetch(gateway, link), lambda answer: answer.status != 404)).status == 200
        plain = link.partition("&ticket=")[0]
        assert (await fetch(gateway, plain, headers=bearer(ALICE))).status == 200
        assert (await fetch(gateway, plain, headers=bearer(BOB))).status == 404
        assert (await fetch(gateway, plain)).status == 401
