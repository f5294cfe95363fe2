"""Captured traffic between pods whose certificates come from a (stand-in) SPIRE agent."""

import json
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio
from cryptography.hazmat.primitives import serialization

from tests.docs.blocks import blocks
from tests.netns.live_traffic import undisturbed
from tests.netns.tools import HELLO, exchange, fate, read_exactly
from ztunnel_trio.facts.grpc import GrpcCode
from ztunnel_trio.lab import apps
from ztunnel_trio.lab.ca import Status
from ztunnel_trio.lab.identities import SpireIdentities
from ztunnel_trio.lab.mesh import Lab, LabSettings, Pod, open_lab
from ztunnel_trio.lab.spire_agent import Account, InNetns, PodUid, SpireAgent
from ztunnel_trio.model.address import SocketAddress

PORT = 8080


@dataclass(frozen=True)
class Way:
    """One provider, and how the agent is told of a pod."""

    provider: str
    processes: bool = False
    environment: tuple[tuple[str, str], ...] = ()

    def settings(self, *, timeout: str = "10s") -> LabSettings:
        limits = {"SPIRE_TIMEOUT": timeout, "SPIFFE_BROKER_TIMEOUT": timeout}
        return LabSettings(
            watch_wire=False,
            spire=self.provider,
            spire_processes=self.processes,
            environment={"RUST_LOG": "info,ztunnel::identity=debug", **limits, **dict(self.environment)},
        )


SELECTORS = Way("spire_delegated_selectors")
PROCESSES = Way("spire_delegated_pid", processes=True)
BROKERED_PODS = Way("spiffe_broker")
BROKERED_PROCESSES = Way("spiffe_broker", processes=True, environment=(("SPIFFE_BROKER_ATTESTATION", "pid"),))
each_way = pytest.mark.parametrize(
    "way",
    [SELECTORS, PROCESSES, BROKERED_PODS, BROKERED_PROCESSES],
    ids=["selectors", "pid", "broker", "broker-pid"],
)


@dataclass
class Pair:
    """A client and a server on two nodes, and the agent that certifies them."""

    lab: Lab
    client: Pod
    server: Pod

    @property
    def identities(self) -> SpireIdentities:
        assert self.lab.spire is not None
        return self.lab.spire

    @property
    def agent(self) -> SpireAgent:
        return self.identities.agent

    @property
    def target(self) -> SocketAddress:
        return SocketAddress(self.server.ip, PORT)

    async def certificates(self) -> list[dict[str, object]]:
        """What both proxies' dumps say of certificates."""
        found: list[dict[str, object]] = []
        for node in self.lab.nodes.values():
            document = json.loads((await node.proxy.admin("/config_dump")).text)
            found += document["certificates"]
        return found


async def pair_in(lab: Lab) -> Pair:
    client = await lab.add_pod("client", node="node-1")
    server = await lab.add_pod("server", node="node-2")
    await server.serve(PORT, apps.echo)
    await lab.start()
    return Pair(lab, client, server)


@each_way
def test_pods_talk_with_certificates_of_the_agent_and_of_nobody_else(way: Way) -> None:
    async def main() -> None:
        with trio.fail_after(60):
            async with open_lab(way.settings()) as lab:
                pair = await pair_in(lab)

                assert await exchange(pair.client, pair.target) == HELLO
                certificates = await pair.certificates()
                assert lab.istiod.ca.calls == [], "istiod's CA is not asked"
                states = {str(one["identity"]): one["state"] for one in certificates}
                assert states[str(pair.server.identity)] == states[str(pair.client.identity)] == "Available"
                assert [one["pod"]["name"] for one in certificates if "pod" in one]  # type: ignore[index]

    trio.run(main)


def test_a_pod_has_its_certificate_before_it_talks() -> None:
    async def main() -> None:
        with trio.fail_after(60):
            async with open_lab(PROCESSES.settings()) as lab:
                pair = await pair_in(lab)
                quiet = await lab.add_pod("quiet", node="node-1")
                with trio.fail_after(10):
                    while await state_of(pair, quiet) != "Available":  # noqa: ASYNC110  nobody tells
                        await trio.sleep(0.05)

    trio.run(main)


@each_way
def test_rotations_under_traffic_fail_nobody(way: Way) -> None:
    async def main() -> None:
        with trio.fail_after(60):
            async with open_lab(way.settings()) as lab:
                pair = await pair_in(lab)
                async with undisturbed(pair.client, [pair.target]):
                    for _ in range(5):
                        pair.agent.rotate()
                        await trio.sleep(0.3)

    trio.run(main)


def test_an_agent_that_is_gone_for_a_while_is_missed_by_nobody() -> None:
    async def main() -> None:
        with trio.fail_after(60):
            async with open_lab(SELECTORS.settings()) as lab:
                pair = await pair_in(lab)
                async with undisturbed(pair.client, [pair.target]):
                    pair.agent.refuse = Status(GrpcCode.UNAVAILABLE, "restarting")
                    pair.agent.end_streams()
                    await trio.sleep(2.5)
                    pair.agent.refuse = None
                    pair.agent.rotate()
                    await trio.sleep(3)

    trio.run(main)


@each_way
def test_a_workload_that_is_withdrawn_makes_no_new_connections_and_keeps_its_old_ones(way: Way) -> None:
    async def main() -> None:
        with trio.fail_after(60):
            async with open_lab(way.settings(timeout="1s")) as lab:
                pair = await pair_in(lab)
                async with await pair.client.connect(pair.target) as held:
                    await held.send_all(HELLO)
                    assert await read_exactly(held, len(HELLO)) == HELLO
                    for subject in subjects_of(pair.client):
                        pair.agent.withdraw(subject)
                    other = await lab.add_pod("other", node="node-1")
                    with trio.fail_after(10):
                        while (await state_of(pair, pair.client)) == "Available":  # noqa: ASYNC110  nobody tells
                            await trio.sleep(0.05)

                    assert await fate(pair.client, SocketAddress(other.ip, PORT)) == "cut"
                    assert await fate(other, pair.target) == HELLO, "others are untouched"
                    await held.send_all(HELLO)
                    assert await read_exactly(held, len(HELLO)) == HELLO
                assert "Mismatched identity: expected" in str(await state_of(pair, pair.client))

    trio.run(main)


def test_a_pod_that_is_not_registered_yet_has_its_say_when_it_is() -> None:
    async def main() -> None:
        with trio.fail_after(60):
            async with open_lab(SELECTORS.settings(timeout="1s")) as lab:
                pair = await pair_in(lab)
                late = await lab.add_pod("late", node="node-1")
                for subject in subjects_of(late):
                    pair.agent.withdraw(subject)
                assert await fate(late, pair.target) == "cut"
                pair.identities.register(late)
                with trio.fail_after(10):
                    while await fate(late, pair.target) != HELLO:  # noqa: ASYNC110  as above
                        await trio.sleep(0.05)

    trio.run(main)


def test_two_pods_of_one_account_have_a_certificate_each() -> None:
    async def main() -> None:
        with trio.fail_after(60):
            async with open_lab(BROKERED_PODS.settings()) as lab:
                pair = await pair_in(lab)
                twin = await lab.add_pod("twin", node="node-1", service_account=pair.client.service_account)
                for pod in (pair.client, twin):
                    assert await exchange(pod, pair.target) == HELLO
                mine = [
                    one
                    for one in await pair.certificates()
                    if one["identity"] == str(twin.identity) and "pod" in one
                ]

                assert len({json.dumps(one["certChain"]) for one in mine}) == 2

    trio.run(main)


def test_no_log_and_no_dump_holds_a_private_key() -> None:
    async def main() -> None:
        with trio.fail_after(60):
            settings = PROCESSES.settings()
            noisy = LabSettings(
                watch_wire=False,
                spire=settings.spire,
                spire_processes=True,
                environment={"RUST_LOG": "trace"},
            )
            async with open_lab(noisy) as lab:
                pair = await pair_in(lab)
                await exchange(pair.client, pair.target)
                pair.agent.garbage = b"\x0a\x05" + b"SECRET"
                pair.agent.rotate()
                pair.agent.end_streams()
                await trio.sleep(1.5)
                texts = [await dump_of(node_name, lab) for node_name in lab.nodes]
                texts += ["\n".join(node.log.raw()) for node in lab.nodes.values()]
                secrets = [secret for leaf in pair.agent.issued() for secret in shapes_of(leaf.key_pem)]

                assert secrets
                for text in texts:
                    assert not [secret for secret in secrets if secret in text]
                    assert "SECRET" not in text
                assert files_with(b"PRIVATE KEY", lab.directory) == []

    trio.run(main)


def files_with(text: bytes, directory: Path) -> list[Path]:
    """The files below a directory that hold a text; not the sockets."""
    return [path for path in directory.rglob("*") if path.is_file() and text in path.read_bytes()]


def test_the_demo_of_the_page_is_as_promised() -> None:
    (block,) = [one for one in blocks() if one.mark == "test: demo of SPIRE"]
    ((command, _),) = block.commands()
    program = command.replace("ztunnel-trio", shlex.join([sys.executable, "-m", "ztunnel_trio"]), 1)

    done = subprocess.run(["sh", "-c", program], capture_output=True, text=True, timeout=120, check=False)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "all as promised" in done.stdout


async def dump_of(name: str, lab: Lab) -> str:
    return (await lab.nodes[name].proxy.admin("/config_dump")).text


def shapes_of(key_pem: str) -> list[str]:
    """A key as it could stand in a text: lines of its PEM form, and its number."""
    key = serialization.load_pem_private_key(key_pem.encode(), None)
    der = key.private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    secret = der[36:68]  # RFC 5915: the number of a P-256 key within PKCS#8
    lines = [line for line in key_pem.splitlines() if "-" not in line]
    return [*lines[:2], secret.hex(), repr(secret)[2:-1]]


def subjects_of(pod: Pod) -> list[Account | PodUid | InNetns]:
    identity = pod.identity
    return [
        Account(identity.namespace, identity.service_account),
        PodUid(pod.uid),
        InNetns(pod.host.netns.key),
    ]


async def state_of(pair: Pair, pod: Pod) -> object:
    """The state of a pod's own certificate as its proxy's dump has it."""
    states = [
        one["state"]
        for one in await pair.certificates()
        if isinstance(told := one.get("pod"), dict) and told["name"] == pod.name
    ]
    return states[0] if states else None
