"""Links to files: absolute with `PUBLIC_URL`, and signed in webhooks if the gateway needs keys."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest
from yarl import URL

from comfyui.engine import Engine
from comfyui.exceptions import SettingsError
from comfyui.settings import load
from comfyui.web.api.rendering import JobRenderer
from config import Settings
from tests.support.jobs import ASYNC
from tests.support.jobs import fetch as fetch_job
from tests.support.keys import KEY, OTHER_KEY
from tests.support.receivers import SECRET, Receiver
from tests.support.relaying import fetch, raw_request
from tests.support.running import RunningGateway, invert_workflow, running_gateway, sleep_workflow
from tests.support.sse import events_of
from tests.support.stripping import KINDS, PREFIX, PUBLIC, behind

_BEARER = {"Authorization": f"Bearer {KEY}"}
# A prefix of file names; some client escapes each of its special characters differently.
_PREFIX_OF_NAMES = "sub dir/it's (1) é+&=%3F"


async def _webhook_data(gateway: RunningGateway, prompt_id: str, **options: Any) -> Any:
    """The data that a webhook sends about the job."""
    running, journal = gateway.app.running, gateway.handler.journal
    renderer = JobRenderer(running.deliverer, running.tickets, **options)
    record = await journal.get(prompt_id)
    assert record is not None
    if record.error is not None:
        return orjson.loads(renderer.failed(record.error))
    kept = await journal.result_of(prompt_id)
    assert kept is not None
    return orjson.loads(await renderer.succeeded(prompt_id, record.owner, kept))


async def _run(gateway: RunningGateway, workflow: dict[str, Any], key: str | None = KEY) -> Any:
    """The answer of GET for an async job that has ended."""
    headers = {**ASYNC, **({"X-API-Key": key} if key else {})}
    async with gateway.http.post("/prompt_sync", json={"prompt": workflow}, headers=headers) as response:
        assert response.status == 202, await response.text()
        prompt_id = (await response.json())["prompt_id"]
    async with gateway.http.get(f"/prompt_sync/{prompt_id}", headers={"X-API-Key": key} if key else {}) as response:
        return await response.json()


def _without_times(answer: Any) -> Any:
    """The answer without the times that depend on how fast its files were read."""
    return {**answer, "execution_time": None, "timings": {**answer["timings"], "collecting": None}}


async def test_a_signed_link_opens_only_its_own_file_without_a_key(engine: Engine) -> None:
    async with running_gateway(engine.url, api_keys=f"{OTHER_KEY},{KEY}", public_url=PUBLIC) as gateway:
        result = await _run(gateway, invert_workflow(prefix=_PREFIX_OF_NAMES))
        told = await _webhook_data(gateway, result["prompt_id"])
        link = told["images"][0]["url"]
        assert link.startswith(f"{PUBLIC}/view?filename=")
        below = link.removeprefix(PUBLIC)
        for address in (URL(below, encoded=True), below):  # as it is, and as aiohttp escapes it
            opened = await fetch(gateway, address)
            assert (opened.status, opened.body[:4]) == (200, b"\x89PNG")
            assert opened.headers["Referrer-Policy"] == "no-referrer"
        head = await fetch(gateway, URL(below, encoded=True), "HEAD")
        assert (head.status, head.headers["Content-Length"], head.body) == (200, str(len(opened.body)), b"")
        part = await fetch(gateway, URL(below, encoded=True), headers={"Range": "bytes=0-3"})
        assert (part.status, part.body) == (206, b"\x89PNG")
        # A page of any site may open the link, too: the receiver of the webhook passed it on.
        shown = await fetch(gateway, URL(below, encoded=True), headers={"Sec-Fetch-Site": "cross-site"})
        assert shown.status == 200
        engine.stats.reset()
        for method in ("POST", "PUT", "DELETE", "PATCH"):
            assert (await fetch(gateway, URL(below, encoded=True), method)).status == 401
        for changed in (
            f"{below}&preview=webp",
            below.replace("/view", "/api/view"),
            below.replace("type=output", "type=input"),
            below.replace("filename=", "filename=b.png&filename="),
            below[:-1] + ("0" if below[-1] != "0" else "1"),
            "/queue?ticket=" + below.partition("ticket=")[2],
        ):
            assert (await fetch(gateway, URL(changed, encoded=True))).status == 401, changed
        for path in ("/x/../view", "/./view", "/view/../view", "//view", "/%2e/view"):
            line = f"GET {below.replace('/view', path)} HTTP/1.1\r\nHost: example.org\r\n\r\n"
            answer = await raw_request(gateway.url, line.encode())
            assert answer.startswith(b"HTTP/1.1 401 "), path
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await gateway.http.ws_connect("/ws?ticket=" + below.partition("ticket=")[2])
        assert refused.value.status == 401
        assert engine.stats.show()["requests"] == {}


async def test_a_signed_link_survives_restarts_but_not_another_address_or_other_keys(engine: Engine) -> None:
    async with running_gateway(engine.url, api_keys=KEY, public_url=PUBLIC) as gateway:
        result = await _run(gateway, invert_workflow())
        below = (await _webhook_data(gateway, result["prompt_id"]))["images"][0]["url"].removeprefix(PUBLIC)
    async with running_gateway(engine.url, api_keys=KEY, public_url=PUBLIC) as again:
        assert (await fetch(again, URL(below, encoded=True))).status == 200, "a link survives a restart"
    async with running_gateway(engine.url, api_keys=KEY, public_url="https://staging.example.org/comfy") as other:
        assert (await fetch(other, URL(below, encoded=True))).status == 401
    async with running_gateway(engine.url, api_keys=OTHER_KEY, public_url=PUBLIC) as revoked:
        answer = await fetch(revoked, URL(below, encoded=True))
        assert (answer.status, answer.error_type) == (401, "unauthorized")
        # Webhooks about jobs of the removed key get no new signatures either.
        assert "ticket=" not in revoked.app.running.tickets.link("key-0a1b2c3d", "/view?filename=a.png")


async def test_a_webhook_reports_the_same_result_and_error_as_get(engine: Engine) -> None:
    async with running_gateway(engine.url, public_url=PUBLIC) as gateway:
        result = await _run(gateway, invert_workflow(), key=None)
        assert _without_times(await _webhook_data(gateway, result["prompt_id"])) == _without_times(result)
        assert result["images"][0]["url"].startswith(f"{PUBLIC}/view?"), "without keys nothing is signed"
        assert "ticket=" not in result["images"][0]["url"]
        await engine.set_faults({"node_error": {"class_type": "ImageInvert"}})
        failed = await _run(gateway, invert_workflow(7), key=None)
        told = await _webhook_data(gateway, failed["prompt_id"])
        assert told["type"] == "task_failed"
        assert {**told, "timestamp": 0, "request_id": 0} == {**failed, "timestamp": 0, "request_id": 0}


async def test_a_webhook_omits_the_outputs_of_a_long_result_and_says_so(engine: Engine) -> None:
    async with running_gateway(engine.url, public_url=PUBLIC) as gateway:
        result = await _run(gateway, invert_workflow(), key=None)
        told = await _webhook_data(gateway, result["prompt_id"], max_outputs_bytes=10)
        assert told.pop("outputs_omitted") is True
        del result["outputs"]
        assert _without_times(told) == _without_times(result)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_signed_link_opens_below_the_path_of_a_proxy(kind: str, engine: Engine, tmp_path: Path) -> None:
    async with running_gateway(engine.url, api_keys=KEY, public_url=f"https://example.org{PREFIX}") as gateway:
        result = await _run(gateway, invert_workflow())
        link = (await _webhook_data(gateway, result["prompt_id"]))["images"][0]["url"]
        async with behind(kind, gateway.url, tmp_path) as address, aiohttp.ClientSession() as http:
            here = link.replace(f"https://example.org{PREFIX}", address)
            async with http.get(here) as response:
                assert (response.status, (await response.read())[:4]) == (200, b"\x89PNG")
            async with http.get(f"{here}&x=1") as response:
                assert response.status == 401


async def test_the_links_of_a_webhook_open_without_a_key(
    engine: Engine, webhook_receiver: Receiver, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings: dict[str, Any] = {
        "api_keys": KEY,
        "public_url": f"https://example.org{PREFIX}/",
        "webhook_secret": SECRET,
        "webhook_url_allow": "127.0.0.1",
        "log_level": "DEBUG",
        "state_dir": tmp_path,
    }
    async with running_gateway(engine.url, **settings) as gateway:
        body = {"prompt": invert_workflow(prefix="a b/c"), "webhook": {"url": webhook_receiver.url()}}
        async with gateway.http.post("/prompt_sync", json=body, headers={**ASYNC, **_BEARER}) as response:
            assert response.status == 202
        (came,) = await webhook_receiver.got(1)
        (image,) = orjson.loads(came.body)["data"]["images"]
    link = image["url"]
    assert link.startswith(f"https://example.org{PREFIX}/view?")
    async with (
        running_gateway(engine.url, **settings) as again,
        behind("stripping", again.url, tmp_path) as address,
        aiohttp.ClientSession() as http,
    ):
        here = link.replace(f"https://example.org{PREFIX}", address)
        async with http.get(here) as response:
            assert (response.status, (await response.read())[:4]) == (200, b"\x89PNG")
        async with http.get(here.partition("&ticket=")[0]) as response:
            assert response.status == 401
    out = capsys.readouterr()
    assert link.rpartition(".")[2] not in out.out + out.err


async def test_every_answer_has_absolute_links_with_public_url_set(public_gateway: RunningGateway) -> None:
    async with public_gateway.http.post(
        "/prompt_sync", json={"prompt": sleep_workflow(0.3)}, headers={**ASYNC, "X-Forwarded-Prefix": "/elsewhere"}
    ) as response:
        prompt_id = (await response.json())["prompt_id"]
        assert response.headers["Location"] == f"{PUBLIC}/prompt_sync/{prompt_id}"
    async with public_gateway.http.get(f"/prompt_sync/{prompt_id}?timeout=0") as response:
        assert response.status == 202
        assert response.headers["Location"] == f"{PUBLIC}/prompt_sync/{prompt_id}"
    _, result = await fetch_job(public_gateway.http, prompt_id)
    urls = [result["images"][0]["url"]]
    for method, path, body in (
        ("POST", "/prompt_sync", {"prompt": invert_workflow(3)}),
        ("GET", f"/prompt_sync/{prompt_id}", None),
    ):
        headers = {"Accept": "text/event-stream"}
        async with public_gateway.http.request(method, path, json=body, headers=headers) as response:
            if response.content_type == "text/event-stream":
                answer = [event.data async for event in events_of(response)][-1]
            else:  # the job has ended, so there are no events
                answer = await response.json()
        urls.append(answer["images"][0]["url"])
    assert all(url.startswith(f"{PUBLIC}/view?filename=") for url in urls), urls


async def test_location_has_the_proxys_path_without_public_url(gateway: RunningGateway) -> None:
    async with gateway.http.post(
        "/prompt_sync", json={"prompt": invert_workflow()}, headers={**ASYNC, "X-Forwarded-Prefix": PREFIX}
    ) as response:
        prompt_id = (await response.json())["prompt_id"]
        assert response.headers["Location"] == f"{PREFIX}/prompt_sync/{prompt_id}"


async def test_signatures_of_links_are_never_logged(
    engine: Engine, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    with caplog.at_level(logging.DEBUG):
        async with running_gateway(engine.url, api_keys=KEY, public_url=PUBLIC, log_level="DEBUG") as gateway:
            result = await _run(gateway, invert_workflow())
            below = (await _webhook_data(gateway, result["prompt_id"]))["images"][0]["url"].removeprefix(PUBLIC)
            assert (await fetch(gateway, URL(below, encoded=True))).status == 200
            assert (await fetch(gateway, URL(f"{below}x", encoded=True))).status == 401
    out = capsys.readouterr()
    signature = below.rpartition(".")[2]
    assert len(signature) == 64
    assert signature not in caplog.text + out.out + out.err
    assert KEY not in caplog.text + out.out + out.err


@pytest.mark.parametrize(
    "value",
    [
        "example.org", "ftp://example.org", "https://", "https:///comfy", "https://:443", "https://e.org:0",
        "https://e.org:99999", "https://me@e.org", "https://me:pw@e.org", "https://@e.org", "https://:pw@e.org",
        "https://e.org?", "https://e.org/?a=b", "https://e.org#", "https://e.org/a#b", "https://e.org/a b",
        "https://e.org/ä", "https://ä.org", "https://e.org/%zz", "https://e.org\\a", "https://e.org/\r\nX: y",
        "https://[::1", "//e.org", "javascript:alert(1)",
    ],
)  # fmt: skip
def test_an_invalid_public_url_is_refused_by_name(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PUBLIC_URL", value)
    with pytest.raises(SettingsError, match="PUBLIC_URL: "):
        load(Settings)


@pytest.mark.parametrize(
    ("value", "used"),
    [
        ("", ""),
        ("https://e.org/", "https://e.org"),
        ("http://127.0.0.1:18188/a/b//", "http://127.0.0.1:18188/a/b"),
        ("HTTPS://[2001:db8::1]:8443/a%20b", "HTTPS://[2001:db8::1]:8443/a%20b"),
        ("https://xn--4ca.org/~me", "https://xn--4ca.org/~me"),
        ("http://gateway_1", "http://gateway_1"),
    ],
)
def test_public_url_may_have_a_path_and_a_trailing_slash(value: str, used: str) -> None:
    assert Settings(public_url=value).public_url == used


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "a day", "40000000"])
def test_an_invalid_link_seconds_is_refused_by_name(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LINK_SECONDS", value)
    with pytest.raises(SettingsError, match="LINK_SECONDS: "):
        load(Settings)
