"""What the process is made of: every object, built from the configuration before anything runs."""

import logging
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final

import trio

from ztunnel_trio.admin.dump import (
    ConfigDump,
    Part,
    Whole,
    certificates_part,
    mesh_parts,
    workload_state,
)
from ztunnel_trio.admin.http import HttpServer
from ztunnel_trio.admin.server import admin_server, readiness_server, stats_server
from ztunnel_trio.build_info import BuildInfo
from ztunnel_trio.certs.crl import CrlKeeper
from ztunnel_trio.certs.fake_ca import FakeCa
from ztunnel_trio.certs.keeper import Keeper
from ztunnel_trio.certs.signed import SignedCertificates
from ztunnel_trio.config import Config, ProxyMode, Unstartable
from ztunnel_trio.config_document import dump_config
from ztunnel_trio.control.ads_client import AdsClient, AdsSettings
from ztunnel_trio.control.ca_client import CaClient, CaSettings
from ztunnel_trio.control.credentials import Caller
from ztunnel_trio.control.grpc import ChannelSettings, Target
from ztunnel_trio.control.live_mesh import LiveMesh
from ztunnel_trio.control.local_mesh import LocalMesh, LocalSource, static_document
from ztunnel_trio.decide.answer import NameSettings
from ztunnel_trio.dns import server as dns_server
from ztunnel_trio.dns.forward import Budget, Forwarder
from ztunnel_trio.dns.host_resolver import HostResolver
from ztunnel_trio.dns.resolv_conf import read_hosts
from ztunnel_trio.dns.server import DnsServer, DnsSettings
from ztunnel_trio.errors import ConfigError
from ztunnel_trio.grammar import ControlPlaneAddress, Localhost
from ztunnel_trio.inpod.agent import GATE_NAME
from ztunnel_trio.mesh.document import Json
from ztunnel_trio.mesh.mesh import Changes, Mesh
from ztunnel_trio.model.address import SocketAddress
from ztunnel_trio.model.source import FromFile, RootSource
from ztunnel_trio.model.workload import WorkloadInfo
from ztunnel_trio.net.engine import Engine
from ztunnel_trio.net.failures import os_error_text
from ztunnel_trio.net.sockets import SocketFactory, SocketSettings
from ztunnel_trio.net.tls import TlsContexts
from ztunnel_trio.observe.access_log import AccessLog
from ztunnel_trio.observe.log import get_logger
from ztunnel_trio.observe.metrics import Metrics
from ztunnel_trio.proxy.node import Node, ProxySettings
from ztunnel_trio.proxy.pool import PoolSettings
from ztunnel_trio.proxy.tunnel import TunnelSettings
from ztunnel_trio.proxy.workload_proxies import Placement, WorkloadProxies
from ztunnel_trio.proxy.workload_proxy import NameServer
from ztunnel_trio.supervise.drain import Drain
from ztunnel_trio.supervise.readiness import Gate, Readiness
from ztunnel_trio.wire.ads import NodeFacts

signal_log = get_logger("signal")

DNS_IN_FLIGHT: Final = 4096  # sixteen pods at their own limit; a query holds up to a socket a server


@dataclass(slots=True, eq=False)
class Parts:
    """What the process is made of, built before anything runs."""

    config: Config
    rng: random.Random
    drain: Drain
    readiness: Readiness
    gates: Mapping[str, Gate]  # of what is switched on; all there before anybody can ask
    metrics: Metrics
    live: LiveMesh
    engine: Engine
    contexts: TlsContexts
    keeper: Keeper
    ads: AdsClient | None
    local_mesh: LocalMesh | None
    crl: CrlKeeper | None
    mesh_arrived: trio.Event
    servers: list[HttpServer]
    workload_proxies: WorkloadProxies | None = None  # once its nursery is open
    queries: Budget = field(default_factory=lambda: Budget(DNS_IN_FLIGHT))  # forwarded, of all pods together


def build(config: Config, about: BuildInfo, began: float) -> Parts:
    """Make every object that lives as long as the process. `began` is when that did, by `time.perf_counter`.

    Raises:
        ConfigError: what the configuration names cannot be used.
    """
    is_shared = config.proxy_mode is ProxyMode.SHARED
    rng = random.Random()
    readiness = Readiness(began=began)
    metrics = Metrics(version=config.istio_version, shared=is_shared, dns=config.dns_proxy)
    live = LiveMesh(Mesh(local_node=config.local_node))
    contexts = TlsContexts(tls12=config.tls12_enabled)
    keeper = Keeper(make_certificates(config), now=utc_now, rng=rng)
    if is_shared:
        live.on_workloads.append(partial(follow_workloads, keeper, contexts))
    mesh_gate, mesh_arrived = readiness.gate("state manager"), trio.Event()
    gates = {name: readiness.gate(name) for name in served_by(config)}

    def mesh_has_arrived() -> None:
        mesh_gate.open()
        mesh_arrived.set()

    engine = Engine()
    ads = make_ads(config, live, metrics, mesh_has_arrived, lambda: engine.moved)
    if ads is None:
        mesh_has_arrived()
    local_source = make_local_source(config)
    local_mesh = None if local_source is None else LocalMesh(live, local_source)
    if local_mesh is not None:
        local_mesh.start()
    parts = Parts(
        config=config,
        rng=rng,
        drain=Drain(config.self_termination_deadline_seconds),
        readiness=readiness,
        gates=gates,
        metrics=metrics,
        live=live,
        engine=engine,
        contexts=contexts,
        keeper=keeper,
        ads=ads,
        local_mesh=local_mesh,
        crl=None if config.control.crl_path is None else CrlKeeper.open(config.control.crl_path, metrics),
        mesh_arrived=mesh_arrived,
        servers=[],
    )
    parts.servers = make_servers(parts, local_source, about)
    return parts


def served_by(config: Config) -> list[str]:
    """The readiness tasks of what is switched on, as operators know them."""
    is_shared = config.proxy_mode is ProxyMode.SHARED
    tasks = (("proxy", config.proxy), ("dns proxy", config.dns_proxy), (GATE_NAME, is_shared))
    return [name for name, is_on in tasks if is_on]


def make_workload_proxies(parts: Parts, nursery: trio.Nursery) -> WorkloadProxies:
    """The set of workload proxies, with what all of them share."""
    config = parts.config
    plain = SocketFactory(None, socket_settings(config, mark=None, reuse_port=False))
    resolver = HostResolver(Forwarder(plain, config.resolver), read_hosts(), ipv6=config.ipv6_enabled)
    node = Node(
        settings=proxy_settings(config),
        live=parts.live,
        certificates=parts.keeper,
        contexts=parts.contexts,
        engine=parts.engine,
        access=AccessLog(parts.metrics),
        metrics=parts.metrics,
        revocations=parts.crl,
        resolve=resolver.resolve,
        demand=parts.ads.demand if parts.ads is not None else nobody_to_ask,
        rng=parts.rng,
    )
    pods = socket_settings(config, mark=config.packet_mark, reuse_port=config.inpod_port_reuse)

    def make_sockets(placement: Placement) -> SocketFactory:
        if placement.netns is not None:
            return SocketFactory(placement.netns, pods)
        here = socket_settings(
            config, mark=None if placement.is_own else config.packet_mark, reuse_port=False
        )
        return SocketFactory(None, here)

    make_name_server = partial(make_dns_server, parts) if config.dns_proxy else None
    return WorkloadProxies(node, nursery, parts.drain, make_sockets, make_name_server)


def make_dns_server(parts: Parts, sockets: SocketFactory, info: WorkloadInfo) -> NameServer:
    """One workload's name server, bound.

    Raises:
        OSError: a port cannot be had.
    """
    config, address = parts.config, parts.config.listeners.dns_proxy_addr
    names = NameSettings(
        cluster_domain=config.cluster_domain,
        search=None if config.proxy_mode is ProxyMode.SHARED else config.resolver.search,
        preferred_namespace=config.preferred_service_namespace,
        ipv6=config.ipv6_enabled,
    )
    where = dns_server.Localhost(address.port) if isinstance(address, Localhost) else address
    return DnsServer(
        sockets=dns_server.bind(sockets, where, ipv6=config.ipv6_loopback),
        live=parts.live,
        client=info,
        forwarder=Forwarder(sockets, config.resolver),
        settings=DnsSettings(names=names),
        metrics=parts.metrics,
        rng=parts.rng,
        budget=parts.queries,
    )


def make_local_source(config: Config) -> LocalSource | None:
    """The document the mesh is also read from, if one is named."""
    if config.control.local_xds_path is not None:
        return LocalSource(path=Path(config.control.local_xds_path))
    return None if config.control.local_xds is None else LocalSource(text=config.control.local_xds)


def make_servers(parts: Parts, local_source: LocalSource | None, build: BuildInfo) -> list[HttpServer]:
    """The servers of operators, bound: readiness, admin, stats.

    Raises:
        OSError: a port cannot be had.
    """
    config = parts.config
    here = SocketFactory(None, socket_settings(config, mark=None, reuse_port=False))
    admin = [SocketAddress(ip, config.listeners.admin_addr.port) for ip in dns_server.LOCALHOSTS]
    if not config.listeners.admin_addr.ipv6:
        del admin[1:]

    def states() -> Json:
        return (
            {}
            if parts.workload_proxies is None
            else workload_state(parts.workload_proxies.states(), with_connections=config.proxy)
        )

    def shut_down(text: str) -> None:
        signal_log.info("%s", text)
        parts.drain.request(text)

    dump: dict[str, Part] = {
        "certificates": certificates_part(parts.keeper),
        "config": Whole(lambda: dump_config(config)),
        "staticConfig": Whole(lambda: static_document(local_source)),
        "version": Whole(build.dump),
        **mesh_parts(parts.live.mesh),
    }
    if config.proxy_mode is ProxyMode.SHARED:
        dump["workloadState"] = Whole(states)
    return [
        readiness_server([here.listen_tcp(config.listeners.readiness_addr)], readiness=parts.readiness),
        admin_server(
            [here.listen_tcp(address) for address in admin],
            dump=ConfigDump(dump),
            shut_down=shut_down,
        ),
        stats_server([here.listen_tcp(config.listeners.stats_addr)], render=parts.metrics.render),
    ]


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


def make_ads(
    config: Config,
    live: LiveMesh,
    metrics: Metrics,
    on_ready: Callable[[], None],
    activity: Callable[[], int],
) -> AdsClient | None:
    """The discovery client, unless discovery is switched off. `activity` counts what the data path moves."""
    if config.control.xds_address is None:
        return None
    return AdsClient(
        live,
        make_target(config.control.xds_address, config.control.alt_xds_hostname),
        config.control.xds_root_cert,
        make_caller(config, config.control.xds_headers),
        NodeFacts(
            instance_ip=config.told.instance_ip,
            pod_name=config.told.pod_name,
            pod_namespace=config.told.pod_namespace,
            node_name=config.local_node or "",
            proxy_metadata=config.told.proxy_metadata,
            json_metadata=config.told.node_metadata_json,
        ),
        metrics=metrics,
        settings=AdsSettings(
            on_demand=config.control.xds_on_demand, channel=ChannelSettings(tls12=config.tls12_enabled)
        ),
        on_ready=on_ready,
        activity=activity,
    )


def make_target(address: ControlPlaneAddress, alternative_name: str | None) -> Target:
    return Target(host=address.host, port=address.port, alternative_name=alternative_name)


def make_caller(config: Config, headers: tuple[tuple[str, str], ...]) -> Caller:
    """How we prove ourselves to the control plane."""
    return Caller(token=config.control.auth, cluster_id=config.cluster_id, extra_headers=dict(headers))


def proxy_settings(config: Config) -> ProxySettings:
    """The data path's settings."""
    return ProxySettings(
        is_on=config.proxy,
        network=config.network,
        illegal_ports=config.illegal_ports,
        on_demand=config.control.xds_on_demand,
        response_baggage=config.enable_enhanced_baggage,
        localhost_app_tunnel=config.localhost_app_tunnel,
        require_original_source=config.require_original_source,
        is_ipv6_enabled=config.ipv6_enabled,
        policy_log_level=logging.INFO if config.authz_policy_info_logging else logging.DEBUG,
        socks5=config.listeners.socks5_addr is not None,
        tunnel=TunnelSettings(
            stream_window=config.http2.window_size,
            connection_window=config.http2.connection_window_size,
            frame_size=config.http2.frame_size,
            assumed_peer_streams=config.http2.pool_max_streams_per_conn,
        ),
        pool=PoolSettings(
            max_streams=config.http2.pool_max_streams_per_conn,
            idle_seconds=config.http2.pool_unused_release_timeout_seconds,
        ),
    )


def socket_settings(config: Config, *, mark: int | None, reuse_port: bool) -> SocketSettings:
    """How sockets are made; a mark of 0 means none."""
    return SocketSettings(
        mark=mark or None,
        keepalive=config.sockets.keepalive_enabled,
        keepalive_idle_seconds=int(config.sockets.keepalive_time_seconds),
        keepalive_interval_seconds=int(config.sockets.keepalive_interval_seconds),
        keepalive_probes=config.sockets.keepalive_retries,
        user_timeout=config.sockets.user_timeout_enabled,
        reuse_port=reuse_port,
        ipv6=config.ipv6_enabled,
    )


def follow_workloads(keeper: Keeper, contexts: TlsContexts, changes: Changes) -> None:
    """Have certificates of this node's workloads ready before they are needed, and forget them after."""
    for workload in changes.put:
        if workload.wants_certificate:
            keeper.prefetch(workload.identity)
    for workload in changes.forgotten:
        keeper.forget(workload.identity)
        contexts.forget(workload.identity)


async def nobody_to_ask(name: str) -> None:
    """There is no control plane: what the mesh does not know stays unknown."""
    await trio.lowlevel.checkpoint()


def utc_now() -> datetime:
    return datetime.now(UTC)
