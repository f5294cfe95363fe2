"""HBONE entering a pod: handshake, admission, policies, the application, and every way to end."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from ipaddress import ip_address

import pytest
import trio

from tests.fakes.cancellation import cancelled_everywhere_now
from tests.fakes.trio_test import trio_test
from tests.fakes.tunnels import App, tcp_pair, until
from tests.fakes.world import SERVER, SOURCE, World, at, certificate_of, deny_all, patient_clock, world
from ztunnel_trio.decide.admit import Admission
from ztunnel_trio.facts.network import HBONE_PORT
from ztunnel_trio.model.address import HboneTarget, HostPort, SocketAddress
from ztunnel_trio.model.ending import TlsRefused
from ztunnel_trio.model.service import Service
from ztunnel_trio.model.workload import ApplicationTunnel, AppTunnelProtocol
from ztunnel_trio.net.relay import SocketEnd, relay
from ztunnel_trio.net.sockets import SocketFactory, SocketSettings
from ztunnel_trio.net.tls.handshake import connect_tls
from ztunnel_trio.observe.metrics import Reporter, Traffic
from ztunnel_trio.proxy.inbound import Inbound
from ztunnel_trio.proxy.node import ProxySettings
from ztunnel_trio.proxy.tunnel.client import ClientTunnel
from ztunnel_trio.proxy.tunnel.settings import TunnelSettings
from ztunnel_trio.proxy.tunnel.stream import H2Failed, TunnelStream

HERE = SERVER.addresses[0]


async def tunnel_to(it: World, inbound: Inbound) -> ClientTunnel:
    """A peer's tunnel to a listening proxy; it runs in the world's nursery."""
    port = it.ports[SocketAddress(HERE, HBONE_PORT)]
    sock = await SocketFactory(None, SocketSettings()).connect(SocketAddress(HERE, port))
    tls, _ = await connect_tls(
        sock, certificate_of(SOURCE.identity), [SERVER.identity], contexts=it.node.contexts
    )
    tunnel = ClientTunnel(it.node.engine, tls, TunnelSettings())
    it.nursery.start_soon(tunnel.run)
    return tunnel


def speak(it: World, stream: TunnelStream) -> App:
    """An application at the peer's end of a stream."""
    near, far = tcp_pair()
    it.nursery.start_soon(relay, it.node.engine, SocketEnd(far), stream, Traffic())
    app = App(near)
    it.apps.append(app)
    return app


async def status_of(it: World, target: HboneTarget, headers: Sequence[tuple[bytes, bytes]] = ()) -> int:
    tunnel = await tunnel_to(it, await it.listen(SERVER))
    stream = await tunnel.open(target, headers)
    stream.close()
    return stream.status


async def ended(it: World, count: int) -> None:
    await until(lambda: len(it.lines.complete) >= count)


@trio_test
async def test_an_allowed_stream_reaches_the_application() -> None:
    async with world() as it:
        tunnel = await tunnel_to(it, await it.listen(SERVER))
        there = await it.echo(HERE)
        app = speak(it, await tunnel.open(there, []))
        await app.send(b"hello world")
        assert await app.receive_exactly(11) == b"hello world"
        assert it.metric("istio_tcp_sockets_open") == 1
        app.end()
        assert await app.receive() == b""
        await ended(it, 1)

        (line,) = it.lines.complete
        assert (line["dst.hbone_addr"], line["bytes_sent"], line["bytes_recv"]) == (str(there), "11", "11")
        assert line["src.identity"] == "spiffe://cluster.local/ns/ns/sa/source"
        assert "error" not in line


@trio_test
async def test_the_answer_carries_our_baggage_if_wanted() -> None:
    for wanted in (True, False):
        async with world(ProxySettings(response_baggage=wanted)) as it:
            tunnel = await tunnel_to(it, await it.listen(SERVER))
            stream = await tunnel.open(await it.echo(HERE), [])
            found = stream.headers.get("baggage", [])
            stream.close()
            assert ("k8s.cluster.name=Kubernetes" in str(found)) is wanted


WEB = Service(name="web", namespace="ns", hostname="web.ns.svc.cluster.local", ports={80: 0})


@pytest.mark.parametrize(
    ("target", "status", "error"),
    [
        (at("127.0.0.9:80"), 400, "ip mismatch: 127.0.0.3 != 127.0.0.9"),
        (HostPort("nowhere.example", 80), 503, "no service or workload for hostname: nowhere.example"),
        (
            HostPort(WEB.hostname, 81),
            503,
            "requested service web.ns.svc.cluster.local:81 found, but cannot resolve port",
        ),
        (SocketAddress(HERE, 15001), 503, "attempted recursive call to ourselves"),
    ],
)
def test_what_is_not_admitted_leaves_an_early_line(target: HboneTarget, status: int, error: str) -> None:
    @trio_test
    async def main() -> None:
        async with world() as it:
            it.put(WEB)
            assert await status_of(it, target) == status
            (line,) = it.lines.complete
            assert (line["message"], line["error"]) == ("connection failed", error)
            assert line["dst.addr"].startswith("127.0.0.3:")
            assert it.metric("istio_tcp_connections_opened_total") == 0

    main()


@trio_test
async def test_a_policy_refuses() -> None:
    async with world() as it:
        it.put(deny_all())
        assert await status_of(it, SocketAddress(HERE, 80)) == 401
        assert it.lines.errors() == [
            "connection closed due to policy rejection: explicitly denied by: ns/deny-all"
        ]
        assert 'response_flags="DENY"' in it.node.metrics.render().decode()


@trio_test
async def test_an_application_that_is_not_there() -> None:
    async with world() as it:
        assert await status_of(it, SocketAddress(HERE, 1)) == 503
        assert it.lines.errors() == ["connection failed: Connection refused (os error 111)"]


@trio_test(clock=patient_clock())
async def test_an_application_that_never_answers() -> None:
    async with world() as it:
        it.silent.add(HERE)
        assert await status_of(it, SocketAddress(HERE, 80)) == 503
        assert it.lines.errors() == ["connection failed: deadline has elapsed"]


@trio_test(clock=patient_clock())
async def test_a_client_that_gives_up_before_the_answer() -> None:
    async with world() as it:
        tunnel = await tunnel_to(it, await it.listen(SERVER))
        there = await it.echo(HERE)
        it.slow[HERE] = 1.0
        with trio.move_on_after(0.5):
            await tunnel.open(there, [])
        await trio.sleep(1)
        assert it.lines.errors() == ["h2 failed: stream error received: stream no longer needed"]
        assert 'response_flags="H2_HANDSHAKE_FAILURE"' in it.node.metrics.render().decode()
        assert tunnel.is_usable


@trio_test
async def test_a_policy_that_changes_resets_the_stream_and_keeps_the_tunnel() -> None:
    async with world() as it:
        inbound = await it.listen(SERVER)
        it.nursery.start_soon(inbound.registry.watch, it.node.live, SERVER.info, inbound.judge.allows)
        tunnel = await tunnel_to(it, inbound)
        there = await it.echo(HERE)
        app = speak(it, await tunnel.open(there, []))
        await app.send(b"x")
        assert await app.receive_exactly(1) == b"x"
        assert len(inbound.registry.inbound) == 1

        it.put(deny_all())
        with pytest.raises(ConnectionResetError):  # noqa: PT012  # a stream reset is passed on as a reset
            assert await app.receive() != b""
            raise ConnectionResetError
        await ended(it, 1)
        assert it.lines.errors() == ["connection closed due to policy change"]
        assert tunnel.is_usable
        assert inbound.registry.inbound == set()

        it.put(no_more=("ns/deny-all",))
        stream = await tunnel.open(there, [])
        assert stream.status == 200
        stream.close()


@dataclass(eq=False)
class FakeRevocations:
    """Revokes when told to."""

    refuse: TlsRefused | None = None
    registered: list[Callable[[], None]] = field(default_factory=list)

    def verdict(self, chain_der: Sequence[bytes], *, reporter: Reporter) -> TlsRefused | None:
        return self.refuse

    def register(
        self, chain: Sequence[bytes], on_revoked: Callable[[], None], *, reporter: Reporter
    ) -> "FakeRegistration":
        self.registered.append(on_revoked)
        return FakeRegistration(self, on_revoked)


@dataclass(eq=False)
class FakeRegistration:
    revocations: FakeRevocations
    on_revoked: Callable[[], None]

    def release(self) -> None:
        self.revocations.registered.remove(self.on_revoked)


@trio_test
async def test_a_revoked_peer_loses_tunnel_and_streams_with_that_reason() -> None:
    async with world() as it:
        revocations = FakeRevocations()
        it.node = replace(it.node, revocations=revocations)
        inbound = await it.listen(SERVER)
        tunnel = await tunnel_to(it, inbound)
        app = speak(it, await tunnel.open(await it.echo(HERE), []))
        await app.send(b"x")
        assert await app.receive_exactly(1) == b"x"

        revocations.registered[0]()
        await tunnel.ended.wait()
        await ended(it, 1)
        assert it.lines.errors() == ["connection closed: peer certificate revoked by CRL"]
        await until(lambda: revocations.registered == [])
        assert inbound.alive == set()


@trio_test
async def test_a_peer_that_floods_its_tunnel_is_cut_off_and_counted() -> None:
    async with world() as it:
        inbound = await it.listen(SERVER)
        tunnel = await tunnel_to(it, inbound)
        app = speak(it, await tunnel.open(await it.echo(HERE), []))
        await app.send(b"x")
        assert await app.receive_exactly(1) == b"x"
        for _ in range(1000):
            tunnel._connection.ping()

        await tunnel.ended.wait()
        await ended(it, 1)
        [error] = it.lines.errors()
        assert error is not None
        assert error.endswith("connection error detected: detected excessive load generating behavior")
        text = it.node.metrics.render().decode()
        assert 'ztunnel_trio_floods_cut_total{kind="ping"} 1' in text


@trio_test
async def test_a_drain_lets_streams_finish_and_takes_no_more() -> None:
    async with world() as it:
        tunnel = await tunnel_to(it, await it.listen(SERVER))
        app = speak(it, await tunnel.open(await it.echo(HERE), []))
        it.drain.request("SIGTERM")
        await until(lambda: not tunnel.is_usable)
        with pytest.raises(H2Failed):
            await tunnel.open(SocketAddress(HERE, 80), [])
        await app.send(b"still here")
        assert await app.receive_exactly(10) == b"still here"
        app.end()
        assert await app.receive() == b""
        await tunnel.ended.wait()
        assert it.lines.errors() == [None]


@trio_test
async def test_a_tunnel_that_comes_during_a_drain_is_still_told() -> None:
    async with world() as it:
        inbound = await it.listen(SERVER)
        it.drain.request("SIGTERM")
        tunnel = await tunnel_to(it, inbound)
        await tunnel.ended.wait()
        assert it.lines.complete == []


@trio_test
async def test_garbage_in_place_of_tls() -> None:
    async with world() as it:
        await it.listen(SERVER)
        app = await plain(it)
        await app.send(b"GET / HTTP/1.1\r\n\r\n")
        assert await app.receive_all_or_reset()
        await ended(it, 1)
        (line,) = it.lines.complete
        assert line["message"] == "connection failed"
        assert line["error"].startswith("tls handshake error: ")


class RawApp(App):
    async def receive_all_or_reset(self) -> bool:
        """Read to the end, however it comes."""
        with suppress(ConnectionResetError):
            await self.receive_all()
        return True


async def plain(it: World) -> RawApp:
    port = it.ports[SocketAddress(HERE, HBONE_PORT)]
    app = RawApp(await SocketFactory(None, SocketSettings()).connect(SocketAddress(HERE, port)))
    it.apps.append(app)
    return app


@trio_test(clock=patient_clock())
async def test_a_peer_that_says_nothing_is_let_go() -> None:
    async with world() as it:
        await it.listen(SERVER)
        app = await plain(it)
        began = trio.current_time()
        await app.receive_all_or_reset()
        assert trio.current_time() - began == pytest.approx(10, abs=0.5)
        assert it.lines.errors() == ["tls handshake error: deadline has elapsed"]


@trio_test(clock=patient_clock())
async def test_without_a_certificate_or_a_record_of_our_own() -> None:
    async with world() as it:
        await it.listen(SERVER)
        it.certificates.missing.add(SERVER.identity)
        await (await plain(it)).receive_all_or_reset()
        it.put(gone=(SERVER.uid,))
        await (await plain(it)).receive_all_or_reset()
        assert it.lines.errors() == [
            "signing error: no certificate for spiffe://cluster.local/ns/ns/sa/server",
            "signing error: workload is unknown: server.ns (server)",
        ]


@trio_test
async def test_a_proxy_header_comes_first_where_the_application_wants_it() -> None:
    async with world() as it:
        received = bytearray()
        listener = SocketFactory(None, SocketSettings()).listen_tcp(at("127.0.0.1:0"))

        async def application() -> None:
            accepted = await listener.accept()
            with accepted.sock:
                received.extend(await App(accepted.sock).receive_all())

        it.put(
            replace(
                SERVER,
                application_tunnel=ApplicationTunnel(AppTunnelProtocol.PROXY, listener.address.port),
            )
        )
        tunnel = await tunnel_to(it, await it.listen(SERVER))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(application)
            app = speak(it, await tunnel.open(at("10.1.2.3:80"), []))
            await app.send(b"payload")
            app.end()
        listener.close()
        await ended(it, 1)

        assert received.startswith(b"\r\n\r\n\0\r\nQUIT\n\x21\x11")
        assert ip_address("10.1.2.3").packed in received
        assert received.endswith(b"spiffe://cluster.local/ns/ns/sa/sourcepayload")
        assert it.lines.complete[0]["bytes_recv"] == "7"


def test_the_address_the_application_sees() -> None:
    @trio_test
    async def main() -> None:
        async with world() as it:
            inbound = it.inbound(SERVER)
            client = at("10.0.0.1:1")
            admission = _admission(SocketAddress(HERE, 80), is_loopback=False)
            assert inbound.spoof(client, admission) is None
            inbound.is_transparent = True
            assert inbound.spoof(client, admission) == client.ip
            loopback = _admission(at("127.0.0.1:80"), is_loopback=True)
            assert inbound.spoof(client, loopback) == ip_address("127.0.0.1")

    main()


def _admission(upstream: SocketAddress, *, is_loopback: bool) -> Admission:
    return Admission(
        authority=upstream,
        destination=upstream,
        upstream=upstream,
        is_loopback=is_loopback,
        tunnel_target=None,
        services=(),
    )


@trio_test
async def test_a_failure_of_ours_ends_one_stream_only() -> None:
    async with world() as it:
        inbound = await it.listen(SERVER)
        tunnel = await tunnel_to(it, inbound)
        there = await it.echo(HERE)
        app = speak(it, await tunnel.open(there, []))
        broken, inbound.judge = inbound.judge, None  # type: ignore[assignment]
        with pytest.raises(H2Failed):
            await tunnel.open(there, [])
        inbound.judge = broken
        await app.send(b"unharmed")
        assert await app.receive_exactly(8) == b"unharmed"
        (error,) = it.lines.errors()
        assert error is not None
        assert error.startswith("bug: AttributeError")


def test_a_stream_cancelled_anywhere_leaves_one_line_and_nothing_else() -> None:
    worlds: list[World] = []

    async def scenario() -> None:
        async with world() as it:
            worlds.append(it)
            tunnel = await tunnel_to(it, await it.listen(SERVER))
            try:
                stream = await tunnel.open(await it.echo(HERE), [])
                app = speak(it, stream)
                await app.send(b"x")
                assert await app.receive_exactly(1) == b"x"
            except (H2Failed, AssertionError):  # the peer was cancelled before us
                await trio.lowlevel.checkpoint_if_cancelled()
                raise
            app.end()
            assert await app.receive() == b""
            tunnel.release_when_idle()
            await tunnel.ended.wait()

    def check() -> None:
        if worlds:
            it = worlds.pop()
            assert len(it.lines.errors()) <= 1

    assert cancelled_everywhere_now(scenario, check=check, autojump=False) > 30
