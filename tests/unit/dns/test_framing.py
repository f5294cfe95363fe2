import pytest
import trio
import trio.testing

from tests.fakes.trio_test import trio_test
from ztunnel_trio.dns.framing import MessageStream
from ztunnel_trio.errors import PeerBrokeProtocol


@trio_test
async def test_messages_arrive_whole_however_they_were_cut() -> None:
    near, far = trio.testing.memory_stream_pair()
    stream = MessageStream(near)
    wire = b"\0\3abc" + b"\0\0" + b"\0\2de"

    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def send_bytewise() -> None:
            for byte in wire:
                await far.send_all(bytes([byte]))
            await far.send_eof()

        assert [await stream.receive() for _ in range(4)] == [b"abc", b"", b"de", None]


@trio_test
async def test_several_messages_may_come_at_once() -> None:
    near, far = trio.testing.memory_stream_pair()
    await far.send_all(b"\0\1a\0\1b")

    stream = MessageStream(near)

    assert [await stream.receive(), await stream.receive()] == [b"a", b"b"]


@pytest.mark.parametrize("wire", [b"\0", b"\0\2", b"\0\2a"])
def test_an_end_within_a_message_is_the_peers_fault(wire: bytes) -> None:
    @trio_test
    async def run() -> None:
        near, far = trio.testing.memory_stream_pair()
        await far.send_all(wire)
        await far.send_eof()

        with pytest.raises(PeerBrokeProtocol):
            await MessageStream(near).receive()

    run()


@trio_test
async def test_a_message_is_sent_behind_its_length_and_the_end_follows() -> None:
    near, far = trio.testing.memory_stream_pair()
    stream = MessageStream(near)

    await stream.send(b"abc")
    await stream.aclose()

    assert await far.receive_some() == b"\0\3abc"
    assert await far.receive_some() == b""
