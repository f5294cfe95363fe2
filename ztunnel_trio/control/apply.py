"""A response of istiod into the live mesh: decoded and applied in slices, so that nobody waits for it long.

Theory of operation. Some resources are decoded off to the side, then applied to the mesh in one synchronous
step; then others run (`supervise.pace`). Each slice leaves the mesh consistent; what a response removes comes
after what it brings.

A large response stops the garbage collector while it is applied and freezes what it left: the mesh is
acyclic, and collections over hundreds of thousands of objects would stop every connection.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Final

import trio

from ztunnel_trio.facts.network import ADDRESS_TYPE
from ztunnel_trio.live_mesh import LiveMesh
from ztunnel_trio.mesh.entries import AddressEntry, PolicyEntry
from ztunnel_trio.mesh.mesh import Batch
from ztunnel_trio.shortcuts import collector
from ztunnel_trio.supervise.pace import Pace
from ztunnel_trio.wire.ads import Arrived, Discovery
from ztunnel_trio.wire.delta_response import DiscoveryResponse, Resource, read_resources
from ztunnel_trio.wire.rejection import RejectedResource, Rejections
from ztunnel_trio.xds.address import ArrivedWorkload, read_address, read_workloads
from ztunnel_trio.xds.policy import read_policy

_DECODING: Final = 0.5  # of a slice; the rest is for applying
_DECODING_SMALL: Final = 2.5  # the same where a response is small: they come one after the other
_SMALL_RESPONSE: Final = 256  # resources
_LARGE_RESPONSE: Final = 10_000  # resources; from here on the collector pauses
_REMOVALS_AT_ONCE: Final = 32


@dataclass(slots=True, eq=False)
class _Slice:
    """Resources that are decoded, and will be applied together."""

    arrived: list[Arrived] = field(default_factory=list)
    rejected: set[str] = field(default_factory=set)
    addresses: list[AddressEntry] = field(default_factory=list)
    policies: list[PolicyEntry] = field(default_factory=list)
    received_bytes: int = 0

    def add(self, workloads: list[ArrivedWorkload]) -> None:
        """Take workloads that are decoded already."""
        self.arrived += workloads
        self.addresses += [workload.entry for workload in workloads]
        self.received_bytes += sum([workload.payload_bytes for workload in workloads])

    def decode(self, type_url: str, group: bytes, rejections: Rejections) -> None:
        """Take some more resources, or note why not."""
        for resource in read_resources(group):
            rejected = resource if isinstance(resource, RejectedResource) else self._take(type_url, resource)
            if rejected is not None:
                self.rejected.add(rejected.resource)
                rejections.add(rejected)

    def _take(self, type_url: str, resource: Resource) -> RejectedResource | None:
        """Take one resource; the value is why it cannot be taken."""
        self.arrived.append(resource)
        name, _, _, value = resource
        if value is None:
            return RejectedResource(name, "resource", "XDS payload without resource", is_undecodable=True)
        self.received_bytes += len(value)
        if type_url == ADDRESS_TYPE:
            address = read_address(name, value)
            if isinstance(address, RejectedResource):
                return address
            self.addresses.append(address)
            return None
        policy = read_policy(name, value)
        if isinstance(policy, RejectedResource):
            return policy
        self.policies.append(policy)
        return None


@dataclass(slots=True, eq=False)
class Application:
    """Applies one response after the other, and reports to the discovery core what the mesh has.

    `on_arrival` is told of the resources of each slice once the mesh has them.
    """

    live_mesh: LiveMesh
    discovery: Discovery
    pace: Pace
    on_demand: bool = field(default=False, kw_only=True)
    on_arrival: Callable[[Sequence[Arrived]], None] = field(kw_only=True)

    async def apply(self, response: DiscoveryResponse, rejections: Rejections) -> int:
        """Apply a whole response of a subscribed type; returns how many bytes of payload there were."""
        is_large = response.resources.count >= _LARGE_RESPONSE
        with collector.large_load() if is_large else nullcontext():
            received_bytes = await self._apply_resources(response, rejections)
            await self._apply_removals(response)
        return received_bytes

    async def _apply_resources(self, response: DiscoveryResponse, rejections: Rejections) -> int:
        type_url, resources, pace = response.type_url, response.resources, self.pace
        take_short_way = type_url == ADDRESS_TYPE and not self.on_demand  # that reads no aliases
        decoding = _DECODING_SMALL if resources.count <= _SMALL_RESPONSE else _DECODING
        received_bytes = 0
        while resources:
            pace.begin(decoding)
            some = _Slice()
            while resources:
                group = resources.take()
                if take_short_way and (workloads := read_workloads(group)):
                    some.add(workloads)
                else:
                    some.decode(type_url, group, rejections)
                if pace.is_over:
                    break
            self.live_mesh.apply(Batch(addresses=some.addresses, policies=some.policies))
            self.discovery.received(type_url, some.arrived, some.rejected)
            self.on_arrival(some.arrived)
            received_bytes += some.received_bytes
            await pace.rest()
        return received_bytes

    async def _apply_removals(self, response: DiscoveryResponse) -> None:
        """Remove what the response says and what it shows to be gone."""
        type_url = response.type_url
        for start in range(0, len(response.removed), _REMOVALS_AT_ONCE):
            await self._remove(type_url, response.removed[start : start + _REMOVALS_AT_ONCE])
        for names in self.discovery.vanished(type_url):
            await self._remove(type_url, names)

    async def _remove(self, type_url: str, names: list[str]) -> None:
        if type_url == ADDRESS_TYPE:
            self.live_mesh.apply(Batch(removed_addresses=names))
        else:
            self.live_mesh.apply(Batch(removed_policies=names))
        self.discovery.removed(type_url, names)
        await self.pace.rest()


async def count_payload(response: DiscoveryResponse) -> int:
    """Drop the resources of a type nobody asked for; returns how many bytes of payload there were."""
    received_bytes = 0
    while response.resources:
        for resource in read_resources(response.resources.take()):
            if isinstance(resource, Resource):
                received_bytes += len(resource.value or b"")
        await trio.lowlevel.checkpoint()
    return received_bytes
