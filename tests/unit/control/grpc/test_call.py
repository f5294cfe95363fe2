"""A call: what surfaces in Trio for everything a server can say or leave unsaid."""

from pathlib import Path

import pytest
import trio

from tests.fakes.echo_server import ECHO, TRUST, serving, to
from tests.fakes.trio_test import trio_test
from ztunnel_trio.control import grpc
from ztunnel_trio.control.grpc import BadMessage, BadStatus, ConnectionEnded, ServerCall
from ztunnel_trio.control.grpc.loop import from_asyncio
from ztunnel_trio.errors import WeBrokeProtocol
from ztunnel_trio.facts.grpc import GrpcCode


@trio_test
async def test_messages_go_both_ways(server_files: Path) -> None:
    async with serving(server_files) as served, grpc.open_channel(to(served.port), TRUST) as channel:
        stream = await channel.open_stream(ECHO, {"clusterid": "Kubernetes"})
        for message in (b"", b"one", b"x" * 300_000):
            await stream.send(message)
            assert await stream.receive() == message
        assert stream.answered
        await stream.send(b"last", last=True)

        assert [await stream.receive(), await stream.receive()] == [b"last", None]
        assert await channel.call(ECHO, b"question", {}) == b"question"


@trio_test
async def test_a_large_message_comes_in_pieces(server_files: Path) -> None:
    async with serving(server_files) as served, grpc.open_channel(to(served.port), TRUST) as channel:
        stream = await channel.open_stream(ECHO, {})
        await stream.send(b"y" * 200_000)

        assert await stream.begin_message() == 200_000
        with pytest.raises(WeBrokeProtocol):
            await stream.begin_message()
        sizes = []
        while piece := await stream.piece(5000):
            sizes.append(len(piece))

        assert sum(sizes) == 200_000
        assert max(sizes) == 5000


@trio_test
async def test_large_messages_sent_at_once_do_not_mix(server_files: Path) -> None:
    messages = [bytes([number]) * 300_000 for number in range(4)]
    async with serving(server_files) as served, grpc.open_channel(to(served.port), TRUST) as channel:
        stream = await channel.open_stream(ECHO, {})
        async with trio.open_nursery() as nursery:
            for message in messages:
                nursery.start_soon(stream.send, message)
            answers = [await stream.receive() for _ in messages]

    assert sorted(answer or b"" for answer in answers) == messages


@trio_test
async def test_a_refusal_before_anything_else_is_a_status_without_answer(server_files: Path) -> None:
    async def refuse(_call: ServerCall) -> None:
        raise BadStatus(GrpcCode.UNAUTHENTICATED, "authentication failure")

    async with serving(server_files, refuse) as served, grpc.open_channel(to(served.port), TRUST) as channel:
        stream = await channel.open_stream(ECHO, {})
        with pytest.raises(BadStatus) as caught:
            await stream.receive()

    assert (caught.value.code, caught.value.message) == (GrpcCode.UNAUTHENTICATED, "authentication failure")
    assert not caught.value.answered


@trio_test
async def test_a_status_after_messages_is_a_status_with_answer(server_files: Path) -> None:
    async def abort(call: ServerCall) -> None:
        await call.send(b"one")
        raise BadStatus(GrpcCode.ABORTED, "enough")

    async with serving(server_files, abort) as served, grpc.open_channel(to(served.port), TRUST) as channel:
        stream = await channel.open_stream(ECHO, {})
        assert await stream.receive() == b"one"
        with pytest.raises(BadStatus) as caught:
            await stream.receive()

    assert (caught.value.code, caught.value.message) == (GrpcCode.ABORTED, "enough")
    assert caught.value.answered


@trio_test
async def test_a_server_that_ends_with_ok_before_us_ends_the_stream(server_files: Path) -> None:
    async def one(call: ServerCall) -> None:
        await call.send(b"one")

    async with serving(server_files, one) as served, grpc.open_channel(to(served.port), TRUST) as channel:
        stream = await channel.open_stream(ECHO, {})

        assert [await stream.receive(), await stream.receive()] == [b"one", None]


@trio_test
async def test_an_unknown_method_is_unimplemented(server_files: Path) -> None:
    async with serving(server_files) as served, grpc.open_channel(to(served.port), TRUST) as channel:
        with pytest.raises(BadStatus) as caught:
            await channel.call("/test/Nothing", b"", {})

    assert caught.value.code is GrpcCode.UNIMPLEMENTED


@trio_test
async def test_a_killed_server_ends_the_stream(server_files: Path) -> None:
    async with serving(server_files) as served, grpc.open_channel(to(served.port), TRUST) as channel:
        stream = await channel.open_stream(ECHO, {})
        await stream.send(b"x")
        await stream.receive()
        served.drop_connections()
        with pytest.raises(ConnectionEnded) as caught:
            await stream.receive()
        with pytest.raises(ConnectionEnded):
            await stream.send(b"x")
        with pytest.raises(ConnectionEnded):
            await channel.open_stream(ECHO, {})

    assert (caught.value.source, caught.value.answered) == ("Connection lost", True)


@trio_test
async def test_a_goaway_is_an_ordinary_end(server_files: Path) -> None:
    async with serving(server_files) as served, grpc.open_channel(to(served.port), TRUST) as channel:
        stream = await channel.open_stream(ECHO, {})
        await stream.send(b"x")
        await stream.receive()
        served.send_goaway()
        with pytest.raises(ConnectionEnded):
            await stream.receive()


@trio_test
async def test_a_message_whose_receive_was_cancelled_is_not_taken_for_another(server_files: Path) -> None:
    async def half(call: ServerCall) -> None:
        await call.answer()
        await from_asyncio(lambda: call._stream._stream.send_data(b"\x00\x00\x00\x00\x09abc"))
        await trio.sleep_forever()

    async with serving(server_files, half) as served, grpc.open_channel(to(served.port), TRUST) as channel:
        stream = await channel.open_stream(ECHO, {})
        with trio.move_on_after(0.1) as scope:
            await stream.receive()
        assert scope.cancelled_caught
        with pytest.raises(WeBrokeProtocol):
            await stream.receive()


@pytest.mark.parametrize(
    ("sent", "text"),
    [
        (b"\x00\xff\xff\xff\xff", "message length too large: found 4294967295 bytes"),
        (b"\x01\x00\x00\x00\x01x", "compressed"),
        (b"\x00\x00\x00\x00\x09abc", "cut short"),
        (b"\x00\x00", "cut short"),
    ],
)
@trio_test
async def test_a_broken_message_is_named(server_files: Path, sent: bytes, text: str) -> None:
    async def break_it(call: ServerCall) -> None:
        await call.answer()
        await from_asyncio(lambda: call._stream._stream.send_data(sent))

    async with (
        serving(server_files, break_it) as served,
        grpc.open_channel(to(served.port), TRUST) as channel,
    ):
        stream = await channel.open_stream(ECHO, {})
        with pytest.raises(BadMessage, match=text):
            await stream.receive()


@trio_test
async def test_a_stream_that_ends_without_status_is_unknown(server_files: Path) -> None:
    async def end(call: ServerCall) -> None:
        await call.answer()
        await from_asyncio(lambda: call._stream._stream.send_data(b"", end_stream=True))
        call._stream._send_trailing_metadata_done = True

    async with serving(server_files, end) as served, grpc.open_channel(to(served.port), TRUST) as channel:
        stream = await channel.open_stream(ECHO, {})
        with pytest.raises(BadStatus, match="without trailers"):
            await stream.receive()
