"""The nursery of all workload proxies: pods, the dedicated workload and the proxy's own, all alike.

`start` returns when every port of the pod is bound; `end` ends a proxy at once, and `wait_gone` returns when
its last task is gone. A proxy that fails later is a bug: it is logged, counted against readiness, and
started again in the same namespace.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import partial
from typing import Final, Protocol

import trio

from ztunnel_trio.errors import Unavailable
from ztunnel_trio.model.certificate_key import AttestedPod
from ztunnel_trio.model.ending import PodGone
from ztunnel_trio.model.workload import WorkloadInfo
from ztunnel_trio.net.failures import ending_of
from ztunnel_trio.net.netns import Netns
from ztunnel_trio.net.sockets import BindFailed, SocketFactory
from ztunnel_trio.observe.log import get_logger, span
from ztunnel_trio.observe.words import ending_text, os_error_text
from ztunnel_trio.proxy.node import Certificates, NodeParts
from ztunnel_trio.proxy.registry import Registry
from ztunnel_trio.proxy.workload_proxy import MakeNameServer, WorkloadProxy
from ztunnel_trio.supervise.drain import Drain
from ztunnel_trio.supervise.keep_running import Done, Failed, Part, RunEnd, Supervisor
from ztunnel_trio.supervise.readiness import Gate

log = get_logger("inpod::statemanager")

CANNOT_START: Final = "proxy of %s cannot start again: %s, next try in %.1fs"


class ProxyNotStarted(Unavailable):
    """A workload's ports could not be bound; the text says which and why."""


class HeldCertificates(Certificates, Protocol):
    """A pod's certificates, and what to do when it is gone; `certs.keeper.PodCertificates` is one."""

    def forget(self) -> None: ...


class PlacementState(Enum):
    """As the config dump shows it."""

    PENDING = "Pending"
    UP = "Up"


@dataclass(slots=True, eq=False)
class Placement:
    """One workload's place among the proxies: its namespace, its state, its scope."""

    info: WorkloadInfo
    netns: Netns | None  # None: the process's own
    is_own: bool = False  # the proxy's own inbound listener, for its metrics over HBONE
    state: PlacementState = PlacementState.PENDING
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    gone: trio.Event = field(default_factory=trio.Event)
    registry: Registry = field(default_factory=Registry)
    proxy: WorkloadProxy | None = None  # bound, or running
    certificates: HeldCertificates | None = None
    has_failed: bool = False  # and is to be started again

    def leave(self) -> None:
        """Give back what it had: ports, namespace."""
        if self.proxy is not None:
            self.proxy.close()
        if self.certificates is not None:
            self.certificates.forget()
        if self.netns is not None:
            self.netns.close()
        self.gone.set()


@dataclass(slots=True, eq=False)
class WorkloadProxies:
    """Proxies live in `nursery`, which the app opened; `make_sockets` gives the sockets of a placement."""

    node: NodeParts
    nursery: trio.Nursery
    drain: Drain
    make_sockets: Callable[[Placement], SocketFactory]
    make_name_server: MakeNameServer | None
    certificates_of: Callable[[AttestedPod], HeldCertificates]
    supervisor: Supervisor = field(default_factory=Supervisor)
    gate: Gate | None = None  # open unless a proxy failed
    placements: dict[str, Placement] = field(default_factory=dict)
    pending: dict[str, WorkloadInfo] = field(default_factory=dict)
    is_gate_closed: bool = False

    async def start(self, uid: str, info: WorkloadInfo, netns: Netns) -> None:
        """Bind a pod's ports and serve them. Once started, the namespace is theirs to close.

        Raises:
            ProxyNotStarted: a port could not be bound. Nothing is left running, the namespace stays the
                caller's, and the pod is listed as pending until it starts or is stopped.
        """
        await trio.lowlevel.checkpoint()  # what follows happens wholly or not at all
        self.pending[uid] = info
        try:
            self.move_in(uid, Placement(info, netns))
            del self.pending[uid]
        finally:
            self.report()

    async def start_here(
        self, uid: str, info: WorkloadInfo, *, is_own: bool = False, begin: trio.Event | None = None
    ) -> None:
        """Bind a workload's ports in the process's own namespace; serve them from `begin` on.

        Raises:
            ProxyNotStarted: a port could not be bound.
        """
        await trio.lowlevel.checkpoint()
        self.move_in(uid, Placement(info, None, is_own), begin)

    def move_in(self, uid: str, placement: Placement, begin: trio.Event | None = None) -> None:
        """Bind, then live in the nursery: all that can fail at the start has happened by then."""
        netns = None if placement.netns is None else placement.netns.key
        placement.certificates = self.certificates_of(AttestedPod(uid, placement.info, netns))
        try:
            placement.proxy = self.bind(placement)
        except OSError as error:
            text = str(error) if isinstance(error, BindFailed) else os_error_text(error)
            raise ProxyNotStarted(text) from error
        if begin is None:
            placement.state = PlacementState.UP
        self.placements[uid] = placement
        self.nursery.start_soon(self.live, uid, placement, begin)

    def end(self, uid: str) -> None:
        """End a workload's proxy at once, without waiting for it to be gone. An unknown uid is fine.

        The peers of its tunnels are told where that can be written without waiting: its network is going.
        """
        self.pending.pop(uid, None)
        if (placement := self.placements.get(uid)) is not None:
            placement.scope.cancel(reason="pod deleted")
            if placement.proxy is not None:
                placement.proxy.say_goodbye(PodGone())
        self.report()

    async def wait_gone(self, uid: str) -> None:
        """Wait until the last task of a proxy that was ended is gone."""
        await trio.lowlevel.checkpoint()
        if (placement := self.placements.get(uid)) is not None:
            await placement.gone.wait()

    def bind(self, placement: Placement) -> WorkloadProxy:
        """A workload's proxy with all its ports bound, not yet serving."""
        assert placement.certificates is not None
        node = replace(self.node, certificates=placement.certificates)
        proxy = WorkloadProxy(
            node, placement.info, self.make_sockets(placement), placement.registry, placement.is_own
        )
        with span("proxy", wl=f"{placement.info.namespace}/{placement.info.name}"):
            proxy.bind(None if placement.is_own else self.make_name_server)
        return proxy

    async def live(self, uid: str, placement: Placement, begin: trio.Event | None) -> None:
        """One placement: serve until drained or stopped; a proxy that failed is started again."""
        if placement.netns is not None:
            self.node.metrics.proxy_started()
        try:
            with placement.scope, span("proxy", wl=f"{placement.info.namespace}/{placement.info.name}"):
                if begin is None or await self.drain.lets_come(begin):
                    await self.serve(placement)
        finally:
            placement.leave()
            if placement.netns is not None:
                self.node.metrics.proxy_stopped()
            if self.placements.get(uid) is placement:
                del self.placements[uid]
            self.report()

    async def serve(self, placement: Placement) -> None:
        """Run the proxy; one that fails is bound and run again, for as long as nobody drains."""
        part = Part(
            kind="workload proxy",
            name=f"proxy of {placement.info}",
            gate=Serving(self, placement),
            log=log,
        )
        run = partial(self.serve_once, placement)
        await self.supervisor.keep_running(part, run, pause=self.drain.leaves_time)

    async def serve_once(self, placement: Placement) -> RunEnd:
        """Run the proxy until it has drained, bound anew where the run before failed."""
        if placement.proxy is None:
            try:
                placement.proxy = self.bind(placement)
            except OSError as error:
                text = ending_text(ending_of(error))
                return Failed(partial(log.warning, CANNOT_START, placement.info, text))
        placement.state, placement.has_failed = PlacementState.UP, False
        self.report()
        await placement.proxy.run(self.drain)
        return Done()

    def has_failed(self, placement: Placement) -> None:
        """A workload's proxy does not run and is to be started again."""
        placement.proxy, placement.state, placement.has_failed = None, PlacementState.PENDING, True
        self.report()

    def report(self) -> None:
        """Tell the gauges how many pods' proxies are up and how many are not; and readiness, of failures."""
        states = [placement.state for placement in self.pods().values()]
        up = states.count(PlacementState.UP)
        self.node.metrics.proxies(active=up, pending=len(self.pending) + len(states) - up)
        has_failed = any(placement.has_failed for placement in self.placements.values())
        if self.gate is not None and has_failed is not self.is_gate_closed:
            self.is_gate_closed = has_failed
            if has_failed:
                self.gate.close()
            else:
                self.gate.open()

    def states(self) -> Mapping[str, Placement | WorkloadInfo]:
        """Every pod by uid: its placement, or what is known of one whose start failed."""
        return {**self.pending, **self.pods()}

    def pods(self) -> Mapping[str, Placement]:
        """The placements of pods, by uid."""
        return {uid: placement for uid, placement in self.placements.items() if placement.netns is not None}


@dataclass(frozen=True, slots=True)
class Serving:
    """The supervisor's gate of one proxy: closed while it does not serve."""

    workload_proxies: WorkloadProxies
    placement: Placement

    def close(self) -> None:
        self.workload_proxies.has_failed(self.placement)
