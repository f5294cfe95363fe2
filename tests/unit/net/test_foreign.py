"""Ports of second legs, and what is not permitted. With real addresses: tests/netns/test_sockets.py."""

import socket
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import pytest

from ztunnel_trio.net import foreign
from ztunnel_trio.net.foreign import ForeignPorts, bind_foreign, half_of, read_half


def test_ours_are_the_ports_that_connect_takes_last() -> None:
    assert list(half_of(b"32768\t32773\n")) == [32769, 32771, 32773]
    assert list(half_of(b"1025 1029")) == [1026, 1028]


@pytest.mark.parametrize("text", [b"", b"what\tever", b"1 2 3", b"5 5"])
def test_a_range_that_says_nothing_has_no_half(text: bytes) -> None:
    assert not half_of(text)


def test_each_port_comes_again_after_all_others() -> None:
    ports = ForeignPorts(range(10, 20, 2))

    first = [ports.take() for _ in range(5)]

    assert sorted(first) == [10, 12, 14, 16, 18]
    assert [ports.take() for _ in range(5)] == first


def test_without_a_half_the_kernel_chooses() -> None:
    assert ForeignPorts(range(0)).take() == 0


def test_the_range_is_the_kernels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert read_half()
    monkeypatch.setattr(foreign, "PORT_RANGE", tmp_path / "nothing")
    assert not read_half()


@pytest.mark.parametrize("ip", [IPv4Address("192.0.2.1"), IPv6Address("2001:db8::1")])
def test_an_address_that_cannot_be_had_is_left_out_with_a_warning(
    ip: IPv4Address | IPv6Address, caplog: pytest.LogCaptureFixture
) -> None:
    family = socket.AF_INET if ip.version == 4 else socket.AF_INET6
    with socket.socket(family) as sock:
        bind_foreign(sock, ip, 40_001)
        bind_foreign(sock, ip, 0)
        assert sock.getsockname()[1] == 0
    assert [record.getMessage() for record in caplog.records] == [
        "failed to bind local addr: [Errno 99] Cannot assign requested address"
    ] * 2
