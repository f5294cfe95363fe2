"""History does not matter: a proxy that lived through anything answers as one that is told the end at once.

A history is what istiod does over time: resources put, changed, removed and put again, in responses of
several, split into slices; streams that end, with changes while there is none; reconnects that name all
versions, or have no room to. It is lived over the real discovery core and the real slices (`control.apply`);
a fresh proxy is told the end state in one response. Compared are the dump, where connections go, and what DNS
answers.

Longer: `python -m tests.property.test_histories 5000`.
"""

import logging
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import TypeVar

import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from ztunnel_trio.control.apply import Application
from ztunnel_trio.decide.answer import Addresses, NameSettings, answer
from ztunnel_trio.decide.balance import Draws
from ztunnel_trio.decide.known import Known
from ztunnel_trio.decide.route import OutboundRequest, Route, route
from ztunnel_trio.facts.network import ADDRESS_TYPE, AUTHORIZATION_TYPE
from ztunnel_trio.live_mesh import LiveMesh
from ztunnel_trio.mesh.document import (
    Json,
    clashes_document,
    policy_document,
    service_document,
    staged_document,
    workload_document,
)
from ztunnel_trio.mesh.mesh import Mesh
from ztunnel_trio.model.address import SocketAddress
from ztunnel_trio.model.workload import Workload
from ztunnel_trio.pb import authorization_pb2, workload_pb2, xds_pb2
from ztunnel_trio.supervise.pace import Pace
from ztunnel_trio.wire.ads import Discovery, NodeFacts, Subscription
from ztunnel_trio.wire.delta_response import ResponseSplitter
from ztunnel_trio.wire.rejection import Rejections

T = TypeVar("T")

HISTORIES = 300
UIDS = ("c//Pod/ns/a", "c//Pod/ns/b", "entry/c")
HOSTS = ("a.ns.svc.cluster.local", "b.ns.svc.cluster.local", "*.wild.example")
SERVICES = (
    "ns/a.ns.svc.cluster.local",
    "ns/b.ns.svc.cluster.local",
    "other/a.ns.svc.cluster.local",
    "ns/*.wild.example",
)
VIPS = ("10.0.0.1", "10.1.0.1", "10.1.0.2")
POLICIES = ("ns/p", "root/q", "no-slash")
ENOUGH_TO_NAME_ALL, TOO_LITTLE = 4 * 1024 * 1024, 260  # bytes of a request
SOURCES = (
    Workload(uid="s", namespace="ns", node="n1", addresses=(ip_address("10.0.9.1"),)),
    Workload(uid="t", namespace="other", node="n2", addresses=(ip_address("10.0.9.2"),)),
)
TARGETS = [
    SocketAddress(ip_address(ip), port)
    for ip in (*VIPS, "10.0.0.2", "10.1.0.77", "192.0.2.1")
    for port in (80, 22)
]
NAMES = (*HOSTS[:2], "x.wild.example", "a", "wild.example")

Payload = tuple[str, str, bytes]
"""Type URL, resource name, encoded resource."""


class Picks:
    """Chooses at random, from a seed or under hypothesis."""

    def __init__(self, choose: Callable[[int], int]) -> None:
        self.below = choose

    def one(self, options: Sequence[T]) -> T:
        return options[self.below(len(options))]

    def some(self, options: Sequence[T]) -> list[T]:
        return [option for option in options if self.below(2)]


def workload(picks: Picks, uid: str) -> Payload:
    ports = workload_pb2.PortList(
        ports=[workload_pb2.Port(service_port=80, target_port=picks.one((0, 8080)))]
    )
    message = workload_pb2.Workload(
        uid=uid,
        name=uid[-1],
        namespace="ns",
        addresses=[ip_address(f"10.0.0.{1 + picks.below(2)}").packed][: 1 + picks.below(4)],
        tunnel_protocol=picks.one((workload_pb2.NONE, workload_pb2.HBONE)),
        status=picks.one((workload_pb2.HEALTHY, workload_pb2.UNHEALTHY)),
        node=picks.one(("n1", "n2")),
        network_mode=workload_pb2.HOST_NETWORK if not picks.below(6) else workload_pb2.STANDARD,
        services=dict.fromkeys(picks.some(SERVICES), ports),
        authorization_policies=picks.some(POLICIES),
    )
    return ADDRESS_TYPE, uid, workload_pb2.Address(workload=message).SerializeToString()


def service(picks: Picks, name: str) -> Payload:
    namespace, _, hostname = name.partition("/")
    vips = [workload_pb2.NetworkAddress(address=ip_address(vip).packed) for vip in picks.some(VIPS)]
    if not picks.below(3):
        vips.append(workload_pb2.NetworkAddress(address=ip_address("10.1.0.0").packed, length=24))
    balancing = workload_pb2.LoadBalancing(
        mode=picks.one((workload_pb2.LoadBalancing.UNSPECIFIED_MODE, workload_pb2.LoadBalancing.PASSTHROUGH)),
        health_policy=picks.one(
            (workload_pb2.LoadBalancing.ONLY_HEALTHY, workload_pb2.LoadBalancing.ALLOW_ALL)
        ),
    )
    message = workload_pb2.Service(
        name=hostname.partition(".")[0],
        namespace=namespace,
        hostname=hostname,
        addresses=vips,
        ports=[workload_pb2.Port(service_port=80, target_port=picks.one((80, 8080)))],
        load_balancing=balancing if picks.below(2) else None,
        canonical=not picks.below(3),
        visibility=picks.one((workload_pb2.Service.PUBLIC, workload_pb2.Service.NAMESPACE)),
    )
    return ADDRESS_TYPE, name, workload_pb2.Address(service=message).SerializeToString()


def policy(picks: Picks, name: str) -> Payload:
    message = authorization_pb2.Authorization(
        name=name.rpartition("/")[2],
        namespace=picks.one(("ns", "root")),
        scope=picks.one(
            (
                authorization_pb2.GLOBAL,
                authorization_pb2.NAMESPACE,
                authorization_pb2.WORKLOAD_SELECTOR,
            )
        ),
        action=picks.one((authorization_pb2.ALLOW, authorization_pb2.DENY)),
    )
    return AUTHORIZATION_TYPE, name, message.SerializeToString()


def any_resource(picks: Picks) -> Payload:
    make, names = picks.one(((workload, UIDS), (service, SERVICES), (policy, POLICIES)))
    return make(picks, picks.one(names))


@dataclass
class Istiod:
    """What istiod has, and how it tells: changes to a stream, the difference to a new one."""

    resources: dict[tuple[str, str], tuple[str, bytes]] = field(default_factory=dict)
    versions: int = 0

    def put(self, payload: Payload) -> None:
        type_url, name, body = payload
        self.versions += 1
        self.resources[type_url, name] = (f"v{self.versions}", body)

    def response(self, type_url: str, names: Sequence[str], removed: Sequence[str] = ()) -> bytes:
        message = xds_pb2.DeltaDiscoveryResponse(type_url=type_url, nonce="n", removed_resources=removed)
        for name in names:
            version, body = self.resources[type_url, name]
            message.resources.add(name=name, version=version).resource.value = body
        return message.SerializeToString()

    def names(self, type_url: str) -> list[str]:
        return [name for kind, name in self.resources if kind == type_url]

    def answer(self, request: bytes) -> tuple[str, bytes]:
        """The first answer of a stream: what it does not name in its version, and what it names in vain."""
        asked = xds_pb2.DeltaDiscoveryRequest.FromString(request)
        told = asked.initial_resource_versions
        names = self.names(asked.type_url)
        changed = [name for name in names if told.get(name) != self.resources[asked.type_url, name][0]]
        removed = [name for name in told if name not in names]
        return asked.type_url, self.response(asked.type_url, changed, removed)


class Proxy:
    """What of a proxy hears istiod: the discovery core, the slices, the mesh."""

    def __init__(self, istiod: Istiod, picks: Picks, request_limit_bytes: int) -> None:
        self.istiod, self.picks = istiod, picks
        self.mesh = Mesh(local_node="n1")
        facts = NodeFacts(instance_ip="1.1.1.1", pod_name="z", pod_namespace="s", node_name="n1")
        self.discovery = Discovery(
            facts.as_node(),
            [Subscription(ADDRESS_TYPE), Subscription(AUTHORIZATION_TYPE)],
            request_limit_bytes=request_limit_bytes,
        )
        self.moment = 0.0
        pace = Pace(now=self.now)
        self.application = Application(
            LiveMesh(self.mesh), self.discovery, pace, on_arrival=lambda arrived: None
        )
        self.draws = Draws()

    def now(self) -> float:
        """Some looks at the clock end a slice."""
        self.moment += self.picks.one((0.0, 1.0))
        return self.moment

    async def connect(self) -> None:
        for request in list(self.discovery.open_stream()):
            if request is not None:
                _, response = self.istiod.answer(request)
                await self.take(response)

    async def take(self, data: bytes) -> None:
        splitter = ResponseSplitter(len(data))
        at = self.picks.below(len(data) + 1)
        for piece in (data[:at], data[at:]):
            splitter.feed(piece)
        response, rejections = splitter.finish(), Rejections()
        await self.application.apply(response, rejections)
        assert self.discovery.finish(response, rejections).error is None

    async def follow(self) -> None:
        """One event of a history."""
        istiod, picks = self.istiod, self.picks
        event = picks.below(6)
        if event == 0:  # a reconnect, and what happened meanwhile
            for _ in range(picks.below(3)):
                istiod.put(any_resource(picks))
            for key in picks.some(list(istiod.resources)[:3]):
                del istiod.resources[key]
            await self.connect()
            return
        put = [any_resource(picks) for _ in range(picks.below(4))] if event > 1 else []
        for payload in put:
            istiod.put(payload)
        gone = [key for key in picks.some(list(istiod.resources)) if event < 4 and picks.below(2)]
        gone = [key for key in gone if key not in {(type_url, name) for type_url, name, _ in put}]
        for key in gone:
            del istiod.resources[key]
        for type_url in (ADDRESS_TYPE, AUTHORIZATION_TYPE):
            names = list(dict.fromkeys(name for kind, name, _ in put if kind == type_url))
            removed = [name for kind, name in gone if kind == type_url]
            await self.take(istiod.response(type_url, names, removed))
        if not picks.below(3):
            ask(self)  # what was found out before must not matter either

    def dump(self) -> dict[str, Json]:
        mesh = self.mesh
        return {
            "workloads": {each.uid: workload_document(each) for each in mesh.workloads()},
            "services": {
                str(each.key): service_document(each, mesh.endpoints(each.key)) for each in mesh.services()
            },
            "staged": staged_document(mesh.without_service()),
            "policies": {
                name: policy_document(found)
                for name in mesh.policy_keys()
                if (found := mesh.policy(name)) is not None
            },
            "clashes": clashes_document(mesh.service_clashes(), mesh.workload_clashes()),
            "attached": {
                each.uid: [found.key for found in mesh.policies_for(each)[0]] for each in mesh.workloads()
            },
        }


@dataclass(frozen=True)
class Always:
    """A chance that comes out the same each time."""

    number: int

    def randrange(self, stop: int, /) -> int:
        return self.number % stop

    def choice(self, options: Sequence[T], /) -> T:
        return options[self.number % len(options)]

    def choices(self, options: Sequence[T], weights: Sequence[int], /) -> list[T]:
        return [options[self.number % len(options)]]


def ask(proxy: Proxy) -> tuple[list[set[str]], list[str]]:
    """Where connections may go, over every chance, and what names resolve to."""
    routes = []
    for source in SOURCES:
        for target in TARGETS:
            request = OutboundRequest(source, source.addresses[0], target, "")
            routes.append({told(proxy, request, Always(number)) for number in range(len(UIDS))})
    names = []
    for source in SOURCES:
        for name in NAMES:
            verdict = answer(name, version=4, client=source, mesh=proxy.mesh, settings=NameSettings())
            if isinstance(verdict, Addresses):
                names.append(f"{sorted(map(str, verdict.addresses))} {verdict.alias_of}")
            else:
                names.append(str(verdict))
    return routes, names


def told(proxy: Proxy, request: OutboundRequest, chance: Always) -> str:
    found = route(request, proxy.mesh, Known(), chance, on_demand=False, draws=proxy.draws)
    if not isinstance(found, Route):
        return str(found)
    uid = None if found.workload is None else found.workload.uid
    key = None if found.service is None else str(found.service.key)
    to = (found.protocol, found.destination, found.authority, found.expected)
    return f"{[str(each) for each in to]} {uid} {key} {found.notes}"


async def compare(picks: Picks) -> None:
    """Live one history and compare."""
    istiod = Istiod()
    lived = Proxy(istiod, picks, picks.one((ENOUGH_TO_NAME_ALL, TOO_LITTLE)))
    await lived.connect()
    for _ in range(1 + picks.below(8)):
        await lived.follow()
    fresh = Proxy(istiod, picks, ENOUGH_TO_NAME_ALL)
    await fresh.connect()

    assert lived.dump() == fresh.dump()
    assert ask(lived) == ask(fresh)


@contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings a history is full of."""
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def live_seeded(histories: int, first: int = 0) -> None:
    async def main() -> None:
        for seed in range(first, first + histories):
            rng = random.Random(seed)
            try:
                await compare(Picks(rng.randrange))
            except AssertionError as error:
                raise AssertionError(f"history {seed}") from error

    with quiet():
        trio.run(main)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_history_can_be_forgotten(data: st.DataObject) -> None:
    picks = Picks(lambda stop: data.draw(st.integers(0, stop - 1)))

    with quiet():
        trio.run(compare, picks)


def test_many_histories_do_not_matter() -> None:
    live_seeded(HISTORIES)


if __name__ == "__main__":
    began, count = time.monotonic(), int(sys.argv[1]) if len(sys.argv) > 1 else HISTORIES
    live_seeded(count)
    sys.stdout.write(f"{count} histories in {time.monotonic() - began:.1f} s\n")
