"""Certificate revocation: lists as they come, and the verdict on a verified path (RFC 5280 section 5).

OpenSSL would refuse a chain for which a list is missing or out of date; here (ztunnel src/tls/crl.rs) a
certificate without a list is allowed, a list past its `nextUpdate` still counts, and what decides is only
whether the issuer's own signature stands under a list that names the serial number.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from itertools import pairwise
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa

from ztunnel_trio.errors import PeerBrokeProtocol
from ztunnel_trio.model.certificate import pem_blocks

CRL_LABEL: Final = "X509 CRL"  # RFC 7468 section 6
_PEM_BEGIN: Final = b"-----BEGIN"
_CRL_KEYS: Final = (
    rsa.RSAPublicKey,
    ec.EllipticCurvePublicKey,
    dsa.DSAPublicKey,
    ed25519.Ed25519PublicKey,
    ed448.Ed448PublicKey,
)


@dataclass(frozen=True, slots=True, eq=False)
class RevocationList:
    """One list of one issuer, ready to be asked."""

    crl: x509.CertificateRevocationList = field(repr=False)
    issuer_der: bytes
    serials: frozenset[int]


@dataclass(frozen=True, slots=True, eq=False)
class Revocations:
    """All lists at hand, by the issuer's name in DER. Several CAs may share a name."""

    by_issuer: dict[bytes, tuple[RevocationList, ...]] = field(default_factory=dict)

    @property
    def next_update(self) -> datetime | None:
        """When the first of them is to be replaced; None: no list says."""
        found = [one.crl.next_update_utc for lists in self.by_issuer.values() for one in lists]
        return min((one for one in found if one is not None), default=None)

    @property
    def is_empty(self) -> bool:
        """Whether there is no list at all; then nothing needs to be checked."""
        return not self.by_issuer


def parse_revocations(data: bytes) -> Revocations:
    """Read a CRL file: PEM with any number of blocks, those of other kinds skipped, or one list in DER.

    Nothing at all is valid and revokes nothing. One bad list spoils the whole.

    Raises:
        PeerBrokeProtocol: a list that cannot be read.
    """
    if not data:
        return Revocations()
    if data.startswith(_PEM_BEGIN):
        lists = [der for label, der in pem_blocks(data.decode("ascii", "replace")) if label == CRL_LABEL]
    else:
        lists = [data]
    return index(_parse(der) for der in lists)


def joined(parts: Sequence[Revocations]) -> Revocations:
    """The lists of all parts."""
    return index(one for part in parts for lists in part.by_issuer.values() for one in lists)


def index(lists: Iterable[RevocationList]) -> Revocations:
    """Lists by their issuer."""
    found: dict[bytes, tuple[RevocationList, ...]] = {}
    for one in lists:
        found[one.issuer_der] = (*found.get(one.issuer_der, ()), one)
    return Revocations(found)


@dataclass(frozen=True, slots=True)
class IssuedBy:
    """One certificate of a path: who issued it, by name and by certificate, and under which number."""

    issuer_name_der: bytes
    serial: int
    issuer_der: bytes


@dataclass(frozen=True, slots=True)
class Path:
    """A verified path, the leaf's link first; the trust anchor has none, nobody revokes it."""

    links: tuple[IssuedBy, ...]

    @classmethod
    def parse(cls, chain_der: Sequence[bytes]) -> "Path":
        """Read a verified chain, the leaf first and the trust anchor last.

        Raises:
            PeerBrokeProtocol: no certificate at all, or one that cannot be read.
        """
        if not chain_der:
            raise PeerBrokeProtocol("empty certificate chain")
        try:
            return cls(tuple(_link(der, issuer) for der, issuer in pairwise(chain_der)))
        except ValueError as error:
            raise PeerBrokeProtocol(f"certificate parse: {error}") from error


def is_revoked(path: Path, revocations: Revocations) -> bool:
    """Whether any certificate of a path, the anchor aside, is on a list its issuer has signed.

    A list of the same name that the issuer has not signed is somebody else's and says nothing.
    """
    return any(
        link.serial in one.serials and _is_signed_by(one, link.issuer_der)
        for link in path.links
        for one in revocations.by_issuer.get(link.issuer_name_der, ())
    )


def _parse(der: bytes) -> RevocationList:
    try:
        crl = x509.load_der_x509_crl(der)
        serials = frozenset(one.serial_number for one in crl)
        return RevocationList(crl, crl.issuer.public_bytes(), serials)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise PeerBrokeProtocol(f"invalid CRL: {error}") from error


@lru_cache(maxsize=4096)
def _link(der: bytes, issuer_der: bytes) -> IssuedBy:
    certificate = x509.load_der_x509_certificate(der)
    return IssuedBy(certificate.issuer.public_bytes(), certificate.serial_number, issuer_der)


@lru_cache(maxsize=1024)
def _is_signed_by(revocations: RevocationList, issuer_der: bytes) -> bool:
    """Whether an issuer vouches for a list: by its signature, and the right to sign lists where stated."""
    try:
        issuer = x509.load_der_x509_certificate(issuer_der)
        usage = _key_usage(issuer)
        key = issuer.public_key()
        if usage is not None and not usage.crl_sign:
            return False
        return isinstance(key, _CRL_KEYS) and revocations.crl.is_signature_valid(key)
    except (ValueError, TypeError, UnsupportedAlgorithm, InvalidSignature):
        return False


def _key_usage(certificate: x509.Certificate) -> x509.KeyUsage | None:
    try:
        return certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        return None
