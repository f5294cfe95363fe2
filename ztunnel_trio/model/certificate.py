"""A workload's certificate as a value: chain, key, roots and lifetime, all DER but the key.

Parsing happens once, when the certificate arrives; who needs PEM (OpenSSL, the config dump) asks for it.
"""

import base64
import binascii
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from cryptography import x509

from ztunnel_trio.errors import PeerBrokeProtocol
from ztunnel_trio.model.identity import SpiffeId

CERTIFICATE_LABEL: Final = "CERTIFICATE"
KEY_LABEL: Final = "PRIVATE KEY"  # PKCS#8, RFC 7468 section 10
_PEM_LINE: Final = 64  # RFC 7468 section 2

_PEM_BLOCK: Final = re.compile(
    r"-----BEGIN ([A-Z0-9 ]+)-----\s*([A-Za-z0-9+/=\s]*?)-----END \1-----",
)


@dataclass(frozen=True, slots=True, kw_only=True, weakref_slot=True)
class WorkloadCertificate:
    """What one identity presents in a handshake, and whom it trusts.

    `roots_der` may hold several trust anchors, e.g. while a root is rotated; `foreign_roots_der` holds those
    of other trust domains that are let in, by domain. `not_before` and `not_after` are the leaf's, in UTC.
    """

    identity: SpiffeId
    leaf_der: bytes
    intermediates_der: tuple[bytes, ...]
    roots_der: tuple[bytes, ...]
    key_pem: bytes = field(repr=False)
    not_before: datetime
    not_after: datetime
    serial: int
    foreign_roots_der: tuple[tuple[str, tuple[bytes, ...]], ...] = ()

    def chain_pem(self) -> bytes:
        """The leaf and its intermediates, never the root: what a handshake sends."""
        return b"".join(to_pem(der) for der in (self.leaf_der, *self.intermediates_der))


def to_pem(der: bytes, label: str = CERTIFICATE_LABEL, *, line_length: int = _PEM_LINE) -> bytes:
    """Wrap DER as one PEM block with a trailing newline."""
    text = base64.b64encode(der).decode()
    lines = [text[start : start + line_length] for start in range(0, len(text), line_length)]
    return "\n".join([f"-----BEGIN {label}-----", *lines, f"-----END {label}-----", ""]).encode()


def pem_blocks(text: str) -> Iterator[tuple[str, bytes]]:
    """Every PEM block of a text as (label, DER), in order; what lies between is skipped (RFC 7468 2).

    Raises:
        PeerBrokeProtocol: a block whose content is not base64.
    """
    for block in _PEM_BLOCK.finditer(text):
        label, body = block.groups()
        try:
            yield label, base64.b64decode("".join(body.split()), validate=True)
        except binascii.Error as error:
            raise PeerBrokeProtocol(f"certificate parse: {error}") from error


def load_certificate(der: bytes) -> x509.Certificate:
    """Parse one certificate.

    Raises:
        PeerBrokeProtocol: not an X.509 certificate.
    """
    try:
        return x509.load_der_x509_certificate(der)
    except ValueError as error:
        raise PeerBrokeProtocol(f"certificate parse: {error}") from error


def first_certificate(text: str) -> bytes:
    """The DER of a text's first PEM block, which must be a certificate; later blocks are not looked at.

    Raises:
        PeerBrokeProtocol: no block, or another kind of block first.
    """
    for label, der in pem_blocks(text):
        if label == CERTIFICATE_LABEL:
            load_certificate(der)
            return der
        break
    raise PeerBrokeProtocol("certificate: no certificate")


def root_certificates(text: str) -> tuple[bytes, ...]:
    """All certificates of a root bundle, in order.

    Raises:
        PeerBrokeProtocol: a block that is not a certificate, or none at all.
    """
    roots: list[bytes] = []
    for label, der in pem_blocks(text):
        if label != CERTIFICATE_LABEL:
            raise PeerBrokeProtocol("invalid root certificate: no root certificate present")
        load_certificate(der)
        roots.append(der)
    if not roots:
        raise PeerBrokeProtocol("invalid root certificate: no root certificate present")
    return tuple(roots)


def uri_names(certificate: x509.Certificate) -> tuple[str, ...]:
    """The URI subject alternative names of a certificate, in its order; none where they are unreadable."""
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError):
        return ()
    return tuple(extension.value.get_values_for_type(x509.UniformResourceIdentifier))


def own_identity(certificate: x509.Certificate) -> SpiffeId | None:
    """Whom a certificate of ours speaks for: its first URI name, if that is an identity."""
    match uri_names(certificate):
        case (first, *_):
            try:
                return SpiffeId.parse(first)
            except PeerBrokeProtocol:
                return None
        case _:
            return None


def parse_chain(
    identity: SpiffeId, chain: Sequence[str], key_pem: bytes, *, check_identity: bool
) -> WorkloadCertificate:
    """Read a CA's answer: PEM texts, the leaf first, then intermediates, the root bundle last.

    Neither expiry nor the path is checked here: an expired certificate is still the CA's answer, and a key
    that does not fit shows when a TLS context is made. Without `check_identity` (a proxy dedicated to one
    workload) the certificate's own identity is taken as it comes.

    Raises:
        PeerBrokeProtocol: with the text that waiters and the config dump show (ztunnel src/identity).
    """
    if not chain:
        raise PeerBrokeProtocol(f"chain returned from CA is empty for: {identity}")
    try:
        leaf_der = first_certificate(chain[0])
        if len(chain) == 1:
            raise PeerBrokeProtocol("invalid root certificate: no root certificate present")
        intermediates = tuple(first_certificate(text) for text in chain[1:-1])
        roots = root_certificates(chain[-1])
        _check_key(key_pem)
        leaf = load_certificate(leaf_der)
    except PeerBrokeProtocol as error:
        raise PeerBrokeProtocol(f"failed to create CSR: {error}") from error
    found = own_identity(leaf)
    if check_identity and found != identity:
        raise PeerBrokeProtocol(f"did not find expected SAN: {identity}")
    return WorkloadCertificate(
        identity=identity if found is None else found,
        leaf_der=leaf_der,
        intermediates_der=intermediates,
        roots_der=roots,
        key_pem=key_pem,
        not_before=leaf.not_valid_before_utc.astimezone(UTC),
        not_after=leaf.not_valid_after_utc.astimezone(UTC),
        serial=leaf.serial_number,
    )


def _check_key(key_pem: bytes) -> None:
    """Hold a private key to PKCS#8 PEM as its text's first block."""
    for label, _ in pem_blocks(key_pem.decode("ascii", "replace")):
        if label == KEY_LABEL:
            return
        break
    raise PeerBrokeProtocol("certificate: no key")
