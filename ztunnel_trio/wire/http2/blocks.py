"""Header blocks: gathered from HEADERS and CONTINUATION (RFC 9113 6.2, 6.10), bounded, decoded."""

from typing import Final

import hpack

from ztunnel_trio.errors import PeerBrokeProtocol
from ztunnel_trio.wire.http2.budgets import Budgets, Excess, OverBudget
from ztunnel_trio.wire.http2.codes import ErrorCode
from ztunnel_trio.wire.http2.compression import BoundedDecoder, Field
from ztunnel_trio.wire.http2.frames import END_HEADERS, END_STREAM, header_fragment

_MOST_FRAMES: Final = 65  # of one block, however small (CVE-2024-27316)
_DECODED_FACTOR: Final = 1.5  # a list up to so many times too long costs its stream only


class HeaderBlocks:
    """The one header block that may be under way, and the decoder all of them share.

    `list_limit` is what we announced for a header list. A block cannot be longer than the list it stands for
    unless its encoder is hostile, so the same number bounds it before it is decoded.
    """

    __slots__ = ("_block", "_budgets", "_decoder", "_frames", "_limit", "ends_stream", "stream_id")

    def __init__(self, budgets: Budgets, list_limit: int) -> None:
        self._budgets = budgets
        self._limit = list_limit
        self._decoder = BoundedDecoder(int(_DECODED_FACTOR * list_limit))
        self._block = b""
        self._frames = 0
        self.stream_id = 0  # whose block is under way; 0: none
        self.ends_stream = False  # what its HEADERS said

    def check_length(self, length: int) -> None:
        """Before a HEADERS or CONTINUATION frame of this length is gathered.

        Raises:
            OverBudget: the block would be longer than any list we take.
        """
        if len(self._block) + length > self._limit:
            raise OverBudget(Excess.HEADER_BLOCK)

    def begin(self, flags: int, stream_id: int, payload: bytes) -> list[Field] | None:
        """HEADERS. The fields, or None while CONTINUATION has to follow.

        Raises:
            PeerBrokeProtocol: as `header_fragment`, or the block is none.
        """
        self.ends_stream = bool(flags & END_STREAM)
        fragment = header_fragment(flags, stream_id, payload)
        if flags & END_HEADERS:
            return self._decode(fragment)
        self.stream_id, self._block, self._frames = stream_id, fragment, 1
        return None

    def go_on(self, flags: int, payload: bytes) -> list[Field] | None:
        """CONTINUATION of the block under way, as `begin`."""
        self._budgets.spend(Excess.CONTINUATIONS)
        self._frames += 1
        if self._frames > _MOST_FRAMES:
            raise OverBudget(Excess.CONTINUATIONS)
        self._block += payload
        if not flags & END_HEADERS:
            return None
        block, self._block, self.stream_id = self._block, b"", 0
        return self._decode(block)

    @property
    def is_too_long(self) -> bool:
        """Whether the list decoded last is longer than we announced to take."""
        return self._decoder.size > self._limit

    def _decode(self, block: bytes) -> list[Field]:
        try:
            return self._decoder.decode(block)
        except hpack.OversizedHeaderListError as error:
            raise OverBudget(Excess.HEADER_BLOCK) from error
        except hpack.HPACKError as error:  # RFC 9113 4.3
            raise PeerBrokeProtocol(str(error), ErrorCode.COMPRESSION_ERROR) from error
