"""Where a server is, out of what a setting says."""

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


def test_the_password_of_an_address_is_in_its_header_and_in_no_text() -> None:
    server = parse_server_address("http://user:s3cret@comfy:1")
    assert server.authorization == "Basic dXNlcjpzM2NyZXQ="
    assert "s3cret" not in f"{server}"
    assert server.authorization not in f"{server}"


@pytest.mark.parametrize("address", ["", "ftp://x", "http://", "://x", "a b", "a b:1", "gpu 1=h:1", "-a=h:1"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match="neither host:port nor"):
        parse_server_address(address)


@pytest.mark.parametrize(
    "address",
    ["ftp://user:s3cret@host", "user:s3cret@", "http://user:s3cret@", "http://user:s3@cret@host:99999", "u:s3cret@h:x"],
)
def test_a_refused_address_is_told_without_its_password(address: str) -> None:
    with pytest.raises(ValueError, match=r"\*\*\*@") as refusal:
        parse_server_address(address)
    assert "cret" not in str(refusal.value)


def test_headers_for_an_address_that_is_not_there_do_not_tell_its_password() -> None:
    with pytest.raises(ValueError, match=r"\*\*\*@host") as refusal:
        parse_headers('{"http://user:s3cret@host": {"X-Key": "1"}}', ["other:1"])
    assert "s3cret" not in str(refusal.value)
