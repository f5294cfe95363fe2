"""Workloads: defaults, identity and the texts others read."""

from ztunnel_trio.model.identity import SpiffeId
from ztunnel_trio.model.workload import Health, InboundProtocol, NetworkMode, Workload, WorkloadInfo


def test_a_workload_nothing_is_said_of_has_the_protocols_defaults() -> None:
    workload = Workload()

    assert workload.identity == SpiffeId("cluster.local", "", "default")
    assert (workload.workload_type, workload.cluster, workload.capacity) == ("deployment", "Kubernetes", 1)
    assert workload.protocol is InboundProtocol.TCP
    assert workload.network_mode is NetworkMode.STANDARD
    assert workload.health is Health.HEALTHY


def test_a_workload_prints_as_refusals_name_it() -> None:
    workload = Workload(uid="Kubernetes//Pod/ns/web", name="web", protocol=InboundProtocol.HBONE)

    assert str(workload) == "Workload{web with uid Kubernetes//Pod/ns/web (HBONE)}"


def test_a_pod_prints_as_logs_name_it() -> None:
    workload = Workload(name="web", namespace="ns", service_account="sa")

    assert workload.info == WorkloadInfo("web", "ns", "sa")
    assert str(workload.info) == "sa.ns (web)"


def test_workloads_that_differ_in_their_services_are_different_but_hash_alike() -> None:
    plain = Workload(uid="a")

    assert hash(plain) == hash(Workload(uid="a"))
    assert plain == Workload(uid="a")
