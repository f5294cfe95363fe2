"""A DeltaDiscoveryResponse in parts (envoy `discovery.proto`), cut from pieces as they come from the network.

Theory of operation. istiod sends the whole mesh in one message of tens of megabytes. `ResponseSplitter` cuts
it into fields while it is read and joins nothing; the resources stay encoded, in blocks of memory, until
somebody takes them, a group at a time (`Resources.take`): a group is a response of its own, of a few
resources, and is read as one (`read_resources`, or `xds.address.read_workloads` for workloads only).
"""

from array import array
from collections import deque
from dataclasses import dataclass, field
from mmap import mmap
from typing import Final, NamedTuple

from google.protobuf.message import DecodeError

from ztunnel_trio.errors import PeerBrokeProtocol
from ztunnel_trio.wire.rejection import RejectedResource
from ztunnel_trio.wire.shallow import Envelope, parse_envelopes

MAX_RESOURCES: Final = 4_000_000  # of one response; ten times the largest mesh istiod is built for
_MAX_VARINT_BYTES: Final = 10
_BLOCK_BYTES: Final = 1024 * 1024
_GROUP: Final = 4  # resources decoded together: 30 µs of work, half a microsecond less each than alone


class Resources:
    """The resources of a response, still encoded, in order; some are cut out when it is their turn.

    They lie in blocks of memory of their own, which go back to the system one by one: the whole mesh comes
    in one message, and as many small objects in the heap would leave it full of holes.
    """

    __slots__ = ("_blocks", "count")

    def __init__(self) -> None:
        self._blocks: deque[_Block] = deque()
        self.count = 0  # of those that came

    def __bool__(self) -> bool:
        return bool(self._blocks)

    def take(self) -> bytes:
        """The first few that are left, as fields of the response (`read_resources`); they are not kept.

        Raises:
            IndexError: none is left.
        """
        block = self._blocks[0]
        group = block.take()
        if block.is_used_up:
            block.memory.close()
            self._blocks.popleft()
        return group

    def add(self, data: bytes, bounds: list[int], announced: int) -> None:
        """Keep resources; `bounds` are begin and end of their fields in data.

        `announced` bytes of the message are left with these.
        """
        size = bounds[-1]
        if not self._blocks or self._blocks[-1].room < size:
            self._blocks.append(_Block(max(size, min(announced, _BLOCK_BYTES))))
        self._blocks[-1].put(memoryview(data)[:size], bounds)
        self.count += len(bounds) // 2


class _Block:
    """Memory with resources in it, and where groups of them begin and end."""

    __slots__ = ("_begins", "_ends", "_filled", "_position", "memory")

    def __init__(self, size: int) -> None:
        self.memory = mmap(-1, size)
        self._filled = 0
        self._begins = array("I")
        self._ends = array("I")
        self._position = 0

    @property
    def room(self) -> int:
        return len(self.memory) - self._filled

    @property
    def is_used_up(self) -> bool:
        return self._position == len(self._begins)

    def put(self, data: memoryview, bounds: list[int]) -> None:
        base, self._filled = self._filled, self._filled + len(data)
        self.memory[base : self._filled] = data
        step = 2 * _GROUP
        begins, ends = bounds[::step], bounds[step - 1 :: step]
        if len(ends) < len(begins):
            ends.append(bounds[-1])
        self._begins.extend([base + bound for bound in begins])
        self._ends.extend([base + bound for bound in ends])

    def take(self) -> bytes:
        position = self._position
        self._position = position + 1
        return self.memory[self._begins[position] : self._ends[position]]


@dataclass(slots=True, eq=False)
class DiscoveryResponse:
    """One DeltaDiscoveryResponse cut into its parts."""

    system_version_info: str = ""
    type_url: str = ""
    nonce: str = ""
    resources: Resources = field(default_factory=Resources)
    removed: list[str] = field(default_factory=list)


class Resource(NamedTuple):
    """One resource of a response. `value` is None when the payload is missing."""

    name: str
    version: str
    aliases: tuple[str, ...]
    value: bytes | None


class ResponseSplitter:
    """Cuts a DeltaDiscoveryResponse of a known size into parts, from pieces of any length."""

    __slots__ = ("_field_bytes", "_parts", "_parts_bytes", "_remaining", "_response")

    def __init__(self, size: int) -> None:
        self._response = DiscoveryResponse()
        self._remaining = size  # of the message, not yet cut
        self._parts: list[bytes] = []
        self._parts_bytes = 0
        self._field_bytes = 0  # nothing can be cut before that many bytes are here

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the message.

        Raises:
            PeerBrokeProtocol: not a DeltaDiscoveryResponse.
        """
        self._parts.append(data)
        self._parts_bytes += len(data)
        if self._parts_bytes > self._remaining:
            raise PeerBrokeProtocol("discovery response is longer than announced")
        if self._parts_bytes < self._field_bytes:
            return
        data = b"".join(self._parts) if len(self._parts) > 1 else data
        bounds: list[int] = []
        used = self._cut(data, bounds)
        if bounds:
            self._response.resources.add(data, bounds, self._remaining)
            if self._response.resources.count > MAX_RESOURCES:
                raise PeerBrokeProtocol("discovery response has too many resources")
        rest = data[used:]
        self._parts = [rest] if rest else []
        self._parts_bytes = len(rest)
        self._remaining -= used

    def finish(self) -> DiscoveryResponse:
        """The whole response, once every byte was fed.

        Raises:
            PeerBrokeProtocol: the message ends in the middle of a field.
        """
        if self._remaining:
            raise PeerBrokeProtocol("discovery response ends within a field")
        return self._response

    def _cut(self, data: bytes, bounds: list[int]) -> int:
        """Take every complete field from the front; returns how many bytes those had.

        Appends where the fields of resources begin and end.
        """
        position, end = 0, len(data)
        self._field_bytes = 0
        while position < end:
            begin = position
            tag = data[position]
            if tag == 0x12 and end - position > 3:  # a resource, whose length mostly takes two bytes
                low, high = data[position + 1], data[position + 2]
                if low >= 0x80 > high:
                    stop = position + 3 + (low & 0x7F | high << 7)
                    if stop <= end:
                        bounds += (position, stop)
                        position = stop
                        continue
            position += 1
            if tag & 0x80:
                tag, position = _varint(data, begin, end)
                if not position:
                    return begin
            kind = tag & 7
            if kind != 2:
                position = self._skip(data, position, end, tag)
                if position < 0:
                    return begin
                continue
            if position >= end:
                return begin
            length = data[position]
            position += 1
            if length & 0x80:
                length, position = _varint(data, position - 1, end)
                if not position:
                    return begin
            stop = position + length
            if stop > end:
                if stop > self._remaining:
                    raise PeerBrokeProtocol("discovery response has a field that reaches past its end")
                self._field_bytes = stop - begin
                return begin
            if tag == 0x12:
                bounds += (begin, stop)
            else:
                self._take_text(tag >> 3, data[position:stop])
            position = stop
        return position

    def _take_text(self, number: int, value: bytes) -> None:
        """Keep one of the string fields (xds.proto, DeltaDiscoveryResponse); unknown ones are skipped."""
        if number not in {1, 4, 5, 6}:
            if number == 0:
                raise PeerBrokeProtocol("discovery response: field 0")
            return
        try:
            text = value.decode()
        except UnicodeDecodeError as error:
            raise PeerBrokeProtocol(f"discovery response: field {number} is not UTF-8") from error
        match number:
            case 1:
                self._response.system_version_info = text
            case 4:
                self._response.type_url = text
            case 5:
                self._response.nonce = text
            case _:
                self._response.removed.append(text)

    def _skip(self, data: bytes, position: int, end: int, tag: int) -> int:
        """Step over an unknown field that has no length; -1 when it is not complete yet."""
        if tag >> 3 in {0, 1, 2, 4, 5, 6}:
            raise PeerBrokeProtocol(f"discovery response: field {tag >> 3} has wire type {tag & 7}")
        match tag & 7:
            case 0:
                return (_varint(data, position, end)[1]) or -1
            case 1:
                return position + 8 if position + 8 <= end else -1
            case 5:
                return position + 4 if position + 4 <= end else -1
            case kind:
                raise PeerBrokeProtocol(f"discovery response: wire type {kind}")


def _varint(data: bytes, position: int, end: int) -> tuple[int, int]:
    """Read a varint; returns it and the position behind it, or (0, 0) when it is not complete.

    Raises:
        PeerBrokeProtocol: longer than any 64-bit number.
    """
    value = shift = 0
    start = position
    while position < end:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        if position - start >= _MAX_VARINT_BYTES:
            raise PeerBrokeProtocol("discovery response: varint is too long")
        shift += 7
    return 0, 0


def read_resources(group: bytes) -> list[Resource | RejectedResource]:
    """The resources of some fields of a response; their payloads stay encoded.

    An envelope that cannot be read rejects itself only.
    """
    try:
        return [_resource(each) for each in parse_envelopes(group).resources]
    except DecodeError as error:
        fields = _fields_of(group)
        if len(fields) == 1:
            return [RejectedResource("", "", f"decode: {error}", is_undecodable=True)]
        return [resource for each in fields for resource in read_resources(each)]


def _fields_of(group: bytes) -> list[bytes]:
    """The fields of a group one by one."""
    bounds: list[int] = []
    ResponseSplitter(len(group))._cut(group, bounds)
    return [group[begin:end] for begin, end in zip(bounds[::2], bounds[1::2], strict=True)]


def _resource(envelope: Envelope) -> Resource:
    value, aliases = envelope.resource.value, envelope.aliases
    return Resource(
        envelope.name,
        envelope.version,
        tuple(aliases) if aliases else (),
        value if value or envelope.HasField("resource") else None,
    )
