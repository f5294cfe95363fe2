"""The pool of outbound tunnels (ztunnel src/proxy/pool.rs and its tests), over TLS on loopback."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from ipaddress import ip_address

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests.fakes.trio_test import trio_test
from tests.fakes.tunnels import tls_pair, until
from ztunnel_trio.model.address import HostPort, SocketAddress
from ztunnel_trio.model.ending import Failure, NoAnswer, NotProcessed, SystemFailure
from ztunnel_trio.model.identity import SpiffeId
from ztunnel_trio.model.refusal import Reason, Refusal, Refused
from ztunnel_trio.net.engine import Engine, Once
from ztunnel_trio.net.tls.peer import TlsPeer
from ztunnel_trio.proxy.pool import Pool, StreamRequest
from ztunnel_trio.proxy.pool_choice import PoolKey, PoolSettings
from ztunnel_trio.proxy.tunnel.client import ClientTunnel
from ztunnel_trio.proxy.tunnel.server import ServerTunnel, TunnelRequest
from ztunnel_trio.proxy.tunnel.settings import TunnelSettings
from ztunnel_trio.proxy.tunnel.stream import TunnelStream

KEY = PoolKey(
    SpiffeId("cluster.local", "ns", "source"),
    (SpiffeId("cluster.local", "ns", "server"),),
    SocketAddress(ip_address("127.0.0.3"), 15008),
    ip_address("127.0.0.2"),
)
AUTHORITY = HostPort("server", 80)
PEER = TlsPeer(identities=KEY.expected, leaf_der=b"", chain_der=())


def key_of(number: int) -> PoolKey:
    """The key of another client address."""
    return replace(KEY, client=ip_address("127.1.0.0") + number)


@dataclass(eq=False)
class Servers:
    """The other ends of the pool's tunnels; counts those that came and those that are over."""

    engine: Engine
    nursery: trio.Nursery
    settings: TunnelSettings = field(default_factory=TunnelSettings)
    opened: int = 0
    closed: int = 0
    tunnels: list[ServerTunnel] = field(default_factory=list)
    scopes: list[trio.CancelScope] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    dial_seconds: float = 0.0
    failure: Exception | None = None
    answers: bool = True

    async def dial(self, key: PoolKey, connect_seconds: float) -> tuple[ClientTunnel, TlsPeer]:
        await trio.sleep(self.dial_seconds)
        if self.failure is not None:
            raise self.failure
        near, far = await tls_pair()
        server = ServerTunnel(self.engine, far, self.settings)
        self.opened += 1
        self.tunnels.append(server)
        self.scopes.append(trio.CancelScope())
        self.nursery.start_soon(self._run, server, self.scopes[-1])
        return ClientTunnel(self.engine, near, TunnelSettings()), PEER

    def cut(self, number: int) -> None:
        """End a server's connection without a word."""
        self.scopes[number].cancel(reason="cut")

    async def _run(self, server: ServerTunnel, scope: trio.CancelScope) -> None:
        try:
            with scope:
                await server.run(self._serve)
        finally:
            self.closed += 1

    async def _serve(self, request: TunnelRequest) -> None:
        self.requests.append(str(request.authority))
        if not self.answers:
            await trio.sleep_forever()
        stream = request.accept([])
        over = Once(self.engine)
        stream.attach(Discard(over))
        await over.wait()
        stream.end()


@dataclass(slots=True)
class Discard:
    """Takes whatever comes, until it ends."""

    over: Once

    def take(self, data: memoryview) -> int:
        return len(data)

    def ended(self) -> None:
        self.over.set()

    def failed(self, failure: Failure) -> None:
        self.over.set()

    def resume(self) -> None: ...


@contextmanager
def unwatched(tunnel: ClientTunnel, peer: TlsPeer) -> Iterator[None]:
    yield


@dataclass(eq=False)
class Both:
    """A pool and its servers; `drop` ends the pool as its owner does."""

    pool: Pool
    servers: Servers

    async def open(self, key: PoolKey = KEY) -> TunnelStream:
        now = trio.current_time()
        stream = await self.pool.stream(StreamRequest(key, AUTHORITY, [], 10, now + 1000), now)
        assert stream.status == 200
        return stream

    async def open_many(self, keys: list[PoolKey]) -> list[TunnelStream]:
        streams: list[TunnelStream] = []

        async def one(key: PoolKey) -> None:
            streams.append(await self.open(key))

        async with trio.open_nursery() as nursery:
            for key in keys:
                nursery.start_soon(one, key)
        return streams

    async def drop(self) -> None:
        self.pool.nursery.cancel_scope.cancel(reason="the pool is dropped")
        await self.closed(self.servers.opened)

    async def closed(self, count: int) -> None:
        await until(lambda: self.servers.closed == count)


@asynccontextmanager
async def pool(settings: PoolSettings | None = None) -> AsyncIterator[Both]:
    async with trio.open_nursery() as services:
        engine = Engine()
        await services.start(engine.run)
        async with trio.open_nursery() as nursery:
            servers = Servers(engine, nursery)
            async with trio.open_nursery() as tunnels:
                both = Both(Pool(tunnels, servers.dial, unwatched, settings or PoolSettings()), servers)
                yield both
                tunnels.cancel_scope.cancel(reason="the test is over")
            assert not both.pool.alive
            assert not both.pool.choices.pooled
            assert not both.pool.choices.dialling
            nursery.cancel_scope.cancel(reason="the test is over")
        assert engine.registered == 0
        services.cancel_scope.cancel(reason="the test is over")


def close_all(streams: list[TunnelStream]) -> None:
    for stream in streams:
        stream.close()


@trio_test
async def test_connections_are_reused() -> None:
    async with pool(PoolSettings(max_streams=3)) as both:
        close_all([await both.open(), await both.open()])
        close_all([await both.open(), await both.open()])

        assert (both.servers.opened, both.servers.closed) == (1, 0)
        await both.drop()
        assert both.servers.closed == 1


@trio_test
async def test_unique_keys_have_unique_connections() -> None:
    async with pool(PoolSettings(max_streams=3)) as both:
        await both.open_many([key_of(1), key_of(2)])

        assert both.servers.opened == 2
        await both.drop()
        assert both.servers.closed == 2


@pytest.mark.parametrize(
    "change",
    [
        {"identity": SpiffeId("cluster.local", "ns", "other")},
        {"expected": (*KEY.expected, KEY.identity)},
        {"expected": ()},
        {"destination": SocketAddress(KEY.destination.ip, 15009)},
        {"client": ip_address("127.0.0.9")},
    ],
)
def test_every_part_of_the_key_sets_tunnels_apart(change: dict[str, object]) -> None:
    async def main() -> None:
        async with pool() as both:
            await both.open()
            await both.open(replace(KEY, **change))  # type: ignore[arg-type]
            assert both.servers.opened == 2

    trio.run(main)


@trio_test
async def test_connection_limits() -> None:
    async with pool(PoolSettings(max_streams=2)) as both:
        first = await both.open_many([KEY] * 4)
        assert both.servers.opened == 2
        close_all(first)
        await both.closed(2)

        second = await both.open_many([KEY] * 5)
        assert both.servers.opened == 5
        close_all(second)
        await both.closed(4)
        await both.drop()
        assert both.servers.closed == 5


@trio_test
async def test_server_goaway() -> None:
    async with pool() as both:
        (await both.open()).close()
        both.servers.tunnels[0].drain()
        await until(lambda: both.servers.closed == 1)

        await both.open()
        assert both.servers.opened == 2


@trio_test
async def test_a_goaway_lets_the_streams_there_are_run_on() -> None:
    async with pool() as both:
        running = await both.open()
        both.servers.tunnels[0].drain()
        (entry,) = both.pool.choices.pooled.values()
        await until(lambda: not entry.tunnel.is_usable)

        await both.open()
        assert (both.servers.opened, both.servers.closed) == (2, 0)
        running.close()
        await both.closed(1)


@trio_test
async def test_single_pool() -> None:
    async with pool(PoolSettings(max_streams=1)) as both:
        streams = [await both.open(), await both.open()]
        assert both.servers.opened == 2
        close_all(streams)
        await both.closed(2)


@trio_test
async def test_stress_test_single_source() -> None:
    async with pool(PoolSettings(max_streams=101)) as both:
        await both.open_many([KEY] * 100)
        assert both.servers.opened == 1
        await both.drop()


@trio_test
async def test_stress_test_multiple_source() -> None:
    async with pool() as both:
        await both.open_many([key_of(number) for number in range(100)])
        assert both.servers.opened == 100
        await both.drop()
        assert both.servers.closed == 100


@trio_test
async def test_stress_test_many_client_many_sources() -> None:
    async with pool(PoolSettings(max_streams=101)) as both:
        await both.open_many([key_of(number % 3) for number in range(297)])
        assert both.servers.opened == 3


@trio_test(autojump=True)
async def test_idle_eviction() -> None:
    async with pool(PoolSettings(idle_seconds=0.1)) as both:
        began = trio.current_time()
        (await both.open()).close()
        await both.closed(1)

        assert 0.1 <= trio.current_time() - began < 0.5
        assert not both.pool.choices.pooled


@trio_test(autojump=True)
async def test_idle_eviction_counts_from_the_last_use() -> None:
    async with pool(PoolSettings(idle_seconds=10)) as both:
        for _ in range(4):
            (await both.open()).close()
            await trio.sleep(6)
        assert (both.servers.opened, both.servers.closed) == (1, 0)


@trio_test(autojump=True)
async def test_idle_eviction_with_persistent() -> None:
    async with pool(PoolSettings(max_streams=4, idle_seconds=0.1)) as both:
        long = await both.open()
        close_all([await both.open(), await both.open()])
        await trio.sleep(1)
        assert (both.servers.opened, both.servers.closed) == (1, 0)

        for _ in range(4):
            (await both.open()).close()
        await both.closed(1)
        assert both.servers.opened == 2

        long.close()
        await both.closed(2)


@trio_test
async def test_the_tunnels_used_longest_ago_go_when_there_are_too_many() -> None:
    async with pool(PoolSettings(max_idle_tunnels=3)) as both:
        for number in range(5):
            (await both.open(key_of(number))).close()
        await both.closed(2)

        assert list(both.pool.choices.pooled) == [key_of(2), key_of(3), key_of(4)]


@trio_test
async def test_a_tunnel_found_dead_is_replaced_unseen() -> None:
    async with pool() as both:
        (await both.open()).close()
        both.servers.cut(0)
        await both.closed(1)

        await both.open()
        assert both.servers.opened == 2


@trio_test
async def test_a_tunnel_that_dies_while_the_answer_is_due_is_replaced_unseen() -> None:
    async with pool() as both:
        (await both.open()).close()
        both.servers.answers = False
        async with trio.open_nursery() as nursery:
            nursery.start_soon(both.open)
            await until(lambda: len(both.servers.requests) == 2)
            both.servers.answers = True
            both.servers.cut(0)

        assert both.servers.opened == 2
        assert len(both.servers.requests) == 3


@trio_test
async def test_a_tunnel_dialled_for_the_stream_that_fails_is_a_failure() -> None:
    async with pool() as both:
        both.servers.answers = False
        with pytest.RaisesGroup(pytest.RaisesExc(Refused, match="h2")):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(both.open)
                await until(lambda: len(both.servers.requests) == 1)
                both.servers.cut(0)
        assert both.servers.opened == 1


@trio_test
async def test_streams_the_peer_refuses_find_another_tunnel() -> None:
    async with pool() as both:
        both.servers.settings = TunnelSettings(max_streams=1)
        first = await both.open()
        streams = await both.open_many([KEY] * 3)

        assert {stream.status for stream in streams} == {200}
        close_all([first, *streams])
        await both.closed(both.servers.opened - len(both.pool.choices.pooled))


@trio_test(autojump=True)
async def test_who_waits_for_a_dial_shares_its_failure() -> None:
    failures: list[Exception] = []

    async def one(both: Both) -> None:
        try:
            await both.open()
        except Refused as error:
            failures.append(error)

    async with pool() as both:
        both.servers.dial_seconds = 1
        both.servers.failure = Refused(Refusal(Reason.IO, cause=SystemFailure(111)))
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(one, both)

        assert trio.current_time() - began == pytest.approx(1)
        assert len({id(failure) for failure in failures}) == 5
        assert {failure.args for failure in failures} == {both.servers.failure.args}


@trio_test(autojump=True)
async def test_a_cancelled_dial_is_taken_over_by_who_waits() -> None:
    async with pool() as both:
        both.servers.dial_seconds = 1
        async with trio.open_nursery() as nursery:
            impatient = trio.CancelScope(deadline=trio.current_time() + 0.5)

            async def cancelled() -> None:
                with impatient:
                    await both.open()

            nursery.start_soon(cancelled)
            await wait_all_tasks_blocked()
            await both.open()

        assert impatient.cancelled_caught
        assert both.servers.opened == 1


@trio_test
async def test_dials_of_different_keys_do_not_wait_for_each_other() -> None:
    async with pool() as both:
        both.servers.dial_seconds = 60
        with trio.move_on_after(0.05):
            await both.open(key_of(1))
        both.servers.dial_seconds = 0

        await both.open(key_of(2))
        assert both.servers.opened == 1


@trio_test
async def test_a_request_that_was_not_processed_is_sent_again_on_a_new_tunnel() -> None:
    async with pool() as both:
        both.servers.settings = TunnelSettings(max_streams=0)  # refuses every stream, as it may
        async with trio.open_nursery() as nursery:
            nursery.start_soon(both.open)
            await until(lambda: both.servers.opened == 1)
            both.servers.settings = TunnelSettings()

        assert both.servers.opened == 2
        assert len(both.servers.requests) == 1


@trio_test
async def test_a_peer_that_processes_nothing_keeps_nobody_busy_for_ever() -> None:
    async with pool() as both:
        both.servers.settings = TunnelSettings(max_streams=0)
        with pytest.raises(Refused) as caught:
            await both.open()

        assert caught.value.refusal == Refusal(Reason.H2, cause=NotProcessed(7))
        assert both.servers.opened == 4


@trio_test(autojump=True)
async def test_an_answer_that_does_not_come_in_time_is_none() -> None:
    async with pool() as both:
        both.servers.answers = False
        now = trio.current_time()
        with pytest.raises(Refused) as caught:
            await both.pool.stream(StreamRequest(KEY, AUTHORITY, [], 10, now + 3), now)

        assert caught.value.refusal == Refusal(Reason.H2, cause=NoAnswer())
        assert trio.current_time() - now == pytest.approx(3)
