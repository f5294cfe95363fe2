"""The discovery stream and the CA client against a gRPC server on loopback that does as each test says."""

import gc
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path

import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from tests.fakes.cancellation import cancelled_everywhere_now
from tests.fakes.pki import Authority
from tests.fakes.trio_test import trio_test
from ztunnel_trio.certs.signed import SignedCertificates
from ztunnel_trio.control import grpc
from ztunnel_trio.control.ads_client import AdsClient, AdsSettings
from ztunnel_trio.control.ca_client import CREATE_CERTIFICATE_PATH, CaClient, CaSettings
from ztunnel_trio.control.credentials import Caller
from ztunnel_trio.control.grpc import BadStatus, Served, ServerCall, Target
from ztunnel_trio.errors import Unavailable
from ztunnel_trio.facts.grpc import GrpcCode
from ztunnel_trio.facts.network import ADDRESS_TYPE, AUTHORIZATION_TYPE
from ztunnel_trio.live_mesh import LiveMesh
from ztunnel_trio.mesh.mesh import Mesh
from ztunnel_trio.model.address import NetworkAddress
from ztunnel_trio.model.certificate_key import CertificateKey
from ztunnel_trio.model.identity import SpiffeId
from ztunnel_trio.model.source import FromFile, Literal
from ztunnel_trio.pb import authorization_pb2, workload_pb2, xds_pb2
from ztunnel_trio.pb.messages.istio.v1.auth import IstioCertificateRequest, IstioCertificateResponse
from ztunnel_trio.wire.ads import DELTA_PATH, NodeFacts

ROOT = Authority.root("root")
SLEEP = SpiffeId("cluster.local", "default", "sleep")
NODE = NodeFacts(instance_ip="10.0.0.9", pod_name="zt", pod_namespace="istio-system", node_name="node1")
Request = xds_pb2.DeltaDiscoveryRequest
Handler = Callable[[ServerCall], Awaitable[None]]


@pytest.fixture(autouse=True)
def thawed() -> Generator[None, None, None]:
    """Give the collector back what a large response froze: later imports look for referrers."""
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a server certificate, its root and a token."""
    found = tmp_path_factory.mktemp("control")
    chain, key = ROOT.server("localhost", "127.0.0.1")
    (found / "chain.pem").write_text(chain)
    (found / "key.pem").write_bytes(key)
    (found / "root.pem").write_text(ROOT.pem)
    (found / "token").write_text("secret")
    return found


def caller(place: Path) -> Caller:
    return Caller(token=FromFile(str(place / "token")), cluster_id="c1", extra_headers={"x-extra": "1"})


@asynccontextmanager
async def serving(place: Path, handlers: Mapping[str, Handler]) -> AsyncGenerator[Served, None]:
    context = grpc.server_context(str(place / "chain.pem"), str(place / "key.pem"))
    async with grpc.open_control_loop(), trio.open_nursery() as nursery:

        async def start(*, task_status: "trio.TaskStatus[Served]") -> None:
            await grpc.serve(handlers, ssl_context=context, task_status=task_status)

        served: Served = await nursery.start(start)
        yield served
        nursery.cancel_scope.cancel()


@dataclass(eq=False)
class Istiod:
    """Takes streams one at a time: `requests` are what the client says, `answers` what it is told."""

    metadata: list[dict[str, str]] = field(default_factory=list)
    streams: int = 0

    def __post_init__(self) -> None:
        self.requests_in, self.requests = trio.open_memory_channel[xds_pb2.DeltaDiscoveryRequest](100)
        self.answers, self.answers_out = trio.open_memory_channel[
            xds_pb2.DeltaDiscoveryResponse | BadStatus | None
        ](100)

    async def serve(self, call: ServerCall) -> None:
        self.streams += 1
        self.metadata.append(call.metadata)
        async with trio.open_nursery() as nursery:

            async def listen() -> None:
                while (message := await call.receive()) is not None:
                    self.requests_in.send_nowait(Request.FromString(message))

            nursery.start_soon(listen)
            ended: BadStatus | None = None
            while (answer := await self.answers_out.receive()) is not None:
                if isinstance(answer, BadStatus):
                    ended = answer
                    break
                await call.send(answer.SerializeToString())
            nursery.cancel_scope.cancel()
        if ended is not None:
            raise ended

    async def next_request(self) -> xds_pb2.DeltaDiscoveryRequest:
        with trio.fail_after(5):
            return await self.requests.receive()

    async def first_requests(self) -> tuple[xds_pb2.DeltaDiscoveryRequest, xds_pb2.DeltaDiscoveryRequest]:
        return await self.next_request(), await self.next_request()

    def answer(
        self, *resources: xds_pb2.Resource, type_url: str = ADDRESS_TYPE, removed: tuple[str, ...] = ()
    ) -> None:
        self.answers.send_nowait(
            xds_pb2.DeltaDiscoveryResponse(
                type_url=type_url, nonce="n", resources=resources, removed_resources=removed
            )
        )


@dataclass(eq=False)
class Counts:
    """Metrics, as lists."""

    ends: list[str] = field(default_factory=list)
    messages: list[tuple[str, int]] = field(default_factory=list)

    def xds_termination(self, reason: str) -> None:
        self.ends.append(reason)

    def xds_message(self, url: str, size: int) -> None:
        self.messages.append((url, size))


def workload(name: str, address: str, version: str = "v1", aliases: tuple[str, ...] = ()) -> xds_pb2.Resource:
    message = workload_pb2.Address(
        workload=workload_pb2.Workload(
            uid=name, name=name, namespace="ns", addresses=[IPv4Address(address).packed], node="node1"
        )
    )
    return packed(name, message.SerializeToString(), version, aliases)


def policy(name: str) -> xds_pb2.Resource:
    namespace, _, short = name.partition("/")
    message = authorization_pb2.Authorization(name=short, namespace=namespace)
    return packed(name, message.SerializeToString(), "")


def packed(name: str, value: bytes, version: str, aliases: tuple[str, ...] = ()) -> xds_pb2.Resource:
    return xds_pb2.Resource(name=name, version=version, aliases=aliases, resource={"value": value})


def at(address: str) -> NetworkAddress:
    return NetworkAddress("", IPv4Address(address))


@dataclass(eq=False)
class World:
    """A client that runs against an istiod."""

    istiod: Istiod
    live: LiveMesh
    client: AdsClient
    counts: Counts
    served: Served
    ready: trio.Event


@asynccontextmanager
async def synchronising(
    place: Path, settings: AdsSettings | None = None, root: Path | None = None
) -> AsyncGenerator[World, None]:
    istiod = Istiod()
    async with serving(place, {DELTA_PATH: istiod.serve}) as served, trio.open_nursery() as nursery:
        live, counts, ready = LiveMesh(Mesh(local_node="node1")), Counts(), trio.Event()
        client = AdsClient(
            live,
            Target(host="localhost", port=served.port),
            FromFile(str(root or place / "root.pem")),
            caller(place),
            NODE,
            metrics=counts,
            settings=settings,
            on_ready=ready.set,
        )
        nursery.start_soon(client.run)
        yield World(istiod, live, client, counts, served, ready)
        nursery.cancel_scope.cancel()


@trio_test
async def test_ready_means_that_the_mesh_has_both_types(place: Path) -> None:
    """ztunnel src/xds/client.rs, test_that_caches_are_warm_before_unblocked."""
    async with synchronising(place) as world:
        address, authorization = await world.istiod.first_requests()
        assert (address.type_url, authorization.type_url) == (ADDRESS_TYPE, AUTHORIZATION_TYPE)
        assert (
            address.node.id
            == authorization.node.id
            == "ztunnel~10.0.0.9~zt.istio-system~istio-system.svc.cluster.local"
        )
        world.istiod.answer(workload("uid1", "1.2.3.4"))
        world.istiod.answer(policy("ns/allow"), type_url=AUTHORIZATION_TYPE)

        with trio.fail_after(5):
            await world.ready.wait()

        found = world.live.mesh.workload_at(at("1.2.3.4"))
        assert found is not None
        assert found.uid == "uid1"
        assert world.live.mesh.policy_keys() == ["ns/allow"]
        for type_url in (ADDRESS_TYPE, AUTHORIZATION_TYPE):
            assert await world.istiod.next_request() == Request(type_url=type_url, response_nonce="n")
        assert [url for url, _ in world.counts.messages] == [ADDRESS_TYPE, AUTHORIZATION_TYPE]
        assert all(size > 0 for _, size in world.counts.messages)
        assert world.istiod.metadata[0]["authorization"] == "Bearer secret"
        assert (world.istiod.metadata[0]["clusterid"], world.istiod.metadata[0]["x-extra"]) == ("c1", "1")


@trio_test
async def test_a_reconnect_echoes_what_was_accepted(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    """ztunnel src/xds/client.rs, test_reconnect_echoes_retained_versions."""
    caplog.set_level(logging.DEBUG, "ztunnel::xds::client")
    async with synchronising(place) as world:
        address, authorization = await world.istiod.first_requests()
        assert not address.initial_resource_versions
        assert not authorization.initial_resource_versions
        world.istiod.answer(workload("foo0", "1.2.3.4", "0.0.1"), packed("bad", b"\xff", "9.9.9"))
        answer = await world.istiod.next_request()
        assert answer.error_detail.message.startswith("bad: decode: ")
        world.served.drop_connections()

        address, authorization = await world.istiod.first_requests()

        assert dict(address.initial_resource_versions) == {"foo0": "0.0.1"}
        assert not authorization.initial_resource_versions
        assert world.live.mesh.workload("foo0") is not None
        assert world.counts.ends == ["Reconnect"]
        assert "Stream established" in caplog.messages
        assert any(text.startswith("XDS client terminated: ") for text in caplog.messages)


@trio_test
async def test_an_aborted_stream_comes_back_and_removals_count(place: Path) -> None:
    """ztunnel src/xds/client.rs, test_add_abort_remove."""
    async with synchronising(place) as world:
        await world.istiod.first_requests()
        world.istiod.answer(workload("127.0.0.1", "127.0.0.1"))
        await world.istiod.next_request()
        world.istiod.answers.send_nowait(BadStatus(GrpcCode.ABORTED, "enough"))
        await world.istiod.first_requests()
        world.istiod.answer(removed=("127.0.0.1",))
        await world.istiod.next_request()

        assert world.live.mesh.workload("127.0.0.1") is None
        assert world.counts.ends == ["Error"]


@trio_test
async def test_a_stream_that_completes_is_opened_again_at_once(place: Path) -> None:
    async with synchronising(place) as world:
        await world.istiod.first_requests()
        world.istiod.answer()
        await world.istiod.next_request()
        world.istiod.answers.send_nowait(None)
        await world.istiod.first_requests()

        assert world.counts.ends == ["Complete"]


@trio_test
async def test_a_refusal_is_a_connection_error(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with synchronising(place) as world:
        await world.istiod.first_requests()
        world.istiod.answers.send_nowait(BadStatus(GrpcCode.UNAUTHENTICATED, "authentication failure"))
        await world.istiod.first_requests()

        assert world.counts.ends == ["ConnectionError"]
        assert (
            "XDS client connection error: gRPC connection error connecting to "
            f'https://localhost:{world.served.port}: status: Unauthenticated, message: "authentication '
            'failure" '
            "(hint: check the control plane logs for more information), retrying in 20ms" in caplog.messages
        )


@trio_test
async def test_a_missing_root_is_retried_with_patience(
    place: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "root.pem"
    async with synchronising(place, root=root) as world:
        began = trio.current_time()
        while len(world.counts.ends) < 4:  # noqa: ASYNC110  it counts, it cannot tell
            await trio.sleep(0.01)
        assert trio.current_time() - began >= 0.14  # 20, 40, 80 ms
        assert set(world.counts.ends) == {"Error"}
        root.write_text(ROOT.pem)
        await world.istiod.first_requests()

    assert any("No such file or directory (os error 2), retrying in 20ms" in text for text in caplog.messages)


@trio_test
async def test_an_unknown_type_is_acknowledged(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with synchronising(place) as world:
        await world.istiod.first_requests()
        world.istiod.answer(packed("a", b"x", "v"), type_url="type/Nonsense")

        assert await world.istiod.next_request() == Request(type_url="type/Nonsense", response_nonce="n")
        assert "unknown type: type/Nonsense" in caplog.messages


@trio_test
async def test_a_demand_returns_when_the_mesh_has_the_answer(place: Path) -> None:
    """ztunnel src/xds/client.rs, test_on_demand_cache_coherency."""
    async with synchronising(place, AdsSettings(on_demand=True)) as world:
        address, authorization = await world.istiod.first_requests()
        assert [*address.resource_names_subscribe, *address.resource_names_unsubscribe] == ["*", "*"]
        assert not authorization.resource_names_subscribe
        world.istiod.answer()
        await world.istiod.next_request()
        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(world.client.demand, "foo0")
            assert await world.istiod.next_request() == Request(
                type_url=ADDRESS_TYPE, resource_names_subscribe=["foo0"]
            )
            many = [
                workload(f"foo{number}", str(IPv4Address("1.0.0.1") + number)) for number in range(10_000)
            ]
            world.istiod.answer(*many)

        assert world.live.mesh.workload_at(at("1.0.0.1")) is not None


@trio_test
async def test_a_demand_is_answered_under_another_name_or_not_at_all(place: Path) -> None:
    async with synchronising(place, AdsSettings(on_demand=True, demand_seconds=0.3)) as world:
        await world.istiod.first_requests()
        world.istiod.answer()
        await world.istiod.next_request()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.client.demand, "/10.0.0.1")
            await world.istiod.next_request()
            world.istiod.answer(workload("uid", "10.0.0.1", aliases=("/10.0.0.1",)))
        await world.istiod.next_request()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.client.demand, "/10.0.0.2")
            await world.istiod.next_request()
            world.istiod.answer(removed=("/10.0.0.2",))
        await world.istiod.next_request()
        began = trio.current_time()
        await world.client.demand("/10.0.0.3")
        assert trio.current_time() - began >= 0.3


@trio_test
async def test_a_demand_made_without_a_stream_is_sent_when_there_is_one(place: Path) -> None:
    on_demand = AdsSettings(on_demand=True)
    async with synchronising(place, on_demand) as world, trio.open_nursery() as nursery:
        nursery.start_soon(world.client.demand, "foo0")
        await world.istiod.first_requests()
        world.istiod.answer()
        names = [await world.istiod.next_request() for _ in range(2)]
        assert ["foo0"] in [list(one.resource_names_subscribe) for one in names]
        world.istiod.answer(workload("foo0", "10.0.0.1"))


@trio_test
async def test_a_large_response_leaves_the_loop_free(place: Path) -> None:
    resources = [workload(f"uid{number}", str(IPv4Address("11.0.0.0") + number)) for number in range(20_000)]
    gaps: list[float] = []

    async def tick() -> None:
        last = time.thread_time()  # our own work, however busy the machine is
        while True:
            await trio.sleep(0.001)
            gaps.append(time.thread_time() - last)
            last = time.thread_time()

    async with synchronising(place) as world:
        await world.istiod.first_requests()
        message = xds_pb2.DeltaDiscoveryResponse(type_url=ADDRESS_TYPE, nonce="n", resources=resources)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tick)
            world.istiod.answers.send_nowait(message)
            await world.istiod.next_request()
            nursery.cancel_scope.cancel()
        assert len(list(world.live.mesh.workloads())) == 20_000

    assert sorted(gaps)[int(len(gaps) * 0.9)] < 0.05  # the fake istiod shares the loop


@trio_test
async def test_policies_that_vanished_while_away_are_removed(place: Path) -> None:
    async with synchronising(place) as world:
        await world.istiod.first_requests()
        world.istiod.answer(policy("ns/one"), policy("ns/two"), type_url=AUTHORIZATION_TYPE)
        await world.istiod.next_request()
        world.served.drop_connections()
        _, authorization = await world.istiod.first_requests()
        assert dict(authorization.initial_resource_versions) == {"ns/one": "", "ns/two": ""}
        world.istiod.answer(policy("ns/one"), type_url=AUTHORIZATION_TYPE, removed=("ns/two",))
        await world.istiod.next_request()

        assert world.live.mesh.policy_keys() == ["ns/one"]


# the CA ---------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Ca:
    """Signs what it is asked, or does what `behave` says first."""

    asked: list[IstioCertificateRequest] = field(default_factory=list)
    metadata: list[dict[str, str]] = field(default_factory=list)
    behave: Handler | None = None

    async def serve(self, call: ServerCall) -> None:
        message = await call.receive()
        assert message is not None
        request = IstioCertificateRequest.parse(message)
        self.asked.append(request)
        self.metadata.append(call.metadata)
        if self.behave is not None:
            await self.behave(call)
        key = x509.load_pem_x509_csr(request.csr.encode()).public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        name = str(SLEEP)
        if request.metadata is not None:
            name = request.metadata.fields["ImpersonatedIdentity"].string_value or ""
        names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(name)])
        now = datetime.now(UTC).replace(microsecond=0)
        leaf = ROOT.sign(key, names, now, now + timedelta(seconds=request.validity_duration), critical=True)
        chain = [leaf.public_bytes(Encoding.PEM).decode(), ROOT.pem]
        await call.send(bytes(IstioCertificateResponse(cert_chain=chain)))


def provider(
    place: Path, port: int, settings: CaSettings | None = None, token: FromFile | Literal | None = None
) -> SignedCertificates:
    who = Caller(token=token or FromFile(str(place / "token")), cluster_id="c1")
    client = CaClient(Target(host="localhost", port=port), FromFile(str(place / "root.pem")), who, settings)
    return SignedCertificates(client.sign, check_identity=(settings or CaSettings()).impersonate)


@trio_test
async def test_a_certificate_is_asked_for_by_impersonation_and_checked(place: Path) -> None:
    ca = Ca()
    async with serving(place, {CREATE_CERTIFICATE_PATH: ca.serve}) as served:
        got = await provider(place, served.port).fetch(CertificateKey(SLEEP))

    assert got.identity == SLEEP
    assert (ca.asked[0].validity_duration, ca.metadata[0]["authorization"]) == (86400, "Bearer secret")
    assert ca.metadata[0]["clusterid"] == "c1"


@trio_test
async def test_a_dedicated_proxy_asks_for_itself(place: Path) -> None:
    ca = Ca()
    async with serving(place, {CREATE_CERTIFICATE_PATH: ca.serve}) as served:
        got = await provider(place, served.port, CaSettings(impersonate=False, lifetime_seconds=60)).fetch(
            CertificateKey(SpiffeId("td", "x", "y"))
        )

    assert ca.asked[0].metadata is None
    assert ca.asked[0].validity_duration == 60
    assert got.identity == SLEEP


@trio_test
async def test_a_token_is_read_anew_for_every_call(place: Path, tmp_path: Path) -> None:
    ca, token = Ca(), tmp_path / "token"
    async with serving(place, {CREATE_CERTIFICATE_PATH: ca.serve}) as served:
        source = provider(place, served.port, token=FromFile(str(token)))
        texts: list[str] = []
        for content in (None, "", "one\n", "one", "two"):
            if content is not None:
                token.write_text(content)
            try:
                await source.fetch(CertificateKey(SLEEP))
            except Unavailable as error:
                texts.append(str(error))

    assert [one["authorization"] for one in ca.metadata] == ["Bearer one", "Bearer two"]
    assert texts == [
        f"signing gRPC error (Unknown error): token file {token}: No such file or directory (os error 2)",
        "signing gRPC error (Unknown error): token file exists, but was empty",
        "signing gRPC error (Unknown error): failed to parse header value: the token holds a line break or "
        "is not ASCII",
    ]


@trio_test
async def test_a_refusal_reads_as_operators_know_it(place: Path) -> None:
    async def refuse(_call: ServerCall) -> None:
        raise BadStatus(GrpcCode.UNAUTHENTICATED, "request authenticate failure")

    async with serving(place, {CREATE_CERTIFICATE_PATH: Ca(behave=refuse).serve}) as served:
        with pytest.raises(Unavailable) as caught:
            await provider(place, served.port).fetch(CertificateKey(SLEEP))

    assert str(caught.value) == (
        "signing gRPC error (The request does not have valid authentication credentials): "
        "request authenticate failure"
    )


@trio_test
async def test_a_connection_lost_under_a_call_is_tried_once_more(place: Path) -> None:
    ca = Ca()
    async with serving(place, {CREATE_CERTIFICATE_PATH: ca.serve}) as served:

        async def drop_once(_call: ServerCall) -> None:
            if len(ca.asked) == 1:
                served.drop_connections()
                await trio.sleep_forever()

        ca.behave = drop_once
        assert (await provider(place, served.port).fetch(CertificateKey(SLEEP))).identity == SLEEP

    assert len(ca.asked) == 2


@trio_test
async def test_a_silent_ca_is_given_up_at_the_deadline(place: Path) -> None:
    async def sleep(_call: ServerCall) -> None:
        await trio.sleep_forever()

    async with serving(place, {CREATE_CERTIFICATE_PATH: Ca(behave=sleep).serve}) as served:
        with pytest.raises(Unavailable, match=r"signing gRPC error \(Deadline expired before operation"):
            await provider(place, served.port, CaSettings(deadline_seconds=0.3)).fetch(CertificateKey(SLEEP))


@trio_test
async def test_no_ca_and_an_unknown_root_are_named(place: Path, tmp_path: Path) -> None:
    async with grpc.open_control_loop():
        with pytest.raises(
            Unavailable, match=r"\(Unknown error\): client error \(Connect\): tcp connect error: "
        ):
            await provider(place, 1).fetch(CertificateKey(SLEEP))
    (tmp_path / "root.pem").write_text(Authority.root("other").pem)
    (tmp_path / "token").write_text("secret")
    async with serving(place, {CREATE_CERTIFICATE_PATH: Ca().serve}) as served:
        with pytest.raises(Unavailable, match="invalid peer certificate: "):
            await provider(tmp_path, served.port).fetch(CertificateKey(SLEEP))
        (tmp_path / "root.pem").write_text(ROOT.pem)  # a rotated root is read by the next call
        await provider(tmp_path, served.port).fetch(CertificateKey(SLEEP))


@pytest.mark.parametrize(
    ("chain", "text"),
    [
        ([], f"chain returned from CA is empty for: {SLEEP}"),
        (["junk"], "failed to create CSR: certificate: no certificate"),
    ],
)
@trio_test
async def test_a_bad_chain_is_named(place: Path, chain: list[str], text: str) -> None:
    async def answer(call: ServerCall) -> None:
        await call.receive()
        await call.send(bytes(IstioCertificateResponse(cert_chain=chain)))

    async with serving(place, {CREATE_CERTIFICATE_PATH: answer}) as served:
        with pytest.raises(Unavailable) as caught:
            await provider(place, served.port).fetch(CertificateKey(SLEEP))

    assert str(caught.value) == text


@pytest.mark.parametrize("garbage", [b"\x0a\x01\xff", b"\x12", b"\x08\x01", b"\x0a" + b"\xff" * 12])
@trio_test
async def test_an_answer_that_is_no_message_is_named(place: Path, garbage: bytes) -> None:
    async def answer(call: ServerCall) -> None:
        await call.receive()
        await call.send(garbage)

    async with serving(place, {CREATE_CERTIFICATE_PATH: answer}) as served:
        with pytest.raises(Unavailable, match=r"signing gRPC error \(Internal error\): failed to decode"):
            await provider(place, served.port).fetch(CertificateKey(SLEEP))


def test_cancelled_at_any_step_the_stream_leaves_nothing_behind(place: Path) -> None:
    """Names and files are left out: the threads that look them up end in their own time."""

    async def scenario() -> None:
        istiod = Istiod()
        async with serving(place, {DELTA_PATH: istiod.serve}) as served, trio.open_nursery() as nursery:
            client = AdsClient(
                LiveMesh(Mesh(local_node="node1")),
                Target(host="127.0.0.1", port=served.port),
                Literal(ROOT.pem),
                Caller(token=Literal("secret"), cluster_id="c1"),
                NODE,
                metrics=Counts(),
            )
            nursery.start_soon(client.run)
            await istiod.first_requests()
            istiod.answer(workload("uid1", "1.2.3.4"))
            await istiod.next_request()
            nursery.cancel_scope.cancel()

    assert cancelled_everywhere_now(scenario, autojump=False) > 20
