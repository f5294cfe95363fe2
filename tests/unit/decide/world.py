"""A mesh from a handful of workloads and services."""

from ztunnel_trio.mesh.entries import AddressEntry, ServiceEntry, workload_entry
from ztunnel_trio.mesh.mesh import Batch, Mesh
from ztunnel_trio.model.service import Service
from ztunnel_trio.model.workload import Workload


def mesh_of(*entries: Workload | Service) -> Mesh:
    """A mesh that was told these, in this order. Workloads become endpoints of the services they name."""
    addresses: list[AddressEntry] = [
        workload_entry(entry) if isinstance(entry, Workload) else ServiceEntry(entry) for entry in entries
    ]
    mesh = Mesh()
    mesh.apply(Batch(addresses=addresses))
    return mesh
