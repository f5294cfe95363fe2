"""What a mesh of many workloads costs: `python -m tests.benchmarks.mesh_scale [WORKLOADS [SERVICES]]`.

Tells the processor time of decoding and applying in slices, the memory kept, the longest slice, a full
collection, lookups, draws of an endpoint, updates, and forgetting it all. Pods are like istiod's: 20 of a
service, on 3 nodes in 100, in 3 zones.
"""

import argparse
import gc
import random
import time
from collections.abc import Callable
from ipaddress import IPv4Address
from pathlib import Path

from tests.benchmarks import yardstick
from ztunnel_trio.decide.balance import Draws, choose
from ztunnel_trio.mesh.entries import AddressEntry
from ztunnel_trio.mesh.mesh import Batch, Mesh
from ztunnel_trio.model.address import NamespacedHostname, NetworkAddress
from ztunnel_trio.pb import workload_pb2, xds_pb2
from ztunnel_trio.wire.delta_response import Resource, read_resources
from ztunnel_trio.wire.rejection import RejectedResource
from ztunnel_trio.xds.address import read_address, read_workloads

NODES = 1000
NAMESPACES = 200
SLICE_SECONDS = 0.001  # of decoding; applying takes as long
GROUP = 4


def workload_payload(n: int, services: int) -> tuple[str, bytes]:
    """One pod as istiod describes it."""
    service = n % services
    namespace, node = f"namespace-{service % NAMESPACES}", (n * 7919) % NODES
    name = f"app-{service}-6d5f7c9b84-{n:06x}"
    uid = f"Kubernetes//Pod/{namespace}/{name}"
    message = workload_pb2.Workload(
        uid=uid,
        name=name,
        namespace=namespace,
        addresses=[IPv4Address(0x0A000000 + n).packed],
        tunnel_protocol=workload_pb2.HBONE,
        service_account=f"app-{service}",
        node=f"node-{node}.example.internal",
        canonical_name=f"app-{service}",
        canonical_revision="v1",
        workload_type=workload_pb2.POD,
        workload_name=f"app-{service}",
        cluster_id="Kubernetes",
        locality=workload_pb2.Locality(region="region-1", zone=f"region-1-{node % 3}"),
        services={
            f"{namespace}/app-{service}.{namespace}.svc.cluster.local": workload_pb2.PortList(
                ports=[workload_pb2.Port(service_port=80, target_port=8080)]
            )
        },
    )
    return uid, workload_pb2.Address(workload=message).SerializeToString()


def service_payload(n: int) -> tuple[str, bytes]:
    """One Kubernetes Service as istiod describes it."""
    namespace = f"namespace-{n % NAMESPACES}"
    hostname = f"app-{n}.{namespace}.svc.cluster.local"
    message = workload_pb2.Service(
        name=f"app-{n}",
        namespace=namespace,
        hostname=hostname,
        addresses=[workload_pb2.NetworkAddress(address=IPv4Address(0x0B000000 + n).packed)],
        ports=[workload_pb2.Port(service_port=80, target_port=8080)],
        ip_families=workload_pb2.IPV4_ONLY,
        canonical=True,
    )
    return f"{namespace}/{hostname}", workload_pb2.Address(service=message).SerializeToString()


def resident() -> int:
    """Bytes of memory this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def in_groups(resources: list[tuple[str, bytes]]) -> list[bytes]:
    """Resources as a response has them, as many together as the discovery client takes at once."""
    groups = []
    for start in range(0, len(resources), GROUP):
        response = xds_pb2.DeltaDiscoveryResponse()
        for name, payload in resources[start : start + GROUP]:
            response.resources.add(name=name, version="v1").resource.value = payload
        groups.append(response.SerializeToString())
    return groups


def decoded(group: bytes) -> list[AddressEntry]:
    workloads = read_workloads(group)
    if workloads:
        return [workload.entry for workload in workloads]
    found = [one for one in read_resources(group) if isinstance(one, Resource)]
    entries = [read_address(one.name, one.value or b"") for one in found]
    return [entry for entry in entries if not isinstance(entry, RejectedResource)]


def load(mesh: Mesh, groups: list[bytes]) -> float:
    """Decode and apply in slices as the discovery client does; the longest slice in seconds."""
    longest, done, total = 0.0, 0, len(groups)
    while done < total:
        begun = time.perf_counter()
        entries: list[AddressEntry] = []
        while done < total:
            entries += decoded(groups[done])
            done += 1
            if time.perf_counter() - begun > SLICE_SECONDS:
                break
        mesh.apply(Batch(addresses=entries))
        longest = max(longest, time.perf_counter() - begun)
    return longest


def each(count: int, call: Callable[[int], object]) -> float:
    """Microseconds of one call, averaged."""
    begun = time.process_time()
    for n in range(count):
        call(n)
    return (time.process_time() - begun) / count * 1e6


def measure(chosen: argparse.Namespace) -> yardstick.Figures:
    workloads, services = chosen.workloads, chosen.services
    resources = [workload_payload(n, services) for n in range(workloads)]
    uids = [uid for uid, _ in resources]
    random.Random(1).shuffle(resources)
    resources += [service_payload(n) for n in range(services)]
    figures = {"payloads MiB": sum(len(payload) for _, payload in resources) / 2**20}
    groups = in_groups(resources)
    mesh = Mesh(local_node="node-1.example.internal")
    gc.collect()
    gc.freeze()
    gc.disable()
    before = resident()
    with yardstick.stopwatch() as took:
        figures["longest slice ms"] = load(mesh, groups) * 1e3
    figures |= {"decode and apply: s": took.wall, "decode and apply: CPU s": took.cpu}
    figures["memory kept MiB"] = (resident() - before) / 2**20
    gc.enable()
    with yardstick.stopwatch() as took:
        gc.collect()
    figures["full collection ms"] = took.wall * 1e3
    figures |= ask(mesh, uids, services)
    with yardstick.stopwatch() as took:
        load(mesh, groups[: 1000 // GROUP])
    figures["1000 updates: CPU ms"] = took.cpu * 1e3
    return figures | forget(mesh, uids)


def forget(mesh: Mesh, uids: list[str]) -> yardstick.Figures:
    """Everything goes, 256 at a time."""
    longest = 0.0
    with yardstick.stopwatch() as took:
        for start in range(0, len(uids), 256):
            begun = time.perf_counter()
            mesh.apply(Batch(removed_addresses=uids[start : start + 256]))
            longest = max(longest, time.perf_counter() - begun)
    return {"forget all workloads: CPU s": took.cpu, "longest slice of 256 ms": longest * 1e3}


def ask(mesh: Mesh, uids: list[str], services: int) -> yardstick.Figures:
    """Lookups and draws, in microseconds of processor time."""
    rng = random.Random(2)
    some = rng.sample(uids, min(4000, len(uids)))
    addresses = [NetworkAddress("", IPv4Address(0x0A000000 + n)) for n in range(1000)]
    vips = [NetworkAddress("", IPv4Address(0x0B000000 + n % services)) for n in range(1000)]
    figures = {
        "workload by uid, first time: CPU us": each(len(some), lambda n: mesh.workload(some[n])),
        "workload by uid, again: CPU us": each(len(some), lambda n: mesh.workload(some[n])),
    }
    for address in addresses:
        mesh.workload_at(address)
    figures["workload by address: CPU us"] = each(1000, lambda n: mesh.workload_at(addresses[n]))
    figures["service by VIP: CPU us"] = each(1000, lambda n: mesh.service_at(vips[n], "namespace-1"))
    source, service, draws = mesh.workload(uids[0]), next(mesh.services()), Draws()
    assert source is not None

    def draw(_n: int) -> object:
        return choose(service, 80, source, mesh, rng, waypoint=False, draws=draws)

    figures["endpoint of a service, first draw: CPU us"] = each(1, draw)
    figures["endpoint of a service, more: CPU us"] = each(1000, draw)
    assert len(mesh.endpoints(NamespacedHostname(service.namespace, service.hostname))) > 0
    return figures


if __name__ == "__main__":
    options = yardstick.options(__doc__)
    options.add_argument("workloads", type=int, nargs="?", default=200_000)
    options.add_argument("services", type=int, nargs="?", default=10_000)
    yardstick.run(options, measure, rounds=1)
