"""X.509 SVIDs as SPIFFE's interfaces deliver them, and the choice of the one that was asked for.

Each message of such an interface is a whole state (SPIFFE Workload API 5.2.1): what it does not name is
gone. Certificates come as DER, one behind the other; keys as PKCS#8 DER.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC
from types import MappingProxyType
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

from ztunnel_trio.errors import PeerBrokeProtocol
from ztunnel_trio.model.certificate import (
    KEY_LABEL,
    WorkloadCertificate,
    load_certificate,
    to_pem,
    uri_names,
)
from ztunnel_trio.model.identity import SCHEME, SpiffeId

_SEQUENCE: Final = 0x30  # X.690 8.9: what a certificate begins with
_SHORT_LENGTH: Final = 0x80  # X.690 8.1.3: below it the octet is the length itself
_LENGTH_OCTETS: Final = 4  # nobody's certificate is longer than 4 GiB
MOST_CERTIFICATES: Final = 256
"""In one chain or bundle; a trust domain in the middle of a rotation has a handful."""


@dataclass(frozen=True, slots=True)
class Svid:
    """One certificate with its key, as it came: nothing of it has been checked."""

    spiffe_id: str
    chain_der: tuple[bytes, ...]  # the leaf first
    key_der: bytes = field(repr=False)
    bundle_der: tuple[bytes, ...] = ()  # of its own trust domain, where the message brings it along


@dataclass(frozen=True, slots=True)
class SvidState:
    """All that one message says. Bundles are by trust domain, without a scheme."""

    svids: tuple[Svid, ...]
    bundles: Mapping[str, tuple[bytes, ...]] = field(default_factory=lambda: MappingProxyType({}))
    crls_der: tuple[bytes, ...] = ()


class NoSuchSvid(PeerBrokeProtocol):
    """The state has no SVID of the wanted identity; the text says which it has."""


def split_der(data: bytes) -> tuple[bytes, ...]:
    """Cut certificates that stand one behind the other. Their insides are not looked at.

    Raises:
        PeerBrokeProtocol: cut short, no certificates, or too many of them.
    """
    found: list[bytes] = []
    at = 0
    while at < len(data):
        end = _end_of_sequence(data, at)
        found.append(data[at:end])
        at = end
        if len(found) > MOST_CERTIFICATES:
            raise PeerBrokeProtocol(f"more than {MOST_CERTIFICATES} certificates")
    return tuple(found)


def _end_of_sequence(data: bytes, start: int) -> int:
    """Where the DER sequence that begins at `start` ends (X.690 8.1.3)."""
    if data[start] != _SEQUENCE or start + 2 > len(data):
        raise PeerBrokeProtocol(f"not a certificate in DER at byte {start}")
    length, at = data[start + 1], start + 2
    if length >= _SHORT_LENGTH:
        octets = length - _SHORT_LENGTH
        if not 1 <= octets <= _LENGTH_OCTETS:
            raise PeerBrokeProtocol(f"not a certificate in DER at byte {start}")
        length, at = int.from_bytes(data[at : at + octets], "big"), at + octets
    if at + length > len(data):
        raise PeerBrokeProtocol(f"certificate at byte {start} is cut short")
    return at + length


def trust_domain(text: str) -> str:
    """A trust domain as a map key names it, with or without scheme and path."""
    return text.removeprefix(SCHEME).partition("/")[0]


def choose(
    state: SvidState, identity: SpiffeId, *, foreign_trust_domains: frozenset[str] = frozenset()
) -> WorkloadCertificate:
    """The certificate of the wanted identity out of a state; the first one where several match.

    The SVID's id, its leaf's first URI name and the wanted identity must be the same. Peers are verified
    with the bundle of the SVID's own trust domain; bundles of others are kept where they are allowed.

    Raises:
        NoSuchSvid: `Mismatched identity: expected …, got …`; also for a state without any SVID.
        PeerBrokeProtocol: the SVID cannot be used, and why.
    """
    wanted = str(identity)
    for svid in state.svids:
        if svid.spiffe_id == wanted:
            return _certificate(svid, identity, state, foreign_trust_domains)
    given = ", ".join(svid.spiffe_id for svid in state.svids) or "nothing"
    raise NoSuchSvid(f"Mismatched identity: expected {wanted}, got {given}")


def only_one(state: SvidState) -> SpiffeId | None:
    """The identity of the first SVID, if it is of the form that Istio gives them."""
    for svid in state.svids:
        try:
            return SpiffeId.parse(svid.spiffe_id)
        except PeerBrokeProtocol:
            return None
    return None


def _certificate(
    svid: Svid, identity: SpiffeId, state: SvidState, foreign: frozenset[str]
) -> WorkloadCertificate:
    if not svid.chain_der:
        raise PeerBrokeProtocol(f"SVID of {identity} has no certificate")
    leaf = load_certificate(svid.chain_der[0])
    names = uri_names(leaf)
    if names[:1] != (str(identity),):
        got = ", ".join(names) or "nothing"
        raise NoSuchSvid(f"Mismatched identity: expected {identity}, got {got}")
    own = svid.bundle_der or state.bundles.get(identity.trust_domain, ())
    if not own:
        raise PeerBrokeProtocol(f"No bundle found for trust domain: {identity.trust_domain}")
    for root in own:
        load_certificate(root)
    _check_key(svid.key_der, leaf, identity)
    return WorkloadCertificate(
        identity=identity,
        leaf_der=svid.chain_der[0],
        intermediates_der=svid.chain_der[1:],
        roots_der=own,
        key_pem=to_pem(svid.key_der, KEY_LABEL),
        not_before=leaf.not_valid_before_utc.astimezone(UTC),
        not_after=leaf.not_valid_after_utc.astimezone(UTC),
        serial=leaf.serial_number,
        foreign_roots_der=tuple(
            (name, roots)
            for name, roots in sorted(state.bundles.items())
            if name in foreign and name != identity.trust_domain
        ),
    )


def _check_key(key_der: bytes, leaf: x509.Certificate, identity: SpiffeId) -> None:
    """Hold the key to the leaf, before anything is served with it. The key is in no text."""
    try:
        key: PrivateKeyTypes = serialization.load_der_private_key(key_der, None)
    except (ValueError, TypeError):  # what these say may quote the input
        raise PeerBrokeProtocol(f"SVID of {identity}: key is not PKCS#8") from None
    spki = serialization.PublicFormat.SubjectPublicKeyInfo
    der = serialization.Encoding.DER
    if key.public_key().public_bytes(der, spki) != leaf.public_key().public_bytes(der, spki):
        raise PeerBrokeProtocol(f"SVID of {identity}: key does not fit the certificate")
