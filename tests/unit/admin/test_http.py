import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from ipaddress import IPv4Address

import pytest
import trio
from trio.testing import memory_stream_pair

from tests.fakes.cancellation import cancelled_everywhere_now
from tests.fakes.trio_test import trio_test
from ztunnel_trio.admin.http import (
    Handler,
    HttpConnection,
    HttpRequest,
    HttpResponse,
    HttpServer,
    HttpSettings,
    could_be_http,
    plain,
)
from ztunnel_trio.admin.places import ConnectionPlace
from ztunnel_trio.model.address import SocketAddress
from ztunnel_trio.net.sockets import SocketFactory, SocketSettings

PLACE = ConnectionPlace(IPv4Address("127.0.0.1"))
ANYWHERE = SocketAddress(IPv4Address("127.0.0.1"), 0)


async def hello(request: HttpRequest) -> HttpResponse:
    return plain(200, f"hello {request.query}\n")


async def broken(request: HttpRequest) -> HttpResponse:
    raise ValueError("cannot serialise")


async def pieces(request: HttpRequest) -> HttpResponse:
    async def body(send: Callable[[bytes], Awaitable[None]]) -> None:
        for piece in (b"one ", b"", b"two"):
            await send(piece)

    return HttpResponse(content_type="text/plain", body=body)


ROUTES: dict[str, Handler] = {"/hello": hello, "/broken": broken, "/pieces": pieces}


def idle_server(settings: HttpSettings | None = None) -> HttpServer:
    return HttpServer("test", [], ROUTES, settings or HttpSettings())


async def talk(*chunks: bytes, settings: HttpSettings | None = None) -> str:
    """Everything the server answers to these chunks, then the end of our side."""
    ours, theirs = memory_stream_pair()
    received = bytearray()

    async def serve() -> None:
        async with theirs:
            await HttpConnection(idle_server(settings), theirs, PLACE).run()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        for chunk in chunks:
            await trio.testing.wait_all_tasks_blocked()
            try:
                await ours.send_all(chunk)
            except trio.BrokenResourceError:
                break
        await ours.send_stream.aclose()
        async for piece in ours.receive_stream:
            received += piece
    return re.sub(r"date: [^\r]*GMT\r\n", "", received.decode("latin-1"))


GET = b"GET /hello?a HTTP/1.1\r\nHost: x\r\n\r\n"


@trio_test
async def test_a_request_gets_its_answer_with_a_date() -> None:
    ours, theirs = memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(HttpConnection(idle_server(), theirs, PLACE).run)
        await ours.send_all(GET)
        answer = await ours.receive_some(10000)
        while b"hello a" not in answer:
            answer += await ours.receive_some(10000)
        nursery.cancel_scope.cancel()

    assert re.search(rb"\r\ndate: \w{3}, \d\d \w{3} \d{4} [\d:]{8} GMT\r\n", answer)


@trio_test
async def test_a_connection_serves_several_requests() -> None:
    answer = "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 8\r\n\r\nhello a\n"

    assert await talk(GET, GET) == answer * 2
    assert await talk(GET + GET[:9], GET[9:]) == answer * 2  # in pieces that cut a request line


@trio_test
async def test_unknown_paths_are_empty_404s() -> None:
    for path in (b"/nope", b"/hello/", b"/Hello", b"//hello"):
        answer = await talk(b"GET " + path + b" HTTP/1.1\r\nHost: x\r\n\r\n")
        assert answer == "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n"


@trio_test
async def test_a_failed_handler_is_a_500_and_the_connection_goes_on() -> None:
    answer = await talk(b"GET /broken HTTP/1.1\r\nHost: x\r\n\r\n", GET)

    assert answer.startswith(
        "HTTP/1.1 500 Internal Server Error\r\ncontent-length: 16\r\n\r\ncannot serialise"
    )
    assert answer.endswith("hello a\n")


@trio_test
async def test_a_body_in_pieces_is_chunked() -> None:
    answer = await talk(b"GET /pieces HTTP/1.1\r\nHost: x\r\n\r\n")

    assert answer.endswith("Transfer-Encoding: chunked\r\n\r\n4\r\none \r\n3\r\ntwo\r\n0\r\n\r\n")


@trio_test
async def test_http_1_0_gets_an_unframed_body_and_the_end() -> None:
    answer = await talk(b"GET /pieces HTTP/1.0\r\n\r\n")

    assert answer.startswith("HTTP/1.1 200 OK\r\n")
    assert answer.endswith("onnection: close\r\n\r\none two")


@trio_test
async def test_head_has_the_headers_without_the_body() -> None:
    answer = await talk(b"HEAD /hello HTTP/1.1\r\nHost: x\r\n\r\n")

    assert answer == "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 7\r\n\r\n"


@pytest.mark.parametrize(
    "chunks",
    [
        [b"hello world"],
        [b"hello world\n"],
        [b"GET /hello HTTP/3.0\r\n"],
        [b"GET /hello\r\n"],
        [b"\x16\x03\x01\x02\x00"],
        [b"GET ", b"ftp"],
        [b"GET /hello HTTP/1.1\r\nbad header\r\n\r\n"],
        [b"GET /hello HTTP/1.1\r\n\r\n"],  # no Host
    ],
)
def test_what_is_not_http_is_answered_with_400_at_once(chunks: list[bytes]) -> None:
    @trio_test(autojump=True)
    async def run() -> None:
        began = trio.current_time()
        answer = await talk(*chunks)

        assert answer.startswith("HTTP/1.1 400 Bad Request\r\n")
        assert trio.current_time() == began

    run()


@trio_test
async def test_a_head_that_is_too_long_is_431() -> None:
    answer = await talk(b"GET /hello HTTP/1.1\r\nHost: x\r\n" + b"a: " + b"b" * 9000)

    assert answer.startswith("HTTP/1.1 431 Request Header Fields Too Large\r\n")


@trio_test
async def test_bodies_are_read_away_up_to_a_limit() -> None:
    post = b"POST /hello HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"

    assert (await talk(post % 5 + b"12345", GET)).count("hello") == 2
    assert (await talk(post % 100_000 + b"x" * 100_000)).startswith("HTTP/1.1 413 ")


@trio_test
async def test_who_waits_for_permission_to_send_a_body_gets_it() -> None:
    head = b"POST /hello HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n"

    answer = await talk(head, b"ab")

    assert answer.startswith("HTTP/1.1 100 Continue\r\n")
    assert answer.endswith("hello \n")


@pytest.mark.parametrize(
    ("begun", "seconds"),
    [
        pytest.param(GET[:5], 2, id="head"),
        pytest.param(b"POST /hello HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n", 5, id="body"),
    ],
)
@trio_test(autojump=True)
async def test_what_trickles_in_has_one_deadline_for_all_of_it(begun: bytes, seconds: float) -> None:
    ours, theirs = memory_stream_pair()

    async def serve() -> None:
        async with theirs:
            await HttpConnection(idle_server(), theirs, PLACE).run()
        nursery.cancel_scope.cancel()

    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        await ours.send_all(begun)
        for byte in GET[5:] if seconds == 2 else b"x" * 99:
            await trio.sleep(0.6)
            await ours.send_all(bytes([byte]))

    assert trio.current_time() - began == pytest.approx(seconds)


@trio_test(autojump=True)
async def test_a_reader_that_takes_nothing_is_given_up() -> None:
    send_stream, receive_stream = trio.testing.lockstep_stream_one_way_pair()
    ours, theirs_in = trio.testing.memory_stream_one_way_pair()
    await ours.send_all(GET)
    began = trio.current_time()

    with pytest.raises(trio.TooSlowError):
        await HttpConnection(idle_server(), trio.StapledStream(send_stream, theirs_in), PLACE).run()

    assert trio.current_time() - began == pytest.approx(30)
    await receive_stream.aclose()


@asynccontextmanager
async def running(
    routes: dict[str, Handler], settings: HttpSettings | None = None
) -> AsyncIterator[tuple[HttpServer, trio.Event]]:
    """A server on a loopback port, until the body ends or sets the event."""
    factory = SocketFactory(None, SocketSettings())
    server = HttpServer("test", [factory.listen_tcp(ANYWHERE)], routes, settings or HttpSettings())
    stop = trio.Event()
    async with trio.open_nursery() as nursery:
        await nursery.start(server.run, stop)
        yield server, stop
        nursery.cancel_scope.cancel()


async def dial(server: HttpServer) -> trio.SocketStream:
    return await trio.open_tcp_stream("127.0.0.1", server.listeners[0].address.port)


@trio_test
async def test_it_is_announced_with_its_address(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "ztunnel::hyper_util"):
        async with running(ROUTES) as (server, stop):
            stop.set()
            await trio.testing.wait_all_tasks_blocked()

    assert [record.getMessage() for record in caplog.records] == ["listener established", "listener drained"]
    assert vars(caplog.records[0])["fields"] == {
        "address": str(server.listeners[0].address), "component": "test"
    }  # fmt: skip


@trio_test
async def test_stopping_closes_the_port_and_idle_connections_but_finishes_requests() -> None:
    begun, go_on = trio.Event(), trio.Event()

    async def slow(request: HttpRequest) -> HttpResponse:
        begun.set()
        await go_on.wait()
        return plain(200, "done")

    async with (
        running({"/slow": slow}) as (server, stop),
        await dial(server) as busy,
        await dial(server) as idle,
    ):
        await busy.send_all(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
        await begun.wait()
        stop.set()

        assert await idle.receive_some(10) == b""
        with pytest.raises(OSError, match=r"all attempts to connect|refused"):
            await dial(server)
        go_on.set()
        answer = b"".join([piece async for piece in busy])
        assert answer.endswith(b"done")


@trio_test
async def test_who_waits_gives_way_to_a_newcomer_the_oldest_first() -> None:
    async with running(ROUTES, HttpSettings(most_connections=2)) as (server, _):
        first, second = await dial(server), await dial(server)
        async with first, second:
            await first.send_all(GET[:9])
            await trio.testing.wait_all_tasks_blocked()
            async with await dial(server) as third:
                await third.send_all(GET)
                assert (await third.receive_some(100)).startswith(b"HTTP/1.1 200 OK")
            assert await first.receive_some(10) == b""
            await second.send_all(GET)
            assert (await second.receive_some(100)).startswith(b"HTTP/1.1 200 OK")


@trio_test
async def test_what_is_being_answered_gives_way_to_nobody() -> None:
    begun, go_on = trio.Event(), trio.Event()

    async def slow(request: HttpRequest) -> HttpResponse:
        begun.set()
        await go_on.wait()
        return plain(200, "done")

    settings = HttpSettings(most_connections=1)
    async with running({"/slow": slow, **ROUTES}, settings) as (server, _), await dial(server) as busy:
        await busy.send_all(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
        await begun.wait()
        async with await dial(server) as second:
            await second.send_all(GET)
            with trio.move_on_after(0.05) as waiting:
                await second.receive_some(100)
            assert waiting.cancelled_caught
            go_on.set()
            assert b"200 OK" in await busy.receive_some(1000)
            assert (await second.receive_some(100)).startswith(b"HTTP/1.1 200 OK")


@trio_test
async def test_two_hundred_slow_clients_never_cost_a_probe_a_second() -> None:
    async with running(ROUTES) as (server, _), AsyncExitStack() as slow:
        for _ in range(200):
            await (await slow.enter_async_context(await dial(server))).send_all(GET[:7])
        for _ in range(3):
            with trio.fail_after(1):
                async with await dial(server) as probe:
                    await probe.send_all(GET)
                    assert (await probe.receive_some(100)).startswith(b"HTTP/1.1 200 OK")


@trio_test
async def test_a_client_that_vanishes_harms_nobody() -> None:
    async with running(ROUTES) as (server, _):
        async with await dial(server) as rude:
            await rude.send_all(b"GET /hello HT")
        async with await dial(server) as polite:
            await polite.send_all(GET)
            assert (await polite.receive_some(100)).startswith(b"HTTP/1.1 200 OK")


def test_nothing_is_left_when_it_is_cancelled_at_any_step() -> None:
    async def scenario() -> None:
        async with running(ROUTES) as (server, stop), await dial(server) as stream:
            await stream.send_all(GET)
            await stream.receive_some(1000)
            stop.set()
            await stream.receive_some(1000)

    assert cancelled_everywhere_now(scenario, autojump=False) > 10


@pytest.mark.parametrize(
    ("head", "possible"),
    [
        (b"", True),
        (b"GE", True),
        (b"GET ", True),
        (b"GET /", True),
        (b"GET *", True),
        (b"GET http://x/", True),
        (b"\r\nGET /x HTTP/1.1\r\n", True),
        (b"GET /x HTTP/1.1\n", True),
        (b"hello world", False),
        (b"GET /x", True),
        (b"GET /x\r\n", False),
        (b"GET  /x", False),
        (b"\x16\x03", False),
        (b"SSH-2.0-x\r\n", False),
    ],
)
def test_a_beginning_that_cannot_become_a_request_is_seen(head: bytes, *, possible: bool) -> None:
    assert could_be_http(head) is possible


def test_of_a_repeated_parameter_the_last_one_counts() -> None:
    request = HttpRequest("POST", "/logging", "level=access=debug,info&reset&x=1&x=a+b%20c", [])

    assert request.parameters() == {"level": "access=debug,info", "reset": "", "x": "a b c"}
