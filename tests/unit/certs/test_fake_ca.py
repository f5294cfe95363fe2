"""The stand-alone authority: one root for all who share its file."""

import socket
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trio
from cryptography import x509

from tests.fakes.trio_test import trio_test
from ztunnel_trio.certs.fake_ca import FakeCa
from ztunnel_trio.certs.signed import SignedCertificates
from ztunnel_trio.errors import ConfigError
from ztunnel_trio.model.certificate_key import CertificateKey
from ztunnel_trio.model.identity import SpiffeId
from ztunnel_trio.net.tls.contexts import TlsContexts
from ztunnel_trio.net.tls.handshake import accept_tls, connect_tls

SLEEP = SpiffeId("cluster.local", "default", "sleep")
NOW = datetime(2026, 5, 1, tzinfo=UTC)


def now() -> datetime:
    return NOW


@trio_test
async def test_it_signs_a_day_for_any_identity() -> None:
    ca = FakeCa.open(None, now)

    got = await SignedCertificates(ca.sign).fetch(CertificateKey(SLEEP))

    assert got.identity == SLEEP
    assert got.not_after == NOW + timedelta(hours=24)
    assert got.intermediates_der == ()
    leaf = x509.load_der_x509_certificate(got.leaf_der)
    leaf.verify_directly_issued_by(x509.load_der_x509_certificate(got.roots_der[0]))


def test_who_shares_the_file_shares_the_root_and_nobody_else_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "root.pem"

    first, second = FakeCa.open(str(path), now), FakeCa.open(str(path), now)

    assert first.root == second.root
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [one.name for one in tmp_path.iterdir()] == ["root.pem"]
    assert FakeCa.open(None, now).root != first.root


def test_a_file_that_is_no_root_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "root.pem"
    path.write_text("junk")

    with pytest.raises(ConfigError, match="fake CA root"):
        FakeCa.open(str(path), now)
    with pytest.raises(ConfigError, match="fake CA root"):
        FakeCa.open(str(tmp_path / "none" / "root.pem"), now)


@trio_test
async def test_a_workload_with_such_a_certificate_is_trusted_by_its_like() -> None:
    certificate = await SignedCertificates(FakeCa.open(None, lambda: datetime.now(UTC)).sign).fetch(
        CertificateKey(SLEEP)
    )
    contexts = TlsContexts()
    near, far = socket.socketpair()
    for sock in (near, far):
        sock.setblocking(False)

    async def accept() -> None:
        (await accept_tls(far, certificate, contexts=contexts)).tls.close()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(accept)
        tls, peer = await connect_tls(near, certificate, [SLEEP], contexts=contexts)
        tls.close()
    assert peer.identities == (SLEEP,)
