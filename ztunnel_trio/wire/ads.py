"""Delta xDS, the client's side, without sockets or clocks (envoy `xds_protocol`, "incremental").

Theory of operation. `Discovery` lives as long as the process and knows, for each type, which resources the
control plane has given us in which version. A stream begins with `open_stream()`: one request a type with the
node and those versions, so that only what changed comes again. Each response goes through `ResponseSplitter`
in pieces, is turned into resources, applied by the caller, and reported with `finish()`, which does the
bookkeeping and returns the one ACK or NACK. `demand()` asks for one more name in on-demand mode.

A resource that was rejected keeps the version we had of it before: after a reconnect it comes again.

`Retries` says how long to wait after a stream has ended, from how it ended.
"""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from google.protobuf.message import DecodeError

from ztunnel_trio.errors import PeerBrokeProtocol, WeBrokeProtocol
from ztunnel_trio.pb import xds_pb2
from ztunnel_trio.spec.grpc import GrpcCode

DELTA_PATH: Final = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"
REQUEST_LIMIT_BYTES: Final = 4 * 1024 * 1024 - 64 * 1024  # istiod takes 4 MiB (ISTIO_GPRC_MAXRECVMSGSIZE)
MAX_RESOURCES: Final = 4_000_000  # of one response; ten times the largest mesh istiod is built for
_MAX_VARINT_BYTES: Final = 10
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


@dataclass(slots=True, eq=False)
class Response:
    """One DeltaDiscoveryResponse cut into its parts; `resources` are still encoded `Resource` messages."""

    system_version_info: str = ""
    type_url: str = ""
    nonce: str = ""
    resources: deque[bytes] = field(default_factory=deque)
    removed: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Resource:
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
class Outcome:
    """What became of a response's resources: kept by the caller while it applies them, slice by slice.

    `unusable` holds what did not decode, `refused` what the mesh would not take; a NACK names the latter
    first. Payloads are not kept.
    """

    versions: dict[str, str] = field(default_factory=dict)
    aliases: list[str] = field(default_factory=list)
    refused: list[Rejection] = field(default_factory=list)
    unusable: list[Rejection] = field(default_factory=list)

    def receive(self, resource: Resource) -> None:
        """Note that a resource was in the response, whatever becomes of it."""
        self.versions[resource.name] = resource.version
        self.aliases.extend(resource.aliases)

    @property
    def rejections(self) -> list[Rejection]:
        """Every rejection in the order of the NACK text."""
        return [*self.refused, *self.unusable]


@dataclass(frozen=True, slots=True)
class Finished:
    """What follows from a response that was applied: send `request`, wake who waits for `answered` names."""

    request: bytes
    error: str | None
    """The NACK's text; None for an ACK."""
    answered: tuple[str, ...]
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
        used = self._cut(data)
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

    def _cut(self, data: bytes) -> int:
        """Take every complete field from the front; returns how many bytes those had."""
        position, end = 0, len(data)
        resources = self._response.resources
        self._field_bytes = 0
        while position < end:
            begin = position
            tag = data[position]
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
                resources.append(data[position:stop])
                if len(resources) > MAX_RESOURCES:
                    raise PeerBrokeProtocol("discovery response has too many resources")
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


def parse_resource(encoded: bytes) -> Resource:
    """Decode the envelope of one resource; its payload stays encoded.

    Raises:
        PeerBrokeProtocol: not a Resource.
    """
    try:
        message = xds_pb2.Resource.FromString(encoded)
    except DecodeError as error:
        raise PeerBrokeProtocol(f"decode: {error}") from error
    value = message.resource.value if message.HasField("resource") else None
    return Resource(message.name, message.version, tuple(message.aliases), value)


class Discovery:
    """The client's memory of what it was told and what it asked for. See the module's text."""

    __slots__ = (
        "_answered_once",
        "_asked",
        "_awaited",
        "_known",
        "_node",
        "_request_limit_bytes",
        "_subscriptions",
        "_unnamed",
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
        self._known: dict[str, dict[str, str]] = {type_url: {} for type_url in self._subscriptions}
        self._awaited = {one.type_url for one in self._subscriptions.values() if not one.on_demand}
        # of this stream:
        self._unnamed: dict[str, set[str]] = {}
        self._answered_once: set[str] = set()
        self._asked: dict[tuple[str, str], None] = {}

    @property
    def is_ready(self) -> bool:
        """Whether every wildcard type has been received and accepted once."""
        return not self._awaited

    def handles(self, type_url: str) -> bool:
        """Whether we asked for this type; a response of another one is acknowledged and dropped."""
        return type_url in self._subscriptions

    def known(self, type_url: str) -> Mapping[str, str]:
        """Name to version of what we have of a type; the version is empty where none was given."""
        return self._known[type_url]

    def open_stream(self) -> list[bytes]:
        """The first requests of a new stream, to be written without waiting for anything."""
        self._unnamed.clear()
        self._answered_once.clear()
        self._asked.clear()
        return [
            request.SerializeToString()
            for subscription in self._subscriptions.values()
            for request in self._initial(subscription)
        ]

    def demand(self, type_url: str, name: str) -> bytes:
        """The request for one more resource of an on-demand type."""
        if type_url not in self._subscriptions:
            raise WeBrokeProtocol(f"demand for a type never subscribed: {type_url}")
        self._known[type_url].setdefault(name, "")
        self._asked[type_url, name] = None
        return xds_pb2.DeltaDiscoveryRequest(
            type_url=type_url, resource_names_subscribe=[name]
        ).SerializeToString()

    def vanished(self, response: Response, outcome: Outcome) -> list[str]:
        """Names to remove although the response does not say so; ask before applying removals.

        Not every version may fit the first request. What was left out exists only if it comes again in the
        first answer of the stream: the control plane sends all that it was not told we have.
        """
        unnamed = self._unnamed.get(response.type_url)
        if not unnamed or response.type_url in self._answered_once:
            return []
        return sorted(unnamed - outcome.versions.keys() - set(response.removed))

    def finish(self, response: Response, outcome: Outcome, vanished: Sequence[str] = ()) -> Finished:
        """Record what was applied and answer the response. Call it after the mesh is up to date.

        An unknown type is acknowledged and leaves no trace.
        """
        type_url = response.type_url
        rejections = outcome.rejections
        answered: tuple[str, ...] = ()
        if self.handles(type_url):
            answered = self._record(response, outcome, vanished)
        became_ready = False
        if not rejections and type_url in self._awaited:
            self._awaited.discard(type_url)
            became_ready = not self._awaited
        error = "; ".join(f"{one.name}: {one.reason}" for one in rejections) if rejections else None
        request = xds_pb2.DeltaDiscoveryRequest(type_url=type_url, response_nonce=response.nonce)
        if error is not None:
            request.error_detail.message = _bounded(error, self._request_limit_bytes // 2)
        return Finished(request.SerializeToString(), error, answered, became_ready)

    def _record(self, response: Response, outcome: Outcome, vanished: Sequence[str]) -> tuple[str, ...]:
        type_url = response.type_url
        known = self._known[type_url]
        answered: dict[str, None] = {}
        for name in (*response.removed, *vanished):
            known.pop(name, None)
            answered[name] = None
        rejected = {one.name for one in outcome.rejections}
        known.update((name, version) for name, version in outcome.versions.items() if name not in rejected)
        answered.update(dict.fromkeys(outcome.versions))
        answered.update(dict.fromkeys(outcome.aliases))
        if not answered and type_url in self._answered_once:
            # istiod pushes nothing that is empty: this answers the oldest question still open
            oldest = next((name for kind, name in self._asked if kind == type_url), None)
            if oldest is not None:
                answered[oldest] = None
        for name in answered:
            self._asked.pop((type_url, name), None)
        self._answered_once.add(type_url)
        self._unnamed.pop(type_url, None)
        return tuple(answered)

    def _initial(self, subscription: Subscription) -> list[xds_pb2.DeltaDiscoveryRequest]:
        """The first request of a type, and the further ones it takes to name what did not fit (on demand)."""
        first = xds_pb2.DeltaDiscoveryRequest(node=self._node, type_url=subscription.type_url)
        if subscription.on_demand:  # subscribed to nothing yet: no list at all would mean everything
            first.resource_names_subscribe.append("*")
            first.resource_names_unsubscribe.append("*")
        room = self._request_limit_bytes - first.ByteSize()
        left_out: list[str] = []
        for name, version in self._known[subscription.type_url].items():
            room -= _entry_bytes(name, version)
            if room >= 0:
                first.initial_resource_versions[name] = version
            else:
                left_out.append(name)
        if not subscription.on_demand:
            self._unnamed[subscription.type_url] = set(left_out)
            return [first]
        return [first, *self._subscribe(subscription.type_url, left_out)]

    def _subscribe(self, type_url: str, names: list[str]) -> list[xds_pb2.DeltaDiscoveryRequest]:
        requests: list[xds_pb2.DeltaDiscoveryRequest] = []
        room = 0
        for name in names:
            room -= _entry_bytes(name, "")
            if room < 0 or not requests:
                requests.append(xds_pb2.DeltaDiscoveryRequest(type_url=type_url))
                room = self._request_limit_bytes - requests[-1].ByteSize()
            requests[-1].resource_names_subscribe.append(name)
        return requests


def _entry_bytes(name: str, version: str) -> int:
    """An upper bound for one map entry on the wire: two strings and three tags with lengths up to 5 bytes."""
    return len(name.encode()) + len(version.encode()) + 18


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
