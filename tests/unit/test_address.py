"""Addresses of servers, read from settings."""

from __future__ import annotations

import pytest

from comfyui.address import parse_headers, parse_server_address


@pytest.mark.parametrize(
    ("address", "url", "name"),
    [
        ("127.0.0.1", "http://127.0.0.1:8188", "127.0.0.1:8188"),
        ("comfy:9000", "http://comfy:9000", "comfy:9000"),
        (" [::1]:9000 ", "http://[::1]:9000", "::1:9000"),
        ("https://comfy.example/", "https://comfy.example", "comfy.example:443"),
        ("http://u:p@comfy:1/base/", "http://comfy:1/base", "comfy:1/base"),
    ],
)
def test_an_address_has_a_base_url_and_a_name(address: str, url: str, name: str) -> None:
    server = parse_server_address(address)
    assert (str(server.url).rstrip("/"), server.name) == (url, name)


def test_the_password_of_an_address_is_only_in_its_header() -> None:
    server = parse_server_address("http://user:s3cret@comfy:1")
    assert server.authorization == "Basic dXNlcjpzM2NyZXQ="
    assert "s3cret" not in f"{server}"
    assert server.authorization not in f"{server}"


@pytest.mark.parametrize("address", ["", "ftp://x", "http://", "://x", "a b", "a b:1", "gpu 1=h:1", "-a=h:1"])
def test_an_invalid_address_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match="must be host:port or"):
        parse_server_address(address)


@pytest.mark.parametrize(
    "address",
    ["ftp://user:s3cret@host", "user:s3cret@", "http://user:s3cret@", "http://user:s3@cret@host:99999", "u:s3cret@h:x"],
)
def test_the_error_for_an_invalid_address_hides_the_password(address: str) -> None:
    with pytest.raises(ValueError, match=r"\*\*\*@") as refusal:
        parse_server_address(address)
    assert "cret" not in str(refusal.value)


def test_the_error_for_headers_of_an_unknown_address_hides_the_password() -> None:
    with pytest.raises(ValueError, match=r"\*\*\*@host") as refusal:
        parse_headers('{"http://user:s3cret@host": {"X-Key": "1"}}', ["other:1"])
    assert "s3cret" not in str(refusal.value)
