"""The process's settings: environment and mesh configuration file become one frozen `Config`.

Everything is read once, before any socket is opened. Only `app` reads a `Config`; parts get their own
settings from it. The variables are listed in `facts.env`, their value forms are in `grammar`.
"""

import math
import os
import platform
import ssl
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Annotated, Final, Protocol, TypeVar

import msgspec
import yaml

from ztunnel_trio.dns.resolv_conf import ResolvConf, parse_resolv_conf
from ztunnel_trio.errors import ConfigError
from ztunnel_trio.facts import env
from ztunnel_trio.facts.network import (
    ADMIN_PORT,
    DEFAULT_CLUSTER,
    DEFAULT_TRUST_DOMAIN,
    DNS_PORT,
    HBONE_PORT,
    INBOUND_PLAINTEXT_PORT,
    OUTBOUND_PORT,
    PACKET_MARK,
    READINESS_PORT,
    SOCKS5_PORT,
    STATS_PORT,
)
from ztunnel_trio.grammar import (
    ControlPlaneAddress,
    ListenAddress,
    Localhost,
    parse_bool,
    parse_cpus,
    parse_duration,
    parse_header,
    parse_listen_address,
    parse_threads,
    parse_unsigned,
    parse_uri,
)
from ztunnel_trio.model.address import SocketAddress
from ztunnel_trio.model.identity import SpiffeId
from ztunnel_trio.model.source import FromFile, Literal, RootSource, SystemRoots, TokenSource
from ztunnel_trio.model.workload import WorkloadInfo
from ztunnel_trio.net.failures import os_error_text

MESH_FILE: Final = "./etc/istio/config/mesh"
RESOLV_CONF: Final = "/etc/resolv.conf"
LOOPBACK_IPV6_FILE: Final = "/proc/sys/net/ipv6/conf/lo/disable_ipv6"
ROOT_FILE: Final = "./var/run/secrets/istio/root-cert.pem"
TOKEN_FILE: Final = "./var/run/secrets/tokens/istio-token"  # noqa: S105  a path
SYSTEM_ROOTS: Final = "SYSTEM"
ISTIOD: Final = "https://istiod.istio-system.svc:15012"
LOCAL_ISTIOD: Final = "https://localhost:15012"
INPOD_SOCKET: Final = "/var/run/ztunnel/ztunnel.sock"
CLUSTER_DOMAIN: Final = "cluster.local"
INSTANCE_IP: Final = "1.1.1.1"  # ztunnel src/xds/client.rs, when the pod's own is unknown
UNKNOWN_VERSION: Final = "unknown"

SECRET_TTL_SECONDS: Final = 86400.0
KEEPALIVE_SECONDS: Final = 180.0
POOL_RELEASE_SECONDS: Final = 300.0
TERMINATION_SECONDS: Final = 5.0
SMALLEST_WINDOW: Final = 65535  # RFC 9113 6.9.2: a connection's window starts there
LARGEST_WINDOW: Final = 2**31 - 1  # RFC 9113 6.9.1
SMALLEST_FRAME, LARGEST_FRAME = 2**14, 2**24 - 1  # RFC 9113 6.5.2

JsonValue = None | bool | int | float | str | Sequence["JsonValue"] | Mapping[str, "JsonValue"]


class Unstartable(ConfigError):
    """Settings with which the reference aborts instead of reporting: exit code 101, not 1."""


class ProxyMode(Enum):
    """The values are the names in the dump."""

    SHARED = "Shared"
    DEDICATED = "Dedicated"


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlPlaneConfig:
    """Where mesh, certificates and revocations come from, and how we prove ourselves there.

    No address: not used.
    """

    xds_address: ControlPlaneAddress | None
    ca_address: ControlPlaneAddress | None
    xds_root_cert: RootSource
    ca_root_cert: RootSource
    alt_xds_hostname: str | None
    alt_ca_hostname: str | None
    auth: TokenSource | None
    xds_headers: tuple[tuple[str, str], ...]
    ca_headers: tuple[tuple[str, str], ...]
    secret_ttl_seconds: float
    fake_ca: bool
    fake_ca_root: str | None
    xds_on_demand: bool
    local_xds_path: str | None
    local_xds: str | None = field(repr=False)
    crl_path: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenerConfig:
    """Where the servers listen."""

    dns_proxy_addr: ListenAddress
    socks5_addr: SocketAddress | None
    admin_addr: Localhost
    stats_addr: SocketAddress
    readiness_addr: SocketAddress
    inbound_addr: SocketAddress
    inbound_plaintext_addr: SocketAddress
    outbound_addr: SocketAddress


@dataclass(frozen=True, slots=True, kw_only=True)
class SocketConfig:
    """TCP keepalive of connections."""

    keepalive_enabled: bool
    keepalive_time_seconds: float
    keepalive_interval_seconds: float
    keepalive_retries: int
    user_timeout_enabled: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Http2Config:
    """HTTP/2 of tunnels, and the pool of outbound ones."""

    window_size: int
    connection_window_size: int
    frame_size: int
    pool_max_streams_per_conn: int
    pool_unused_release_timeout_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ToldConfig:
    """What the control plane is told of us."""

    proxy_metadata: Mapping[str, str]
    node_metadata_json: Mapping[str, JsonValue]
    instance_ip: str
    pod_name: str
    pod_namespace: str


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


class Machine(Protocol):
    """What `load` asks of the machine beside the environment."""

    def read_text(self, path: str) -> str:
        """A file's text.

        Raises:
            OSError: it cannot be read; FileNotFoundError when there is none.
        """
        ...

    def exists(self, path: str) -> bool: ...

    def cpu_count(self) -> int: ...


class ThisMachine:
    """The machine we run on."""

    def read_text(self, path: str) -> str:
        return Path(path).read_text(encoding="utf-8", errors="replace")

    def exists(self, path: str) -> bool:
        try:
            return Path(path).exists()
        except (OSError, ValueError):  # a PEM text is no path: too long, or with NUL
            return False

    def cpu_count(self) -> int:
        """CPUs this process may use: the affinity mask, and the cgroup's quota where there is one."""
        count = len(os.sched_getaffinity(0))
        try:
            quota, period = self.read_text("/sys/fs/cgroup/cpu.max").split()
            return max(1, min(count, math.ceil(int(quota) / int(period))))
        except (OSError, ValueError):  # cgroup v1, or `max`
            return count


# ------------------------------------------------------------------------------- the mesh config file

Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]


class ProxyConfig(msgspec.Struct, rename="camel", frozen=True):
    """The keys of Istio's ProxyConfig (mesh/v1alpha1) that matter here; others are ignored."""

    discovery_address: str | None = None
    proxy_admin_port: Port | None = None
    stats_port: Port | None = None
    concurrency: Port | None = None
    proxy_metadata: dict[str, str] = msgspec.field(default_factory=dict)


class MeshConfig(msgspec.Struct, rename="camel", frozen=True):
    """The one key of the mesh file that is read."""

    default_config: ProxyConfig | None = None


M = TypeVar("M")


def read_yaml(text: str, kind: type[M], failure: str) -> M:
    """Parse YAML (or JSON) into a struct.

    Raises:
        ConfigError: `failure` and the parser's words.
    """
    try:
        return msgspec.convert(yaml.safe_load(text), kind)
    except (yaml.YAMLError, msgspec.ValidationError, RecursionError, ValueError) as error:
        raise ConfigError(f"{failure}: {' '.join(str(error).split())}") from None


def load_proxy_config(environ: Mapping[str, str], machine: Machine) -> ProxyConfig:
    """The mesh file's `defaultConfig`, then `PROXY_CONFIG` over it; metadata merges by key.

    `ISTIO_META_` is taken off metadata keys that have it; `ISTIO_META_*` of the environment win.

    Raises:
        ConfigError: a source cannot be read or parsed.
    """
    failure = f"error parsing proxy config: failed parsing mesh config file {MESH_FILE}"
    base = ProxyConfig()
    try:
        text = machine.read_text(MESH_FILE)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise ConfigError(f"{failure}: {os_error_text(error)}") from None
    else:
        base = read_yaml(text, MeshConfig, failure).default_config or base
    if text := environ.get(env.PROXY_CONFIG, ""):
        over = read_yaml(text, ProxyConfig, "error parsing proxy config: failed parsing proxy config env")
        base = ProxyConfig(
            discovery_address=base.discovery_address
            if over.discovery_address is None
            else over.discovery_address,
            proxy_admin_port=base.proxy_admin_port
            if over.proxy_admin_port is None
            else over.proxy_admin_port,
            stats_port=base.stats_port if over.stats_port is None else over.stats_port,
            concurrency=base.concurrency if over.concurrency is None else over.concurrency,
            proxy_metadata={**base.proxy_metadata, **over.proxy_metadata},
        )
    told = {key.removeprefix(env.META_PREFIX): value for key, value in base.proxy_metadata.items()}
    for name, value in environ.items():
        if name.startswith(env.META_PREFIX):
            while name.startswith(env.META_PREFIX):  # the reference takes off every repetition
                name = name.removeprefix(env.META_PREFIX)
            told[name] = value
    return msgspec.structs.replace(base, proxy_metadata=told)


# ------------------------------------------------------------------------------------ the environment

V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Environment:
    """Reads variables by kind; every failure names the variable and its value."""

    values: Mapping[str, str]

    def read(self, name: str, parse: Callable[[str], V], default: V) -> V:
        """The parsed value, or the default when unset.

        Raises:
            ConfigError: `invalid env var NAME=VALUE (REASON)`.
        """
        text = self.values.get(name)
        if text is None:
            return default
        try:
            return parse(text)
        except ConfigError as error:
            raise ConfigError(f"invalid env var {name}={text} ({error})") from None

    def text(self, name: str) -> str | None:
        return self.values.get(name)

    def boolean(self, name: str, *, default: bool) -> bool:
        return self.read(name, parse_bool, default)

    def seconds(self, name: str, default: float) -> float:
        return self.read(name, parse_duration, default)

    def number(self, name: str, default: int, *, bits: int = 32, least: int = 0, most: int = 2**64) -> int:
        def parse(text: str) -> int:
            number = parse_unsigned(text, bits)
            if not least <= number <= most:
                raise ConfigError(f"must be between {least} and {most}")
            return number

        return self.read(name, parse, default)

    def is_true(self, name: str) -> bool:
        """Whether it is exactly `true`; anything else is off, never an error."""
        return self.values.get(name) == "true"

    def headers(self, prefix: str) -> tuple[tuple[str, str], ...]:
        found = [
            parse_header(name, prefix, value)
            for name, value in self.values.items()
            if name.startswith(prefix)
        ]
        return tuple(sorted(found))


def is_utf8(text: str) -> bool:
    """Whether the operating system's bytes were UTF-8 (they decode to lone surrogates otherwise)."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


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
    check_compliance(values)

    config = Config(
        proxy_mode=mode,
        proxy_workload_information=None if is_shared else load_workload_info(values),
        local_node=values.text(env.NODE_NAME),
        network=values.text(env.NETWORK) or "",
        cluster_id=metadata.get("CLUSTER_ID") or environ.get(env.CLUSTER_ID, DEFAULT_CLUSTER),
        cluster_domain=environ.get(env.CLUSTER_DOMAIN, CLUSTER_DOMAIN),
        ztunnel_identity=own_identity,
        ztunnel_workload=own_workload,
        preferred_service_namespace=values.text(env.PREFERRED_SERVICE_NAMESPACE),
        told=load_told(environ, metadata, notes),
        proxy=values.boolean(env.ENABLE_PROXY, default=True),
        dns_proxy=metadata.get("DNS_CAPTURE", "true").lower() == "true",
        listeners=load_listeners(values, proxy_config, ipv6=ipv6, ipv6_loopback=ipv6_loopback),
        ipv6_enabled=ipv6,
        ipv6_loopback=ipv6_loopback,
        control=load_control_plane(values, proxy_config, machine, notes),
        inpod_uds=environ.get(env.INPOD_UDS, INPOD_SOCKET),
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


def load_told(environ: Mapping[str, str], metadata: Mapping[str, str], notes: list[str]) -> ToldConfig:
    return ToldConfig(
        proxy_metadata=metadata,
        node_metadata_json=load_json_metadata(environ, notes),
        instance_ip=environ.get(env.INSTANCE_IP, INSTANCE_IP),
        pod_name=environ.get(env.POD_NAME, ""),
        pod_namespace=environ.get(env.POD_NAMESPACE, ""),
    )


def load_listeners(
    values: Environment, proxy_config: ProxyConfig, *, ipv6: bool, ipv6_loopback: bool
) -> ListenerConfig:
    wildcard = IPv6Address("::") if ipv6 else IPv4Address("0.0.0.0")
    socks5 = values.boolean(env.UNSTABLE_ENABLE_SOCKS5, default=False)
    return ListenerConfig(
        dns_proxy_addr=load_dns_address(
            proxy_config.proxy_metadata.get("DNS_PROXY_ADDR"), ipv6=ipv6_loopback
        ),
        socks5_addr=SocketAddress(IPv4Address("127.0.0.1"), SOCKS5_PORT) if socks5 else None,
        admin_addr=Localhost(ipv6_loopback, first(proxy_config.proxy_admin_port, ADMIN_PORT)),
        stats_addr=SocketAddress(wildcard, first(proxy_config.stats_port, STATS_PORT)),
        readiness_addr=SocketAddress(wildcard, READINESS_PORT),
        inbound_addr=SocketAddress(wildcard, HBONE_PORT),
        inbound_plaintext_addr=SocketAddress(wildcard, INBOUND_PLAINTEXT_PORT),
        outbound_addr=SocketAddress(wildcard, OUTBOUND_PORT),
    )


def load_control_plane(
    values: Environment, proxy_config: ProxyConfig, machine: Machine, notes: list[str]
) -> ControlPlaneConfig:
    xds_address, ca_address, fake_ca = load_addresses(values, proxy_config)
    local_path, local_text = values.text(env.LOCAL_XDS_PATH), values.text(env.LOCAL_XDS)
    if local_path is not None and local_text is not None:
        raise ConfigError("invalid configuration: only one of LOCAL_XDS_PATH or LOCAL_XDS may be set")
    return ControlPlaneConfig(
        xds_address=xds_address,
        ca_address=ca_address,
        xds_root_cert=load_roots(values, env.XDS_ROOT_CA, machine, notes if xds_address else []),
        ca_root_cert=load_roots(values, env.CA_ROOT_CA, machine, notes if ca_address else []),
        alt_xds_hostname=values.text(env.ALT_XDS_HOSTNAME),
        alt_ca_hostname=values.text(env.ALT_CA_HOSTNAME),
        auth=load_auth(values, machine, notes),
        xds_headers=values.headers(env.XDS_HEADER_PREFIX),
        ca_headers=values.headers(env.CA_HEADER_PREFIX),
        secret_ttl_seconds=values.seconds(env.SECRET_TTL, SECRET_TTL_SECONDS),
        fake_ca=fake_ca,
        fake_ca_root=values.text(env.FAKE_CA_ROOT) or None,
        xds_on_demand=values.boolean(env.XDS_ON_DEMAND, default=False),
        local_xds_path=local_path,
        local_xds=local_text,
        crl_path=values.text(env.CRL_PATH) or None,
    )


def load_sockets(values: Environment) -> SocketConfig:
    return SocketConfig(
        keepalive_enabled=values.boolean(env.KEEPALIVE_ENABLED, default=True),
        keepalive_time_seconds=values.seconds(env.KEEPALIVE_TIME, KEEPALIVE_SECONDS),
        keepalive_interval_seconds=values.seconds(env.KEEPALIVE_INTERVAL, KEEPALIVE_SECONDS),
        keepalive_retries=values.number(env.KEEPALIVE_RETRIES, 9),
        user_timeout_enabled=values.boolean(env.USER_TIMEOUT_ENABLED, default=False),
    )


def load_http2(values: Environment) -> Http2Config:
    return Http2Config(
        window_size=values.number(env.HTTP2_STREAM_WINDOW_SIZE, 4 << 20, most=LARGEST_WINDOW),
        connection_window_size=values.number(
            env.HTTP2_CONNECTION_WINDOW_SIZE, 16 << 20, least=SMALLEST_WINDOW, most=LARGEST_WINDOW
        ),
        frame_size=values.number(env.HTTP2_FRAME_SIZE, 1 << 20, least=SMALLEST_FRAME, most=LARGEST_FRAME),
        pool_max_streams_per_conn=values.number(env.POOL_MAX_STREAMS_PER_CONNECTION, 100, bits=16, least=1),
        pool_unused_release_timeout_seconds=values.seconds(
            env.POOL_UNUSED_RELEASE_TIMEOUT, POOL_RELEASE_SECONDS
        ),
    )


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


def first(chosen: int | None, default: int) -> int:
    return default if chosen is None else chosen


def parse_mode(text: str) -> ProxyMode:
    """`shared` or `dedicated`."""
    for mode in ProxyMode:
        if text == mode.name.lower():
            return mode
    raise ConfigError("PROXY_MODE must be one of dedicated, shared")


def is_ipv6_on_loopback(machine: Machine, notes: list[str]) -> bool:
    """Whether the loopback interface has IPv6; an unreadable switch counts as yes."""
    try:
        return machine.read_text(LOOPBACK_IPV6_FILE).strip() != "1"
    except OSError as error:
        notes.append(f"failed to read {LOOPBACK_IPV6_FILE}: {error.strerror}; taking IPv6 as enabled")
        return True


def load_addresses(
    values: Environment, proxy_config: ProxyConfig
) -> tuple[ControlPlaneAddress | None, ControlPlaneAddress | None, bool]:
    """The control plane's address, the CA's, and whether the CA is our own.

    Raises:
        ConfigError: an address is no URI, or not one of HTTPS.
        Unstartable: there is no CA at all.
    """
    inside = values.text(env.KUBERNETES_SERVICE_HOST) is not None
    istiod = ISTIOD if inside else LOCAL_ISTIOD
    xds, ca, xds_name = values.text(env.XDS_ADDRESS), values.text(env.CA_ADDRESS), env.XDS_ADDRESS
    if xds is None and proxy_config.discovery_address is not None:
        xds, xds_name = proxy_config.discovery_address, "discoveryAddress"
    xds = istiod if xds is None else xds
    fake_ca = values.boolean(env.FAKE_CA, default=False)
    xds_address = parse_server(xds_name, xds) if xds else None
    if fake_ca:
        return xds_address, None, True
    if ca == "":
        raise Unstartable("invalid configuration: CA_ADDRESS is empty; set FAKE_CA=true to run without a CA")
    return xds_address, parse_server(env.CA_ADDRESS, istiod if ca is None else ca), False


def parse_server(name: str, text: str) -> ControlPlaneAddress:
    """The address of a server that is spoken to over TLS; `name` is the setting's.

    Raises:
        ConfigError: no URI, or one of plain HTTP, which could never connect.
    """
    address = parse_uri(text)
    if address.scheme != "https":
        raise ConfigError(f"invalid configuration: {name}={text}: the scheme must be https, or left out")
    return address


def load_own(values: Environment) -> tuple[SpiffeId | None, WorkloadInfo | None]:
    """The proxy's own identity and workload, when all three of its names are set."""
    namespace, account = values.text(env.POD_NAMESPACE), values.text(env.SERVICE_ACCOUNT)
    name = values.text(env.POD_NAME)
    if namespace is None or account is None or name is None:
        return None, None
    trust_domain = values.text(env.TRUST_DOMAIN) or DEFAULT_TRUST_DOMAIN
    return SpiffeId(trust_domain, namespace, account), WorkloadInfo(name, namespace, account)


def load_workload_info(values: Environment) -> WorkloadInfo:
    """Who a dedicated proxy is.

    Raises:
        ConfigError: not said, or not as `namespace/name/service-account`.
    """
    text = values.text(env.PROXY_WORKLOAD_INFO)
    if text is None:
        raise ConfigError(
            "invalid configuration: PROXY_MODE=dedicated requires PROXY_WORKLOAD_INFO to be set"
        )
    parts = text.split("/", 2)
    if len(parts) < 3:
        raise ConfigError(
            f"invalid env var {env.PROXY_WORKLOAD_INFO}={text} (must match namespace/name/service-account)"
        )
    return WorkloadInfo(parts[1], parts[0], parts[2])


def load_dns_address(text: str | None, *, ipv6: bool) -> ListenAddress:
    """Where the DNS proxy listens.

    Raises:
        ConfigError: no address and port.
    """
    if text is None:
        return Localhost(ipv6, DNS_PORT)
    try:
        return parse_listen_address(text, ipv6=ipv6)
    except ConfigError as error:
        raise ConfigError(
            f"invalid configuration: failed to parse DNS_PROXY_ADDR: {text} ({error})"
        ) from None


def load_roots(values: Environment, name: str, machine: Machine, notes: list[str]) -> RootSource:
    """An existing file, the system's store, or the text itself; a path that is no file trusts nobody."""
    text = values.text(name)
    chosen = ROOT_FILE if text is None else text
    if machine.exists(chosen):
        return FromFile(chosen)
    if chosen == SYSTEM_ROOTS:
        return SystemRoots()
    if "BEGIN CERTIFICATE" not in chosen:
        notes.append(f"{name}: there is no file {chosen} and it is no PEM text, so no server is trusted")
    return Literal(chosen)


def load_auth(values: Environment, machine: Machine, notes: list[str]) -> TokenSource | None:
    """Where the token comes from; what looks like a path and names no file is told, but not shown."""
    text = values.text(env.AUTH_TOKEN)
    if text is None:
        return FromFile(TOKEN_FILE) if machine.exists(TOKEN_FILE) else None
    if not text:
        return None
    if machine.exists(text):
        return FromFile(text)
    if text.startswith(("/", "./", "../")):
        notes.append(
            f"{env.AUTH_TOKEN} looks like a path, but there is no such file: its text is sent as the token"
        )
    return Literal(text)


def load_termination(values: Environment) -> float:
    """The drain's deadline: explicit, else a little less than Kubernetes' grace period, else 5 s."""
    explicit = values.read(env.CONNECTION_TERMINATION_DEADLINE, parse_duration, None)
    if explicit is not None:
        return explicit
    if values.text(env.TERMINATION_GRACE_PERIOD_SECONDS) is None:
        return TERMINATION_SECONDS
    grace = values.number(env.TERMINATION_GRACE_PERIOD_SECONDS, 0, bits=64)
    return float(grace - 5 if grace > 10 else max(grace - 1, 1))


def load_threads(values: Environment, concurrency: int | None, machine: Machine) -> int:
    """The number of worker threads the reference would run (ztunnel src/config.rs); shown, not used."""
    limit = values.read(env.ZTUNNEL_RESOURCE_CPU_LIMIT, parse_cpus, 0) if concurrency is None else 0
    request = values.read(env.ZTUNNEL_RESOURCE_CPU_REQUEST, parse_cpus, 0) if concurrency is None else 0
    cpus = limit or values.number(env.ZTUNNEL_CPU_LIMIT, machine.cpu_count(), bits=64)
    if concurrency is not None:
        default = concurrency or cpus
    elif limit:
        default = max(limit, request)
    else:
        default = max(math.ceil(cpus / 4), request, 2)
    return values.read(env.ZTUNNEL_WORKER_THREADS, lambda text: parse_threads(text, cpus), max(1, default))


def check_compliance(values: Environment) -> None:
    """Any compliance policy but one is without effect here.

    Raises:
        Unstartable: `pqc`, which cannot be honoured.
    """
    if values.text(env.COMPLIANCE_POLICY) == "pqc":
        raise Unstartable(
            "invalid configuration: COMPLIANCE_POLICY=pqc requires key exchange by X25519MLKEM768 alone,"
            f" to which CPython {platform.python_version()} with {ssl.OPENSSL_VERSION} cannot be held"
        )


def load_json_metadata(environ: Mapping[str, str], notes: list[str]) -> dict[str, JsonValue]:
    """`ISTIO_METAJSON_*`; malformed ones are noted and left out."""
    found: dict[str, JsonValue] = {}
    for name, text in environ.items():
        if name.startswith(env.META_JSON_PREFIX):
            try:
                value: JsonValue = msgspec.json.decode(text)
            except (msgspec.DecodeError, RecursionError) as error:
                notes.append(f"{name} is left out, it is no JSON: {error}")
            else:
                found[name.removeprefix(env.META_JSON_PREFIX)] = value
    return found


def load_resolver(machine: Machine) -> ResolvConf:
    """The system's resolver configuration.

    Raises:
        Unstartable: it cannot be read or names no server.
    """
    try:
        return parse_resolv_conf(machine.read_text(RESOLV_CONF))
    except OSError as error:
        raise Unstartable(f"failed to read {RESOLV_CONF}: {error.strerror}") from None
    except ConfigError as error:
        raise Unstartable(str(error)) from None
