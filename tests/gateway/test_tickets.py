"""Tickets: a page of another origin may open one address without a key, and nothing else."""

from __future__ import annotations

import gzip
import logging
from typing import Any
from urllib.parse import urlencode

import aiohttp
import orjson
import pytest
from yarl import URL

from comfyui.engine import Engine
from comfyui.exceptions import RequestError
from comfyui.web.front.keys import KeyRing
from comfyui.web.front.tickets import TICKET_S, Tickets
from tests.support.keys import KEY, OTHER_KEY
from tests.support.relaying import Fetched, answer_ok, fetch, relayed
from tests.support.running import RunningGateway, invert_workflow, running_gateway

_BEARER = {"Authorization": f"Bearer {KEY}"}
_PICTURE_OF_A_PAGE = {
    "Sec-Fetch-Site": "cross-site",
    "Sec-Fetch-Mode": "no-cors",
    "Sec-Fetch-Dest": "image",
    "Referer": "https://app.example/",
}
_PAGE = {"Origin": "https://app.example", "Sec-Fetch-Site": "cross-site"}


async def _ticket(gateway: RunningGateway, url: str, **options: Any) -> str:
    """Returns the address with a ticket."""
    answer = await fetch(gateway, "/tickets", "POST", json={"url": url, **options}, headers=_BEARER)
    assert answer.status == 200, answer.body
    assert answer.headers["Cache-Control"] == "no-store"
    return str(orjson.loads(answer.body)["url"])


async def _open(gateway: RunningGateway, address: str, method: str = "GET", **headers: str) -> Fetched:
    return await fetch(gateway, URL(address, encoded=True), method, headers=headers or _PICTURE_OF_A_PAGE)


async def test_a_page_of_another_origin_can_show_a_picture_with_a_ticket(locked_plain: RunningGateway) -> None:
    answer = await fetch(locked_plain, "/prompt_sync", "POST", json={"prompt": invert_workflow()}, headers=_BEARER)
    url = orjson.loads(answer.body)["images"][0]["url"]
    assert (await _open(locked_plain, url)).status == 403
    address = await _ticket(locked_plain, url)
    for _ in range(2):  # a browser may load it again
        shown = await _open(locked_plain, address)
        assert (shown.status, shown.body[:4]) == (200, b"\x89PNG")
        assert shown.headers["Referrer-Policy"] == "no-referrer"
        # The page can show the picture, but cannot read its bytes.
        assert "Access-Control-Allow-Origin" not in shown.headers
    # The ticket also works without the headers of a browser.
    assert (await fetch(locked_plain, URL(address, encoded=True))).status == 200


async def test_a_ticket_opens_a_websocket_once(locked_plain: RunningGateway) -> None:
    address = await _ticket(locked_plain, "/ws?clientId=abc", websocket=True)
    async with locked_plain.http.ws_connect(URL(address, encoded=True), headers=_PAGE) as websocket:
        message = orjson.loads(await websocket.receive_str())
        assert message["data"]["sid"] == "abc"
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await locked_plain.http.ws_connect(URL(address, encoded=True), headers=_PAGE)
        assert refused.value.status == 403
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await locked_plain.http.ws_connect(URL(address, encoded=True))
    assert refused.value.status == 401


async def test_a_page_of_another_origin_opens_no_websocket_without_a_ticket(locked_plain: RunningGateway) -> None:
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await locked_plain.http.ws_connect("/ws?clientId=abc", headers=_PAGE)
    assert refused.value.status == 403


_URL = "/view?filename=a.png&subfolder=&type=output"


@pytest.mark.parametrize(
    ("attack", "method", "change"),
    [
        ("another file", "GET", lambda address: address.replace("a.png", "b.png")),
        ("another path", "GET", lambda address: address.replace("/view", "/queue")),
        ("another spelling", "GET", lambda address: address.replace("/view", "/api/view")),
        ("an encoded spelling", "GET", lambda address: address.replace("/view", "/%76iew")),
        ("an added parameter", "GET", lambda address: f"{address}&x=1"),
        ("a missing parameter", "GET", lambda address: address.replace("&type=output", "")),
        ("another method", "POST", lambda address: address),
        ("only the head", "HEAD", lambda address: address),
        ("a deletion", "DELETE", lambda address: address),
        ("a longer life", "GET", lambda address: address.replace("ticket=1", "ticket=9")),
        ("another signature", "GET", lambda address: f"{address[:-1]}{'0' if address[-1] != '0' else '1'}"),
        ("two tickets", "GET", lambda address: f"{address}&{address[address.index('ticket=') :]}"),
        ("an empty ticket", "GET", lambda address: f"{_URL}&ticket="),
        ("no number as expiry", "GET", lambda address: f"{_URL}&ticket=x.y.z"),
        ("bytes that are no text", "GET", lambda address: f"{_URL}&ticket=%ff.%fe.%fd"),
        ("the key itself", "GET", lambda address: f"{_URL}&ticket={KEY}"),
    ],
)
async def test_a_ticket_opens_no_other_request(
    locked_plain: RunningGateway, engine: Engine, attack: str, method: str, change: Any
) -> None:
    address = await _ticket(locked_plain, _URL)
    engine.stats.reset()
    changed = change(address)
    assert (changed, method) != (address, "GET")
    answer = await fetch(locked_plain, URL(changed, encoded=True), method)
    assert answer.status == 401, attack
    assert (await _open(locked_plain, changed, method, **_PICTURE_OF_A_PAGE)).status == 403, attack
    assert engine.stats.show()["requests"] == {}


async def test_tickets_for_files_and_for_websockets_cannot_replace_each_other(
    locked_plain: RunningGateway,
) -> None:
    picture = await _ticket(locked_plain, "/ws?clientId=a")
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await locked_plain.http.ws_connect(URL(picture, encoded=True))
    assert refused.value.status == 401
    websocket = await _ticket(locked_plain, _URL, websocket=True)
    assert (await fetch(locked_plain, URL(websocket, encoded=True))).status == 401


async def test_a_ticket_can_only_be_made_with_a_key(locked_plain: RunningGateway) -> None:
    address = await _ticket(locked_plain, "/tickets")
    assert (await fetch(locked_plain, URL(address, encoded=True), "POST", json={"url": "/x"})).status == 401
    assert (await fetch(locked_plain, "/tickets", "POST", json={"url": "/x"})).status == 401


async def test_a_ticket_has_no_more_rights_than_its_maker(locked_plain: RunningGateway) -> None:
    address = await _ticket(locked_plain, "/internal/logs")
    assert (await fetch(locked_plain, URL(address, encoded=True))).status == 403


async def test_signed_in_callers_can_make_tickets_and_a_session_is_no_ticket(locked_plain: RunningGateway) -> None:
    signed_in = await fetch(locked_plain, "/login", "POST", data={"key": OTHER_KEY})
    cookie = {"Cookie": signed_in.headers["Set-Cookie"].split(";")[0]}
    made = await fetch(
        locked_plain, "/tickets", "POST", json={"url": "/queue"}, headers={**cookie, "Origin": locked_plain.url}
    )
    assert made.status == 200
    assert (await fetch(locked_plain, URL(orjson.loads(made.body)["url"], encoded=True))).status == 200
    session = cookie["Cookie"].partition("=")[2]
    for forged in (session, session.replace(".", "..")):
        assert (await fetch(locked_plain, f"/queue?ticket={forged}")).status == 401
    ticket = orjson.loads(made.body)["ticket"]
    forged_cookie = {"Cookie": f"comfyui_gateway_session={ticket}"}
    assert (await fetch(locked_plain, "/queue", headers=forged_cookie)).status == 401


async def test_neither_comfyui_nor_the_log_sees_a_ticket(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    with caplog.at_level(logging.DEBUG):
        async with relayed(answer_ok, api_keys=KEY, log_level="DEBUG") as (comfyui, gateway):
            address = await _ticket(gateway, "/view?filename=a.png")
            ticket = address.partition("ticket=")[2]
            assert (await _open(gateway, address)).status == 200
            assert (await _open(gateway, f"{address}x")).status == 403
            assert (await fetch(gateway, URL(f"{address}x", encoded=True))).status == 401
            assert comfyui.seen[0].line == "GET /view?filename=a.png HTTP/1.1"
            assert ticket not in comfyui.seen[0].head.decode()
    out = capsys.readouterr()
    assert ticket not in caplog.text + out.out + out.err


async def test_a_parameter_named_ticket_is_relayed_when_the_caller_has_a_key() -> None:
    async with relayed(answer_ok, api_keys=KEY) as (comfyui, gateway):
        assert (await fetch(gateway, "/node?ticket=4711", headers=_BEARER)).status == 200
        assert comfyui.seen[0].line == "GET /node?ticket=4711 HTTP/1.1"


async def test_a_gateway_without_keys_refuses_tickets_and_names_the_setting(gateway: RunningGateway) -> None:
    answer = await fetch(gateway, "/tickets", "POST", json={"url": "/queue"})
    assert (answer.status, answer.error_type) == (404, "not_found")
    assert "API_KEYS" in orjson.loads(answer.body)["detail"]


@pytest.mark.parametrize(
    "url",
    [
        "", "view?a=b", "https://elsewhere.example/view", "//elsewhere.example/view", "/a b", "/é", "/a#b", "/a\r\nb",
        "/a/../b", "/a/%2E%2e/b", "/./a", "/a//b", "/a\\b", "/view?", "/a?ticket=x", "/a?b=c&ticket=x", "/a?b='", 7,
    ],
)  # fmt: skip
async def test_a_url_that_cannot_have_a_ticket_is_refused_by_name(locked_plain: RunningGateway, url: Any) -> None:
    answer = await fetch(locked_plain, "/tickets", "POST", json={"url": url}, headers=_BEARER)
    assert (answer.status, answer.error_type) == (422, "invalid_request")
    assert orjson.loads(answer.body)["detail"].startswith(("url must ", "url: "))


async def test_tickets_use_the_public_url_if_it_is_set(engine: Engine) -> None:
    public = "https://example.org/comfy"
    async with running_gateway(engine.url, api_keys=KEY, public_url=public) as gateway:
        picture = await _ticket(gateway, f"{public}{_URL}")
        assert picture.startswith(f"{public}{_URL}&ticket=")
        websocket = await _ticket(gateway, "/ws?clientId=a", websocket=True)
        assert websocket.startswith("wss://example.org/comfy/ws?clientId=a&ticket=")
        assert (await _open(gateway, picture.removeprefix(public))).status == 404  # ComfyUI has no such file
        async with gateway.http.ws_connect(
            URL(websocket.removeprefix("wss://example.org/comfy"), encoded=True), headers=_PAGE
        ) as opened:
            assert "status" in await opened.receive_str()


# Tickets without a gateway


def _scope(address: str, kind: str = "http") -> dict[str, Any]:
    path, _, query = address.partition("?")
    return {"type": kind, "method": "GET", "path": path, "raw_path": path.encode(), "query_string": query.encode()}


def test_a_ticket_expires_after_five_minutes_or_with_its_key() -> None:
    now = 1000.0
    ring = KeyRing([KEY, OTHER_KEY], session_s=60)
    tickets = Tickets(ring, clock=lambda: now)
    caller = ring.caller(KEY.encode())
    assert caller is not None
    address = tickets.make(caller, _URL, websocket=False)["url"]
    now += TICKET_S - 1
    redeemed = tickets.redeem(_scope(address))
    assert redeemed is not None
    assert redeemed[0] == caller
    assert redeemed[1]["query_string"] == _URL.partition("?")[2].encode()
    # It works after a restart and on another gateway with this key, but not once the key was removed.
    assert Tickets(KeyRing([KEY], session_s=60), clock=lambda: now).redeem(_scope(address))
    assert Tickets(KeyRing([OTHER_KEY], session_s=60), clock=lambda: now).redeem(_scope(address)) is None
    now += 1
    assert tickets.redeem(_scope(address)) is None


def test_the_memory_of_used_tickets_is_bounded() -> None:
    now = 1000.0
    ring = KeyRing([KEY], session_s=60)
    tickets = Tickets(ring, most_used=3, clock=lambda: now)
    caller = ring.caller(KEY.encode())
    assert caller is not None

    def opened() -> bool:
        address = tickets.make(caller, "/ws", websocket=True)["url"]
        return tickets.redeem(_scope(address, "websocket")) is not None

    assert [opened() for _ in range(4)] == [True, True, True, False]
    now += TICKET_S
    assert opened()


def test_a_ticket_is_not_a_valid_session() -> None:
    """Both are signed with the same key, so no signed text may be valid as both."""
    ring = KeyRing([KEY], session_s=60)
    caller = ring.caller(KEY.encode())
    assert caller is not None
    for url in ("/9999999999", "/view?" + urlencode({"a": "9999999999"})):
        ticket = Tickets(ring).make(caller, url, websocket=False)["ticket"]
        expiry, _, signature = ticket.rpartition(".")
        assert not ring.session_caller(ticket)
        assert not ring.session_caller(f"{expiry.partition('.')[0]}.{signature}")
    with pytest.raises(RequestError):
        Tickets(ring).make(caller, "/a\0b", websocket=False)


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b'{"url": "/view?filename=a.png"}', {"Content-Type": "application/x-www-form-urlencoded"}),
        (b'\xef\xbb\xbf{"url": "/view?filename=a.png"}', {"Content-Type": "application/json"}),
        (gzip.compress(b'{"url": "/view?filename=a.png"}'), {"Content-Encoding": "gzip"}),
    ],
    ids=["curl -d", "byte order mark", "gzip"],
)
async def test_the_body_of_a_ticket_request_is_read_like_other_bodies(
    locked_plain: RunningGateway, body: bytes, headers: dict[str, str]
) -> None:
    answer = await fetch(locked_plain, "/tickets", "POST", data=body, headers={**_BEARER, **headers})
    assert answer.status == 200, answer.body
    assert orjson.loads(answer.body)["url"].startswith("/view?filename=a.png&ticket=")


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        (b"", "the body is not JSON"),
        (b"[]", 'the body is not a JSON object; send {"url": "/view?…"}'),
        (b'{"url": NaN}', "url: "),
        (b'{"url": "/view?a=\\ud800"}', "url: "),
        (b'{"url": "/view?a=1", "path": "/"}', "path: "),
    ],
)
async def test_an_invalid_ticket_request_is_refused_and_names_the_field(
    locked_plain: RunningGateway, body: bytes, detail: str
) -> None:
    answer = await fetch(locked_plain, "/tickets", "POST", data=body, headers=_BEARER)
    assert answer.status == 422
    assert orjson.loads(answer.body)["detail"].startswith(detail)
