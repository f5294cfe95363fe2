"""What is shown, against a recorded dump."""

import json

from tests.unit.mesh.world import DATA, mesh_of, pod, recorded_mesh
from ztunnel_trio.mesh.document import (
    Json,
    policy_document,
    service_document,
    staged_document,
    workload_document,
)
from ztunnel_trio.mesh.mesh import Mesh
from ztunnel_trio.model.workload import Workload


def test_what_is_left_out_of_an_empty_workload() -> None:
    empty = Workload(service_account="", trust_domain="", cluster="", workload_type="")

    assert workload_document(empty) == {
        "workloadIps": [],
        "protocol": "TCP",
        "networkMode": "Standard",
        "name": "",
        "namespace": "",
        "clusterId": "",
        "status": "Healthy",
        "capacity": 1,
    }


def test_staged_endpoints_are_listed_by_service() -> None:
    mesh = mesh_of(pod("a", services=["ns/later"]))

    assert staged_document(mesh.without_service()) == {
        "ns/later": {"a": {"workloadUid": "a", "port": {"80": 8080}, "status": "Healthy"}}
    }


RECORDED = json.loads((DATA / "ztunnel_mesh_dump.json").read_text())


def in_order(document: dict[str, Json]) -> str:
    """The text of a document, services of a workload in order (the Rust ztunnel lists them in any)."""
    services = document.get("services")
    if isinstance(services, list):
        document = {**document, "services": sorted(services)}
    return json.dumps(document, sort_keys=True)


def sorted_documents(mesh: Mesh) -> dict[str, list[dict[str, Json]]]:
    return {
        "workloads": [workload_document(each) for each in sorted(mesh.workloads(), key=lambda w: w.uid)],
        "services": [
            service_document(each, mesh.endpoints(each.key))
            for each in sorted(mesh.services(), key=lambda s: s.hostname)
        ],
        "policies": [
            policy_document(policy)
            for name in sorted(mesh.policy_keys())
            if (policy := mesh.policy(name)) is not None
        ],
    }


def test_the_dump_of_a_recorded_mesh_is_that_of_the_rust_ztunnel() -> None:
    ours = sorted_documents(recorded_mesh())

    for part, documents in ours.items():
        assert [in_order(each) for each in documents] == [in_order(each) for each in RECORDED[part]]
