"""Shallow messages read what the generated types read, as far as they look."""

from google.protobuf.wrappers_pb2 import UInt32Value

from ztunnel_trio.pb import workload_pb2, xds_pb2
from ztunnel_trio.wire.shallow import OWN_FIELDS, parse_address, parse_addresses, parse_workload

LOCALITY = workload_pb2.Locality(region="r", zone="z")
SHARED = workload_pb2.Workload(
    namespace="ns",
    service_account="sa",
    tunnel_protocol=workload_pb2.HBONE,
    waypoint=workload_pb2.GatewayAddress(hbone_mtls_port=15008),
    capacity=UInt32Value(),
    services={"ns/a.example": workload_pb2.PortList()},
)
WHOLE = workload_pb2.Workload(
    uid="uid", name="pod", addresses=[b"\x0a\0\0\1", b"\x0a\0\0\2"], node="node", locality=LOCALITY
)
WHOLE.extensions.add(name="any")
WHOLE.MergeFrom(SHARED)


def test_a_workload_in_an_address_knows_its_own_fields_and_keeps_the_rest() -> None:
    workload = parse_address(workload_pb2.Address(workload=WHOLE).SerializeToString()).workload

    assert (workload.uid, workload.name, workload.node) == ("uid", "pod", "node")
    assert list(workload.addresses) == list(WHOLE.addresses)
    assert workload.locality == LOCALITY.SerializeToString()
    for name in OWN_FIELDS:
        workload.ClearField(name)
    assert workload_pb2.Workload.FromString(workload.SerializeToString()) == SHARED


def test_submessages_are_bytes_that_may_be_empty_and_yet_there() -> None:
    workload = parse_workload(SHARED.SerializeToString())

    assert workload.waypoint == SHARED.waypoint.SerializeToString()
    assert (workload.HasField("capacity"), workload.capacity) == (True, b"")
    assert not workload.HasField("network_gateway")
    assert workload.tunnel_protocol == workload_pb2.HBONE
    assert len(workload.services) == 1


def test_resources_are_read_with_the_addresses_inside_them() -> None:
    response = xds_pb2.DeltaDiscoveryResponse(nonce="n")
    for name, address in (("a", workload_pb2.Address(workload=WHOLE)), ("b", workload_pb2.Address())):
        response.resources.add(name=name, version="v", aliases=["x"]).resource.Pack(address)

    first, second = parse_addresses(response.SerializeToString()).resources

    assert (first.name, first.version, first.resource.value.workload.uid) == ("a", "v", "uid")
    assert (second.name, second.resource.value.WhichOneof("type")) == ("b", None)


def test_of_a_workload_and_a_service_the_last_one_counts() -> None:
    both = (
        workload_pb2.Address(workload=WHOLE).SerializeToString()
        + workload_pb2.Address(service=workload_pb2.Service(name="svc")).SerializeToString()
    )

    address = parse_address(both)

    assert (address.WhichOneof("type"), address.workload.uid, address.service.name) == ("service", "", "svc")
