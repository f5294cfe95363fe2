"""Ports, header names, type URLs and protocol numbers of Istio ambient (istio `architecture/ambient`)."""

from typing import Final

OUTBOUND_PORT: Final = 15001
INBOUND_PLAINTEXT_PORT: Final = 15006
HBONE_PORT: Final = 15008
SOCKS5_PORT: Final = 15080
DNS_PORT: Final = 15053
ADMIN_PORT: Final = 15000
STATS_PORT: Final = 15020
READINESS_PORT: Final = 15021

ADDRESS_TYPE: Final = "type.googleapis.com/istio.workload.Address"
AUTHORIZATION_TYPE: Final = "type.googleapis.com/istio.security.Authorization"

ALPN_H2: Final = "h2"

DEFAULT_TRUST_DOMAIN: Final = "cluster.local"  # istio: constants.DefaultClusterLocalDomain
DEFAULT_SERVICE_ACCOUNT: Final = "default"
DEFAULT_CLUSTER: Final = "Kubernetes"

PACKET_MARK: Final = 0x539  # 1337; istio-cni: InpodMark, packets of the proxy are never captured
PACKET_MARK_MASK: Final = 0xFFF
CONNECTION_MARK: Final = 0x111  # istio-cni: InpodTProxyMark, replies to spoofed sources come back
PROBE_SOURCE_V4: Final = "169.254.7.127"  # istio-cni: HostProbeSNATIP, kubelet probes bypass the proxy
PROBE_SOURCE_V6: Final = "fd16:9254:7127:1337:ffff:ffff:ffff:ffff"
