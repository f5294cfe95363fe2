"""Which frame may come next (RFC 9113 3.4, 6.10), and how long it may be: asked before one is gathered."""

from typing import Final

from ztunnel_trio.errors import PeerBrokeProtocol
from ztunnel_trio.wire.http2.blocks import HeaderBlocks
from ztunnel_trio.wire.http2.codes import ErrorCode
from ztunnel_trio.wire.http2.frames import ACK, CONTINUATION, HEADERS, PREFACE, SETTINGS, check_length

ANY: Final = -1  # no kind of frame is due


class Order:
    """`preface` is what is still to come of a client's first bytes; `due` the only kind that may come next.

    SETTINGS are due at the beginning, CONTINUATION within a header block, else ANY.
    """

    __slots__ = ("_blocks", "_limit", "due", "preface")

    def __init__(self, blocks: HeaderBlocks, limit: int, *, is_client: bool) -> None:
        self._blocks = blocks
        self._limit = limit
        self.preface = b"" if is_client else PREFACE
        self.due = SETTINGS

    def take_preface(self, view: memoryview) -> int:
        """Compare what there is of it; returns how much that is.

        Raises:
            PeerBrokeProtocol: this is no HTTP/2.
        """
        taken = min(len(self.preface), len(view))
        if self.preface[:taken] != view[:taken]:
            raise PeerBrokeProtocol("no HTTP/2 preface", ErrorCode.PROTOCOL_ERROR)
        self.preface = self.preface[taken:]
        return taken

    def check(self, kind: int, flags: int, stream_id: int, length: int) -> None:
        """A frame that is not DATA begins.

        Raises:
            PeerBrokeProtocol: it may not come now, or not be so long.
        """
        check_length(kind, length, self._limit)
        self.check_kind(kind, flags, stream_id)
        if kind in (HEADERS, CONTINUATION):
            self._blocks.check_length(length)

    def check_kind(self, kind: int, flags: int, stream_id: int) -> None:
        """A frame of any kind begins.

        Raises:
            PeerBrokeProtocol: it may not come now.
        """
        due = self.due
        if due == SETTINGS:
            if kind != SETTINGS or flags & ACK:
                raise PeerBrokeProtocol("a connection that begins without SETTINGS", ErrorCode.PROTOCOL_ERROR)
        elif due == CONTINUATION:
            if kind != CONTINUATION or stream_id != self._blocks.stream_id:
                raise PeerBrokeProtocol("a header block interrupted", ErrorCode.PROTOCOL_ERROR)
        elif kind == CONTINUATION:
            raise PeerBrokeProtocol("CONTINUATION of nothing", ErrorCode.PROTOCOL_ERROR)
