"""What decoding and the stores promise for any input.

"A bad resource rejects itself only" (ztunnel src/xds.rs): any bytes are an entry or a `RejectedResource`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.unit.mesh.world import DATA, key, pod, service, workload_of
from ztunnel_trio.errors import ConfigError
from ztunnel_trio.mesh.document import MeshDocument, read_local
from ztunnel_trio.mesh.entries import AddressEntry, ServiceEntry, WorkloadEntry, workload_entry
from ztunnel_trio.mesh.mesh import Batch, Mesh
from ztunnel_trio.model.service import HealthPolicy, LoadBalancer, LoadBalancingMode
from ztunnel_trio.model.workload import Workload
from ztunnel_trio.pb.xds_pb2 import DeltaDiscoveryResponse
from ztunnel_trio.wire.rejection import RejectedResource
from ztunnel_trio.xds.address import read_address, read_workloads
from ztunnel_trio.xds.policy import read_policy


def recorded(name: str) -> list[bytes]:
    answer = DeltaDiscoveryResponse.FromString((DATA / name).read_bytes())
    return [each.resource.value for each in answer.resources]


ADDRESSES, POLICIES = recorded("istiod_address.bin"), recorded("istiod_authorization.bin")


@st.composite
def damaged(draw: st.DrawFn, payloads: Sequence[bytes]) -> bytes:
    """A real payload with some bytes replaced, inserted or cut."""
    data = bytearray(draw(st.sampled_from(payloads)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        data[at : at + draw(st.integers(0, 3))] = draw(st.binary(max_size=3))
    return bytes(data)


@settings(max_examples=300)
@given(st.binary(max_size=200) | damaged(ADDRESSES))
@example(b"")
def test_any_bytes_are_an_address_or_refused(payload: bytes) -> None:
    entry = read_address("any/name", payload)
    if isinstance(entry, RejectedResource):
        assert entry.resource == "any/name"
        return
    mesh = Mesh()
    mesh.apply(Batch(addresses=[entry]))
    if isinstance(entry, WorkloadEntry):
        assert mesh.workload(entry.uid) == workload_of(entry)
        mesh.apply(Batch(removed_addresses=[entry.uid]))
    else:
        assert mesh.service(entry.service.key) == entry.service


WORKLOADS = [payload for payload in ADDRESSES if isinstance(read_address("", payload), WorkloadEntry)]


@settings(max_examples=300)
@given(
    st.lists(
        st.sampled_from(WORKLOADS) | damaged(WORKLOADS) | st.sampled_from(ADDRESSES), min_size=1, max_size=3
    )
)
def test_the_short_way_reads_what_the_long_way_reads_or_nothing(payloads: list[bytes]) -> None:
    group = DeltaDiscoveryResponse(type_url="behind the resources")
    for number, payload in enumerate(payloads):
        group.resources.add(name=f"name {number}", version=f"v{number}").resource.value = payload

    arrived = read_workloads(group.SerializeToString())

    assert arrived or not all(payload in WORKLOADS for payload in payloads)
    for number, one in enumerate(arrived):
        assert (one.name, one.version) == (f"name {number}", f"v{number}")
        assert one.entry == read_address(one.name, payloads[number])
        assert one.payload_bytes == len(payloads[number]) or payloads[number] not in WORKLOADS
    assert len(arrived) in (0, len(payloads))


@settings(max_examples=200)
@given(st.binary(max_size=200))
def test_the_short_way_takes_any_bytes(group: bytes) -> None:
    assert read_workloads(group) == []


@settings(max_examples=200)
@given(st.binary(max_size=200) | damaged(POLICIES))
def test_any_bytes_are_a_policy_or_refused(payload: bytes) -> None:
    entry = read_policy("any/name", payload)

    assert (entry.resource if isinstance(entry, RejectedResource) else entry.key) == "any/name"


@settings(max_examples=200)
@given(st.text(max_size=60) | st.text(alphabet="{}[]:,-!&*'\"\n ab01#|>?%@`", max_size=60))
def test_any_text_is_a_document_or_refused(text: str) -> None:
    try:
        document = read_local(text)
    except ConfigError as error:
        assert str(error)
    else:
        assert isinstance(document, MeshDocument)


KEYS = ("ns/a", "ns/b", "other/a")
ALL = LoadBalancer((), LoadBalancingMode.STANDARD, HealthPolicy.ALLOW_ALL)

PODS = st.builds(
    lambda uid, ip, keys, healthy, node: pod(
        uid, f"10.0.0.{ip}", services=sorted(keys), healthy=healthy, node=node, name=uid
    ),
    st.sampled_from("uvwx"),
    st.integers(1, 3),
    st.frozensets(st.sampled_from(KEYS)),
    st.booleans(),
    st.sampled_from(["n1", "n2"]),
)
SERVICES = st.builds(
    lambda name, vip, everybody: service(name, f"10.1.0.{vip}", load_balancer=ALL if everybody else None),
    st.sampled_from(KEYS),
    st.integers(1, 2),
    st.booleans(),
)
NAMES = st.sampled_from([*"uvwx", *KEYS])


@dataclass
class Reference:
    """The rule, written down plainly: what was said last, and endpoints that follow from it."""

    workloads: dict[str, Workload] = field(default_factory=dict)
    services: dict[str, ServiceEntry] = field(default_factory=dict)

    def put(self, entry: AddressEntry) -> None:
        if isinstance(entry, ServiceEntry):
            self.services[str(entry.service.key)] = entry
        else:
            self.workloads[entry.uid] = workload_of(entry)

    def endpoints(self, name: str) -> set[str]:
        known = self.services.get(name)
        return {
            each.uid
            for each in self.workloads.values()
            if name in map(str, each.services)
            and (known is None or known.service.allows_unhealthy or each.health.value == "Healthy")
        }

    def remove(self, name: str) -> None:
        if name in self.workloads:
            del self.workloads[name]
        elif "/" in name:
            self.services.pop(name, None)


@settings(max_examples=200)
@given(st.lists(PODS | SERVICES | NAMES, max_size=25))
def test_the_mesh_is_what_the_rules_say_after_any_history(history: list[AddressEntry | str]) -> None:
    mesh, reference = Mesh(local_node="n1"), Reference()
    for event in history:
        if isinstance(event, str):
            mesh.apply(Batch(removed_addresses=[event]))
            reference.remove(event)
        else:
            mesh.apply(Batch(addresses=[event]))
            reference.put(event)

    assert {each.uid: each for each in mesh.workloads()} == reference.workloads
    assert {str(each.key) for each in mesh.services()} == set(reference.services)
    for name in KEYS:
        uids = reference.endpoints(name)
        staged = {str(each): set(endpoints) for each, endpoints in mesh.without_service()}
        if name in reference.services:
            assert set(mesh.endpoints(key(name))) == uids
        else:
            assert staged.get(name, set()) == uids
    for workload in reference.workloads.values():
        assert mesh.local_workload(workload.info) == (workload if workload.node == "n1" else None)

    for uid in reference.workloads:
        mesh.apply(Batch(removed_addresses=[uid]))
    for name in reference.services:
        mesh.apply(Batch(removed_addresses=[name]))
    assert not mesh._services._by_key
    assert not mesh._workloads._by_address
    assert len(mesh._workloads._kinds) == len(mesh._workloads._localities) == 0


@settings(max_examples=100)
@given(PODS)
def test_an_entry_made_of_its_value_is_the_same(entry: WorkloadEntry) -> None:
    assert workload_of(workload_entry(workload_of(entry))) == workload_of(entry)
