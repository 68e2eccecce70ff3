"""The names by which a gateway without keys may be called: the guard against DNS rebinding.

A page of ``evil.example`` can make that name lead to the user's own network; the browser then sends its requests, and
websockets, with the gateway's own origin. That needs a public name: an address, or a name that no public DNS has,
cannot be redirected in this way. If keys are required, such a page has none.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from ipaddress import ip_address

from starlette.types import Scope

from comfyui.web.front.short_cache import short_cache

_ANY = "*"
_HOST = re.compile(r"(\[[0-9a-f:.]+(?:%[^\]]*)?\]|[^:\[\]/@\s]*)(?::[0-9]*)?")
_NAME = re.compile(r"(?:\*\.)?[a-z0-9_](?:[a-z0-9_.-]*[a-z0-9_])?")
# No one can register a name below these.
_LOCAL = (".localhost", ".local", ".internal", ".svc", ".cluster.local")


def parse_hosts(values: Iterable[str]) -> tuple[str, ...]:
    """Names in lower case: ``comfy.example.org``, ``*.example.org`` for all below it, or ``*`` for every name.

    Raises:
        ValueError: one is no name.
    """
    hosts = tuple(value.lower().rstrip(".") for value in values)
    for value, host in zip(values, hosts, strict=True):
        if host != _ANY and not _NAME.fullmatch(host):
            raise ValueError(
                f"{value!r} is not a host name such as comfy.example.org or *.example.org, without scheme and port"
            )
    return hosts


class KnownHosts:
    """`allowed`: names besides those that are always allowed, as `parse_hosts` gives them."""

    def __init__(self, allowed: Sequence[str] = ()) -> None:
        self._names = frozenset(name for name in allowed if not name.startswith("*."))
        self._below = tuple(name[1:] for name in allowed if name.startswith("*."))
        self._knows = short_cache(1024)(self._look_up)

    def unknown_in(self, scope: Scope) -> str | None:
        """The host name of this request, if it is not allowed; None if all its names are.

        A trusted proxy's ``X-Forwarded-Host`` counts, too: it is the name that a browser's page has called.
        """
        for name, value in scope["headers"]:
            if name in {b"host", b"x-forwarded-host"} and not self._knows(value):
                return str(value.decode("latin-1"))
        return None

    def _look_up(self, value: bytes) -> bool:
        if _ANY in self._names:
            return True
        match = _HOST.fullmatch(value.decode("latin-1").strip().lower())
        if match is None:
            return False
        name = match[1].removesuffix(".")
        if "." not in name and ":" not in name:
            return True
        if name in self._names or name.endswith((*_LOCAL, *self._below)):
            return True
        try:
            ip_address(name.strip("[]"))
        except ValueError:
            return False
        return True
