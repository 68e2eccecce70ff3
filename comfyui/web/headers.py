"""Which headers cross the relay, in both directions. Header sets are explicit; names are lower-case bytes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

from yarl import URL

RawHeaders = Iterable[tuple[bytes, bytes]]

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
# Answered by the gateway's server itself, or set anew for ComfyUI.
_NOT_SENT = HOP_BY_HOP | {b"expect", b"host", b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host"}
_OF_THE_HANDSHAKE = frozenset(
    {b"sec-websocket-key", b"sec-websocket-version", b"sec-websocket-extensions", b"sec-websocket-protocol"}
)
# The gateway's own server sets Date; a second one would not be HTTP.
_NOT_RETURNED = HOP_BY_HOP | {b"date"}


def request_headers(scope: Any, upstream: URL) -> list[tuple[str, str]]:
    """The headers of a client's request, for ComfyUI.

    ComfyUI refuses a browser whose ``Origin`` is not its ``Host`` (trap 14), and the newest one whatever is cross-site.
    The gateway has made that check against its own host (`comfyui.web.origins`), so ComfyUI is told its own address.
    """
    dropped = _NOT_SENT | _connection_names(scope["headers"])
    if scope["type"] == "websocket":
        dropped |= _OF_THE_HANDSHAKE
    own = str(upstream.origin())
    headers = [("Host", upstream.raw_authority)]
    host = ""
    forwarded = []
    for name, value in scope["headers"]:
        if name == b"host":
            host = _text(value)
        elif name == b"x-forwarded-for":
            forwarded.append(_text(value))
        elif name in dropped:
            continue
        elif name == b"origin":
            headers.append(("Origin", own))
        elif name == b"referer":
            headers.append(("Referer", _moved(_text(value), own)))
        elif name == b"sec-fetch-site" and value != b"none":
            headers.append(("Sec-Fetch-Site", "same-origin"))
        else:
            headers.append((name.decode("latin-1"), _text(value)))
    if scope["client"]:
        forwarded.append(scope["client"][0])
    if forwarded:
        headers.append(("X-Forwarded-For", ", ".join(forwarded)))
    headers.append(("X-Forwarded-Proto", "https" if scope["scheme"] in {"https", "wss"} else "http"))
    if host:
        headers.append(("X-Forwarded-Host", host))
    return headers


def response_headers(raw_headers: RawHeaders, status: int, upstream: URL, public: str) -> list[tuple[bytes, bytes]]:
    """The headers of ComfyUI's answer, for the client. `public` is the gateway's origin as the client knows it."""
    pairs = [(name.lower(), value) for name, value in raw_headers]
    dropped = _NOT_RETURNED | _connection_names(pairs)
    if status in {204, 304}:
        dropped |= {b"content-length"}
    return [
        (name, _location(value, upstream, public) if name == b"location" else value)
        for name, value in pairs
        if name not in dropped
    ]


def public_origin(scope: Any) -> str:
    """The gateway's own origin as this client wrote it."""
    host = header(scope, b"host") or b""
    return f"{'https' if scope['scheme'] in {'https', 'wss'} else 'http'}://{_text(host)}"


def header(scope: Any, name: bytes) -> bytes | None:
    """The first header of that lower-case name."""
    for found, value in scope["headers"]:
        if found == name:
            return bytes(value)
    return None


def _connection_names(headers: RawHeaders) -> frozenset[bytes]:
    """What ``Connection`` names is for this hop alone."""
    names = frozenset[bytes]()
    for name, value in headers:
        if name == b"connection":
            names |= frozenset(token.strip().lower() for token in value.split(b","))
    return names - {b"close", b"keep-alive"}


def _location(value: bytes, upstream: URL, public: str) -> bytes:
    """A redirect to ComfyUI's own address would lead around the gateway, or nowhere."""
    text = _text(value)
    parts = urlsplit(text)
    if parts.netloc and parts.netloc == upstream.raw_authority and parts.scheme in {"", upstream.scheme}:
        return _moved(text, public).encode()
    return value


def _moved(url: str, origin: str) -> str:
    """The same path, query and fragment on another origin."""
    parts = urlsplit(url)
    rest = parts._replace(scheme="", netloc="").geturl()
    return f"{origin}{rest if rest.startswith('/') else f'/{rest}'}"


def _text(value: bytes) -> str:
    # aiohttp sends headers as UTF-8: what is valid UTF-8 must be read as that to arrive as the same bytes.
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")
