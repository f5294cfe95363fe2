"""How a stream ends, and how long to wait after it."""

import pytest

from ztunnel_trio.facts.grpc import GrpcCode
from ztunnel_trio.wire.stream_end import (
    CompleteEnd,
    EndReason,
    OtherEnd,
    Retries,
    StatusEnd,
    StreamEnd,
    duration_text,
)

ADDRESS = "https://istiod:15012"


def test_failures_wait_longer_and_longer_and_an_ordinary_end_starts_over() -> None:
    retries = Retries(ADDRESS)
    refused = StatusEnd(GrpcCode.UNKNOWN, "client error (Connect)", answered=False)

    waits = [round(retries.after(refused).seconds * 1000) for _ in range(12)]

    assert waits == [20, 40, 80, 160, 320, 640, 1280, 2560, 5120, 10240, 15000, 15000]
    assert retries.after(StatusEnd(GrpcCode.UNKNOWN, "", answered=True)).seconds == 0.010
    assert retries.after(refused).seconds == 0.020
    assert retries.after(CompleteEnd()).seconds == 0
    assert retries.after(refused).seconds == 0.020
    assert retries.after(StatusEnd(GrpcCode.INTERNAL, "", answered=True)).seconds == 0.040
    assert retries.after(OtherEnd("no root")).seconds == 0.080  # the reference retries at once


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
    retry = Retries(ADDRESS).after(end)

    assert (retry.reason, retry.text) == (reason, text)
    assert retry.is_warning == (reason is not EndReason.RECONNECT)


def test_durations_read_as_rust_prints_them() -> None:
    assert [duration_text(one) for one in (0.02, 0.64, 1.28, 15.0)] == ["20ms", "640ms", "1.28s", "15s"]
