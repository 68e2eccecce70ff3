"""Which headers cross the relay, in both directions. Header sets are explicit; names are lower-case bytes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import quote, urlsplit

from yarl import URL

from comfyui.exceptions import ComfyUIServerError
from comfyui.web.front.forwarded import peer_of, prefix_of

RawHeaders = Iterable[tuple[bytes, bytes]]

_NONE: Mapping[bytes, bytes] = {}
HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
# Answered by the gateway's server itself, or set anew for ComfyUI. The length follows from the body that is sent.
_NOT_SENT = HOP_BY_HOP | {
    b"content-length",
    b"expect",
    b"host",
    b"x-forwarded-for",
    b"x-forwarded-proto",
    b"x-forwarded-host",
}
# Framing, meaning of the body, whose request it is and what it may: ``Connection`` never takes one of these away.
_FOR_EVERY_HOP = frozenset(
    {
        b"authorization",
        b"content-disposition",
        b"content-encoding",
        b"content-length",
        b"content-range",
        b"content-security-policy",
        b"content-type",
        b"cookie",
        b"forwarded",
        b"host",
        b"origin",
        b"referer",
        b"sec-fetch-site",
        b"set-cookie",
        b"transfer-encoding",
        b"www-authenticate",
        b"x-api-key",
        b"x-content-type-options",
        b"x-request-id",
    }
)
# What may stand in a URL as it is; all else is percent-encoded.
_OF_URLS = "!#$%&'()*+,/:;=?@[]~"
_REWRITTEN = frozenset({b"origin", b"referer", b"sec-fetch-site"})
_OF_BROWSERS = _REWRITTEN | {b"accept-encoding"}
_OF_THE_HANDSHAKE = frozenset(
    {b"sec-websocket-key", b"sec-websocket-version", b"sec-websocket-extensions", b"sec-websocket-protocol"}
)
# The gateway's own server sets Date; a second one would not be HTTP.
_NOT_RETURNED = HOP_BY_HOP | {b"date"}
# Scheme, authority, and the rest. urlsplit raises for what some clients send ("http://[::1").
_ABSOLUTE = re.compile(r"(?:([A-Za-z][A-Za-z0-9+.-]*):)?//([^/?#]*)(.*)", re.DOTALL)


def request_headers(scope: Any, upstream: URL, credentials: Mapping[bytes, bytes] = _NONE) -> list[tuple[bytes, bytes]]:
    """The headers of a client's request, for ComfyUI; ``Host`` and the framing are its connection's to write.

    ComfyUI refuses a browser whose ``Origin`` is not its ``Host`` (trap 14), and the newest one whatever is cross-site.
    The gateway has made that check against its own host (`comfyui.web.front.origins`), so ComfyUI is told its own
    address.
    The `credentials` that ComfyUI asks for (names in lower case) take the place of the client's own headers.
    """
    dropped = _NOT_SENT | _connection_names(scope["headers"])
    if scope["type"] == "websocket":
        dropped |= _OF_THE_HANDSHAKE
    headers = []
    host = None
    forwarded = []
    for name, value in scope["headers"]:
        if name == b"x-forwarded-host" or (name == b"host" and host is None):
            host = value
        elif name == b"x-forwarded-for":
            forwarded.append(value)
        elif name in dropped or name in credentials:
            continue
        elif name in _REWRITTEN:
            if rewritten := _rewritten(name, value, str(upstream.origin())):
                headers.append((name, rewritten))
        else:
            headers.append((name, value))
    headers += credentials.items()
    if peer := peer_of(scope):
        forwarded.append(peer.encode())
    if forwarded:
        headers.append((b"X-Forwarded-For", b", ".join(forwarded)))
    headers.append((b"X-Forwarded-Proto", b"https" if scope["scheme"] in {"https", "wss"} else b"http"))
    if host is not None:
        headers.append((b"X-Forwarded-Host", host))
    return headers


def submission_headers(scope: Any) -> dict[str, str]:
    """The headers of a client's ``POST /prompt`` that ComfyUI may look at; its length and codings are set anew."""
    dropped = _NOT_SENT | _OF_BROWSERS | _connection_names(scope["headers"])
    kept = ((name, value) for name, value in scope["headers"] if name not in dropped)
    # One character for each byte, as our own transport sends them: what came arrives.
    return {
        "content-type": "application/json",
        **{name.decode("latin-1"): value.decode("latin-1") for name, value in kept},
    }


def _rewritten(name: bytes, value: bytes, own: str) -> bytes:
    """Nothing where it is not sent: a Referer that is no address."""
    if name == b"origin":
        return own.encode()
    if name == b"referer":
        match = _ABSOLUTE.fullmatch(_text(value))
        return f"{own}{_rooted(match[3])}".encode() if match else b""
    return value if value == b"none" else b"same-origin"


def response_headers(raw_headers: RawHeaders, status: int, upstream: URL, public: str) -> list[tuple[bytes, bytes]]:
    """The headers of ComfyUI's answer, for the client.

    `public` is the gateway's address as the client knows it: origin, and path where it is served below one.

    Raises:
        ComfyUIServerError: a ``Location`` that is no URL.
    """
    dropped = _NOT_RETURNED | _connection_names(raw_headers)
    if status in {204, 304}:
        dropped |= {b"content-length"}
    return [
        (name, _location(value, upstream, public) if name == b"location" else value)
        for name, value in raw_headers
        if name not in dropped
    ]


def public_address(scope: Any, configured: str = "") -> str:
    """The gateway's own address, without a slash at its end: the configured one, else as this client wrote it."""
    if configured:
        return configured
    host = header(scope, b"x-forwarded-host") or header(scope, b"host") or b""
    scheme = "https" if scope["scheme"] in {"https", "wss"} else "http"
    return f"{scheme}://{_text(host)}{prefix_of(scope)}"


def header(scope: Any, name: bytes) -> bytes | None:
    """The first header of that lower-case name."""
    for found, value in scope["headers"]:
        if found == name:
            return bytes(value)
    return None


def _connection_names(headers: RawHeaders) -> frozenset[bytes]:
    """What ``Connection`` names is for this hop alone; it cannot name what the next hop must have."""
    names = frozenset[bytes]()
    for name, value in headers:
        if name == b"connection":
            names |= frozenset(token.strip().lower() for token in value.split(b","))
    return frozenset(name for name in names - _FOR_EVERY_HOP if not name.startswith(b"x-forwarded-"))


def _location(value: bytes, upstream: URL, public: str) -> bytes:
    """A redirect to ComfyUI's own address, or past the path that the gateway is below, would lead around it."""
    text = _url(value)
    match = _ABSOLUTE.fullmatch(text)
    below = upstream.raw_path.rstrip("/")
    if match is not None:
        if match[2] != upstream.raw_authority or (match[1] or upstream.scheme).lower() != upstream.scheme:
            return text.encode()
        rest = _rooted(match[3])
        own = public
    elif text.startswith("/"):
        rest = text
        own = (_ABSOLUTE.fullmatch(public) or ["", "", "", ""])[3]
    else:
        return text.encode()
    if below and (rest == below or rest.startswith((f"{below}/", f"{below}?"))):
        rest = _rooted(rest.removeprefix(below))
    return f"{own}{rest}".encode()


def _url(value: bytes) -> str:
    """A `Location` with what no URL may have percent-encoded."""
    text = quote(value, safe=_OF_URLS)
    try:
        _ = urlsplit(text).port  # is read here: a port that is no number is an error
    except ValueError as error:
        raise ComfyUIServerError("ComfyUI's answer has a Location that is no URL") from error
    return text


def _rooted(rest: str) -> str:
    return rest if rest.startswith("/") else f"/{rest}"


def text_headers(headers: RawHeaders) -> list[tuple[str, str]]:
    """For aiohttp, which sends them as UTF-8: what is valid UTF-8 is read as that, to arrive as the same bytes."""
    return [(name.decode("latin-1"), _text(value)) for name, value in headers]


def _text(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")
