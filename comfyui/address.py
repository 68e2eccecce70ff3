"""The address of a ComfyUI server, the headers that it needs, and the certificates that it may show."""

from __future__ import annotations

import json
import re
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from yarl import URL

from comfyui.headers import may_be_set

_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]+")
_ALL = "*"
# The name before the address in `gpu-1=10.0.0.5:8188`.
_NAMED = re.compile(r"([A-Za-z0-9][A-Za-z0-9_.-]{0,63})=(?=.)")
_CREDENTIALS = re.compile(r"(?<=://).*@|^(?!\w+://).*@", re.DOTALL)
# yarl takes these into a host, where no resolver or certificate can have them.
_NOT_IN_HOST = re.compile(r"[\s=,;\x00-\x1f\x7f]")
# ComfyUI's own default.
_PORT = 8188


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """The address of one server.

    Attributes:
        url: the base URL, without a user and without a slash at the end.
        authorization: the header's value for the user and password of the address; "" if it has none. Secret.
        given_name: the operator's name for the server; "" if it has none.
    """

    url: URL
    authorization: str = field(default="", repr=False)
    given_name: str = ""

    @property
    def name(self) -> str:
        """The server's name in logs, metrics and jobs: the given one, or the address with its path, because two servers
        may stand behind one proxy.
        """
        return self.given_name or f"{self.url.host}:{self.url.port}{self.url.path.rstrip('/')}"


def parse_server_address(address: str) -> ServerAddress:
    """Parses ``host``, ``host:port`` or a URL, each optionally with a user and password, and with a name:
    ``gpu-1=host:port``.

    Raises:
        ValueError: with the reason, never with a password.
    """
    text = address.strip()
    named = _NAMED.match(text)
    if named is not None:
        text = text[named.end() :].strip()
    try:
        url = URL(text if "://" in text else f"http://{text}")
    except ValueError as error:
        raise ValueError(f"{_shown(text)!r}: {error}") from error
    if url.scheme not in {"http", "https"} or not url.host or _NOT_IN_HOST.search(url.host):
        raise ValueError(f"{_shown(text)!r} must be host:port or an http(s) URL")
    if "://" not in text and url.explicit_port is None:
        url = url.with_port(_PORT)
    authorization = aiohttp.encode_basic_auth(url.user, url.password or "") if url.user else ""
    return ServerAddress(
        url.with_user(None).with_path(url.path.rstrip("/")), authorization, named[1] if named is not None else ""
    )


def _shown(address: str) -> str:
    """The address without anything that may be a user and a password."""
    return _CREDENTIALS.sub("***@", address)


@dataclass(frozen=True, slots=True)
class ServerAccess:
    """The headers and the certificate check of one server.

    Attributes:
        headers: sent with every request and websocket, in place of a client's own of the same name. Secret.
        tls: None for the certificates that the system trusts.
    """

    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    tls: ssl.SSLContext | None = None


def parse_headers(text: str, addresses: Sequence[str]) -> dict[str, dict[str, str]]:
    """COMFYUI_HEADERS as the headers of each address.

    Lines of ``Name: value``, or JSON: ``{"Name": "value"}`` for all servers; ``{"host:port": {"Name": "value"}}`` for
    some of them, with ``*`` for all.

    Raises:
        ValueError: with the reason, never with a value.
    """
    found: dict[str, dict[str, str]] = {address: {} for address in addresses}
    for address, headers in _by_address(text, addresses).items():
        for name, value in headers.items():
            _check_header(name, value)
            for each in addresses if address == _ALL else _meant(address, addresses):
                found[each][name] = value
    return found


def parse_verify(text: str, addresses: Sequence[str]) -> dict[str, bool | Path]:
    """COMFYUI_TLS_VERIFY for each address: true, false, or a file of certificates; JSON by address, with ``*`` for all.

    Raises:
        ValueError: with the reason.
    """
    wanted: Mapping[str, Any] = _object(text) if text.lstrip().startswith("{") else {_ALL: text}
    _check_addresses(wanted, addresses)
    found: dict[str, bool | Path] = dict.fromkeys(addresses, True)
    # The value for one server wins over the value for all.
    for address, verify in sorted(wanted.items(), key=lambda pair: pair[0] != _ALL):
        for each in addresses if address == _ALL else _meant(address, addresses):
            found[each] = _verify(verify)
    return found


def tls_context(verify: bool | Path) -> ssl.SSLContext | None:
    """The value of `ServerAccess.tls`. Raises ValueError if a file cannot be used."""
    if verify is True:
        return None
    context = ssl.create_default_context()
    if verify is False:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return context
    try:
        context.load_verify_locations(cafile=verify)
    except ssl.SSLError as error:
        raise ValueError(f"{verify} has no certificates in PEM format") from error
    except OSError as error:
        raise ValueError(f"{verify}: {error.strerror}") from error
    return context


def _verify(value: Any) -> bool | Path:
    if isinstance(value, bool):
        return value
    if not isinstance(value, str) or not value.strip():
        raise ValueError("must be true, false or the path of a file with certificates")
    word = value.strip().lower()
    if word in {"true", "false", "1", "0", "yes", "no", "on", "off"}:
        return word in {"true", "1", "yes", "on"}
    return Path(value.strip())


def _by_address(text: str, addresses: Sequence[str]) -> dict[str, Mapping[str, Any]]:
    if not text.lstrip().startswith("{"):
        lines = [line.partition(":") for line in text.splitlines() if line.strip()]
        if not all(colon for _, colon, _ in lines):
            raise ValueError("must be lines of 'Name: value', or JSON")
        return {_ALL: {name.strip(): value.strip() for name, _, value in lines}}
    members = _object(text)
    of_all = {name: value for name, value in members.items() if not isinstance(value, dict)}
    of_one = {address: value for address, value in members.items() if isinstance(value, dict)}
    _check_addresses(of_one, addresses)
    return {_ALL: {**of_one.pop(_ALL, {}), **of_all}, **of_one}


def _object(text: str) -> dict[str, Any]:
    try:
        members = json.loads(text)
    except ValueError as error:
        raise ValueError("it begins with { but is not valid JSON") from error
    if not isinstance(members, dict):
        raise ValueError("must be a JSON object")
    return members


def _check_addresses(named: Mapping[str, Any], addresses: Sequence[str]) -> None:
    for address in named:
        if address != _ALL and not _meant(address, addresses):
            raise ValueError(f"{_shown(address)!r} is not an address of COMFYUI_SERVER_ADDRESS")


def _meant(address: str, addresses: Sequence[str]) -> list[str]:
    """The servers that an operator's text means: an address with its name, a name alone, or an address without it."""
    return [
        each
        for each in addresses
        if address in {each, _NAMED.sub("", each, count=1), parse_server_address(each).given_name} and address
    ]


def _check_header(name: str, value: Any) -> None:
    if not _TOKEN.fullmatch(name):
        raise ValueError(f"{name[:50]!r} is not a valid header name")
    if not may_be_set(name):
        raise ValueError(f"{name} must not be set, because the gateway sets it for each request")
    if not isinstance(value, str) or not _VALUE.fullmatch(value):
        raise ValueError(f"the value of {name} cannot be sent in a header")
