"""The JSON and YAML form of the mesh, both ways: config dumps and local files.

Names and shapes are those of the Rust ztunnel's `/config_dump` and `LOCAL_XDS` file. In a file a workload
maps each of its services to ports; a dump lists the services and has the ports with the endpoints.
"""

from ztunnel_trio.mesh.document.dump import (
    Json,
    clashes_document,
    local_workload_document,
    policy_document,
    service_document,
    staged_document,
    workload_document,
)
from ztunnel_trio.mesh.document.local import MeshDocument, read_local

__all__ = [
    "Json",
    "MeshDocument",
    "clashes_document",
    "local_workload_document",
    "policy_document",
    "read_local",
    "service_document",
    "staged_document",
    "workload_document",
]
