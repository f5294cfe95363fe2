"""Names as programs in a pod ask for them: dig, glibc's getent and a musl client, over every transport.

The programs run in the pod's network namespace with a resolv.conf of its own and know nothing of the proxy:
istio's rules bring their questions there. What is not installed is skipped aloud (CI installs Debian's
bind9-dnsutils and musl-tools).
"""

import os
import random
import shutil
import socket
import struct
import subprocess
import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import pytest
import trio

from tests.netns.shared import in_scene, share
from tests.netns.tools import read_exactly, until
from ztunnel_trio.lab import resources
from ztunnel_trio.lab.mesh import Lab, LabSettings, Node, Pod, open_lab
from ztunnel_trio.lab.resolver import Forged, Silence
from ztunnel_trio.model.address import SocketAddress
from ztunnel_trio.pb.workload_pb2 import NetworkAddress, Service

V4, V6 = "10.96.0.10", "fd96::a"  # nobody is there: whatever answers was put in the way
SERVER = "server.default.svc.cluster.local"
OUTSIDE = "www.example.org"
OUTSIDE_ADDRESSES = ["192.0.2.1", "192.0.2.2"]
FORGED = "forged.example.org"  # forgers answer first
SEARCH = "search default.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5"
TRY_SECONDS, ATTEMPTS = 1, 1
SILENT_SECONDS = TRY_SECONDS * (1 + ATTEMPTS)  # what a question costs that nobody answers
IN_FLIGHT = 256
PACKAGES = {"dig": "bind9-dnsutils", "getent": "libc-bin", "musl-gcc": "musl-tools"}


@dataclass
class Scene:
    """A client on node-1, a service of one address, one of both families, one of its endpoints' addresses."""

    lab: Lab
    client: Pod

    @property
    def node(self) -> Node:
        return self.lab.nodes["node-1"]

    @property
    def vip(self) -> str:
        return str(self.lab.address_of("server").ip)

    async def run(self, command: Sequence[str], *, nameserver: str = V4, more: str = SEARCH) -> list[str]:
        """Run a program in the client's pod; the lines it prints."""
        resolv = self.lab.directory / "pod-resolv.conf"
        resolv.write_text(f"nameserver {nameserver}\n{more}\n")
        fd = self.client.host.netns.fileno()
        launcher = [sys.executable, "-m", "ztunnel_trio.lab.launch", "0", str(fd), str(resolv)]
        done = await trio.run_process(
            [*launcher, *command],
            capture_stdout=True,
            capture_stderr=True,
            check=False,
            pass_fds=[fd],
            cwd=Path(__file__).parents[2],
        )
        assert done.returncode == 0, (command, done.returncode, done.stdout, done.stderr)
        return done.stdout.decode().splitlines()

    async def ask(self, query: bytes, *, seconds: float = 5, server: str = V4) -> bytes | None:
        """One datagram and its answer, None for silence."""
        family = socket.AF_INET6 if ":" in server else socket.AF_INET
        sock = trio.socket.from_stdlib_socket(self.client.host.make_socket(family, socket.SOCK_DGRAM))
        with sock, trio.move_on_after(seconds):
            await sock.connect((server, 53))
            await sock.send(query)
            return await sock.recv(65535)
        return None


@asynccontextmanager
async def open_scene() -> AsyncGenerator[Scene, None]:
    settings = LabSettings(
        nodes=("node-1",),
        watch_wire=False,
        environment={"ISTIO_META_DNS_PROXY_ADDR": "localhost:15053", "RUST_LOG": "info,dns=debug"},
    )
    async with open_lab(settings) as lab:
        scene = Scene(lab, await lab.add_pod("client", node="node-1"))
        with scene.node.resolv.open("a") as resolv:
            resolv.write(f"options timeout:{TRY_SECONDS} attempts:{ATTEMPTS}\n")
        zone = lab.resolver.zone
        zone[f"{OUTSIDE}.", "A"] = OUTSIDE_ADDRESSES
        zone[f"{OUTSIDE}.", "AAAA"] = ["2001:db8::1"]
        zone["large.example.org.", "A"] = [f"198.51.100.{n}" for n in range(1, 201)]
        zone["text.example.org.", "TXT"] = ['"hello"']
        zone["silent.example.org.", "A"] = Silence()
        zone[f"{FORGED}.", "A"] = Forged(OUTSIDE_ADDRESSES, ["203.0.113.66"])
        await lab.add_service("server", [scene.client])
        await lab.add_service("dual", [], change=give_both_families)
        headless = {"default/headless.default.svc.cluster.local": {80: 80}}
        await lab.push(
            resources.service("headless.default.svc.cluster.local", ports={80: 80}),
            *(
                resources.workload(f"h{n}", addresses=[f"10.88.99.{n}", f"fd88::99:{n}"], services=headless)
                for n in (1, 2)
            ),
        )
        await lab.start()
        yield scene


def give_both_families(service: Service) -> None:
    service.addresses.append(NetworkAddress(address=socket.inet_pton(socket.AF_INET6, "fd96::40")))


scene = share(open_scene)


def program(name: str) -> str:
    """Where a program is; skips aloud, or fails where skipping is forbidden."""
    if found := shutil.which(name):
        return found
    text = f"no {name} here: apt-get install {PACKAGES[name]}"
    if os.environ.get("REQUIRE_NETNS") == "1":  # noqa: TID251  how CI says so
        pytest.fail(text)
    pytest.skip(text)


@pytest.fixture(scope="session")
def musl_client(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A program that resolves names with musl."""
    target = tmp_path_factory.mktemp("musl") / "client"
    source = Path(__file__).with_name("musl_client.c")
    subprocess.run([program("musl-gcc"), "-static", "-O1", "-o", target, source], check=True)
    return str(target)


# ------------------------------------------------------------------ programs

TRANSPORTS = pytest.mark.parametrize(
    ("nameserver", "flags"),
    [
        pytest.param(V4, ["+notcp"], id="udp"),
        pytest.param(V4, ["+tcp"], id="tcp"),
        pytest.param(V6, ["+notcp"], id="udp over ipv6"),
        pytest.param(V6, ["+tcp"], id="tcp over ipv6"),
    ],
)


@TRANSPORTS
@in_scene
async def test_dig_gets_mesh_names_and_others(scene: Scene, nameserver: str, flags: list[str]) -> None:
    dig = [program("dig"), "+short", "+time=2", "+tries=1", *flags]

    assert await scene.run([*dig, SERVER], nameserver=nameserver) == [scene.vip]
    assert await scene.run([*dig, "+search", "server"], nameserver=nameserver) == [scene.vip]
    assert await scene.run([*dig, SERVER, "AAAA"], nameserver=nameserver) == []
    assert sorted(await scene.run([*dig, OUTSIDE], nameserver=nameserver)) == OUTSIDE_ADDRESSES
    assert await scene.run([*dig, OUTSIDE, "AAAA"], nameserver=nameserver) == ["2001:db8::1"]
    assert await scene.run([*dig, "text.example.org", "TXT"], nameserver=nameserver) == ['"hello"']


@in_scene
async def test_dig_tells_authority_and_the_absence_of_names(scene: Scene) -> None:
    dig = [program("dig"), "+noall", "+comments", "+time=2", "+tries=1"]

    ours = "\n".join(await scene.run([*dig, SERVER]))
    absent = "\n".join(await scene.run([*dig, "nothing.example.org"]))

    assert "status: NOERROR" in ours
    assert "flags: qr aa rd ra" in ours
    assert "status: NXDOMAIN" in absent
    assert " aa " not in absent


@pytest.mark.parametrize(
    ("nameserver", "more"),
    [
        pytest.param(V4, SEARCH, id="udp"),
        pytest.param(V4, f"{SEARCH} use-vc", id="tcp"),
        pytest.param(V6, SEARCH, id="udp over ipv6"),
        pytest.param(V6, f"{SEARCH} use-vc", id="tcp over ipv6"),
    ],
)
@in_scene
async def test_glibc_gets_mesh_names_and_others(scene: Scene, nameserver: str, more: str) -> None:
    async def get(database: str, name: str) -> set[str]:
        command = [program("getent"), database, name]
        return {line.split()[0] for line in await scene.run(command, nameserver=nameserver, more=more)}

    assert await get("ahostsv4", "server") == {scene.vip}
    assert await get("ahostsv4", "server.default") == {scene.vip}
    assert await get("ahostsv4", SERVER) == {scene.vip}
    assert await get("ahosts", "dual") == {str(scene.lab.address_of("dual").ip), "fd96::40"}
    assert await get("ahostsv6", "headless") == {"fd88::99:1", "fd88::99:2"}
    assert await get("ahostsv4", OUTSIDE) == set(OUTSIDE_ADDRESSES)
    assert len(await get("ahostsv4", "large.example.org")) == 200  # cut over UDP, whole over TCP


@pytest.mark.parametrize("nameserver", [V4, V6], ids=["udp", "udp over ipv6"])
@in_scene
async def test_musl_gets_mesh_names_and_others(scene: Scene, musl_client: str, nameserver: str) -> None:
    async def get(name: str) -> set[str]:
        return set(await scene.run([musl_client, name], nameserver=nameserver))

    assert await get("server") == {scene.vip}
    assert await get(SERVER) == {scene.vip}
    assert await get("dual") == {str(scene.lab.address_of("dual").ip), "fd96::40"}
    assert await get("headless") == {"10.88.99.1", "10.88.99.2", "fd88::99:1", "fd88::99:2"}
    assert await get(OUTSIDE) == {*OUTSIDE_ADDRESSES, "2001:db8::1"}


@in_scene
async def test_the_resolver_is_asked_from_the_pods_own_address(scene: Scene) -> None:
    scene.lab.resolver.questions.clear()

    await scene.ask(dns.message.make_query(OUTSIDE, "A").to_wire())

    assert [(one.name, one.asker) for one in scene.lab.resolver.questions] == [
        (f"{OUTSIDE}.", str(scene.client.ip))
    ]


@TRANSPORTS
@in_scene
async def test_forged_answers_are_not_passed_on(scene: Scene, nameserver: str, flags: list[str]) -> None:
    """Another source address or port, another id, another question: each came before the true answer."""
    dig = [program("dig"), "+short", "+time=2", "+tries=1", *flags, FORGED]

    for _ in range(5):
        assert sorted(await scene.run(dig, nameserver=nameserver)) == OUTSIDE_ADDRESSES


# ------------------------------------------------------------------ hostile input

HEADER = struct.pack("!HHHHHH", 4711, 0x0100, 1, 0, 0, 0)
LONG_NAME = b"\x3f" + b"a" * 63
HOSTILE = {
    "nothing": b"",
    "half a header": HEADER[:7],
    "a header alone": HEADER,
    "a pointer to itself": HEADER + b"\xc0\x0c\0\1\0\1",
    "pointers in a circle": HEADER + b"\xc0\x0e\xc0\x0c\0\1\0\1",
    "a pointer beyond the end": HEADER + b"\xff\xff\0\1\0\1",
    "a label cut short": HEADER + b"\x3fabc",
    "a name of 256 octets": HEADER + LONG_NAME * 4 + b"\0\0\1\0\1",
    "a name of 255 octets": HEADER + LONG_NAME * 3 + b"\x3d" + b"a" * 61 + b"\0\0\1\0\1",
    "an unknown label type": HEADER + b"\x80abc\0\0\1\0\1",
    "thousands of questions": struct.pack("!HHHHHH", 1, 0x0100, 4000, 0, 0, 0) + b"\1a\0\0\1\0\1" * 4000,
    "thousands announced": struct.pack("!HHHHHH", 1, 0x0100, 65535, 65535, 65535, 65535) + b"\1a\0\0\1\0\1",
    "no question": struct.pack("!HHHHHH", 1, 0x0100, 0, 0, 0, 0),
    "a response": dns.message.make_response(dns.message.make_query(SERVER, "A")).to_wire(),
    "two OPT records": dns.message.make_query(SERVER, "A", use_edns=0).to_wire()[:-11]
    + dns.message.make_query(".", "A", use_edns=0).to_wire()[-11:] * 2,
}


async def still_answers(scene: Scene) -> None:
    answer = await scene.ask(dns.message.make_query(SERVER, "A").to_wire())
    assert answer is not None
    assert dns.message.from_wire(answer).answer[0][0].to_text() == scene.vip


def complaints(scene: Scene, mark: int) -> list[str]:
    """What the proxy wrote that is more than information."""
    return [line.message for line in scene.node.log.lines(mark) if line.level == "error"]


@pytest.mark.parametrize("name", HOSTILE)
@in_scene
async def test_hostile_input_gets_silence_or_a_short_answer(scene: Scene, name: str) -> None:
    mark, query = scene.node.log.mark(), HOSTILE[name]

    answer = await scene.ask(query, seconds=0.3)

    assert answer is None or len(answer) <= max(len(query), 12)
    await still_answers(scene)
    assert complaints(scene, mark) == []


@in_scene
async def test_random_bytes_over_udp_and_tcp_harm_nobody(scene: Scene) -> None:
    rng, mark, client = random.Random(4711), scene.node.log.mark(), scene.client
    sock = trio.socket.from_stdlib_socket(client.host.make_socket(kind=socket.SOCK_DGRAM))
    with sock:
        await sock.connect((V4, 53))
        for _ in range(500):
            await sock.send(HEADER[: rng.randrange(13)] + rng.randbytes(rng.randrange(600)))
    for _ in range(20):
        async with await client.connect(SocketAddress(scene.lab.address_of("server").ip, 53)) as stream:
            await stream.send_all(rng.randbytes(rng.randrange(1, 600)))

    await still_answers(scene)
    assert complaints(scene, mark) == []


@in_scene
async def test_messages_in_one_tcp_connection_are_answered_in_turn_in_whatever_pieces(scene: Scene) -> None:
    names = [SERVER, OUTSIDE, "dual.default", "text.example.org"]
    wire = b""
    for number, name in enumerate(names):
        query = dns.message.make_query(name, "A", id=number).to_wire()
        wire += struct.pack("!H", len(query)) + query

    async with await scene.client.connect(SocketAddress(scene.lab.address_of("server").ip, 53)) as stream:
        for start in range(0, len(wire), 7):
            await stream.send_all(wire[start : start + 7])
        for number in range(len(names)):
            (length,) = struct.unpack("!H", await read_exactly(stream, 2))
            assert dns.message.from_wire(await read_exactly(stream, length)).id == number


# ------------------------------------------------------------------ a silent resolver


@in_scene
async def test_a_silent_resolver_costs_each_query_its_time_and_nothing_else(scene: Scene) -> None:
    before = scene.node.proxy.usage().descriptors
    silent = dns.message.make_query("silent.example.org", "A").to_wire()
    times: list[float] = []

    async def ask() -> None:
        began = trio.current_time()
        answer = await scene.ask(silent)
        assert answer is not None and dns.message.from_wire(answer).rcode() == dns.rcode.SERVFAIL
        times.append(trio.current_time() - began)

    async with trio.open_nursery() as nursery:
        for number in range(IN_FLIGHT // 2):
            nursery.start_soon(ask)
            if number % 32 == 0:
                await trio.sleep(0.01)
        await until(lambda: scene.node.proxy.usage().descriptors >= before + IN_FLIGHT // 2)
        for _ in range(20):
            await still_answers(scene)
        outside = await scene.ask(dns.message.make_query(OUTSIDE, "A").to_wire())
        assert outside is not None and dns.message.from_wire(outside).answer
        assert times == []  # the others wait still

    assert min(times) >= SILENT_SECONDS and max(times) < SILENT_SECONDS + 2
    await until(lambda: scene.node.proxy.usage().descriptors <= before)


@in_scene
async def test_more_queries_than_may_wait_are_refused_at_once(scene: Scene) -> None:
    silent = dns.message.make_query("silent.example.org", "A").to_wire()
    times: list[float] = []

    async def ask() -> None:
        began = trio.current_time()
        assert await scene.ask(silent) is not None
        times.append(trio.current_time() - began)

    async with trio.open_nursery() as nursery:
        for number in range(IN_FLIGHT + 50):
            nursery.start_soon(ask)
            if number % 32 == 0:  # more at once than a socket's buffer takes would be lost
                await trio.sleep(0.01)
        with trio.fail_after(10):
            await until(lambda: len(times) >= 50)
        await still_answers(scene)

    assert sum(seconds < SILENT_SECONDS for seconds in times) == 50
