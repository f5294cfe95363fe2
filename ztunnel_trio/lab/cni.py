"""A stand-in for istio-cni's node agent: it tells a proxy about pods over ZDS.

`Agent` listens on a SOCK_SEQPACKET socket. A proxy that connects says hello and is sent every pod the agent
knows, each with the descriptor of its network namespace, then that this was the snapshot; later additions
and removals go to the newest connection and to all of them. Every request waits for its acknowledgement, as
istio-cni does (istio `cni/pkg/nodeagent/ztunnelserver.go`). With `automatic` off a test says everything
itself.
"""

import array
import contextlib
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import trio

from ztunnel_trio.model.workload import WorkloadInfo
from ztunnel_trio.net.netns import Netns
from ztunnel_trio.supervise.watch import Watch
from ztunnel_trio.wire import zds

ACK_SECONDS: Final = 5.0  # istio: readWriteDeadline
_DATAGRAM_BYTES: Final = 1024
_ANSWERS_KEPT: Final = 64


class ProxyGone(Exception):
    """The proxy closed its connection instead of acknowledging."""


@dataclass(frozen=True, slots=True)
class KnownPod:
    """A pod in the agent's cache; without a namespace it is only kept (KeepWorkload)."""

    uid: str
    info: WorkloadInfo
    netns: Netns | None


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """What was asked, of which pod, and the proxy's error text (empty: success)."""

    what: str
    uid: str
    error: str


@dataclass(slots=True, eq=False)
class AgentConnection:
    """One proxy's connection."""

    sock: trio.socket.SocketType
    hello: bytes
    answers: trio.MemoryReceiveChannel[bytes]
    turn: trio.Lock = field(default_factory=trio.Lock)
    is_open: bool = True

    async def ask(self, data: bytes, descriptors: Sequence[int] = ()) -> str:
        """Send one datagram and wait for its acknowledgement; returns the error text, empty for success.

        Raises:
            ProxyGone: the connection ended.
            TooSlowError: no answer within five seconds.
            PeerBrokeProtocol: the answer is none.
        """
        async with self.turn:
            try:
                with trio.fail_after(ACK_SECONDS):
                    await self.send(data, descriptors)
                    answer = await self.answers.receive()
            except (trio.EndOfChannel, OSError) as error:
                raise ProxyGone("the proxy closed its connection instead of acknowledging") from error
            except trio.TooSlowError as error:
                raise trio.TooSlowError(
                    f"the proxy did not acknowledge within {ACK_SECONDS:.0f} s"
                ) from error
        return zds.decode_ack(answer)

    async def send(self, data: bytes, descriptors: Sequence[int] = ()) -> None:
        """Send one datagram and wait for nothing.

        Raises:
            OSError: the connection ended.
        """
        rights = array.array("i", descriptors).tobytes()
        control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if descriptors else []
        await self.sock.sendmsg([data], control)


class Agent:
    """The pods of one node and the proxies connected; `run` serves them."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.pods: dict[str, KnownPod] = {}
        self.connections: list[AgentConnection] = []  # all there were; the last open one is in charge
        self.acknowledged: list[Acknowledged] = []
        self.automatic = True
        self.changed = Watch(0)
        self._serving: trio.CancelScope | None = None
        self._is_listening = trio.Event()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Listen until cancelled. `restart` makes it listen anew.

        Raises:
            OSError: the path cannot be bound.
        """
        task: trio.TaskStatus[None] | None = task_status
        while True:
            with trio.CancelScope() as self._serving:
                await self._listen(task)
            task = None
            if not self._serving.cancelled_caught:
                return

    async def restart(self) -> None:
        """As the agent's container does: every connection ends, then a new socket is there."""
        assert self._serving is not None
        self._is_listening = trio.Event()
        self._serving.cancel(reason="the lab restarts the agent")
        await self._is_listening.wait()

    async def connection(self) -> AgentConnection:
        """The newest open connection, waited for; the caller sets the deadline."""
        while not (open_ones := [one for one in self.connections if one.is_open]):
            await self.changed.newer_than(self.changed.version)
        return open_ones[-1]

    def remember(self, uid: str, *, name: str, namespace: str, service_account: str, netns: Netns) -> None:
        """Put a pod into the cache without telling anybody."""
        info = WorkloadInfo(name=name, namespace=namespace, service_account=service_account)
        self.pods[uid] = KnownPod(uid, info, netns)

    async def add(self, uid: str, *, name: str, namespace: str, service_account: str, netns: Netns) -> str:
        """Remember a pod and tell the proxy; returns its error text.

        Raises:
            ProxyGone, TooSlowError: no acknowledgement.
        """
        self.remember(uid, name=name, namespace=namespace, service_account=service_account, netns=netns)
        return await self._announce(await self._newest(), self.pods[uid])

    async def delete(self, uid: str) -> str:
        """Forget a pod and tell every proxy; returns their error texts.

        Raises:
            ProxyGone, TooSlowError: no acknowledgement.
        """
        self.pods.pop(uid, None)
        await self._newest()
        still_there = [one for one in self.connections if one.is_open]
        errors = [await self._noted(one, "delete", uid, zds.delete(uid)) for one in still_there]
        return "; ".join(error for error in errors if error)

    async def keep(self, uid: str) -> str:
        """Say KeepWorkload, whether or not the pod is known; returns the error text.

        Raises:
            ProxyGone, TooSlowError: no acknowledgement.
        """
        return await self._noted(await self._newest(), "keep", uid, zds.keep(uid))

    async def snapshot(self) -> str:
        """Say SnapshotSent; returns the error text.

        Raises:
            ProxyGone, TooSlowError: no acknowledgement.
        """
        return await self._noted(await self._newest(), "snapshot", "", zds.snapshot_sent())

    async def raw(self, data: bytes, descriptors: Sequence[int] = ()) -> str:
        """Send any bytes and descriptors as one request; returns the error text.

        Raises:
            ProxyGone, TooSlowError: no acknowledgement.
        """
        return await (await self._newest()).ask(data, descriptors)

    # ---------------------------------------------------------------- inside

    async def _newest(self) -> AgentConnection:
        with trio.fail_after(ACK_SECONDS):
            return await self.connection()

    async def _listen(self, task_status: trio.TaskStatus[None] | None) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)
        listener = trio.socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with listener:
            await listener.bind(self.path)
            listener.listen(8)
            if task_status is not None:
                task_status.started()
            self._is_listening.set()
            async with trio.open_nursery() as nursery:
                while True:
                    sock, _ = await listener.accept()
                    nursery.start_soon(self._serve, sock)

    async def _serve(self, sock: trio.socket.SocketType) -> None:
        heard, answers = trio.open_memory_channel[bytes](_ANSWERS_KEPT)
        with sock, heard:
            try:
                connection = AgentConnection(sock, await sock.recv(_DATAGRAM_BYTES), answers)
            except OSError:
                return
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._greet, connection)
                    while data := await sock.recv(_DATAGRAM_BYTES):
                        heard.send_nowait(data)
                    heard.close()
                    nursery.cancel_scope.cancel(reason="the proxy closed its connection")
            except* OSError:
                pass  # the proxy died
            finally:
                connection.is_open = False
                self._tell()

    async def _greet(self, connection: AgentConnection) -> None:
        try:
            if self.automatic:
                for pod in list(self.pods.values()):
                    await self._announce(connection, pod)
                await self._noted(connection, "snapshot", "", zds.snapshot_sent())
        except (ProxyGone, trio.TooSlowError):
            connection.sock.shutdown(socket.SHUT_RDWR)
            return
        self.connections.append(connection)
        self._tell()

    async def _announce(self, connection: AgentConnection, pod: KnownPod) -> str:
        if pod.netns is None:
            return await self._noted(connection, "keep", pod.uid, zds.keep(pod.uid))
        request = zds.add(pod.uid, pod.info)
        return await self._noted(connection, "add", pod.uid, request, [pod.netns.fileno()])

    async def _noted(
        self, connection: AgentConnection, what: str, uid: str, data: bytes, descriptors: Sequence[int] = ()
    ) -> str:
        error = await connection.ask(data, descriptors)
        self.acknowledged.append(Acknowledged(what, uid, error))
        self._tell()
        return error

    def _tell(self) -> None:
        self.changed.publish(self.changed.version + 1)
