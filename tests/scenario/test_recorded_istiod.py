"""Whatever a real istiod was seen to do is taken: its answers to good and bad callers, row by row.

The rows say how many resources and removals came in each answer, and how the stream ended. The resources
themselves are those of another recorded answer, so that the payloads are real, too.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path

import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from tests.fakes.trio_test import trio_test
from tests.scenario.test_control_plane import ROOT, place, provider, serving, synchronising
from ztunnel_trio.control.ca_client import CREATE_CERTIFICATE_PATH
from ztunnel_trio.control.grpc import BadStatus, ServerCall
from ztunnel_trio.errors import Unavailable
from ztunnel_trio.facts.grpc import GrpcCode
from ztunnel_trio.facts.network import ADDRESS_TYPE, AUTHORIZATION_TYPE
from ztunnel_trio.model.certificate_key import CertificateKey
from ztunnel_trio.model.identity import SpiffeId
from ztunnel_trio.pb.messages.istio.v1.auth import IstioCertificateRequest, IstioCertificateResponse
from ztunnel_trio.pb.xds_pb2 import DeltaDiscoveryResponse, Resource

__all__ = ["place"]  # the fixture

DATA = Path(__file__).parents[1] / "data"
TYPES = {"Address": ADDRESS_TYPE, "Authorization": AUTHORIZATION_TYPE}
ANSWER = re.compile(r"(\w+) (\d+)\+(\d+)-")


def rows(name: str) -> Iterator[list[str]]:
    for line in (DATA / name).read_text().splitlines():
        if not line.startswith("#"):
            yield [cell.strip() for cell in line.split("|")]


def recorded(name: str) -> list[Resource]:
    return list(DeltaDiscoveryResponse.FromString((DATA / name).read_bytes()).resources)


ADDRESSES, POLICIES = recorded("istiod_address.bin"), recorded("istiod_authorization.bin")


@dataclass(frozen=True)
class Stream:
    """One row: what was asked, what came, and how it ended."""

    asked: str
    answers: tuple[tuple[str, int, int], ...]
    end: str

    @property
    def status(self) -> BadStatus | None:
        """The status the stream ends with; None for OK."""
        match self.end.split(maxsplit=2):
            case ["grpc-status", code, *text]:
                number = GrpcCode.UNAUTHENTICATED.value if code == "None" else int(code)
                return BadStatus(GrpcCode(number), " ".join(text))
            case _:
                return None


STREAMS = [
    Stream(asked, tuple((kind, int(new), int(gone)) for kind, new, gone in ANSWER.findall(answers)), end)
    for asked, answers, end in rows("istiod_xds_matrix.txt")
]


def response(kind: str, new: int, gone: int, number: int) -> DeltaDiscoveryResponse:
    """An answer of that many resources; istiod names its pushes and repeats policies without a version."""
    there = POLICIES if kind == "Authorization" else ADDRESSES
    version = "2026-01-01T00:00:00Z/1"
    return DeltaDiscoveryResponse(
        type_url=TYPES.get(kind, f"type.googleapis.com/istio.workload.{kind}"),
        nonce=f"{version}{number}",
        system_version_info=version,
        resources=islice(there, new),
        removed_resources=[f"gone-{one}" for one in range(gone)],
    )


@pytest.mark.parametrize("stream", STREAMS, ids=[stream.asked for stream in STREAMS])
@trio_test
async def test_every_stream_is_taken(place: Path, stream: Stream) -> None:
    async with synchronising(place) as world:
        with trio.fail_after(10):
            await world.istiod.first_requests()
            for number, (kind, new, gone) in enumerate(stream.answers):
                world.istiod.answers.send_nowait(response(kind, new, gone, number))
                answer = await world.istiod.next_request()
                assert answer.response_nonce.endswith(f"Z/1{number}")
                assert not answer.HasField("error_detail")
            world.istiod.answers.send_nowait(stream.status)
            again = await world.istiod.first_requests()

        most = max([new for kind, new, _ in stream.answers if kind == "Address"], default=0)
        assert len(again[0].initial_resource_versions) == most
        assert all(len(version) in (15, 16) for version in again[0].initial_resource_versions.values())
        assert set(again[1].initial_resource_versions.values()) <= {""}
        assert len(list(world.live.mesh.workloads())) + len(list(world.live.mesh.services())) == most
        if stream.status is None:
            assert world.counts.ends == ["Complete"]
        else:
            assert world.counts.ends == ["Reconnect" if stream.answers else "ConnectionError"]


@trio_test
async def test_policies_that_come_again_on_every_stream_change_nothing(place: Path) -> None:
    async with synchronising(place) as world:
        for number in range(2):
            with trio.fail_after(10):
                await world.istiod.first_requests()
                world.istiod.answers.send_nowait(response("Address", len(ADDRESSES), 0, number))
                await world.istiod.next_request()
                world.istiod.answers.send_nowait(response("Authorization", len(POLICIES), 0, number))
                await world.istiod.next_request()
                world.istiod.answers.send_nowait(None)
        await world.istiod.first_requests()

        assert len(world.live.mesh.policy_keys()) == len(POLICIES)


@dataclass(frozen=True)
class Signing:
    """One row of the CA's: who asked, and the status or certificate that came."""

    asked: str
    code: int
    text: str


SIGNINGS = [
    Signing(asked, int(status.split()[-1]), text) for asked, status, text in rows("istiod_ca_matrix.txt")
]
GIVEN = re.compile(r"2 elements URI:(\S+) lifetime (\d+) s")


@pytest.mark.parametrize("row", SIGNINGS, ids=[row.asked for row in SIGNINGS])
@trio_test
async def test_every_answer_of_the_ca_is_taken(place: Path, row: Signing) -> None:
    given = GIVEN.fullmatch(row.text)

    async def answer(call: ServerCall) -> None:
        request = IstioCertificateRequest.parse(await call.receive() or b"")
        if given is None:
            raise BadStatus(GrpcCode(row.code), row.text)
        key = x509.load_pem_x509_csr(request.csr.encode()).public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(given[1])])
        begin = datetime.now(UTC).replace(microsecond=0) - timedelta(seconds=120)
        leaf = ROOT.sign(key, names, begin, begin + timedelta(seconds=int(given[2])), critical=True)
        chain = [leaf.public_bytes(Encoding.PEM).decode(), ROOT.pem]
        await call.send(bytes(IstioCertificateResponse(cert_chain=chain)))

    identity = SpiffeId.parse(given[1]) if given else SpiffeId("cluster.local", "default", "sleep")
    async with serving(place, {CREATE_CERTIFICATE_PATH: answer}) as served:
        if given is None:
            with pytest.raises(Unavailable) as caught:
                await provider(place, served.port).fetch(CertificateKey(identity))
            assert str(caught.value) == f"signing gRPC error ({GrpcCode(row.code).sentence}): {row.text}"
        else:
            certificate = await provider(place, served.port).fetch(CertificateKey(identity))
            assert certificate.identity == identity
            assert (certificate.not_after - certificate.not_before).total_seconds() == int(given[2])
