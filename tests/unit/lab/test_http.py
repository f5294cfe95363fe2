"""One request, one answer, over memory streams."""

import h11
import pytest
import trio
from trio.testing import memory_stream_pair

from tests.fakes.trio_test import trio_test
from ztunnel_trio.lab import http


@trio_test(autojump=True)
async def test_a_request_reaches_the_server_and_its_answer_comes_back() -> None:
    client, server = memory_stream_pair()

    async def serve() -> None:
        request = await http.read_request(server)
        assert request is not None
        assert (request.method, request.path, request.body) == ("POST", "/x?y=1", b"body")
        assert request.headers["x-marker"] == "m"
        await http.answer(server, 503, b"later", "text/x")
        await server.aclose()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        response = await http.fetch(client, "/x?y=1", method="POST", headers={"x-marker": "m"}, body=b"body")

    assert (response.status, response.text, response.headers["content-type"]) == (503, "later", "text/x")


@trio_test(autojump=True)
async def test_an_answer_may_end_with_the_connection() -> None:
    client, server = memory_stream_pair()
    await server.send_all(b"HTTP/1.1 200 OK\r\n\r\nuntil the end")
    await server.send_eof()

    assert (await http.fetch(client, "/")).body == b"until the end"


@pytest.mark.parametrize(
    "said", [b"", b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nabc", b"\x16\x03\x01\x00\x05junk\r\n\r\n"]
)
@trio_test(autojump=True)
async def test_anything_else_is_no_answer(said: bytes) -> None:
    client, server = memory_stream_pair()
    await server.send_all(said)
    await server.send_eof()

    with pytest.raises(h11.RemoteProtocolError):
        await http.fetch(client, "/")


@trio_test(autojump=True)
async def test_a_client_that_asks_nothing_is_no_error() -> None:
    client, server = memory_stream_pair()
    await client.send_eof()

    assert await http.read_request(server) is None
