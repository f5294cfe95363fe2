"""Workload certificates: what a CA's answer may look like and what each wrong one is called."""

import base64
from datetime import UTC, datetime, timedelta

import pytest

from tests.fakes.pki import Authority, new_key_pem
from ztunnel_trio.errors import PeerBrokeProtocol
from ztunnel_trio.model.certificate import parse_chain, pem_blocks, root_certificates, to_pem
from ztunnel_trio.model.identity import SpiffeId

SLEEP = SpiffeId("cluster.local", "default", "sleep")
NOW = datetime(2026, 5, 1, tzinfo=UTC)


def test_a_chain_has_its_leaf_first_and_its_roots_last() -> None:
    root = Authority.root("root")
    istiod = root.intermediate("istiod")
    leaf, key = istiod.leaf(SLEEP, NOW, NOW + timedelta(hours=24))

    got = parse_chain(SLEEP, [leaf, istiod.pem, root.pem], key, check_identity=True)

    assert got.identity == SLEEP
    assert (got.intermediates_der, got.roots_der) == ((istiod.der,), (root.der,))
    assert (got.not_before, got.not_after) == (NOW, NOW + timedelta(hours=24))
    assert got.chain_pem().decode() == leaf + istiod.pem
    assert "PRIVATE" not in repr(got)


def test_every_root_of_the_last_element_counts_and_only_the_first_of_each_intermediate() -> None:
    old, new = Authority.root("same"), Authority.root("same")
    istiod = new.intermediate("istiod")
    leaf, key = istiod.leaf(SLEEP, NOW, NOW + timedelta(hours=24))

    got = parse_chain(SLEEP, [leaf, istiod.pem + old.pem, old.pem + new.pem], key, check_identity=True)

    assert got.intermediates_der == (istiod.der,)
    assert got.roots_der == (old.der, new.der)


def test_an_expired_certificate_is_still_an_answer() -> None:
    root = Authority.root("root")
    leaf, key = root.leaf(SLEEP, NOW, NOW)

    got = parse_chain(SLEEP, [leaf, root.pem], key, check_identity=True)

    assert got.not_after == NOW


def test_wrong_answers_are_called_by_the_reference_names() -> None:
    root = Authority.root("root")
    other = SpiffeId("cluster.local", "default", "other")
    leaf, key = root.leaf(SLEEP, NOW, NOW + timedelta(hours=1))
    stranger, _ = root.leaf(other, NOW, NOW + timedelta(hours=1))
    cases: list[tuple[list[str], bytes, str]] = [
        ([], key, f"chain returned from CA is empty for: {SLEEP}"),
        (["junk", root.pem], key, "failed to create CSR: certificate: no certificate"),
        ([key.decode(), root.pem], key, "failed to create CSR: certificate: no certificate"),
        ([leaf], key, "failed to create CSR: invalid root certificate: no root certificate present"),
        ([leaf, ""], key, "failed to create CSR: invalid root certificate: no root certificate present"),
        (
            [leaf, key.decode()],
            key,
            "failed to create CSR: invalid root certificate: no root certificate present",
        ),
        ([leaf, "junk", root.pem], key, "failed to create CSR: certificate: no certificate"),
        ([leaf, root.pem], b"junk", "failed to create CSR: certificate: no key"),
        ([leaf, root.pem], leaf.encode() + key, "failed to create CSR: certificate: no key"),
        ([stranger, root.pem], key, f"did not find expected SAN: {SLEEP}"),
    ]

    for chain, key_pem, text in cases:
        with pytest.raises(PeerBrokeProtocol) as caught:
            parse_chain(SLEEP, chain, key_pem, check_identity=True)
        assert str(caught.value) == text


def test_a_dedicated_proxy_takes_the_identity_it_is_given() -> None:
    root = Authority.root("root")
    other = SpiffeId("other.td", "default", "other")
    leaf, key = root.leaf(other, NOW, NOW + timedelta(hours=1))

    assert parse_chain(SLEEP, [leaf, root.pem], key, check_identity=False).identity == other


@pytest.mark.parametrize("body", ["A", "AAAA=AAA", "Zm9v"])
def test_pem_that_holds_no_certificate_is_refused(body: str) -> None:
    text = f"-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n"

    with pytest.raises(PeerBrokeProtocol, match="certificate parse: "):
        root_certificates(text)


def test_pem_reads_back_what_it_wrote() -> None:
    der = bytes(range(200))

    assert list(pem_blocks(to_pem(der, "X509 CRL").decode())) == [("X509 CRL", der)]
    assert max(map(len, to_pem(der, line_length=60).splitlines())) == 60
    assert base64.b64decode(b"".join(to_pem(der).splitlines()[1:-1])) == der


def test_a_fresh_key_is_pkcs8() -> None:
    assert new_key_pem().startswith(b"-----BEGIN PRIVATE KEY-----")
