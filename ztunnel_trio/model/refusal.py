"""Why a connection was never established: the step that failed, and what it was about."""

from dataclasses import dataclass
from enum import Enum
from typing import Final

from ztunnel_trio.errors import ZtunnelError
from ztunnel_trio.model.ending import Ending


class Reason(Enum):
    """Why a connection was refused. `observe.words` has the text and the flag of each."""

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


@dataclass(frozen=True, slots=True)
class Refusal:
    """One refusal: its reason, and what it was about or what happened.

    `subject` names what a decision found wanting: an address, a hostname, a resource. `cause` is what
    happened where something was tried. One of them at most is given.
    """

    reason: Reason
    subject: str = ""
    cause: Ending | None = None


class Refused(ZtunnelError):
    """Carries a `Refusal` out of the pure world to where it is logged and answered."""

    def __init__(self, refusal: Refusal) -> None:
        about = refusal.subject if refusal.cause is None else repr(refusal.cause)
        super().__init__(f"{refusal.reason.value}: {about}")
        self.refusal = refusal


# What a refused CONNECT is answered with; 401, not 403: ztunnel src/proxy/inbound.rs
_ANSWERS: Final = {
    Reason.WRONG_METHOD: 400,
    Reason.BAD_AUTHORITY: 400,
    Reason.IP_MISMATCH: 400,
    Reason.POLICY_REJECTION: 401,
}


def answer_to(reason: Reason) -> int:
    """The HTTP status that answers a CONNECT refused for this reason."""
    return _ANSWERS.get(reason, 503)
