"""Delta xDS, the client's side, without sockets or clocks (envoy `xds_protocol`, "incremental").

Theory of operation. `Discovery` lives as long as the process and knows, for each type, which resources the
control plane has given us in which version. A stream begins with `open_stream()`: one request a type with the
node and those versions, so that only what changed comes again. The resources of a response
(`delta_response`) are decoded and applied by the caller, some at a time, and reported with `received()` and
`removed()`; `finish()` returns the one ACK or NACK. `demand()` asks for one more name in on-demand mode,
and `forget()` ends the subscriptions of those that stand for nothing (`demanded`).

A resource that was rejected keeps the version we had of it before: after a reconnect it comes again.

A mesh may have hundreds of thousands of resources. Nothing here therefore takes longer for more of them, but
for the generators, which let the caller pause, and versions are kept only for what one request can name
(`ResourceVersions`).
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from ztunnel_trio.errors import WeBrokeProtocol
from ztunnel_trio.pb import xds_pb2
from ztunnel_trio.wire.delta_response import DiscoveryResponse
from ztunnel_trio.wire.demanded import DemandedKeys
from ztunnel_trio.wire.rejection import Rejections
from ztunnel_trio.wire.versions import NAMES_AT_ONCE, ResourceVersions

DELTA_PATH: Final = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"
REQUEST_LIMIT_BYTES: Final = 4 * 1024 * 1024 - 64 * 1024  # istiod takes 4 MiB (ISTIO_GPRC_MAXRECVMSGSIZE)
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


class Arrived(Protocol):
    """A resource of a response, of which this is all there is to remember."""

    @property
    def name(self) -> str: ...
    @property
    def version(self) -> str: ...
    @property
    def aliases(self) -> tuple[str, ...]: ...


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


class Discovery:
    """The client's memory of what it was told and what it asked for. See the module's text."""

    __slots__ = (
        "_answered",
        "_answered_once",
        "_asked",
        "_awaited",
        "_demanded",
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
            type_url: ResourceVersions(request_limit_bytes - len(self._bare_request(one)))
            for type_url, one in self._subscriptions.items()
        }
        self._demanded = {
            one.type_url: DemandedKeys() for one in self._subscriptions.values() if one.on_demand
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

    def demand(self, type_url: str, name: str, now: float) -> bytes:
        """The request for one more resource of an on-demand type; `now` in seconds of the caller's clock."""
        if type_url not in self._demanded:
            raise WeBrokeProtocol(f"demand for a type that is not on demand: {type_url}")
        known = self._known[type_url]
        if name not in known:
            known.put(name, "")
        self._asked[type_url, name] = None
        self._demanded[type_url].use(name, now)
        return xds_pb2.DeltaDiscoveryRequest(
            type_url=type_url, resource_names_subscribe=[name]
        ).SerializeToString()

    def received(
        self, type_url: str, resources: Iterable[Arrived], rejected: Collection[str] = frozenset()
    ) -> None:
        """The mesh has these resources of a response now, but for the rejected ones."""
        known, demanded = self._known[type_url], self._demanded.get(type_url)
        put = known.put
        for one in resources:
            name = one.name
            if name in rejected:
                known.come_again(name)
            else:
                put(name, one.version)
            if demanded is not None:
                demanded.is_found(name, one.aliases)
                self._answer(type_url, name, *one.aliases)

    def removed(self, type_url: str, names: Iterable[str]) -> None:
        """The mesh has these no more, or never had them."""
        known, demanded = self._known[type_url], self._demanded.get(type_url)
        for name in names:
            known.drop(name)
            if demanded is not None:
                demanded.is_gone(name)
                self._answer(type_url, name)

    def next_forgetting(self) -> float | None:
        """When a demanded key that stands for nothing is to be forgotten, as far as is known now."""
        moments = [at for each in self._demanded.values() if (at := each.next_forgetting()) is not None]
        return min(moments, default=None)

    def forget(self, now: float) -> Iterator[bytes]:
        """The requests that end the subscriptions of keys whose time has come."""
        for type_url, demanded in self._demanded.items():
            while names := demanded.forget(now, NAMES_AT_ONCE):
                for name in names:
                    self._known[type_url].drop(name)
                yield xds_pb2.DeltaDiscoveryRequest(
                    type_url=type_url, resource_names_unsubscribe=names
                ).SerializeToString()

    def vanished(self, type_url: str) -> Iterator[list[str]]:
        """Names to remove although no response says so, some at a time; ask when all resources are applied.

        Not every version may fit the first request. What was left out exists only if it comes again in the
        first answer of the stream: the control plane sends all that it was not told we have.
        """
        if type_url in self._answered_once or self._subscriptions[type_url].on_demand:
            return iter(())
        return self._known[type_url].vanished()

    def finish(self, response: DiscoveryResponse, rejections: Rejections) -> Finished:
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


def _bounded(text: str, limit_bytes: int) -> str:
    """Cut a NACK's text where the request would outgrow what the control plane takes."""
    encoded = text.encode()
    return text if len(encoded) <= limit_bytes else encoded[:limit_bytes].decode(errors="ignore") + "…"
