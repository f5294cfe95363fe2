"""What a broken control plane says or is: told in the documented words, counted, asked again, and the mesh
stays as it was."""

import logging
import re
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trio

from tests.fakes.pki import FAR_AWAY, LONG_AGO, Authority
from tests.fakes.trio_test import trio_test
from tests.scenario.test_control_plane import (
    NODE,
    ROOT,
    SLEEP,
    Ca,
    Counts,
    Handler,
    Istiod,
    at,
    caller,
    packed,
    place,
    provider,
    workload,
)
from tests.unit.mesh.world import address_entry
from ztunnel_trio.control import grpc
from ztunnel_trio.control.ads_client import AdsClient, AdsSettings
from ztunnel_trio.control.ca_client import CREATE_CERTIFICATE_PATH
from ztunnel_trio.control.grpc import BadStatus, ChannelSettings, Served, ServerCall, Target
from ztunnel_trio.errors import Unavailable
from ztunnel_trio.facts.grpc import GrpcCode
from ztunnel_trio.live_mesh import LiveMesh
from ztunnel_trio.mesh.mesh import Batch, Mesh
from ztunnel_trio.model.certificate_key import CertificateKey
from ztunnel_trio.model.identity import SpiffeId
from ztunnel_trio.model.source import FromFile
from ztunnel_trio.pb.messages.istio.v1.auth import IstioCertificateResponse
from ztunnel_trio.wire.ads import DELTA_PATH

__all__ = ["place"]  # the fixture

OPENSSL_3_6 = " or the system clock is incorrect"  # it adds to "not yet valid"
SOON = datetime.now(UTC) + timedelta(days=1)
YESTERDAY = datetime.now(UTC) - timedelta(days=1)
LIMIT = 2000


@dataclass(eq=False)
class World:
    """A client with something in its mesh, an istiod, and what was counted."""

    istiod: Istiod
    live: LiveMesh
    counts: Counts = field(default_factory=Counts)

    def check_mesh(self) -> None:
        """What was there is there."""
        assert self.live.mesh.workload_at(at("10.1.1.1")) is not None


@asynccontextmanager
async def serving(
    place: Path, handlers: Mapping[str, Handler], certificate: tuple[str, bytes] | None = None
) -> AsyncGenerator[Served, None]:
    """A server with this certificate and key (PEM), or with one that is right."""
    chain, key = certificate or ROOT.server("localhost")
    (place / "now-chain.pem").write_text(chain)
    (place / "now-key.pem").write_bytes(key)
    context = grpc.server_context(str(place / "now-chain.pem"), str(place / "now-key.pem"))
    async with grpc.open_control_loop(), trio.open_nursery() as nursery:

        async def start(*, task_status: "trio.TaskStatus[Served]") -> None:
            await grpc.serve(handlers, ssl_context=context, task_status=task_status)

        served: Served = await nursery.start(start)
        yield served
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def synchronised(
    place: Path, certificate: tuple[str, bytes] | None = None
) -> AsyncGenerator[World, None]:
    """A client whose mesh holds a workload already, against a server with that certificate."""
    world = World(Istiod(), LiveMesh(Mesh(local_node="node1")))
    known = workload("known", "10.1.1.1")
    world.live.apply(Batch(addresses=[address_entry(known.name, known.resource.value)]))
    async with serving(place, {DELTA_PATH: world.istiod.serve}, certificate) as served:
        client = AdsClient(
            world.live,
            Target(host="localhost", port=served.port),
            FromFile(str(place / "root.pem")),
            caller(place),
            NODE,
            metrics=world.counts,
            settings=AdsSettings(channel=ChannelSettings(message_limit_bytes=LIMIT)),
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.run)
            yield world
            world.check_mesh()
            nursery.cancel_scope.cancel()


async def attempts(world: World, count: int) -> None:
    """Wait until so many attempts have ended."""
    with trio.fail_after(5):
        while len(world.counts.ends) < count:  # noqa: ASYNC110  it counts, it cannot tell
            await trio.sleep(0.01)


@pytest.mark.parametrize(
    ("certificate", "text"),
    [
        (Authority.root("strangers").server("localhost"), "unable to get local issuer certificate"),
        (ROOT.server("localhost", not_before=LONG_AGO, not_after=YESTERDAY), "certificate has expired"),
        (ROOT.server("localhost", not_before=SOON, not_after=FAR_AWAY), "certificate is not yet valid"),
        (ROOT.server("example.org"), "Hostname mismatch, certificate is not valid for 'localhost'."),
    ],
    ids=["another root", "expired", "not yet valid", "another name"],
)
@trio_test
async def test_a_certificate_of_istiod_that_does_not_hold_is_told_and_asked_for_again(
    place: Path, caplog: pytest.LogCaptureFixture, certificate: tuple[str, bytes], text: str
) -> None:
    async with synchronised(place, certificate) as world:
        await attempts(world, 3)

        assert set(world.counts.ends) == {"ConnectionError"}
        assert world.istiod.streams == 0
    begin = (
        r"XDS client connection error: gRPC connection error connecting to https://localhost:\d+: status: "
    )
    said = re.compile(
        begin
        + r'Unknown, message: "client error \(Connect\)", source: invalid peer certificate: '
        + re.escape(text)
        + f"({OPENSSL_3_6})?, retrying in 20ms"
    )
    assert any(said.fullmatch(message) for message in caplog.messages), caplog.messages


@trio_test
async def test_a_missing_token_is_told_and_looked_for_again(
    place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    token = place / "token"
    kept = token.read_text()
    token.unlink()
    try:
        async with synchronised(place) as world:
            await attempts(world, 2)
            assert set(world.counts.ends) == {"Error"}
            token.write_text(kept)
            await world.istiod.first_requests()
    finally:
        token.write_text(kept)
    text = f"XDS client error: token file {token}: No such file or directory (os error 2), retrying in 20ms"
    assert text in caplog.messages


@trio_test
async def test_a_refused_token_is_told_and_tried_again(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with synchronised(place) as world:
        for _ in range(2):
            await world.istiod.first_requests()
            world.istiod.answers.send_nowait(BadStatus(GrpcCode.UNAUTHENTICATED, "authentication failure"))
        await world.istiod.first_requests()

        assert world.counts.ends == ["ConnectionError", "ConnectionError"]
    assert any("hint: check the control plane logs" in message for message in caplog.messages)


@trio_test
async def test_a_response_beyond_our_limit_is_refused_before_it_is_read(
    place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with synchronised(place) as world:
        await world.istiod.first_requests()
        world.istiod.answer(packed("huge", bytes(LIMIT), "v1"))
        await world.istiod.first_requests()
        world.istiod.answer(workload("small", "10.1.1.2"))
        assert (await world.istiod.next_request()).response_nonce == "n"

        assert world.counts.ends == ["Error"]
        assert world.live.mesh.workload_at(at("10.1.1.2")) is not None
    assert any(
        f"message length too large: found {size} bytes, the limit is: {LIMIT} bytes" in message
        for message in caplog.messages
        for size in range(LIMIT, LIMIT + 200)
    )


@trio_test
async def test_a_type_nobody_asked_for_is_acknowledged_counted_and_dropped(
    place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "ztunnel::xds::client")
    async with synchronised(place) as world:
        await world.istiod.first_requests()
        world.istiod.answer(packed("a", b"xyz", "v"), type_url="type/Nonsense", removed=("known",))

        answer = await world.istiod.next_request()

        assert (answer.type_url, answer.HasField("error_detail")) == ("type/Nonsense", False)
        assert world.counts.messages == [("type/Nonsense", 3)]
        assert world.counts.ends == []
    assert "unknown type: type/Nonsense" in caplog.messages


@pytest.mark.parametrize(
    ("garbage", "text"),
    [
        (b"\x12\xff\xff\xff\xff\x0f", "discovery response has a field that reaches past its end"),
        (b"\x10\x01", "discovery response: field 2 has wire type 0"),
        (b"\x12\x05ab", "discovery response has a field that reaches past its end"),
    ],
)
@trio_test
async def test_a_response_that_is_none_ends_the_stream_and_nothing_else(
    place: Path, caplog: pytest.LogCaptureFixture, garbage: bytes, text: str
) -> None:
    class Garbage:
        def SerializeToString(self) -> bytes:  # noqa: N802  protobuf's name
            return garbage

    async with synchronised(place) as world:
        await world.istiod.first_requests()
        world.istiod.answers.send_nowait(Garbage())  # type: ignore[arg-type]
        await world.istiod.first_requests()

        assert world.counts.ends == ["Error"]
    assert f"XDS client error: {text}, retrying in 20ms" in caplog.messages


# the CA ---------------------------------------------------------------------------------------------------

OTHER = SpiffeId("cluster.local", "default", "other")


def chain_for(name: SpiffeId, authority: Authority, root: Authority) -> list[str]:
    """A CA's answer for a key of its own: not ours, and for whom it likes."""
    leaf, _ = authority.leaf(name, YESTERDAY, SOON)
    return [leaf, root.pem]


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (
            chain_for(OTHER, ROOT, ROOT),
            f"did not find expected SAN: {SLEEP}",
        ),
    ],
)
@trio_test
async def test_a_certificate_for_somebody_else_is_refused(place: Path, answer: list[str], text: str) -> None:
    async def behave(call: ServerCall) -> None:
        await call.receive()
        await call.send(bytes(IstioCertificateResponse(cert_chain=answer)))

    async with serving(place, {CREATE_CERTIFICATE_PATH: behave}) as served:
        with pytest.raises(Unavailable) as caught:
            await provider(place, served.port).fetch(CertificateKey(SLEEP))
    assert str(caught.value) == text


@pytest.mark.parametrize(
    ("certificate", "text"),
    [
        (Authority.root("strangers").server("localhost"), "unable to get local issuer certificate"),
        (ROOT.server("localhost", not_before=LONG_AGO, not_after=YESTERDAY), "certificate has expired"),
        (ROOT.server("localhost", not_before=SOON, not_after=FAR_AWAY), "certificate is not yet valid"),
    ],
    ids=["another root", "expired", "not yet valid"],
)
@trio_test
async def test_a_certificate_of_the_ca_that_does_not_hold_is_told(
    place: Path, certificate: tuple[str, bytes], text: str
) -> None:
    async with serving(place, {CREATE_CERTIFICATE_PATH: Ca().serve}, certificate) as served:
        with pytest.raises(Unavailable) as caught:
            await provider(place, served.port).fetch(CertificateKey(SLEEP))

    assert str(caught.value).removesuffix(OPENSSL_3_6) == (
        f"signing gRPC error (Unknown error): client error (Connect): invalid peer certificate: {text}"
    )
