import yaml

from tests.fakes.machine import loaded
from ztunnel_trio.config import Config, JsonValue
from ztunnel_trio.config.document import config_text, dump_config
from ztunnel_trio.config.resolver import RESOLV_CONF

GOLDEN: dict[str, JsonValue] = {
    "adminAddr": {"Localhost": [True, 15000]},
    "altCaHostname": None,
    "altXdsHostname": None,
    "caAddress": "https://10.77.0.1:15012",
    "caHeaders": [["x-tenant", "blue"]],
    "caRootCert": {"File": "/dir/root-cert.pem"},
    "clusterDomain": "cluster.local",
    "clusterId": "Kubernetes",
    "connectionWindowSize": 16777216,
    "crlPath": None,
    "dnsProxy": True,
    "dnsProxyAddr": {"Localhost": [True, 15053]},
    "dnsResolverCfg": {
        "domain": None,
        "name_servers": [
            {
                "connections": [
                    {"bind_addr": None, "port": 53, "protocol": {"type": "udp"}},
                    {"bind_addr": None, "port": 53, "protocol": {"type": "tcp"}},
                ],
                "ip": "10.77.0.53",
                "trust_negative_responses": True,
            }
        ],
        "search": [],
    },
    "dnsResolverOpts": {
        "allow_answers": [],
        "attempts": 2,
        "avoid_local_udp_ports": [],
        "cache_size": 4096,
        "case_randomization": False,
        "deny_answers": [],
        "edns0": False,
        "edns_payload_len": 1232,
        "ip_strategy": "Ipv4AndIpv6",
        "max_active_requests": 32,
        "ndots": 1,
        "negative_max_ttl": None,
        "negative_min_ttl": None,
        "num_concurrent_reqs": 2,
        "os_port_selection": False,
        "positive_max_ttl": None,
        "positive_min_ttl": None,
        "preserve_intermediates": True,
        "recursion_desired": True,
        "server_ordering_strategy": "QueryStatistics",
        "timeout": 5,
        "trust_anchor": None,
        "try_tcp_on_error": False,
        "use_hosts_file": "Auto",
    },
    "enableEnhancedBaggage": True,
    "fakeCa": False,
    "fakeSelfInbound": False,
    "frameSize": 1048576,
    "illegalPorts": [15001, 15006, 15008],
    "inboundAddr": "[::]:15008",
    "inboundPlaintextAddr": "[::]:15006",
    "inpodPortReuse": True,
    "inpodUds": "/dir/nodeA/zds.sock",
    "ipv6Enabled": True,
    "localNode": "node-a",
    "localhostAppTunnel": True,
    "network": "",
    "numWorkerThreads": 2,
    "outboundAddr": "[::]:15001",
    "packetMark": 1337,
    "poolMaxStreamsPerConn": 100,
    "poolUnusedReleaseTimeout": {"nanos": 0, "secs": 300},
    "preferedServiceNamespace": None,
    "proxy": True,
    "proxyArgs": "proxy ztunnel",
    "proxyMetadata": {"CLUSTER_ID": "Kubernetes", "ISTIO_VERSION": "1.2.3"},
    "proxyMode": "Shared",
    "proxyWorkloadInformation": None,
    "readinessAddr": {"SocketAddr": "[::]:15021"},
    "requireOriginalSource": None,
    "secretTtl": {"nanos": 500000000, "secs": 86400},
    "selfTerminationDeadline": {"nanos": 0, "secs": 5},
    "socketConfig": {
        "keepaliveEnabled": True,
        "keepaliveInterval": {"nanos": 0, "secs": 180},
        "keepaliveRetries": 9,
        "keepaliveTime": {"nanos": 0, "secs": 180},
        "userTimeoutEnabled": False,
    },
    "socks5Addr": None,
    "statsAddr": {"SocketAddr": "[::]:15020"},
    "windowSize": 4194304,
    "xdsAddress": "https://10.77.0.1:15012",
    "xdsHeaders": [],
    "xdsOnDemand": False,
    "xdsRootCert": {"File": "/dir/root-cert.pem"},
    "ztunnelIdentity": "spiffe://cluster.local/ns/istio-system/sa/ztunnel",
    "ztunnelWorkload": {"name": "ztunnel-a", "namespace": "istio-system", "serviceAccount": "ztunnel"},
}


def golden_config() -> Config:
    environ = {
        "XDS_ADDRESS": "https://10.77.0.1:15012",
        "CA_ADDRESS": "https://10.77.0.1:15012",
        "XDS_ROOT_CA": "/dir/root-cert.pem",
        "CA_ROOT_CA": "/dir/root-cert.pem",
        "CA_HEADER_X-TENANT": "blue",
        "INPOD_UDS": "/dir/nodeA/zds.sock",
        "NODE_NAME": "node-a",
        "SECRET_TTL": "86400s 500ms",
        "POD_NAME": "ztunnel-a",
        "POD_NAMESPACE": "istio-system",
        "SERVICE_ACCOUNT": "ztunnel",
        "ISTIO_META_CLUSTER_ID": "Kubernetes",
        "ISTIO_META_ISTIO_VERSION": "1.2.3",
    }
    files = {RESOLV_CONF: "nameserver 10.77.0.53\n", "/dir/root-cert.pem": "PEM"}
    return loaded(environ, files)


def test_the_dump_has_the_references_keys_and_values() -> None:
    assert dump_config(golden_config()) == GOLDEN


def test_the_dump_names_what_is_switched_on() -> None:
    environ = {
        "PROXY_MODE": "dedicated", "PROXY_WORKLOAD_INFO": "ns/n/sa", "UNSTABLE_ENABLE_SOCKS5": "true",
        "XDS_ADDRESS": "", "CA_ROOT_CA": "SYSTEM", "IPV6_ENABLED": "false",
        "ISTIO_META_DNS_PROXY_ADDR": "127.0.0.1:5353",
    }  # fmt: skip

    dump = dump_config(loaded(environ))

    assert dump["proxyMode"] == "Dedicated"
    assert dump["proxyWorkloadInformation"] == {"name": "n", "namespace": "ns", "serviceAccount": "sa"}
    assert dump["socks5Addr"] == "127.0.0.1:15080"
    assert dump["xdsAddress"] is None
    assert (dump["caRootCert"], dump["xdsRootCert"]) == ("Default", "Static")
    assert dump["dnsProxyAddr"] == {"SocketAddr": "127.0.0.1:5353"}


def test_the_text_at_start_is_the_dump_as_yaml() -> None:
    class Loader(yaml.SafeLoader):
        """Reads `!KIND value` as the object `{KIND: value}` that JSON has."""

    def untagged(loader: yaml.SafeLoader, kind: str, node: yaml.Node) -> JsonValue:
        if isinstance(node, yaml.SequenceNode):
            return {kind: loader.construct_sequence(node, deep=True)}
        assert isinstance(node, yaml.ScalarNode)
        return {kind: loader.construct_scalar(node)}

    Loader.add_multi_constructor("!", untagged)
    text = config_text(golden_config())

    assert yaml.load(text, Loader) == GOLDEN
    assert "adminAddr: !Localhost\n- true\n- 15000\n" in text
    assert "statsAddr: !SocketAddr '[::]:15020'\n" in text
    assert "caRootCert: !File " in text
