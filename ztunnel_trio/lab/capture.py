"""What crosses the fabric, as a packet socket on its bridge sees it: evidence, not expectation.

`Wire` is handed every Ethernet frame that enters the bridge and keeps, for each TCP connection, which TLS
records passed in each direction, whether the server chose TLS 1.3, and whether one of the markers that
applications send in their payload was to be seen. `watch` is the task that reads the packet socket.

Bytes are followed in sequence: a retransmission counts once, and after a gap (a frame the socket lost) the
records of that direction can no longer be told apart, which is reported as such and not as encrypted.
"""

import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from typing import Final

import trio

from ztunnel_trio.lab.hosts import Host
from ztunnel_trio.lab.netlink import KernelLacks
from ztunnel_trio.model.address import SocketAddress

_ETHERTYPE_IPV4, _ETHERTYPE_IPV6, _ETHERTYPE_ALL = 0x0800, 0x86DD, 0x0003
_TCP: Final = 6
_FIN, _SYN, _RST, _ACK = 0x01, 0x02, 0x04, 0x10
_HANDSHAKE, _APPLICATION_DATA = 22, 23  # RFC 8446 5.1
_RECORD_TYPES: Final = frozenset((20, 21, _HANDSHAKE, _APPLICATION_DATA))
_LONGEST_RECORD: Final = 16384 + 256  # RFC 8446 5.2
_SERVER_HELLO: Final = 2
_SUPPORTED_VERSIONS: Final = 43
_TLS13: Final = 0x0304
_LONGEST_HELLO: Final = 4096
_SOCKET_BUFFER_BYTES: Final = 16 * 1024 * 1024
_FRAME_BYTES: Final = 262144
_BURST: Final = 256
SO_RCVBUFFORCE: Final = 33  # asm-generic/socket.h


@dataclass(slots=True, eq=False)
class Way:
    """One direction of a connection."""

    next_sequence: int | None = None
    payload_bytes: int = 0
    records: int = 0
    application_records: int = 0
    is_tls: bool = True  # so far nothing but TLS records
    has_gap: bool = False
    hello: bytearray = field(default_factory=bytearray)  # the first handshake record's body
    tail: bytes = b""  # the end of what was searched for markers
    _header: bytearray = field(default_factory=bytearray)
    _left: int = 0  # of the record being passed over
    _first: bool = True

    def take(self, data: bytes) -> None:
        """Follow the next bytes of the stream through the record layer (RFC 8446 5.1)."""
        self.payload_bytes += len(data)
        position = 0
        while position < len(data) and self.is_tls and not self.has_gap:
            if self._left:
                step = min(self._left, len(data) - position)
                if self._first and len(self.hello) < _LONGEST_HELLO:
                    self.hello += data[position : position + step]
                self._left -= step
                position += step
                if not self._left:
                    self._first = False
                continue
            step = min(5 - len(self._header), len(data) - position)
            self._header += data[position : position + step]
            position += step
            if len(self._header) == 5:
                self._begin_record()

    def _begin_record(self) -> None:
        kind, major, _, length = struct.unpack("!BBBH", self._header)
        self._header.clear()
        if kind not in _RECORD_TYPES or major != 3 or not 0 < length <= _LONGEST_RECORD:
            self.is_tls = False
            return
        self.records += 1
        self.application_records += kind == _APPLICATION_DATA
        self._left = length


@dataclass(slots=True, eq=False)
class CapturedFlow:
    """One TCP connection seen on the fabric."""

    client: SocketAddress
    server: SocketAddress
    sent: Way = field(default_factory=Way)  # by the client
    received: Way = field(default_factory=Way)
    markers: set[bytes] = field(default_factory=set)  # seen in clear
    saw_start: bool = False
    was_reset: bool = False
    was_finished: bool = False

    @property
    def is_tls13(self) -> bool:
        """The server chose TLS 1.3, and nothing but TLS records passed, in both directions."""
        ways = (self.sent, self.received)
        whole = all(way.is_tls and not way.has_gap and way.records for way in ways)
        return whole and selected_version(bytes(self.received.hello)) == _TLS13

    @property
    def application_records(self) -> int:
        return self.sent.application_records + self.received.application_records

    @property
    def payload_bytes(self) -> int:
        return self.sent.payload_bytes + self.received.payload_bytes


@dataclass(frozen=True, slots=True)
class Activity:
    """What a connection did since a mark."""

    flow: CapturedFlow
    payload_bytes: int
    application_records: int
    is_new: bool


@dataclass(slots=True, eq=False)
class Wire:
    """All connections seen so far, in the order they began."""

    flows: dict[tuple[SocketAddress, SocketAddress], CapturedFlow] = field(default_factory=dict)
    past: list[CapturedFlow] = field(default_factory=list)  # whose ports were used again
    frames: int = 0
    lost: int = 0
    _markers: set[bytes] = field(default_factory=set)

    def look_for(self, marker: bytes) -> None:
        """Note from now on every connection in which these bytes pass in clear."""
        self._markers.add(marker)

    def everything(self) -> list[CapturedFlow]:
        return [*self.past, *self.flows.values()]

    def mark(self) -> dict[CapturedFlow, tuple[int, int]]:
        """The present state, for `since`."""
        return {flow: (flow.payload_bytes, flow.application_records) for flow in self.everything()}

    def since(self, mark: dict[CapturedFlow, tuple[int, int]]) -> list[Activity]:
        """The connections that carried payload since then, and how much."""
        found: list[Activity] = []
        for flow in self.everything():
            size, records = mark.get(flow, (0, 0))
            if flow.payload_bytes > size:
                activity = Activity(
                    flow, flow.payload_bytes - size, flow.application_records - records, flow not in mark
                )
                found.append(activity)
        return found

    def receive(self, frame: bytes) -> None:
        """Take one Ethernet frame; what is not TCP over IP is ignored, and so is what is cut short."""
        self.frames += 1
        try:
            self._take(frame)
        except struct.error:
            return

    def _take(self, frame: bytes) -> None:
        (ethertype,) = struct.unpack_from("!H", frame, 12)
        source: IPv4Address | IPv6Address
        target: IPv4Address | IPv6Address
        if ethertype == _ETHERTYPE_IPV4 and len(frame) >= 34:
            version, total, protocol = struct.unpack_from("!BxH5xB", frame, 14)
            start, end = 14 + (version & 15) * 4, 14 + total
            source, target = IPv4Address(frame[26:30]), IPv4Address(frame[30:34])
        elif ethertype == _ETHERTYPE_IPV6 and len(frame) >= 54:
            length, protocol = struct.unpack_from("!HB", frame, 18)
            start, end = 54, 54 + length
            source, target = IPv6Address(frame[22:38]), IPv6Address(frame[38:54])
        else:
            return
        if protocol != _TCP:
            return
        ports = struct.unpack_from("!HH", frame, start)
        sequence, _, offset, flags = struct.unpack_from("!IIBB", frame, start + 4)
        data = frame[start + (offset >> 4) * 4 : max(end, len(frame)) if end <= start else end]
        ends = (SocketAddress(source, ports[0]), SocketAddress(target, ports[1]))
        self._segment(ends, sequence, flags, data)

    def _segment(
        self, ends: tuple[SocketAddress, SocketAddress], sequence: int, flags: int, data: bytes
    ) -> None:
        if flags & _SYN and not flags & _ACK:
            if (old := self.flows.get(ends)) is not None and old.payload_bytes:
                self.past.append(self.flows.pop(ends))
            flow = self.flows.setdefault(ends, CapturedFlow(*ends))
            flow.saw_start = True
        found = self.flows.get(ends) or self.flows.get((ends[1], ends[0]))
        if found is None:
            found = self.flows[ends] = CapturedFlow(*ends)
        way = found.sent if found.client == ends[0] else found.received
        found.was_reset |= bool(flags & _RST)
        found.was_finished |= bool(flags & _FIN)
        if flags & _SYN:
            way.next_sequence = (sequence + 1) % 2**32
            return
        if not data:
            return
        if way.next_sequence is None:
            way.next_sequence, way.has_gap = sequence, True
        ahead = (sequence - way.next_sequence) % 2**32
        if ahead >= 2**31:  # sent again, perhaps with something new at its end
            data = data[2**32 - ahead :]
        elif ahead:
            way.has_gap = True
            way.next_sequence = sequence
        if not data:
            return
        way.next_sequence = (way.next_sequence + len(data)) % 2**32
        way.take(data)
        text = way.tail + data
        found.markers |= {marker for marker in self._markers if marker in text}
        longest = max((len(marker) for marker in self._markers), default=1)
        way.tail = text[-longest:]


def selected_version(hello: bytes) -> int | None:
    """The protocol version a ServerHello's extension names (RFC 8446 4.2.1); None for anything else."""
    try:
        if hello[0] != _SERVER_HELLO:
            return None
        position = 4 + 2 + 32
        position += 1 + hello[position]  # session id
        position += 2 + 1  # cipher suite, compression
        (left,) = struct.unpack_from("!H", hello, position)
        position += 2
        while left >= 4:
            kind, length = struct.unpack_from("!HH", hello, position)
            if kind == _SUPPORTED_VERSIONS:
                (version,) = struct.unpack_from("!H", hello, position + 4)
                return int(version)
            position += 4 + length
            left -= 4 + length
    except (IndexError, struct.error):
        pass
    return None


async def watch(
    fabric: Host, wire: Wire, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Read every frame that enters the bridge until cancelled.

    Raises:
        KernelLacks: there are no packet sockets here.
    """
    try:
        with fabric.netns.inside():
            packets = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETHERTYPE_ALL))
    except OSError as error:
        raise KernelLacks(f"the kernel refuses a packet socket: {error.strerror}") from error
    with packets:
        try:
            packets.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, _SOCKET_BUFFER_BYTES)
        except PermissionError:  # in a user namespace: as much as the system grants everybody
            packets.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SOCKET_BUFFER_BYTES)
        packets.setblocking(False)
        task_status.started()
        while True:
            await trio.lowlevel.wait_readable(packets)
            read(packets, wire)


def read(packets: socket.socket, wire: Wire) -> None:
    """Take what the socket holds, a burst at most. A frame enters the bridge once and leaves it elsewhere."""
    for _ in range(_BURST):
        try:
            frame, (interface, _, kind, *_) = packets.recvfrom(_FRAME_BYTES)
        except BlockingIOError:
            return
        if interface.startswith("port") and kind != socket.PACKET_OUTGOING:
            wire.receive(frame)


def to_port(flows: Iterable[CapturedFlow], port: int) -> list[CapturedFlow]:
    """Those whose server listens there."""
    return [flow for flow in flows if flow.server.port == port]
