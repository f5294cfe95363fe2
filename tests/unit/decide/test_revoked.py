"""Revocation lists: what is read, and which paths they end."""

from datetime import UTC, datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from tests.fakes.pki import LONG_AGO, Authority
from ztunnel_trio.decide.revoked import Path, Revocations, is_revoked, parse_revocations
from ztunnel_trio.errors import PeerBrokeProtocol
from ztunnel_trio.model.certificate import first_certificate
from ztunnel_trio.model.identity import SpiffeId

NOW = datetime(2026, 5, 1, tzinfo=UTC)
SLEEP = SpiffeId("cluster.local", "default", "sleep")
ROOT = Authority.root("root")
IA = ROOT.intermediate("ia")


def leaf(authority: Authority, serial: int = 7) -> bytes:
    return first_certificate(authority.leaf(SLEEP, NOW, NOW, serial=serial)[0])


def lists(*texts: str) -> Revocations:
    return parse_revocations("".join(texts).encode())


def revoked(chain: list[bytes], *texts: str) -> bool:
    return is_revoked(Path.parse(chain), lists(*texts))


def test_the_leaf_and_every_intermediate_count_but_not_the_anchor() -> None:
    chain = [leaf(IA), IA.der, ROOT.der]

    assert revoked(chain, IA.revocations(7))
    assert revoked(chain, ROOT.revocations(IA.certificate.serial_number))
    assert not revoked(chain, IA.revocations(8))
    assert not revoked(chain, ROOT.revocations(7))  # that number, of another issuer
    assert not revoked(chain, ROOT.revocations(ROOT.certificate.serial_number))
    assert not revoked(chain, Authority.root("other").revocations(7))
    assert not revoked(chain)


def test_several_levels_of_intermediates_are_checked() -> None:
    lower = IA.intermediate("ia2")
    chain = [leaf(lower), lower.der, IA.der, ROOT.der]

    assert revoked(chain, ROOT.revocations(IA.certificate.serial_number))
    assert revoked(chain, IA.revocations(lower.certificate.serial_number))


def test_a_list_past_its_next_update_still_counts() -> None:
    assert revoked([leaf(ROOT), ROOT.der], ROOT.revocations(7, next_update=LONG_AGO))


def test_a_list_its_issuer_has_not_signed_says_nothing() -> None:
    namesake = Authority.root("root")

    assert not revoked([leaf(ROOT), ROOT.der], namesake.revocations(7))
    assert revoked([leaf(ROOT), ROOT.der], namesake.revocations(7), ROOT.revocations(7))


def test_an_issuer_without_the_right_to_sign_lists_revokes_nothing() -> None:
    mute = ROOT.intermediate("mute", can_sign_crls=False)

    assert not revoked([leaf(mute), mute.der, ROOT.der], mute.revocations(7))


def test_of_two_cas_of_one_name_only_the_revoked_ones_subtree_drops() -> None:
    twin = ROOT.intermediate("ia")
    text = ROOT.revocations(IA.certificate.serial_number)

    assert revoked([leaf(IA), IA.der, ROOT.der], text)
    assert not revoked([leaf(twin), twin.der, ROOT.der], text)


def test_lists_come_as_pem_of_many_blocks_or_as_one_der() -> None:
    der = x509.load_pem_x509_crl(ROOT.revocations(7).encode()).public_bytes(Encoding.DER)

    assert parse_revocations(b"").is_empty
    assert lists(ROOT.pem).is_empty  # PEM without lists
    assert len(lists(ROOT.pem, ROOT.revocations(7), IA.revocations(8)).by_issuer) == 2
    assert is_revoked(Path.parse([leaf(ROOT), ROOT.der]), parse_revocations(der))


@pytest.mark.parametrize(
    "data",
    [
        b"junk",
        b"-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n",
        ROOT.revocations(1).encode() + b"-----BEGIN X509 CRL-----\nA\n-----END X509 CRL-----\n",
    ],
)
def test_one_bad_list_spoils_the_whole(data: bytes) -> None:
    with pytest.raises(PeerBrokeProtocol):
        parse_revocations(data)


@pytest.mark.parametrize("chain", [[], [b"junk", ROOT.der]])
def test_a_chain_that_is_none_is_named(chain: list[bytes]) -> None:
    with pytest.raises(PeerBrokeProtocol):
        Path.parse(chain)
