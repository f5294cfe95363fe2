"""Properties of the SOCKS5 negotiation."""

from hypothesis import given
from hypothesis import strategies as st

from ztunnel_trio.model.address import HostPort, SocketAddress, canonical
from ztunnel_trio.wire.socks5 import ConnectRequested, Event, Negotiation, NegotiationFailed

near_clients = st.builds(
    lambda methods, request, address: bytes((5, len(methods))) + methods + request + address,
    st.binary(max_size=4).map(lambda some: some + b"\x00"),
    st.sampled_from([b"\x05\x01\x00\x01", b"\x05\x01\x00\x03", b"\x05\x01\x00\x04", b"\x05\x02\x00\x01"]),
    st.binary(max_size=30),
)


def talk(data: bytes, cuts: list[int]) -> tuple[Event | None, bytes, int]:
    """The event, all bytes sent and the number of bytes taken, reading as a socket gives."""
    negotiation, event, sent, taken = Negotiation(has_names=True), None, b"", 0
    sizes = iter(cuts)
    while event is None and taken < len(data) and negotiation.wanted:
        chunk = data[taken : taken + min(negotiation.wanted, next(sizes, 300))]
        event = negotiation.receive(chunk)
        taken += len(chunk)
        sent += negotiation.outgoing()
    return event, sent, taken


# RFC 1928 6: a reply is ten bytes when its address is IPv4
@given(st.binary(max_size=300) | near_clients)
def test_any_bytes_end_in_a_request_a_refusal_or_more_wanted(data: bytes) -> None:
    event, sent, _ = talk(data, [])

    match event:
        case ConnectRequested():
            assert sent == b"\x05\x00"
        case NegotiationFailed():
            assert sent.removeprefix(b"\x05\x00")[:2] == b"\x05\x07"
            assert len(sent.removeprefix(b"\x05\x00")) == 10
        case None:
            assert sent in (b"", b"\x05\x00")


@given(near_clients, st.lists(st.integers(1, 5), max_size=40))
def test_how_bytes_are_cut_makes_no_difference(data: bytes, cuts: list[int]) -> None:
    assert talk(data, cuts) == talk(data, [])


@given(st.ip_addresses(), st.integers(0, 65535))
def test_an_address_is_read_as_written(ip: object, port: int) -> None:
    packed: bytes = ip.packed  # type: ignore[attr-defined]
    request = b"\x05\x01\x00" + bytes((1 if len(packed) == 4 else 4,)) + packed + port.to_bytes(2, "big")

    event, _, _ = talk(b"\x05\x01\x00" + request, [])

    assert event == ConnectRequested(SocketAddress(canonical(ip), port))  # type: ignore[arg-type]


@given(st.text(max_size=60).filter(lambda name: len(name.encode()) < 256), st.integers(0, 65535))
def test_a_name_is_read_as_written(name: str, port: int) -> None:
    packed = name.encode()
    request = b"\x05\x01\x00\x03" + bytes((len(packed),)) + packed + port.to_bytes(2, "big")

    assert talk(b"\x05\x01\x00" + request, [])[0] == ConnectRequested(HostPort(name, port))
