"""The rules for headers that cross between clients and ComfyUI, in both directions, as explicit sets.

Names are lower-case bytes. The relay, ``POST /prompt``, the writer of requests and the settings
all take their rules from here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote, urlsplit

from yarl import URL

from comfyui.exceptions import ComfyUIServerError

RawHeaders = Iterable[tuple[bytes, bytes]]

_NONE: Mapping[bytes, bytes] = {}
FRAMING: Final = frozenset(
    {
        *(b"host", b"content-length", b"transfer-encoding", b"connection", b"keep-alive", b"upgrade", b"expect"),
        *(b"te", b"trailer"),
    }
)
"""Framing, recipient and fate of the connection: only the code that writes a head sets them."""
_HOP_BY_HOP: Final = frozenset(
    {
        *(b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"proxy-connection", b"te"),
        *(b"trailer", b"transfer-encoding", b"upgrade"),
    }
)
_FORWARDED: Final = frozenset({b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host"})
TOLD_BY_PROXIES: Final = _FORWARDED | {b"x-forwarded-prefix", b"x-forwarded-port", b"x-real-ip", b"forwarded"}
"""The client and the address of a request, as proxies tell it. Only trusted proxies are believed."""
# Answered by the gateway's server itself, or written for ComfyUI's connection. The length follows from the body.
_NOT_SENT: Final = _HOP_BY_HOP | FRAMING
_NOT_SENT_ANEW: Final = _NOT_SENT | _FORWARDED
# Framing, meaning of the body, recipient and rights of the request: ``Connection`` never removes one of these.
_FOR_EVERY_HOP: Final = TOLD_BY_PROXIES | {
    *(b"authorization", b"content-disposition", b"content-encoding", b"content-length", b"content-range"),
    *(b"content-security-policy", b"content-type", b"cookie", b"host", b"origin", b"referer", b"sec-fetch-site"),
    *(b"set-cookie", b"transfer-encoding", b"www-authenticate", b"x-api-key", b"x-content-type-options"),
    # A header of ComfyUI's --multi-user: without it, a request is that of the user "default".
    *(b"x-request-id", b"comfy-user"),
}
# Characters that may stand in a URL; all others are percent-encoded.
_OF_URLS: Final = "!#$%&'()*+,/:;=?@[]~"
_REWRITTEN: Final = frozenset({b"origin", b"referer", b"sec-fetch-site"})
_OF_BROWSERS: Final = _REWRITTEN | {b"accept-encoding"}
# The client library writes these for its own handshake.
_OF_THE_HANDSHAKE: Final = frozenset(
    {b"sec-websocket-key", b"sec-websocket-version", b"sec-websocket-extensions", b"sec-websocket-protocol"}
)
# Our own servers set Date; a second one would not be HTTP.
_NOT_RETURNED: Final = _HOP_BY_HOP | {b"date"}
AUTOMATIC: Final = ("Accept", "Accept-Encoding", "Content-Type", "User-Agent")
"""aiohttp adds these by itself; a relayed request must not have them unless its client sent them."""
# COMFYUI_HEADERS cannot set these: besides the framing, the target of a request and the client that it comes from.
_OF_EACH_REQUEST: Final = re.compile(
    r"origin|accept-encoding|proxy-connection|x-forwarded-.*|content-.*|transfer-.*|sec-.*", re.IGNORECASE
)
# Scheme, authority, and the rest. urlsplit raises for what some clients send ("http://[::1").
_ABSOLUTE: Final = re.compile(r"(?:([A-Za-z][A-Za-z0-9+.-]*):)?//([^/?#]*)(.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Sender:
    """The sender of a request, as ComfyUI learns it from ``X-Forwarded``.

    Attributes:
        address: of the client, or of the last proxy before us; empty if it is not known.
        secure: the request came over TLS, to us or to that proxy.
    """

    address: str
    secure: bool


def may_be_set(name: str) -> bool:
    """Whether a header of this name can be the same for every request to a server."""
    return name.lower().encode() not in FRAMING and not _OF_EACH_REQUEST.fullmatch(name)


def to_comfyui(
    raw_headers: RawHeaders,
    upstream: URL,
    credentials: Mapping[bytes, bytes] = _NONE,
    *,
    sender: Sender | None,
    handshake: bool = False,
) -> list[tuple[bytes, bytes]]:
    """The headers of a client's request, for ComfyUI, without ``Host`` and framing, which the connection writes.

    ComfyUI refuses a browser whose ``Origin`` is not its ``Host`` (trap 14), and the newest one refuses every
    cross-site request. The gateway has made that check against its own host (`comfyui.web.front.origins`), so it tells
    ComfyUI ComfyUI's own address.

    Args:
        credentials: headers that ComfyUI needs (names in lower case); they replace the client's own.
        sender: None if another server of ours has already told ComfyUI.
        handshake: whether it opens a websocket.
    """
    dropped = _NOT_SENT if sender is None else _NOT_SENT_ANEW
    if names := _connection_names(raw_headers):
        dropped |= names
    if handshake:
        dropped |= _OF_THE_HANDSHAKE
    headers = []
    host = None
    forwarded = []
    for name, value in raw_headers:
        if name == b"x-forwarded-host" or (name == b"host" and host is None):
            host = value
        elif name == b"x-forwarded-for":
            forwarded.append(value)
        if name in dropped or name in credentials:
            continue
        if name in _REWRITTEN:
            if rewritten := _rewritten(name, value, str(upstream.origin())):
                headers.append((name, rewritten))
        else:
            headers.append((name, value))
    headers += credentials.items()
    if sender is not None:
        if sender.address:
            forwarded.append(sender.address.encode())
        if forwarded:
            headers.append((b"X-Forwarded-For", b", ".join(forwarded)))
        headers.append((b"X-Forwarded-Proto", b"https" if sender.secure else b"http"))
        if host is not None:
            headers.append((b"X-Forwarded-Host", host))
    return headers


def of_submission(headers: RawHeaders) -> dict[str, str]:
    """The headers of a client's ``POST /prompt`` that ComfyUI may see; length and codings are written by the sender."""
    dropped = _NOT_SENT_ANEW | _OF_BROWSERS | _connection_names(headers)
    kept = ((name, value) for name, value in headers if name not in dropped)
    # Latin-1 has one character for each byte, as our own transport sends them, so every byte arrives unchanged.
    return {
        "content-type": "application/json",
        **{name.decode("latin-1"): value.decode("latin-1") for name, value in kept},
    }


def _rewritten(name: bytes, value: bytes, own: str) -> bytes:
    """The header's value for ComfyUI; empty for a Referer that is no address, which is not sent."""
    if name == b"origin":
        return own.encode()
    if name == b"referer":
        match = _ABSOLUTE.fullmatch(text_of(value))
        return f"{own}{_rooted(match[3])}".encode() if match else b""
    return value if value == b"none" else b"same-origin"


def to_client(raw_headers: RawHeaders, status: int, upstream: URL, public: str) -> list[tuple[bytes, bytes]]:
    """The headers of ComfyUI's answer, for the client.

    `public` is the gateway's address as the client knows it: origin, and the path below which it is served.

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


def _connection_names(headers: RawHeaders) -> frozenset[bytes]:
    """The names in ``Connection`` are for this hop only; it cannot name headers that the next hop needs."""
    names = frozenset[bytes]()
    for name, value in headers:
        if name == b"connection":
            names |= frozenset(token.strip().lower() for token in value.split(b","))
    return frozenset(name for name in names - _FOR_EVERY_HOP if not name.startswith(b"x-forwarded-"))


def _location(value: bytes, upstream: URL, public: str) -> bytes:
    """A redirect to ComfyUI's own address, or past the gateway's path, would lead around the gateway."""
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
    """A `Location` with all characters percent-encoded that no URL may have."""
    text = quote(value, safe=_OF_URLS)
    try:
        _ = urlsplit(text).port  # a port that is no number is an error here
    except ValueError as error:
        raise ComfyUIServerError("ComfyUI's answer has a Location that is not a URL") from error
    return text


def _rooted(rest: str) -> str:
    return rest if rest.startswith("/") else f"/{rest}"


def as_text(headers: RawHeaders) -> list[tuple[str, str]]:
    """For aiohttp, which sends text as UTF-8: valid UTF-8 is decoded as such, so the same bytes arrive."""
    return [(name.decode("latin-1"), text_of(value)) for name, value in headers]


def text_of(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")
