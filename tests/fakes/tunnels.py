"""Two ends of a tunnel over real TLS on loopback, and TCP connections to relay through it."""

import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import cache

import trio
import trustme

from ztunnel_trio.model.address import HostPort
from ztunnel_trio.model.ending import Ending
from ztunnel_trio.net.engine import Engine
from ztunnel_trio.net.relay import SocketEnd, relay
from ztunnel_trio.observe.words import ending_text, error_text
from ztunnel_trio.proxy.tunnel.client import ClientTunnel
from ztunnel_trio.proxy.tunnel.server import Serve, ServerTunnel, TunnelRequest
from ztunnel_trio.proxy.tunnel.settings import TunnelSettings
from ztunnel_trio.proxy.tunnel.stream import H2Failed


@dataclass(slots=True)
class Counted:
    """What a relay counts into."""

    to_destination: int = 0
    to_source: int = 0


@cache
def contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A client's and a server's context that trust each other."""
    authority = trustme.CA()
    leaf = authority.issue_cert("node.test")
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    leaf.configure_cert(server)
    server.num_tickets = 0
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(client)
    return client, server


def tcp_pair(host: str = "127.0.0.1") -> tuple[socket.socket, socket.socket]:
    """Two connected non-blocking TCP sockets: resets and half-closes are those of the kernel."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as listener:
        near = socket.create_connection(listener.getsockname()[:2])
        far, _ = listener.accept()
    for sock in (near, far):
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return near, far


async def tls_pair(host: str = "127.0.0.1") -> tuple[ssl.SSLSocket, ssl.SSLSocket]:
    """A client's and a server's end of an established TLS connection."""
    client_context, server_context = contexts()
    near, far = tcp_pair(host)
    client = client_context.wrap_socket(near, server_hostname="node.test", do_handshake_on_connect=False)
    server = server_context.wrap_socket(far, server_side=True, do_handshake_on_connect=False)
    with closing_on_failure(client, server):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_handshake, client)
            nursery.start_soon(_handshake, server)
    return client, server


async def _handshake(sock: ssl.SSLSocket) -> None:
    while True:
        try:
            sock.do_handshake()
            return
        except ssl.SSLWantReadError:
            await trio.lowlevel.wait_readable(sock)


@contextmanager
def closing_on_failure(*socks: socket.socket) -> Iterator[None]:
    """Close the sockets when the body raises."""
    try:
        yield
    except BaseException:
        for sock in socks:
            sock.close()
        raise


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what other tasks and pumps bring about, five seconds at most."""
    with trio.fail_after(5):
        while not condition():  # noqa: ASYNC110  # a test's patience
            await trio.sleep(0.001)


class App:
    """An application's end of a TCP connection, for tests that wait."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    async def send(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[self.sock.send(view) :]
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self.sock)

    async def receive(self, limit: int = 65_536) -> bytes:
        while True:
            try:
                return self.sock.recv(limit)
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self.sock)

    async def receive_exactly(self, count: int) -> bytes:
        got = bytearray()
        while len(got) < count:
            more = await self.receive(count - len(got))
            assert more, f"the end after {len(got)} of {count} bytes"
            got += more
        return bytes(got)

    async def receive_all(self) -> bytes:
        got = bytearray()
        while more := await self.receive(1 << 18):
            got += more
        return bytes(got)

    async def expect_reset(self) -> None:
        """Wait for the reset of the connection, behind whatever comes before it; an end of data is none."""
        try:
            await self.receive_all()
        except ConnectionResetError:
            return
        raise AssertionError("an end of data")

    def end(self) -> None:
        self.sock.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.sock.close()

    def close(self) -> None:
        self.sock.close()


class TwoHops:
    """A client tunnel, a server tunnel, and connections relayed through both."""

    def __init__(self, engine: Engine, nursery: trio.Nursery) -> None:
        self.engine = engine
        self.nursery = nursery
        self.client: ClientTunnel
        self.server: ServerTunnel
        self.results: list[tuple[str, Ending | H2Failed]] = []
        self.traffic: dict[str, Counted] = {}
        self._destinations: dict[str, socket.socket] = {}
        self._apps: list[socket.socket] = []

    async def start(self, settings: TunnelSettings, serve: Serve | None = None) -> None:
        near, far = await tls_pair()
        with closing_on_failure(near, far):
            self.server = ServerTunnel(self.engine, far, settings)
            self.client = ClientTunnel(self.engine, near, settings)
            await self.nursery.start(self.server.run, serve or self.serve)
            await self.nursery.start(self.client.run)

    async def serve(self, request: TunnelRequest) -> None:
        """Relay to the socket that `connection` left under the authority's name."""
        assert request.authority is not None
        sock = self._destinations.pop(request.authority, None)
        if sock is None:
            request.refuse(503)
            return
        try:
            stream = request.accept([(b"baggage", b"x=y")])
        except H2Failed as error:
            sock.close()
            self.results.append((f"in {request.authority}", error))
            return
        counted = self.traffic[f"in {request.authority}"] = Counted()
        ending = await relay(self.engine, stream, SocketEnd(sock), counted)
        self.results.append((f"in {request.authority}", ending))

    async def connection(self, name: str = "one") -> tuple[App, App]:
        """The applications' ends of a connection through both hops."""
        source, captured = tcp_pair()
        accepted, destination = tcp_pair()
        authority = HostPort(name, 80)
        self._destinations[str(authority)] = accepted
        self._apps += (source, destination)
        self.nursery.start_soon(self._outbound, captured, authority)
        return App(source), App(destination)

    async def _outbound(self, captured: socket.socket, authority: HostPort) -> None:
        with closing_on_failure(captured):
            try:
                stream = await self.client.open(authority, [(b"baggage", b"")])
            except H2Failed as error:
                captured.close()
                self.results.append((f"out {authority}", error))
                return
        counted = self.traffic[f"out {authority}"] = Counted()
        ending = await relay(self.engine, SocketEnd(captured), stream, counted)
        self.results.append((f"out {authority}", ending))

    def close(self) -> None:
        """Close what the applications left open."""
        for sock in (*self._apps, *self._destinations.values()):
            sock.close()
        self._destinations.clear()  # a request that comes now is refused

    async def result(self, name: str) -> str | None:
        """What the access line says of a relay, once it has ended."""
        await until(lambda: any(found == name for found, _ in self.results))
        ending = next(ending for found, ending in self.results if found == name)
        if isinstance(ending, H2Failed):
            return f"h2 failed: {ending_text(ending.ending)}"
        return error_text(ending)


@asynccontextmanager
async def two_hops(
    settings: TunnelSettings | None = None, *, in_front: bool = True, serve: Serve | None = None
) -> AsyncIterator[TwoHops]:
    """Both tunnels in one engine; all is cancelled at the end of the block."""
    async with trio.open_nursery() as services:
        engine = Engine(in_front=in_front)
        await services.start(engine.run)
        async with trio.open_nursery() as nursery:
            hops = TwoHops(engine, nursery)
            try:
                await hops.start(settings or TunnelSettings(), serve)
                yield hops
            finally:
                hops.close()
            nursery.cancel_scope.cancel()
        assert engine.registered == 0
        services.cancel_scope.cancel()


async def never_asked(request: TunnelRequest) -> None:
    """Serves nobody: no request may come."""
    raise AssertionError
