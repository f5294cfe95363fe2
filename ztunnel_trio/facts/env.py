"""Every environment variable we read: name, type, default, meaning (ztunnel src/config.rs).

`docs/reference/env.md` is made from this table: `python -m ztunnel_trio.facts.env > docs/reference/env.md`;
with `--check FILE` the command fails when the file differs.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final

from ztunnel_trio.facts import defaults


class Kind(Enum):
    """How a value is read; the text says it to operators."""

    TEXT = "text"
    PATH = "path"
    BOOL = "`true` or `false`"
    FLAG = "exactly `true` turns it on"
    U16 = "0 to 65535"
    U32 = "0 to 4294967295"
    U64 = "0 to 18446744073709551615"
    DURATION = "duration"
    URI = "URI; without a scheme, `https://`"
    CPUS = "CPU quantity, e.g. `2` or `1500m`"
    THREADS = "count or `N%`"
    PEM = "path, PEM text, or `SYSTEM`"
    FILTER = "log filter"
    YAML = "YAML or JSON text"
    JSON = "JSON text"
    ADDRESS = "`localhost:PORT` or `IP:PORT`"
    MODE = "`shared` or `dedicated`"
    INFO = "`namespace/name/service-account`"
    SOCKET = "`unix:///PATH` or `tcp://HOST:PORT`"
    PROVIDER = (
        "`istio_ca`, `spire_delegated_selectors`, `spire_delegated_pid`, `spiffe_broker`,"
        " `spiffe_workload_api` or `fake`"
    )
    ATTESTATION = "`k8s_object` or `pid`"
    SPIFFE_ID = "SPIFFE id"
    NAMES = "names, separated by commas"


@dataclass(frozen=True, slots=True)
class Variable:
    """One variable. A name that ends in `*` is a prefix."""

    name: str
    kind: Kind
    default: str
    meaning: str


@dataclass(frozen=True, slots=True)
class Section:
    title: str
    variables: tuple[Variable, ...]


PROXY_MODE: Final = "PROXY_MODE"
PROXY_WORKLOAD_INFO: Final = "PROXY_WORKLOAD_INFO"
NODE_NAME: Final = "NODE_NAME"
NETWORK: Final = "NETWORK"
CLUSTER_ID: Final = "CLUSTER_ID"
CLUSTER_DOMAIN: Final = "CLUSTER_DOMAIN"
POD_NAMESPACE: Final = "POD_NAMESPACE"
SERVICE_ACCOUNT: Final = "SERVICE_ACCOUNT"
POD_NAME: Final = "POD_NAME"
TRUST_DOMAIN: Final = "TRUST_DOMAIN"
PREFERRED_SERVICE_NAMESPACE: Final = "PREFERED_SERVICE_NAMESPACE"
INSTANCE_IP: Final = "INSTANCE_IP"
META_PREFIX: Final = "ISTIO_META_"
META_JSON_PREFIX: Final = "ISTIO_METAJSON_"
META_ISTIO_VERSION: Final = "ISTIO_META_ISTIO_VERSION"
ENABLE_PROXY: Final = "ENABLE_PROXY"
UNSTABLE_ENABLE_SOCKS5: Final = "UNSTABLE_ENABLE_SOCKS5"
IPV6_ENABLED: Final = "IPV6_ENABLED"
KUBERNETES_SERVICE_HOST: Final = "KUBERNETES_SERVICE_HOST"
XDS_ADDRESS: Final = "XDS_ADDRESS"
CA_ADDRESS: Final = "CA_ADDRESS"
CA_PROVIDER: Final = "CA_PROVIDER"
SPIRE_ENABLED: Final = "SPIRE_ENABLED"
SPIRE_ADMIN_ENDPOINT_SOCKET: Final = "SPIRE_ADMIN_ENDPOINT_SOCKET"
SPIRE_TIMEOUT: Final = "SPIRE_TIMEOUT"
SPIFFE_ENDPOINT_SOCKET: Final = "SPIFFE_ENDPOINT_SOCKET"
SPIFFE_BROKER_SOCKET: Final = "SPIFFE_BROKER_SOCKET"
SPIFFE_BROKER_WORKLOAD_API_SOCKET: Final = "SPIFFE_BROKER_WORKLOAD_API_SOCKET"
SPIFFE_BROKER_WORKLOAD_API_SPIFFE_ID: Final = "SPIFFE_BROKER_WORKLOAD_API_SPIFFE_ID"
SPIFFE_BROKER_TIMEOUT: Final = "SPIFFE_BROKER_TIMEOUT"
SPIFFE_BROKER_ATTESTATION: Final = "SPIFFE_BROKER_ATTESTATION"
SPIFFE_BROKER_DRAFT_REFERENCES: Final = "SPIFFE_BROKER_DRAFT_REFERENCES"
SPIFFE_FOREIGN_TRUST_DOMAINS: Final = "SPIFFE_FOREIGN_TRUST_DOMAINS"
CONTAINER_RUNTIME_SOCK_PATH: Final = "CONTAINER_RUNTIME_SOCK_PATH"
FAKE_CA: Final = "FAKE_CA"
FAKE_CA_ROOT: Final = "FAKE_CA_ROOT"
XDS_ON_DEMAND: Final = "XDS_ON_DEMAND"
XDS_ROOT_CA: Final = "XDS_ROOT_CA"
CA_ROOT_CA: Final = "CA_ROOT_CA"
ALT_XDS_HOSTNAME: Final = "ALT_XDS_HOSTNAME"
ALT_CA_HOSTNAME: Final = "ALT_CA_HOSTNAME"
AUTH_TOKEN: Final = "AUTH_TOKEN"  # noqa: S105  a variable name
SECRET_TTL: Final = "SECRET_TTL"  # noqa: S105  a variable name
XDS_HEADER_PREFIX: Final = "XDS_HEADER_"
CA_HEADER_PREFIX: Final = "CA_HEADER_"
LOCAL_XDS_PATH: Final = "LOCAL_XDS_PATH"
LOCAL_XDS: Final = "LOCAL_XDS"
CRL_PATH: Final = "CRL_PATH"
PROXY_CONFIG: Final = "PROXY_CONFIG"
INPOD_UDS: Final = "INPOD_UDS"
INPOD_PORT_REUSE: Final = "INPOD_PORT_REUSE"
PACKET_MARK: Final = "PACKET_MARK"
ENABLE_ORIG_SRC: Final = "ENABLE_ORIG_SRC"
LOCALHOST_APP_TUNNEL: Final = "LOCALHOST_APP_TUNNEL"
ENABLE_RESPONSE_BAGGAGE: Final = "ENABLE_RESPONSE_BAGGAGE"
KEEPALIVE_ENABLED: Final = "KEEPALIVE_ENABLED"
KEEPALIVE_TIME: Final = "KEEPALIVE_TIME"
KEEPALIVE_INTERVAL: Final = "KEEPALIVE_INTERVAL"
KEEPALIVE_RETRIES: Final = "KEEPALIVE_RETRIES"
USER_TIMEOUT_ENABLED: Final = "USER_TIMEOUT_ENABLED"
HTTP2_STREAM_WINDOW_SIZE: Final = "HTTP2_STREAM_WINDOW_SIZE"
HTTP2_CONNECTION_WINDOW_SIZE: Final = "HTTP2_CONNECTION_WINDOW_SIZE"
HTTP2_FRAME_SIZE: Final = "HTTP2_FRAME_SIZE"
POOL_MAX_STREAMS_PER_CONNECTION: Final = "POOL_MAX_STREAMS_PER_CONNECTION"
POOL_UNUSED_RELEASE_TIMEOUT: Final = "POOL_UNUSED_RELEASE_TIMEOUT"
CONNECTION_TERMINATION_DEADLINE: Final = "CONNECTION_TERMINATION_DEADLINE"
TERMINATION_GRACE_PERIOD_SECONDS: Final = "TERMINATION_GRACE_PERIOD_SECONDS"
ZTUNNEL_WORKER_THREADS: Final = "ZTUNNEL_WORKER_THREADS"
ZTUNNEL_CPU_LIMIT: Final = "ZTUNNEL_CPU_LIMIT"
ZTUNNEL_RESOURCE_CPU_LIMIT: Final = "ZTUNNEL_RESOURCE_CPU_LIMIT"
ZTUNNEL_RESOURCE_CPU_REQUEST: Final = "ZTUNNEL_RESOURCE_CPU_REQUEST"
TLS12_ENABLED: Final = "TLS12_ENABLED"
COMPLIANCE_POLICY: Final = "COMPLIANCE_POLICY"
AUTHZ_POLICY_INFO_LOGGING: Final = "AUTHZ_POLICY_INFO_LOGGING"
RUST_LOG: Final = "RUST_LOG"
LOG_FORMAT: Final = "LOG_FORMAT"

SECTIONS: Final = (
    Section(
        "Role and identity",
        (
            Variable(
                PROXY_MODE,
                Kind.MODE,
                "shared",
                "Node proxy driven by istio-cni, or one proxy in the present network namespace.",
            ),
            Variable(
                PROXY_WORKLOAD_INFO,
                Kind.INFO,
                "none",
                "Who a dedicated proxy is; required there, ignored in shared mode.",
            ),
            Variable(
                NODE_NAME,
                Kind.TEXT,
                "none",
                "Node of this proxy. Limits which workloads count as local and get certificates in advance.",
            ),
            Variable(NETWORK, Kind.TEXT, "empty", "Network this node belongs to."),
            Variable(
                CLUSTER_ID,
                Kind.TEXT,
                "Kubernetes",
                "Cluster ID, unless `ISTIO_META_CLUSTER_ID` is set; sent as `clusterid` to istiod and CA.",
            ),
            Variable(CLUSTER_DOMAIN, Kind.TEXT, defaults.CLUSTER_DOMAIN, "DNS suffix of the cluster."),
            Variable(
                POD_NAMESPACE,
                Kind.TEXT,
                "none",
                "With `SERVICE_ACCOUNT` and `POD_NAME`: the proxy's own identity and workload.",
            ),
            Variable(SERVICE_ACCOUNT, Kind.TEXT, "none", "See `POD_NAMESPACE`."),
            Variable(POD_NAME, Kind.TEXT, "none", "See `POD_NAMESPACE`."),
            Variable(TRUST_DOMAIN, Kind.TEXT, "cluster.local", "Trust domain of that own identity."),
            Variable(
                PREFERRED_SERVICE_NAMESPACE,
                Kind.TEXT,
                "none",
                "Namespace preferred after the client's own when a name is served by several.",
            ),
            Variable(INSTANCE_IP, Kind.TEXT, defaults.INSTANCE_IP, "Address in the node id told to istiod."),
        ),
    ),
    Section(
        "Which servers run",
        (
            Variable(ENABLE_PROXY, Kind.BOOL, "true", "The data plane on or off."),
            Variable(
                "ISTIO_META_DNS_CAPTURE",
                Kind.TEXT,
                "on",
                "DNS proxy: on when unset or `true` in any case; any other value turns it off.",
            ),
            Variable(
                "ISTIO_META_DNS_PROXY_ADDR", Kind.ADDRESS, "localhost:15053", "Where the DNS proxy listens."
            ),
            Variable(UNSTABLE_ENABLE_SOCKS5, Kind.BOOL, "false", "SOCKS5 on `127.0.0.1:15080`."),
            Variable(
                IPV6_ENABLED,
                Kind.BOOL,
                "true",
                "`false`: bind IPv4 wildcard and loopback only, resolve only A records.",
            ),
        ),
    ),
    Section(
        "Certificates from SPIRE",
        (
            Variable(
                CA_PROVIDER,
                Kind.PROVIDER,
                "istio_ca",
                "Where workload certificates come from: istiod's CA; SPIRE's agent over its Delegated"
                " Identity API (pods by their Kubernetes selectors, or by one of their processes) or the"
                " SPIFFE Broker API; in dedicated mode the SPIFFE Workload API; or a CA within the process.",
            ),
            Variable(SPIRE_ENABLED, Kind.BOOL, "false", "The same as `CA_PROVIDER=spire_delegated_pid`."),
            Variable(
                SPIRE_ADMIN_ENDPOINT_SOCKET,
                Kind.SOCKET,
                f"unix://{defaults.SPIRE_ADMIN_SOCKET}",
                "The agent's admin socket (`admin_socket_path`), for the Delegated Identity API.",
            ),
            Variable(
                SPIRE_TIMEOUT,
                Kind.DURATION,
                f"{defaults.ATTESTATION_SECONDS}s",
                "How long a connection waits for the agent's first answer about a pod.",
            ),
            Variable(
                SPIFFE_ENDPOINT_SOCKET,
                Kind.SOCKET,
                "none",
                "The Workload API, for `spiffe_workload_api` and for the proxy's own certificate.",
            ),
            Variable(SPIFFE_BROKER_SOCKET, Kind.SOCKET, "none", "The Broker API, for `spiffe_broker`."),
            Variable(
                SPIFFE_BROKER_WORKLOAD_API_SOCKET,
                Kind.SOCKET,
                "`SPIFFE_ENDPOINT_SOCKET`",
                "Where the proxy gets the certificate with which it proves itself to the Broker API.",
            ),
            Variable(
                SPIFFE_BROKER_WORKLOAD_API_SPIFFE_ID,
                Kind.SPIFFE_ID,
                "spiffe://cluster.local/ns/istio-system/sa/ztunnel",
                "Which of the certificates that are given to the proxy that is.",
            ),
            Variable(
                SPIFFE_BROKER_TIMEOUT,
                Kind.DURATION,
                f"{defaults.ATTESTATION_SECONDS}s",
                "As `SPIRE_TIMEOUT`, of the Broker API.",
            ),
            Variable(
                SPIFFE_BROKER_ATTESTATION,
                Kind.ATTESTATION,
                "k8s_object",
                "How the Broker API is told of a pod: by its uid and name, or by one of its processes.",
            ),
            Variable(
                SPIFFE_BROKER_DRAFT_REFERENCES,
                Kind.BOOL,
                "false",
                "References of the package `spiffe.reference`, which brokers knew before the specification"
                " was final.",
            ),
            Variable(
                CONTAINER_RUNTIME_SOCK_PATH,
                Kind.PATH,
                "none",
                "The container runtime's socket (CRI), which is asked for a pod's processes. None: they are"
                " looked for in `/proc`, for which the proxy has to see the host's processes.",
            ),
            Variable(
                SPIFFE_FOREIGN_TRUST_DOMAINS,
                Kind.NAMES,
                "none",
                "Federated trust domains whose workloads are let in, each by its own bundle.",
            ),
        ),
    ),
    Section(
        "Control plane and certificate authority",
        (
            Variable(
                XDS_ADDRESS,
                Kind.URI,
                "proxyConfig's `discoveryAddress`, else istiod",
                "Control plane; empty switches it off. The default is `https://istiod.istio-system.svc:15012`"
                " inside Kubernetes and `https://localhost:15012` elsewhere.",
            ),
            Variable(
                CA_ADDRESS,
                Kind.URI,
                "istiod",
                "Certificate authority, with the same default. Empty is allowed only with `FAKE_CA`.",
            ),
            Variable(
                KUBERNETES_SERVICE_HOST, Kind.TEXT, "none", "Set at all: the process runs in Kubernetes."
            ),
            Variable(FAKE_CA, Kind.BOOL, "false", "A CA within the process; for trying things out."),
            Variable(
                FAKE_CA_ROOT,
                Kind.PATH,
                "none",
                "The root of that CA, certificate and key, made with mode 0600 where there is none: processes"
                " that share the file trust each other. None: a root nobody else has.",
            ),
            Variable(
                XDS_ON_DEMAND,
                Kind.BOOL,
                "false",
                "Ask for addresses when they are needed; cannot be combined with the DNS proxy.",
            ),
            Variable(
                XDS_ROOT_CA,
                Kind.PEM,
                defaults.ROOT_FILE,
                "Roots trusted for the control plane: an existing file, the system's store, or the text.",
            ),
            Variable(
                CA_ROOT_CA,
                Kind.PEM,
                defaults.ROOT_FILE,
                "The same for the certificate authority.",
            ),
            Variable(
                ALT_XDS_HOSTNAME, Kind.TEXT, "none", "A second server name accepted of the control plane."
            ),
            Variable(ALT_CA_HOSTNAME, Kind.TEXT, "none", "A second server name accepted of the CA."),
            Variable(
                AUTH_TOKEN,
                Kind.TEXT,
                f"file `{defaults.TOKEN_FILE}` if it exists",
                "Token file (read anew for each request), or the token itself.",
            ),
            Variable(
                SECRET_TTL,
                Kind.DURATION,
                f"{defaults.CERTIFICATE_SECONDS}s",
                "Certificate lifetime asked for.",
            ),
            Variable(
                XDS_HEADER_PREFIX + "*",
                Kind.TEXT,
                "none",
                "A header for the control plane: the rest of the name in lower case.",
            ),
            Variable(CA_HEADER_PREFIX + "*", Kind.TEXT, "none", "The same for the CA."),
            Variable(
                LOCAL_XDS_PATH,
                Kind.PATH,
                "none",
                "A file with workloads, services and policies, read at start and whenever it changes.",
            ),
            Variable(LOCAL_XDS, Kind.YAML, "none", "The same as text; only one of both."),
            Variable(CRL_PATH, Kind.PATH, "none", "Certificate revocation list (PEM), watched for changes."),
            Variable(PROXY_CONFIG, Kind.YAML, "none", "One Istio ProxyConfig, over the mesh file's."),
        ),
    ),
    Section(
        "In-pod mode and sockets",
        (
            Variable(INPOD_UDS, Kind.PATH, defaults.INPOD_SOCKET, "istio-cni's seqpacket socket."),
            Variable(INPOD_PORT_REUSE, Kind.BOOL, "true", "SO_REUSEPORT on listeners inside pods."),
            Variable(
                PACKET_MARK,
                Kind.U32,
                "1337 in shared mode, none in dedicated mode",
                "SO_MARK of our sockets; 0: none.",
            ),
            Variable(
                ENABLE_ORIG_SRC,
                Kind.BOOL,
                "unset",
                "Keep source addresses: `true` required, `false` never, unset best effort.",
            ),
            Variable(
                LOCALHOST_APP_TUNNEL,
                Kind.BOOL,
                "true",
                "Deliver to loopback where a workload asks for the PROXY protocol.",
            ),
            Variable(ENABLE_RESPONSE_BAGGAGE, Kind.BOOL, "true", "Use and answer baggage on HBONE."),
            Variable(KEEPALIVE_ENABLED, Kind.BOOL, "true", "TCP keepalive."),
            Variable(
                KEEPALIVE_TIME,
                Kind.DURATION,
                f"{defaults.KEEPALIVE_SECONDS}s",
                "Idle time before the first probe.",
            ),
            Variable(
                KEEPALIVE_INTERVAL, Kind.DURATION, f"{defaults.KEEPALIVE_SECONDS}s", "Time between probes."
            ),
            Variable(KEEPALIVE_RETRIES, Kind.U32, str(defaults.KEEPALIVE_PROBES), "Probes before giving up."),
            Variable(
                USER_TIMEOUT_ENABLED, Kind.BOOL, "false", "TCP_USER_TIMEOUT = time + retries × interval."
            ),
        ),
    ),
    Section(
        "HTTP/2 and the tunnel pool",
        (
            Variable(
                HTTP2_STREAM_WINDOW_SIZE,
                Kind.U32,
                str(defaults.STREAM_WINDOW),
                "A stream's window; at most 2147483647.",
            ),
            Variable(
                HTTP2_CONNECTION_WINDOW_SIZE,
                Kind.U32,
                str(defaults.CONNECTION_WINDOW),
                "A tunnel's window; 65535 to 2147483647.",
            ),
            Variable(
                HTTP2_FRAME_SIZE,
                Kind.U32,
                str(defaults.FRAME_SIZE),
                "Largest frame taken; 16384 to 16777215.",
            ),
            Variable(
                POOL_MAX_STREAMS_PER_CONNECTION,
                Kind.U16,
                str(defaults.STREAMS_PER_TUNNEL),
                "Streams before another tunnel is opened.",
            ),
            Variable(
                POOL_UNUSED_RELEASE_TIMEOUT,
                Kind.DURATION,
                f"{defaults.TUNNEL_IDLE_SECONDS}s",
                "Life of an idle tunnel.",
            ),
        ),
    ),
    Section(
        "Termination",
        (
            Variable(
                CONNECTION_TERMINATION_DEADLINE, Kind.DURATION, "none", "Time connections get at the end."
            ),
            Variable(
                TERMINATION_GRACE_PERIOD_SECONDS,
                Kind.U64,
                "none",
                "Kubernetes' grace period; used when the other is unset: 5 s less when above 10, else 1 s"
                " less, at least 1 s. With neither, 5 s.",
            ),
        ),
    ),
    Section(
        "Threads",
        (
            Variable(
                ZTUNNEL_WORKER_THREADS,
                Kind.THREADS,
                "computed",
                "Informational: shown as `numWorkerThreads` in the dump. One event loop does all the work,"
                " so this changes nothing else; a malformed value still ends the start.",
            ),
            Variable(
                ZTUNNEL_CPU_LIMIT, Kind.U64, "detected CPUs", "CPU count for percentages. Informational."
            ),
            Variable(ZTUNNEL_RESOURCE_CPU_LIMIT, Kind.CPUS, "none", "The pod's CPU limit. Informational."),
            Variable(
                ZTUNNEL_RESOURCE_CPU_REQUEST, Kind.CPUS, "none", "The pod's CPU request. Informational."
            ),
        ),
    ),
    Section(
        "TLS, compliance, logging",
        (
            Variable(TLS12_ENABLED, Kind.FLAG, "off", "Allow TLS 1.2 beside 1.3."),
            Variable(
                COMPLIANCE_POLICY,
                Kind.TEXT,
                "none",
                "`pqc`: key exchange by X25519MLKEM768 alone, which needs OpenSSL 3.5; the start ends where"
                " it is not so. Other values have no effect here.",
            ),
            Variable(AUTHZ_POLICY_INFO_LOGGING, Kind.FLAG, "off", "Log policy decisions at info, not debug."),
            Variable(
                RUST_LOG,
                Kind.FILTER,
                "info",
                "Comma-separated `LEVEL` or `TARGET=LEVEL`; changeable at run time with `POST /logging`.",
            ),
            Variable(LOG_FORMAT, Kind.TEXT, "plain", "Exactly `json`: one JSON object a line."),
        ),
    ),
    Section(
        "What the control plane is told of the node",
        (
            Variable(META_PREFIX + "*", Kind.TEXT, "none", "Metadata: the rest of the name is the key."),
            Variable(
                META_JSON_PREFIX + "*",
                Kind.JSON,
                "none",
                "The same with a JSON value; malformed values are reported and left out.",
            ),
            Variable(
                META_ISTIO_VERSION,
                Kind.TEXT,
                "unknown",
                "Istio's version: the metric `istio_build`, the dump, metadata `ISTIO_VERSION`.",
            ),
        ),
    ),
)

NAMES: Final = frozenset(variable.name for section in SECTIONS for variable in section.variables)

HEAD: Final = """# Environment variables

<!-- Made by `nox -s docs` from ztunnel_trio/facts/env.py; do not edit. -->

Everything is read once, at start; a value that cannot be read ends the process with exit code 1 and
`Error: invalid env var NAME=VALUE (REASON)`. A value that is not UTF-8 counts as unset. Relative paths are
relative to the working directory. Istio's mesh file `./etc/istio/config/mesh` is read as well, for its
`defaultConfig`: `discoveryAddress`, `proxyAdminPort`, `statsPort`, `concurrency`, `proxyMetadata`.

A *duration* is `number [unit]`, repeated with or without `+` between (`1h30m`, `3m 31s`), or multiplied with
`*` (`1m*10`); without a unit, seconds. Units: `y`, `mon`, `w`, `d`, `h`, `m`, `s`, `ms`, `µs` (`us`), `ns`,
and their long forms.
"""


def reference() -> str:
    """The Markdown page of the table."""
    lines = [HEAD]
    for section in SECTIONS:
        lines += [f"## {section.title}", "", "| Variable | Value | Default | Meaning |", "|---|---|---|---|"]
        lines += [f"| `{v.name}` | {v.kind.value} | {v.default} | {v.meaning} |" for v in section.variables]
        lines.append("")
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> int:
    """Print the page, or with `--check FILE` say whether the file is up to date."""
    page = reference()
    if arguments[:1] != ["--check"]:
        sys.stdout.write(page)
        return 0
    with open(arguments[1], encoding="utf-8") as file:
        if file.read() == page:
            return 0
    sys.stderr.write(f"{arguments[1]} is out of date: nox -s docs\n")
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
