"""What operators read about an end: the reference's sentences, and where it puts the directions.

The one place where an `Ending` or a `Refusal` becomes text or a response flag. Sentences of Rust's standard
library, rustls, h2 and ztunnel itself (src/proxy.rs Error, src/proxy/metrics.rs, src/copy.rs), so that
searches and alerts written for the reference find ours.
"""

import os
from collections.abc import Mapping
from http import HTTPStatus
from typing import Final, assert_never

from ztunnel_trio.model.ending import (
    AlertReceived,
    AnsweredStatus,
    ApplicationReset,
    Bug,
    By,
    BytesLeftOver,
    CertificateInvalid,
    Clean,
    DeadlinePassed,
    DirectionFailed,
    Drained,
    Ending,
    Failure,
    Flow,
    GoAway,
    Invalid,
    Loss,
    NoAnswer,
    NotProcessed,
    OtherFailure,
    OtherTrustDomain,
    PeerSilent,
    PeerUnexpected,
    PodGone,
    PolicyChanged,
    Revoked,
    StreamReset,
    SystemFailure,
    TlsCause,
    TlsLibrary,
    TlsRefused,
    TransportEnded,
    TunnelLost,
)
from ztunnel_trio.model.refusal import Reason, Refusal
from ztunnel_trio.observe.metrics.labels import SUCCESS

Outcome = Refusal | Ending
"""What the line of a connection is about: why it never was established, or how it ended."""

FAILED: Final = "CONNECT"  # the response flag of a failure without one of its own

_REFUSALS: Final[Mapping[Reason, str]] = {  # `{}` is the subject, or the cause in words
    Reason.RECURSIVE_CALL: "attempted recursive call to ourselves",
    Reason.UNKNOWN_LOCAL_WORKLOAD: "failed to fetch information about local workload: {}",
    Reason.NO_HEALTHY_UPSTREAM: "no healthy upstream: {}",
    Reason.NO_VALID_DESTINATION: "no valid routing destination for workload: {}",
    Reason.NO_SERVICE_FOR_TARGET: "no service for target address: {}",
    Reason.UNKNOWN_WAYPOINT: "unknown waypoint: waypoint {} not found",
    Reason.UNKNOWN_NETWORK_GATEWAY: "unknown network gateway: network gateway {} not found",
    Reason.NO_RESOLVED_ADDRESSES: "no ip addresses were resolved for workload: {}",
    Reason.NO_USABLE_RECORDS: (
        "ip addresses were resolved for workload {}, but valid dns response had no A/AAAA records"
    ),
    Reason.WRONG_METHOD: "expected method CONNECT, got {}",
    Reason.BAD_AUTHORITY: "no valid authority pseudo header: {}",
    Reason.IP_MISMATCH: "ip mismatch: {}",
    Reason.UNKNOWN_HOSTNAME: "no service or workload for hostname: {}",
    Reason.UNRESOLVED_SERVICE_PORT: "requested service {} found, but cannot resolve port",
    Reason.SERVICE_WITHOUT_ADDRESS: "requested service {} found, but has no IP addresses",
    Reason.POLICY_REJECTION: "connection closed due to policy rejection: {}",
    Reason.IDENTITY: "identity error: {}",
    Reason.SIGNING: "signing error: {}",
    Reason.TLS_HANDSHAKE: "tls handshake error: {}",
    Reason.TLS_CONFIG: "tls error: {}",
    Reason.IO: "io error: {}",
    Reason.CONNECT_FAILED: "connection failed: {}",
    Reason.HBONE_CONNECT_TIMEOUT: (
        "connection timed out, maybe a NetworkPolicy is blocking HBONE port 15008: {}"
    ),
    Reason.H2_HANDSHAKE: "http2 handshake failed: {}",
    Reason.H2: "h2 failed: {}",
    Reason.HTTP_STATUS: "http status: {}",
}
_REFUSAL_FLAGS: Final[Mapping[Reason, str]] = {
    Reason.POLICY_REJECTION: "DENY",
    Reason.TLS_CONFIG: "TLS_FAILURE",
    Reason.H2_HANDSHAKE: "H2_HANDSHAKE_FAILURE",
    Reason.H2: "H2_HANDSHAKE_FAILURE",
    Reason.HBONE_CONNECT_TIMEOUT: "NETWORK_POLICY",
    Reason.IDENTITY: "IDENTITY_ERROR",
    Reason.SIGNING: "IDENTITY_ERROR",
}
_H2_REASONS: Final[Mapping[int, str]] = {  # h2 (Rust) src/frame/reason.rs: Reason::description
    0: "not a result of an error",
    1: "unspecific protocol error detected",
    2: "unexpected internal error encountered",
    3: "flow-control protocol violated",
    4: "settings ACK not received in timely manner",
    5: "received frame when stream half-closed",
    6: "frame with invalid size",
    7: "refused stream before processing any application logic",
    8: "stream no longer needed",
    9: "unable to maintain the header compression context",
    10: "connection established in response to a CONNECT request was reset or abnormally closed",
    11: "detected excessive load generating behavior",
    12: "security properties do not meet minimum requirements",
    13: "endpoint requires HTTP/1.1",
}
_NO_LONGER_WANTED: Final = frozenset({5, 8})  # STREAM_CLOSED, CANCEL: a pipe whose reader has gone
_TLS_CAUSES: Final[Mapping[TlsCause, str]] = {  # rustls src/error.rs
    TlsCause.NO_CERTIFICATE: "peer sent no certificates",
    TlsCause.UNREADABLE_NAMES: "invalid peer certificate: BadEncoding",
    TlsCause.NO_COMMON_PROTOCOL: "peer doesn't support any known protocol",
    TlsCause.NOT_TLS: "received corrupt message of type InvalidContentType",
    TlsCause.ENDED: "tls handshake eof",
}
_INVALID: Final[Mapping[Invalid, str]] = {  # rustls CertificateError
    Invalid.UNKNOWN_ISSUER: "UnknownIssuer",
    Invalid.BAD_SIGNATURE: "BadSignature",
    Invalid.NOT_YET_VALID: "NotValidYet",
    Invalid.EXPIRED: "Expired",
    Invalid.REVOKED: "Revoked",
    Invalid.WRONG_PURPOSE: "InvalidPurpose",
}
_ACRONYMS: Final = {"CA": "CA", "PSK": "PSK"}  # as rustls spells its alerts: UnknownCA, UnknownPSKIdentity
_REVOKED: Final = "peer certificate revoked by CRL"


def os_error_text(error: OSError) -> str:
    """An OSError as the reference prints it: `Connection reset by peer (os error 104)`."""
    return system_text(error.errno) if error.errno else str(error)


def system_text(number: int) -> str:
    """An `errno` as the reference prints it."""
    return f"{os.strerror(number)} (os error {number})"


def h2_text(code: int) -> str:
    """An error code of RFC 9113 7 in the words operators know from the reference."""
    return _H2_REASONS.get(code, "unknown reason")


def status_text(code: int) -> str:
    """`503 Service Unavailable` for 503; codes nobody named get the reference's placeholder."""
    try:
        return f"{code} {HTTPStatus(code).phrase}"
    except ValueError:
        return f"{code} <unknown status code>"


def error_text(outcome: Outcome) -> str | None:
    """The field `error` of the access line; None where there is none to be told."""
    match _decided(outcome):
        case Refusal(reason, subject, cause):
            return _REFUSALS[reason].replace("{}", subject if cause is None else ending_text(cause))
        case Clean() | ApplicationReset():
            return None
        case PolicyChanged():
            return "connection closed due to policy change"
        case Revoked():
            return f"connection closed: {_REVOKED}"
        case Drained():
            return "connection closed due to connection drain"
        case PodGone():
            return "connection closed: the pod is gone"
        case other:
            return ending_text(other)


def _decided(outcome: Outcome) -> Outcome:
    """What we decided ourselves, where a connection came to feel it by way of its tunnel."""
    match outcome:
        case DirectionFailed(cause=TunnelLost(Revoked() | Drained() | PodGone() as why)):
            return why
        case Refusal(cause=TunnelLost(Revoked() as why)):
            return why
        case _:
            return outcome


def flags_of(outcome: Outcome) -> str:
    """The label `response_flags`; a failure without a flag of its own is `CONNECT`."""
    match _decided(outcome):
        case Refusal(reason):
            return _REFUSAL_FLAGS.get(reason, FAILED)
        case Clean() | ApplicationReset() | Drained() | PodGone():  # ended by us, not failed
            return SUCCESS
        case PolicyChanged():
            return "DENY"
        case Revoked():
            return "CERT_REVOKED"
        case _:
            return FAILED


def ending_text(ending: Ending) -> str:
    """An ending by itself, to be put behind what it is the cause of."""
    match ending:
        case SystemFailure() | OtherFailure() | TlsRefused() | Revoked() | Drained() | PodGone() | Bug():
            return _loss_text(ending)
        case TunnelLost(cause):
            return _loss_text(cause)
        case DeadlinePassed():
            return "deadline has elapsed"
        case NoAnswer():
            return "no answer to the CONNECT in time"
        case PeerUnexpected(wanted, got):
            expected, names = ",".join(map(str, wanted)), ",".join(map(str, got))
            return _identity_text(f"peer did not present the expected SAN ({expected}), got {names}")
        case OtherTrustDomain(wanted, got):
            names = ",".join(map(str, got))
            return _identity_text(f"peer did not present the expected trustdomain ({wanted}), got {names}")
        case StreamReset(code, by):
            return f"stream error {'received' if by is By.PEER else 'detected'}: {h2_text(code)}"
        case NotProcessed(code):
            return f"stream error received: {h2_text(code)}"
        case AnsweredStatus(status):
            return status_text(status)
        case DirectionFailed(flow, cause, while_closing):
            return _direction_text(flow, cause, while_closing=while_closing)
        case BytesLeftOver():
            return "disconnected before all data was written"
        case PolicyChanged():
            return "policy change"
        case ApplicationReset():
            return "reset by the application"
        case Clean():
            return "closed"
        case _:
            assert_never(ending)


def _loss_text(cause: Loss) -> str:
    match cause:
        case TransportEnded():
            return "stream closed because of a broken pipe"  # h2 (Rust) src/proto/connection.rs: recv_eof
        case PeerSilent():
            return "ping timeout"
        case GoAway(code, by):
            return f"connection error {'received' if by is By.PEER else 'detected'}: {h2_text(code)}"
        case SystemFailure(number):
            return system_text(number)
        case OtherFailure(text):
            return text
        case TlsRefused(found):
            return _tls_text(found)
        case Revoked():
            return _REVOKED
        case Drained():
            return "connection drain"
        case PodGone():
            return "the pod is gone"
        case Bug(text):
            return f"bug: {text}"
        case _:
            assert_never(cause)


def _tls_text(found: TlsCause | CertificateInvalid | AlertReceived | TlsLibrary) -> str:
    match found:
        case TlsCause():
            return _TLS_CAUSES[found]
        case CertificateInvalid(Invalid() as known):
            return f"invalid peer certificate: {_INVALID[known]}"
        case CertificateInvalid(text):
            return f"invalid peer certificate: Other(OtherError({text}))"
        case AlertReceived(name):
            words = (_ACRONYMS.get(word, word.title()) for word in name.split("_"))
            return "received fatal alert: " + "".join(words)
        case TlsLibrary(reason):
            return f"tls: {reason}"
        case _:
            assert_never(found)


def _identity_text(text: str) -> str:
    return f"invalid peer certificate: Other(OtherError(identity verification error: {text}))"


def _direction_text(flow: Flow, cause: Failure, *, while_closing: bool) -> str:
    """`while closing connection: send: …`, `receive: …`: where ztunnel src/copy.rs puts the direction."""
    name = "send" if flow is Flow.TO_DESTINATION else "receive"
    match cause:
        case BytesLeftOver():
            side = "destination" if flow is Flow.TO_DESTINATION else "client"
            return f"{name}: {side} disconnected before all data was written"
        case StreamReset(code) | NotProcessed(code):
            text = "broken pipe" if code in _NO_LONGER_WANTED else f"protocol error: {h2_text(code)}"
        case _:
            text = ending_text(cause)
    closing = "while closing connection: " if while_closing else ""
    return f"{closing}{name}: io error: {text}"
