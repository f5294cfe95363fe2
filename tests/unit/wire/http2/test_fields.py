import pytest

from ztunnel_trio.errors import PeerBrokeProtocol
from ztunnel_trio.wire.http2.fields import check_trailers, list_size, read_answer, read_request

CONNECT = [(b":method", b"CONNECT"), (b":authority", b"1.2.3.4:80")]


@pytest.mark.parametrize(
    "authority",
    ["1.2.3.4:80", "[ff06::c3]:80", "svc.ns.svc.cluster.local:80", "1.2.3.4", "nohostport", "host:abc"],
)
def test_authorities_that_can_be_parsed_are_handed_up(authority: str) -> None:
    request = read_request([(b":method", b"CONNECT"), (b":authority", authority.encode())])
    assert request.authority == authority


def test_lines_of_one_field_stay_apart() -> None:
    request = read_request([*CONNECT, (b"baggage", b"a=b"), (b"baggage", b"c=d"), (b"x-other", b"\xe9")])
    assert request.headers == {"baggage": ["a=b", "c=d"], "x-other": ["\xe9"]}


@pytest.mark.parametrize("length", [[b"x"], [b"-1"], [b"1", b"2"], [b"9" * 30]])
def test_a_content_length_that_is_no_number_is_malformed(length: list[bytes]) -> None:
    with pytest.raises(PeerBrokeProtocol):
        read_request([*CONNECT, *((b"content-length", value) for value in length)])


@pytest.mark.parametrize(
    "fields",
    [
        [],
        [(b":status", b"20")],
        [(b":status", b"abc")],
        [(b":status", b"200"), (b":path", b"/")],
        [(b"a", b"b")],
    ],
)
def test_answers_have_a_status(fields: list[tuple[bytes, bytes]]) -> None:
    with pytest.raises(PeerBrokeProtocol):
        read_answer(fields)


def test_trailers_have_no_pseudo_headers() -> None:
    check_trailers([(b"a", b"b")])
    with pytest.raises(PeerBrokeProtocol):
        check_trailers([(b":status", b"200")])


def test_a_list_is_as_long_as_its_fields_and_32_for_each() -> None:
    assert list_size([(b"ab", b"c"), (b"", b"")]) == 67
