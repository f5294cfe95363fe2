"""The servers of operators: readiness, admin, stats."""

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
from ztunnel_trio.assembly.parts import Parts
from ztunnel_trio.assembly.sockets import socket_settings
from ztunnel_trio.build_info import BuildInfo
from ztunnel_trio.config import ProxyMode
from ztunnel_trio.config.document import dump_config
from ztunnel_trio.control.local_mesh import LocalSource, static_document
from ztunnel_trio.dns import server as dns_server
from ztunnel_trio.mesh.document import Json
from ztunnel_trio.model.address import SocketAddress
from ztunnel_trio.net.sockets import SocketFactory
from ztunnel_trio.observe.log import get_logger
from ztunnel_trio.shortcuts.report import report

signal_log = get_logger("signal")


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

    def shortcuts() -> Json:
        return dict(report(is_in_front=parts.engine.is_in_front))

    def shut_down(text: str) -> None:
        signal_log.info("%s", text)
        parts.drain.request(text)

    dump: dict[str, Part] = {
        "certificates": certificates_part(parts.keeper),
        "config": Whole(lambda: {**dump_config(config), "shortcuts": shortcuts()}),
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
        stats_server([here.listen_tcp(config.listeners.stats_addr)], pieces=parts.metrics.pieces),
    ]
