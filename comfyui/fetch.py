"""Fetching a caller's URL without becoming the caller's way into our network (server-side request forgery).

- Only http and https, without user and password in the URL.
- Every address is checked, and only a checked address is connected to: names go through `GuardedResolver`, which is
  what the connection itself uses, so a name that changes its answer between check and use gains nothing; literal
  addresses, for which aiohttp asks no resolver, are checked in every notation that a socket takes (octal, hex, …).
- Redirects are followed by hand, few, each hop checked as the first; no cookie, referrer or credential goes along.
- Time, silence, bytes (as announced, and as counted after decompression) and simultaneous downloads are limited.
- Refused, unknown and internal names give the same error, so that nobody maps a network by asking us.
"""

from __future__ import annotations

import asyncio
import ipaddress
import mimetypes
import re
import socket
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Self

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from comfyui.content import Content, Spool, too_large
from comfyui.exceptions import ComfyUIInputError

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

_MAX_REDIRECTS = 5
_MAX_DOWNLOADS = 32
_CONNECT_S = 10.0
_SILENCE_S = 20.0
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_NO_ADDRESS = (
    "the URL, or one that it redirects to, has no public address to fetch it from; INPUT_URL_ALLOW lists exceptions"
)
_HOST_PATTERN = re.compile(r"(\*\.)?[a-z0-9_]([a-z0-9_-]*)(\.[a-z0-9_-]+)*")
_HOST = re.compile(r"[A-Za-z0-9._-]+")
_PRINTABLE_ASCII = re.compile(r"[!-~]+")


def _networks(*networks: str) -> tuple[IPNetwork, ...]:
    return tuple(ipaddress.ip_network(network) for network in networks)


# Not `is_global`: what it means changed between patch releases of Python (CVE-2024-4032).
_NOT_PUBLIC = _networks(
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.88.99.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "224.0.0.0/4",
    "240.0.0.0/4",
    "168.63.129.16/32",  # Azure's host service, on a public address
    "2001::/23",  # Teredo, ORCHID and other protocol assignments
    "2001:db8::/32",
    "2002::/16",  # 6to4: an IPv4 address of any kind is inside
    "3fff::/20",
)
_IPV6_GLOBAL = ipaddress.IPv6Network("2000::/3")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
# What hands out a cloud machine's credentials, and tunnels to it. "*" does not allow these; naming them does.
_NEVER_BY_WILDCARD = _networks(
    "169.254.0.0/16",
    "fe80::/10",
    "100.100.100.200/32",
    "168.63.129.16/32",
    "192.0.0.192/32",
    "fd00:ec2::/32",
    "fd20:ce::254/128",
    "2001::/32",
    "2002::/16",
    "64:ff9b:1::/48",
)


@dataclass(frozen=True, slots=True)
class _Rule:
    """One entry of the allow list: a network or a host pattern, on any port or on one."""

    network: IPNetwork | None
    host: str
    port: int | None

    def covers(self, host: str, port: int, address: IPAddress) -> bool:
        if self.port is not None and self.port != port:
            return False
        if self.network is not None:
            return address in self.network
        if self.host == "*":
            return not _within(address, _NEVER_BY_WILDCARD)
        if self.host.startswith("*."):
            return host.endswith(self.host[1:])
        return host == self.host


class AddressPolicy:
    """Which addresses may be connected to: all public ones, and what `allow` lists.

    Entries: ``example.com``, ``*.example.com`` (its subdomains), an address or network (``10.0.0.0/8``), each also with
    a port (``127.0.0.1:9000``, ``[::1]:9000``), or ``*`` for every address but link-local and metadata services. A
    name in the list is trusted with whatever address it has.

    Raises:
        ValueError: an entry is none of these.
    """

    def __init__(self, allow: Iterable[str] = ()) -> None:
        self._rules = tuple(_parse_rule(entry) for entry in allow)

    def permits(self, host: str, port: int, address: IPAddress) -> bool:
        """Whether to connect to `address` on `port` for a URL that names `host`."""
        address = _embedded(address)
        name = host.lower().rstrip(".")
        return _is_public(address) or any(rule.covers(name, port, address) for rule in self._rules)


class GuardedResolver(AbstractResolver):
    """Gives aiohttp's connector only addresses that the policy permits, and an `OSError` when none is left."""

    def __init__(self, policy: AddressPolicy, inner: AbstractResolver) -> None:
        self._policy = policy
        self._inner = inner

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        try:
            found = await self._inner.resolve(host, port, family)
        except UnicodeError as error:  # a label that is too long for the name system
            raise OSError(None, _NO_ADDRESS) from error
        permitted = [
            result for result in found if self._policy.permits(host, port, ipaddress.ip_address(result["host"]))
        ]
        if not permitted:
            raise OSError(None, _NO_ADDRESS)
        return permitted

    async def close(self) -> None:
        await self._inner.close()


class UrlFetcher:
    """Downloads callers' URLs to disk. Open it with ``async with``; it owns its session and closes it.

    Args:
        max_bytes: of one file, decompressed.
        allow: see `AddressPolicy`.
        timeout_s: for one download with all its redirects, name look-ups included.
        resolver: for names; the system's by default.
    """

    def __init__(
        self, *, max_bytes: int, allow: Sequence[str], timeout_s: float, resolver: AbstractResolver | None = None
    ) -> None:
        self._policy = AddressPolicy(allow)
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s
        self._resolver = resolver
        self._slots = asyncio.Semaphore(_MAX_DOWNLOADS)
        self._session: aiohttp.ClientSession | None = None
        self._guard: GuardedResolver | None = None

    async def __aenter__(self) -> Self:
        self._guard = GuardedResolver(self._policy, self._resolver or aiohttp.DefaultResolver())
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=_MAX_DOWNLOADS, resolver=self._guard, use_dns_cache=False),
            cookie_jar=aiohttp.DummyCookieJar(),
            # Proxies and .netrc of the environment would connect for us, past the check.
            trust_env=False,
            headers={"User-Agent": "comfyui-gateway", "Accept": "*/*", "Accept-Encoding": "identity"},
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S, sock_read=_SILENCE_S),
        )
        return self

    async def __aexit__(self, *_exc: object) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None
        if self._guard is not None:
            await self._guard.close()
            self._guard = None

    @asynccontextmanager
    async def fetch(self, url: str) -> AsyncIterator[Content]:
        """The file at `url`, on disk until the ``async with`` ends.

        Raises:
            ComfyUIInputError: refused, failed, too large, too slow, or no file (an HTML page); the text names no
                address and no part of what was received.
        """
        async with Spool(self._max_bytes) as spool:
            try:
                async with self._slots, asyncio.timeout(self._timeout_s):
                    content = await self._download(url, spool)
            except (aiohttp.ClientError, TimeoutError) as error:
                raise ComfyUIInputError(self._reason(error)) from error
            yield content

    async def _download(self, url: str, spool: Spool) -> Content:
        if self._session is None:
            raise RuntimeError("use the fetcher inside 'async with'")
        target = self._checked(_parse(url))
        for _hop in range(_MAX_REDIRECTS + 1):
            async with self._session.get(target, allow_redirects=False) as response:
                location = response.headers.get("Location")
                if response.status in _REDIRECTS and location:
                    target = self._checked(target.join(_parse(location)))
                    continue
                if response.status != 200:
                    raise ComfyUIInputError(f"the URL's server answered HTTP {response.status}")
                if (response.content_length or 0) > self._max_bytes:
                    raise too_large(self._max_bytes)
                async for chunk in response.content.iter_any():
                    await spool.write(chunk)
                return await spool.finish(_extension_hint(target, response.content_type))
        raise ComfyUIInputError(f"the URL redirects more than {_MAX_REDIRECTS} times")

    def _checked(self, url: URL) -> URL:
        """`url` in the form in which it is requested; a literal address in canonical form, so that no second reader of
        it can understand another address than we did."""
        if url.scheme not in {"http", "https"}:
            raise ComfyUIInputError("only http and https URLs are fetched, and redirects to them")
        if url.raw_user is not None or url.raw_password is not None:
            raise ComfyUIInputError("a URL with a user or password in it is not fetched")
        host, port = url.raw_host, url.port
        if not host or not port:
            raise ComfyUIInputError("the URL has no host")
        address = _literal(host)
        if address is None:
            return url
        if not self._policy.permits(host, port, address):
            raise ComfyUIInputError(_NO_ADDRESS)
        return url.with_host(str(address))

    def _reason(self, error: Exception) -> str:
        """Says what a caller can act on, and the same for a name that is unknown and one that is not allowed."""
        if isinstance(error, aiohttp.ClientConnectorDNSError):
            return _NO_ADDRESS
        if isinstance(error, aiohttp.ClientSSLError):
            return "no secure connection to the URL's server could be made; its certificate, perhaps"
        if isinstance(error, aiohttp.ClientConnectionError) and not isinstance(error, TimeoutError):
            return "the URL's server could not be reached, or closed the connection"
        if isinstance(error, TimeoutError):
            return f"the URL's server was too slow ({self._timeout_s:g} s in all, {_SILENCE_S:g} s of silence at most)"
        if isinstance(error, aiohttp.InvalidURL):
            return "not a valid URL"
        return "the download broke off, or was no proper HTTP answer"


def _parse(url: str) -> URL:
    # As it came where it can be sent so: quoting it anew would break the signature of a presigned link.
    try:
        parsed = URL(url, encoded=_PRINTABLE_ASCII.fullmatch(url) is not None)
        _ = parsed.raw_host, parsed.port  # which yarl reads, and checks, only when they are asked for
        return parsed
    except ValueError as error:
        raise ComfyUIInputError("not a valid URL") from error


def _literal(host: str) -> IPAddress | None:
    """`host` as an address where it is one in any notation that a socket would take, None where it is a name."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        if not _HOST.fullmatch(host):
            raise ComfyUIInputError("not a valid URL") from None
    try:
        # Decimal, octal, hexadecimal and shortened forms: 2130706433, 0177.0.0.1, 0x7f.1, 127.1
        return ipaddress.IPv4Address(socket.inet_aton(host.rstrip(".")))
    except OSError:
        return None


def _embedded(address: IPAddress) -> IPAddress:
    """The IPv4 address that an IPv6 one stands for (IPv4-mapped, NAT64), else the address itself."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped
        if address in _NAT64:
            return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address


def _is_public(address: IPAddress) -> bool:
    if isinstance(address, ipaddress.IPv6Address) and address not in _IPV6_GLOBAL:
        return False
    return not _within(address, _NOT_PUBLIC)


def _within(address: IPAddress, networks: Iterable[IPNetwork]) -> bool:
    return any(address in network for network in networks)


def _parse_rule(entry: str) -> _Rule:
    text = entry.strip().lower()
    if text == "*":
        return _Rule(None, "*", None)
    if (network := _network(text)) is not None:
        return _Rule(network, "", None)
    host, colon, digits = text.rpartition(":")
    port = int(digits) if colon and digits.isascii() and digits.isdigit() else None
    name = (text if port is None else host).removesuffix(".")
    if port is None or 0 < port < 65536:
        if (network := _network(name.removeprefix("[").removesuffix("]"))) is not None:
            return _Rule(network, "", port)
        if _HOST_PATTERN.fullmatch(name):
            return _Rule(None, name, port)
    raise ValueError(f"{entry!r} is no host, *.domain, address or network, with or without :port")


def _network(text: str) -> IPNetwork | None:
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        return None


def _extension_hint(url: URL, content_type: str) -> str:
    """What the URL's path or the answer's type says about the file; its bytes have the last word."""
    suffix = PurePosixPath(url.path).suffix
    return suffix or mimetypes.guess_extension(content_type) or ""
