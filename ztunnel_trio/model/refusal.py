"""Why a connection was never established: the step that failed, and what it was about."""

from dataclasses import dataclass
from enum import Enum

from ztunnel_trio.errors import ZtunnelError


class Reason(Enum):
    """Why a connection was refused or ended. `observe.access_log` maps each to text, flag and status."""

    # before a connection is established
    RECURSIVE_CALL = "recursive_call"
    UNKNOWN_LOCAL_WORKLOAD = "unknown_local_workload"
    NO_HEALTHY_UPSTREAM = "no_healthy_upstream"
    NO_VALID_DESTINATION = "no_valid_destination"
    NO_SERVICE_FOR_TARGET = "no_service_for_target"
    UNKNOWN_WAYPOINT = "unknown_waypoint"
    UNKNOWN_NETWORK_GATEWAY = "unknown_network_gateway"
    NO_RESOLVED_ADDRESSES = "no_resolved_addresses"
    NO_USABLE_RECORDS = "no_usable_records"
    WRONG_METHOD = "wrong_method"
    BAD_AUTHORITY = "bad_authority"
    IP_MISMATCH = "ip_mismatch"
    UNKNOWN_HOSTNAME = "unknown_hostname"
    UNRESOLVED_SERVICE_PORT = "unresolved_service_port"
    SERVICE_WITHOUT_ADDRESS = "service_without_address"
    POLICY_REJECTION = "policy_rejection"
    IDENTITY = "identity"  # outbound: no certificate of our own
    SIGNING = "signing"  # inbound: no certificate of our own
    TLS_HANDSHAKE = "tls_handshake"
    TLS_CONFIG = "tls_config"
    IO = "io"
    CONNECT_FAILED = "connect_failed"
    HBONE_CONNECT_TIMEOUT = "hbone_connect_timeout"
    H2_HANDSHAKE = "h2_handshake"
    H2 = "h2"
    HTTP_STATUS = "http_status"
    POOL_DRAINING = "pool_draining"
    # after it was
    RELAY = "relay"
    POLICY_CHANGE = "policy_change"
    CERTIFICATE_REVOKED = "certificate_revoked"
    DRAIN = "drain"


@dataclass(frozen=True, slots=True)
class Refusal:
    """One refusal: its reason and the particulars its text inserts, e.g. the target address."""

    reason: Reason
    detail: str = ""


class Refused(ZtunnelError):
    """Carries a `Refusal` out of the pure world to where it is logged and answered."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(f"{refusal.reason.value}: {refusal.detail}")
        self.refusal = refusal
