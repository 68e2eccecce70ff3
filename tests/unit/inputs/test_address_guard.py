"""The addresses that a caller's URL may lead to. Each refused address is a known way into a private network."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfyui.transport.address_guard import AddressPolicy


def permits(address: str, *allow: str, host: str = "example.com", port: int = 443) -> bool:
    return AddressPolicy(allow).permits(host, port, ipaddress.ip_address(address))


@pytest.mark.parametrize("address", ["93.184.216.34", "8.8.8.8", "2606:4700::1111", "172.32.0.1", "100.128.0.1"])
def test_public_addresses_are_permitted(address: str) -> None:
    assert permits(address)


@pytest.mark.parametrize(
    ("attack", "address"),
    [
        ("loopback", "127.0.0.1"),
        ("any loopback", "127.255.255.254"),
        ("this host", "0.0.0.0"),
        ("this network", "0.1.2.3"),
        ("private 10/8", "10.0.0.1"),
        ("private 172.16/12", "172.31.255.255"),
        ("private 192.168/16", "192.168.1.1"),
        ("carrier-grade NAT", "100.64.0.1"),
        ("link-local", "169.254.1.1"),
        ("metadata of AWS, GCP, Azure", "169.254.169.254"),
        ("credentials of ECS tasks", "169.254.170.2"),
        ("metadata of Alibaba", "100.100.100.200"),
        ("metadata of Oracle", "192.0.0.192"),
        ("Azure's host on a public address", "168.63.129.16"),
        ("benchmark network", "198.18.0.1"),
        ("documentation", "203.0.113.7"),
        ("multicast", "224.0.0.251"),
        ("reserved", "240.0.0.1"),
        ("broadcast", "255.255.255.255"),
        ("6to4 relay anycast", "192.88.99.1"),
        ("loopback v6", "::1"),
        ("unspecified v6", "::"),
        ("unique local", "fd12:3456::1"),
        ("metadata of AWS v6", "fd00:ec2::254"),
        ("link-local v6", "fe80::1"),
        ("link-local v6 with a zone", "fe80::1%eth0"),
        ("site-local v6", "fec0::1"),
        ("multicast v6", "ff02::1"),
        ("IPv4-mapped loopback", "::ffff:127.0.0.1"),
        ("IPv4-mapped metadata", "::ffff:169.254.169.254"),
        ("IPv4-compatible loopback", "::127.0.0.1"),
        ("IPv4-translated", "::ffff:0:127.0.0.1"),
        ("NAT64 of loopback", "64:ff9b::127.0.0.1"),
        ("NAT64 of a private address", "64:ff9b::10.0.0.1"),
        ("local NAT64", "64:ff9b:1::7f00:1"),
        ("6to4 of loopback", "2002:7f00:1::"),
        ("6to4 of metadata", "2002:a9fe:a9fe::1"),
        ("Teredo", "2001:0:7f00:1::"),
        ("documentation v6", "2001:db8::1"),
        ("discard prefix", "100::1"),
    ],
)
def test_an_internal_address_is_refused(attack: str, address: str) -> None:
    assert not permits(address), attack


def test_nat64_of_a_public_address_is_permitted_for_ipv6_only_clusters() -> None:
    assert permits("64:ff9b::8.8.8.8")


@given(st.ip_addresses())
def test_no_address_that_python_calls_private_is_permitted(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> None:
    if (address.is_private or address.is_loopback or address.is_link_local or address.is_multicast) and permits(
        str(address)
    ):
        assert address in ipaddress.ip_network("64:ff9b::/96")


@pytest.mark.parametrize(
    ("entry", "host", "port", "address", "permitted"),
    [
        ("10.0.0.0/8", "x", 80, "10.1.2.3", True),
        ("10.0.0.0/8", "x", 80, "::ffff:10.1.2.3", True),
        ("10.0.0.0/8", "x", 80, "192.168.0.1", False),
        ("10.0.0.5", "x", 80, "10.0.0.5", True),
        ("127.0.0.1:9000", "x", 9000, "127.0.0.1", True),
        ("127.0.0.1:9000", "x", 9001, "127.0.0.1", False),
        ("[::1]:9000", "x", 9000, "::1", True),
        ("::1", "x", 9000, "::1", True),
        ("Minio.Internal", "minio.internal.", 80, "10.0.0.1", True),
        ("minio.internal:9000", "minio.internal", 80, "10.0.0.1", False),
        ("*.internal", "a.b.internal", 80, "10.0.0.1", True),
        ("*.internal", "internal", 80, "10.0.0.1", False),
        ("*.internal", "evilinternal", 80, "10.0.0.1", False),
        ("internal", "a.internal", 80, "10.0.0.1", False),
        ("minio", "10.0.0.1", 80, "10.0.0.1", False),
        ("*", "x", 80, "10.0.0.1", True),
        ("*", "x", 80, "127.0.0.1", True),
        ("*", "x", 80, "::1", True),
        ("*", "x", 80, "169.254.169.254", False),
        ("*", "x", 80, "fd00:ec2::254", False),
        ("*", "x", 80, "2002:a9fe:a9fe::1", False),
        ("169.254.169.254", "x", 80, "169.254.169.254", True),
    ],
)
def test_the_list_permits_what_it_names_and_nothing_more(
    entry: str, host: str, port: int, address: str, permitted: bool
) -> None:
    assert permits(address, entry, host=host, port=port) is permitted


@pytest.mark.parametrize(
    "entry", ["", "http://example.com", "example.com/path", "a b", "10.0.0.0/99", "x:0", "x:99999"]
)
def test_an_invalid_entry_of_the_list_stops_the_start(entry: str) -> None:
    with pytest.raises(ValueError, match="not a host"):
        AddressPolicy([entry])
