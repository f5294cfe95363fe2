"""Delta xDS, the client's side, without sockets or clocks (envoy `xds_protocol`, "incremental").

Theory of operation. `Discovery` lives as long as the process and knows, for each type, which resources the
control plane has given us in which version. A stream begins with `open_stream()`: one request a type with the
node and those versions, so that only what changed comes again. Each response goes through `ResponseSplitter`
in pieces; its resources are decoded and applied by the caller, some at a time, and reported with `received()`
and `removed()`; `finish()` returns the one ACK or NACK. `demand()` asks for one more name in on-demand mode.

A resource that was rejected keeps the version we had of it before: after a reconnect it comes again.

A mesh may have hundreds of thousands of resources. Nothing here therefore takes longer for more of them, but
for the generators, which let the caller pause, and versions are kept only for what one request can name
(`Known`).

`Retries` says how long to wait after a stream has ended, from how it ended.
"""

from array import array
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from mmap import mmap
from typing import Final, NamedTuple, Protocol

from google.protobuf.message import DecodeError

from ztunnel_trio.errors import PeerBrokeProtocol, WeBrokeProtocol
from ztunnel_trio.pb import xds_pb2
from ztunnel_trio.spec.grpc import GrpcCode

DELTA_PATH: Final = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"
REQUEST_LIMIT_BYTES: Final = 4 * 1024 * 1024 - 64 * 1024  # istiod takes 4 MiB (ISTIO_GPRC_MAXRECVMSGSIZE)
MAX_RESOURCES: Final = 4_000_000  # of one response; ten times the largest mesh istiod is built for
_MAX_VARINT_BYTES: Final = 10
_BLOCK_BYTES: Final = 1024 * 1024
_NAMES_AT_ONCE: Final = 256
_LITTLE_ROOM: Final = 128  # bytes of a request that are not worth measuring every entry for
_GROUP: Final = 4  # resources decoded together: 30 µs of work, half a microsecond less each than alone
_REJECTIONS_TOLD: Final = 1000
_DOMAIN_OF_NODE_IDS: Final = "svc.cluster.local"  # literal, whatever the cluster's domain is

JsonValue = None | bool | int | float | str | Sequence["JsonValue"] | Mapping[str, "JsonValue"]


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeFacts:
    """What we tell the control plane about ourselves.

    `proxy_metadata` overrides the four standard entries, `json_metadata` overrides both.
    """

    instance_ip: str
    pod_name: str
    pod_namespace: str
    node_name: str
    proxy_metadata: Mapping[str, str] = field(default_factory=dict)
    json_metadata: Mapping[str, JsonValue] = field(default_factory=dict)

    def as_node(self) -> xds_pb2.Node:
        """The wire form; the id has four parts, as istiod requires."""
        name, namespace = self.pod_name, self.pod_namespace
        node = xds_pb2.Node(
            id=f"ztunnel~{self.instance_ip}~{name}.{namespace}~{namespace}.{_DOMAIN_OF_NODE_IDS}"
        )
        metadata: dict[str, JsonValue] = {
            "NAME": name,
            "NAMESPACE": namespace,
            "INSTANCE_IPS": self.instance_ip,
            "NODE_NAME": self.node_name,
            **self.proxy_metadata,
            **self.json_metadata,
        }
        node.metadata.update(metadata)
        return node


@dataclass(frozen=True, slots=True)
class Subscription:
    """One type asked for: everything there is of it, or (on demand) nothing until a name is asked for."""

    type_url: str
    on_demand: bool = False


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
        """The first few that are left, as fields of the response (`resources_in`); they are not kept.

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
class Response:
    """One DeltaDiscoveryResponse cut into its parts."""

    system_version_info: str = ""
    type_url: str = ""
    nonce: str = ""
    resources: Resources = field(default_factory=Resources)
    removed: list[str] = field(default_factory=list)


class Arrived(Protocol):
    """A resource of a response, of which this is all there is to remember."""

    @property
    def name(self) -> str: ...
    @property
    def version(self) -> str: ...
    @property
    def aliases(self) -> tuple[str, ...]: ...


class Resource(NamedTuple):
    """One resource of a response. `value` is None when the payload is missing."""

    name: str
    version: str
    aliases: tuple[str, ...]
    value: bytes | None


@dataclass(frozen=True, slots=True)
class Rejection:
    """A resource we could not take, and why."""

    name: str
    reason: str


@dataclass(slots=True, eq=False)
class Rejections:
    """Why resources of a response were not taken: the first thousand, and how many more.

    `unusable` holds what did not decode, `refused` what the mesh would not take; a NACK names the latter
    first.
    """

    refused: list[Rejection] = field(default_factory=list)
    unusable: list[Rejection] = field(default_factory=list)
    more: int = 0

    def refuse(self, rejection: Rejection, *, is_unusable: bool) -> None:
        """Note one more."""
        if len(self.refused) + len(self.unusable) >= _REJECTIONS_TOLD:
            self.more += 1
        elif is_unusable:
            self.unusable.append(rejection)
        else:
            self.refused.append(rejection)

    @property
    def text(self) -> str | None:
        """The NACK's text; None when there are none."""
        told = [f"{one.name}: {one.reason}" for one in (*self.refused, *self.unusable)]
        if self.more:
            told.append(f"and {self.more} more")
        return "; ".join(told) or None


@dataclass(frozen=True, slots=True)
class Finished:
    """What follows from a response that was applied: send `request`, wake who waits for `answered` names."""

    request: bytes
    error: str | None
    """The NACK's text; None for an ACK."""
    answered: tuple[str, ...]
    """The names that were demanded and are answered by this response."""
    became_ready: bool
    """This response completed the first full picture of every wildcard type."""


class ResponseSplitter:
    """Cuts a DeltaDiscoveryResponse of a known size into parts, from pieces of any length."""

    __slots__ = ("_field_bytes", "_parts", "_parts_bytes", "_remaining", "_response")

    def __init__(self, size: int) -> None:
        self._response = Response()
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

    def finish(self) -> Response:
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


def resources_in(group: bytes) -> list[bytes]:
    """The resources of some fields of a response, each still encoded."""
    bounds: list[int] = []
    ResponseSplitter(len(group))._cut(group, bounds)
    pairs = zip(bounds[::2], bounds[1::2], strict=True)
    return [group[_varint(group, begin + 1, end)[1] : end] for begin, end in pairs]


def parse_resource(encoded: bytes) -> Resource:
    """Decode the envelope of one resource; its payload stays encoded.

    Raises:
        PeerBrokeProtocol: not a Resource.
    """
    try:
        message = xds_pb2.Resource.FromString(encoded)
    except DecodeError as error:
        raise PeerBrokeProtocol(f"decode: {error}") from error
    value = message.resource.value
    aliases = message.aliases
    return Resource(
        message.name,
        message.version,
        tuple(aliases) if aliases else (),
        value if value or message.HasField("resource") else None,
    )


class Known:
    """What we have of one type: the versions of as many resources as one request may name, of the others
    the names alone.

    The control plane takes requests of 4 MiB (`REQUEST_LIMIT_BYTES`); what a request does not name comes
    again, or is gone without a word. An unnamed resource carries the number of the last stream that
    brought it, which tells the two apart.
    """

    __slots__ = ("_named", "_room", "_stream", "_unnamed")

    def __init__(self, room_bytes: int) -> None:
        self._room = room_bytes
        self._stream = 0
        self._named: dict[str, str] = {}
        self._unnamed: dict[str, int] = {}

    def as_dict(self) -> dict[str, str | None]:
        """All of it; None for the version of an unnamed one."""
        return {**self._named, **dict.fromkeys(self._unnamed)}

    def __len__(self) -> int:
        return len(self._named) + len(self._unnamed)

    def __contains__(self, name: str) -> bool:
        return name in self._named or name in self._unnamed

    def begin_stream(self) -> None:
        """From now on what comes is of another stream."""
        self._stream += 1

    def put(self, name: str, version: str) -> None:
        """We have that version now."""
        before = self._named.get(name)
        if before is not None:
            if len(before) != len(version):
                self._room += _entry_bytes(name, before) - _entry_bytes(name, version)
            self._named[name] = version
            if self._room < 0:
                self._room += _entry_bytes(name, version)
                del self._named[name]
                self._unnamed[name] = self._stream
            return
        if self._room > _LITTLE_ROOM and (size := _entry_bytes(name, version)) <= self._room:
            if self._unnamed:
                self._unnamed.pop(name, None)
            self._named[name] = version
            self._room -= size
        else:
            self._unnamed[name] = self._stream

    def hear(self, name: str) -> None:
        """It came, but we keep what we had."""
        if name in self._unnamed:
            self._unnamed[name] = self._stream

    def drop(self, name: str) -> None:
        """We have it no more."""
        version = self._named.pop(name, None)
        if version is None:
            self._unnamed.pop(name, None)
        else:
            self._room += _entry_bytes(name, version)

    def versions(self) -> Iterator[dict[str, str]]:
        """What a request names, some at a time; changes meanwhile may or may not be seen."""
        for names in _some_at_a_time(list(self._named)):
            yield {name: version for name in names if (version := self._named.get(name)) is not None}

    def unnamed(self) -> Iterator[list[str]]:
        """The names a request has no room for, some at a time."""
        yield from _some_at_a_time(list(self._unnamed))

    def vanished(self) -> Iterator[list[str]]:
        """The unnamed that this stream has not brought, some at a time."""
        for names in _some_at_a_time(list(self._unnamed)):
            yield [name for name in names if self._unnamed.get(name, self._stream) != self._stream]


def _some_at_a_time(names: list[str]) -> Iterator[list[str]]:
    for start in range(0, len(names), _NAMES_AT_ONCE):
        yield names[start : start + _NAMES_AT_ONCE]


class Discovery:
    """The client's memory of what it was told and what it asked for. See the module's text."""

    __slots__ = (
        "_answered",
        "_answered_once",
        "_asked",
        "_awaited",
        "_known",
        "_node",
        "_request_limit_bytes",
        "_subscriptions",
    )

    def __init__(
        self,
        node: xds_pb2.Node,
        subscriptions: Iterable[Subscription],
        *,
        request_limit_bytes: int = REQUEST_LIMIT_BYTES,
    ) -> None:
        self._node = node
        self._subscriptions = {one.type_url: one for one in subscriptions}
        self._request_limit_bytes = request_limit_bytes
        self._known = {
            type_url: Known(request_limit_bytes - len(self._bare_request(one)))
            for type_url, one in self._subscriptions.items()
        }
        self._awaited = {one.type_url for one in self._subscriptions.values() if not one.on_demand}
        # of this stream:
        self._answered_once: set[str] = set()
        self._asked: dict[tuple[str, str], None] = {}
        self._answered: dict[str, None] = {}  # of the response that is being applied

    @property
    def is_ready(self) -> bool:
        """Whether every wildcard type has been received and accepted once."""
        return not self._awaited

    def handles(self, type_url: str) -> bool:
        """Whether we asked for this type; a response of another one is acknowledged and dropped."""
        return type_url in self._subscriptions

    def known(self, type_url: str) -> dict[str, str | None]:
        """Name to version of what we have of a type: empty where none was given, None where none is kept."""
        return self._known[type_url].as_dict()

    def open_stream(self) -> Iterator[bytes | None]:
        """The first requests of a new stream, to be written without waiting for an answer.

        A None is nothing to write, but a moment to let others run.
        """
        self._answered_once.clear()
        self._asked.clear()
        self._answered.clear()
        for known in self._known.values():
            known.begin_stream()
        for subscription in self._subscriptions.values():
            yield from self._initial(subscription)

    def demand(self, type_url: str, name: str) -> bytes:
        """The request for one more resource of an on-demand type."""
        if type_url not in self._subscriptions:
            raise WeBrokeProtocol(f"demand for a type never subscribed: {type_url}")
        known = self._known[type_url]
        if name not in known:
            known.put(name, "")
        self._asked[type_url, name] = None
        return xds_pb2.DeltaDiscoveryRequest(
            type_url=type_url, resource_names_subscribe=[name]
        ).SerializeToString()

    def received(
        self, type_url: str, resources: Iterable[Arrived], rejected: Collection[str] = frozenset()
    ) -> None:
        """The mesh has these resources of a response now, but for the rejected ones."""
        known = self._known[type_url]
        put = known.put
        for one in resources:
            name = one.name
            if name in rejected:
                known.hear(name)
            else:
                put(name, one.version)
            if self._asked:
                self._answer(type_url, name, *one.aliases)

    def removed(self, type_url: str, names: Iterable[str]) -> None:
        """The mesh has these no more, or never had them."""
        known = self._known[type_url]
        for name in names:
            known.drop(name)
        if self._asked:
            self._answer(type_url, *names)

    def vanished(self, type_url: str) -> Iterator[list[str]]:
        """Names to remove although no response says so, some at a time; ask when all resources are applied.

        Not every version may fit the first request. What was left out exists only if it comes again in the
        first answer of the stream: the control plane sends all that it was not told we have.
        """
        if type_url in self._answered_once or self._subscriptions[type_url].on_demand:
            return iter(())
        return self._known[type_url].vanished()

    def finish(self, response: Response, rejections: Rejections) -> Finished:
        """Answer a response. Call it after the mesh is up to date and all of it was reported.

        An unknown type is acknowledged and leaves no trace.
        """
        type_url = response.type_url
        answered: tuple[str, ...] = ()
        if self.handles(type_url):
            if not response.resources.count and not response.removed and type_url in self._answered_once:
                # istiod pushes nothing that is empty: this answers the oldest question still open
                oldest = next((name for kind, name in self._asked if kind == type_url), None)
                if oldest is not None:
                    self._answer(type_url, oldest)
            self._answered_once.add(type_url)
            answered = tuple(self._answered)
            self._answered.clear()
        error = rejections.text
        became_ready = False
        if error is None and type_url in self._awaited:
            self._awaited.discard(type_url)
            became_ready = not self._awaited
        request = xds_pb2.DeltaDiscoveryRequest(type_url=type_url, response_nonce=response.nonce)
        if error is not None:
            error = _bounded(error, self._request_limit_bytes // 2)
            request.error_detail.message = error
        return Finished(request.SerializeToString(), error, answered, became_ready)

    def _answer(self, type_url: str, *names: str) -> None:
        for name in names:
            if (type_url, name) in self._asked:
                del self._asked[type_url, name]
                self._answered[name] = None

    def _bare_request(self, subscription: Subscription) -> bytes:
        """The first request of a type, without versions."""
        request = xds_pb2.DeltaDiscoveryRequest(node=self._node, type_url=subscription.type_url)
        if subscription.on_demand:  # subscribed to nothing yet: no list at all would mean everything
            request.resource_names_subscribe.append("*")
            request.resource_names_unsubscribe.append("*")
        return request.SerializeToString()

    def _initial(self, subscription: Subscription) -> Iterator[bytes | None]:
        """The first request of a type, and the further ones it takes to name what did not fit (on demand)."""
        known = self._known[subscription.type_url]
        parts = [self._bare_request(subscription)]  # encoded messages in a row are one message
        for versions in known.versions():
            request = xds_pb2.DeltaDiscoveryRequest(initial_resource_versions=versions)
            parts.append(request.SerializeToString())
            yield None
        yield b"".join(parts)
        if subscription.on_demand:
            yield from self._subscribe(subscription.type_url, known.unnamed())

    def _subscribe(self, type_url: str, names: Iterable[list[str]]) -> Iterator[bytes | None]:
        parts = [beginning := xds_pb2.DeltaDiscoveryRequest(type_url=type_url).SerializeToString()]
        room = self._request_limit_bytes - len(beginning)
        for some in names:
            for name in some:
                part = xds_pb2.DeltaDiscoveryRequest(resource_names_subscribe=[name]).SerializeToString()
                if len(part) > room and len(parts) > 1:
                    yield b"".join(parts)
                    parts = [beginning]
                    room = self._request_limit_bytes - len(beginning)
                parts.append(part)
                room -= len(part)
            yield None
        if len(parts) > 1:
            yield b"".join(parts)


def _entry_bytes(name: str, version: str) -> int:
    """An upper bound for one map entry on the wire: two strings and three tags with their lengths."""
    if name.isascii() and version.isascii() and (size := len(name) + len(version)) < 120:
        return size + 6
    size = (len(name) if name.isascii() else len(name.encode())) + (
        len(version) if version.isascii() else len(version.encode())
    )
    return size + (6 if size < 120 else 18)  # protobuf: a length below 128 takes one byte


def _bounded(text: str, limit_bytes: int) -> str:
    """Cut a NACK's text where the request would outgrow what the control plane takes."""
    encoded = text.encode()
    return text if len(encoded) <= limit_bytes else encoded[:limit_bytes].decode(errors="ignore") + "…"


class EndReason(Enum):
    """How a stream ended, as the metric names it."""

    CONNECTION_ERROR = "ConnectionError"
    RECONNECT = "Reconnect"
    ERROR = "Error"
    COMPLETE = "Complete"


@dataclass(frozen=True, slots=True)
class StatusEnd:
    """The call failed with a status. `answered`: the server's response headers had come."""

    code: GrpcCode
    message: str
    answered: bool
    source: str = ""


@dataclass(frozen=True, slots=True)
class CompleteEnd:
    """The server ended the stream without an error."""


@dataclass(frozen=True, slots=True)
class OtherEnd:
    """Something of our own was in the way: an unreadable root certificate or token."""

    error: str


StreamEnd = StatusEnd | CompleteEnd | OtherEnd


@dataclass(frozen=True, slots=True)
class Retry:
    """What to do about an end: how long to wait, what to count and what to say (as a warning or not)."""

    seconds: float
    reason: EndReason
    text: str
    is_warning: bool = True


class Retries:
    """The wait between streams: 20, 40, 80 … ms up to 15 s while attempts fail (ztunnel src/xds/client.rs).

    A connection alone does not shorten it again; an ordinary end does.
    """

    FIRST_SECONDS: Final = 0.010
    LIMIT_SECONDS: Final = 15.0

    __slots__ = ("_address", "_backoff")

    def __init__(self, address: str) -> None:
        self._address = address
        self._backoff = self.FIRST_SECONDS

    def after(self, end: StreamEnd) -> Retry:
        """Judge one end."""
        match end:
            case CompleteEnd():
                self._backoff = self.FIRST_SECONDS
                return Retry(0.0, EndReason.COMPLETE, "XDS client complete")
            case OtherEnd(error):
                seconds = self._longer()
                return Retry(
                    seconds,
                    EndReason.ERROR,
                    f"XDS client error: {error}, retrying in {duration_text(seconds)}",
                )
            case StatusEnd(answered=False):
                seconds = self._longer()
                text = connection_error_text(self._address, end)
                return Retry(
                    seconds,
                    EndReason.CONNECTION_ERROR,
                    f"XDS client connection error: {text}, retrying in {duration_text(seconds)}",
                )
            case StatusEnd() if _is_benign(end):
                self._backoff = self.FIRST_SECONDS
                return Retry(
                    self._backoff,
                    EndReason.RECONNECT,
                    f"XDS client terminated: {stream_error_text(end)}",
                    is_warning=False,
                )
            case StatusEnd():
                seconds = self._longer()
                text = stream_error_text(end)
                return Retry(
                    seconds,
                    EndReason.ERROR,
                    f"XDS client error: {text}, retrying in {duration_text(seconds)}",
                )

    def _longer(self) -> float:
        self._backoff = min(self.LIMIT_SECONDS, 2 * self._backoff)
        return self._backoff


def _is_benign(end: StatusEnd) -> bool:
    """Whether a status is what a server's maximum connection age looks like."""
    match end.code:
        case GrpcCode.UNKNOWN | GrpcCode.CANCELLED | GrpcCode.DEADLINE_EXCEEDED:
            return True
        case GrpcCode.UNAVAILABLE:
            return "transport is closing" in end.message or "received prior goaway" in end.message
        case _:
            return False


def status_text(end: StatusEnd) -> str:
    """A status as the Rust ztunnel writes it, with hints for what operators meet most."""
    text = f'status: {end.code.title}, message: "{end.message}"'
    if "authentication failure" in end.message:
        text += " (hint: check the control plane logs for more information)"
    if end.source:
        text += f", source: {end.source}"
        if "Temporary failure in name resolution" in end.source:
            text += " (hint: is the DNS server reachable?)"
    return text


def connection_error_text(address: str, end: StatusEnd) -> str:
    """The text for an attempt that never got an answer."""
    return f"gRPC connection error connecting to {address}: {status_text(end)}"


def stream_error_text(end: StatusEnd) -> str:
    """The text for a stream that failed after it was established."""
    return f"gRPC error {status_text(end)}"


def duration_text(seconds: float) -> str:
    """A duration as Rust's `Duration` prints, e.g. `20ms`, `1.28s`, `15s`."""
    return f"{seconds:g}s" if seconds >= 1 else f"{seconds * 1000:g}ms"
