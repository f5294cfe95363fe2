"""The error families, named for the culprit, and the reasons for which a connection is refused.

| Family              | Means                                   | Handled by                        |
|---------------------|-----------------------------------------|-----------------------------------|
| `ConfigError`       | the operator's input is wrong           | exit 1 with the variable and value |
| `PeerBrokeProtocol` | they sent what the spec forbids         | answer with the code, close that peer |
| `WeBrokeProtocol`   | our bug against a core                  | crash the task, loud              |
| `Unavailable`       | something we need is not there yet      | retry or refuse                   |
| `Refused`           | a decision's refusal leaving the pure world | access log, status            |

`OSError` stays `OSError` until the access log turns it into text.
"""

from dataclasses import dataclass
from enum import Enum


class ZtunnelError(Exception):
    """Base of the families; never raised itself."""


class ConfigError(ZtunnelError):
    """The operator's input is wrong; the text names the variable and the value."""


class PeerBrokeProtocol(ZtunnelError):
    """A peer sent what its protocol forbids. `code` is the wire's error code where it has one."""

    def __init__(self, text: str, code: int | None = None) -> None:
        super().__init__(text)
        self.code = code


class WeBrokeProtocol(ZtunnelError):
    """A caller used a core against its rules: a bug of ours."""


class Unavailable(ZtunnelError):
    """Something needed is not there yet: a workload, a certificate, a resolver's answer."""


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
