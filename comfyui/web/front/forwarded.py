"""Headers of reverse proxies: believed if a trusted proxy sends them, and removed otherwise.

Every later reader of these headers may rely on them. uvicorn's own reader does not read the host and the path, and
keeps headers that it does not believe.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from starlette.types import ASGIApp, Receive, Scope, Send

from comfyui.headers import TOLD_BY_PROXIES
from comfyui.web.front.request_state import state_of
from comfyui.web.front.short_cache import short_cache

DEFAULT_PROXIES = ("127.0.0.1", "::1")
_ALL = "*"
_SCHEMES = {"http": ("http", "ws"), "https": ("https", "wss"), "ws": ("http", "ws"), "wss": ("https", "wss")}
_MAX_PREFIX = 256
_PREFIX = re.compile(r"(?:/[A-Za-z0-9._~!$&'()*+,;=:@%-]+)+")

_Address = IPv4Address | IPv6Address
_Network = IPv4Network | IPv6Network


def parse_proxies(values: Sequence[str]) -> tuple[_Network, ...] | None:
    """Addresses and CIDRs as networks; None for ``*``, which is every peer.

    Raises:
        ValueError: one is neither.
    """
    if _ALL in values:
        return None
    networks = []
    for value in values:
        try:
            networks.append(ip_network(value.strip("[]"), strict=False))
        except ValueError as error:
            raise ValueError(f"{value!r} must be an IP address or a CIDR") from error
    return tuple(networks)


class TrustedProxies:
    """Middleware. `values`: the addresses and CIDRs of FORWARDED_ALLOW_IPS."""

    def __init__(self, app: ASGIApp, values: Sequence[str] = DEFAULT_PROXIES) -> None:
        self._app = app
        self._networks = parse_proxies(values)
        self._trusts = short_cache(4096)(self._look_up)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._apply(scope)
        await self._app(scope, receive, send)

    def _apply(self, scope: Scope) -> None:
        """Set the request's client and scheme as a trusted proxy tells them, and keep its host and path prefix."""
        said = [pair for pair in scope["headers"] if pair[0] in TOLD_BY_PROXIES]
        if not said:
            return
        peer = scope["client"][0] if scope.get("client") else ""
        if not self._trusts(peer):
            scope["headers"] = [pair for pair in scope["headers"] if pair[0] not in TOLD_BY_PROXIES]
            return
        if proto := _last(said, b"x-forwarded-proto"):
            http, websocket = _SCHEMES.get(proto.lower(), (scope["scheme"], scope["scheme"]))
            scope["scheme"] = websocket if scope["type"] == "websocket" else http
        state = state_of(scope)
        if prefix := _prefix(_last(said, b"x-forwarded-prefix")):
            state.prefix = prefix
        if (client := self._client(said)) is not None:
            state.peer = peer
            scope["client"] = (client, 0)

    def _client(self, said: Sequence[tuple[bytes, bytes]]) -> str | None:
        """The nearest address that is not a trusted proxy's; the farthest one where all are."""
        chain = b",".join(value for name, value in said if name == b"x-forwarded-for").decode("latin-1").split(",")
        found = None
        for hop in reversed(chain):
            address = _address(_without_port(hop.strip()))
            if address is None:
                break  # the entries before it may be made up
            found = str(address)
            if not self._trusts(found):
                break
        return found

    def _look_up(self, peer: str) -> bool:
        if self._networks is None:
            return True
        address = _address(peer)
        return address is not None and any(address in network for network in self._networks)


def prefix_of(scope: Scope) -> str:
    """The path below which the client sees the gateway, as a trusted proxy tells it: ``/comfy``, or nothing."""
    return state_of(scope).prefix


def peer_of(scope: Scope) -> str:
    """The address at the other end of the connection, the client's or the last proxy's; "" if there is none."""
    client = scope.get("client")
    return state_of(scope).peer or (str(client[0]) if client else "")


def _last(said: Sequence[tuple[bytes, bytes]], name: bytes) -> str:
    """The value from the nearest proxy: the others may come from the client."""
    values = [value for found, value in said if found == name]
    return values[-1].decode("latin-1").rpartition(",")[2].strip() if values else ""


def _prefix(value: str) -> str:
    prefix = value.rstrip("/")
    plain = len(prefix) <= _MAX_PREFIX and _PREFIX.fullmatch(prefix) and not {".", ".."} & set(prefix.split("/"))
    return prefix if plain else ""


def _without_port(value: str) -> str:
    if value.startswith("["):
        return value[1:].partition("]")[0]
    return value.partition(":")[0] if value.count(":") == 1 else value


def _address(value: str) -> _Address | None:
    try:
        address = ip_address(value)
    except ValueError:
        return None
    return (address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address
