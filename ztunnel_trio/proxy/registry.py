"""The open connections of one workload: asked again when policies change, listed in the dump.

An inbound connection is held before its first judgement, so that no concurrent change is missed, and
judged again whenever an Authorization changes or other policies are attached to the workload.
"""

import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import trio

from ztunnel_trio.live_mesh import LiveMesh
from ztunnel_trio.model.address import IPAddress, SocketAddress
from ztunnel_trio.model.connection import InboundConnection
from ztunnel_trio.model.ending import Ending, PolicyChanged
from ztunnel_trio.model.workload import OutboundProtocol, Workload, WorkloadInfo
from ztunnel_trio.net.pair import Pair
from ztunnel_trio.net.sockets import SocketFactory
from ztunnel_trio.observe.log import get_logger

log = get_logger("proxy::connection_manager")

CHECKPOINT_EVERY: Final = 256
CLOSED_TEXT: Final = "connection %s(%s)->%s (%s) closed because it's no longer allowed after a policy update"


@dataclass(slots=True, eq=False)
class InboundEntry:
    """One inbound connection, from before its first judgement to its end.

    `host` is what the `forwarded` header names, `workload` the record it was first judged by. `ending` says
    why it is to end, once that was decided from outside. What an idle connection keeps, so nothing is in
    here that only its beginning needs.
    """

    connection: InboundConnection
    workload: Workload
    host: str | None = None
    ending: Ending | None = None
    _body: Pair | trio.CancelScope | None = None  # what it waits in, if it waits

    def end(self, ending: Ending) -> None:
        """End the connection for this reason; the first reason given stays."""
        if self.ending is not None:
            return
        self.ending = ending
        match self._body:
            case Pair() as pair:
                pair.cut(ending)
            case trio.CancelScope() as scope:
                scope.cancel(reason=type(ending).__name__)

    async def dial(
        self, sockets: SocketFactory, destination: SocketAddress, source: IPAddress | None, seconds: float
    ) -> socket.socket | None:
        """Connect to the application; None if the connection was ended from outside meanwhile.

        Raises:
            OSError: as the kernel gave it.
            trio.TooSlowError: not within so many seconds.
        """
        sock, is_connected = sockets.connect_nowait(destination, source)
        if is_connected:
            return sock
        with trio.CancelScope() as self._body:
            with trio.fail_after(seconds):
                await sockets.finish_connecting(sock)
        self._body = None
        if self.ending is None:
            return sock
        sock.close()
        return None

    async def relay(self, pair: Pair) -> Ending:
        """Run a pair, which this may be told to end; returns how it did."""
        self._body = pair
        if self.ending is not None:
            pair.cut(self.ending)
        return await pair.run()


@dataclass(slots=True, eq=False)
class OutboundEntry:
    """An outbound connection, for the dump only."""

    source: SocketAddress
    original: SocketAddress
    actual: SocketAddress
    protocol: OutboundProtocol


Allows = Callable[[InboundConnection, Workload], bool]
"""Decides without a word whether a connection may stay: `proxy.judge.Judge.allows`."""


@dataclass(slots=True, eq=False)
class Registry:
    """State: the connections that are open. Whoever serves one adds and removes it."""

    inbound: set[InboundEntry] = field(default_factory=set)
    outbound: set[OutboundEntry] = field(default_factory=set)

    async def watch(self, live: LiveMesh, info: WorkloadInfo, allows: Allows) -> None:
        """Judge all inbound connections again whenever a verdict may have changed; never returns."""
        version = live.policies_changed.version
        while True:
            version, _ = await live.policies_changed.newer_than(version)
            await self.judge_again(live, info, allows)

    async def judge_again(self, live: LiveMesh, info: WorkloadInfo, allows: Allows) -> None:
        """End what is no longer allowed. While the workload is gone, what it was last known as is judged.

        Equal connections - streams of one tunnel to one port - are judged and logged once.
        """
        present = live.mesh.local_workload(info)
        judged: dict[tuple[InboundConnection, int], bool] = {}  # by the workload as an object
        for n, entry in enumerate(list(self.inbound), start=1):
            connection, workload = entry.connection, present or entry.workload
            if entry not in self.inbound:
                continue
            is_allowed = judged.get((connection, id(workload)))
            if is_allowed is None:
                is_allowed = judged[connection, id(workload)] = allows(connection, workload)
                if not is_allowed:
                    log.info(
                        CLOSED_TEXT,
                        connection.source,
                        connection.identity,
                        connection.destination,
                        workload.uid,
                    )
            if not is_allowed:
                entry.end(PolicyChanged())
            if n % CHECKPOINT_EVERY == 0:
                await trio.lowlevel.checkpoint()
