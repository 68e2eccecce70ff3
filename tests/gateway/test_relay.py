"""The relay of requests and answers, byte for byte, on real sockets."""

from __future__ import annotations

import asyncio
import gzip
import io
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from comfyui.engine import Engine
from tests.support.ports import free_port
from tests.support.relaying import OK, Exchange, answer_ok, fetch, raw_request, relayed
from tests.support.running import RunningGateway, requests, running_gateway

_GET = "GET {} HTTP/1.1\r\nHost: gateway.internal:1234\r\n\r\n"


@pytest.mark.parametrize(
    "target",
    [
        "/",
        "/userdata/a%2Fb.json",
        "/userdata/a%2fb.json?overwrite=true&overwrite=false",
        "/view?filename=a+b%20c.png&subfolder=&type=output&filename=twice",
        "/api/experiment/models/x%252Fy",
        "/extensions//double//slash.js",
        "/a/./b/../c",
        "/%E2%9C%93/%FF?q=%FF&=&&x",
        "/odd;matrix=1,2/~user/(a)[b]{c}|'!$*",
        "/docs/CLIPTextEncode/en.md",
        "/health/",
        "/metrics/x",
        "/prompt",
        "/api/health",
        "/login",
    ],
)
async def test_a_request_target_reaches_comfyui_unchanged(target: str) -> None:
    async with relayed(answer_ok) as (comfyui, gateway):
        answer = await raw_request(gateway.url, _GET.format(target).encode())

        assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
        assert comfyui.seen[0].line == f"GET {target} HTTP/1.1"


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
async def test_every_method_is_relayed(method: str) -> None:
    async with relayed(answer_ok) as (comfyui, gateway):
        answer = await fetch(gateway, "/userdata/x", method)

        assert answer.status == 200
        assert answer.headers["Content-Length"] == "2"
        assert answer.body == (b"" if method == "HEAD" else b"ok")
        assert comfyui.seen[0].line == f"{method} /userdata/x HTTP/1.1"


async def test_hop_by_hop_headers_are_not_relayed() -> None:
    """`Connection`, the headers that it names, and the others that RFC 9110 lists, in both directions."""

    async def answering(exchange: Exchange) -> None:
        await exchange.send(
            b"HTTP/1.1 200 OK\r\nConnection: keep-alive, X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\n"
            b"Proxy-Authenticate: Basic\r\nTrailer: X-T\r\nX-Kept: a\r\nX-Kept: b\r\nContent-Length: 0\r\n\r\n"
        )

    request = (
        b"GET /x HTTP/1.1\r\nHost: gateway.internal\r\nConnection: X-Secret-Hop\r\nX-Secret-Hop: 1\r\nTE: trailers\r\n"
        b"Keep-Alive: 5\r\nProxy-Authorization: Basic eA==\r\nProxy-Connection: close\r\nUpgrade: h2c\r\n"
        b"X-Kept: \xc3\xa9\r\nX-Kept: two\r\n\r\n"
    )
    async with relayed(answering) as (comfyui, gateway):
        answer = await raw_request(gateway.url, request)

        sent = comfyui.seen[0]
        assert not {
            "connection", "x-secret-hop", "te", "keep-alive", "proxy-authorization", "proxy-connection", "upgrade"
        } & set(sent.headers)  # fmt: skip
        assert b"x-kept: \xc3\xa9\r\nx-kept: two\r\n" in sent.head
        head = answer.partition(b"\r\n\r\n")[0].lower()
        assert b"x-kept: a\r\nx-kept: b\r\n" in head
        assert b"x-hop" not in head
        assert b"keep-alive" not in head
        assert b"proxy-authenticate" not in head
        assert b"trailer" not in head


async def test_comfyui_gets_the_client_and_its_host_in_forwarded_headers() -> None:
    async with relayed(answer_ok) as (comfyui, gateway):
        await raw_request(
            gateway.url, b"GET / HTTP/1.1\r\nHost: gateway.internal:1234\r\nX-Forwarded-For: 10.9.8.7\r\n\r\n"
        )

        headers = comfyui.seen[0].headers
        assert headers["host"] == comfyui.url.removeprefix("http://")
        # The gateway trusts a proxy on this machine, so the client is the proxy's client.
        assert headers["x-forwarded-for"] == "10.9.8.7, 127.0.0.1"
        assert headers["x-forwarded-proto"] == "http"
        assert headers["x-forwarded-host"] == "gateway.internal:1234"


async def test_only_host_and_forwarded_headers_are_added() -> None:
    async with relayed(answer_ok) as (comfyui, gateway):
        await raw_request(gateway.url, b"GET /x HTTP/1.1\r\nHost: g\r\n\r\n")

        assert set(comfyui.seen[0].headers) == {"host", "x-forwarded-for", "x-forwarded-proto", "x-forwarded-host"}


async def test_no_cookie_is_kept_between_clients() -> None:
    async def answering(exchange: Exchange) -> None:
        await exchange.send(
            b"HTTP/1.1 200 OK\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2; Path=/\r\nContent-Length: 0\r\n\r\n"
        )

    async with relayed(answering) as (comfyui, gateway):
        first = await raw_request(gateway.url, b"GET / HTTP/1.1\r\nHost: g\r\nCookie: mine=1; other=2\r\n\r\n")
        await raw_request(gateway.url, b"GET / HTTP/1.1\r\nHost: g\r\n\r\n")

        assert b"set-cookie: a=1\r\nset-cookie: b=2; Path=/\r\n" in first
        assert comfyui.seen[0].headers["cookie"] == "mine=1; other=2"
        assert "cookie" not in comfyui.seen[1].headers


async def test_redirects_are_relayed_and_stay_on_the_gateway() -> None:
    locations = ["{own}/moved?x=1", "/relative", "https://elsewhere.example/x", "{own}"]

    async def answering(exchange: Exchange) -> None:
        location = locations[int(exchange.line.split()[1][1:])].format(own=comfyui.url)
        await exchange.send(f"HTTP/1.1 302 Found\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n".encode())

    async with relayed(answering) as (comfyui, gateway):
        answers = [await fetch(gateway, f"/{number}") for number in range(len(locations))]

        assert {answer.status for answer in answers} == {302}
        assert [answer.headers["Location"] for answer in answers] == [
            f"{gateway.url}/moved?x=1",
            "/relative",
            "https://elsewhere.example/x",
            f"{gateway.url}/",
        ]


async def test_compressed_bodies_are_relayed_without_unpacking() -> None:
    packed = gzip.compress(b"hello " * 100)

    async def answering(exchange: Exchange) -> None:
        head = f"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {len(packed)}\r\n\r\n"
        await exchange.send(head.encode() + packed)

    async with relayed(answering) as (comfyui, gateway):
        answer = await raw_request(gateway.url, b"GET /x HTTP/1.1\r\nHost: g\r\nAccept-Encoding: gzip, br\r\n\r\n")

        assert answer.endswith(packed)
        assert comfyui.seen[0].headers["accept-encoding"] == "gzip, br"


async def test_a_relayed_body_keeps_its_length_or_its_chunked_encoding() -> None:
    bodies = []

    async def answering(exchange: Exchange) -> None:
        if "content-length" in exchange.headers:
            bodies.append(await exchange.body())
        else:
            bodies.append(await exchange.reader.readuntil(b"0\r\n\r\n"))
        await exchange.send(OK)

    async def pieces() -> Any:
        yield b"one"
        yield b"two"

    async with relayed(answering) as (comfyui, gateway):
        for data in (b"whole", b"x" * 200_000, pieces()):
            assert (await fetch(gateway, "/upload/x", "POST", data=data)).status == 200
        assert bodies[:2] == [b"whole", b"x" * 200_000]
        assert comfyui.seen[1].headers["content-length"] == "200000"
        assert "transfer-encoding" not in comfyui.seen[1].headers
        assert comfyui.seen[2].headers["transfer-encoding"] == "chunked"
        assert "content-length" not in comfyui.seen[2].headers
        joined = bodies[2]
        assert joined.endswith(b"\r\n0\r\n\r\n")
        assert b"one" in joined


async def test_chunks_are_relayed_as_they_arrive() -> None:
    """The server sends its last chunk only after the client has received the first one."""
    first_read = asyncio.Event()

    async def answering(exchange: Exchange) -> None:
        await exchange.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n")
        await first_read.wait()
        await exchange.send(b"4\r\nlast\r\n0\r\n\r\n")

    async with relayed(answering) as (_, gateway), gateway.http.get("/stream") as response:
        assert await response.content.readexactly(5) == b"first"
        first_read.set()
        assert await response.read() == b"last"


async def test_interim_answers_are_skipped() -> None:
    async def answering(exchange: Exchange) -> None:
        await exchange.send(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + OK)

    async with relayed(answering) as (_, gateway), gateway.http.get("/x") as response:
        assert (response.status, await response.read()) == (200, b"ok")
        assert "Link" not in response.headers


async def test_a_client_that_waits_for_100_continue_gets_it() -> None:
    async def answering(exchange: Exchange) -> None:
        assert await exchange.body() == b"hello"
        await exchange.send(OK)

    async with relayed(answering) as (comfyui, gateway):
        assert (await fetch(gateway, "/x", "POST", data=b"hello", expect100=True)).status == 200
        assert "expect" not in comfyui.seen[0].headers


async def test_an_answer_without_a_length_ends_with_its_connection() -> None:
    async def answering(exchange: Exchange) -> None:
        await exchange.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\nto the end")
        exchange.writer.close()

    async with relayed(answering) as (_, gateway), gateway.http.get("/x") as response:
        assert await response.read() == b"to the end"


async def test_connections_to_comfyui_are_reused() -> None:
    async with relayed(answer_ok) as (comfyui, gateway):
        for _ in range(5):
            await fetch(gateway, "/x")
        assert comfyui.connections == 1
        assert [exchange.number for exchange in comfyui.seen] == [0, 1, 2, 3, 4]


async def test_the_gateway_answers_only_its_own_paths(gateway: RunningGateway, engine: Engine) -> None:
    for path in ("/health", "/health/live", "/health/ready", "/metrics", "/docs", "/openapi.json", "/prompt_sync"):
        assert (await fetch(gateway, path)).status == 200, path
    # ComfyUI would look for a file with that name. The gateway's own requests use other routes.
    assert requests(engine, "GET /{path}") == 0

    assert (await fetch(gateway, "/prompt")).body == b'{"exec_info": {"queue_remaining": 0}}'
    below = await fetch(gateway, "/docs/oauth2-redirect")
    assert (below.status, below.body) == (404, b"")
    assert requests(engine, "GET /{path}") == 1


@pytest.mark.parametrize("path", ["/prompt", "/api/prompt"])
async def test_a_validation_error_is_relayed_unchanged(path: str, engine: Engine, gateway: RunningGateway) -> None:
    bad = {"prompt": {"1": {"class_type": "SaveImage", "inputs": {"images": ["9", 0]}}}}

    direct, through = [await fetch(gateway, f"{base}{path}", "POST", json=bad) for base in (engine.url, gateway.url)]

    assert direct.status == 400
    assert (direct.status, direct.headers["Content-Type"], direct.body) == (
        through.status,
        through.headers["Content-Type"],
        through.body,
    )


async def test_a_submission_is_relayed_byte_for_byte_with_its_headers() -> None:
    bodies = []

    async def answering(exchange: Exchange) -> None:
        bodies.append(await exchange.body())
        await exchange.send(b"HTTP/1.1 418 Teapot\r\nContent-Type: text/x-odd; a=b\r\nContent-Length: 3\r\n\r\nodd")

    body = b'{"prompt" : {},\t"client_id":"\xc3\xa9"}\n'
    async with relayed(answering) as (comfyui, gateway):
        answer = await fetch(gateway, "/prompt", "POST", data=body, headers={"Comfy-User": "me", "Origin": gateway.url})

        assert bodies == [body]
        assert comfyui.seen[0].headers["comfy-user"] == "me"
        assert "origin" not in comfyui.seen[0].headers
        assert (answer.status, answer.headers["Content-Type"], answer.body) == (418, "text/x-odd; a=b", b"odd")


async def test_a_request_gets_503_while_comfyui_is_down() -> None:
    async with running_gateway(f"http://127.0.0.1:{free_port()}", ready=False) as gateway:
        answer = await fetch(gateway, "/queue")

        assert (answer.status, answer.error_type) == (503, "connection_failed")
        assert answer.headers["Retry-After"]


@pytest.mark.parametrize("garbage", [b"", b"HTTP/1.1 200 OK\r\nContent-Le", b"SSH-2.0-OpenSSH_9.2\r\n"])
async def test_an_answer_without_a_valid_head_becomes_502(garbage: bytes) -> None:
    async def answering(exchange: Exchange) -> None:
        await exchange.send(garbage)
        exchange.writer.close()

    async with relayed(answering) as (_, gateway):
        answer = await fetch(gateway, "/x")

        assert (answer.status, answer.error_type) == (502, "server_error")


async def test_a_request_gets_504_when_comfyui_does_not_answer() -> None:
    async with relayed(Exchange.until_gone, proxy_timeout=0.1) as (_, gateway):
        answer = await fetch(gateway, "/x")

        assert (answer.status, answer.error_type) == (504, "timeout")


@pytest.mark.parametrize("framing", [b"Content-Length: 100", b"Transfer-Encoding: chunked"])
async def test_an_answer_that_breaks_off_closes_the_clients_connection(framing: bytes) -> None:
    """An incomplete body must not look complete."""

    async def answering(exchange: Exchange) -> None:
        await exchange.send(b"HTTP/1.1 200 OK\r\n" + framing + b"\r\n\r\n5\r\nhello\r\n")
        exchange.writer.close()

    async with relayed(answering) as (_, gateway), gateway.http.get("/x") as response:
        assert response.status == 200
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.read()


async def _answer_once_then_hang_up(exchange: Exchange) -> None:
    """Behaves like a server that restarts, or that has just closed an idle connection."""
    if exchange.number:
        exchange.cut()
        return
    await exchange.body()
    await exchange.send(OK)


async def test_idempotent_requests_survive_a_closed_pooled_connection() -> None:
    async with relayed(_answer_once_then_hang_up) as (comfyui, gateway):
        for method in ("GET", "PUT", "DELETE", "OPTIONS"):
            assert (await fetch(gateway, "/x", method, data=b"body" if method == "PUT" else None)).status == 200
        assert comfyui.connections == 4


async def test_a_post_is_never_sent_twice() -> None:
    async with relayed(_answer_once_then_hang_up) as (comfyui, gateway):
        assert (await fetch(gateway, "/x")).status == 200
        assert (await fetch(gateway, "/interrupt", "POST", data=b"{}")).status == 502
        assert [exchange.line for exchange in comfyui.seen] == ["GET /x HTTP/1.1", "POST /interrupt HTTP/1.1"]


@pytest.mark.parametrize("chunked", [False, True])
async def test_an_upload_over_the_limit_is_refused(chunked: bool) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(40):
            yield b"x" * 50_000

    async with relayed(Exchange.until_gone, max_upload_mb=1) as (_, gateway):
        data = pieces() if chunked else io.BytesIO(b"x" * 2_000_000)
        answer = await fetch(gateway, "/upload/image", "POST", data=data)

        assert (answer.status, answer.error_type) == (413, "body_too_large")


@pytest.mark.parametrize(
    ("mode", "relayed_paths", "other_paths"),
    [
        ("full", ["/", "/userdata/x", "/api/queue"], []),
        ("api", ["/queue", "/api/history/x", "/view", "/object_info/KSampler"], ["/", "/userdata/x", "/extensions"]),
        ("off", [], ["/", "/queue", "/view", "/api/prompt"]),
    ],
)
async def test_proxy_mode_decides_which_paths_are_relayed(
    mode: str, relayed_paths: list[str], other_paths: list[str]
) -> None:
    async with relayed(answer_ok, proxy_mode=mode) as (comfyui, gateway):
        for path in [*relayed_paths, *other_paths]:
            assert (await fetch(gateway, path)).status == (200 if path in relayed_paths else 404), path
        assert [exchange.line.split()[1] for exchange in comfyui.seen] == relayed_paths
        assert (await fetch(gateway, "/health/live")).status == 200


async def _statuses(gateway: RunningGateway, targets: list[str]) -> dict[str, int]:
    return {
        target: int((await raw_request(gateway.url, _GET.format(target).encode())).split()[1]) for target in targets
    }


async def test_the_deny_list_covers_every_spelling_of_a_path() -> None:
    """`/internal` would show an attacker the server's logs and folders."""
    attacks = {
        "plain": "/internal/logs",
        "prefix /api": "/api/internal/logs",
        "prefix /api twice": "/api/api/internal/logs",
        "doubled slash": "//internal/logs",
        "doubled slash after the prefix": "/api//internal/logs",
        "dot segment": "/./internal/logs",
        "dot dot segment": "/view/../internal/logs",
        "encoded dot dot": "/view/%2e%2e/internal/logs",
        "encoded slash": "/x%2F..%2Finternal%2Flogs",
        "encoded letter": "/%69nternal/logs",
        "encoded twice": "/%2569nternal/logs",
        "encoded five times": "/%252525252569nternal/logs",
        "backslash": "/\\internal\\logs",
        "encoded backslash": "/x%5C..%5Cinternal%5Clogs",
        "capitals": "/INTERNAL/logs",
        "end of string": "/internal/logs%00.png",
        "folder alone": "/internal",
        "folder with a slash": "/internal/",
        "way through an exception": "/internal/files/output/../../logs",
        "encoded way through an exception": "/internal/files/output/%2e%2e/%2e%2e/logs",
        "encoded exception": "/internal/files/%6futput",
        "folder paths": "/internal/folder_paths",
    }
    async with relayed(answer_ok) as (comfyui, gateway):
        found = await _statuses(gateway, list(attacks.values()))

        assert {name: found[target] for name, target in attacks.items()} == dict.fromkeys(attacks, 403)
        assert comfyui.seen == []


async def test_paths_that_the_frontend_needs_are_not_denied() -> None:
    needed = ["/internal/files/output", "/api/internal/files/input", "/internal/files/temp?x=1", "/internals", "/logs"]
    async with relayed(answer_ok) as (_, gateway):
        assert await _statuses(gateway, needed) == dict.fromkeys(needed, 200)


async def test_proxy_deny_replaces_the_deny_list() -> None:
    async with relayed(answer_ok, proxy_deny="/free,/users*") as (_, gateway):
        assert await _statuses(gateway, ["/internal/logs", "/free", "/api/free", "/users/x", "/freedom"]) == {
            "/internal/logs": 200,
            "/free": 403,
            "/api/free": 403,
            "/users/x": 403,
            "/freedom": 200,
        }


@pytest.mark.parametrize("queue", ["auto", "gateway"])
async def test_submissions_to_comfyuis_own_path_can_be_denied(queue: str) -> None:
    """`POST /prompt` is denied whether ComfyUI or the gateway would answer it; `/prompt_sync` still works."""
    async with relayed(answer_ok, proxy_deny="/prompt", queue=queue) as (comfyui, gateway):
        for path in ("/prompt", "/api/prompt"):
            assert (await fetch(gateway, path, "POST", json={"prompt": {}})).status == 403, path
        assert not [exchange for exchange in comfyui.seen if exchange.line.startswith("POST")]
        assert (await fetch(gateway, "/prompt_sync")).status == 200


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"POST /x HTTP/1.1\r\nHost: g\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /internal",
        b"POST /x HTTP/1.1\r\nHost: g\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
        b"POST /x HTTP/1.1\r\nHost: g\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        b"GET /x HTTP/1.1\r\nHost: g\r\nX-A: a\n\nGET /internal/logs HTTP/1.1\r\n\r\n",
    ],
    ids=["length and chunks", "two lengths", "odd coding", "bare line feeds"],
)
async def test_no_request_can_be_smuggled_inside_another(request_bytes: bytes) -> None:
    async def answering(exchange: Exchange) -> None:
        assert "/internal" not in exchange.line
        await exchange.send(OK)

    async with relayed(answering) as (comfyui, gateway):
        await raw_request(gateway.url, request_bytes)
        assert all("/internal" not in exchange.line for exchange in comfyui.seen)
