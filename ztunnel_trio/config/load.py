"""Reads all settings, once, before any socket is opened."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from ztunnel_trio.config.certificates import CertificateConfig, Provider, load_certificates
from ztunnel_trio.config.control_plane import ControlPlaneConfig, load_control_plane
from ztunnel_trio.config.environment import Environment, is_utf8
from ztunnel_trio.config.http2 import Http2Config, load_http2
from ztunnel_trio.config.listeners import ListenerConfig, is_ipv6_on_loopback, load_listeners
from ztunnel_trio.config.machine import Machine, ThisMachine
from ztunnel_trio.config.mesh_file import load_proxy_config
from ztunnel_trio.config.process import check_compliance, load_termination, load_threads
from ztunnel_trio.config.resolver import load_resolver
from ztunnel_trio.config.role import (
    ProxyMode,
    ToldConfig,
    load_own,
    load_told,
    load_workload_info,
    parse_mode,
)
from ztunnel_trio.config.sockets import SocketConfig, load_sockets
from ztunnel_trio.dns.resolv_conf import ResolvConf
from ztunnel_trio.errors import ConfigError
from ztunnel_trio.facts import defaults, env
from ztunnel_trio.facts.network import (
    DEFAULT_CLUSTER,
    HBONE_PORT,
    INBOUND_PLAINTEXT_PORT,
    OUTBOUND_PORT,
    PACKET_MARK,
    SOCKS5_PORT,
)
from ztunnel_trio.grammar import (
    parse_bool,
)
from ztunnel_trio.model.identity import SpiffeId
from ztunnel_trio.model.workload import WorkloadInfo

UNKNOWN_VERSION: Final = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Every setting; field names are the dump's keys in snake case, seconds where it has durations."""

    # role and identity
    proxy_mode: ProxyMode
    proxy_workload_information: WorkloadInfo | None
    local_node: str | None
    network: str
    cluster_id: str
    cluster_domain: str
    ztunnel_identity: SpiffeId | None
    ztunnel_workload: WorkloadInfo | None
    preferred_service_namespace: str | None
    told: ToldConfig
    # which servers run, and where
    proxy: bool
    dns_proxy: bool
    listeners: ListenerConfig
    ipv6_enabled: bool
    ipv6_loopback: bool
    control: ControlPlaneConfig
    certificates: CertificateConfig
    # pods and their connections
    inpod_uds: str
    inpod_port_reuse: bool
    packet_mark: int | None
    require_original_source: bool | None
    localhost_app_tunnel: bool
    enable_enhanced_baggage: bool
    sockets: SocketConfig
    http2: Http2Config
    # end of the process
    self_termination_deadline_seconds: float
    # informational here: one loop does all the work
    num_worker_threads: int
    # TLS and logging
    tls12_enabled: bool
    authz_policy_info_logging: bool
    istio_version: str
    proxy_args: str
    # names resolved on demand
    resolver: ResolvConf
    # what a person should know at start, logged as warnings
    notes: tuple[str, ...] = ()

    @property
    def illegal_ports(self) -> frozenset[int]:
        """Ports that are never proxied to: they are our own."""
        own = frozenset({HBONE_PORT, INBOUND_PLAINTEXT_PORT, OUTBOUND_PORT})
        return own if self.listeners.socks5_addr is None else own | {SOCKS5_PORT}


def load(environ: Mapping[str, str], machine: Machine | None = None, arguments: Sequence[str] = ()) -> Config:
    """Read all settings. `arguments` is the command line without the program's name.

    Raises:
        ConfigError: the operator's input is wrong; the text says which and why.
        Unstartable: it is wrong in a way for which the exit code is 101.
    """
    machine = ThisMachine() if machine is None else machine
    environ = {name: value for name, value in environ.items() if is_utf8(name) and is_utf8(value)}
    values, notes = Environment(environ), list[str]()
    proxy_config = load_proxy_config(environ, machine)
    metadata = proxy_config.proxy_metadata

    mode = values.read(env.PROXY_MODE, parse_mode, ProxyMode.SHARED)
    is_shared = mode is ProxyMode.SHARED
    ipv6 = values.boolean(env.IPV6_ENABLED, default=True)
    ipv6_loopback = ipv6 and is_ipv6_on_loopback(machine, notes)
    own_identity, own_workload = load_own(values)
    certificates = load_certificates(values, mode)
    has_ca = certificates.provider is Provider.ISTIO_CA
    check_compliance(values)

    config = Config(
        proxy_mode=mode,
        proxy_workload_information=None if is_shared else load_workload_info(values),
        local_node=values.text(env.NODE_NAME),
        network=values.text(env.NETWORK) or "",
        cluster_id=metadata.get("CLUSTER_ID") or environ.get(env.CLUSTER_ID, DEFAULT_CLUSTER),
        cluster_domain=environ.get(env.CLUSTER_DOMAIN, defaults.CLUSTER_DOMAIN),
        ztunnel_identity=own_identity,
        ztunnel_workload=own_workload,
        preferred_service_namespace=values.text(env.PREFERRED_SERVICE_NAMESPACE),
        told=load_told(environ, metadata, notes),
        proxy=values.boolean(env.ENABLE_PROXY, default=True),
        dns_proxy=metadata.get("DNS_CAPTURE", "true").lower() == "true",
        listeners=load_listeners(values, proxy_config, ipv6=ipv6, ipv6_loopback=ipv6_loopback),
        ipv6_enabled=ipv6,
        ipv6_loopback=ipv6_loopback,
        control=load_control_plane(values, proxy_config, machine, notes, has_ca=has_ca),
        certificates=certificates,
        inpod_uds=environ.get(env.INPOD_UDS, defaults.INPOD_SOCKET),
        inpod_port_reuse=values.boolean(env.INPOD_PORT_REUSE, default=True),
        packet_mark=values.number(env.PACKET_MARK, PACKET_MARK if is_shared else 0) or None,
        require_original_source=values.read(env.ENABLE_ORIG_SRC, parse_bool, None),
        localhost_app_tunnel=values.boolean(env.LOCALHOST_APP_TUNNEL, default=True),
        enable_enhanced_baggage=values.boolean(env.ENABLE_RESPONSE_BAGGAGE, default=True),
        sockets=load_sockets(values),
        http2=load_http2(values),
        self_termination_deadline_seconds=load_termination(values),
        num_worker_threads=load_threads(values, proxy_config.concurrency, machine),
        tls12_enabled=values.is_true(env.TLS12_ENABLED),
        authz_policy_info_logging=values.is_true(env.AUTHZ_POLICY_INFO_LOGGING),
        istio_version=environ.get(env.META_ISTIO_VERSION, UNKNOWN_VERSION),
        proxy_args=" ".join(arguments),
        resolver=load_resolver(machine),
        notes=tuple(notes),
    )
    return check(config)


def check(config: Config) -> Config:
    """Hold settings against each other.

    Raises:
        ConfigError: two of them contradict each other.
    """
    if config.dns_proxy and config.control.xds_on_demand:
        raise ConfigError("error parsing proxy config: DNS proxy does not currently support on-demand mode")
    if not config.proxy and not config.dns_proxy:
        raise ConfigError("error parsing proxy config: ztunnel run without any servers enabled")
    return config
