"""Certificates from SPIRE for a node full of pods: `python -m tests.benchmarks.spire_pods [--pods 200]`.

Pods are added to one node whose proxy gets a certificate for each from a stand-in agent. Told are the time
until every stream is open and its certificate there, how many streams were opening at one time, and the p99
of round trips between two other pods: quiet, and while every pod's certificate rotates within a minute.
Exit code 1 when the streams take longer than ten seconds, or the p99 rises by more than half.
"""

import argparse
import json
import statistics
import sys
import time

import trio

from tests.benchmarks.operators import say
from tests.netns.tools import HELLO, exchange, read_exactly
from ztunnel_trio.lab import apps
from ztunnel_trio.lab.mesh import Lab, LabSettings, open_lab
from ztunnel_trio.lab.spire_agent import Account
from ztunnel_trio.model.address import SocketAddress

PORT = 8080
OPEN_SECONDS = 10.0
MOST_RISE = 1.5
SAMPLES = 1000
MINUTE = 60.0


async def measure(pods: int) -> bool:
    settings = LabSettings(
        watch_wire=False, spire="spire_delegated_selectors", environment={"RUST_LOG": "warn"}
    )
    async with open_lab(settings) as lab:
        client = await lab.add_pod("client", node="node-1")
        server = await lab.add_pod("server", node="node-2")
        target = SocketAddress(server.ip, PORT)
        await server.serve(PORT, apps.echo)
        await lab.start()
        assert await exchange(client, target) == HELLO
        opening = await open_streams(lab, pods)
        async with await client.connect(target) as stream:
            quiet = await p99(stream)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(rotate, lab, pods)
                busy = await p99(stream)
                nursery.cancel_scope.cancel()
    say(f"p99 of round trips {quiet * 1e6:.0f} us, {busy * 1e6:.0f} us while {pods} rotate within a minute")
    return opening < OPEN_SECONDS and busy < quiet * MOST_RISE


async def open_streams(lab: Lab, pods: int) -> float:
    """Add pods to a node whose agent does not answer yet, let it answer; seconds until all are certified."""
    assert lab.spire is not None
    agent = lab.spire.agent
    agent.is_silent = True
    for number in range(pods):
        await lab.add_pod(f"pod-{number}", node="node-1", dns=False)
    agent.is_silent = False
    agent.opened.clear()
    began = trio.current_time()
    agent.end_streams()
    while await available(lab) < pods:  # noqa: ASYNC110  the proxy does it by itself
        await trio.sleep(0.1)
    took = trio.current_time() - began
    say(f"{pods} streams open and certificates there in {took:.1f} s, {agent.most_at_once} opening at once")
    return took


async def available(lab: Lab) -> int:
    """Pods of the node that have a certificate."""
    document = json.loads((await lab.nodes["node-1"].proxy.admin("/config_dump")).text)
    names = {
        one["pod"]["name"] for one in document["certificates"] if "pod" in one and one["state"] == "Available"
    }
    return len(names - {"client"})


async def rotate(lab: Lab, pods: int) -> None:
    """Rotate one pod's certificate after the other, all of them within a minute."""
    assert lab.spire is not None
    while True:
        for number in range(pods):
            lab.spire.agent.rotate_one(Account("default", f"pod-{number}"))
            await trio.sleep(MINUTE / pods)


async def p99(stream: trio.SocketStream) -> float:
    """Of round trips, one every ten milliseconds, in seconds."""
    trips: list[float] = []
    for _ in range(SAMPLES):
        began = time.perf_counter()
        await stream.send_all(HELLO)
        await read_exactly(stream, len(HELLO))
        trips.append(time.perf_counter() - began)
        await trio.sleep(0.01)
    return statistics.quantiles(trips, n=100)[98]


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pods", type=int, default=200)
    return 0 if trio.run(measure, parser.parse_args().pods) else 1


if __name__ == "__main__":
    sys.exit(main())
