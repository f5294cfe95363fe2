"""The image's proxies under runc, as the chart would have them run, in the lab's mesh."""

import io
import json
import os
import re
import ssl
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from tests.fakes.trio_test import trio_test
from tests.image.build import Image
from tests.image.container import FILES_OF_LAB, bundle
from tests.netns.test_without_istiod import alone
from tests.netns.tools import HELLO, exchange
from ztunnel_trio.facts.network import HBONE_PORT
from ztunnel_trio.lab import demo
from ztunnel_trio.lab.mesh import LabSettings, Pod, open_lab
from ztunnel_trio.lab.report import PlainTeller
from ztunnel_trio.model.address import SocketAddress

READY_SECONDS = 0.6
SECONDS = 120.0
AS_HERE = 1.5  # of the cost of a start from a virtual environment
TRIES = 5  # for a figure of the clock, on a machine that does other work
READY = re.compile(r"\((?P<number>[\d.]+)(?P<unit>ms|s)\), marking server ready")


def command(image: Image, state: Path) -> list[str]:
    return [sys.executable, "-m", "tests.image.container", str(image.files), str(state)]


def inside(image: Image, state: Path, *arguments: str, fails: bool = False) -> str:
    """Run the image's interpreter in place of its proxy, all else as the chart has it; what it printed."""
    (program,) = image.files.glob("usr/bin/python3*")
    given = {}
    for variable in FILES_OF_LAB:
        (state / variable).touch()
        given[variable] = str(state / variable)
    configuration = bundle(image.files, given)
    process = configuration["process"]
    assert isinstance(process, dict)
    process["args"] = [f"/usr/bin/{program.name}", "-I", *arguments]
    (state / "config.json").write_text(json.dumps(configuration))
    runc = ["runc", "--root", str(state / "runc"), "run", "--bundle", str(state), "inside"]
    done = subprocess.run(runc, capture_output=True, text=True, check=False)
    assert (done.returncode != 0) == fails, done.stderr
    return done.stdout + done.stderr


@trio_test(seconds=SECONDS)
async def test_the_demos_data_path_runs_in_containers(image: Image, state: Path) -> None:
    told = io.StringIO()

    kept = await demo.run(PlainTeller(told), settings=LabSettings(command=command(image, state)))

    assert kept, told.getvalue()
    assert "all as promised" in told.getvalue()


@dataclass(frozen=True, slots=True)
class Start:
    """What a start took until ready: by the proxy's own clock, and in processor time of the whole process."""

    clock_seconds: float
    processor_seconds: float


async def start_once(proxy_command: list[str] | None) -> Start:
    """Start a proxy in a lab, and end it."""
    settings = LabSettings(nodes=["node-1"], command=proxy_command, watch_wire=False)
    async with open_lab(settings) as lab:
        await lab.add_pod("client", node="node-1")
        await lab.start()
        proxy = lab.nodes["node-1"].proxy
        used = proxy.usage().cpu_seconds
        with trio.fail_after(10):
            ready = READY.search(await proxy.log.wait_text("marking server ready"))
            assert ready is not None
            assert await proxy.stop() == 0
        return Start(float(ready["number"]) / (1000 if ready["unit"] == "ms" else 1), used)


@trio_test(seconds=SECONDS)
async def test_a_container_is_ready_soon_and_ends_when_asked(image: Image, state: Path) -> None:
    starts: list[Start] = []
    while len(starts) < TRIES and not (starts and starts[-1].clock_seconds < READY_SECONDS):
        starts.append(await start_once(command(image, state)))
    own = await start_once(None)

    took = min(start.clock_seconds for start in starts)
    cost = min(start.processor_seconds for start in starts)
    here = f"{own.processor_seconds:.2f} s here with CPython {sys.version.partition(' ')[0]}"
    sys.stdout.write(f"start to ready: {took:.3f} s; processor time {cost:.2f} s, {here}\n")
    if os.getloadavg()[0] < (os.cpu_count() or 1):
        assert took < READY_SECONDS, starts
    # A clock tells nothing of this program where others wait for the cores; stale byte code costs eightfold.
    assert cost < AS_HERE * own.processor_seconds, (starts, own)


def test_the_chart_gives_no_more_than_three_capabilities(image: Image, state: Path) -> None:
    code = "print([line for line in open('/proc/self/status') if line.startswith('Cap')])"

    shown = inside(image, state, "-c", code)

    # CAP_NET_ADMIN 12, CAP_NET_RAW 13, CAP_SYS_ADMIN 21
    mask = f"{1 << 12 | 1 << 13 | 1 << 21:016x}"
    assert re.findall(r"Cap(\w+):\\t(\w+)", shown) == [
        ("Inh", "0" * 16),
        ("Prm", mask),
        ("Eff", mask),
        ("Bnd", mask),
        ("Amb", "0" * 16),
    ]


@pytest.mark.parametrize("place", ["/x", "/etc/x", "/var/x", "/usr/lib/x"])
def test_the_root_cannot_be_written(image: Image, state: Path, place: str) -> None:
    code = f"open({place!r}, 'w')"

    assert "Read-only file system" in inside(image, state, "-c", code, fails=True)


def test_its_tls_is_of_the_newest_kind(image: Image, state: Path) -> None:
    shown = inside(image, state, "-c", "import ssl; print(ssl.OPENSSL_VERSION_INFO >= (3, 5))")

    assert shown == "True\n"


@trio_test(seconds=SECONDS)
@pytest.mark.parametrize("policy", ["pqc", "none"])
async def test_pqc_is_kept_by_both_ends_and_refuses_older_peers(
    image: Image, state: Path, tmp_path: Path, policy: str
) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()

    async with alone(shared, command(image, state), COMPLIANCE_POLICY=policy) as scene:
        assert await exchange(scene.client, scene.target) == HELLO
        outsider = await scene.lab.add_outsider("outsider")
        greeted = await older_handshake(outsider, SocketAddress(scene.server.ip, HBONE_PORT))

    assert greeted == (policy != "pqc")


async def older_handshake(outsider: Pod, address: SocketAddress) -> bool:
    """Whether a TLS client that knows X25519 alone gets through its handshake. It shows no certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_ecdh_curve("X25519")
    context.set_alpn_protocols(["h2"])
    with trio.fail_after(10):
        async with await outsider.connect(address) as stream:
            try:
                await trio.SSLStream(stream, context).do_handshake()
            except trio.BrokenResourceError as error:
                assert "HANDSHAKE_FAILURE" in str(error.__cause__)  # an alert: no group in common
                return False
            return True
