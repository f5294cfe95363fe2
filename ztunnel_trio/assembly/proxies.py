"""The workload proxies, with what all of them share."""

import logging
from functools import partial

import trio

from ztunnel_trio.assembly.certificates import pod_certificates
from ztunnel_trio.assembly.names import make_dns_server
from ztunnel_trio.assembly.parts import Parts
from ztunnel_trio.assembly.sockets import socket_settings
from ztunnel_trio.config import Config
from ztunnel_trio.dns.forward import Forwarder
from ztunnel_trio.dns.host_resolver import HostResolver
from ztunnel_trio.dns.resolv_conf import read_hosts
from ztunnel_trio.net.sockets import SocketFactory
from ztunnel_trio.observe.access.record import AccessLog
from ztunnel_trio.proxy.node import NodeParts, ProxySettings
from ztunnel_trio.proxy.pool_choice import PoolSettings
from ztunnel_trio.proxy.tunnel.settings import TunnelSettings
from ztunnel_trio.proxy.workload_proxies import Placement, WorkloadProxies


def make_workload_proxies(parts: Parts, nursery: trio.Nursery) -> WorkloadProxies:
    """The set of workload proxies, with what all of them share."""
    config = parts.config
    plain = SocketFactory(None, socket_settings(config, mark=None, reuse_port=False))
    resolver = HostResolver(Forwarder(plain, config.resolver), read_hosts(), ipv6=config.ipv6_enabled)
    node = NodeParts(
        settings=proxy_settings(config),
        live=parts.live,
        certificates=parts.keeper.of_pod(None),
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
    return WorkloadProxies(
        node,
        nursery,
        parts.drain,
        make_sockets,
        make_name_server,
        partial(pod_certificates, parts.keeper, parts.live),
        parts.supervisor,
        parts.gates.get("proxy"),
    )


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


async def nobody_to_ask(name: str) -> None:
    """There is no control plane: what the mesh does not know stays unknown."""
    await trio.lowlevel.checkpoint()
