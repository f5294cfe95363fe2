"""What the process is made of."""

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import trio

from ztunnel_trio.admin.http import HttpServer
from ztunnel_trio.certs.crl import CrlKeeper
from ztunnel_trio.certs.keeper import Keeper
from ztunnel_trio.certs.subscribed import SubscribedCertificates
from ztunnel_trio.config import Config
from ztunnel_trio.control.ads_client import AdsClient
from ztunnel_trio.control.local_mesh import LocalMesh
from ztunnel_trio.dns.forward import Budget
from ztunnel_trio.dns.share import PART_OF_ALL_PODS, LoopAllowance
from ztunnel_trio.live_mesh import LiveMesh
from ztunnel_trio.net.engine import Engine
from ztunnel_trio.net.tls.contexts import TlsContexts
from ztunnel_trio.observe.metrics import Metrics
from ztunnel_trio.proxy.workload_proxies import WorkloadProxies
from ztunnel_trio.supervise.drain import Drain
from ztunnel_trio.supervise.keep_running import Supervisor
from ztunnel_trio.supervise.readiness import Gate, Readiness
from ztunnel_trio.supervise.wall_clock import WallClock

DNS_IN_FLIGHT: Final = 4096  # sixteen pods at their own limit; a query holds up to a socket a server


@dataclass(slots=True, eq=False)
class Parts:
    """What the process is made of, built before anything runs."""

    config: Config
    rng: random.Random
    drain: Drain
    supervisor: Supervisor
    readiness: Readiness
    gates: Mapping[str, Gate]  # of what is switched on; all there before anybody can ask
    metrics: Metrics
    live: LiveMesh
    engine: Engine
    contexts: TlsContexts
    clock: WallClock
    keeper: Keeper
    streams: SubscribedCertificates | None  # where certificates are pushed
    ads: AdsClient | None
    local_mesh: LocalMesh | None
    crl: CrlKeeper | None
    mesh_arrived: trio.Event
    servers: list[HttpServer]
    workload_proxies: WorkloadProxies | None = None  # once its nursery is open
    queries: Budget = field(default_factory=lambda: Budget(DNS_IN_FLIGHT))  # forwarded, of all pods together
    dns_allowance: LoopAllowance = field(default_factory=lambda: LoopAllowance(PART_OF_ALL_PODS))
