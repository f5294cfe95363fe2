"""SSL contexts of workload certificates: made once a certificate, kept for as long as it is.

The private key reaches OpenSSL, which only loads files, through a memory file that no directory names.
"""

import os
import ssl
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import trio
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from ztunnel_trio.facts.network import ALPN_H2
from ztunnel_trio.model.certificate import WorkloadCertificate
from ztunnel_trio.net.tls.chain_choice import choose_context_by_chain, is_issued_by, namesakes
from ztunnel_trio.net.tls.failures import TlsMisconfigured

# rustls' TLS 1.2 suites with AES-GCM, in its order (ztunnel src/tls/lib.rs); for TLS12_ENABLED only.
TLS12_SUITES: Final = ":".join(
    (
        "ECDHE-ECDSA-AES256-GCM-SHA384",
        "ECDHE-ECDSA-AES128-GCM-SHA256",
        "ECDHE-RSA-AES256-GCM-SHA384",
        "ECDHE-RSA-AES128-GCM-SHA256",
    )
)


@dataclass(slots=True, eq=False)
class _Contexts:
    """One certificate's contexts, made when first needed. `alive` tells whether it is still that one."""

    alive: "weakref.ref[WorkloadCertificate]"
    server: ssl.SSLContext | None = None
    client: ssl.SSLContext | None = None


class TlsContexts:
    """The SSL contexts of all certificates, and the limit on handshake steps.

    They go with their certificate: whoever keeps certificates bounds them. Pods of one identity may have a
    certificate each, so the identity is no key.
    """

    __slots__ = ("_contexts", "_tls12", "steps")

    def __init__(self, *, tls12: bool = False, steps_at_once: int = 4) -> None:
        self._tls12 = tls12
        self._contexts: dict[int, _Contexts] = {}  # by the certificate's `id`
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

    def _entry(self, certificate: WorkloadCertificate) -> _Contexts:
        key = id(certificate)
        entry = self._contexts.get(key)
        if entry is None or entry.alive() is not certificate:
            entry = self._contexts[key] = _Contexts(weakref.ref(certificate, partial(self._drop, key)))
        return entry

    def _drop(self, key: int, gone: "weakref.ref[WorkloadCertificate]") -> None:
        """A certificate is no more; another may have its `id` by now."""
        entry = self._contexts.get(key)
        if entry is not None and entry.alive is gone:
            del self._contexts[key]


def _context(certificate: WorkloadCertificate, protocol: ssl._SSLMethod, *, tls12: bool) -> ssl.SSLContext:
    """A context that trusts all roots of the certificate, also those that share a name.

    See `net.tls.chain_choice` for those.
    """
    foreign = (root for _, roots in certificate.foreign_roots_der for root in roots)
    roots = tuple(dict.fromkeys((*certificate.roots_der, *foreign)))
    context = _context_of_roots(certificate, protocol, roots, tls12=tls12)
    same_name = namesakes(roots)
    if same_name:

        def only(root: bytes) -> ssl.SSLContext:
            others = same_name[root]
            kept = tuple(each for each in roots if each == root or each not in others)
            return _context_of_roots(certificate, protocol, kept, tls12=tls12)

        choose_context_by_chain(context, {root: only(root) for root in same_name})
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
        if is_issued_by(leaf, root):
            return root.public_bytes(serialization.Encoding.PEM)
    return b""
