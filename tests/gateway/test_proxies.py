"""The gateway below a path of a proxy that strips the path, and the gateway's own address in its answers."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import aiohttp
import orjson
import pytest
from yarl import URL

from comfyui.engine import Engine
from comfyui.sdk import GatewayClient
from tests.support.relaying import Exchange, answer_ok, fetch, relayed
from tests.support.running import RunningGateway, invert_workflow, running_gateway
from tests.support.stripping import KINDS, PREFIX, PUBLIC, behind

_KEY = "correct-horse-battery"
_PAGE = {"Accept": "text/html,*/*", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Site": "none"}


async def _sign_in(browser: aiohttp.ClientSession, address: str) -> str:
    """Opens an address, follows it to the login page and sends the form; returns the address where it ends."""
    async with browser.get(address, headers=_PAGE) as page:
        assert page.status == 200
        login, html = str(page.url), await page.text()
    for path in re.findall(r'<link [^>]*href="([^"]*)"', html):
        async with browser.get(urljoin(login, path)) as file:
            assert (file.status, file.headers["X-Content-Type-Options"]) == (200, "nosniff"), path
    action = re.search(r'<form method="post" action="([^"]*)"', html)
    target = re.search(r'name="next" type="hidden" value="([^"]*)"', html)
    assert action is not None
    assert target is not None
    form = {"key": _KEY, "next": target[1].replace("&amp;", "&")}
    origin = "{0.scheme}://{0.netloc}".format(urlsplit(login))
    async with browser.post(urljoin(login, action[1]), data=form, headers={**_PAGE, "Origin": origin}) as back:
        assert back.status == 200
        return str(back.url)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_person_signs_in_below_a_path_and_stays_there(
    engine: Engine, cookie_session: aiohttp.ClientSession, kind: str, tmp_path: Path
) -> None:
    async with running_gateway(engine.url, api_keys=_KEY) as gateway, behind(kind, gateway.url, tmp_path) as address:
        for path in ("/", "/queue?a=b%20c&d=1", "/internal/files/output"):
            assert await _sign_in(cookie_session, f"{address}{path}") == f"{address}{path}"
            async with cookie_session.get(f"{address}/queue") as answer:
                assert answer.status == 200
            async with cookie_session.get(f"{address}/logout", headers=_PAGE) as page:
                assert str(page.url) == f"{address}/login"
            async with cookie_session.get(f"{address}/queue") as answer:
                assert answer.status == 401
        await _sign_in(cookie_session, f"{address}/")
        # Other paths of the same site do not get the cookie.
        outside = urlsplit(address)._replace(path="/other").geturl()
        assert not cookie_session.cookie_jar.filter_cookies(URL(outside))
        assert cookie_session.cookie_jar.filter_cookies(URL(f"{address}/ws"))


@pytest.mark.parametrize("kind", KINDS)
async def test_websockets_workflows_and_encoded_paths_work_below_a_path(
    engine: Engine, cookie_session: aiohttp.ClientSession, kind: str, tmp_path: Path
) -> None:
    async with running_gateway(engine.url, api_keys=_KEY) as gateway, behind(kind, gateway.url, tmp_path) as address:
        await _sign_in(cookie_session, f"{address}/")
        origin = urlsplit(address)._replace(path="").geturl()
        async with cookie_session.ws_connect(f"{address}/ws?clientId=abc", headers={"Origin": origin}) as websocket:
            assert "status" in await websocket.receive_str()
        # ComfyUI's frontend saves a workflow under one path segment.
        saved = f"{address}/api/userdata/workflows%2Fone%20two.json"
        async with cookie_session.post(URL(saved, encoded=True), json={"saved": 1}) as answer:
            assert answer.status == 200
        async with cookie_session.get(URL(saved, encoded=True)) as answer:
            assert await answer.json(content_type=None) == {"saved": 1}
        async with cookie_session.post(f"{address}/prompt_sync", json={"prompt": invert_workflow()}) as answer:
            file = (await answer.json())["images"][0]
        async with cookie_session.get(f"{address}{file['url']}") as picture:
            assert (await picture.read()).startswith(b"\x89PNG")
        async with cookie_session.get(f"{address}/docs") as page:
            named = re.search(r"url: '([^']*)'", await page.text())
        assert named is not None
        async with cookie_session.get(urljoin(f"{address}/docs", named[1])) as described:
            server = (await described.json())["servers"][0]["url"]
            assert urljoin(str(described.url), server).rstrip("/") == address


@pytest.mark.parametrize("kind", ["telling", "nginx", "caddy"])
async def test_a_redirect_of_comfyui_stays_below_the_path_of_the_proxy(kind: str, tmp_path: Path) -> None:
    async def answering(exchange: Exchange) -> None:
        location = "/moved?x=1" if "relative" in exchange.line else f"{comfyui.url}/moved?x=1"
        await exchange.send(f"HTTP/1.1 302 Found\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n".encode())

    async with (
        relayed(answering) as (comfyui, gateway),
        behind(kind, gateway.url, tmp_path) as address,
        aiohttp.ClientSession() as http,
    ):
        for path in ("/relative", "/absolute"):
            async with http.get(f"{address}{path}", allow_redirects=False) as answer:
                assert urljoin(address, answer.headers["Location"]) == f"{address}/moved?x=1"


@pytest.mark.parametrize(
    "prefix", ["//evil.example", "/a/../b", "/a//b", "https://evil.example", "/a b", "/" + "a" * 300]
)
async def test_an_invalid_forwarded_prefix_is_ignored(engine: Engine, prefix: str) -> None:
    """A proxy may pass on a header that a client sent."""
    async with running_gateway(engine.url, api_keys=_KEY) as gateway:
        answer = await fetch(gateway, "/x", headers={**_PAGE, "X-Forwarded-Prefix": prefix})
        assert answer.headers["Location"] == "./login?next=%2Fx"


async def test_the_cookie_is_limited_to_the_path_of_the_proxy(engine: Engine) -> None:
    async with running_gateway(engine.url, api_keys=_KEY) as gateway:
        headers = {"X-Forwarded-Prefix": "/comfy/"}
        answer = await fetch(gateway, "/login", "POST", data={"key": _KEY, "next": "/a"}, headers=headers)
        assert answer.headers["Location"] == f"{PREFIX}/a"
        assert f"Path={PREFIX};" in answer.headers["Set-Cookie"]


# PUBLIC_URL


async def test_links_the_document_and_allowed_hosts_follow_public_url(public_gateway: RunningGateway) -> None:
    status, body = await public_gateway.prompt_sync(invert_workflow())
    assert status == 200
    url = body["images"][0]["url"]
    assert url.startswith(f"{PUBLIC}/view?filename=")
    attached = await fetch(public_gateway, f"/prompt_sync/{body['prompt_id']}")
    assert orjson.loads(attached.body)["images"][0]["url"] == url
    assert orjson.loads((await fetch(public_gateway, "/openapi.json")).body)["servers"] == [{"url": PUBLIC}]
    # The host of PUBLIC_URL is allowed in Host and Origin.
    headers = {"Host": "example.org", "Origin": "https://example.org"}
    assert (await fetch(public_gateway, "/queue", headers=headers)).status == 200


async def test_without_public_url_links_never_contain_a_host_from_the_client(gateway: RunningGateway) -> None:
    headers = {"Host": "a.internal", "X-Forwarded-Host": "b.internal", "X-Forwarded-Proto": "https"}
    answer = await fetch(gateway, "/prompt_sync", "POST", json={"prompt": invert_workflow()}, headers=headers)
    assert orjson.loads(answer.body)["images"][0]["url"].startswith("/view?filename=")


async def test_our_client_downloads_files_with_absolute_links(public_gateway: RunningGateway) -> None:
    async with GatewayClient(public_gateway.url) as client:
        result = await client.run(invert_workflow())
        picture = b"".join([chunk async for chunk in client.download(result.files[0])])
    assert picture.startswith(b"\x89PNG")


async def test_a_redirect_of_comfyui_leads_to_public_url() -> None:
    async def answering(exchange: Exchange) -> None:
        await exchange.send(
            f"HTTP/1.1 302 Found\r\nLocation: {comfyui.url}/moved\r\nContent-Length: 0\r\n\r\n".encode()
        )

    async with relayed(answering, public_url=PUBLIC) as (comfyui, gateway):
        assert (await fetch(gateway, "/x")).headers["Location"] == f"{PUBLIC}/moved"


async def test_the_stripping_proxy_of_these_tests_passes_whole_bodies(tmp_path: Path) -> None:
    async def answering(exchange: Exchange) -> None:
        assert len(await exchange.body()) == 100_000
        await answer_ok(exchange)

    async with (
        relayed(answering) as (comfyui, gateway),
        behind("stripping", gateway.url, tmp_path) as address,
        aiohttp.ClientSession() as http,
    ):
        async with http.post(f"{address}/x", data=b"x" * 100_000) as answer:
            assert await answer.text() == "ok"
        async with http.get(f"{urlsplit(address)._replace(path='/other').geturl()}") as answer:
            assert answer.status == 404
        assert len(comfyui.seen) == 1
