"""HTTP/2 as both sides speak it: grpclib's connection with more patience, and messages as bytes.

Unknown frames, ALTSVC and informational responses end the connection in grpclib; here they are ignored.
"""

import asyncio  # noqa: TID251  this room is the fence
from collections.abc import Callable
from typing import Final

from grpclib.encoding.base import CodecBase
from grpclib.protocol import H2Protocol
from h2.events import (
    AlternativeServiceAvailable,
    DataReceived,
    Event,
    InformationalResponseReceived,
    UnknownFrameReceived,
)


class TolerantProtocol(H2Protocol):
    """grpclib's connection, which lives on when it meets a frame it does not know."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        # grpclib annotates the events it knows; the table takes any.
        processors: dict[type, Callable[[Event], None]] = self.processor.processors  # type: ignore[assignment]
        for kind in (UnknownFrameReceived, AlternativeServiceAvailable, InformationalResponseReceived):
            processors[kind] = _ignore
        take = processors[DataReceived]

        def take_unless_empty(event: Event) -> None:
            # grpclib takes a frame without length for the end of the stream
            assert isinstance(event, DataReceived)
            if event.flow_controlled_length:
                take(event)

        processors[DataReceived] = take_unless_empty


def _ignore(_event: Event) -> None:
    """Process a frame that means nothing to us (RFC 9113 5.5: unknown types are discarded)."""


class _RawCodec(CodecBase):
    """Messages stay bytes."""

    __content_subtype__ = "proto"

    def encode(self, message: bytes, message_type: type) -> bytes:
        return message

    def decode(self, data: bytes, message_type: type) -> bytes:
        return data


RAW: Final = _RawCodec()


def open_transport(protocol: H2Protocol) -> asyncio.Transport | None:
    """A protocol's transport while it is open."""
    connection = getattr(protocol, "connection", None)
    transport = getattr(connection, "_transport", None)
    if isinstance(transport, asyncio.Transport) and not transport.is_closing():
        return transport
    return None
