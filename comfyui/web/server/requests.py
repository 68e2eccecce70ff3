"""Accepts only heads of requests that every server behind us reads in the same way. Pure."""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import Final

from comfyui import jsonio
from comfyui.exceptions import ComfyUIError, RequestHeadError, error_body_of, retry_after_s

RawHeaders = list[tuple[bytes, bytes]]

_HOST: Final = re.compile(rb"[!$%&'()*+\-.0-9:;=A-Z\[\]_a-z~\x80-\xff]*")
_ABSOLUTE: Final = re.compile(rb"https?://([^/?#]*)(?=[/?])", re.IGNORECASE)
# The longest number that the parser can count to has twenty digits.
_MAX_DIGITS: Final = 19


def checked_framing(method: bytes, version: str, target: bytes, headers: RawHeaders) -> bytes:
    """The header line with the length of the request's body; empty if there is no body.

    Args:
        headers: as they came, with names in lower case.

    Raises:
        RequestHeadError: the head could be read in more than one way.
    """
    hosts, lengths, codings = [], [], []
    for name, value in headers:
        if name == b"host":
            hosts.append(value)
        elif name == b"content-length":
            lengths.append(value)
        elif name == b"transfer-encoding":
            codings.append(value)
    if version not in {"1.0", "1.1"}:
        raise RequestHeadError(f"HTTP/{version} is not supported; use HTTP/1.1")
    if method == b"CONNECT":
        raise RequestHeadError("CONNECT is not supported: the gateway opens no tunnels")
    if len(hosts) > 1 or (not hosts and version == "1.1"):
        raise RequestHeadError("the request must have one Host header")
    if hosts and not _HOST.fullmatch(hosts[0]):
        raise RequestHeadError("the Host header must be a host, with or without a port")
    _check_target(target, hosts)
    if codings:
        if len(codings) > 1 or lengths or codings[0].lower() != b"chunked" or version == "1.0":
            raise RequestHeadError(
                "Transfer-Encoding must be 'chunked', given once, in HTTP/1.1 and without Content-Length"
            )
        return b"Transfer-Encoding: chunked\r\n"
    if not lengths:
        return b""
    if len(lengths) > 1 or not lengths[0].isdigit() or len(lengths[0]) > _MAX_DIGITS:
        raise RequestHeadError("Content-Length must be one number of bytes")
    return b"Content-Length: %b\r\n" % lengths[0] if int(lengths[0]) else b""


def _check_target(target: bytes, hosts: list[bytes]) -> None:
    if b"#" in target:
        raise RequestHeadError("the request target must not have a '#' fragment")
    if target.startswith(b"/"):
        return
    absolute = _ABSOLUTE.match(target)
    if absolute is None:
        raise RequestHeadError("the request target must be a path")
    if hosts != [absolute[1]]:
        raise RequestHeadError("the request target must name the same host as the Host header")


def origin_form(target: bytes) -> bytes:
    """A checked target as a path with its query, which all that follows expects."""
    absolute = _ABSOLUTE.match(target)
    if absolute is None:
        return target
    rest = target[absolute.end() :]
    return rest if rest.startswith(b"/") else b"/" + rest


def refusal_bytes(error: ComfyUIError) -> bytes:
    """The whole answer to a request that is refused before anything has looked at it; the connection ends with it."""
    body = jsonio.dumps(error_body_of(error))
    retry = f"Retry-After: {seconds}\r\n" if (seconds := retry_after_s(error)) is not None else ""
    head = (
        f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}\r\nContent-Type: application/json\r\n{retry}"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body
