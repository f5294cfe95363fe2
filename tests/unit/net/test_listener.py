"""Accepting: bursts, errors, ownership; and addresses of accepted sockets."""

import errno
import logging
import socket
from ipaddress import IPv4Address, IPv6Address
from itertools import pairwise

import pytest
import trio

from tests.fakes.cancellation import cancelled_everywhere_now
from tests.fakes.trio_test import trio_test
from ztunnel_trio.model.address import SocketAddress
from ztunnel_trio.net import listener as listening
from ztunnel_trio.net.engine import Engine
from ztunnel_trio.net.listener import (
    Listener,
    accept_into,
    local_address,
    original_destination,
    peer_address,
)
from ztunnel_trio.net.sockets import SocketFactory, SocketSettings

HERE = SocketAddress(IPv4Address("127.0.0.1"), 0)
FACTORY = SocketFactory(None, SocketSettings())


def dial(listener: Listener) -> socket.socket:
    host = "127.0.0.1" if listener.address.ip.version == 4 else "::1"
    return socket.create_connection((host, listener.address.port))


class Failing(socket.socket):
    """A listening socket whose next accepts fail with these errors."""

    def __init__(self, real: socket.socket, *errors: int) -> None:
        super().__init__(real.family, real.type, real.proto, fileno=real.detach())
        self.errors = list(errors)
        self.calls = 0

    def _accept(self) -> tuple[int, object]:
        self.calls += 1
        if self.errors:
            number = self.errors.pop(0)
            raise OSError(number, errno.errorcode[number])
        return super()._accept()  # type: ignore[misc, no-any-return]


def failing(*errors: int) -> tuple[Listener, Failing]:
    sock = Failing(FACTORY.listen_tcp(HERE).sock, *errors)
    return Listener(sock), sock


@trio_test
async def test_each_connection_gets_a_task_with_the_peers_address() -> None:
    served: list[tuple[SocketAddress, bool]] = []
    listener = FACTORY.listen_tcp(HERE)

    async def serve(sock: socket.socket, peer: SocketAddress) -> None:
        with sock:
            served.append((peer, sock.getblocking()))
            if len(served) == 3:
                accepting.cancel_scope.cancel()

    engine = Engine()
    with listener.sock, dial(listener) as a, dial(listener) as b, dial(listener) as c:
        async with trio.open_nursery() as connections, trio.open_nursery() as accepting:
            await accepting.start(engine.run)
            accepting.start_soon(accept_into, engine, listener, connections, serve)
        expected = [(SocketAddress(IPv4Address("127.0.0.1"), s.getsockname()[1]), False) for s in (a, b, c)]
    assert sorted(served) == sorted(expected)


@trio_test
async def test_an_ipv4_client_of_a_dual_stack_listener_is_known_by_its_ipv4_address() -> None:
    with FACTORY.listen_tcp(SocketAddress(IPv6Address("::"), 0)).sock as sock:
        listener = Listener(sock)
        with socket.create_connection(("127.0.0.1", listener.address.port)) as client:
            accepted = await listener.accept()
            with accepted.sock:
                assert accepted.peer == SocketAddress(IPv4Address("127.0.0.1"), client.getsockname()[1])
                assert peer_address(accepted.sock) == accepted.peer
                assert local_address(accepted.sock).ip == IPv4Address("127.0.0.1")
        with socket.create_connection(("::1", listener.address.port)):
            accepted = await listener.accept()
            with accepted.sock:
                assert accepted.peer.ip == IPv6Address("::1")


@pytest.mark.parametrize("keepalive", [False, True])
def test_accepted_sockets_inherit_what_the_listener_has(keepalive: bool) -> None:
    settings = SocketSettings(
        keepalive_idle_seconds=10, keepalive_interval_seconds=2, keepalive_probes=5, user_timeout=True
    )
    listener = SocketFactory(None, settings).listen_tcp(HERE, keepalive=keepalive)
    with listener.sock, dial(listener):
        accepted = trio.run(listener.accept)
        with accepted.sock as sock:
            tcp = socket.IPPROTO_TCP
            assert sock.getsockopt(tcp, socket.TCP_NODELAY)
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == keepalive
            assert not sock.get_inheritable()
            if keepalive:
                assert sock.getsockopt(tcp, socket.TCP_KEEPIDLE) == 10
                assert sock.getsockopt(tcp, socket.TCP_KEEPINTVL) == 2
                assert sock.getsockopt(tcp, socket.TCP_KEEPCNT) == 5
                assert sock.getsockopt(tcp, socket.TCP_USER_TIMEOUT) == 20_000


@trio_test
async def test_keepalive_can_be_asked_for_when_accepting_begins() -> None:
    listener = FACTORY.listen_tcp(HERE)
    seen: list[int] = []

    async def serve(sock: socket.socket, peer: SocketAddress) -> None:
        with sock:
            seen.append(sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE))
            nursery.cancel_scope.cancel()

    engine = Engine()
    async with trio.open_nursery() as nursery:
        await nursery.start(engine.run)
        nursery.start_soon(lambda: accept_into(engine, listener, nursery, serve, keepalive=True))
        await trio.testing.wait_all_tasks_blocked()
        dial(listener).close()
    listener.sock.close()
    assert seen == [1]


@pytest.mark.parametrize("number", [errno.ECONNABORTED, errno.EPROTO, errno.ENETDOWN])
def test_a_connection_that_was_aborted_is_logged_and_skipped(
    number: int, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        listener, sock = failing(number, number)
        with sock, dial(listener):
            began = trio.current_time()
            accepted = await listener.accept()
            accepted.sock.close()
            assert trio.current_time() == began, "nobody pauses for what a peer did"

    trio.run(main, clock=trio.testing.MockClock())

    assert [record.getMessage() for record in caplog.records] == [
        f"Failed TCP handshake {errno.errorcode[number]} (os error {number})"
    ] * 2


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EINVAL])
def test_without_descriptors_accepting_pauses_and_goes_on(number: int) -> None:
    async def main() -> None:
        listener, sock = failing(number, number)
        with sock, dial(listener):
            began = trio.current_time()
            accepted = await listener.accept()
            accepted.sock.close()
            assert trio.current_time() - began == pytest.approx(2 * listening.PAUSE_SECONDS)
            assert sock.calls == 3

    logging.getLogger("ztunnel::socket").disabled = True
    try:
        trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    finally:
        logging.getLogger("ztunnel::socket").disabled = False


class EachRound:
    """Notes at every round of the engine how often a socket was asked for a connection."""

    def __init__(self, engine: Engine, sock: Failing) -> None:
        self.engine, self.sock = engine, sock
        self.calls = [0]

    def ready(self, _flags: int) -> None:
        raise AssertionError

    def go_on(self) -> None:
        self.calls.append(self.sock.calls)
        self.engine.again(self)

    def broke(self, error: Exception) -> None:
        raise AssertionError from error


@trio_test
async def test_a_burst_lets_the_others_have_their_turn() -> None:
    listener, accepting = failing()
    served = 0
    engine = Engine()
    others = EachRound(engine, accepting)

    async def serve(sock: socket.socket, peer: SocketAddress) -> None:
        nonlocal served
        sock.close()
        served += 1
        if served == 70:
            nursery.cancel_scope.cancel()

    clients = [dial(listener) for _ in range(70)]
    engine.again(others)
    async with trio.open_nursery() as nursery:
        await nursery.start(engine.run)
        nursery.start_soon(accept_into, engine, listener, nursery, serve)
    for client in clients:
        client.close()
    accepting.close()
    assert served == 70
    assert max(after - before for before, after in pairwise(others.calls)) == listening.BURST


@trio_test
async def test_closing_a_listener_wakes_who_waits() -> None:
    listener = FACTORY.listen_tcp(HERE)
    async with trio.open_nursery() as nursery:

        async def wait() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await listener.accept()

        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        listener.close()
    listener.close()
    with pytest.raises(trio.ClosedResourceError):
        await listener.accept()


@trio_test
async def test_a_socket_nobody_can_own_any_more_is_closed() -> None:
    listener = FACTORY.listen_tcp(HERE)

    async def serve(sock: socket.socket, peer: SocketAddress) -> None:
        raise AssertionError("never started")

    engine = Engine()
    async with trio.open_nursery() as over:
        pass
    async with trio.open_nursery() as nursery:
        await nursery.start(engine.run)
        with listener.sock, dial(listener) as client:
            with pytest.raises(RuntimeError):
                await accept_into(engine, listener, over, serve)
            assert client.recv(1) == b""
        nursery.cancel_scope.cancel()


def test_accepting_cancelled_at_any_step_leaves_no_socket_open() -> None:
    async def scenario() -> None:
        listener = FACTORY.listen_tcp(HERE)

        async def serve(sock: socket.socket, peer: SocketAddress) -> None:
            with sock:
                await trio.lowlevel.wait_readable(sock)

        with listener.sock:
            clients = [dial(listener), dial(listener)]
            for client in clients:
                client.close()
            engine = Engine()
            async with trio.open_nursery() as connections:
                await connections.start(engine.run)
                connections.start_soon(accept_into, engine, listener, connections, serve)
                await trio.testing.wait_all_tasks_blocked()
                connections.cancel_scope.cancel()

    assert cancelled_everywhere_now(scenario) > 3


def test_without_redirection_the_original_destination_is_the_local_address(
    caplog: pytest.LogCaptureFixture,
) -> None:
    left, right = socket.socketpair(socket.AF_UNIX)
    left.close()
    right.close()
    listener = FACTORY.listen_tcp(HERE)
    with listener.sock, dial(listener):
        accepted = trio.run(listener.accept)
        with accepted.sock:
            assert original_destination(accepted.sock) == listener.address
    for record in caplog.records:
        assert record.getMessage().startswith("failed to read SO_ORIGINAL_DST: ")


def test_a_connection_that_is_gone_still_has_its_original_destination() -> None:
    listener = FACTORY.listen_tcp(HERE)
    with listener.sock:
        dial(listener).close()
        accepted = trio.run(listener.accept)
        with accepted.sock:
            accepted.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            assert original_destination(accepted.sock).port == listener.address.port


@pytest.mark.parametrize("in_front", [True, False])
@trio_test
async def test_the_engine_accepts_for_a_task(in_front: bool) -> None:
    engine = Engine(in_front=in_front)
    served: list[SocketAddress] = []
    listener = FACTORY.listen_tcp(HERE)

    async def serve(sock: socket.socket, peer: SocketAddress) -> None:
        with sock:
            served.append(peer)
            if len(served) == 3:
                nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        await nursery.start(engine.run)
        nursery.start_soon(accept_into, engine, listener, nursery, serve)
        with dial(listener):
            await trio.testing.wait_all_tasks_blocked()
            with dial(listener), dial(listener):
                await trio.sleep(5)
    listener.close()
    assert len(served) == 3
    assert engine.registered == 0


@trio_test(autojump=True)
async def test_the_engine_waits_out_a_lack_of_descriptors() -> None:
    engine = Engine()
    listener, sock = failing(errno.EMFILE, errno.ECONNABORTED)

    async def serve(accepted: socket.socket, peer: SocketAddress) -> None:
        with accepted:
            nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        await nursery.start(engine.run)
        nursery.start_soon(accept_into, engine, listener, nursery, serve)
        with dial(listener):
            await trio.sleep(5)
    listener.close()
    assert sock.calls == 4  # the last found nothing


@trio_test
async def test_the_engine_tells_of_a_listener_that_was_closed() -> None:
    engine = Engine()
    listener = FACTORY.listen_tcp(HERE)
    async with trio.open_nursery() as nursery:
        await nursery.start(engine.run)
        nursery.start_soon(close_soon, listener)
        with pytest.raises(trio.ClosedResourceError):
            await accept_into(engine, listener, nursery, unserved)
        with pytest.raises(trio.ClosedResourceError):
            await accept_into(engine, listener, nursery, unserved)
        assert engine.registered == 0
        nursery.cancel_scope.cancel()


async def unserved(sock: socket.socket, peer: SocketAddress) -> None:
    raise AssertionError


async def close_soon(listener: Listener) -> None:
    await trio.testing.wait_all_tasks_blocked()
    listener.close()
