"""Sockets in the process's own namespace: options, binding, dialling. Namespaces: tests/netns."""

import errno
import os
import socket
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address

import pytest
import trio

from tests.fakes.cancellation import cancelled_everywhere_now
from tests.fakes.trio_test import trio_test
from ztunnel_trio.model.address import SocketAddress
from ztunnel_trio.net import sockets
from ztunnel_trio.net.sockets import BindFailed, SocketFactory, SocketSettings

SETTINGS = SocketSettings()
FACTORY = SocketFactory(None, SETTINGS)
V4, V6 = IPv4Address("127.0.0.1"), IPv6Address("::1")
TCP = socket.IPPROTO_TCP


def test_keepalive_options() -> None:
    settings = SocketSettings(
        keepalive_idle_seconds=10, keepalive_interval_seconds=2, keepalive_probes=5, user_timeout=True
    )

    with SocketFactory(None, settings).tcp(socket.AF_INET) as sock:
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert sock.getsockopt(TCP, socket.TCP_KEEPIDLE) == 10
        assert sock.getsockopt(TCP, socket.TCP_KEEPINTVL) == 2
        assert sock.getsockopt(TCP, socket.TCP_KEEPCNT) == 5
        assert sock.getsockopt(TCP, socket.TCP_USER_TIMEOUT) == 20_000


def test_without_keepalive_there_are_no_probes_and_no_user_timeout() -> None:
    with SocketFactory(None, replace(SETTINGS, keepalive=False)).tcp(socket.AF_INET6) as sock:
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 0
        assert sock.getsockopt(TCP, socket.TCP_USER_TIMEOUT) == 0


def test_a_dialling_socket_is_prompt_non_blocking_and_not_shared() -> None:
    with FACTORY.tcp(socket.AF_INET) as sock:
        assert sock.getsockopt(TCP, socket.TCP_NODELAY) == 1
        assert not sock.getblocking()
        assert not os.get_blocking(sock.fileno())
        assert not sock.get_inheritable()
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT) == 0


def test_keepalive_values_the_kernel_refuses_cost_only_the_probes() -> None:
    with SocketFactory(None, replace(SETTINGS, keepalive_probes=1000)).tcp(socket.AF_INET) as sock:
        assert sock.getsockopt(TCP, socket.TCP_NODELAY) == 1


def test_values_beyond_what_the_kernel_takes_cost_only_themselves() -> None:
    settings = SocketSettings(keepalive_probes=2**32 - 1, user_timeout=True)

    with SocketFactory(None, settings).tcp(socket.AF_INET) as sock:
        assert sock.getsockopt(TCP, socket.TCP_KEEPIDLE) == 180
        assert sock.getsockopt(TCP, socket.TCP_USER_TIMEOUT) == 2**31 - 1


def test_a_dedicated_listener_reuses_addresses_not_ports() -> None:
    with FACTORY.listen_tcp(SocketAddress(V4, 0)).sock as sock:
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR) == 1
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT) == 0
        assert not os.get_blocking(sock.fileno())


def test_a_taken_port_is_told_with_its_address() -> None:
    with FACTORY.listen_tcp(SocketAddress(V4, 0)).sock as taken:
        address = SocketAddress(V4, taken.getsockname()[1])
        with pytest.raises(BindFailed) as caught:
            FACTORY.listen_tcp(address)

    assert str(caught.value) == f"failed to bind to address {address}: Address already in use (os error 98)"
    assert caught.value.errno == errno.EADDRINUSE


def test_a_taken_datagram_port_is_told_with_its_address() -> None:
    with FACTORY.listen_udp(SocketAddress(V6, 0)) as taken:
        address = SocketAddress(V6, taken.getsockname()[1])
        with pytest.raises(BindFailed, match="failed to bind to address"):
            FACTORY.listen_udp(address)


def test_the_wildcard_follows_whether_ipv6_is_on() -> None:
    assert str(FACTORY.wildcard(15001)) == "[::]:15001"
    assert str(SocketFactory(None, replace(SETTINGS, ipv6=False)).wildcard(15001)) == "0.0.0.0:15001"
    assert not SocketFactory(None, replace(SETTINGS, ipv6=False)).has_ipv6_loopback()


def test_a_datagram_socket_for_asking_is_non_blocking() -> None:
    with FACTORY.udp(socket.AF_INET) as sock:
        assert sock.type == socket.SOCK_DGRAM
        assert not os.get_blocking(sock.fileno())


@pytest.mark.parametrize("ip", [V4, V6])
def test_dialling_connects(ip: IPv4Address | IPv6Address) -> None:
    async def main() -> None:
        listener = FACTORY.listen_tcp(SocketAddress(ip, 0))
        with listener.sock, await FACTORY.connect(listener.address) as sock:
            accepted = await listener.accept()
            with accepted.sock:
                assert accepted.peer.port == sock.getsockname()[1]

    trio.run(main)


@trio_test
async def test_dialling_an_ipv4_mapped_address_uses_ipv4() -> None:
    listener = FACTORY.listen_tcp(SocketAddress(V4, 0))
    mapped = SocketAddress(IPv6Address("::ffff:127.0.0.1"), listener.address.port)
    with listener.sock, await FACTORY.connect(mapped, V4) as sock:
        assert sock.family == socket.AF_INET


@trio_test
async def test_a_refused_connection_is_an_os_error() -> None:
    with FACTORY.listen_tcp(SocketAddress(V4, 0)).sock as sock:
        port = sock.getsockname()[1]
    with pytest.raises(ConnectionRefusedError) as caught:
        await FACTORY.connect(SocketAddress(V4, port))
    assert caught.value.strerror == "Connection refused"


@trio_test
async def test_a_source_of_the_other_family_cannot_reach() -> None:
    with pytest.raises(OSError, match="Address family not supported by protocol"):
        await FACTORY.connect(SocketAddress(V4, 1), V6)


def test_dialling_cancelled_at_any_step_leaves_no_socket_open() -> None:
    async def scenario() -> None:
        listener = FACTORY.listen_tcp(SocketAddress(V4, 0))
        with listener.sock:
            (await FACTORY.connect(listener.address)).close()

    assert cancelled_everywhere_now(scenario) >= 1


@trio_test
async def test_a_deadline_ends_a_dial_that_nobody_answers() -> None:
    full = socket.socket()
    full.bind(("127.0.0.1", 0))
    full.listen(0)
    address = SocketAddress(V4, full.getsockname()[1])
    begun: list[socket.socket] = []

    async def dial_until_nobody_answers() -> None:
        while True:
            begun.append(await FACTORY.connect(address))

    with full:
        with trio.move_on_after(0.05) as scope:
            await dial_until_nobody_answers()
        for sock in begun:
            sock.close()
    assert scope.cancelled_caught
    assert len(begun) < 5


class Unprivileged(socket.socket):
    """A socket that refuses what needs a capability, as in a container without one."""

    def setsockopt(self, level: int, option: int, value: int) -> None:  # type: ignore[override]
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))


def test_a_port_that_cannot_be_shared_is_a_warning_for_tcp(caplog: pytest.LogCaptureFixture) -> None:
    with Unprivileged() as sock:
        sockets._share_port(sock)
    assert caplog.records[0].getMessage().startswith("setting set_reuseport failed: ")


def test_transparency_that_is_not_permitted_fails_only_where_it_is_required() -> None:
    with Unprivileged() as sock:
        assert not sockets._make_transparent(sock, required=False)
        with pytest.raises(PermissionError):
            sockets._make_transparent(sock, required=True)
