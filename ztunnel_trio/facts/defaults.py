"""The defaults of settings that operators may change: each stated here, once (ztunnel src/config.rs).

`config` takes them where a variable is unset, the parts' own settings classes where a test or a tool makes
them, and the reference page shows them.
"""

from typing import Final

STREAM_WINDOW: Final = 4 << 20
CONNECTION_WINDOW: Final = 16 << 20
FRAME_SIZE: Final = 1 << 20
STREAMS_PER_TUNNEL: Final = 100
TUNNEL_IDLE_SECONDS: Final = 300

KEEPALIVE_SECONDS: Final = 180  # both before the first probe and between two
KEEPALIVE_PROBES: Final = 9

CERTIFICATE_SECONDS: Final = 86_400
ATTESTATION_SECONDS: Final = 10
DRAIN_SECONDS: Final = 5

CLUSTER_DOMAIN: Final = "cluster.local"
INSTANCE_IP: Final = "1.1.1.1"  # ztunnel src/xds/client.rs, when the pod's own is unknown
INPOD_SOCKET: Final = "/var/run/ztunnel/ztunnel.sock"
ROOT_FILE: Final = "./var/run/secrets/istio/root-cert.pem"
TOKEN_FILE: Final = "./var/run/secrets/tokens/istio-token"  # noqa: S105  a path
SPIRE_ADMIN_SOCKET: Final = "/run/spire/sockets/admin.sock"
