"""The sockets on which the server listens."""

from __future__ import annotations

import socket

import pytest

from comfyui.exceptions import SettingsError
from comfyui.settings import load
from comfyui.web.server.listening import bind, parse_listen, url_of
from config import Settings
from tests.support.running import needs_ipv6


def _urls(*hosts: str, port: int = 0) -> list[str]:
    sockets = bind(hosts, port)
    try:
        return [url_of(sock) for sock in sockets]
    finally:
        for sock in sockets:
            sock.close()


@needs_ipv6
def test_several_addresses_of_both_families_share_one_port() -> None:
    urls = _urls("127.0.0.1", "::1", "127.0.0.2")
    port = urls[0].rpartition(":")[2]
    assert urls == [f"http://127.0.0.1:{port}", f"http://[::1]:{port}", f"http://127.0.0.2:{port}"]
    assert int(port) > 0


@needs_ipv6
def test_all_addresses_of_both_families_can_be_given_together() -> None:
    urls = _urls("0.0.0.0", "::")
    port = urls[0].rpartition(":")[2]
    assert urls == [f"http://0.0.0.0:{port}", f"http://[::]:{port}"]


def test_a_host_name_stands_for_all_its_addresses() -> None:
    assert "http://127.0.0.1" in {url.rpartition(":")[0] for url in _urls("localhost")}


def test_a_port_in_use_is_named_and_no_socket_stays_open() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=rf"cannot listen on 127.0.0.1:{port}: Address already in use"):
            bind(["127.0.0.2", "127.0.0.1"], port)
    assert _urls("127.0.0.2", port=port) == [f"http://127.0.0.2:{port}"]


def test_an_address_of_another_machine_is_named() -> None:
    with pytest.raises(ValueError, match=r"cannot listen on 192.0.2.1:[0-9]+: Cannot assign requested address"):
        bind(["127.0.0.1", "192.0.2.1"], 0)


@pytest.mark.parametrize(
    ("value", "hosts"),
    [
        ("127.0.0.1", ("127.0.0.1",)),
        ("127.0.0.1, [::1]", ("127.0.0.1", "::1")),
        ("::, 0.0.0.0,::", ("::", "0.0.0.0")),
        ("fe80::1%eth0", ("fe80::1%eth0",)),
        ("localhost", ("localhost",)),
    ],
)
def test_the_setting_accepts_a_list_of_addresses(
    value: str, hosts: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SERVER_HOST", value)
    assert load(Settings).server_host == hosts
    assert parse_listen(hosts) == hosts


@pytest.mark.parametrize("value", ["127.0.0.1:80", "[::1]:80", "http://0.0.0.0", "", ",", "a b"])
def test_an_invalid_address_stops_the_start(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVER_HOST", value)
    with pytest.raises(SettingsError, match="SERVER_HOST"):
        load(Settings)
