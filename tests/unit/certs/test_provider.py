"""What `certs.provider` promises, of every provider there is."""

from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from tests.fakes.spire import (
    WEB,
    agent_at,
    broker_source,
    key_of,
    own_source,
    processes_source,
    provider_over,
    selectors_source,
    serving,
)
from tests.fakes.trio_test import trio_test
from ztunnel_trio.certs.fake_ca import FakeCa
from ztunnel_trio.certs.provider import CertificateProvider
from ztunnel_trio.certs.signed import SignedCertificates
from ztunnel_trio.certs.subscribed import SvidSource
from ztunnel_trio.errors import Unavailable
from ztunnel_trio.lab.pki import Authority
from ztunnel_trio.model.certificate_key import CertificateKey
from ztunnel_trio.model.identity import SpiffeId

STRANGER = SpiffeId("cluster.local", "default", "stranger")  # nobody has an entry for it, no CA signs for it
SOON_SECONDS = 5.0


@dataclass(frozen=True)
class Offered:
    """A provider that certifies `WEB` and nobody else, and what renews its certificates."""

    provider: CertificateProvider
    renew: Callable[[], None]


@asynccontextmanager
async def in_process_ca(_: Path) -> AsyncGenerator[Offered, None]:
    ca = FakeCa.open(None, lambda: datetime.now(UTC))

    async def sign(identity: SpiffeId, csr: str) -> list[str]:
        if identity == STRANGER:
            raise Unavailable(f"no certificate for {identity}")
        return list(await ca.sign(identity, csr))

    yield Offered(SignedCertificates(sign), lambda: None)


@asynccontextmanager
async def outside_ca(_: Path) -> AsyncGenerator[Offered, None]:
    """As istiod's: signs a request, answers a chain."""
    authority = Authority()

    async def sign(identity: SpiffeId, csr: str) -> list[str]:
        await trio.lowlevel.checkpoint()
        if identity == STRANGER:
            raise Unavailable("signing gRPC error (The caller does not have permission): no")
        key = x509.load_pem_x509_csr(csr.encode()).public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        return [authority.sign(key, [str(identity)], lifetime=60.0), authority.root_pem]

    yield Offered(SignedCertificates(sign), lambda: None)


def from_agent(
    make: Callable[[Path], SvidSource],
) -> Callable[[Path], AbstractAsyncContextManager[Offered]]:
    @asynccontextmanager
    async def offer(directory: Path) -> AsyncGenerator[Offered, None]:
        async with (
            agent_at(directory, spares_callers=make is broker_source) as agent,
            serving(provider_over(make(directory), first_state_seconds=0.5)) as provider,
        ):
            yield Offered(provider, agent.rotate)

    return offer


OFFERS = {
    "fake": in_process_ca,
    "istio_ca": outside_ca,
    "spire_delegated_selectors": from_agent(selectors_source),
    "spire_delegated_pid": from_agent(processes_source),
    "spiffe_broker": from_agent(broker_source),
    "spiffe_workload_api": from_agent(own_source),
}
each_provider = pytest.mark.parametrize("offer", OFFERS.values(), ids=list(OFFERS))
Offer = Callable[[Path], AbstractAsyncContextManager[Offered]]


def key(offered: Offered, identity: SpiffeId = WEB) -> CertificateKey:
    """A key as the keeper makes it: of a pod where pods are attested."""
    return key_of(identity) if offered.provider.attests_pods else CertificateKey(identity)


@each_provider
@trio_test
async def test_a_certificate_is_of_the_identity_that_was_asked_for(offer: Offer, tmp_path: Path) -> None:
    async with offer(tmp_path) as offered:
        found = await offered.provider.fetch(key(offered))

        assert found.identity == WEB
        assert found.not_before < datetime.now(UTC) < found.not_after
        assert found.roots_der


@each_provider
@trio_test
async def test_a_failure_is_soon_has_a_reason_and_is_no_other_keys(offer: Offer, tmp_path: Path) -> None:
    async with offer(tmp_path) as offered:
        with trio.fail_after(SOON_SECONDS), pytest.raises(Unavailable) as raised:
            await offered.provider.fetch(key(offered, STRANGER))

        assert str(raised.value)
        assert (await offered.provider.fetch(key(offered))).identity == WEB


@each_provider
@trio_test
async def test_changed_waits_until_there_is_something_else(offer: Offer, tmp_path: Path) -> None:
    async with offer(tmp_path) as offered:
        before = await offered.provider.fetch(key(offered))
        with trio.move_on_after(0.1) as waiting:
            await offered.provider.changed(key(offered))
        assert waiting.cancelled_caught

        offered.renew()
        if not isinstance(offered.provider, SignedCertificates):  # it pushes
            with trio.fail_after(SOON_SECONDS):
                await offered.provider.changed(key(offered))
        after = await offered.provider.fetch(key(offered))
        assert after.serial != before.serial


@each_provider
@trio_test
async def test_a_key_may_be_closed_at_any_time_and_be_asked_for_again(offer: Offer, tmp_path: Path) -> None:
    async with offer(tmp_path) as offered:
        offered.provider.close(key(offered))
        offered.provider.hurry(key(offered))
        await offered.provider.fetch(key(offered))
        offered.provider.close(key(offered))
        offered.provider.close(key(offered))

        assert (await offered.provider.fetch(key(offered))).identity == WEB


@each_provider
@trio_test
async def test_no_failure_shows_key_material(offer: Offer, tmp_path: Path) -> None:
    async with offer(tmp_path) as offered:
        certificate = await offered.provider.fetch(key(offered))
        with pytest.raises(Unavailable) as raised:
            await offered.provider.fetch(key(offered, STRANGER))

        secret = certificate.key_pem.decode().splitlines()[1]
        assert secret not in repr(certificate)
        assert secret not in repr(raised.value)
