"""Where certificates come from, and which are held ready."""

from datetime import UTC, datetime
from pathlib import Path

from ztunnel_trio.assembly.control_plane import make_caller, make_target
from ztunnel_trio.certs.fake_ca import FakeCa
from ztunnel_trio.certs.keeper import Keeper
from ztunnel_trio.certs.signed import SignedCertificates
from ztunnel_trio.config import Config, ProxyMode, Unstartable
from ztunnel_trio.control.ca_client import CaClient, CaSettings
from ztunnel_trio.control.grpc import ChannelSettings
from ztunnel_trio.errors import ConfigError
from ztunnel_trio.mesh.mesh import Changes
from ztunnel_trio.model.certificate_key import CertificateKey
from ztunnel_trio.model.source import FromFile, RootSource
from ztunnel_trio.net.failures import os_error_text
from ztunnel_trio.net.tls import TlsContexts


def make_certificates(config: Config) -> SignedCertificates:
    """Where certificates come from: the CA, or a private one of our own.

    Raises:
        ConfigError: the CA's roots, or the private CA's files, cannot be read.
    """
    is_shared = config.proxy_mode is ProxyMode.SHARED
    if config.control.fake_ca:
        return SignedCertificates(
            FakeCa.open(config.control.fake_ca_root, utc_now).sign, check_identity=is_shared
        )
    if config.control.ca_address is None:
        raise Unstartable("CA_ADDRESS is empty: workload certificates need a CA, or FAKE_CA=true")
    check_readable("CA_ROOT_CA", config.control.ca_root_cert)
    client = CaClient(
        make_target(config.control.ca_address, config.control.alt_ca_hostname),
        config.control.ca_root_cert,
        make_caller(config, config.control.ca_headers),
        CaSettings(
            lifetime_seconds=int(config.control.secret_ttl_seconds),
            impersonate=is_shared,
            channel=ChannelSettings(tls12=config.tls12_enabled),
        ),
    )
    return SignedCertificates(client.sign, check_identity=is_shared)


def check_readable(name: str, roots: RootSource) -> None:
    """Read a root file once, so that a wrong one is told at the start (ztunnel src/identity/caclient.rs).

    Raises:
        ConfigError: it is there, and cannot be read.
    """
    if isinstance(roots, FromFile):
        try:
            Path(roots.path).read_bytes()
        except OSError as error:
            raise ConfigError(f"{name}: {roots.path}: {os_error_text(error)}") from error


def follow_workloads(keeper: Keeper, contexts: TlsContexts, changes: Changes) -> None:
    """Have certificates of this node's workloads ready before they are needed, and forget them after.

    Certificates of pods that are attested are held by the pods' proxies.
    """
    for workload in changes.put:
        if workload.wants_certificate and not keeper.attests_pods:
            keeper.prefetch(CertificateKey(workload.identity))
    for workload in changes.forgotten:
        keeper.forget(CertificateKey(workload.identity))
        contexts.forget(workload.identity)


def utc_now() -> datetime:
    return datetime.now(UTC)
