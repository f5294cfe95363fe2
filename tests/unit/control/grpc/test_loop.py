"""The asyncio loop inside Trio outlives what happens on it."""

from pathlib import Path

import pytest

from tests.fakes.echo_server import ECHO, TRUST, serving, to
from tests.fakes.trio_test import trio_test
from ztunnel_trio.control import grpc
from ztunnel_trio.control.grpc import ConnectionEnded


@trio_test
async def test_a_protocol_violation_ends_one_connection_and_not_the_loop(server_files: Path) -> None:
    async with serving(server_files) as served:
        async with grpc.open_channel(to(served.port), TRUST) as channel:
            stream = await channel.open_stream(ECHO, {})
            await stream.send(b"x")
            await stream.receive()
            served.write_raw(
                b"\x00\x00\x04" + b"\x08\x00" + b"\x00\x00\x00\x00" + b"\x00\x00\x00\x00"
            )  # window +0
            with pytest.raises(ConnectionEnded):
                await stream.receive()
        async with grpc.open_channel(to(served.port), TRUST) as channel:
            assert await channel.call(ECHO, b"again", {}) == b"again"
