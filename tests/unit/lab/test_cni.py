"""The stand-in agent against a proxy made of a bare socket."""

import os
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from tests.fakes.trio_test import trio_test
from ztunnel_trio.lab.cni import Agent, ProxyGone
from ztunnel_trio.net.netns import Netns

HELLO, ACK, SNAPSHOT = bytes.fromhex("0801"), bytes.fromhex("0a00"), bytes.fromhex("1a00")
REFUSED = bytes.fromhex("0a050a036e6f21")
POD = {"name": "podA", "namespace": "default", "service_account": "default"}


class BareProxy:
    """Says hello and then what it is told to."""

    def __init__(self, sock: trio.socket.SocketType) -> None:
        self.sock = sock
        self.heard: list[bytes] = []
        self.descriptors: list[int] = []
        self.answer = ACK

    async def serve(self) -> None:
        with self.sock:
            while True:
                data, control, _, _ = await self.sock.recvmsg(1024, socket.CMSG_SPACE(64))
                if not data:
                    return
                self.heard.append(data)
                for _, _, raw in control:
                    fds = [int.from_bytes(raw[i : i + 4], "little") for i in range(0, len(raw), 4)]
                    self.descriptors += fds
                    for fd in fds:
                        os.close(fd)
                await self.sock.send(self.answer)


@asynccontextmanager
async def agent_at(path: Path) -> AsyncGenerator[tuple[Agent, trio.Nursery], None]:
    agent = Agent(str(path))
    async with trio.open_nursery() as nursery:
        await nursery.start(agent.run)
        yield agent, nursery
        nursery.cancel_scope.cancel(reason="the test is over")


async def connected(path: Path, nursery: trio.Nursery) -> BareProxy:
    sock = trio.socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    await sock.connect(str(path))
    await sock.send(HELLO)
    proxy = BareProxy(sock)
    nursery.start_soon(proxy.serve)
    return proxy


@trio_test
async def test_a_proxy_gets_every_pod_and_then_the_snapshot(tmp_path: Path) -> None:
    async with agent_at(tmp_path / "s") as (agent, nursery):
        netns = Netns.own()
        agent.remember("uid-a", netns=netns, **POD)
        proxy = await connected(tmp_path / "s", nursery)
        with trio.fail_after(3):
            await agent.connection()
        netns.close()

        assert proxy.heard == [
            bytes.fromhex("0a210a05")
            + b"uid-a"
            + bytes.fromhex("12180a04")
            + b"podA"
            + bytes.fromhex("1207")
            + b"default"
            + bytes.fromhex("1a07")
            + b"default",
            SNAPSHOT,
        ]
        assert len(proxy.descriptors) == 1
        assert [one.what for one in agent.acknowledged] == ["add", "snapshot"]


@trio_test
async def test_additions_and_removals_return_the_proxys_words(tmp_path: Path) -> None:
    async with agent_at(tmp_path / "s") as (agent, nursery):
        proxy = await connected(tmp_path / "s", nursery)
        netns = Netns.own()

        assert await agent.add("uid-b", netns=netns, **POD) == ""
        assert await agent.delete("uid-b") == ""
        assert proxy.heard[-1] == bytes.fromhex("120712057569642d62")
        assert await agent.keep("u") == ""
        assert proxy.heard[-1] == bytes.fromhex("2a030a0175")
        proxy.answer = REFUSED
        assert await agent.snapshot() == "no!"
        assert await agent.raw(b"junk") == "no!"
        netns.close()


@trio_test
async def test_a_restart_ends_connections_and_greets_anew(tmp_path: Path) -> None:
    async with agent_at(tmp_path / "s") as (agent, nursery):
        await connected(tmp_path / "s", nursery)
        with trio.fail_after(3):
            first = await agent.connection()
        await agent.restart()
        assert not first.is_open
        proxy = await connected(tmp_path / "s", nursery)
        with trio.fail_after(3):
            assert await agent.connection() is not first
        assert proxy.heard == [SNAPSHOT]


@trio_test
async def test_a_proxy_that_goes_away_is_noticed(tmp_path: Path) -> None:
    async with agent_at(tmp_path / "s") as (agent, nursery):
        agent.automatic = False
        proxy = await connected(tmp_path / "s", nursery)
        with trio.fail_after(3):
            connection = await agent.connection()
        proxy.sock.shutdown(socket.SHUT_RDWR)
        with trio.fail_after(3):
            while connection.is_open:
                await agent.changed.newer_than(agent.changed.version)

        with pytest.raises(ProxyGone):
            await connection.ask(SNAPSHOT)
