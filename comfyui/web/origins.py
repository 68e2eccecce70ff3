"""Which web pages may use the gateway from a browser: its own, and those of CORS_ALLOW_ORIGINS.

A browser sends a request to any address that a page names, the user's own network and cookies included. What tells is
``Origin`` (on what can change state, and on websockets) and ``Sec-Fetch-Site``; a page can forge neither. Programs send
neither and are not concerned.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.types import Message, Scope, Send

_ANY = "*"
_EXPOSED = b"X-Request-ID, Retry-After, Content-Disposition, Content-Length, Content-Range, ETag"
_PREFLIGHT_SECONDS = b"600"


class Page(enum.Enum):
    """Who sends the request."""

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
        """Whose page sends this request."""
        origin, site, referer, mode = "", b"", "", b""
        hosts = set()
        for name, value in scope["headers"]:
            if name == b"origin":
                origin = value.decode("latin-1").lower()
            elif name == b"sec-fetch-site":
                site = value
            elif name == b"sec-fetch-mode":
                mode = value
            elif name == b"referer":
                referer = value.decode("latin-1").lower()
            elif name in {b"host", b"x-forwarded-host"}:
                # A page cannot set either; a reverse proxy that sets its own Host tells the real one in the second.
                hosts.add(_without_default_port(value.decode("latin-1").lower()))
        if site == b"same-origin" or not (origin or site):
            return Page.OWN
        if origin:
            if _without_default_port(urlsplit(origin).netloc) in hosts:
                return Page.OWN
            return self._listed(origin)
        if site == b"cross-site" and not (mode == b"navigate" and scope.get("method") == "GET"):
            # A picture or a script of ours within somebody else's page.
            parts = urlsplit(referer)
            return self._listed(f"{parts.scheme}://{parts.netloc}")
        return Page.OWN

    def _listed(self, origin: str) -> Page:
        if origin in self.allowed:
            return Page.LISTED
        return Page.ANY if _ANY in self.allowed else Page.FOREIGN


def is_preflight(scope: Scope) -> bool:
    """A browser asks whether a page may send what it wants to send; it brings no key yet."""
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
