"""Dialling a peer's proxy: every step that may fail, by its reason."""

import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import ip_address

import pytest
import trio
import trio.testing

from tests.fakes.cancellation import cancelled_everywhere_now
from tests.fakes.gateway import GATEWAY, ending_inner, open_gateway
from tests.fakes.trio_test import trio_test
from tests.fakes.tunnels import until
from tests.fakes.world import SERVER, SOURCE, World, patient_clock, world
from ztunnel_trio.facts.network import HBONE_PORT
from ztunnel_trio.model.address import HostPort, SocketAddress
from ztunnel_trio.model.ending import CertificateInvalid, Invalid, Revoked, TlsRefused
from ztunnel_trio.model.refusal import Reason, Refusal, Refused
from ztunnel_trio.net.tls.contexts import TlsContexts
from ztunnel_trio.net.tls.failures import TlsMisconfigured
from ztunnel_trio.observe.metrics import Reporter
from ztunnel_trio.observe.words import ending_text
from ztunnel_trio.proxy.dialler import Dialler
from ztunnel_trio.proxy.pool_choice import PoolKey
from ztunnel_trio.proxy.tunnel.client import ClientTunnel
from ztunnel_trio.proxy.tunnel.server import TunnelRequest

REVOKED = TlsRefused(CertificateInvalid(Invalid.REVOKED))
KEY = PoolKey(
    SOURCE.identity,
    (SERVER.identity,),
    SocketAddress(SERVER.addresses[0], HBONE_PORT),
    ip_address("127.0.0.2"),
)


def dialler_of(it: World) -> Dialler:
    return Dialler(it.node, SOURCE.info, it.sockets(SOURCE.addresses[0]))


def told(refusal: Refusal) -> tuple[Reason, str]:
    cause = refusal.cause
    return refusal.reason, refusal.subject if cause is None else ending_text(cause)


async def failure(it: World, key: PoolKey = KEY) -> tuple[Reason, str]:
    with pytest.raises(Refused) as caught:
        await dialler_of(it).tunnel(key, 10)
    return told(caught.value.refusal)


@trio_test
async def test_a_peer_that_is_whom_we_expect() -> None:
    async with world() as it:
        await it.listen(SERVER)
        tunnel, peer = await dialler_of(it).tunnel(KEY, 10)
        assert peer.identities == (SERVER.identity,)
        it.nursery.start_soon(tunnel.run)
        await trio.testing.wait_all_tasks_blocked()
        assert tunnel.is_usable


@trio_test
async def test_nobody_listens() -> None:
    async with world() as it:
        assert await failure(it) == (Reason.IO, "Connection refused (os error 111)")


@trio_test(clock=patient_clock())
async def test_nobody_answers() -> None:
    async with world() as it:
        it.silent.add(SERVER.addresses[0])
        assert await failure(it) == (Reason.HBONE_CONNECT_TIMEOUT, "deadline has elapsed")
        assert trio.current_time() == pytest.approx(10)


@trio_test(clock=patient_clock())
async def test_the_handshake_comes_to_nothing() -> None:
    async with world() as it:
        there = await it.echo(SERVER.addresses[0])  # says what it hears: no TLS
        it.ports[KEY.destination] = there.port
        reason, _ = await failure(it)
        assert reason is Reason.IO


@trio_test
async def test_an_identity_we_do_not_expect() -> None:
    async with world() as it:
        await it.listen(SERVER)
        reason, text = await failure(it, replace(KEY, expected=(SOURCE.identity,)))
        assert reason is Reason.IO
        assert "did not present the expected SAN (spiffe://cluster.local/ns/ns/sa/source)" in text


@trio_test
async def test_no_certificate_of_our_own() -> None:
    async with world() as it:
        it.certificates.missing.add(SOURCE.identity)
        reason, text = await failure(it)
        assert reason is Reason.IDENTITY
        assert text == f"no certificate for {SOURCE.identity}"


@trio_test(clock=patient_clock())
async def test_a_certificate_that_does_not_come_is_not_waited_for_for_ever() -> None:
    async with world() as it:
        it.certificates.late.add(SOURCE.identity)
        assert await failure(it) == (Reason.IDENTITY, "deadline has elapsed")
        assert trio.current_time() == pytest.approx(10)


class Misconfigured(TlsContexts):
    def client_context(self, certificate: object) -> ssl.SSLContext:
        raise TlsMisconfigured("certificate: key values mismatch")


@trio_test
async def test_a_certificate_that_cannot_be_used() -> None:
    async with world() as it:
        await it.listen(SERVER)
        it.node = replace(it.node, contexts=Misconfigured())
        assert await failure(it) == (Reason.TLS_CONFIG, "certificate: key values mismatch")


@dataclass(eq=False)
class FakeRevocations:
    """Refuses new peers with `refusal`; revokes those that are there when told to."""

    refusal: TlsRefused | None = None
    watched: list[Callable[[], None]] = field(default_factory=list)

    def verdict(self, chain_der: Sequence[bytes], *, reporter: Reporter) -> TlsRefused | None:
        return self.refusal

    def register(
        self, chain_der: Sequence[bytes], on_revoked: Callable[[], None], *, reporter: Reporter
    ) -> "Watched":
        assert reporter == "source"
        self.watched.append(on_revoked)
        return Watched(self, on_revoked)


@dataclass(eq=False)
class Watched:
    revocations: FakeRevocations
    on_revoked: Callable[[], None]

    def release(self) -> None:
        self.revocations.watched.remove(self.on_revoked)


@trio_test
async def test_a_peer_that_was_revoked_before() -> None:
    async with world() as it:
        await it.listen(SERVER)
        it.node = replace(it.node, revocations=FakeRevocations(REVOKED))
        assert await failure(it) == (Reason.IO, "invalid peer certificate: Revoked")


@trio_test
async def test_a_peer_that_is_revoked_later_takes_its_connections_along() -> None:
    async with world() as it:
        await it.listen(SERVER)
        revocations = FakeRevocations()
        it.node = replace(it.node, revocations=revocations)
        dialler = dialler_of(it)
        tunnel, peer = await dialler.tunnel(KEY, 10)
        async with trio.open_nursery() as nursery:

            async def live() -> None:
                with dialler.watch(tunnel, peer):
                    await tunnel.run()

            nursery.start_soon(live)
            await trio.testing.wait_all_tasks_blocked()
            (revoke,) = revocations.watched
            revoke()
        assert tunnel.loss == Revoked()
        assert revocations.watched == []


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"contexts": Misconfigured()}, (Reason.TLS_CONFIG, "certificate: key values mismatch")),
        ({"revocations": FakeRevocations(REVOKED)}, (Reason.IO, "invalid peer certificate: Revoked")),
    ],
)
@trio_test
async def test_an_inner_tunnel_that_comes_to_nothing_gives_the_outer_stream_back(
    change: dict[str, object], expected: tuple[Reason, str]
) -> None:
    async with world() as it:
        await open_gateway(it, ending_inner(refused, SERVER.identity))
        where = SocketAddress(GATEWAY.addresses[0], HBONE_PORT)
        dialler = dialler_of(it)
        tunnel, _ = await dialler.tunnel(replace(KEY, expected=(GATEWAY.identity,), destination=where), 10)
        it.nursery.start_soon(tunnel.run)
        outer = await tunnel.open(HostPort("far.example", 80), [])
        dialler.node = replace(it.node, **change)  # type: ignore[arg-type]

        with pytest.raises(Refused) as caught:
            await dialler.inner_tunnel(outer, await dialler.certificate(SOURCE.identity), (SERVER.identity,))

        assert told(caught.value.refusal) == expected
        await until(lambda: not tunnel.active_streams)
        assert tunnel.is_usable


async def refused(request: TunnelRequest) -> None:
    request.refuse(503)


def test_a_dial_cancelled_anywhere_leaves_nothing() -> None:
    async def scenario() -> None:
        async with world() as it:
            await it.listen(SERVER)
            tunnel, _ = await dialler_of(it).tunnel(KEY, 10)
            await run_once(tunnel)

    async def run_once(tunnel: ClientTunnel) -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(tunnel.run)
            nursery.cancel_scope.cancel()

    assert cancelled_everywhere_now(scenario, autojump=False) > 10
