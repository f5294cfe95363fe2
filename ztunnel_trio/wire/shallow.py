"""Message types of the discovery stream that read no more of a message than is wanted.

Copies of the generated types of workload.proto in which every submessage is plain bytes, enums are numbers
and maps lists of bytes: bytes and submessages, enums and int32 have the same form on the wire (protobuf:
encoding). Resources (xds.proto) are read in one go with the addresses inside them. The workload in an
`Address` knows the fields that are its own and no others: what it has in common with the rest of its
deployment stays unread, and is all that is left of the message when its own fields are cleared.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Final, Protocol, cast

from google.protobuf import any_pb2, descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import Message

from ztunnel_trio.pb import workload_pb2, xds_pb2

OWN_FIELDS: Final = ("uid", "name", "addresses", "node", "locality", "extensions")
"""What a workload does not share; its extensions mean nothing to us."""


class OwnWorkload(Protocol):
    """What a workload does not share: `locality` is encoded."""

    uid: str
    name: str
    addresses: list[bytes]
    node: str
    locality: bytes

    def ClearField(self, name: str) -> None: ...  # noqa: N802 - protobuf's name
    def SerializeToString(self) -> bytes: ...  # noqa: N802 - protobuf's name


class ShallowWorkload(Protocol):
    """`istio.workload.Workload` with submessages as bytes and enums as numbers."""

    namespace: str
    network: str
    tunnel_protocol: int
    trust_domain: str
    service_account: str
    waypoint: bytes
    canonical_name: str
    canonical_revision: str
    workload_type: int
    workload_name: str
    native_tunnel: bool
    authorization_policies: list[str]
    status: int
    cluster_id: str
    network_gateway: bytes
    hostname: str
    services: list[bytes]
    application_tunnel: bytes
    network_mode: int
    capacity: bytes

    def HasField(self, name: str) -> bool: ...  # noqa: N802 - protobuf's name


class ShallowService(Protocol):
    """`istio.workload.Service` with submessages as bytes and enums as numbers."""

    name: str
    namespace: str
    hostname: str
    addresses: list[bytes]
    ports: list[bytes]
    subject_alt_names: list[str]
    waypoint: bytes
    load_balancing: bytes
    ip_families: int
    canonical: bool
    weighted_waypoints: list[bytes]
    visibility: int

    def HasField(self, name: str) -> bool: ...  # noqa: N802 - protobuf's name


class ShallowAddress(Protocol):
    """`istio.workload.Address`; one of the two is there."""

    workload: OwnWorkload
    service: ShallowService

    def WhichOneof(self, name: str) -> str | None: ...  # noqa: N802 - protobuf's name
    def ByteSize(self) -> int: ...  # noqa: N802 - protobuf's name


class ShallowAny(Protocol):
    """`google.protobuf.Any` around an address."""

    value: ShallowAddress


class ShallowResource(Protocol):
    """`envoy.service.discovery.v3.Resource` around an address."""

    name: str
    version: str
    resource: ShallowAny


class ShallowResponse(Protocol):
    """`envoy.service.discovery.v3.DeltaDiscoveryResponse`, of which only the resources are read."""

    resources: Sequence[ShallowResource]


class EnvelopeAny(Protocol):
    """`google.protobuf.Any` around whatever it is."""

    value: bytes


class Envelope(Protocol):
    """`envoy.service.discovery.v3.Resource`, its payload unread."""

    name: str
    version: str
    aliases: Sequence[str]
    resource: EnvelopeAny

    def HasField(self, name: str) -> bool: ...  # noqa: N802 - protobuf's name


class EnvelopeResponse(Protocol):
    """As `ShallowResponse`, for resources of any type."""

    resources: Sequence[Envelope]


class ShallowEntry(Protocol):
    """An entry of the map `Workload.services`."""

    key: str
    value: bytes


_File = descriptor_pb2.FileDescriptorProto
_Type = descriptor_pb2.DescriptorProto
_Field = descriptor_pb2.FieldDescriptorProto
_PACKAGE: Final = "shallow"


def _type_of(kind: type[Message]) -> _Type:
    described = _Type()
    kind.DESCRIPTOR.CopyToProto(described)
    return described


def _add_type(file: _File, name: str, full: _Type, fields: Collection[str], **read: str) -> None:
    """Add a copy of a message type with some of its fields; `read`: as which type to read a submessage."""
    message = file.message_type.add(name=name)
    for each in full.field:
        if each.name not in fields:
            continue
        field = message.field.add(name=each.name, number=each.number, label=each.label, type=each.type)
        oneof = full.oneof_decl[each.oneof_index].name if each.HasField("oneof_index") else ""
        if each.name in read:
            field.type, field.type_name = _Field.TYPE_MESSAGE, f".{_PACKAGE}.{read[each.name]}"
        elif each.type == _Field.TYPE_ENUM:
            field.type = _Field.TYPE_INT32
        elif each.type == _Field.TYPE_MESSAGE:
            field.type = _Field.TYPE_BYTES
            if each.label == _Field.LABEL_OPTIONAL and not oneof:  # it can be empty and yet there
                field.proto3_optional, oneof = True, f"_{each.name}"
        if oneof:
            names = [declared.name for declared in message.oneof_decl]
            if oneof not in names:
                message.oneof_decl.add(name=oneof)
                names.append(oneof)
            field.oneof_index = names.index(oneof)


def _message_types() -> dict[str, type[Message]]:
    """Every type of this module by its name."""
    file = _File(name="shallow.proto", package=_PACKAGE, syntax="proto3")
    workload, service = _type_of(workload_pb2.Workload), _type_of(workload_pb2.Service)
    _add_type(file, "Workload", workload, [field.name for field in workload.field])
    _add_type(file, "OwnWorkload", workload, OWN_FIELDS)
    _add_type(file, "ServicesEntry", _type_of(workload_pb2.Workload.ServicesEntry), ("key", "value"))
    _add_type(file, "Service", service, [field.name for field in service.field])
    kinds = {"workload": "OwnWorkload", "service": "Service"}
    _add_type(file, "Address", _type_of(workload_pb2.Address), kinds, **kinds)
    _add_type(file, "Any", _type_of(any_pb2.Any), ("type_url", "value"), value="Address")
    envelope = ("name", "version", "resource")
    _add_type(file, "Resource", _type_of(xds_pb2.Resource), envelope, resource="Any")
    response = _type_of(xds_pb2.DeltaDiscoveryResponse)
    _add_type(file, "Response", response, ("resources",), resources="Resource")
    _add_type(file, "EnvelopeAny", _type_of(any_pb2.Any), ("value",))
    _add_type(file, "Envelope", _type_of(xds_pb2.Resource), (*envelope, "aliases"), resource="EnvelopeAny")
    _add_type(file, "EnvelopeResponse", response, ("resources",), resources="Envelope")
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return {
        message.name: message_factory.GetMessageClass(
            pool.FindMessageTypeByName(f"{_PACKAGE}.{message.name}")
        )
        for message in file.message_type
    }


_TYPES: Final = _message_types()
parse_addresses: Final = cast(Callable[[bytes], ShallowResponse], _TYPES["Response"].FromString)
parse_envelopes: Final = cast(Callable[[bytes], EnvelopeResponse], _TYPES["EnvelopeResponse"].FromString)
parse_address: Final = cast(Callable[[bytes], ShallowAddress], _TYPES["Address"].FromString)
parse_workload: Final = cast(Callable[[bytes], ShallowWorkload], _TYPES["Workload"].FromString)
parse_services_entry: Final = cast(Callable[[bytes], ShallowEntry], _TYPES["ServicesEntry"].FromString)
