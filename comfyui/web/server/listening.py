"""The sockets that the server listens on: several addresses, IPv4 and IPv6 alike, with one port."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from ipaddress import ip_address

import structlog

_log = structlog.get_logger("gateway")


def parse_listen(values: Iterable[str]) -> tuple[str, ...]:
    """Addresses and names, without the brackets that IPv6 has in URLs.

    Raises:
        ValueError: one has a port, or is nothing that can be listened on.
    """
    hosts = []
    for value in values:
        host = value.removeprefix("[").removesuffix("]") if value.startswith("[") else value
        try:
            ip_address(host)
        except ValueError:
            if ":" in host or "/" in host or not host.isprintable() or " " in host:
                raise ValueError(
                    f"{value!r} is not an address or host name to listen on; SERVER_PORT sets the port"
                ) from None
        hosts.append(host)
    if not hosts:
        raise ValueError("must have at least one address")
    return tuple(dict.fromkeys(hosts))


def bind(hosts: Sequence[str], port: int) -> list[socket.socket]:
    """A bound socket for each address; with port 0 all get the same free one. `::` is IPv6 alone: list `0.0.0.0`, too.

    Raises:
        ValueError: one address cannot be used; the text says which, and why. No socket is left open.
    """
    with ExitStack() as stack:
        sockets: list[socket.socket] = []
        for host in hosts:
            found = _addresses(host, port)
            failure: OSError | None = None
            bound = False
            for family, address in found:
                chosen = sockets[0].getsockname()[1] if sockets else port
                try:
                    sockets.append(stack.enter_context(_bound(family, (address[0], chosen, *address[2:]))))
                    bound = True
                except OSError as error:
                    # A name may have an address of a family that this machine does not have.
                    if error.errno not in {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT} or len(found) == 1:
                        raise _cannot(host, chosen, error) from error
                    failure = error
            if not bound and failure is not None:
                raise _cannot(host, port, failure) from failure
        stack.pop_all()
        return sockets


def url_of(sock: socket.socket) -> str:
    """The URL of a socket, as far as its own address says."""
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def warn_of_strangers(hosts: Sequence[str], port: int) -> None:
    """Logs a warning if other machines can reach a gateway without keys."""
    reached = [host for host in hosts if not is_loopback(host)]
    if reached:
        _log.warning(
            "gateway.open",
            detail=f"everyone who can reach {', '.join(reached)} (port {port}) can run workflows and read all files of"
            " ComfyUI. To close it, set API_KEYS to a long random text (openssl rand -hex 24 makes one; callers send it"
            " as 'Authorization: Bearer KEY'), or set SERVER_HOST=127.0.0.1 to serve this machine only",
        )


def _addresses(host: str, port: int) -> list[tuple[int, tuple[str, int] | tuple[str, int, int, int]]]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise ValueError(f"cannot listen on {host}: {error.strerror}") from error
    return list(dict.fromkeys((family, address) for family, _, _, _, address in found))  # type: ignore[misc]


def _bound(family: int, address: tuple[str | int, ...]) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            # Otherwise `::` would take the port of `0.0.0.0`, and only one of them could be listed.
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(address)
    except BaseException:
        sock.close()
        raise
    return sock


def _cannot(host: str, port: int, error: OSError) -> ValueError:
    shown = f"[{host}]" if ":" in host else host
    return ValueError(f"cannot listen on {shown}:{port}: {error.strerror}")
