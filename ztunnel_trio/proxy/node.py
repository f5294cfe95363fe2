"""What all workload proxies of a process share: the mesh, certificates, the engine, where they report."""

import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from ztunnel_trio.decide.balance import Draws
from ztunnel_trio.decide.known import HostAnswer
from ztunnel_trio.decide.route import ILLEGAL_PORTS
from ztunnel_trio.facts.network import HBONE_PORT
from ztunnel_trio.live_mesh import LiveMesh
from ztunnel_trio.model.certificate import WorkloadCertificate
from ztunnel_trio.model.ending import TlsRefused
from ztunnel_trio.model.identity import SpiffeId
from ztunnel_trio.net.engine import Engine
from ztunnel_trio.net.tls.contexts import TlsContexts
from ztunnel_trio.net.tls.peer import TlsPeer, Verdict
from ztunnel_trio.observe.access.record import AccessLog
from ztunnel_trio.observe.log import get_logger
from ztunnel_trio.observe.metrics import Metrics, Reporter
from ztunnel_trio.proxy.pool_choice import PoolSettings
from ztunnel_trio.proxy.tunnel.settings import TunnelSettings
from ztunnel_trio.wire.header_values import TRACE_BYTES, TraceParent
from ztunnel_trio.wire.http2.budgets import Excess

log = get_logger("proxy::h2")


class Certificates(Protocol):
    """Where a workload's certificates come from; `certs.keeper.PodCertificates` is one."""

    async def certificate(self, identity: SpiffeId) -> WorkloadCertificate:
        """The present certificate of an identity, waiting for its first fetch.

        Raises:
            Unavailable: none can be had now.
        """
        ...


class Registration(Protocol):
    """A peer's chain under watch; `certs.crl` returns one."""

    def release(self) -> None: ...


class RevocationWatch(Protocol):
    """Revocation lists; `certs.crl.CrlKeeper` is one."""

    def verdict(self, chain_der: Sequence[bytes], *, reporter: Reporter) -> TlsRefused | None:
        """Why a new peer's verified chain is refused, or None; a refusal is counted."""
        ...

    def register(
        self, chain_der: Sequence[bytes], on_revoked: Callable[[], None], *, reporter: Reporter
    ) -> Registration:
        """Watch an established connection; `on_revoked` is called at most once."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxySettings:
    """The data path's settings; the comment names where each comes from."""

    is_on: bool = True  # ENABLE_PROXY; off: only the name servers run
    network: str = ""  # NETWORK
    illegal_ports: frozenset[int] = ILLEGAL_PORTS  # and the SOCKS5 port where that is on
    on_demand: bool = False  # XDS_ON_DEMAND
    response_baggage: bool = True  # ENABLE_RESPONSE_BAGGAGE
    localhost_app_tunnel: bool = True  # LOCALHOST_APP_TUNNEL
    require_original_source: bool | None = None  # ENABLE_ORIG_SRC
    is_ipv6_enabled: bool = True  # IPV6_ENABLED
    policy_log_level: int = logging.DEBUG  # INFO with AUTHZ_POLICY_INFO_LOGGING
    socks5: bool = False  # UNSTABLE_ENABLE_SOCKS5
    hbone_port: int = HBONE_PORT
    connect_seconds: float = 10.0  # ztunnel src/proxy.rs CONNECTION_TIMEOUT
    handshake_seconds: float = 10.0  # the reference waits for ever; a stuck peer is none of ours
    answer_seconds: float = 20.0  # the peer's proxy has its own 10 s to reach the application
    local_workload_seconds: float = 5.0  # ztunnel src/state.rs, the wait for the workload's own record
    other_endpoints: int = 2  # how many more endpoints a failed connect may try
    tunnel: TunnelSettings = field(default_factory=TunnelSettings)
    pool: PoolSettings = field(default_factory=PoolSettings)


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeParts:
    """Handed to every workload proxy by the app."""

    settings: ProxySettings
    live: LiveMesh
    certificates: Certificates
    contexts: TlsContexts
    engine: Engine
    access: AccessLog
    metrics: Metrics
    revocations: RevocationWatch | None
    resolve: Callable[[str], Awaitable[HostAnswer]]
    demand: Callable[[str], Awaitable[None]]
    rng: random.Random
    draws: Draws = field(default_factory=Draws)

    def new_trace(self) -> TraceParent:
        """The trace of a connection that brought none."""
        return TraceParent.generate(self.rng.randbytes(TRACE_BYTES))

    def flood_cut(self, peer: TlsPeer, kind: Excess) -> None:
        """A tunnel is ended because its peer sent more than its budget of one kind: a person should look."""
        who = ", ".join(map(str, peer.identities)) or "a peer without identity"
        log.warning("tunnel ended: %s is beyond its budget of %s", who, kind.value)
        self.metrics.flood_cut(kind.value)

    def verdict_for(self, reporter: Reporter) -> Verdict | None:
        """What a handshake asks about its peer; None where nothing is ever revoked."""
        revocations = self.revocations
        if revocations is None:
            return None

        def verdict(peer: TlsPeer) -> TlsRefused | None:
            return revocations.verdict(peer.chain_der, reporter=reporter)

        return verdict
