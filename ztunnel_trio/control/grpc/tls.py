"""TLS contexts of clients and servers, and the rule by which a certificate is for a name."""

import ipaddress
import logging
import ssl
from collections.abc import Mapping, Sequence

from ztunnel_trio.control.grpc.target import ChannelSettings, PemRoots, Roots, Target
from ztunnel_trio.facts.network import ALPN_H2
from ztunnel_trio.model.source import SystemRoots

log = logging.getLogger("ztunnel::control::grpc")


def client_context(target: Target, roots: Roots, settings: ChannelSettings) -> ssl.SSLContext:
    """A TLS context that verifies the server; its name too, unless an alternative is accepted."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2 if settings.tls12 else ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols([ALPN_H2])
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # any certificate given is an anchor, as in webpki
    context.check_hostname = target.alternative_name is None  # else asked by `channel`, chain verified
    match roots:
        case SystemRoots():
            context.load_default_certs()
        case PemRoots(certificates):
            for der in certificates:
                try:
                    context.load_verify_locations(cadata=der)
                except ssl.SSLError as error:
                    log.warning("root certificate ignored: %s", error)
    return context


def server_context(chain_file: str, key_file: str | None = None) -> ssl.SSLContext:
    """A TLS context for `serve` that asks no certificate of its clients."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain_file, key_file)
    context.set_alpn_protocols([ALPN_H2])
    return context


def name_matches(certificate: Mapping[str, object], name: str) -> bool:
    """Whether a verified certificate, in the form of `SSLObject.getpeercert()`, is for a DNS name or address.

    RFC 6125 6.4: subject alternative names only, without regard to case, a wildcard stands for exactly one
    whole leftmost label.
    """
    names = certificate.get("subjectAltName", ())
    assert isinstance(names, Sequence)
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        wanted = name.rstrip(".").lower()
        parent = wanted.partition(".")[2]
        return any(
            kind == "DNS" and (given.lower() == wanted or ("." in parent and given.lower() == f"*.{parent}"))
            for kind, given in names
        )
    return any(
        kind == "IP Address" and ipaddress.ip_address(given.strip()) == address for kind, given in names
    )
