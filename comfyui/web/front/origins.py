"""The web pages that may use the gateway from a browser: its own, and those of CORS_ALLOW_ORIGINS.

A browser sends a request to any address that a page names, even in the user's own network, and with cookies. ``Origin``
(on requests that can change state, and on websockets) and ``Sec-Fetch-Site`` reveal the page, which can forge neither.
Programs send neither and are not concerned.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Collection
from dataclasses import dataclass

from starlette.types import Message, Scope, Send

_ANY = "*"
_EXPOSED = (
    b"X-Request-ID, X-Prompt-Id, X-Prompt-Status, Location, Preference-Applied, Retry-After, Content-Disposition,"
    b" Content-Length, Content-Range, Accept-Ranges, ETag, X-Comfy-Request-Id"
)
_PREFLIGHT_SECONDS = b"600"
# Browsers send this form; any other text in these headers is not a page's origin, and no reason to fail.
_ORIGIN = re.compile(r"([a-z][a-z0-9+.-]*)://([^/?#@\s]+)")


class Page(enum.Enum):
    """The page that sends the request."""

    OWN = "own"
    """A page of the gateway itself, or no page at all."""
    LISTED = "listed"
    """A page of a listed origin."""
    ANY = "any"
    """A page of another origin where all are allowed: it gets no use of the user's cookie."""
    FOREIGN = "foreign"
    """Any other page: refused."""


@dataclass(frozen=True, slots=True)
class Origins:
    """The origins (``https://example.org``, lower-case) whose pages may use the gateway; ``*`` for all."""

    allowed: frozenset[str] = frozenset()

    def page_of(self, scope: Scope) -> Page:
        """The page that sends this request."""
        origins, site, referer, mode = set(), b"", "", b""
        hosts = set()
        for name, value in scope["headers"]:
            if name == b"origin":
                origins.add(value.decode("latin-1").lower())
            elif name == b"sec-fetch-site":
                site = value
            elif name == b"sec-fetch-mode":
                mode = value
            elif name == b"referer":
                referer = value.decode("latin-1").lower()
            elif name in {b"host", b"x-forwarded-host"}:
                # A page cannot set either; a reverse proxy that sets its own Host tells the real one in the second.
                hosts.add(_without_default_port(value.decode("latin-1").lower()))
        origins.discard("")
        if site == b"same-origin" or not (origins or site):
            return Page.OWN
        if origins:
            # A browser sends one; of several, the one with the fewest rights counts.
            return max((self._page(origin, hosts) for origin in origins), key=list(Page).index)
        if site == b"cross-site" and not (mode == b"navigate" and scope.get("method") == "GET"):
            # A picture or a script of ours within another site's page.
            match = _ORIGIN.match(referer)
            return self._listed(match[0] if match else "")
        return Page.OWN

    def _page(self, origin: str, hosts: Collection[str]) -> Page:
        match = _ORIGIN.fullmatch(origin)
        if match is not None and _without_default_port(match[2]) in hosts:
            return Page.OWN
        return self._listed(origin)

    def _listed(self, origin: str) -> Page:
        if origin in self.allowed:
            return Page.LISTED
        return Page.ANY if _ANY in self.allowed else Page.FOREIGN


def is_preflight(scope: Scope) -> bool:
    """Whether a browser asks if a page may send its request; it has no key yet."""
    return scope.get("method") == "OPTIONS" and any(
        name == b"access-control-request-method" for name, _ in scope["headers"]
    )


async def answer_preflight(scope: Scope, send: Send, page: Page) -> None:
    """Yes, whatever it wants to send."""
    asked = dict(scope["headers"])
    headers = [
        *_grant(scope, page),
        (b"access-control-allow-methods", asked[b"access-control-request-method"]),
        (b"access-control-max-age", _PREFLIGHT_SECONDS),
        (b"content-length", b"0"),
    ]
    if b"access-control-request-headers" in asked:
        headers.append((b"access-control-allow-headers", asked[b"access-control-request-headers"]))
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


def with_grant(scope: Scope, send: Send, page: Page) -> Send:
    """`send` that lets the page read the answer; ComfyUI's own CORS headers give way."""

    async def granting_send(message: Message) -> None:
        if message["type"] == "http.response.start":
            kept = [pair for pair in message.get("headers", ()) if not pair[0].startswith(b"access-control-")]
            message["headers"] = [*kept, *_grant(scope, page), (b"access-control-expose-headers", _EXPOSED)]
        await send(message)

    return granting_send


def _grant(scope: Scope, page: Page) -> list[tuple[bytes, bytes]]:
    if page is Page.ANY:
        return [(b"access-control-allow-origin", b"*")]
    origin = dict(scope["headers"]).get(b"origin", b"null")
    return [
        (b"access-control-allow-origin", origin),
        (b"access-control-allow-credentials", b"true"),
        (b"vary", b"Origin"),
    ]


def _without_default_port(netloc: str) -> str:
    return netloc.removesuffix(":80").removesuffix(":443")
