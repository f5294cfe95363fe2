"""The stand-in control plane over real TLS and gRPC on loopback, and the certificate service."""

import socket
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from tests.fakes.trio_test import trio_test
from ztunnel_trio.control import grpc
from ztunnel_trio.facts.grpc import GrpcCode
from ztunnel_trio.facts.network import ADDRESS_TYPE, AUTHORIZATION_TYPE
from ztunnel_trio.lab.ca import CA_PATH, Status
from ztunnel_trio.lab.istiod import ADS_PATH, Istiod
from ztunnel_trio.lab.pki import Authority, uri_names
from ztunnel_trio.lab.resources import Stored, policy, service, stored, workload
from ztunnel_trio.pb.messages.google.protobuf import Struct, Value
from ztunnel_trio.pb.messages.istio.v1.auth import IstioCertificateRequest, IstioCertificateResponse
from ztunnel_trio.pb.xds_pb2 import DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node
from ztunnel_trio.pb.xds_pb2 import Status as XdsStatus

NODE_ID = "ztunnel~10.88.1.10~ztunnel-1.istio-system~istio-system.svc.cluster.local"
WEB = "spiffe://cluster.local/ns/default/sa/web"


class Loopback:
    """A place to listen that needs no namespace."""

    def listener(self, port: int) -> socket.socket:
        sock = socket.socket()
        sock.bind(("127.0.0.1", port))
        sock.listen()
        return sock


@dataclass
class Proxy:
    """A client's view of one stream."""

    call: grpc.CallStream
    received: list[DeltaDiscoveryResponse] = field(default_factory=list)

    async def ask(self, type_url: str = ADDRESS_TYPE, **fields: object) -> None:
        node = Node(id=NODE_ID)
        node.metadata.update({"NODE_NAME": "node-1"})
        request = DeltaDiscoveryRequest(node=node, type_url=type_url, **fields)  # type: ignore[arg-type]
        await self.call.send(request.SerializeToString())

    async def hear(self) -> DeltaDiscoveryResponse:
        with trio.fail_after(5):
            raw = await self.call.receive()
        assert raw is not None
        return DeltaDiscoveryResponse.FromString(raw)

    async def answer(self, response: DeltaDiscoveryResponse, error: str | None = None) -> None:
        request = DeltaDiscoveryRequest(type_url=response.type_url, response_nonce=response.nonce)
        if error is not None:
            request.error_detail.CopyFrom(XdsStatus(code=3, message=error))
        await self.call.send(request.SerializeToString())


@asynccontextmanager
async def running(root: Authority, istiod: Istiod) -> AsyncGenerator[grpc.Channel, None]:
    async with grpc.open_control_loop(), trio.open_nursery() as nursery:
        await nursery.start(lambda *, task_status: istiod.run(Loopback(), port=0, task_status=task_status))
        assert istiod.served is not None
        der = x509.load_pem_x509_certificate(root.root_pem.encode()).public_bytes(Encoding.DER)
        target = grpc.Target(host="localhost", port=istiod.served.port)
        async with grpc.open_channel(target, grpc.PemRoots((der,))) as channel:
            yield channel
        await istiod.stop()
        nursery.cancel_scope.cancel(reason="the test is over")


def names(response: DeltaDiscoveryResponse) -> list[str]:
    return [resource.name for resource in response.resources]


async def opened(channel: grpc.Channel, metadata: Mapping[str, str] | None = None) -> Proxy:
    return Proxy(await channel.open_stream(ADS_PATH, metadata or {}))


def mesh() -> Sequence[Stored]:
    web = workload(
        "web", addresses=["10.88.16.10"], node="node-1", services={"default/web.local": {80: 8080}}
    )
    far = workload("far", addresses=["10.88.16.11"], node="node-2")
    return [
        stored(web),
        stored(far),
        stored(service("web.local", addresses=["10.96.0.10"], ports={80: 8080})),
    ]


@trio_test
async def test_the_first_answer_holds_what_is_new_and_names_what_is_gone() -> None:
    root = Authority()
    istiod = Istiod(root)
    istiod.put(*mesh())
    async with running(root, istiod) as channel:
        proxy = await opened(channel)
        known = {mesh()[0].name: mesh()[0].version, mesh()[1].name: "old", "gone": "1"}
        await proxy.ask(initial_resource_versions=known)
        response = await proxy.hear()

        assert names(response) == [mesh()[1].name, "default/web.local"]
        assert list(response.removed_resources) == ["gone"]
        assert all(len(resource.version) == 16 for resource in response.resources)
        assert response.nonce.startswith(response.system_version_info[:10])


@trio_test
async def test_policies_have_no_version_and_always_come_again() -> None:
    root = Authority()
    istiod = Istiod(root)
    istiod.put(policy("p"))
    async with running(root, istiod) as channel:
        proxy = await opened(channel)
        await proxy.ask(AUTHORIZATION_TYPE, initial_resource_versions={"default/p": ""})
        response = await proxy.hear()

        assert names(response) == ["default/p"]
        assert response.resources[0].version == ""


@trio_test
async def test_a_push_waits_for_the_answers_and_reports_refusals() -> None:
    root = Authority()
    istiod = Istiod(root)
    async with running(root, istiod) as channel, trio.open_nursery() as nursery:
        proxy = await opened(channel)
        await proxy.ask()
        await proxy.answer(await proxy.hear())

        async def refuse() -> None:
            await proxy.answer(await proxy.hear(), "bad resource")

        nursery.start_soon(refuse)
        [answer] = await istiod.push(workload("late"))

        assert (answer.is_ack, answer.error) == (False, "bad resource")
        assert len(istiod.streams[0].nacks) == 1


@trio_test
async def test_a_pushed_service_brings_its_workloads() -> None:
    root = Authority()
    istiod = Istiod(root)
    istiod.put(*mesh())
    async with running(root, istiod) as channel:
        proxy = await opened(channel)
        await proxy.ask()
        await proxy.hear()
        istiod.tell(service("web.local", addresses=["10.96.0.11"], ports={80: 8080}))

        assert names(await proxy.hear()) == ["default/web.local", mesh()[0].name]


@trio_test
async def test_on_demand_streams_get_their_node_and_what_they_ask_for() -> None:
    root = Authority()
    istiod = Istiod(root)
    istiod.put(*mesh())
    async with running(root, istiod) as channel:
        proxy = await opened(channel)
        await proxy.ask(resource_names_subscribe=["*"], resource_names_unsubscribe=["*"])
        local = await proxy.hear()
        await proxy.ask(resource_names_subscribe=["/10.88.16.11", "/10.9.9.9"])
        found = await proxy.hear()

        assert names(local) == [mesh()[0].name]
        assert names(found) == [mesh()[1].name]
        assert list(found.resources[0].aliases) == ["/10.88.16.11"]
        assert list(found.removed_resources) == ["/10.9.9.9"]
        istiod.tell(workload("stranger", addresses=["10.88.16.12"], node="node-2"))
        istiod.tell(workload("neighbour", addresses=["10.88.16.13"], node="node-1"))
        assert names(await proxy.hear()) == ["Kubernetes//Pod/default/neighbour"]


@trio_test
async def test_withheld_answers_come_when_released() -> None:
    root = Authority()
    istiod = Istiod(root)
    istiod.put(*mesh())
    istiod.held.add(ADDRESS_TYPE)
    async with running(root, istiod) as channel:
        proxy = await opened(channel)
        await proxy.ask()
        await istiod.wait_for(lambda: bool(istiod.live and istiod.live[0].types))
        istiod.release(ADDRESS_TYPE)

        assert len((await proxy.hear()).resources) == 3


@pytest.mark.parametrize("status", [None, Status(GrpcCode.UNAVAILABLE, "transport is closing")])
@trio_test
async def test_a_stream_can_be_cut(status: Status | None) -> None:
    root = Authority()
    istiod = Istiod(root)
    async with running(root, istiod) as channel:
        proxy = await opened(channel)
        await proxy.ask()
        await proxy.hear()
        istiod.cut(status)

        with trio.fail_after(5):
            try:
                assert await proxy.call.receive() is None
                assert status is None
            except grpc.GrpcFailed as failed:
                assert status is None or failed.code == status.code
        await istiod.wait_for(lambda: not istiod.live)


@pytest.mark.parametrize(
    ("metadata", "code"),
    [
        ({}, GrpcCode.UNAUTHENTICATED),
        ({"authorization": "Bearer wrong"}, GrpcCode.UNAUTHENTICATED),
        ({"authorization": "Bearer right"}, None),
    ],
)
@trio_test
async def test_the_token_is_checked(metadata: Mapping[str, str], code: GrpcCode | None) -> None:
    root = Authority()
    istiod = Istiod(root, token="right")
    async with running(root, istiod) as channel:
        proxy = await opened(channel, metadata)
        try:
            await proxy.ask()
            await proxy.hear()
        except grpc.GrpcFailed as failed:
            assert failed.code == code
        else:
            assert code is None


@trio_test
async def test_a_broken_resource_is_sent_as_it_is() -> None:
    root = Authority()
    istiod = Istiod(root)
    istiod.related = False
    istiod.put(Stored(ADDRESS_TYPE, "broken", "1", b"\xff\xff"))
    async with running(root, istiod) as channel:
        proxy = await opened(channel)
        await proxy.ask()

        assert (await proxy.hear()).resources[0].resource.value == b"\xff\xff"


# ---------------------------------------------------------------- certificates


def request_for(identity: str | None, key: ec.EllipticCurvePrivateKey, lifetime: int = 3600) -> bytes:
    csr = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    metadata = None
    if identity is not None:
        metadata = Struct(fields={"ImpersonatedIdentity": Value(string_value=identity)})
    pem = csr.public_bytes(serialization.Encoding.PEM).decode()
    return bytes(IstioCertificateRequest(csr=pem, validity_duration=lifetime, metadata=metadata))


async def certified(
    channel: grpc.Channel, identity: str | None = WEB, metadata: Mapping[str, str] | None = None
) -> list[str]:
    key = ec.generate_private_key(ec.SECP256R1())
    with trio.fail_after(5):
        raw = await channel.call(
            CA_PATH, request_for(identity, key), {"clusterid": "Kubernetes", **(metadata or {})}
        )
    return list(IstioCertificateResponse().parse(raw).cert_chain)


@trio_test
async def test_a_certificate_names_who_was_asked_for_and_brings_its_chain() -> None:
    root = Authority()
    istiod = Istiod(root, authority=root.intermediate())
    async with running(root, istiod) as channel:
        leaf, intermediate, roots = await certified(channel)

        assert uri_names(leaf) == [WEB]
        assert intermediate == istiod.ca.authority.intermediates_pem[0]
        assert roots == root.root_pem
        assert istiod.ca.count(WEB) == 1
        assert istiod.ca.calls[0].leaf_pem == leaf


@trio_test
async def test_the_knobs_of_the_certificate_service() -> None:
    root = Authority()
    istiod = Istiod(root)
    async with running(root, istiod) as channel:
        istiod.ca.identity_instead = "spiffe://cluster.local/ns/default/sa/other"
        assert uri_names((await certified(channel))[0]) == ["spiffe://cluster.local/ns/default/sa/other"]
        istiod.ca.identity_instead = None
        istiod.ca.refuse_for[WEB] = Status(GrpcCode.UNAVAILABLE, "later")
        with pytest.raises(grpc.BadStatus):
            await certified(channel)
        del istiod.ca.refuse_for[WEB]
        istiod.ca.lifetime = 10
        certificate = x509.load_pem_x509_certificate((await certified(channel))[0].encode())
        assert (certificate.not_valid_after_utc - certificate.not_valid_before_utc).total_seconds() == 130
        istiod.ca.alter = lambda chain: chain[:1]
        assert len(await certified(channel)) == 1


@trio_test
async def test_a_hanging_call_ends_when_released() -> None:
    root = Authority()
    istiod = Istiod(root)
    istiod.ca.hang = True
    async with running(root, istiod) as channel, trio.open_nursery() as nursery:
        nursery.start_soon(certified, channel)
        await trio.sleep(0.05)
        assert istiod.ca.calls == []
        istiod.ca.release()

    assert istiod.ca.count(WEB) == 1


@trio_test
async def test_impersonation_needs_the_clusters_name() -> None:
    root = Authority()
    istiod = Istiod(root)
    async with running(root, istiod) as channel:
        key = ec.generate_private_key(ec.SECP256R1())
        with pytest.raises(grpc.BadStatus, match="impersonation"):
            await channel.call(CA_PATH, request_for(WEB, key), {})
        with pytest.raises(grpc.BadStatus, match="TTL"):
            await channel.call(CA_PATH, request_for(WEB, key, 91 * 86400), {"clusterid": "Kubernetes"})
