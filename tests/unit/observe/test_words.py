"""Every end in the words operators know from the reference."""

import errno

import pytest

from tests.fakes.connections import SERVER
from ztunnel_trio.model.ending import (
    CLEAN,
    AlertReceived,
    AnsweredStatus,
    ApplicationReset,
    Bug,
    By,
    BytesLeftOver,
    CertificateInvalid,
    DeadlinePassed,
    DirectionFailed,
    Drained,
    Ending,
    Flow,
    GoAway,
    Invalid,
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
from ztunnel_trio.model.identity import SpiffeId
from ztunnel_trio.model.refusal import Reason, Refusal, answer_to
from ztunnel_trio.observe.words import Outcome, ending_text, error_text, flags_of, h2_text, os_error_text

A, B = SpiffeId("td", "ns", "a"), SpiffeId("td", "ns", "b")
SEND, RECEIVE = Flow.TO_DESTINATION, Flow.TO_SOURCE
IDENTITY = "invalid peer certificate: Other(OtherError(identity verification error: "


@pytest.mark.parametrize(
    ("reason", "subject", "text"),
    [
        (Reason.RECURSIVE_CALL, "", "attempted recursive call to ourselves"),
        (
            Reason.UNKNOWN_LOCAL_WORKLOAD,
            "sa.ns (pod)",
            "failed to fetch information about local workload: sa.ns (pod)",
        ),
        (Reason.NO_HEALTHY_UPSTREAM, "1.2.3.4:80", "no healthy upstream: 1.2.3.4:80"),
        (
            Reason.NO_VALID_DESTINATION,
            str(SERVER),
            "no valid routing destination for workload: Workload{server-0 with uid"
            " Kubernetes//Pod/default/server (TCP)}",
        ),
        (Reason.NO_SERVICE_FOR_TARGET, "1.2.3.4:80", "no service for target address: 1.2.3.4:80"),
        (Reason.UNKNOWN_WAYPOINT, "ns/way", "unknown waypoint: waypoint ns/way not found"),
        (
            Reason.UNKNOWN_NETWORK_GATEWAY,
            "net/1.2.3.4",
            "unknown network gateway: network gateway net/1.2.3.4 not found",
        ),
        (Reason.NO_RESOLVED_ADDRESSES, "uid", "no ip addresses were resolved for workload: uid"),
        (
            Reason.NO_USABLE_RECORDS,
            "uid",
            "ip addresses were resolved for workload uid, but valid dns response had no A/AAAA records",
        ),
        (Reason.WRONG_METHOD, "GET", "expected method CONNECT, got GET"),
        (Reason.BAD_AUTHORITY, "x", "no valid authority pseudo header: x"),
        (Reason.IP_MISMATCH, "1.2.3.4 != 5.6.7.8", "ip mismatch: 1.2.3.4 != 5.6.7.8"),
        (Reason.UNKNOWN_HOSTNAME, "h", "no service or workload for hostname: h"),
        (Reason.UNRESOLVED_SERVICE_PORT, "h:80", "requested service h:80 found, but cannot resolve port"),
        (Reason.SERVICE_WITHOUT_ADDRESS, "h", "requested service h found, but has no IP addresses"),
        (
            Reason.POLICY_REJECTION,
            "explicitly denied by: default/no7777",
            "connection closed due to policy rejection: explicitly denied by: default/no7777",
        ),
        (Reason.IDENTITY, "x", "identity error: x"),
        (Reason.SIGNING, "x", "signing error: x"),
        (Reason.TLS_HANDSHAKE, "x", "tls handshake error: x"),
        (Reason.TLS_CONFIG, "x", "tls error: x"),
        (Reason.IO, "x", "io error: x"),
        (Reason.CONNECT_FAILED, "x", "connection failed: x"),
        (
            Reason.HBONE_CONNECT_TIMEOUT,
            "deadline has elapsed",
            "connection timed out, maybe a NetworkPolicy is blocking HBONE port 15008: deadline has elapsed",
        ),
        (Reason.H2_HANDSHAKE, "x", "http2 handshake failed: x"),
        (Reason.H2, "x", "h2 failed: x"),
        (Reason.HTTP_STATUS, "x", "http status: x"),
    ],
)
def test_every_reason_has_its_text(reason: Reason, subject: str, text: str) -> None:
    assert error_text(Refusal(reason, subject)) == text


def test_no_reason_is_forgotten() -> None:
    for reason in Reason:
        assert error_text(Refusal(reason, "x"))


@pytest.mark.parametrize(
    ("reason", "flags", "status"),
    [
        (Reason.POLICY_REJECTION, "DENY", 401),
        (Reason.WRONG_METHOD, "CONNECT", 400),
        (Reason.BAD_AUTHORITY, "CONNECT", 400),
        (Reason.IP_MISMATCH, "CONNECT", 400),
        (Reason.UNKNOWN_LOCAL_WORKLOAD, "CONNECT", 503),
        (Reason.RECURSIVE_CALL, "CONNECT", 503),
        (Reason.CONNECT_FAILED, "CONNECT", 503),
        (Reason.IO, "CONNECT", 503),
        (Reason.TLS_HANDSHAKE, "CONNECT", 503),
        (Reason.HTTP_STATUS, "CONNECT", 503),
        (Reason.TLS_CONFIG, "TLS_FAILURE", 503),
        (Reason.H2_HANDSHAKE, "H2_HANDSHAKE_FAILURE", 503),
        (Reason.H2, "H2_HANDSHAKE_FAILURE", 503),
        (Reason.HBONE_CONNECT_TIMEOUT, "NETWORK_POLICY", 503),
        (Reason.IDENTITY, "IDENTITY_ERROR", 503),
    ],
)
def test_flags_and_statuses(reason: Reason, flags: str, status: int) -> None:
    assert (flags_of(Refusal(reason)), answer_to(reason)) == (flags, status)


@pytest.mark.parametrize(
    ("cause", "text"),
    [
        (SystemFailure(errno.ECONNREFUSED), "Connection refused (os error 111)"),
        (OtherFailure("own words"), "own words"),
        (DeadlinePassed(), "deadline has elapsed"),
        (NoAnswer(), "no answer to the CONNECT in time"),
        (TlsRefused(TlsCause.NO_CERTIFICATE), "peer sent no certificates"),
        (TlsRefused(CertificateInvalid(Invalid.EXPIRED)), "invalid peer certificate: Expired"),
        (TlsRefused(CertificateInvalid("odd")), "invalid peer certificate: Other(OtherError(odd))"),
        (TlsRefused(AlertReceived("UNKNOWN_PSK_IDENTITY")), "received fatal alert: UnknownPSKIdentity"),
        (TlsRefused(TlsLibrary("no shared cipher")), "tls: no shared cipher"),
        (PeerUnexpected((A, B), (B,)),
         f"{IDENTITY}peer did not present the expected SAN ({A},{B}), got {B}))"),
        (OtherTrustDomain("td", (A,)),
         f"{IDENTITY}peer did not present the expected trustdomain (td), got {A}))"),
        (StreamReset(8), "stream error received: stream no longer needed"),
        (StreamReset(3, By.US), "stream error detected: flow-control protocol violated"),
        (NotProcessed(7), "stream error received: refused stream before processing any application logic"),
        (TunnelLost(TransportEnded()), "stream closed because of a broken pipe"),
        (TunnelLost(PeerSilent()), "ping timeout"),
        (TunnelLost(GoAway(0)), "connection error received: not a result of an error"),
        (TunnelLost(GoAway(11, By.US)),
         "connection error detected: detected excessive load generating behavior"),
        (TunnelLost(SystemFailure(104)), "Connection reset by peer (os error 104)"),
        (TunnelLost(TlsRefused(AlertReceived("UNKNOWN_CA"))), "received fatal alert: UnknownCA"),
        (AnsweredStatus(503), "503 Service Unavailable"),
        (AnsweredStatus(499), "499 <unknown status code>"),
    ],
)  # fmt: skip
def test_what_is_the_cause_of_a_refusal(cause: Ending, text: str) -> None:
    assert ending_text(cause) == text
    assert error_text(Refusal(Reason.H2, cause=cause)) == f"h2 failed: {text}"


@pytest.mark.parametrize(
    ("ending", "text", "flags"),
    [
        (CLEAN, None, "-"),
        (ApplicationReset(), None, "-"),
        (PolicyChanged(), "connection closed due to policy change", "DENY"),
        (Revoked(), "connection closed: peer certificate revoked by CRL", "CERT_REVOKED"),
        (Drained(), "connection closed due to connection drain", "-"),
        (PodGone(), "connection closed: the pod is gone", "-"),
        (Bug("KeyError()"), "bug: KeyError()", "CONNECT"),
        (DirectionFailed(SEND, BytesLeftOver()),
         "send: destination disconnected before all data was written", "CONNECT"),
        (DirectionFailed(RECEIVE, BytesLeftOver()),
         "receive: client disconnected before all data was written", "CONNECT"),
        (DirectionFailed(SEND, SystemFailure(110)),
         "send: io error: Connection timed out (os error 110)", "CONNECT"),
        (DirectionFailed(RECEIVE, StreamReset(8)), "receive: io error: broken pipe", "CONNECT"),
        (DirectionFailed(SEND, StreamReset(2), while_closing=True),
         "while closing connection: send: io error: protocol error: unexpected internal error encountered",
         "CONNECT"),
        (DirectionFailed(SEND, TunnelLost(PeerSilent())), "send: io error: ping timeout", "CONNECT"),
        (DirectionFailed(SEND, TunnelLost(Revoked())),
         "connection closed: peer certificate revoked by CRL", "CERT_REVOKED"),
        (DirectionFailed(SEND, TunnelLost(PodGone())), "connection closed: the pod is gone", "-"),
        (Refusal(Reason.H2, cause=TunnelLost(Revoked())),
         "connection closed: peer certificate revoked by CRL", "CERT_REVOKED"),
    ],
)  # fmt: skip
def test_how_an_end_reads_and_counts(ending: Outcome, text: str | None, flags: str) -> None:
    assert (error_text(ending), flags_of(ending)) == (text, flags)


def test_error_codes_read_as_in_the_reference() -> None:
    assert h2_text(7) == "refused stream before processing any application logic"
    assert h2_text(0) == "not a result of an error"
    assert h2_text(99) == "unknown reason"


def test_errors_of_the_system_read_as_in_the_reference() -> None:
    assert os_error_text(OSError(errno.ECONNRESET, "x")) == "Connection reset by peer (os error 104)"
    assert os_error_text(OSError("odd")) == "odd"
