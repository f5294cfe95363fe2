"""The agent's connection over a real SOCK_SEQPACKET socket, with workload proxies that bind nothing."""

import contextlib
import errno
import logging
import os
import random
import resource
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio

from tests.fakes.cancellation import cancelled_everywhere_now, open_descriptors
from tests.fakes.seqpacket import SeqPacketListener
from tests.fakes.trio_test import trio_test
from ztunnel_trio.errors import Unavailable
from ztunnel_trio.inpod.agent import AgentSettings, NodeAgentLink, ProtocolMismatch
from ztunnel_trio.model.workload import WorkloadInfo
from ztunnel_trio.net.netns import Netns
from ztunnel_trio.net.seqpacket import SeqPacket
from ztunnel_trio.supervise.drain import Drain
from ztunnel_trio.supervise.keep_running import Supervisor
from ztunnel_trio.supervise.readiness import Readiness
from ztunnel_trio.wire import zds

INFO = WorkloadInfo("podA", "default", "sa")
TAKEN = "failed to bind to address [::]:15008: Address already in use (os error 98)"
ONE, TWO = "/proc/self/ns/net", "/dev/null"  # two things with different (device, inode)


@dataclass
class FakeWorkloadProxies:
    """Owns the namespaces of what it started."""

    served: dict[str, Netns] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)
    is_full: bool = False
    slowness: float = 0.0

    async def start(self, uid: str, info: WorkloadInfo, netns: Netns) -> None:
        await trio.sleep(self.slowness)
        if self.is_full:
            self.log.append(f"refuse {uid}")
            raise Unavailable(TAKEN)
        assert uid not in self.served
        self.log.append(f"start {uid}")
        self.served[uid] = netns

    def end(self, uid: str) -> None:
        self.log.append(f"stop {uid}")
        if (netns := self.served.pop(uid, None)) is not None:
            netns.close()

    async def wait_gone(self, uid: str) -> None:
        await trio.sleep(self.slowness)

    def close(self) -> None:
        for netns in self.served.values():
            netns.close()
        self.served.clear()


@dataclass
class Cni:
    """The agent's end of one connection."""

    packets: SeqPacket

    async def ask(self, request: bytes, netns: str | None = None) -> str:
        """Send a request; the answer's error."""
        fd = os.open(netns, os.O_RDONLY | os.O_CLOEXEC) if netns is not None else None
        try:
            await self.packets.send(request, [] if fd is None else [fd])
        finally:
            if fd is not None:
                os.close(fd)
        with trio.fail_after(10):
            return zds.decode_ack((await self.packets.receive()).data)

    async def add(self, uid: str, netns: str = ONE) -> str:
        return await self.ask(zds.add(uid, INFO), netns)

    async def snapshot(self) -> str:
        return await self.ask(zds.snapshot_sent())


class Node:
    """A proxy's in-pod side and the socket it dials."""

    def __init__(self) -> None:
        self.directory = tempfile.TemporaryDirectory(prefix="zds")
        self.path = Path(self.directory.name) / "ztunnel.sock"
        self.workload_proxies = FakeWorkloadProxies()
        self.gate = Readiness().gate("workload proxy manager")
        self.drain = Drain(5.0)
        self.agent = NodeAgentLink(
            AgentSettings(path=self.path), self.workload_proxies, self.gate, Supervisor(random.Random(1))
        )
        self.listener: SeqPacketListener | None = None

    def listen(self, *, backlog: int = 16) -> SeqPacketListener:
        self.listener = SeqPacketListener.listen(self.path, backlog=backlog)
        return self.listener

    async def accept(self) -> Cni:
        """The proxy's next connection, its hello read."""
        assert self.listener is not None
        with contextlib.ExitStack() as unless_greeted:
            packets = unless_greeted.enter_context(await self.listener.accept())
            assert (await packets.receive()).data == b"\x08\x01"
            unless_greeted.pop_all()
        return Cni(packets)

    async def drain_soon(self) -> None:
        await trio.sleep(0.01)
        self.drain.request("SIGTERM")

    def close(self) -> None:
        if self.listener is not None:
            self.listener.close()
        self.workload_proxies.close()
        self.directory.cleanup()


Script = Callable[[Node], Awaitable[None]]


async def with_proxy(node: Node, script: Script) -> None:
    """Run the proxy's side beside a script, then drain it; nothing may be left open."""
    before = open_descriptors()
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(node.agent.run, node.drain)
            await script(node)
            node.drain.request("over")
    finally:
        node.close()
    assert open_descriptors() <= before


def scripted(script: Script) -> Callable[[], None]:
    """A test of one script against a fresh node, on a jumping clock."""

    @trio_test(autojump=True)
    async def test() -> None:
        await with_proxy(Node(), script)

    test.__doc__ = script.__doc__
    return test


async def hung_up(cni: Cni) -> bool:
    with cni.packets:
        return (await cni.packets.receive()).data == b""


@scripted
async def test_process_add(node: Node) -> None:
    node.listen()
    cni = await node.accept()
    assert await cni.add("web") == ""
    cni.packets.close()
    again = await node.accept()
    assert list(node.workload_proxies.served) == ["web"]
    assert not node.gate.is_open, "there was no snapshot"
    again.packets.close()


@scripted
async def test_process_add_and_del(node: Node) -> None:
    node.listen()
    with (cni := await node.accept()).packets:
        assert await cni.add("web") == ""
        assert await cni.snapshot() == ""
        assert await cni.ask(zds.delete("web")) == ""
        assert node.workload_proxies.served == {}
        assert node.gate.is_open


@scripted
async def test_a_repeated_pod_costs_no_descriptor(node: Node) -> None:
    node.listen()
    with (cni := await node.accept()).packets:
        await cni.add("web")
        before = open_descriptors()
        for _ in range(3):
            assert await cni.add("web") == ""
        assert open_descriptors() == before
        assert node.workload_proxies.log == ["start web"]


@scripted
async def test_a_pod_in_a_new_namespace_is_restarted(node: Node) -> None:
    node.listen()
    with (cni := await node.accept()).packets:
        await cni.add("web", ONE)
        assert await cni.add("web", TWO) == ""
    assert node.workload_proxies.log == ["start web", "stop web", "start web"]


@scripted
async def test_process_failed(node: Node) -> None:
    """A pod that cannot be served is refused, keeps readiness closed and is tried again after 5 s."""
    node.listen()
    node.workload_proxies.is_full = True
    with (cni := await node.accept()).packets:
        began = trio.current_time()
        assert await cni.add("web") == f"failure to start proxy : {TAKEN}"
        assert await cni.snapshot() == ""
        assert not node.gate.is_open
        await trio.sleep(7)
        assert node.workload_proxies.log == ["refuse web"] * 2
        node.workload_proxies.is_full = False
        await trio.sleep(5)
        assert node.workload_proxies.log == ["refuse web", "refuse web", "start web"]
        assert trio.current_time() - began < 13
        assert node.gate.is_open
        await trio.sleep(100)
        assert len(node.workload_proxies.log) == 3


@scripted
async def test_requests_are_served_while_pods_are_pending(node: Node) -> None:
    node.listen()
    node.workload_proxies.is_full = True
    with (cni := await node.accept()).packets:
        await cni.add("web")
        await trio.sleep(3)
        assert await cni.ask(zds.keep("other")) == ""
        await trio.sleep(3)
        assert node.workload_proxies.log == ["refuse web"] * 2, "a request does not postpone the retry"


@scripted
async def test_process_snapshot_with_missing_workload(node: Node) -> None:
    node.listen()
    cni = await node.accept()
    await cni.add("a")
    await cni.add("b")
    await cni.snapshot()
    assert sorted(node.workload_proxies.served) == ["a", "b"]
    cni.packets.close()
    with (cni := await node.accept()).packets:
        assert not node.gate.is_open
        assert await cni.add("a", TWO) == ""
        assert sorted(node.workload_proxies.served) == ["a", "b"]
        assert await cni.snapshot() == ""
        assert list(node.workload_proxies.served) == ["a"]
        assert node.gate.is_open


@scripted
async def test_what_was_pending_is_forgotten_with_the_connection(node: Node) -> None:
    node.listen()
    node.workload_proxies.is_full = True
    cni = await node.accept()
    await cni.add("web")
    cni.packets.close()
    with (cni := await node.accept()).packets:
        assert node.workload_proxies.log == ["refuse web", "stop web"]
        await trio.sleep(20)
        assert await cni.snapshot() == ""
        assert node.gate.is_open
    assert node.workload_proxies.log == ["refuse web", "stop web"]


@scripted
async def test_an_unreadable_request_is_answered_and_the_connection_replaced(node: Node) -> None:
    node.listen()
    cni = await node.accept()
    await cni.add("web")
    await cni.snapshot()
    assert node.gate.is_open
    assert await cni.ask(zds.delete("web"), ONE) == "failure to read message : Unexpected control message"
    assert await hung_up(cni)
    with (await node.accept()).packets:
        assert not node.gate.is_open
        assert list(node.workload_proxies.served) == ["web"]


@scripted
async def test_two_descriptors_are_refused_and_none_is_kept(node: Node) -> None:
    node.listen()
    cni = await node.accept()
    before = len(open_descriptors())
    await cni.packets.send(zds.add("web", INFO), [0, 1])
    answer = await cni.packets.receive()
    assert zds.decode_ack(answer.data) == "failure to read message : Expected 1 FD, got 2"
    assert await hung_up(cni)
    with (await node.accept()).packets:
        assert len(open_descriptors()) == before
    assert node.workload_proxies.log == []


@scripted
async def test_a_proxy_that_takes_too_long_is_refused_in_time(node: Node) -> None:
    """istio-cni waits five seconds and would take a later answer for the next request's."""
    node.listen()
    node.workload_proxies.slowness = 60
    with (cni := await node.accept()).packets:
        began = trio.current_time()
        assert await cni.add("web") == "failure to start proxy : deadline has elapsed"
        assert trio.current_time() - began < 5


@scripted
async def test_a_proxy_that_is_slow_to_stop_does_not_delay_the_answer(node: Node) -> None:
    node.listen()
    with (cni := await node.accept()).packets:
        await cni.add("web")
        await cni.snapshot()
        node.workload_proxies.slowness = 60
        began = trio.current_time()
        assert await cni.ask(zds.delete("web")) == ""
        assert trio.current_time() - began < 5


@scripted
async def test_a_slow_one_delays_the_answer_and_no_others_end(node: Node) -> None:
    """A snapshot ends every pod it does not name before it waits for the first."""
    node.listen()
    with (cni := await node.accept()).packets:
        for uid in ("a", "b", "c"):
            await cni.add(uid)
        await cni.snapshot()
    node.workload_proxies.slowness = 60
    with (cni := await node.accept()).packets:
        began = trio.current_time()
        assert await cni.snapshot() == ""
        assert trio.current_time() - began < 5
        assert node.workload_proxies.served == {}
        assert node.workload_proxies.log[3:] == ["stop a", "stop b", "stop c"]


@scripted
async def test_no_descriptor_left_costs_one_pods_add_not_the_link(node: Node) -> None:
    node.listen()
    with (cni := await node.accept()).packets:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        netns = os.open(ONE, os.O_RDONLY | os.O_CLOEXEC)
        os.close(lowest := os.dup(netns))
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
        try:
            await cni.packets.send(zds.add("web", INFO), [netns])
            answer = zds.decode_ack((await cni.packets.receive()).data)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            os.close(netns)
        assert answer == "failure to start proxy : no file descriptor is left (RLIMIT_NOFILE)"
        assert await cni.add("web") == ""
        assert node.workload_proxies.log == ["start web"]


@scripted
async def test_an_agent_that_is_late_is_dialled_again_and_again(node: Node) -> None:
    began = trio.current_time()
    await trio.sleep(100)
    node.listen()
    with (cni := await node.accept()).packets:
        assert trio.current_time() - began <= 100 + 15
        assert await cni.snapshot() == ""


@trio_test(autojump=True)
async def test_connecting_waits_20_40_80_milliseconds_up_to_15_seconds(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def script(node: Node) -> None:
        await trio.sleep(60)

    caplog.set_level(logging.WARNING)
    await with_proxy(Node(), script)

    waits = [record.getMessage().rpartition(" ")[2] for record in caplog.records]
    assert waits[:4] == ["20ms", "40ms", "80ms", "160ms"]
    assert waits[-1] == "15.0s"
    assert all("No such file or directory (os error 2)" in record.getMessage() for record in caplog.records)


@trio_test(autojump=True)
async def test_a_full_listen_queue_is_waited_out(caplog: pytest.LogCaptureFixture) -> None:
    async def script(node: Node) -> None:
        node.listen(backlog=0)
        with await SeqPacket.connect(node.path) as blocker:
            await trio.sleep(1)
            assert node.listener is not None
            (await node.listener.accept()).close()
            blocker.close()
        with (cni := await node.accept()).packets:
            assert await cni.snapshot() == ""

    caplog.set_level(logging.WARNING)
    node = Node()
    SeqPacketListener.listen(node.path, backlog=0).close()
    await with_proxy(node, script)
    assert any(os.strerror(errno.EAGAIN) in record.getMessage() for record in caplog.records)


@trio_test(autojump=True)
async def test_process_failed_announce(caplog: pytest.LogCaptureFixture) -> None:
    """An agent that hangs up at once is not dialled in a tight loop: 500 ms, doubling, ±20 %."""

    async def script(node: Node) -> None:
        listener = node.listen()
        began = trio.current_time()
        for _ in range(4):
            (await listener.accept()).close()
        assert 0.8 * 3.5 <= trio.current_time() - began <= 1.2 * 3.5
        assert not node.gate.is_open
        with (cni := await node.accept()).packets:
            assert await cni.snapshot() == ""

    caplog.set_level(logging.ERROR)
    await with_proxy(Node(), script)
    failures = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert len(failures) == 4
    assert all(text.startswith("node agent announcement failed (") for text in failures)


@trio_test(autojump=True)
async def test_once_ready_an_agent_that_restarts_is_soon_back() -> None:
    async def script(node: Node) -> None:
        listener = node.listen()
        cni = await node.accept()
        await cni.snapshot()
        cni.packets.close()
        began = trio.current_time()
        (await listener.accept()).close()
        with (await node.accept()).packets:
            assert trio.current_time() - began <= 0.006

    await with_proxy(Node(), script)


@pytest.mark.parametrize(
    ("request_twice", "text"),
    [
        (zds.snapshot_sent(), "pod snapshot received already"),
        (zds.keep("web"), "pod keep received after snapshot"),
    ],
)
def test_a_protocol_mismatch_is_answered_and_fatal(
    request_twice: bytes, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def script(node: Node) -> None:
        node.listen()
        cni = await node.accept()
        await cni.snapshot()
        assert await cni.ask(request_twice) == f"failure to process message : {text}"
        assert await hung_up(cni)

    async def main() -> None:
        node = Node()
        with pytest.RaisesGroup(ProtocolMismatch, flatten_subgroups=True):
            await with_proxy(node, script)
        assert not node.gate.is_open

    trio.run(main)
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR] == [
        "protocol mismatch error while processing stream, shutting down"
    ]


@trio_test(autojump=True)
async def test_operators_can_follow_a_pod(caplog: pytest.LogCaptureFixture) -> None:
    async def script(node: Node) -> None:
        node.listen()
        with (cni := await node.accept()).packets:
            await cni.ask(zds.keep("other"))
            await cni.add("web")
            await cni.snapshot()
            await cni.ask(zds.delete("web"))

    caplog.set_level(logging.INFO)
    await with_proxy(Node(), script)

    state, connection = "ztunnel::inpod::statemanager", "ztunnel::inpod::workloadmanager"
    lines = [(r.name, r.getMessage()) for r in caplog.records if r.name != "ztunnel::readiness"]
    assert lines[:5] == [
        (connection, "handling new stream"),
        (state, "pod keep received. will not delete it when snapshot is sent"),
        (state, "pod received, starting proxy"),
        (state, "received snapshot sent"),
        (state, "pod delete request, shutting down proxy"),
    ]
    assert lines[-1] == (connection, "drain requested")
    assert vars(caplog.records[2])["fields"] == {"uid": "web", "name": "podA", "namespace": "default"}


@pytest.mark.parametrize("moment", ["connecting", "waiting", "announcing"])
def test_a_drain_ends_it_at_any_time_and_leaves_proxies_alone(moment: str) -> None:
    async def main() -> None:
        node = Node()
        async with trio.open_nursery() as nursery:
            if moment != "connecting":
                node.listen()
            nursery.start_soon(node.agent.run, node.drain)
            cnis = [await node.accept()] if moment == "waiting" else []
            for cni in cnis:
                await cni.add("web")
            if moment == "announcing":
                assert node.listener is not None
                (await node.listener.accept()).close()
            await trio.testing.wait_all_tasks_blocked()
            node.drain.request("SIGTERM")
        assert list(node.workload_proxies.served) == (["web"] if moment == "waiting" else [])
        assert not node.gate.is_open
        for cni in cnis:
            cni.packets.close()
        node.close()

    trio.run(main)


@trio_test
async def test_a_drain_waits_for_the_answer_to_the_request_in_hand() -> None:
    node = Node()
    node.listen()
    node.workload_proxies.slowness = 0.05
    async with trio.open_nursery() as nursery:
        nursery.start_soon(node.agent.run, node.drain)
        cni = await node.accept()
        with cni.packets:
            nursery.start_soon(node.drain_soon)
            assert await cni.add("web") == ""
    node.close()


def test_cancelled_at_any_step_nothing_is_left_open() -> None:
    async def scenario() -> None:
        node = Node()
        node.listen()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(node.agent.run, node.drain)
                with (cni := await node.accept()).packets:
                    await cni.add("a")
                    await cni.add("a", TWO)
                    node.workload_proxies.is_full = True
                    await cni.add("b")
                    await cni.add("b", TWO)
                    await trio.sleep(6)
                    await cni.snapshot()
                    await cni.ask(zds.delete("a"))
                nursery.cancel_scope.cancel()
        finally:
            node.close()

    logging.disable(logging.CRITICAL)
    try:
        assert cancelled_everywhere_now(scenario) > 20
    finally:
        logging.disable(logging.NOTSET)
