"""Where certificates come from, and which are held ready."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from ztunnel_trio.assembly.control_plane import make_caller, make_target
from ztunnel_trio.assembly.spire import make_subscribed
from ztunnel_trio.certs.crl import CrlKeeper
from ztunnel_trio.certs.fake_ca import FakeCa
from ztunnel_trio.certs.keeper import Keeper, PodCertificates
from ztunnel_trio.certs.provider import CertificateProvider
from ztunnel_trio.certs.signed import SignedCertificates
from ztunnel_trio.certs.subscribed import SubscribedCertificates
from ztunnel_trio.config import Config, Provider, ProxyMode, Unstartable
from ztunnel_trio.control.ca_client import CaClient, CaSettings
from ztunnel_trio.control.grpc import ChannelSettings
from ztunnel_trio.errors import ConfigError
from ztunnel_trio.live_mesh import LiveMesh
from ztunnel_trio.mesh.mesh import Changes
from ztunnel_trio.model.certificate_key import AttestedPod, CertificateKey
from ztunnel_trio.model.source import FromFile, RootSource
from ztunnel_trio.net.tls.contexts import TlsContexts
from ztunnel_trio.observe.metrics import Metrics
from ztunnel_trio.observe.metrics.families import CERTIFICATE_LEFT, CERTIFICATES, CLOCK_SKEW, REVOCATIONS_LEFT
from ztunnel_trio.observe.words import os_error_text
from ztunnel_trio.supervise.keep_running import Supervisor
from ztunnel_trio.supervise.wall_clock import WallClock, utc_now


def make_certificates(
    config: Config, contexts: TlsContexts, supervisor: Supervisor
) -> SignedCertificates | SubscribedCertificates:
    """Where certificates come from: the CA, a private one of our own, or SPIRE.

    Raises:
        ConfigError: the CA's roots, or the private CA's files, cannot be read; what SPIRE needs is missing.
    """
    is_shared = config.proxy_mode is ProxyMode.SHARED
    if config.certificates.provider not in (Provider.ISTIO_CA, Provider.FAKE):
        return make_subscribed(config, contexts, supervisor)
    if config.certificates.provider is Provider.FAKE:
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


def make_keeper(
    provider: CertificateProvider, clock: WallClock, metrics: Metrics, supervisor: Supervisor
) -> Keeper:
    """The certificates of this process, and what is shown of them."""
    keeper = Keeper(
        provider,
        clock=clock,
        rng=supervisor.rng,
        supervisor=supervisor,
        tell_skew=partial(metrics.set, CLOCK_SKEW),
    )
    metrics.show(CERTIFICATES, lambda: {(state,): count for state, count in keeper.census().items()})
    metrics.show(
        CERTIFICATE_LEFT, lambda: {} if (left := keeper.seconds_left()) is None else {(): round(left, 3)}
    )
    return keeper


def make_crl(config: Config, metrics: Metrics, pushed: SubscribedCertificates | None) -> CrlKeeper | None:
    """The revocation lists of a file, and those that come with certificates; None where there are neither."""
    path = config.control.crl_path
    if path is None and pushed is None:
        return None
    crl = CrlKeeper(None, metrics) if path is None else CrlKeeper.open(path, metrics)
    if crl is not None and pushed is not None:
        pushed.on_crls = partial(take_lists, crl, pushed)
    metrics.show(
        REVOCATIONS_LEFT,
        lambda: {} if crl is None or (left := crl.seconds_left()) is None else {(): round(left, 3)},
    )
    return crl


def take_lists(crl: CrlKeeper, pushed: SubscribedCertificates) -> None:
    """Some key's revocation lists have changed."""
    crl.push({der for lists in pushed.crls.values() for der in lists})


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


def pod_certificates(keeper: Keeper, live: LiveMesh, pod: AttestedPod) -> PodCertificates:
    """The certificates of a pod that is here now; where it is attested, asked for before it needs them."""
    certificates = keeper.of_pod(pod)
    prefetch_attested(keeper, live, [pod])
    return certificates


def prefetch_attested(keeper: Keeper, live: LiveMesh, pods: Sequence[AttestedPod]) -> None:
    """Ask for the certificates of pods that are attested, as far as the mesh knows who they are."""
    if not keeper.attests_pods:
        return
    for pod in pods:
        if (workload := live.mesh.local_workload(pod.info)) is not None:
            keeper.prefetch(CertificateKey(workload.identity, pod))


def follow_workloads(keeper: Keeper, live: LiveMesh, changes: Changes) -> None:
    """Have certificates of this node's workloads ready before they are needed, and forget them after.

    Those of pods that are attested go with the pod.
    """
    if changes.put:
        prefetch_attested(keeper, live, keeper.pods())
    for workload in changes.put:
        if workload.wants_certificate and not keeper.attests_pods:
            keeper.prefetch(CertificateKey(workload.identity))
    for workload in changes.forgotten:
        keeper.forget(CertificateKey(workload.identity))
