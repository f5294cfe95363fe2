"""A stand-in SPIRE agent that runs for a test, and providers connected to it."""

import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path

import trio

from ztunnel_trio.certs.subscribed import SubscribedCertificates, SubscriptionSettings, SvidSource
from ztunnel_trio.control import grpc
from ztunnel_trio.control.grpc import ChannelSettings
from ztunnel_trio.control.spiffe import broker, workload_api
from ztunnel_trio.control.spiffe.by_process import NodeProcesses, Processes
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
from ztunnel_trio.lab.pki import Authority
from ztunnel_trio.lab.spire_agent import (
    BROKER_SOCKET,
    DELEGATE_SOCKET,
    WORKLOAD_SOCKET,
    Account,
    AttestedCaller,
    InNetns,
    PodUid,
    SpireAgent,
)
from ztunnel_trio.model.backoff import Backoff
from ztunnel_trio.model.certificate_key import AttestedPod, CertificateKey
from ztunnel_trio.model.identity import SpiffeId
from ztunnel_trio.model.socket_target import UnixPath
from ztunnel_trio.model.workload import WorkloadInfo
from ztunnel_trio.net.netns import Netns
from ztunnel_trio.net.tls.contexts import TlsContexts
from ztunnel_trio.supervise.keep_running import Supervisor

PROXY = SpiffeId("cluster.local", "istio-system", "ztunnel")
WEB = SpiffeId("cluster.local", "default", "web")
QUICK = Supervisor(random.Random(1))
SETTINGS = ChannelSettings(ping_seconds=600.0)


def own_netns() -> tuple[int, int]:
    """The network namespace of the test's own process."""
    netns = Netns.own()
    netns.close()
    return netns.key


def key_of(identity: SpiffeId = WEB, *, name: str = "web-1") -> CertificateKey:
    """A pod that is in this process's own namespace."""
    info = WorkloadInfo(name=name, namespace=identity.namespace, service_account=identity.service_account)
    return CertificateKey(identity, AttestedPod(f"uid-{name}", info, own_netns()))


def open_at(path: Path) -> Callable[[], AbstractAsyncContextManager[grpc.Channel]]:
    """Connections to a Unix socket."""
    return partial(grpc.open_agent_channel, UnixPath(str(path)), None, SETTINGS)


def delegate_link(directory: Path) -> AgentLink:
    return AgentLink(open_at(directory / DELEGATE_SOCKET), {})


def selectors_source(directory: Path) -> Selectors:
    return Selectors(DelegatedIdentity(delegate_link(directory), QUICK), "node-1")


def processes_source(
    directory: Path, find: Callable[[AttestedPod], Awaitable[Sequence[int]]] | None = None
) -> AttestedProcesses:
    api = DelegatedIdentity(delegate_link(directory), QUICK)
    processes = Processes(NodeProcesses().find if find is None else find, api.follow, sees_processes=True)
    return AttestedProcesses(processes, Shared((api.run,)))


def broker_source(directory: Path, *, own_id: SpiffeId = PROXY) -> BrokeredPods:
    """Pods by reference; our own certificate comes from the Workload API."""
    own = OwnIdentity(AgentLink(open_at(directory / WORKLOAD_SOCKET), workload_api.METADATA), own_id, QUICK)
    target = UnixPath(str(directory / BROKER_SOCKET))
    link = AgentLink(
        partial(open_broker, target, own, TlsContexts().client_context, SETTINGS), broker.METADATA
    )
    return BrokeredPods(link, Shared((own.run, link.run)))


def own_source(directory: Path) -> OwnCertificates:
    return OwnCertificates(AgentLink(open_at(directory / WORKLOAD_SOCKET), workload_api.METADATA))


@asynccontextmanager
async def serving(provider: SubscribedCertificates) -> AsyncGenerator[SubscribedCertificates, None]:
    """Run a provider for the body's time."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(provider.run)
        yield provider
        nursery.cancel_scope.cancel(reason="the test is over")


def provider_over(
    source: SvidSource, *, first_state_seconds: float = 10.0, foreign: frozenset[str] = frozenset()
) -> SubscribedCertificates:
    """A provider with a back-off that a test can sit out."""
    settings = SubscriptionSettings(
        first_state_seconds=first_state_seconds,
        backoff=Backoff(first_seconds=0.02, limit_seconds=0.1),
        foreign_trust_domains=foreign,
    )
    return SubscribedCertificates(source, QUICK, settings)


@asynccontextmanager
async def agent_at(directory: Path, *, spares_callers: bool = False) -> AsyncGenerator[SpireAgent, None]:
    """A running agent that has entries for `WEB`: its account, its processes, its own caller."""
    agent = SpireAgent(Authority(), spares_callers=spares_callers)
    agent.entries = {
        Account(WEB.namespace, WEB.service_account): [str(WEB)],
        InNetns(own_netns()): [str(WEB)],
        AttestedCaller(): [str(WEB), str(PROXY)],
        PodUid("uid-web-1"): [str(WEB)],
    }
    async with grpc.open_control_loop(), agent.running(directory, brokers=[str(PROXY)]):
        yield agent
