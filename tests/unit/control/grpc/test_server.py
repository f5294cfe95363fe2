"""A server's handlers as Trio tasks."""

from collections.abc import Mapping
from pathlib import Path

import trio

from tests.fakes.echo_server import ECHO, TRUST, echo, serving, to
from tests.fakes.trio_test import trio_test
from ztunnel_trio.control import grpc
from ztunnel_trio.control.grpc import ServerCall


@trio_test
async def test_the_server_sees_metadata_and_deadline(server_files: Path) -> None:
    seen: list[Mapping[str, str]] = []

    async def note(call: ServerCall) -> None:
        seen.append(call.metadata)
        assert call._stream.deadline is not None
        assert 3 < call._stream.deadline.time_remaining() <= 4
        await echo(call)

    async with serving(server_files, note) as served, grpc.open_channel(to(served.port), TRUST) as channel:
        with trio.fail_after(4):
            await channel.call(ECHO, b"", {"authorization": "Bearer t"})

    assert seen == [{"authorization": "Bearer t"}]
