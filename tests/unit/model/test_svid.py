"""Which SVID of a state is taken, what is refused, and that no text holds a key."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives import serialization
from hypothesis import given
from hypothesis import strategies as st

from ztunnel_trio.errors import PeerBrokeProtocol
from ztunnel_trio.lab.pki import Authority, Leaf
from ztunnel_trio.model.certificate import pem_blocks
from ztunnel_trio.model.identity import SpiffeId
from ztunnel_trio.model.svid import (
    MOST_CERTIFICATES,
    NoSuchSvid,
    Svid,
    SvidState,
    choose,
    split_der,
    trust_domain,
)

WEB = SpiffeId("cluster.local", "default", "web")
OTHER = SpiffeId("cluster.local", "default", "other")
ROOT = Authority()
FOREIGN = Authority("another trust domain")


def ders(pem: str) -> tuple[bytes, ...]:
    return tuple(der for _, der in pem_blocks(pem))


def key_of(leaf: Leaf) -> bytes:
    key = serialization.load_pem_private_key(leaf.key_pem.encode(), None)
    return key.private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def svid_of(identity: SpiffeId, *, bundle: Sequence[bytes] = ders(ROOT.root_pem)) -> Svid:
    leaf = ROOT.leaf(str(identity))
    return Svid(str(identity), ders(leaf.chain_pem), key_of(leaf), tuple(bundle))


def test_the_wanted_identity_is_chosen_among_several() -> None:
    state = SvidState((svid_of(OTHER), svid_of(WEB)))

    found = choose(state, WEB)

    assert (found.identity, found.roots_der, found.intermediates_der) == (WEB, ders(ROOT.root_pem), ())
    assert found.leaf_der == state.svids[1].chain_der[0]


def test_intermediates_follow_the_leaf_and_the_leaf_is_not_repeated() -> None:
    below = ROOT.intermediate()
    leaf = below.leaf(str(WEB))
    state = SvidState((Svid(str(WEB), ders(leaf.chain_pem), key_of(leaf), ders(ROOT.root_pem)),))

    assert choose(state, WEB).intermediates_der == ders("".join(below.intermediates_pem))


def test_another_identity_is_a_mismatch_that_names_both() -> None:
    with pytest.raises(NoSuchSvid, match=f"Mismatched identity: expected {WEB}, got {OTHER}"):
        choose(SvidState((svid_of(OTHER),)), WEB)


def test_an_empty_state_is_a_mismatch_with_nothing() -> None:
    with pytest.raises(NoSuchSvid, match=f"expected {WEB}, got nothing"):
        choose(SvidState(()), WEB)


def test_the_leaf_must_name_the_identity_that_the_message_names() -> None:
    lying = replace(svid_of(OTHER), spiffe_id=str(WEB))

    with pytest.raises(NoSuchSvid, match=f"Mismatched identity: expected {WEB}, got {OTHER}"):
        choose(SvidState((lying,)), WEB)


def test_the_bundle_is_that_of_the_svids_own_trust_domain() -> None:
    bare = svid_of(WEB, bundle=())
    bundles = {"cluster.local": ders(ROOT.root_pem), "elsewhere": ders(FOREIGN.root_pem)}

    assert choose(SvidState((bare,), bundles), WEB).roots_der == ders(ROOT.root_pem)
    with pytest.raises(PeerBrokeProtocol, match=r"No bundle found for trust domain: cluster\.local"):
        choose(SvidState((bare,), {"elsewhere": ders(FOREIGN.root_pem)}), WEB)


def test_foreign_bundles_are_kept_where_they_are_allowed_only() -> None:
    bundles = {"cluster.local": ders(ROOT.root_pem), "friend": ders(FOREIGN.root_pem)}
    state = SvidState((svid_of(WEB),), bundles)

    assert choose(state, WEB).foreign_roots_der == ()
    allowed = choose(state, WEB, foreign_trust_domains=frozenset({"friend", "cluster.local"}))
    assert allowed.foreign_roots_der == (("friend", ders(FOREIGN.root_pem)),)


def test_a_key_that_does_not_fit_is_refused_without_being_shown() -> None:
    svid = replace(svid_of(WEB), key_der=key_of(ROOT.leaf(str(WEB))))

    with pytest.raises(PeerBrokeProtocol, match="key does not fit the certificate"):
        choose(SvidState((svid,)), WEB)


@pytest.mark.parametrize("key", [b"", b"SECRET", b"\x30\x03SECRET"])
def test_a_key_that_is_none_is_refused_without_being_shown(key: bytes) -> None:
    with pytest.raises(PeerBrokeProtocol, match="key is not PKCS#8") as raised:
        choose(SvidState((replace(svid_of(WEB), key_der=key),)), WEB)

    assert raised.value.__cause__ is None
    assert "SECRET" not in repr(raised.value)


def test_no_representation_holds_a_key() -> None:
    svid = svid_of(WEB)

    assert repr(svid.key_der) not in repr(SvidState((svid,)))
    assert "PRIVATE" not in repr(choose(SvidState((svid,)), WEB))


def test_an_svid_without_a_certificate_is_refused() -> None:
    with pytest.raises(PeerBrokeProtocol, match="has no certificate"):
        choose(SvidState((replace(svid_of(WEB), chain_der=()),)), WEB)


def test_certificates_in_a_row_are_cut_where_each_ends() -> None:
    row = [*ders(ROOT.root_pem), *ders(FOREIGN.root_pem), *ders(ROOT.leaf(str(WEB)).chain_pem)]

    assert list(split_der(b"".join(row))) == row


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"\x31\x00", "not a certificate in DER at byte 0"),
        (b"\x30", "not a certificate in DER at byte 0"),
        (b"\x30\x80", "not a certificate in DER at byte 0"),
        (b"\x30\x85\0\0\0\0\x01", "not a certificate in DER at byte 0"),
        (b"\x30\x05abc", "certificate at byte 0 is cut short"),
        (b"\x30\x00\x30\x82\xff\xff", "certificate at byte 2 is cut short"),
        (b"\x30\x00" * (MOST_CERTIFICATES + 1), f"more than {MOST_CERTIFICATES} certificates"),
    ],
)
def test_what_is_no_row_of_certificates_is_refused(data: bytes, text: str) -> None:
    with pytest.raises(PeerBrokeProtocol, match=text):
        split_der(data)


@given(st.binary(max_size=64))
def test_cutting_anything_keeps_every_byte_or_is_the_senders_fault(data: bytes) -> None:
    try:
        parts = split_der(data)
    except PeerBrokeProtocol:
        return
    assert b"".join(parts) == data


@pytest.mark.parametrize("text", ["example.org", "spiffe://example.org", "spiffe://example.org/ns/a"])
def test_a_trust_domain_is_named_with_or_without_scheme(text: str) -> None:
    assert trust_domain(text) == "example.org"
