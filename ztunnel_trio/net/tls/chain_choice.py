"""Which of several roots of one name signed a peer's chain, found before OpenSSL judges it.

OpenSSL takes the first root of the issuer's name for the issuer. Istio's self-signed roots all have one
name, and without key identifiers in the chain only the signature tells them apart.
"""

import logging
import ssl
from collections.abc import Sequence
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm

from ztunnel_trio.net.tls.failures import TlsMisconfigured
from ztunnel_trio.shortcuts.tls_messages import Connection, watch

log = logging.getLogger("ztunnel::tls")

TLS13_WIRE_VERSION: Final = 0x0304  # RFC 8446 4.2.1
CERTIFICATE_MESSAGE: Final = 11  # RFC 8446 4
HANDSHAKE: Final = 22  # RFC 8446 5.1, ContentType
# OpenSSL 3.2's ssl.h, SSL_OP_NO_RX_CERTIFICATE_COMPRESSION; an older one never asks for compressed ones.
NO_COMPRESSED_CERTIFICATES: Final = ssl.Options(1 << 33)
MOST_PRESENTED: Final = 16  # certificates of a peer's chain that are looked at


def namesakes(roots: Sequence[bytes]) -> dict[bytes, frozenset[bytes]]:
    """The roots that share their subject with another one, each with those it shares it with."""
    by_subject: dict[bytes, set[bytes]] = {}
    for root in roots:
        by_subject.setdefault(_subject(root), set()).add(root)
    groups = (frozenset(group) for group in by_subject.values() if len(group) > 1)
    return {root: group - {root} for group in groups for root in group}


def _subject(der: bytes) -> bytes:
    try:
        return x509.load_der_x509_certificate(der).subject.public_bytes()
    except ValueError as error:
        raise TlsMisconfigured(f"invalid root certificate: {error}") from error


def choose_context_by_chain(context: ssl.SSLContext, by_root: dict[bytes, ssl.SSLContext]) -> None:
    """Have `context` hand a handshake to the context of the root that really signed the peer's chain.

    The Certificate message is seen before OpenSSL acts on it (`shortcuts.tls_messages`); a connection's trust
    is its context's, so setting another context there is enough. To watch costs each connection two calls a
    record, which is why only bundles with namesakes are. It decides nothing: without a match OpenSSL refuses
    as ever. Peers are not to compress certificates (RFC 8879), which would be seen compressed here.
    """
    context.options |= NO_COMPRESSED_CERTIFICATES
    roots = {root: x509.load_der_x509_certificate(root) for root in by_root}

    def choose(
        tls: Connection, direction: str, version: int, content_type: int, message_type: int, message: bytes
    ) -> None:
        if direction != "read" or content_type != HANDSHAKE or message_type != CERTIFICATE_MESSAGE:
            return
        for presented in _presented_certificates(message, version):
            if _is_self_issued(presented):  # a root, sent along: says nothing of the leaf's
                continue
            for root, certificate in roots.items():
                if is_issued_by(presented, certificate):
                    tls.context = by_root[root]
                    return

    if not watch(context, choose):
        log.warning("roots of one name: only the first of them is trusted with this Python")


def _is_self_issued(certificate: x509.Certificate) -> bool:
    """Whether it bears its issuer's name. A name that is not text is nobody's: OpenSSL refuses the chain."""
    try:
        return certificate.issuer == certificate.subject
    except ValueError:
        return False


def _presented_certificates(message: bytes, version: int) -> list[x509.Certificate]:
    """The certificates of a Certificate message (RFC 8446 4.4.2, RFC 5246 7.4.2); what is broken ends it."""
    body = message[4:]
    has_extensions = version == TLS13_WIRE_VERSION
    position = 1 + body[0] + 3 if has_extensions and body else 3
    found: list[x509.Certificate] = []
    while position + 3 <= len(body) and len(found) < MOST_PRESENTED:
        start = position + 3
        position = start + int.from_bytes(body[position:start], "big")
        try:
            found.append(x509.load_der_x509_certificate(body[start:position]))
        except ValueError:
            break
        if has_extensions:
            position += 2 + int.from_bytes(body[position : position + 2], "big")
    return found


def is_issued_by(certificate: x509.Certificate, root: x509.Certificate) -> bool:
    """Whether this root signed that certificate."""
    try:
        certificate.verify_directly_issued_by(root)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True
