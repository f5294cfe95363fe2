"""In-pod messages: bytes as exchanged with istio-cni, and every way a request can be wrong."""

import pytest

from ztunnel_trio.errors import PeerBrokeProtocol
from ztunnel_trio.model.workload import WorkloadInfo
from ztunnel_trio.wire import zds
from ztunnel_trio.wire.zds import PodAdded, PodDeleted, PodKept, SnapshotSent

INFO = WorkloadInfo("podA", "default", "default")


class Handle:
    """A descriptor that remembers how often it was closed."""

    def __init__(self) -> None:
        self.closed = 0

    def close(self) -> None:
        self.closed += 1


def unhex(text: str) -> bytes:
    return bytes.fromhex(text.replace(" ", ""))


ADD_A = b"\x0a\x21\x0a\x05uid-a\x12\x18\x0a\x04podA\x12\x07default\x1a\x07default"


@pytest.mark.parametrize(
    ("made", "on_the_wire"),
    [
        (zds.hello(), unhex("08 01")),
        (zds.ack(), unhex("0a 00")),
        (zds.snapshot_sent(), unhex("1a 00")),
        (zds.delete("uid-b"), unhex("12 07 12 05 75 69 64 2d 62")),
        (zds.keep("u"), unhex("2a 03 0a 01 75")),
        (zds.add("uid-a", INFO), ADD_A),
        (zds.ack("no"), b"\x0a\x04\x0a\x02no"),
    ],
)
def test_messages_are_the_bytes_istio_cni_exchanges(made: bytes, on_the_wire: bytes) -> None:
    assert made == on_the_wire


def test_an_added_pod_comes_with_its_namespace() -> None:
    handle = Handle()
    assert zds.decode(ADD_A, [handle], truncated=False) == PodAdded("uid-a", INFO, handle)
    assert handle.closed == 0


def test_an_added_pod_may_lack_its_description() -> None:
    handle = Handle()
    assert zds.decode(zds.add("u", None), [handle], truncated=False) == PodAdded("u", None, handle)


def test_an_empty_description_is_a_description() -> None:
    event = zds.decode(b"\x0a\x05\x0a\x01u\x12\x00", [Handle()], truncated=False)
    assert isinstance(event, PodAdded)
    assert event.info == WorkloadInfo("", "", "")


@pytest.mark.parametrize(
    ("data", "event"),
    [
        (zds.delete("uid-b"), PodDeleted("uid-b")),
        (zds.keep("u"), PodKept("u")),
        (zds.snapshot_sent(), SnapshotSent()),
        (b"\x12\x00", PodDeleted("")),
        (zds.keep("u") + b"\x7a\x01x", PodKept("u")),  # a field of tomorrow beside the payload
    ],
)
def test_other_requests_come_alone(data: bytes, event: object) -> None:
    no_handles: list[Handle] = []
    assert zds.decode(data, no_handles, truncated=False) == event


@pytest.mark.parametrize(
    ("data", "count", "truncated", "text"),
    [
        (ADD_A, 1, True, "received truncated message"),
        (ADD_A, 0, False, "No control message"),
        (ADD_A, 2, False, "Expected 1 FD, got 2"),
        (zds.keep("u"), 3, False, "Expected 1 FD, got 3"),
        (zds.delete("u"), 1, False, "Unexpected control message"),
        (zds.keep("u"), 1, False, "Unexpected control message"),
        (zds.snapshot_sent(), 1, False, "Unexpected control message"),
        (b"\x22\x00", 0, False, "no payload"),  # field 4 was never given out
        (b"\x7a\x00", 1, False, "no payload"),
        (b"", 1, False, "no payload"),
        (b"\x0a\x7f", 1, False, "failed to decode message: "),
        (b"\x0a\x03\x0a\x01\xff", 1, False, "failed to decode message: "),
        (b"\x08\x01", 0, False, "failed to decode message: "),  # a varint where a message belongs
        (b"\x0a\x02\x08\x01", 1, False, "failed to decode message: "),  # a varint for a name
        (b"\x12\x01\x13", 0, False, "failed to decode message: "),  # a group
        (b"\x02\x00", 0, False, "failed to decode message: "),  # field 0
        (b"\x7d\x00", 0, False, "failed to decode message: "),  # a fixed 32 of one byte
        (b"\x79" + bytes(8), 0, False, "no payload"),
        (b"\xff" * 20, 1, False, "failed to decode message: "),
        (zds.snapshot_sent() + zds.keep("u"), 0, False, "more than one payload"),
    ],
)
def test_a_wrong_request_is_refused_and_its_descriptors_closed(
    data: bytes, count: int, truncated: bool, text: str
) -> None:
    handles = [Handle() for _ in range(count)]
    with pytest.raises(PeerBrokeProtocol) as caught:
        zds.decode(data, handles, truncated=truncated)
    assert str(caught.value).startswith(text)
    assert [handle.closed for handle in handles] == [1] * count


def test_a_pod_whose_descriptor_was_lost_is_told_from_a_broken_request() -> None:
    handle, no_handles = Handle(), list[Handle]()

    assert zds.decode(ADD_A, no_handles, truncated=False, descriptors_lost=True) == zds.DescriptorLost(
        "uid-a"
    )
    with pytest.raises(PeerBrokeProtocol, match="received truncated message"):
        zds.decode(ADD_A, [handle], truncated=False, descriptors_lost=True)
    assert handle.closed == 1


def test_the_agents_side_reads_what_we_write() -> None:
    assert zds.decode_ack(zds.ack()) == ""
    assert zds.decode_ack(zds.ack("failure to start proxy : x")) == "failure to start proxy : x"


@pytest.mark.parametrize("data", [b"", b"\xff", b"\x0a\x05a"])
def test_the_agents_side_refuses_what_is_no_answer(data: bytes) -> None:
    with pytest.raises(PeerBrokeProtocol):
        zds.decode_ack(data)
