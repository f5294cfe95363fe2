"""An inbound connection while it is listed: it can be ended from outside at any time."""

import socket

import trio
from trio.testing import wait_all_tasks_blocked

from tests.fakes.cancellation import cancelled_everywhere_now
from tests.fakes.trio_test import trio_test
from tests.fakes.tunnels import tcp_pair
from tests.fakes.world import SERVER, SOURCE, World, at, world
from ztunnel_trio.model.address import IPAddress, SocketAddress
from ztunnel_trio.model.connection import Direction, InboundConnection
from ztunnel_trio.model.refusal import Reason, Refusal
from ztunnel_trio.net.relay import SocketEnd, pair_of
from ztunnel_trio.net.sockets import SocketFactory, SocketSettings
from ztunnel_trio.observe.access_log import ConnectionFacts
from ztunnel_trio.proxy.held import Held
from ztunnel_trio.proxy.registry import Hold, InboundKey, Registry

CLIENT, TARGET = at("127.0.0.2:1"), at("127.0.0.3:80")
CHANGED = Refusal(Reason.POLICY_CHANGE)


class Stuck(SocketFactory):
    """Sockets whose connection never comes about."""

    def connect_nowait(
        self, destination: SocketAddress, source: IPAddress | None = None
    ) -> tuple[socket.socket, bool]:
        return socket.socket(), False

    async def finish_connecting(self, sock: socket.socket) -> None:
        try:
            await trio.sleep_forever()
        finally:
            sock.close()


def held_in(it: World, registry: Registry) -> Held:
    facts = ConnectionFacts(direction=Direction.INBOUND, source=CLIENT, destination=TARGET)
    key = InboundKey(InboundConnection(source=CLIENT, destination=TARGET, identity=SOURCE.identity))
    held = Held(registry, key, Hold(SERVER), it.node.access.open(facts), set())
    held.begin()
    return held


@trio_test
async def test_one_that_dials_is_ended_at_once() -> None:
    async with world() as it:
        registry = Registry()
        held = held_in(it, registry)
        assert held.siblings == {held.hold}
        found = list[socket.socket | None]()

        async def dial() -> None:
            found.append(await held.dial(Stuck(None, SocketSettings()), TARGET, None, 10))

        with trio.fail_after(1):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(dial)
                await wait_all_tasks_blocked()
                registry.close(held.key, CHANGED)
        held.finish(None)

        assert found == [None]
        assert not registry.inbound
        assert not held.siblings
        assert it.lines.errors("inbound") == ["connection closed due to policy change"]


@trio_test
async def test_one_that_relays_is_ended_at_once() -> None:
    async with world() as it:
        registry = Registry()
        held = held_in(it, registry)
        (near, far), (there, app) = tcp_pair(), tcp_pair()
        with near, app:
            held.pair = pair_of(it.node.engine, SocketEnd(far), SocketEnd(there), held.record.traffic)
            with trio.fail_after(1):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(held.carry)
                    await wait_all_tasks_blocked()
                    registry.close(held.key, CHANGED)

            assert far.fileno() == there.fileno() == -1
            assert not registry.inbound
            assert it.lines.errors("inbound") == ["connection closed due to policy change"]


def test_one_cancelled_anywhere_is_finished() -> None:
    async def scenario() -> None:
        async with world() as it:
            registry = Registry()
            held = held_in(it, registry)
            near, far = tcp_pair()
            there, app = tcp_pair()
            held.pair = pair_of(it.node.engine, SocketEnd(far), SocketEnd(there), held.record.traffic)
            with near, app:
                near.shutdown(socket.SHUT_WR)
                app.shutdown(socket.SHUT_WR)
                try:
                    await held.carry()
                finally:
                    assert not registry.inbound
                    assert far.fileno() == there.fileno() == -1

    assert cancelled_everywhere_now(scenario, autojump=False) > 2
