"""The open connections of one workload: asked again when policies change, listed in the dump.

An inbound connection is held before its first judgement, so that no concurrent change is missed, and
judged again whenever an Authorization changes or other policies are attached to the workload. Equal
connections (streams of one tunnel to one port) share an entry; it goes with its last holder.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Protocol

import trio

from ztunnel_trio.live_mesh import LiveMesh
from ztunnel_trio.model.address import SocketAddress
from ztunnel_trio.model.connection import InboundConnection
from ztunnel_trio.model.refusal import Reason, Refusal
from ztunnel_trio.model.workload import OutboundProtocol, Workload, WorkloadInfo
from ztunnel_trio.observe.log import get_logger

log = get_logger("proxy::connection_manager")

CHECKPOINT_EVERY: Final = 256


class Cancellable(Protocol):
    """What can be ended from outside: a cancel scope, or the pumps of a connection."""

    def cancel(self, *, reason: str | None = None) -> None:
        """End it now."""


@dataclass(slots=True, eq=False)
class Hold:
    """One holder of a connection. `refusal` says why it is to end, once it is set.

    `workload` is the record the connection was first judged by; `body` is what the connection waits in, if
    it waits.
    """

    workload: Workload
    body: Cancellable | None = None
    refusal: Refusal | None = None

    def end(self, refusal: Refusal) -> None:
        """End the connection for this reason; the first reason given stays."""
        if self.refusal is None:
            self.refusal = refusal
            if self.body is not None:
                self.body.cancel(reason=refusal.reason.value)


@dataclass(frozen=True, slots=True)
class InboundKey:
    """What makes inbound connections one entry. `host` is what the `forwarded` header names."""

    connection: InboundConnection
    host: str | None = None

    def __hash__(self) -> int:
        source = self.connection.source  # tells nearly all apart; the whole would take ten calls
        return hash((int(source.ip), source.port))


@dataclass(slots=True, eq=False)
class OutboundEntry:
    """An outbound connection, for the dump only."""

    source: SocketAddress
    original: SocketAddress
    actual: SocketAddress
    protocol: OutboundProtocol


Judge = Callable[[InboundConnection, Workload], bool]


@dataclass(slots=True, eq=False)
class Registry:
    """State: the holders of each inbound key, and the outbound entries."""

    inbound: dict[InboundKey, list[Hold]] = field(default_factory=dict)
    outbound: set[OutboundEntry] = field(default_factory=set)

    def add(self, key: InboundKey, hold: Hold) -> None:
        """List an inbound connection; to be done before it is judged."""
        self.inbound.setdefault(key, []).append(hold)

    def remove(self, key: InboundKey, hold: Hold) -> None:
        """The connection is over."""
        holders = self.inbound[key]
        holders.remove(hold)
        if not holders:
            del self.inbound[key]

    def close(self, key: InboundKey, refusal: Refusal) -> None:
        """End every connection of a key."""
        for held in self.inbound.get(key, ()):
            held.end(refusal)

    async def watch(self, live: LiveMesh, info: WorkloadInfo, judge: Judge) -> None:
        """Judge all inbound connections again whenever a verdict may have changed; never returns."""
        version = live.policies_changed.version
        while True:
            version, _ = await live.policies_changed.newer_than(version)
            await self.judge_again(live, info, judge)

    async def judge_again(self, live: LiveMesh, info: WorkloadInfo, judge: Judge) -> None:
        """End what is no longer allowed. While the workload is gone, what it was last known as is judged."""
        present = live.mesh.local_workload(info)
        for n, key in enumerate(list(self.inbound), start=1):
            holders = self.inbound.get(key)
            if not holders:
                continue
            workload = present or holders[0].workload
            if not judge(key.connection, workload):
                c = key.connection
                log.info(
                    "connection %s(%s)->%s (%s) closed because it's no longer allowed after a policy update",
                    c.source,
                    c.identity,
                    c.destination,
                    workload.uid,
                )
                self.close(key, Refusal(Reason.POLICY_CHANGE))
            if n % CHECKPOINT_EVERY == 0:
                await trio.lowlevel.checkpoint()
