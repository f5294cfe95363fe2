"""The matrix of ends: whatever ends a connection, whoever carries it, whatever its application does.

Every cell asks the same: the application is told by a reset, never by an end of data, within a second of the
proxy's knowing; so is the peer's half where the end is ours; there is one access line, with its reason;
nothing stays registered, open or counted. The clock is a fake one, TCP and TLS are the kernel's and
OpenSSL's, the peer is driven by hand (`tests/fakes/raw_peer.py`).
"""

import itertools
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import Enum

import pytest
import trio
import trio.testing

from tests.fakes.cancellation import open_descriptors
from tests.fakes.connections import outbound
from tests.fakes.raw_peer import RawPeer, SocketWire, StreamWire, Wire
from tests.fakes.trio_test import trio_test
from tests.fakes.tunnels import App, contexts, tcp_pair, tls_pair, until
from tests.fakes.world import Lines, captured, patient_clock
from ztunnel_trio.model.address import HostPort, SocketAddress
from ztunnel_trio.model.connection import Direction, InboundConnection
from ztunnel_trio.model.ending import PolicyChanged, Revoked
from ztunnel_trio.model.workload import Workload
from ztunnel_trio.net.engine import Engine
from ztunnel_trio.net.relay import Endpoint, SocketEnd, pair_of
from ztunnel_trio.net.tls.memory import MemoryTls
from ztunnel_trio.observe.access.record import AccessLog
from ztunnel_trio.observe.metrics import Metrics
from ztunnel_trio.proxy.registry import InboundEntry
from ztunnel_trio.proxy.tunnel.client import ClientTunnel
from ztunnel_trio.proxy.tunnel.server import ServerTunnel, TunnelRequest
from ztunnel_trio.proxy.tunnel.settings import TunnelSettings
from ztunnel_trio.wire.http2.codes import ErrorCode

SILENT_SECONDS = 30.0  # the interval of PING and the time its answer has
AUTHORITY = HostPort("app", 80)
SMALL = 16_384  # a socket's buffer: soon full


class Cause(Enum):
    """What ends the connection; the text is what its access line says, None: no error."""

    FIN = "io error: stream closed because of a broken pipe"
    CLOSE_NOTIFY = "io error: stream closed because of a broken pipe "
    RST = "io error: "
    TLS_ERROR = "io error: tls: "
    GOAWAY = "io error: connection error received: unspecific protocol error detected"
    SILENCE = "io error: ping timeout"
    STREAM_RESET = "io error: broken pipe"
    OUTER_LOST = "io error: stream closed because of a broken pipe  "
    APPLICATION_RESET = ""
    POLICY = "connection closed due to policy change"
    REVOKED = "connection closed: peer certificate revoked by CRL"
    DRAIN = "connection closed due to connection drain"
    POD_GONE = "connection closed: the pod is gone"


class Side(Enum):
    """Who carries it."""

    OUTBOUND = "outbound"
    INBOUND = "inbound"
    INNER = "inner tunnel of double HBONE"
    PLAIN_OUT = "plain text leaving"
    PLAIN_IN = "plain text entering"


class Doing(Enum):
    """What the application does."""

    IDLE = "nothing"
    READING = "only reads"
    WRITING = "only writes"
    BLOCKED = "waits to write, the window is used up"


PLAIN = {Side.PLAIN_OUT, Side.PLAIN_IN}
OURS = {Cause.POLICY, Cause.REVOKED, Cause.DRAIN, Cause.POD_GONE}
OF_TUNNELS = set(Cause) - {Cause.APPLICATION_RESET, Cause.POLICY, Cause.DRAIN, Cause.POD_GONE}


def impossible(cause: Cause, side: Side) -> str | None:
    """Why there is no such cell, whatever the application does."""
    if side in PLAIN and cause in OF_TUNNELS:
        return "plain text has no tunnel, no stream and no certificate"
    if cause is Cause.OUTER_LOST and side is not Side.INNER:
        return "there is no tunnel around it"
    if cause is Cause.POLICY and side not in (Side.INBOUND, Side.PLAIN_IN):
        return "policies are enforced where traffic enters"
    if cause is Cause.APPLICATION_RESET and side not in PLAIN:
        return "a reset of the far application is RST_STREAM CONNECT_ERROR: tests/unit/net/test_relay.py"
    return None


def cells() -> Iterator[object]:
    for cause, side, doing, host in itertools.product(Cause, Side, Doing, ("127.0.0.1", "::1")):
        if impossible(cause, side) is None:
            name = f"{cause.name}-{side.name}-{doing.name}-{'v6' if ':' in host else 'v4'}".lower()
            yield pytest.param(cause, side, doing, host, id=name)


def test_every_cell_is_run_or_has_a_reason() -> None:
    reasons = {impossible(cause, side) for cause in Cause for side in Side} - {None}
    assert len(reasons) == 4
    runnable = [(cause, side) for cause in Cause for side in Side if impossible(cause, side) is None]
    assert {cause for cause, _ in runnable} == set(Cause)
    assert {side for _, side in runnable} == set(Side)
    assert len(list(cells())) == 8 * len(runnable)


@dataclass(eq=False)
class Cell:
    """One connection under test: its application, its peer, and the handles to end it by."""

    app: App
    wire: Wire | None = None
    peer: RawPeer | None = None
    outer: RawPeer | None = None
    far: App | None = None  # of plain text
    tunnel: ClientTunnel | ServerTunnel | None = None
    entry: InboundEntry = field(
        default_factory=lambda: InboundEntry(
            InboundConnection(
                source=SocketAddress.parse("10.0.0.1:1"),
                destination=SocketAddress.parse("10.0.0.2:2"),
                identity=None,
            ),
            Workload(),
        )
    )
    connections: trio.CancelScope = field(default_factory=trio.CancelScope)
    pod: list[trio.CancelScope] = field(default_factory=list)
    is_over: trio.Event = field(default_factory=trio.Event)

    def in_pod(self) -> trio.CancelScope:
        """What ends with the pod."""
        self.pod.append(trio.CancelScope())
        return self.pod[-1]

    def end(self, cause: Cause) -> None:
        """Bring it about."""
        match cause:
            case Cause.FIN:
                self._wire.fin()
            case Cause.CLOSE_NOTIFY:
                self._wire.close_notify()
            case Cause.RST:
                self._wire.rst()
            case Cause.TLS_ERROR:
                self._wire.garble()
            case Cause.GOAWAY:
                self._peer.go_away(ErrorCode.PROTOCOL_ERROR)
            case Cause.SILENCE:
                self._peer.is_silent = True
            case Cause.STREAM_RESET:
                (stream_id,) = self._peer.requested or self._peer.answered
                self._peer.core.reset(stream_id, ErrorCode.CANCEL)
                self._peer.flush()
            case Cause.OUTER_LOST:
                assert self.outer is not None
                self.outer.wire.fin()
            case Cause.APPLICATION_RESET:
                assert self.far is not None
                self.far.reset()
            case Cause.POLICY:
                self.entry.end(PolicyChanged())
            case Cause.REVOKED:
                assert self.tunnel is not None
                self.tunnel.end(Revoked())
            case Cause.DRAIN:
                self.connections.deadline = trio.current_time()
            case Cause.POD_GONE:
                for scope in self.pod:
                    scope.cancel(reason="deleted")

    @property
    def _wire(self) -> Wire:
        assert self.wire is not None
        return self.wire

    @property
    def _peer(self) -> RawPeer:
        assert self.peer is not None
        return self.peer

    async def peer_is_told(self) -> None:
        """The peer's half knows that this was no end of data."""
        if self.far is not None:
            await self.far.expect_reset()
        while self.peer is not None and not self.peer.resets and not self.peer.ended.is_set():
            await self.peer.news()


@dataclass(eq=False)
class Stage:
    """What all cells stand on."""

    engine: Engine
    nursery: trio.Nursery
    access: AccessLog
    host: str
    can_credit: bool
    apps: list[App] = field(default_factory=list)
    peers: list[socket.socket] = field(default_factory=list)

    def pair(self) -> tuple[App, socket.socket]:
        """An application, and our end of its connection; soon full."""
        near, far = tcp_pair(self.host)
        for sock, option in itertools.product((near, far), (socket.SO_SNDBUF, socket.SO_RCVBUF)):
            sock.setsockopt(socket.SOL_SOCKET, option, SMALL)
        self.apps.append(App(near))
        return self.apps[-1], far

    def start(self, *tasks: Callable[[], Awaitable[object]]) -> None:
        for task in tasks:
            self.nursery.start_soon(task)

    async def carry(self, cell: Cell, client: Endpoint, upstream: Endpoint, direction: Direction) -> None:
        """As the proxy's handlers do: a record around a relay."""
        here, there = SocketAddress.parse("10.0.0.1:1"), SocketAddress.parse("10.0.0.2:2")
        try:
            with self.access.connection(here, there, direction) as record:
                record.open(outbound(direction=direction))
                pair = pair_of(self.engine, client, upstream, record.traffic)
                record.finish(await cell.entry.relay(pair))
        finally:
            cell.is_over.set()


async def plain(stage: Stage, direction: Direction) -> Cell:
    """Two applications, two sockets."""
    (app, ours), (far, dialled) = stage.pair(), stage.pair()
    cell = Cell(app, far=far)
    ends = SocketEnd(ours), SocketEnd(dialled)
    client, upstream = ends if direction is Direction.OUTBOUND else reversed(ends)

    async def run() -> None:
        with cell.in_pod(), cell.connections:
            await stage.carry(cell, client, upstream, direction)

    stage.start(run)
    return cell


async def client_side(stage: Stage, cell: Cell, tunnel: ClientTunnel, ours: socket.socket) -> None:
    """Open a stream on a tunnel and carry the application on it."""
    cell.tunnel = tunnel

    async def run() -> None:
        with cell.in_pod():
            async with trio.open_nursery() as nursery:
                await nursery.start(tunnel.run)
                stream = await tunnel.open(AUTHORITY, [])
                with cell.connections:
                    await stage.carry(cell, SocketEnd(ours), stream, Direction.OUTBOUND)
                tunnel.release_when_idle()

    stage.start(run)
    assert cell.peer is not None
    while not cell.peer.requested:
        await cell.peer.news()


async def outbound_cell(stage: Stage) -> Cell:
    app, ours = stage.pair()
    near, far = await tls_pair(stage.host)
    stage.peers.append(far)
    wire = SocketWire(far)
    cell = Cell(app, wire, RawPeer(wire, is_client=False, credits_bytes=stage.can_credit))
    stage.start(cell._peer.run)
    await client_side(stage, cell, ClientTunnel(stage.engine, near, TunnelSettings()), ours)
    return cell


async def inner_cell(stage: Stage) -> Cell:
    app, ours = stage.pair()
    near, far = await tls_pair(stage.host)
    stage.peers.append(far)
    outer_peer = RawPeer(SocketWire(far), is_client=False)
    outer = ClientTunnel(stage.engine, near, TunnelSettings())
    client_context, server_context = contexts()
    cell = Cell(app, outer=outer_peer)

    async def run_outer() -> None:
        with cell.in_pod():
            await outer.run()

    stage.start(outer_peer.run, run_outer)
    await until(lambda: outer.is_usable)
    stream = await outer.open(AUTHORITY, [])
    wire = StreamWire(outer_peer, stream.stream_id, server_context)
    memory = MemoryTls(stage.engine, stream, client_context, server_side=False, server_hostname="node.test")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wire.handshake)
        nursery.start_soon(memory.handshake)
    cell.wire, cell.peer = wire, RawPeer(wire, is_client=False, credits_bytes=stage.can_credit)
    stage.start(cell.peer.run)
    await client_side(stage, cell, ClientTunnel(stage.engine, memory, TunnelSettings()), ours)
    return cell


async def inbound_cell(stage: Stage) -> Cell:
    app, ours = stage.pair()
    near, far = await tls_pair(stage.host)
    stage.peers.append(near)
    wire = SocketWire(near)
    cell = Cell(app, wire, RawPeer(wire, is_client=True, credits_bytes=stage.can_credit))
    tunnel = cell.tunnel = ServerTunnel(stage.engine, far, TunnelSettings())

    async def serve(request: TunnelRequest) -> None:
        await stage.carry(cell, request.accept([]), SocketEnd(ours), Direction.INBOUND)

    async def run() -> None:
        with cell.in_pod(), cell.connections:
            await tunnel.run(serve)

    stage.start(run, cell._peer.run)
    cell._peer.core.open_stream(str(AUTHORITY), [])
    cell._peer.flush()
    while not cell._peer.answered:
        await cell._peer.news()
    return cell


async def cell_of(stage: Stage, side: Side) -> Cell:
    match side:
        case Side.OUTBOUND:
            return await outbound_cell(stage)
        case Side.INBOUND:
            return await inbound_cell(stage)
        case Side.INNER:
            return await inner_cell(stage)
        case Side.PLAIN_OUT:
            return await plain(stage, Direction.OUTBOUND)
        case Side.PLAIN_IN:
            return await plain(stage, Direction.INBOUND)


@asynccontextmanager
async def stage_of(host: str, *, can_credit: bool) -> AsyncIterator[tuple[Stage, Lines]]:
    before = open_descriptors()
    with captured() as lines:
        async with trio.open_nursery() as services:
            engine = Engine(in_front=False)
            await services.start(engine.run)
            metrics = Metrics(version="test", shared=True, dns=False, clock=lambda: 0.0)
            async with trio.open_nursery() as nursery:
                stage = Stage(engine, nursery, AccessLog(metrics, clock=trio.current_time), host, can_credit)
                yield stage, lines
                assert engine.registered == 0
                nursery.cancel_scope.cancel(reason="the test is over")
            services.cancel_scope.cancel(reason="the test is over")
        opened, closed = (f"istio_tcp_connections_{what}_total" for what in ("opened", "closed"))
        text = metrics.render().decode()
        assert text.count(opened + "{") == text.count(closed + "{") == 1
        for sock in (*stage.peers, *(app.sock for app in stage.apps)):
            sock.close()
    assert open_descriptors() == before


async def told(app: App, doing: Doing) -> None:
    """Do it, until the kernel says that the connection was reset; an end of data is a lie."""
    match doing:
        case Doing.IDLE:
            await trio.lowlevel.wait_readable(app.sock)
            with pytest.raises(ConnectionResetError):
                app.sock.recv(1, socket.MSG_PEEK)
        case Doing.READING:
            await app.expect_reset()
        case Doing.WRITING:
            with pytest.raises((ConnectionResetError, BrokenPipeError)):
                await write_slowly(app)
        case Doing.BLOCKED:
            with pytest.raises((ConnectionResetError, BrokenPipeError)):
                await app.send(bytes(1 << 24))


async def write_slowly(app: App) -> None:
    while True:
        await app.send(b"event\n")
        await trio.sleep(0.5)


async def until_blocked(app: App) -> None:
    """Write until everything on the way is full, and stays so."""
    full = 0
    while full < 3:
        try:
            app.sock.send(bytes(SMALL))
            full = 0
        except BlockingIOError:
            full += 1
        await trio.sleep(0.02)


@pytest.mark.parametrize(("cause", "side", "doing", "host"), list(cells()))
def test_an_end_is_told(cause: Cause, side: Side, doing: Doing, host: str) -> None:
    @trio_test(clock=patient_clock())
    async def main() -> None:
        async with stage_of(host, can_credit=doing is not Doing.BLOCKED) as (stage, lines):
            cell = await cell_of(stage, side)
            if doing is Doing.BLOCKED:
                await until_blocked(cell.app)
            began = trio.current_time()
            patience = 1.0 + (SILENT_SECONDS if cause is Cause.SILENCE else 0.0)
            with trio.fail_after(patience):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(told, cell.app, doing)
                    await trio.testing.wait_all_tasks_blocked()
                    cell.end(cause)
                    await cell.is_over.wait()
                    if cause in OURS:
                        await cell.peer_is_told()
            assert trio.current_time() - began <= patience
            (line,) = lines.complete
            if cause is Cause.APPLICATION_RESET:
                assert "error" not in line
            else:
                assert cause.value.strip() in line["error"]
            if cell.tunnel is not None:
                assert cell.tunnel.active_streams == 0
            for peer in (cell.peer, cell.outer):
                if peer is not None:
                    peer.wire.close_notify()
            await until(lambda: stage.engine.registered == 0)

    main()
