"""The network addresses that may be connected to for a caller (server-side request forgery): the check, and its
resolver.

Every address is checked, and only a checked address is connected to. Names go through `GuardedResolver`, which the
connection itself uses, so a name that changes its answer between check and use gains nothing. aiohttp asks no resolver
for literal addresses, so these are checked in every notation that a socket takes (octal, hex, …).
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterable
from dataclasses import dataclass

from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from comfyui.exceptions import NoSuchNameError, NotPermittedError

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

_HOST_PATTERN = re.compile(r"(\*\.)?[a-z0-9_]([a-z0-9_-]*)(\.[a-z0-9_-]+)*")
_HOST = re.compile(r"[A-Za-z0-9._-]+")
_PRINTABLE_ASCII = re.compile(r"[!-~]+")


def _networks(*networks: str) -> tuple[IPNetwork, ...]:
    return tuple(ipaddress.ip_network(network) for network in networks)


# `is_global` is not used: its meaning changed between patch releases of Python (CVE-2024-4032).
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
    "2002::/16",  # 6to4: it contains an IPv4 address of any kind
    "3fff::/20",
)
_IPV6_GLOBAL = ipaddress.IPv6Network("2000::/3")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
# Addresses that hand out a cloud machine's credentials, and tunnels to them. "*" does not allow these; naming them
# does.
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
    """The addresses that may be connected to: all public ones, and those in `allow`.

    Entries: ``example.com``, ``*.example.com`` (its subdomains), an address or network (``10.0.0.0/8``), each also with
    a port (``127.0.0.1:9000``, ``[::1]:9000``), or ``*`` for every address except link-local and metadata services. A
    name in the list is trusted with any address it has.

    Raises:
        ValueError: an entry has none of these forms.
    """

    def __init__(self, allow: Iterable[str] = ()) -> None:
        self._rules = tuple(_parse_rule(entry) for entry in allow)

    def permits(self, host: str, port: int, address: IPAddress) -> bool:
        """Whether to connect to `address` on `port` for a URL that names `host`."""
        address = _embedded(address)
        name = host.lower().rstrip(".")
        return _is_public(address) or any(rule.covers(name, port, address) for rule in self._rules)

    def checked(self, url: URL) -> URL:
        """`url` in the form in which it is requested. A literal address is canonical, so that no later reader of it can
        understand another address than we did.

        Raises:
            ValueError: it cannot be requested; the text says why.
            NotPermittedError: its host is an address that may not be connected to. A name is checked by
                `GuardedResolver` at the time of the connection.
        """
        if url.scheme not in {"http", "https"}:
            raise ValueError("the URL must begin with http:// or https://")
        if url.raw_user is not None or url.raw_password is not None:
            raise ValueError("the URL must not have a user or password")
        host, port = url.raw_host, url.port
        if not host:
            raise ValueError("the URL has no host")
        if not port:
            raise ValueError("the URL must not have port 0")
        try:
            address = literal_address(host)
        except ValueError:
            raise ValueError("the URL is not valid") from None
        if address is None:
            return url
        if not self.permits(host, port, address):
            raise NotPermittedError(None, "the gateway may not connect to this address")
        return url.with_host(str(address))


class GuardedResolver(AbstractResolver):
    """Gives aiohttp's connector only addresses that the policy permits.

    Raises `NotPermittedError` if none is left, `NoSuchNameError`, and any other `OSError` if the look-up fails.
    """

    def __init__(self, policy: AddressPolicy, inner: AbstractResolver) -> None:
        self._policy = policy
        self._inner = inner

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        try:
            found = await self._inner.resolve(host, port, family)
        except UnicodeError as error:  # a label is too long for the name system
            raise NoSuchNameError(None, "this name cannot be looked up") from error
        permitted = [
            result for result in found if self._policy.permits(host, port, ipaddress.ip_address(result["host"]))
        ]
        if not permitted:
            raise NotPermittedError(None, "the gateway may not connect to this address")
        return permitted

    async def close(self) -> None:
        await self._inner.close()


def parse_url(text: str) -> URL:
    """A caller's URL. Raises ValueError for any other text."""
    # The URL is kept unchanged if it can be sent so: requoting would break the signature of a presigned link.
    try:
        parsed = URL(text, encoded=_PRINTABLE_ASCII.fullmatch(text) is not None)
        _ = parsed.raw_host, parsed.port  # yarl reads and checks these only on access
    except ValueError:
        raise ValueError("the URL is not valid") from None
    return parsed


def literal_address(host: str) -> IPAddress | None:
    """`host` as an address, in any notation that a socket would take; None for a name.

    Raises ValueError for any other text.
    """
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        if not _HOST.fullmatch(host):
            raise ValueError(f"{host!r} is not a host name") from None
    try:
        # Decimal, octal, hexadecimal and shortened forms: 2130706433, 0177.0.0.1, 0x7f.1, 127.1
        return ipaddress.IPv4Address(socket.inet_aton(host.rstrip(".")))
    except OSError:
        return None


def _embedded(address: IPAddress) -> IPAddress:
    """The IPv4 address that an IPv6 one stands for (IPv4-mapped, NAT64), or the address itself."""
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
    raise ValueError(f"{entry!r} is not a host name, *.domain, address or network, with or without :port")


def _network(text: str) -> IPNetwork | None:
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        return None
