"""A stand-in for istiod: delta ADS and the certificate service over TLS, with bad manners on request.

Theory of operation. `Istiod` keeps the resources (`put`, `push`) and one `AdsStream` for every stream a
proxy has open. Answers follow istiod: the first request of a type is answered with everything whose version
the proxy does not know and the removal of what it names and does not exist; an ACK or NACK is only noted;
on-demand streams get what they ask for, their node's workloads, and what belongs to a service asked for.
Pushes go to every live stream at once. All state belongs to the Trio task that calls; a stream's two tasks
share it without locks.

`changed` counts up with everything a test may wait for; `wait_for` is the usual way to wait.
"""

import itertools
import socket
import ssl
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from math import inf
from typing import Final, Protocol
from uuid import uuid4

import trio

from ztunnel_trio.control import grpc
from ztunnel_trio.facts.grpc import GrpcCode
from ztunnel_trio.facts.network import ADDRESS_TYPE, AUTHORIZATION_TYPE
from ztunnel_trio.lab.ca import CA_PATH, CertificateService, Status, bad_status, check_token
from ztunnel_trio.lab.hosts import GATEWAY_V4
from ztunnel_trio.lab.pki import Authority, Leaf
from ztunnel_trio.lab.resources import Resource, Stored, aliases, node_of, services_of, stored
from ztunnel_trio.pb.xds_pb2 import DeltaDiscoveryRequest, DeltaDiscoveryResponse
from ztunnel_trio.supervise.watch import Watch

PORT: Final = 15012
ADS_PATH: Final = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"
SERVER_NAMES: Final = ("istiod.istio-system.svc", "localhost", str(GATEWAY_V4))
_SETTLE_SECONDS: Final = 10.0


@dataclass(frozen=True, slots=True)
class Answer:
    """A proxy's answer to one response: no error is an ACK."""

    error: str | None

    @property
    def is_ack(self) -> bool:
        return self.error is None


@dataclass(slots=True, eq=False)
class AdsStream:
    """One stream of one proxy, and everything seen on it."""

    number: int
    peer: str
    metadata: Mapping[str, str]
    outgoing: trio.MemorySendChannel[DeltaDiscoveryResponse | Status | None]
    requests: list[DeltaDiscoveryRequest] = field(default_factory=list)
    answers: dict[str, Answer] = field(default_factory=dict)  # by nonce
    types: set[str] = field(default_factory=set)
    demanded: set[str] | None = None  # on-demand mode: the addresses subscribed to
    is_alive: bool = True

    @property
    def node_name(self) -> str:
        """NODE_NAME of the node's metadata, empty when it has not been sent."""
        for request in self.requests:
            if request.HasField("node"):
                fields = request.node.metadata.fields
                return fields["NODE_NAME"].string_value if "NODE_NAME" in fields else ""
        return ""

    def requests_of(self, type_url: str) -> list[DeltaDiscoveryRequest]:
        return [request for request in self.requests if request.type_url == type_url]

    @property
    def nacks(self) -> list[DeltaDiscoveryRequest]:
        return [request for request in self.requests if request.HasField("error_detail")]


class Istiod:
    """State, streams and knobs of the control plane. `run` serves it; it may be run again after it ended."""

    def __init__(
        self,
        root: Authority,
        *,
        authority: Authority | None = None,
        names: Sequence[str] = SERVER_NAMES,
        token: str | None = None,
    ) -> None:
        """`root` certifies the server itself, `authority` (by default the same) the workloads."""
        self.ca = CertificateService(authority or root, token)
        self.certificate: Leaf = root.server(*names)
        self.token = token
        self.state: dict[str, dict[str, Stored]] = {ADDRESS_TYPE: {}, AUTHORIZATION_TYPE: {}}
        self.streams: list[AdsStream] = []
        self.changed = Watch(0)
        self.held: set[str] = set()  # type URLs whose first answer is withheld: `release`
        self.refuse: Status | None = None  # new streams end at once with this
        self.delay = 0.0  # before every response
        self.related = True  # an upserted service brings its workloads along, as istiod's do
        self.served: grpc.Served | None = None
        self._pushes = itertools.count(1)
        self._scope: trio.CancelScope | None = None
        self._ended = trio.Event()

    # ---------------------------------------------------------------- life

    async def run(
        self,
        host: "LabPlace",
        *,
        port: int = PORT,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Listen in a host's namespace until `stop` or cancelled; then every connection is cut.

        Needs `control.grpc.open_control_loop` around it.

        Raises:
            OSError: the port is taken.
        """
        context = _server_context(self.certificate)
        sock = host.listener(port)
        self._scope, self._ended = trio.CancelScope(), trio.Event()
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    handlers: dict[str, grpc.Serve] = {ADS_PATH: self._serve_ads, CA_PATH: self.ca.serve}

                    async def serve(*, task_status: trio.TaskStatus[grpc.Served]) -> None:
                        await grpc.serve(handlers, sock=sock, ssl_context=context, task_status=task_status)

                    self.served = await nursery.start(serve)
                    task_status.started()
        finally:
            self._scope, self.served = None, None
            for stream in self.live:
                stream.is_alive = False
            self._tell()
            self._ended.set()

    async def stop(self) -> None:
        """End `run`, as a killed istiod: connections are cut without a goodbye."""
        if self._scope is not None:
            self._scope.cancel(reason="the lab stops istiod")
            await self._ended.wait()

    # ---------------------------------------------------------------- what the mesh is

    def put(self, *resources: Resource | Stored) -> list[Stored]:
        """Store without telling anybody; a `Stored` is taken as it is, however broken."""
        taken = [one if isinstance(one, Stored) else stored(one) for one in resources]
        for one in taken:
            self.state[one.type_url][one.name] = one
        return taken

    async def push(self, *resources: Resource | Stored, removed: Sequence[str] = ()) -> list[Answer]:
        """Store, remove by name, tell every live stream, and wait for their answers (at most ten seconds).

        Raises:
            TooSlowError: a proxy neither acknowledged nor refused.
        """
        return await self.settled(self.tell(*resources, removed=removed))

    def tell(self, *resources: Resource | Stored, removed: Sequence[str] = ()) -> list[tuple[AdsStream, str]]:
        """As `push` without waiting; returns the streams told and the nonces they have to answer."""
        touched = self.put(*resources)
        told: list[tuple[AdsStream, str]] = []
        for type_url in (ADDRESS_TYPE, AUTHORIZATION_TYPE):  # in istiod's order
            gone = [name for name in removed if self.state[type_url].pop(name, None) is not None]
            names = [one.name for one in touched if one.type_url == type_url]
            if self.related:
                names += self._workloads_of(names)
            if not names and not gone:
                continue
            for stream in self.live:
                if type_url not in stream.types or type_url in self.held:
                    continue
                wanted = [name for name in dict.fromkeys(names) if self._is_wanted(stream, type_url, name)]
                if wanted or gone:
                    told.append((stream, self._respond(stream, type_url, wanted, gone)))
        return told

    async def settled(self, told: Sequence[tuple[AdsStream, str]]) -> list[Answer]:
        """Wait until each of these responses is answered or its stream gone.

        Raises:
            TooSlowError: ten seconds have passed.
        """

        def done() -> bool:
            return all(nonce in stream.answers or not stream.is_alive for stream, nonce in told)

        with trio.move_on_after(_SETTLE_SECONDS) as waiting:
            await self.wait_for(done)
        if waiting.cancelled_caught:
            peers = [stream.peer for stream, nonce in told if nonce not in stream.answers]
            text = f"no answer to a push within {_SETTLE_SECONDS:.0f} s from {', '.join(peers)}"
            raise trio.TooSlowError(text)
        return [stream.answers[nonce] for stream, nonce in told if nonce in stream.answers]

    # ---------------------------------------------------------------- what is seen

    @property
    def live(self) -> list[AdsStream]:
        return [stream for stream in self.streams if stream.is_alive]

    async def wait_for(self, condition: "Condition") -> None:
        """Wait until a condition over streams and state holds; the caller sets the deadline."""
        while not condition():
            await self.changed.newer_than(self.changed.version)

    # ---------------------------------------------------------------- bad manners

    def cut(self, status: Status | None = None) -> None:
        """End every live stream, cleanly or with a status. Connections stay."""
        for stream in self.live:
            stream.outgoing.send_nowait(status)

    def drop(self) -> None:
        """Cut every connection under its streams."""
        if self.served is not None:
            self.served.drop_connections()

    def goaway(self) -> None:
        """Announce the end of every connection, as the maximum connection age does."""
        if self.served is not None:
            self.served.send_goaway()

    def release(self, type_url: str) -> None:
        """Give the first answers that `held` kept back."""
        self.held.discard(type_url)
        for stream in self.live:
            if requests := stream.requests_of(type_url):
                self._answer_first(stream, requests[0])

    def say(self, response: DeltaDiscoveryResponse) -> list[tuple[AdsStream, str]]:
        """Send a response made by hand to every live stream; an empty nonce is filled in."""
        told: list[tuple[AdsStream, str]] = []
        for stream in self.live:
            copy = DeltaDiscoveryResponse()
            copy.CopyFrom(response)
            copy.nonce = copy.nonce or self._nonce()
            stream.outgoing.send_nowait(copy)
            told.append((stream, copy.nonce))
        return told

    # ---------------------------------------------------------------- one stream

    async def _serve_ads(self, call: grpc.ServerCall) -> None:
        check_token(call, self.token)
        if self.refuse is not None:
            raise bad_status(self.refuse)
        send, receive = trio.open_memory_channel[DeltaDiscoveryResponse | Status | None](inf)
        stream = AdsStream(len(self.streams) + 1, call.peer, call.metadata, send)
        self.streams.append(stream)
        self._tell()
        ending: list[Status | None] = []
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._read, stream, call)
                async for item in receive:
                    if item is None or isinstance(item, Status):
                        ending.append(item)
                        break
                    await trio.sleep(self.delay)
                    await call.send(item.SerializeToString())
                nursery.cancel_scope.cancel(reason="the stream ends")
        finally:
            stream.is_alive = False
            self._tell()
        match ending:
            case [Status() as status]:
                raise bad_status(status)

    async def _read(self, stream: AdsStream, call: grpc.ServerCall) -> None:
        while (raw := await call.receive()) is not None:
            request = DeltaDiscoveryRequest.FromString(raw)
            stream.requests.append(request)
            if refused := self._take(stream, request):
                stream.outgoing.send_nowait(refused)
            self._tell()
        stream.outgoing.send_nowait(None)

    def _take(self, stream: AdsStream, request: DeltaDiscoveryRequest) -> Status | None:
        type_url = request.type_url
        if request.response_nonce:
            error = request.error_detail.message if request.HasField("error_detail") else None
            stream.answers[request.response_nonce] = Answer(error)
        elif type_url not in stream.types:
            if not stream.types and len(request.node.id.split("~")) != 4:
                return Status(GrpcCode.INVALID_ARGUMENT, f"invalid node id {request.node.id!r}")
            stream.types.add(type_url)
            if "*" in request.resource_names_unsubscribe:
                stream.demanded = set()
            if type_url not in self.held:
                self._answer_first(stream, request)
        elif request.resource_names_subscribe:
            self._answer_demand(stream, type_url, request.resource_names_subscribe)
        return None

    def _answer_first(self, stream: AdsStream, request: DeltaDiscoveryRequest) -> None:
        known, state = request.initial_resource_versions, self.state.get(request.type_url, {})
        if stream.demanded is not None and request.type_url == ADDRESS_TYPE:
            local = [one.name for one in state.values() if self._is_wanted(stream, ADDRESS_TYPE, one.name)]
            stream.demanded.update(local)
            self._respond(stream, request.type_url, local, [])
            return
        new = [one.name for one in state.values() if not one.version or known.get(one.name) != one.version]
        gone = [name for name in known if name not in state]
        self._respond(stream, request.type_url, new, gone)

    def _answer_demand(self, stream: AdsStream, type_url: str, names: Iterable[str]) -> None:
        demanded = stream.demanded if stream.demanded is not None else set()
        found: dict[str, list[str]] = {}
        missing: list[str] = []
        for name in names:
            demanded.add(name)
            keys = self._lookup(type_url, name)
            for key in keys:
                found[key] = aliases(self.state[type_url][key].value)
            if not keys:
                missing.append(name)
        demanded.update(found)
        related = [name for name in self._workloads_of(found) if name not in found]
        demanded.update(related)
        self._respond(stream, type_url, [*found, *related], missing, found)

    def _lookup(self, type_url: str, name: str) -> list[str]:
        """The resources a key stands for: a name, or an address that several may have."""
        state = self.state[type_url]
        if name in state:
            return [name]
        return [one.name for one in state.values() if type_url == ADDRESS_TYPE and name in aliases(one.value)]

    def _is_wanted(self, stream: AdsStream, type_url: str, name: str) -> bool:
        if stream.demanded is None or type_url != ADDRESS_TYPE or name in stream.demanded:
            return True
        value = self.state[type_url][name].value
        if node_of(value) == stream.node_name != "":
            return True
        return not stream.demanded.isdisjoint([*services_of(value), *aliases(value)])

    def _workloads_of(self, names: Iterable[str]) -> list[str]:
        wanted = {name for name in names if "//" not in name}
        if not wanted:
            return []
        state = self.state[ADDRESS_TYPE].values()
        return [one.name for one in state if not wanted.isdisjoint(services_of(one.value))]

    def _respond(
        self,
        stream: AdsStream,
        type_url: str,
        names: Iterable[str],
        removed: Sequence[str],
        named: Mapping[str, Sequence[str]] | None = None,
    ) -> str:
        response = DeltaDiscoveryResponse(
            type_url=type_url,
            nonce=self._nonce(),
            removed_resources=removed,
            system_version_info=self._version(),
        )
        for name in names:
            one = self.state[type_url][name]
            resource = response.resources.add(
                name=name, version=one.version, aliases=named.get(name, ()) if named else ()
            )
            resource.resource.type_url, resource.resource.value = type_url, one.value
        stream.outgoing.send_nowait(response)
        return response.nonce

    def _version(self) -> str:
        return f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}/{next(self._pushes)}"

    def _nonce(self) -> str:
        return f"{self._version()}{uuid4()}"

    def _tell(self) -> None:
        self.changed.publish(self.changed.version + 1)


class Condition(Protocol):
    def __call__(self) -> bool: ...


class LabPlace(Protocol):
    """Where to listen: a `Host`."""

    def listener(self, port: int) -> socket.socket: ...


def _server_context(certificate: Leaf) -> ssl.SSLContext:
    with tempfile.NamedTemporaryFile("w", suffix=".pem") as file:
        file.write(certificate.chain_pem + certificate.key_pem)
        file.flush()
        return grpc.server_context(file.name)
