"""Inputs by URL, with servers and host names of attackers on real loopback sockets.

The allow list contains 127.0.0.1 in tests that need a download. It never contains 127.0.0.9, which stands for a private
service: a request to it fails the test.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import hashlib
import io
import socket
import tracemalloc
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiohttp import BodyPartReader, web
from aiohttp.abc import AbstractResolver, ResolveResult
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from comfyui.client import ComfyUIClient
from comfyui.engine import Engine
from comfyui.exceptions import ComfyUIInputError, ComfyUIInputUnavailableError
from comfyui.inputs.fetch import UrlFetcher
from comfyui.inputs.staging import InputStager
from comfyui.models import InputFile, PromptRequest
from comfyui.retrying import Backoff
from tests.support.names import Names
from tests.support.servers import server_of
from tests.support.url_server import PNG, Handler, Server, give_png, serve

NO_ADDRESS = "has no public address"
MAX = 1_000_000


def redirect_to(location: str, status: int = 302) -> Handler:
    async def answer(_request: web.Request) -> web.Response:
        return web.Response(status=status, headers={"Location": location})

    return answer


async def download(
    url: str,
    *allow: str,
    resolver: AbstractResolver | None = None,
    timeout_s: float = 5,
    retries: int = 0,
    **options: Any,
) -> bytes:
    """Returns the bytes that the fetcher downloads from `url`."""
    async with (
        UrlFetcher(
            max_bytes=MAX,
            allow=allow,
            timeout_s=timeout_s,
            resolver=resolver or Names(),
            retries=retries,
            backoff=Backoff(0.001, 8.0),
            **options,
        ) as fetcher,
        fetcher.fetch(url) as content,
    ):
        return b"".join([chunk async for chunk in content.chunks()])


# Downloads that succeed


async def test_a_public_file_is_downloaded_and_staged_under_its_content(url_server: Server) -> None:
    image = InputFile(name="a.png", image=url_server.url())
    prompt = {
        "1": {"class_type": "LoadImage", "inputs": {"image": "a.png"}},
        "2": {"class_type": "LoadImage", "inputs": {"image": url_server.url("/b.png?sig=a%2Fb")}},
        "3": {"class_type": "LoadImage", "inputs": {"image": f" \n{url_server.url('/b.png?sig=a%2Fb')}\r\n"}},
    }
    async with (
        Engine() as engine,
        ComfyUIClient(engine.url) as client,
        InputStager(max_bytes=MAX, url_allow=["127.0.0.1"], url_timeout_s=5) as stager,
    ):
        request = PromptRequest(prompt=prompt, images=(image,))
        staged = await stager.stage(server_of(client), request, [(node_id, "image") for node_id in prompt])
        names = {node["inputs"]["image"] for node in staged.values()}
        assert len(names) == 1
        assert (Path(engine.folders.input) / names.pop()).read_bytes() == PNG
        assert engine.stats.show()["requests"]["POST /upload/image"] == 1
    # A URL that occurs twice, even with blanks around it, is fetched once; a presigned query arrives unchanged.
    assert sorted(request.raw_path for request in url_server.requests) == ["/a.png", "/b.png?sig=a%2Fb"]


async def test_a_request_with_many_inputs_keeps_few_files_open() -> None:
    most = 0

    async def give(request: web.Request) -> web.StreamResponse:
        nonlocal most
        most = max(most, sum("comfyui-input-" in str(link) for link in open_files()))
        return web.Response(body=PNG + request.path.encode(), content_type="image/png")

    async with (
        serve(give) as origin,
        Engine() as engine,
        ComfyUIClient(engine.url) as client,
        InputStager(max_bytes=MAX, url_allow=["127.0.0.1"], url_timeout_s=5) as stager,
    ):
        prompt = {
            str(number): {"class_type": "LoadImage", "inputs": {"image": origin.url(f"/{number}.png")}}
            for number in range(200)
        }
        staged = await stager.stage(
            server_of(client), PromptRequest(prompt=prompt), [(number, "image") for number in prompt]
        )
        assert len({node["inputs"]["image"] for node in staged.values()}) == 200
    assert 0 < most <= 32


def open_files() -> list[Path]:
    found = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found.append(descriptor.readlink())
    return found


async def test_a_download_is_a_file_on_disk_that_is_removed_after_use(url_server: Server) -> None:
    async with UrlFetcher(max_bytes=MAX, allow=["127.0.0.1"], timeout_s=5) as fetcher:
        async with fetcher.fetch(url_server.url()) as content:
            assert isinstance(content.source, Path)
            assert content.source.exists()
        assert not content.source.exists()


async def test_a_large_file_reaches_comfyui_without_being_in_memory_as_a_whole() -> None:
    size = 64 << 20
    received = hashlib.sha256()

    async def give(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": str(size)})
        await response.prepare(request)
        for _ in range(size >> 16):
            await response.write(bytes(1 << 16))
        return response

    async def take(request: web.Request) -> web.Response:
        form = await request.multipart()
        file = await form.next()
        assert isinstance(file, BodyPartReader)
        while block := await file.read_chunk(1 << 16):
            received.update(block)
        return web.json_response({"name": "stored.bin", "subfolder": "gateway", "type": "input"})

    async with (
        serve(give) as origin,
        serve(take) as comfyui,
        ComfyUIClient(f"127.0.0.1:{comfyui.port}") as client,
        InputStager(max_bytes=size, url_allow=["127.0.0.1"], url_timeout_s=30) as stager,
    ):
        request = PromptRequest(prompt={"1": {"class_type": "LoadVideo", "inputs": {"file": origin.url("/v.mp4")}}})
        tracemalloc.start()
        try:
            staged = await stager.stage(server_of(client), request, [("1", "file")])
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert staged["1"]["inputs"]["file"] == "gateway/stored.bin"
    assert received.hexdigest() == hashlib.sha256(bytes(size)).hexdigest()
    assert peak < 12 << 20


async def test_an_allowed_name_may_have_a_private_address(url_server: Server) -> None:
    names = Names(minio_internal=[["127.0.0.1"]])
    assert await download(url_server.url(host="minio.internal"), "*.internal", resolver=names) == PNG


async def test_a_redirect_to_an_allowed_place_is_followed_without_cookie_or_referrer() -> None:
    async def hop(request: web.Request) -> web.Response:
        if request.path == "/b.png":
            return await give_png(request)
        return web.Response(status=307, headers={"Location": "/b.png", "Set-Cookie": "session=secret"})

    names = Names(origin_example=[["127.0.0.1"]])
    async with serve(hop) as server:
        assert await download(server.url(host="origin.example"), "127.0.0.1", resolver=names) == PNG
    assert [request.path for request in server.requests] == ["/a.png", "/b.png"]
    assert not {"Cookie", "Referer", "Authorization"} & set(server.requests[1].headers)


async def test_the_host_header_has_the_canonical_notation_of_an_address(url_server: Server) -> None:
    assert await download(url_server.url(host="0x7f.1"), "127.0.0.1") == PNG
    assert url_server.requests[0].headers["Host"] == f"127.0.0.1:{url_server.port}"


# Attacks


@pytest.mark.parametrize(
    ("attack", "host"),
    [
        ("plain", "127.0.0.9"),
        ("decimal", "2130706441"),
        ("octal", "0177.0.0.011"),
        ("octal as one number", "017700000011"),
        ("hexadecimal", "0x7f000009"),
        ("hexadecimal parts", "0x7f.0x0.0x0.0x9"),
        ("shortened", "127.9"),
        ("trailing dot", "127.0.0.9."),
        ("leading zeros", "127.000.000.011"),
        ("full-width digits", "１２７.0.0.9"),
        ("circled digits", "①②⑦.⓪.⓪.⑨"),
        ("ideographic dots", "127。0。0。9"),
        ("IPv4-mapped", "[::ffff:127.0.0.9]"),
        ("IPv4-mapped, hexadecimal", "[::ffff:7f00:9]"),
        ("NAT64", "[64:ff9b::7f00:9]"),
        ("6to4", "[2002:7f00:9::]"),
        ("Teredo", "[2001:0:7f00:9::]"),
        ("this host", "0.0.0.0"),
        ("this host as zero", "0"),
        ("IPv6 loopback", "[::1]"),
        ("IPv6 unspecified", "[::]"),
        ("metadata service", "169.254.169.254"),
        ("metadata service, decimal", "2852039166"),
        ("private network", "10.0.0.1"),
        ("carrier-grade NAT", "100.64.0.1"),
        ("link-local with a zone", "[fe80::1%25lo]"),
        ("percent-encoded", "127%2e0%2e0%2e9"),
    ],
)
async def test_a_literal_private_address_is_refused_in_every_notation(
    attack: str, host: str, inside_server: Server
) -> None:
    with pytest.raises(ComfyUIInputError, match=f"{NO_ADDRESS}|the URL is not valid"):
        await download(inside_server.url(host=host))


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "ftp://127.0.0.9/a.png",
        "gopher://127.0.0.9:6379/_INFO",
        "dict://127.0.0.9:11211/stat",
        "unix:///var/run/docker.sock",
        "//127.0.0.9/a.png",
    ],
)
async def test_only_http_urls_are_fetched_even_after_a_redirect(url: str) -> None:
    async with serve(redirect_to(url)) as first:
        with pytest.raises(ComfyUIInputError, match=f"must begin with http|{NO_ADDRESS}"):
            await download(first.url(), "127.0.0.1")
    with pytest.raises(ComfyUIInputError, match=r"must begin with http|no host"):
        await download(url)


async def test_a_url_with_a_user_is_refused(url_server: Server, inside_server: Server) -> None:
    for authority in (
        f"127.0.0.1:{url_server.port}@127.0.0.9:{inside_server.port}",
        f"u:p@127.0.0.1:{url_server.port}",
    ):
        with pytest.raises(ComfyUIInputError, match="user or password"):
            await download(f"http://{authority}/a.png", "127.0.0.1")
        async with serve(redirect_to(f"http://{authority}/a.png")) as first:
            with pytest.raises(ComfyUIInputError, match="user or password"):
                await download(first.url(), "127.0.0.1")
    assert url_server.requests == []


@pytest.mark.parametrize("confusion", ["127.0.0.1\\@127.0.0.9", "127.0.0.1#@127.0.0.9", "127.0.0.9#127.0.0.1"])
async def test_an_ambiguous_url_is_refused(confusion: str, inside_server: Server, url_server: Server) -> None:
    with pytest.raises(ComfyUIInputError):
        await download(f"http://{confusion}:{inside_server.port}/a.png", f"127.0.0.1:{url_server.port}")


async def test_a_name_with_a_private_address_is_refused(inside_server: Server) -> None:
    names = Names(evil_example=[["127.0.0.9"]])
    with pytest.raises(ComfyUIInputError, match=NO_ADDRESS):
        await download(inside_server.url(host="evil.example"), resolver=names)


async def test_dns_rebinding_fails_because_the_checked_address_is_used(inside_server: Server) -> None:
    async with serve(give_png, "127.0.0.1", inside_server.port) as origin:
        names = Names(rebind_example=[["127.0.0.1"], ["127.0.0.9"]])
        assert await download(inside_server.url(host="rebind.example"), "127.0.0.1", resolver=names) == PNG
        assert names.lookups == ["rebind.example"]
        assert len(origin.requests) == 1
        with pytest.raises(ComfyUIInputError, match=NO_ADDRESS):
            await download(inside_server.url(host="rebind.example"), "127.0.0.1", resolver=names)


async def test_only_the_allowed_one_of_mixed_addresses_is_used(inside_server: Server) -> None:
    async with serve(give_png, "127.0.0.1", inside_server.port):
        names = Names(mixed_example=[["127.0.0.9", "::1", "127.0.0.1"]])
        for _ in range(3):
            assert await download(inside_server.url(host="mixed.example"), "127.0.0.1", resolver=names) == PNG


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_to_a_private_address_is_refused(status: int, inside_server: Server) -> None:
    async with serve(redirect_to(inside_server.url(), status)) as first:
        with pytest.raises(ComfyUIInputError, match=NO_ADDRESS):
            await download(first.url(), "127.0.0.1")


async def test_a_redirect_to_a_name_with_a_private_address_is_refused(inside_server: Server) -> None:
    names = Names(evil_example=[["127.0.0.9"]])
    async with serve(redirect_to(inside_server.url(host="evil.example"))) as first:
        with pytest.raises(ComfyUIInputError, match=NO_ADDRESS):
            await download(first.url(), "127.0.0.1", resolver=names)


async def test_a_redirect_to_another_port_of_an_allowed_address_is_refused(url_server: Server) -> None:
    async with serve(redirect_to(url_server.url())) as first:
        with pytest.raises(ComfyUIInputError, match=NO_ADDRESS):
            await download(first.url(), f"127.0.0.1:{first.port}")
    assert url_server.requests == []


async def test_a_redirect_loop_ends() -> None:
    async with serve(redirect_to("/again")) as first:
        with pytest.raises(ComfyUIInputError, match="redirects more than 5 times"):
            await download(first.url(), "127.0.0.1")
        assert len(first.requests) == 6


async def test_proxies_from_the_environment_are_not_used(
    monkeypatch: pytest.MonkeyPatch, inside_server: Server, url_server: Server
) -> None:
    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(variable, inside_server.url("/"))
    assert await download(url_server.url(), "127.0.0.1") == PNG


async def test_errors_for_private_names_and_addresses_do_not_differ(inside_server: Server) -> None:
    names = Names(inside_example=[["127.0.0.9"]], down_example=[["10.1.2.3"]])
    texts = set()
    for host in ("inside.example", "down.example", "127.0.0.9", "10.9.9.9"):
        with pytest.raises(ComfyUIInputError) as refused:
            await download(inside_server.url(host=host), resolver=names)
        texts.add(refused.value.detail)
    assert len(texts) == 1
    assert "127." not in texts.pop()


async def test_a_host_name_that_cannot_be_encoded_is_reported_as_invalid() -> None:
    async with UrlFetcher(max_bytes=MAX, allow=(), timeout_s=5) as fetcher:
        with pytest.raises(ComfyUIInputError, match="host name of the URL is not valid"):
            async with fetcher.fetch("http://" + "x" * 70 + ".example/"):
                pass


@given(st.text(max_size=60) | st.from_regex(r"[a-z]{0,5}:?/?/?[ -~]{0,40}", fullmatch=True))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=100)
async def test_any_text_as_a_url_gives_an_input_error(text: str) -> None:
    fetcher = UrlFetcher(max_bytes=MAX, allow=(), timeout_s=5, resolver=Names(), retries=0)
    async with fetcher:
        for url in (text, f"http://{text}", f"http://example.com{text}"):
            with pytest.raises(ComfyUIInputError):
                async with fetcher.fetch(url):
                    pass


# Limits


async def test_an_announced_size_over_the_limit_is_refused_before_reading() -> None:
    async def huge(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": str(MAX + 1)})
        await response.prepare(request)
        await asyncio.Event().wait()
        return response

    async with serve(huge) as server:
        with pytest.raises(ComfyUIInputError, match="larger than the 1 MB"):
            await download(server.url(), "127.0.0.1")


async def test_a_download_without_a_length_is_limited_too() -> None:
    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(PNG * 100)

    async with serve(endless) as server:
        with pytest.raises(ComfyUIInputError, match="larger than the 1 MB"):
            await download(server.url(), "127.0.0.1")


async def test_a_decompression_bomb_is_refused_with_little_memory() -> None:
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb", compresslevel=1) as file:
        for _ in range(128):
            file.write(bytes(1 << 20))

    async def bomb(_request: web.Request) -> web.Response:
        return web.Response(body=packed.getvalue(), headers={"Content-Encoding": "gzip"})

    async with serve(bomb) as server:
        tracemalloc.start()
        try:
            with pytest.raises(ComfyUIInputError, match="larger than the 1 MB"):
                await download(server.url(), "127.0.0.1")
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert peak < 8_000_000
    assert server.requests[0].headers["Accept-Encoding"] == "identity"


async def test_a_slow_download_ends_at_the_total_time() -> None:
    async def drip(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(PNG)
        await asyncio.Event().wait()
        return response

    async with serve(drip) as server:
        with pytest.raises(ComfyUIInputError, match=r"too slow \(0.2 s in all"):
            await download(server.url(), "127.0.0.1", timeout_s=0.2)


async def test_a_silent_server_is_given_up_before_the_total_time() -> None:
    async def silent(_request: web.Request) -> web.StreamResponse:
        await asyncio.Event().wait()
        return web.Response()

    async with serve(silent) as server:
        with pytest.raises(ComfyUIInputError, match=r"0.1 s of silence"):
            await download(server.url(), "127.0.0.1", timeout_s=30, silence_s=0.1)


async def test_a_truncated_download_is_not_used_as_a_file() -> None:
    async def cut(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "1000"})
        await response.prepare(request)
        await response.write(PNG)
        assert request.transport is not None
        request.transport.close()
        return response

    async with serve(cut) as server:
        with pytest.raises(ComfyUIInputError, match=r"before the file was complete|closed the connection"):
            await download(server.url(), "127.0.0.1")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (web.Response(status=404, text="secret inside"), "answered HTTP 404"),
        (web.Response(status=304), "answered HTTP 304"),
        (web.Response(text="<!doctype html><p>Please log in", content_type="text/html"), "HTML page"),
        (web.Response(), "empty"),
    ],
    ids=["404", "304", "login page", "empty"],
)
async def test_an_answer_without_a_file_is_refused_without_showing_its_content(
    answer: web.Response, reason: str
) -> None:
    async def give(_request: web.Request) -> web.Response:
        return answer

    async with serve(give) as server:
        with pytest.raises(ComfyUIInputError, match=reason) as refused:
            await download(server.url(), "127.0.0.1")
        assert "secret" not in refused.value.detail


async def test_the_error_of_an_unreachable_server_shows_no_address() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(ComfyUIInputError, match="could not be reached") as refused:
            await download(f"http://127.0.0.1:{taken.getsockname()[1]}/", "127.0.0.1")
    assert "127." not in refused.value.detail


async def test_an_https_url_to_a_plain_http_server_has_a_clear_error(url_server: Server) -> None:
    with pytest.raises(ComfyUIInputError, match="no secure connection"):
        await download(url_server.url().replace("http:", "https:"), "127.0.0.1")


# Temporary failures


def failing(count: int, handler: Handler, failure: Handler) -> Handler:
    """Returns a handler that uses `failure` for the first `count` requests, and then `handler`."""
    left = count

    async def answer(request: web.Request) -> web.StreamResponse:
        nonlocal left
        left -= 1
        return await (failure if left >= 0 else handler)(request)

    return answer


def status(code: int, **headers: str) -> Handler:
    async def answer(_request: web.Request) -> web.Response:
        return web.Response(status=code, headers={name.replace("_", "-"): value for name, value in headers.items()})

    return answer


async def cut(request: web.Request) -> web.StreamResponse:
    """Sends half of the file, without an ETag or a date."""
    response = web.StreamResponse(headers={"Content-Length": str(len(PNG))})
    await response.prepare(request)
    await response.write(PNG[: len(PNG) // 2])
    assert request.transport is not None
    request.transport.close()
    return response


async def hang_up(request: web.Request) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.close()
    return web.Response()


@pytest.mark.parametrize(
    "failure",
    [cut, hang_up, *map(status, (408, 425, 429, 500, 502, 503, 504, 599))],
    ids=["cut", "hung up", "408", "425", "429", "500", "502", "503", "504", "599"],
)
async def test_a_temporary_failure_is_retried(failure: Handler) -> None:
    async with serve(failing(2, give_png, failure)) as server:
        assert await download(server.url(), "127.0.0.1", retries=2) == PNG
        assert len(server.requests) == 3


@pytest.mark.parametrize("failure", [cut, hang_up, status(503)], ids=["cut", "hung up", "503"])
async def test_a_lasting_failure_is_reported_as_retryable_with_the_number_of_tries(failure: Handler) -> None:
    async with serve(failure) as server:
        with pytest.raises(ComfyUIInputUnavailableError, match=r" \(3 tries\)$") as failed:
            await download(server.url(), "127.0.0.1", retries=2)
        assert failed.value.retryable
        # aiohttp itself repeats a request whose connection was closed without an answer.
        assert len(server.requests) == (6 if failure is hang_up else 3)


@pytest.mark.parametrize("code", [400, 401, 403, 404, 410])
async def test_a_client_error_status_is_not_retried(code: int) -> None:
    async with serve(status(code)) as server:
        with pytest.raises(ComfyUIInputError, match=f"answered HTTP {code}$") as refused:
            await download(server.url(), "127.0.0.1", retries=2)
        assert not refused.value.retryable
        assert len(server.requests) == 1


async def test_an_unreachable_server_is_tried_again() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # the port does not listen
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/a.png"
        with pytest.raises(ComfyUIInputUnavailableError, match=r"could not be reached.* \(3 tries\)"):
            await download(url, "127.0.0.1", retries=2)


async def test_a_failed_name_lookup_is_retried_and_has_its_own_error(url_server: Server) -> None:
    class Flaky(Names):
        failures = 2

        async def resolve(
            self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
        ) -> list[ResolveResult]:
            self.failures -= 1
            if self.failures >= 0:
                raise socket.gaierror(socket.EAI_AGAIN, "try again")
            return await super().resolve(host, port, family)

    url = url_server.url(host="cdn.example")
    assert await download(url, "127.0.0.1", resolver=Flaky(cdn_example=[["127.0.0.1"]]), retries=2) == PNG
    with pytest.raises(ComfyUIInputUnavailableError, match=r"host name of the URL.* could not be looked up") as failed:
        await download(url, "127.0.0.1", retries=1)
    assert NO_ADDRESS not in failed.value.detail
    assert "cdn" not in failed.value.detail


async def test_a_private_address_is_refused_at_every_try(inside_server: Server) -> None:
    """The name first leads to a public server, which fails, and then to a private address."""
    async with serve(status(503, Connection="close"), "127.0.0.1", inside_server.port) as outside:
        names = Names(rebind_example=[["127.0.0.1"], ["127.0.0.9"]])
        with pytest.raises(ComfyUIInputError, match=NO_ADDRESS) as refused:
            # The server closes the connection, so another try looks up the name again.
            await download(inside_server.url(host="rebind.example"), "127.0.0.1", resolver=names, retries=3)
        assert not refused.value.retryable
        assert len(outside.requests) == 1


async def test_a_redirect_to_a_private_address_is_also_refused_after_a_failure(inside_server: Server) -> None:
    async with serve(failing(1, redirect_to(inside_server.url()), status(503))) as server:
        with pytest.raises(ComfyUIInputError, match=NO_ADDRESS):
            await download(server.url(), "127.0.0.1", retries=3)


async def test_retry_after_is_respected_within_the_time_of_the_download() -> None:
    asked = status(429, Retry_After="1")
    async with serve(failing(1, give_png, asked)) as server:
        started = asyncio.get_running_loop().time()
        assert await download(server.url(), "127.0.0.1", retries=1) == PNG
        assert asyncio.get_running_loop().time() - started >= 1
    async with serve(status(503, Retry_After="Wed, 21 Oct 2195 07:28:00 GMT")) as server:
        with pytest.raises(ComfyUIInputUnavailableError, match=r"answered HTTP 503$") as failed:
            await download(server.url(), "127.0.0.1", retries=3)
        assert len(server.requests) == 1
        assert failed.value.retry_after_s > 1e9


async def test_retries_end_with_the_total_time_of_the_download() -> None:
    async def silent(_request: web.Request) -> web.StreamResponse:
        await asyncio.Event().wait()
        return web.Response()

    async with serve(silent) as server:
        with pytest.raises(ComfyUIInputUnavailableError, match=r"too slow \(0.2 s in all"):
            await download(server.url(), "127.0.0.1", timeout_s=0.2, retries=5)


# Continued downloads

LONG = PNG + bytes(range(256)) * 1000


@dataclass
class Pieces:
    """Sends at most `piece` bytes of the file in an answer, and then cuts the connection."""

    file: bytes = LONG
    piece: int = 70_000
    headers: dict[str, str] = field(default_factory=lambda: {"ETag": '"1"'})
    ranges: list[str | None] = field(default_factory=list)
    ranged: bool = True

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        asked = request.headers.get("Range")
        self.ranges.append(asked)
        fresh = request.headers.get("If-Range") in {None, *self.headers.values()}
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and self.ranged and fresh else 0
        end = min(start + self.piece, len(self.file))
        response = web.StreamResponse(
            status=206 if start else 200, headers={**self.headers, "Content-Length": str(len(self.file) - start)}
        )
        if start:
            response.headers["Content-Range"] = f"bytes {start}-{len(self.file) - 1}/{len(self.file)}"
        await response.prepare(request)
        await response.write(self.file[start:end])
        if end < len(self.file):
            assert request.transport is not None
            request.transport.close()
        return response


@pytest.mark.parametrize("headers", [{"ETag": '"1"'}, {"Last-Modified": "Wed, 21 Oct 2015 07:28:00 GMT"}])
async def test_a_broken_download_continues_by_range_and_progress_resets_the_retries(headers: dict[str, str]) -> None:
    pieces = Pieces(headers=headers)
    async with serve(pieces) as server:
        assert await download(server.url(), "127.0.0.1", retries=1) == LONG
        assert pieces.ranges == [None, "bytes=70000-", "bytes=140000-", "bytes=210000-"]
        assert server.requests[1].headers["If-Range"] == next(iter(headers.values()))


@pytest.mark.parametrize("headers", [{}, {"ETag": 'W/"1"'}])
async def test_a_file_without_a_strong_validator_is_not_continued(headers: dict[str, str]) -> None:
    pieces = Pieces(headers=headers)
    async with serve(pieces) as server:
        with pytest.raises(ComfyUIInputUnavailableError, match=r"before the file was complete|closed the connection"):
            await download(server.url(), "127.0.0.1", retries=1)
    assert pieces.ranges == [None, None]


async def test_a_file_that_changed_meanwhile_is_fetched_again_completely() -> None:
    pieces = Pieces()

    async def change(request: web.Request) -> web.StreamResponse:
        if pieces.ranges:
            pieces.file, pieces.piece, pieces.headers = PNG + b"new" * 1000, 1_000_000, {"ETag": '"2"'}
        return await pieces(request)

    async with serve(change) as server:
        assert await download(server.url(), "127.0.0.1", retries=1) == PNG + b"new" * 1000
    assert pieces.ranges == [None, "bytes=70000-"]


async def test_a_server_without_range_support_sends_the_file_again() -> None:
    pieces = Pieces(ranged=False)

    async def recover(request: web.Request) -> web.StreamResponse:
        if pieces.ranges:
            pieces.piece = 1_000_000
        return await pieces(request)

    async with serve(recover) as server:
        assert await download(server.url(), "127.0.0.1", retries=1) == LONG


@pytest.mark.parametrize("answer", ["bytes 5-99/100", "bytes 70000-80000/*", "nonsense", ""])
async def test_a_wrong_range_is_not_appended_to_the_first_part(answer: str) -> None:
    pieces = Pieces()

    async def wrong(request: web.Request) -> web.StreamResponse:
        if "Range" not in request.headers:
            if len(pieces.ranges) > 1:
                pieces.piece = 1_000_000
            return await pieces(request)
        pieces.ranges.append(request.headers["Range"])
        return web.Response(status=206, body=LONG[70_000:], headers={"Content-Range": answer})

    async with serve(wrong) as server:
        assert await download(server.url(), "127.0.0.1", retries=3) == LONG


# Other successful answers


@pytest.mark.parametrize("code", [200, 201, 202, 203, 226, 299])
async def test_any_success_status_with_a_body_is_accepted(code: int) -> None:
    async def answer(_request: web.Request) -> web.Response:
        return web.Response(status=code, body=PNG)

    async with serve(answer) as server:
        assert await download(server.url(), "127.0.0.1") == PNG


async def test_an_unrequested_partial_answer_is_refused_unless_it_is_complete() -> None:
    said = f"bytes 0-{len(PNG) - 1}/{len(PNG)}"

    async def answer(_request: web.Request) -> web.Response:
        return web.Response(status=206, body=PNG, headers={"Content-Range": said})

    async with serve(answer) as server:
        assert await download(server.url(), "127.0.0.1") == PNG
        said = f"bytes 0-{len(PNG) - 1}/{len(PNG) + 1}"
        with pytest.raises(ComfyUIInputError, match="only a part of the file"):
            await download(server.url(), "127.0.0.1")


@pytest.mark.parametrize(
    ("coding", "body"),
    [("gzip", gzip.compress(PNG)), ("X-GZIP", gzip.compress(PNG)), ("deflate", zlib.compress(PNG)), ("identity", PNG)],
    ids=["gzip", "x-gzip", "deflate", "identity"],
)
async def test_a_compressed_file_is_unpacked(coding: str, body: bytes) -> None:
    async def packed(_request: web.Request) -> web.Response:
        return web.Response(body=body, headers={"Content-Encoding": coding, "ETag": '"1"'})

    async with serve(packed) as server:
        assert await download(server.url(), "127.0.0.1") == PNG


async def test_a_truncated_compressed_file_is_fetched_again() -> None:
    whole = gzip.compress(LONG)
    pieces = Pieces(file=whole, piece=len(whole) // 2, headers={"ETag": '"1"', "Content-Encoding": "gzip"})

    async def recover(request: web.Request) -> web.StreamResponse:
        if pieces.ranges:
            pieces.piece = 1_000_000
        return await pieces(request)

    async with serve(recover) as server:
        assert await download(server.url(), "127.0.0.1", retries=1) == LONG
    assert pieces.ranges == [None, None]


@pytest.mark.parametrize(
    ("coding", "body", "reason"),
    [("br", PNG, "in a way that the gateway does not support"), ("gzip", PNG, "does not match the Content-Encoding")],
)
async def test_a_file_that_cannot_be_unpacked_has_a_clear_error(coding: str, body: bytes, reason: str) -> None:
    async def packed(_request: web.Request) -> web.Response:
        return web.Response(body=body, headers={"Content-Encoding": coding})

    async with serve(packed) as server:
        with pytest.raises(ComfyUIInputError, match=reason) as refused:
            await download(server.url(), "127.0.0.1", retries=1)
        assert not refused.value.retryable
