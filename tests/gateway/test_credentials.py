"""A ComfyUI that needs credentials or has its own certificate: which secrets are sent, and which errors appear."""

from __future__ import annotations

import base64
import io
import logging
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest
from aiohttp import web
from PIL import Image

from comfyui.address import ServerAccess
from comfyui.client import ComfyUIClient
from comfyui.engine import Engine
from comfyui.exceptions import ComfyUIConnectionError, SettingsError
from comfyui.settings import load
from config import Settings
from server import create_app
from tests.support.credentials import CERTIFICATE, TOKEN
from tests.support.relaying import Exchange, answer_ok, fetch, raw_server, relayed
from tests.support.running import RunningGateway, invert_workflow, running_gateway, until


async def _health(gateway: RunningGateway, wanted: str) -> dict[str, Any]:
    """Returns the health of the first server, once it has the wanted state."""

    async def ask() -> dict[str, Any]:
        found: dict[str, Any] = orjson.loads((await fetch(gateway, "/health")).body)["servers"][0]
        return found

    return await until(ask, lambda server: bool(server["state"] == wanted))


@pytest.mark.parametrize(
    "headers",
    [
        f"Authorization: {TOKEN}\nX-Edge: 4711",
        orjson.dumps({"authorization": TOKEN, "X-Edge": "4711"}).decode(),
        '{"%s": {"Authorization": "' + TOKEN + '"}, "X-Edge": "4711"}',
        '{"%s": {"Authorization": "' + TOKEN + '", "X-Edge": "4711"}, "*": {"X-Edge": "another"}}',
    ],
)
async def test_configured_headers_are_sent_with_every_request_to_comfyui(closed_engine: Engine, headers: str) -> None:
    headers = headers.replace("%s", closed_engine.url)
    async with running_gateway(closed_engine.url, comfyui_headers=headers) as gateway:
        picture = io.BytesIO()
        Image.new("RGB", (4, 4)).save(picture, "PNG")
        workflow = invert_workflow()
        workflow["1"] = {
            "class_type": "LoadImage",
            "inputs": {"image": f"data:image/png;base64,{base64.b64encode(picture.getvalue()).decode()}"},
        }
        status, body = await gateway.prompt_sync(workflow, return_image_base64=True)  # this also uploads an image
        assert (status, body["status"]) == (200, "success"), body
        assert body["images"][0]["base64"]
        assert (await _health(gateway, "connected"))["websocket"] == "connected"
        # A header of the client with that name is not sent in addition.
        assert (await fetch(gateway, "/queue", headers={"Authorization": "Bearer mine", "x-edge": "0"})).status == 200
        submitted = await fetch(
            gateway, "/prompt", "POST", json={"prompt": invert_workflow(2)}, headers={"Authorization": "Bearer mine"}
        )
        assert submitted.status == 200
        async with gateway.http.ws_connect("/ws?clientId=a", headers={"Authorization": "Bearer mine"}) as websocket:
            assert "status" in await websocket.receive_str()


async def test_configured_headers_replace_headers_of_the_client() -> None:
    async with relayed(answer_ok, comfyui_headers=f"Authorization: {TOKEN}\nX-Edge: 4711") as (comfyui, gateway):
        await fetch(gateway, "/x", headers={"Authorization": "Bearer mine", "x-edge": "0", "X-Other": "kept"})
        headers = comfyui.seen[0].headers
    assert (headers["authorization"], headers["x-edge"], headers["x-other"]) == (TOKEN, "4711", "kept")


async def test_a_client_chooses_its_comfyui_user_unless_the_settings_do() -> None:
    """ComfyUI's --multi-user takes the user from this header without a password, and its frontend sends it."""

    async def answering(exchange: Exchange) -> None:
        await exchange.body()
        await exchange.send(b"HTTP/1.1 418 Teapot\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\nno")

    for settings, user in (({}, "mine"), ({"comfyui_headers": "Comfy-User: ours"}, "ours")):
        async with relayed(answering, **settings) as (comfyui, gateway):
            await fetch(gateway, "/userdata", headers={"Comfy-User": "mine"})
            await fetch(gateway, "/prompt", "POST", data=b"{}", headers={"Comfy-User": "mine"})
        assert [seen.headers["comfy-user"] for seen in comfyui.seen] == [user, user]


@pytest.mark.parametrize("headers", ["", "Authorization: Bearer wrong"])
async def test_refused_credentials_are_not_reported_as_unreachable(closed_engine: Engine, headers: str) -> None:
    async with running_gateway(closed_engine.url, ready=False, comfyui_headers=headers or None) as gateway:
        server = await _health(gateway, "refused")
        assert "ComfyUI refuses the gateway's credentials (HTTP 401)" in server["reason"]
        assert "COMFYUI_HEADERS" in server["reason"]
        ready = await fetch(gateway, "/health/ready")
        assert ready.status == 503
        assert "refuses the gateway's credentials" in ready.body.decode()
        status, body = await gateway.prompt_sync(invert_workflow())
        assert status == 503
        assert "refuses the gateway's credentials" in body["detail"]
        # When the gateway has credentials, a client must not think that its own key was refused.
        relayed_answer = await fetch(gateway, "/queue")
        assert relayed_answer.status == (502 if headers else 401)
        if headers:
            assert relayed_answer.error_type == "credentials_refused"
            posted = await fetch(gateway, "/prompt", "POST", json={"prompt": invert_workflow()})
            assert posted.status in {502, 503}
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await gateway.http.ws_connect("/ws")
        assert refused.value.status == (502 if headers else 401)


@pytest.mark.parametrize("status", [401, 403])
async def test_revoked_credentials_are_reported_at_the_next_prompt(engine: Engine, status: int) -> None:
    async with running_gateway(engine.url) as gateway:
        await engine.set_faults({"status": {"status": status}})
        code, body = await gateway.prompt_sync(invert_workflow())
        assert (code, body["type"]) == (502, "credentials_refused")
        assert f"(HTTP {status})" in body["detail"]
        assert (await _health(gateway, "refused"))["reason"]
        engine.faults.clear()
        await _health(gateway, "connected")
        assert (await gateway.prompt_sync(invert_workflow()))[0] == 200


async def test_a_secret_header_appears_in_no_log_answer_or_setting(
    closed_engine: Engine, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = b""
    with caplog.at_level(logging.DEBUG):
        for headers in (f"Authorization: {TOKEN}\nX-Edge: 4711", f"Authorization: {TOKEN}"):
            async with running_gateway(
                closed_engine.url, ready=False, comfyui_headers=headers, log_level="DEBUG"
            ) as gateway:
                await _health(gateway, "connected" if "Edge" in headers else "refused")
                for path in ("/health", "/health/ready", "/queue", "/metrics", "/system_stats"):
                    answers += (await fetch(gateway, path)).body
                answers += orjson.dumps((await gateway.prompt_sync(invert_workflow()))[1])
                answers += repr((gateway.settings, gateway.settings.accesses(), gateway.app.app_options)).encode()
    out = capsys.readouterr()
    assert "upstream-secret" not in caplog.text + out.out + out.err + answers.decode()


async def test_redirects_do_not_send_credentials_to_another_server() -> None:
    async def elsewhere(exchange: Exchange) -> None:
        await answer_ok(exchange)

    async with raw_server(elsewhere) as other:

        async def redirecting(exchange: Exchange) -> None:
            await exchange.body()
            head = f"HTTP/1.1 307 Temporary Redirect\r\nLocation: {other.url}/x\r\nContent-Length: 0\r\n\r\n"
            await exchange.send(head.encode())

        async with raw_server(redirecting) as comfyui:
            for lean in (True, False):
                access = ServerAccess({"X-Edge": "4711"})
                async with ComfyUIClient(comfyui.url, lean=lean, retries=0, access=access) as client:
                    with pytest.raises(Exception, match="HTTP 307"):
                        await client.free()
                    with pytest.raises(Exception, match="HTTP 307"):
                        await client.upload_image("a.png", b"x")
            async with running_gateway(comfyui.url, ready=False, comfyui_headers="X-Edge: 4711") as gateway:
                with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                    await gateway.http.ws_connect("/ws")
                assert refused.value.status == 502
        assert other.seen == []


async def test_a_redirected_websocket_does_not_send_credentials_to_another_server() -> None:
    followed = []

    async def redirect(request: web.Request) -> web.Response:
        if request.path == "/elsewhere":
            followed.append(request.headers.get("X-Edge"))
        raise web.HTTPTemporaryRedirect(f"http://localhost:{request.url.port}/elsewhere")

    application = web.Application()
    application.add_routes([web.get("/{path:.*}", redirect)])
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        address = f"127.0.0.1:{runner.addresses[0][1]}"
        async with ComfyUIClient(address, access=ServerAccess({"X-Edge": "4711"})) as client:
            with pytest.raises(ComfyUIConnectionError, match="refused with HTTP 307"):
                await client.connect_websocket("a", heartbeat_s=20)
    finally:
        await runner.cleanup()
    assert followed == []


# TLS


async def test_the_error_of_an_untrusted_certificate_names_the_setting(tls_engine: Engine) -> None:
    async with running_gateway(tls_engine.url, ready=False) as gateway:

        async def reason() -> str:
            return str(orjson.loads((await fetch(gateway, "/health")).body)["servers"][0]["reason"])

        said = await until(reason, lambda text: "certificate" in text)
        assert said.startswith(f"the TLS certificate of {tls_engine.url.removeprefix('https://')} is not trusted (self")
        assert "COMFYUI_TLS_VERIFY" in said
        for method, path in (("GET", "/queue"), ("POST", "/prompt_sync")):
            answer = await fetch(
                gateway, path, method, json={"prompt": invert_workflow()} if method == "POST" else None
            )
            assert (answer.status, answer.error_type) == (503, "connection_failed")
            assert "is not trusted" in orjson.loads(answer.body)["detail"]
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await gateway.http.ws_connect("/ws")
        assert refused.value.status == 503


@pytest.mark.parametrize("verify", [str(CERTIFICATE), "false", '{"%s": false}', '{"*": "' + str(CERTIFICATE) + '"}'])
async def test_comfyui_tls_verify_makes_a_certificate_acceptable(tls_engine: Engine, verify: str) -> None:
    verify = verify.replace("%s", tls_engine.url)
    async with running_gateway(tls_engine.url, comfyui_tls_verify=verify) as gateway:
        status, body = await gateway.prompt_sync(invert_workflow(), return_image_base64=True)
        assert (status, body["status"]) == (200, "success")
        assert (await fetch(gateway, "/queue")).status == 200
        assert (await _health(gateway, "connected"))["websocket"] == "connected"
        async with gateway.http.ws_connect("/ws?clientId=a") as websocket:
            assert "status" in await websocket.receive_str()


@pytest.mark.parametrize("lean", [True, False])
async def test_both_transports_explain_tls_errors(tls_engine: Engine, engine: Engine, lean: bool) -> None:
    async with ComfyUIClient(tls_engine.url, lean=lean, retries=0) as client:
        with pytest.raises(ComfyUIConnectionError, match=r"certificate of .* is not trusted"):
            await client.get_queue_remaining()
        with pytest.raises(ComfyUIConnectionError, match=r"certificate of .* is not trusted"):
            await client.connect_websocket("a", heartbeat_s=20)
    async with ComfyUIClient(engine.url.replace("http:", "https:"), lean=lean, retries=0) as client:
        with pytest.raises(ComfyUIConnectionError, match="may speak http instead of https"):
            await client.get_queue_remaining()


# Settings


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("COMFYUI_HEADERS", "no colon, secret", "lines of 'Name: value'"),
        ("COMFYUI_HEADERS", "Host: secret", "Host must not be set"),
        ("COMFYUI_HEADERS", "content-length: secret", "content-length must not be set"),
        ("COMFYUI_HEADERS", "Bad Name: secret", "is not a valid header name"),
        ("COMFYUI_HEADERS", '{"X-A": 7}', "the value of X-A"),
        ("COMFYUI_HEADERS", '{"X-A": "a\\nsecret"}', "the value of X-A"),
        ("COMFYUI_HEADERS", '{"X-A": "secret"', "is not valid JSON"),
        ("COMFYUI_HEADERS", '{"elsewhere:1": {"X-A": "secret"}}', "'elsewhere:1' is not an address of"),
        ("COMFYUI_TLS_VERIFY", "/nowhere.pem", "No such file"),
        ("COMFYUI_TLS_VERIFY", str(Path(__file__)), "no certificates in PEM"),
        ("COMFYUI_TLS_VERIFY", '{"elsewhere:1": false}', "'elsewhere:1' is not an address of"),
        ("COMFYUI_TLS_VERIFY", "", "true, false or the path"),
    ],
)
def test_an_invalid_setting_stops_the_start_without_showing_the_secret(
    name: str, value: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as stopped:
        create_app(load(Settings))
    assert name in str(stopped.value)
    assert reason in str(stopped.value)
    assert "secret" not in str(stopped.value)
