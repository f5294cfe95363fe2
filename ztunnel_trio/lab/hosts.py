"""Machines as network namespaces on one bridge: the fabric, and hosts plugged into it.

Namespaces are anonymous: a thread leaves the process's own with `unshare`, and the descriptor of what it
finds itself in is all that keeps the namespace alive. When the process ends, however it ends, they are gone
with every link and rule in them; nothing has to be cleaned up after a crash. Others reach one through
`/proc/<pid>/fd/<n>`.

All of one lab's traffic crosses the bridge, so `lab.capture` sees it in one place. Addresses: the fabric is
10.88.0.0/16 and fd88::/64, nodes are 10.88.1.N, pods 10.88.16.N and on, machines outside the mesh 10.88.3.N;
IPv6 has the same last two bytes.
"""

import os
import socket
import threading
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface, ip_address, ip_interface
from pathlib import Path
from typing import Final

import trio

from ztunnel_trio.facts.linux import CLONE_NEWNET, SO_MARK
from ztunnel_trio.facts.network import PROBE_SOURCE_V4, PROBE_SOURCE_V6
from ztunnel_trio.lab import privilege, redirect
from ztunnel_trio.lab.netlink import KernelLacks, Links
from ztunnel_trio.model.address import IPAddress, SocketAddress, canonical
from ztunnel_trio.net.netns import THREAD_NETNS, Netns

GATEWAY_V4: Final = IPv4Address("10.88.0.1")
GATEWAY_V6: Final = IPv6Address("fd88::1")
RESOLVER: Final = IPv4Address("10.88.0.53")
BRIDGE: Final = "br0"
UPLINK: Final = "eth0"

NODES: Final = IPv4Address("10.88.1.0")
OUTSIDERS: Final = IPv4Address("10.88.3.0")
PODS: Final = IPv4Address("10.88.16.0")

_PREFIX_V4, _PREFIX_V6 = 16, 64
_FABRIC_SYSCTLS: Final = {
    "net/ipv4/ip_forward": "1",
    "net/ipv6/conf/all/forwarding": "1",
    "net/ipv4/conf/all/promote_secondaries": "1",  # the others stay when one address goes
}
_HOST_SYSCTLS: Final = {
    "net/ipv6/conf/all/disable_ipv6": "0",
    "net/ipv6/conf/all/accept_dad": "0",
    "net/ipv6/conf/default/accept_dad": "0",
    "net/ipv6/conf/default/accept_ra": "0",
    "net/ipv4/conf/all/rp_filter": "0",
    "net/ipv4/conf/default/rp_filter": "0",
    # 500 connections at once must not be mistaken for a flood
    "net/ipv4/tcp_syncookies": "0",
    "net/core/somaxconn": "4096",
}


def new_netns() -> Netns:
    """An empty network namespace that lives as long as it is held.

    Raises:
        KernelLacks: no rights, or no network namespaces.
    """
    made: list[Netns | OSError] = []

    def leave() -> None:
        try:
            privilege.unshare(CLONE_NEWNET)
            made.append(Netns.open(THREAD_NETNS))
        except OSError as error:
            made.append(error)

    thread = threading.Thread(target=leave, name="new namespace")
    thread.start()
    thread.join()
    match made:
        case [Netns() as netns]:
            return netns
        case [OSError() as error]:
            raise KernelLacks(f"the kernel refuses a network namespace: {error.strerror}") from error
        case _:
            raise AssertionError(made)


@dataclass(slots=True, eq=False)
class Host:
    """A namespace with one address of each family on the fabric. Made by `Fabric.plug`."""

    name: str
    netns: Netns
    ip: IPv4Address
    ip6: IPv6Address
    port: str = ""  # the bridge's end of its cable
    captured: bool = False

    @property
    def path(self) -> str:
        """Where another process finds the namespace while this one lives."""
        return f"/proc/{os.getpid()}/fd/{self.netns.fileno()}"

    def make_socket(self, family: int = socket.AF_INET, kind: int = socket.SOCK_STREAM) -> socket.socket:
        """A blocking stdlib socket that belongs to this host, as any program in it would make.

        Raises:
            OSError: the kernel refuses.
        """
        with self.netns.inside():
            return socket.socket(family, kind | socket.SOCK_CLOEXEC)

    def listen(self, port: int, *, ip: IPAddress | None = None, backlog: int = 1024) -> trio.SocketListener:
        """Listen on one address, or on all of both families.

        Raises:
            OSError: the port is taken.
        """
        sock = self.listener(port, ip=ip, backlog=backlog)
        return trio.SocketListener(trio.socket.from_stdlib_socket(sock))

    def listener(self, port: int, *, ip: IPAddress | None = None, backlog: int = 1024) -> socket.socket:
        """As `listen`, for those who accept by other means.

        Raises:
            OSError: the port is taken.
        """
        address = IPv6Address("::") if ip is None else ip
        sock = self.make_socket(socket.AF_INET6 if address.version == 6 else socket.AF_INET)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if ip is None:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            sock.bind((str(address), port))
            sock.listen(backlog)
        except OSError:
            sock.close()
            raise
        return sock

    async def connect(
        self,
        address: SocketAddress,
        *,
        source: IPAddress | None = None,
        source_port: int = 0,
        mark: int | None = None,
    ) -> trio.SocketStream:
        """Dial as a program in this host; the caller sets the deadline. Proxies' sockets carry a `mark`.

        Redirection may give a connection another source port than its program sees, where that was used for
        another destination a moment ago. Whoever compares ports takes a `source_port` of its own (with
        `source`), outside of the kernel's range and not twice.

        Raises:
            OSError: as the kernel gave it.
        """
        sock = self.make_socket(socket.AF_INET6 if address.ip.version == 6 else socket.AF_INET)
        wrapped = trio.socket.from_stdlib_socket(sock)
        try:
            if mark is not None:
                sock.setsockopt(socket.SOL_SOCKET, SO_MARK, mark)
            if source is not None:
                await wrapped.bind((str(source), source_port))
            await wrapped.connect((str(address.ip), address.port))
        except BaseException:
            wrapped.close()
            raise
        return trio.SocketStream(wrapped)

    async def capture(self, *, dns: bool = True) -> None:
        """Redirect this host's traffic to a proxy, as istio-cni does in a pod (`lab.redirect`).

        Raises:
            KernelLacks: the kernel has no nftables or no policy routing.
        """
        await trio.to_thread.run_sync(self._capture, dns)
        self.captured = True

    def _capture(self, dns: bool) -> None:
        with self.netns.inside():
            redirect.capture(dns=dns)

    def close(self) -> None:
        """Let go of the namespace; it ends when nothing else holds it."""
        self.netns.close()


@dataclass(slots=True, eq=False)
class Fabric:
    """The bridge between all hosts, in a namespace of its own where istiod and the resolver live too."""

    host: Host
    _numbers: dict[IPv4Address, int] = field(default_factory=dict)
    _ports: int = 0

    @classmethod
    async def build(cls) -> "Fabric":
        """Make the namespace and the bridge.

        Raises:
            KernelLacks: naming what.
        """
        host = Host("fabric", new_netns(), GATEWAY_V4, GATEWAY_V6)
        try:
            await trio.to_thread.run_sync(_build_fabric, host)
        except BaseException:
            host.close()
            raise
        return cls(host)

    async def plug(self, name: str, block: IPv4Address, *, ip: IPv4Address | None = None) -> Host:
        """A new host with the next address of the block, or with one that nobody has any more.

        Raises:
            KernelLacks: naming what.
        """
        if ip is None:
            number = self._numbers.get(block, 9) + 1
            self._numbers[block] = number
            ip = block + number
        self._ports += 1
        ip6 = IPv6Address(int(IPv6Address("fd88::")) | int(ip) & 0xFFFF)
        host = Host(name, new_netns(), ip, ip6, port=f"port{self._ports}")
        try:
            await trio.to_thread.run_sync(_build_host, self.host, host)
        except BaseException:
            host.close()
            raise
        return host

    async def unplug(self, host: Host) -> None:
        """Remove a host's cable and let go of its namespace."""
        try:
            await trio.to_thread.run_sync(_cut_cable, self.host, host)
        finally:
            host.close()

    @asynccontextmanager
    async def unreachable(self) -> AsyncGenerator[None, None]:
        """For the body's time nobody reaches istiod's address: packets for it are lost without an answer.

        Hosts still reach each other and the resolver; connections to istiod stay as they are.
        """
        await trio.to_thread.run_sync(_change_gateway, self.host, False)
        try:
            yield
        finally:
            with trio.CancelScope(shield=True):  # a netlink call, which the kernel answers at once
                await trio.to_thread.run_sync(_change_gateway, self.host, True)

    def close(self) -> None:
        self.host.close()


def _build_fabric(fabric: Host) -> None:
    with fabric.netns.inside():
        _set(_FABRIC_SYSCTLS | _HOST_SYSCTLS)
        with Links() as links:
            links.up("lo")
            links.add_bridge(BRIDGE)
            for ip in (GATEWAY_V4, RESOLVER):
                links.add_address(IPv4Interface((ip, _PREFIX_V4)), BRIDGE)
            links.add_address(IPv6Interface((GATEWAY_V6, _PREFIX_V6)), BRIDGE)
            for probe in (PROBE_SOURCE_V4, PROBE_SOURCE_V6):  # kubelets probe pods from the fabric
                links.add_address(ip_interface(probe), BRIDGE)


def _build_host(fabric: Host, host: Host) -> None:
    with host.netns.inside():
        _set(_HOST_SYSCTLS)
    with fabric.netns.inside(), Links() as links:
        links.add_veth(host.port, peer=UPLINK, peer_netns=host.netns.fileno())
        links.enslave(host.port, BRIDGE)
        links.up(host.port)
    with host.netns.inside(), Links() as links:
        # Follows from the address, so that a new host with an old address is found by those who knew the old.
        links.set_mac(UPLINK, "02:00:" + host.ip.packed.hex(":"))
        links.up("lo")
        links.up(UPLINK)
        links.add_address(IPv4Interface((host.ip, _PREFIX_V4)), UPLINK)
        links.add_address(IPv6Interface((host.ip6, _PREFIX_V6)), UPLINK)
        links.add_default_route(GATEWAY_V4, UPLINK)
        links.add_default_route(GATEWAY_V6, UPLINK)


def _cut_cable(fabric: Host, host: Host) -> None:
    with fabric.netns.inside(), Links() as links:
        links.delete(host.port)


def _change_gateway(fabric: Host, is_there: bool) -> None:
    address = IPv4Interface((GATEWAY_V4, _PREFIX_V4))
    with fabric.netns.inside(), Links() as links:
        if is_there:
            links.add_address(address, BRIDGE)
        else:
            links.remove_address(address, BRIDGE)


def _set(values: dict[str, str]) -> None:
    """Write settings of the calling thread's namespace; one this kernel has not is left."""
    for name, value in values.items():
        path = Path("/proc/sys") / name
        if path.exists():
            try:
                path.write_text(value)
            except OSError as error:
                raise KernelLacks(f"the kernel refuses {name}={value}: {error.strerror}") from error


def peer_of(stream: trio.SocketStream) -> SocketAddress:
    """The other end's address, IPv4 as IPv4 also on a socket of both families."""
    return _address(stream.socket.getpeername())


def local_of(stream: trio.SocketStream) -> SocketAddress:
    """This end's address, likewise."""
    return _address(stream.socket.getsockname())


def _address(pair: tuple[str, int]) -> SocketAddress:
    return SocketAddress(canonical(ip_address(pair[0].partition("%")[0])), pair[1])
