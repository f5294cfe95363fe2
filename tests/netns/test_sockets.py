"""Sockets in real namespaces: marks, port sharing, transparency, spoofed sources, redirection. Needs root."""

import ctypes
import errno
import fcntl
import gc
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Final, TypeVar

import pytest
import trio

from ztunnel_trio.facts.linux import CLONE_NEWNET, IP_TRANSPARENT, SO_MARK, SOL_IP
from ztunnel_trio.model.address import IPAddress, SocketAddress
from ztunnel_trio.net.listener import Listener, original_destination
from ztunnel_trio.net.netns import THREAD_NETNS, Netns, check_privileges
from ztunnel_trio.net.sockets import BindFailed, SocketFactory, SocketSettings

T = TypeVar("T")

MARK: Final = 123
SETTINGS: Final = SocketSettings(mark=MARK)
ANYWHERE: Final = SocketAddress(IPv6Address("::"), 0)
SIOCGIFFLAGS: Final = 0x8913
SIOCSIFFLAGS: Final = 0x8914
IFF_UP: Final = 1


def in_thread(work: Callable[[], T]) -> T:
    """Run in a thread of its own, whose namespace nobody else shares."""
    results: list[T] = []
    failures: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:  # noqa: BLE001 carried to the caller
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]
    return results[0]


def new_namespace() -> Netns:
    """A fresh namespace with its loopback up; it lives as long as the descriptor."""

    def make() -> Netns:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        with socket.socket() as control:
            request = struct.pack("16sH14x", b"lo", 0)
            flags = struct.unpack("16xH14x", fcntl.ioctl(control, SIOCGIFFLAGS, request))[0]
            fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", flags | IFF_UP))
        return Netns.open(THREAD_NETNS)

    return in_thread(make)


def why_not() -> str | None:
    if os.geteuid() != 0:
        return "not root"
    try:
        new_namespace().close()
    except OSError as error:
        return f"no namespaces here: {error}"
    return None


@pytest.fixture(scope="module", autouse=True)
def _needs_namespaces() -> None:
    reason = why_not()
    if reason is not None and os.environ.get("REQUIRE_NETNS") == "1":  # noqa: TID251
        pytest.fail(f"REQUIRE_NETNS=1, but: {reason}")
    if reason is not None:
        pytest.skip(f"needs root and network namespaces: {reason}")


@pytest.fixture
def pod() -> Iterator[Netns]:
    netns = new_namespace()
    yield netns
    netns.close()


def mark_of(sock: socket.socket) -> int:
    return sock.getsockopt(socket.SOL_SOCKET, SO_MARK)


def reuses_port(sock: socket.socket) -> bool:
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT) != 0


def interfaces() -> set[str]:
    return {name for _, name in socket.if_nameindex()}


def test_a_namespace_is_seen_only_inside(pod: Netns) -> None:
    before = interfaces()
    with pod.inside():
        assert interfaces() == {"lo"}
        inside = Netns.own()
    assert interfaces() == before
    assert inside == pod
    assert inside != Netns.own()
    inside.close()


def test_an_error_inside_comes_out_at_home(pod: Netns) -> None:
    home = Netns.own()
    with pytest.raises(ZeroDivisionError), pod.inside():
        _ = 1 / 0
    back = Netns.own()
    assert back == home
    home.close()
    back.close()


def test_what_is_no_namespace_cannot_be_entered() -> None:
    wrong = Netns.open("/dev/null")
    ran = False
    with pytest.raises(OSError, match="Invalid argument"), wrong.inside():
        ran = True
    assert not ran
    wrong.close()


def test_the_process_ends_if_the_way_back_fails() -> None:
    script = """
import os
from ztunnel_trio.net import netns
from tests.netns.test_sockets import new_namespace
pod = new_namespace()
with pod.inside():
    os.close(netns._homes.home.fd)
print("still here")
"""
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=root, capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == -signal.SIGABRT
    assert "still here" not in done.stdout
    assert "cannot return to the proxy's own network namespace: [Errno 9] Bad file descriptor" in done.stderr


@pytest.mark.parametrize("reuse_port", [False, True])
def test_listeners_are_marked_and_share_ports_as_configured(pod: Netns, reuse_port: bool) -> None:
    factory = SocketFactory(pod, replace(SETTINGS, reuse_port=reuse_port))
    address = SocketAddress(IPv6Address("::"), 15008)

    listener = factory.listen_tcp(address)
    udp = factory.listen_udp(address)

    with listener.sock as tcp, udp:
        assert listener.address == address
        assert tcp.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR) == (not reuse_port)
        for sock in (tcp, udp):
            assert sock.getsockname()[:2] == ("::", 15008)
            assert mark_of(sock) == MARK
            assert reuses_port(sock) == reuse_port
            assert not os.get_blocking(sock.fileno())
            assert sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == 0


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_dialling_sockets_are_marked_and_never_shared(pod: Netns, family: socket.AddressFamily) -> None:
    factory = SocketFactory(pod, SETTINGS)
    with factory.tcp(family) as tcp, factory.udp(family) as udp:
        for sock in (tcp, udp):
            assert mark_of(sock) == MARK
            assert not reuses_port(sock)


def test_a_dedicated_listener_is_not_marked_but_a_dialling_socket_is() -> None:
    factory = SocketFactory(None, SETTINGS)
    with factory.listen_tcp(ANYWHERE).sock as listener, factory.tcp(socket.AF_INET) as dialling:
        assert mark_of(listener) == 0
        assert mark_of(dialling) == MARK


def test_two_proxies_listen_on_one_port_during_an_upgrade(pod: Netns) -> None:
    factory = SocketFactory(pod, SETTINGS)
    address = SocketAddress(IPv6Address("::"), 15001)
    with factory.listen_tcp(address).sock, factory.listen_tcp(address).sock, factory.listen_udp(address):
        factory.listen_udp(address).close()


def test_a_port_taken_by_another_process_is_told(pod: Netns) -> None:
    address = SocketAddress(IPv6Address("::"), 15008)
    with pod.inside():
        taken = socket.create_server(("::", 15008), family=socket.AF_INET6)
    with taken, pytest.raises(BindFailed) as caught:
        SocketFactory(pod, SETTINGS).listen_tcp(address)
    assert str(caught.value) == "failed to bind to address [::]:15008: Address already in use (os error 98)"


def test_a_wrong_descriptor_is_told_when_a_port_is_wanted() -> None:
    wrong = Netns.open("/dev/null")
    with pytest.raises(BindFailed, match=r"failed to bind to address \[::\]:0: Invalid argument"):
        SocketFactory(wrong, SETTINGS).listen_tcp(ANYWHERE)
    wrong.close()


@pytest.mark.parametrize(("asked", "got"), [(True, True), (False, False), (None, True)])
def test_transparency_is_tried_required_or_left_alone(pod: Netns, asked: bool | None, got: bool) -> None:
    listener = SocketFactory(pod, SETTINGS).listen_tcp(ANYWHERE, transparent=asked)
    with listener.sock as sock:
        assert listener.transparent is got
        assert sock.getsockopt(SOL_IP, IP_TRANSPARENT) == got


def test_ipv6_on_the_loopback_is_the_pods_own(pod: Netns) -> None:
    factory = SocketFactory(pod, SETTINGS)
    assert factory.has_ipv6_loopback()

    with pod.inside():
        Path("/proc/sys/net/ipv6/conf/lo/disable_ipv6").write_text("1")

    assert not factory.has_ipv6_loopback()
    assert SocketFactory(None, SETTINGS).has_ipv6_loopback()


@pytest.mark.parametrize("address", ["172.30.0.1", "fd00:1e::1"])
def test_an_address_is_the_pods_own_from_the_moment_it_is_there(pod: Netns, address: str) -> None:
    factory = SocketFactory(pod, SETTINGS)
    assert not factory.has_address(ip_address(address))

    with pod.inside():
        subprocess.run(["ip", "addr", "add", address, "dev", "lo"], check=True)

    assert factory.has_address(ip_address(address))
    assert not SocketFactory(None, SETTINGS).has_address(ip_address(address))


async def exchange(
    factory: SocketFactory, listening_on: IPAddress, destination: IPAddress, source: IPAddress | None
) -> IPAddress:
    """Dial a listener in the pod; the source address it saw."""
    listener = factory.listen_tcp(SocketAddress(listening_on, 0), transparent=True)
    target = SocketAddress(destination, listener.address.port)
    with listener.sock, trio.fail_after(5), await factory.connect(target, source) as dialled:
        assert mark_of(dialled) == MARK
        accepted = await listener.accept()
        with accepted.sock:
            assert mark_of(accepted.sock) == MARK, "inherited from the listener"
            assert accepted.sock.getsockopt(SOL_IP, IP_TRANSPARENT) == 1
            return accepted.peer.ip


V4_HERE, V6_HERE = IPv4Address("127.0.0.1"), IPv6Address("::1")


@pytest.mark.parametrize(
    ("destination", "source", "seen"),
    [
        (V4_HERE, None, V4_HERE),
        (V4_HERE, V4_HERE, V4_HERE),
        (V4_HERE, IPv4Address("127.0.0.9"), IPv4Address("127.0.0.9")),
        (V4_HERE, IPv6Address("::ffff:127.0.0.9"), IPv4Address("127.0.0.9")),
        (V6_HERE, None, V6_HERE),
        (V6_HERE, V6_HERE, V6_HERE),
    ],
)
def test_dialling_bears_the_source_that_was_asked_for(
    pod: Netns, destination: IPAddress, source: IPAddress | None, seen: IPAddress
) -> None:
    factory = SocketFactory(pod, SETTINGS)
    assert trio.run(exchange, factory, IPv6Address("::"), destination, source) == seen


@pytest.mark.parametrize(
    ("here", "source"), [("127.0.0.1", "127.0.0.9"), ("::1", "2001:db8::9")], ids=["IPv4", "IPv6"]
)
def test_second_legs_take_the_ports_that_clients_take_last(pod: Netns, here: str, source: str) -> None:
    """And, where those are used up for a client and a destination, the others, rather than none."""
    with pod.inside():
        Path("/proc/sys/net/ipv4/ip_local_port_range").write_text("40000 40005")
        if ":" in source:  # the way back to a client that is nowhere
            subprocess.run(f"ip route add local {source} dev lo".split(), check=True)
    factory = SocketFactory(pod, SETTINGS)

    async def main() -> None:
        with ExitStack() as open_sockets:
            open_sockets.callback(factory.close)

            async def dial(listener: Listener) -> int:
                sock = open_sockets.enter_context(await factory.connect(listener.address, ip_address(source)))
                accepted = await listener.accept()
                open_sockets.enter_context(accepted.sock)
                assert accepted.peer == SocketAddress(ip_address(source), sock.getsockname()[1])
                return accepted.peer.port

            one, other = (factory.listen_tcp(SocketAddress(ip_address(here), 0)) for _ in range(2))
            open_sockets.enter_context(one.sock)
            open_sockets.enter_context(other.sock)
            with trio.fail_after(5):
                assert {await dial(one) for _ in range(3)} == {40001, 40003, 40005}
                assert {await dial(one) for _ in range(2)} < {40000, 40002, 40004}
                assert {await dial(other) for _ in range(2)} < {40001, 40003, 40005}, "by destination"

    trio.run(main)


def redirect(pod: Netns, command: str, port: int, to: int) -> None:
    rule = f"{command} -w -t nat -A OUTPUT -p tcp"
    with pod.inside():  # a child process starts in the namespace of the thread that forks it
        subprocess.run(
            [*rule.split(), "--dport", str(port), "-j", "REDIRECT", "--to-ports", str(to)],
            check=True,
            capture_output=True,
        )


@pytest.mark.parametrize(
    ("command", "destination"), [("iptables", IPv4Address("127.0.0.7")), ("ip6tables", V6_HERE)]
)
def test_the_original_destination_is_the_one_before_redirection(
    pod: Netns, command: str, destination: IPAddress
) -> None:
    try:
        redirect(pod, command, 8080, 15001)
    except (OSError, subprocess.CalledProcessError) as error:
        if os.environ.get("REQUIRE_NETNS") == "1":  # noqa: TID251
            raise
        pytest.skip(f"no {command} here: {error}")
    factory = SocketFactory(pod, SETTINGS)

    async def main() -> SocketAddress:
        listener = factory.listen_tcp(SocketAddress(IPv6Address("::"), 15001))
        target = SocketAddress(destination, 8080)
        with listener.sock, trio.fail_after(5), await factory.connect(target):
            accepted = await listener.accept()
            with accepted.sock:
                return original_destination(accepted.sock)

    assert trio.run(main) == SocketAddress(destination, 8080)


def test_the_self_test_passes_for_root() -> None:
    check_privileges(MARK)
    check_privileges(None)


def test_the_self_test_names_the_missing_capability() -> None:
    """In a child without capabilities, both texts."""
    script = """
import os, sys
from ztunnel_trio.errors import ConfigError
from ztunnel_trio.net.netns import check_privileges
from ztunnel_trio.net import netns
os.setresuid(65534, 65534, 65534)
try:
    check_privileges(1337)
except ConfigError as error:
    print(error)
netns.Netns.inside = lambda self: __import__("contextlib").nullcontext()
try:
    check_privileges(1337)
except ConfigError as error:
    print(error)
"""
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=root, capture_output=True, text=True, timeout=30, check=True
    )
    refused = os.strerror(errno.EPERM)
    assert done.stdout.splitlines() == [
        f"failed to set netns: {refused}; is CAP_SYS_ADMIN missing?",
        f"failed to set socket mark: {refused}; is CAP_NET_ADMIN or CAP_NET_RAW missing?",
    ]


def test_a_namespace_lives_as_long_as_its_descriptor() -> None:
    pod = new_namespace()
    factory = SocketFactory(pod, SETTINGS)
    listener = factory.listen_tcp(ANYWHERE)
    pod.close()
    with listener.sock, pytest.raises(BindFailed, match="Bad file descriptor"):
        factory.listen_tcp(ANYWHERE)


def test_each_thread_returns_to_its_own_namespace(pod: Netns) -> None:
    """A lab's node lives in a thread whose own namespace is not the process's."""

    def work() -> bool:
        libc = ctypes.CDLL(None)
        assert libc.unshare(CLONE_NEWNET) == 0
        home = Netns.own()
        with pod.inside():
            pass
        back = Netns.own()
        same = back == home and back != pod
        home.close()
        back.close()
        return same

    assert in_thread(work)


def test_sockets_made_ahead_are_of_the_pod_and_end_with_it(pod: Netns) -> None:
    factory = SocketFactory(pod, SETTINGS)
    gc.collect()  # what earlier tests left open
    before = len(os.listdir("/dev/fd"))
    taken = [factory.tcp(socket.AF_INET) for _ in range(1 + 2 + 4 + 1)]
    assert len(os.listdir("/dev/fd")) == before + 1 + 2 + 4 + 8

    with factory.listen_tcp(SocketAddress(V4_HERE, 0)).sock as listening:
        for sock in taken:
            with sock:
                assert mark_of(sock) == MARK
                assert sock.connect_ex(listening.getsockname()) in (0, errno.EINPROGRESS), (
                    "the pod's loopback"
                )
    factory.close()
    assert len(os.listdir("/dev/fd")) == before
    pod.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        factory.tcp(socket.AF_INET)
