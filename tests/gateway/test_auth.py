"""API keys, the login page, and which web pages may use the gateway; each test of a refusal names the attack."""

from __future__ import annotations

import asyncio
import base64
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote, urljoin

import aiohttp
import orjson
import pytest
from multidict import MultiDict

from comfyui.engine import Engine
from comfyui.exceptions import SettingsError
from comfyui.settings import load
from comfyui.web.front.keys import COOKIE, KeyRing
from config import Settings
from tests.support.forking import forked, serve_gateway
from tests.support.keys import KEY, OTHER_KEY
from tests.support.relaying import Fetched, answer_ok, fetch, raw_request, relayed
from tests.support.running import RunningGateway, executions, invert_workflow, running_gateway, until

ROOT = Path(__file__).parents[2]
_BEARER = {"Authorization": f"Bearer {KEY}"}


def _basic(user: str, password: str) -> str:
    return base64.b64encode(f"{user}:{password}".encode()).decode()


_PAGE = {"Accept": "text/html,*/*", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Site": "none"}


async def _login(gateway: RunningGateway, key: str = KEY, target: str = "/") -> Fetched:
    return await fetch(gateway, "/login", "POST", data={"key": key, "next": target}, headers={"Origin": gateway.url})


# Keys


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": f"Bearer {KEY}"},
        {"Authorization": f"bearer  {OTHER_KEY}"},
        {"X-API-Key": KEY},
        {"x-api-key": OTHER_KEY, "Authorization": "Bearer wrong"},
        {"Authorization": f"Basic {_basic('anybody', KEY)}"},
        {"Authorization": f"basic  {_basic('', OTHER_KEY)}"},
    ],
)
async def test_a_key_opens_every_path(locked: RunningGateway, headers: dict[str, str]) -> None:
    for path in ("/queue", "/api/system_stats", "/metrics", "/docs"):
        assert (await fetch(locked, path, headers=headers)).status == 200
    answer = await fetch(locked, "/prompt_sync", "POST", json={"prompt": invert_workflow()}, headers=headers)
    assert answer.status == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": f"Bearer {KEY[:-1]}"},
        {"Authorization": f"Bearer {KEY}x"},
        {"Authorization": "Bearer "},
        {"Authorization": f"Basic {KEY}"},
        {"Authorization": f"Basic {_basic(KEY, 'x')}"},
        {"Authorization": f"Basic {_basic('x', KEY + ':')}"},
        {"Authorization": "Basic \xff"},
        {"X-API-Key": ""},
        {"X-API-Key": f"{KEY},{OTHER_KEY}"},
        {"Cookie": f"{COOKIE}={KEY}"},
        {"Cookie": f"{COOKIE}=9999999999.{'0' * 64}"},
        {"Cookie": f"{COOKIE}="},
        {"Cookie": f"{COOKIE}={'9' * 5000}.x"},
    ],
)
async def test_a_request_without_a_valid_key_is_refused_on_every_path(
    locked: RunningGateway, engine: Engine, headers: dict[str, str]
) -> None:
    engine.stats.reset()
    for method, path in (("GET", "/queue"), ("POST", "/prompt"), ("POST", "/prompt_sync"), ("GET", "/metrics")):
        answer = await fetch(locked, path, method, headers=headers)
        assert (answer.status, answer.error_type) == (401, "unauthorized")
        assert answer.headers["WWW-Authenticate"].startswith("Bearer")
    assert engine.stats.show()["requests"] == {}


async def test_the_error_distinguishes_a_wrong_key_from_a_missing_one(locked: RunningGateway) -> None:
    missing, wrong = [
        orjson.loads((await fetch(locked, "/queue", headers=headers)).body)["detail"]
        for headers in ({}, {"X-API-Key": "wrong"})
    ]
    assert missing.startswith("send an API key")
    assert wrong == f"the gateway does not know the API key that was sent; {missing}"


async def test_probes_need_no_key(locked: RunningGateway) -> None:
    for path in ("/health", "/health/live", "/health/ready"):
        assert (await fetch(locked, path)).status == 200


@pytest.mark.parametrize("state", ["healthy", "unreachable", "broken", "cold"])
async def test_a_probe_shows_addresses_and_reasons_only_to_callers_with_a_key(
    engine: Engine, state: str, tmp_path: Path
) -> None:
    host = engine.url.removeprefix("http://") if state != "unreachable" else "127.0.0.1:9"
    warmup = None
    if state == "cold":
        warmup = tmp_path / "warmup.json"
        warmup.write_bytes(orjson.dumps(invert_workflow()))
        await engine.set_faults({"node_error": {"message": f"{host} said no"}})
    async with running_gateway(host, ready=state != "unreachable", api_keys=KEY, warmup_workflow=warmup) as gateway:
        secrets = [host]
        if state == "broken":
            await engine.set_faults({"cuda_fault": {}})
            await fetch(gateway, "/prompt_sync", "POST", json={"prompt": invert_workflow()}, headers=_BEARER)
            secrets.append("RuntimeError")
        elif state == "cold":
            await until(lambda: _why_not_ready(gateway), lambda reason: "said no" in reason)
        for path in ("/health", "/health/ready"):
            for headers in ({}, {"X-API-Key": "wrong"}, {"Cookie": f"{COOKIE}=9999999999.{'0' * 64}"}):
                answer = await fetch(gateway, path, headers=headers)
                assert not any(secret in answer.body.decode() for secret in secrets)
            assert (await fetch(gateway, path, headers=_BEARER)).status == answer.status
        full = await fetch(gateway, "/health", headers=_BEARER)
        cookie = (await _login(gateway)).headers["Set-Cookie"].split(";")[0]
        signed_in = await fetch(gateway, "/health", headers={"Cookie": cookie})
        short = orjson.loads((await fetch(gateway, "/health")).body)
        ready = orjson.loads((await fetch(gateway, "/health/ready")).body)
    assert all(secret in answer.body.decode() for secret in secrets for answer in (full, signed_in))
    # Every caller sees what the container's watchdog and a load balancer need.
    shown = orjson.loads(full.body)["servers"][0]
    told = ("state", "websocket", "queue_remaining", "in_flight", "drained", "simulation")
    assert short["servers"] == [{key: shown[key] for key in told}]
    assert ("queue" in short, orjson.loads(full.body)["queue"]["paused"]) == (False, False)
    assert short["status"] == orjson.loads(full.body)["status"]
    expected = {
        "healthy": None,
        "unreachable": "ComfyUI servers: 1 starting",
        "broken": "ComfyUI servers: 1 broken",
        "cold": "the warm-up workflow (WARMUP_WORKFLOW) has not succeeded yet",
    }
    assert ready.get("reason") == expected[state]


async def _why_not_ready(gateway: RunningGateway) -> str:
    return str(orjson.loads((await fetch(gateway, "/health/ready", headers=_BEARER)).body).get("reason"))


async def test_without_api_keys_a_probe_shows_everything_to_every_caller(
    gateway: RunningGateway, engine: Engine
) -> None:
    answer = orjson.loads((await fetch(gateway, "/health")).body)
    assert answer["servers"][0]["server"] == engine.url.removeprefix("http://")
    assert "reason" in answer["servers"][0]


@pytest.mark.parametrize("path", ["/health/../queue", "//health", "/health/live/", "/%68ealth/x", "/api/health"])
async def test_a_path_that_resembles_a_probe_still_needs_a_key(locked: RunningGateway, path: str) -> None:
    answer = await raw_request(locked.url, f"GET {path} HTTP/1.1\r\nHost: g\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 401 ")


async def test_a_websocket_takes_a_key_from_a_header_or_the_cookie_but_not_its_query(locked: RunningGateway) -> None:
    """Logs and browser histories keep queries."""
    for path in ("/ws", f"/ws?token={KEY}", f"/ws?api_key={KEY}"):
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await locked.http.ws_connect(path)
        assert refused.value.status == 401
    async with locked.http.ws_connect("/ws", headers=_BEARER) as websocket:
        assert "status" in await websocket.receive_str()
    cookie = (await _login(locked)).headers["Set-Cookie"].split(";")[0]
    async with locked.http.ws_connect("/ws", headers={"Cookie": cookie, "Origin": locked.url}) as websocket:
        assert "status" in await websocket.receive_str()


@pytest.mark.parametrize("path", ["/health", "/health/live", "/health/ready"])
async def test_a_websocket_on_the_path_of_a_probe_is_protected_like_any_other(
    locked: RunningGateway, gateway: RunningGateway, engine: Engine, path: str
) -> None:
    """A custom node may serve a websocket there, which a foreign page could hijack like any other."""
    engine.stats.reset()
    for asked, headers, status in ((locked, {}, 401), (gateway, {"Origin": "https://evil.example"}, 403)):
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await asked.http.ws_connect(path, headers=headers)
        assert refused.value.status == status
    assert not any(path in route for route in engine.stats.show()["requests"])


async def test_comfyui_never_sees_the_gateways_own_key_or_cookie() -> None:
    async with relayed(answer_ok, api_keys=KEY) as (comfyui, gateway):
        cookie = (await _login(gateway)).headers["Set-Cookie"].split(";")[0]
        await fetch(gateway, "/x", headers={**_BEARER, "X-API-Key": "for a custom node"})
        await fetch(gateway, "/x", headers={"X-API-Key": KEY, "Authorization": "Basic eA=="})
        await fetch(gateway, "/x", headers={"Cookie": f"a=1; {cookie}; b=2"})
        await fetch(gateway, "/x", headers={"Cookie": cookie})
        await fetch(gateway, "/x", headers={"Authorization": f"Basic {_basic('me', KEY)}"})

        first, second, third, fourth, fifth = (exchange.headers for exchange in comfyui.seen)
        assert "authorization" not in fifth
        assert ("authorization" in first, first["x-api-key"]) == (False, "for a custom node")
        assert ("x-api-key" in second, second["authorization"]) == (False, "Basic eA==")
        assert third["cookie"] == "a=1; b=2"
        assert "cookie" not in fourth
        assert all(KEY not in exchange.head.decode() for exchange in comfyui.seen)


async def test_no_key_is_ever_logged(
    locked: RunningGateway, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    with caplog.at_level(logging.DEBUG):
        await fetch(locked, "/queue", headers=_BEARER)
        await fetch(locked, "/queue", headers={"X-API-Key": "wrong-key-shown"})
        await _login(locked)
        await _login(locked, "wrong-key-shown")
        await fetch(locked, "/queue", headers={**_PAGE})
    out = capsys.readouterr()
    logged = caplog.text + out.out + out.err
    assert KEY not in logged
    assert "wrong-key-shown" not in logged


async def test_without_keys_every_path_is_open_and_login_belongs_to_comfyui(gateway: RunningGateway) -> None:
    assert (await fetch(gateway, "/queue")).status == 200
    assert (await fetch(gateway, "/login")).status == 404


# Login


async def test_a_browser_without_a_session_is_sent_to_the_login_page_and_back(locked: RunningGateway) -> None:
    sent = await fetch(locked, "/?workflow=a%20b", headers=_PAGE)
    assert (sent.status, sent.headers["Location"]) == (303, f"./login?next={quote('/?workflow=a%20b', safe='')}")
    form = await fetch(locked, urljoin("/", sent.headers["Location"]), headers=_PAGE)
    assert form.status == 200
    assert b'value="/?workflow=a%20b"' in form.body
    assert b"http" not in form.body.replace(b"<!doctype html>", b"")  # nothing is loaded from elsewhere

    back = await _login(locked, target="/?workflow=a%20b")
    assert (back.status, back.headers["Location"]) == (303, "./?workflow=a%20b")
    cookie = back.headers["Set-Cookie"]
    assert "HttpOnly" in cookie
    assert "samesite=strict" in cookie.lower()
    assert "Secure" not in cookie  # over plain http the browser would not send it back
    assert KEY not in cookie
    assert (await fetch(locked, "/queue", headers={"Cookie": cookie.split(";")[0]})).status == 200


async def test_over_https_the_cookie_is_secure(locked: RunningGateway) -> None:
    headers = {"X-Forwarded-Proto": "https"}  # set by a proxy on this machine, which is trusted
    answer = await fetch(locked, "/login", "POST", data={"key": KEY}, headers=headers)
    assert "Secure" in answer.headers["Set-Cookie"]


async def test_a_login_with_a_wrong_key_shows_an_error_and_sets_no_cookie(locked: RunningGateway) -> None:
    answer = await _login(locked, "wrong")
    assert answer.status == 401
    assert "Set-Cookie" not in answer.headers
    assert b"does not know this key" in answer.body


async def test_a_script_gets_status_401_instead_of_the_login_page(locked: RunningGateway) -> None:
    headers = {"Accept": "text/html, */*", "Sec-Fetch-Mode": "cors", "Sec-Fetch-Site": "same-origin"}
    assert (await fetch(locked, "/queue", headers=headers)).status == 401


@pytest.mark.parametrize(
    "target",
    [
        *(
            "https://evil.example/",
            "//evil.example",
            "/\\evil.example",
            "javascript:alert(1)",
            "evil",
            "",
            "/x\r\nA: b",
        ),
        # These leave the path below which a proxy serves the gateway.
        *("/../other", "/a/%2e%2E/../other", "/..\\other", "/./\\evil.example"),
    ],
)
async def test_the_login_page_never_redirects_to_another_site(locked: RunningGateway, target: str) -> None:
    """Open redirect: a link to our login page that ends on the attacker's copy of it."""
    assert (await _login(locked, target=target)).headers["Location"] == "./"


async def test_the_login_page_does_not_run_a_script_from_its_address(locked: RunningGateway) -> None:
    """Cross-site scripting through the query parameter ``next``."""
    attack = quote('/"><script>alert(1)</script>', safe="")
    page = await fetch(locked, f"/login?next={attack}", headers=_PAGE)
    assert b"<script" not in page.body
    assert "default-src 'none'" in page.headers["Content-Security-Policy"]


async def test_logout_removes_the_cookie(locked: RunningGateway) -> None:
    answer = await fetch(locked, "/logout", "POST", headers={"Origin": locked.url})
    assert (answer.status, answer.headers["Location"]) == (303, "./login")
    assert f'{COOKIE}=""' in answer.headers["Set-Cookie"]
    assert "Max-Age=0" in answer.headers["Set-Cookie"]


async def test_logout_passes_the_page_named_in_next_to_the_login_page(locked: RunningGateway) -> None:
    answer = await fetch(locked, "/logout?next=%2Fconsole", headers=_PAGE)
    assert (answer.status, answer.headers["Location"]) == (303, "./login?next=%2Fconsole")


async def test_logout_never_redirects_to_another_site(locked: RunningGateway) -> None:
    answer = await fetch(locked, "/logout?next=%2F%2Fevil.example", headers=_PAGE)
    assert (answer.status, answer.headers["Location"]) == (303, "./login")


def test_a_session_ends_after_its_time_or_when_its_key_is_removed() -> None:
    now = 1000.0
    ring = KeyRing([KEY, OTHER_KEY], session_s=60, clock=lambda: now)
    token = ring.open_session(KEY.encode())
    assert token is not None
    assert ring.session_caller(token)
    assert KeyRing([KEY], session_s=60, clock=lambda: now).session_caller(token)  # after a restart, too
    assert not KeyRing([OTHER_KEY], session_s=60, clock=lambda: now).session_caller(token)
    now = 1061.0
    assert not ring.session_caller(token)


@pytest.mark.parametrize(
    "forge", [lambda e, s: f"{int(e) + 9}.{s}", lambda e, s: f"{e}.{s[:-1]}", lambda e, s: f"{e} .{s}"]
)
def test_a_forged_session_token_is_refused(forge: object) -> None:
    ring = KeyRing([KEY], session_s=60)
    token = ring.open_session(KEY.encode())
    assert token is not None
    expiry, _, signature = token.partition(".")
    assert callable(forge)
    assert not ring.session_caller(forge(expiry, signature))


# Idempotency keys per caller


async def _ordered(gateway: RunningGateway, tag: int, headers: dict[str, str]) -> tuple[int, str]:
    headers = {"Idempotency-Key": "order 4711", **headers}
    answer = await fetch(gateway, "/prompt_sync", "POST", json={"prompt": invert_workflow(tag)}, headers=headers)
    return answer.status, orjson.loads(answer.body)["prompt_id"]


async def test_an_idempotency_key_counts_for_one_caller_only(locked: RunningGateway, engine: Engine) -> None:
    mine, theirs = {"X-API-Key": KEY}, {"X-API-Key": OTHER_KEY}
    first = await _ordered(locked, 1, mine)
    assert first[0] == 200
    other = await _ordered(locked, 2, theirs)  # another body, and no conflict
    assert other[0] == 200
    assert other[1] != first[1]
    assert await _ordered(locked, 1, _BEARER) == first
    assert executions(engine) == {first[1]: 1, other[1]: 1}


async def test_a_browser_session_counts_as_the_caller_whose_key_signed_in(locked: RunningGateway) -> None:
    cookie = {"Cookie": (await _login(locked, OTHER_KEY)).headers["Set-Cookie"].split(";")[0]}
    assert await _ordered(locked, 1, cookie) == await _ordered(locked, 1, {"X-API-Key": OTHER_KEY})


async def test_idempotency_keys_survive_a_restart_and_changes_of_other_api_keys(
    engine: Engine,
) -> None:
    seen = []
    for keys in (KEY, f"new, {KEY}", f"{KEY}, {OTHER_KEY}"):
        async with running_gateway(engine.url, api_keys=keys) as gateway:
            seen.append(await _ordered(gateway, 1, _BEARER))
    async with running_gateway(engine.url, api_keys=OTHER_KEY) as gateway:
        other = await _ordered(gateway, 1, {"X-API-Key": OTHER_KEY})
    assert len(set(seen)) == 1
    assert other != seen[0]


async def test_without_api_keys_an_idempotency_key_maps_to_the_same_id_as_before(gateway: RunningGateway) -> None:
    """Earlier versions derived this id too, so a request repeated after an upgrade finds its prompt."""
    assert await _ordered(gateway, 1, {}) == (200, "d681d8df-8837-5c95-b2bf-c5b8339c288e")


# Pages of other sites

_EVIL = {"Origin": "https://evil.example"}


@pytest.mark.parametrize(
    ("attack", "method", "headers"),
    [
        ("a page posts a workflow to the user's own network", "POST", _EVIL),
        ("the same from a sandboxed frame", "POST", {"Origin": "null"}),
        ("the same port on another host", "POST", {"Origin": "http://127.0.0.1.evil.example"}),
        ("our address as the user part", "POST", {"Origin": "http://127.0.0.1@evil.example"}),
        ("another port of this host", "POST", {"Origin": "http://127.0.0.1:1", "Sec-Fetch-Site": "same-site"}),
        ("a page reads the queue", "GET", {**_EVIL, "Sec-Fetch-Site": "cross-site"}),
        ("a page shows our pictures as its own", "GET", {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}),
        ("two origins, one of them ours", "POST", MultiDict([*_EVIL.items(), ("Origin", "http://127.0.0.1")])),
        ("an origin that cannot be parsed", "POST", {"Origin": "http://[::1"}),
        ("an origin with an invalid host", "POST", {"Origin": "http://\u2100"}),
        ("our address with a path", "POST", {"Origin": "http://g/x", "Host": "g"}),
        ("a referrer that cannot be parsed", "GET", {"Sec-Fetch-Site": "cross-site", "Referer": "http://[x"}),
        ("a page submits a form", "POST", {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}),
    ],
)
@pytest.mark.parametrize("path", ["/queue", "/prompt_sync"])
async def test_a_foreign_page_is_refused(
    gateway: RunningGateway, engine: Engine, path: str, attack: str, method: str, headers: Mapping[str, str]
) -> None:
    engine.stats.reset()
    answer = await fetch(gateway, path, method, headers=headers)
    assert (answer.status, answer.error_type) == (403, "forbidden"), attack
    assert engine.stats.show()["requests"] == {}


@pytest.mark.parametrize(
    "headers", [{"Origin": "http://[::1"}, {"Sec-Fetch-Site": "cross-site", "Referer": "http://[x"}]
)
async def test_a_probe_answers_for_any_origin_or_referrer(
    gateway: RunningGateway, locked: RunningGateway, headers: dict[str, str]
) -> None:
    for path in ("/health", "/health/live", "/health/ready"):
        assert (await fetch(gateway, path, headers=headers)).status == 200
        assert (await fetch(locked, path, headers=headers)).status == 200


@pytest.mark.parametrize("referer", ["http://[::1", "nonsense", "//", "http://g/a?b#c", "/only/a/path", "\u65e5\u672c"])
async def test_a_referrer_is_rewritten_to_comfyuis_address_or_removed(referer: str) -> None:
    async with relayed(answer_ok) as (comfyui, gateway):
        assert (await fetch(gateway, "/x", headers={"Referer": referer})).status == 200
        said = comfyui.seen[0].headers.get("referer")
        rewritten = {"http://[::1": "/", "//": "/", "http://g/a?b#c": "/a?b#c"}
        assert said == (f"{comfyui.url}{rewritten[referer]}" if referer in rewritten else None)


async def test_a_foreign_page_opens_no_websocket(gateway: RunningGateway) -> None:
    """Cross-site websocket hijacking: browsers do not ask before they open one."""
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await gateway.http.ws_connect("/ws", headers=_EVIL)
    assert refused.value.status == 403


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Origin": "http://{own}"},
        {"Origin": "http://{own}", "Sec-Fetch-Site": "same-origin"},
        {"Origin": "https://public.internal", "Host": "public.internal:443"},
        {"Origin": "https://public.internal", "X-Forwarded-Host": "public.internal"},
        {"Origin": "https://public.example", "Sec-Fetch-Site": "same-origin"},
        {"Sec-Fetch-Site": "none", "Sec-Fetch-Mode": "navigate"},
    ],
)
async def test_requests_of_the_gateways_own_pages_and_of_programs_are_accepted(
    gateway: RunningGateway, headers: dict[str, str]
) -> None:
    own = gateway.url.removeprefix("http://")
    headers = {name: value.format(own=own) for name, value in headers.items()}
    assert (await fetch(gateway, "/queue", "POST", json={"delete": []}, headers=headers)).status == 200


async def test_a_link_from_elsewhere_opens_a_page(gateway: RunningGateway) -> None:
    headers = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert (await fetch(gateway, "/", headers=headers)).status == 200


# CORS


async def test_a_listed_origin_may_send_requests_and_read_answers(locked: RunningGateway) -> None:
    origin = {"Origin": "https://app.example", "Sec-Fetch-Site": "cross-site"}
    asked = await fetch(
        locked,
        "/prompt_sync",
        "OPTIONS",
        headers={
            **origin,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization,content-type",
        },
    )
    assert asked.status == 200
    assert asked.headers["Access-Control-Allow-Origin"] == "https://app.example"
    assert asked.headers["Access-Control-Allow-Methods"] == "POST"
    assert asked.headers["Access-Control-Allow-Headers"] == "authorization,content-type"
    for path in ("/queue", "/metrics"):
        answer = await fetch(locked, path, headers={**origin, **_BEARER})
        assert answer.status == 200
        assert answer.headers["Access-Control-Allow-Origin"] == "https://app.example"
        assert answer.headers["Vary"] == "Origin"
        assert "X-Prompt-Id" in answer.headers["Access-Control-Expose-Headers"]
    refused = await fetch(locked, "/queue", headers=origin)
    assert refused.status == 401
    assert refused.headers["Access-Control-Allow-Origin"] == "https://app.example"


async def test_a_preflight_from_an_unlisted_page_is_refused_without_cors_headers(locked: RunningGateway) -> None:
    answer = await fetch(locked, "/queue", "OPTIONS", headers={**_EVIL, "Access-Control-Request-Method": "POST"})
    assert answer.status == 403
    assert "Access-Control-Allow-Origin" not in answer.headers


async def test_with_a_wildcard_origin_no_foreign_page_may_use_a_signed_in_session(engine: Engine) -> None:
    async with running_gateway(engine.url, api_keys=KEY, cors_allow_origins="*") as gateway:
        cookie = {"Cookie": (await _login(gateway)).headers["Set-Cookie"].split(";")[0]}
        assert (await fetch(gateway, "/queue", headers={**_EVIL, **cookie})).status == 401
        # A browser repeats a password on its own, as it repeats a cookie.
        basic = {"Authorization": f"Basic {_basic('me', KEY)}"}
        assert (await fetch(gateway, "/queue", headers={**_EVIL, **basic})).status == 401
        assert (await fetch(gateway, "/queue", headers=basic)).status == 200
        answer = await fetch(gateway, "/queue", headers={**_EVIL, **_BEARER})
        assert (answer.status, answer.headers["Access-Control-Allow-Origin"]) == (200, "*")
        assert "Access-Control-Allow-Credentials" not in answer.headers


@pytest.mark.parametrize("value", ["app.example", "https://app.example/path", "https://"])
def test_an_invalid_origin_in_the_settings_stops_the_start(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CORS_ALLOW_ORIGINS", value)
    with pytest.raises(SettingsError, match="CORS_ALLOW_ORIGINS"):
        load(Settings)


@pytest.mark.parametrize(
    ("host", "keys", "warned"), [("0.0.0.0", "", True), ("0.0.0.0", "k", False), ("127.0.0.1", "", False)]
)
async def test_the_start_warns_of_a_gateway_without_keys_that_others_can_reach(
    host: str, keys: str, warned: bool
) -> None:
    variables = {"SERVER_HOST": host, "SERVER_PORT": "0", "API_KEYS": keys, "LOG_OUTPUT": "json", "STATE_DIR": ""}
    seen = ""
    async with (
        asyncio.timeout(20),
        forked(serve_gateway, environ=os.environ | variables, descriptor=2) as process,
    ):
        while "gateway.starting" not in seen:
            seen += (await process.output.readline()).decode()
    assert ("gateway.open" in seen) is warned
    if warned:
        line = next(line for line in seen.splitlines() if "gateway.open" in line)
        for way in (host, "set API_KEYS to", "openssl rand -hex 24", "SERVER_HOST=127.0.0.1"):
            assert way in line


def test_keys_do_not_show_in_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_KEYS", f"{KEY}, {OTHER_KEY}")
    settings = load(Settings)
    assert [key.get_secret_value() for key in settings.api_keys] == [KEY, OTHER_KEY]
    assert KEY not in repr(settings)
    assert KEY not in str(settings.model_dump())
