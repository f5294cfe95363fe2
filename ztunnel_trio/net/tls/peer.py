"""Who a handshake proved at the other end, and whether we speak to it.

The dialling side wants one of the identities it expects, the accepting side its own trust domain, or one that
is let in beside it.
"""

import logging
import ssl
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import cast

from ztunnel_trio.errors import PeerBrokeProtocol
from ztunnel_trio.model.certificate import WorkloadCertificate
from ztunnel_trio.model.ending import Ending, OtherTrustDomain, PeerUnexpected, TlsCause, TlsRefused
from ztunnel_trio.model.identity import SpiffeId
from ztunnel_trio.net.tls.failures import TlsFailed
from ztunnel_trio.shortcuts.tls import verified_chain

log = logging.getLogger("ztunnel::tls::workload")

Finished = ssl.SSLSocket | ssl.SSLObject


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsPeer:
    """What the handshake proved of the other end.

    `identities` are the SPIFFE names of its certificate; `chain_der` is the verified path, the leaf first
    and the trust anchor last.
    """

    identities: tuple[SpiffeId, ...]
    leaf_der: bytes
    chain_der: tuple[bytes, ...]


Verdict = Callable[[TlsPeer], Ending | None]
"""Why a proven peer is nevertheless refused, or None: it is not."""


def judge_server(peer: TlsPeer, expected: Sequence[SpiffeId]) -> PeerUnexpected | None:
    """Why a server is not whom we dialled, or None: any of its identities may match any expected one."""
    if any(identity in expected for identity in peer.identities):
        return None
    return PeerUnexpected(tuple(expected), peer.identities)


def judge_client(peer: TlsPeer, own: WorkloadCertificate) -> OtherTrustDomain | None:
    """Why a client is of no trust domain that is let in, or None: any of its identities may be."""
    trust_domain = own.identity.trust_domain
    let_in = {trust_domain, *(name for name, _ in own.foreign_roots_der)}
    if any(identity.trust_domain in let_in for identity in peer.identities):
        return None
    return OtherTrustDomain(trust_domain, peer.identities)


def vouched(peer: TlsPeer, own: WorkloadCertificate) -> TlsPeer:
    """The peer with those identities only whose own trust domain vouches for its path.

    OpenSSL verifies with all roots at once. Where other trust domains are let in, an authority of one must
    not speak for another (SPIFFE, Trust Domain and Bundle, 4: each bundle is for its own domain).
    """
    anchor = peer.chain_der[-1]
    roots = {own.identity.trust_domain: own.roots_der, **dict(own.foreign_roots_der)}
    kept = tuple(each for each in peer.identities if anchor in roots.get(each.trust_domain, ()))
    return replace(peer, identities=kept)


def proven_peer(tls: Finished, own: WorkloadCertificate) -> TlsPeer:
    """Read the peer from a finished handshake with our certificate, over a descriptor or in memory.

    Raises:
        TlsFailed: its certificate cannot be read.
    """
    leaf_der = tls.getpeercert(binary_form=True)
    if leaf_der is None:
        raise TlsFailed(TlsRefused(TlsCause.NO_CERTIFICATE))
    try:
        certificate = tls.getpeercert() or {}
    except ValueError as error:  # names that are not text
        raise TlsFailed(TlsRefused(TlsCause.UNREADABLE_NAMES)) from error
    names = [cast("str", name[1]) for name in certificate.get("subjectAltName", ()) if name[0] == "URI"]
    identities = tuple(_identities(names))
    peer = TlsPeer(identities=identities, leaf_der=leaf_der, chain_der=verified_chain(tls))
    return vouched(peer, own) if own.foreign_roots_der else peer


def _identities(names: Sequence[str]) -> Iterator[SpiffeId]:
    for name in names:
        try:
            yield SpiffeId.parse(name)
        except PeerBrokeProtocol as error:
            log.warning("SAN %s could not be parsed: %s", name, error)
