"""`Address` resources (workload.proto) as entries of the mesh; a bad one rejects itself only.

`read_workloads` is the short way for workloads as they come from istiod, envelopes and all. It never rejects:
what it cannot read takes the long way, by `read_address`, which says what is wrong.
"""

from typing import NamedTuple

from google.protobuf.message import DecodeError

from ztunnel_trio.mesh.entries import AddressEntry, WorkloadEntry
from ztunnel_trio.wire.rejection import RejectedResource
from ztunnel_trio.wire.shallow import parse_address, parse_addresses
from ztunnel_trio.xds.fields import FieldRefused, undecodable
from ztunnel_trio.xds.service import service_entry_of
from ztunnel_trio.xds.workload import workload_entry_of


class ArrivedWorkload(NamedTuple):
    """A workload as it came: its resource's name and version, the size of its payload, and what it holds."""

    name: str
    version: str
    payload_bytes: int
    entry: WorkloadEntry

    @property
    def aliases(self) -> tuple[str, ...]:
        """Not read: they matter to those who ask for single resources."""
        return ()


def read_workloads(group: bytes) -> list[ArrivedWorkload]:
    """Read some `resources` of a DeltaDiscoveryResponse (xds.proto) that are all workloads.

    Nothing, if one of them is something else, or bad.
    """
    arrived: list[ArrivedWorkload] = []
    try:
        for resource in parse_addresses(group).resources:
            address = resource.resource.value
            workload = address.workload
            if not workload.uid:
                return []
            name, payload_bytes = resource.name, address.ByteSize()
            entry = workload_entry_of(name, workload)
            arrived.append(tuple.__new__(ArrivedWorkload, (name, resource.version, payload_bytes, entry)))
    except (DecodeError, FieldRefused):
        return []
    return arrived


def read_address(name: str, payload: bytes) -> AddressEntry | RejectedResource:
    """Check one `Address` resource. The object names itself; the resource name is the same to istiod."""
    try:
        address = parse_address(payload)
        kind = address.WhichOneof("type")
        if kind == "workload":
            return workload_entry_of(name, address.workload)
        if kind == "service":
            return service_entry_of(address.service)
    except DecodeError as error:
        return undecodable(name, error)
    except FieldRefused as refused:
        return refused.of(name)
    return RejectedResource(name, "", "unknown address type")
