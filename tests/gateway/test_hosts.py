"""The host names a gateway accepts, the proxies whose forwarded headers count, and delays after wrong keys."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import aiohttp
import orjson
import pytest

from comfyui.engine import Engine
from comfyui.exceptions import SettingsError
from comfyui.settings import load
from comfyui.web.front.guesses import Guesses, GuessLimits
from comfyui.web.front.hosts import KnownHosts, parse_hosts
from config import Settings
from tests.support.relaying import answer_ok, fetch, raw_request, relayed
from tests.support.running import RunningGateway, running_gateway

_KEY = "correct-horse-battery"
_REBOUND = {"Host": "evil.example", "Origin": "http://evil.example"}


def _scope(host: str, *more: tuple[bytes, bytes]) -> dict[str, object]:
    return {"type": "http", "headers": [(b"host", host.encode("latin-1")), *more]}


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1:18188", "10.1.2.3", "[::1]:18188", "[fe80::1%eth0]", "localhost", "comfyui:8188", "LOCALHOST",
        "a.localhost", "box.local", "box.local.", "gateway.internal:80", "gateway.ns.svc", "a.svc.cluster.local",
        "", "listed.example.org", "LISTED.example.org:443", "a.below.example", "a.b.below.example",
    ],
)  # fmt: skip
def test_addresses_and_names_outside_the_public_dns_are_known(host: str) -> None:
    assert KnownHosts(parse_hosts(["listed.example.org", "*.below.example"])).unknown_in(_scope(host)) is None


@pytest.mark.parametrize(
    "host",
    [
        "evil.example", "evil.example:18188", "localhost.evil.example", "127.0.0.1.evil.example", "evil.example.",
        "notlocal.evil", "evil.locals", "below.example", "xbelow.example", "[::1", "[:", "localhost@evil.example",
        "evil.example/.local", "127.0.0.1.", "evil.example:80:80", "127.0.0.1, evil.example", "a b.local",
    ],
)  # fmt: skip
def test_a_public_name_is_not_known_unless_it_is_listed(host: str) -> None:
    expected = None if host == "127.0.0.1." else host
    assert KnownHosts(parse_hosts(["listed.example.org", "*.below.example"])).unknown_in(_scope(host)) == expected


def test_a_wildcard_makes_every_name_known() -> None:
    assert KnownHosts(parse_hosts(["*"])).unknown_in(_scope("evil.example")) is None


@pytest.mark.parametrize("value", ["https://a.example", "a.example:443", "a.example/x", "*", "*.*.example", "a b"])
def test_an_invalid_host_name_in_the_settings_stops_the_start(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALLOWED_HOSTS", value)
    if value == "*":
        assert load(Settings).allowed_hosts == ("*",)
        return
    with pytest.raises(SettingsError, match="ALLOWED_HOSTS"):
        load(Settings)


@pytest.mark.parametrize("path", ["/queue", "/view?filename=a.png", "/metrics", "/docs", "/prompt_sync"])
async def test_a_page_that_rebinds_its_name_to_the_gateway_is_refused(
    gateway: RunningGateway, engine: Engine, path: str
) -> None:
    """DNS rebinding: the browser takes this page for one of the gateway."""
    engine.stats.reset()
    for headers in (_REBOUND, {"Host": "evil.example"}, {"Host": "evil.example", "Sec-Fetch-Site": "same-origin"}):
        answer = await fetch(gateway, path, headers=headers)
        assert (answer.status, answer.error_type) == (403, "forbidden")
        assert "'evil.example'" in orjson.loads(answer.body)["detail"]
        assert "ALLOWED_HOSTS" in orjson.loads(answer.body)["detail"]
    assert engine.stats.show()["requests"] == {}


async def test_a_rebinding_page_cannot_open_a_websocket(gateway: RunningGateway) -> None:
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await gateway.http.ws_connect("/ws", headers=_REBOUND)
    assert refused.value.status == 403


async def test_a_rebinding_page_is_refused_behind_a_proxy_that_sets_the_host(gateway: RunningGateway) -> None:
    headers = {"Host": "127.0.0.1", "X-Forwarded-Host": "evil.example", "Origin": "http://evil.example"}
    assert (await fetch(gateway, "/queue", headers=headers)).status == 403


async def test_a_probe_answers_under_any_name_but_shows_addresses_only_under_a_known_one(
    gateway: RunningGateway, engine: Engine
) -> None:
    host = engine.url.removeprefix("http://")
    for path in ("/health", "/health/live", "/health/ready"):
        answer = await fetch(gateway, path, headers={"Host": "evil.example"})
        assert answer.status == 200
        assert host not in answer.body.decode()
        assert (await fetch(gateway, path, headers={"Host": "10.0.0.7:18188"})).status == 200
    assert host in (await fetch(gateway, "/health", headers={"Host": "10.0.0.7:18188"})).body.decode()


async def test_a_listed_name_and_any_name_with_a_key_are_served(engine: Engine) -> None:
    async with running_gateway(engine.url, allowed_hosts="comfy.example") as gateway:
        for headers in ({"Host": "comfy.example"}, {"Host": "comfy.example", "Origin": "https://comfy.example"}):
            assert (await fetch(gateway, "/queue", headers=headers)).status == 200
    async with running_gateway(engine.url, api_keys=_KEY) as gateway:
        assert (await fetch(gateway, "/queue", headers={"Host": "any.example", "X-API-Key": _KEY})).status == 200


# X-Forwarded headers of trusted and other senders


async def test_forwarded_headers_of_an_untrusted_sender_are_ignored() -> None:
    request = (
        b"GET /x HTTP/1.1\r\nHost: gateway\r\nX-Forwarded-For: 6.6.6.6\r\nX-Forwarded-Proto: https\r\n"
        b"X-Forwarded-Host: evil.example\r\nX-Forwarded-Prefix: /evil\r\n"
        b"X-Real-IP: 6.6.6.6\r\nForwarded: for=6.6.6.6\r\n\r\n"
    )
    async with relayed(answer_ok, forwarded_allow_ips="10.0.0.1") as (comfyui, gateway):
        assert (await raw_request(gateway.url, request)).startswith(b"HTTP/1.1 200 ")
        headers = comfyui.seen[0].headers
    assert headers["x-forwarded-for"] == "127.0.0.1"
    assert headers["x-forwarded-proto"] == "http"
    assert headers["x-forwarded-host"] == "gateway"
    assert not {"x-forwarded-prefix", "x-real-ip", "forwarded"} & set(headers)


@pytest.mark.parametrize(
    ("chain", "client"),
    [
        ("6.6.6.6, 10.0.0.9", "6.6.6.6, 10.0.0.9, 127.0.0.1"),
        ("1.1.1.1, 6.6.6.6, 10.0.0.9", "1.1.1.1, 6.6.6.6, 10.0.0.9, 127.0.0.1"),
    ],
)
async def test_forwarded_headers_of_a_trusted_proxy_are_kept_and_it_is_added_to_the_chain(
    chain: str, client: str
) -> None:
    async with relayed(answer_ok, forwarded_allow_ips="127.0.0.1, 10.0.0.0/8") as (comfyui, gateway):
        await fetch(gateway, "/x", headers={"X-Forwarded-For": chain, "X-Forwarded-Host": "comfy.internal"})
        headers = comfyui.seen[0].headers
    assert headers["x-forwarded-for"] == client
    assert headers["x-forwarded-host"] == "comfy.internal"


@pytest.mark.parametrize("value", ["proxy", "10.0.0.0/40", "10.0.0.1:80"])
def test_an_invalid_proxy_address_in_the_settings_stops_the_start(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", value)
    with pytest.raises(SettingsError, match="FORWARDED_ALLOW_IPS"):
        load(Settings)


# Guessed keys


def test_wrong_keys_of_an_address_are_answered_later_and_later_for_a_while() -> None:
    now = 1000.0
    guesses = Guesses(GuessLimits(free=3, per_second=2, longest_s=1.2), clock=lambda: now)
    assert [guesses.count("a") for _ in range(7)] == [0, 0, 0, 0.5, 1.0, pytest.approx(1.2), pytest.approx(1.2)]
    assert guesses.count("b") == 0
    now += 10
    assert guesses.count("a") == 0


def test_the_memory_for_guesses_is_limited() -> None:
    guesses = Guesses(GuessLimits(addresses=100))
    for number in range(1000):
        guesses.count(str(number))
    assert len(guesses._busy_until) == 100


async def test_only_a_limited_number_of_answers_are_delayed_at_once() -> None:
    guesses = Guesses(GuessLimits(free=0, per_second=0.001, longest_s=60, waiting=2))
    scope = {"client": ("10.0.0.1", 1)}
    waiting = [asyncio.create_task(guesses.slow_down(scope)) for _ in range(2)]
    await asyncio.sleep(0)
    assert await guesses.slow_down(scope) is False
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert guesses._waiting == 0


@pytest.mark.parametrize("path", ["/queue", "/health", "/login"])
async def test_guesses_are_slowed_by_forwarded_address_but_valid_keys_are_not(engine: Engine, path: str) -> None:
    slow = GuessLimits(free=2, per_second=0.01, longest_s=40)
    attacker = {"X-Forwarded-For": "6.6.6.6"}
    async with running_gateway(
        engine.url, changed=lambda made: replace(made, app=replace(made.app, guesses=slow)), api_keys=_KEY
    ) as gateway:

        async def guess(number: int) -> int:
            if path == "/login":
                answer = await fetch(gateway, path, "POST", data={"key": f"guess {number}"}, headers=attacker)
            else:
                answer = await fetch(gateway, path, headers={**attacker, "X-API-Key": f"guess {number}"})
            return answer.status

        assert {await guess(1), await guess(2)} == {200 if path == "/health" else 401}
        pending = asyncio.create_task(guess(3))
        await asyncio.wait([pending], timeout=0.3)
        valid = await fetch(gateway, "/queue", headers={**attacker, "X-API-Key": _KEY})
        signed_in = await fetch(gateway, "/login", "POST", data={"key": _KEY}, headers=attacker)
        in_detail = await fetch(gateway, "/health", headers={**attacker, "X-API-Key": _KEY})
        other = await fetch(gateway, "/queue", headers={"X-Forwarded-For": "7.7.7.7", "X-API-Key": "wrong"})
        no_key = await fetch(gateway, "/queue", headers=attacker)
        probe = await fetch(gateway, "/health/live", headers=attacker)
        assert not pending.done()
        pending.cancel()
        await asyncio.gather(pending, return_exceptions=True)
    statuses = [answer.status for answer in (valid, signed_in, in_detail, other, no_key, probe)]
    assert statuses == [200, 303, 200, 401, 401, 200]
    assert engine.url.removeprefix("http://") in in_detail.body.decode()
