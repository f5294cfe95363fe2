"""The connection to the CNI's node agent, which tells this proxy about pods; performs the roster's actions.

A part under the supervisor: connect, say hello, then one request at a time: receive, do what follows,
acknowledge. Waiting is apart from receiving and only waits are cancelled, by the retry time or a drain, so
that no datagram (and no descriptor in it) is lost and every request that was received is answered. The
agent allows five seconds for an answer, and would take a later one for the answer to its next request: a
start that takes longer is refused. What is to stop is ended before anything is waited for, so that a slow
one delays the answer only.

Back-offs as ztunnel src/inpod/workloadmanager.rs: connecting starts anew each time and doubles; a hello that
cannot be sent, and a connection that ends before its first request, wait longer each time until the proxy
was ready once more.
"""

from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from math import inf
from pathlib import Path
from typing import Final, Protocol

import trio

from ztunnel_trio.errors import PeerBrokeProtocol, Unavailable
from ztunnel_trio.inpod.roster import (
    Acknowledge,
    Action,
    CloseNetns,
    Connected,
    Disconnected,
    Ended,
    EndProcess,
    Event,
    NamespaceUnusable,
    ProxyStarted,
    Reconnect,
    RequestUnreadable,
    RetryAfter,
    RetryDue,
    Roster,
    StartFailed,
    StartProxy,
    StopProxy,
)
from ztunnel_trio.model.backoff import Backoff
from ztunnel_trio.model.workload import WorkloadInfo
from ztunnel_trio.net.netns import Netns
from ztunnel_trio.net.seqpacket import Datagram, SeqPacket
from ztunnel_trio.observe.log import get_logger
from ztunnel_trio.observe.words import os_error_text
from ztunnel_trio.supervise.drain import Drain
from ztunnel_trio.supervise.keep_running import Again, Done, Failed, Part, RunEnd, Supervisor
from ztunnel_trio.supervise.readiness import Gate
from ztunnel_trio.wire import zds

connection_log = get_logger("inpod::workloadmanager")
pod_log = get_logger("inpod::statemanager")

NO_DESCRIPTOR: Final = "no file descriptor is left (RLIMIT_NOFILE)"
GATE_NAME: Final = "workload proxy manager"  # as operators know it from the readiness log


class ProtocolMismatch(PeerBrokeProtocol):
    """The agent broke the protocol beyond repair: the process is to exit with status 1."""


class PodProxies(Protocol):
    """Who runs the pods' proxies: `proxy.workload_proxies.WorkloadProxies`."""

    async def start(self, uid: str, info: WorkloadInfo, netns: Netns) -> None:
        """Bind every port and serve; the namespace is theirs from then on.

        Raises:
            Unavailable: it could not be started; the namespace stays the caller's.
        """
        ...

    def end(self, uid: str) -> None:
        """End a proxy at once, or forget one that could not start; unknown is fine."""
        ...

    async def wait_gone(self, uid: str) -> None:
        """Wait until nothing is left of a proxy that was ended."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSettings:
    """Where the agent listens, and how patient we are."""

    path: Path  # INPOD_UDS
    connecting: Backoff = field(default=Backoff(first_seconds=0.02, limit_seconds=15.0))
    announcing: Backoff = field(default=Backoff(first_seconds=0.5, limit_seconds=15.0, jitter=0.2))
    # After the proxy was ready once: an agent that restarts is soon back.
    announcing_again: Backoff = field(default=Backoff(first_seconds=0.005, limit_seconds=15.0, jitter=0.2))
    answer_seconds: float = 4.0  # istio-cni waits 5 s (ztunnelserver.go readWriteDeadline)


class _AnnouncementFailed(Exception):
    """The connection ended before the agent had said anything."""


@dataclass(slots=True, eq=False)
class NodeAgentLink:
    """Serves one agent for ever. `run` may be called once."""

    settings: AgentSettings
    workload_proxies: PodProxies
    gate: Gate
    supervisor: Supervisor
    roster: Roster[Netns] = field(default_factory=Roster)
    _retry_at: float = float("inf")
    _wait: trio.CancelScope | None = None
    _is_draining: bool = False
    _was_ready: bool = False
    _became_ready: bool = False  # on this connection

    async def run(self, drain: Drain) -> None:
        """Connect and serve until a drain is requested; proxies are left as they are then.

        Raises:
            ProtocolMismatch: see there. In an exception group, as every nursery's.
        """
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._stop_waiting, drain)
            try:
                await self._keep_serving()
            finally:
                self._close_namespaces(self.roster.receive(Ended()))
                self.gate.close()
            connection_log.info("drain requested")
            nursery.cancel_scope.cancel(reason="the agent's connection has ended")

    async def _keep_serving(self) -> None:
        part = Part(
            kind="agent",
            name="the link to the node agent",
            backoff=self.settings.announcing,
            healthy_seconds=inf,  # only readiness says that an agent is well again
            fatal=(ProtocolMismatch,),
            gate=self.gate,
            log=connection_log,
        )
        await self.supervisor.keep_running(part, self._serve_once, pause=self._pause)

    async def _stop_waiting(self, drain: Drain) -> None:
        await drain.requested.wait()
        self._is_draining = True
        if self._wait is not None:
            self._wait.cancel(reason="draining")

    async def _until(self, wait: Callable[[], Awaitable[object]], *, at: float = float("inf")) -> bool:
        """Wait for something, at most until a time and not through a drain; whether it came."""
        if self._is_draining:
            return False
        with trio.CancelScope(deadline=at) as self._wait:
            await wait()
        came = not self._wait.cancelled_caught
        self._wait = None
        return came

    async def _pause(self, seconds: float) -> bool:
        """Sleep, but not into a drain; whether all of the time has passed."""
        await self._until(trio.sleep_forever, at=trio.current_time() + seconds)
        return not self._is_draining

    async def _serve_once(self) -> RunEnd:
        """One connection to the agent, from dialling to its end."""
        packets = await self._connect()
        if packets is None:
            return Done()
        self._became_ready = False
        with packets:
            try:
                await self._announce(packets)
                await self._serve_connection(packets)
            except _AnnouncementFailed as error:
                again = self.settings.announcing_again if self._was_ready else self.settings.announcing
                return Failed(partial(_tell_announcement, str(error)), backoff=again)
            except OSError as error:
                connection_log.warning("workload manager stream error: %s, retrying", os_error_text(error))
            finally:
                self._take(Disconnected())
        return Done() if self._is_draining else Again(is_success=self._became_ready)

    async def _connect(self) -> SeqPacket | None:
        """Dial until somebody listens; None when draining."""
        found: list[SeqPacket] = []
        dialling = Part(kind="agent", backoff=self.settings.connecting, log=connection_log)

        async def dial() -> RunEnd:
            try:
                if not self._is_draining:
                    found.append(await SeqPacket.connect(self.settings.path))
            except OSError as error:
                return Failed(partial(_tell_dialling, self.settings.path, os_error_text(error)))
            return Done()

        await self.supervisor.keep_running(dialling, dial, pause=self._pause)
        return found.pop() if found else None

    async def _announce(self, packets: SeqPacket) -> None:
        connection_log.info("handling new stream")
        await self._take_and_perform(packets, Connected())
        self._retry_at = float("inf")
        try:
            await packets.send(zds.hello())
        except OSError as error:
            raise _AnnouncementFailed(os_error_text(error)) from error

    async def _serve_connection(self, packets: SeqPacket) -> None:
        """Serve requests until the agent hangs up, is out of step, or a drain is requested."""
        has_spoken = False
        while not self._is_draining:
            if not await self._until(packets.wait_readable, at=self._retry_at):
                if trio.current_time() >= self._retry_at and not self._is_draining:
                    self._retry_at = float("inf")
                    await self._take_and_perform(packets, RetryDue())
                continue
            try:
                datagram = packets.receive_nowait()
            except BlockingIOError:  # readable for nothing
                continue
            except OSError as error:
                if not has_spoken:  # a reset: it closed without reading our hello
                    raise _AnnouncementFailed(os_error_text(error)) from error
                raise
            if not datagram.data:
                datagram.close()
                if not has_spoken:
                    raise _AnnouncementFailed("the connection was closed at once")
                connection_log.info("connection to node agent closed, reconnecting")
                return
            has_spoken = True
            if not await self._take_and_perform(packets, _understand(datagram)):
                return

    async def _take_and_perform(self, packets: SeqPacket, event: Event[Netns]) -> bool:
        """Do all that follows from an event; False if the connection is to be dropped.

        The answer is due while the agent still waits for it, however long the pods' proxies take.
        """
        _log_request(event, self.roster)
        due_at = trio.current_time() + self.settings.answer_seconds
        return await self._perform_all(packets, self._take(event), due_at)

    async def _perform_all(self, packets: SeqPacket, actions: list[Action[Netns]], due_at: float) -> bool:
        """Perform actions in order, and what follows from them; a lost connection stops none of it."""
        for action in actions:  # every end first, at once: a slow one delays its answer, no other's end
            if isinstance(action, StopProxy):
                self.workload_proxies.end(action.uid)
        todo = deque(actions)
        goes_on = True
        lost: OSError | None = None
        give_up: EndProcess | None = None
        try:
            while todo:
                match todo.popleft():
                    case StartProxy() as start:
                        todo.extend(self._take(await self._start(start, due_at)))
                    case StopProxy(uid):
                        await self._wait_gone(uid, due_at)
                    case CloseNetns(netns):
                        netns.close()
                    case Acknowledge(error):
                        try:
                            await packets.send(zds.ack(error))
                        except OSError as broken:
                            lost = broken
                    case RetryAfter(seconds):
                        self._retry_at = trio.current_time() + seconds
                    case Reconnect():
                        goes_on = False
                    case EndProcess() as give_up:
                        pass
        finally:
            self._close_namespaces(list(todo))
        if give_up is not None:
            self.gate.close()
            text = "protocol mismatch error while processing stream, shutting down"
            connection_log.error(text, extra={"fields": {"error": give_up.text}})
            raise ProtocolMismatch(give_up.text)
        if lost is not None:
            raise lost
        return goes_on

    async def _start(self, start: StartProxy[Netns], due_at: float) -> ProxyStarted | StartFailed:
        if not start.is_retry:
            fields = {"uid": start.uid, "name": start.info.name, "namespace": start.info.namespace}
            pod_log.info("pod received, starting proxy", extra={"fields": fields})
        failure = "deadline has elapsed"
        with trio.CancelScope(deadline=due_at) as scope:
            try:
                await self.workload_proxies.start(start.uid, start.info, start.netns)
            except Unavailable as error:
                failure = str(error)
            else:
                return ProxyStarted(start.uid)
        if scope.cancelled_caught:
            self.workload_proxies.end(start.uid)
        pod_log.warning(
            "failed to start proxy",
            extra={"fields": {"uid": start.uid, "name": start.info.name, "error": failure}},
        )
        return StartFailed(start.uid, failure)

    async def _wait_gone(self, uid: str, due_at: float) -> None:
        """Wait for a proxy that was ended to be gone, while the agent still waits for the answer."""
        with trio.CancelScope(deadline=due_at) as scope:
            await self.workload_proxies.wait_gone(uid)
        if scope.cancelled_caught:
            pod_log.warning("proxy is slow to stop", extra={"fields": {"uid": uid}})

    def _take(self, event: Event[Netns]) -> list[Action[Netns]]:
        """Tell the roster, and the operators whether every pod is served."""
        actions = self.roster.receive(event)
        if self.roster.is_ready:
            self._was_ready = self._became_ready = True
            self.gate.open()
        else:
            self.gate.close()
        return actions

    def _close_namespaces(self, actions: list[Action[Netns]]) -> None:
        for action in actions:
            if isinstance(action, CloseNetns):
                action.netns.close()


def _understand(datagram: Datagram) -> Event[Netns]:
    """Turn a datagram into an event that owns its namespace, or says why not."""
    try:
        request = zds.decode(
            datagram.data,
            datagram.descriptors,
            truncated=datagram.truncated,
            descriptors_lost=datagram.descriptors_lost,
        )
    except PeerBrokeProtocol as error:
        connection_log.error("failed to read message: %s", error)
        return RequestUnreadable(str(error))
    if isinstance(request, zds.DescriptorLost):
        pod_log.error("no file descriptor is left for a pod", extra={"fields": {"uid": request.uid}})
        return NamespaceUnusable(request.uid, NO_DESCRIPTOR)
    if not isinstance(request, zds.PodAdded):
        return request
    try:
        netns = Netns.adopt(request.netns.release())
    except OSError as error:
        return NamespaceUnusable(request.uid, os_error_text(error))
    if not netns.is_network_namespace():
        pod_log.debug("descriptor is no network namespace", extra={"fields": {"uid": request.uid}})
    return zds.PodAdded(request.uid, request.info, netns)


def _log_request(event: Event[Netns], roster: Roster[Netns]) -> None:
    """The lines operators follow a pod by; a pod that is started gets its line there."""
    match event:
        case zds.PodKept(uid):
            text = "pod keep received. will not delete it when snapshot is sent"
            pod_log.info(text, extra={"fields": {"uid": uid}})
        case zds.PodDeleted(uid):
            text = "pod delete request, shutting down proxy"
            if not roster.has_snapshot:
                text = "pod delete request before snapshot, its proxy goes with the snapshot"
            pod_log.info(text, extra={"fields": {"uid": uid}})
        case zds.SnapshotSent():
            pod_log.info("received snapshot sent")
        case _:
            pass


def _tell_dialling(path: Path, text: str, seconds: float) -> None:
    line = "failed to connect to node agent at %s: %s, retrying in %s"
    connection_log.warning(line, path, text, _seconds(seconds))


def _tell_announcement(text: str, seconds: float) -> None:
    connection_log.error("node agent announcement failed (%s), retrying in %s", text, _seconds(seconds))


def _seconds(seconds: float) -> str:
    return f"{seconds * 1000:.0f}ms" if seconds < 1 else f"{seconds:.1f}s"
