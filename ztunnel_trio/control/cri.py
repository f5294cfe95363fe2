"""The container runtime, asked for the processes of a pod (CRI runtime.v1 over its Unix socket).

A pod's sandbox is found by the label that the kubelet gives it; of its running containers the runtime tells
the process in a JSON text, which has no schema but names a `pid` in containerd and in CRI-O.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Final

import betterproto2
import msgspec
import trio

from ztunnel_trio.control.grpc import Channel, GrpcFailed
from ztunnel_trio.control.spiffe.states import read
from ztunnel_trio.errors import PeerBrokeProtocol, Unavailable
from ztunnel_trio.model.certificate_key import AttestedPod
from ztunnel_trio.pb.messages.runtime.v1 import (
    ContainerFilter,
    ContainerState,
    ContainerStateValue,
    ContainerStatusRequest,
    ContainerStatusResponse,
    ListContainersRequest,
    ListContainersResponse,
    ListPodSandboxRequest,
    ListPodSandboxResponse,
    PodSandboxFilter,
    PodSandboxState,
    PodSandboxStateValue,
)
from ztunnel_trio.wire.protobuf_encoding import TEXT, Schema

POD_UID_LABEL: Final = "io.kubernetes.pod.uid"
INFO_KEY: Final = "info"
_SERVICE: Final = "/runtime.v1.RuntimeService"
_LISTED: Final[Schema] = {1: {1: TEXT}}  # sandboxes and containers alike: their ids
_STATUS: Final[Schema] = {2: {1: TEXT, 2: TEXT}}
MOST_CONTAINERS: Final = 32
"""Of one pod that are asked for their process."""


class _Info(msgspec.Struct):
    """What we read of a container's JSON text."""

    pid: int = 0


class ContainerRuntime:
    """The runtime. `open_channel` makes a connection to it, one for each look-up."""

    def __init__(
        self, open_channel: Callable[[], AbstractAsyncContextManager[Channel]], deadline_seconds: float = 10.0
    ) -> None:
        self._open_channel = open_channel
        self._deadline_seconds = deadline_seconds

    async def processes(self, pod: AttestedPod) -> Sequence[int]:
        """The first process of each running container of a pod; none while it has none.

        Raises:
            Unavailable: the runtime cannot be asked, or does not answer in time.
        """
        try:
            with trio.fail_after(self._deadline_seconds):
                async with self._open_channel() as channel:
                    return await self._processes(channel, pod)
        except (GrpcFailed, PeerBrokeProtocol) as error:
            raise Unavailable(f"container runtime: {error}") from error
        except trio.TooSlowError as error:
            raise Unavailable("container runtime: no answer in time") from error

    async def _processes(self, channel: Channel, pod: AttestedPod) -> Sequence[int]:
        ready = PodSandboxFilter(
            state=PodSandboxStateValue(state=PodSandboxState.SANDBOX_READY),
            label_selector={POD_UID_LABEL: pod.uid},
        )
        answer = await self._call(channel, "ListPodSandbox", ListPodSandboxRequest(filter=ready))
        sandboxes = read(ListPodSandboxResponse, answer, _LISTED).items
        if not sandboxes:
            return []
        running = ContainerFilter(
            state=ContainerStateValue(state=ContainerState.CONTAINER_RUNNING),
            pod_sandbox_id=sandboxes[0].id,
        )
        answer = await self._call(channel, "ListContainers", ListContainersRequest(filter=running))
        containers = read(ListContainersResponse, answer, _LISTED).containers
        pids: list[int] = []
        for container in containers[:MOST_CONTAINERS]:
            request = ContainerStatusRequest(container_id=container.id, verbose=True)
            answer = await self._call(channel, "ContainerStatus", request)
            status = read(ContainerStatusResponse, answer, _STATUS)
            if (pid := _pid(status.info.get(INFO_KEY, ""))) > 0:
                pids.append(pid)
        return pids

    async def _call(self, channel: Channel, method: str, request: betterproto2.Message) -> bytes:
        return await channel.call(f"{_SERVICE}/{method}", bytes(request), {})


def _pid(text: str) -> int:
    """The process a container's JSON text names; 0 where it names none."""
    try:
        return msgspec.json.decode(text or "{}", type=_Info).pid
    except msgspec.DecodeError:
        return 0
