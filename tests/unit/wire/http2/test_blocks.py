"""Header blocks: their pieces and their limits."""

import pytest

from tests.fakes.http2 import CONNECT, FrameFactory, Peer
from ztunnel_trio.errors import PeerBrokeProtocol
from ztunnel_trio.wire.http2.budgets import Excess, OverBudget
from ztunnel_trio.wire.http2.codes import ErrorCode
from ztunnel_trio.wire.http2.events import TunnelRequested
from ztunnel_trio.wire.http2.frames import HEADERS

make = FrameFactory()

WRONG = [
    ("bad compression", make.raw(HEADERS, 4, 3, b"\xff\xff\xff\xff\x0f"), ErrorCode.COMPRESSION_ERROR),
    ("HEADERS on itself", make.raw(HEADERS, 0x24, 3, b"\0\0\0\3\0\x82"), ErrorCode.PROTOCOL_ERROR),
    ("HEADERS without its priority", make.raw(HEADERS, 0x24, 3, b"\0\0\0\1"), ErrorCode.FRAME_SIZE_ERROR),
    ("HEADERS without its pad length", make.raw(HEADERS, 0x0C, 3), ErrorCode.FRAME_SIZE_ERROR),
    ("HEADERS of padding", make.raw(HEADERS, 0x0C, 3, b"\4\x82"), ErrorCode.PROTOCOL_ERROR),
]


@pytest.mark.parametrize(("data", "code"), [row[1:] for row in WRONG], ids=[row[0] for row in WRONG])
def test_a_broken_block_ends_the_connection(data: bytes, code: ErrorCode) -> None:
    with pytest.raises(PeerBrokeProtocol) as caught:
        Peer().say(data)
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (make.raw(HEADERS, 0, 1) + 65 * make.continuation(1), Excess.CONTINUATIONS),
        (make.raw(HEADERS, 0, 1, bytes(40_000)) + make.continuation(1, bytes(40_000)), Excess.HEADER_BLOCK),
        (make.raw(HEADERS, 4, 1, bytes(65_537))[:9], Excess.HEADER_BLOCK),
        # 60 000 octets that stand for 60 000 fields (CVE-2026-47774)
        (make.raw(HEADERS, 4, 1, b"\x82" * 60_000), Excess.HEADER_BLOCK),
    ],
    ids=["in 66 pieces", "without end", "too long at once", "of many indices"],
)
def test_a_block_is_bounded_before_and_after_it_is_decoded(data: bytes, kind: Excess) -> None:
    with pytest.raises(OverBudget) as caught:
        Peer().say(data)
    assert caught.value.kind is kind
    assert caught.value.code == ErrorCode.ENHANCE_YOUR_CALM


def test_a_block_may_come_in_pieces() -> None:
    peer = Peer()
    block = peer.make.encoder.encode(CONNECT)
    data = peer.make.raw(HEADERS, 0, 1, block[:3]) + peer.make.continuation(1, block[3:5])

    assert peer.say(data) == []
    assert peer.say(peer.make.continuation(1, block[5:], 4)) == [
        TunnelRequested(1, "CONNECT", "1.2.3.4:80", {})
    ]


def test_padding_and_priority_of_headers_mean_nothing() -> None:
    peer = Peer()
    block = peer.make.encoder.encode(CONNECT)

    [asked] = peer.say(peer.make.raw(HEADERS, 0x2C, 1, b"\3\0\0\0\0\x10" + block + b"pad"))
    assert isinstance(asked, TunnelRequested)
