import base64
import json
from datetime import UTC, datetime
from ipaddress import ip_address

import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from trustme import CA

from tests.fakes.trio_test import trio_test
from ztunnel_trio.admin.dump import (
    SLICE_ITEMS,
    ConfigDump,
    Listed,
    Whole,
    certificate_document,
    certificates_part,
    mesh_parts,
    moment,
    sorted_keys,
    workload_state,
)
from ztunnel_trio.certs.entries import CertificateState
from ztunnel_trio.mesh.document import Json, read_local
from ztunnel_trio.mesh.entries import PolicyEntry, ServiceEntry, workload_entry
from ztunnel_trio.mesh.mesh import Batch, Mesh
from ztunnel_trio.model.address import NetworkAddress, SocketAddress
from ztunnel_trio.model.certificate import WorkloadCertificate, load_certificate
from ztunnel_trio.model.certificate_key import AttestedPod, CertificateKey
from ztunnel_trio.model.connection import InboundConnection
from ztunnel_trio.model.identity import SpiffeId
from ztunnel_trio.model.policy import Action, Authorization, PolicyScope
from ztunnel_trio.model.service import Service
from ztunnel_trio.model.workload import OutboundProtocol, Workload, WorkloadInfo
from ztunnel_trio.proxy.registry import InboundEntry, OutboundEntry
from ztunnel_trio.proxy.workload_proxies import Placement, PlacementState

ITEMS: dict[str, Json] = {f"key{n:03}": {"z": n, "a": ["\n", {}], "ü": []} for n in range(3 * SLICE_ITEMS)}


@trio_test
async def test_the_text_is_json_with_sorted_keys_and_two_spaces() -> None:
    dump = ConfigDump(
        {
            "version": Whole(lambda: {"b": "ü\n\u2028", "a": None}),
            "empty": Whole(dict),
            "items": Listed(lambda: reversed(ITEMS), ITEMS.__getitem__),
            "none": Listed(list, ITEMS.__getitem__),
            "one": Listed(lambda: ["key000"], ITEMS.__getitem__),
        }
    )

    text = await dump.text()

    whole = json.loads(text)
    assert text == json.dumps(whole, indent=2, ensure_ascii=False, sort_keys=True)
    assert [item["z"] for item in whole["items"]] == list(range(3 * SLICE_ITEMS))
    assert (whole["none"], whole["empty"]) == ([], {})


@trio_test
async def test_others_run_while_a_large_dump_is_made() -> None:
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        await ConfigDump({"items": Listed(lambda: ITEMS, ITEMS.__getitem__)}).text()
        nursery.cancel_scope.cancel()

    assert turns >= 3


@pytest.mark.parametrize("gone", ["key000", "key001", "key002"])
def test_what_goes_away_meanwhile_is_left_out(gone: str) -> None:
    def item(key: str) -> Json:
        return None if key == gone else key

    text = trio.run(ConfigDump({"items": Listed(lambda: sorted(ITEMS)[:3], item)}).text)

    assert len(json.loads(text)["items"]) == 2


@trio_test
async def test_an_empty_dump_is_an_empty_object() -> None:
    assert await ConfigDump({}).text() == "{}"


@trio_test
async def test_a_small_part_that_fails_fails_the_dump_before_it_begins() -> None:
    def fail() -> Json:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await ConfigDump({"a": Whole(fail)}).begin()


@trio_test
async def test_many_keys_are_sorted_in_runs() -> None:
    keys = [f"{(n * 7919) % 10_000:05}" for n in range(10_000)]

    assert list(await sorted_keys(keys)) == sorted(keys)


@trio_test
async def test_an_empty_mesh_has_every_part() -> None:
    text = await ConfigDump(mesh_parts(Mesh())).text()

    assert json.loads(text) == {
        "policies": [],
        "services": [],
        "stagedServices": {},
        "workloads": [],
    }


@trio_test
async def test_a_policy_is_dumped_under_whatever_name_it_has() -> None:
    mesh = Mesh()
    body = Authorization(name="one", namespace="ns", scope=PolicyScope.GLOBAL, action=Action.ALLOW)
    mesh.apply(Batch(policies=[PolicyEntry("no-slash", body)]))

    dumped = json.loads(await ConfigDump(mesh_parts(mesh)).text())

    assert [each["name"] for each in dumped["policies"]] == ["one"]


@trio_test
async def test_addresses_claimed_by_several_are_in_sight() -> None:
    mesh = Mesh()
    vip = NetworkAddress("", ip_address("10.0.0.1"))
    for namespace in ("b", "a"):
        service = Service(namespace=namespace, hostname="x.example", vips=(vip,))
        mesh.apply(Batch(addresses=[ServiceEntry(service)]))

    dumped = json.loads(await ConfigDump(mesh_parts(mesh)).text())

    assert dumped["addressClashes"] == {"services": {"/10.0.0.1": ["a/x.example", "b/x.example"]}}


LOCAL = """
workloads:
  - {uid: b, name: b, namespace: shop, workloadIps: [10.0.0.2], services: {shop/cart.example: {80: 8080}}}
  - {uid: a, name: a, namespace: shop, workloadIps: [10.0.0.1], services: {shop/later.example: {80: 80}}}
services:
  - {name: cart, namespace: shop, hostname: cart.example, vips: [/10.1.0.1], ports: {80: 80}}
  - {name: cart, namespace: aside, hostname: cart.example, vips: [/10.1.0.2], ports: {80: 80}}
policies:
  - {name: p, namespace: shop, scope: Namespace, action: Deny, dryRun: false, rules: []}
"""


@trio_test
async def test_a_mesh_is_dumped_in_the_order_of_its_keys() -> None:
    document, mesh = read_local(LOCAL), Mesh()
    entries = [workload_entry(workload) for workload in document.workloads]
    policies = [PolicyEntry(policy.key, policy) for policy in document.policies]
    mesh.apply(Batch(addresses=[*entries, *document.services], policies=policies))

    found = json.loads(await ConfigDump(mesh_parts(mesh)).text())

    assert [workload["uid"] for workload in found["workloads"]] == ["a", "b"]
    assert [(s["hostname"], s["namespace"]) for s in found["services"]] == [
        ("cart.example", "aside"),
        ("cart.example", "shop"),
    ]
    assert list(found["services"][1]["endpoints"]) == ["b"]
    assert list(found["stagedServices"]) == ["shop/later.example"]
    assert [policy["name"] for policy in found["policies"]] == ["p"]


def issued(identity: SpiffeId) -> WorkloadCertificate:
    authority = CA()
    leaf = authority.issue_cert("client.example")
    der = load_pem(leaf.cert_chain_pems[0].bytes())
    parsed = load_certificate(der)
    return WorkloadCertificate(
        identity=identity,
        leaf_der=der,
        intermediates_der=(),
        roots_der=(load_pem(authority.cert_pem.bytes()),),
        key_pem=leaf.private_key_pem.bytes(),
        not_before=parsed.not_valid_before_utc,
        not_after=parsed.not_valid_after_utc,
        serial=parsed.serial_number,
    )


def load_pem(pem: bytes) -> bytes:
    return x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER)


CLIENT = SpiffeId("cluster.local", "default", "client")
OTHER = SpiffeId("cluster.local", "default", "other")


def test_a_pod_with_a_certificate_of_its_own_is_named() -> None:
    key = CertificateKey(CLIENT, AttestedPod("u-1", WorkloadInfo("client-1", "default", "client")))

    document = certificate_document(CertificateState(key, "Initializing", None))

    assert document["pod"] == {  # type: ignore[call-overload, index]
        "uid": "u-1",
        "name": "client-1",
        "namespace": "default",
        "serviceAccount": "client",
    }


def test_a_certificate_shows_its_chain_leaf_first_and_its_roots_apart() -> None:
    held = issued(CLIENT)

    document = json.loads(
        json.dumps(certificate_document(CertificateState(CertificateKey(CLIENT), "Available", held)))
    )

    (leaf,), (root,) = document.pop("certChain"), document.pop("rootCerts")
    assert document == {"identity": "spiffe://cluster.local/ns/default/sa/client", "state": "Available"}
    pem = base64.b64decode(leaf.pop("pem"))
    assert leaf == {
        "serialNumber": str(held.serial),
        "validFrom": moment(held.not_before),
        "expirationTime": moment(held.not_after),
    }
    assert load_pem(pem) == held.leaf_der
    assert max(map(len, pem.splitlines()[1:-1])) == 60
    assert pem.endswith(b"-----END CERTIFICATE-----\n")
    assert load_pem(base64.b64decode(root["pem"])) == held.roots_der[0]


@trio_test
async def test_certificates_are_sorted_by_identity_and_empty_unless_available() -> None:
    class Room:
        def dump(self) -> list[CertificateState]:
            text = "Unavailable: the identity is no longer needed"
            return [
                CertificateState(CertificateKey(OTHER), text, None),
                CertificateState(CertificateKey(CLIENT), "Initializing", None),
            ]

    found = json.loads(await ConfigDump({"certificates": certificates_part(Room())}).text())["certificates"]

    assert found == [
        {"identity": str(CLIENT), "state": "Initializing", "certChain": [], "rootCerts": []},
        {
            "identity": str(OTHER),
            "state": "Unavailable: the identity is no longer needed",
            "certChain": [],
            "rootCerts": [],
        },
    ]


def test_moments_are_utc_seconds() -> None:
    assert moment(datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC)) == "2026-01-02T03:04:05Z"


INFO = WorkloadInfo("client", "default", "sa")
SHOWN = {"name": "client", "namespace": "default", "serviceAccount": "sa"}


def up() -> Placement:
    placement = Placement(INFO, None)
    placement.state = PlacementState.UP
    return placement


def test_a_pod_that_is_not_up_has_no_connections() -> None:
    assert workload_state({"a": INFO, "b": Placement(INFO, None)}) == {
        "a": {"state": "Pending", "info": SHOWN},
        "b": {"state": "Pending", "info": SHOWN},
    }


def test_the_proxys_own_listener_is_no_pod() -> None:
    assert workload_state({"own": Placement(INFO, None, is_own=True)}) == {}


def test_open_connections_are_listed() -> None:
    placement = up()
    source, pod = SocketAddress.parse("10.0.0.1:40000"), SocketAddress.parse("10.0.0.2:8080")
    plain_key = InboundConnection(source=source, destination=pod, identity=None)
    tls_key = InboundConnection(source=source, destination=pod, identity=CLIENT)
    held = Workload()
    for key, host in ((plain_key, None), (tls_key, "server.default.svc"), (tls_key, "server.default.svc")):
        placement.registry.inbound.add(InboundEntry(key, held, host))
    placement.registry.outbound.add(
        OutboundEntry(source, pod, SocketAddress(ip_address("fd77::1"), 15008), OutboundProtocol.HBONE)
    )

    document = workload_state({"uid": placement})

    assert document == {
        "uid": {
            "state": "Up",
            "info": SHOWN,
            "connections": {
                "inbound": [
                    {
                        "src": "10.0.0.1:40000",
                        "originalDst": None,
                        "actualDst": "10.0.0.2:8080",
                        "protocol": "TCP",
                    },
                    {
                        "src": "10.0.0.1:40000",
                        "originalDst": "server.default.svc",
                        "actualDst": "10.0.0.2:8080",
                        "protocol": "HBONE",
                    },
                ],
                "outbound": [
                    {
                        "src": "10.0.0.1:40000",
                        "originalDst": "10.0.0.2:8080",
                        "actualDst": "[fd77::1]:15008",
                        "protocol": "HBONE",
                    }
                ],
            },
        }
    }
    assert "connections" not in str(workload_state({"uid": placement}, with_connections=False))
