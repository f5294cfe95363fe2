"""The in-pod protocol (zds.proto): datagrams with descriptors <-> events and answers. No state, no sockets.

The agent sends one request a datagram and waits for its acknowledgement; only an added pod comes with a
descriptor, of its network namespace. Descriptors are opaque here: what is not handed on in a `PodAdded` is
closed, whatever else is wrong with the datagram (ztunnel src/inpod/protocol.rs).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Generic, Protocol, TypeVar

from ztunnel_trio.errors import PeerBrokeProtocol
from ztunnel_trio.model.workload import WorkloadInfo
from ztunnel_trio.pb.messages.istio.workload import zds as messages
from ztunnel_trio.wire.protobuf_encoding import TEXT, Schema, check_encoding

REQUEST: Final[Schema] = {1: {1: TEXT, 2: {1: TEXT, 2: TEXT, 3: TEXT}}, 2: {2: TEXT}, 3: {}, 5: {1: TEXT}}
RESPONSE: Final[Schema] = {1: {1: TEXT}}


class Closable(Protocol):
    """An owned descriptor."""

    def close(self) -> None: ...


D = TypeVar("D", bound=Closable)
D_co = TypeVar("D_co", bound=Closable, covariant=True)


@dataclass(frozen=True, slots=True)
class PodAdded(Generic[D_co]):
    """A pod to serve, and its namespace. `info` None: the agent left it out."""

    uid: str
    info: WorkloadInfo | None
    netns: D_co


@dataclass(frozen=True, slots=True)
class DescriptorLost:
    """A pod to serve whose namespace did not arrive: this process has no descriptor left."""

    uid: str


@dataclass(frozen=True, slots=True)
class PodKept:
    """A pod whose namespace the agent does not know (yet): if it is served, it stays."""

    uid: str


@dataclass(frozen=True, slots=True)
class PodDeleted:
    """A pod that is gone or no longer in the mesh."""

    uid: str


@dataclass(frozen=True, slots=True)
class SnapshotSent:
    """Everything the agent knows has been named; what it did not name is gone."""


def hello() -> bytes:
    """What the proxy sends first."""
    return bytes(messages.ZdsHello(version=messages.Version.V1))


def ack(error: str = "") -> bytes:
    """The answer to one request; an empty error is success."""
    return bytes(messages.WorkloadResponse(ack=messages.Ack(error=error)))


def decode(
    data: bytes, descriptors: Sequence[D], *, truncated: bool, descriptors_lost: bool = False
) -> PodAdded[D] | DescriptorLost | PodKept | PodDeleted | SnapshotSent:
    """Read one request. The event owns the descriptor it carries; all others are closed.

    `descriptors_lost`: the kernel could not give us all that was sent along.

    Raises:
        PeerBrokeProtocol: truncated, undecodable, without payload, or with a wrong number of descriptors;
            every descriptor is closed.
    """
    try:
        event = _decode(data, descriptors, truncated=truncated, descriptors_lost=descriptors_lost)
    except PeerBrokeProtocol:
        for descriptor in descriptors:
            descriptor.close()
        raise
    return event


def _decode(
    data: bytes, descriptors: Sequence[D], *, truncated: bool, descriptors_lost: bool
) -> PodAdded[D] | DescriptorLost | PodKept | PodDeleted | SnapshotSent:
    if truncated or (descriptors_lost and descriptors):
        raise PeerBrokeProtocol("received truncated message")
    if len(descriptors) > 1:
        raise PeerBrokeProtocol(f"Expected 1 FD, got {len(descriptors)}")
    request = _parse(data)
    payloads = [
        each for each in (request.add, request.del_, request.snapshot_sent, request.keep) if each is not None
    ]
    match payloads:
        case [messages.AddWorkload() as added]:
            if descriptors_lost:
                return DescriptorLost(added.uid)
            if not descriptors:
                raise PeerBrokeProtocol("No control message")
            return PodAdded(added.uid, _info(added.workload_info), descriptors[0])
        case [_] if descriptors:
            raise PeerBrokeProtocol("Unexpected control message")
        case [messages.KeepWorkload(uid=uid)]:
            return PodKept(uid)
        case [messages.DelWorkload(uid=uid)]:
            return PodDeleted(uid)
        case [messages.SnapshotSent()]:
            return SnapshotSent()
        case []:
            raise PeerBrokeProtocol("no payload")
        case _:
            raise PeerBrokeProtocol("more than one payload")


def _parse(data: bytes) -> messages.WorkloadRequest:
    check_encoding(data, REQUEST)
    try:
        return messages.WorkloadRequest().parse(data)
    except ValueError as error:  # text that is not UTF-8
        raise PeerBrokeProtocol(f"failed to decode message: {error}") from error


def _info(told: messages.WorkloadInfo | None) -> WorkloadInfo | None:
    return None if told is None else WorkloadInfo(told.name, told.namespace, told.service_account)


def add(uid: str, info: WorkloadInfo | None) -> bytes:
    """The agent's side: serve this pod; its namespace travels beside it."""
    told = None
    if info is not None:
        told = messages.WorkloadInfo(
            name=info.name, namespace=info.namespace, service_account=info.service_account
        )
    return bytes(messages.WorkloadRequest(add=messages.AddWorkload(uid=uid, workload_info=told)))


def keep(uid: str) -> bytes:
    """The agent's side: this pod exists, its namespace is not known."""
    return bytes(messages.WorkloadRequest(keep=messages.KeepWorkload(uid=uid)))


def delete(uid: str) -> bytes:
    """The agent's side: this pod is gone."""
    return bytes(messages.WorkloadRequest(del_=messages.DelWorkload(uid=uid)))


def snapshot_sent() -> bytes:
    """The agent's side: everything known has been named."""
    return bytes(messages.WorkloadRequest(snapshot_sent=messages.SnapshotSent()))


def decode_ack(data: bytes) -> str:
    """The agent's side: the error of an answer, empty for success.

    Raises:
        PeerBrokeProtocol: no acknowledgement.
    """
    check_encoding(data, RESPONSE)
    try:
        response = messages.WorkloadResponse().parse(data)
    except ValueError as error:
        raise PeerBrokeProtocol(f"failed to decode message: {error}") from error
    if response.ack is None:
        raise PeerBrokeProtocol("no payload")
    return response.ack.error
