"""What a hostile peer sends: kinds of frames, each in one piece that is sent again and again.

`stream` is one it has opened and that was answered. Streams it opens for a flood come from `ids`.
"""

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import hpack

from tests.fakes.http2 import CONNECT, END_HEADERS, FrameFactory
from ztunnel_trio.wire.http2.budgets import Excess
from ztunnel_trio.wire.http2.codes import ErrorCode
from ztunnel_trio.wire.http2.frames import HEADERS

STREAM: Final = 1
_CONNECT: Final = b"\x02\x07CONNECT"  # :method, not indexed (RFC 7541 6.2.2): such blocks change no table
_NOBODY: Final = b"\x01\x09127.0.0.1"  # :authority, which is answered 400

make = FrameFactory()
Ids = Iterator[int]


@dataclass(frozen=True, slots=True)
class Flood:
    """One kind. `cut_as` is what it is cut off as; None: it is honest traffic, if a lot of it."""

    piece: Callable[[Ids], bytes]
    cut_as: Excess | None


def _always(frame: bytes, times: int) -> Callable[[Ids], bytes]:
    piece = frame * times
    return lambda _: piece


def _many(one: Callable[[int], bytes], times: int) -> Callable[[Ids], bytes]:
    return lambda ids: b"".join([one(next(ids)) for _ in range(times)])


def _request(stream_id: int) -> bytes:
    return make.raw(HEADERS, END_HEADERS, stream_id, _CONNECT + _NOBODY)


def _opened_and_reset(stream_id: int) -> bytes:
    return _request(stream_id) + make.reset(stream_id, ErrorCode.CANCEL)


def _reset_by_us(stream_id: int) -> bytes:
    return _request(stream_id) + make.window_update(stream_id, 0)


def _malformed(stream_id: int) -> bytes:
    return make.raw(HEADERS, END_HEADERS, stream_id, _CONNECT)[:-1] + b"!"


def _in_many_pieces(stream_id: int) -> bytes:
    pieces = b"".join([make.continuation(stream_id) for _ in range(60)])
    return make.raw(HEADERS, 0, stream_id, _CONNECT) + pieces + make.continuation(stream_id, _NOBODY, 4)


def _huffman_block(stream_id: int) -> bytes:
    block = hpack.Encoder().encode([*CONNECT, ("a", "~" * 30_000)], huffman=True)
    return make.raw(HEADERS, END_HEADERS, stream_id, block)


def _block_of_indices(stream_id: int) -> bytes:
    return make.raw(HEADERS, END_HEADERS, stream_id, b"\x82" * 60_000)


def _windows(times: int) -> bytes:
    initial = [struct.pack(">HI", 4, size) for size in (0, 65_535)]
    return b"".join([make.raw(4, 0, 0, initial[number % 2]) for number in range(times)])


_EARLY: Final = make.raw(HEADERS, END_HEADERS, STREAM, b"\x08\x03103")  # :status 103, not indexed

FLOODS: Final[dict[str, Flood]] = {
    "1-byte DATA": Flood(_always(make.data(STREAM, b"x"), 2000), None),
    "streams opened, refused": Flood(_many(_request, 100), None),
    "empty DATA": Flood(_always(make.data(STREAM), 2000), Excess.EMPTY_DATA),
    "DATA of padding": Flood(_always(make.padded(STREAM, b"", 200), 200), Excess.EMPTY_DATA),
    "SETTINGS": Flood(_always(make.settings(), 2000), Excess.SETTINGS),
    "SETTINGS of 128": Flood(_always(make.raw(4, 0, 0, 128 * b"\x0a\x0a\0\0\0\1"), 50), Excess.SETTINGS),
    "windows toggled": Flood(lambda _: _windows(200), Excess.SETTINGS),
    "SETTINGS acknowledged": Flood(_always(make.settings(ack=True), 2000), Excess.ACKNOWLEDGEMENTS),
    "PING": Flood(_always(make.ping(), 1000), Excess.PING),
    "PING acknowledged": Flood(_always(make.ping(ack=True), 1000), Excess.ACKNOWLEDGEMENTS),
    "WINDOW_UPDATE": Flood(_always(make.window_update(0, 1), 2000), Excess.WINDOW_UPDATES),
    "WINDOW_UPDATE of a stream": Flood(_always(make.window_update(STREAM, 1), 2000), Excess.WINDOW_UPDATES),
    "PRIORITY": Flood(_always(make.priority(STREAM), 2000), Excess.IDLE_FRAMES),
    "unknown frames": Flood(_always(make.raw(99, 0, 0), 2000), Excess.IDLE_FRAMES),
    "GOAWAY": Flood(_always(make.goaway(0), 1000), Excess.GOAWAYS),
    "streams reset": Flood(_many(_opened_and_reset, 100), Excess.UNANSWERED_RESETS),
    "streams we reset": Flood(_many(_reset_by_us, 100), Excess.UNANSWERED_RESETS),
    "CONTINUATION": Flood(_many(_in_many_pieces, 10), Excess.CONTINUATIONS),
    "malformed requests": Flood(_many(_malformed, 100), Excess.UNANSWERED_RESETS),
    "30 KB in Huffman code": Flood(_many(_huffman_block, 2), None),
    "60 000 indices": Flood(_many(_block_of_indices, 1), Excess.HEADER_BLOCK),
}

SERVER_FLOODS: Final[dict[str, Flood]] = {
    "1xx answers": Flood(_always(_EARLY, 2000), Excess.INFORMATIONAL_ANSWERS),
    "PING to a client": Flood(_always(make.ping(), 1000), Excess.PING),
}
