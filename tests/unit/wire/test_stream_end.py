"""How a stream ends, and how long to wait after it."""

from random import Random

import pytest

from ztunnel_trio.facts.grpc import GrpcCode
from ztunnel_trio.wire.stream_end import (
    FAILING,
    CompleteEnd,
    EndReason,
    OtherEnd,
    StatusEnd,
    StreamEnd,
    duration_text,
    judge,
)

ADDRESS = "https://istiod:15012"


def test_failures_wait_longer_and_longer_and_an_ordinary_end_does_not() -> None:
    waits = [round(FAILING.delay(failures, Random(1)) * 1000) for failures in range(1, 13)]

    assert waits == [20, 40, 80, 160, 320, 640, 1280, 2560, 5120, 10240, 15000, 15000]
    assert judge(StatusEnd(GrpcCode.UNKNOWN, "", answered=True), ADDRESS).pause_seconds == 0.010
    assert judge(CompleteEnd(), ADDRESS).pause_seconds == 0
    assert judge(StatusEnd(GrpcCode.UNKNOWN, "(Connect)", answered=False), ADDRESS).pause_seconds is None
    assert judge(StatusEnd(GrpcCode.INTERNAL, "", answered=True), ADDRESS).pause_seconds is None
    assert judge(OtherEnd("no root"), ADDRESS).pause_seconds is None  # the reference retries at once


@pytest.mark.parametrize(
    ("end", "reason", "text"),
    [
        (
            StatusEnd(GrpcCode.UNAUTHENTICATED, "authentication failure", answered=False),
            EndReason.CONNECTION_ERROR,
            f"XDS client connection error: gRPC connection error connecting to {ADDRESS}: status: "
            'Unauthenticated, message: "authentication failure" (hint: check the control plane logs for more '
            "information), retrying in 20ms",
        ),
        (
            StatusEnd(
                GrpcCode.UNKNOWN,
                "client error (Connect)",
                answered=False,
                source="dns error: Temporary failure in name resolution",
            ),
            EndReason.CONNECTION_ERROR,
            f"XDS client connection error: gRPC connection error connecting to {ADDRESS}: status: Unknown, "
            'message: "client error (Connect)", source: dns error: Temporary failure in name resolution '
            "(hint: is the DNS server reachable?), retrying in 20ms",
        ),
        (
            StatusEnd(GrpcCode.CANCELLED, "", answered=True),
            EndReason.RECONNECT,
            'XDS client terminated: gRPC error status: Cancelled, message: ""',
        ),
        (
            StatusEnd(GrpcCode.DEADLINE_EXCEEDED, "", answered=True),
            EndReason.RECONNECT,
            'XDS client terminated: gRPC error status: DeadlineExceeded, message: ""',
        ),
        (
            StatusEnd(GrpcCode.UNAVAILABLE, "transport is closing", answered=True),
            EndReason.RECONNECT,
            'XDS client terminated: gRPC error status: Unavailable, message: "transport is closing"',
        ),
        (
            StatusEnd(GrpcCode.UNAVAILABLE, "closing: received prior goaway: x", answered=True),
            EndReason.RECONNECT,
            "XDS client terminated: gRPC error status: Unavailable, "
            'message: "closing: received prior goaway: x"',
        ),
        (
            StatusEnd(GrpcCode.UNAVAILABLE, "overloaded", answered=True),
            EndReason.ERROR,
            'XDS client error: gRPC error status: Unavailable, message: "overloaded", retrying in 20ms',
        ),
        (
            StatusEnd(GrpcCode.ABORTED, "x", answered=True),
            EndReason.ERROR,
            'XDS client error: gRPC error status: Aborted, message: "x", retrying in 20ms',
        ),
        (CompleteEnd(), EndReason.COMPLETE, "XDS client complete"),
        (OtherEnd("no root"), EndReason.ERROR, "XDS client error: no root, retrying in 20ms"),
    ],
)
def test_every_end_has_its_reason_and_text(end: StreamEnd, reason: EndReason, text: str) -> None:
    judged = judge(end, ADDRESS)

    assert (judged.reason, judged.told(0.02)) == (reason, text)


def test_durations_read_as_rust_prints_them() -> None:
    assert [duration_text(one) for one in (0.02, 0.64, 1.28, 15.0)] == ["20ms", "640ms", "1.28s", "15s"]
