"""The settings as operators see them: the `config` part of the config dump, and the text at start."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import yaml

from ztunnel_trio.config import Config, JsonValue, Provider
from ztunnel_trio.config.sockets import SocketConfig
from ztunnel_trio.dns.resolv_conf import ResolvConf
from ztunnel_trio.grammar import ControlPlaneAddress, ListenAddress, Localhost
from ztunnel_trio.model.address import SocketAddress
from ztunnel_trio.model.identity import SpiffeId
from ztunnel_trio.model.source import FromFile, Literal, RootSource, SystemRoots
from ztunnel_trio.model.workload import WorkloadInfo

# The parts that are of one of several kinds, in JSON `{KIND: value}`.
OF_KINDS: Final = frozenset(
    {"adminAddr", "caRootCert", "dnsProxyAddr", "readinessAddr", "statsAddr", "xdsRootCert"}
)


def duration(seconds: float) -> JsonValue:
    """A duration as the dump shows it."""
    whole = int(seconds)
    return {"secs": whole, "nanos": round((seconds - whole) * 1e9)}


def listen_address(address: ListenAddress) -> JsonValue:
    if isinstance(address, Localhost):
        return {"Localhost": [address.ipv6, address.port]}
    return {"SocketAddr": str(address)}


def roots(root: RootSource) -> JsonValue:
    match root:
        case FromFile(path):
            return {"File": path}
        case Literal():
            return "Static"
        case SystemRoots():
            return "Default"


def optional(value: SpiffeId | ControlPlaneAddress | SocketAddress | None) -> str | None:
    return None if value is None else str(value)


def workload_info(info: WorkloadInfo | None) -> JsonValue:
    if info is None:
        return None
    return {"name": info.name, "namespace": info.namespace, "serviceAccount": info.service_account}


def resolver_config(resolver: ResolvConf) -> JsonValue:
    """The resolver's servers and search list; keys inside are in snake case."""
    return {
        "domain": resolver.domain,
        "search": list(resolver.search),
        "name_servers": [
            {
                "ip": str(server.ip),
                "trust_negative_responses": True,
                "connections": [
                    {"port": server.port, "protocol": {"type": protocol}, "bind_addr": None}
                    for protocol in ("udp", "tcp")
                ],
            }
            for server in resolver.servers
        ],
    }


def resolver_options(config: Config) -> JsonValue:
    """How the resolver is used, in the words of the reference's library."""
    resolver = config.resolver
    return {
        "allow_answers": [],
        "attempts": resolver.attempts,
        "avoid_local_udp_ports": [],
        "cache_size": 4096,
        "case_randomization": False,
        "deny_answers": [],
        "edns0": resolver.edns0,
        "edns_payload_len": 1232,
        "ip_strategy": "Ipv4AndIpv6" if config.ipv6_enabled else "Ipv4Only",
        "max_active_requests": 32,
        "ndots": resolver.ndots,
        "negative_max_ttl": None,
        "negative_min_ttl": None,
        "num_concurrent_reqs": 2,
        "os_port_selection": False,
        "positive_max_ttl": None,
        "positive_min_ttl": None,
        "preserve_intermediates": True,
        "recursion_desired": True,
        "server_ordering_strategy": "QueryStatistics",
        "timeout": int(resolver.timeout_seconds),
        "trust_anchor": None,
        "try_tcp_on_error": False,
        "use_hosts_file": "Auto",
    }


def socket_config(sockets: SocketConfig) -> JsonValue:
    """TCP keepalive of connections."""
    return {
        "keepaliveEnabled": sockets.keepalive_enabled,
        "keepaliveInterval": duration(sockets.keepalive_interval_seconds),
        "keepaliveRetries": sockets.keepalive_retries,
        "keepaliveTime": duration(sockets.keepalive_time_seconds),
        "userTimeoutEnabled": sockets.user_timeout_enabled,
    }


def dump_config(config: Config) -> dict[str, JsonValue]:
    """The `config` part of the config dump. Never holds a token or the local mesh."""
    provider = config.certificates.provider
    return {
        **({} if provider in (Provider.ISTIO_CA, Provider.FAKE) else {"caProvider": provider.value}),
        "adminAddr": listen_address(config.listeners.admin_addr),
        "altCaHostname": config.control.alt_ca_hostname,
        "altXdsHostname": config.control.alt_xds_hostname,
        "caAddress": optional(config.control.ca_address),
        "caHeaders": [list(pair) for pair in config.control.ca_headers],
        "caRootCert": roots(config.control.ca_root_cert),
        "clusterDomain": config.cluster_domain,
        "clusterId": config.cluster_id,
        "connectionWindowSize": config.http2.connection_window_size,
        "crlPath": config.control.crl_path,
        "dnsProxy": config.dns_proxy,
        "dnsProxyAddr": listen_address(config.listeners.dns_proxy_addr),
        "dnsResolverCfg": resolver_config(config.resolver),
        "dnsResolverOpts": resolver_options(config),
        "enableEnhancedBaggage": config.enable_enhanced_baggage,
        "fakeCa": provider is Provider.FAKE,
        "fakeSelfInbound": False,
        "frameSize": config.http2.frame_size,
        "illegalPorts": sorted(config.illegal_ports),
        "inboundAddr": str(config.listeners.inbound_addr),
        "inboundPlaintextAddr": str(config.listeners.inbound_plaintext_addr),
        "inpodPortReuse": config.inpod_port_reuse,
        "inpodUds": config.inpod_uds,
        "ipv6Enabled": config.ipv6_enabled,
        "localNode": config.local_node,
        "localhostAppTunnel": config.localhost_app_tunnel,
        "network": config.network,
        "numWorkerThreads": config.num_worker_threads,
        "outboundAddr": str(config.listeners.outbound_addr),
        "packetMark": config.packet_mark,
        "poolMaxStreamsPerConn": config.http2.pool_max_streams_per_conn,
        "poolUnusedReleaseTimeout": duration(config.http2.pool_unused_release_timeout_seconds),
        "preferedServiceNamespace": config.preferred_service_namespace,
        "proxy": config.proxy,
        "proxyArgs": config.proxy_args,
        "proxyMetadata": dict(config.told.proxy_metadata),
        "proxyMode": config.proxy_mode.value,
        "proxyWorkloadInformation": workload_info(config.proxy_workload_information),
        "readinessAddr": listen_address(config.listeners.readiness_addr),
        "requireOriginalSource": config.require_original_source,
        "secretTtl": duration(config.control.secret_ttl_seconds),
        "selfTerminationDeadline": duration(config.self_termination_deadline_seconds),
        "socketConfig": socket_config(config.sockets),
        "socks5Addr": optional(config.listeners.socks5_addr),
        "statsAddr": listen_address(config.listeners.stats_addr),
        "windowSize": config.http2.window_size,
        "xdsAddress": optional(config.control.xds_address),
        "xdsHeaders": [list(pair) for pair in config.control.xds_headers],
        "xdsOnDemand": config.control.xds_on_demand,
        "xdsRootCert": roots(config.control.xds_root_cert),
        "ztunnelIdentity": optional(config.ztunnel_identity),
        "ztunnelWorkload": workload_info(config.ztunnel_workload),
    }


@dataclass(frozen=True, slots=True)
class Tagged:
    """A value of several kinds, the kind told by a YAML tag: `!File /root.pem`."""

    kind: str
    value: JsonValue


class TaggingDumper(yaml.SafeDumper):
    """YAML as the reference's library writes it, kinds as tags."""


def represent_tagged(dumper: TaggingDumper, tagged: Tagged) -> yaml.Node:
    node = dumper.represent_data(tagged.value)
    node.tag = f"!{tagged.kind}"
    return node


TaggingDumper.add_representer(Tagged, represent_tagged)


def tagged(part: JsonValue) -> JsonValue | Tagged:
    """`{KIND: value}` with its kind as a tag; what has no kind beside it is plain text already."""
    return Tagged(*next(iter(part.items()))) if isinstance(part, Mapping) else part


def config_text(config: Config) -> str:
    """The same as YAML, for the line at start."""
    document = {key: tagged(part) if key in OF_KINDS else part for key, part in dump_config(config).items()}
    return yaml.dump(document, Dumper=TaggingDumper, sort_keys=True, allow_unicode=True, width=1000)
