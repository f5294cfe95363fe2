"""SOCKS5 clients: what they are told before anything is dialled, and what becomes of them."""

from contextlib import suppress
from ipaddress import ip_address

import pytest
import trio

from tests.fakes.trio_test import trio_test
from tests.fakes.tunnels import App, tcp_pair, until
from tests.fakes.world import SOURCE, World, captured, patient_clock, world
from tests.unit.proxy.test_workload_proxy import FakeNames
from ztunnel_trio.model.address import SocketAddress
from ztunnel_trio.net.listener import peer_address
from ztunnel_trio.proxy.serving import serve_one
from ztunnel_trio.proxy.socks import Socks

TEXT = "failed to negotiate socks connection: "


def client_of(it: World, names: FakeNames | None = None) -> App:
    """A client of the SOCKS port."""
    near, far = tcp_pair()
    app = App(near)
    it.apps.append(app)
    socks = Socks(it.outbound(SOURCE), None if names is None else names.resolve)
    it.nursery.start_soon(serve_one, socks.serve, far, peer_address(far))
    return app


def named(host: str, port: int) -> bytes:
    return b"\5\1\0\3" + bytes([len(host)]) + host.encode() + port.to_bytes(2, "big")


def numbered(address: SocketAddress) -> bytes:
    return b"\5\1\0\1" + address.ip.packed + address.port.to_bytes(2, "big")


async def greet(app: App) -> None:
    await app.send(b"\5\1\0")
    assert await app.receive_exactly(2) == b"\5\0"


@trio_test
async def test_an_address_is_carried_as_if_captured() -> None:
    async with world() as it:
        there = await it.echo(ip_address("127.0.0.4"))
        app = client_of(it)
        await greet(app)
        await app.send(numbered(there) + b"early")  # the client need not wait
        assert await app.receive_exactly(10) == b"\5\0\0\1\0\0\0\0\0\0"
        assert await app.receive_exactly(5) == b"early"
        app.end()
        assert await app.receive() == b""
        await until(lambda: len(it.lines.complete) == 1)
        (line,) = it.lines.complete
        assert (line["direction"].strip('"'), line["dst.addr"]) == ("outbound", str(there))


@trio_test
async def test_a_name_is_resolved_by_the_workloads_own_server() -> None:
    async with world() as it:
        there = await it.echo(ip_address("127.0.0.4"))
        app = client_of(it, FakeNames({"db.example": [there.ip]}))
        await greet(app)
        await app.send(named("db.example", there.port))
        assert await app.receive_exactly(10) == b"\5\0\0\1\0\0\0\0\0\0"
        await app.send(b"x")
        assert await app.receive_exactly(1) == b"x"


@trio_test
async def test_success_is_answered_before_anything_is_dialled() -> None:
    async with world() as it:
        app = client_of(it)
        await greet(app)
        await app.send(numbered(SocketAddress(ip_address("127.0.0.4"), 1)))
        assert await app.receive_exactly(10) == b"\5\0\0\1\0\0\0\0\0\0"
        assert await app.receive() == b""
        assert it.lines.errors() == ["io error: Connection refused (os error 111)"]


@pytest.mark.parametrize(
    ("sent", "has_names", "reply", "text"),
    [
        (named("nowhere.example", 80), True, 4, "dns lookup: request timed out"),
        (named("empty.example", 80), True, 4, "dns response had no valid IP addresses"),
        (named("db.example", 80), False, 7, "unsupported hostname lookup, requires DNS enabled"),
        (b"\5\2\0\1\x7f\0\0\1\0\x50", True, 7, "unsupported command 2"),
    ],
)
def test_what_is_refused_is_told_and_logged(sent: bytes, has_names: bool, reply: int, text: str) -> None:
    @trio_test
    async def main() -> None:
        async with world() as it:
            with captured("ztunnel::proxy::socks5") as lines:
                app = client_of(it, FakeNames({"empty.example": []}) if has_names else None)
                await greet(app)
                await app.send(sent)
                assert await app.receive_exactly(10) == bytes([5, reply, 0, 1, 0, 0, 0, 0, 0, 0])
                with suppress(ConnectionResetError):  # where it had more to say than was read
                    assert await app.receive() == b""
            assert [line["message"] for line in lines.lines] == [TEXT + text]
            assert it.lines.complete == []

    main()


@trio_test(clock=patient_clock())
async def test_a_client_that_says_nothing_is_let_go() -> None:
    async with world() as it:
        with captured("ztunnel::proxy::socks5") as lines:
            app = client_of(it)
            assert await app.receive() == b""
        assert trio.current_time() == pytest.approx(10, abs=0.1)
        assert [line["message"] for line in lines.lines] == [TEXT + "io error: deadline has elapsed"]


@trio_test
async def test_a_client_that_leaves_in_the_middle() -> None:
    async with world() as it:
        app = client_of(it)
        await greet(app)
        app.end()
        with suppress(ConnectionResetError):
            await app.receive_all()
        assert it.lines.complete == []
