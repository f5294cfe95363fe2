"""Certificates from SPIRE: the provider that a configuration names, with all it stands on."""

from functools import partial
from typing import Final

from ztunnel_trio.certs.subscribed import SubscribedCertificates, SubscriptionSettings, SvidSource
from ztunnel_trio.config import Attestation, CertificateConfig, Config, Provider, Unstartable
from ztunnel_trio.control import grpc
from ztunnel_trio.control.cri import ContainerRuntime
from ztunnel_trio.control.grpc import ChannelSettings
from ztunnel_trio.control.spiffe import broker, workload_api
from ztunnel_trio.control.spiffe.broker import DRAFT_PACKAGE, PACKAGE, follow_brokered
from ztunnel_trio.control.spiffe.by_process import Find, Follow, NodeProcesses, Processes
from ztunnel_trio.control.spiffe.delegated import DelegatedIdentity
from ztunnel_trio.control.spiffe.link import AgentLink
from ztunnel_trio.control.spiffe.own_identity import OwnIdentity, open_broker
from ztunnel_trio.control.spiffe.sources import (
    AttestedProcesses,
    BrokeredPods,
    OwnCertificates,
    Selectors,
    Shared,
)
from ztunnel_trio.facts import env
from ztunnel_trio.model.socket_target import SocketTarget, UnixPath
from ztunnel_trio.net.processes import may_look_into_others, sees_other_processes
from ztunnel_trio.net.tls.contexts import TlsContexts
from ztunnel_trio.supervise.keep_running import Supervisor

SETTINGS: Final = ChannelSettings(ping_seconds=600.0)
"""grpc-go's servers take more than a ping in five minutes for abuse (keepalive.EnforcementPolicy)."""


def make_subscribed(config: Config, contexts: TlsContexts, supervisor: Supervisor) -> SubscribedCertificates:
    """The provider of a configuration that names one of SPIRE's.

    Raises:
        Unstartable: pods are attested by processes that we cannot see.
    """
    wanted = config.certificates
    settings = SubscriptionSettings(
        first_state_seconds=wanted.timeout_seconds, foreign_trust_domains=wanted.foreign_trust_domains
    )
    return SubscribedCertificates(make_source(config, contexts, supervisor), supervisor, settings)


def make_source(config: Config, contexts: TlsContexts, supervisor: Supervisor) -> SvidSource:
    """The agent's interface that a configuration names."""
    wanted = config.certificates
    match wanted.provider:
        case Provider.SPIFFE_WORKLOAD_API:
            return OwnCertificates(link_to(wanted.workload_socket, workload_api.METADATA))
        case Provider.SPIFFE_BROKER:
            return make_broker(wanted, contexts, supervisor)
        case Provider.SPIRE_DELEGATED_PID:
            api = DelegatedIdentity(link_to(wanted.delegate_socket, {}), supervisor)
            return AttestedProcesses(make_processes(wanted, api.follow), Shared((api.run,)))
        case _:
            api = DelegatedIdentity(link_to(wanted.delegate_socket, {}), supervisor)
            return Selectors(api, config.local_node)


def make_broker(wanted: CertificateConfig, contexts: TlsContexts, supervisor: Supervisor) -> SvidSource:
    """The Broker API, with our own certificate for it."""
    assert wanted.broker_socket is not None
    own = OwnIdentity(link_to(wanted.workload_socket, workload_api.METADATA), wanted.own_id, supervisor)
    link = AgentLink(
        partial(open_broker, wanted.broker_socket, own, contexts.client_context, SETTINGS), broker.METADATA
    )
    shared = Shared((own.run, link.run))
    package = DRAFT_PACKAGE if wanted.draft_references else PACKAGE
    if wanted.attestation is Attestation.PID:
        follow = partial(follow_brokered, link, package=package)
        return AttestedProcesses(make_processes(wanted, follow), shared)
    return BrokeredPods(link, shared, package)


def make_processes(wanted: CertificateConfig, follow: Follow) -> Processes:
    """Where a pod's processes are looked for.

    Raises:
        Unstartable: nowhere: the host's processes cannot be seen, and no container runtime is named.
    """
    sees = sees_other_processes() and may_look_into_others()
    find: Find
    if wanted.runtime_socket is not None:
        target = UnixPath(wanted.runtime_socket)
        find = ContainerRuntime(partial(grpc.open_agent_channel, target, None, SETTINGS)).processes
    elif sees:
        find = NodeProcesses().find
    else:
        raise Unstartable(
            f"{env.CA_PROVIDER}={wanted.provider.value} attests pods by their processes, but the host's"
            " cannot be seen: run with the host's PID namespace and CAP_SYS_PTRACE, or set"
            f" {env.CONTAINER_RUNTIME_SOCK_PATH}"
        )
    return Processes(find, follow, sees_processes=sees)


def link_to(target: SocketTarget | None, metadata: dict[str, str]) -> AgentLink:
    """One connection to a socket without TLS."""
    assert target is not None
    return AgentLink(partial(grpc.open_agent_channel, target, None, SETTINGS), metadata)
