"""Datagrams with descriptors over a real SOCK_SEQPACKET socket."""

import os
import resource
import socket
from pathlib import Path
from typing import TextIO

import pytest
import trio

from tests.fakes.cancellation import cancelled_everywhere_now, open_descriptors
from tests.fakes.seqpacket import SeqPacketListener
from tests.fakes.trio_test import trio_test
from ztunnel_trio.net.seqpacket import Descriptor, SeqPacket


def null_device() -> TextIO:
    return open("/dev/null")


def pair() -> tuple[SeqPacket, SeqPacket]:
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return SeqPacket(left), SeqPacket(right)


@trio_test
async def test_message_boundaries_are_kept() -> None:
    left, right = pair()
    with left, right:
        await left.send(b"one")
        await left.send(b"two")
        assert (await right.receive()).data == b"one"
        assert (await right.receive()).data == b"two"


@trio_test
async def test_a_descriptor_travels_beside_its_message_and_is_not_inherited() -> None:
    left, right = pair()
    with left, right, null_device() as null:
        await left.send(b"add", [null.fileno()])
        datagram = await right.receive()
        assert not datagram.truncated
        (descriptor,) = datagram.descriptors
        number = descriptor.release()
        assert os.fstat(number).st_rdev == os.fstat(null.fileno()).st_rdev
        assert not os.get_inheritable(number)
        datagram.close()
        os.close(number)


@pytest.mark.parametrize("count", [2, 3, 16])
def test_every_descriptor_of_a_datagram_is_owned(count: int) -> None:
    async def main() -> None:
        before = open_descriptors()
        left, right = pair()
        with left, right, null_device() as null:
            await left.send(b"add", [null.fileno()] * count)
            datagram = await right.receive()
            assert len(datagram.descriptors) == count
            assert not datagram.truncated
            datagram.close()
            datagram.close()
        assert open_descriptors() == before

    trio.run(main)


@trio_test
async def test_more_descriptors_than_anybody_sends_are_marked_and_not_leaked() -> None:
    before = open_descriptors()
    left, right = pair()
    with left, right, null_device() as null:
        await left.send(b"add", [null.fileno()] * 40)
        datagram = await right.receive()
        assert datagram.descriptors_lost
        assert len(datagram.descriptors) > 1
        datagram.close()
    assert open_descriptors() == before


@trio_test
async def test_a_process_without_descriptors_left_gets_the_message_all_the_same() -> None:
    left, right = pair()
    with left, right, null_device() as null:
        await left.send(b"add", [null.fileno()])
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (null.fileno(), hard))
        try:
            datagram = right.receive_nowait()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert (datagram.data, datagram.descriptors) == (b"add", ())
    assert (datagram.truncated, datagram.descriptors_lost) == (False, True)


@trio_test
async def test_a_longer_message_is_marked_as_truncated() -> None:
    left, right = pair()
    with left, right:
        await left.send(bytes(1024))
        await left.send(bytes(1025))
        assert not (await right.receive()).truncated
        assert (await right.receive()).truncated


@trio_test
async def test_the_end_is_a_message_of_nothing() -> None:
    left, right = pair()
    with right:
        left.close()
        assert (await right.receive()).data == b""
        with pytest.raises(BrokenPipeError):
            await right.send(b"ack")


@trio_test
async def test_a_cancelled_wait_takes_nothing() -> None:
    left, right = pair()
    with left, right, null_device() as null:
        with trio.move_on_after(0.01):
            await right.wait_readable()
        await left.send(b"add", [null.fileno()])
        with trio.CancelScope() as scope:
            scope.cancel()
            await right.receive()
        datagram = await right.receive()
        assert datagram.data == b"add"
        assert len(datagram.descriptors) == 1
        datagram.close()


@trio_test
async def test_a_full_receiver_makes_the_sender_wait() -> None:
    left, right = pair()
    sent = 0

    async def fill() -> None:
        nonlocal sent
        for _ in range(1000):
            await left.send(bytes(1000))
            sent += 1

    with left, right:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fill)
            await trio.testing.wait_all_tasks_blocked()
            assert sent < 1000
            for _ in range(1000):
                await right.receive()
    assert sent == 1000


@trio_test
async def test_dialling_a_listener(tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    path.write_text("stale")
    with SeqPacketListener.listen(path) as listener:
        async with trio.open_nursery() as nursery:

            async def serve() -> None:
                with await listener.accept() as accepted:
                    assert (await accepted.receive()).data == b"hello"

            nursery.start_soon(serve)
            with await SeqPacket.connect(path) as dialled:
                await dialled.send(b"hello")
    assert not path.exists()


@trio_test
async def test_nobody_listening_is_an_error(tmp_path: Path) -> None:
    before = open_descriptors()
    with pytest.raises(FileNotFoundError):
        await SeqPacket.connect(tmp_path / "none.sock")
    assert open_descriptors() == before


@trio_test
async def test_a_full_listen_queue_is_an_error_not_a_connection(tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    with SeqPacketListener.listen(path, backlog=0):
        first = await SeqPacket.connect(path)
        with first, pytest.raises(BlockingIOError):
            await SeqPacket.connect(path)


@trio_test
async def test_a_path_that_cannot_be_bound_leaves_nothing_open(tmp_path: Path) -> None:
    before = open_descriptors()
    with pytest.raises(FileNotFoundError):
        SeqPacketListener.listen(tmp_path / "missing" / "agent.sock")
    assert open_descriptors() == before


def test_a_released_descriptor_is_no_longer_closed() -> None:
    number = os.open("/dev/null", os.O_RDONLY)
    descriptor = Descriptor(number)
    assert descriptor.release() == number
    descriptor.close()
    os.close(number)


def test_an_exchange_cancelled_at_any_step_leaves_nothing_open(tmp_path: Path) -> None:
    async def scenario() -> None:
        with SeqPacketListener.listen(tmp_path / "agent.sock") as listener:
            async with trio.open_nursery() as nursery:

                async def serve() -> None:
                    with await listener.accept() as accepted, null_device() as null:
                        await accepted.send(b"add", [null.fileno()])

                nursery.start_soon(serve)
                with await SeqPacket.connect(tmp_path / "agent.sock") as dialled:
                    (await dialled.receive()).close()

    assert cancelled_everywhere_now(scenario) > 3
