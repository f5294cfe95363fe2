"""Mutual TLS between node proxies: OpenSSL on the connection's own descriptor, driven as Trio coroutines.

Contexts are made once a certificate and kept by identity; the handshake is `do_handshake` on the
non-blocking descriptor, waiting with `trio.lowlevel`. OpenSSL checks the chain, validity and key usage
against the roots that came with the certificate this side presents; what SPIFFE adds is checked here,
after the handshake and before any byte of HTTP/2 is read or written: the dialling side wants one of the
expected identities, the accepting side its own trust domain. Then the caller's verdict (revocation).

A storm of new peers must not stall open connections: no more than a few handshake steps (0.75 ms each) are
done in one turn of the loop. The limit is held while computing, never while waiting for a peer.

The private key reaches OpenSSL, which only loads files, through a memory file that no directory names.

Unlike rustls, for lack of an interface in CPython's `ssl`:
  * TLS 1.3 offers OpenSSL's default suites, ChaCha20 among them, not only AES-GCM; groups are its defaults.
  * A refusal for the peer's identity or by the verdict closes the connection; the peer gets no alert 46.
  * CertificateRequest names no acceptable authorities. Expired trust anchors are not accepted.
  * A leaf signed by the root itself is sent with the root: OpenSSL would look for one anew each time.
"""

import logging
import os
import re
import socket
import ssl
import sys
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol, cast

import trio
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization

from ztunnel_trio.errors import PeerBrokeProtocol
from ztunnel_trio.facts.network import ALPN_H2
from ztunnel_trio.model.certificate import WorkloadCertificate
from ztunnel_trio.model.identity import SpiffeId
from ztunnel_trio.wire.client_hello import NO_APPLICATION_PROTOCOL, offered_protocols

log = logging.getLogger("ztunnel::tls::workload")

# rustls' TLS 1.2 suites with AES-GCM, in its order (ztunnel src/tls/lib.rs); for TLS12_ENABLED only.
TLS12_SUITES: Final = ":".join(
    (
        "ECDHE-ECDSA-AES256-GCM-SHA384",
        "ECDHE-ECDSA-AES128-GCM-SHA256",
        "ECDHE-RSA-AES256-GCM-SHA384",
        "ECDHE-RSA-AES128-GCM-SHA256",
    )
)

TLS13_WIRE_VERSION: Final = 0x0304  # RFC 8446 4.2.1
CERTIFICATE_MESSAGE: Final = 11  # RFC 8446 4
MOST_PRESENTED: Final = 16  # certificates of a peer's chain that are looked at to choose among namesakes

# openssl/x509_vfy.h: X509_V_ERR_*
_VERIFY_TEXTS: Final = {
    2: "UnknownIssuer",  # issuer certificate not found
    7: "BadSignature",
    9: "NotValidYet",
    10: "Expired",
    18: "UnknownIssuer",  # self-signed leaf
    19: "UnknownIssuer",  # self-signed certificate in the chain
    20: "UnknownIssuer",  # no local issuer
    21: "UnknownIssuer",  # the leaf alone cannot be verified
    23: "Revoked",
    24: "InvalidPurpose",  # an issuer that is no CA
    26: "InvalidPurpose",
    79: "InvalidPurpose",
}

_NO_CERTIFICATE: Final = frozenset({"PEER_DID_NOT_RETURN_A_CERTIFICATE", "NO_CERTIFICATE_RETURNED"})
_NOT_TLS: Final = frozenset(
    {"HTTP_REQUEST", "HTTPS_PROXY_REQUEST", "WRONG_VERSION_NUMBER", "UNKNOWN_PROTOCOL", "BAD_RECORD_TYPE"}
)
_HELLO_BYTES: Final = 4096  # of a first flight; a longer one is not looked into
_ALERT: Final = re.compile(r"^(?:SSLV3|TLSV1|TLSV13)_ALERT_(.+)$")
_ACRONYMS: Final = {"CA": "CA", "PSK": "PSK"}  # as rustls spells its alerts: UnknownCA, UnknownPSKIdentity


class TlsFailed(Exception):
    """No secured connection: the text says why, as access logs show it after `io error: `."""


class TlsMisconfigured(TlsFailed):
    """OpenSSL refuses our own certificate, key or roots."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsPeer:
    """What the handshake proved of the other end.

    `identities` are the SPIFFE names of its certificate; `chain_der` is the verified path, the leaf first
    and the trust anchor last.
    """

    identities: tuple[SpiffeId, ...]
    leaf_der: bytes
    chain_der: tuple[bytes, ...]


class Secured(NamedTuple):
    """A finished handshake. `tls` owns the descriptor."""

    tls: ssl.SSLSocket
    peer: TlsPeer


Verdict = Callable[[TlsPeer], str | None]
"""Whether a proven peer is nevertheless refused; the text for `TlsFailed`, or None."""

Finished = ssl.SSLSocket | ssl.SSLObject


@dataclass(slots=True, eq=False)
class _Contexts:
    """One certificate's contexts, made when first needed."""

    certificate: WorkloadCertificate
    server: ssl.SSLContext | None = None
    client: ssl.SSLContext | None = None


class TlsContexts:
    """The SSL contexts of all certificates, and the limit on handshake steps.

    The newest certificate of an identity replaces the one before; the identities used longest ago go first
    when there are more than `most`.
    """

    __slots__ = ("_contexts", "_most", "_tls12", "steps")

    def __init__(self, *, tls12: bool = False, steps_at_once: int = 4, most: int = 1024) -> None:
        self._tls12 = tls12
        self._most = most
        self._contexts: OrderedDict[SpiffeId, _Contexts] = OrderedDict()
        self.steps = trio.CapacityLimiter(steps_at_once)

    def server_context(self, certificate: WorkloadCertificate) -> ssl.SSLContext:
        """The context to accept with.

        Raises:
            TlsMisconfigured: OpenSSL does not take the certificate, the key or the roots.
        """
        entry = self._entry(certificate)
        if entry.server is None:
            entry.server = _context(certificate, ssl.PROTOCOL_TLS_SERVER, tls12=self._tls12)
        return entry.server

    def client_context(self, certificate: WorkloadCertificate) -> ssl.SSLContext:
        """The context to dial with.

        Raises:
            TlsMisconfigured: as `server_context`.
        """
        entry = self._entry(certificate)
        if entry.client is None:
            entry.client = _context(certificate, ssl.PROTOCOL_TLS_CLIENT, tls12=self._tls12)
        return entry.client

    def forget(self, identity: SpiffeId) -> None:
        """Drop an identity's contexts; open connections keep theirs."""
        self._contexts.pop(identity, None)

    def _entry(self, certificate: WorkloadCertificate) -> _Contexts:
        entry = self._contexts.get(certificate.identity)
        if entry is None or entry.certificate is not certificate:
            entry = self._contexts[certificate.identity] = _Contexts(certificate)
        self._contexts.move_to_end(certificate.identity)
        if len(self._contexts) > self._most:
            self._contexts.popitem(last=False)
        return entry


async def accept_tls(
    sock: socket.socket,
    certificate: WorkloadCertificate,
    *,
    contexts: TlsContexts,
    verdict: Verdict | None = None,
) -> Secured:
    """The accepting side of a handshake: the peer must show a certificate of our trust domain.

    Takes the descriptor over: `sock` is empty afterwards (closing it does nothing), and unless a `Secured`
    is returned the connection is closed, on cancellation too. The caller sets the deadline.

    Raises:
        TlsFailed: no handshake, or not with a peer we accept.
        OSError: the connection broke.
    """

    def judge(peer: TlsPeer) -> str | None:
        return judge_client(peer, certificate.identity) or (verdict(peer) if verdict else None)

    with _Closing(sock) as closing:
        await _check_protocols(sock)
        context = contexts.server_context(certificate)
        return await _secure(closing, context, contexts.steps, judge, server_side=True)


async def connect_tls(
    sock: socket.socket,
    certificate: WorkloadCertificate,
    expected: Sequence[SpiffeId],
    *,
    contexts: TlsContexts,
    verdict: Verdict | None = None,
) -> Secured:
    """The dialling side of a handshake: the peer must show one of the `expected` identities.

    With TLS 1.3 the peer judges our certificate only after this has returned: its refusal comes with the
    first read, and `describe` turns it into text. Ownership and errors are those of `accept_tls`.

    Raises:
        TlsFailed: no handshake, or not with a peer we expect.
        OSError: the connection broke.
    """

    def judge(peer: TlsPeer) -> str | None:
        return judge_server(peer, expected) or (verdict(peer) if verdict else None)

    with _Closing(sock) as closing:
        context = contexts.client_context(certificate)
        return await _secure(closing, context, contexts.steps, judge, server_side=False)


def judge_server(peer: TlsPeer, expected: Sequence[SpiffeId]) -> str | None:
    """Why a server is not whom we dialled, or None: any of its identities may match any expected one."""
    if any(identity in expected for identity in peer.identities):
        return None
    wanted, got = ",".join(map(str, expected)), ",".join(map(str, peer.identities))
    return _identity_text(f"peer did not present the expected SAN ({wanted}), got {got}")


def judge_client(peer: TlsPeer, own: SpiffeId) -> str | None:
    """Why a client is not of our trust domain, or None: any of its identities may be."""
    if any(identity.trust_domain == own.trust_domain for identity in peer.identities):
        return None
    got = ",".join(map(str, peer.identities))
    return _identity_text(f"peer did not present the expected trustdomain ({own.trust_domain}), got {got}")


def proven_peer(tls: Finished) -> TlsPeer:
    """Read the peer from a finished handshake, over a descriptor or in memory.

    Raises:
        TlsFailed: its certificate cannot be read.
    """
    leaf_der = tls.getpeercert(binary_form=True)
    if leaf_der is None:
        raise TlsFailed("peer sent no certificates")
    try:
        certificate = tls.getpeercert() or {}
    except ValueError as error:  # names that are not text
        raise TlsFailed("invalid peer certificate: BadEncoding") from error
    names = [cast("str", name[1]) for name in certificate.get("subjectAltName", ()) if name[0] == "URI"]
    identities = tuple(_identities(names))
    return TlsPeer(identities=identities, leaf_der=leaf_der, chain_der=_verified_chain(tls))


def describe(error: ssl.SSLError) -> str:
    """The text of a TLS failure, in rustls' words where it has some."""
    reason: str = getattr(error, "reason", None) or ""  # an error made by hand has none
    if isinstance(error, ssl.SSLCertVerificationError):
        text = _VERIFY_TEXTS.get(error.verify_code, f"Other(OtherError({error.verify_message}))")
        return f"invalid peer certificate: {text}"
    if (
        isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError)
        or reason == "UNEXPECTED_EOF_WHILE_READING"
    ):
        return "tls handshake eof"
    if (alert := _ALERT.match(reason)) is not None:
        words = alert[1].split("_")
        return "received fatal alert: " + "".join(_ACRONYMS.get(word, word.title()) for word in words)
    if reason in _NO_CERTIFICATE:
        return "peer sent no certificates"
    if reason in _NOT_TLS:
        return "received corrupt message of type InvalidContentType"
    if reason:
        return "tls: " + reason.replace("_", " ").lower()
    return f"tls: {error}"


class _Closing:
    """Owns a connection until it is `released`; wrapping it moves the descriptor to another object."""

    __slots__ = ("sock",)

    def __init__(self, sock: socket.socket) -> None:
        self.sock: socket.socket | None = sock

    def __enter__(self) -> "_Closing":
        return self

    def __exit__(self, *_: object) -> None:
        if self.sock is not None:
            self.sock.close()

    def wrap(self, context: ssl.SSLContext, *, server_side: bool) -> ssl.SSLSocket:
        assert self.sock is not None
        tls = context.wrap_socket(self.sock, server_side=server_side, do_handshake_on_connect=False)
        self.sock = tls
        return tls

    def release(self) -> None:
        self.sock = None


async def _secure(
    closing: _Closing,
    context: ssl.SSLContext,
    steps: trio.CapacityLimiter,
    judge: Verdict,
    *,
    server_side: bool,
) -> Secured:
    try:
        tls = closing.wrap(context, server_side=server_side)
        await _shake_hands(tls, steps)
        peer = proven_peer(tls)
    except ssl.SSLError as error:
        raise TlsFailed(describe(error)) from error
    if (refusal := judge(peer)) is not None:
        raise TlsFailed(refusal)
    closing.release()
    return Secured(tls, peer)


async def _check_protocols(sock: socket.socket) -> None:
    """Refuse a client that offers application protocols, but not ours; its bytes stay in the socket."""
    while True:
        try:
            data = sock.recv(_HELLO_BYTES, socket.MSG_PEEK)
        except BlockingIOError:
            await trio.lowlevel.wait_readable(sock)
            continue
        break
    offered = offered_protocols(data)
    if offered and ALPN_H2.encode() not in offered:
        with suppress(OSError):
            sock.recv(_HELLO_BYTES)  # what is left unread would turn the close into a reset
            sock.send(NO_APPLICATION_PROTOCOL)
        raise TlsFailed("peer doesn't support any known protocol")


async def _shake_hands(tls: ssl.SSLSocket, steps: trio.CapacityLimiter) -> None:
    wait: Callable[[ssl.SSLSocket], Awaitable[None]]
    while True:
        async with steps:
            try:
                tls.do_handshake()
                return
            except ssl.SSLWantReadError:
                wait = trio.lowlevel.wait_readable
            except ssl.SSLWantWriteError:
                wait = trio.lowlevel.wait_writable
        await wait(tls)


def _identity_text(text: str) -> str:
    return f"invalid peer certificate: Other(OtherError(identity verification error: {text}))"


def _identities(names: Sequence[str]) -> Iterator[SpiffeId]:
    for name in names:
        try:
            yield SpiffeId.parse(name)
        except PeerBrokeProtocol as error:
            log.warning("SAN %s could not be parsed: %s", name, error)


class _Certificate(Protocol):
    def public_bytes(self, encoding: int, /) -> bytes: ...


class _HasChain(Protocol):
    """What `ssl.SSLSocket` and `ssl.SSLObject` wrap: `_ssl._SSLSocket`."""

    def get_verified_chain(self) -> Sequence[_Certificate]: ...


_ENCODING_DER: Final = 2  # _ssl.ENCODING_DER: X509_FILETYPE_ASN1 of openssl/x509.h, SSL_FILETYPE_ASN1


def _verified_chain(tls: Finished) -> tuple[bytes, ...]:
    """The path OpenSSL verified, as DER. Public from Python 3.13 on; before, the wrapped object has it."""
    if sys.version_info >= (3, 13):
        return tuple(tls.get_verified_chain())
    wrapped = cast("_HasChain", tls._sslobj)  # type: ignore[union-attr]  # private
    return tuple(each.public_bytes(_ENCODING_DER) for each in wrapped.get_verified_chain())


def _context(certificate: WorkloadCertificate, protocol: ssl._SSLMethod, *, tls12: bool) -> ssl.SSLContext:
    """A context that trusts all roots of the certificate, also those that share a name.

    OpenSSL takes the first root of the issuer's name for the issuer. Istio's self-signed roots all have one
    name, and without key identifiers in the chain only the signature tells them apart.
    """
    roots = certificate.roots_der
    context = _context_of_roots(certificate, protocol, roots, tls12=tls12)
    namesakes = _namesakes(roots)
    if namesakes:

        def only(root: bytes) -> ssl.SSLContext:
            others = namesakes[root]
            kept = tuple(each for each in roots if each == root or each not in others)
            return _context_of_roots(certificate, protocol, kept, tls12=tls12)

        _choose_context_by_chain(context, {root: only(root) for root in namesakes})
    return context


def _context_of_roots(
    certificate: WorkloadCertificate, protocol: ssl._SSLMethod, roots: Sequence[bytes], *, tls12: bool
) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.check_hostname = False  # identities are SPIFFE names, checked by `judge_server`
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # an intermediate may be the trust anchor
    context.minimum_version = ssl.TLSVersion.TLSv1_2 if tls12 else ssl.TLSVersion.TLSv1_3
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_TICKET
    context.options |= ssl.OP_CIPHER_SERVER_PREFERENCE
    context.set_alpn_protocols([ALPN_H2])
    if protocol == ssl.PROTOCOL_TLS_SERVER:
        context.num_tickets = 0
    try:
        if tls12:
            context.set_ciphers(TLS12_SUITES)
        _load_chain(context, certificate)
        context.load_verify_locations(cadata=b"".join(roots))
    except (ssl.SSLError, ValueError) as error:
        raise TlsMisconfigured(f"certificate: {error}") from error
    return context


def _load_chain(context: ssl.SSLContext, certificate: WorkloadCertificate) -> None:
    fd = os.memfd_create("workload-certificate", os.MFD_CLOEXEC)
    try:
        with open(fd, "wb", closefd=False) as memory:
            memory.write(certificate.chain_pem() + _issuing_root_pem(certificate) + certificate.key_pem)
        context.load_cert_chain(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)


def _issuing_root_pem(certificate: WorkloadCertificate) -> bytes:
    """The root that signed the leaf, if no intermediate stands between them.

    Given no chain, OpenSSL builds and verifies one for every handshake, and ends it with the root as well.
    """
    if certificate.intermediates_der:
        return b""
    try:
        leaf = x509.load_der_x509_certificate(certificate.leaf_der)
        roots = [x509.load_der_x509_certificate(root) for root in certificate.roots_der]
    except ValueError as error:
        raise TlsMisconfigured(f"certificate: {error}") from error
    for root in roots:
        if _is_issued_by(leaf, root):
            return root.public_bytes(serialization.Encoding.PEM)
    return b""


def _namesakes(roots: Sequence[bytes]) -> dict[bytes, frozenset[bytes]]:
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


def _choose_context_by_chain(context: ssl.SSLContext, by_root: dict[bytes, ssl.SSLContext]) -> None:
    """Have `context` hand a handshake to the context of the root that really signed the peer's chain.

    CPython's message callback (private, for debugging, unchanged since 3.8) sees the Certificate message
    before OpenSSL acts on it; a connection's trust is its context's, so setting another context there
    is enough. The callback stays on the connection and costs it two calls a record, which is why only
    bundles with namesakes get one. It decides nothing: without a match OpenSSL refuses as ever.
    """
    roots = {root: x509.load_der_x509_certificate(root) for root in by_root}

    def choose(
        tls: Finished, direction: str, version: int, content_type: int, message_type: int, message: bytes
    ) -> None:
        if direction != "read" or content_type != _HANDSHAKE or message_type != CERTIFICATE_MESSAGE:
            return
        for presented in _presented_certificates(message, version):
            if presented.issuer == presented.subject:  # a root, sent along: says nothing of the leaf's
                continue
            for root, certificate in roots.items():
                if _is_issued_by(presented, certificate):
                    tls.context = by_root[root]
                    return

    cast("_HasMessageCallback", context)._msg_callback = choose


_HANDSHAKE: Final = 22  # RFC 8446 5.1, ContentType


class _HasMessageCallback(Protocol):
    _msg_callback: Callable[[Finished, str, int, int, int, bytes], None]


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


def _is_issued_by(certificate: x509.Certificate, root: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(root)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True
