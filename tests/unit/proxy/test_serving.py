import trio

from tests.fakes.trio_test import trio_test
from tests.fakes.tunnels import tcp_pair
from tests.fakes.world import at, captured
from ztunnel_trio.proxy.serving import contained, serve_one

PEER = at("127.0.0.2:1")


async def fail_with(error: Exception) -> list[tuple[str, str]]:
    """What is said of a handler that raises, its socket closed in any case."""
    near, far = tcp_pair()

    async def handler(sock: object, peer: object) -> None:
        await trio.lowlevel.checkpoint()
        raise error

    with near, captured("ztunnel::proxy") as lines:
        await serve_one(handler, far, PEER)
    assert far.fileno() < 0
    return [(line["level"], line["message"]) for line in lines.lines]


@trio_test
async def test_a_connection_that_breaks_is_no_news() -> None:
    assert await fail_with(ConnectionResetError("reset")) == [
        ("DEBUG", "connection from 127.0.0.2:1 ended: reset")
    ]


@trio_test
async def test_a_bug_is_loud_and_contained() -> None:
    assert await fail_with(KeyError("oh")) == [("ERROR", "connection from 127.0.0.2:1: its handler failed")]

    async def child() -> None:
        await trio.lowlevel.checkpoint()
        raise KeyError("oh")

    with captured("ztunnel::proxy") as lines:
        await contained("tunnel", child)
    assert [line["message"] for line in lines.lines] == ["tunnel failed"]


@trio_test
async def test_a_cancellation_passes_and_closes_the_socket() -> None:
    near, far = tcp_pair()

    async def handler(sock: object, peer: object) -> None:
        await trio.sleep_forever()

    with near, trio.move_on_after(0.01) as scope:
        await serve_one(handler, far, PEER)
    assert scope.cancelled_caught
    assert far.fileno() < 0
