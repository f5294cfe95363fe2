"""Frames in, evidence out."""

import struct
from ipaddress import IPv4Address, IPv6Address
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ztunnel_trio.lab.capture import CapturedFlow, Wire, selected_version, to_port
from ztunnel_trio.model.address import SocketAddress

CLIENT = SocketAddress(IPv4Address("10.88.16.10"), 40000)
SERVER = SocketAddress(IPv4Address("10.88.16.11"), 15008)
FIN, SYN, RST, ACK = 1, 2, 4, 16


def frame(
    source: SocketAddress, target: SocketAddress, sequence: int, data: bytes = b"", flags: int = ACK
) -> bytes:
    tcp = (
        struct.pack("!HHIIBBHHH", source.port, target.port, sequence % 2**32, 0, 5 << 4, flags, 0, 0, 0)
        + data
    )
    if source.ip.version == 4:
        total = 20 + len(tcp)
        ip = struct.pack("!BBHHHBBH", 0x45, 0, total, 0, 0, 64, 6, 0) + source.ip.packed + target.ip.packed
        return b"\0" * 12 + b"\x08\x00" + ip + tcp
    ip = struct.pack("!IHBB", 6 << 28, len(tcp), 6, 64) + source.ip.packed + target.ip.packed
    return b"\0" * 12 + b"\x86\xdd" + ip + tcp


def opened(client: SocketAddress = CLIENT, server: SocketAddress = SERVER) -> Wire:
    wire = Wire()
    wire.receive(frame(client, server, 999, flags=SYN))
    wire.receive(frame(server, client, 4999, flags=SYN | ACK))
    return wire


def only(wire: Wire) -> CapturedFlow:
    [flow] = wire.everything()
    return flow


def record(kind: int, body: bytes) -> bytes:
    return struct.pack("!BHH", kind, 0x0303, len(body)) + body


def server_hello(version: int | None = 0x0304) -> bytes:
    extensions = struct.pack("!HHH", 51, 2, 0x001D)
    if version is not None:
        extensions += struct.pack("!HHH", 43, 2, version)
    body = b"\x03\x03" + bytes(32) + b"\x20" + bytes(32) + b"\x13\x02\x00"
    body += struct.pack("!H", len(extensions)) + extensions
    return b"\x02" + len(body).to_bytes(3, "big") + body


def handshaken() -> Wire:
    wire = opened()
    wire.receive(frame(CLIENT, SERVER, 1000, record(22, b"\x01client hello")))
    answer = record(22, server_hello()) + record(20, b"\x01") + record(23, bytes(40))
    for start in range(0, len(answer), 7):  # records do not respect segments
        wire.receive(frame(SERVER, CLIENT, 5000 + start, answer[start : start + 7]))
    return wire


def test_a_tls13_connection_is_recognised_by_what_its_server_chose() -> None:
    flow = only(handshaken())

    assert flow.is_tls13
    assert flow.application_records == 1
    assert flow.saw_start


def test_it_is_not_one_when_any_byte_is_no_record() -> None:
    wire = handshaken()
    wire.receive(frame(CLIENT, SERVER, 1000 + 5 + 13, b"GET / HTTP/1.1"))

    assert not only(wire).is_tls13


def test_an_older_version_is_not_tls13() -> None:
    wire = opened()
    wire.receive(frame(CLIENT, SERVER, 1000, record(22, b"\x01client hello")))
    wire.receive(frame(SERVER, CLIENT, 5000, record(22, server_hello(0x0303))))

    assert not only(wire).is_tls13


@pytest.mark.parametrize(
    ("hello", "version"),
    [
        (server_hello(), 0x0304),
        (server_hello(0x0303), 0x0303),
        (server_hello(None), None),
        (b"\x01" + server_hello()[1:], None),
        (server_hello()[:50], None),
        (b"", None),
    ],
)
def test_the_version_is_read_from_the_extension(hello: bytes, version: int | None) -> None:
    assert selected_version(hello) == version


@pytest.mark.parametrize("cut", [1, 5, 12])
def test_a_marker_is_found_across_segments(cut: int) -> None:
    wire = opened()
    wire.look_for(b"secret-marker")
    text = b"here is the secret-marker, see?"
    middle = text.index(b"secret") + cut
    wire.receive(frame(CLIENT, SERVER, 1000, text[:middle]))
    wire.receive(frame(CLIENT, SERVER, 1000 + middle, text[middle:]))

    assert only(wire).markers == {b"secret-marker"}


def test_a_retransmission_counts_once_and_its_new_end_counts() -> None:
    wire = handshaken()
    flow = only(wire)
    before = flow.sent.payload_bytes
    again = record(22, b"\x01client hello")
    wire.receive(frame(CLIENT, SERVER, 1000, again))
    wire.receive(frame(CLIENT, SERVER, 1000, again + record(23, bytes(10))))

    assert flow.sent.payload_bytes == before + 15
    assert flow.is_tls13
    assert flow.application_records == 2


def test_after_a_gap_nothing_is_called_encrypted() -> None:
    wire = handshaken()
    wire.receive(frame(CLIENT, SERVER, 9000, record(23, bytes(10))))

    assert not only(wire).is_tls13


def test_sequence_numbers_may_wrap() -> None:
    wire = Wire()
    wire.receive(frame(CLIENT, SERVER, 2**32 - 6, flags=SYN))
    wire.look_for(b"across the edge")
    wire.receive(frame(CLIENT, SERVER, 2**32 - 5, b"across "))
    wire.receive(frame(CLIENT, SERVER, 2**32 + 2, b"the edge"))

    assert only(wire).markers == {b"across the edge"}
    assert not only(wire).sent.has_gap


def test_ipv6_is_followed_as_well() -> None:
    client = SocketAddress(IPv6Address("fd88::1"), 1)
    server = SocketAddress(IPv6Address("fd88::2"), 2)
    wire = opened(client, server)
    wire.look_for(b"hello")
    wire.receive(frame(client, server, 1000, b"hello"))

    assert only(wire).client == client
    assert only(wire).markers == {b"hello"}


def test_activity_since_a_mark_names_what_is_new() -> None:
    wire = handshaken()
    mark = wire.mark()
    assert wire.since(mark) == []
    other = SocketAddress(CLIENT.ip, 40001)
    wire.receive(frame(CLIENT, SERVER, 1018, record(23, bytes(10))))
    wire.receive(frame(other, SERVER, 1, flags=SYN))
    wire.receive(frame(other, SERVER, 2, b"x"))

    old, new = wire.since(mark)

    assert (old.payload_bytes, old.application_records, old.is_new) == (15, 1, False)
    assert (new.payload_bytes, new.is_new) == (1, True)


def test_a_port_used_again_is_another_connection() -> None:
    wire = handshaken()
    wire.receive(frame(CLIENT, SERVER, 70000, flags=SYN))
    wire.receive(frame(CLIENT, SERVER, 70001, b"plain"))

    assert [flow.is_tls13 for flow in to_port(wire.everything(), 15008)] == [True, False]


def test_resets_and_ends_are_noted() -> None:
    wire = opened()
    wire.receive(frame(CLIENT, SERVER, 1000, flags=RST))
    wire.receive(frame(SERVER, CLIENT, 5000, flags=FIN | ACK))

    assert only(wire).was_reset
    assert only(wire).was_finished


@settings(max_examples=200)
@given(st.binary(max_size=120), st.sampled_from([b"\x08\x00", b"\x86\xdd", b"\x08\x06"]))
def test_any_frame_is_taken_without_complaint(junk: bytes, kind: bytes) -> None:
    wire = Wire()
    wire.look_for(b"x")
    wire.receive(b"\0" * 12 + kind + junk)
    wire.receive(junk)

    assert wire.frames == 2


@settings(max_examples=100)
@given(st.binary(min_size=1, max_size=300), st.lists(st.integers(1, 299), max_size=6))
def test_how_a_stream_is_cut_into_segments_changes_nothing(data: bytes, cuts: list[int]) -> None:
    whole, pieces = opened(), opened()
    whole.receive(frame(CLIENT, SERVER, 1000, data))
    edges = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    for start, end in pairwise(edges):
        pieces.receive(frame(CLIENT, SERVER, 1000 + start, data[start:end]))

    one, other = only(whole).sent, only(pieces).sent
    assert (one.records, one.application_records, one.is_tls) == (
        other.records,
        other.application_records,
        other.is_tls,
    )
