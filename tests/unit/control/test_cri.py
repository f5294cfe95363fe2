"""The container runtime: which containers count, and what it says that is nonsense."""

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest
import trio

from tests.fakes.spire import SETTINGS, key_of
from tests.fakes.trio_test import trio_test
from ztunnel_trio.control import grpc
from ztunnel_trio.control.cri import POD_UID_LABEL, ContainerRuntime
from ztunnel_trio.errors import Unavailable
from ztunnel_trio.lab.unix_server import serve_at
from ztunnel_trio.model.certificate_key import AttestedPod
from ztunnel_trio.model.socket_target import UnixPath
from ztunnel_trio.pb.messages.runtime.v1 import (
    Container,
    ContainerState,
    ContainerStatusRequest,
    ContainerStatusResponse,
    ListContainersRequest,
    ListContainersResponse,
    ListPodSandboxRequest,
    ListPodSandboxResponse,
    PodSandbox,
    PodSandboxState,
)


@dataclass(eq=False)
class FakeRuntime:
    """One pod's sandbox and its containers: id -> (state, JSON text of its status)."""

    state: PodSandboxState = PodSandboxState.SANDBOX_READY
    containers: dict[str, tuple[ContainerState, str]] = field(default_factory=dict)
    garbage: bytes | None = None

    async def sandboxes(self, call: grpc.ServerCall) -> None:
        asked = ListPodSandboxRequest.parse(await call.receive() or b"").filter
        assert asked is not None
        assert asked.state is not None
        is_asked = asked.label_selector == {POD_UID_LABEL: "uid-web-1"} and asked.state.state == self.state
        items = [PodSandbox(id="sandbox")] if is_asked else []
        await call.send(self.garbage or bytes(ListPodSandboxResponse(items=items)))

    async def list(self, call: grpc.ServerCall) -> None:
        asked = ListContainersRequest.parse(await call.receive() or b"").filter
        assert asked is not None
        assert asked.state is not None
        found = [
            Container(id=name)
            for name, (state, _) in self.containers.items()
            if state == asked.state.state and asked.pod_sandbox_id == "sandbox"
        ]
        await call.send(bytes(ListContainersResponse(containers=found)))

    async def status(self, call: grpc.ServerCall) -> None:
        asked = ContainerStatusRequest.parse(await call.receive() or b"")
        assert asked.verbose
        text = self.containers[asked.container_id][1]
        await call.send(bytes(ContainerStatusResponse(info={"info": text} if text else {})))


def running(pid: int) -> tuple[ContainerState, str]:
    return ContainerState.CONTAINER_RUNNING, json.dumps({"pid": pid, "sandboxID": "x", "config": {}})


@asynccontextmanager
async def runtime_at(directory: Path) -> AsyncGenerator[tuple[FakeRuntime, ContainerRuntime], None]:
    fake, path = FakeRuntime(), directory / "cri.sock"
    service = "/runtime.v1.RuntimeService"
    handlers = {
        f"{service}/ListPodSandbox": fake.sandboxes,
        f"{service}/ListContainers": fake.list,
        f"{service}/ContainerStatus": fake.status,
    }
    async with grpc.open_control_loop(), trio.open_nursery() as nursery:
        await nursery.start(serve_at, path, handlers, None)
        open_channel = partial(grpc.open_agent_channel, UnixPath(str(path)), None, SETTINGS)
        yield fake, ContainerRuntime(open_channel)
        nursery.cancel_scope.cancel()


def pod() -> AttestedPod:
    found = key_of().pod
    assert found is not None
    return found


@trio_test
async def test_running_containers_count_and_no_others(tmp_path: Path) -> None:
    async with runtime_at(tmp_path) as (fake, runtime):
        fake.containers = {
            "exited": (ContainerState.CONTAINER_EXITED, json.dumps({"pid": 1})),
            "created": (ContainerState.CONTAINER_CREATED, json.dumps({"pid": 2})),
            "app": running(41),
            "proxy": running(42),
        }

        assert list(await runtime.processes(pod())) == [41, 42]


@trio_test
async def test_a_pod_whose_sandbox_is_not_ready_has_none(tmp_path: Path) -> None:
    async with runtime_at(tmp_path) as (fake, runtime):
        fake.state = PodSandboxState.SANDBOX_NOTREADY
        fake.containers = {"app": running(41)}

        assert list(await runtime.processes(pod())) == []


@trio_test
async def test_a_status_that_names_no_process_is_passed_over(tmp_path: Path) -> None:
    async with runtime_at(tmp_path) as (fake, runtime):
        state = ContainerState.CONTAINER_RUNNING
        texts = ["", "nonsense", "[]", "{}", '{"pid": "41"}', '{"pid": 0}', '{"pid": -3}']
        fake.containers = {str(n): (state, text) for n, text in enumerate(texts)}
        fake.containers["app"] = running(43)

        assert list(await runtime.processes(pod())) == [43]


@trio_test
async def test_nonsense_and_absence_are_told_as_the_runtimes(tmp_path: Path) -> None:
    async with runtime_at(tmp_path) as (fake, runtime):
        fake.garbage = b"\x0f"
        with pytest.raises(Unavailable, match="container runtime: ListPodSandboxResponse cannot be decoded"):
            await runtime.processes(pod())

        gone = partial(grpc.open_agent_channel, UnixPath(str(tmp_path / "no.sock")), None, SETTINGS)
        with pytest.raises(Unavailable, match=r"container runtime: .*no\.sock: No such file"):
            await ContainerRuntime(gone).processes(pod())
