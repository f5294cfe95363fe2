"""The name servers of workloads."""

from ztunnel_trio.assembly.parts import Parts
from ztunnel_trio.config import ProxyMode
from ztunnel_trio.decide.answer import NameSettings
from ztunnel_trio.dns import server as dns_server
from ztunnel_trio.dns.forward import Forwarder
from ztunnel_trio.dns.server import DnsServer
from ztunnel_trio.dns.settings import DnsSettings
from ztunnel_trio.dns.share import Share
from ztunnel_trio.grammar import Localhost
from ztunnel_trio.model.workload import WorkloadInfo
from ztunnel_trio.net.sockets import SocketFactory
from ztunnel_trio.proxy.workload_proxy import NameServer


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
    where = dns_server.LoopbackPort(address.port) if isinstance(address, Localhost) else address
    return DnsServer(
        sockets=dns_server.bind(sockets, where, ipv6=config.ipv6_loopback),
        live=parts.live,
        client=info,
        forwarder=Forwarder(sockets, config.resolver),
        settings=DnsSettings(names=names),
        metrics=parts.metrics,
        rng=parts.rng,
        budget=parts.queries,
        share=Share(parts.dns_allowance, lambda: parts.engine.moved),
    )
