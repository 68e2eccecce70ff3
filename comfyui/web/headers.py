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
_REWRITTEN = frozenset({b"origin", b"referer", b"sec-fetch-site"})
_OF_BROWSERS = _REWRITTEN | {b"content-length", b"accept-encoding"}
_OF_THE_HANDSHAKE = frozenset(
    {b"sec-websocket-key", b"sec-websocket-version", b"sec-websocket-extensions", b"sec-websocket-protocol"}
)
# The gateway's own server sets Date; a second one would not be HTTP.
_NOT_RETURNED = HOP_BY_HOP | {b"date"}


def request_headers(scope: Any, upstream: URL, authorization: str | None = None) -> list[tuple[bytes, bytes]]:
    """The headers of a client's request, for ComfyUI.

    ComfyUI refuses a browser whose ``Origin`` is not its ``Host`` (trap 14), and the newest one whatever is cross-site.
    The gateway has made that check against its own host (`comfyui.web.origins`), so ComfyUI is told its own address.
    What that address asks for as `authorization` takes the place of the client's.
    """
    dropped = _NOT_SENT | _connection_names(scope["headers"])
    if scope["type"] == "websocket":
        dropped |= _OF_THE_HANDSHAKE
    headers = [(b"Host", upstream.raw_authority.encode())]
    host = None
    forwarded = []
    for name, value in scope["headers"]:
        if name == b"host":
            host = value
        elif name == b"x-forwarded-for":
            forwarded.append(value)
        elif name in dropped or (name == b"authorization" and authorization is not None):
            continue
        elif name in _REWRITTEN:
            headers.append((name, _rewritten(name, value, str(upstream.origin()))))
        else:
            headers.append((name, value))
    if authorization is not None:
        headers.append((b"Authorization", authorization.encode()))
    if scope["client"]:
        forwarded.append(scope["client"][0].encode())
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
    if name == b"origin":
        return own.encode()
    if name == b"referer":
        return _moved(_text(value), own).encode()
    return value if value == b"none" else b"same-origin"


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
    return names


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


def text_headers(headers: RawHeaders) -> list[tuple[str, str]]:
    """For aiohttp, which sends them as UTF-8: what is valid UTF-8 is read as that, to arrive as the same bytes."""
    return [(name.decode("latin-1"), _text(value)) for name, value in headers]


def _text(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")
