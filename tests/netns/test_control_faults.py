"""Whatever becomes of istiod and the CA, no connection feels it.

Each test has traffic running: short connections on tunnels of their own (one stream a tunnel, so that each is
a handshake with the certificates of the moment) and long ones, within a node and between nodes. Durations are
shortened; with FULL_FAULTS=1 they are those the project promises.
"""

import itertools
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address

import trio
from cryptography import x509

from tests.netns.live_traffic import undisturbed
from tests.netns.tools import total
from tests.netns.with_lab import with_lab
from ztunnel_trio.facts.grpc import GrpcCode
from ztunnel_trio.facts.network import ADDRESS_TYPE
from ztunnel_trio.lab import apps, resources
from ztunnel_trio.lab.ca import CaCall, Status
from ztunnel_trio.lab.istiod import SERVER_NAMES
from ztunnel_trio.lab.mesh import Lab, LabSettings, Node, Pod
from ztunnel_trio.lab.pki import Authority
from ztunnel_trio.lab.resources import Stored, stored
from ztunnel_trio.model.address import SocketAddress

IS_FULL = os.environ.get("FULL_FAULTS") == "1"  # noqa: TID251  how it is asked for
UNREACHABLE_SECONDS = 120.0 if IS_FULL else 10.0
FLOOD_SECONDS = 10.0 if IS_FULL else 2.0
RENEWAL_SECONDS = 60.0 if IS_FULL else 12.0
SHORT_LIFETIME = 10.0  # seconds of a certificate; it is renewed after five
RECONNECT_SECONDS = 30.0  # the longest wait between attempts, and the attempt

SETTINGS = LabSettings(
    environment={"POOL_MAX_STREAMS_PER_CONNECTION": "1", "RUST_LOG": "info,access=off"}, watch_wire=False
)


@dataclass(eq=False)
class Scene:
    """A client with a neighbour on its node and a server on the other, and a service of both."""

    lab: Lab
    client: Pod
    targets: list[SocketAddress]

    @property
    def nodes(self) -> list[Node]:
        return list(self.lab.nodes.values())

    @property
    def mark(self) -> int:
        """How many streams istiod has seen."""
        return len(self.lab.istiod.streams)

    async def streams(self, mark: int = 0) -> None:
        """Both proxies have a stream, newer than the mark, and have answered on it."""
        istiod = self.lab.istiod

        def answered() -> bool:
            good = [stream for stream in istiod.live if stream.number > mark and stream.answers]
            return len(good) == len(self.nodes)

        with trio.fail_after(RECONNECT_SECONDS):
            await istiod.wait_for(answered)

    async def listen(self, name: str = "news", *, mark: int = 0) -> None:
        """Both proxies take what istiod says, on streams newer than the mark."""
        await self.streams(mark)
        answers = await self.lab.push(resources.workload(name, addresses=["10.88.200.1"]))
        assert [answer.error for answer in answers] == [None, None]
        for node in self.nodes:
            assert resources.pod_uid("default", name) in (await node.proxy.admin("/config_dump")).text

    async def renewed(self, mark: int, *, good: bool = True) -> list[CaCall]:
        """Since a mark in the CA's calls each identity of the traffic was asked for, and given or refused."""
        wanted = {str(pod.identity) for pod in self.lab.pods.values()}
        ca = self.lab.istiod.ca

        def seen() -> list[CaCall]:
            return [call for call in ca.calls[mark:] if (call.leaf_pem is not None) == good]

        with trio.fail_after(SHORT_LIFETIME + 5):
            while not wanted <= {call.identity for call in seen()}:
                await ca.changed.newer_than(ca.changed.version)
            if good:
                await self.held(seen())
        return seen()

    async def held(self, calls: Sequence[CaCall]) -> None:
        """The proxies hold the last certificates given: an answer on its way may still be lost."""
        given = {call.identity: call.leaf_pem for call in calls if call.leaf_pem is not None}
        wanted = {x509.load_pem_x509_certificate(pem.encode()).serial_number for pem in given.values()}
        while True:
            dumps = [json.loads((await node.proxy.admin("/config_dump")).text) for node in self.nodes]
            held = {
                int(certificate["certChain"][0]["serialNumber"])
                for dump in dumps
                for certificate in dump["certificates"]
                if certificate["certChain"]
            }
            if wanted <= held:
                return
            await trio.sleep(0.05)


async def begin(lab: Lab) -> Scene:
    client = await lab.add_pod("client", node="node-1")
    near = await lab.add_pod("near", node="node-1")
    far = await lab.add_pod("far", node="node-2")
    await lab.add_service("both", [near, far])
    await lab.start()
    for pod in (near, far):
        await pod.serve(8080, apps.echo)
    targets = [SocketAddress(near.ip, 8080), SocketAddress(far.ip, 8080), lab.address_of("both")]
    return Scene(lab, client, targets)


async def end(scene: Scene) -> None:
    """Nothing surprised the proxies. (That nothing disturbed the traffic is the traffic's to say.)"""
    for node in scene.nodes:
        text = "\n".join(node.log.raw())
        assert "Traceback" not in text, text
        assert node.proxy.is_running


@with_lab(SETTINGS)
async def test_istiod_is_killed_and_comes_back(lab: Lab) -> None:
    scene = await begin(lab)
    async with undisturbed(scene.client, scene.targets):
        await lab.istiod.stop()
        await trio.sleep(2)
        await lab.start_istiod()

        await scene.listen()
        await end(scene)
    first = lab.istiod.live[0].requests_of(ADDRESS_TYPE)[0]
    assert len(first.initial_resource_versions) >= 4  # nothing had to be sent again


@with_lab(SETTINGS, seconds=UNREACHABLE_SECONDS + 90)
async def test_istiod_is_unreachable_for_a_while(lab: Lab) -> None:
    scene = await begin(lab)
    async with undisturbed(scene.client, scene.targets):
        async with lab.fabric.unreachable():
            await trio.sleep(UNREACHABLE_SECONDS)

        with trio.fail_after(60):  # the kernel repeats what was lost, or the stream's PING fails
            while not await heard(scene):  # noqa: ASYNC110  by asking again
                await trio.sleep(1)
        await end(scene)


async def heard(scene: Scene) -> bool:
    try:
        await scene.listen()
    except (trio.TooSlowError, AssertionError):  # streams that istiod takes for alive are not
        return False
    return True


@with_lab(SETTINGS)
async def test_istiod_and_its_ca_answer_slowly(lab: Lab) -> None:
    lab.istiod.ca.lifetime, lab.istiod.ca.backdated = SHORT_LIFETIME, 0.0
    scene = await begin(lab)
    async with undisturbed(scene.client, scene.targets):
        lab.istiod.delay = lab.istiod.ca.delay = 2.0
        mark = scene.mark
        lab.istiod.cut()

        await scene.listen(mark=mark)
        await scene.renewed(len(lab.istiod.ca.calls))
        await trio.sleep(SHORT_LIFETIME / 2)
        await end(scene)


@with_lab(SETTINGS)
async def test_a_malformed_resource_among_good_ones_is_refused_alone(lab: Lab) -> None:
    scene = await begin(lab)
    server, lab.istiod.related = lab.pods["far"], False
    async with undisturbed(scene.client, scene.targets):
        good = [resources.workload(f"good-{n}", addresses=[f"10.88.201.{n}"]) for n in range(1, 9)]
        bad = [
            Stored(ADDRESS_TYPE, "junk", "v1", b"\xff\xff\xff"),
            Stored(ADDRESS_TYPE, "empty", "v1", b""),
            Stored(ADDRESS_TYPE, server.workload_uid, "v2", b"\x0a\x03\x0a\xff\x01"),  # of a server in use
        ]

        answers = await lab.istiod.push(*good[:4], *bad, *good[4:])

        for answer in answers:
            assert answer.error is not None
            assert "junk: decode: " in answer.error
            assert "empty: unknown address type" in answer.error
            assert f"{server.workload_uid}: " in answer.error
            assert "good-" not in answer.error
        for node in scene.nodes:
            dump = (await node.proxy.admin("/config_dump")).text
            assert all(f'"good-{n}"' in dump for n in range(1, 9))
            assert server.workload_uid in dump
        await scene.listen()
        mark = scene.mark
        lab.istiod.cut()  # a refused version is not named, so that it comes again
        await scene.streams(mark)
        versions = lab.istiod.live[0].requests_of(ADDRESS_TYPE)[0].initial_resource_versions
        assert versions[server.workload_uid] != "v2"
        assert "junk" not in versions
        await end(scene)


@with_lab(SETTINGS, seconds=120)
async def test_ten_thousand_changes_a_second(lab: Lab) -> None:
    scene = await begin(lab)
    lab.istiod.related = False
    flood = [[changed(number, turn) for number in range(10_000)] for turn in range(2)]
    await lab.istiod.push(*flood[0])
    async with undisturbed(scene.client, scene.targets):
        began, told = trio.current_time(), []
        for step in range(int(FLOOD_SECONDS * 100)):
            first = step * 100 % 10_000
            turn = 1 - (step // 100) % 2
            told += lab.istiod.tell(*flood[turn][first : first + 100])
            await trio.sleep_until(began + step / 100)
        took = trio.current_time() - began
        answers = await lab.istiod.settled(told)

        assert len(answers) == len(told) >= FLOOD_SECONDS * 100 * 2
        assert all(answer.is_ack for answer in answers)
        assert took < FLOOD_SECONDS + 2  # nobody was held back for long
        await scene.listen()
        await end(scene)


def changed(number: int, turn: int) -> Stored:
    """One of many workloads far away, in one of two forms."""
    made = resources.workload(
        f"pod-{number}",
        service_account=f"account-{number % 100}",
        addresses=[str(IPv4Address("10.90.0.0") + number)],
    )
    made.canonical_revision = f"v{turn}"
    return stored(made)


@with_lab(SETTINGS)
async def test_the_ca_fails_through_a_renewal_and_recovers(lab: Lab) -> None:
    ca = lab.istiod.ca
    ca.lifetime, ca.backdated = SHORT_LIFETIME, 0.0
    scene = await begin(lab)
    async with undisturbed(scene.client, scene.targets):
        mark = len(ca.calls)
        ca.refuse = Status(GrpcCode.UNAVAILABLE, "the CA is on holiday")
        await scene.renewed(mark, good=False)
        for node in scene.nodes:
            await node.log.wait_text("retaining existing valid certificate until")
        ca.refuse = None

        mark = len(ca.calls)
        await scene.renewed(mark)
        await trio.sleep(SHORT_LIFETIME)  # well past the end of the first certificates
        await end(scene)


@with_lab(SETTINGS)
async def test_the_token_is_rotated(lab: Lab) -> None:
    lab.istiod.ca.lifetime, lab.istiod.ca.backdated = SHORT_LIFETIME, 0.0
    scene = await begin(lab)
    async with undisturbed(scene.client, scene.targets):
        draft = lab.directory / "istio-token.new"
        draft.write_text("another token")
        draft.replace(lab.directory / "istio-token")
        lab.istiod.token = lab.istiod.ca.token = "another token"
        mark, before = len(lab.istiod.ca.calls), scene.mark
        lab.istiod.cut()

        await scene.listen(mark=before)
        assert {call.metadata["authorization"] for call in await scene.renewed(mark)} == {
            "Bearer another token"
        }
        await end(scene)


@with_lab(SETTINGS, seconds=90)
async def test_the_roots_are_rotated(lab: Lab) -> None:
    """As Istio does it: first everybody trusts both roots, then the new one signs, then the old one goes."""
    ca, old, new = lab.istiod.ca, lab.root, Authority("another organisation")
    ca.lifetime, ca.backdated = SHORT_LIFETIME, 0.0
    scene = await begin(lab)
    async with undisturbed(scene.client, scene.targets):
        rewrite_roots(lab, [old, new])
        ca.roots = [old.root_pem, new.root_pem]
        await scene.renewed(len(ca.calls))

        ca.authority = new
        lab.istiod.certificate = new.server(*SERVER_NAMES)
        await lab.istiod.stop()
        await lab.start_istiod()
        await scene.listen()
        await scene.renewed(len(ca.calls))

        rewrite_roots(lab, [new])
        ca.roots = [new.root_pem]
        await scene.renewed(len(ca.calls))
        before = scene.mark
        lab.istiod.drop()
        await scene.listen("later-news", mark=before)
        await end(scene)


def rewrite_roots(lab: Lab, authorities: Sequence[Authority]) -> None:
    """Replace the file, as kubelet does."""
    draft = lab.directory / "root-cert.new"
    draft.write_text("".join(authority.root_pem for authority in authorities))
    draft.replace(lab.directory / "root-cert.pem")


@with_lab(SETTINGS, seconds=RENEWAL_SECONDS + 60)
async def test_two_hundred_identities_with_certificates_of_ten_seconds(lab: Lab) -> None:
    ca = lab.istiod.ca
    ca.lifetime, ca.backdated = SHORT_LIFETIME, 0.0
    scene = await begin(lab)
    local = [
        resources.workload(f"local-{n}", addresses=[f"10.88.202.{n}"], node="node-1") for n in range(200)
    ]
    async with undisturbed(scene.client, scene.targets):
        await lab.push(*local)
        await trio.sleep(RENEWAL_SECONDS)
        await end(scene)

    asked: dict[str, list[float]] = {}
    for call in ca.calls:
        if call.identity is not None and "/sa/local-" in call.identity:
            asked.setdefault(call.identity, []).append(call.at)
    assert len(asked) == 200
    gaps = [later - earlier for times in asked.values() for earlier, later in itertools.pairwise(times)]
    assert len(gaps) >= 200
    assert max(gaps) < 0.9 * SHORT_LIFETIME  # never without one
    assert min(gaps) > 0.4 * SHORT_LIFETIME
    assert await total(scene.nodes[0], "istio_xds_connection_terminations_total") == 0
