"""Frames grpclib would end the connection for."""

from functools import partial
from pathlib import Path

import trio

from tests.fakes.echo_server import ECHO, TRUST, serving, to
from tests.fakes.trio_test import trio_test
from ztunnel_trio.control import grpc
from ztunnel_trio.control.grpc import ServerCall
from ztunnel_trio.control.grpc.loop import from_asyncio


@trio_test
async def test_unknown_frames_and_altsvc_change_nothing(server_files: Path) -> None:
    async with serving(server_files) as served, grpc.open_channel(to(served.port), TRUST) as channel:
        stream = await channel.open_stream(ECHO, {})
        await stream.send(b"x")
        await stream.receive()
        served.write_raw(b"\x00\x00\x03" + b"\xee\x00" + b"\x00\x00\x00\x00" + b"abc")  # type 0xee
        served.write_raw(
            b"\x00\x00\x05" + b"\x0a\x00" + b"\x00\x00\x00\x00" + b"\x00\x01abc"
        )  # ALTSVC, RFC 7838
        await stream.send(b"y")

        assert await stream.receive() == b"y"


@trio_test
async def test_an_empty_data_frame_is_no_end(server_files: Path) -> None:
    async def pause(call: ServerCall) -> None:
        await call.answer()
        for data in (b"\x00\x00\x00", b"", b"\x00\x02a", b"", b"b"):
            await from_asyncio(partial(call._stream._stream.send_data, data))
        await trio.sleep_forever()

    async with serving(server_files, pause) as served, grpc.open_channel(to(served.port), TRUST) as channel:
        stream = await channel.open_stream(ECHO, {})

        assert await stream.receive() == b"ab"
