"""Protobuf's encoding, held to strictly before betterproto2 reads a message.

betterproto2 takes what is cut off as if it were whole, and a number where a message or text belongs; what it
then hands on is no value of the field's type. Encoding: protobuf.dev/programming-guides/encoding.
"""

from collections.abc import Mapping
from typing import Final

from ztunnel_trio.errors import PeerBrokeProtocol

Schema = Mapping[int, "Schema | None"]
"""The fields of a message that have a length, by number: messages by their own schema, text and bytes None.

A map's entries are messages of two fields. Fields that are not named are only held to the encoding.
"""

TEXT: Final = None
LONGEST_VARINT: Final = 10  # bytes of 64 bits


def check_encoding(data: bytes, schema: Schema) -> None:
    """Hold a message to protobuf's encoding, known fields to their wire type.

    Raises:
        PeerBrokeProtocol: it is not encoded as protobuf is.
    """
    position = 0
    while position < len(data):
        tag, position = _varint(data, position)
        number, wire_type = tag >> 3, tag & 7
        start = position
        match wire_type:
            case 0:
                _, position = _varint(data, position)
            case 1:
                position += 8
            case 2:
                length, start = _varint(data, position)
                position = start + length
            case 5:
                position += 4
            case _:
                raise PeerBrokeProtocol(f"failed to decode message: invalid wire type {wire_type}")
        if number == 0:
            raise PeerBrokeProtocol("failed to decode message: invalid tag value: 0")
        if position > len(data):
            raise PeerBrokeProtocol("failed to decode message: buffer underflow")
        if number in schema:
            if wire_type != 2:
                raise PeerBrokeProtocol(f"failed to decode message: invalid wire type {wire_type}")
            if (inner := schema[number]) is not None:
                check_encoding(data[start:position], inner)


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """A number and the position behind it."""
    value = 0
    for index, byte in enumerate(data[position : position + LONGEST_VARINT]):
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, position + index + 1
    raise PeerBrokeProtocol("failed to decode message: invalid varint")
