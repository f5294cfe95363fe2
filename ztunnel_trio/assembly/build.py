"""Every object that lives as long as the process, built from the configuration before anything runs."""

import random
from functools import partial

import trio

from ztunnel_trio.assembly.admin import make_servers
from ztunnel_trio.assembly.certificates import follow_workloads, make_certificates, make_crl, make_keeper
from ztunnel_trio.assembly.discovery import make_ads, make_local_source
from ztunnel_trio.assembly.parts import Parts
from ztunnel_trio.build_info import BuildInfo
from ztunnel_trio.certs.subscribed import SubscribedCertificates
from ztunnel_trio.config import Config, ProxyMode
from ztunnel_trio.control.local_mesh import LocalMesh
from ztunnel_trio.inpod.agent import GATE_NAME
from ztunnel_trio.live_mesh import LiveMesh
from ztunnel_trio.mesh.mesh import Mesh
from ztunnel_trio.net.engine import Engine
from ztunnel_trio.net.tls.contexts import TlsContexts
from ztunnel_trio.observe.metrics import Metrics
from ztunnel_trio.observe.metrics.families import CLOCK_STEPS, NOT_READY_SECONDS, PART_RESTARTS, READY
from ztunnel_trio.supervise.drain import Drain
from ztunnel_trio.supervise.keep_running import Supervisor
from ztunnel_trio.supervise.readiness import Readiness
from ztunnel_trio.supervise.wall_clock import WallClock


def build(config: Config, about: BuildInfo, began: float) -> Parts:
    """Make every object that lives as long as the process. `began` is when that did, by `time.perf_counter`.

    Raises:
        ConfigError: what the configuration names cannot be used.
    """
    is_shared = config.proxy_mode is ProxyMode.SHARED
    rng = random.Random()
    readiness = Readiness(began=began)
    metrics = Metrics(version=config.istio_version, shared=is_shared, dns=config.dns_proxy)
    show_readiness(metrics, readiness)
    supervisor = Supervisor(rng, partial(metrics.count, PART_RESTARTS))
    live = LiveMesh(Mesh(local_node=config.local_node))
    contexts = TlsContexts(tls12=config.tls12_enabled)
    clock = WallClock(on_step=partial(metrics.count, CLOCK_STEPS))
    certificates = make_certificates(config, contexts, supervisor)
    streams = certificates if isinstance(certificates, SubscribedCertificates) else None
    keeper = make_keeper(certificates, clock, metrics, supervisor)
    if is_shared:
        live.on_workloads.append(partial(follow_workloads, keeper, live))
    mesh_gate, mesh_arrived = readiness.gate("state manager"), trio.Event()
    gates = {name: readiness.gate(name) for name in served_by(config)}

    def mesh_has_arrived() -> None:
        mesh_gate.open()
        mesh_arrived.set()

    engine = Engine()
    ads = make_ads(config, live, metrics, supervisor, mesh_has_arrived, lambda: engine.moved)
    if ads is None:
        mesh_has_arrived()
    local_source = make_local_source(config)
    local_mesh = None if local_source is None else LocalMesh(live, local_source)
    if local_mesh is not None:
        local_mesh.start()
    crl = make_crl(config, metrics, streams)
    parts = Parts(
        config=config,
        rng=rng,
        drain=Drain(config.self_termination_deadline_seconds),
        supervisor=supervisor,
        readiness=readiness,
        gates=gates,
        metrics=metrics,
        live=live,
        engine=engine,
        contexts=contexts,
        clock=clock,
        keeper=keeper,
        streams=streams,
        ads=ads,
        local_mesh=local_mesh,
        crl=crl,
        mesh_arrived=mesh_arrived,
        servers=[],
    )
    parts.servers = make_servers(parts, local_source, about)
    return parts


def show_readiness(metrics: Metrics, readiness: Readiness) -> None:
    """Whether the process is ready, and if not, without what and for how long."""
    metrics.show(READY, lambda: {(): readiness.is_ready})
    metrics.show(
        NOT_READY_SECONDS, lambda: {(task,): round(s, 3) for task, s in readiness.pending_seconds().items()}
    )


def served_by(config: Config) -> list[str]:
    """The readiness tasks of what is switched on, as operators know them."""
    is_shared = config.proxy_mode is ProxyMode.SHARED
    tasks = (("proxy", config.proxy), ("dns proxy", config.dns_proxy), (GATE_NAME, is_shared))
    return [name for name, is_on in tasks if is_on]
